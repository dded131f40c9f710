"""The auction: who gets a lease, and that nobody is left holding a slot; the ranking and its reasons; the histogram."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from coppermesh.agent.auction import (
    OPEN,
    WINDOW_US,
    Abandon,
    Auction,
    BidArrived,
    Bidder,
    Closed,
    Declined,
    Event,
    Instruction,
    LeaseFailed,
    LeaseSigned,
    OfferLease,
    Silent,
    Stop,
    TimePassed,
    Withdraw,
)
from coppermesh.agent.histogram import histogram
from coppermesh.agent.matching import Requirement
from coppermesh.agent.ranking import Offer, rank
from coppermesh.agent.speeds import OwnSpeeds
from coppermesh.agent.story import StoryLine, refusal_codes, tell
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.records import Bid

NOW = 1_700_000_000_000_000
GIB = 1 << 30
PEERS = [PeerId(bytes([65 + number]) * 32) for number in range(5)]
A, B, C, D, E = PEERS


def offer(peer: PeerId, rate: int = 1000, claimed: int = 0, **known: int) -> Offer:
    bid = Bid(
        version=1, mesh=bytes(16), provider=peer, order=bytes(32), nonce=bytes(16), issued_us=NOW,
        expires_us=NOW + 15_000_000, device="gpu0", device_kind="cuda", device_name="A GPU", memory_bytes=GIB,
        rate=rate, unit="usd", depth=4, speed=claimed,
    )  # fmt: skip
    return Offer(bid, **known)


def bid(peer: PeerId, rate: int = 1000) -> BidArrived:
    return BidArrived(peer, offer(peer, rate))


class Desk:
    def __init__(self, *asked: PeerId, count: int = 1) -> None:
        self.now_us = NOW
        self.auction = Auction(asked, count, NOW, rank)

    def tell(self, *events: Event) -> list[Instruction]:
        return [one for event in events for one in self.auction.handle(event, self.now_us)]


def names(instructions: list[Instruction]) -> list[tuple[str, PeerId | None]]:
    return [
        (type(one).__name__, one.place.peer if isinstance(one, OfferLease) else getattr(one, "peer", None))
        for one in instructions
    ]


def test_the_window_closes_when_all_have_answered_and_the_best_gets_the_lease() -> None:
    desk = Desk(A, B, C)
    assert desk.tell(bid(A, 3000), Declined(B)) == []
    assert names(desk.tell(bid(C, 2000))) == [("OfferLease", C)]
    assert names(desk.tell(LeaseSigned(C))) == [("Abandon", A), ("Closed", None)]


def test_the_window_closes_after_two_seconds_and_who_is_late_is_let_go() -> None:
    desk = Desk(A, B)
    desk.tell(bid(A))
    desk.now_us += WINDOW_US
    assert names(desk.tell(TimePassed())) == [("Abandon", B), ("OfferLease", A)]
    assert names(desk.tell(bid(B))) == [("Abandon", B)], "its bid holds a slot, and came too late"


def test_a_refused_lease_goes_to_the_next_best() -> None:
    desk = Desk(A, B, C)
    desk.tell(bid(A, 1000), bid(B, 2000))
    assert names(desk.tell(bid(C, 4000))) == [("OfferLease", A)]
    assert names(desk.tell(LeaseFailed(A))) == [("OfferLease", B)]
    assert names(desk.tell(LeaseSigned(B))) == [("Abandon", C), ("Closed", None)]


def test_several_leases_are_signed_at_once() -> None:
    desk = Desk(A, B, C, count=2)
    desk.tell(bid(A, 1000), bid(B, 2000))
    assert names(desk.tell(bid(C, 4000))) == [("OfferLease", A), ("OfferLease", B)]
    assert desk.tell(LeaseSigned(B)) == []
    assert names(desk.tell(LeaseFailed(A))) == [("OfferLease", C)]
    assert names(desk.tell(LeaseFailed(C))) == [("Closed", None)]


def test_when_stopped_everybody_who_may_hold_a_slot_is_told() -> None:
    desk = Desk(A, B, C, D)
    desk.tell(bid(A), Declined(B))
    assert names(desk.tell(Stop())) == [("Abandon", A), ("Abandon", C), ("Abandon", D), ("Closed", None)]
    desk = Desk(A, B)
    desk.tell(bid(A, 1000), bid(B, 2000))
    assert names(desk.tell(Stop())) == [("Withdraw", A), ("Abandon", B), ("Closed", None)]
    assert names(desk.tell(LeaseSigned(A))) == [("Withdraw", A)], "its signature crossed"


def test_a_dry_run_ranks_and_lets_everybody_go() -> None:
    desk = Desk(A, B, count=0)
    desk.tell(bid(A, 3000))
    assert names(desk.tell(bid(B, 2000))) == [("Abandon", A), ("Abandon", B), ("Closed", None)]
    assert [place.peer for place in desk.auction.places] == [B, A]


class World(RuleBasedStateMachine):
    """Providers that hold slots, messages that are lost, doubled and late; in the end no slot is held for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.now_us = NOW
        self.count = 2
        self.auction = Auction(PEERS, self.count, NOW, rank)
        self.held: dict[PeerId, str] = {}
        """Slots at providers: `bid` or `lease`, freed by what they are told."""
        self.offered: set[PeerId] = set()
        self.granted: set[PeerId] = set()
        self.lost: set[PeerId] = set()

    def tell(self, event: Event) -> None:
        for instruction in self.auction.handle(event, self.now_us):
            match instruction:
                case OfferLease(place):
                    assert place.peer not in self.offered, "one lease is offered to each at most"
                    self.offered.add(place.peer)
                case Abandon(peer):
                    assert peer not in self.granted, "a lease that was signed is not abandoned"
                    if self.held.get(peer) == "bid":
                        del self.held[peer]
                case Withdraw(peer):
                    assert peer not in self.granted
                    self.held.pop(peer, None)
                case Closed():
                    assert self.auction.closed

    @rule(peer=st.sampled_from(PEERS), rate=st.integers(0, 5000), lost=st.booleans())
    def answer_with_a_bid(self, peer: PeerId, rate: int, lost: bool) -> None:
        state = self.auction.bidders[peer]
        if state in (Bidder.ASKED, Bidder.SILENT) and peer not in self.lost:
            self.held.setdefault(peer, "bid")
        if lost and state is Bidder.ASKED:
            self.lost.add(
                peer
            )  # on a line that breaks: the shell reports that, and the provider frees the slot
            self.held.pop(peer, None)
            self.tell(Silent(peer))
        else:
            self.tell(bid(peer, rate))

    @rule(peer=st.sampled_from(PEERS))
    def decline(self, peer: PeerId) -> None:
        if self.auction.bidders[peer] is Bidder.ASKED:
            self.held.pop(peer, None)
        self.tell(Declined(peer))

    @rule(peer=st.sampled_from(PEERS), answer=st.sampled_from(["signed", "refused", "late"]))
    def answer_an_offer(self, peer: PeerId, answer: str) -> None:
        """Also to offers that were withdrawn, and again to those that were answered."""
        if peer not in self.offered:
            return
        if answer != "signed":
            if self.auction.bidders[peer] is Bidder.OFFERED:
                self.held.pop(peer, None)  # whoever reports the failure has ended the lease
            self.tell(LeaseFailed(peer))
            return
        if self.auction.bidders[peer] is Bidder.OFFERED:
            self.held[peer] = "lease"
            self.granted.add(peer)
        self.tell(LeaseSigned(peer))

    @rule(peer=st.sampled_from(PEERS))
    def lose(self, peer: PeerId) -> None:
        self.tell(Silent(peer))

    @rule(milliseconds=st.integers(0, 1500))
    def pass_time(self, milliseconds: int) -> None:
        self.now_us += 1000 * milliseconds
        self.tell(TimePassed())

    @rule()
    def stop(self) -> None:
        self.tell(Stop())

    @invariant()
    def no_more_leases_than_wanted(self) -> None:
        states = list(self.auction.bidders.values())
        assert states.count(Bidder.LEASED) + states.count(Bidder.OFFERED) <= self.count

    @invariant()
    def a_closed_auction_holds_no_slot_but_its_leases(self) -> None:
        if self.auction.closed:
            assert not OPEN & set(self.auction.bidders.values())
            assert {peer for peer, what in self.held.items() if what == "lease"} == self.granted
            assert "bid" not in self.held.values(), "a ghost allocation"

    @invariant()
    def the_window_is_over_in_time(self) -> None:
        if self.now_us >= self.auction.deadline_us and not self.auction.closed:
            self.tell(TimePassed())
            assert Bidder.ASKED not in self.auction.bidders.values()


TestAuction = World.TestCase
TestAuction.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


class TestRanking:
    def order(self, *offers: Offer, draw: bytes = b"") -> list[PeerId]:
        return [place.peer for place in rank(offers, draw)]

    def test_the_same_work_for_less_money_comes_first(self) -> None:
        fast_and_dear, slow_and_cheap = offer(A, 3000, speed=400), offer(B, 1000, speed=100)
        assert self.order(slow_and_cheap, fast_and_dear) == [A, B]
        assert "costs more there" in rank([slow_and_cheap, fast_and_dear])[1].reason

    def test_own_measurement_comes_before_claims(self) -> None:
        boaster, honest = offer(A, claimed=10**9, speed=100), offer(B, claimed=10, speed=200)
        assert self.order(boaster, honest) == [B, A]

    def test_a_claim_buys_nothing_beside_who_was_measured(self) -> None:
        stranger = offer(A, claimed=10**9)
        assert self.order(stranger, offer(B, speed=200), offer(C, speed=100))[0] == B

    def test_a_bad_reputation_costs(self) -> None:
        assert self.order(offer(A, 1000, reputation=200), offer(B, 1500, reputation=900)) == [B, A]

    def test_of_equals_the_better_reputation_then_data_then_latency(self) -> None:
        assert self.order(offer(A, 1000, missing_bytes=5 << 20), offer(B, 1000)) == [B, A]
        assert "more has to be sent" in rank([offer(A, missing_bytes=5 << 20), offer(B)])[1].reason
        assert self.order(offer(A, latency_us=90_000), offer(B, latency_us=5_000)) == [B, A]
        assert self.order(offer(A, 0, reputation=400), offer(B, 0, reputation=900)) == [B, A], "free work too"

    def test_what_is_alike_is_drawn_by_the_order(self) -> None:
        alike = [offer(peer) for peer in PEERS]
        firsts = {self.order(*alike, draw=bytes([number]) * 32)[0] for number in range(64)}
        assert len(firsts) > 2, "not all requesters take the same one"
        assert self.order(*alike, draw=b"x" * 32) == self.order(*reversed(alike), draw=b"x" * 32)

    def test_each_place_says_what_it_offers(self) -> None:
        (place,) = rank([offer(A, 30_000, speed=7, reputation=612, missing_bytes=3 << 20, latency_us=4_200)])
        assert place.reason == (
            "0.03 usd/h, 7 Mop/s measured here, reputation 612 of 1000, 3 MiB to send, answered in 4 ms"
        )


class TestSpeeds:
    def test_a_speed_counts_from_three_tasks_on_and_for_its_program_alone(self) -> None:
        speeds = OwnSpeeds()
        for _ in range(2):
            speeds.note(A, b"p", 5e6, 1000)
        assert speeds.speed(A, {b"p"}) == 0
        speeds.note(A, b"p", 5e6, 1000)
        assert speeds.speed(A, {b"p"}) == 5000
        assert speeds.speed(A, {b"q"}) == speeds.speed(B, {b"p"}) == 0
        assert (speeds.task_us(A, {b"p"}), speeds.task_us(B, {b"p"}), speeds.task_us(None, {b"p"})) == (
            1000,
            None,
            1000,
        )


class TestHistogram:
    NEED = Requirement(memory_bytes=24 * GIB, max_rate=100_000)

    def test_the_issues_own_example(self) -> None:
        codes = {PeerId(bytes([number]) * 32): "memory" for number in range(7)}
        codes |= {A: "rate", B: "rate"}
        assert histogram(codes, self.NEED) == "7 of 9 lack 24 GiB, 2 ask more than your maximum of 0.10 usd/h"

    def test_every_code_has_words_without_the_order_too(self) -> None:
        assert (
            histogram({A: "memory", B: "a-new-code"})
            == "1 of 2 says a-new-code, 1 lacks the memory you asked for"
        )
        assert histogram({}) == ""

    def test_a_story_counts_the_last_word_of_each(self) -> None:
        def line(kind: str, text: str, peer: PeerId) -> StoryLine:
            return StoryLine(bytes(16), NOW, "order 12345678", kind, peer, None, text)

        lines = [
            line("decline", "busy: come back later", A),
            line("decline", "memory: too small", B),
            line("note", "not asked: rate: cpu asks too much", C),
            line("silent", "silent: no answer", D),
            line("bid", "A GPU at 0.03 usd/h", A),
        ]
        assert refusal_codes(lines) == {B: "memory", C: "rate", D: "silent"}
        assert any(text.startswith("in short: 1 of 4 bid, 1 lacks the memory ") for text in tell(lines))
        paid = [*lines, line("accepted", "receipt", A), line("decline", "busy: with this very job", A)]
        assert any(text.startswith("in short: 1 of 4 bid, ") for text in tell(paid))
