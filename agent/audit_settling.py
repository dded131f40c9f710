"""The part of an audit that looks at statements and what belongs to them, after every receipt was checked."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from coppermesh.agent.ledger_book import unpack_records
from coppermesh.agent.ledger_settling import SettlingTables
from coppermesh.agent.payouts import check_payout
from coppermesh.agent.proofs import InvalidProof, both_signed, prove
from coppermesh.agent.reputation import PROOFS
from coppermesh.agent.settling_rules import other_side
from coppermesh.agent.statements import LastSigned, check_net, check_order, check_sums, net_for, unpack_spans
from coppermesh.p2p.encoding import decode
from coppermesh.p2p.envelope import Opened, from_bytes, open_record
from coppermesh.p2p.errors import MeshError, RemoteProtocolError
from coppermesh.p2p.ids import Digest, PeerId
from coppermesh.p2p.proof_files import MAX_STATEMENT_BYTES
from coppermesh.p2p.settlement_records import (
    Payment,
    Score,
    SignedPayout,
    SignedStatement,
    Statement,
    Voucher,
)

T = TypeVar("T")
_MAY_BE_PARTIAL = {"broken-chain", "wrong-sum"}
"""Kept also where the record that completes the proof is not here."""
Require = Callable[[bool, str, bytes, str], None]
"""Ends the audit where the first argument is false: table, id, what is wrong."""


@dataclass(frozen=True, slots=True)
class SettlingAudit:
    """Checks the tables of settling. `require` ends the audit, `count` says what was checked."""

    database: sqlite3.Connection
    me: PeerId
    require: Require
    count: Callable[[str], None]

    def run(self) -> None:
        """Everything. What `require` raises ends it; so does RemoteProtocolError of a record that cannot be read."""
        tables = SettlingTables(self.database, self.me)
        self._statements(tables)
        self._payments(tables)
        self._vouchers(tables)
        self._accounts_and_scores()
        self._evidence()
        (stray,) = self.database.execute(
            "SELECT count(*) FROM transfer WHERE kind = 'stated' AND source NOT IN (SELECT id FROM statement) "
            "OR kind = 'paid' AND source NOT IN (SELECT statement FROM payment)"
        ).fetchone()
        self.require(stray == 0, "transfer", b"", "the books have transfers of statements that are not there")

    def _statements(self, tables: SettlingTables) -> None:
        last: dict[tuple[PeerId, str], LastSigned] = {}
        rows = self.database.execute(
            "SELECT id, peer, unit, number, net, receipts, signed FROM statement ORDER BY peer, unit, number"
        ).fetchall()
        for name, peer, unit, number, net, receipts, data in rows:
            signed, statement = self._open_statement(name, data)
            record = statement.record
            mine = other_side(record, self.me)
            columns = (mine, record.unit, record.number, net_for(record, self.me), record.receipts)
            same = statement.id == name and columns == (peer, unit, number, net, receipts)
            self.require(same, "statement", name, "its columns differ from it")
            before = last.get((peer, unit), LastSigned())
            self._checked(name, lambda record=record, before=before: check_order(record, before))  # type: ignore[misc]
            last[(peer, unit)] = LastSigned(number, statement.id)
            self._spans(tables, name, signed, record)
            self._books(name, "stated", ("stated", "due"), net)
            self.count("statement")

    def _open_statement(self, name: bytes, data: bytes) -> tuple[SignedStatement, Opened[Statement]]:
        try:
            signed = decode(SignedStatement, data, max_bytes=MAX_STATEMENT_BYTES)
            if signed.agreed is None:
                raise RemoteProtocolError("the second signature is missing")
            return signed, both_signed(signed.proposed, signed.agreed)
        except RemoteProtocolError as error:
            self.require(False, "statement", name, str(error))
            raise

    def _spans(self, tables: SettlingTables, name: bytes, signed: SignedStatement, record: Statement) -> None:
        spans = unpack_spans(signed.lanes)
        kept = self.database.execute(
            "SELECT lane, start, finish FROM covered WHERE statement = ? ORDER BY lane", (name,)
        ).fetchall()
        same = kept == [(span.lane, span.start, span.end) for span in spans]
        self.require(same, "covered", name, "what the statement covers is not what is written down")
        states = [(span, tables.lane_state(span.lane)) for span in spans]
        if any(state is None or span.end > state.countersigned for span, state in states):
            # A restored ledger took the statement back from the other side; its receipts it does not have.
            self.require(tables.was_restored, "statement", name, "receipts under it are not in this ledger")
            self._checked(name, lambda: check_net(record))
            self.count("statement_without_receipts")
            return
        covered = [tables.covered_span(span) for span in spans]
        self._checked(name, lambda: check_sums(record, covered))

    def _payments(self, tables: SettlingTables) -> None:
        for name, data in self.database.execute("SELECT statement, signed FROM payment").fetchall():
            payment = self._checked(name, lambda data=data: open_record(Payment, from_bytes(data)))  # type: ignore[misc]
            signed = tables.statement(Digest(name))
            self.require(signed is not None, "payment", name, "its statement is not there")
            assert signed is not None
            record = open_record(Statement, signed.proposed).record
            net = net_for(record, self.me)
            peer = other_side(record, self.me)
            sides = (self.me, peer) if net > 0 else (peer, self.me)
            paid = payment.record
            right = (paid.payee, paid.payer, paid.amount, paid.statement) == (*sides, abs(net), name)
            self.require(right and net != 0, "payment", name, "it is not over its statement's net")
            self._books(name, "paid", ("paid", "stated"), net)
            self.count("payment")

    def _vouchers(self, tables: SettlingTables) -> None:
        rows = self.database.execute(
            "SELECT payer, payee, unit, number, cumulative, signed FROM voucher"
        ).fetchall()
        for payer, payee, unit, number, cumulative, data in rows:
            voucher = self._checked(payer, lambda data=data: open_record(Voucher, from_bytes(data)))  # type: ignore[misc]
            record = voucher.record
            columns = (record.payer, record.payee, record.unit, record.number, record.cumulative)
            same = columns == (payer, payee, unit, number, cumulative)
            self.require(same, "voucher", voucher.id, "its columns differ from it")
            owed = tables.owed_by_statements(PeerId(payer), PeerId(payee), unit, number)
            self.require(
                cumulative == owed, "voucher", voucher.id, f"it promises {cumulative}, statements say {owed}"
            )
            self.count("voucher")

    def _accounts_and_scores(self) -> None:
        for peer, data in self.database.execute("SELECT peer, signed FROM payout").fetchall():
            self._checked(
                peer,
                lambda data=data, peer=peer: check_payout(  # type: ignore[misc]
                    decode(SignedPayout, data, max_bytes=4096), peer=PeerId(peer)
                ),
                "payout",
            )
            self.count("payout")
        for rater, data in self.database.execute("SELECT rater, signed FROM score").fetchall():
            self._checked(
                rater,
                lambda data=data, rater=rater: open_record(  # type: ignore[misc]
                    Score, from_bytes(data), signer=PeerId(rater)
                ),
                "score",
            )
            self.count("score")

    def _evidence(self) -> None:
        """A proof that proves nothing would stand against an honest peer."""
        rows = self.database.execute("SELECT id, kind, peer, records FROM evidence ORDER BY n").fetchall()
        for name, kind, peer, data in rows:
            if kind in PROOFS - _MAY_BE_PARTIAL:
                try:
                    prove(kind, PeerId(peer), unpack_records(data))
                except (InvalidProof, RemoteProtocolError) as error:
                    self.require(False, "evidence", name, str(error))
            self.count("evidence")

    def _books(self, name: bytes, kind: str, accounts: tuple[str, str], amount: int) -> None:
        rows = self.database.execute(
            "SELECT debit, credit, amount FROM transfer WHERE source = ? AND kind = ?", (name, kind)
        ).fetchall()
        debit, credit = accounts if amount > 0 else accounts[::-1]
        expected = [(debit, credit, abs(amount))] if amount else []
        self.require(rows == expected, "transfer", name, f"the books do not have it as it was {kind}")

    def _checked(self, name: bytes, check: Callable[[], T], table: str = "statement") -> T:
        try:
            return check()
        except MeshError as error:
            self.require(False, table, name, str(error))
            raise
