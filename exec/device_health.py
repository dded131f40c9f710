"""Whether a device is fit for work: not after a worker could not be killed, until a probe has passed.

SIGKILL ends a process within milliseconds, unless a driver holds it: a GPU that fell off the bus keeps its processes
for ever. Then nothing more is promised on that device: it is left out of the announcement, orders are declined, and no
worker is made but for probes, which come in growing distances. A probe makes a worker, runs a small program and ends
it; when that works the device is back. Pure: the caller says what happened and what time it is.

    fit --- a killed worker is not gone in time ---> unfit <--- the probe failed ---+
     ^                                                 |                            |
     +------------- the probe passed ------------ probing (once it is due) ---------+
"""

from dataclasses import dataclass, field
from typing import Final

SECOND: Final = 1_000_000
FIRST_PROBE_US: Final = 30 * SECOND
LONGEST_US: Final = 600 * SECOND
MOST_STUCK: Final = 4
"""With so many processes that cannot be killed no probe is made: each might add one."""


@dataclass
class DeviceHealth:
    """One device's state."""

    reason: str = ""
    """Why it is unfit, as a sentence; empty while it is fit."""
    _stuck: set[int] = field(default_factory=set)
    _pause_us: int = FIRST_PROBE_US
    _next_probe_us: int = 0

    @property
    def fit(self) -> bool:
        """Whether work may be promised on it."""
        return not self.reason

    @property
    def stuck(self) -> int:
        """Killed processes that have not ended."""
        return len(self._stuck)

    def not_gone(self, pid: int, now_us: int, seconds: float) -> None:
        """Process `pid` has not ended `seconds` after SIGKILL."""
        self._stuck.add(pid)
        self.reason = (
            f"worker process {pid} was killed and had not ended {seconds:g} s later: a driver holds it; the device "
            "takes no work until a probe has passed, and the machine may need a restart"
        )
        self._next_probe_us = now_us + self._pause_us

    def gone(self, pid: int) -> None:
        """It has ended after all. The device still has to pass a probe."""
        self._stuck.discard(pid)

    def probe_in_us(self, now_us: int) -> int | None:
        """Microseconds until a probe is due, 0 where it is; None where none is wanted."""
        if self.fit or len(self._stuck) >= MOST_STUCK:
            return None
        return max(0, self._next_probe_us - now_us)

    def probed(self, failure: str, now_us: int) -> None:
        """The probe's outcome: an empty text when it passed, else why not."""
        if not failure:
            self.reason = ""
            self._pause_us = FIRST_PROBE_US
            return
        self._pause_us = min(2 * self._pause_us, LONGEST_US)
        self._next_probe_us = now_us + self._pause_us
        self.reason = f"the device failed its probe after a worker could not be ended: {failure}"
