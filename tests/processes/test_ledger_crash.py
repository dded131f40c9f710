"""The ledger against kill -9 and full disks, in real processes.

This file is its own child: `python test_ledger_crash.py MODE LEDGER` settles receipts on several lanes and says on
stdout what was acknowledged to it, so that the parent can hold the ledger to it.
"""

import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from coppermesh.agent.ledger import TaskIssued
from coppermesh.agent.ledger_store import LedgerFull, LedgerReader, LedgerStore, open_ledger, read_ledger
from coppermesh.agent.receipts import LaneHead
from coppermesh.agent.rehearsal import Deal, make_deal, settle
from coppermesh.p2p.envelope import open_record
from coppermesh.p2p.ids import mesh_id
from coppermesh.p2p.records import Countersignature, Receipt, SignedRecord

pytestmark = pytest.mark.processes

LANES = 6
PER_LANE = 2000
MESH = mesh_id("rehearsal")
DEALS = [make_deal(number) for number in range(LANES)]
BUYER = DEALS[0].requester.peer
PATIENCE = 60
"""Most seconds that a child may take."""


async def settle_next(store: LedgerStore, deal: Deal, head: LaneHead) -> tuple[LaneHead, str]:
    """Settles one more receipt on a lane; its new head, and what was acknowledged."""
    task = deal.task(head.sequence_next)
    receipt = deal.receipt(task, head)
    answer = deal.answer(receipt, head)
    await store.commit(TaskIssued(task.signed), settle(receipt, answer))
    head = head.after(receipt, answer.record.accepted_cumulative)
    return (
        head,
        f"{deal.lease.record.lane.hex()} {receipt.record.sequence} {receipt.id.hex()} {answer.id.hex()}",
    )


async def run_lane(store: LedgerStore, deal: Deal) -> None:
    await store.commit(deal.offered(), deal.answered())
    head = await store.lane_head(deal.lease.record.lane)
    while head.sequence_next < PER_LANE:
        head, acknowledged = await settle_next(store, deal, head)
        sys.stdout.write(acknowledged + "\n")
        sys.stdout.flush()


async def settle_until_killed(path: Path) -> None:
    """Mode `settle`: from wherever the lanes stand, for ever as far as the parent's patience goes."""
    async with open_ledger(path, MESH, BUYER) as store, trio.open_nursery() as nursery:
        for deal in DEALS:
            nursery.start_soon(run_lane, store, deal)


async def fill_up(path: Path) -> None:
    """Modes `limit` and `disk`: settles until there is no room, makes room, and settles on."""
    make_room = limit_file_size if sys.argv[1] == "limit" else fill_disk
    async with open_ledger(path, MESH, BUYER) as store:
        deal = DEALS[0]
        await store.commit(deal.offered(), deal.answered())
        head, _ = await settle_next(store, deal, LaneHead())
        sentences: list[str] = []
        with make_room(path):
            while len(sentences) < 3:
                try:
                    head, _ = await settle_next(store, deal, head)
                except LedgerFull as error:
                    sentences.append(str(error))
        during = await store.lane_head(deal.lease.record.lane)
        assert during == head, "a refused commit left something behind"
        full_at = head.sequence_next
        for _ in range(200):
            head, _ = await settle_next(store, deal, head)
    with read_ledger(path) as reader:
        kept = reader.lane_head(deal.lease.record.lane)
        owed = sum(balance.owed_by_me for balance in reader.balances())
    report = {"full_at": full_at, "settled": head.sequence_next, "kept": kept.sequence_next, "owed": owed}
    sys.stdout.write(json.dumps({**report, "sentence": sentences[-1], "integrity": check_integrity(path)}))


@contextmanager
def limit_file_size(path: Path) -> Iterator[None]:
    """No file of this process grows beyond a little more than the log's length now (EFBIG, as a quota would)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = path.with_name(path.name + "-wal")
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def fill_disk(path: Path) -> Iterator[None]:
    """All but 100 kB of the (small) disk is taken by another file."""
    filler = path.with_name("filler")
    free = os.statvfs(path.parent)
    filler.write_bytes(bytes(free.f_bavail * free.f_frsize - 100_000))
    yield
    filler.unlink()


def check_integrity(path: Path) -> str:
    database = sqlite3.connect(path)
    (result,) = database.execute("PRAGMA integrity_check").fetchone()
    database.close()
    return str(result)


def check_lane(reader: LedgerReader, deal: Deal) -> LaneHead:
    """Walks a lane back from its head, checking every signature and sum; returns the head."""
    head = reader.lane_head(deal.lease.record.lane)
    place, cumulative = head.previous, head.cumulative
    for sequence in reversed(range(head.sequence_next)):
        stored = reader.receipt(place)
        signed = reader.countersignature_of(place)
        assert stored is not None
        assert signed is not None
        receipt = open_record(Receipt, stored.opened.signed, signer=deal.provider.peer)
        answer = open_record(Countersignature, signed, signer=deal.requester.peer)
        assert (receipt.record.sequence, receipt.record.cumulative) == (sequence, cumulative)
        assert answer.record.accepted_cumulative == cumulative
        place, cumulative = type(place)(receipt.record.previous), cumulative - receipt.record.amount
    assert cumulative == 0
    return head


def kill_after(path: Path, lines: int) -> list[str]:
    """Runs a settling child until it has acknowledged so much, kills it, and returns all that it had acknowledged."""
    command = [sys.executable, __file__, "settle", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            first = [child.stdout.readline() for _ in range(lines)]
        finally:
            child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().splitlines(keepends=True)
        assert child.wait(PATIENCE) == -signal.SIGKILL
    return [line.strip() for line in [*first, *rest] if line.endswith("\n")]


def test_nothing_acknowledged_is_lost_to_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    acknowledged: list[str] = []
    for lines in (7, 120, 41):
        acknowledged += kill_after(path, lines)
        with read_ledger(path) as reader:
            heads = [check_lane(reader, deal) for deal in DEALS]
            for line in acknowledged:
                lane, sequence, receipt_id, answer_id = line.split()
                stored = reader.find_receipt(receipt_id)
                assert (stored.receipt.lane.hex(), str(stored.receipt.sequence)) == (lane, sequence)
                context = reader.context(open_record(Receipt, signed_receipt(reader, receipt_id)))
                assert context.countersignature is not None
                assert open_record(Countersignature, context.countersignature).id.hex() == answer_id
            kept = sum(head.sequence_next for head in heads)
            assert len(set(acknowledged)) == len(acknowledged)
            assert len(acknowledged) <= kept <= len(acknowledged) + 3 * LANES, "at most what was in flight"
            assert sum(balance.owed_by_me for balance in reader.balances()) == 3 * kept
    assert check_integrity(path) == "ok"


def signed_receipt(reader: LedgerReader, receipt_id: str) -> SignedRecord:
    stored = reader.receipt(reader.find_receipt(receipt_id).id)
    assert stored is not None
    return stored.opened.signed


def run_filling_child(command: list[str]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout)
    assert 1 < report["full_at"] < report["settled"] == report["kept"]
    assert report["owed"] == 3 * report["settled"]
    assert "full" in report["sentence"]
    assert report["integrity"] == "ok"


def test_a_file_size_limit_or_quota_refuses_commits_and_loses_nothing(tmp_path: Path) -> None:
    run_filling_child([sys.executable, __file__, "limit", str(tmp_path / "ledger.db")])


def test_a_full_disk_refuses_commits_and_loses_nothing(tmp_path: Path) -> None:
    """On a tmpfs of 8 MB in a mount namespace of its own."""
    script = 'mount -t tmpfs -o size=8m tmpfs "$1" && shift && exec "$@"'
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(tmp_path)]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*inside, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this machine does not let us mount a small tmpfs")
    run_filling_child([*inside, sys.executable, __file__, "disk", str(tmp_path / "ledger.db")])


if __name__ == "__main__":
    modes = {"settle": settle_until_killed, "limit": fill_up, "disk": fill_up}
    trio.run(modes[sys.argv[1]], Path(sys.argv[2]))
