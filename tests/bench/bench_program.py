# ruff: noqa: T201  # a program that prints its figures
"""How long recording, encoding, decoding and checking take: `python tests/bench/bench_program.py`."""

import statistics
import time

import numpy as np

from coppermesh.exec import xp
from coppermesh.exec.budget import estimate
from coppermesh.exec.program import decode_program
from coppermesh.exec.recorder import trace
from coppermesh.exec.schema import check_program

NODES = 1_000
ROUNDS = 15


def record() -> bytes:
    """A program of `NODES` small operations."""
    x = z = xp.asarray(np.ones((5, 6)))
    for _ in range(NODES // 4):
        z = xp.abs((z * 1.5 + x) - 0.25)
    return trace(z).program


def check(program: bytes) -> None:
    """What a provider does before it runs anything."""
    estimate(check_program(decode_program(program)))


def milliseconds(action) -> str:
    """Median, least and most of `ROUNDS` runs."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        action()
        times.append(1_000 * (time.perf_counter() - start))
    return f"{statistics.median(times):.1f} ms ({min(times):.1f} to {max(times):.1f})"


if __name__ == "__main__":
    program = record()
    print(f"{NODES} nodes, {len(program)} bytes")
    print("record and encode:", milliseconds(record))
    print("decode and check: ", milliseconds(lambda: check(program)))
