"""Measures the ledger: `python tests/bench/bench_ledger.py [--receipts 8000] [--dir DIR]`.

Prints commits a second with 1 and with 32 concurrent callers, each commit one receipt with its countersignature (the
requester's side), every one on the disk before the next of its caller; and the time of a lane-head read. Records are
signed beforehand, so that the figures are the ledger's alone.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import trio

from coppermesh.agent.ledger import Entry, TaskIssued
from coppermesh.agent.ledger_store import LedgerStore, open_ledger
from coppermesh.agent.receipts import LaneHead
from coppermesh.agent.rehearsal import Deal, make_deal, settle
from coppermesh.p2p.ids import mesh_id


def prepare_lane(number: int, count: int) -> tuple[Deal, list[tuple[Entry, Entry]]]:
    """A lease and `count` pairs of task and settled receipt on its lane."""
    deal = make_deal(number)
    head = LaneHead()
    entries: list[tuple[Entry, Entry]] = []
    for task_number in range(count):
        task = deal.task(task_number)
        receipt = deal.receipt(task, head)
        answer = deal.answer(receipt, head)
        entries.append((TaskIssued(task.signed), settle(receipt, answer)))
        head = head.after(receipt, answer.record.accepted_cumulative)
    return deal, entries


async def settle_lane(store: LedgerStore, entries: list[tuple[Entry, Entry]]) -> None:
    """One caller: settles its receipts one after the other."""
    for _, settled in entries:
        await store.commit(settled)


async def measure(callers: int, each: int, folder: Path) -> float:
    """Commits a second of `callers` tasks with `each` receipts."""
    lanes = [prepare_lane(number, each) for number in range(callers)]
    requester = lanes[0][0].requester.peer
    async with open_ledger(folder / f"{callers}.db", mesh_id("rehearsal"), requester) as store:
        for deal, entries in lanes:
            await store.commit(deal.offered(), deal.answered(), *(task for task, _ in entries))
        begin = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _, entries in lanes:
                nursery.start_soon(settle_lane, store, entries)
        return callers * each / (time.perf_counter() - begin)


async def measure_read(folder: Path) -> float:
    """Microseconds of one `lane_head`."""
    deal = make_deal(0)
    async with open_ledger(folder / "read.db", mesh_id("rehearsal"), deal.requester.peer) as store:
        await store.commit(deal.offered())
        begin = time.perf_counter()
        for _ in range(500):
            await store.lane_head(deal.lease.record.lane)
        return (time.perf_counter() - begin) / 500 * 1e6


async def main(receipts: int, folder: Path) -> dict[str, float]:
    """All figures."""
    return {
        "commits_per_s_1": round(await measure(1, receipts // 4, folder)),
        "commits_per_s_32": round(await measure(32, receipts // 32, folder)),
        "lane_head_us": round(await measure_read(folder), 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--receipts", type=int, default=8000)
    parser.add_argument(
        "--dir", type=Path, help="where the ledgers are made: a folder on the disk to measure"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as made:
        print(json.dumps(trio.run(main, options.receipts, Path(made))))  # noqa: T201
