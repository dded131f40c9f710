"""Which slots of a provider's devices are promised to whom, and until when.

A bid holds a slot, so that a requester that takes it is not turned away; a lease holds it for longer. Every hold has
an expiry, so that a slot comes back even if the other side vanished and every message about it was lost: a slot that
stays taken with nobody using it (a "ghost allocation") cannot exist for longer than that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from coppermesh.p2p.ids import Digest, PeerId


class HoldKind(Enum):
    """What a slot is held for."""

    BID = "bid"
    LEASE = "lease"


@dataclass(frozen=True, slots=True)
class Hold:
    """One slot of one device, held. `key` is the order's id for a bid and the lease's id for a lease."""

    kind: HoldKind
    key: Digest
    device: str
    requester: PeerId
    expires_us: int


class Reservations:
    """The holds of one provider. Times are microseconds since the epoch; nothing here reads a clock."""

    def __init__(self, slots: Mapping[str, int]) -> None:
        """`slots`: how many leases each device serves at once."""
        if any(count < 1 for count in slots.values()):
            raise ValueError("reservations: every device needs at least one slot")
        self._slots = dict(slots)
        self._over: dict[str, int] = {}
        """Holds of devices that had more of them than slots when the slots became fewer."""
        self._bids: dict[Digest, Hold] = {}
        self._leases: dict[Digest, Hold] = {}

    def resize(self, slots: Mapping[str, int]) -> None:
        """Other numbers of slots. Holds stay: a device with more of them than slots has none free until they end."""
        if any(count < 1 for count in slots.values()):
            raise ValueError("reservations: every device needs at least one slot")
        held = {name: len(self._held_on(name)) for name in self._slots}
        self._over = {name: count for name, count in held.items() if count > slots.get(name, 0)}
        self._slots = dict(slots)

    def reserve(self, order: Digest, device: str, requester: PeerId, expires_us: int, now_us: int) -> bool:
        """Hold a slot of `device` for the bid on `order`. False, and nothing changes, where none is free.

        An order that holds a slot already keeps that one: an order is bid on once.
        """
        self.expire(now_us)
        if order in self._bids:
            return self._bids[order].device == device
        if expires_us <= now_us or self.free(device) <= 0:
            return False
        self._bids[order] = Hold(HoldKind.BID, order, device, requester, expires_us)
        return True

    def convert(self, order: Digest, lease: Digest, expires_us: int, now_us: int) -> bool:
        """Turn the bid's hold into the lease's. False where the bid's hold has expired or was released.

        Repeated with the same lease, it is True again: a lease that was sent twice is one lease.
        """
        self.expire(now_us)
        if lease in self._leases:
            return True
        held = self._bids.get(order)
        if held is None or expires_us <= now_us:
            return False
        del self._bids[order]
        self._leases[lease] = Hold(HoldKind.LEASE, lease, held.device, held.requester, expires_us)
        return True

    def extend(self, lease: Digest, expires_us: int) -> bool:
        """Hold a lease's slot for longer. False where it is not held (any more); never for less long."""
        held = self._leases.get(lease)
        if held is None:
            return False
        self._leases[lease] = replace(held, expires_us=max(held.expires_us, expires_us))
        return True

    def release_bid(self, order: Digest) -> bool:
        """Free the slot of a bid that came to nothing. True if it was held; repeating is harmless."""
        return self._bids.pop(order, None) is not None

    def release_lease(self, lease: Digest) -> bool:
        """Free the slot of a lease that ended. True if it was held; repeating is harmless."""
        return self._leases.pop(lease, None) is not None

    def expire(self, now_us: int) -> list[Hold]:
        """Free every hold whose time is up, and say which they were, oldest first."""
        over = [hold for hold in self.holds() if hold.expires_us <= now_us]
        for hold in over:
            table = self._bids if hold.kind is HoldKind.BID else self._leases
            del table[hold.key]
        return sorted(over, key=lambda hold: (hold.expires_us, hold.key))

    @property
    def next_expiry_us(self) -> int | None:
        """When `expire` has something to do next; None while nothing is held."""
        return min((hold.expires_us for hold in self.holds()), default=None)

    def holds(self) -> list[Hold]:
        """Everything held now."""
        return [*self._bids.values(), *self._leases.values()]

    def free(self, device: str) -> int:
        """Free slots of `device`; 0 for a device that is not there, or that has more holds than slots."""
        return max(0, self._slots.get(device, 0) - len(self._held_on(device)))

    def _held_on(self, device: str) -> list[Hold]:
        return [hold for hold in self.holds() if hold.device == device]

    @property
    def busy_slots(self) -> int:
        """Slots under lease on all devices together, for the announcement. Bids come and go with every order, and
        telling all peers of each would cost more than what it saves the next requester.
        """
        return len(self._leases)

    def held_by(self, requester: PeerId) -> int:
        """Slots that one requester holds, bids and leases together."""
        return sum(hold.requester == requester for hold in self.holds())

    def validate(self) -> None:
        """Check every invariant; raises AssertionError that names the broken one. For tests and debugging."""
        for device, slots in self._slots.items():
            taken = len(self._held_on(device))
            # Holds may be more than slots only as long as they were there when the slots became fewer.
            most = max(slots, self._over.get(device, 0))
            _require(taken <= most, f"{device}: {taken} of {slots} slots held")
        for kind, table in ((HoldKind.BID, self._bids), (HoldKind.LEASE, self._leases)):
            for key, hold in table.items():
                _require(key == hold.key, "a hold is filed under another key")
                _require(hold.kind is kind, f"a {hold.kind.value} among the holds of a {kind.value}")
                _require(hold.device in self._slots, f"a hold on the unknown device {hold.device}")


def _require(holds: bool, broken: str) -> None:
    if not holds:
        raise AssertionError(f"reservations: {broken}")
