"""Orders and bids of simulated agents: what a real one signs, unsigned (pure)."""

from coppermesh.agent.matching import Requirement
from coppermesh.agent.simulation import SECOND
from coppermesh.p2p.ids import Digest, MeshId, PeerId
from coppermesh.p2p.records import Bid, DeviceOffer, Order

ORDER_SECONDS = 30
BID_SECONDS = 15
JOB_SECONDS = 300


def order_for(
    mesh: MeshId,
    requester: PeerId,
    nonce: bytes,
    requirement: Requirement,
    now_us: int,
    *,
    tasks: int,
    budget: int,
    lease_us: int,
) -> Order:
    """An order for devices that meet the requirement."""
    return Order(
        version=1,
        mesh=mesh,
        requester=requester,
        nonce=nonce,
        job=bytes(16),
        issued_us=now_us,
        expires_us=now_us + ORDER_SECONDS * SECOND,
        device_kind=requirement.device_kind,
        model="",
        features=sorted(requirement.features),
        isolation=[],
        memory_bytes=requirement.memory_bytes,
        min_speed=0,
        tasks=tasks,
        copies=1,
        wall_limit_us=requirement.wall_limit_us,
        max_rate=requirement.max_rate,
        unit=requirement.unit,
        budget=budget,
        lease_us=lease_us,
        deadline_us=now_us + JOB_SECONDS * SECOND,
    )


def bid_on(
    mesh: MeshId,
    order: Digest,
    provider: PeerId,
    nonce: bytes,
    offer: DeviceOffer,
    now_us: int,
    *,
    rate: int,
    depth: int = 4,
    speed: int = 0,
) -> Bid:
    """A bid with a device as it is offered."""
    return Bid(
        version=1,
        mesh=mesh,
        provider=provider,
        order=order,
        nonce=nonce,
        issued_us=now_us,
        expires_us=now_us + BID_SECONDS * SECOND,
        device=offer.device,
        device_kind=offer.kind,
        device_name=offer.name,
        memory_bytes=offer.memory_bytes,
        rate=rate,
        unit=offer.unit,
        depth=depth,
        speed=speed,
    )
