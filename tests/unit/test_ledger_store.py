"""The trio side of the ledger: group commit, notes, reads, cancellation, a full disk, closing."""

import os
import sqlite3
import threading
from pathlib import Path

import pytest
import trio

from coppermesh.agent.ledger import (
    CountersignatureReceived,
    Entry,
    LeaseEnded,
    LedgerConflict,
    LedgerError,
    TaskIssued,
    TaskTaken,
)
from coppermesh.agent.ledger_book import LedgerBook, LedgerFailed, LedgerFull, explain_failure
from coppermesh.agent.ledger_files import open_database
from coppermesh.agent.ledger_store import LedgerStore, NotInLedger, open_ledger, read_ledger
from coppermesh.agent.ledger_writer import MAX_NOTES, Commit, LedgerWriter
from coppermesh.agent.receipts import LaneHead, verify_receipt_file
from coppermesh.agent.rehearsal import OUTPUT, Deal, issue, make_deal, settle
from coppermesh.agent.story import StoryLine
from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.ids import Digest, PeerId, mesh_id

MESH = mesh_id("rehearsal")
DEAL = make_deal(1)
LANE = DEAL.lease.record.lane
BUYER = DEAL.requester.peer
SELLER = DEAL.provider.peer


def line(text: str, job: int = 1) -> StoryLine:
    return StoryLine(job.to_bytes(16, "big"), 5, "order 1", "note", SELLER, 0, text)


async def settle_some(store: LedgerStore, deal: Deal, count: int) -> None:
    """Settles `count` tasks of a lease, one commit each."""
    await store.commit(deal.offered(), deal.answered())
    head = LaneHead()
    for number in range(count):
        task = deal.task(number)
        receipt = deal.receipt(task, head)
        answer = deal.answer(receipt, head)
        await store.commit(TaskIssued(task.signed))
        await store.commit(settle(receipt, answer))
        head = head.after(receipt, answer.record.accepted_cumulative)
        assert await store.lane_head(deal.lease.record.lane) == head


async def test_what_was_committed_is_there_after_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with open_ledger(path, MESH, BUYER) as store:
        await settle_some(store, DEAL, 3)
    assert await trio.to_thread.run_sync(os.listdir, tmp_path) == ["ledger.db"], "closing writes the log back"
    async with open_ledger(path, MESH, BUYER) as store:
        assert (await store.lane_head(LANE)).accepted == 9
        assert len(await store.receipts()) == 3
        assert [number for number, _ in await store.spent_tasks(DEAL.lease.id)] == [0, 1, 2]
        (lease,) = await store.open_leases()
        assert (lease.role, lease.opened.id) == ("requester", DEAL.lease.id)


async def test_many_callers_share_commits_and_each_gets_its_own_outcome(tmp_path: Path) -> None:
    deals = [make_deal(number) for number in range(1, 9)]
    codes: list[str] = []

    async def bad_caller(store: LedgerStore) -> None:
        for _ in range(5):
            try:
                await store.commit(line("lost"), make_deal(99).answered())
            except LedgerConflict as conflict:
                codes.append(conflict.code)

    async with open_ledger(tmp_path / "ledger.db", MESH, BUYER) as store:
        async with trio.open_nursery() as nursery:
            for deal in deals:
                nursery.start_soon(settle_some, store, deal, 5)
            nursery.start_soon(bad_caller, store)
        (balance,) = await store.balances()
        assert balance.owed_by_me == 8 * 5 * 3
        assert codes == ["unknown-lease"] * 5
        with pytest.raises(NotInLedger):
            await store.story(line("").job)


async def test_notes_are_written_without_waiting(tmp_path: Path) -> None:
    async with open_ledger(tmp_path / "ledger.db", MESH, BUYER) as store:
        store.note(line("alone"))
        with trio.fail_after(10):
            while not await store.jobs():
                await trio.lowlevel.checkpoint()
        assert await store.story(line("").job) == [line("alone")]
        store.note(line("with the next commit", job=2))
        await store.commit(DEAL.offered(), DEAL.answered())
        assert len(await store.story(line("", job=2).job)) == 1
        store.note_ended(LeaseEnded(DEAL.lease.id, "idle"))
        store.note(line("at the end", job=3))
    with read_ledger(tmp_path / "ledger.db") as reader:
        assert reader.story(line("", job=3).job)[0].text == "at the end"
        assert reader.open_leases() == []


async def test_a_note_that_conflicts_is_counted_and_harms_nobody(tmp_path: Path) -> None:
    async with open_ledger(tmp_path / "ledger.db", MESH, BUYER) as store:
        store.note_ended(LeaseEnded(Digest(bytes(32)), "idle"))
        await store.commit(line("fine"))
        assert store.notes_lost == 1


def test_notes_are_bounded_and_the_rest_counted(tmp_path: Path) -> None:
    book = LedgerBook(open_database(tmp_path / "ledger.db", MESH, BUYER), BUYER)
    writer = LedgerWriter(book, lambda commits: None)
    for number in range(MAX_NOTES + 7):
        writer.note(line(str(number)))
    assert writer.notes_lost == 7
    writer.start()
    writer.close()
    writer.join()
    writer.note(line("too late"))
    assert writer.notes_lost == 8
    book.close()
    with read_ledger(tmp_path / "ledger.db") as reader:
        assert len(reader.story(line("").job)) == MAX_NOTES


def test_what_waits_during_a_commit_is_one_group(tmp_path: Path) -> None:
    groups: list[int] = []

    class Counting(LedgerBook):
        def commit_group(self, groups_of_entries: object) -> list[MeshError | None]:
            assert isinstance(groups_of_entries, list)
            groups.append(len(groups_of_entries))
            return super().commit_group(groups_of_entries)

    book = Counting(open_database(tmp_path / "ledger.db", MESH, BUYER), BUYER)
    answered = threading.Event()
    writer = LedgerWriter(book, lambda commits: answered.set())
    commits = [Commit((line(str(number)),), lambda: None) for number in range(40)]
    for commit in commits:
        writer.put(commit)
    writer.start()
    assert answered.wait(10)
    writer.close()
    writer.join()
    book.close()
    assert groups == [40]
    assert all(commit.failure is None for commit in commits)


async def test_a_commit_is_cancelled_before_it_is_queued_or_not_at_all(tmp_path: Path) -> None:
    async with open_ledger(tmp_path / "ledger.db", MESH, BUYER) as store:
        returned = 0
        for _ in range(50):
            with trio.CancelScope() as cancelled_before:
                cancelled_before.cancel()
                await store.commit(line("never"))
            with trio.move_on_after(0.0002):
                await store.commit(line("counted"))
                returned += 1
        texts = [found.text for found in await store.story(line("").job)] if returned else []
        assert texts == ["counted"] * returned


async def test_a_queued_commit_outlives_its_callers_cancellation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work, go_on = threading.Event(), threading.Event()
    commit_group = LedgerBook.commit_group

    def slow_disk(book: LedgerBook, groups: list[list[Entry]]) -> list[MeshError | None]:
        at_work.set()
        assert go_on.wait(10)
        return commit_group(book, groups)

    monkeypatch.setattr(LedgerBook, "commit_group", slow_disk)
    async with open_ledger(tmp_path / "ledger.db", MESH, BUYER) as store:
        returned: list[bool] = []

        async def caller() -> None:
            await store.commit(line("written"))
            returned.append(True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller)
            await trio.to_thread.run_sync(at_work.wait)
            nursery.cancel_scope.cancel()
            go_on.set()
        assert returned == [True]
        assert [found.text for found in await store.story(line("").job)] == ["written"]


async def test_leaving_the_block_while_a_commit_waits_loses_nothing(tmp_path: Path) -> None:
    kept: list[LedgerStore] = []

    async def fail_inside() -> None:
        async with open_ledger(tmp_path / "ledger.db", MESH, BUYER) as store:
            kept.append(store)
            await store.commit(line("before"))
            raise RuntimeError("the body failed")

    with pytest.raises(RuntimeError, match="the body failed"):
        await fail_inside()
    with pytest.raises(LedgerError, match="closed"):
        await kept[0].commit(line("after"))
    with read_ledger(tmp_path / "ledger.db") as reader:
        assert [found.text for found in reader.story(line("").job)] == ["before"]


async def test_a_bug_in_the_book_reaches_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_ledger(tmp_path / "ledger.db", MESH, BUYER) as store:

        def explode(*_: object) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as broken:
            broken.setattr("coppermesh.agent.ledger_book.judge", explode)
            with pytest.raises(LedgerFailed, match="ZeroDivisionError"):
                await store.commit(line("x"))
        await store.commit(line("y"))
        assert [found.text for found in await store.story(line("").job)] == ["y"]


async def test_a_full_database_says_so_writes_nothing_and_recovers(tmp_path: Path) -> None:
    """SQLite's own page limit gives the very error that a full disk gives (the real ones: tests/processes)."""
    path = tmp_path / "ledger.db"
    database = open_database(path, MESH, BUYER)
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count={pages + 8}")
    book = LedgerBook(database, BUYER)
    big = [line("x" * 390) for _ in range(400)]
    outcomes: list[BaseException] = []
    try:
        book.commit_group([[line("small")], big])
    except LedgerFull as error:
        outcomes.append(error)
    assert len(outcomes) == 1
    assert "full" in str(outcomes[0])
    database.execute("PRAGMA max_page_count=1000000")
    assert book.commit_group([[line("small")], big]) == [None, None]
    (count,) = database.execute("SELECT count(*) FROM story").fetchone()
    assert count == 401
    book.close()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("SQLITE_FULL", LedgerFull),
        ("SQLITE_IOERR_WRITE", LedgerFull),
        ("SQLITE_IOERR_SHMSIZE", LedgerFull),
        ("SQLITE_IOERR_FSYNC", LedgerFailed),
        ("SQLITE_CORRUPT", LedgerFailed),
    ],
)
def test_failures_of_the_file_are_told_apart(name: str, kind: type[LedgerError]) -> None:
    error = sqlite3.OperationalError("as SQLite says it")
    error.sqlite_errorname = name
    assert type(explain_failure(error)) is kind


async def test_a_provider_finds_what_to_send_again(tmp_path: Path) -> None:
    tasks = [DEAL.task(number) for number in range(3)]
    async with open_ledger(tmp_path / "ledger.db", MESH, SELLER) as store:
        await store.commit(DEAL.granted(), *(TaskTaken(task.signed) for task in tasks))
        assert [task.id for _, task in await store.unanswered_tasks()] == [task.id for task in tasks]
        first = DEAL.receipt(tasks[0], LaneHead())
        second = DEAL.receipt(tasks[1], LaneHead().after(first))
        await store.commit(issue(first), issue(second))
        assert [task.id for _, task in await store.unanswered_tasks()] == [tasks[2].id]
    async with open_ledger(tmp_path / "ledger.db", MESH, SELLER) as store:
        waiting = await store.unsettled(BUYER)
        assert [found.receipt.id for found in waiting] == [first.id, second.id]
        assert [found.receipt.id for found in await store.unsettled(BUYER, limit=1)] == [first.id]
        behind = await store.unsettled(BUYER, after=waiting[0].place)
        assert [found.receipt.id for found in behind] == [second.id]
        assert waiting[0].receipt.signed == first.signed
        assert waiting[0].outputs == ((OUTPUT, 5),)
        assert await store.unsettled(PeerId(bytes(32))) == []
        await store.commit(CountersignatureReceived(DEAL.answer(first, LaneHead()).signed))
        assert [found.receipt.id for found in await store.unsettled()] == [second.id]


async def test_lookups(tmp_path: Path) -> None:
    async with open_ledger(tmp_path / "ledger.db", MESH, BUYER) as store:
        await settle_some(store, DEAL, 4)
        rows = await store.receipts(limit=2)
        assert [row.receipt.sequence for row in rows] == [3, 2]
        assert (rows[0].role, rows[0].verdict, rows[0].peer, rows[0].index) == (
            "requester",
            "accepted",
            SELLER,
            3,
        )
        job = DEAL.task(0).record.job
        assert len(await store.receipts(job=job)) == 4
        assert await store.receipts(job=bytes(16)) == []
        found = await store.find_receipt(rows[0].id.hex()[:20])
        assert found == rows[0]
        for wrong in ("", "zz", "0" * 65, "0" * 64):
            with pytest.raises(NotInLedger):
                await store.find_receipt(wrong)
        file = verify_receipt_file(await store.receipt_file(rows[1].id))
        assert (file.receipt.id, file.accepted) == (rows[1].id, True)
        with pytest.raises(NotInLedger):
            await store.receipt_file(Digest(bytes(32)))
        (row,) = await store.jobs()
        assert (row.job, row.tasks, row.receipts, row.accepted) == (job, 4, 4, 4)
        task = await store.task(DEAL.task(2).id)
        assert task is not None
        assert task.record == DEAL.task(2).record
        assert await store.receipt(rows[0].id) is not None
        assert await store.lease(Digest(bytes(32))) is None


async def test_a_prefix_that_fits_two_receipts_or_jobs_asks_for_more(tmp_path: Path) -> None:
    async with open_ledger(tmp_path / "ledger.db", MESH, BUYER) as store:
        await settle_some(store, DEAL, 20)
        digits = [row.id.hex()[0] for row in await store.receipts()]
        shared = next(digit for digit in digits if digits.count(digit) > 1)
        with pytest.raises(NotInLedger, match="several receipts"):
            await store.find_receipt(shared)
        entries: list[Entry] = [line("one", job=1), line("two", job=2)]
        await store.commit(*entries)
        with pytest.raises(NotInLedger, match="several jobs"):
            await store.story("00")
        assert [found.text for found in await store.story(line("", job=2).job.hex())] == ["two"]
