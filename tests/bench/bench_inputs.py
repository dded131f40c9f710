# ruff: noqa: T201  # a program that prints its figures
"""What handing 256 MiB to a running worker costs: `python tests/bench/bench_inputs.py [--json] [--mebibytes N]`.

The program reads one element, so what is measured is the handing over. Medians (and least) of the same run, in turns:

- `received in place`: the bytes lie in the worker handle's own memory, where they were received: nothing is copied
- `a file of the store`: the bytes lie in a file, which the worker maps
- `copied into used memory`: the agent has them elsewhere and copies them into memory of an earlier task
- `copied into new memory` (control): the same into a new sealed memory file each time
- `no input`: a program with an input of 4 bytes, in the message
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import trio

from coppermesh.exec import linux
from coppermesh.exec.device import probe_cpu
from coppermesh.exec.program import ArraySpec, Node, Program, encode_program
from coppermesh.exec.supervisor import InputBuffer, Worker, WorkerLimits, open_supervisor

MEBIBYTE = 1 << 20
ROUNDS = 9


def last_element(count: int) -> bytes:
    """A program that gives the last of `count` floats."""
    node = Node("getitem", (0,), {"index": ((0, count - 1),)})
    return encode_program(Program(1, (ArraySpec("float32", (count,)),), (), (node,), (1,)))


async def run(worker: Worker, program: bytes, given: InputBuffer, expected: float) -> None:
    """One run that must give `expected`."""
    outcome = await worker.run(program, [given], 60)
    if outcome.status != "ok":
        raise SystemExit(f"{outcome.code}: {outcome.sentence}\n{outcome.detail}")
    (value,) = np.frombuffer(bytes(outcome.outputs[0].view), np.float32)
    outcome.close()
    if value != expected:
        raise SystemExit(f"{value} where {expected} was expected")


async def timed(work: Callable[[], Awaitable[None]]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    await work()
    return 1e3 * (time.perf_counter() - began)


async def measure(size: int, directory: Path) -> dict[str, tuple[float, float]]:
    """Median and least milliseconds, by name."""
    values = np.arange(size // 4, dtype=np.float32)
    data, program, small = values.tobytes(), last_element(size // 4), last_element(1)
    (directory / "blob").write_bytes(data)
    stored = os.open(directory / "blob", os.O_RDONLY)
    limits = WorkerLimits(memory_bytes=3 * size + 64 * MEBIBYTE, output_bytes=MEBIBYTE)
    times: dict[str, list[float]] = {}
    async with open_supervisor(probe_cpu(), scratch=directory / "scratch") as supervisor:
        async with supervisor.worker(limits) as worker, supervisor.worker(limits) as other:
            with worker.receive_buffer(size) as buffer:
                buffer.fill(data)

                async def copied_anew() -> None:
                    fresh = linux.sealed_file("control", data)
                    await run(worker, program, InputBuffer(size, fd=fresh), values[-1])
                    os.close(fresh)

                ways: dict[str, Callable[[], Awaitable[None]]] = {
                    "received in place": lambda: run(worker, program, buffer.as_input(), values[-1]),
                    "a file of the store": lambda: run(
                        worker, program, InputBuffer(size, fd=stored), values[-1]
                    ),
                    "copied into used memory": lambda: run(
                        other, program, InputBuffer(size, data=data), values[-1]
                    ),
                    "copied into new memory": copied_anew,
                    "no input": lambda: run(worker, small, InputBuffer(4, data=data[-4:]), values[-1]),
                }
                for _ in range(ROUNDS + 1):
                    for name, way in ways.items():
                        times.setdefault(name, []).append(await timed(way))
    os.close(stored)
    return {name: (statistics.median(each[1:]), min(each[1:])) for name, each in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--mebibytes", type=int, default=256)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        figures = trio.run(measure, arguments.mebibytes * MEBIBYTE, Path(directory))
    if arguments.json:
        print(json.dumps({"mebibytes": arguments.mebibytes, "milliseconds": figures}))
        return
    print(f"{arguments.mebibytes} MiB of input to a running worker, ms: median (least) of {ROUNDS}")
    for name, (median, least) in figures.items():
        print(f"  {name:26} {median:9.2f} ({least:.2f})")


if __name__ == "__main__":
    main()
