"""Two honest peers over a hostile network, each with a real ledger file, against a model.

Messages are lost, repeated and reordered; either side dies between any two steps, and between signing and committing
or committing and sending. Whatever happens: nobody ever lets two different signatures out for one place, no task is
paid twice or after it was given up, and once everything is delivered both ledgers agree to the unit.
"""

import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coppermesh.agent.ledger import (
    CountersignatureReceived,
    Entry,
    TaskIssued,
    TaskSuperseded,
    TaskTaken,
)
from coppermesh.agent.ledger_book import LedgerBook
from coppermesh.agent.ledger_files import open_database
from coppermesh.agent.ledger_reader import LedgerReader
from coppermesh.agent.receipts import REFUSALS, RunFacts, check_receipt
from coppermesh.agent.rehearsal import OUTPUT, issue, make_deal, run_facts, settle
from coppermesh.p2p.blobs import roots_digest
from coppermesh.p2p.envelope import Opened, open_record
from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.ids import Digest, PeerId, mesh_id
from coppermesh.p2p.records import Countersignature, Receipt

MESH = mesh_id("rehearsal")
crashes = st.sampled_from(["nowhere"] * 8 + ["before-commit", "after-commit"])
"""Where this step's side dies. Mostly it does not, else little would ever get far."""
runs = st.one_of(
    st.builds(run_facts, st.sampled_from([0, 1, 999, 2500, 5000])),
    st.sampled_from([run_facts(700, status="job-failed"), run_facts(700, status="provider-failed")]),
    st.just(replace(run_facts(), outputs=[bytes(32)])),
)
"""Good runs, failures, and outputs that are not what arrives (disputed)."""
picks = st.integers(0, 10**6)


class Side:
    """One peer's durable state. A crash closes the file without ceremony and opens it again."""

    def __init__(self, path: Path, me: PeerId) -> None:
        self._path, self._me = path, me
        self.open()

    def open(self) -> None:
        database = open_database(self._path, MESH, self._me)
        database.execute("PRAGMA synchronous=OFF")
        self.book = LedgerBook(database, self._me)
        self.reader = LedgerReader(database)

    def crash(self) -> None:
        self.book.close()
        self.open()

    def commit(self, *entries: Entry) -> MeshError | None:
        (outcome,) = self.book.commit_group([entries])
        return outcome

    def commit_unless_crashed(self, crash: str, *entries: Entry) -> bool:
        """Commits what was signed, with a crash at that step; True where its signature may leave."""
        if crash == "before-commit":
            self.crash()
            return False
        outcome = self.commit(*entries)
        if outcome is not None:
            raise outcome
        if crash == "after-commit":
            self.crash()
            return False
        return True


class TwoLedgers(RuleBasedStateMachine):
    """The machine; `network` is a bag of messages."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ledgers"))
        self.deals = [make_deal(number, budget=20) for number in range(2)]
        self.by_lease = {deal.lease.id: deal for deal in self.deals}
        self.provider = Side(self.folder / "provider.db", self.deals[0].provider.peer)
        self.requester = Side(self.folder / "requester.db", self.deals[0].requester.peer)
        self.network: list[tuple[str, Any]] = []
        self.numbers: Counter[int] = Counter()
        self.jobs = 0
        self.receipts_out: dict[tuple[bytes, int], Digest] = {}
        self.answers_out: dict[Digest, Digest] = {}
        self.accepted: dict[Digest, int] = {}
        self.work_paid: Counter[tuple[bytes, int]] = Counter()
        for deal in self.deals:
            assert self.requester.commit(deal.offered()) is None
            assert self.provider.commit(deal.granted()) is None
            assert self.requester.commit(deal.answered()) is None

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        try:
            self.deliver_everything()
            self.check_agreement()
        finally:
            self.provider.book.close()
            self.requester.book.close()
            shutil.rmtree(self.folder)

    # What honest peers do.

    @rule(lanes=st.lists(st.integers(0, 1), min_size=1, max_size=4), crash=crashes)
    def issue_tasks(self, lanes: list[int], crash: str) -> None:
        for lane in lanes:
            self.jobs += 1
            self.send_task(lane, self.jobs, 0, crash)

    @precondition(lambda self: self.provider.reader.unanswered_tasks())
    @rule(runs=st.lists(runs, min_size=1, max_size=4), crash=crashes, pick=picks)
    def run_tasks(self, runs: list[RunFacts], crash: str, pick: int) -> None:
        for facts in runs:
            self.answer_task(crash, facts, pick)

    @precondition(lambda self: self.requester.reader.unanswered_tasks())
    @rule(pick=picks)
    def give_up_and_move(self, pick: int) -> None:
        """The requester has waited long enough: it writes that down, then issues the work on the other lane."""
        waiting = self.requester.reader.unanswered_tasks()
        _, task = waiting[pick % len(waiting)]
        assert self.requester.commit(TaskSuperseded(task.id, "superseded")) is None
        lane = 1 - self.deals.index(self.by_lease[Digest(task.record.lease)])
        self.send_task(lane, int.from_bytes(task.record.job, "big"), task.record.index, "nowhere")

    @precondition(lambda self: self.provider.reader.unsettled())
    @rule()
    def resend(self) -> None:
        for waiting in self.provider.reader.unsettled():
            self.network.append(("result", waiting.receipt))

    # What the network and the power supply do.

    @precondition(lambda self: self.network)
    @rule(deliveries=st.lists(st.tuples(picks, st.booleans()), min_size=1, max_size=8), crash=crashes)
    def deliver(self, deliveries: list[tuple[int, bool]], crash: str) -> None:
        for pick, repeat in deliveries:
            if not self.network:
                return
            kind, content = self.network.pop(pick % len(self.network))
            if repeat:
                self.network.append((kind, content))
            self.receive(kind, content, crash)

    @precondition(lambda self: self.network)
    @rule(pick=picks, luck=st.integers(0, 3))
    def lose(self, pick: int, luck: int) -> None:
        if luck == 0:
            self.network.pop(pick % len(self.network))

    @rule(
        lane=st.integers(0, 1),
        facts=runs,
        at_task=crashes,
        at_receipt=crashes,
        at_answer=crashes,
        at_end=crashes,
        repeat=st.booleans(),
    )
    def trade(
        self,
        lane: int,
        facts: RunFacts,
        at_task: str,
        at_receipt: str,
        at_answer: str,
        at_end: str,
        repeat: bool,
    ) -> None:
        """One task through all its steps, each with its own crash, so that lanes grow long."""
        self.issue_tasks([lane], "nowhere")
        for kind, crash in (("task", at_task), ("result", at_answer), ("answer", at_end)):
            if kind == "result":
                self.answer_task(at_receipt, facts, 0)
            ready = [message for message in self.network if message[0] == kind]
            self.network = [message for message in self.network if message[0] != kind or repeat]
            for message in ready:
                self.receive(*message, crash)

    @rule(side=st.sampled_from(["nobody"] * 6 + ["provider", "requester"]))
    def crash_side(self, side: str) -> None:
        if side != "nobody":
            getattr(self, side).crash()

    # The shells, in miniature.

    def send_task(self, lane: int, job: int, index: int, crash: str) -> None:
        deal = self.deals[lane]
        task = deal.task(self.numbers[lane], job=job, index=index, max_amount=4)
        self.numbers[lane] += 1
        if self.requester.commit_unless_crashed(crash, TaskIssued(task.signed)):
            self.network.append(("task", task))

    def answer_task(self, crash: str, facts: RunFacts, pick: int) -> None:
        waiting = self.provider.reader.unanswered_tasks()
        if not waiting:
            return
        _, task = waiting[pick % len(waiting)]
        deal = self.by_lease[Digest(task.record.lease)]
        receipt = deal.receipt(task, self.provider.reader.lane_head(deal.lease.record.lane), facts)
        if self.provider.commit_unless_crashed(crash, issue(receipt)):
            self.release_receipt(receipt)

    def receive(self, kind: str, content: Any, crash: str) -> None:
        if kind == "task":
            self.provider.commit_unless_crashed(crash, TaskTaken(content.signed))
        elif kind == "result":
            self.receive_result(content, crash)
        else:
            self.provider.commit_unless_crashed(crash, CountersignatureReceived(content.signed))

    def receive_result(self, receipt: Opened[Receipt], crash: str) -> None:
        found = self.requester.reader.context(receipt)
        if found.countersignature is not None:
            self.release_answer(open_record(Countersignature, found.countersignature))
            return
        assert found.lease is not None
        assert found.task is not None
        assert found.rival is None
        verdict = check_receipt(
            receipt,
            found.lease.record,
            found.task,
            found.head,
            outputs_digest=roots_digest([OUTPUT]),
            observed_us=60_000_000,
            given_up=found.given_up,
            already_answered=found.already_answered,
        )
        if verdict in REFUSALS:
            assert verdict == "gap", "honest peers only ever overtake themselves"
            return
        deal = self.by_lease[Digest(receipt.record.lease)]
        answer = deal.answer(receipt, found.head, verdict, at_us=len(self.network))
        if self.requester.commit_unless_crashed(crash, settle(receipt, answer)):
            self.release_answer(answer)

    def release_receipt(self, receipt: Opened[Receipt]) -> None:
        """A receipt leaves the provider: this is where an equivocation would be seen."""
        place = (receipt.record.lane, receipt.record.sequence)
        assert self.receipts_out.setdefault(place, receipt.id) == receipt.id, "equivocation"
        self.network.append(("result", receipt))

    def release_answer(self, answer: Opened[Countersignature]) -> None:
        """A countersignature leaves the requester: this is what it will have to pay."""
        record = answer.record
        receipt_id = Digest(record.receipt)
        assert self.answers_out.setdefault(receipt_id, answer.id) == answer.id, "two answers to one receipt"
        if record.verdict == "accepted" and receipt_id not in self.accepted:
            stored = self.requester.reader.receipt(receipt_id)
            assert stored is not None
            self.count_payment(receipt_id, stored.opened.record)
        self.network.append(("answer", answer))

    def count_payment(self, receipt_id: Digest, receipt: Receipt) -> None:
        self.accepted[receipt_id] = receipt.amount
        task = self.requester.reader.task(Digest(receipt.task_id))
        assert task is not None
        assert self.requester.book.given_up(task.id) is None, "paid after it was given up"
        self.work_paid[(task.record.job, task.record.index)] += 1

    # What must hold.

    @invariant()
    def nothing_is_paid_twice(self) -> None:
        if hasattr(self, "folder"):
            assert all(times == 1 for times in self.work_paid.values())

    @invariant()
    def nobody_counts_more_than_was_accepted(self) -> None:
        if not hasattr(self, "folder"):
            return
        promised = sum(self.accepted.values())
        assert owed(self.provider, "owed_to_me") <= owed(self.requester, "owed_by_me")
        assert owed(self.requester, "owed_by_me") >= promised

    def deliver_everything(self) -> None:
        """The network heals: every message arrives, every lost result is sent again, in rounds."""
        rounds = 0
        while self.network or self.provider.reader.unsettled():
            rounds += 1
            assert rounds < 200, "the two sides never come to rest"
            self.resend()
            messages, self.network = self.network, []
            for kind, content in messages:
                self.receive(kind, content, "nowhere")

    def check_agreement(self) -> None:
        assert owed(self.provider, "owed_to_me") == owed(self.requester, "owed_by_me")
        assert owed(self.requester, "owed_by_me") == sum(self.accepted.values())
        assert owed(self.provider, "pending") == 0
        for deal in self.deals:
            lane = deal.lease.record.lane
            assert self.provider.reader.lane_head(lane) == self.requester.reader.lane_head(lane)
        assert self.provider.reader.evidence() == []
        assert self.requester.reader.evidence() == []


def owed(side: Side, what: str) -> int:
    return sum(getattr(balance, what) for balance in side.reader.balances())


TwoLedgers.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    print_blob=True,
)
TestTwoLedgers = TwoLedgers.TestCase
