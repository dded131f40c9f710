"""The fixed program whose run says how fast a device is (PROTOCOL.md, Speed)."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import numpy as np

from coppermesh.exec.keeper import WorkerUnavailable
from coppermesh.exec.program import ArraySpec, Node, Program, encode_program
from coppermesh.exec.runs import InputBuffer, RunOutcome, WorkerLimits
from coppermesh.exec.worker_handle import Worker

SIDE = 1024
PRODUCTS = 4
OPERATIONS = PRODUCTS * 2 * SIDE**3
"""8,590 million: some tenths of a second on a processor core."""
WALL_SECONDS = 60.0
LIMITS = WorkerLimits(memory_bytes=256 << 20, output_bytes=2 * 4 * SIDE * SIDE)
PROGRAM = encode_program(
    Program(
        1,
        (ArraySpec("float32", (SIDE, SIDE)),),
        (),
        tuple(Node("matmul", (number, 0), {}) for number in range(PRODUCTS)),
        (PRODUCTS,),
    )
)


def matrix() -> bytes:
    """The program's input: a permutation, so that its powers keep their size."""
    return np.eye(SIDE, dtype=np.float32)[np.arange(SIDE) - 1].tobytes()


async def measure_speed(make_worker: Callable[[WorkerLimits], AbstractAsyncContextManager[Worker]]) -> int:
    """The speed in millions of operations per second by a worker's second run; 0 where it cannot be had.

    The first run brings memory and libraries in, and is not counted.
    """
    data = matrix()
    try:
        async with make_worker(LIMITS) as worker:
            await _run(worker, data)
            return await _run(worker, data)
    except WorkerUnavailable:
        return 0


async def _run(worker: Worker, data: bytes) -> int:
    outcome: RunOutcome = await worker.run(PROGRAM, [InputBuffer(len(data), data=data)], WALL_SECONDS)
    try:
        return OPERATIONS // max(1, outcome.wall_us) if outcome.status == "ok" else 0
    finally:
        outcome.close()
