"""The simulator's clock: a heap of events in virtual time (pure).

An event is a function and its arguments, due at a time in microseconds; those due at the same time run in the order in
which they were put in. Nothing waits and nothing reads a clock, so that ten minutes of a thousand peers take as long as
their decisions do, and the same seed gives the same run. All randomness comes from the one generator that the caller
seeded; nothing iterates over a set of bytes or text, whose order differs from one process to the next.

`simulation_gossip` models the network, `simulation_mesh` the peers on it, `simulation_orders` what they ask of each
other, `simulation_market` the same for money.
"""

import gc
import heapq
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SECOND = 1_000_000
EPOCH_US = 1_800_000_000 * SECOND
"""Virtual time starts here: records carry times since 1970."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the search for garbage in cycles: a run makes none, and the search took a quarter of its time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class EventHeap:
    """Virtual time and what is due in it."""

    def __init__(self) -> None:
        self.now_us = EPOCH_US
        self.events = 0
        """How many have run."""
        self._heap: list[tuple[int, int, Callable[..., object], tuple[Any, ...]]] = []
        self._order = 0

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return (self.now_us - EPOCH_US) / SECOND

    def at(self, due_us: int, action: Callable[..., object], *arguments: Any) -> None:
        """Run `action(*arguments)` at that time, or now where that is past."""
        self._order += 1
        heapq.heappush(self._heap, (due_us, self._order, action, arguments))

    def after(self, seconds: float, action: Callable[..., object], *arguments: Any) -> None:
        """Run `action(*arguments)` so many seconds from now."""
        self._order += 1
        heapq.heappush(self._heap, (self.now_us + int(seconds * SECOND), self._order, action, arguments))

    def run_until(self, end_us: int) -> None:
        """Run everything due up to `end_us`; it is then that time."""
        heap, pop, events = self._heap, heapq.heappop, 0
        while heap and heap[0][0] <= end_us:
            due_us, _, action, arguments = pop(heap)
            self.now_us = max(self.now_us, due_us)
            events += 1
            action(*arguments)
        self.now_us = end_us
        self.events += events
