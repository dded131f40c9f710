"""Whether a device's own state lets it be lent now: a small machine per device, fed with each look at it (pure).

It closes at once and opens late: temperature must fall 5 C below the owner's limit, power to 90 % and load to 80 % of
theirs, and a card must have been free of other programs for `CLEAR_US`. Else an agent would bid, warm the card, close,
and bid again every few seconds. What is unknown is no obstacle, unless the owner is `strict`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coppermesh.agent.sharing import Obstacle, Sharing
from coppermesh.exec.budget import format_bytes

if TYPE_CHECKING:
    from coppermesh.exec.conditions import Conditions, DeviceProcess

COOLER_C = 5
POWER_RETURN = 0.9
LOAD_RETURN = 0.8
LOAD_LOOKS = 5
"""Load is judged by the mean of so many looks: a short burst is no program of the owner's."""
CLEAR_US = 5_000_000
UNKNOWN_LOOKS = 4
"""A program whose owner cannot be told counts when it was there so often in a row while no lease was."""
STOP_LOOKS = 2
"""Another program must be seen so often in a row before leases are ended for it."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What follows for the device."""

    obstacles: tuple[Obstacle, ...] = ()
    """Empty: it may be lent."""
    stop: Obstacle | None = None
    """Leases on it end now, for this reason."""


class DeviceGate:
    """The gate of one device."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._busy: Obstacle | None = None
        self._busy_looks = 0
        self._busy_us = 0
        self._unknown: dict[int, int] = {}
        self._over: set[str] = set()
        self._loads: list[float] = []

    @property
    def is_busy(self) -> bool:
        """The owner's own work was on the device at the last look, or a moment before."""
        return self._busy is not None

    def judge(self, sharing: Sharing, now: "Conditions", *, serving: bool, now_us: int) -> Judgement:
        """Take one look into account. `serving`: a lease of ours is on the device."""
        busy = self._judge_busy(sharing, now, serving, now_us)
        limits = [*self._judge_heat(sharing, now), *self._judge_power(sharing, now)]
        limits += self._judge_load(sharing, now)
        limits += self._judge_memory(sharing, now, serving)
        unknown = self._judge_unknown(sharing, now)
        obstacles = tuple(obstacle for obstacle in (busy, *limits, unknown) if obstacle is not None)
        if busy is not None and sharing.on_busy == "stop" and self._busy_looks >= STOP_LOOKS:
            return Judgement(obstacles, busy)
        if limits and sharing.on_limit == "stop":
            return Judgement(obstacles, limits[0])
        return Judgement(obstacles)

    def _judge_busy(self, sharing: Sharing, now: "Conditions", serving: bool, now_us: int) -> Obstacle | None:
        if sharing.busy == "ignore":
            self._busy, self._busy_looks = None, 0
            return None
        found = self._seen(sharing, now, serving)
        if found is not None:
            self._busy, self._busy_us = found, now_us
            self._busy_looks += 1
            return found
        self._busy_looks = 0
        if self._busy is not None and not 0 <= now_us - self._busy_us < CLEAR_US:
            self._busy = None
        return self._busy

    def _seen(self, sharing: Sharing, now: "Conditions", serving: bool) -> Obstacle | None:
        """The owner's work on the card, by its programs, else by the use of a card that we do not use."""
        sentence = f"{self._device} is in use by its owner's own programs; ask again later"
        self._count_unknown(now, serving)
        others = [
            process
            for process in now.processes or ()
            if _counts(process, sharing) and self._unknown.get(process.pid, UNKNOWN_LOOKS) >= UNKNOWN_LOOKS
        ]
        if others:
            who = ", ".join(_words(process) for process in others[:3])
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            return Obstacle("device-busy", sentence, f"{self._device} is busy with {who}{more}")
        ours = serving or any(process.owner == "ours" for process in now.processes or ())
        if ours or now.utilisation is None or now.utilisation <= sharing.busy_utilisation:
            return None
        used = f"{100 * now.utilisation:.0f} %, over {100 * sharing.busy_utilisation:.0f} %"
        return Obstacle("device-busy", sentence, f"{self._device} is in use ({used}), not by this agent")

    def _count_unknown(self, now: "Conditions", serving: bool) -> None:
        """For how long each program of unknown owner has been there without a lease of ours: it may be our own worker,
        seen from outside a container, or one that has just ended.
        """
        pids = [process.pid for process in now.processes or () if process.owner == "unknown"]
        self._unknown = {pid: 0 if serving else self._unknown.get(pid, 0) + 1 for pid in pids}

    def _judge_heat(self, sharing: Sharing, now: "Conditions") -> list[Obstacle]:
        limit, degrees = sharing.max_temperature, now.temperature_c
        if not self._is_over("heat", degrees, limit, 1.0, COOLER_C):
            return []
        assert limit is not None
        text = f"{self._device} is at {degrees} C, the owner's limit is {limit} C; it is lent again at "
        text += f"{limit - COOLER_C} C"
        return [Obstacle("too-hot", text)]

    def _judge_power(self, sharing: Sharing, now: "Conditions") -> list[Obstacle]:
        limit, watts = sharing.max_power, now.power_w
        if not self._is_over("power", watts, limit, POWER_RETURN):
            return []
        assert limit is not None
        text = f"{self._device} draws {watts:.0f} W, the owner's limit is {limit} W; it is lent again at "
        text += f"{limit * POWER_RETURN:.0f} W"
        return [Obstacle("power-limit", text)]

    def _judge_load(self, sharing: Sharing, now: "Conditions") -> list[Obstacle]:
        limit = sharing.max_load
        if limit is None or now.load is None:
            self._loads.clear()
            self._over.discard("load")
            return []
        self._loads = [*self._loads, now.load][-LOAD_LOOKS:]
        mean = sum(self._loads) / len(self._loads)
        if not self._is_over("load", mean, limit, LOAD_RETURN):
            return []
        text = f"{self._device} is {100 * mean:.0f} % in use by other programs, the owner's limit is "
        text += f"{100 * limit:.0f} %; ask again later"
        return [Obstacle("load-limit", text)]

    def _judge_memory(self, sharing: Sharing, now: "Conditions", serving: bool) -> list[Obstacle]:
        """While a lease is on the device its own memory is missing too, and says nothing about the owner's need."""
        kept, free = sharing.keep_free_bytes, now.free_bytes
        if serving or free is None or free >= kept:
            return []
        text = f"{self._device} has {format_bytes(free)} of memory free, and its owner keeps {format_bytes(kept)}"
        return [Obstacle("kept-memory", f"{text}; ask again later")]

    def _is_over(
        self, what: str, value: float | None, limit: float | None, share: float, less: float = 0
    ) -> bool:
        """Above `limit`, or above `share` of it less `less` since it was. What cannot be read is over nothing."""
        if value is not None and limit is not None:
            back = limit * share - less
            if value > limit or (what in self._over and value > back):
                self._over.add(what)
                return True
        self._over.discard(what)
        return False

    def _judge_unknown(self, sharing: Sharing, now: "Conditions") -> Obstacle | None:
        """What a strict owner asks for and the device does not tell."""
        if not sharing.strict:
            return None
        gpu = self._device != "cpu"
        wanted = {
            "programs on it": gpu and sharing.busy != "ignore" and now.processes is None,
            "temperature": sharing.max_temperature is not None and now.temperature_c is None,
            "power": sharing.max_power is not None and now.power_w is None,
            "load": not gpu and sharing.max_load is not None and now.load is None,
        }
        missing = [name for name, lacks in wanted.items() if lacks]
        if not missing:
            return None
        text = (
            f"{self._device} does not tell its {', '.join(missing)}, and its owner lends it only when it does"
        )
        return Obstacle("not-known", text)


def _counts(process: "DeviceProcess", sharing: Sharing) -> bool:
    """Whether this program means that its owner needs the device."""
    if process.owner == "ours" or process.name in sharing.busy_ignore:
        return False
    return not process.graphics or (process.memory_bytes or 0) >= sharing.busy_graphics_bytes


def _words(process: "DeviceProcess") -> str:
    """`pid 1234 (blender) of user x`."""
    name = f" ({process.name})" if process.name else ""
    user = f" of user {process.user}" if process.user else ""
    return f"pid {process.pid}{name}{user}"
