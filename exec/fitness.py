"""Keeps a device's health, and probes it while it is unfit: the shell around `device_health`."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import trio

from coppermesh.exec.device_health import DeviceHealth
from coppermesh.exec.keeper import GONE_SECONDS, Child, WorkerUnavailable
from coppermesh.exec.meter import Meter, NoMeter
from coppermesh.exec.program import ArraySpec, Node, Program, encode_program
from coppermesh.exec.runs import InputBuffer, WorkerLimits
from coppermesh.exec.worker_handle import Process, Worker, Workshop

PROBE_SECONDS = 30.0
"""Most that the probe's program may take, the start of a GPU's context included."""
PROBE_LIMITS = WorkerLimits(memory_bytes=64 << 20, output_bytes=1 << 20)
_PROGRAM = encode_program(Program(1, (ArraySpec("float32", (4,)),), (), (Node("negative", (0,), {}),), (1,)))


def _now_us() -> int:
    return time.monotonic_ns() // 1000


class Fitness:
    """One device's health over time."""

    def __init__(self, probe: Callable[[], Awaitable[str]], now_us: Callable[[], int] = _now_us) -> None:
        """`probe` gives an empty text, or why the device failed. `now_us` is monotonic."""
        self.health = DeviceHealth()
        self.changed: Callable[[], None] = lambda: None
        """Called when the device became fit or unfit."""
        self._probe = probe
        self._now_us = now_us
        self._stuck: list[Child] = []
        self._unfit = trio.Event()

    def not_gone(self, child: Child) -> None:
        """A killed process has not ended in time."""
        self._stuck.append(child)
        self.health.not_gone(child.pid, self._now_us(), GONE_SECONDS)
        self._unfit.set()
        self.changed()

    async def run(self) -> None:
        """Probe whenever a probe is due, until cancelled."""
        while True:
            await self._unfit.wait()
            self.forget_ended()
            wait_us = self.health.probe_in_us(self._now_us())
            if wait_us != 0:
                await trio.sleep(1.0 if wait_us is None else min(wait_us / 1e6, 1.0))
                continue
            failure = await self._probe()
            self.health.probed(failure, self._now_us())
            if self.health.fit:
                self._unfit = trio.Event()
                self.changed()

    def forget_ended(self) -> None:
        """Notice which of the stuck processes have ended after all."""
        for child in [child for child in self._stuck if child.ended.is_set()]:
            self._stuck.remove(child)
            self.health.gone(child.pid)


@dataclass
class _ProbeWorkshop:
    """A workshop whose processes are made even where the device is unfit."""

    workshop: Workshop
    make_process: Callable[[WorkerLimits, bool], Awaitable[Process]]

    def __post_init__(self) -> None:
        self.meter: Meter = NoMeter()
        self.end_process = self.workshop.end_process
        self.build = self.workshop.build


async def probe_device(
    workshop: Workshop, make_process: Callable[[WorkerLimits, bool], Awaitable[Process]]
) -> str:
    """Make a worker, run a small program, end the worker: an empty text, or what went wrong."""
    worker = Worker(cast("Workshop", _ProbeWorkshop(workshop, make_process)), PROBE_LIMITS, kernels=False)
    data = np.arange(4, dtype=np.float32)
    try:
        try:
            await worker.start()
            outcome = await worker.run(_PROGRAM, [InputBuffer(16, data=data.tobytes())], PROBE_SECONDS)
        finally:
            await worker.close()
    except WorkerUnavailable as error:
        return error.sentence
    try:
        if outcome.status != "ok":
            return outcome.sentence
        answer = bytes(outcome.outputs[0].view)
    finally:
        outcome.close()
    return "" if answer == (-data).tobytes() else "it gave a wrong answer"
