"""What the ledger refuses, on a real SQLite file; and that a caller's refusal harms nobody else."""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from coppermesh.agent.ledger import (
    MAX_EVIDENCE_PER_PEER,
    CountersignatureReceived,
    Entry,
    EvidenceFound,
    LeaseAgreed,
    LeaseEnded,
    LedgerConflict,
    ReceiptIssued,
    TaskIssued,
    TaskSuperseded,
    TaskTaken,
)
from coppermesh.agent.ledger_book import LedgerBook
from coppermesh.agent.ledger_files import open_database
from coppermesh.agent.ledger_reader import LedgerReader
from coppermesh.agent.receipts import LaneHead
from coppermesh.agent.rehearsal import START_US, issue, make_deal, settle
from coppermesh.agent.story import StoryLine
from coppermesh.p2p.envelope import Opened, open_verified, sign_record
from coppermesh.p2p.ids import Digest, PeerId, mesh_id
from coppermesh.p2p.records import Countersignature, Receipt

DEAL = make_deal(1)
LANE = DEAL.lease.record.lane
TASK = DEAL.task(0)
HEAD = LaneHead()
RECEIPT = DEAL.receipt(TASK, HEAD)
ANSWER = DEAL.answer(RECEIPT, HEAD)
NEXT_HEAD = HEAD.after(RECEIPT, ANSWER.record.accepted_cumulative)
NEXT_TASK = DEAL.task(1)
NEXT = DEAL.receipt(NEXT_TASK, NEXT_HEAD)
NEXT_ANSWER = DEAL.answer(NEXT, NEXT_HEAD)


COUNTS = """
SELECT count(*) FROM lease UNION ALL SELECT count(*) FROM agreement UNION ALL SELECT count(*) FROM lease_end
UNION ALL SELECT count(*) FROM task UNION ALL SELECT count(*) FROM superseded UNION ALL SELECT count(*) FROM receipt
UNION ALL SELECT count(*) FROM countersignature UNION ALL SELECT count(*) FROM unsettled
UNION ALL SELECT count(*) FROM story
"""


class Ledger:
    """A ledger on a file, with its connection."""

    def __init__(self, path: Path, me: PeerId) -> None:
        self.database = open_database(path, mesh_id("rehearsal"), me)
        self.book = LedgerBook(self.database, me)
        self.reader = LedgerReader(self.database)

    def commit(self, *entries: Entry) -> None:
        (outcome,) = self.book.commit_group([entries])
        if outcome is not None:
            raise outcome

    def refuses(self, *entries: Entry) -> LedgerConflict:
        before = self.rows()
        (outcome,) = self.book.commit_group([entries])
        assert isinstance(outcome, LedgerConflict)
        assert self.rows() == before, "a refused commit wrote something"
        return outcome

    def rows(self) -> list[tuple[int]]:
        return self.database.execute(COUNTS).fetchall()


@pytest.fixture
def buyer(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "buyer.db", DEAL.requester.peer)
    ledger.commit(DEAL.offered(), DEAL.answered(), TaskIssued(TASK.signed), TaskIssued(NEXT_TASK.signed))
    yield ledger
    ledger.book.close()


@pytest.fixture
def seller(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "seller.db", DEAL.provider.peer)
    ledger.commit(DEAL.granted(), TaskTaken(TASK.signed), TaskTaken(NEXT_TASK.signed))
    yield ledger
    ledger.book.close()


def changed(receipt: Opened[Receipt], **changes: Any) -> Opened[Receipt]:
    return open_verified(
        Receipt, sign_record(DEAL.provider, msgspec.structs.replace(receipt.record, **changes))
    )


def signed_answer(answer: Opened[Countersignature], **changes: Any) -> CountersignatureReceived:
    return CountersignatureReceived(
        sign_record(DEAL.requester, msgspec.structs.replace(answer.record, **changes))
    )


def test_every_step_may_be_repeated_and_counts_once(buyer: Ledger, seller: Ledger) -> None:
    for _ in range(2):
        buyer.commit(DEAL.offered(), DEAL.answered(), TaskIssued(TASK.signed), settle(RECEIPT, ANSWER))
        seller.commit(
            DEAL.granted(), TaskTaken(TASK.signed), issue(RECEIPT), CountersignatureReceived(ANSWER.signed)
        )
    assert buyer.reader.lane_head(LANE) == seller.reader.lane_head(LANE) == NEXT_HEAD
    (owed,) = buyer.reader.balances()
    (due,) = seller.reader.balances()
    assert (owed.peer, owed.owed_by_me, owed.net) == (DEAL.provider.peer, 3, -3)
    assert (due.peer, due.owed_to_me, due.net, due.pending) == (DEAL.requester.peer, 3, 3, 0)


def test_a_lane_belongs_to_one_lease(seller: Ledger) -> None:
    other = make_deal(2)
    lease = msgspec.structs.replace(other.lease.record, lane=LANE)
    entry = LeaseAgreed(
        Digest(open_verified(type(lease), sign_record(other.provider, lease)).id),
        sign_record(other.provider, lease),
        sign_record(other.requester, lease),
        other.order.signed,
        other.bid.signed,
    )
    assert seller.refuses(entry).code == "lane-taken"


def test_a_lease_is_only_agreed_by_its_provider_and_only_mine_is_kept(buyer: Ledger) -> None:
    mine_twice = LeaseAgreed(DEAL.lease.id, DEAL.lease.signed)
    assert buyer.refuses(mine_twice).code == "wrong-signature"
    foreign = make_deal(3, requester=7)
    assert buyer.refuses(foreign.offered()).code == "wrong-role"
    assert buyer.refuses(make_deal(4).answered()).code == "unknown-lease"


def test_no_task_without_an_agreed_living_lease(buyer: Ledger) -> None:
    fresh = make_deal(5)
    assert buyer.refuses(TaskIssued(fresh.task(0).signed)).code == "unknown-lease"
    buyer.commit(fresh.offered())
    assert buyer.refuses(TaskIssued(fresh.task(0).signed)).code == "not-agreed"
    buyer.commit(fresh.answered(), TaskIssued(fresh.task(0).signed), LeaseEnded(fresh.lease.id, "idle"))
    assert buyer.refuses(TaskIssued(fresh.task(1).signed)).code == "lease-ended"
    buyer.commit(TaskIssued(fresh.task(0).signed))


def test_a_task_number_is_spent_once_and_the_second_use_is_evidence(seller: Ledger) -> None:
    other = DEAL.task(0, job=9)
    conflict = seller.refuses(TaskTaken(other.signed))
    assert conflict.code == "number-spent"
    (found,) = seller.reader.evidence()
    assert (found.kind, found.peer) == ("double-task", DEAL.requester.peer)
    assert found.records == (TASK.signed, other.signed)


def test_the_requesters_own_second_task_is_no_evidence_against_it(buyer: Ledger) -> None:
    assert buyer.refuses(TaskIssued(DEAL.task(0, job=9).signed)).code == "number-spent"
    assert buyer.reader.evidence() == []


def test_a_gap_is_refused_on_both_sides(buyer: Ledger, seller: Ledger) -> None:
    assert seller.refuses(issue(NEXT)).code == "gap"
    assert buyer.refuses(settle(NEXT, NEXT_ANSWER)).code == "gap"


def test_a_broken_chain_is_refused(buyer: Ledger, seller: Ledger) -> None:
    buyer.commit(settle(RECEIPT, ANSWER))
    seller.commit(issue(RECEIPT))
    for changes in ({"previous": bytes([1]) * 32}, {"cumulative": 99}):
        broken = changed(NEXT, **changes)
        assert seller.refuses(issue(broken)).code == "broken-chain"
        assert buyer.refuses(settle(broken, DEAL.answer(broken, NEXT_HEAD))).code == "broken-chain"


def test_an_equivocation_is_refused_and_kept(buyer: Ledger) -> None:
    buyer.commit(settle(RECEIPT, ANSWER))
    rival = changed(RECEIPT, trace=bytes([3]) * 32)
    conflict = buyer.refuses(settle(rival, DEAL.answer(rival, HEAD)))
    assert conflict.code == "equivocation"
    assert conflict.evidence is not None
    (found,) = buyer.reader.evidence()
    assert found.records == (RECEIPT.signed, rival.signed)
    context = buyer.reader.context(rival)
    assert context.rival is not None
    assert context.rival.id == RECEIPT.id
    proof = context.evidence(rival, START_US)
    assert proof is not None
    assert proof.kind == "equivocation"
    assert buyer.reader.context(RECEIPT).evidence(RECEIPT, START_US) is None


def test_a_broken_chain_is_proved_by_the_receipt_before(buyer: Ledger) -> None:
    buyer.commit(settle(RECEIPT, ANSWER))
    broken = changed(NEXT, previous=bytes([1]) * 32)
    proof = buyer.reader.context(broken).evidence(broken, START_US)
    assert proof is not None
    assert (proof.kind, proof.records) == ("broken-chain", (RECEIPT.signed, broken.signed))
    assert buyer.reader.context(NEXT).evidence(NEXT, START_US) is None


def test_a_provider_cannot_issue_two_receipts_for_one_task_or_place(seller: Ledger) -> None:
    seller.commit(issue(RECEIPT))
    again = DEAL.receipt(TASK, NEXT_HEAD)
    assert seller.refuses(issue(again)).code == "already-issued"
    assert seller.refuses(issue(DEAL.receipt(NEXT_TASK, HEAD))).code == "place-taken"


def test_a_receipt_is_countersigned_once(buyer: Ledger) -> None:
    buyer.commit(settle(RECEIPT, ANSWER))
    later = DEAL.answer(RECEIPT, HEAD, at_us=START_US + 1)
    assert buyer.refuses(settle(RECEIPT, later)).code == "already-countersigned"
    assert buyer.reader.countersignature_of(RECEIPT.id) == ANSWER.signed


def test_a_task_is_paid_once_and_the_lane_goes_on(buyer: Ledger) -> None:
    buyer.commit(settle(RECEIPT, ANSWER))
    again = DEAL.receipt(TASK, NEXT_HEAD)
    assert buyer.refuses(settle(again, DEAL.answer(again, NEXT_HEAD))).code == "already-answered"
    assert buyer.reader.context(again).already_answered
    assert not buyer.reader.context(RECEIPT).already_answered
    buyer.commit(settle(again, DEAL.answer(again, NEXT_HEAD, "already-answered")))
    assert buyer.reader.lane_head(LANE) == LaneHead(2, again.id, cumulative=6, accepted=3)


def test_a_second_receipt_of_a_disputed_task_is_never_paid(buyer: Ledger) -> None:
    """Its task was done again elsewhere by then: one more receipt would be paid for nothing."""
    buyer.commit(settle(RECEIPT, DEAL.answer(RECEIPT, HEAD, "outputs-mismatch")))
    head = buyer.reader.lane_head(LANE)
    again = DEAL.receipt(TASK, head)
    assert buyer.reader.context(again).already_answered
    assert buyer.refuses(settle(again, DEAL.answer(again, head))).code == "already-answered"
    buyer.commit(settle(again, DEAL.answer(again, head, "already-answered")))
    assert buyer.reader.balances()[0].owed_by_me == 0


def test_a_superseded_task_is_never_paid(buyer: Ledger) -> None:
    buyer.commit(TaskSuperseded(TASK.id, "superseded"))
    assert buyer.refuses(settle(RECEIPT, ANSWER)).code == "superseded"
    buyer.commit(settle(RECEIPT, DEAL.answer(RECEIPT, HEAD, "superseded")))
    assert buyer.reader.lane_head(LANE).accepted == 0
    assert buyer.reader.balances()[0].owed_by_me == 0


def test_a_paid_task_cannot_be_given_up(buyer: Ledger) -> None:
    buyer.commit(settle(RECEIPT, ANSWER))
    assert buyer.refuses(TaskSuperseded(TASK.id, "superseded")).code == "already-paid"


@pytest.mark.parametrize("code", ["ok", "gap", "stale", "broken-chain", "", "x" * 41])
def test_a_task_is_given_up_with_a_code_that_can_be_disputed(buyer: Ledger, code: str) -> None:
    assert buyer.refuses(TaskSuperseded(TASK.id, code)).code == "wrong-code"


def test_a_wrong_sum_of_ones_own_is_refused(buyer: Ledger) -> None:
    greedy = msgspec.structs.replace(ANSWER.record, accepted_cumulative=2)
    answer = open_verified(Countersignature, sign_record(DEAL.requester, greedy))
    assert buyer.refuses(settle(RECEIPT, answer)).code == "wrong-countersignature"


def test_two_answers_to_one_receipt_are_evidence(seller: Ledger) -> None:
    seller.commit(issue(RECEIPT), CountersignatureReceived(ANSWER.signed))
    conflict = seller.refuses(signed_answer(ANSWER, issued_us=START_US + 5))
    assert conflict.code == "double-countersignature"
    assert [found.kind for found in seller.reader.evidence()] == ["double-countersignature"]


def test_countersignatures_may_arrive_in_any_order(seller: Ledger) -> None:
    seller.commit(issue(RECEIPT), issue(NEXT))
    seller.commit(CountersignatureReceived(NEXT_ANSWER.signed))
    (balance,) = seller.reader.balances()
    assert (balance.owed_to_me, balance.pending) == (3, 3), "one that waits for its answer counts once"
    seller.commit(CountersignatureReceived(ANSWER.signed))
    (balance,) = seller.reader.balances()
    assert (balance.owed_to_me, balance.pending) == (6, 0)


def test_a_requester_who_lowers_its_sum_is_caught_in_either_order(tmp_path: Path) -> None:
    disputed = DEAL.answer(NEXT, replace(NEXT_HEAD, accepted=0), "overbilled")
    for order in ((ANSWER, disputed), (disputed, ANSWER)):
        ledger = Ledger(tmp_path / f"{order[0].id.hex()}.db", DEAL.provider.peer)
        ledger.commit(
            DEAL.granted(), TaskTaken(TASK.signed), TaskTaken(NEXT_TASK.signed), issue(RECEIPT), issue(NEXT)
        )
        ledger.commit(CountersignatureReceived(order[0].signed))
        assert ledger.refuses(CountersignatureReceived(order[1].signed)).code == "wrong-sum"
        (found,) = ledger.reader.evidence()
        assert found.peer == DEAL.requester.peer
        assert {answer.signed for answer in order} <= set(found.records)
        ledger.book.close()


def test_a_countersignature_of_an_unknown_receipt_is_refused(seller: Ledger) -> None:
    assert seller.refuses(CountersignatureReceived(ANSWER.signed)).code == "unknown-receipt"


def test_a_receipt_for_an_unknown_task_or_foreign_lease_is_refused(buyer: Ledger, seller: Ledger) -> None:
    other = make_deal(6)
    assert seller.refuses(issue(DEAL.receipt(DEAL.task(5), HEAD))).code == "unknown-task"
    assert seller.refuses(issue(other.receipt(other.task(0), HEAD))).code == "unknown-lease"
    assert buyer.refuses(issue(RECEIPT)).code == "wrong-role"
    assert seller.refuses(settle(RECEIPT, ANSWER)).code == "wrong-role"
    moved = changed(RECEIPT, lane=bytes(16))
    assert seller.refuses(issue(moved)).code == "wrong-lease"


def test_entries_of_one_commit_are_written_all_or_none(buyer: Ledger) -> None:
    line = StoryLine(bytes(16), 1, "", "note", None, None, "before the refusal")
    conflict = buyer.refuses(
        line, settle(RECEIPT, ANSWER), settle(RECEIPT, DEAL.answer(RECEIPT, HEAD, "late"))
    )
    assert conflict.code == "already-countersigned"


def test_one_callers_conflict_does_not_fail_another(buyer: Ledger) -> None:
    good: list[Entry] = [settle(RECEIPT, ANSWER)]
    bad: list[Entry] = [settle(NEXT, NEXT_ANSWER), TaskSuperseded(TASK.id, "superseded")]
    outcomes = buyer.book.commit_group([bad[:1], good, bad[1:], [settle(NEXT, NEXT_ANSWER)]])
    codes = [outcome.code if isinstance(outcome, LedgerConflict) else outcome for outcome in outcomes]
    assert codes == ["gap", None, "already-paid", None]


@pytest.mark.parametrize(
    "entry",
    [
        LeaseEnded(DEAL.lease.id, "\ud800"),
        StoryLine(bytes(16), 1 << 70, "", "note", None, None, "a time that SQLite cannot hold"),
        ReceiptIssued(RECEIPT.signed, ((b"short", -1),)),
    ],
)
def test_a_value_that_does_not_fit_fails_its_caller_alone(seller: Ledger, entry: Entry) -> None:
    outcomes = seller.book.commit_group([[entry], [LeaseEnded(DEAL.lease.id, "idle")]])
    assert isinstance(outcomes[0], LedgerConflict)
    assert outcomes[0].code == "unfit"
    assert outcomes[1] is None


def test_money_tables_refuse_update_and_delete(buyer: Ledger) -> None:
    buyer.commit(settle(RECEIPT, ANSWER))
    for statement in (
        "UPDATE receipt SET amount = 0",
        "DELETE FROM receipt",
        "UPDATE countersignature SET accepted_cumulative = 0",
        "DELETE FROM countersignature",
        "DELETE FROM task",
        "DELETE FROM lease",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            buyer.database.execute(statement)


def test_evidence_is_kept_once_and_bounded_per_peer(buyer: Ledger) -> None:
    liar = DEAL.provider.peer
    for number in range(MAX_EVIDENCE_PER_PEER + 5):
        found = EvidenceFound("overbilled", liar, (DEAL.task(number).signed,), START_US, "x")
        buyer.commit(found, found)
    assert len(buyer.reader.evidence()) == MAX_EVIDENCE_PER_PEER


def test_balances_add_lanes_of_a_peer_and_keep_peers_apart(buyer: Ledger) -> None:
    for deal in (make_deal(7), make_deal(8, provider=5)):
        task = deal.task(0)
        receipt = deal.receipt(task, HEAD)
        buyer.commit(
            deal.offered(),
            deal.answered(),
            TaskIssued(task.signed),
            settle(receipt, deal.answer(receipt, HEAD)),
        )
    buyer.commit(settle(RECEIPT, ANSWER))
    owed = {balance.peer: balance.owed_by_me for balance in buyer.reader.balances()}
    assert owed == {DEAL.provider.peer: 6, make_deal(8, provider=5).provider.peer: 3}
