"""Slots: never more held than there are, and none held without a bid or lease that is alive."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from coppermesh.agent.reservations import HoldKind, Reservations
from coppermesh.p2p.ids import Digest, PeerId

ALICE, BOB = PeerId(b"a" * 32), PeerId(b"b" * 32)


def digest(number: int) -> Digest:
    return Digest(number.to_bytes(32, "big"))


def test_a_slot_goes_from_bid_to_lease_and_comes_back() -> None:
    slots = Reservations({"gpu0": 1})
    assert slots.reserve(digest(1), "gpu0", ALICE, expires_us=10, now_us=0)
    assert not slots.reserve(digest(2), "gpu0", BOB, expires_us=10, now_us=0)
    assert slots.convert(digest(1), digest(101), expires_us=100, now_us=9)
    assert slots.free("gpu0") == 0
    assert slots.held_by(ALICE) == 1
    assert slots.release_lease(digest(101))
    assert not slots.release_lease(digest(101)), "releasing twice frees one slot"
    assert slots.free("gpu0") == 1


def test_of_two_awards_for_one_slot_one_wins() -> None:
    slots = Reservations({"gpu0": 1})
    assert slots.reserve(digest(1), "gpu0", ALICE, expires_us=10, now_us=0)
    assert not slots.convert(digest(2), digest(102), expires_us=100, now_us=1), "that order holds nothing"
    assert slots.convert(digest(1), digest(101), expires_us=100, now_us=1)


def test_a_bid_that_expired_holds_nothing_and_cannot_become_a_lease() -> None:
    slots = Reservations({"gpu0": 1})
    slots.reserve(digest(1), "gpu0", ALICE, expires_us=10, now_us=0)
    assert slots.next_expiry_us == 10
    assert not slots.convert(digest(1), digest(101), expires_us=100, now_us=10)
    assert slots.reserve(digest(2), "gpu0", BOB, expires_us=20, now_us=10)


def test_a_lease_ends_at_its_expiry_even_if_nobody_releases_it() -> None:
    slots = Reservations({"gpu0": 1})
    slots.reserve(digest(1), "gpu0", ALICE, expires_us=10, now_us=0)
    slots.convert(digest(1), digest(101), expires_us=50, now_us=1)
    assert [(hold.kind, hold.key) for hold in slots.expire(50)] == [(HoldKind.LEASE, digest(101))]
    assert slots.free("gpu0") == 1
    assert slots.next_expiry_us is None


def test_the_same_order_or_lease_twice_is_one() -> None:
    slots = Reservations({"gpu0": 2})
    assert slots.reserve(digest(1), "gpu0", ALICE, expires_us=10, now_us=0)
    assert slots.reserve(digest(1), "gpu0", ALICE, expires_us=10, now_us=0)
    assert len(slots.holds()) == 1
    assert slots.busy_slots == 0, "a bid is nothing to announce"
    assert slots.convert(digest(1), digest(101), expires_us=50, now_us=0)
    assert slots.convert(digest(1), digest(101), expires_us=50, now_us=0)
    assert slots.busy_slots == 1


def test_devices_are_counted_apart_and_an_unknown_one_has_no_slot() -> None:
    slots = Reservations({"cpu": 1, "gpu0": 1})
    assert slots.reserve(digest(1), "cpu", ALICE, expires_us=10, now_us=0)
    assert slots.free("gpu0") == 1
    assert not slots.reserve(digest(2), "gpu9", ALICE, expires_us=10, now_us=0)
    with pytest.raises(ValueError, match="at least one slot"):
        Reservations({"cpu": 0})


def test_validate_finds_more_holds_than_slots() -> None:
    slots = Reservations({"cpu": 1})
    slots.reserve(digest(1), "cpu", ALICE, expires_us=10, now_us=0)
    slots._slots["cpu"] = 0
    with pytest.raises(AssertionError, match="1 of 0 slots"):
        slots.validate()


class SlotMachine(RuleBasedStateMachine):
    """Orders, awards, releases, losses and time in any order, against a model that knows only what must hold."""

    SLOTS = {"cpu": 2, "gpu0": 1}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.slots = Reservations(self.SLOTS)
        self.now_us = 0
        self.bids: dict[Digest, tuple[str, int]] = {}
        self.leases: dict[Digest, tuple[str, int]] = {}

    orders = st.integers(0, 6).map(digest)
    leases_ = st.integers(100, 106).map(digest)

    @rule(
        order=orders,
        device=st.sampled_from(["cpu", "gpu0", "gpu1"]),
        peer=st.sampled_from([ALICE, BOB]),
        span=st.integers(0, 20),
    )
    def reserve(self, order: Digest, device: str, peer: PeerId, span: int) -> None:
        self._forget()
        known = self.bids.get(order)
        held = self.slots.reserve(order, device, peer, self.now_us + span, self.now_us)
        if known is not None:
            assert held == (known[0] == device)
            return
        used = sum(device == name for name, _ in [*self.bids.values(), *self.leases.values()])
        assert held == (span > 0 and used < self.SLOTS.get(device, 0))
        if held:
            self.bids[order] = (device, self.now_us + span)

    @rule(order=orders, lease=leases_, span=st.integers(0, 50))
    def convert(self, order: Digest, lease: Digest, span: int) -> None:
        self._forget()
        converted = self.slots.convert(order, lease, self.now_us + span, self.now_us)
        if lease in self.leases:
            assert converted
            return
        assert converted == (order in self.bids and span > 0)
        if converted:
            device, _ = self.bids.pop(order)
            self.leases[lease] = (device, self.now_us + span)

    @rule(order=orders)
    def release_bid(self, order: Digest) -> None:
        assert self.slots.release_bid(order) == (self.bids.pop(order, None) is not None)

    @rule(lease=leases_)
    def release_lease(self, lease: Digest) -> None:
        assert self.slots.release_lease(lease) == (self.leases.pop(lease, None) is not None)

    @rule(span=st.integers(1, 30))
    def pass_time(self, span: int) -> None:
        self.now_us += span
        over = {hold.key for hold in self.slots.expire(self.now_us)}
        assert over == self._forget()

    @invariant()
    def holds_are_those_of_the_model(self) -> None:
        self.slots.validate()
        assert {hold.key for hold in self.slots.holds()} == {*self.bids, *self.leases}
        assert self.slots.busy_slots <= len(self.slots.holds()) <= sum(self.SLOTS.values())

    def _forget(self) -> set[Digest]:
        gone = set()
        for table in (self.bids, self.leases):
            for key in [key for key, (_, expires_us) in table.items() if expires_us <= self.now_us]:
                del table[key]
                gone.add(key)
        return gone


TestSlotMachine = SlotMachine.TestCase
TestSlotMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
