"""The ledger's book over SQLite: what the rules read, and how a group of commits becomes one transaction.

Blocking, for one thread at a time; `ledger_store` gives it a thread. Each caller's entries are one savepoint in the
group's transaction, so they are written all or none, and a caller whose entries conflict fails alone.
"""

import sqlite3
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, TypeVar

from coppermesh.agent.ledger import (
    MAX_EVIDENCE_PER_PEER,
    Change,
    Entry,
    EvidenceFound,
    LeaseEnded,
    LedgerConflict,
    LedgerError,
    NewAgreement,
    NewCountersignature,
    NewExtension,
    NewLease,
    NewReceipt,
    NewTask,
    StoredLease,
    StoredReceipt,
    TaskSuperseded,
)
from coppermesh.agent.ledger_rules import judge
from coppermesh.agent.ledger_settling import SettlingTables
from coppermesh.agent.receipts import LaneHead
from coppermesh.agent.story import StoryLine
from coppermesh.p2p.envelope import Opened, from_bytes, open_verified, record_id, to_bytes
from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.ids import Digest, PeerId
from coppermesh.p2p.lease_records import Extension
from coppermesh.p2p.records import Countersignature, Lease, Receipt, Record, SignedRecord, Task

MAX_LEASES_KEPT = 256
STORY_KEEP = 200_000
"""How many story lines are kept; the oldest go first."""
TRIM_EVERY = 10_000
"""After how many new story lines the oldest are looked for."""
_SIZE_BYTES = 8
_OUTPUT_BYTES = 32 + _SIZE_BYTES

_RECEIPT_COLUMNS = """
SELECT signed, outputs, sentence, detail FROM receipt LEFT JOIN unsettled ON receipt.id = unsettled.receipt
"""
_RECEIPT_BY_ID = _RECEIPT_COLUMNS + "WHERE id=?"
_RECEIPT_BY_PLACE = _RECEIPT_COLUMNS + "WHERE lane=? AND sequence=?"

# The books' side of an accepted receipt: who owes whom, from which side of the lease this peer is on.
_POST_ACCEPTED = """
INSERT INTO transfer
SELECT NULL, receipt.id, CASE role WHEN 'provider' THEN 'earned' ELSE 'spent' END, peer, unit,
  CASE role WHEN 'provider' THEN 'due' ELSE 'expense' END,
  CASE role WHEN 'provider' THEN 'income' ELSE 'due' END, amount
FROM receipt JOIN lease ON lease.id = receipt.lease WHERE receipt.id = ? AND amount > 0
"""

_UNFIT = (
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    ValueError,
    OverflowError,
)
"""What the tables' own constraints, or values that do not fit in them, raise: one caller's fault."""

R = TypeVar("R", bound=Record)


class LedgerFull(LedgerError):
    """No room on the disk. Nothing of this commit was written; the ledger works again once there is room."""


class LedgerFailed(LedgerError):
    """The ledger's disk or file failed. Nothing of this commit is known to be written; stop taking work."""


def explain_failure(error: sqlite3.Error) -> LedgerError:
    """What an error of SQLite means to the caller.

    A quota (EDQUOT) and a file size limit (EFBIG) reach us as SQLITE_IOERR_WRITE, a full disk as SQLITE_FULL or, when
    the shared-memory file cannot grow, as SQLITE_IOERR_SHMSIZE.
    """
    name = getattr(error, "sqlite_errorname", "") or ""
    if name in ("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_SHMOPEN"):
        return LedgerFull(f"the ledger cannot grow: the disk, a quota or a file size limit is full ({error})")
    return LedgerFailed(f"the ledger's file failed: {error} ({name or type(error).__name__})")


class LedgerBook:
    """A `Book` (see `ledger`) in a SQLite connection, and its writer."""

    def __init__(self, database: sqlite3.Connection, me: PeerId) -> None:
        self._database = database
        self._me = me
        self._untrimmed = 0
        self.settling = SettlingTables(database, me)
        self._leases: OrderedDict[bytes, StoredLease] = OrderedDict()
        """Leases read lately: they never change, and every receipt asks for one. Empty again after a rollback."""
        self._sealed: frozenset[bytes] | None = None
        """Only a restore seals lanes, and no book is open then."""

    @property
    def me(self) -> PeerId:
        """Whose ledger this is."""
        return self._me

    def close(self) -> None:
        """Closes the connection; what is committed stays."""
        self._database.close()

    def commit_group(self, groups: Sequence[Sequence[Entry]]) -> list[MeshError | None]:
        """Writes what every caller asked for in one transaction; the outcome of each is None or its error.

        Durable when it returns. Raises LedgerFull or LedgerFailed where nothing of the whole group was written.
        """
        try:
            self._database.execute("BEGIN IMMEDIATE")
            outcomes = [self._commit_one(group) for group in groups]
            self._trim_story()
            self._database.execute("COMMIT")
        except BaseException as error:
            self._roll_back()
            if isinstance(error, sqlite3.Error):
                raise explain_failure(error) from error
            raise
        return outcomes

    def lease(self, lease_id: Digest) -> StoredLease | None:
        """The lease with this id."""
        known = self._leases.get(lease_id)
        if known is not None:
            self._leases.move_to_end(lease_id)
            return known
        row = self._one("SELECT role, signed, order_signed, bid_signed FROM lease WHERE id=?", lease_id)
        if row is None:
            return None
        found = StoredLease(row[0], reopen(Lease, row[1]), from_bytes(row[2]), from_bytes(row[3]))
        self._leases[lease_id] = found
        if len(self._leases) > MAX_LEASES_KEPT:
            self._leases.popitem(last=False)
        return found

    def lease_on(self, lane: bytes) -> Digest | None:
        """Which lease a lane belongs to."""
        row = self._one("SELECT id FROM lease WHERE lane=?", lane)
        return Digest(row[0]) if row is not None else None

    def agreement(self, lease_id: Digest) -> SignedRecord | None:
        """The provider's signature of a lease."""
        row = self._one("SELECT signed FROM agreement WHERE lease=?", lease_id)
        return from_bytes(row[0]) if row is not None else None

    def extensions(self, lease_id: Digest) -> list[Opened[Extension]]:
        """The extensions of a lease, in order, as the requester signed them."""
        rows = self._database.execute(
            "SELECT signed FROM extension WHERE lease=? ORDER BY number", (lease_id,)
        )
        return [reopen(Extension, row[0]) for row in rows]

    def lease_end(self, lease_id: Digest) -> str | None:
        """The code under which a lease ended."""
        row = self._one("SELECT code FROM lease_end WHERE lease=?", lease_id)
        return str(row[0]) if row is not None else None

    def task(self, task_id: Digest) -> Opened[Task] | None:
        """The task with this id."""
        row = self._one("SELECT signed FROM task WHERE id=?", task_id)
        return reopen(Task, row[0]) if row is not None else None

    def task_numbered(self, lease_id: Digest, number: int) -> Opened[Task] | None:
        """The task with this number under a lease."""
        row = self._one("SELECT signed FROM task WHERE lease=? AND number=?", lease_id, number)
        return reopen(Task, row[0]) if row is not None else None

    def given_up(self, task_id: Digest) -> str | None:
        """The code under which a task was superseded."""
        row = self._one("SELECT code FROM superseded WHERE task=?", task_id)
        return str(row[0]) if row is not None else None

    def receipt(self, receipt_id: Digest) -> StoredReceipt | None:
        """The receipt with this id."""
        return self._receipt(_RECEIPT_BY_ID, receipt_id)

    def receipt_at(self, lane: bytes, sequence: int) -> StoredReceipt | None:
        """The receipt at this place on a lane."""
        return self._receipt(_RECEIPT_BY_PLACE, lane, sequence)

    def receipts_of(self, task_id: Digest) -> list[Digest]:
        """The ids of a task's receipts, oldest first."""
        rows = self._database.execute("SELECT id FROM receipt WHERE task=? ORDER BY n", (task_id,))
        return [Digest(row[0]) for row in rows]

    def head(self, lane: bytes) -> LaneHead:
        """Where a lane stands."""
        row = self._one(
            "SELECT sequence, id, cumulative FROM receipt WHERE lane=? ORDER BY sequence DESC LIMIT 1", lane
        )
        if row is None:
            return LaneHead()
        answered = self._one(
            "SELECT accepted_cumulative FROM countersignature WHERE lane=? ORDER BY sequence DESC LIMIT 1",
            lane,
        )
        return LaneHead(row[0] + 1, Digest(row[1]), row[2], answered[0] if answered is not None else 0)

    def countersignature(self, receipt_id: Digest) -> Opened[Countersignature] | None:
        """The countersignature of a receipt."""
        row = self._one("SELECT signed FROM countersignature WHERE receipt=?", receipt_id)
        return reopen(Countersignature, row[0]) if row is not None else None

    def sealed(self, lane: bytes) -> bool:
        """Is this a lane of before a restore?"""
        if self._sealed is None:
            rows = self._database.execute("SELECT lane FROM sealed")
            self._sealed = frozenset(row[0] for row in rows)
        return lane in self._sealed

    def _receipt(self, query: str, *values: object) -> StoredReceipt | None:
        row = self._one(query, *values)
        if row is None:
            return None
        opened = reopen(Receipt, row[0])
        if row[1] is None:
            return StoredReceipt(opened)
        return StoredReceipt(opened, unpack_outputs(row[1]), row[2], row[3])

    def _one(self, query: str, *values: object) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._database.execute(query, values).fetchone()
        return row

    def _commit_one(self, entries: Sequence[Entry]) -> MeshError | None:
        self._database.execute("SAVEPOINT caller")
        failure: MeshError | None = None
        try:
            for entry in entries:
                change = judge(entry, self)
                if change is not None:
                    self._write(change)
        except MeshError as error:
            failure = error
        except _UNFIT as error:
            failure = LedgerConflict("unfit", f"the entry does not fit the ledger: {error}")
            failure.__cause__ = error
        if failure is not None:
            self._database.execute("ROLLBACK TO caller")
            self._leases.clear()
            if isinstance(failure, LedgerConflict) and failure.evidence is not None:
                self._write(failure.evidence)
        self._database.execute("RELEASE caller")
        return failure

    def _trim_story(self) -> None:
        """Forgets the oldest story lines above `STORY_KEEP`, now and then."""
        if self._untrimmed < TRIM_EVERY:
            return
        self._untrimmed = 0
        (newest,) = self._database.execute("SELECT coalesce(max(n), 0) FROM story").fetchone()
        self._database.execute("DELETE FROM story WHERE n <= ?", (newest - STORY_KEEP,))

    def _roll_back(self) -> None:
        self._leases.clear()
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")

    def _write(self, change: Change) -> None:
        match change:
            case NewLease():
                self._write_lease(change)
            case NewAgreement():
                self._insert("agreement", change.lease_id, to_bytes(change.signed))
            case NewExtension(extension, agreed):
                record = extension.record
                signed = (to_bytes(extension.signed), to_bytes(agreed))
                self._insert("extension", record.lease, record.number, record.expires_us, *signed)
            case NewTask():
                self._write_task(change.task)
            case TaskSuperseded():
                self._insert("superseded", change.task_id, change.code)
            case NewReceipt():
                self._write_receipt(change)
            case NewCountersignature():
                self._write_countersignature(change.countersignature)
                receipt = change.countersignature.record.receipt
                self._database.execute("DELETE FROM unsettled WHERE receipt=?", (receipt,))
            case LeaseEnded():
                self._insert("lease_end", change.lease_id, change.code)
            case EvidenceFound():
                self._write_evidence(change)
            case StoryLine():
                line = change
                self._untrimmed += 1
                self._insert(
                    "story",
                    None,
                    line.job,
                    line.at_us,
                    line.cause,
                    line.kind,
                    line.peer,
                    line.task,
                    line.text,
                )
            case _:
                self.settling.write(change)

    def _write_lease(self, new: NewLease) -> None:
        lease = new.lease.opened
        record = lease.record
        peer = record.provider if new.lease.role == "requester" else record.requester
        signed = (to_bytes(record) for record in (lease.signed, new.lease.order, new.lease.bid))
        self._insert("lease", lease.id, new.lease.role, peer, record.lane, record.unit, *signed)
        if new.agreed is not None:
            self._insert("agreement", lease.id, to_bytes(new.agreed))

    def _write_task(self, task: Opened[Task]) -> None:
        record = task.record
        self._insert(
            "task",
            None,
            task.id,
            record.lease,
            record.number,
            record.job,
            record.index,
            to_bytes(task.signed),
        )

    def _write_receipt(self, new: NewReceipt) -> None:
        stored = new.receipt
        receipt, record = stored.opened, stored.opened.record
        place = (record.lease, record.provider, record.lane, record.sequence, record.task_id)
        self._insert(
            "receipt", None, receipt.id, *place, record.amount, record.cumulative, to_bytes(receipt.signed)
        )
        if new.countersignature is not None:
            self._write_countersignature(new.countersignature)
        else:
            self._insert(
                "unsettled", receipt.id, pack_outputs(stored.outputs), stored.sentence, stored.detail
            )

    def _write_countersignature(self, answer: Opened[Countersignature]) -> None:
        record = answer.record
        if record.verdict == "accepted":
            self._database.execute(_POST_ACCEPTED, (record.receipt,))
        place = (record.receipt, record.lane, record.sequence)
        self._insert(
            "countersignature",
            *place,
            record.verdict,
            record.code,
            record.accepted_cumulative,
            to_bytes(answer.signed),
        )

    def _write_evidence(self, found: EvidenceFound) -> None:
        records = b"".join(
            len(data).to_bytes(_SIZE_BYTES, "big") + data for data in map(to_bytes, found.records)
        )
        (kept,) = self._database.execute(
            "SELECT count(*) FROM evidence WHERE peer=?", (found.peer,)
        ).fetchone()
        if kept >= MAX_EVIDENCE_PER_PEER:
            return
        evidence_id = record_id(found.kind.encode() + b"\0" + found.peer + records)
        self._database.execute(
            "INSERT OR IGNORE INTO evidence VALUES(NULL, ?, ?, ?, ?, ?, ?)",
            (evidence_id, found.kind, found.peer, found.at_us, found.text, records),
        )

    def _insert(self, table: str, *values: object) -> None:
        marks = ",".join("?" * len(values))
        self._database.execute(f"INSERT INTO {table} VALUES({marks})", values)


def reopen(kind: type[R], data: bytes) -> Opened[R]:
    """A signed record from the ledger, whose signature was checked before it was written."""
    return open_verified(kind, from_bytes(data))


def pack_outputs(outputs: Sequence[tuple[bytes, int]]) -> bytes:
    """Roots and sizes as 40 bytes each."""
    return b"".join(root + size.to_bytes(_SIZE_BYTES, "big") for root, size in outputs)


def unpack_outputs(data: bytes) -> tuple[tuple[bytes, int], ...]:
    """The inverse of `pack_outputs`."""
    starts = range(0, len(data), _OUTPUT_BYTES)
    return tuple(
        (data[at : at + 32], int.from_bytes(data[at + 32 : at + _OUTPUT_BYTES], "big")) for at in starts
    )


def unpack_records(data: bytes) -> tuple[SignedRecord, ...]:
    """The records of one piece of evidence."""
    records = []
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + _SIZE_BYTES], "big")
        at += _SIZE_BYTES
        records.append(from_bytes(data[at : at + size]))
        at += size
    return tuple(records)
