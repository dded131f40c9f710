"""The ledger's tables of settling over SQLite: what the rules read, what is written, and what statements are made of.

Blocking. Used by `ledger_book` in the writing thread and by `ledger_reader` in the reading ones.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from coppermesh.agent.settling import (
    PaymentKept,
    PayoutKept,
    ScoreKept,
    SettlingEntry,
    StatementDrafted,
    StatementSigned,
    VoucherKept,
)
from coppermesh.agent.settling_rules import other_side
from coppermesh.agent.statements import (
    NO_STATEMENT,
    CoveredSpan,
    LaneState,
    LastSigned,
    Span,
    net_for,
    receipt_leaf,
    unpack_spans,
)
from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.envelope import from_bytes, open_verified, record_id, to_bytes
from coppermesh.p2p.ids import Digest, PeerId
from coppermesh.p2p.ledger_messages import MAX_LANES_LISTED
from coppermesh.p2p.merkle import merkle_root
from coppermesh.p2p.proof_files import MAX_STATEMENT_BYTES
from coppermesh.p2p.records import SignedRecord
from coppermesh.p2p.settlement_records import (
    Payment,
    Payout,
    Score,
    SignedPayout,
    SignedStatement,
    Statement,
    Voucher,
)


@dataclass(frozen=True, slots=True)
class LaneFacts:
    """A lane in short, for comparing two ledgers."""

    lane: bytes
    receipts: int
    countersigned: int
    """How many from the first on have a countersignature."""
    root: bytes
    """Over the leaves of all its places."""


MAX_SCORES = 10_000
"""Opinions kept; the oldest go first."""

_LANE_STATE = """
SELECT lane, role, peer,
  coalesce((SELECT max(finish) FROM covered WHERE covered.lane = lease.lane), 0),
  coalesce((SELECT min(receipt.sequence) FROM receipt JOIN unsettled ON unsettled.receipt = receipt.id
            WHERE receipt.lane = lease.lane),
           (SELECT max(sequence) + 1 FROM receipt WHERE receipt.lane = lease.lane), 0)
FROM lease
"""
_LANE_STATE_OF = _LANE_STATE + "WHERE lane=?"
_WITH_PEER = "WHERE peer=? AND unit=coalesce(?, unit) AND lane IN (SELECT lane FROM receipt) ORDER BY lane"
_LANES_WITH = _LANE_STATE + _WITH_PEER
_ACCEPTED_AT = "SELECT accepted_cumulative FROM countersignature WHERE lane=? AND sequence=?"


class SettlingTables:
    """A `SettlingBook` (see `settling`) in a SQLite connection, and its writer."""

    def __init__(self, database: sqlite3.Connection, me: PeerId) -> None:
        self._database = database
        self._me = me

    @property
    def was_restored(self) -> bool:
        """Is this ledger one that was put back from a backup?"""
        return self._one("SELECT 1 FROM meta WHERE key='restored_us'") is not None

    def may_sign_second(self, peer: PeerId, unit: str) -> bool:
        """May a statement that the peer proposed be signed? A restored ledger proposes one of its own first.

        It does not know which proposals it signed after the backup was taken, and signing another one of that number
        would be a lie. Its own proposals bind nobody until the other side signs; once one of them is signed, every
        number that it may have forgotten is taken.
        """
        row = self._one("SELECT value FROM meta WHERE key='restored_us'")
        if row is None:
            return True
        restored_us = int.from_bytes(row[0], "big")
        records = (
            open_verified(Statement, signed.proposed).record for signed in self.statements_with(peer, unit)
        )
        return any(record.proposer == self._me and record.issued_us >= restored_us for record in records)

    def last_statement(self, peer: PeerId, unit: str) -> LastSigned:
        """The newest statement with a peer that both signed."""
        row = self._one(
            "SELECT number, id FROM statement WHERE peer=? AND unit=? ORDER BY number DESC LIMIT 1",
            peer,
            unit,
        )
        return LastSigned() if row is None else LastSigned(row[0], Digest(row[1]))

    def statement(self, statement_id: Digest) -> SignedStatement | None:
        """A statement that both signed."""
        return _statement(self._one("SELECT signed FROM statement WHERE id=?", statement_id))

    def statement_numbered(self, peer: PeerId, unit: str, number: int) -> SignedStatement | None:
        """The one with this number that both signed."""
        query = "SELECT signed FROM statement WHERE peer=? AND unit=? AND number=?"
        return _statement(self._one(query, peer, unit, number))

    def is_draft(self, statement_id: Digest) -> bool:
        """Did this peer propose it?"""
        return self._one("SELECT 1 FROM draft WHERE id=?", statement_id) is not None

    def draft(self, statement_id: Digest) -> SignedStatement | None:
        """What this peer proposed, as it was sent."""
        return _statement(self._one("SELECT signed FROM draft WHERE id=?", statement_id))

    def live_draft(self, peer: PeerId, unit: str, now_us: int) -> SignedStatement | None:
        """Our newest proposal for the next number that the other side may still sign."""
        number = self.last_statement(peer, unit).number + 1
        query = (
            "SELECT signed FROM draft WHERE peer=? AND unit=? AND number=? AND expires_us > ? "
            "ORDER BY expires_us DESC LIMIT 1"
        )
        return _statement(self._one(query, peer, unit, number, now_us))

    def lane_state(self, lane: bytes) -> LaneState | None:
        """A lane as far as this ledger has it."""
        row = self._one(_LANE_STATE_OF, lane)
        return None if row is None else self._lane_state(row)

    def lane_facts(self, peer: PeerId, after: bytes, most: int) -> tuple[list[LaneFacts], bool]:
        """Lanes with a peer, by id, after that one: at most `MAX_LANES_LISTED`, or `most` receipts; are there more?"""
        rows = self._database.execute(
            "SELECT lane, (SELECT max(sequence) + 1 FROM receipt WHERE receipt.lane = lease.lane) AS held FROM lease "
            "WHERE peer=? AND lane>? AND held NOT NULL ORDER BY lane",
            (peer, after),
        ).fetchall()
        found: list[LaneFacts] = []
        for lane, held in rows:
            if found and (len(found) == MAX_LANES_LISTED or most < held):
                return found, True
            most -= held
            state = self.lane_state(lane)
            assert state is not None
            root = merkle_root(self.leaves(lane, 0, held))
            found.append(LaneFacts(lane, held, state.countersigned, root))
        return found, False

    def leaves(self, lane: bytes, start: int, end: int) -> list[bytes]:
        """The leaf of each place on a lane; where there is no countersignature, zeros stand for its id."""
        rows = self._database.execute(
            "SELECT receipt.id, answer.signed FROM receipt LEFT JOIN countersignature AS answer "
            "ON answer.receipt = receipt.id WHERE receipt.lane=? AND receipt.sequence>=? AND receipt.sequence<? "
            "ORDER BY receipt.sequence",
            (lane, start, end),
        )
        return [
            receipt_leaf(
                Digest(receipt), NO_STATEMENT if answer is None else record_id(from_bytes(answer).body)
            )
            for receipt, answer in rows
        ]

    def entry(self, lane: bytes, sequence: int) -> tuple[SignedRecord | None, SignedRecord | None]:
        """What stands at a place on a lane: receipt and countersignature."""
        row = self._one(
            "SELECT receipt.signed, answer.signed FROM receipt LEFT JOIN countersignature AS answer "
            "ON answer.receipt = receipt.id WHERE receipt.lane=? AND receipt.sequence=?",
            lane,
            sequence,
        )
        if row is None:
            return None, None
        return from_bytes(row[0]), None if row[1] is None else from_bytes(row[1])

    def peer_of(self, lane: bytes) -> PeerId | None:
        """The other side of a lane."""
        row = self._one("SELECT peer FROM lease WHERE lane=?", lane)
        return None if row is None else PeerId(row[0])

    def lanes_with(self, peer: PeerId, unit: str | None = None) -> list[LaneState]:
        """The lanes with a peer, by id, in one unit or in all; those without a receipt are left out."""
        rows = self._database.execute(
            _LANES_WITH,
            (peer, unit),
        )
        return [self._lane_state(row) for row in rows]

    def _lane_state(self, row: Sequence[Any]) -> LaneState:
        lane, role, peer, covered, countersigned = row
        provider = PeerId(peer) if role == "requester" else self._me
        return LaneState(lane, provider, covered, countersigned)

    def earned_in(self, lane: bytes, start: int, end: int) -> int:
        """What was accepted in a span that is countersigned, money."""
        last = self._one(_ACCEPTED_AT, lane, end - 1)
        before = self._one(_ACCEPTED_AT, lane, start - 1) if start else None
        return (last[0] if last else 0) - (before[0] if before else 0)

    def covered_span(self, span: Span) -> CoveredSpan:
        """A span with its leaves. Every place in it must be countersigned."""
        state = self.lane_state(span.lane)
        assert state is not None, "the caller has looked the lane up"
        leaves = [receipt_leaf(receipt, answer) for receipt, answer in self.answered(span)]
        return CoveredSpan(span, state.provider, self.earned_in(span.lane, span.start, span.end), leaves)

    def answered(self, span: Span) -> Iterator[tuple[Digest, Digest]]:
        """The ids of receipt and countersignature of each place in a span."""
        rows = self._database.execute(
            "SELECT receipt, signed FROM countersignature WHERE lane=? AND sequence>=? AND sequence<? "
            "ORDER BY sequence",
            (span.lane, span.start, span.end),
        )
        for receipt, signed in rows:
            yield Digest(receipt), record_id(from_bytes(signed).body)

    def owed_by_statements(self, payer: PeerId, payee: PeerId, unit: str, number: int) -> int:
        """Every net that `payer` owed `payee` by statements up to `number`, money."""
        peer, sign = (payee, -1) if payer == self._me else (payer, 1)
        rows = self._database.execute(
            "SELECT net FROM statement WHERE peer=? AND unit=? AND number<=?", (peer, unit, number)
        )
        return sum(max(0, sign * net) for (net,) in rows)

    def newest_voucher(self, payer: PeerId, payee: PeerId, unit: str) -> SignedRecord | None:
        """The voucher with the highest number."""
        row = self._one(
            "SELECT signed FROM voucher WHERE payer=? AND payee=? AND unit=? ORDER BY number DESC LIMIT 1",
            payer,
            payee,
            unit,
        )
        return None if row is None else from_bytes(row[0])

    def payment_of(self, statement_id: Digest) -> SignedRecord | None:
        """The payee's word that a statement was paid."""
        row = self._one("SELECT signed FROM payment WHERE statement=?", statement_id)
        return None if row is None else from_bytes(row[0])

    def newest_payout(self, peer: PeerId) -> SignedPayout | None:
        """The payout account with the highest sequence, whether it holds or not."""
        row = self._one("SELECT signed FROM payout WHERE peer=? ORDER BY sequence DESC LIMIT 1", peer)
        return None if row is None else decode(SignedPayout, row[0], max_bytes=4096)

    def statements(self) -> list[SignedStatement]:
        """Every statement that both signed, by peer, unit and number."""
        rows = self._database.execute("SELECT signed FROM statement ORDER BY peer, unit, number")
        return [found for found in map(_statement, rows) if found is not None]

    def statements_with(self, peer: PeerId, unit: str) -> list[SignedStatement]:
        """Those with one peer in one unit, by number."""
        rows = self._database.execute(
            "SELECT signed FROM statement WHERE peer=? AND unit=? ORDER BY number", (peer, unit)
        )
        return [found for found in map(_statement, rows) if found is not None]

    def statement_over(self, lane: bytes, sequence: int) -> SignedStatement | None:
        """The statement that a place on a lane is under."""
        row = self._one(
            "SELECT statement FROM covered WHERE lane=? AND start<=? ORDER BY start DESC LIMIT 1",
            lane,
            sequence,
        )
        signed = self.statement(Digest(row[0])) if row is not None else None
        if signed is None:
            return None
        inside = any(
            span.lane == lane and span.start <= sequence < span.end for span in unpack_spans(signed.lanes)
        )
        return signed if inside else None

    def scores(self, rater: PeerId | None = None, subject: PeerId | None = None) -> list[SignedRecord]:
        """Scores that were kept, by one rater or about one subject."""
        rows = self._database.execute(
            "SELECT signed FROM score WHERE rater=coalesce(?, rater) AND subject=coalesce(?, subject) "
            "ORDER BY issued_us DESC",
            (rater, subject),
        )
        return [from_bytes(row[0]) for row in rows]

    def write(self, entry: SettlingEntry) -> None:
        """Write what `judge_settling` let pass, within the caller's transaction."""
        match entry:
            case StatementDrafted():
                self._write_draft(entry.statement)
            case StatementSigned():
                self._write_statement(entry.statement)
            case VoucherKept():
                record = open_verified(Voucher, entry.voucher).record
                place = (record.payer, record.payee, record.unit, record.number)
                self._insert("voucher", *place, record.cumulative, to_bytes(entry.voucher))
            case PaymentKept():
                self._write_payment(entry.payment)
            case PayoutKept():
                payout = open_verified(Payout, entry.payout.by_peer).record
                self._insert("payout", payout.peer, payout.sequence, encode(entry.payout))
            case ScoreKept():
                self._write_score(entry.score)

    def _write_draft(self, signed: SignedStatement) -> None:
        draft = open_verified(Statement, signed.proposed)
        record = draft.record
        peer = other_side(record, self._me)
        place = (peer, record.unit, record.number, record.expires_us)
        self._insert("draft", draft.id, *place, encode(signed))

    def _write_statement(self, signed: SignedStatement) -> None:
        statement = open_verified(Statement, signed.proposed)
        record = statement.record
        peer, net = other_side(record, self._me), net_for(record, self._me)
        place = (peer, record.unit, record.number, net, record.receipts)
        self._insert("statement", statement.id, *place, encode(signed))
        for span in unpack_spans(signed.lanes):
            self._insert("covered", span.lane, span.start, span.end, statement.id)
        self._transfer(statement.id, "stated", peer, record.unit, ("stated", "due"), net)

    def _write_payment(self, signed: SignedRecord) -> None:
        record = open_verified(Payment, signed).record
        self._insert("payment", record.statement, to_bytes(signed))
        mine = record.payee == self._me
        peer, amount = (record.payer, record.amount) if mine else (record.payee, -record.amount)
        self._transfer(
            Digest(record.statement), "paid", PeerId(peer), record.unit, ("paid", "stated"), amount
        )

    def _write_score(self, signed: SignedRecord) -> None:
        record = open_verified(Score, signed).record
        self._database.execute(
            "INSERT INTO score VALUES(?, ?, ?, ?) ON CONFLICT (rater, subject) DO UPDATE "
            "SET issued_us=excluded.issued_us, signed=excluded.signed WHERE excluded.issued_us > score.issued_us",
            (record.rater, record.subject, record.issued_us, to_bytes(signed)),
        )
        (kept,) = self._database.execute("SELECT count(*) FROM score").fetchone()
        if kept > MAX_SCORES:
            self._database.execute(
                "DELETE FROM score WHERE rater<>? AND (rater, subject) IN "
                "(SELECT rater, subject FROM score WHERE rater<>? ORDER BY issued_us LIMIT ?)",
                (self._me, self._me, kept - MAX_SCORES),
            )

    def _transfer(
        self, source: Digest, kind: str, peer: PeerId, unit: str, accounts: tuple[str, str], amount: int
    ) -> None:
        """Move `amount` from the second account to the first; below zero, the other way."""
        if not amount:
            return
        debit, credit = accounts if amount > 0 else accounts[::-1]
        self._insert("transfer", None, source, kind, peer, unit, debit, credit, abs(amount))

    def _one(self, query: str, *values: object) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._database.execute(query, values).fetchone()
        return row

    def _insert(self, table: str, *values: object) -> None:
        marks = ",".join("?" * len(values))
        self._database.execute(f"INSERT INTO {table} VALUES({marks})", values)


def _statement(row: Sequence[Any] | None) -> SignedStatement | None:
    return None if row is None else decode(SignedStatement, row[0], max_bytes=MAX_STATEMENT_BYTES)


def copy_of(signed: SignedStatement, agreed: SignedRecord) -> SignedStatement:
    """The same statement with its second signature."""
    return msgspec.structs.replace(signed, agreed=agreed)
