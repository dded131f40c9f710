"""`receipts verify FILE`: what a file proves by itself."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.agent.receipts import InvalidReceipt, LaneHead, verify_receipt_file
from coppermesh.agent.rehearsal import make_deal
from coppermesh.p2p.envelope import Opened, open_verified, sign_record
from coppermesh.p2p.receipt_file import encode_receipt_file
from coppermesh.p2p.records import Countersignature, Receipt

DEAL = make_deal(1)
HEAD = LaneHead()
RECEIPT = DEAL.receipt(DEAL.task(0), HEAD)
ANSWER = DEAL.answer(RECEIPT, HEAD)
FILE = encode_receipt_file(RECEIPT.signed, ANSWER.signed)


def changed(**changes: Any) -> Opened[Receipt]:
    record = msgspec.structs.replace(RECEIPT.record, **changes)
    return open_verified(Receipt, sign_record(DEAL.provider, record))


def test_a_complete_file_verifies() -> None:
    verified = verify_receipt_file(FILE)
    assert verified.receipt.record == RECEIPT.record
    assert verified.complete
    assert verified.accepted
    assert len(verified.checks) == 3


def test_a_file_without_a_countersignature_verifies_but_is_not_complete() -> None:
    verified = verify_receipt_file(encode_receipt_file(RECEIPT.signed, None))
    assert not verified.complete
    assert not verified.accepted


def test_a_dispute_is_complete_and_not_accepted() -> None:
    disputed = DEAL.answer(RECEIPT, HEAD, "overbilled")
    verified = verify_receipt_file(encode_receipt_file(RECEIPT.signed, disputed.signed))
    assert verified.complete
    assert not verified.accepted


@pytest.mark.parametrize(
    "changes",
    [
        {"amount": 4, "cumulative": 4},
        {"cumulative": 2},
        {"cumulative": 5},
        {"previous": bytes([1]) * 32},
        {"sequence": 1},
        {"status": "provider-failed", "code": "lost"},
        {"code": "crashed"},
        {"started_us": RECEIPT.record.ended_us + 1},
    ],
)
def test_a_signed_receipt_whose_sums_do_not_hold_is_invalid(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidReceipt):
        verify_receipt_file(encode_receipt_file(changed(**changes).signed, None))


def test_an_answer_to_another_receipt_is_invalid() -> None:
    other = changed(trace=bytes([5]) * 32)
    with pytest.raises(InvalidReceipt):
        verify_receipt_file(encode_receipt_file(other.signed, ANSWER.signed))


def test_an_answer_with_a_sum_out_of_bounds_is_invalid() -> None:
    greedy = msgspec.structs.replace(ANSWER.record, accepted_cumulative=99)
    assert isinstance(greedy, Countersignature)
    with pytest.raises(InvalidReceipt, match="bounds"):
        verify_receipt_file(encode_receipt_file(RECEIPT.signed, sign_record(DEAL.requester, greedy)))


@given(at=st.integers(0, len(FILE) - 1), bit=st.integers(0, 7))
def test_no_single_flipped_bit_verifies(at: int, bit: int) -> None:
    data = bytearray(FILE)
    data[at] ^= 1 << bit
    with pytest.raises(InvalidReceipt):
        verify_receipt_file(bytes(data))


@given(st.binary(max_size=600))
def test_garbage_is_invalid_and_nothing_else_is_raised(data: bytes) -> None:
    with pytest.raises(InvalidReceipt):
        verify_receipt_file(data)
