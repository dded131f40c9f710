"""The provider's own measurement of how fast its devices are: made when an order asks for a speed, and kept.

A measurement costs about a second of the device, so nobody makes one before somebody wants to know. The order that asks
first is declined with `measuring`; the requester asks again, and has its answer then.
"""

import logging
from collections.abc import Callable

import trio

from coppermesh.exec.reference import measure_speed
from coppermesh.exec.supervisor import Supervisor

MEASURE_SECONDS = 120.0

_log = logging.getLogger(__name__)


class DeviceSpeeds:
    """Speeds of this provider's devices, in millions of operations per second."""

    def __init__(self, measured: Callable[[], None]) -> None:
        """`measured` is called when a speed has become known."""
        self._speeds: dict[str, int] = {}
        self._running: set[str] = set()
        self._measured = measured

    def get(self, device: str) -> int:
        """The speed; 0 where it is not known yet."""
        return self._speeds.get(device, 0)

    async def measure(self, device: str, supervisor: Supervisor) -> None:
        """Measure a device, once however often it is asked for. What fails is tried again when asked again."""
        if device in self._running or device in self._speeds:
            return
        self._running.add(device)
        try:
            with trio.move_on_after(MEASURE_SECONDS):
                speed = await measure_speed(lambda limits: supervisor.worker(limits, kernels=False))
                if speed:
                    self._speeds[device] = speed
                    _log.info("%s runs the reference program at %d Mop/s", device, speed)
        finally:
            self._running.discard(device)
        self._measured()
