"""What the components of the policy speak about: an order in front of a provider, terms, and reasons to decline
(pure).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from coppermesh.agent.sharing import Obstacle, Sharing
from coppermesh.p2p.ids import MeshId, PeerId
from coppermesh.p2p.records import DeviceOffer, Order

SECOND = 1_000_000
MAX_SENTENCE = 400
GUARDED_FEATURES = frozenset({"cuda-source"})
"""Source is code that runs on this machine: below `SANDBOX_FLOOR`, only peers named by `--allow` may send it."""
SANDBOX_FLOOR = frozenset({"landlock", "seccomp"})
"""Layers that must have been witnessed before a stranger's native code is taken (`exec.sandbox.layers.FLOOR`)."""

DECLINE_CODES = {
    "wrong-mesh": "the order is for another mesh",
    "clock-skew": "the two clocks are too far apart",
    "expired": "the order or bid was no longer valid when it arrived",
    "too-many-orders": "this requester has sent too many orders in a short time",
    "too-many-leases": "this requester holds as many slots as one requester may",
    "paused": "the owner has paused the provider",
    "out-of-hours": "the owner lends the provider at other hours",
    "denied": "the owner takes nothing from this requester",
    "not-listed": "the owner takes work only from peers on a list, without this requester",
    "reputation": "the owner serves only requesters with a better history",
    "unpaid": "receipts wait for this requester's countersignature",
    "not-contained": "the owner lends only with isolation that was not witnessed here",
    "lease-length": "the lease would be too long, or too short for one task",
    "wall-limit": "a task may run for longer than the provider lets it",
    "isolation": "an isolation layer that was asked for was not witnessed here",
    "no-device": "no device is offered at all",
    "device-kind": "no device of that kind is offered",
    "model": "no device of that model is offered",
    "features": "no device takes such programs",
    "not-allowed": "the device takes such programs, but not from this requester",
    "memory": "a task needs more memory than the device gives it",
    "unit": "the price is in another unit",
    "below-cost": "the order pays less than lending the device costs its owner",
    "rate": "the device costs more than the order's maximum",
    "speed": "the device was measured slower than the order's minimum",
    "measuring": "the device's speed is asked for and being measured: ask again in some seconds",
    "deadline": "the order's deadline is over",
    "budget": "the budget does not cover one task of the longest allowed time",
    "taken-back": "the owner has taken the device back",
    "device-busy": "the owner's own programs use the device",
    "unfit": "the device is out of order: a worker on it could not be ended, and no probe has passed since",
    "too-hot": "the device is hotter than its owner wants",
    "power-limit": "the device draws more power than its owner wants",
    "load-limit": "other programs use more of the device than its owner wants",
    "kept-memory": "less of the device's memory is free than its owner keeps",
    "not-known": "the device does not tell what its owner wants to know first",
    "disk-full": "the provider has no room on its disk",
    "quota": "the requester's quota on this private mesh is used up",
    "busy": "every slot that fits is taken",
    "internal": "the provider failed to answer; its owner's log says why",
}
"""Every code of a decline, with its meaning."""

LASTING_CODES = frozenset(
    {
        "denied", "not-listed", "isolation", "device-kind", "model", "speed", "features", "not-allowed",
        "memory", "unit", "below-cost", "rate", "reputation", "not-contained", "budget", "wall-limit",
    }
)  # fmt: skip
"""Declines that stay the same however often the same order is sent."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What this provider grants at most. Times in microseconds."""

    clock_skew_us: int = 60 * SECOND
    max_lease_us: int = 3660 * SECOND
    max_wall_us: int = 3600 * SECOND
    max_holds_per_requester: int = 16
    """Bids and leases together."""
    max_orders_per_window: int = 100
    """Orders of one requester in the window that the caller counts over (10 s)."""
    depth: int = 8
    """Tasks that may be outstanding under one lease."""
    bid_us: int = 15 * SECOND
    """How long a bid stays valid and holds its slot."""


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A device and how much of it is free."""

    offer: DeviceOffer
    free_slots: int
    obstacles: tuple[Obstacle, ...] = ()
    """Why the owner does not lend it just now (`device_gate`)."""
    speed: int = 0
    """Measured, in millions of operations per second; 0: not yet."""
    floor: int = 0
    """What an hour of it costs its owner, wanted margin included: it is never lent for less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderState:
    """What the decision depends on besides the order, gathered by the caller at one moment."""

    mesh: MeshId
    devices: tuple[DeviceState, ...]
    paused: bool = False
    """By `coppermesh pause`; `sharing` may say the same."""
    sharing: Sharing = field(default_factory=Sharing)
    isolation: tuple[str, ...] = ()
    allowed: frozenset[PeerId] = frozenset()
    """Peers named by `--allow` or `trust`."""
    requester_holds: int = 0
    """Slots that this requester holds now (`Reservations.held_by`)."""
    recent_orders: int = 0
    """Orders by this requester in the last 10 s, this one not counted."""
    requester_score: int = 500
    """Of 1000, by `reputation.score`; a stranger's is in the middle."""
    score_reason: str = ""
    disk_full: bool = False
    """What a task brings could not be kept."""
    unpaid: str = ""
    """Why this requester gets nothing until it has answered its receipts; empty: its credit is not used up."""
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
    speed: int = 0


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


OrderJudge = Callable[[Case], DeclineReason | None]
"""A component that looks at the order as a whole: ready, or a reason to reject."""
DeviceStep = Callable[[Case, DeviceState, BidTerms], BidTerms | DeclineReason]
"""A component for one device: the terms as they were, other terms, or a reason to reject."""


def decline(code: str, sentence: str) -> DeclineReason:
    """A reason that fits the wire: an unknown code is a bug here, a sentence too long is cut."""
    if code not in DECLINE_CODES:
        raise ValueError(f"decline code {code!r} is not listed in DECLINE_CODES")
    if len(sentence) > MAX_SENTENCE:
        sentence = sentence[: MAX_SENTENCE - 3] + "..."
    return DeclineReason(code, sentence)


def as_decline(obstacle: Obstacle) -> DeclineReason:
    """An owner's obstacle as the reason of a decline."""
    return decline(obstacle.code, obstacle.sentence)


def span(microseconds: int) -> str:
    """A length of time in the one or two largest units that matter: `1 d 3 h`, `2 min`, `0.004 s`."""
    seconds, rest_us = divmod(microseconds, SECOND)
    if seconds < 60:
        return f"{seconds}.{rest_us // 1000:03d} s" if rest_us else f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    while not parts[0][0]:
        del parts[0]
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count)
