"""A relay's books: what it promises, refuses and forgets."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.relay_book import Circuit, RelayBook, RelayLimits, RelayRefusal

PEERS = [PeerId(bytes([number]) * 32) for number in range(8)]
A, B, C = PEERS[:3]


def test_a_reservation_lets_its_owner_be_called_until_it_expires_or_its_owner_leaves() -> None:
    book = RelayBook(RelayLimits(reservation_seconds=60))
    assert book.open_circuit(A, B, 0.0) is RelayRefusal.NO_RESERVATION
    assert book.reserve(B, "1.2.3.4", 0.0) == 60.0
    assert isinstance(book.open_circuit(A, B, 59.9), Circuit)
    assert book.open_circuit(A, B, 60.0) is RelayRefusal.NO_RESERVATION
    assert book.reserve(B, "1.2.3.4", 61.0) == 121.0
    book.left(B)
    assert book.open_circuit(A, B, 62.0) is RelayRefusal.NO_RESERVATION
    assert book.refused[RelayRefusal.NO_RESERVATION] == 3


def test_a_renewal_takes_no_new_place() -> None:
    book = RelayBook(RelayLimits(reservations=1))
    assert isinstance(book.reserve(A, "1.2.3.4", 0.0), float)
    assert isinstance(book.reserve(A, "1.2.3.4", 10.0), float)
    assert book.reserve(B, "1.2.3.5", 10.0) is RelayRefusal.RESERVATION
    assert isinstance(book.reserve(B, "1.2.3.5", 4000.0), float), "an expired one gives its place back"


def test_callers_from_one_host_do_not_take_every_circuit() -> None:
    book = RelayBook(RelayLimits(circuits_per_host=2))
    book.reserve(A, "1.2.3.4", 0.0)
    first, second, third = (book.open_circuit(peer, A, 0.0, "5.6.7.8") for peer in PEERS[1:4])
    assert isinstance(first, Circuit)
    assert isinstance(second, Circuit)
    assert third is RelayRefusal.LIMIT
    assert isinstance(book.open_circuit(PEERS[4], A, 0.0, "5.6.7.9"), Circuit)
    book.close_circuit(first)
    assert isinstance(book.open_circuit(PEERS[3], A, 0.0, "5.6.7.8"), Circuit)


def test_one_host_with_many_keys_does_not_take_every_place() -> None:
    book = RelayBook(RelayLimits(reservations_per_host=2))
    given = [book.reserve(peer, "1.2.3.4", 0.0) for peer in PEERS[:3]]
    assert given[2] is RelayRefusal.RESERVATION
    assert isinstance(book.reserve(PEERS[3], "1.2.3.5", 0.0), float)


def test_one_peer_does_not_take_every_circuit() -> None:
    book = RelayBook(RelayLimits(circuits_per_peer=2, circuits=3))
    for peer in (A, B):
        book.reserve(peer, "1.2.3.4", 0.0)
    first = book.open_circuit(C, A, 0.0)
    assert isinstance(first, Circuit)
    assert isinstance(book.open_circuit(C, B, 0.0), Circuit)
    assert book.open_circuit(C, B, 0.0) is RelayRefusal.LIMIT
    book.close_circuit(first)
    book.close_circuit(first)
    assert isinstance(book.open_circuit(C, A, 0.0), Circuit)
    assert isinstance(book.open_circuit(PEERS[5], A, 0.0), Circuit)
    assert book.open_circuit(PEERS[6], B, 0.0) is RelayRefusal.LIMIT


def test_nobody_calls_himself() -> None:
    book = RelayBook(RelayLimits())
    book.reserve(A, "1.2.3.4", 0.0)
    assert book.open_circuit(A, A, 0.0) is RelayRefusal.NO_RESERVATION


class Relay(RuleBasedStateMachine):
    """Any order of events keeps the books right and every limit kept."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = RelayLimits(
            reservations=3, reservations_per_host=2, circuits=4, circuits_per_peer=2, reservation_seconds=10
        )
        self.book = RelayBook(self.limits)
        self.now = 0.0
        self.open: list[Circuit] = []

    @rule(peer=st.sampled_from(PEERS), host=st.sampled_from(["a", "b", "c"]))
    def reserve(self, peer: PeerId, host: str) -> None:
        self.book.reserve(peer, host, self.now)

    @rule(source=st.sampled_from(PEERS), called=st.sampled_from(PEERS))
    def call(self, source: PeerId, called: PeerId) -> None:
        circuit = self.book.open_circuit(source, called, self.now)
        if isinstance(circuit, Circuit):
            self.open.append(circuit)

    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        if self.open:
            self.book.close_circuit(self.open.pop(data.draw(st.integers(0, len(self.open) - 1))))

    @rule(peer=st.sampled_from(PEERS))
    def leave(self, peer: PeerId) -> None:
        self.book.left(peer)

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def every_limit_is_kept(self) -> None:
        assert self.book.circuits == len(self.open) <= self.limits.circuits
        assert self.book.reservations <= self.limits.reservations
        used = Counter(peer for circuit in self.open for peer in (circuit.source, circuit.target))
        assert all(count <= self.limits.circuits_per_peer for count in used.values())


TestRelay = Relay.TestCase
TestRelay.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("refusal", list(RelayRefusal))
def test_refusals_are_the_specifications_codes(refusal: RelayRefusal) -> None:
    from libp2p.relay.circuit_v2.pb.circuit_pb2 import Status

    assert refusal.value in Status.values()
