"""Whether this provider bids on an order: a fold of small components, each with its own reason to say no.

`ORDER_CHECKS` look at the order as a whole, `DEVICE_CHECKS` at the order and one device. The first order check that
objects declines; else the cheapest device to which no device check objects is offered; else the device that got
furthest gives the reason, since that is the one the requester came closest to getting.

A reason is a stable code (see `DECLINE_CODES`) and a sentence that says what would have to change, and on which side.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from coppermesh.agent.pricing import amount_for, format_money, format_rate
from coppermesh.agent.sharing import Obstacle, Sharing
from coppermesh.p2p.ids import MeshId, PeerId, format_peer
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
    "rate": "the device costs more than the order's maximum",
    "speed": "the device was measured slower than the order's minimum",
    "measuring": "the device's speed is asked for and being measured: ask again in some seconds",
    "deadline": "the order's deadline is over",
    "budget": "the budget does not cover one task of the longest allowed time",
    "device-busy": "the owner's own programs use the device",
    "unfit": "the device is out of order: a worker on it could not be ended, and no probe has passed since",
    "too-hot": "the device is hotter than its owner wants",
    "power-limit": "the device draws more power than its owner wants",
    "load-limit": "other programs use more of the device than its owner wants",
    "not-known": "the device does not tell what its owner wants to know first",
    "busy": "every slot that fits is taken",
    "internal": "the provider failed to answer; its owner's log says why",
}
"""Every code of a decline, with its meaning."""

LASTING_CODES = frozenset(
    {
        "denied", "not-listed", "isolation", "device-kind", "model", "speed", "features", "not-allowed",
        "memory", "unit", "rate",
    }
)  # fmt: skip
"""Declines that stay the same however often the same order is sent."""


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


OrderCheck = Callable[[Case], DeclineReason | None]
DeviceCheck = Callable[[Case, DeviceState], DeclineReason | None]


def decide(order: Order, requester: PeerId, state: ProviderState, now_us: int) -> BidTerms | DeclineReason:
    """Terms to bid on `order` by `requester`, or the reason not to. The caller still has to reserve the slot."""
    case = Case(order, requester, state, now_us)
    for check in ORDER_CHECKS:
        if reason := check(case):
            return reason
    cheapest_first = sorted(state.devices, key=lambda device: (device.offer.rate, device.offer.device))
    furthest, best_reason = -1, decline("no-device", "this provider offers no device; ask another")
    for device in cheapest_first:
        passed, device_reason = _judge(case, device)
        if device_reason is None:
            return _terms(case, device)
        if passed > furthest:
            furthest, best_reason = passed, device_reason
    return best_reason


def decline(code: str, sentence: str) -> DeclineReason:
    """A reason that fits the wire: an unknown code is a bug here, a sentence too long is cut."""
    if code not in DECLINE_CODES:
        raise ValueError(f"decline code {code!r} is not listed in DECLINE_CODES")
    if len(sentence) > MAX_SENTENCE:
        sentence = sentence[: MAX_SENTENCE - 3] + "..."
    return DeclineReason(code, sentence)


def check_mesh(case: Case) -> DeclineReason | None:
    """The order is for this mesh."""
    if case.order.mesh == case.state.mesh:
        return None
    return decline(
        "wrong-mesh", "the order names another mesh than the one it was sent on; join that mesh to use it"
    )


def check_clock(case: Case) -> DeclineReason | None:
    """The order is valid now, and a clock that is far off is named as the cause."""
    order, skew_us = case.order, case.state.limits.clock_skew_us
    ahead_us = order.issued_us - case.now_us
    if ahead_us > skew_us:
        text = f"the requester's clock is {_span(ahead_us)} ahead of the provider's; set both by NTP"
        return decline("clock-skew", text)
    if order.expires_us <= order.issued_us:
        return decline(
            "expired", "the order expires before it was issued; send one that is valid for some seconds"
        )
    late_us = case.now_us - order.expires_us
    if late_us < 0:
        return None
    if late_us > skew_us:
        text = f"the order expired {_span(late_us)} ago by the provider's clock; if it is new, set both clocks by NTP"
        return decline("clock-skew", text)
    return decline("expired", f"the order expired {_span(late_us)} before it arrived; send a new one")


def check_flood(case: Case) -> DeclineReason | None:
    """The requester leaves room for others."""
    limits = case.state.limits
    if case.state.recent_orders >= limits.max_orders_per_window:
        text = f"more than {limits.max_orders_per_window} orders in 10 s from this requester; wait 10 s"
        return decline("too-many-orders", text)
    if case.state.requester_holds >= limits.max_holds_per_requester:
        text = f"this requester holds {case.state.requester_holds} slots here, the most it may; release a lease first"
        return decline("too-many-leases", text)
    return None


def check_owner(case: Case) -> DeclineReason | None:
    """The owner lets others use the machine now: it is not paused, and these are its hours."""
    return _as_decline(case.state.sharing.closed(case.state.paused, case.now_us))


def check_requester(case: Case) -> DeclineReason | None:
    """The owner lets this requester use it."""
    return _as_decline(case.state.sharing.refuses(case.requester))


def check_times(case: Case) -> DeclineReason | None:
    """Task and lease are short enough for this provider, and a task fits into the lease."""
    order, limits = case.order, case.state.limits
    if order.wall_limit_us > limits.max_wall_us:
        text = (
            f"a task may take {_span(limits.max_wall_us)} here, the order allows {_span(order.wall_limit_us)}"
        )
        return decline("wall-limit", text)
    if order.wall_limit_us == 0:
        return decline(
            "wall-limit", "the order allows a task no time at all; give it a wall limit above zero"
        )
    if order.lease_us > limits.max_lease_us:
        text = f"a lease lasts at most {_span(limits.max_lease_us)} here, the order asks for {_span(order.lease_us)}"
        return decline("lease-length", text)
    if order.lease_us < order.wall_limit_us:
        text = (
            f"a lease of {_span(order.lease_us)} ends before one task of {_span(order.wall_limit_us)} would"
        )
        return decline("lease-length", text)
    return None


def check_deadline(case: Case) -> DeclineReason | None:
    """Results would still be of use."""
    late_us = case.now_us - case.order.deadline_us
    if late_us < 0:
        return None
    return decline("deadline", f"the order's deadline was {_span(late_us)} ago; order for a later one")


def check_isolation(case: Case) -> DeclineReason | None:
    """Each isolation layer asked for was witnessed on this machine."""
    missing = [layer for layer in case.order.isolation if layer not in case.state.isolation]
    if not missing:
        return None
    return decline(
        "isolation", f"not witnessed on this machine: {', '.join(missing)}; ask for less or elsewhere"
    )


def check_kind(case: Case, device: DeviceState) -> DeclineReason | None:
    """The device is of the kind asked for."""
    if case.order.device_kind in ("any", device.offer.kind):
        return None
    return decline(
        "device-kind",
        f"wanted a {case.order.device_kind} device; {device.offer.device} is {device.offer.kind}",
    )


def check_model(case: Case, device: DeviceState) -> DeclineReason | None:
    """The device's name has what was asked for."""
    if case.order.model.lower() in device.offer.name.lower():
        return None
    offer = device.offer
    return decline("model", f"wanted a {case.order.model}; {offer.device} is a {offer.name}")


def check_features(case: Case, device: DeviceState) -> DeclineReason | None:
    """The device takes the kind of programs that the order names."""
    missing = sorted(set(case.order.features) - set(device.offer.features))
    if not missing:
        return None
    return decline("features", f"{device.offer.device} does not take {', '.join(missing)}")


def check_allowed(case: Case, device: DeviceState) -> DeclineReason | None:
    """Programs that carry source code come from strangers only where the sandbox was seen to hold."""
    guarded = sorted(GUARDED_FEATURES.intersection(case.order.features))
    unseen = sorted(SANDBOX_FLOOR.difference(case.state.isolation))
    if not guarded or not unseen or case.requester in case.state.allowed:
        return None
    text = (
        f"{device.offer.device} takes {', '.join(guarded)} only from peers its owner named, for isolation by "
        f"{' and '.join(unseen)} was not witnessed there; the owner can start the agent with --allow "
        f"{format_peer(case.requester)}, or see `coppermesh doctor sandbox`"
    )
    return decline("not-allowed", text)


def check_memory(case: Case, device: DeviceState) -> DeclineReason | None:
    """A task's memory fits the device."""
    if case.order.memory_bytes <= device.offer.memory_bytes:
        return None
    text = f"a task may use {device.offer.memory_bytes} bytes on {device.offer.device}"
    return decline("memory", f"{text}, the order asks for {case.order.memory_bytes}")


def check_unit(case: Case, device: DeviceState) -> DeclineReason | None:
    """Both count in the same money."""
    if case.order.unit == device.offer.unit:
        return None
    return decline(
        "unit", f"{device.offer.device} is priced in {device.offer.unit}, the order pays in {case.order.unit}"
    )


def check_rate(case: Case, device: DeviceState) -> DeclineReason | None:
    """The order pays what the device costs."""
    order, offer = case.order, device.offer
    if offer.rate <= order.max_rate:
        return None
    asked, most = format_rate(offer.rate, offer.unit), format_rate(order.max_rate, order.unit)
    return decline("rate", f"{offer.device} costs {asked}, the order pays at most {most}")


def check_budget(case: Case, device: DeviceState) -> DeclineReason | None:
    """The budget pays for at least one task that takes all the time it may."""
    order, offer = case.order, device.offer
    worst = amount_for(offer.rate, order.wall_limit_us)
    if worst <= order.budget:
        return None
    cost, budget = format_money(worst, offer.unit), format_money(order.budget, order.unit)
    text = (
        f"one task of {_span(order.wall_limit_us)} can cost {cost} on {offer.device}, the budget is {budget}"
    )
    return decline("budget", text)


def check_speed(case: Case, device: DeviceState) -> DeclineReason | None:
    """The device is as fast as was asked for, by this provider's own measurement."""
    wanted, name = case.order.min_speed, device.offer.device
    if not wanted or device.speed >= wanted:
        return None
    if not device.speed:
        return decline("measuring", f"the speed of {name} is not known yet; ask again in some seconds")
    return decline("speed", f"{name} was measured at {device.speed} Mop/s, the order wants {wanted}")


def check_conditions(_case: Case, device: DeviceState) -> DeclineReason | None:
    """Its owner does not need it, and it is within the owner's limits."""
    return _as_decline(device.obstacles[0] if device.obstacles else None)


def check_free(_case: Case, device: DeviceState) -> DeclineReason | None:
    """The device has a slot that is not promised to anyone."""
    if device.free_slots > 0:
        return None
    offer = device.offer
    return decline("busy", f"{offer.device} serves {offer.slots} at once and is busy; ask again later")


ORDER_CHECKS: tuple[OrderCheck, ...] = (
    check_mesh,
    check_clock,
    check_flood,
    check_requester,
    check_owner,
    check_times,
    check_deadline,
    check_isolation,
)
"""In the order in which they are asked: what ends the conversation soonest comes first."""

DEVICE_CHECKS: tuple[DeviceCheck, ...] = (
    check_kind,
    check_model,
    check_features,
    check_allowed,
    check_memory,
    check_unit,
    check_rate,
    check_budget,
    check_speed,
    check_conditions,
    check_free,
)
"""In the order in which they are asked: what can never change comes first, what changes by itself last."""


def _as_decline(obstacle: Obstacle | None) -> DeclineReason | None:
    return None if obstacle is None else decline(obstacle.code, obstacle.sentence)


def _judge(case: Case, device: DeviceState) -> tuple[int, DeclineReason | None]:
    """How many checks the device passed, and what stopped it."""
    for passed, check in enumerate(DEVICE_CHECKS):
        if reason := check(case, device):
            return passed, reason
    return len(DEVICE_CHECKS), None


def _terms(case: Case, device: DeviceState) -> BidTerms:
    limits, offer = case.state.limits, device.offer
    return BidTerms(
        device=offer,
        rate=offer.rate,
        unit=offer.unit,
        memory_bytes=offer.memory_bytes,
        depth=limits.depth,
        expires_us=min(case.now_us + limits.bid_us, case.order.expires_us),
        speed=device.speed,
    )


def _span(microseconds: int) -> str:
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
