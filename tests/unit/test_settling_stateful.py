"""The machine of `test_ledger_stateful.py`, with statements, payments and backups that are put back in between.

Two honest peers over a network that loses, repeats and reorders, either of which dies between any two steps. Whatever
happens: both have one statement of a number, no receipt is under two, what was paid by one was received by the other,
and nobody holds a proof against the other, also after a ledger was set back to an old backup.
"""

import importlib.util
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from coppermesh.agent.ledger import LedgerConflict
from coppermesh.agent.ledger_backup import back_up, restore
from coppermesh.agent.ledger_settling import copy_of
from coppermesh.agent.rehearsal import START_US, make_deal, run_facts
from coppermesh.agent.settling import PaymentKept, StatementDrafted, StatementSigned
from coppermesh.agent.statements import (
    check_order,
    check_spans,
    check_sums,
    draw_up,
    gives_way,
    net_for,
    open_spans,
    pack_spans,
    unpack_spans,
)
from coppermesh.p2p.envelope import open_record, sign_record
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import Digest
from coppermesh.p2p.settlement_records import Payment, SignedStatement, Statement

_spec = importlib.util.spec_from_file_location(
    "ledger_machine", Path(__file__).with_name("test_ledger_stateful.py")
)
assert _spec is not None
assert _spec.loader is not None
machine: Any = importlib.util.module_from_spec(_spec)
sys.modules["ledger_machine"] = machine
_spec.loader.exec_module(machine)

MESH = machine.MESH
SIDES = ("provider", "requester")
OTHER = {"provider": "requester", "requester": "provider"}
sides = st.sampled_from(SIDES)


class TwoLedgersThatSettle(machine.TwoLedgers):  # type: ignore[misc]
    """Statements are proposed, cross, get lost and come back; the payee says that they were paid."""

    network: list[tuple[str, Any]]

    def key(self, name: str) -> Any:
        return getattr(self.deals[0], name)

    def tables(self, name: str) -> Any:
        return getattr(self, name).book.settling

    def signed_by_both(self, name: str) -> dict[int, Digest]:
        return {
            opened.record.number: opened.id
            for opened in (
                open_record(Statement, signed.proposed) for signed in self.tables(name).statements()
            )
        }

    @initialize()
    def start(self) -> None:
        super().start()
        for lane in (0, 1, 0):
            self.trade(lane, run_facts(2500), *["nowhere"] * 4, repeat=False)

    @rule(
        name=sides,
        lanes=st.lists(st.integers(0, 1), max_size=3),
        crashes=st.tuples(*[machine.crashes] * 4),
        repeat=st.booleans(),
        paid=st.booleans(),
    )
    def settle_up(self, name: str, lanes: list[int], crashes: Any, repeat: bool, paid: bool) -> None:
        """Some work, then a statement through all its steps, each with its own crash."""
        for lane in lanes:
            self.trade(lane, run_facts(2500), *["nowhere"] * 4, repeat=False)
        self.propose(name, crashes[0])
        for kind, crash in zip(("proposed", "signed"), crashes[1:3], strict=True):
            ready = [message for message in self.network if message[0] == kind]
            self.network = [message for message in self.network if message[0] != kind or repeat]
            for what, content in ready:
                self.receive(what, content, crash)
        if paid:
            self.pay(crashes[3], 0)

    @rule(name=sides, crash=machine.crashes)
    def propose(self, name: str, crash: str) -> None:
        me, peer, tables = self.key(name), self.key(OTHER[name]).peer, self.tables(name)
        covered = [tables.covered_span(span) for span in open_spans(tables.lanes_with(peer, "usd"))]
        self.proposals: int = getattr(self, "proposals", 0) + 1
        try:
            last = tables.last_statement(peer, "usd")
            record = draw_up(MESH, me.peer, peer, "usd", last, covered, START_US + self.proposals)
        except Refused:
            return
        draft = SignedStatement(sign_record(me, record), None, pack_spans(part.span for part in covered))
        if getattr(self, name).commit_unless_crashed(crash, StatementDrafted(draft)):
            self.network.append(("proposed", draft))

    @rule(name=sides)
    def propose_again(self, name: str) -> None:
        """What was proposed last goes out again, as it does when the two are connected anew."""
        waiting = self.tables(name).live_draft(self.key(OTHER[name]).peer, "usd", 0)
        if waiting is not None:
            self.network.append(("proposed", waiting))
        signed = self.tables(name).statements()
        self.network += [("signed", found) for found in signed[-1:]]

    @rule(crash=machine.crashes, pick=machine.picks)
    def pay(self, crash: str, pick: int) -> None:
        """Some statement is paid, by whatever way; its payee says so."""
        for name in SIDES:
            me, tables = self.key(name), self.tables(name)
            signed = tables.statements()
            if not signed:
                continue
            opened = open_record(Statement, signed[pick % len(signed)].proposed)
            net = net_for(opened.record, me.peer)
            known = tables.payment_of(opened.id)
            if net <= 0 or known is not None:
                self.network += [("payment", known)] if known is not None else []
                continue
            peer = self.key(OTHER[name]).peer
            said = Payment(1, MESH, me.peer, peer, opened.id, "usd", net, "ledger", "", START_US + pick)
            payment = sign_record(me, said)
            if getattr(self, name).commit_unless_crashed(crash, PaymentKept(payment)):
                self.network.append(("payment", payment))

    def receive(self, kind: str, content: Any, crash: str) -> None:
        if kind == "proposed":
            self.receive_proposal(content, crash)
        elif kind == "signed":
            for name in SIDES:
                self.keep(name, StatementSigned(content), crash)
        elif kind == "payment":
            payer = open_record(Payment, content).record.payer
            name = next(side for side in SIDES if self.key(side).peer == payer)
            self.keep(name, PaymentKept(content), crash)
        else:
            super().receive(kind, content, crash)

    def keep(self, name: str, entry: Any, crash: str) -> None:
        """A conflict is an answer, not a fault: the message was late, or came twice."""
        try:
            getattr(self, name).commit_unless_crashed(crash, entry)
        except LedgerConflict as conflict:
            assert conflict.evidence is None, "honest peers prove nothing against each other"

    def receive_proposal(self, draft: SignedStatement, crash: str) -> None:
        opened = open_record(Statement, draft.proposed)
        record = opened.record
        name = next(side for side in SIDES if self.key(side).peer == record.other)
        me, peer, tables = self.key(name), opened.signer, self.tables(name)
        known = tables.statement(opened.id)
        if known is not None:
            self.network.append(("signed", known))
            return
        spans = unpack_spans(draft.lanes)
        try:
            check_order(record, tables.last_statement(peer, "usd"))
            if not tables.may_sign_second(peer, "usd"):
                return
            if tables.live_draft(peer, "usd", 0) is not None and not gives_way(me.peer, peer):
                return
            check_spans(spans, {state.lane: state for state in tables.lanes_with(peer, "usd")})
            check_sums(record, [tables.covered_span(span) for span in spans])
        except Refused:
            return
        complete = copy_of(draft, sign_record(me, record))
        if getattr(self, name).commit_unless_crashed(crash, StatementSigned(complete)):
            self.network.append(("signed", complete))

    @precondition(lambda self: hasattr(self, "folder"))
    @rule()
    def statements_agree(self) -> None:
        here, there = (self.signed_by_both(name) for name in SIDES)
        assert all(here[number] == there[number] for number in here.keys() & there.keys())

    def deliver_everything(self) -> None:
        super().deliver_everything()
        for _ in range(4):
            for name in SIDES:
                self.propose_again(name)
            for pick in range(max(len(self.signed_by_both(name)) for name in SIDES)):
                self.pay("nowhere", pick)
            super().deliver_everything()

    def check_agreement(self) -> None:
        super().check_agreement()
        assert self.signed_by_both("provider") == self.signed_by_both("requester")
        (one,), (other,) = (self.balances(name) or [None] for name in SIDES)
        if one is not None and other is not None:
            assert (one.net, one.paid, one.stated) == (-other.net, -other.paid, -other.stated)
        for name in SIDES:
            self.check_books(name)

    def balances(self, name: str) -> Any:
        return getattr(self, name).reader.balances()

    def check_books(self, name: str) -> None:
        """Money is conserved: what left one account is in another, and the accounts say what the receipts say."""
        database = getattr(self, name).book._database
        sums: Counter[str] = Counter()
        for account, amount in database.execute("SELECT account, amount FROM posting"):
            sums[account] += amount
        assert sum(sums.values()) == 0
        for line in self.balances(name):
            assert (-sums["income"], sums["expense"]) == (line.owed_to_me, line.owed_by_me)
            assert (sums["stated"], sums["paid"]) == (line.stated, line.paid)
            assert sums["due"] + sums["stated"] == line.net


class TwoLedgersThatRestore(TwoLedgersThatSettle):
    """Either ledger is set back to an old backup. They may differ then, but nobody signed two things."""

    @rule(name=sides)
    def save(self, name: str) -> None:
        side = getattr(self, name)
        self.saved = {**getattr(self, "saved", {}), name: True}
        back_up(side._path, side._path.with_suffix(".backup"), force=True)

    @precondition(lambda self: bool(getattr(self, "saved", {})))
    @rule(name=sides)
    def set_back(self, name: str) -> None:
        if name not in self.saved:
            return
        side = getattr(self, name)
        side.book.close()
        # Proposals are dated by their count: later ones are from after the restore.
        at_us = START_US + getattr(self, "proposals", 0) + 1
        restore(side._path.with_suffix(".backup"), side._path, MESH, side._me, at_us)
        side.open()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Later work is done under new leases."""
        self.leases = getattr(self, "leases", 10) + 2
        self.deals = [make_deal(self.leases + number, budget=20) for number in range(2)]
        self.numbers.clear()
        for deal in self.deals:
            self.by_lease[deal.lease.id] = deal
            assert self.requester.commit(deal.offered()) is None
            assert self.provider.commit(deal.granted()) is None
            assert self.requester.commit(deal.answered()) is None

    def give_up_and_move(self, pick: int) -> None:
        """Tasks of leases that ended with a restore are not moved."""

    def receive(self, kind: str, content: Any, crash: str) -> None:
        try:
            super().receive(kind, content, crash)
        except LedgerConflict as conflict:
            assert conflict.evidence is None
            assert conflict.code in {
                "lease-ended",
                "unknown-receipt",
                "unknown-lease",
                "restored",
                "not-agreed",
            }

    def receive_result(self, receipt: Any, crash: str) -> None:
        found = self.requester.reader.context(receipt)
        if found.countersignature is None and (found.lease is None or found.task is None or found.sealed):
            return
        super().receive_result(receipt, crash)

    def answer_task(self, crash: str, facts: Any, pick: int) -> None:
        try:
            super().answer_task(crash, facts, pick)
        except LedgerConflict as conflict:
            assert conflict.code == "restored"

    def nobody_counts_more_than_was_accepted(self) -> None:
        """Not after a restore."""

    def deliver_everything(self) -> None:
        for _ in range(20):
            self.resend()
            for name in SIDES:
                self.propose_again(name)
            messages, self.network = self.network, []
            for kind, content in messages:
                self.receive(kind, content, "nowhere")

    def check_agreement(self) -> None:
        for name in SIDES:
            assert getattr(self, name).reader.evidence() == []
            self.check_books(name)


def limits(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        print_blob=True,
        database=None,
    )


@pytest.mark.parametrize(
    ("kind", "examples"),
    [
        pytest.param(TwoLedgersThatSettle, 15, id="settle"),
        pytest.param(TwoLedgersThatRestore, 5, id="restore"),
        pytest.param(TwoLedgersThatSettle, 300, id="settle-long", marks=pytest.mark.slow),
        pytest.param(TwoLedgersThatRestore, 200, id="restore-long", marks=pytest.mark.slow),
    ],
)
def test_two_peers_settle(
    kind: type[RuleBasedStateMachine], examples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a failure Hypothesis prints the steps; the seed is printed too. tests/soak/run_ledger.py runs thousands."""
    if Path("/dev/shm").is_dir():
        monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")  # crashes here are of processes, not of disks
    number = 20261130
    print(f"seed {number}")  # noqa: T201 - shown when it fails
    run_state_machine_as_test(seed(number)(kind), settings=limits(examples, 25))
