"""Signed records: making them, and opening what a peer sent.

The signature covers the body bytes as they travel. Opening therefore checks, in this order: size, signer,
signature over the received bytes, and only then decodes them; and a record that names its author must be
signed by the author. Nothing unsigned reaches the parser of a record, and nothing is ever re-encoded to be
checked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar, cast

from blake3 import blake3

from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.errors import LocalProtocolError, RemoteProtocolError
from coppermesh.p2p.ids import Digest, PeerId, short_peer
from coppermesh.p2p.records import MAX_BODY_BYTES, Record, SignedRecord
from coppermesh.p2p.signing import PeerKey, verify, verify_digest

SIGNED_OVERHEAD = 104
"""Most that `SignedRecord` adds to a body: array header 1, body header 3, signer 2 + 32, signature 2 + 64."""
MAX_SIGNED_BYTES = MAX_BODY_BYTES + SIGNED_OVERHEAD

SMALL_BODY_BYTES = 2048
RECENT = 512
"""So many small bodies that were decoded last are not decoded again. Records are never changed."""

R = TypeVar("R", bound=Record)
F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Opened(Generic[R]):
    """A record whose signature was checked. `signed` keeps the exact bytes, for storing and passing on."""

    record: R
    signed: SignedRecord
    id: Digest

    @property
    def signer(self) -> PeerId:
        """Whose signature it carries."""
        return PeerId(self.signed.signer)


def record_id(body: bytes) -> Digest:
    """The id of a record: BLAKE3 of its body bytes. Signatures are no part of it."""
    return Digest(blake3(body).digest())


def sign_record(key: PeerKey, record: Record) -> SignedRecord:
    """`record` encoded and signed.

    Raises LocalProtocolError where it is invalid, too long, or names another author than `key`.
    """
    kind = type(record)
    body = encode(record)
    if len(body) > kind.MAX_BYTES:
        raise LocalProtocolError(f"{kind.__name__}: {len(body)} bytes, at most {kind.MAX_BYTES} allowed")
    if key.peer not in authors(record):
        raise LocalProtocolError(f"{kind.__name__}: names another author than the key that should sign it")
    return SignedRecord(body=body, signer=key.peer, signature=key.sign(kind.DOMAIN, body))


def seal_record(key: PeerKey, record: R) -> Opened[R]:
    """`record` signed, with its id: what `open_record` gives for it, without checking one's own signature.

    Raises LocalProtocolError as `sign_record` does.
    """
    signed = sign_record(key, record)
    return Opened(record, signed, record_id(signed.body))


def open_record(kind: type[R], signed: SignedRecord, *, signer: PeerId | None = None) -> Opened[R]:
    """Check and decode what a peer sent; `signer` is who must have signed it, where the caller knows.

    Raises RemoteProtocolError: too long, another signer, bad signature, malformed, or signed by a stranger to
    it.
    """
    if signer is not None and signed.signer != signer:
        who = short_peer(PeerId(signed.signer))
        raise RemoteProtocolError(f"{kind.__name__}: signed by ..{who}, expected ..{short_peer(signer)}")
    if not has_valid_signature(kind, signed):
        raise RemoteProtocolError(f"{kind.__name__}: the signature is not valid")
    return open_verified(kind, signed)


def has_valid_signature(kind: type[Record], signed: SignedRecord, digest: Digest | None = None) -> bool:
    """The first half of `open_record`, for callers that tell a forgery from a mistake.

    `digest`: the record id of this very body, where the caller has it. Raises RemoteProtocolError where the body is
    too long.
    """
    if len(signed.body) > kind.MAX_BYTES:
        size = len(signed.body)
        raise RemoteProtocolError(f"{kind.__name__}: {size} bytes, at most {kind.MAX_BYTES} allowed")
    if digest is not None:
        return verify_digest(PeerId(signed.signer), kind.DOMAIN, digest, signed.signature)
    return verify(PeerId(signed.signer), kind.DOMAIN, signed.body, signed.signature)


def open_verified(kind: type[R], signed: SignedRecord) -> Opened[R]:
    """The second half of `open_record`: decode a body whose signature was checked, now or before storing.

    Raises RemoteProtocolError where the body is malformed or names other authors than its signer.
    """
    record = (_decoded if len(signed.body) <= SMALL_BODY_BYTES else _decode)(kind, signed.body)
    if signed.signer not in authors(record):
        raise RemoteProtocolError(f"{kind.__name__}: signed by a key that it does not name as its author")
    return Opened(record, signed, record_id(signed.body))


def _decode(kind: type[R], body: bytes) -> R:
    return decode(kind, body, max_bytes=kind.MAX_BYTES)


def _remembered(function: F) -> F:
    return cast("F", lru_cache(maxsize=RECENT)(function))


_decoded = _remembered(_decode)
"""The ledger's rules look at the same few records again at every step of a task."""


def authors(record: Record) -> tuple[PeerId, ...]:
    """The keys that may sign `record`: one, or for a lease two."""
    return tuple(PeerId(getattr(record, field)) for field in record.AUTHORS)


def to_bytes(signed: SignedRecord) -> bytes:
    """A signed record as it lies in files and travels in gossip."""
    return encode(signed)


def from_bytes(data: bytes, *, max_bytes: int = MAX_SIGNED_BYTES) -> SignedRecord:
    """The inverse of `to_bytes`. Checks shape and size only: `open_record` checks the rest.

    Raises RemoteProtocolError.
    """
    return _split(data, max_bytes) or decode(SignedRecord, data, max_bytes=max_bytes)


_SIGNER, _SIGNATURE = b"\xc4\x20", b"\xc4\x40"
_TAIL_BYTES = len(_SIGNER) + 32 + len(_SIGNATURE) + 64


def _split(data: bytes, max_bytes: int) -> SignedRecord | None:
    """Cut at the fixed places of the one canonical encoding; None for anything else, for `decode` to say why.

    A ledger's audit does this 400,000 times for 100,000 receipts, and the general decoder takes ten times as long.
    """
    if len(data) > max_bytes or data[:1] != b"\x93":
        return None
    if data[1:2] == b"\xc4":
        begin, size = 3, data[2] if len(data) > 2 else 0
    elif data[1:2] == b"\xc5" and len(data) > 4:
        begin, size = 4, int.from_bytes(data[2:4], "big")
        if size < 256:
            return None
    else:
        return None
    at = begin + size
    if size > MAX_BODY_BYTES or len(data) != at + _TAIL_BYTES:
        return None
    if data[at : at + 2] != _SIGNER or data[at + 34 : at + 36] != _SIGNATURE:
        return None
    return SignedRecord(data[begin:at], data[at + 2 : at + 34], data[at + 36 :])
