"""What a requester needs, and which announced devices fit it (`ranking` has the order in which bids are taken).

An announcement is a hint: a device that fits here may still decline, and its signed decline says why. What does not
fit is not asked at all, and `survey` keeps the reason, so that `explain` can tell who was heard and passed over.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from coppermesh.agent.pricing import format_rate
from coppermesh.exec.budget import format_bytes
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.records import Announcement, Bid, DeviceOffer

MAX_LEASES = 8
"""The most leases that one requirement is spread over."""
MAX_ASKED = 64
"""Providers asked in one negotiation."""
LEAST_ASKED = 16
"""So many are asked even for one lease, where so many fit."""
ASKED_PER_LEASE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """What the device of a lease must be. Hashable: leases are shared by the jobs whose requirement is the same."""

    device_kind: str = "any"
    """`any`, `cpu` or `cuda`."""
    model: str = ""
    """Part of the device's name, in small letters: `h100`. Empty: any model."""
    features: frozenset[str] = frozenset({"array-programs"})
    isolation: tuple[str, ...] = ()
    """Isolation layers that must have been witnessed on the provider's machine."""
    memory_bytes: int = 0
    """Memory that one task may use."""
    min_speed: int = 0
    """Least speed in millions of operations per second (PROTOCOL.md, Speed); 0: any."""
    wall_limit_us: int = 60_000_000
    """Most wall time that one task may take."""
    max_rate: int
    """Most that is paid, in millionths of `unit` per device-hour."""
    unit: str = "usd"
    fresh: bool = False
    """True: every task gets a worker process of its own."""
    providers: int = 1
    """Least number of leases to hold and spread tasks over, where so many are to be had."""

    def for_lease(self) -> "Requirement":
        """The same without `providers`, which says how many leases are wanted and nothing about any one of them."""
        return replace(self, providers=1)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one provider does not take an order: a code to count by, and a sentence."""

    code: str
    sentence: str

    def __str__(self) -> str:
        """As the story and the client tell it."""
        return f"{self.code}: {self.sentence}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device that fits, by its announcement."""

    peer: PeerId
    device: DeviceOffer
    busy: bool
    """Every slot of the machine was taken when it announced: ask it last."""


@dataclass(frozen=True, slots=True)
class Survey:
    """Everyone heard, sorted into who is worth asking and who is not."""

    fitting: tuple[Candidate, ...]
    """One candidate a peer, best first."""
    misfits: Mapping[PeerId, tuple[Refusal, ...]] = field(default_factory=dict)
    """Why each of the others was passed over; never empty."""
    lasting: frozenset[PeerId] = frozenset()
    """Those of `misfits` that time will not change: their device is another one than what is wanted."""
    without_device: frozenset[PeerId] = frozenset()
    """Those of `misfits` that offer nothing at all: they only submit."""


def misfits(announcement: Announcement, device: DeviceOffer, requirement: Requirement) -> list[Refusal]:
    """Every reason why `device` does not meet `requirement`; empty when it fits."""
    reasons = []
    if announcement.paused:
        reasons.append(
            Refusal("paused", "takes no work now: it is paused, or closed at this hour, by its owner")
        )
    if requirement.device_kind not in ("any", device.kind):
        text = f"{device.device} is a {device.kind} device, wanted {requirement.device_kind}"
        reasons.append(Refusal("device-kind", text))
    if requirement.model not in device.name.lower():
        text = f"{device.device} is {device.name}, wanted is {requirement.model}"
        reasons.append(Refusal("model", text))
    if missing := sorted(requirement.features - set(device.features)):
        hint = ""
        if "cuda-source" in missing:
            compiler = "there is no C++ compiler, or the machine" if device.kind == "cpu" else "the machine"
            hint = f" ({compiler} is not x86-64)"
        reasons.append(Refusal("features", f"{device.device} does not take {', '.join(missing)}{hint}"))
    if unwitnessed := [layer for layer in requirement.isolation if layer not in announcement.isolation]:
        reasons.append(Refusal("isolation", f"has not witnessed isolation by {', '.join(unwitnessed)}"))
    if device.memory_bytes < requirement.memory_bytes:
        memory, wanted = format_bytes(device.memory_bytes), format_bytes(requirement.memory_bytes)
        hint = " (cm.trace_report shows which line needs most; mesh.map takes an array in chunks)"
        reasons.append(Refusal("memory", f"{device.device} has {memory} of memory, wanted {wanted}{hint}"))
    if device.unit != requirement.unit:
        text = f"{device.device} is priced in {device.unit}, wanted {requirement.unit}"
        reasons.append(Refusal("unit", text))
    elif device.rate > requirement.max_rate:
        asked = format_rate(device.rate, device.unit)
        text = (
            f"{device.device} asks {asked}, the maximum is {format_rate(requirement.max_rate, device.unit)}"
        )
        reasons.append(Refusal("rate", text))
    return reasons


def survey(
    announcements: Iterable[Announcement],
    requirement: Requirement,
    now_us: int,
    exclude: AbstractSet[PeerId] = frozenset(),
) -> Survey:
    """Sort announcements into candidates (free ones first, then by rate and peer id) and reasons why not."""
    fitting = []
    reasons: dict[PeerId, tuple[Refusal, ...]] = {}
    lasting, without_device = set(), set()
    for announcement in announcements:
        peer = PeerId(announcement.peer)
        if peer in exclude:
            text = "is left out for now: it failed a moment ago, or has all that it may be given"
            reasons[peer] = (Refusal("left-out", text),)
        elif announcement.expires_us <= now_us:
            reasons[peer] = (Refusal("silent", "its announcement has expired"),)
        elif not announcement.devices:
            reasons[peer] = (Refusal("no-device", "offers no device"),)
            without_device.add(peer)
        else:
            best, why_not = _best_device(announcement, requirement)
            if best is None:
                reasons[peer] = why_not
                if not announcement.paused:
                    lasting.add(peer)
            else:
                fitting.append(best)
    fitting.sort(key=lambda found: (found.busy, found.device.rate, found.peer))
    return Survey(tuple(fitting), reasons, frozenset(lasting), frozenset(without_device))


def whom_to_ask(
    fitting: Sequence[Candidate], count: int, fruitless: int, draw: Callable[[PeerId], bytes]
) -> list[Candidate]:
    """Of those that fit, best first, who is asked for `count` leases (0: as many as may be): a few for each lease.

    A bid holds its provider's slot while bids are collected, so asking everybody would keep everybody from bidding on
    other orders. Half are the best by announcement, half are drawn among the others that are free, since all requesters
    know the same best ones. After `fruitless` negotiations in a row twice, four times as many are asked.
    """
    most = MAX_ASKED
    if count and fruitless < MAX_ASKED.bit_length():
        most = min(MAX_ASKED, max(LEAST_ASKED, ASKED_PER_LEASE * count) << fruitless)
    if len(fitting) <= most:
        return list(fitting)
    best, others = list(fitting[: most // 2]), fitting[most // 2 :]
    drawn = sorted(others, key=lambda found: (found.busy, draw(found.peer)))[: most - len(best)]
    return best + drawn


def candidates(
    announcements: Iterable[Announcement],
    requirement: Requirement,
    now_us: int,
    exclude: AbstractSet[PeerId] = frozenset(),
) -> list[Candidate]:
    """Whom to ask, best first. See `survey`."""
    return list(survey(announcements, requirement, now_us, exclude).fitting)


def bid_misfits(bid: Bid, requirement: Requirement) -> list[str]:
    """Why a bid does not keep what the order asked for; a bid is a stranger's claim until this is empty."""
    reasons = []
    if requirement.device_kind not in ("any", bid.device_kind):
        reasons.append(f"bids a {bid.device_kind} device, wanted {requirement.device_kind}")
    if requirement.model not in bid.device_name.lower():
        reasons.append(f"bids {bid.device_name}, wanted is {requirement.model}")
    if bid.speed < requirement.min_speed:
        reasons.append(f"bids {bid.speed} Mop/s, wanted {requirement.min_speed}")
    if bid.memory_bytes < requirement.memory_bytes:
        memory, wanted = format_bytes(bid.memory_bytes), format_bytes(requirement.memory_bytes)
        reasons.append(f"bids {memory} of memory, wanted {wanted}")
    if bid.unit != requirement.unit:
        reasons.append(f"bids in {bid.unit}, wanted {requirement.unit}")
    elif bid.rate > requirement.max_rate:
        asked = format_rate(bid.rate, bid.unit)
        reasons.append(f"bids {asked}, the maximum is {format_rate(requirement.max_rate, bid.unit)}")
    return reasons


def _best_device(
    announcement: Announcement, requirement: Requirement
) -> tuple[Candidate | None, tuple[Refusal, ...]]:
    """The cheapest device that fits, or every device's reasons."""
    reasons: list[Refusal] = []
    fitting = []
    for device in announcement.devices:
        found = misfits(announcement, device, requirement)
        reasons.extend(found)
        if not found:
            fitting.append(device)
    if not fitting:
        return None, tuple(dict.fromkeys(reasons))
    busy = announcement.busy_slots >= sum(device.slots for device in announcement.devices)
    best = min(fitting, key=lambda device: (device.rate, device.device))
    return Candidate(PeerId(announcement.peer), best, busy), ()
