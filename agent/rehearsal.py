"""Two peers that trade on paper: valid signed records for both sides without a network, a worker or a clock (pure).

For tests, the ledger's benchmark and simulations. Keys and nonces come from small numbers, so that the same calls give
the same bytes; such keys protect nothing.
"""

from dataclasses import dataclass
from typing import TypeVar

from coppermesh.agent.leases import build_lease
from coppermesh.agent.ledger import LeaseAgreed, LeaseOffered, ReceiptIssued, ReceiptSettled
from coppermesh.agent.receipts import LaneHead, RunFacts, build_countersignature, build_receipt
from coppermesh.p2p.envelope import Opened, open_verified, sign_record
from coppermesh.p2p.ids import MeshId, mesh_id
from coppermesh.p2p.records import (
    Bid,
    Countersignature,
    Lease,
    Order,
    Receipt,
    Record,
    SignedRecord,
    Task,
)
from coppermesh.p2p.signing import PeerKey

R = TypeVar("R", bound=Record)

START_US = 1_790_000_000_000_000
"""When everything happens, in microseconds since the epoch."""
PROGRAM = bytes([7]) * 32
OUTPUT = bytes([9]) * 32
RATE = 3_600_000
"""Money per device-hour: one unit of 10^-6 for each millisecond."""


def rehearsal_key(number: int) -> PeerKey:
    """The key of the peer called `number`."""
    return PeerKey(number.to_bytes(32, "big"))


@dataclass(frozen=True, slots=True)
class Deal:
    """A lease with the order and the bid that it grew from, signed by both."""

    provider: PeerKey
    requester: PeerKey
    order: Opened[Order]
    bid: Opened[Bid]
    lease: Opened[Lease]
    """As signed by the requester."""
    agreed: SignedRecord
    """As signed by the provider."""

    def offered(self) -> LeaseOffered:
        """The requester's first entry."""
        return LeaseOffered(self.lease.signed, self.order.signed, self.bid.signed)

    def answered(self) -> LeaseAgreed:
        """The requester's second entry."""
        return LeaseAgreed(self.lease.id, self.agreed)

    def granted(self) -> LeaseAgreed:
        """The provider's entry."""
        signed = (self.lease.signed, self.order.signed, self.bid.signed)
        return LeaseAgreed(self.lease.id, self.agreed, *signed)

    def task(
        self, number: int, *, job: int = 1, index: int | None = None, max_amount: int = 10**6
    ) -> Opened[Task]:
        """Task `number` of the lease; by default that is its index in the job too."""
        lease = self.lease.record
        task = Task(
            version=1,
            mesh=lease.mesh,
            lease=self.lease.id,
            number=number,
            requester=lease.requester,
            job=job.to_bytes(16, "big"),
            index=number if index is None else index,
            program=PROGRAM,
            inputs=[bytes([8]) * 32],
            max_amount=max_amount,
            issued_us=lease.issued_us,
            expires_us=lease.expires_us,
        )
        return _sign(self.requester, task)

    def receipt(self, task: Opened[Task], head: LaneHead, run: RunFacts | None = None) -> Opened[Receipt]:
        """The provider's receipt for a task at the head of the lane."""
        facts = run if run is not None else run_facts()
        receipt = build_receipt(self.lease.record, task, head, facts, facts.ended_us)
        return _sign(self.provider, receipt)

    def answer(
        self, receipt: Opened[Receipt], head: LaneHead, verdict: str = "ok", *, at_us: int = START_US
    ) -> Opened[Countersignature]:
        """The requester's countersignature; `head` is the lane before the receipt."""
        return _sign(self.requester, build_countersignature(receipt, verdict, head, at_us))


def make_deal(
    number: int, *, provider: int = 1, requester: int = 2, budget: int = 10**9, mesh: MeshId | None = None
) -> Deal:
    """Lease `number` between two peers called by number."""
    seller, buyer = rehearsal_key(provider), rehearsal_key(requester)
    nonce = number.to_bytes(8, "big") + provider.to_bytes(4, "big") + requester.to_bytes(4, "big")
    where = mesh if mesh is not None else mesh_id("rehearsal")
    order = _sign(buyer, make_order(buyer, where, nonce, budget))
    bid = _sign(seller, make_bid(seller, order, nonce))
    lease = build_lease(order, bid, nonce, nonce, START_US)
    signed = _sign(buyer, lease)
    return Deal(seller, buyer, order, bid, signed, sign_record(seller, lease))


def make_order(requester: PeerKey, mesh: MeshId, nonce: bytes, budget: int) -> Order:
    """An order for one CPU for an hour."""
    return Order(
        version=1,
        mesh=mesh,
        requester=requester.peer,
        nonce=nonce,
        job=nonce,
        issued_us=START_US - 2000,
        expires_us=START_US + 60_000_000,
        device_kind="any",
        model="",
        features=[],
        isolation=[],
        memory_bytes=1 << 20,
        min_speed=0,
        tasks=100,
        copies=1,
        wall_limit_us=60_000_000,
        max_rate=2 * RATE,
        unit="usd",
        budget=budget,
        lease_us=3_600_000_000,
        deadline_us=START_US + 3_600_000_000,
    )


def make_bid(provider: PeerKey, order: Opened[Order], nonce: bytes) -> Bid:
    """A bid that answers such an order."""
    return Bid(
        version=1,
        mesh=order.record.mesh,
        provider=provider.peer,
        order=order.id,
        nonce=nonce,
        issued_us=START_US - 1000,
        expires_us=START_US + 60_000_000,
        device="cpu",
        device_kind="cpu",
        device_name="rehearsal",
        memory_bytes=1 << 30,
        rate=RATE,
        unit="usd",
        depth=4,
        speed=0,
    )


def run_facts(billed_us: int = 2500, *, status: str = "ok") -> RunFacts:
    """A run of that length."""
    return RunFacts(
        status=status,
        code="ok" if status == "ok" else "crashed",
        outputs=[OUTPUT] if status == "ok" else [],
        started_us=START_US,
        ended_us=START_US + billed_us,
        billed_us=billed_us,
        device_name="rehearsal",
    )


def issue(receipt: Opened[Receipt]) -> ReceiptIssued:
    """The provider's entry for a receipt."""
    return ReceiptIssued(receipt.signed, ((OUTPUT, 5),))


def settle(receipt: Opened[Receipt], answer: Opened[Countersignature]) -> ReceiptSettled:
    """The requester's entry for a receipt and its answer."""
    return ReceiptSettled(receipt.signed, answer.signed)


def _sign(key: PeerKey, record: R) -> Opened[R]:
    return open_verified(type(record), sign_record(key, record))
