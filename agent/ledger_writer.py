"""The ledger's one writing thread: it takes whatever waits, writes it as one transaction, and answers everybody.

What arrives during one transaction is the next group, so the cost of reaching the disk is shared exactly as much as
there is to share, without a timer. Knows nothing of trio: `answer` is called in this thread with each group.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coppermesh.agent.ledger import Entry, LeaseEnded, LedgerError
from coppermesh.agent.ledger_book import LedgerBook, LedgerFailed
from coppermesh.agent.story import StoryLine
from coppermesh.p2p.errors import MeshError

MAX_NOTES = 4096
NOTE_DELAY = 0.2
"""How long a note may stay in memory, in seconds."""


@dataclass(eq=False, slots=True)
class Commit:
    """One caller's entries, and once answered, why they were not written (None: they were)."""

    entries: tuple[Entry, ...]
    wake: Callable[[], object]
    failure: MeshError | None = None


class LedgerWriter:
    """A thread that owns the book. Start it with `start`; `close` lets it finish what waits, `join` waits for that."""

    def __init__(self, book: LedgerBook, answer: Callable[[Sequence[Commit]], None]) -> None:
        self._book = book
        self._answer = answer
        self._changed = threading.Condition()
        self._commits: list[Commit] = []
        self._notes: deque[Entry] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="coppermesh-ledger", daemon=True)
        self.notes_lost = 0

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def put(self, commit: Commit) -> None:
        """Queues a commit. The caller bounds how many wait. Raises LedgerError once closed."""
        with self._changed:
            if self._closing:
                raise LedgerError("the ledger is closed")
            self._commits.append(commit)
            self._changed.notify()

    def note(self, entry: StoryLine | LeaseEnded) -> None:
        """Queues what nobody waits for; counted as lost where too many wait or the ledger is closed."""
        with self._changed:
            if self._closing or len(self._notes) >= MAX_NOTES:
                self.notes_lost += 1
                return
            self._notes.append(entry)
            if len(self._notes) == 1:
                self._changed.notify()

    def close(self) -> None:
        """No more is taken; what waits is still written. Returns at once."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def join(self) -> None:
        """Blocks until all is written and the thread has ended."""
        self._thread.join()

    def _run(self) -> None:
        while True:
            commits, notes = self._next_group()
            if not commits and not notes:
                return
            self._write(commits, notes)
            if commits:
                self._answer(commits)

    def _next_group(self) -> tuple[list[Commit], list[Entry]]:
        """Waits for work; both lists are empty once closed and drained."""
        with self._changed:
            while not self._commits and not self._closing:
                if not self._changed.wait(NOTE_DELAY if self._notes else None) and self._notes:
                    break
            commits, self._commits = self._commits, []
            notes = list(self._notes)
            self._notes.clear()
        return commits, notes

    def _write(self, commits: Sequence[Commit], notes: Sequence[Entry]) -> None:
        groups: list[tuple[Entry, ...]] = [commit.entries for commit in commits]
        # Lines of a story contradict nothing: all of them are one group, and any other note is one by itself.
        story = tuple(note for note in notes if isinstance(note, StoryLine))
        kept: list[tuple[Entry, ...]] = [story] if story else []
        kept += [(note,) for note in notes if not isinstance(note, StoryLine)]
        groups += kept
        try:
            outcomes = self._book.commit_group(groups)
        except LedgerError as error:
            outcomes = [_copy(error) for _ in groups]
        except Exception as error:  # noqa: BLE001 - a bug must reach the callers, not leave them waiting for ever
            failure = LedgerFailed(f"the ledger failed unexpectedly: {error!r}")
            failure.__cause__ = error
            outcomes = [_copy(failure) for _ in groups]
        for commit, outcome in zip(commits, outcomes, strict=False):
            commit.failure = outcome
        lost = zip(kept, outcomes[len(commits) :], strict=True)
        self._count_lost(sum(len(notes) for notes, outcome in lost if outcome is not None))

    def _count_lost(self, lost: int) -> None:
        if lost:
            with self._changed:
                self.notes_lost += lost


def _copy(error: LedgerError) -> LedgerError:
    """An exception of its own for each caller: raising one object in many tasks would mix their tracebacks."""
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy
