"""Simulated requesters place orders, and providers answer them: the negotiation of a lease, without money (pure).

Each order goes the way of a real one: `survey` over what the requester's book holds, each candidate asked directly,
`decide` and `Reservations` at the provider, both sides' `Negotiation` machines, the requester's `Auction` with its
ranking, a lease, its end. A requester asks the best `MAX_ASKED` of its candidates, connected or not: an order is one
message to whom it concerns. One that finds nobody listens to twice as many shards from then on, and asks again once.
A liar bids on everything and never signs; a silent one is waited for until the window closes.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from blake3 import blake3

from coppermesh.agent.auction import (
    Abandon,
    Auction,
    BidArrived,
    Closed,
    Declined,
    Event,
    LeaseFailed,
    LeaseSigned,
    OfferLease,
    Silent,
    TimePassed,
    Withdraw,
)
from coppermesh.agent.matching import Requirement, bid_misfits, survey
from coppermesh.agent.negotiation import Move, Negotiation, Role
from coppermesh.agent.policy import BidTerms, DeviceState, ProviderState, decide
from coppermesh.agent.ranking import Offer, rank
from coppermesh.agent.reservations import Reservations
from coppermesh.agent.simulation import SECOND
from coppermesh.agent.simulation_deals import bid_on, order_for
from coppermesh.agent.simulation_mesh import MESH, MeshSimulation, SimPeer
from coppermesh.p2p.ids import Digest, PeerId
from coppermesh.p2p.records import Bid, DeviceOffer, Order

if TYPE_CHECKING:
    from random import Random

MAX_ASKED = 16
RETRY_SECONDS = 5.0
MEAN_ORDER_SECONDS = 60.0
MEAN_LEASE_SECONDS = 30.0
MAX_LEAVES = 16
ORDER_BYTES, REPLY_BYTES, LEASE_BYTES = 400, 450, 500
WALL_US = 60 * SECOND


@dataclass(slots=True)
class OrderCounts:
    """What became of all orders."""

    placed: int = 0
    possible: int = 0
    """Of these: an honest provider that fits was free somewhere in the mesh."""
    matched: int = 0
    """A lease was signed by both."""
    matched_possible: int = 0
    declines: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Round:
    """One order and its auction."""

    requester: SimPeer
    life: int
    requirement: Requirement
    order: Order
    order_id: Digest
    auction: Auction
    again: bool
    possible: bool
    began_us: int
    won: bool = False
    talks: dict[PeerId, Negotiation] = field(default_factory=dict)

    @property
    def is_alive(self) -> bool:
        """Its requester is still there to care."""
        return self.requester.up and self.requester.life == self.life


@dataclass(slots=True)
class _Desk:
    """The provider's side: its slots, and its half of each conversation."""

    reservations: Reservations
    talks: dict[Digest, Negotiation] = field(default_factory=dict)


class OrderSimulation:
    """Orders on a `MeshSimulation`. Make it before the mesh begins."""

    def __init__(self, mesh: MeshSimulation, rng: "Random") -> None:
        self.mesh = mesh
        self.heap = mesh.heap
        self.rng = rng
        self.counts = OrderCounts()
        self._desks: dict[int, _Desk] = {}
        mesh.on_up = self._on_up

    def _on_up(self, peer: SimPeer) -> None:
        if peer.offer is not None:
            self._desks[peer.index] = _Desk(Reservations({peer.offer.device: peer.offer.slots}))
        else:
            self.heap.after(30.0 + MEAN_ORDER_SECONDS * self.rng.random(), self._order, peer, peer.life)

    # The requester

    def _order(self, peer: SimPeer, life: int) -> None:
        if peer.up and peer.life == life:
            if not peer.liar:
                self.counts.placed += 1
                requirement = self._requirement()
                possible = self._is_possible(requirement)
                self.counts.possible += possible
                self._place(peer, requirement, again=False, possible=possible)
            self.heap.after(self.rng.expovariate(1 / MEAN_ORDER_SECONDS), self._order, peer, life)

    def _requirement(self) -> Requirement:
        kind = self.rng.choice(("cuda", "cuda", "cpu", "any"))
        memory = self.rng.choice((1, 2, 4, 8, 16, 24)) << 30
        rate = self.rng.randrange(300_000, 1_000_000)
        features = frozenset({"array-programs"})
        return Requirement(device_kind=kind, memory_bytes=memory, max_rate=rate, features=features)

    def _is_possible(self, requirement: Requirement) -> bool:
        """Ground truth, which no agent has."""
        return any(
            peer.up
            and not peer.liar
            and peer.said is not None
            and peer.offer is not None
            and _fits(peer.offer, requirement)
            and self._desks[peer.index].reservations.free(peer.offer.device) > 0
            for peer in self.mesh.peers
        )

    def _place(self, peer: SimPeer, requirement: Requirement, *, again: bool, possible: bool) -> None:
        now_us = self.heap.now_us
        known = [opened.record for opened in peer.book.current(now_us)]
        asked = [found.peer for found in survey(known, requirement, now_us).fitting[:MAX_ASKED]]
        order = order_for(
            MESH,
            peer.peer,
            self.rng.randbytes(16),
            requirement,
            now_us,
            tasks=4,
            budget=10**9,
            lease_us=3 * WALL_US,
        )
        order_id = Digest(blake3(order.nonce).digest())
        auction = Auction(asked, 1, now_us, partial(rank, draw=order_id))
        current = _Round(
            peer, peer.life, requirement, order, order_id, auction, again, possible, began_us=now_us
        )
        for candidate in asked:
            provider = self.mesh.by_id[candidate]
            talk = current.talks[candidate] = Negotiation(Role.REQUESTER, now_us)
            talk.step(Move.ORDER, Role.REQUESTER, now_us, "order")
            self.mesh.network.direct(provider.index, ORDER_BYTES)
            self.heap.after(self._latency(), self._asked, provider, current)
        if asked:
            self.heap.at(auction.deadline_us, self._feed, current, TimePassed())
        else:
            self._retry(current)

    def _latency(self) -> float:
        return 0.02 + 0.1 * self.rng.random()

    # The provider

    def _asked(self, provider: SimPeer, current: _Round) -> None:
        if not provider.up:
            return
        now_us = self.heap.now_us
        requester, order = PeerId(current.order.requester), current.order
        desk = self._desks[provider.index]
        assert provider.offer is not None
        if provider.liar:
            self._reply(provider, current, self._bid(provider, current, provider.offer, rate=1), "")
            return
        device = provider.offer.device
        state = ProviderState(
            mesh=MESH,
            devices=(DeviceState(provider.offer, desk.reservations.free(device)),),
            requester_holds=desk.reservations.held_by(requester),
            isolation=("landlock", "seccomp"),
        )
        talk = Negotiation(Role.PROVIDER, now_us)
        talk.step(Move.ORDER, Role.REQUESTER, now_us, "order")
        terms = decide(order, requester, state, now_us)
        if isinstance(terms, BidTerms) and desk.reservations.reserve(
            current.order_id, device, requester, terms.expires_us, now_us
        ):
            talk.step(Move.BID, Role.PROVIDER, now_us, "bid", terms.expires_us)
            desk.talks[current.order_id] = talk
            bid = self._bid(provider, current, terms.device, rate=terms.rate)
            self._reply(provider, current, bid, "")
            self._slots_changed(provider)
            self.heap.at(terms.expires_us + 1, self._expire, provider, provider.life)
        else:
            code = "busy" if isinstance(terms, BidTerms) else terms.code
            talk.step(Move.DECLINE, Role.PROVIDER, now_us, code)
            self._reply(provider, current, None, code)

    def _bid(self, provider: SimPeer, current: _Round, offer: DeviceOffer, *, rate: int) -> Bid:
        nonce = self.rng.randbytes(16)
        return bid_on(MESH, current.order_id, provider.peer, nonce, offer, self.heap.now_us, rate=rate)

    def _reply(self, provider: SimPeer, current: _Round, bid: Bid | None, code: str) -> None:
        self.heap.after(self._latency(), self._replied, provider, current, bid, code)

    def _slots_changed(self, provider: SimPeer) -> None:
        desk = self._desks[provider.index]
        if provider.busy != desk.reservations.busy_slots:
            provider.busy = desk.reservations.busy_slots
            self.mesh.announce(provider, provider.life)

    def _expire(self, provider: SimPeer, life: int) -> None:
        if provider.up and provider.life == life:
            now_us = self.heap.now_us
            desk = self._desks[provider.index]
            desk.reservations.expire(now_us)
            for order in [order for order, talk in desk.talks.items() if talk.expired(now_us)]:
                desk.talks.pop(order).step(Move.EXPIRE, Role.PROVIDER, now_us, "deadline")
            self._slots_changed(provider)

    # The auction

    def _replied(self, provider: SimPeer, current: _Round, bid: Bid | None, code: str) -> None:
        now_us = self.heap.now_us
        self.mesh.network.direct(current.requester.index, REPLY_BYTES)
        if not current.is_alive:
            return
        peer, talk = provider.peer, current.talks[provider.peer]
        if bid is None:
            talk.step(Move.DECLINE, Role.PROVIDER, now_us, code)
            self.counts.declines[code] += 1
            self._feed(current, Declined(peer))
        elif bid_misfits(bid, current.requirement):
            self._feed(current, Silent(peer))
        else:
            talk.step(Move.BID, Role.PROVIDER, now_us, "bid", bid.expires_us)
            self._feed(current, BidArrived(peer, Offer(bid, latency_us=now_us - current.began_us)))

    def _feed(self, current: _Round, event: Event) -> None:
        """Give the auction an event and carry out what it says."""
        if not current.is_alive:
            return
        auction = current.auction
        was_closed = auction.closed
        for instruction in auction.handle(event, self.heap.now_us):
            match instruction:
                case OfferLease(place):
                    talk = current.talks[place.peer]
                    talk.step(Move.LEASE_OFFER, Role.REQUESTER, self.heap.now_us, "lease")
                    provider = self.mesh.by_id[place.peer]
                    self.mesh.network.direct(provider.index, LEASE_BYTES)
                    self.heap.after(2 * self._latency(), self._signed, current, provider)
                case Abandon(peer):
                    self._abandon(current, self.mesh.by_id[peer])
                case Withdraw() | Closed():
                    pass
        if auction.closed and not was_closed and not current.won:
            self._retry(current)

    def _retry(self, current: _Round) -> None:
        """Nobody gave a lease: listen to more shards, and ask once more."""
        peer = current.requester
        if not current.again:
            peer.leaves_wanted = min(2 * peer.leaves_wanted, MAX_LEAVES)
            self.mesh.follow_shards(peer)
            self.heap.after(RETRY_SECONDS, self._again, current)

    def _again(self, current: _Round) -> None:
        if current.is_alive:
            self._place(current.requester, current.requirement, again=True, possible=current.possible)

    def _signed(self, current: _Round, provider: SimPeer) -> None:
        """The provider has the lease in front of it; what it answers reaches the requester at the same time."""
        if not current.is_alive:
            return
        now_us, talk = self.heap.now_us, current.talks[provider.peer]
        desk = self._desks.get(provider.index)
        its_talk = desk.talks.get(current.order_id) if desk is not None else None
        if provider.liar or not provider.up or desk is None or its_talk is None:
            talk.step(Move.CANCEL, Role.REQUESTER, now_us, "no signature")
            self._feed(current, LeaseFailed(provider.peer))
            return
        its_talk.step(Move.LEASE_OFFER, Role.REQUESTER, now_us, "lease")
        lease = Digest(blake3(b"lease" + current.order.nonce).digest())
        expires_us = now_us + current.order.lease_us
        if not desk.reservations.convert(current.order_id, lease, expires_us, now_us):
            for side in (its_talk, talk):
                side.step(Move.LEASE_REFUSE, Role.PROVIDER, now_us, "busy")
            self._feed(current, LeaseFailed(provider.peer))
            return
        for side in (its_talk, talk):
            side.step(Move.LEASE_ACCEPT, Role.PROVIDER, now_us, "signed", expires_us)
        current.won = True
        self.counts.matched += 1
        self.counts.matched_possible += current.possible
        seconds = min(self.rng.expovariate(1 / MEAN_LEASE_SECONDS), 100.0)
        self.heap.after(seconds, self._end, current, provider, provider.life, lease)
        self._feed(current, LeaseSigned(provider.peer))

    def _abandon(self, current: _Round, provider: SimPeer) -> None:
        talk = current.talks[provider.peer]
        talk.step(Move.ABANDON, Role.REQUESTER, self.heap.now_us, "another bid won")
        self.heap.after(self._latency(), self._abandoned, provider, provider.life, current.order_id)

    def _abandoned(self, provider: SimPeer, life: int, order: Digest) -> None:
        if provider.up and provider.life == life:
            desk = self._desks[provider.index]
            talk = desk.talks.pop(order, None)
            if talk is not None:
                talk.step(Move.ABANDON, Role.REQUESTER, self.heap.now_us, "another bid won")
            desk.reservations.release_bid(order)
            self._slots_changed(provider)

    def _end(self, current: _Round, provider: SimPeer, life: int, lease: Digest) -> None:
        if provider.up and provider.life == life:
            desk = self._desks[provider.index]
            desk.reservations.release_lease(lease)
            talk = desk.talks.pop(current.order_id, None)
            if talk is not None:
                talk.step(Move.CANCEL, Role.REQUESTER, self.heap.now_us, "done")
            desk.reservations.validate()
            self._slots_changed(provider)


def _fits(offer: DeviceOffer, requirement: Requirement) -> bool:
    return (
        requirement.device_kind in ("any", offer.kind)
        and offer.memory_bytes >= requirement.memory_bytes
        and offer.rate <= requirement.max_rate
    )
