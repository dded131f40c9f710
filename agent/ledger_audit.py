"""`coppermesh ledger audit`: checks a ledger file from the ground up, believing nothing that it says about itself.

Theory of operation
-------------------
The ledger was checked entry by entry when it was written. The audit does it again from the bytes alone: it opens every
signed record, checks its signature, walks every lane from its first receipt (numbers, ids, both sums), computes every
accepted amount anew from its lease and task, and compares the columns that queries use with the records beside them.
The first fault ends it, named by table and id: what comes after a broken link proves little.

Signatures are most of the work and are checked in threads: libsodium runs without the interpreter's lock, so two cores
are used, while this thread reads and decodes. A fault in a signature is found a little later than one in a chain;
the one that comes first in the ledger is the one that is named.
"""

import os
import sqlite3
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from coppermesh.agent.audit_settling import SettlingAudit
from coppermesh.agent.ledger import LedgerError
from coppermesh.agent.ledger_book import reopen
from coppermesh.agent.ledger_rules import check_next_extension
from coppermesh.agent.ledger_scan import owner_of, scan_ledger
from coppermesh.agent.receipts import LaneHead, amount_due, check_countersignature
from coppermesh.p2p.envelope import Opened, from_bytes, has_valid_signature, record_id
from coppermesh.p2p.errors import RemoteProtocolError
from coppermesh.p2p.ids import Digest, PeerId
from coppermesh.p2p.lease_records import Extension
from coppermesh.p2p.records import (
    Bid,
    Countersignature,
    Lease,
    Order,
    Receipt,
    Record,
    SignedRecord,
    Task,
)

R = TypeVar("R", bound=Record)

BATCH = 256
"""Signatures checked by one thread at a time."""
MAX_BATCHES_WAITING = 16
SWITCH_SECONDS = 0.0002


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing that does not hold."""

    table: str
    id: str
    """The record's id, or what names the row, in hexadecimal digits; empty for the file as a whole."""
    sentence: str


class AuditFault(LedgerError):
    """Ends an audit."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"{fault.table} {fault.id[:16]}: {fault.sentence}")
        self.fault = fault


@dataclass(slots=True)
class AuditReport:
    """What was checked, and the first fault where there is one."""

    me: PeerId
    counts: dict[str, int] = field(default_factory=dict)
    balances: dict[tuple[PeerId, str], tuple[int, int]] = field(default_factory=dict)
    """By peer and unit: (owed to me, owed by me), added up from accepted receipts."""
    fault: Fault | None = None

    def count(self, what: str) -> None:
        """One more of these was checked."""
        self.counts[what] = self.counts.get(what, 0) + 1


@dataclass(slots=True)
class _Lane:
    """A lane as far as it was walked."""

    lease: Lease
    lease_id: Digest
    role: str
    peer: PeerId
    head: LaneHead = field(default_factory=LaneHead)
    accepted: int | None = 0
    """None after a receipt that is not countersigned: only bounds can be checked until the next one that is."""


@dataclass(slots=True)
class _Books:
    """What the walk keeps in memory: one small entry a lane and a task."""

    lanes: dict[bytes, _Lane] = field(default_factory=dict)
    by_lease: dict[bytes, _Lane] = field(default_factory=dict)
    tasks: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    """By task id: lease and maximum."""
    paid: set[bytes] = field(default_factory=set)
    """Tasks with an accepted receipt."""


_Check = tuple[str, Digest, type[Record], SignedRecord, Digest | None]


class SignatureChecks:
    """Checks signatures in threads, in the order in which they were given."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._batch: list[_Check] = []
        self._waiting: deque[Future[Fault | None]] = deque()

    def add(
        self,
        table: str,
        name: Digest,
        kind: type[Record],
        signed: SignedRecord,
        digest: Digest | None = None,
    ) -> None:
        """Queue one; `digest` is its record id, where that is known. Raises AuditFault where an earlier one is bad."""
        self._batch.append((table, name, kind, signed, digest))
        if len(self._batch) >= BATCH:
            self._submit()

    def finish(self) -> None:
        """Wait for all. Raises AuditFault for the first that does not hold."""
        self._submit()
        while self._waiting:
            self._take()

    def _submit(self) -> None:
        self._waiting.append(self._pool.submit(_first_bad, self._batch))
        self._batch = []
        while len(self._waiting) > MAX_BATCHES_WAITING:
            self._take()

    def _take(self) -> None:
        fault = self._waiting.popleft().result()
        if fault is not None:
            raise AuditFault(fault)


def _first_bad(batch: list[_Check]) -> Fault | None:
    for table, name, kind, signed, digest in batch:
        try:
            valid = has_valid_signature(kind, signed, digest)
        except RemoteProtocolError as error:
            return Fault(table, name.hex(), str(error))
        if not valid:
            return Fault(table, name.hex(), f"the signature of the {kind.__name__.lower()} is not valid")
    return None


def audit_ledger(path: Path, threads: int | None = None) -> AuditReport:
    """Check every record, chain and sum of the ledger at `path`; needs no agent. `threads`: default one a core.

    Raises LedgerError where the file cannot be read as a ledger at all; what does not hold is in `fault`.
    """
    with (
        _quick_turns(),
        scan_ledger(path) as database,
        ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool,
    ):
        report = AuditReport(owner_of(database))
        checks = SignatureChecks(pool)
        try:
            try:
                _check_file(database)
                _Audit(database, report, checks).run()
            except AuditFault:
                checks.finish()  # a bad signature before it comes first
                raise
            checks.finish()
        except AuditFault as error:
            report.fault = error.fault
        return report


@contextmanager
def _quick_turns() -> Iterator[None]:
    """A thread that comes back from libsodium waits for the interpreter at most so long, not for 5 ms each time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _check_file(database: sqlite3.Connection) -> None:
    (state,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if state != "ok":
        raise AuditFault(Fault("file", "", f"SQLite finds it damaged: {state}"))
    broken = database.execute("PRAGMA foreign_key_check").fetchone()
    if broken is not None:
        raise AuditFault(Fault(str(broken[0]), "", f"a row refers to one of {broken[2]} that is not there"))


class _Audit:
    def __init__(self, database: sqlite3.Connection, report: AuditReport, checks: SignatureChecks) -> None:
        self._database = database
        self._report = report
        self._checks = checks
        self._books = _Books()

    def run(self) -> None:
        """Everything, in the order in which things depend on each other."""
        self._leases()
        self._extensions()
        self._tasks()
        self._receipts()
        self._leftovers()
        SettlingAudit(self._database, self._report.me, _require, self._report.count).run()

    def _open(self, table: str, name: bytes, kind: type[R], data: bytes) -> Opened[R]:
        """A record whose signature is on its way to be checked, and whose id is the column's."""
        try:
            opened = reopen(kind, data)
        except RemoteProtocolError as error:
            raise AuditFault(Fault(table, name.hex(), str(error))) from error
        self._checks.add(table, opened.id, kind, opened.signed, opened.id)
        self._report.count(table)
        return opened

    def _leases(self) -> None:
        query = (
            "SELECT lease.id, role, peer, lane, unit, lease.signed, order_signed, bid_signed, agreement.signed "
            "FROM lease LEFT JOIN agreement ON agreement.lease = lease.id"
        )
        for name, role, peer, lane, unit, signed, order, bid, agreed in self._database.execute(query):
            lease = self._open("lease", name, Lease, signed)
            record = lease.record
            _require(lease.id == name, "lease", name, "its id is not that of its bytes")
            me = record.requester if role == "requester" else record.provider
            other = record.provider if role == "requester" else record.requester
            _require(me == self._report.me and other == peer, "lease", name, "its columns name other peers")
            _require((record.lane, record.unit) == (lane, unit), "lease", name, "its columns differ from it")
            _require(lease.signer == record.requester, "lease", name, "not signed by its requester")
            self._grown_from(name, record, _parse("lease", name, order), _parse("lease", name, bid))
            if agreed is not None:
                self._agreement(name, record, _parse("agreement", name, agreed))
            found = _Lane(record, lease.id, role, PeerId(peer))
            self._books.lanes[lane] = self._books.by_lease[name] = found

    def _grown_from(self, name: bytes, lease: Lease, order: SignedRecord, bid: SignedRecord) -> None:
        self._checks.add("lease", Digest(name), Order, order)
        self._checks.add("lease", Digest(name), Bid, bid)
        _require(record_id(order.body) == lease.order, "lease", name, "it hashes another order")
        _require(record_id(bid.body) == lease.bid, "lease", name, "it hashes another bid")
        _require(order.signer == lease.requester, "lease", name, "its order is signed by another peer")
        _require(bid.signer == lease.provider, "lease", name, "its bid is signed by another peer")

    def _agreement(self, name: bytes, lease: Lease, agreed: SignedRecord) -> None:
        self._checks.add("agreement", Digest(name), Lease, agreed)
        self._report.count("agreement")
        _require(record_id(agreed.body) == name, "agreement", name, "it is over another lease")
        _require(agreed.signer == lease.provider, "agreement", name, "not signed by the lease's provider")

    def _extensions(self) -> None:
        query = "SELECT lease, number, expires_us, signed, agreement FROM extension ORDER BY lease, number"
        before: list[Extension] = []
        for name, number, expires_us, signed, agreement in self._database.execute(query):
            extension = self._open("extension", name, Extension, signed)
            record, agreed = extension.record, _parse("extension", name, agreement)
            self._checks.add("extension", Digest(name), Extension, agreed)
            columns = (record.lease, record.number, record.expires_us)
            _require(columns == (name, number, expires_us), "extension", name, "its columns differ from it")
            _require(
                agreed.body == extension.signed.body, "extension", name, "its two sides signed different ends"
            )
            signers = (extension.signer, agreed.signer)
            _require(
                signers == (record.requester, record.provider),
                "extension",
                name,
                "signed by others than its sides",
            )
            under = self._books.by_lease.get(name)
            _require(under is not None, "extension", name, "its lease is not there")
            assert under is not None
            before = [one for one in before if one.lease == name]
            try:
                check_next_extension(under.lease, before, record)
            except LedgerError as error:
                raise AuditFault(Fault("extension", name.hex(), str(error))) from error
            before.append(record)

    def _tasks(self) -> None:
        query = "SELECT id, lease, number, job, task_index, signed FROM task ORDER BY n"
        for name, lease, number, job, index, signed in self._database.execute(query):
            task = self._open("task", name, Task, signed)
            record = task.record
            _require(task.id == name, "task", name, "its id is not that of its bytes")
            columns = (record.lease, record.number, record.job, record.index)
            _require(columns == (lease, number, job, index), "task", name, "its columns differ from it")
            under = self._books.by_lease.get(lease)
            _require(under is not None, "task", name, "its lease is not there")
            assert under is not None
            _require(
                record.requester == under.lease.requester, "task", name, "signed by a stranger to its lease"
            )
            self._books.tasks[name] = (lease, record.max_amount)

    def _receipts(self) -> None:
        query = (
            "SELECT receipt.id, receipt.lease, receipt.lane, receipt.sequence, task, receipt.amount, cumulative, "
            "receipt.signed, verdict, code, accepted_cumulative, answer.signed, "
            "transfer.peer, transfer.unit, transfer.debit, transfer.credit, transfer.amount FROM receipt "
            "LEFT JOIN countersignature AS answer ON answer.receipt = receipt.id "
            "LEFT JOIN transfer ON transfer.source = receipt.id AND transfer.kind IN ('earned', 'spent') "
            "ORDER BY receipt.n"
        )
        for row in self._database.execute(query):
            name, lease, lane, sequence, task, amount, cumulative, signed = row[:8]
            receipt = self._open("receipt", name, Receipt, signed)
            record = receipt.record
            _require(receipt.id == name, "receipt", name, "its id is not that of its bytes")
            columns = (
                record.lease,
                record.lane,
                record.sequence,
                record.task_id,
                record.amount,
                record.cumulative,
            )
            same = columns == (lease, lane, sequence, task, amount, cumulative)
            _require(same, "receipt", name, "its columns differ from it")
            on = self._place(name, record)
            before = on.head
            on.head = before.after(receipt)
            self._answer(on, receipt, before, row[8:12])
            self._transfer(on, receipt, row[10] is not None and row[8] == "accepted", row[12:])

    def _place(self, name: bytes, record: Receipt) -> _Lane:
        """The receipt's lane, with its place on it checked."""
        on = self._books.lanes.get(record.lane)
        _require(
            on is not None and on.lease_id == record.lease, "receipt", name, "its lease or lane is not there"
        )
        assert on is not None
        lease = on.lease
        parties = (record.provider, record.requester, record.mesh, record.unit, record.rate)
        agreed = (lease.provider, lease.requester, lease.mesh, lease.unit, lease.rate)
        _require(parties == agreed, "receipt", name, "it names other peers, unit or rate than its lease")
        task = self._books.tasks.get(record.task_id)
        _require(
            task is not None and task[0] == record.lease, "receipt", name, "its task is not of its lease"
        )
        at = on.head
        _require(
            record.sequence == at.sequence_next,
            "receipt",
            name,
            f"number {at.sequence_next} of its lane is missing",
        )
        _require(record.previous == at.previous, "receipt", name, "it does not name the receipt before it")
        adds_up = record.cumulative == at.cumulative + record.amount
        _require(adds_up, "receipt", name, "its sum is not the one before it and its amount")
        return on

    def _answer(
        self, on: _Lane, receipt: Opened[Receipt], before: LaneHead, columns: tuple[object, ...]
    ) -> None:
        verdict, code, total, data = columns
        name = receipt.id
        if data is None:
            _require(on.role == "provider", "receipt", name, "taken without a countersignature")
            on.accepted = None
            return
        assert isinstance(data, bytes)
        answer = self._open("countersignature", name, Countersignature, data)
        record = answer.record
        same = (record.verdict, record.code, record.accepted_cumulative) == (verdict, code, total)
        _require(same, "countersignature", name, "its columns differ from it")
        try:
            check_countersignature(record, receipt, on.accepted)
        except RemoteProtocolError as error:
            raise AuditFault(Fault("countersignature", name.hex(), str(error))) from error
        on.accepted = record.accepted_cumulative
        if record.verdict == "accepted":
            self._accepted(on, receipt, before)

    def _transfer(
        self, on: _Lane, receipt: Opened[Receipt], accepted: bool, columns: tuple[object, ...]
    ) -> None:
        """The books have an accepted receipt once, between the right accounts, and no other."""
        record = receipt.record
        expected: tuple[object, ...] = (None,) * 5
        if accepted and record.amount:
            accounts = ("due", "income") if on.role == "provider" else ("expense", "due")
            expected = (on.peer, record.unit, *accounts, record.amount)
            self._report.count("transfer")
        _require(
            columns == expected,
            "transfer",
            receipt.id,
            "the books do not have this receipt as it was accepted",
        )

    def _accepted(self, on: _Lane, receipt: Opened[Receipt], before: LaneHead) -> None:
        record, task_id = receipt.record, receipt.record.task_id
        _require(task_id not in self._books.paid, "receipt", receipt.id, "its task is paid twice")
        self._books.paid.add(task_id)
        most = self._books.tasks[task_id][1]
        due = amount_due(on.lease, most, before.cumulative, record.status, record.billed_us)
        right = record.amount == due
        _require(right, "receipt", receipt.id, f"accepted for {record.amount}, rate and time give {due}")
        key = (on.peer, record.unit)
        to_me, by_me = self._report.balances.get(key, (0, 0))
        if on.role == "provider":
            to_me += record.amount
        else:
            by_me += record.amount
        self._report.balances[key] = (to_me, by_me)

    def _leftovers(self) -> None:
        """What refers to receipts and tasks without being signed."""
        (kept,) = self._database.execute(
            "SELECT count(*) FROM transfer WHERE kind IN ('earned', 'spent')"
        ).fetchone()
        right = kept == self._report.counts.get("transfer", 0)
        _require(right, "transfer", b"", "the books have transfers without an accepted receipt")
        for task, code in self._database.execute("SELECT task, code FROM superseded"):
            _require(
                task not in self._books.paid, "superseded", task, f"given up ({code}), and paid all the same"
            )
            self._report.count("superseded")
        odd = self._database.execute(
            "SELECT receipt.id FROM receipt JOIN lease ON lease.id = receipt.lease WHERE role = 'provider' AND "
            "(receipt.id IN (SELECT receipt FROM unsettled)) = (receipt.id IN (SELECT receipt FROM countersignature))"
        ).fetchone()
        _require(
            odd is None,
            "unsettled",
            b"" if odd is None else odd[0],
            "neither open nor countersigned, or both",
        )


def _parse(table: str, name: bytes, data: bytes) -> SignedRecord:
    try:
        return from_bytes(data)
    except RemoteProtocolError as error:
        raise AuditFault(Fault(table, name.hex(), str(error))) from error


def _require(holds: bool, table: str, name: bytes, otherwise: str) -> None:
    if not holds:
        raise AuditFault(Fault(table, name.hex(), otherwise))
