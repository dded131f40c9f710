"""`coppermesh.run_local(y)`: the explicit way to run a program on this machine.

It runs as a stranger's would: encoded, checked and budgeted, in a worker process of a supervisor that lives for this
call. No agent is needed, nothing is sent, nothing is paid. Nothing else in coppermesh computes here: where the mesh has
no provider, a job fails and says so. Each call says on stderr where it ran.
"""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import numpy as np
import trio

from coppermesh.exec.budget import lease_limits
from coppermesh.exec.device import DeviceInfo, probe_cpu
from coppermesh.exec.errors import RunFailed
from coppermesh.exec.graph import Handle
from coppermesh.exec.program import ArraySpec
from coppermesh.exec.report import check_limits
from coppermesh.exec.runs import MOST_OPERATIONS, InputBuffer, OutputBuffer, RunOutcome, WorkerLimits
from coppermesh.exec.source_lines import describe_line, failed_node
from coppermesh.exec.supervisor import Worker, open_supervisor
from coppermesh.exec.trace_digests import TraceDigests
from coppermesh.exec.tracing import Recording, trace

NumpyArray = np.ndarray[Any, Any]
T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


def run_local(*arrays: Handle, wall_limit_s: float = 60.0) -> Any:
    """Run what leads to `arrays` in a worker process on this machine's CPU: one NumPy array, or a tuple for several.

    Starting the worker takes some tenths of a second: compute several arrays in one call. Raises RunFailed with the
    worker's code and sentence and the line of your code that recorded the node, OverBudget with that line before
    anything runs, WorkerUnavailable where no process can be started.
    """
    recording = trace(*arrays)
    device = probe_cpu()
    check_limits(recording, lease_limits(device.kind, device.memory_bytes, wall_limit_s))
    outputs, outcome = _anywhere(_run, recording, device, wall_limit_s)
    sys.stderr.write(
        f"coppermesh: run_local ran on this machine, not on the mesh: {device.name}, {outcome.determinism}, "
        f"{outcome.wall_us / 1000:.1f} ms\n"
    )
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


@dataclass(frozen=True, slots=True)
class TracedRun:
    """A run on this machine with a digest for each node."""

    digests: TraceDigests
    determinism: str
    outputs: list[bytes]


def rerun_traced(program: bytes, inputs: Sequence[bytes], wall_limit_s: float) -> TracedRun:
    """Run somebody's program on its inputs' bytes in a worker process on this machine's CPU, recording digests.

    Raises RunFailed with the worker's code and sentence, WorkerUnavailable where no process can be started.
    """
    return _anywhere(_rerun, program, inputs, probe_cpu(), wall_limit_s)


def _anywhere(run: Callable[[*Arguments], Awaitable[T]], *arguments: *Arguments) -> T:
    """Run an event loop here, or in a thread of its own where this one has a loop running already (a notebook)."""
    if not _has_event_loop():
        return trio.run(run, *arguments)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(partial(trio.run, run, *arguments)).result()


def _has_event_loop() -> bool:
    if trio.lowlevel.in_trio_run():
        return True
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _run(
    recording: Recording, device: DeviceInfo, wall_limit_s: float
) -> tuple[list[NumpyArray], RunOutcome]:
    specs = recording.checked.output_specs
    async with _open_worker(device) as worker:
        outcome = await worker.run(
            recording.program,
            [InputBuffer(array.nbytes, data=array.tobytes()) for array in recording.inputs],
            wall_limit_s,
            output_sizes=[spec.nbytes for spec in specs],
        )
        try:
            _raise_for(outcome, recording)
            return _copied(outcome.outputs, specs), outcome
        finally:
            outcome.close()


async def _rerun(
    program: bytes, inputs: Sequence[bytes], device: DeviceInfo, wall_limit_s: float
) -> TracedRun:
    async with _open_worker(device) as worker:
        buffers = [InputBuffer(len(data), data=data) for data in inputs]
        outcome = await worker.run(program, buffers, wall_limit_s, digests=True)
        try:
            if outcome.digests is None:
                raise RunFailed(outcome.sentence, code=outcome.code, detail=outcome.detail)
            outputs = [bytes(output.view) for output in outcome.outputs]
            return TracedRun(outcome.digests, outcome.determinism, outputs)
        finally:
            outcome.close()


@asynccontextmanager
async def _open_worker(device: DeviceInfo) -> AsyncIterator[Worker]:
    memory = device.memory_bytes
    limits = WorkerLimits(memory_bytes=memory, output_bytes=memory, operations=MOST_OPERATIONS)
    with tempfile.TemporaryDirectory(prefix="coppermesh-local-") as directory:
        async with open_supervisor(device, scratch=Path(directory)) as supervisor:
            async with supervisor.worker(limits) as worker:
                yield worker


def _copied(outputs: Sequence[OutputBuffer], specs: Sequence[ArraySpec]) -> list[NumpyArray]:
    return [
        np.frombuffer(output.view, spec.numpy_dtype).reshape(spec.shape).copy()
        for output, spec in zip(outputs, specs, strict=True)
    ]


def _raise_for(outcome: RunOutcome, recording: Recording) -> None:
    if outcome.status == "ok":
        return
    node = failed_node(outcome.sentence, recording.program)
    line = describe_line(recording.sources, node)
    parts = [f"recorded at {line}" if line else "", outcome.detail]
    detail = "\n".join(part for part in parts if part)
    raise RunFailed(outcome.sentence, code=outcome.code, node=node, detail=detail)
