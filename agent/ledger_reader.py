"""Everything that is read from a ledger: for the agent's shells, and for offline verbs while no agent runs.

Blocking; `ledger_store` calls it in a thread on a connection of its own. Each call sees the ledger at one moment.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from coppermesh.agent.ledger import Balance, EvidenceFound, LedgerError, Role, StoredLease, StoredReceipt
from coppermesh.agent.ledger_book import LedgerBook, explain_failure, reopen, unpack_outputs, unpack_records
from coppermesh.agent.ledger_files import open_for_reading, refuse_network_filesystem
from coppermesh.agent.ledger_history import dealings_with, facts_about, peers_dealt_with
from coppermesh.agent.ledger_settling import SettlingTables
from coppermesh.agent.receipts import LaneHead, is_broken_chain, is_equivocation
from coppermesh.agent.reputation import Dealings, Facts
from coppermesh.agent.story import StoryLine
from coppermesh.p2p.envelope import Opened, open_verified
from coppermesh.p2p.ids import Digest, MeshId, PeerId
from coppermesh.p2p.receipt_file import encode_receipt_file
from coppermesh.p2p.records import Countersignature, Lease, Order, Receipt, SignedRecord, Task

P = ParamSpec("P")
T = TypeVar("T")


class NotInLedger(LedgerError):
    """Nothing, or more than one thing, goes by that name in this ledger; the text says which."""

    code = "not-in-ledger"


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    """A receipt as lists show it."""

    id: Digest
    receipt: Receipt
    role: Role
    """Which side this peer is on."""
    job: bytes
    index: int
    """Which task of the job."""
    countersignature: Countersignature | None

    @property
    def peer(self) -> PeerId:
        """The other side."""
        return PeerId(self.receipt.provider if self.role == "requester" else self.receipt.requester)

    @property
    def verdict(self) -> str:
        """`accepted`, `disputed`, or `open` while there is no countersignature."""
        return "open" if self.countersignature is None else self.countersignature.verdict


@dataclass(frozen=True, slots=True)
class UnsettledReceipt:
    """A receipt that the requester has not answered, with what it takes to send the result again."""

    receipt: Opened[Receipt]
    outputs: tuple[tuple[bytes, int], ...]
    """Root and size in bytes of each output."""
    sentence: str
    detail: str
    place: int
    """Rises with each receipt of this ledger."""


@dataclass(frozen=True, slots=True)
class ReceiptContext:
    """What a requester needs to judge a receipt that arrived, as of one moment."""

    lease: Opened[Lease] | None
    """None: no such lease here with this peer as its requester; the receipt is not for us."""
    task: Opened[Task] | None
    head: LaneHead
    countersignature: SignedRecord | None
    """Set where this very receipt was countersigned before: send that again."""
    rival: Opened[Receipt] | None
    """Another receipt that holds the same place: the two prove an equivocation."""
    given_up: str | None
    """The code under which the task was superseded."""
    already_answered: bool
    """Another receipt of the same task was countersigned: a task has one that counts."""
    before: Opened[Receipt] | None
    """The receipt one place earlier on the lane."""
    features: frozenset[str] = frozenset()
    """What the lease's order asked for."""
    sealed: bool = False
    """The lane is from before a restore: nothing new is countersigned on it."""

    def evidence(self, receipt: Opened[Receipt], at_us: int) -> EvidenceFound | None:
        """What this receipt proves against its provider, to be committed: an equivocation or a broken chain."""
        provider = PeerId(receipt.record.provider)
        if self.rival is not None and is_equivocation(self.rival, receipt):
            text = "signed two receipts for one place on its lane"
            return EvidenceFound("equivocation", provider, (self.rival.signed, receipt.signed), at_us, text)
        if self.before is not None and is_broken_chain(self.before, receipt):
            text = "signed a receipt that does not follow from the one before"
            return EvidenceFound("broken-chain", provider, (self.before.signed, receipt.signed), at_us, text)
        return None


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job that this ledger knows of."""

    job: bytes
    first_us: int
    """Time of its first story line; 0 where the story is gone."""
    tasks: int
    receipts: int
    accepted: int


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job that was submitted here, as far as its story and its receipts tell."""

    job: bytes
    submitted_us: int
    tasks: int
    done: int
    """Tasks with an accepted receipt, the one that the job failed at left out."""
    cost: int
    """What accepted receipts add up to, in 10^-6 of `unit`."""
    unit: str
    end: str
    """`done`, `gave-up CODE: ...`, or empty where no end was written."""


def _at_one_moment(
    method: Callable[Concatenate["LedgerReader", P], T],
) -> Callable[Concatenate["LedgerReader", P], T]:
    def read(self: "LedgerReader", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.snapshot(lambda: method(self, *args, **kwargs))

    read.__doc__ = method.__doc__
    read.__name__ = method.__name__
    return read


class LedgerReader:
    """Reads one ledger through its own connection. Methods raise LedgerError where the file fails."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        (me,) = database.execute("SELECT value FROM meta WHERE key='me'").fetchone()
        self._book = LedgerBook(database, PeerId(me))

    @property
    def me(self) -> PeerId:
        """Whose ledger this is."""
        return self._book.me

    @property
    def mesh(self) -> MeshId:
        """On which mesh."""
        (mesh,) = self._database.execute("SELECT value FROM meta WHERE key='mesh'").fetchone()
        return MeshId(mesh)

    def close(self) -> None:
        """Closes the connection."""
        self._database.close()

    def snapshot(self, read: Callable[[], T]) -> T:
        """Runs `read` so that all its queries see the ledger at one moment."""
        try:
            self._database.execute("BEGIN")
            try:
                return read()
            finally:
                self._database.execute("COMMIT")
        except sqlite3.Error as error:
            raise explain_failure(error) from error

    @_at_one_moment
    def dealings(self, peer: PeerId, unit: str, now_us: int) -> Dealings:
        """What was done and settled with a peer in one unit."""
        return dealings_with(self._database, peer, unit, now_us)

    @_at_one_moment
    def reputation_facts(self, peer: PeerId, unit: str, now_us: int, interval: int) -> Facts:
        """What a peer's reputation is computed from: own dealings, and others' scores with their weight."""
        return facts_about(self._database, peer, unit, now_us, interval)

    @_at_one_moment
    def all_dealings(self, unit: str, now_us: int) -> list[tuple[PeerId, Facts]]:
        """Own dealings with every peer in one unit, without others' opinions."""
        return [
            (peer, Facts(dealings_with(self._database, peer, unit, now_us), now_us=now_us))
            for peer, of_unit in peers_dealt_with(self._database)
            if of_unit == unit
        ]

    @_at_one_moment
    def peers(self) -> list[tuple[PeerId, str]]:
        """Every peer and unit in which there is a lease."""
        return list(peers_dealt_with(self._database))

    @_at_one_moment
    def look(self, read: Callable[[SettlingTables], T]) -> T:
        """What `read` finds in the tables of settling, all at one moment."""
        return read(self._book.settling)

    @_at_one_moment
    def lane_head(self, lane: bytes) -> LaneHead:
        """Where a lane stands."""
        return self._book.head(lane)

    @_at_one_moment
    def lease(self, lease_id: Digest) -> StoredLease | None:
        """The lease with this id."""
        return self._book.lease(lease_id)

    @_at_one_moment
    def open_leases(self) -> list[StoredLease]:
        """Leases that were agreed and have not ended: what a restarted agent has to end or take up again."""
        rows = self._database.execute(
            "SELECT id FROM lease WHERE id IN (SELECT lease FROM agreement) AND id NOT IN (SELECT lease FROM lease_end)"
        ).fetchall()
        found = (self._book.lease(Digest(row[0])) for row in rows)
        return [lease for lease in found if lease is not None]

    @_at_one_moment
    def lease_ends(self, leases: Sequence[Digest]) -> dict[Digest, int]:
        """When those of these leases end that were extended, microseconds since the epoch."""
        query = "SELECT max(expires_us) FROM extension WHERE lease=?"
        found = ((lease, self._database.execute(query, (lease,)).fetchone()[0]) for lease in leases)
        return {lease: until_us for lease, until_us in found if until_us is not None}

    @_at_one_moment
    def task(self, task_id: Digest) -> Opened[Task] | None:
        """The task with this id."""
        return self._book.task(task_id)

    @_at_one_moment
    def spent_tasks(self, lease_id: Digest) -> list[tuple[int, Digest]]:
        """Number and id of every task under a lease, by number: what `SpentNumbers` starts from after a restart."""
        rows = self._database.execute(
            "SELECT number, id FROM task WHERE lease=? ORDER BY number", (lease_id,)
        )
        return [(row[0], Digest(row[1])) for row in rows]

    @_at_one_moment
    def unanswered_tasks(self) -> list[tuple[Role, Opened[Task]]]:
        """Tasks with neither a receipt nor a superseding, oldest first: what was in flight when the agent died."""
        rows = self._database.execute(
            "SELECT role, task.signed FROM task JOIN lease ON lease.id = task.lease "
            "WHERE task.id NOT IN (SELECT task FROM receipt) AND task.id NOT IN (SELECT task FROM superseded) "
            "ORDER BY task.n"
        )
        return [(row[0], reopen(Task, row[1])) for row in rows]

    @_at_one_moment
    def receipt(self, receipt_id: Digest) -> StoredReceipt | None:
        """The receipt with this id."""
        return self._book.receipt(receipt_id)

    @_at_one_moment
    def context(self, receipt: Opened[Receipt]) -> ReceiptContext:
        """All that it takes to judge a receipt that arrived."""
        record = receipt.record
        lease = self._book.lease(Digest(record.lease))
        answer = self._book.countersignature(receipt.id)
        holder = self._book.receipt_at(record.lane, record.sequence)
        rival = holder.opened if holder is not None and holder.opened.id != receipt.id else None
        before = self._book.receipt_at(record.lane, record.sequence - 1) if record.sequence > 0 else None
        task_id = Digest(record.task_id)
        return ReceiptContext(
            lease=lease.opened if lease is not None and lease.role == "requester" else None,
            task=self._book.task(task_id),
            head=self._book.head(record.lane),
            countersignature=answer.signed if answer is not None else None,
            rival=rival,
            given_up=self._book.given_up(task_id),
            already_answered=any(known != receipt.id for known in self._book.receipts_of(task_id)),
            before=before.opened if before is not None else None,
            features=frozenset(
                open_verified(Order, lease.order).record.features if lease is not None else ()
            ),
            sealed=self._book.sealed(record.lane),
        )

    @_at_one_moment
    def countersignature_of(self, receipt_id: Digest) -> SignedRecord | None:
        """The countersignature of a receipt, as it was signed."""
        answer = self._book.countersignature(receipt_id)
        return answer.signed if answer is not None else None

    @_at_one_moment
    def receipts(
        self, *, job: bytes | None = None, index: int | None = None, limit: int = 100
    ) -> list[ReceiptRow]:
        """Receipts, newest first, of one job, of one of its tasks, or of all."""
        if job is None:
            return self._receipt_rows(_RECEIPTS, limit)
        if index is not None:
            return self._receipt_rows(_RECEIPTS_OF_TASK, job, index, limit)
        return self._receipt_rows(_RECEIPTS_OF_JOB, job, limit)

    @_at_one_moment
    def find_receipt(self, prefix: str) -> ReceiptRow:
        """The one receipt whose id begins with these hexadecimal digits.

        Raises NotInLedger where none or several do, or the digits are no such thing.
        """
        low, high = prefix_range(prefix, 32)
        rows = self._receipt_rows(_RECEIPTS_BETWEEN, low, high, 2)
        if not rows:
            raise NotInLedger(f"no receipt here begins with {prefix}")
        if len(rows) > 1:
            raise NotInLedger(f"several receipts begin with {prefix}: give more digits")
        return rows[0]

    @_at_one_moment
    def unsettled(
        self, requester: PeerId | None = None, limit: int = 1000, after: int = 0
    ) -> list[UnsettledReceipt]:
        """Own receipts without a countersignature, oldest first, of one requester or of all, behind that place."""
        rows = self._database.execute(
            "SELECT receipt.signed, outputs, sentence, detail, receipt.n FROM unsettled "
            "JOIN receipt ON receipt.id = unsettled.receipt JOIN lease ON lease.id = receipt.lease "
            "WHERE lease.peer = coalesce(?, lease.peer) AND receipt.n > ? ORDER BY receipt.n LIMIT ?",
            (requester, after, limit),
        )
        return [
            UnsettledReceipt(reopen(Receipt, signed), unpack_outputs(outputs), *rest)
            for signed, outputs, *rest in rows
        ]

    @_at_one_moment
    def balances(self) -> list[Balance]:
        """What stands between this peer and each other one, by unit. Sums are taken in Python: SQLite's overflow."""
        rows = self._database.execute(_LANE_SUMS).fetchall()
        sums: dict[tuple[bytes, str], list[int]] = {}
        for role, peer, unit, accepted, pending, disputed in rows:
            line = sums.setdefault((peer, unit), [0, 0, 0, 0])
            line[0 if role == "provider" else 1] += accepted
            if role == "provider":
                line[2] += pending
                line[3] += disputed
        settling: dict[tuple[bytes, str, str], int] = {}
        for peer, unit, account, amount in self._database.execute(_SETTLING):
            key = (peer, unit, account)
            settling[key] = settling.get(key, 0) + amount
        return [
            Balance(
                PeerId(peer),
                unit,
                owed_to_me=line[0],
                owed_by_me=line[1],
                pending=line[2],
                disputed=line[3],
                stated=settling.get((peer, unit, "stated"), 0),
                paid=settling.get((peer, unit, "paid"), 0),
            )
            for (peer, unit), line in sorted(sums.items())
        ]

    @_at_one_moment
    def story(self, job: str | bytes) -> list[StoryLine]:
        """The lines of one job in the order they were written; `job` is its bytes or its first hexadecimal digits.

        Where no job begins so, an order may: then its lines alone. Raises NotInLedger where neither or several do.
        """
        low, high = (job, job) if isinstance(job, bytes) else prefix_range(job, 16)
        rows = self._database.execute(
            "SELECT job, at_us, cause, kind, peer, task, text FROM story WHERE job BETWEEN ? AND ? ORDER BY n",
            (low, high),
        ).fetchall()
        if not rows and isinstance(job, str):
            rows = self._order_lines(job)
        if not rows:
            raise NotInLedger(f"no job or order here is called {job if isinstance(job, str) else job.hex()}")
        if len({row[0] for row in rows}) > 1:
            raise NotInLedger(f"several jobs begin with {job!r}: give more digits")
        return [StoryLine(*row) for row in rows]

    def _order_lines(self, prefix: str) -> list[Any]:
        """Story lines of an order, by the first digits of its id; of the oldest of the jobs that it was for."""
        cause = f"order {prefix.lower()[:8]}%"
        return self._database.execute(
            "SELECT job, at_us, cause, kind, peer, task, text FROM story WHERE cause LIKE ?1 AND job = "
            "(SELECT job FROM story WHERE cause LIKE ?1 ORDER BY n LIMIT 1) ORDER BY n",
            (cause,),
        ).fetchall()

    @_at_one_moment
    def find_job(self, prefix: str) -> bytes:
        """The one job whose id begins with these hexadecimal digits. Raises NotInLedger as `story` does."""
        low, high = prefix_range(prefix, 16)
        rows = self._database.execute(
            "SELECT DISTINCT job FROM story WHERE job BETWEEN ? AND ? LIMIT 2", (low, high)
        ).fetchall()
        if not rows:
            raise NotInLedger(f"no job here is called {prefix}")
        if len(rows) > 1:
            raise NotInLedger(f"several jobs begin with {prefix!r}: give more digits")
        return bytes(rows[0][0])

    @_at_one_moment
    def jobs(self, limit: int = 100) -> list[JobRow]:
        """Jobs that were submitted or served here, newest first."""
        rows = self._database.execute(_JOBS, (limit,))
        return [JobRow(*row) for row in rows]

    @_at_one_moment
    def submitted(self, limit: int = 100) -> list[SubmittedJob]:
        """Jobs that were submitted here, newest first."""
        rows = self._database.execute(_SUBMITTED, (limit,))
        return [SubmittedJob(*row) for row in rows]

    @_at_one_moment
    def earned(self, since_us: int = 0) -> list[ReceiptRow]:
        """Own receipts as provider that ended at or after `since_us`, oldest first."""
        rows = (_receipt_row(*row) for row in self._database.execute(_EARNED))
        return [row for row in rows if row.receipt.ended_us >= since_us]

    @_at_one_moment
    def evidence(self) -> list[EvidenceFound]:
        """What was kept against other peers, oldest first."""
        rows = self._database.execute("SELECT kind, peer, records, at_us, text FROM evidence ORDER BY n")
        return [EvidenceFound(row[0], PeerId(row[1]), unpack_records(row[2]), row[3], row[4]) for row in rows]

    @_at_one_moment
    def receipt_file(self, receipt_id: Digest) -> bytes:
        """The receipt and its countersignature as a file for `receipts verify`. Raises NotInLedger."""
        receipt = self._book.receipt(receipt_id)
        if receipt is None:
            raise NotInLedger(f"no receipt here is called {receipt_id.hex()}")
        answer = self._book.countersignature(receipt_id)
        return encode_receipt_file(receipt.opened.signed, answer.signed if answer is not None else None)

    def _receipt_rows(self, query: str, *values: object) -> list[ReceiptRow]:
        return [_receipt_row(*row) for row in self._database.execute(query, values)]


def _receipt_row(signed: bytes, role: Role, job: bytes, index: int, answer: bytes | None) -> ReceiptRow:
    receipt = reopen(Receipt, signed)
    countersignature = reopen(Countersignature, answer).record if answer is not None else None
    return ReceiptRow(receipt.id, receipt.record, role, job, index, countersignature)


_RECEIPT_ROWS = """
SELECT receipt.signed, role, job, task_index, countersignature.signed FROM receipt
JOIN task ON task.id = receipt.task JOIN lease ON lease.id = receipt.lease
LEFT JOIN countersignature ON countersignature.receipt = receipt.id
"""
_NEWEST_FIRST = " ORDER BY receipt.n DESC LIMIT ?"
_RECEIPTS = _RECEIPT_ROWS + _NEWEST_FIRST
_RECEIPTS_OF_JOB = _RECEIPT_ROWS + "WHERE job = ?" + _NEWEST_FIRST
_RECEIPTS_OF_TASK = _RECEIPT_ROWS + "WHERE job = ? AND task_index = ?" + _NEWEST_FIRST
_EARNED = _RECEIPT_ROWS + "WHERE role = 'provider' ORDER BY receipt.n"
_RECEIPTS_BETWEEN = _RECEIPT_ROWS + "WHERE receipt.id BETWEEN ? AND ?" + _NEWEST_FIRST

# The newest countersignature's sum holds what was accepted before it; but a receipt whose own answer is missing is
# pending, not accepted, until it comes: then the answers that are here are added up.
_LANE_SUMS = """
SELECT role, peer, unit,
  CASE WHEN EXISTS(
    SELECT 1 FROM receipt JOIN unsettled ON unsettled.receipt = receipt.id
    WHERE receipt.lane = lease.lane
      AND receipt.sequence < (SELECT max(sequence) FROM countersignature AS answer WHERE answer.lane = lease.lane))
  THEN coalesce((SELECT sum(amount) FROM receipt JOIN countersignature AS answer ON answer.receipt = receipt.id
                 WHERE receipt.lane = lease.lane AND answer.verdict = 'accepted'), 0)
  ELSE coalesce((SELECT accepted_cumulative FROM countersignature AS answer WHERE answer.lane = lease.lane
                 ORDER BY sequence DESC LIMIT 1), 0) END,
  coalesce((SELECT sum(amount) FROM receipt JOIN unsettled ON unsettled.receipt = receipt.id
            WHERE receipt.lane = lease.lane), 0),
  coalesce((SELECT sum(amount) FROM receipt JOIN countersignature AS answer ON answer.receipt = receipt.id
            WHERE receipt.lane = lease.lane AND answer.verdict = 'disputed'), 0)
FROM lease WHERE lane IN (SELECT lane FROM receipt)
"""

_SETTLING = """
SELECT peer, unit, account, amount FROM posting
WHERE kind IN ('stated', 'paid') AND account IN ('stated', 'paid')
"""

_JOBS = """
WITH known AS (
  SELECT job, min(at_us) AS first_us FROM story GROUP BY job
  UNION ALL SELECT job, NULL FROM task)
SELECT known.job, coalesce(max(first_us), 0) AS first,
  (SELECT count(*) FROM task WHERE task.job = known.job),
  (SELECT count(*) FROM task JOIN receipt ON receipt.task = task.id WHERE task.job = known.job),
  (SELECT count(*) FROM task JOIN receipt ON receipt.task = task.id
    JOIN countersignature ON countersignature.receipt = receipt.id
    WHERE task.job = known.job AND verdict = 'accepted')
FROM known GROUP BY known.job ORDER BY first DESC LIMIT ?
"""

# A task with an accepted receipt counts as done, but for the last one that failed in a job that was given up.
_SUBMITTED = """
WITH newest AS (
  SELECT job, min(at_us) AS at_us, CAST(min(text) AS INTEGER) AS tasks, max(n) AS n
  FROM story WHERE kind = 'submitted' GROUP BY job ORDER BY n DESC LIMIT ?),
paid AS (
  SELECT task.job, task.task_index, receipt.amount, lease.unit FROM newest
  JOIN task ON task.job = newest.job JOIN lease ON lease.id = task.lease AND lease.role = 'requester'
  JOIN receipt ON receipt.task = task.id
  JOIN countersignature ON countersignature.receipt = receipt.id AND verdict = 'accepted')
SELECT job, at_us, tasks,
  (SELECT count(DISTINCT task_index) FROM paid WHERE paid.job = newest.job AND (
    NOT EXISTS (SELECT 1 FROM story WHERE story.job = newest.job AND kind = 'gave-up')
    OR task_index IS NOT (SELECT task FROM story WHERE story.job = newest.job AND kind = 'failed'
                          ORDER BY story.n DESC LIMIT 1))),
  coalesce((SELECT sum(amount) FROM paid WHERE paid.job = newest.job), 0),
  coalesce((SELECT max(unit) FROM paid WHERE paid.job = newest.job), 'usd'),
  coalesce((SELECT kind || ' ' || text FROM story WHERE story.job = newest.job AND kind IN ('done', 'gave-up')
            ORDER BY story.n LIMIT 1), '')
FROM newest ORDER BY newest.n DESC
"""


def prefix_range(prefix: str, length: int) -> tuple[bytes, bytes]:
    """The lowest and highest id of `length` bytes that begin with these hexadecimal digits.

    Raises NotInLedger where they are not 1 to 2 * `length` such digits.
    """
    digits = prefix.strip().lower()
    if not 0 < len(digits) <= 2 * length or any(digit not in "0123456789abcdef" for digit in digits):
        raise NotInLedger(f"{prefix!r}: want 1 to {2 * length} hexadecimal digits")
    return bytes.fromhex(digits.ljust(2 * length, "0")), bytes.fromhex(digits.ljust(2 * length, "f"))


@contextmanager
def read_ledger(path: Path) -> Iterator[LedgerReader]:
    """The ledger at `path` for an offline verb; it sees one moment, and an agent may go on writing.

    Raises LedgerUnusable where there is none.
    """
    refuse_network_filesystem(path)
    reader = LedgerReader(open_for_reading(path))
    try:
        yield reader
    finally:
        reader.close()
