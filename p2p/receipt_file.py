"""A receipt as a file: what `receipts verify FILE` reads, with no network and no database.

The file is one canonical structure: a magic word, a version, the provider's signed receipt and, once there is
one, the requester's signed countersignature. It holds nothing that is not covered by the two signatures.
"""

from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.envelope import SIGNED_OVERHEAD, Opened, open_record
from coppermesh.p2p.errors import RemoteProtocolError
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.records import Countersignature, Receipt, SignedRecord, Version

MAGIC = "coppermesh-receipt"
MAX_RECEIPT_FILE_BYTES = Receipt.MAX_BYTES + Countersignature.MAX_BYTES + 2 * SIGNED_OVERHEAD + 64


class ReceiptFile(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the file holds, as it lies there: nothing in it is checked yet."""

    magic: Annotated[str, Meta(pattern=r"^coppermesh-receipt\Z")]
    version: Version
    receipt: SignedRecord
    countersignature: SignedRecord | None


@dataclass(frozen=True, slots=True)
class CheckedReceipt:
    """A receipt whose signatures hold. Complete when `countersignature` is there."""

    receipt: Opened[Receipt]
    countersignature: Opened[Countersignature] | None


def encode_receipt_file(receipt: SignedRecord, countersignature: SignedRecord | None) -> bytes:
    """The file's bytes. Raises LocalProtocolError where a part is not even a signed record."""
    return encode(ReceiptFile(MAGIC, 1, receipt, countersignature))


def decode_receipt_file(data: bytes) -> ReceiptFile:
    """The parts of a file, unchecked. Raises RemoteProtocolError where it is no receipt file."""
    return decode(ReceiptFile, data, max_bytes=MAX_RECEIPT_FILE_BYTES)


def check_receipt_file(data: bytes) -> CheckedReceipt:
    """Everything that a file proves by itself: its form, both signatures, and that they are about each other.

    Raises RemoteProtocolError naming what is wrong. Whether price and times add up is the ledger's question.
    """
    parts = decode_receipt_file(data)
    receipt = open_record(Receipt, parts.receipt)
    if parts.countersignature is None:
        return CheckedReceipt(receipt, None)
    return CheckedReceipt(receipt, open_countersignature(receipt, parts.countersignature))


def open_countersignature(receipt: Opened[Receipt], signed: SignedRecord) -> Opened[Countersignature]:
    """The requester's answer to `receipt`, checked to be that.

    Raises RemoteProtocolError where it is not signed by the receipt's requester, or is about another receipt.
    """
    record = receipt.record
    opened = open_record(Countersignature, signed, signer=PeerId(record.requester))
    answer = opened.record
    if answer.receipt != receipt.id:
        raise RemoteProtocolError("Countersignature: it is for another receipt")
    if (answer.mesh, answer.lane, answer.sequence) != (record.mesh, record.lane, record.sequence):
        raise RemoteProtocolError("Countersignature: names another mesh, lane or sequence than its receipt")
    if (answer.verdict == "accepted") != (answer.code == "ok"):
        raise RemoteProtocolError("Countersignature: code ok goes with accepted, any other with disputed")
    return opened
