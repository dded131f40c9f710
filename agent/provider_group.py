"""The providers of one machine, one for each mesh that it serves: they share its devices, its owner and its slots.

All of them hold slots in the same `Reservations`, so that a device is never promised twice. `providers` is in order
of priority: where an order of an earlier mesh finds every slot taken, leases and bids of later meshes give way
(`make_way`). Tasks of a lease that gives way cost nothing and run elsewhere.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import trio

from coppermesh.agent.reservations import Reservations
from coppermesh.agent.sharing import Obstacle, Sharing
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.records import DeviceOffer

if TYPE_CHECKING:
    from coppermesh.agent.provider import Provider

WAY_SECONDS = 2.0
"""How long an order of an earlier mesh waits for a slot that a later one gives up."""
RECLAIM_SECONDS = 12.0
"""A worker that has not gone in 10 s makes its device unfit; an owner is told by then."""
KEPT_US = 15_000_000
"""How long such a slot is kept for the earlier mesh."""
_LOOK_SECONDS = 0.005


class ProviderGroup:
    """Carries out for every provider what the machine's owner wants, and settles which mesh comes first."""

    def __init__(
        self,
        slots: Mapping[str, int],
        *,
        sharing: Sharing,
        trusted: frozenset[PeerId],
        paused: bool,
        reclaimed: frozenset[str] = frozenset(),
    ) -> None:
        """`slots`: how many leases each device serves at once, over all meshes; `reclaimed`: devices taken back."""
        self.reservations = Reservations(slots)
        self.providers: list[Provider] = []
        self.sharing, self.trusted = sharing, trusted
        self.obstacles: dict[str, tuple[Obstacle, ...]] = {}
        self._paused = paused
        self._reclaimed = {device for device in reclaimed if device in slots}
        self._seen: dict[str, tuple[Obstacle, ...]] = {}
        """What looks at the devices have given."""
        self._offers: Mapping[str, DeviceOffer] = {}
        self.floors: Mapping[str, int] = {}
        """What an hour of each device costs its owner: none is lent for less."""
        self._listeners: list[Callable[[], None]] = []
        self._kept: dict[str, tuple[Provider, int]] = {}
        """Devices that were cleared for an earlier mesh, and until when."""

    def add(self, provider: "Provider", place: int, announce: Callable[[], None]) -> None:
        """Serve another mesh, as number `place` in the order of priority. `announce`: what it offers has changed."""
        for device, obstacles in self.obstacles.items():
            provider.set_obstacles(device, obstacles)
        provider.lending.paused = self._paused
        provider.adopt(self._offers, self.trusted, self.sharing)
        self.providers.insert(place, provider)
        self._listeners.append(announce)

    def remove(self, provider: "Provider", announce: Callable[[], None]) -> None:
        """A mesh is not served any more."""
        self.providers.remove(provider)
        self._listeners.remove(announce)
        self._kept = {device: kept for device, kept in self._kept.items() if kept[0] is not provider}

    def changed(self) -> None:
        """What announcements say has changed: slots are shared, so in all meshes."""
        for announce in self._listeners:
            announce()

    # The owner

    @property
    def paused(self) -> bool:
        """Paused by `coppermesh pause`."""
        return self._paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._paused = paused
        for provider in self.providers:
            provider.paused = paused

    @property
    def tasks_accepted(self) -> int:
        """Tasks of all meshes that have no result yet."""
        return sum(provider.tasks_accepted for provider in self.providers)

    def adopt(self, offers: Mapping[str, DeviceOffer], trusted: frozenset[PeerId], sharing: Sharing) -> None:
        """Settings have changed."""
        self._offers, self.trusted, self.sharing = offers, trusted, sharing
        for provider in self.providers:
            provider.adopt(offers, trusted, sharing)

    def set_obstacles(self, device: str, obstacles: tuple[Obstacle, ...]) -> None:
        """What a look at the device has given."""
        self._seen[device] = obstacles
        if device in self._reclaimed:
            obstacles = (_taken_back(device), *obstacles)
        self.obstacles[device] = obstacles
        for provider in self.providers:
            provider.set_obstacles(device, obstacles)

    def follow_owner(self) -> None:
        """Carry out what the owner wants now. Call each second."""
        for provider in self.providers:
            provider.follow_owner()

    def stop_leases(self, reason: Obstacle, device: str | None = None) -> int:
        """End leases of all meshes now, of one device or all. Returns how many."""
        return sum(provider.stop_leases(reason, device) for provider in self.providers)

    @property
    def reclaimed(self) -> frozenset[str]:
        """Devices that their owner has taken back."""
        return frozenset(self._reclaimed)

    async def reclaim(self, devices: Iterable[str]) -> tuple[int, bool]:
        """Give devices back to their owner: no bids, and leases end with their running tasks. What was done is
        paid, the rest costs nothing and runs elsewhere. Returns how many leases ended, and whether workers are gone.
        """
        wanted = list(devices)
        self._reclaimed |= set(wanted)
        for device in wanted:
            self.set_obstacles(device, self._seen.get(device, ()))
        ended = sum(self.stop_leases(_taken_back(device), device) for device in wanted)
        with trio.move_on_after(RECLAIM_SECONDS) as waiting:
            while any(self.serves_on(device) for device in wanted):  # noqa: ASYNC110 - workers end in several ways
                await trio.sleep(_LOOK_SECONDS)
        self.changed()
        return ended, not waiting.cancelled_caught

    def give_back(self) -> None:
        """Reclaimed devices are lent again."""
        devices, self._reclaimed = self._reclaimed, set()
        for device in devices:
            self.set_obstacles(device, self._seen.get(device, ()))
        self.changed()

    def serves_on(self, device: str) -> bool:
        """A lease of some mesh is on that device."""
        return any(provider.serves_on(device) for provider in self.providers)

    def works_on(self, device: str) -> bool:
        """A task of some mesh runs or waits on that device."""
        return any(provider.works_on(device) for provider in self.providers)

    # Which mesh comes first

    def free(self, device: str, provider: "Provider", now_us: int) -> int:
        """Slots of `device` that `provider` may promise."""
        keeper, until_us = self._kept.get(device, (provider, 0))
        if keeper is not provider and until_us > now_us and self._precedes(keeper, provider):
            return 0
        return self.reservations.free(device)

    def reclaimable(self, device: str, provider: "Provider") -> int:
        """Slots of `device` that later meshes hold, so that `provider` could have them."""
        return sum(later.holds_on(device) for later in self._after(provider))

    async def make_way(self, device: str, provider: "Provider", now_us: int) -> bool:
        """Have a later mesh give up a slot of `device`. True once one is free for `provider`, within `WAY_SECONDS`."""
        self._kept[device] = (provider, now_us + KEPT_US)
        for later in reversed(self._after(provider)):
            if later.give_way(device):
                break
        with trio.move_on_after(WAY_SECONDS):
            while not self.reservations.free(device):  # noqa: ASYNC110 - a hold ends in several ways, all of them soon
                await trio.sleep(_LOOK_SECONDS)
        return self.reservations.free(device) > 0

    def way_made(self, device: str, provider: "Provider") -> None:
        """The slot was taken, or is not wanted: nobody keeps it any longer."""
        if self._kept.get(device, (None, 0))[0] is provider:
            del self._kept[device]

    def _precedes(self, first: "Provider", second: "Provider") -> bool:
        return first in self.providers and self.providers.index(first) < self.providers.index(second)

    def _after(self, provider: "Provider") -> list["Provider"]:
        """Later ones in the order of priority; none for one that is not (any more) here."""
        if provider not in self.providers:
            return []
        return self.providers[self.providers.index(provider) + 1 :]


def _taken_back(device: str) -> Obstacle:
    sentence = f"the owner has taken {device} back; what was finished is paid, run the rest elsewhere"
    return Obstacle(
        "taken-back",
        sentence,
        f"{device} was taken back by `coppermesh reclaim`; `coppermesh resume` lends it",
    )
