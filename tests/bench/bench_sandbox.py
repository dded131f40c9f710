# ruff: noqa: T201  # a program that prints its figures
"""What the sandbox costs: a fresh worker that confines itself, and a task that runs in a worker and not here.

    python tests/bench/bench_sandbox.py [ROUNDS]

Prints medians in milliseconds of ROUNDS (default 200) turns of each, every figure beside its control, taken in turn:

- a fork alone, and a fork with every layer of a CPU worker, from before the fork until its parent has seen it end; the
  parent has loaded all that a zygote loads, and is in namespaces of its own where it can be;
- a program of 90 operations and 1 KiB on a lease's running worker, and the same program in this process, checked once.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from coppermesh.exec import linux, pipe, worker, zygote
from coppermesh.exec.budget import RunLimits
from coppermesh.exec.device import probe_cpu
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.program import ArraySpec, Node, Program, decode_program, encode_program
from coppermesh.exec.sandbox import apply, namespaces
from coppermesh.exec.schema import check_program

ORDER = pipe.Fork(1, "worker", "/", 256 << 20, 64 << 20, 256 << 20, 4096, 3600, True)
MOST_FRESH_MS, MOST_TASK_MS = 3.0, 0.5
"""What is wanted."""


def in_a_child(work: Callable[[], object]) -> float:
    """Milliseconds from the fork until the child, having done `work`, has ended."""
    parent = os.getpid()
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        linux.die_with_parent(parent)
        try:
            work()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return (time.perf_counter() - began) * 1e3


def measure_fresh(rounds: int) -> None:
    """Forks, bare and confined. Moves into namespaces: for a process of its own."""
    zygote.preload("cpu")
    apply.prepare((), "")
    entered = namespaces.enter(namespaces.view_of_python([]))
    apply.leave_root()
    bare, confined = [], []
    for _ in range(rounds):
        bare.append(in_a_child(lambda: None))
        confined.append(in_a_child(lambda: worker.confine(ORDER, "cpu")))
    print(f"layers: {', '.join((*entered.layers, *apply.available()))}")
    show("fork alone", bare)
    show("fork, all layers", confined)
    compare("the layers cost", bare, confined, MOST_FRESH_MS)
    sys.stdout.flush()


async def measure_tasks(rounds: int, scratch: Path) -> None:
    """One small program, in a worker and in this process."""
    from coppermesh.exec.supervisor import InputBuffer, WorkerLimits, open_supervisor

    nodes = tuple(Node("negative", (number,), {}) for number in range(90))
    program = encode_program(Program(1, (ArraySpec("float32", (256,)),), (), nodes, (90,)))
    data = np.ones(256, np.float32).tobytes()
    checked, runtime = check_program(decode_program(program)), NumpyRuntime()
    limits = WorkerLimits(memory_bytes=1 << 30, output_bytes=1 << 28)
    here, there = [], []
    async with open_supervisor(probe_cpu(), scratch=scratch) as supervisor:
        async with supervisor.worker(limits) as running:
            for number in range(rounds + 10):
                began = time.perf_counter()
                runtime.run(checked, [np.frombuffer(data, np.float32)], RunLimits())
                between = time.perf_counter()
                outcome = await running.run(program, [InputBuffer(len(data), data=data)], 60)
                ended = time.perf_counter()
                if outcome.status != "ok":
                    raise SystemExit(f"{outcome.code}: {outcome.sentence}")
                outcome.close()
                if number >= 10:
                    here.append((between - began) * 1e3)
                    there.append((ended - between) * 1e3)
    show("a task here", here)
    show("a task in a worker", there)
    compare("the worker costs", here, there, MOST_TASK_MS)


def show(name: str, times: list[float]) -> None:
    """One line."""
    print(f"{name:20} median {statistics.median(times):.2f} ms, least {min(times):.2f} ms")


def compare(name: str, without: list[float], with_it: list[float], most: float) -> None:
    """The difference of the medians, and what it may be."""
    cost = statistics.median(with_it) - statistics.median(without)
    print(f"{name:20} median {cost:.2f} ms, wanted: at most {most} ms")


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    child = os.fork()  # what moves into namespaces never comes back
    if child == 0:
        measure_fresh(rounds)
        os._exit(0)
    os.waitpid(child, 0)
    import trio  # here and above: a zygote, which the forks stand for, has none of it

    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)  # noqa: S103 - the sandbox's user goes through it
        trio.run(measure_tasks, rounds, Path(directory) / "scratch")


if __name__ == "__main__":
    main()
