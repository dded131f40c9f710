"""Energy of a card that tells its power but has no counter: power is sampled and integrated.

`PowerIntegral` is the sum, by trapezoids between samples (pure). `SampledMeter` asks a card ten times a second in a
thread of its own, since a driver may hang: `read_mj` itself only looks at the sum, and a sum that has had no sample
for a while is no reading. What a card does between two samples is not seen, so the meter has a kind of its own,
`nvml-power`.
"""

import threading
import time
from collections.abc import Callable

SAMPLE_SECONDS = 0.1
STALE_NS = 2_000_000_000
"""A sum without a sample for so long is not what was used."""
MAX_MILLIWATTS = 100_000_000


class PowerIntegral:
    """Millijoules so far. Times in nanoseconds of a clock that never goes back."""

    def __init__(self) -> None:
        self._nanojoules_2 = 0  # twice the sum, in milliwatts times nanoseconds: whole numbers lose nothing
        self._last: tuple[int, int] | None = None

    def add(self, milliwatts: int, at_ns: int) -> None:
        """One sample. A gap longer than `STALE_NS` is not bridged: nobody knows what was drawn meanwhile."""
        if not 0 <= milliwatts <= MAX_MILLIWATTS:
            return
        if self._last is not None and 0 < at_ns - self._last[1] <= STALE_NS:
            self._nanojoules_2 += (milliwatts + self._last[0]) * (at_ns - self._last[1])
        self._last = (milliwatts, at_ns)

    def read_mj(self, at_ns: int) -> int | None:
        """The sum up to the last sample and on to now at its power; None where the last sample is stale."""
        if self._last is None or at_ns - self._last[1] > STALE_NS:
            return None
        since = max(0, at_ns - self._last[1])
        return (self._nanojoules_2 + 2 * self._last[0] * since) // 2_000_000_000


class SampledMeter:
    """A meter over a function that gives milliwatts, or None where the card does not tell now."""

    may_hang = False
    """Reading does not: the driver is asked by the meter's own thread."""

    def __init__(self, kind: str, read_mw: Callable[[], int | None], close: Callable[[], None]) -> None:
        self.kind = kind
        self._read_mw = read_mw
        self._close = close
        self._sum = PowerIntegral()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        # A daemon: one that hangs in the driver must not keep the process from ending.
        threading.Thread(target=self._sample, name="power meter", daemon=True).start()

    def read_mj(self) -> int | None:
        """Millijoules since the meter was opened."""
        if self._ended.is_set():
            return None
        with self._lock:
            return self._sum.read_mj(time.monotonic_ns())

    def close(self) -> None:
        """Ends the thread, which then releases what it holds. Does not wait for it."""
        self._ended.set()

    def _sample(self) -> None:
        try:
            while True:
                milliwatts = self._read_mw()
                if milliwatts is not None:
                    with self._lock:
                        self._sum.add(milliwatts, time.monotonic_ns())
                if self._ended.wait(SAMPLE_SECONDS):
                    return
        finally:
            self._close()
