"""Settles 100,000 receipts as one number: `python tests/bench/bench_statement.py [--receipts 100000] [--dir DIR]`.

Two agents' ledgers with the same receipts on ten lanes, four of ten worked the other way round, and real desks on an
in-memory network: one proposes, the other checks every receipt of its own ledger and signs. Then every receipt gets its
proof (the path to the statement's root), and every proof is checked: that it leads to the root, and by `--files` of
them as the self-contained file that `receipts proof` writes, with all four signatures, its amounts added up. Prints the
seconds of each step, the sizes, and the process's largest resident memory, as one line of JSON.
"""

import argparse
import importlib.util
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import trio

from coppermesh.agent.ledger import CountersignatureReceived, TaskIssued, TaskTaken
from coppermesh.agent.proof_commands import _place
from coppermesh.agent.proofs import verify_place
from coppermesh.agent.rehearsal import issue, settle
from coppermesh.agent.statements import receipt_leaf, unpack_spans
from coppermesh.p2p.envelope import open_record
from coppermesh.p2p.merkle import inclusion_paths, root_from_path
from coppermesh.p2p.settlement_records import Statement

LANES = 10
GROUP = 500
SOURCE = Path(__file__).parents[1] / "unit" / "test_ledger_desk.py"


def load() -> Any:
    """The two sides that the tests use."""
    spec = importlib.util.spec_from_file_location("ledger_desk_sides", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def work(trade: Any, deal: Any, count: int, *, swapped: bool) -> int:
    """`count` tasks on one lane, in both ledgers. Returns what was earned."""
    worker, payer = (trade.buyer, trade.seller) if swapped else (trade.seller, trade.buyer)
    earned = 0
    for start in range(0, count, GROUP):
        theirs, mine = [], []
        head = await worker.store.lane_head(deal.lease.record.lane)
        for _ in range(min(GROUP, count - start)):
            task = deal.task(head.sequence_next)
            receipt = deal.receipt(task, head)
            answer = deal.answer(receipt, head)
            theirs += [TaskIssued(task.signed), settle(receipt, answer)]
            mine += [TaskTaken(task.signed), issue(receipt), CountersignatureReceived(answer.signed)]
            head = head.after(receipt, answer.record.accepted_cumulative)
            earned += receipt.record.amount
        await payer.store.commit(*theirs)
        await worker.store.commit(*mine)
    return earned


async def measure(receipts: int, files: int, folder: Path) -> dict[str, float]:
    sides = load()
    found: dict[str, float] = {"receipts": receipts}
    clock = time.perf_counter

    def done(name: str, since: float) -> None:
        found[f"{name}_s"] = round(clock() - since, 2)

    async with sides.trading(folder) as trade:
        begin, net = clock(), 0
        for lane in range(LANES):
            swapped = lane % 5 in (1, 3)
            deal = await trade.lease(lane, swapped=swapped)
            earned = await work(trade, deal, receipts // LANES, swapped=swapped)
            net += -earned if swapped else earned
        done("fill_both", begin)
        begin = clock()
        signed = await trade.buyer.desk.statements.propose(sides.SELLER.peer, "usd")
        done("propose_check_and_sign", begin)
        record = open_record(Statement, signed.proposed).record
        assert record.receipts == receipts
        assert record.net == abs(net)
        begin = clock()
        leaves = await trade.seller.store.look(
            lambda tables: [
                receipt_leaf(*ids) for span in unpack_spans(signed.lanes) for ids in tables.answered(span)
            ]
        )
        paths = list(inclusion_paths(leaves))
        done("all_proofs", begin)
        begin = clock()
        for index, (leaf, path) in enumerate(zip(leaves, paths, strict=True)):
            assert root_from_path(leaf, index, len(leaves), path) == record.root
        done("check_all_proofs", begin)
        found["hashes_a_proof"] = max(map(len, paths))
        begin, spans = clock(), unpack_spans(signed.lanes)
        for number in range(files):
            span = spans[number % len(spans)]
            at = span.start + number * 7919 % (span.end - span.start)
            data = await trade.seller.store.look(
                lambda tables, span=span, at=at: _place(tables, span.lane, at)
            )
            verify_place(data)
            found["proof_file_bytes"] = len(data)
        done(f"{files}_proof_files", begin)
    found["statement_bytes"] = len(signed.proposed.body) + 2 * 64
    found["spans_bytes"] = len(signed.lanes)
    found["largest_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--receipts", type=int, default=100_000)
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument("--dir", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as made:
        print(json.dumps(trio.run(measure, options.receipts, options.files, Path(made))))  # noqa: T201
