"""Files that prove something by themselves: evidence against a peer, a receipt's place under a statement, a statement.

Each is one canonical structure with a magic word, read with no network and no database.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.envelope import MAX_SIGNED_BYTES
from coppermesh.p2p.merkle import MAX_PATH
from coppermesh.p2p.records import Code, Count, Hash, Key, SignedRecord, Version
from coppermesh.p2p.settlement_records import MAX_SPAN_BYTES, SignedStatement

MAX_EVIDENCE_RECORDS = 8
MAX_EVIDENCE_BYTES = MAX_EVIDENCE_RECORDS * MAX_SIGNED_BYTES + 256
MAX_PLACE_BYTES = 8192
MAX_STATEMENT_BYTES = MAX_SPAN_BYTES + 2048


class EvidenceFile(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Signed records that together show what a peer did."""

    magic: Annotated[str, Meta(pattern=r"^coppermesh-evidence\Z")]
    version: Version
    kind: Code
    peer: Key
    records: Annotated[list[SignedRecord], Meta(max_length=MAX_EVIDENCE_RECORDS)]


class PlaceFile(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A receipt, its countersignature, and the way from them to the root of a statement that both signed."""

    magic: Annotated[str, Meta(pattern=r"^coppermesh-place\Z")]
    version: Version
    receipt: SignedRecord
    countersignature: SignedRecord
    proposed: SignedRecord
    """Statement, signed by its proposer."""
    agreed: SignedRecord
    """The same body, signed by the other side."""
    index: Count
    path: Annotated[list[Hash], Meta(max_length=MAX_PATH)]


class StatementFile(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A statement to sign, or one that both signed."""

    magic: Annotated[str, Meta(pattern=r"^coppermesh-statement\Z")]
    version: Version
    statement: SignedStatement


def encode_evidence(kind: str, peer: bytes, records: list[SignedRecord]) -> bytes:
    """The file's bytes. Raises LocalProtocolError where there are too many records."""
    return encode(EvidenceFile("coppermesh-evidence", 1, kind, peer, records))


def decode_evidence(data: bytes) -> EvidenceFile:
    """The parts, unchecked. Raises RemoteProtocolError where it is no such file."""
    return decode(EvidenceFile, data, max_bytes=MAX_EVIDENCE_BYTES)


def encode_place(
    receipt: SignedRecord, answer: SignedRecord, statement: SignedStatement, index: int, path: list[bytes]
) -> bytes:
    """The file's bytes, for a statement that both signed."""
    assert statement.agreed is not None
    return encode(
        PlaceFile("coppermesh-place", 1, receipt, answer, statement.proposed, statement.agreed, index, path)
    )


def decode_place(data: bytes) -> PlaceFile:
    """The parts, unchecked. Raises RemoteProtocolError where it is no such file."""
    return decode(PlaceFile, data, max_bytes=MAX_PLACE_BYTES)


def encode_statement_file(statement: SignedStatement) -> bytes:
    """The file's bytes."""
    return encode(StatementFile("coppermesh-statement", 1, statement))


def decode_statement_file(data: bytes) -> SignedStatement:
    """The statement, unchecked. Raises RemoteProtocolError where it is no such file."""
    return decode(StatementFile, data, max_bytes=MAX_STATEMENT_BYTES).statement
