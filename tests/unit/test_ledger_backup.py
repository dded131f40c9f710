"""A backup is whole and checked; a restored ledger signs nothing on its old lanes, so its owner stays honest."""

import json
import os
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from coppermesh.agent import ledger_backup
from coppermesh.agent.cli import main
from coppermesh.agent.home import Home
from coppermesh.agent.ledger import CountersignatureReceived, LedgerConflict, TaskIssued, TaskTaken
from coppermesh.agent.ledger_audit import audit_ledger
from coppermesh.agent.ledger_backup import BackupFailed, back_up, restore
from coppermesh.agent.ledger_book import LedgerBook
from coppermesh.agent.ledger_files import open_database, open_for_reading
from coppermesh.agent.ledger_reader import LedgerReader
from coppermesh.agent.ledger_store import read_ledger
from coppermesh.agent.receipts import LaneHead
from coppermesh.agent.rehearsal import START_US, Deal, issue, make_deal, rehearsal_key, run_facts, settle
from coppermesh.p2p.ids import PeerId, mesh_id

MESH = mesh_id("rehearsal")
SELLER, BUYER = rehearsal_key(1).peer, rehearsal_key(2).peer


class Party:
    """One side's ledger."""

    def __init__(self, path: Path, me: PeerId) -> None:
        self.path, self.me = path, me
        self.open()

    def open(self) -> None:
        self.book = LedgerBook(open_database(self.path, MESH, self.me), self.me)

    def commit(self, *entries: object) -> None:
        for outcome in self.book.commit_group([entries]):  # type: ignore[list-item]
            if outcome is not None:
                raise outcome

    def restore(self, backup: Path) -> None:
        self.book.close()
        restore(backup, self.path, MESH, self.me, START_US)
        self.open()


@pytest.fixture
def parties(tmp_path: Path):
    seller, buyer = Party(tmp_path / "seller.sqlite", SELLER), Party(tmp_path / "buyer.sqlite", BUYER)
    yield seller, buyer
    seller.book.close()
    buyer.book.close()


def agree(deal: Deal, seller: Party, buyer: Party) -> None:
    buyer.commit(deal.offered())
    seller.commit(deal.granted())
    buyer.commit(deal.answered())


def trade(deal: Deal, number: int, seller: Party, buyer: Party, billed_us: int = 2500) -> None:
    """One task through all its steps, each side building on its own ledger."""
    lane = deal.lease.record.lane
    task = deal.task(number)
    buyer.commit(TaskIssued(task.signed))
    seller.commit(TaskTaken(task.signed))
    receipt = deal.receipt(task, seller.book.head(lane), run_facts(billed_us))
    seller.commit(issue(receipt))
    answer = deal.answer(receipt, buyer.book.head(lane))
    buyer.commit(settle(receipt, answer))
    seller.commit(CountersignatureReceived(answer.signed))


def evidence_of(party: Party) -> list[object]:
    with read_ledger(party.path) as reader:
        return list(reader.evidence())


def test_a_backup_is_private_checked_and_the_same(parties, tmp_path):
    seller, buyer = parties
    deal = make_deal(1)
    agree(deal, seller, buyer)
    trade(deal, 0, seller, buyer)
    made = back_up(seller.path, tmp_path / "copy.sqlite")  # while the ledger is open for writing
    assert made.receipts == 1
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    trade(deal, 1, seller, buyer)
    with read_ledger(made.path) as reader:
        assert len(reader.receipts()) == 1
    with pytest.raises(BackupFailed, match="exists"):
        back_up(seller.path, tmp_path / "copy.sqlite")
    assert back_up(seller.path, tmp_path / "copy.sqlite", force=True).receipts == 2
    assert not list(tmp_path.glob(".copy*"))


@pytest.mark.parametrize("restored", ["seller", "buyer", "both"])
def test_an_old_backup_never_makes_its_owner_equivocate(parties, tmp_path, restored):
    seller, buyer = parties
    deal = make_deal(1)
    agree(deal, seller, buyer)
    trade(deal, 0, seller, buyer)
    for party in parties:
        back_up(party.path, party.path.with_suffix(".backup"))
    trade(deal, 1, seller, buyer)
    trade(deal, 2, seller, buyer)
    for name, party in (("seller", seller), ("buyer", buyer)):
        if restored in (name, "both"):
            party.restore(party.path.with_suffix(".backup"))
    if restored != "buyer":
        # What it would have signed at the place it forgot: refused by its own ledger before it could leave.
        task = deal.task(1)  # the buyer may well send it again
        rival = deal.receipt(task, seller.book.head(deal.lease.record.lane), run_facts(1111))
        for entry in (TaskTaken(task.signed), issue(rival)):
            with pytest.raises(LedgerConflict):
                seller.commit(entry)
    if restored != "seller":
        head = buyer.book.head(deal.lease.record.lane)
        receipt = deal.receipt(deal.task(0), LaneHead(), run_facts(1111))
        for entry in (TaskIssued(deal.task(1, job=9).signed), settle(receipt, deal.answer(receipt, head))):
            with pytest.raises(LedgerConflict):
                buyer.commit(entry)
    fresh = make_deal(2)
    agree(fresh, seller, buyer)
    for number in range(3):
        trade(fresh, number, seller, buyer)
    assert evidence_of(seller) == evidence_of(buyer) == []
    for party in parties:
        assert audit_ledger(party.path).fault is None


def test_a_sealed_lane_says_why(parties, tmp_path):
    seller, buyer = parties
    deal = make_deal(1)
    agree(deal, seller, buyer)
    trade(deal, 0, seller, buyer)
    task = deal.task(1)
    buyer.commit(TaskIssued(task.signed))
    seller.commit(TaskTaken(task.signed))
    back_up(seller.path, tmp_path / "copy.sqlite")
    seller.restore(tmp_path / "copy.sqlite")
    with pytest.raises(LedgerConflict, match="restored") as found:
        seller.commit(issue(deal.receipt(task, seller.book.head(deal.lease.record.lane))))
    assert found.value.code == "restored"
    with read_ledger(seller.path) as reader:
        assert reader.open_leases() == []
        assert reader.context(deal.receipt(task, LaneHead())).sealed


def test_what_was_there_is_kept_with_its_log(parties, tmp_path):
    seller, buyer = parties
    deal = make_deal(1)
    agree(deal, seller, buyer)
    back_up(seller.path, tmp_path / "copy.sqlite")
    trade(deal, 0, seller, buyer)
    seller.restore(tmp_path / "copy.sqlite")
    (kept,) = tmp_path.glob("seller.sqlite.replaced-*")
    with read_ledger(kept) as reader:
        assert len(reader.receipts()) == 1
    with read_ledger(seller.path) as reader:
        assert reader.receipts() == []


@pytest.mark.parametrize("step", ["_seal", "_checked", "_set_aside", "_put_in_place"])
def test_a_crash_on_the_way_leaves_the_old_ledger(parties, tmp_path, monkeypatch, step):
    seller, buyer = parties
    deal = make_deal(1)
    agree(deal, seller, buyer)
    back_up(seller.path, tmp_path / "copy.sqlite")
    trade(deal, 0, seller, buyer)
    seller.book.close()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ledger_backup, step, die)
        with pytest.raises(KeyboardInterrupt):
            restore(tmp_path / "copy.sqlite", seller.path, MESH, SELLER, START_US)
    seller.open()
    assert seller.book.head(deal.lease.record.lane).sequence_next == 1
    assert not seller.book.sealed(deal.lease.record.lane)
    assert audit_ledger(seller.path).fault is None


@pytest.mark.parametrize("step", ["link", "replace"])
def test_wherever_the_machine_stops_what_was_committed_is_in_the_ledger(parties, tmp_path, monkeypatch, step):
    """Also what was only in its log yet: the log goes when it is empty."""
    seller, buyer = parties
    deal = make_deal(1)
    agree(deal, seller, buyer)
    back_up(seller.path, tmp_path / "copy.sqlite")
    trade(deal, 0, seller, buyer)
    log = seller.path.with_name(seller.path.name + "-wal")
    left = log.read_bytes(), seller.path.read_bytes()
    seller.book.close()
    seller.path.write_bytes(left[1])
    log.write_bytes(left[0])  # as after a kill

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os if step == "link" else Path, step, stop)
        with pytest.raises(KeyboardInterrupt):
            restore(tmp_path / "copy.sqlite", seller.path, MESH, SELLER, START_US)
    with read_ledger(seller.path) as reader:
        assert len(reader.receipts()) == 1
    seller.open()


def test_a_ledger_that_somebody_reads_is_not_replaced(parties, tmp_path):
    seller, buyer = parties
    deal = make_deal(1)
    agree(deal, seller, buyer)
    back_up(seller.path, tmp_path / "copy.sqlite")
    with closing(open_for_reading(seller.path)) as reading:
        reading.execute("BEGIN")
        reading.execute("SELECT count(*) FROM receipt").fetchone()
        trade(deal, 0, seller, buyer)
        seller.book.close()
        with pytest.raises(BackupFailed, match="is being read"):
            restore(tmp_path / "copy.sqlite", seller.path, MESH, SELLER, START_US)
    seller.open()
    assert seller.book.head(deal.lease.record.lane).sequence_next == 1


def test_a_restore_over_a_damaged_or_missing_ledger_works(parties, tmp_path):
    seller, buyer = parties
    agree(make_deal(1), seller, buyer)
    back_up(seller.path, tmp_path / "copy.sqlite")
    seller.book.close()
    seller.path.write_bytes(b"the disk ate it" * 1000)
    restore(tmp_path / "copy.sqlite", seller.path, MESH, SELLER, START_US)
    assert audit_ledger(seller.path).fault is None
    seller.path.unlink()
    assert restore(tmp_path / "copy.sqlite", seller.path, MESH, SELLER, START_US + 1).replaced is None
    seller.open()


def test_a_backup_of_somebody_else_or_a_changed_one_is_refused(parties, tmp_path):
    seller, buyer = parties
    deal = make_deal(1)
    agree(deal, seller, buyer)
    trade(deal, 0, seller, buyer)
    copy = back_up(seller.path, tmp_path / "copy.sqlite").path
    with pytest.raises(BackupFailed, match="another key"):
        restore(copy, buyer.path, MESH, BUYER, START_US)
    with pytest.raises(BackupFailed, match="another mesh"):
        restore(copy, seller.path, mesh_id("elsewhere"), SELLER, START_US)
    with pytest.raises(BackupFailed, match="no ledger"):
        restore(Path(shutil.copy(__file__, tmp_path / "x.sqlite")), seller.path, MESH, SELLER, START_US)
    with pytest.raises(BackupFailed, match="no such file"):
        restore(tmp_path / "none", seller.path, MESH, SELLER, START_US)
    database = sqlite3.connect(copy, isolation_level=None)
    database.execute("DROP TRIGGER receipt_UPDATE")
    database.execute("UPDATE receipt SET amount=amount+1, cumulative=cumulative+1")
    database.close()
    with pytest.raises(BackupFailed, match="does not hold"):
        restore(copy, seller.path, MESH, SELLER, START_US)
    assert LedgerReader(seller.book._database).receipts()


def test_the_commands(tmp_home, tmp_path, capsys):
    home = Home(tmp_home)
    home.config_path.write_text('mesh = "rehearsal"\n')
    assert main(["id"]) == 0
    capsys.readouterr()
    from coppermesh.p2p.signing import PeerKey

    key = PeerKey.load(home.key_path(MESH))
    open_database(home.ledger_path(MESH), MESH, key.peer).close()
    copy = tmp_path / "ledger.backup"
    assert main(["ledger", "backup", str(copy), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["receipts"] == 0
    assert "the key" in said.err
    assert main(["ledger", "backup", str(copy)]) == 1
    assert main(["ledger", "restore", str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sealed"] == 0
    with home.lock():
        assert main(["ledger", "restore", str(copy)]) == 4
    assert main(["ledger", "backup", str(tmp_path / "none" / "x")]) == 2


def test_a_receipt_whose_answer_never_comes_stays_pending_and_the_books_agree(parties, tmp_path):
    """The next one's answer tells that it was accepted, but its requester has forgotten it: it does not count twice."""
    seller, buyer = parties
    deal = make_deal(1)
    agree(deal, seller, buyer)
    head = LaneHead()
    for number in (0, 1):
        task = deal.task(number)
        receipt = deal.receipt(task, head)
        answer = deal.answer(receipt, head)
        seller.commit(TaskTaken(task.signed), issue(receipt))
        if number == 1:
            seller.commit(CountersignatureReceived(answer.signed))
        head = head.after(receipt, answer.record.accepted_cumulative)
    with read_ledger(seller.path) as reader:
        (line,) = reader.balances()
    amount = receipt.record.amount
    assert (line.owed_to_me, line.pending) == (amount, amount)
    earned = seller.book._database.execute("SELECT sum(amount) FROM transfer WHERE kind='earned'").fetchone()
    assert earned == (amount,)
