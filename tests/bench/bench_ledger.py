"""Measures the ledger: `python tests/bench/bench_ledger.py [--receipts 8000] [--audit 100000] [--dir DIR]`.

Appending: receipts a second with 1, 32 and 256 concurrent callers, each commit one receipt with its countersignature
(the requester's side), every one on the disk before the next of its caller; the 32 callers once more with both
signatures checked and the bytes decoded, as a result that arrives is. Records are signed beforehand.

Control, in the same run: the same rows inserted into the same tables by bare SQLite in transactions of 32, with no
rules, no reading and no decoding. It is what the disk and SQLite allow. Beside it the ledger's own rules in the same
groups of 32 in one thread, and the processor time that each takes, which other programs on the machine do not change.

Audit: `ledger audit` of a ledger with that many receipts, with one thread and with two.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import trio

from coppermesh.agent.ledger import Entry, TaskIssued
from coppermesh.agent.ledger_audit import audit_ledger
from coppermesh.agent.ledger_book import LedgerBook
from coppermesh.agent.ledger_files import open_database
from coppermesh.agent.ledger_store import LedgerStore, open_ledger
from coppermesh.agent.receipts import LaneHead
from coppermesh.agent.rehearsal import Deal, make_deal, settle
from coppermesh.p2p.envelope import Opened, open_record, to_bytes
from coppermesh.p2p.ids import mesh_id
from coppermesh.p2p.records import Countersignature, Receipt

ROUNDS = 3
GROUP = 32
MESH = mesh_id("rehearsal")
Pair = tuple[Entry, Entry, Opened[Receipt], Opened[Countersignature]]


def prepare_lane(number: int, count: int) -> tuple[Deal, list[Pair]]:
    """A lease and `count` tasks with their settled receipts on its lane."""
    deal = make_deal(number)
    head = LaneHead()
    entries: list[Pair] = []
    for task_number in range(count):
        task = deal.task(task_number)
        receipt = deal.receipt(task, head)
        answer = deal.answer(receipt, head)
        entries.append((TaskIssued(task.signed), settle(receipt, answer), receipt, answer))
        head = head.after(receipt, answer.record.accepted_cumulative)
    return deal, entries


async def settle_lane(store: LedgerStore, entries: list[Pair], verify: bool) -> None:
    """One caller: settles its receipts one after the other."""
    for _, settled, receipt, answer in entries:
        if verify:
            open_record(Receipt, receipt.signed)
            open_record(Countersignature, answer.signed)
        await store.commit(settled)


async def measure(callers: int, each: int, folder: Path, *, verify: bool = False) -> float:
    """Receipts a second of `callers` tasks with `each` receipts."""
    lanes = [prepare_lane(number, each) for number in range(callers)]
    requester = lanes[0][0].requester.peer
    path = folder / f"{callers}-{verify}-{time.monotonic_ns()}.db"
    async with open_ledger(path, MESH, requester) as store:
        for deal, entries in lanes:
            await store.commit(deal.offered(), deal.answered())
            for start in range(0, len(entries), 1000):
                await store.commit(*(entry[0] for entry in entries[start : start + 1000]))
        begin = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _, entries in lanes:
                nursery.start_soon(settle_lane, store, entries, verify)
        return callers * each / (time.perf_counter() - begin)


def grouped(receipts: int, folder: Path) -> tuple[float, float]:
    """Receipts a second that the rules take in groups of 32, and microseconds of processor time for each."""
    deal, entries = prepare_lane(0, receipts)
    database = open_database(folder / f"grouped-{time.monotonic_ns()}.db", MESH, deal.requester.peer)
    book = LedgerBook(database, deal.requester.peer)
    assert book.commit_group([(deal.offered(), deal.answered(), *(entry[0] for entry in entries))]) == [None]
    begin, spent = time.perf_counter(), time.process_time()
    for start in range(0, receipts, GROUP):
        outcomes = book.commit_group([[entry[1]] for entry in entries[start : start + GROUP]])
        assert not any(outcomes)
    elapsed, used = time.perf_counter() - begin, time.process_time() - spent
    book.close()
    return receipts / elapsed, used / receipts * 1e6


def control(receipts: int, folder: Path) -> tuple[float, float]:
    """The same of bare SQLite."""
    deal, entries = prepare_lane(0, receipts)
    path = folder / f"control-{time.monotonic_ns()}.db"
    database = open_database(path, MESH, deal.requester.peer)
    book = LedgerBook(database, deal.requester.peer)
    assert book.commit_group([(deal.offered(), deal.answered(), *(entry[0] for entry in entries))]) == [None]
    rows = [_rows(receipt, answer) for _, _, receipt, answer in entries]
    begin, spent = time.perf_counter(), time.process_time()
    for start in range(0, receipts, GROUP):
        database.execute("BEGIN IMMEDIATE")
        for receipt, answer, transfer in rows[start : start + GROUP]:
            database.execute("INSERT INTO receipt VALUES(NULL,?,?,?,?,?,?,?,?,?)", receipt)
            database.execute("INSERT INTO countersignature VALUES(?,?,?,?,?,?,?)", answer)
            database.execute(
                "INSERT INTO transfer VALUES(NULL,?,'spent',?,'usd','expense','due',?)", transfer
            )
        database.execute("COMMIT")
    elapsed, used = time.perf_counter() - begin, time.process_time() - spent
    database.close()
    return receipts / elapsed, used / receipts * 1e6


def _rows(receipt: Opened[Receipt], answer: Opened[Countersignature]) -> tuple[tuple[object, ...], ...]:
    record, given = receipt.record, answer.record
    place = (record.lease, record.provider, record.lane, record.sequence, record.task_id)
    return (
        (receipt.id, *place, record.amount, record.cumulative, to_bytes(receipt.signed)),
        (
            *(receipt.id, given.lane, given.sequence, given.verdict, given.code),
            *(given.accepted_cumulative, to_bytes(answer.signed)),
        ),
        (receipt.id, record.provider, record.amount),
    )


def fill(receipts: int, path: Path, lanes: int = 10) -> None:
    """A ledger with that many receipts."""
    requester = make_deal(0).requester.peer
    database = open_database(path, MESH, requester)
    book = LedgerBook(database, requester)
    for number in range(lanes):
        deal, entries = prepare_lane(number, receipts // lanes)
        assert book.commit_group([(deal.offered(), deal.answered())]) == [None]
        for start in range(0, len(entries), 500):
            chunk = entries[start : start + 500]
            outcome = book.commit_group([[step for entry in chunk for step in entry[:2]]])
            assert outcome == [None], outcome
    book.close()


def measure_audit(receipts: int, folder: Path) -> dict[str, float]:
    """Seconds of an audit."""
    path = folder / "audit.db"
    fill(receipts, path)
    found: dict[str, float] = {"audit_receipts": receipts}
    for threads in (2, 1):
        begin, spent = time.perf_counter(), time.process_time()
        report = audit_ledger(path, threads)
        found[f"audit_s_{threads}_threads"] = round(time.perf_counter() - begin, 2)
        found[f"audit_cpu_s_{threads}_threads"] = round(time.process_time() - spent, 2)
        assert report.fault is None
        assert report.counts["receipt"] == receipts
    return found


async def measure_read(folder: Path) -> float:
    """Microseconds of one `lane_head`."""
    deal = make_deal(0)
    async with open_ledger(folder / "read.db", MESH, deal.requester.peer) as store:
        await store.commit(deal.offered())
        begin = time.perf_counter()
        for _ in range(500):
            await store.lane_head(deal.lease.record.lane)
        return (time.perf_counter() - begin) / 500 * 1e6


async def main(receipts: int, audited: int, folder: Path) -> dict[str, float]:
    """All figures: medians of `ROUNDS` rounds, in each of which every measurement had its turn."""
    rounds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        by_rules, bare = grouped(receipts // 2, folder), control(receipts // 2, folder)
        for name, figure in (
            ("receipts_per_s_1", await measure(1, receipts // 4, folder)),
            ("receipts_per_s_32", await measure(32, receipts // 32, folder)),
            ("receipts_per_s_256", await measure(256, receipts // 256, folder)),
            ("receipts_per_s_32_verified", await measure(32, receipts // 32, folder, verify=True)),
            ("grouped_per_s", by_rules[0]),
            ("grouped_cpu_us", by_rules[1]),
            ("control_bare_sqlite_per_s", bare[0]),
            ("control_bare_sqlite_cpu_us", bare[1]),
        ):
            rounds.setdefault(name, []).append(figure)
    found: dict[str, float] = {name: round(statistics.median(figures)) for name, figures in rounds.items()}
    found["lane_head_us"] = round(await measure_read(folder), 1)
    return {**found, **(measure_audit(audited, folder) if audited else {})}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--receipts", type=int, default=8000)
    parser.add_argument("--audit", type=int, default=100_000, help="receipts to audit; 0: none")
    parser.add_argument(
        "--dir", type=Path, help="where the ledgers are made: a folder on the disk to measure"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as made:
        print(json.dumps(trio.run(main, options.receipts, options.audit, Path(made))))  # noqa: T201
