from pathlib import Path

import pytest

from coppermesh.p2p.encoding import encode
from coppermesh.p2p.errors import LocalProtocolError, RemoteProtocolError
from coppermesh.p2p.receipt_file import (
    MAX_RECEIPT_FILE_BYTES,
    ReceiptFile,
    check_receipt_file,
    decode_receipt_file,
    encode_receipt_file,
)
from coppermesh.p2p.records import Countersignature, Receipt, SignedRecord

DATA = Path(__file__).parents[1] / "vectors" / "data"


def vector(name: str) -> bytes:
    return bytes.fromhex((DATA / f"receipt-file-{name}.txt").read_text().partition("\n\n")[2])


def test_a_file_proves_both_signatures() -> None:
    data = vector("good")
    checked = check_receipt_file(data)
    assert checked.countersignature is not None
    assert checked.countersignature.record.receipt == checked.receipt.id
    parts = decode_receipt_file(data)
    assert encode_receipt_file(parts.receipt, parts.countersignature) == data


def test_a_receipt_without_countersignature_is_a_file_too() -> None:
    checked = check_receipt_file(vector("open"))
    assert checked.countersignature is None


def test_every_flipped_bit_is_noticed() -> None:
    data = vector("good")
    for position in range(len(data)):
        flipped = data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :]
        with pytest.raises(RemoteProtocolError):
            check_receipt_file(flipped)


def test_the_limit_fits_the_longest_parts() -> None:
    receipt = SignedRecord(bytes(Receipt.MAX_BYTES), bytes(32), bytes(64))
    answer = SignedRecord(bytes(Countersignature.MAX_BYTES), bytes(32), bytes(64))
    data = encode(ReceiptFile("coppermesh-receipt", 1, receipt, answer))
    assert len(data) <= MAX_RECEIPT_FILE_BYTES
    assert decode_receipt_file(data).receipt == receipt


def test_what_is_no_signed_record_is_not_written() -> None:
    with pytest.raises(LocalProtocolError):
        encode_receipt_file(SignedRecord(b"", b"", b""), None)
