"""Tasks that run at several providers: which results agree, and what is taken.

Copies of one determinism class must have the same bytes; across classes `exec/tolerance.compare` decides, with the
task's own inputs: each element is held to what went into it, for which the program runs a few times here. Where that is
too much (`MAX_RERUN_FLOPS`, `MAX_RERUN_BYTES`), and behind kernels and loops, the bound is that of the program alone,
under which small elements of an array with large ones may be anything; the receipt says which it was. What more
than half of the copies agree on is the result, and who gave another is named. Where no such majority is, nothing is
taken: the job fails and names each side. Every copy whose receipt holds is paid: which of two is wrong, a comparison
does not say; `coppermesh challenge` finds that out.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coppermesh.exec.program import ArraySpec
from coppermesh.exec.tolerance import compare
from coppermesh.p2p.ids import PeerId, short_peer
from coppermesh.p2p.messages import BlobInfo

MAX_RERUN_FLOPS = 2e10
"""Programs of up to so many operations are run here for a comparison: some seconds of one core."""
MAX_RERUN_BYTES = 64 * 1024 * 1024
"""And of up to so much memory: bounds of every element, in double precision, take several times as much beside it."""


@dataclass(frozen=True, slots=True)
class Copy:
    """What one provider gave for a task."""

    provider: PeerId
    determinism: str
    outputs: tuple[BlobInfo, ...]
    receipt: Mapping[str, Any]
    """What a script sees of its receipt."""
    failed: str = ""
    """The code with which it failed by the job's own doing, as its provider says; empty: it gave a result."""

    @property
    def roots(self) -> list[bytes]:
        """The outputs' hashes."""
        return [blob.root for blob in self.outputs]


@dataclass(slots=True)
class CopyTable:
    """The copies of one job's tasks that have come so far."""

    copies: int
    _waiting: dict[int, list[Copy]] = field(default_factory=dict)

    def add(self, task: int, copy: Copy) -> list[Copy] | None:
        """Keep a copy; all of them once this was the last."""
        found = self._waiting.setdefault(task, [])
        found.append(copy)
        return self._waiting.pop(task) if len(found) >= self.copies else None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the copies of one task stand to each other."""

    parties: tuple[tuple[Copy, ...], ...]
    """Copies that agree among themselves, the largest party first."""
    bitwise: bool
    """No two of the largest party differ in any bit."""

    @property
    def taken(self) -> Copy | None:
        """The copy whose result is taken: of more than half; None where no party is so large."""
        largest = self.parties[0]
        most = 2 * len(largest) > sum(map(len, self.parties)) and not largest[0].failed
        return largest[0] if most else None

    @property
    def disagreement(self) -> str:
        """Who gave what, for a person; empty where all agree."""
        if len(self.parties) == 1:
            return ""
        sides = [
            f"{' and '.join(short_peer(copy.provider) for copy in party)} gave {_digest(party[0])}"
            for party in self.parties
        ]
        return "; ".join(sides)


async def judge(copies: Sequence[Copy], tolerable: Callable[[Copy, Copy], Awaitable[bool]]) -> Agreement:
    """Sort copies into parties. `tolerable` compares two of different determinism classes."""
    parties: list[list[Copy]] = []
    for copy in copies:
        for party in parties:
            if await _agree(party[0], copy, tolerable):
                party.append(copy)
                break
        else:
            parties.append([copy])
    parties.sort(key=len, reverse=True)
    bitwise = all(copy.roots == parties[0][0].roots for copy in parties[0])
    return Agreement(tuple(tuple(party) for party in parties), bitwise)


async def _agree(a: Copy, b: Copy, tolerable: Callable[[Copy, Copy], Awaitable[bool]]) -> bool:
    if a.failed or b.failed:
        return bool(a.failed) == bool(b.failed)
    if a.roots == b.roots:
        return True
    return a.determinism != b.determinism and await tolerable(a, b)


def can_rerun(flops: float, peak_bytes: int) -> bool:
    """Whether a program is run here, for comparisons element by element."""
    return flops <= MAX_RERUN_FLOPS and peak_bytes <= MAX_RERUN_BYTES


def within_tolerance(
    program: bytes,
    specs: Sequence[ArraySpec],
    a: Sequence[bytes],
    b: Sequence[bytes],
    inputs: tuple[Sequence[ArraySpec], Sequence[bytes]] | None = None,
) -> bool:
    """Whether two results of a program, as bytes, agree as far as arithmetic allows. Takes its time.

    `inputs`, shapes and bytes, have each element held to what went into it.
    """
    given = None if inputs is None else _arrays(*inputs)
    return bool(compare(_arrays(specs, a), _arrays(specs, b), program, given))


def _arrays(specs: Sequence[ArraySpec], data: Sequence[bytes]) -> tuple[np.ndarray[Any, Any], ...]:
    return tuple(
        np.frombuffer(raw, dtype=spec.numpy_dtype).reshape(spec.shape)
        for spec, raw in zip(specs, data, strict=True)
    )


def _digest(copy: Copy) -> str:
    if copy.failed:
        return f"a failure ({copy.failed})"
    return copy.outputs[0].root.hex()[:12] if copy.outputs else "nothing"
