"""Entries of the ledger about settling: statements, vouchers, payments, payout accounts, scores (pure).

Like every entry (`ledger`), each is one step made of signed records, committed before a signature of this peer leaves.
`settling_rules` judges them.
"""

from dataclasses import dataclass
from typing import Protocol

from coppermesh.agent.statements import LaneState, LastSigned
from coppermesh.p2p.ids import Digest, PeerId
from coppermesh.p2p.records import SignedRecord
from coppermesh.p2p.settlement_records import SignedPayout, SignedStatement


@dataclass(frozen=True, slots=True)
class StatementDrafted:
    """A proposal that this peer signed, before it is sent."""

    statement: SignedStatement


@dataclass(frozen=True, slots=True)
class StatementSigned:
    """Both signed: before the second signature leaves, and when it arrives. Its sums and root are checked by then."""

    statement: SignedStatement


@dataclass(frozen=True, slots=True)
class VoucherKept:
    """The payer's own voucher before it is sent, or one that the payee accepts."""

    voucher: SignedRecord


@dataclass(frozen=True, slots=True)
class PaymentKept:
    """A statement was paid: the payee's own word before it is sent, or the payer's copy of it."""

    payment: SignedRecord


@dataclass(frozen=True, slots=True)
class PayoutKept:
    """A payout account: one's own before it is given out, or another peer's."""

    payout: SignedPayout


@dataclass(frozen=True, slots=True)
class ScoreKept:
    """A score: one's own before it is given out, or another peer's."""

    score: SignedRecord


SettlingEntry = StatementDrafted | StatementSigned | VoucherKept | PaymentKept | PayoutKept | ScoreKept


class SettlingBook(Protocol):
    """What the rules about settling read."""

    def last_statement(self, peer: PeerId, unit: str) -> LastSigned:
        """The newest statement with a peer that both signed."""
        ...

    def statement(self, statement_id: Digest) -> SignedStatement | None:
        """A statement that both signed."""
        ...

    def statement_numbered(self, peer: PeerId, unit: str, number: int) -> SignedStatement | None:
        """The one with this number that both signed."""
        ...

    def is_draft(self, statement_id: Digest) -> bool:
        """Did this peer propose it?"""
        ...

    def lane_state(self, lane: bytes) -> LaneState | None:
        """A lane as far as this ledger has it."""
        ...

    def earned_in(self, lane: bytes, start: int, end: int) -> int:
        """What was accepted in a span that is countersigned, money."""
        ...

    def owed_by_statements(self, payer: PeerId, payee: PeerId, unit: str, number: int) -> int:
        """Every net that `payer` owed `payee` by statements up to `number`, money."""
        ...

    def newest_voucher(self, payer: PeerId, payee: PeerId, unit: str) -> SignedRecord | None:
        """The voucher with the highest number."""
        ...

    def payment_of(self, statement_id: Digest) -> SignedRecord | None:
        """The payee's word that a statement was paid."""
        ...

    def newest_payout(self, peer: PeerId) -> SignedPayout | None:
        """The payout account with the highest sequence, whether it holds or not."""
        ...

    @property
    def was_restored(self) -> bool:
        """Is this ledger one that was put back from a backup?"""
        ...
