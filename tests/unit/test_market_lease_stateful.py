"""An order's way from question to lease between one requester and three providers, over a network that loses, doubles
and reorders every message, with crashes of either side at any step.

What decides is real: `Auction`, `rank`, both sides' `Negotiation` machines, `decide` and `Reservations`. The model is
the network, the crashes, and what the shells do with each answer. What must hold: a slot is never held twice; whatever
is held belongs to an order or a lease that is alive, or to a message on its way that will free it; when everything has
arrived, nothing is held but leases that both sides have; and after those have expired, nothing.
"""

import os
from dataclasses import dataclass, field

import msgspec
import pytest
from blake3 import blake3
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from coppermesh.agent.auction import (
    Abandon,
    Auction,
    BidArrived,
    Bidder,
    Declined,
    Event,
    LeaseFailed,
    LeaseSigned,
    OfferLease,
    Silent,
    Stop,
    TimePassed,
    Withdraw,
)
from coppermesh.agent.negotiation import LeaseState, Move, Negotiation, Role
from coppermesh.agent.policy import BidTerms, DeviceState, ProviderState, decide
from coppermesh.agent.ranking import Offer, rank
from coppermesh.agent.reservations import HoldKind, Reservations
from coppermesh.p2p.errors import LocalProtocolError, RemoteProtocolError
from coppermesh.p2p.ids import Digest, MeshId, PeerId
from coppermesh.p2p.records import Bid, DeviceOffer, Order

RUNS = int(os.environ.get("COPPERMESH_MARKET_RUNS", "60"))
NOW = 1_700_000_000_000_000
SECOND = 1_000_000
MESH = MeshId(b"m" * 16)
ME = PeerId(b"r" * 32)
PEERS = [PeerId(bytes([65 + number]) * 32) for number in range(3)]
LEASE_US = 60 * SECOND
DEVICE = DeviceOffer(
    device="cpu", kind="cpu", name="A CPU", rate=3600, unit="usd", memory_bytes=1 << 30, slots=1,
    features=["array-programs"], meter="none", compute_capability=None, uuid=None, driver=None, total_bytes=None,
)  # fmt: skip
ORDER = Order(
    version=1, mesh=MESH, requester=ME, nonce=bytes(16), job=bytes(16), issued_us=NOW, expires_us=NOW + 30 * SECOND,
    device_kind="any", model="", features=["array-programs"], isolation=[], memory_bytes=1 << 20, min_speed=0,
    tasks=4, copies=1, wall_limit_us=10 * SECOND, max_rate=100_000, unit="usd", budget=10**6, lease_us=LEASE_US,
    deadline_us=NOW + 10**12,
)  # fmt: skip
picks = st.integers(0, 10**6)


def name_of(*parts: bytes) -> Digest:
    return Digest(blake3(b"".join(parts)).digest())


@dataclass
class Message:
    """On its way. `kind` is the method's name, or `answer-` and it."""

    kind: str
    provider: PeerId
    order: Digest
    lease: Digest | None = None
    bid: Bid | None = None
    agreed: bool = False
    expires_us: int = 0
    """Of the lease, as both signed it."""
    life: int = 0
    """Which run of the provider it comes from or goes to; a connection does not outlive either."""


@dataclass
class Shop:
    """A provider: what `Provider` keeps."""

    reservations: Reservations
    talks: dict[Digest, Negotiation] = field(default_factory=dict)
    bids: dict[Digest, Bid] = field(default_factory=dict)
    leases: dict[Digest, tuple[Digest, int]] = field(default_factory=dict)
    """Lease: its order and expiry."""
    abandoned: set[Digest] = field(default_factory=set)
    life: int = 0


class Market(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_us = NOW
        self.shops = {peer: Shop(Reservations({"cpu": 1})) for peer in PEERS}
        self.network: list[Message] = []
        self.orders = 0
        self.auctions: dict[Digest, Auction] = {}
        self.offered: dict[tuple[Digest, PeerId], Digest] = {}
        self.held: dict[Digest, tuple[PeerId, int]] = {}
        """The requester's leases: with whom, and until when."""
        self.ever_signed: set[tuple[PeerId, Digest]] = set()

    # The requester

    @rule(count=st.integers(0, 2))
    def order(self, count: int) -> None:
        self.orders += 1
        order = name_of(b"order", self.orders.to_bytes(4))
        self.auctions[order] = Auction(PEERS, count, self.now_us, rank)
        for peer in PEERS:
            self.send(Message("order", peer, order))

    @precondition(lambda self: any(not one.closed for one in self.auctions.values()))
    @rule(pick=picks)
    def stop(self, pick: int) -> None:
        running = sorted(order for order, one in self.auctions.items() if not one.closed)
        self.tell(running[pick % len(running)], Stop())

    @precondition(lambda self: bool(self.held))
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        lease = sorted(self.held)[pick % len(self.held)]
        provider, _ = self.held.pop(lease)
        self.send(Message("cancel", provider, name_of(), lease))

    def tell(self, order: Digest, event: Event) -> None:
        auction = self.auctions.get(order)
        if auction is None:
            return
        for instruction in auction.handle(event, self.now_us):
            match instruction:
                case OfferLease(place):
                    lease = name_of(b"lease", order, place.peer)
                    self.offered[order, place.peer] = lease
                    self.send(Message("lease", place.peer, order, lease))
                case Abandon(peer):
                    self.send(Message("abandon", peer, order))
                case Withdraw(peer):
                    self.send(Message("cancel", peer, order, self.offered[order, peer]))

    # The network

    def send(self, message: Message) -> None:
        message.life = self.shops[message.provider].life
        self.network.append(message)

    @precondition(lambda self: bool(self.network))
    @rule(pick=picks)
    def deliver(self, pick: int) -> None:
        """Any message, whatever was sent before it."""
        self.arrive(self.network.pop(pick % len(self.network)))

    @precondition(lambda self: bool(self.network))
    @rule(pick=picks)
    def double(self, pick: int) -> None:
        self.arrive(self.network[pick % len(self.network)])

    @precondition(lambda self: bool(self.network))
    @rule(pick=picks)
    def lose(self, pick: int) -> None:
        """With its connection: both sides notice."""
        self.cut(self.network[pick % len(self.network)].provider)

    def cut(self, peer: PeerId) -> None:
        """The connection breaks: what is on its way there and back is lost."""
        shop = self.shops[peer]
        shop.life += 1
        self.network = [message for message in self.network if message.provider != peer]
        for order, talk in list(shop.talks.items()):
            if talk.state is LeaseState.BID:
                shop.reservations.release_bid(order)
        for lease in list(shop.leases):
            self.end_at(shop, lease)
        for lease in [lease for lease, (provider, _) in self.held.items() if provider == peer]:
            del self.held[lease]
        for order, auction in self.auctions.items():
            state = auction.bidders[peer]
            if state is Bidder.ASKED:
                self.tell(order, Silent(peer))
            elif state is Bidder.OFFERED:
                self.tell(order, LeaseFailed(peer))

    def arrive(self, message: Message) -> None:
        shop = self.shops[message.provider]
        if message.life != shop.life:
            return
        shop.reservations.expire(self.now_us)
        match message.kind:
            case "order":
                self.at_order(shop, message)
            case "abandon":
                talk = shop.talks.get(message.order)
                if talk is None:
                    shop.abandoned.add(message.order)
                elif talk.state in (LeaseState.BID, LeaseState.ABANDONED):
                    talk.step(Move.ABANDON, Role.REQUESTER, self.now_us, "abandon")
                    shop.reservations.release_bid(message.order)
            case "lease":
                self.at_lease(shop, message)
            case "cancel":
                assert message.lease is not None
                self.end_at(shop, message.lease)
            case "answer-order":
                auction = self.auctions.get(message.order)
                if auction is None or auction.bidders[message.provider] is not Bidder.ASKED:
                    return  # nobody waits for it any more
                bid = message.bid
                offer = None if bid is None else BidArrived(message.provider, Offer(bid))
                self.tell(message.order, offer or Declined(message.provider))
            case "answer-lease":
                self.answered(message)

    # A provider

    def at_order(self, shop: Shop, message: Message) -> None:
        peer, order = message.provider, message.order
        bid = shop.bids.get(order)
        if bid is None and order not in shop.abandoned:
            asked = msgspec.structs.replace(
                ORDER, nonce=order[:16], issued_us=self.now_us, expires_us=self.now_us + 30 * SECOND
            )
            state = ProviderState(mesh=MESH, devices=(DeviceState(DEVICE, shop.reservations.free("cpu")),))
            terms = decide(asked, ME, state, self.now_us)
            if isinstance(terms, BidTerms) and shop.reservations.reserve(
                order, "cpu", ME, terms.expires_us, self.now_us
            ):
                talk = Negotiation(Role.PROVIDER, self.now_us)
                talk.step(Move.ORDER, Role.REQUESTER, self.now_us, "order")
                talk.step(Move.BID, Role.PROVIDER, self.now_us, "bid", terms.expires_us)
                bid = Bid(
                    version=1, mesh=MESH, provider=peer, order=order, nonce=bytes(16), issued_us=self.now_us,
                    expires_us=terms.expires_us, device="cpu", device_kind="cpu", device_name="A CPU",
                    memory_bytes=1 << 30, rate=terms.rate, unit="usd", depth=8, speed=0,
                )  # fmt: skip
                shop.talks[order], shop.bids[order] = talk, bid
        if bid is None:
            shop.abandoned.add(order)  # what was declined once is not bid on when it comes again
        self.send(Message("answer-order", peer, order, bid=bid))

    def at_lease(self, shop: Shop, message: Message) -> None:
        peer, order, lease = message.provider, message.order, message.lease
        assert lease is not None
        talk = shop.talks.get(order)
        agreed = lease in shop.leases
        expires_us = shop.leases[lease][1] if agreed else self.now_us + LEASE_US
        if talk is not None and not agreed and talk.state is LeaseState.BID:
            talk.step(Move.LEASE_OFFER, Role.REQUESTER, self.now_us, "lease")
            agreed = shop.reservations.convert(order, lease, expires_us, self.now_us)
            talk.step(
                Move.LEASE_ACCEPT if agreed else Move.LEASE_REFUSE, Role.PROVIDER, self.now_us, "answer"
            )
            if agreed:
                assert (peer, lease) not in self.ever_signed, "one lease is signed once"
                self.ever_signed.add((peer, lease))
                shop.leases[lease] = (order, expires_us)
        self.send(Message("answer-lease", peer, order, lease, agreed=agreed, expires_us=expires_us))

    def end_at(self, shop: Shop, lease: Digest) -> None:
        """A lease ends at its provider; one that was never signed there is refused from then on."""
        found = shop.leases.pop(lease, None)
        if found is None:
            for order, talk in shop.talks.items():
                if name_of(b"lease", order, self.peer_of(shop)) == lease and talk.state is LeaseState.BID:
                    shop.reservations.release_bid(order)
            return
        shop.reservations.release_lease(lease)
        talk = shop.talks[found[0]]
        if talk.state is LeaseState.LEASED:
            talk.step(Move.CANCEL, Role.REQUESTER, self.now_us, "ended")

    def peer_of(self, shop: Shop) -> PeerId:
        return next(peer for peer, known in self.shops.items() if known is shop)

    def answered(self, message: Message) -> None:
        auction = self.auctions.get(message.order)
        assert message.lease is not None
        state = None if auction is None else auction.bidders[message.provider]
        if state is Bidder.OFFERED and message.agreed:
            self.held[message.lease] = (message.provider, message.expires_us)
            self.tell(message.order, LeaseSigned(message.provider))
        elif state is Bidder.OFFERED:
            self.tell(message.order, LeaseFailed(message.provider))
            self.send(Message("cancel", message.provider, message.order, message.lease))
        elif message.agreed and message.lease not in self.held:
            self.send(Message("cancel", message.provider, message.order, message.lease))

    # Time and crashes

    @rule(milliseconds=st.integers(0, 20_000))
    def pass_time(self, milliseconds: int) -> None:
        self.now_us += 1000 * milliseconds
        for order in list(self.auctions):
            self.tell(order, TimePassed())
        for lease in [lease for lease, (_, until_us) in self.held.items() if until_us <= self.now_us]:
            del self.held[lease]
        for shop in self.shops.values():
            shop.reservations.expire(self.now_us)
            for lease in [lease for lease, (_, until_us) in shop.leases.items() if until_us <= self.now_us]:
                self.end_at(shop, lease)

    @rule(peer=st.sampled_from(PEERS))
    def crash_a_provider(self, peer: PeerId) -> None:
        """Killed and started again: what it had in memory is gone, and so are its connections."""
        life = self.shops[peer].life
        self.cut(peer)
        self.shops[peer] = Shop(Reservations({"cpu": 1}), life=life + 1)

    @rule()
    def crash_the_requester(self) -> None:
        self.auctions.clear()
        self.held.clear()
        for peer in PEERS:
            self.cut(peer)

    # What must hold

    @invariant()
    def no_slot_is_held_twice(self) -> None:
        for shop in self.shops.values():
            shop.reservations.validate()
            assert len(shop.reservations.holds()) <= 1

    @invariant()
    def what_is_held_is_alive_or_about_to_be_freed(self) -> None:
        for peer, shop in self.shops.items():
            on_the_way = [message for message in self.network if message.provider == peer]
            for hold in shop.reservations.holds():
                if hold.kind is HoldKind.LEASE:
                    assert hold.key in shop.leases, "a hold without a lease"
                    continue
                auction = self.auctions.get(hold.key)
                waiting = auction is not None and auction.bidders[peer] in (
                    Bidder.ASKED,
                    Bidder.BID,
                    Bidder.OFFERED,
                )
                freeing = any(message.order == hold.key for message in on_the_way)
                assert waiting or freeing or hold.expires_us <= self.now_us, "a ghost allocation"

    @invariant()
    def terminal_states_free_the_device(self) -> None:
        for shop in self.shops.values():
            held = {hold.key for hold in shop.reservations.holds()}
            for order, talk in shop.talks.items():
                if talk.is_terminal:
                    assert order not in held
            for lease, (order, _) in shop.leases.items():
                assert not shop.talks[order].is_terminal
                assert lease in held or self.now_us >= shop.leases[lease][1]

    def teardown(self) -> None:
        """Everything arrives, then time passes."""
        for _ in range(20_000):
            if not self.network:
                break
            self.arrive(self.network.pop(0))
        assert not self.network, "messages without end"
        self.pass_time(2_100)
        while self.network:
            self.arrive(self.network.pop(0))
        self.pass_time(0)
        for peer, shop in self.shops.items():
            mine = {lease for lease, (provider, _) in self.held.items() if provider == peer}
            assert {hold.key for hold in shop.reservations.holds()} == mine == set(shop.leases)
        self.pass_time(70_000)
        assert not any(shop.reservations.holds() for shop in self.shops.values())
        assert not self.held


TestMarket = Market.TestCase
TestMarket.settings = settings(max_examples=RUNS, stateful_step_count=50, deadline=None, print_blob=True)


@pytest.mark.slow
def test_the_market_five_hundred_times() -> None:
    run_state_machine_as_test(
        Market, settings=settings(max_examples=500, stateful_step_count=50, deadline=None, print_blob=True)
    )


def test_a_breach_is_an_error_here() -> None:
    """The model's steps are checked by the real tables: a wrong one would raise."""
    talk = Negotiation(Role.PROVIDER, NOW)
    with pytest.raises((LocalProtocolError, RemoteProtocolError)):
        talk.step(Move.LEASE_OFFER, Role.REQUESTER, NOW, "too soon")
