"""What providers did with the tasks that this agent gave them: how much each may lose, and who rests (pure).

The rule: a provider may lose three tasks of ours in an hour. So once it has lost one, it never has more tasks at once
than are left of the three; after the third it rests until the first of them is an hour old. Who did twenty times as
many as it lost is not bad: a provider of thousands of short tasks may be started anew. Where nobody else is left to do
the work, one that rests gets one more try at a time: a mesh of one provider must survive its restarts.

A loss is a task that failed there or was on its way when the provider went; a refusal is none.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from coppermesh.p2p.ids import PeerId

MAX_LOST = 3
"""Tasks that a provider may lose in `SPAN_US`."""
SPAN_US = 3_600_000_000
DONE_FOR_ONE = 20
"""Tasks done that make up for one that was lost."""
MAX_DONE = 400
"""More are not counted, so that a long good past does not excuse everything."""
MAX_KEPT = 4096


@dataclass(slots=True)
class _Record:
    done: int = 0
    lost: deque[int] = field(default_factory=lambda: deque(maxlen=MAX_LOST))
    """When the last few were lost."""
    total: int = 0
    """Lost since the record was last clean."""


class Records:
    """The record of each provider; whoever was not used for longest is forgotten first."""

    def __init__(self) -> None:
        self._of: OrderedDict[PeerId, _Record] = OrderedDict()
        self._resting: set[PeerId] = set()

    def note_done(self, peer: PeerId) -> None:
        """It did a task."""
        record = self._record(peer)
        record.done = min(record.done + 1, MAX_DONE)

    def note_lost(self, peer: PeerId, now_us: int) -> None:
        """A task came to nothing there."""
        record = self._record(peer)
        record.lost.append(now_us)
        record.total += 1
        if self._losses(record, now_us) >= MAX_LOST:
            self._resting.add(peer)

    def is_new(self, peer: PeerId) -> bool:
        """It has done nothing for us yet."""
        record = self._of.get(peer)
        return record is None or not record.done

    def allowance(self, peer: PeerId, now_us: int) -> int | None:
        """How many tasks it may have at once; None: as many as are of use."""
        record = self._of.get(peer)
        lost = 0 if record is None else self._losses(record, now_us)
        return None if not lost else max(0, MAX_LOST - lost)

    def rests(self, peer: PeerId, now_us: int) -> bool:
        """It gets nothing now."""
        return peer in self._resting and self.allowance(peer, now_us) == 0

    def resting(self, now_us: int) -> set[PeerId]:
        """All that get nothing now."""
        self._resting = {peer for peer in self._resting if self.rests(peer, now_us)}
        return set(self._resting)

    def pardon(self, now_us: int) -> None:
        """Nobody else is left: each that rests gets one more try."""
        for peer in self.resting(now_us):
            self._of[peer].lost.popleft()
        self._resting.clear()

    def _losses(self, record: _Record, now_us: int) -> int:
        """What counts now."""
        while record.lost and record.lost[0] + SPAN_US <= now_us:
            record.lost.popleft()
        if not record.lost:
            record.total = 0
        return 0 if record.done >= DONE_FOR_ONE * record.total else len(record.lost)

    def _record(self, peer: PeerId) -> _Record:
        found = self._of.setdefault(peer, _Record())
        self._of.move_to_end(peer)
        if len(self._of) > MAX_KEPT:
            gone, _ = self._of.popitem(last=False)
            self._resting.discard(gone)
        return found
