"""The agent's ledger for trio tasks: durable commits in groups, notes, and reads.

A commit that is cancelled while it waits for a place in the queue did not happen. Once in the queue it cannot be
cancelled any more: it returns or raises as if nothing was, after at most a few disk writes, and the cancellation
strikes at the caller's next checkpoint. So what a caller keeps in memory, changed right after the commit without a
checkpoint in between, never disagrees with the file.

Notes are not waited for. They ride with the next group, at the latest after 0.2 s or when the store closes, and are
dropped and counted when too many wait or when they cannot be written.

Who writes a chain of receipts (either side) holds one lock per lane from reading the head to the commit. Without it
nothing false is written, since the second of two entries that build on one head conflicts, but work is repeated.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import trio

from coppermesh.agent.ledger import (
    Balance,
    Entry,
    EvidenceFound,
    LeaseEnded,
    LedgerConflict,
    LedgerError,
    Role,
    StoredLease,
    StoredReceipt,
)
from coppermesh.agent.ledger_book import LedgerBook, LedgerFailed, LedgerFull
from coppermesh.agent.ledger_files import LedgerUnusable, open_database, open_for_reading
from coppermesh.agent.ledger_reader import (
    JobRow,
    LedgerReader,
    NotInLedger,
    ReceiptContext,
    ReceiptRow,
    SubmittedJob,
    UnsettledReceipt,
    read_ledger,
)
from coppermesh.agent.ledger_settling import SettlingTables
from coppermesh.agent.ledger_writer import Commit, LedgerWriter
from coppermesh.agent.receipts import LaneHead
from coppermesh.agent.reputation import Dealings, Facts
from coppermesh.agent.story import StoryLine
from coppermesh.p2p.envelope import Opened
from coppermesh.p2p.ids import Digest, MeshId, PeerId
from coppermesh.p2p.places import take_place
from coppermesh.p2p.records import Receipt, SignedRecord, Task

__all__ = [
    "JobRow",
    "LedgerConflict",
    "LedgerError",
    "LedgerFailed",
    "LedgerFull",
    "LedgerReader",
    "LedgerStore",
    "LedgerUnusable",
    "NotInLedger",
    "ReceiptContext",
    "ReceiptRow",
    "UnsettledReceipt",
    "open_ledger",
    "read_ledger",
]

MAX_WAITING = 1024
"""How many commits may wait at once; further callers wait for their turn to wait."""

P = ParamSpec("P")
T = TypeVar("T")


@asynccontextmanager
async def open_ledger(path: Path, mesh: MeshId, me: PeerId) -> AsyncIterator["LedgerStore"]:
    """The ledger at `path`, made where it is missing; closed, with everything written, when the block ends.

    One process at a time: the home's lock sees to that.
    Raises LedgerUnusable: on a network filesystem, another's file, a newer version, another mesh or peer, or damage.
    """
    book, reader, views = await trio.to_thread.run_sync(_open_all, path, mesh, me)
    token = trio.lowlevel.current_trio_token()

    def answer(commits: Sequence[Commit]) -> None:
        token.run_sync_soon(_wake, commits)

    writer = LedgerWriter(book, answer)
    writer.start()
    try:
        yield LedgerStore(writer, reader, views)
    finally:
        writer.close()
        with trio.CancelScope(shield=True):
            # Bounded: at most MAX_WAITING commits are left to write.
            await trio.to_thread.run_sync(writer.join)
        # In this order: the last connection to close writes the log back, which a reader cannot.
        views.close()
        reader.close()
        book.close()


def _open_all(path: Path, mesh: MeshId, me: PeerId) -> tuple[LedgerBook, LedgerReader, LedgerReader]:
    with ExitStack() as opened:
        book = LedgerBook(open_database(path, mesh, me), me)
        opened.callback(book.close)
        reader = LedgerReader(open_for_reading(path))
        opened.callback(reader.close)
        views = LedgerReader(open_for_reading(path))
        opened.pop_all()
    return book, reader, views


def _wake(commits: Sequence[Commit]) -> None:
    for commit in commits:
        commit.wake()


class LedgerStore:
    """An open ledger; make one with `open_ledger`. Reads raise LedgerFailed where the file fails."""

    def __init__(self, writer: LedgerWriter, reader: LedgerReader, views: LedgerReader) -> None:
        self._writer = writer
        self._reader = reader
        self._views = views
        """For what people look at: a long list must not hold up the path of a job."""
        self._room = trio.Semaphore(MAX_WAITING)
        self._reading = trio.CapacityLimiter(1)
        self._viewing = trio.CapacityLimiter(1)

    async def commit(self, *entries: Entry) -> None:
        """Writes these entries together, or none of them; they are on the disk when this returns.

        Raises LedgerConflict where one contradicts what is there, LedgerFull where there is no room, LedgerFailed
        where the disk fails, LedgerError once closed. When cancelled, nothing was written.
        """
        await take_place(self._room)
        done = trio.Event()

        def answered() -> None:
            self._room.release()
            done.set()

        commit = Commit(entries, answered)
        try:
            self._writer.put(commit)
        except LedgerError:
            self._room.release()
            raise
        with trio.CancelScope(shield=True):
            await done.wait()
        if commit.failure is not None:
            raise commit.failure

    def note(self, line: StoryLine) -> None:
        """Writes a line soon, without waiting; it may be lost in a crash."""
        self._writer.note(line)

    def note_ended(self, ended: LeaseEnded) -> None:
        """Writes a lease's end like a note: losing it costs nothing, since the lease expires by itself."""
        self._writer.note(ended)

    @property
    def notes_lost(self) -> int:
        """How many notes were dropped since the ledger was opened."""
        return self._writer.notes_lost

    async def lane_head(self, lane: bytes) -> LaneHead:
        """Where a lane stands."""
        return await self._read(self._reader.lane_head, lane)

    async def lease(self, lease_id: Digest) -> StoredLease | None:
        """The lease with this id."""
        return await self._read(self._reader.lease, lease_id)

    async def open_leases(self) -> list[StoredLease]:
        """Leases that were agreed and have not ended: what a restarted agent has to end or take up again."""
        return await self._read(self._reader.open_leases)

    async def lease_ends(self, leases: Sequence[Digest]) -> dict[Digest, int]:
        """When those of these leases end that were extended, microseconds since the epoch."""
        return await self._read(self._reader.lease_ends, leases)

    async def task(self, task_id: Digest) -> Opened[Task] | None:
        """The task with this id."""
        return await self._read(self._reader.task, task_id)

    async def spent_tasks(self, lease_id: Digest) -> list[tuple[int, Digest]]:
        """Number and id of every task under a lease: what `SpentNumbers` starts from after a restart."""
        return await self._read(self._reader.spent_tasks, lease_id)

    async def unanswered_tasks(self) -> list[tuple[Role, Opened[Task]]]:
        """Tasks with neither a receipt nor a superseding: what was in flight when the agent died."""
        return await self._read(self._reader.unanswered_tasks)

    async def receipt(self, receipt_id: Digest) -> StoredReceipt | None:
        """The receipt with this id."""
        return await self._read(self._reader.receipt, receipt_id)

    async def context(self, receipt: Opened[Receipt]) -> ReceiptContext:
        """All that it takes to judge a receipt that arrived, as of one moment."""
        return await self._read(self._reader.context, receipt)

    async def countersignature_of(self, receipt_id: Digest) -> SignedRecord | None:
        """The countersignature of a receipt, as it was signed."""
        return await self._read(self._reader.countersignature_of, receipt_id)

    async def receipts(
        self, *, job: bytes | None = None, index: int | None = None, limit: int = 100
    ) -> list[ReceiptRow]:
        """Receipts, newest first, of one job, of one of its tasks, or of all."""
        return await self._view(self._views.receipts, job=job, index=index, limit=limit)

    async def find_receipt(self, prefix: str) -> ReceiptRow:
        """The one receipt whose id begins with these hexadecimal digits. Raises NotInLedger."""
        return await self._view(self._views.find_receipt, prefix)

    async def unsettled(
        self, requester: PeerId | None = None, limit: int = 1000, after: int = 0
    ) -> list[UnsettledReceipt]:
        """Own receipts without a countersignature, oldest first, of one requester or of all, behind that place."""
        return await self._read(self._reader.unsettled, requester, limit, after)

    async def balances(self) -> list[Balance]:
        """What stands between this peer and each other one, by unit."""
        return await self._view(self._views.balances)

    async def dealings(self, peer: PeerId, unit: str, now_us: int) -> Dealings:
        """What was done and settled with a peer in one unit."""
        return await self._read(self._reader.dealings, peer, unit, now_us)

    async def all_dealings(self, unit: str, now_us: int) -> list[tuple[PeerId, Facts]]:
        """Own dealings with every peer in one unit."""
        return await self._view(self._views.all_dealings, unit, now_us)

    async def look(self, read: Callable[[SettlingTables], T]) -> T:
        """What `read` finds in the tables of settling, all at one moment; it runs in a thread."""
        return await self._view(self._views.look, read)

    async def story(self, job: str | bytes) -> list[StoryLine]:
        """The lines of one job, by its bytes or its first hexadecimal digits. Raises NotInLedger."""
        return await self._view(self._views.story, job)

    async def find_job(self, prefix: str) -> bytes:
        """The one job whose id begins with these hexadecimal digits. Raises NotInLedger."""
        return await self._view(self._views.find_job, prefix)

    async def jobs(self, limit: int = 100) -> list[JobRow]:
        """Jobs that were submitted or served here, newest first."""
        return await self._view(self._views.jobs, limit)

    async def submitted(self, limit: int = 100) -> list[SubmittedJob]:
        """Jobs that were submitted here, newest first."""
        return await self._view(self._views.submitted, limit)

    async def earned(self, since_us: int = 0) -> list[ReceiptRow]:
        """Own receipts as provider that ended at or after `since_us`, oldest first."""
        return await self._view(self._views.earned, since_us)

    async def evidence(self) -> list[EvidenceFound]:
        """What was kept against other peers, oldest first."""
        return await self._view(self._views.evidence)

    async def receipt_file(self, receipt_id: Digest) -> bytes:
        """The receipt and its countersignature as a file for `receipts verify`. Raises NotInLedger."""
        return await self._view(self._views.receipt_file, receipt_id)

    async def _read(self, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await trio.to_thread.run_sync(partial(read, *args, **kwargs), limiter=self._reading)

    async def _view(self, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await trio.to_thread.run_sync(partial(read, *args, **kwargs), limiter=self._viewing)
