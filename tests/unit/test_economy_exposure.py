"""What a requester may leave unpaid: one interval for a stranger, then wait, then leave."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coppermesh.agent import credit_desk, result_outbox
from coppermesh.agent.costs import modelled_mw
from coppermesh.agent.exposure import (
    FORGIVEN_US,
    GRACE_US,
    INTERVAL_US,
    SLOWEST_BYTES_PER_SECOND,
    Exposure,
    Go,
    Leave,
    Wait,
    interval_cost,
)
from coppermesh.agent.lease_server import device_time, energy_of
from coppermesh.agent.ledger import TaskTaken
from coppermesh.agent.ledger_reader import UnsettledReceipt
from coppermesh.agent.ledger_store import open_ledger
from coppermesh.agent.node import Node
from coppermesh.agent.receipts import LaneHead
from coppermesh.agent.rehearsal import START_US, issue, make_deal
from coppermesh.agent.reputation import Dealings
from coppermesh.p2p.dial_plan import DialPlan
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import Digest, PeerId, format_peer

RATE = 3_600_000_000
"""One millionth for each microsecond: amounts are microseconds."""
WALL_US = 60_000_000
CREDIT = interval_cost(RATE, WALL_US)


def test_an_interval_is_the_longer_of_ten_seconds_and_a_task_with_its_grace():
    assert interval_cost(RATE, 1) == INTERVAL_US + GRACE_US
    assert interval_cost(RATE, WALL_US) == WALL_US + GRACE_US


def test_one_task_always_fits_a_strangers_credit():
    exposure = Exposure()
    assert exposure.ask(b"1", WALL_US, CREDIT, 0) == Go()
    exposure.billed(b"1", b"r1", 5_000, 0, 0)
    assert exposure.ask(b"2", WALL_US, CREDIT, 1) == Go(), "a small receipt leaves room for the next task"


def test_a_requester_that_does_not_answer_is_waited_for_and_left():
    exposure = Exposure()
    exposure.ask(b"1", WALL_US, CREDIT, 0)
    exposure.billed(b"1", b"r1", WALL_US, 0, 0)
    assert exposure.ask(b"2", WALL_US, CREDIT, 5) == Wait(5 + GRACE_US)
    assert exposure.ask(b"2", WALL_US, CREDIT, 4 + GRACE_US) == Wait(5 + GRACE_US)
    verdict = exposure.ask(b"2", WALL_US, CREDIT, 5 + GRACE_US)
    assert isinstance(verdict, Leave)
    assert "1 receipt waits for your countersignature" in verdict.sentence


def test_an_answer_begins_the_grace_anew():
    exposure = Exposure()
    for number in (1, 2):
        exposure.billed(b"%d" % number, b"r%d" % number, WALL_US // 2, 0, 0)
    assert exposure.ask(b"3", WALL_US, CREDIT, 0) == Wait(GRACE_US)
    exposure.answered(b"r1")
    assert exposure.ask(b"3", WALL_US, CREDIT, GRACE_US) == Wait(2 * GRACE_US)
    exposure.answered(b"r2")
    assert exposure.ask(b"3", WALL_US, CREDIT, GRACE_US) == Go()


def test_tasks_of_other_leases_are_waited_for_without_blame():
    exposure = Exposure()
    exposure.ask(b"1", WALL_US, CREDIT, 0)
    for now_us in (1, 10 * GRACE_US):
        assert exposure.ask(b"2", WALL_US, CREDIT, now_us) == Wait(now_us + GRACE_US)
    exposure.released(b"1")
    assert exposure.ask(b"2", WALL_US, CREDIT, 11 * GRACE_US) == Go()


def test_large_outputs_have_the_time_that_fetching_takes():
    exposure = Exposure()
    for number in (1, 2):
        exposure.billed(b"%d" % number, b"r%d" % number, WALL_US // 2, 100 * SLOWEST_BYTES_PER_SECOND, 0)
    assert exposure.ask(b"3", WALL_US, CREDIT, 0) == Wait(100_000_000 + GRACE_US)
    exposure.answered(b"r1")
    assert exposure.ask(b"3", WALL_US, CREDIT, 50_000_000) == Wait(200_000_000 + GRACE_US), (
        "after the one before"
    )
    assert isinstance(exposure.ask(b"3", WALL_US, CREDIT, 200_000_000 + GRACE_US), Leave)


def test_a_new_lease_is_declined_once_an_answer_is_overdue_and_nothing_fits():
    exposure = Exposure()
    exposure.billed(b"1", b"r1", WALL_US, 0, 0)
    assert not exposure.used_up(WALL_US, CREDIT, GRACE_US - 1)
    assert exposure.used_up(WALL_US, CREDIT, GRACE_US)
    assert not exposure.used_up(GRACE_US, CREDIT, GRACE_US), "a smaller task fits"
    exposure.answered(b"r1")
    assert not exposure.used_up(WALL_US, CREDIT, GRACE_US)
    assert exposure.used_up(0, 0, 0)


def test_a_proven_cheat_gets_no_credit():
    assert isinstance(Exposure().ask(b"1", 1, 0, 0), Leave)


def test_a_clock_set_back_leaves_nobody_early():
    exposure = Exposure()
    exposure.billed(b"1", b"r1", CREDIT, 0, 0)
    assert exposure.ask(b"2", 1, CREDIT, 10 * GRACE_US) == Wait(11 * GRACE_US)
    assert exposure.ask(b"2", 1, CREDIT, 0) == Wait(GRACE_US)


def test_free_work_is_nothing_at_stake():
    exposure = Exposure()
    exposure.ask(b"1", 0, CREDIT, 0)
    exposure.billed(b"1", b"r1", 0, 0, 0)
    assert exposure.empty


def test_who_disputes_everything_gets_one_interval_for_nothing_and_is_left():
    exposure, now_us, worked = Exposure(), 0, 0
    while isinstance(verdict := exposure.ask(b"task", WALL_US // 6, CREDIT, now_us), Go):
        exposure.billed(b"task", b"receipt", WALL_US // 6, 0, now_us)
        exposure.answered(b"receipt", accepted=False, now_us=now_us)
        worked += WALL_US // 6
        now_us += WALL_US // 6
    assert isinstance(verdict, Leave)
    assert "disputed" in verdict.sentence
    assert worked <= CREDIT
    assert exposure.used_up(WALL_US // 6, CREDIT, now_us), "nor does it get another lease"
    assert not exposure.empty, "nor is it forgotten with its lease"
    later_us = now_us + FORGIVEN_US
    assert not exposure.used_up(WALL_US // 6, CREDIT, later_us)
    assert exposure.ask(b"task", WALL_US // 6, CREDIT, later_us) == Go()


def test_disputes_fade_so_that_an_honest_requester_is_not_shut_out_for_all_of_it():
    exposure = Exposure()
    exposure.billed(b"1", b"r1", WALL_US, 0, 0)
    exposure.answered(b"r1", accepted=False, now_us=0)
    assert exposure.used_up(WALL_US, CREDIT, 0)
    assert exposure.used_up(WALL_US, CREDIT, FORGIVEN_US // 2)
    assert not exposure.used_up(WALL_US // 2, CREDIT, FORGIVEN_US // 2), "half of it counts no more"
    assert not exposure.used_up(WALL_US, CREDIT, FORGIVEN_US)
    assert exposure.empty


@pytest.mark.parametrize("step_us", [1, 999_983, 60_000_000])
def test_they_fade_alike_however_often_one_looks(step_us: int):
    exposure = Exposure(disputed=600, disputed_us=0, fading=600)
    for now_us in range(0, 300 * step_us, step_us):
        exposure.forgive(now_us)
        left = max(0, 600 - 600 * now_us // FORGIVEN_US)
        assert left - 1 <= exposure.disputed <= left + 1


def test_accepted_work_makes_up_for_disputes():
    exposure = Exposure()
    for number in range(100):
        assert exposure.ask(b"t", WALL_US, CREDIT, number) == Go()
        exposure.billed(b"t", b"r", 5_000_000, 0, number)
        exposure.answered(b"r", accepted=number % 2 == 1, now_us=number)
    assert exposure.empty


def test_running_tasks_are_waited_for_before_a_disputer_is_left():
    exposure = Exposure()
    assert exposure.ask(b"1", GRACE_US, CREDIT, 0) == Go()
    exposure.billed(b"0", b"r0", WALL_US, 0, 0)
    exposure.answered(b"r0", accepted=False, now_us=0)
    assert exposure.ask(b"2", GRACE_US, CREDIT, 1) == Wait(1 + GRACE_US)
    exposure.released(b"1")
    assert exposure.ask(b"2", GRACE_US, CREDIT, 2) == Go()


def test_a_worker_on_a_processor_does_not_say_what_is_billed():
    assert device_time("cpu", 5_000_000, 1) is None
    assert device_time("cuda", 5_000_000, 4_000_000) == 4_000_000
    assert device_time("cuda", 5_000_000, 1 << 60) == 5_000_000
    assert device_time("cuda", 5_000_000, None) is None


def test_the_energy_of_a_run_is_the_meters_else_a_models_and_marked_as_such():
    device = SimpleNamespace(kind="cpu", cores=4)
    metered = SimpleNamespace(energy_mj=7, meter="rapl", wall_us=1_000_000)
    assert energy_of(device, metered) == (7, "rapl")
    bare = SimpleNamespace(energy_mj=None, meter="none", wall_us=2_000_000)
    assert energy_of(device, bare) == (2 * modelled_mw("cpu", 4), "model")
    assert energy_of(device, SimpleNamespace(energy_mj=None, meter="none", wall_us=0)) == (None, "none")


class History:
    """A ledger in which one peer is a proven cheat; all others are strangers."""

    def __init__(self, cheat: PeerId):
        self.cheat = cheat

    async def __call__(self, peer: PeerId, unit: str) -> Dealings:
        return Dealings(proofs=("equivocation",)) if peer == self.cheat else Dealings()


async def test_orders_of_strangers_do_not_make_a_cheat_under_lease_a_stranger(monkeypatch):
    monkeypatch.setattr(credit_desk, "MAX_REMEMBERED", 3)
    deal = make_deal(1)
    cheat = PeerId(deal.lease.record.requester)
    desk = credit_desk.CreditDesk(History(cheat), lambda: 0)
    await desk.look_up(cheat, deal.lease.record.unit)
    desk.open_lease(deal.lease)
    for number in range(10):
        await desk.look_up(PeerId(bytes([number]) * 38), "usd")
    with pytest.raises(Refused, match="cheated"):
        await desk.admit(deal.lease, Digest(bytes(32)))


async def test_everything_that_an_earlier_run_left_open_is_counted_again(tmp_path, monkeypatch):
    monkeypatch.setattr(result_outbox, "PAGE", 2)
    deal, head, receipts = make_deal(1), LaneHead(), []
    async with open_ledger(tmp_path / "ledger.db", deal.lease.record.mesh, deal.provider.peer) as ledger:
        await ledger.commit(deal.granted())
        for number in range(5):
            task = deal.task(number)
            receipts.append(deal.receipt(task, head))
            head = head.after(receipts[-1])
            await ledger.commit(TaskTaken(task.signed), issue(receipts[-1]))
        desk = credit_desk.CreditDesk(History(PeerId(b"")), lambda: START_US)
        blobs = SimpleNamespace(pin=lambda _: None, unpin=lambda _: None)
        outbox = result_outbox.ResultOutbox(
            lambda: None, deal.lease.record.mesh, ledger, blobs, credit=desk, now_us=lambda: START_US
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(outbox.run)
            nursery.cancel_scope.cancel()
    assert desk.unpaid(deal.requester.peer, "usd") == sum(one.record.amount for one in receipts) > 0


class OpenReceipts:
    """Of a ledger only what its provider has to send again."""

    def __init__(self, deal, count: int):
        head, self.rows = LaneHead(), []
        for number in range(count):
            receipt = deal.receipt(deal.task(number), head)
            head = head.after(receipt)
            self.rows.append(UnsettledReceipt(receipt, (), "", "", number + 1))

    async def unsettled(self, requester=None, limit=1000, after=0):
        await trio.lowlevel.checkpoint()
        return [row for row in self.rows if row.place > after][:limit]


async def test_a_requester_that_comes_back_gets_every_open_receipt_a_page_at_a_time(monkeypatch):
    """Also those behind receipts that it answers meanwhile, and behind as many that it refuses."""
    monkeypatch.setattr(result_outbox, "PAGE", 2)
    monkeypatch.setattr(result_outbox, "RETRY_SECONDS", ())
    deal = make_deal(1)
    ledger = OpenReceipts(deal, 7)
    hub = SimpleNamespace(peers=lambda: [deal.requester.peer])
    sent: list[int] = []
    most = 0

    async def deliver_once(self, pending):
        nonlocal most
        most = max(most, self.under_way)
        sent.append(pending.receipt.record.sequence)
        await trio.lowlevel.checkpoint()
        if pending.receipt.record.sequence in (3, 4):
            raise Refused("unknown-task", "not in this ledger")
        ledger.rows = [row for row in ledger.rows if row.receipt.id != pending.receipt.id]

    monkeypatch.setattr(result_outbox.ResultOutbox, "_deliver_once", deliver_once)
    desk = credit_desk.CreditDesk(History(PeerId(b"")), lambda: START_US)
    blobs = SimpleNamespace(pin=lambda _: None, unpin=lambda _: None)
    outbox = result_outbox.ResultOutbox(
        lambda: hub, deal.lease.record.mesh, ledger, blobs, credit=desk, now_us=lambda: START_US
    )

    async def come_back():
        with trio.fail_after(60):
            await outbox.peer_up(deal.requester.peer)
            while outbox.under_way:
                await outbox._delivered.wait()

    async with trio.open_nursery() as nursery:
        await nursery.start(outbox.run)
        await come_back()
        assert sorted(sent) == list(range(7))
        assert most <= 3, "more than a page and the one before it under way"
        await come_back()
        assert sorted(sent[7:]) == [3, 4], "what it refused is sent on its next connection, and nothing else"
        hub.peers = list
        await come_back()
        assert len(sent) == 9, "sent to a requester that is gone"
        nursery.cancel_scope.cancel()


async def test_who_has_receipts_to_countersign_is_dialled_although_enough_others_are_connected(
    autojump_clock,
):
    deal = make_deal(1)
    requester, stranger = deal.requester.peer, PeerId(bytes(32))
    places = {peer: f"/ip4/127.0.0.1/tcp/1/p2p/{format_peer(peer)}" for peer in (requester, stranger)}
    plan = DialPlan(deal.provider.peer, random.Random(1), goal=0)
    for peer, place in places.items():
        plan.learn(peer, [place], [place], trio.current_time())
    open_receipts = OpenReceipts(deal, 1)
    blobs = SimpleNamespace(pin=lambda _: None, unpin=lambda _: None)
    now_us = START_US
    outbox = result_outbox.ResultOutbox(
        lambda: None,
        deal.lease.record.mesh,
        open_receipts,
        blobs,
        credit=credit_desk.CreditDesk(History(PeerId(b"")), lambda: START_US),
        now_us=lambda: now_us,
    )
    connected = [requester]
    node: Any = SimpleNamespace(
        outbox=outbox, plan=plan, transport=SimpleNamespace(connected=lambda: connected)
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(outbox.run)
        nursery.cancel_scope.cancel()
    Node.seek_requesters(node)
    await trio.sleep(100)
    assert plan.due(trio.current_time()) == [], "it is connected"
    connected.clear()
    for _ in range(3):  # for as long as it takes, with the plan's own waits
        Node.seek_requesters(node)
        assert plan.due(trio.current_time()) == [places[requester]]
        plan.failed(places[requester], trio.current_time())
        await trio.sleep(100)
    now_us = open_receipts.rows[0].receipt.record.countersign_by_us + 1
    outbox.tidy()
    Node.seek_requesters(node)
    assert plan.due(trio.current_time()) == [], "overdue: no more"


class Requester(RuleBasedStateMachine):
    """Tasks begin, end with or without receipts, are answered in any order, twice or never; time passes."""

    def __init__(self):
        super().__init__()
        self.exposure = Exposure()
        self.now_us = 0
        self.count = 0
        self.running: list[bytes] = []
        self.open: list[bytes] = []
        self.credit = CREDIT
        self.told_to_wait_us = None

    @rule(cost=st.integers(0, WALL_US))
    def start(self, cost):
        self.count += 1
        task = b"t%d" % self.count
        stake = self.exposure.stake
        verdict = self.exposure.ask(task, cost, self.credit, self.now_us)
        assert isinstance(verdict, Go) == (stake + cost <= self.credit)
        if isinstance(verdict, Go):
            self.running.append(task)
            self.told_to_wait_us = None
        elif isinstance(verdict, Wait):
            assert self.now_us < verdict.until_us
            if self.open:
                self.told_to_wait_us = self.told_to_wait_us or self.now_us
        else:
            assert self.told_to_wait_us is not None, "nobody is left without having been waited for"

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data):
        task = data.draw(st.sampled_from(self.running))
        self.running.remove(task)
        amount = data.draw(st.integers(0, self.exposure.running[task]))
        if data.draw(st.booleans()):
            self.exposure.billed(task, b"r" + task, amount, data.draw(st.integers(0, 10**8)), self.now_us)
            if amount:
                self.open.append(b"r" + task)
        else:
            self.exposure.released(task)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def answer(self, data):
        receipt = data.draw(st.sampled_from(self.open))
        self.open.remove(receipt)
        self.exposure.answered(receipt)
        self.exposure.answered(receipt)
        self.told_to_wait_us = None

    @rule(span_us=st.integers(1, 2 * GRACE_US))
    def time_passes(self, span_us):
        self.now_us += span_us

    @invariant()
    def no_more_than_the_credit_is_at_stake(self):
        assert 0 <= self.exposure.stake <= self.credit
        assert set(self.exposure.unpaid) == set(self.open)
        assert set(self.exposure.running) == set(self.running)


TestRequester = Requester.TestCase
TestRequester.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
