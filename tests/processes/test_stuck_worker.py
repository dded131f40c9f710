"""A worker that SIGKILL does not end, as one that a driver holds: its device takes no work until a probe has passed.

The freezer of cgroup v1 does that to a process: frozen, it takes no signal. Needs root and that freezer.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trio

from coppermesh.exec.device import probe_cpu
from coppermesh.exec.device_health import SECOND
from coppermesh.exec.program import ArraySpec, Node, Program, encode_program
from coppermesh.exec.supervisor import InputBuffer, WorkerLimits, WorkerUnavailable, open_supervisor

FREEZER = Path("/sys/fs/cgroup/freezer")
pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.access(FREEZER / "cgroup.procs", os.W_OK), reason="no freezer of cgroup v1 that may be used"
    ),
]

LIMITS = WorkerLimits(memory_bytes=64 << 20, output_bytes=1 << 20)
NEGATE = encode_program(Program(1, (ArraySpec("float32", (4,)),), (), (Node("negative", (0,), {}),), (1,)))
FOUR = InputBuffer(16, data=np.arange(4, dtype=np.float32).tobytes())


class Ice:
    """A group whose processes can be frozen."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def freeze(self, pid: int) -> None:
        (self._path / "cgroup.procs").write_text(f"{pid}\n")
        (self._path / "freezer.state").write_text("FROZEN\n")

    def thaw(self) -> None:
        (self._path / "freezer.state").write_text("THAWED\n")


@pytest.fixture
def ice() -> Iterator[Ice]:
    path = FREEZER / f"coppermesh-test-{os.getpid()}"
    path.mkdir()
    made = Ice(path)
    try:
        yield made
    finally:
        made.thaw()
        while (path / "cgroup.procs").read_text():
            os.sched_yield()
        path.rmdir()


async def until(condition, what: str) -> None:
    with trio.move_on_after(60):
        while not condition():  # noqa: ASYNC110 - it watches processes
            await trio.sleep(0.02)
        return
    pytest.fail(f"not within 60 s: {what}")


async def test_it_stops_the_device_and_a_passing_probe_brings_it_back(tmp_path, ice):
    changes: list[str] = []
    async with open_supervisor(probe_cpu(), scratch=tmp_path / "scratch") as supervisor:
        supervisor.fitness.health._pause_us = SECOND
        supervisor.fitness.changed = lambda: changes.append(supervisor.unfit)
        async with supervisor.worker(LIMITS) as stuck:
            assert stuck.pid is not None
            pid = stuck.pid
            ice.freeze(pid)
            outcome = await stuck.run(NEGATE, [FOUR], 0.5)
            assert (outcome.status, outcome.code) == ("job-failed", "wall-limit")
            assert "had not ended 10 s later" in supervisor.unfit
            with pytest.raises(WorkerUnavailable, match="takes no work until a probe has passed"):
                async with supervisor.worker(LIMITS):
                    pass
        await until(lambda: not supervisor.unfit, "a probe passed")
        assert changes[0]
        assert changes[-1] == ""
        assert supervisor.fitness.health.stuck == 1, "it is still there, and counted"
        async with supervisor.worker(LIMITS) as worker:
            with contextlib.closing(await worker.run(NEGATE, [FOUR], 20)) as outcome:
                assert outcome.status == "ok"
        ice.thaw()
        await until(lambda: not Path(f"/proc/{pid}").exists(), "it has ended after all")
