"""`coppermesh.run_local(y)`: the explicit way to run a program on this machine.

It runs as a stranger's would: encoded, checked and budgeted, in a worker process of a supervisor that lives for this
call. No agent is needed, nothing is sent, nothing is paid. Nothing else in coppermesh computes here: where the mesh has
no provider, a job fails and says so. Each call says on stderr where it ran.
"""

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import trio

from coppermesh.exec.device import DeviceInfo, probe_cpu
from coppermesh.exec.errors import RunFailed
from coppermesh.exec.graph import Handle
from coppermesh.exec.program import ArraySpec
from coppermesh.exec.runs import InputBuffer, OutputBuffer, RunOutcome, WorkerLimits
from coppermesh.exec.source_lines import describe_line, failed_node
from coppermesh.exec.supervisor import open_supervisor
from coppermesh.exec.tracing import Recording, trace

NumpyArray = np.ndarray[Any, Any]


def run_local(*arrays: Handle, wall_limit_s: float = 60.0) -> Any:
    """Run what leads to `arrays` in a worker process on this machine's CPU: one NumPy array, or a tuple for several.

    Starting the worker takes some tenths of a second: compute several arrays in one call. Raises RunFailed with the
    worker's code and sentence and the line of your code that recorded the node, WorkerUnavailable where no process
    can be started.
    """
    recording = trace(*arrays)
    device = probe_cpu()
    outputs, outcome = _run_anywhere(recording, device, wall_limit_s)
    sys.stderr.write(
        f"coppermesh: run_local ran on this machine, not on the mesh: {device.name}, {outcome.determinism}, "
        f"{outcome.wall_us / 1000:.1f} ms\n"
    )
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _run_anywhere(
    recording: Recording, device: DeviceInfo, wall_limit_s: float
) -> tuple[list[NumpyArray], RunOutcome]:
    """Run an event loop here, or in a thread of its own where this one has a loop running already (a notebook)."""
    if not _has_event_loop():
        return trio.run(_run, recording, device, wall_limit_s)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(trio.run, _run, recording, device, wall_limit_s).result()


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
    limits = WorkerLimits(memory_bytes=device.memory_bytes, output_bytes=device.memory_bytes)
    specs = recording.checked.output_specs
    with tempfile.TemporaryDirectory(prefix="coppermesh-local-") as directory:
        async with open_supervisor(device, scratch=Path(directory)) as supervisor:
            async with supervisor.worker(limits) as worker:
                outcome = await worker.run(
                    recording.program,
                    [_input(array) for array in recording.inputs],
                    wall_limit_s,
                    output_sizes=[spec.nbytes for spec in specs],
                )
                try:
                    _raise_for(outcome, recording)
                    return _copied(outcome.outputs, specs), outcome
                finally:
                    outcome.close()


def _input(array: NumpyArray) -> InputBuffer:
    return InputBuffer(array.nbytes, data=array.tobytes())


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
