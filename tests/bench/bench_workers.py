# ruff: noqa: T201  # a program that prints its figures
"""What running programs in workers costs: `python tests/bench/bench_workers.py [--json]`.

Medians (and least) of: a fresh worker, from asking to having it; one round trip of a 1 KiB program on a running worker,
beside the same run in this process; a kernel compiled, and run warm; the lease's next worker, which has its first
kernel from the agent and not from a compiler; 64 MiB in and out; the zygote's start. Takes about 20 s.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import trio

from coppermesh.exec.budget import RunLimits
from coppermesh.exec.device import probe_cpu
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.program import ArraySpec, KernelSource, Node, Program, decode_program, encode_program
from coppermesh.exec.schema import check_program
from coppermesh.exec.supervisor import InputBuffer, Supervisor, Worker, WorkerLimits, open_supervisor

MEBIBYTE = 1 << 20
LIMITS = WorkerLimits(memory_bytes=1024 * MEBIBYTE, output_bytes=256 * MEBIBYTE)
KERNEL = 'extern "C" __global__ void k(float* x) { x[threadIdx.x] *= %d.0f; }'

Figures = dict[str, tuple[float, float]]


def one_kib_program() -> tuple[bytes, bytes]:
    """A program of about 1 KiB, and its input."""
    nodes = tuple(Node("negative", (number,), {}) for number in range(90))
    program = encode_program(Program(1, (ArraySpec("float32", (256,)),), (), nodes, (90,)))
    return program, np.ones(256, np.float32).tobytes()


def kernel_program(number: int) -> bytes:
    """A program of one kernel that no other number has."""
    node = Node("raw_kernel", (0,), {"kernel": 0, "grid": (1, 1, 1), "block": (4, 1, 1), "shared_mem": 0})
    kernel = KernelSource("raw", "k", (), (KERNEL % number,))
    return encode_program(Program(1, (ArraySpec("float32", (4,)),), (kernel,), (node,), (1,)))


async def measure(rounds: int, work: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    """Median and least milliseconds of `work`."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        await work()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times), min(times)


async def run(worker: Worker, program: bytes, data: bytes) -> None:
    """One run that must succeed."""
    outcome = await worker.run(program, [InputBuffer(len(data), data=data)], 60)
    if outcome.status != "ok":
        raise SystemExit(f"{outcome.code}: {outcome.sentence}\n{outcome.detail}")
    outcome.close()


async def measure_forks(supervisor: Supervisor) -> tuple[float, float]:
    """A fresh worker each time; its end is not counted."""
    times = []
    for _ in range(100):
        began = time.perf_counter()
        async with supervisor.worker(LIMITS):
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times), min(times)


async def measure_next_workers(worker: Worker, program: bytes, data: bytes) -> Figures:
    """The worker's process ends; the next one starts and runs a kernel that the one before had compiled."""
    starts, runs = [], []
    for _ in range(30):
        await worker._discard()  # as after a crash
        began = time.perf_counter()
        await worker.start()
        started = time.perf_counter()
        await run(worker, program, data)
        starts.append(1e3 * (started - began))
        runs.append(1e3 * (time.perf_counter() - started))
    both = [start + one for start, one in zip(starts, runs, strict=True)]
    named = {"the next worker, started": starts, "its first run, kernel kept": runs, "both together": both}
    return {name: (statistics.median(times), min(times)) for name, times in named.items()}


async def measure_here(program: bytes, data: bytes) -> tuple[float, float]:
    """The control: the same program in this process, checked once as a worker would."""
    checked, runtime = check_program(decode_program(program)), NumpyRuntime()

    async def work() -> None:
        runtime.run(checked, [np.frombuffer(data, np.float32)], RunLimits())
        await trio.lowlevel.checkpoint()

    return await measure(500, work)


async def measure_all(scratch: Path) -> Figures:
    """Every figure, by name, in milliseconds."""
    figures: Figures = {}
    began = time.perf_counter()
    async with open_supervisor(probe_cpu(), scratch=scratch) as supervisor:
        started = 1e3 * (time.perf_counter() - began)
        figures["zygote started"] = (started, started)
        figures["fresh worker"] = await measure_forks(supervisor)
        program, data = one_kib_program()
        four = bytes(16)
        big = bytes(64 * MEBIBYTE)
        negate = encode_program(
            Program(1, (ArraySpec("float32", (len(big) // 4,)),), (), (Node("negative", (0,), {}),), (1,))
        )
        async with supervisor.worker(LIMITS) as worker:
            await run(worker, program, data)
            figures["1 KiB program, running worker"] = await measure(500, lambda: run(worker, program, data))
            figures["the same in this process"] = await measure_here(program, data)
            numbers = iter(range(1, 1000))
            figures["kernel, compiled"] = await measure(
                15, lambda: run(worker, kernel_program(next(numbers)), four)
            )
            figures["kernel, warm"] = await measure(300, lambda: run(worker, kernel_program(1), four))
            figures |= await measure_next_workers(worker, kernel_program(1), four)
            figures["64 MiB in, negated, out"] = await measure(7, lambda: run(worker, negate, big))
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    with tempfile.TemporaryDirectory() as directory:
        figures = trio.run(measure_all, Path(directory) / "scratch")
    if as_json:
        print(json.dumps({name: {"median_ms": a, "least_ms": b} for name, (a, b) in figures.items()}))
        return
    for name, (median, least) in figures.items():
        print(f"{name:32} {median:9.3f} ms   least {least:9.3f} ms")


if __name__ == "__main__":
    main()
