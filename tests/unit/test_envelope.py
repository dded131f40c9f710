import dataclasses

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.envelope import (
    MAX_SIGNED_BYTES,
    authors,
    from_bytes,
    open_record,
    open_verified,
    record_id,
    sign_record,
    to_bytes,
)
from coppermesh.p2p.errors import LocalProtocolError, RemoteProtocolError
from coppermesh.p2p.records import MAX_BODY_BYTES, Decline, Lease, SignedRecord
from coppermesh.p2p.signing import PeerKey

PROVIDER = PeerKey(bytes([1]) * 32)
REQUESTER = PeerKey(bytes([2]) * 32)
STRANGER = PeerKey(bytes([3]) * 32)

DECLINE = Decline(
    version=1,
    mesh=bytes(16),
    provider=PROVIDER.peer,
    order=bytes(32),
    issued_us=5,
    code="busy",
    sentence="every slot is leased",
)
LEASE = Lease(
    version=1,
    mesh=bytes(16),
    requester=REQUESTER.peer,
    provider=PROVIDER.peer,
    order=bytes(32),
    bid=bytes(32),
    lane=bytes(16),
    nonce=bytes(16),
    device="cpu",
    device_kind="cpu",
    rate=1,
    unit="usd",
    budget=1,
    memory_bytes=1,
    wall_limit_us=1,
    depth=1,
    fresh=False,
    issued_us=1,
    expires_us=2,
)


def test_what_is_signed_opens_again() -> None:
    signed = sign_record(PROVIDER, DECLINE)
    opened = open_record(Decline, signed, signer=PROVIDER.peer)
    assert opened.record == DECLINE
    assert opened.signed is signed
    assert opened.signer == PROVIDER.peer
    assert opened.id == record_id(signed.body) == blake3(encode(DECLINE)).digest()
    assert open_record(Decline, from_bytes(to_bytes(signed))) == opened


def test_both_sides_sign_the_same_lease() -> None:
    first, second = sign_record(REQUESTER, LEASE), sign_record(PROVIDER, LEASE)
    assert first.body == second.body
    assert first.signature != second.signature
    assert open_record(Lease, first, signer=REQUESTER.peer).id == open_record(Lease, second).id
    assert authors(LEASE) == (REQUESTER.peer, PROVIDER.peer)
    with pytest.raises(RemoteProtocolError, match="expected"):
        open_record(Lease, second, signer=REQUESTER.peer)


def test_we_sign_only_what_names_us_as_author() -> None:
    with pytest.raises(LocalProtocolError, match="another author"):
        sign_record(STRANGER, DECLINE)
    with pytest.raises(LocalProtocolError, match="another author"):
        sign_record(STRANGER, LEASE)


def test_we_sign_nothing_invalid_or_too_long() -> None:
    with pytest.raises(LocalProtocolError, match="cannot encode"):
        sign_record(PROVIDER, msgspec.structs.replace(DECLINE, code="Not A Code"))

    class Brief(Decline, frozen=True):
        MAX_BYTES = 20

    brief = Brief(*(getattr(DECLINE, field) for field in DECLINE.__struct_fields__))
    with pytest.raises(LocalProtocolError, match="at most 20"):
        sign_record(PROVIDER, brief)


def test_the_signature_is_checked_before_the_body_is_decoded() -> None:
    garbage = SignedRecord(b"\xc1", PROVIDER.peer, bytes(64))
    with pytest.raises(RemoteProtocolError, match="signature"):
        open_record(Decline, garbage)
    signed_garbage = SignedRecord(b"\xc1", PROVIDER.peer, PROVIDER.sign(Decline.DOMAIN, b"\xc1"))
    with pytest.raises(RemoteProtocolError, match="FormatError"):
        open_record(Decline, signed_garbage)


def test_every_flipped_bit_is_noticed() -> None:
    data = to_bytes(sign_record(PROVIDER, DECLINE))
    for position in range(len(data)):
        for bit in range(8):
            flipped = data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]
            with pytest.raises(RemoteProtocolError):
                open_record(Decline, from_bytes(flipped))


def test_a_stored_record_opens_without_a_second_signature_check() -> None:
    signed = sign_record(PROVIDER, DECLINE)
    unsigned = msgspec.structs.replace(signed, signature=bytes(64))
    assert open_verified(Decline, unsigned).record == DECLINE
    with pytest.raises(RemoteProtocolError, match="author"):
        open_verified(Decline, msgspec.structs.replace(signed, signer=STRANGER.peer))


def test_the_longest_body_fits_the_stated_limit_exactly() -> None:
    largest = SignedRecord(bytes(MAX_BODY_BYTES), bytes(32), bytes(64))
    assert len(to_bytes(largest)) == MAX_SIGNED_BYTES


def test_an_opened_record_cannot_be_changed() -> None:
    opened = open_record(Decline, sign_record(PROVIDER, DECLINE))
    with pytest.raises(dataclasses.FrozenInstanceError):
        opened.id = record_id(b"")  # type: ignore[misc]
    with pytest.raises(AttributeError):
        opened.record.code = "other"  # type: ignore[misc]


@given(
    st.one_of(st.integers(0, 70), st.integers(250, 260), st.integers(8185, 8200)),
    st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 255)), max_size=2),
    st.integers(-3, 3),
)
def test_the_quick_cut_and_the_general_decoder_agree_on_any_bytes(size, changes, cut):
    data = bytearray(b"\x93")
    data += (b"\xc4" + bytes([size])) if size < 256 else b"\xc5" + size.to_bytes(2, "big")
    data += bytes(size) + b"\xc4\x20" + bytes(32) + b"\xc4\x40" + bytes(64)
    for place, value in changes:
        data[place % len(data)] = value
    sent = bytes(data) + bytes(cut) if cut > 0 else bytes(data[: len(data) + cut])
    try:
        expected = decode(SignedRecord, sent, max_bytes=MAX_SIGNED_BYTES)
    except RemoteProtocolError:
        with pytest.raises(RemoteProtocolError):
            from_bytes(sent)
    else:
        assert from_bytes(sent) == expected
