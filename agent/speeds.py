"""How fast providers ran one's own programs: from accepted receipts, with operations counted here (pure)."""

import math
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from coppermesh.p2p.ids import PeerId

ENOUGH = 3
"""Tasks after which a measurement counts."""
MAX_KEPT = 8192
_ROW = [str, str, int, float, int]


@dataclass(slots=True)
class _Sum:
    tasks: int = 0
    operations: float = 0.0
    billed_us: int = 0


class OwnSpeeds:
    """For each provider and program what was measured; what was not used for long is forgotten first."""

    def __init__(self) -> None:
        self._sums: OrderedDict[tuple[PeerId, bytes], _Sum] = OrderedDict()
        self.changed = False
        """Something was noted since `rows` was last called."""

    def note(self, peer: PeerId, program: bytes, operations: float, billed_us: int) -> None:
        """A receipt was accepted: so many operations in so many microseconds."""
        found = self._sums.setdefault((peer, program), _Sum())
        self._sums.move_to_end((peer, program))
        found.tasks += 1
        found.operations += operations
        found.billed_us += billed_us
        self.changed = True
        if len(self._sums) > MAX_KEPT:
            self._sums.popitem(last=False)

    def rows(self) -> list[list[object]]:
        """All of it as plain values, least recently used first: what `restore` takes."""
        self.changed = False
        return [
            [peer.hex(), program.hex(), one.tasks, one.operations, one.billed_us]
            for (peer, program), one in self._sums.items()
        ]

    def restore(self, rows: object) -> None:
        """Take in what an earlier run noted. Raises ValueError where that is not what `rows` gives; nothing is kept."""
        found: OrderedDict[tuple[PeerId, bytes], _Sum] = OrderedDict()
        if not isinstance(rows, list) or len(rows) > MAX_KEPT:
            raise ValueError(f"not a list of at most {MAX_KEPT} entries")
        for row in rows:
            if not isinstance(row, list) or [type(value) for value in row] != _ROW:
                raise ValueError("an entry is not a peer, a program and three numbers")
            peer, program = bytes.fromhex(row[0]), bytes.fromhex(row[1])
            if len(peer) != 32 or len(program) != 32 or min(row[2:]) < 0 or not math.isfinite(row[3]):
                raise ValueError("an entry has an id or a number that cannot be")
            found[PeerId(peer), program] = _Sum(*row[2:])
        self._sums = found

    def speed(self, peer: PeerId, programs: Collection[bytes]) -> int:
        """Millions of operations per second over these programs; 0 where too little was measured."""
        found = self._found(peer, programs)
        billed_us = sum(one.billed_us for one in found)
        if sum(one.tasks for one in found) < ENOUGH or not billed_us:
            return 0
        return max(1, int(sum(one.operations for one in found) / billed_us))

    def task_us(self, peer: PeerId | None, programs: Collection[bytes]) -> int | None:
        """What a task of these programs took there on average (`peer` None: anywhere); None where none ran."""
        if peer is None:
            found = [one for (_, program), one in self._sums.items() if program in programs]
        else:
            found = self._found(peer, programs)
        tasks = sum(one.tasks for one in found)
        return sum(one.billed_us for one in found) // tasks if tasks else None

    def _found(self, peer: PeerId, programs: Collection[bytes]) -> list[_Sum]:
        return [self._sums[peer, program] for program in programs if (peer, program) in self._sums]
