"""Blobs of which some leaves arrived before the connection broke: what is kept for the next attempt, and how long.

Pure bookkeeping. Each holds a file in `incoming` and the room that was reserved for it, so there are few: at most
`MAX_KEPT_PER_SCOPE` of one scope and `MAX_KEPT` in all, for `KEPT_SECONDS`, and they are the first to go when room is
needed for anything else.
"""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from coppermesh.p2p.blob_files import Scope
from coppermesh.p2p.ids import Digest

KEPT_SECONDS = 600.0
MAX_KEPT_PER_SCOPE = 4
MAX_KEPT = 64


@dataclass(frozen=True, slots=True)
class Partial:
    """The first `done` leaves of a blob, verified, in the file `path`; `charge` bytes are reserved for all of it."""

    scope: Scope
    root: Digest
    size: int
    leaves: list[bytes]
    done: int
    charge: int
    path: Path
    kept_at: float


class PartialBlobs:
    """Those of one store, oldest first. What a method returns is out of the books: discard it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Scope, Digest], Partial] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, partial: Partial) -> list[Partial]:
        """Remember; returns what it replaces and what is too many now."""
        key = (partial.scope, partial.root)
        gone = [old] if (old := self._kept.pop(key, None)) is not None else []
        self._kept[key] = partial
        same_scope = [each for each in self._kept.values() if each.scope == partial.scope]
        too_many = same_scope[: max(0, len(same_scope) - MAX_KEPT_PER_SCOPE)]
        while len(self._kept) - len(too_many) > MAX_KEPT:
            too_many.append(next(each for each in self._kept.values() if each not in too_many))
        return gone + [self._kept.pop((each.scope, each.root)) for each in too_many]

    def take(self, scope: Scope, root: Digest) -> Partial | None:
        """The one to go on with."""
        return self._kept.pop((scope, root), None)

    def expired(self, now: float) -> list[Partial]:
        """Those kept for too long."""
        old = [each for each in self._kept.values() if now - each.kept_at > KEPT_SECONDS]
        return [self._kept.pop((each.scope, each.root)) for each in old]

    def oldest(self, scope: Scope) -> Partial | None:
        """The one to give up first for room that `scope` needs: its own before others'."""
        for each in self._kept.values():
            if each.scope == scope:
                return self._kept.pop((each.scope, each.root))
        return self._kept.popitem(last=False)[1] if self._kept else None
