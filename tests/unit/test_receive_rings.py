"""Memory of transfers is used again under one lease, and never reaches another one."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.p2p import receive_rings
from coppermesh.p2p.ids import MeshId, PeerId
from coppermesh.p2p.receive_rings import MAX_KEPT_PER_LEASE, RING_BYTES, ReceiveRings, Tenant


def tenant(number: int, mesh: int = 0) -> Tenant:
    return MeshId(bytes([mesh]) * 16), PeerId(bytes([number]) * 32)


def mark(rings: ReceiveRings, who: Tenant, text: bytes, lease: bytes | None) -> bytes:
    """Borrow, write `text` at the beginning, and give what lay there before."""
    with rings.borrow(who, 4096, lease) as ring:
        before = bytes(ring[: len(text)])
        ring[: len(text)] = text
    return before


def test_under_a_lease_the_same_memory_serves_the_next_transfer():
    rings = ReceiveRings()
    rings.lease_began(b"lease", tenant(1))
    assert mark(rings, tenant(1), b"mine", b"lease") == bytes(4)
    assert mark(rings, tenant(1), b"next", b"lease") == b"mine"
    assert (rings.made, rings.reused, rings.idle_bytes) == (1, 1, RING_BYTES)


@pytest.mark.parametrize("lease", [None, b"unknown"])
def test_without_a_lease_nothing_is_kept(lease: bytes | None):
    rings = ReceiveRings()
    rings.lease_began(b"lease", tenant(1))
    mark(rings, tenant(1), b"mine", lease)
    assert mark(rings, tenant(1), b"next", lease) == bytes(4)
    assert mark(rings, tenant(1), b"next", b"lease") == bytes(4)
    assert (rings.made, rings.reused, rings.idle_bytes) == (3, 0, RING_BYTES)


def test_a_buffer_of_one_lease_is_never_seen_by_another_of_the_same_peer():
    rings = ReceiveRings()
    rings.lease_began(b"one", tenant(1))
    rings.lease_began(b"two", tenant(1))
    mark(rings, tenant(1), b"mine", b"one")
    assert mark(rings, tenant(1), b"next", b"two") == bytes(4)
    rings.lease_ended(b"one")
    assert rings.idle_bytes == RING_BYTES, "only what the other lease has used"
    assert mark(rings, tenant(1), b"more", b"two") == b"next"
    rings.lease_ended(b"two")
    rings.lease_ended(b"two")
    assert rings.idle_bytes == 0
    rings.lease_began(b"three", tenant(1))
    assert mark(rings, tenant(1), b"next", b"three") == bytes(4), "a later lease got what an earlier one left"


def test_naming_the_lease_of_another_peer_gets_nothing():
    rings = ReceiveRings()
    rings.lease_began(b"lease", tenant(1))
    mark(rings, tenant(1), b"mine", b"lease")
    for thief in (tenant(2), tenant(1, mesh=1)):
        assert mark(rings, thief, b"rest", b"lease") == bytes(4)
    assert mark(rings, tenant(1), b"next", b"lease") == b"mine", "and nothing of a thief's came into it"


def test_a_lease_that_ends_during_a_transfer_leaves_nothing():
    rings = ReceiveRings()
    rings.lease_began(b"one", tenant(1))
    with rings.borrow(tenant(1), RING_BYTES, b"one"):
        rings.lease_ended(b"one")
    assert rings.idle_bytes == 0


def test_what_a_failed_transfer_left_is_dropped():
    rings = ReceiveRings()
    rings.lease_began(b"one", tenant(1))
    with suppress(ValueError), rings.borrow(tenant(1), 10, b"one") as ring:
        ring[:6] = b"forged"
        raise ValueError
    assert rings.idle_bytes == 0
    assert mark(rings, tenant(1), b"next__", b"one") == bytes(6)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(receive_rings, "MAX_KEPT", 5)
    rings = ReceiveRings()
    for number in (1, 2):
        lease = bytes([number])
        rings.lease_began(lease, tenant(number))
        borrowed = [rings.borrow(tenant(number), 1, lease) for _ in range(MAX_KEPT_PER_LEASE + 2)]
        for each in borrowed:
            each.__enter__()
        for each in borrowed:
            each.__exit__(None, None, None)
        assert rings.idle_bytes == RING_BYTES * (MAX_KEPT_PER_LEASE if number == 1 else 5)


TENANTS = [tenant(1), tenant(2), tenant(1, mesh=1)]
MOVES = st.lists(
    st.tuples(st.sampled_from(["begin", "end", "move", "fail"]), st.integers(0, 2), st.integers(0, 1)),
    max_size=60,
)


@given(MOVES, st.integers(0, 2))
def test_no_byte_of_a_lease_is_ever_in_another_ones_memory(
    moves: list[tuple[str, int, int]], thief: int
) -> None:
    rings = ReceiveRings()
    open_leases: set[bytes] = set()
    for move, who, which in moves:
        lease = bytes([who, which])
        if move == "begin":
            rings.lease_began(lease, TENANTS[who])
            open_leases.add(lease)
        elif move == "end":
            rings.lease_ended(lease)
            open_leases.discard(lease)
        else:
            for tenant_number in {who, thief}:
                # The thief names a lease that is not its own.
                seen = bytes([1 + which, 1 + who]) if tenant_number == who and lease in open_leases else b""
                with suppress(ValueError), rings.borrow(TENANTS[tenant_number], 64, lease) as ring:
                    assert bytes(ring[:2]) in (bytes(2), seen)
                    ring[:2] = bytes([1 + which, 1 + tenant_number])
                    if move == "fail":
                        raise ValueError
        if not open_leases:
            assert rings.idle_bytes == 0
