"""The simulator's clock: a calendar of events in virtual time (pure).

An event is a function and its arguments, due at a time in microseconds. The calendar has a list for each millisecond
that has events, and a heap of those milliseconds: putting an event in is mostly an append, where a heap of all events
compared and moved them by the dozen. An event runs at the end of its millisecond, never early; those of the same
millisecond run in the order in which they were put in. Nothing waits and nothing reads a clock, so that ten minutes of
a thousand peers take as long as their decisions do, and the same seed gives the same run. All randomness comes from the
one generator that the caller seeded; nothing iterates over a set of bytes or text, whose order differs from one process
to the next.

`simulation_gossip` models the network, `simulation_mesh` the peers on it, `simulation_orders` what they ask of each
other, `simulation_market` the same for money.
"""

import gc
import heapq
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SECOND = 1_000_000
TICK_US = 1_000
EPOCH_US = 1_800_000_000 * SECOND
"""Virtual time starts here: records carry times since 1970."""

_Event = tuple[Callable[..., object], tuple[Any, ...]]


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
        self._due: dict[int, list[_Event]] = {}
        """By the millisecond."""
        self._ticks: list[int] = []
        """Those of `_due`, as a heap."""

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return (self.now_us - EPOCH_US) / SECOND

    def at(self, due_us: int, action: Callable[..., object], *arguments: Any) -> None:
        """Run `action(*arguments)` at that time, or now where that is past."""
        tick = -(-max(due_us, self.now_us) // TICK_US)
        events = self._due.get(tick)
        if events is None:
            self._due[tick] = [(action, arguments)]
            heapq.heappush(self._ticks, tick)
        else:
            events.append((action, arguments))

    def after(self, seconds: float, action: Callable[..., object], *arguments: Any) -> None:
        """Run `action(*arguments)` so many seconds from now."""
        self.at(self.now_us + int(seconds * SECOND), action, *arguments)

    def run_until(self, end_us: int) -> None:
        """Run everything due up to `end_us`; it is then that time."""
        ticks = self._ticks
        while ticks and ticks[0] * TICK_US <= end_us:
            tick = ticks[0]
            self.now_us = max(self.now_us, tick * TICK_US)
            events = self._due[tick]
            for action, arguments in events:  # also what is put into this millisecond meanwhile
                action(*arguments)
            self.events += len(events)
            heapq.heappop(ticks)
            del self._due[tick]
        self.now_us = end_us
