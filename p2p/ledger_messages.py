"""What two agents ask each other about their ledgers, on the control stream. Each answers only about common lanes.

| method           | who asks | request           | reply                |
|------------------|----------|-------------------|----------------------|
| `lane-list`      | both     | LaneListRequest   | LaneListReply        |
| `lane-part`      | both     | LanePartRequest   | LanePartReply        |
| `lane-entry`     | both     | LaneEntryRequest  | LaneEntryReply       |
| `statement`      | both     | StatementRequest  | StatementReply       |
| `statement-last` | both     | LastStatement     | LastStatementReply   |
| `voucher`        | payer    | VoucherRequest    | Nothing              |
| `payment`        | payee    | PaymentRequest    | Nothing              |
| `payout`         | both     | Nothing           | PayoutReply          |
| `scores`         | both     | Nothing           | ScoresReply          |
"""

from typing import Annotated

from msgspec import Meta

from coppermesh.p2p.messages import Message
from coppermesh.p2p.records import Code, Count, Hash, Nonce, SignedRecord
from coppermesh.p2p.settlement_records import SignedPayout, SignedStatement

LANE_FACT_BYTES = 64
"""Of a packed lane in a list: lane 16, receipts 8, countersigned 8, root 32."""
MAX_LANES_LISTED = 1024
PARTS = 16
"""Into how many parts a span of a lane is cut for comparing."""
MAX_SCORES = 64


class LaneListRequest(Message, frozen=True):
    """Lanes common to the two, by lane, after this one."""

    after: Nonce


class LaneListReply(Message, frozen=True):
    """Up to 1024 lanes of 64 bytes each."""

    lanes: Annotated[bytes, Meta(max_length=LANE_FACT_BYTES * MAX_LANES_LISTED)]
    more: bool


class LanePartRequest(Message, frozen=True):
    """The roots over the parts of a span of a lane."""

    lane: Nonce
    start: Count
    end: Count


class LanePartReply(Message, frozen=True):
    """One root for each of at most 16 equal parts (the last may be shorter)."""

    roots: Annotated[list[Hash], Meta(max_length=PARTS)]


class LaneEntryRequest(Message, frozen=True):
    """What stands at one place on a lane."""

    lane: Nonce
    sequence: Count


class LaneEntryReply(Message, frozen=True):
    """Both are nil where there is nothing."""

    receipt: SignedRecord | None
    countersignature: SignedRecord | None


class StatementRequest(Message, frozen=True):
    """A statement to sign. The same request again gets the same answer."""

    statement: SignedStatement


class StatementReply(Message, frozen=True):
    """The same statement, signed by both, and where the answering side owes its net, the promise to pay it."""

    statement: SignedStatement
    voucher: SignedRecord | None


class LastStatement(Message, frozen=True):
    """Asks for the newest statement between the two, and a proposal that waits."""

    unit: Code


class LastStatementReply(Message, frozen=True):
    """Nil where there is none."""

    signed: SignedStatement | None
    proposed: SignedStatement | None


class VoucherRequest(Message, frozen=True):
    """Voucher of the sender."""

    voucher: SignedRecord


class PaymentRequest(Message, frozen=True):
    """Payment of the sender, or the answer to a voucher that is settled already."""

    payment: SignedRecord


class PayoutReply(Message, frozen=True):
    """Where the answering peer is paid, if anywhere."""

    payout: SignedPayout | None


class ScoresReply(Message, frozen=True):
    """Scores that the answering peer signed."""

    scores: Annotated[list[SignedRecord], Meta(max_length=MAX_SCORES)]
