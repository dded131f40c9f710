"""Changing settings while an agent runs: when to read the file again, and what then holds (pure).

A look at the file gives a stamp (or None where there is no file). An editor may write it in pieces, or write another
and rename it into place, so a changed file is read only when two looks in a row found the same stamp, and what was
read counts only when the stamp is still that one afterwards. Whatever is wrong leaves the settings as they are, and
`error` says what; so does a file that is gone, since an editor may be about to put it back, and a deny list must not
vanish with it.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields, replace
from operator import attrgetter

from coppermesh.agent.config import TABLES, Config, Loaded

NEEDS_RESTART = (
    "mesh",
    "listen",
    "bootstrap",
    "provide",
    "store_bytes",
    "idle_exit_seconds",
    "network",
    "seed",
)
"""Settings that a running agent keeps: its identity, its address, its disk."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """The file could not be used; the sentence says what to change."""

    sentence: str


class Reloader:
    """Which settings hold. `config` is what the agent goes by."""

    def __init__(self, loaded: Loaded, stamp: Hashable | None) -> None:
        """`stamp`: of the file that `loaded` was read from."""
        self.config = loaded.config
        self.origins: Mapping[str, str] = loaded.origins
        self.error: str | None = None
        """Why the file as it is now does not count."""
        self.waiting: tuple[str, ...] = ()
        """Settings that were changed and need a restart."""
        self._taken = stamp
        self._seen = stamp

    def look(self, stamp: Hashable | None) -> bool:
        """Take a look into account; True: the file is to be read now, and `take` to be called."""
        if stamp == self._taken:
            self._seen = stamp
            return False
        settled = stamp == self._seen
        self._seen = stamp
        return settled

    def take(
        self, before: Hashable | None, result: Loaded | Wrong, after: Hashable | None
    ) -> tuple[str, ...] | None:
        """What reading gave, with the stamps around it. Returns the settings that changed; None: look again."""
        if before != after:
            self._seen = after
            return None
        self._taken = before
        if isinstance(result, Wrong):
            self.error = result.sentence
            return ()
        self.error = None
        kept = {name: getattr(self.config, name) for name in NEEDS_RESTART}
        self.waiting = tuple(name for name in NEEDS_RESTART if getattr(result.config, name) != kept[name])
        changed = differences(self.config, replace(result.config, **kept))
        self.config, self.origins = replace(result.config, **kept), result.origins
        return changed


def differences(old: Config, new: Config) -> tuple[str, ...]:
    """Keys of the settings that are not the same, those of tables as `sharing.hours`."""
    top = [item.name for item in fields(Config) if item.name not in TABLES]
    inside = [f"{table}.{item.name}" for table, made in TABLES.items() for item in fields(made)]
    return tuple(key for key in top + inside if attrgetter(key)(old) != attrgetter(key)(new))
