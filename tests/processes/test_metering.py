"""What a run is measured by: each figure reaches the outcome, and what cannot be measured is nil."""

from pathlib import Path

import numpy as np
import pytest

from coppermesh.exec import xp
from coppermesh.exec.device import probe_cpu
from coppermesh.exec.meter import NoMeter
from coppermesh.exec.supervisor import InputBuffer, RunOutcome, Supervisor, WorkerLimits, open_supervisor
from coppermesh.exec.tracing import Recording, trace

pytestmark = pytest.mark.processes

LIMITS = WorkerLimits(memory_bytes=256 << 20, output_bytes=64 << 20)


class StepMeter:
    """A meter that has used 5 mJ more at each reading."""

    kind = "simulated"
    may_hang = False

    def __init__(self) -> None:
        self._reading = 0

    def read_mj(self) -> int:
        self._reading += 5
        return self._reading

    def close(self) -> None:
        """Nothing to release."""


def sum_of_squares() -> Recording:
    return trace(xp.sum(xp.asarray(np.ones(1_000_000, dtype=np.float32)) ** 2))


async def run(supervisor: Supervisor, recording: Recording) -> RunOutcome:
    async with supervisor.worker(LIMITS) as worker:
        inputs = [InputBuffer(array.nbytes, data=array.tobytes()) for array in recording.inputs]
        outcome = await worker.run(recording.program, inputs, wall_limit_s=20)
    outcome.close()
    return outcome


async def test_every_figure_reaches_the_outcome(tmp_path: Path) -> None:
    recording = sum_of_squares()
    async with open_supervisor(probe_cpu(), scratch=tmp_path / "scratch") as supervisor:
        supervisor.meter = StepMeter()
        outcome = await run(supervisor, recording)
    assert outcome.status == "ok"
    assert outcome.wall_us > 0
    assert outcome.started_us > 1_600_000_000_000_000
    assert outcome.device_us is None  # a CPU has no device events
    assert (outcome.energy_mj, outcome.meter) == (5, "simulated")
    assert outcome.input_bytes == len(recording.program) + 4_000_000
    assert outcome.output_bytes == 4
    assert 8_000_000 <= outcome.array_bytes < 9_000_000  # the input and its squares
    assert outcome.peak_bytes > outcome.array_bytes
    assert outcome.determinism.startswith("numpy/")


async def test_without_a_meter_energy_is_nil(tmp_path: Path) -> None:
    async with open_supervisor(probe_cpu(), scratch=tmp_path / "scratch") as supervisor:
        supervisor.meter = NoMeter()
        outcome = await run(supervisor, sum_of_squares())
    assert (outcome.energy_mj, outcome.meter) == (None, "none")
