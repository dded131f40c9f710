"""Who trades in the simulated market: providers with one device, requesters, what both keep of each other (pure)."""

from collections import deque
from dataclasses import dataclass, field

from coppermesh.agent.dispatch import Dispatcher
from coppermesh.agent.dispatch_state import AGENT_LIMITS
from coppermesh.agent.exposure import Exposure, interval_cost
from coppermesh.agent.matching import Requirement
from coppermesh.agent.reputation import Dealings, Facts, exposure_limit, score
from coppermesh.agent.reservations import Reservations
from coppermesh.agent.simulation import SECOND
from coppermesh.p2p.ids import Digest, MeshId, PeerId
from coppermesh.p2p.records import Announcement, DeviceOffer

MESH = MeshId(bytes(16))
WALL_US = 20 * SECOND


@dataclass(eq=False, slots=True)
class Work:
    """One task at a provider."""

    job: bytes
    index: int
    number: int
    seconds: float


@dataclass(eq=False, slots=True)
class HeldLease:
    """A lease, as both sides see it."""

    id: Digest
    provider: "SimProvider"
    requester: "SimRequester"
    rate: int
    requirement: Requirement
    queue: deque[Work] = field(default_factory=deque)
    running: Work | None = None
    over: bool = False


class SimProvider:
    """A provider with one device."""

    def __init__(self, peer: PeerId, offer: DeviceOffer, speed: float, kind: str) -> None:
        self.peer = peer
        self.offer = offer
        self.speed = speed
        self.kind = kind
        """`honest`, `stalls` or `dies`."""
        self.up = True
        self.life = 0
        self.known_up = True
        """What announcements say, a little late."""
        self.reservations = Reservations({offer.device: 1})
        self.leases: dict[Digest, HeldLease] = {}
        self.exposures: dict[PeerId, Exposure] = {}
        self.dealings: dict[PeerId, Dealings] = {}
        self.lost: dict[PeerId, int] = {}
        """Billed to each requester and not answered, money."""

    def announcement(self, now_us: int) -> Announcement:
        """What it offers now."""
        return Announcement(
            1, MESH, self.peer, 1, now_us, now_us + 60 * SECOND, "simulated", [], [self.offer], [],
            self.reservations.busy_slots, False, "",
        )  # fmt: skip

    def credit(self, requester: PeerId) -> int:
        """What this requester may leave unpaid here, over its leases."""
        interval = interval_cost(self.offer.rate, WALL_US)
        known = self.dealings.get(requester, Dealings())
        step = score(requester, Facts(known, interval=interval)).exposure_class
        count = sum(lease.requester.peer == requester for lease in self.leases.values())
        return exposure_limit(step, interval) * max(1, count)


class SimRequester:
    """A requester agent with its dispatcher."""

    def __init__(self, peer: PeerId, now_us: int, *, pays: bool) -> None:
        self.peer = peer
        self.pays = pays
        self.dispatcher = Dispatcher(now_us, AGENT_LIMITS)
        self.leases: dict[bytes, HeldLease] = {}
        self.dealings: dict[PeerId, Dealings] = {}
        self.attempts: dict[tuple[bytes, int, bytes], int] = {}
        """Attempts on their way, and the number of each: a late word about an earlier one does not count."""
        self.tick_due_us: int | None = None


@dataclass(slots=True)
class MarketCounts:
    """What happened."""

    jobs: int = 0
    finished: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    tasks_done: int = 0
    wasted_at_bad: dict[tuple[PeerId, PeerId], list[int]] = field(default_factory=dict)
    """(requester, bad provider): when tasks came to nothing there."""
    worst_share: float = 0.0
    """Most that an honest provider had unpaid with one requester, of its credit at that time."""
    worst_unpaid: int = 0
