"""Reading a meter from the event loop: one that goes through a driver is read in a thread, with a deadline.

A driver that has lost its GPU can keep a call for ever. A meter that missed its deadline once is not asked again, so
that at most one thread is ever stuck in it.
"""

from weakref import WeakSet

import trio

from coppermesh.exec.meter import Meter, NoMeter, open_meter

METER_SECONDS = 1.0
"""A reading takes well under a millisecond; a driver that takes a thousand times as long is in trouble."""
OPEN_SECONDS = 10.0
"""Opening initialises the library, which may wake a GPU that slept."""

_stuck: WeakSet[Meter] = WeakSet()


async def read_energy(meter: Meter) -> int | None:
    """Millijoules, or None where there is no answer in time. Not a checkpoint for a meter that cannot hang."""
    if not meter.may_hang:
        return meter.read_mj()
    if meter in _stuck:
        return None
    with trio.move_on_after(METER_SECONDS):
        return await trio.to_thread.run_sync(meter.read_mj, abandon_on_cancel=True)
    _stuck.add(meter)
    return None


async def open_meter_in_time(kind: str, uuid: str | None) -> Meter:
    """`meter.open_meter`, or no meter where the driver does not answer."""
    if kind in ("none", "rapl"):
        return open_meter(kind, uuid)
    with trio.move_on_after(OPEN_SECONDS):
        return await trio.to_thread.run_sync(open_meter, kind, uuid, abandon_on_cancel=True)
    return NoMeter()


async def close_meter(meter: Meter) -> None:
    """Close it, unless a thread is still stuck in it: then the driver's handle is left to the process's end."""
    if not meter.may_hang:
        meter.close()
        return
    if meter in _stuck:
        return
    with trio.CancelScope(shield=True), trio.move_on_after(METER_SECONDS):
        await trio.to_thread.run_sync(meter.close, abandon_on_cancel=True)
