"""Whether this provider bids on an order: a fold of small components, each with its own reason to say no.

`ORDER_CHECKS` look at the order as a whole, `DEVICE_CHECKS` at the order and one device. The first order check that
objects declines; else the cheapest device to which no device check objects is offered; else the device that got
furthest gives the reason, since that is the one the requester came closest to getting.

A reason is a stable code (see `DECLINE_CODES`) and a sentence that says what would have to change, and on which side.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from coppermesh.p2p.ids import MeshId, PeerId
from coppermesh.p2p.records import DeviceOffer, Order

SECOND = 1_000_000
MAX_SENTENCE = 400
GUARDED_FEATURES = frozenset({"cuda-source"})
"""What only peers named by `--allow` may use: a kernel's source is code that runs on this machine."""

DECLINE_CODES = {
    "wrong-mesh": "the order is for another mesh",
    "clock-skew": "the two clocks are too far apart",
    "expired": "the order or bid was no longer valid when it arrived",
    "too-many-orders": "this requester has sent too many orders in a short time",
    "too-many-leases": "this requester holds as many slots as one requester may",
    "paused": "the owner has paused the provider",
    "lease-length": "the lease would be too long, or too short for one task",
    "wall-limit": "a task may run for longer than the provider lets it",
    "isolation": "an isolation layer that was asked for was not witnessed here",
    "no-device": "no device is offered at all",
    "device-kind": "no device of that kind is offered",
    "features": "no device takes such programs",
    "not-allowed": "the device takes such programs, but not from this requester",
    "memory": "a task needs more memory than the device gives it",
    "unit": "the price is in another unit",
    "rate": "the device costs more than the order's maximum",
    "budget": "the budget does not cover one task of the longest allowed time",
    "busy": "every slot that fits is taken",
    "internal": "the provider failed to answer; its owner's log says why",
}
"""Every code of a decline, with its meaning."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What this provider grants at most. Times in microseconds."""

    clock_skew_us: int = 60 * SECOND
    max_lease_us: int = 3600 * SECOND
    max_wall_us: int = 3600 * SECOND
    max_holds_per_requester: int = 16
    """Bids and leases together."""
    max_orders_per_window: int = 100
    """Orders of one requester in the window that the caller counts over (10 s)."""
    depth: int = 8
    """Tasks that may be outstanding under one lease."""
    bid_us: int = 5 * SECOND
    """How long a bid stays valid and holds its slot."""


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A device and how much of it is free."""

    offer: DeviceOffer
    free_slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderState:
    """What the decision depends on besides the order, gathered by the caller at one moment."""

    mesh: MeshId
    devices: tuple[DeviceState, ...]
    paused: bool = False
    isolation: tuple[str, ...] = ()
    allowed: frozenset[PeerId] = frozenset()
    """Peers named by `--allow`."""
    requester_holds: int = 0
    """Slots that this requester holds now (`Reservations.held_by`)."""
    recent_orders: int = 0
    """Orders by this requester in the last 10 s, this one not counted."""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class BidTerms:
    """What to bid."""

    device: DeviceOffer
    rate: int
    unit: str
    memory_bytes: int
    depth: int
    expires_us: int


@dataclass(frozen=True, slots=True)
class DeclineReason:
    """Why not, in a form for programs and in one for people (printable ASCII, at most 400 characters)."""

    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Case:
    """One order in front of this provider."""

    order: Order
    requester: PeerId
    """Who really sent it, as proven by the connection."""
    state: ProviderState
    now_us: int


OrderCheck = Callable[[Case], DeclineReason | None]
DeviceCheck = Callable[[Case, DeviceState], DeclineReason | None]


def decide(order: Order, requester: PeerId, state: ProviderState, now_us: int) -> BidTerms | DeclineReason:
    """Terms to bid on `order` by `requester`, or the reason not to. The caller still has to reserve the slot."""
    raise NotImplementedError
