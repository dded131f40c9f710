"""What lending a device costs its owner, and the least it may be lent for: `[costs]` of `config.toml` (pure).

A device that works draws more than one that idles. That difference, at the tariff of the hour, is what a lease costs
in electricity; where the machine would be off without leases (`count_idle`), all of it is. With wear and the wanted
margin on top it is the floor: `floor_at` gives it with every number that went into it, so that `coppermesh price` can
show the sum.

Money is in millionths of a unit: a tariff per kilowatt-hour, wear and rates per device-hour. Power is in milliwatts.
"""

import re
from dataclasses import dataclass
from datetime import tzinfo
from zoneinfo import ZoneInfo

from coppermesh.agent.hours import Window, is_open, next_change_us, parse_window
from coppermesh.agent.pricing import MAX_MONEY, rate_floor

PPM = 1_000_000
CPU_MILLIWATTS_PER_CORE = 5_000
"""The model of a processor that no meter measures: what one busy core adds, losses of the power supply included. An
assumption between a server's core (some 3 W) and a desktop's (some 10 W); an owner who measures sets
`loaded_watts`."""
GPU_MILLIWATTS = 250_000
"""The model of a GPU that does not tell its power: that of a large gaming card under load. An assumption too."""
MAX_BOUNDARIES = 64
"""Beginnings and ends of windows that are looked at to find the one at which the tariff changes."""
_TARIFF = re.compile(r"(.+?)\s+([0-9]{1,15})")


@dataclass(frozen=True, slots=True)
class TariffWindow:
    """Another price of electricity in a window of the day."""

    window: Window
    tariff: int
    """Millionths of the unit per kilowatt-hour."""

    def __str__(self) -> str:
        return f"{self.window} {self.tariff}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What the owner says about costs. Without a tariff only `wear` counts."""

    tariff: int | None = None
    """Millionths of the unit per kilowatt-hour."""
    tariffs: tuple[TariffWindow, ...] = ()
    """Windows with a tariff of their own; the first that covers the moment counts."""
    time_zone: str = ""
    """Name of the zone that windows are in; empty: this machine's."""
    idle_watts: float | None = None
    """What a device draws without work, by the owner's own measurement; None: by its meter, else 0."""
    loaded_watts: float | None = None
    """What it draws under load; None: by its meter, else a model."""
    count_idle: bool = False
    """True: the machine is on for leases only, so all its power is their cost."""
    wear: int = 0
    """Millionths of the unit per device-hour, for what wears out."""
    margin: float = 0.0
    """What the owner wants on top of cost, as a share of it: 0.2 is 20 %."""

    @property
    def zone(self) -> tzinfo | None:
        """The zone of the windows; None: this machine's."""
        return ZoneInfo(self.time_zone) if self.time_zone else None

    def tariff_at(self, now_us: int) -> int | None:
        """Millionths of the unit per kilowatt-hour at this moment; None where the owner has not said."""
        for each in self.tariffs:
            if is_open((each.window,), now_us, self.zone):
                return each.tariff
        return self.tariff

    def changes_us(self, now_us: int) -> int | None:
        """When the tariff changes next; None: not within eight days. Windows may cover each other."""
        before, at_us = self.tariff_at(now_us), now_us
        for _ in range(MAX_BOUNDARIES):
            found = [next_change_us((each.window,), at_us, self.zone) for each in self.tariffs]
            changes = [change for change in found if change is not None and change > at_us]
            if not changes:
                return None
            at_us = min(changes)
            if self.tariff_at(at_us) != before:
                return at_us
        return None


@dataclass(frozen=True, slots=True)
class Power:
    """What a device draws, in milliwatts, and who says so."""

    idle_mw: int
    loaded_mw: int
    source: str
    """`owner` (config.toml), `meter` (measured here), `load-meter` (idle unknown, taken as 0), `idle-meter` (what
    load adds is the model's), or `model`."""


@dataclass(frozen=True, slots=True)
class Floor:
    """The least rate, with what it is made of: money in millionths of the unit per device-hour."""

    power: Power
    counted_mw: int
    """Milliwatts that count: load less idle, or all of the load."""
    tariff: int | None
    electricity: int
    wear: int
    margin: int
    rate: int
    """Electricity, wear and margin. 0: nothing is known that it would cost."""


def floor_at(costs: Costs, power: Power, now_us: int) -> Floor:
    """The floor of a device at this moment."""
    counted_mw = power.loaded_mw if costs.count_idle else max(0, power.loaded_mw - power.idle_mw)
    tariff = costs.tariff_at(now_us)
    electricity = rate_floor(counted_mw, tariff or 0)
    rate = rate_floor(counted_mw, tariff or 0, costs.wear, round(costs.margin * PPM))
    margin = rate - electricity - costs.wear
    return Floor(power, counted_mw, tariff, electricity, costs.wear, max(0, margin), min(rate, MAX_MONEY))


def electricity_cost(energy_mj: int, tariff: int) -> int:
    """What `energy_mj` millijoules cost at `tariff`, in millionths of its unit, to the nearest.

    A kilowatt-hour is 3.6e9 millijoules.
    """
    return (2 * energy_mj * tariff + 3_600_000_000) // (2 * 3_600_000_000)


def parse_tariff_window(text: str) -> TariffWindow:
    """`22:00-06:00 180000`, days first where it is not every day. Raises ValueError with what is wrong about it."""
    found = _TARIFF.fullmatch(text.strip())
    if found is None:
        raise ValueError("want a window and the price in it, such as 22:00-06:00 180000")
    return TariffWindow(parse_window(found[1]), int(found[2]))


MODEL = "model"
"""The meter named in a receipt whose energy nothing measured: its time at `modelled_mw`."""


def modelled_mw(kind: str, cores: int | None) -> int:
    """What load adds to a device that no meter measures; an assumption, and shown as one."""
    return GPU_MILLIWATTS if kind == "cuda" else CPU_MILLIWATTS_PER_CORE * (cores or 1)
