"""What this agent asks for its devices: the owner's rate, but never less than the floor of the hour (pure).

`PriceList` holds each device's `PowerLog` and gives its rate and the whole sum behind it. What is measured moves a
little all the time; a floor is announced again only when it is off by `STEP` or the settings have changed, so that
medians which wander do not make announcements. A floor that has fallen is followed as well as one that has risen.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from coppermesh.agent.config import Config
from coppermesh.agent.costs import Floor, floor_at
from coppermesh.agent.hours import wall_clock
from coppermesh.agent.power import PowerLog
from coppermesh.agent.pricing import format_money, format_rate

if TYPE_CHECKING:
    from coppermesh.exec.device import DeviceInfo

STEP = 0.02
"""A floor is followed when it is off by this share."""


class PriceList:
    """Rates of the devices of one machine, in millionths of the unit per device-hour."""

    def __init__(self, devices: "Sequence[DeviceInfo]") -> None:
        self._devices = {info.device: info for info in devices}
        self.power = {info.device: PowerLog(info.kind, info.cores) for info in devices}
        self._held: dict[str, int] = {}
        """The floor that is in force, by device."""

    def floor(self, device: str, config: Config, now_us: int) -> Floor:
        """What it costs its owner now."""
        return floor_at(config.costs, self.power[device].power(config.costs), now_us)

    def rate(self, device: str, config: Config, now_us: int) -> int:
        """What is asked: the owner's rate, or the floor where that is higher."""
        return max(config.rate_for(self._devices[device].kind), self.floor_in_force(device, config, now_us))

    def floor_in_force(self, device: str, config: Config, now_us: int) -> int:
        """The floor as it was announced last: what costs is followed in steps."""
        exact = self.floor(device, config, now_us).rate
        held = self._held.get(device)
        if held is None or abs(exact - held) > STEP * held:
            self._held[device] = held = exact
        return held

    def facts(self, config: Config, now_us: int) -> dict[str, Any]:
        """Everything behind the prices: for `coppermesh price`."""
        costs = config.costs
        changes = costs.changes_us(now_us)
        return {
            "unit": config.unit,
            "tariff": costs.tariff_at(now_us),
            "tariff_changes_us": changes,
            "tariff_changes": None if changes is None else wall_clock(changes, now_us, costs.zone),
            "tariff_then": None if changes is None else costs.tariff_at(changes),
            "devices": [self._device_facts(device, config, now_us) for device in self._devices],
        }

    def _device_facts(self, device: str, config: Config, now_us: int) -> dict[str, Any]:
        info, floor = self._devices[device], self.floor(device, config, now_us)
        wanted = config.rate_for(info.kind)
        asked = self.rate(device, config, now_us)
        return {
            "device": device,
            "kind": info.kind,
            "name": info.name,
            "meter": info.meter,
            "power_source": floor.power.source,
            "idle_mw": floor.power.idle_mw,
            "loaded_mw": floor.power.loaded_mw,
            "counted_mw": floor.counted_mw,
            "electricity": floor.electricity,
            "wear": floor.wear,
            "margin": floor.margin,
            "floor": floor.rate,
            "rate": wanted,
            "asked": asked,
            "left": asked - floor.electricity - floor.wear,
            "sentence": _sentence(config, floor, wanted, asked),
        }


def _sentence(config: Config, floor: Floor, wanted: int, asked: int) -> str:
    unit = config.unit
    if floor.tariff is None and not floor.wear:
        return "no tariff is set, so its costs are unknown: set `tariff` below [costs] in config.toml"
    if wanted < asked:
        return (
            f"your rate of {format_rate(wanted, unit)} is below cost; {format_rate(asked, unit)} is asked instead, "
            "and orders that pay less are declined"
        )
    left = asked - floor.electricity - floor.wear
    return f"{format_money(left, unit)} of each hour are left after electricity and wear"
