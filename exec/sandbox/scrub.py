"""Whether a GPU's memory is cleared between tenants: one process fills it and is killed, the next one looks.

Theory of operation. Nothing that NVIDIA documents promises that memory of a process that ended is clear when another
gets it, so it is tried. The first process fills most of what is free with a pattern and is ended as a worker is, by
SIGKILL. The second one takes as much, uncleared, and counts the pattern. As each takes more than half, what the second
one saw overlaps with what the first one wrote, whichever pages the driver gives: at least `filled + scanned - free`.
A control in the first process shows that the looking works: memory that it frees and takes again itself, without the
driver between, holds the pattern.

    fill   allocate, write, control, say how much, wait       SIGKILL
    scan                                                               allocate, count, say how much

The agent's side is `agent.isolation`. Each half is a process of its own, `python -I -m coppermesh.exec.sandbox.scrub`.
"""

import json
import signal
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

PATTERN: Final = 0x5EC2E7C0FFEE5EED
CHUNK_BYTES: Final = 256 << 20
SHARE: Final = 0.8
"""Of the device memory that is free."""
LEAST_OVERLAP: Final = 0.25
"""Of what was free: with less it shows nothing (somebody else's process took it meanwhile)."""


@dataclass(frozen=True)
class Filled:
    """What the first process did, in bytes."""

    free: int
    filled: int
    control: int
    """Words of the pattern found in memory that it took again itself."""


@dataclass(frozen=True)
class Scanned:
    """What the second process saw, in bytes."""

    free: int
    scanned: int
    found: int
    """Words of the pattern."""


def judge(filled: Filled, scanned: Scanned) -> str:
    """Why memory was not seen to be scrubbed; an empty text where it was."""
    if filled.control == 0:
        return "the scan does not find what is there: memory taken again by the same process was clear"
    if scanned.found:
        return f"{scanned.found} words of a killed process were found in {scanned.scanned >> 20} MiB"
    free = max(filled.free, scanned.free)
    overlap = filled.filled + scanned.scanned - free
    if overlap < LEAST_OVERLAP * free:
        return (
            f"too little was seen: {filled.filled >> 20} MiB written and {scanned.scanned >> 20} MiB read of "
            f"{free >> 20} MiB; nothing else may use the card meanwhile"
        )
    return ""


def fill(cupy: Any) -> tuple[Filled, list[Any]]:
    """Write the pattern over most of the free memory: what was done, and the arrays, which hold it."""
    free = int(cupy.cuda.runtime.memGetInfo()[0])
    chunks = _take(cupy, free)
    _write(chunks)  # a function, so that no loop variable keeps the last one
    cupy.cuda.runtime.deviceSynchronize()
    filled = sum(chunk.nbytes for chunk in chunks)
    words = chunks.pop().size if chunks else 0  # back to CuPy's pool, which gives the same block again
    control = _count(cupy, [cupy.empty(words, dtype="uint64")])
    return Filled(free, filled, control), chunks


def scan(cupy: Any) -> Scanned:
    """Count the pattern in as much memory that nobody has cleared for this process."""
    free = int(cupy.cuda.runtime.memGetInfo()[0])
    chunks = _take(cupy, free)
    return Scanned(free, sum(chunk.nbytes for chunk in chunks), _count(cupy, chunks))


def _write(chunks: list[Any]) -> None:
    for chunk in chunks:
        chunk.fill(PATTERN)


def _take(cupy: Any, free: int) -> list[Any]:
    """Uninitialised arrays of `SHARE` of the memory, or as much as there is."""
    chunks: list[Any] = []
    size = min(CHUNK_BYTES, int(free * SHARE / 8)) // 8
    while size and (len(chunks) + 1) * size * 8 <= free * SHARE:
        try:
            chunks.append(cupy.empty(size, dtype="uint64"))
        except cupy.cuda.memory.OutOfMemoryError:
            break  # in pieces, or somebody else has it: what was taken is told
    return chunks


def _count(cupy: Any, chunks: list[Any]) -> int:
    return sum(int(cupy.count_nonzero(chunk == PATTERN)) for chunk in chunks)


def main() -> None:
    """`fill` says what it did and waits for its end; `scan` says what it saw. The device is CUDA's first."""
    cupy = import_module("cupy")
    if sys.argv[1] == "fill":
        done, _kept = fill(cupy)
        print(json.dumps(vars(done)), flush=True)  # noqa: T201 - the agent reads it
        signal.pause()
    else:
        print(json.dumps(vars(scan(cupy))), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
