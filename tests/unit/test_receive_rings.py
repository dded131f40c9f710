"""Memory of transfers is used again under a lease, and never reaches another peer."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.p2p import receive_rings
from coppermesh.p2p.ids import MeshId, PeerId
from coppermesh.p2p.receive_rings import MAX_KEPT_PER_TENANT, RING_BYTES, ReceiveRings, Tenant


def tenant(number: int, mesh: int = 0) -> Tenant:
    return MeshId(bytes([mesh]) * 16), PeerId(bytes([number]) * 32)


def mark(rings: ReceiveRings, who: Tenant, text: bytes) -> bytes:
    """Borrow, write `text` at the beginning, and give what lay there before."""
    with rings.borrow(who, 4096) as ring:
        before = bytes(ring[: len(text)])
        ring[: len(text)] = text
    return before


def test_under_a_lease_the_same_memory_serves_the_next_transfer():
    rings = ReceiveRings()
    rings.lease_began(b"lease", tenant(1))
    assert mark(rings, tenant(1), b"mine") == bytes(4)
    assert mark(rings, tenant(1), b"next") == b"mine"
    assert (rings.made, rings.reused, rings.idle_bytes) == (1, 1, RING_BYTES)


def test_without_a_lease_nothing_is_kept():
    rings = ReceiveRings()
    mark(rings, tenant(1), b"mine")
    assert mark(rings, tenant(1), b"next") == bytes(4)
    assert (rings.made, rings.reused, rings.idle_bytes) == (2, 0, 0)


def test_with_the_last_lease_the_memory_goes():
    rings = ReceiveRings()
    rings.lease_began(b"one", tenant(1))
    rings.lease_began(b"two", tenant(1))
    mark(rings, tenant(1), b"mine")
    rings.lease_ended(b"one")
    assert rings.idle_bytes == RING_BYTES
    rings.lease_ended(b"two")
    rings.lease_ended(b"two")
    assert rings.idle_bytes == 0
    rings.lease_began(b"three", tenant(1))
    assert mark(rings, tenant(1), b"next") == bytes(4), "a later lease got what an earlier one left"


def test_a_lease_that_ends_during_a_transfer_leaves_nothing():
    rings = ReceiveRings()
    rings.lease_began(b"one", tenant(1))
    with rings.borrow(tenant(1), RING_BYTES):
        rings.lease_ended(b"one")
    assert rings.idle_bytes == 0


def test_what_a_failed_transfer_left_is_dropped():
    rings = ReceiveRings()
    rings.lease_began(b"one", tenant(1))
    with suppress(ValueError), rings.borrow(tenant(1), 10) as ring:
        ring[:6] = b"forged"
        raise ValueError
    assert rings.idle_bytes == 0
    assert mark(rings, tenant(1), b"next__") == bytes(6)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(receive_rings, "MAX_KEPT", 5)
    rings = ReceiveRings()
    for number in (1, 2):
        rings.lease_began(bytes([number]), tenant(number))
        borrowed = [rings.borrow(tenant(number), 1) for _ in range(MAX_KEPT_PER_TENANT + 2)]
        for each in borrowed:
            each.__enter__()
        for each in borrowed:
            each.__exit__(None, None, None)
        assert rings.idle_bytes == RING_BYTES * (MAX_KEPT_PER_TENANT if number == 1 else 5)


TENANTS = [tenant(1), tenant(2), tenant(1, mesh=1)]
MOVES = st.lists(
    st.tuples(st.sampled_from(["begin", "end", "move", "fail"]), st.integers(0, 2), st.integers(0, 1)),
    max_size=60,
)


@given(MOVES)
def test_no_byte_of_a_tenant_is_ever_in_another_ones_memory(moves: list[tuple[str, int, int]]):
    rings = ReceiveRings()
    open_leases: set[tuple[int, int]] = set()
    for move, who, which in moves:
        if move == "begin":
            rings.lease_began(bytes([who, which]), TENANTS[who])
            open_leases.add((who, which))
        elif move == "end":
            rings.lease_ended(bytes([who, which]))
            open_leases.discard((who, which))
        else:
            with suppress(ValueError), rings.borrow(TENANTS[who], 64) as ring:
                assert bytes(ring[:1]) in (b"\0", bytes([who + 1]))
                ring[:1] = bytes([who + 1])
                if move == "fail":
                    raise ValueError
        if not open_leases:
            assert rings.idle_bytes == 0
