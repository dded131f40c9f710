"""A lease that ends later: rules, a lossy network under both sides, whole agents, and those who abuse it."""

import importlib.util
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coppermesh.agent import lease_extension
from coppermesh.agent.dispatch_state import DispatchLimits
from coppermesh.agent.lease_extension import MAX_LEASE_US, build_extension, check_extension
from coppermesh.agent.leases import lease_life_us
from coppermesh.agent.ledger import LeaseEnded, LeaseExtended, LedgerConflict
from coppermesh.agent.ledger_audit import audit_ledger
from coppermesh.agent.ledger_book import LedgerBook
from coppermesh.agent.ledger_files import open_database
from coppermesh.agent.node import Node
from coppermesh.agent.policy import DeclineReason
from coppermesh.agent.rehearsal import make_deal, rehearsal_key
from coppermesh.agent.usage_totals import UsageTotals
from coppermesh.p2p.envelope import Opened, open_record, sign_record
from coppermesh.p2p.errors import Refused, RemoteProtocolError
from coppermesh.p2p.ids import mesh_id
from coppermesh.p2p.lease_records import Extension
from coppermesh.p2p.messages import ExtendReply, ExtendRequest
from coppermesh.p2p.records import Lease, SignedRecord

_spec = importlib.util.spec_from_file_location("agent_world", Path(__file__).with_name("test_agent_world.py"))
assert _spec is not None
assert _spec.loader is not None
agents: Any = importlib.util.module_from_spec(_spec)
sys.modules["agent_world"] = agents
_spec.loader.exec_module(agents)
add_one = agents.add_one
events_of = agents.events_of
numbers = agents.numbers
open_world = agents.open_world
story_of = agents.story_of
submit = agents.submit
until = agents.until
until_found = agents.until_found

SECOND = 1_000_000
DEAL = make_deal(1)
LEASE = DEAL.lease.record
END = LEASE.expires_us
LATE = END - SECOND
PROVIDER, REQUESTER = rehearsal_key(1), rehearsal_key(2)
ALL = [PROVIDER, REQUESTER]


def key_of(peer: bytes) -> Any:
    return next(key for number in range(8) if (key := rehearsal_key(number)).peer == peer)


def extension(**changed: Any) -> Extension:
    return msgspec.structs.replace(build_extension(LEASE, 1, END, LATE), **changed)


def test_it_reaches_as_far_as_a_new_lease_and_no_further():
    assert extension().expires_us == min(
        LATE + lease_life_us(LEASE.wall_limit_us), LEASE.issued_us + MAX_LEASE_US
    )
    check_extension(LEASE, 0, END, extension(), LATE)


def test_a_lease_has_a_last_end():
    last_us = LEASE.issued_us + MAX_LEASE_US
    with pytest.raises(Refused, match="lasts as long as a lease may"):
        build_extension(LEASE, 9, last_us, last_us - SECOND)
    with pytest.raises(Refused, match="3660 s in all"):
        check_extension(LEASE, 0, END, extension(expires_us=last_us + 1), LATE)


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"lease": bytes(32)}, RemoteProtocolError, "another lease"),
        ({"provider": bytes(32)}, RemoteProtocolError, "another lease"),
        ({"number": 2}, RemoteProtocolError, "extension 2 of a lease that has 0"),
        ({"expires_us": END}, RemoteProtocolError, "does not prolong"),
        ({"expires_us": LATE + 10 * lease_life_us(LEASE.wall_limit_us)}, Refused, "3660 s in all"),
        ({"issued_us": LATE + 3600 * SECOND}, Refused, "in the future"),
    ],
)
def test_what_an_honest_peer_never_offers(changed: dict[str, Any], error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        check_extension(LEASE, 0, END, extension(**changed), LATE)


def test_nothing_brings_a_lease_back():
    with pytest.raises(Refused, match="the lease ended"):
        check_extension(LEASE, 0, END, extension(), END)


# The ledger


def both(record: Extension) -> LeaseExtended:
    return LeaseExtended(
        sign_record(key_of(record.requester), record), sign_record(key_of(record.provider), record)
    )


@pytest.fixture
def book(tmp_path):
    me = key_of(LEASE.provider).peer
    found = LedgerBook(open_database(tmp_path / "ledger.sqlite", mesh_id("rehearsal"), me), me)
    assert found.commit_group([(DEAL.granted(),)]) == [None]
    yield found
    found.close()


def test_the_ledger_keeps_both_signatures_in_order_and_the_audit_checks_them(book, tmp_path):
    first, again = both(extension(expires_us=END + SECOND)), both(extension(expires_us=END + SECOND))
    second = both(extension(number=2, expires_us=END + 2 * SECOND))
    assert book.commit_group([(first,), (again,), (second,)]) == [None, None, None]
    book.close()
    report = audit_ledger(tmp_path / "ledger.sqlite")
    assert report.fault is None
    assert report.counts["extension"] == 2


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"number": 2}, "extension-order"),
        ({"expires_us": END}, "extension-order"),
        ({"lease": bytes(32)}, "unknown-lease"),
        ({"expires_us": LEASE.issued_us + MAX_LEASE_US + 1}, "lease-length"),
    ],
)
def test_the_ledger_refuses_what_does_not_follow(book, changed: dict[str, Any], code: str):
    (outcome,) = book.commit_group([(both(extension(**changed)),)])
    assert isinstance(outcome, LedgerConflict)
    assert outcome.code == code


def test_one_signature_is_none_and_an_ended_lease_stays_ended(book):
    record = extension()
    mine = sign_record(key_of(record.requester), record)
    (outcome,) = book.commit_group([(LeaseExtended(mine, mine),)])
    assert isinstance(outcome, LedgerConflict)
    assert outcome.code == "wrong-signature"
    assert book.commit_group([(LeaseEnded(DEAL.lease.id, "test"),)]) == [None]
    (outcome,) = book.commit_group([(both(record),)])
    assert isinstance(outcome, LedgerConflict)
    assert outcome.code == "lease-ended"


def test_steps_of_microseconds_and_the_thousand_and_first_are_refused():
    """Each extension is two signatures and a row that stays: a requester could fill the other side's ledger."""
    step = lease_extension.MIN_STEP_US
    for number, until_us in ((1, END + 1), (1, END + step - 1)):
        with pytest.raises(Refused, match="less than a second"):
            check_extension(LEASE, number - 1, END, extension(expires_us=until_us), END - SECOND)
    check_extension(LEASE, 0, END, extension(expires_us=END + step), END - SECOND)
    last = lease_extension.MAX_EXTENSIONS
    again = extension(number=last + 1, expires_us=END + step)
    with pytest.raises(Refused, match="1000 times"):
        check_extension(LEASE, last, END, again, END - SECOND)


# Two sides over a network that loses, doubles and reorders


@dataclass
class Side:
    until_us: int = END
    number: int = 0
    answered: dict[bytes, Extension] = field(default_factory=dict)


class TwoSides(RuleBasedStateMachine):
    """Offers and answers as the shells carry them; any may be lost, come twice, or come late."""

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        self.now_us = LEASE.issued_us
        self.provider, self.requester = Side(), Side()
        self.unanswered: Extension | None = None
        self.network: list[tuple[str, Extension]] = []
        self.over = False

    @rule(seconds=st.integers(0, 200))
    def pass_time(self, seconds: int) -> None:
        self.now_us += seconds * SECOND
        self.over = self.over or self.now_us >= self.provider.until_us

    @rule()
    def offer(self) -> None:
        side = self.requester
        if self.now_us >= side.until_us:
            return
        if self.unanswered is None:
            try:
                self.unanswered = build_extension(LEASE, side.number + 1, side.until_us, self.now_us)
            except Refused as refusal:
                assert refusal.code == "lease-length"
                return
        self.network.append(("offer", self.unanswered))

    @precondition(lambda self: bool(self.network))
    @rule(pick=st.integers(0, 10**6), keep=st.booleans(), agree=st.booleans())
    def deliver(self, pick: int, keep: bool, agree: bool) -> None:
        place = pick % len(self.network)
        kind, record = self.network[place]
        if not keep:
            del self.network[place]
        if kind == "offer":
            self.at_provider(record, agree)
        elif self.unanswered == record:
            assert self.requester.number + 1 == record.number
            self.requester.until_us, self.requester.number = record.expires_us, record.number
            self.unanswered = None

    def at_provider(self, record: Extension, agree: bool) -> None:
        side, name = self.provider, msgspec.msgpack.encode(record)
        if self.over:
            return
        if name in side.answered:
            self.network.append(("answer", record))
            return
        before = replace(side)
        try:
            check_extension(LEASE, side.number, side.until_us, record, self.now_us)
        except Refused:
            assert side.until_us == before.until_us
            return
        if agree:
            side.until_us, side.number = record.expires_us, record.number
            side.answered[name] = record
            self.network.append(("answer", record))

    @precondition(lambda self: bool(self.network))
    @rule(pick=st.integers(0, 10**6))
    def lose(self, pick: int) -> None:
        del self.network[pick % len(self.network)]

    @rule()
    def crash(self) -> None:
        """Of either side: the connection goes, and the lease with it."""
        self.begin()

    @invariant()
    def the_requester_never_counts_on_more_than_was_signed(self) -> None:
        assert self.requester.until_us <= self.provider.until_us
        assert self.requester.number <= self.provider.number <= self.requester.number + 1
        assert self.provider.until_us <= LEASE.issued_us + MAX_LEASE_US


TestTwoSides = TwoSides.TestCase
TestTwoSides.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# Whole agents


@pytest.fixture
def short_leases(monkeypatch):
    """A lease lasts five seconds where a task may take one: two of them are of use."""
    monkeypatch.setattr("coppermesh.agent.leases.SPARE_LIFE_US", 3 * SECOND)
    limits = DispatchLimits(unproven_tasks=2, extend_ahead_us=SECOND // 2)
    monkeypatch.setattr("coppermesh.agent.requester.AGENT_LIMITS", limits)


async def slow(inputs: Any) -> Any:
    await trio.sleep(0.1)
    return add_one(inputs)


async def long_job(world: Any, count: int = 36) -> tuple[Node, Node, bytes]:
    provider = await world.add("provider", provide=True, script=slow)
    requester = await world.add("requester", provide=False, bootstrap=provider)
    await until_found(requester, 1)
    job = await submit(requester, *(numbers(float(value)) for value in range(count)), deadline_s=60.0)
    return provider, requester, job


async def test_a_job_that_outlasts_its_lease_goes_on_under_it(tmp_path, short_leases):
    async with open_world(tmp_path) as world:
        provider, requester, job = await long_job(world)
        await until(lambda: provider.provider and provider.provider.leases)
        assert provider.provider is not None
        (server,) = provider.provider.leases.values()
        assert (await events_of(requester, job))[-1].kind == "finished"
        assert server.extensions >= 1
        story = await story_of(requester, job)
        assert "extended by" in story
        assert story.count("signed by both") == 1 + server.extensions, "one lease, and its extensions"
        assert len({row.receipt.lease for row in await requester.ledger.receipts(job=job)}) == 1
        await until(lambda: not provider.outbox.under_way)
        files = list(tmp_path.rglob("*.sqlite"))
    assert len(files) == 2
    for path in files:
        report = audit_ledger(path)
        assert report.fault is None
        assert report.counts["extension"] >= 1


async def test_a_refused_extension_leaves_the_old_end_and_the_job_negotiates_anew(
    tmp_path, short_leases, monkeypatch
):
    from coppermesh.agent.provider import Provider

    reason = DeclineReason("busy", "others wait for this slot: it is their turn")
    monkeypatch.setattr(Provider, "_against_extension", lambda *_: reason)
    async with open_world(tmp_path) as world:
        provider, requester, job = await long_job(world)
        assert (await events_of(requester, job))[-1].kind == "finished"
        story = await story_of(requester, job)
        assert "unextended" in story
        assert "it is their turn" in story
        rows = await requester.ledger.receipts(job=job)
        assert len({row.receipt.lease for row in rows}) > 1
        for row in rows:
            lease = await provider.ledger.lease(row.receipt.lease)
            assert lease is not None
            assert row.receipt.ended_us <= lease.opened.record.expires_us


async def test_an_extension_whose_answer_was_lost_is_offered_again_as_the_same_bytes(
    tmp_path, short_leases, monkeypatch
):
    from coppermesh.agent.provider import Provider

    on_extend, offered = Provider.on_extend, []

    async def lossy(self: Provider, peer: Any, request: ExtendRequest) -> ExtendReply:
        offered.append(request.extension)
        if len(offered) == 1:
            raise Refused("provider-ledger", "its disk is full for a moment")
        reply: ExtendReply = await on_extend(self, peer, request)
        if len(offered) == 2:
            raise Refused("timeout", "signed, and the answer lost")
        return reply

    monkeypatch.setattr(Provider, "on_extend", lossy)
    monkeypatch.setattr("coppermesh.agent.lease_extending.RETRY_SECONDS", (0.02, 0.02, 0.02))
    async with open_world(tmp_path) as world:
        provider, requester, job = await long_job(world)
        assert (await events_of(requester, job))[-1].kind == "finished"
        assert len(offered) >= 3
        assert offered[0] == offered[1] == offered[2]
        story = await story_of(requester, job)
        assert "extended by" in story
        assert "unextended" not in story
        assert len({row.receipt.lease for row in await requester.ledger.receipts(job=job)}) == 1
        (lease,) = {row.receipt.lease for row in await provider.ledger.receipts(job=job)}
        ends = [await node.ledger.lease_ends([lease, bytes(32)]) for node in (provider, requester)]
        assert ends[0] == ends[1]
        stored = await requester.ledger.lease(lease)
        assert stored is not None
        assert ends[0][lease] > stored.opened.record.expires_us


async def test_an_extension_that_is_never_answered_is_given_up(tmp_path, short_leases, monkeypatch):
    from coppermesh.agent.provider import Provider

    tries = []

    async def never(self: Provider, peer: Any, request: ExtendRequest) -> ExtendReply:
        tries.append(request)
        raise Refused("timeout", "no answer")

    monkeypatch.setattr(Provider, "on_extend", never)
    monkeypatch.setattr("coppermesh.agent.lease_extending.RETRY_SECONDS", (0.02, 0.02))
    async with open_world(tmp_path) as world:
        _, requester, job = await long_job(world)
        assert (await events_of(requester, job))[-1].kind == "finished"
        leases = {row.receipt.lease for row in await requester.ledger.receipts(job=job)}
        assert len(leases) > 1
        assert 3 <= len(tries) <= 3 * len(leases)
        assert "unextended" in await story_of(requester, job)


async def ask(requester: Node, provider: Node, signed: SignedRecord) -> ExtendReply:
    peer = provider.key.peer
    return await requester.hub.request(peer, "extend", ExtendRequest(signed), ExtendReply)


def held(node: Node) -> Opened[Lease]:
    (lease,) = node.requester.leases.values()
    return lease.granted.lease


async def test_the_same_extension_twice_is_one_and_strangers_and_shorteners_get_none(tmp_path):
    async with open_world(tmp_path) as world:
        provider, requester, job = await long_job(world, count=30)
        stranger = await world.add("stranger", provide=False, bootstrap=provider)
        await until_found(stranger, 1)
        await until(lambda: requester.requester.leases)
        lease = held(requester).record
        now_us = lease.issued_us + SECOND
        record = build_extension(lease, 1, lease.expires_us, now_us)
        record = msgspec.structs.replace(record, expires_us=lease.expires_us + SECOND)
        signed = sign_record(requester.key, record)
        first = await ask(requester, provider, signed)
        assert first.extension is not None
        assert open_record(Extension, first.extension, signer=provider.key.peer).record == record
        assert await ask(requester, provider, signed) == first
        assert provider.provider is not None
        (server,) = provider.provider.leases.values()
        assert (server.until_us, server.extensions) == (lease.expires_us + SECOND, 1)
        theirs = msgspec.structs.replace(record, number=2, requester=stranger.key.peer)
        with pytest.raises(Refused, match="no such lease with you"):
            await ask(stranger, provider, sign_record(stranger.key, theirs))
        back = msgspec.structs.replace(record, number=2, expires_us=lease.expires_us)
        with pytest.raises((RemoteProtocolError, Refused)):
            await ask(requester, provider, sign_record(requester.key, back))
        assert server.until_us == lease.expires_us + SECOND
        requester.requester.cancel(job)


async def test_the_price_of_today_is_asked_of_a_lease_of_yesterday(tmp_path):
    async with open_world(tmp_path) as world:
        provider, requester, job = await long_job(world, count=30)
        await until(lambda: requester.requester.leases)
        assert provider.provider is not None
        (server,) = provider.provider.leases.values()
        assert provider.provider._against_extension(server, server.until_us - SECOND) is None
        provider.provider._group.floors["cpu"] = held(requester).record.rate + 1
        reason = provider.provider._against_extension(server, server.until_us - SECOND)
        assert reason is not None
        assert reason.code == "rate"
        requester.requester.cancel(job)


@pytest.mark.parametrize(("until_s", "held_s"), [(60, 60), (240, 200)])
def test_a_lease_that_an_earlier_run_left_counts_to_its_last_end(
    monkeypatch: pytest.MonkeyPatch, until_s: int, held_s: int
) -> None:
    """By the requester that held it: what it may have used, extensions included, and never beyond now."""
    now_us = LEASE.issued_us + 200 * SECOND
    usage: Any = SimpleNamespace(forget_old=lambda now_us: None, excuse=lambda: None)
    quotas: Any = SimpleNamespace(usage=usage)
    totals = UsageTotals(key_of(LEASE.requester), mesh_id("test"), quotas, lambda _: None, lambda: now_us)
    held: list[int] = []
    monkeypatch.setattr(totals.leased, "held_before", lambda provider, kind, held_us: held.append(held_us))
    totals.count_earlier([], [(LEASE, LEASE.issued_us + until_s * SECOND)])
    assert held == [held_s * SECOND]


def test_the_module_names_its_bounds():
    assert lease_life_us(3_600 * SECOND) <= lease_extension.MAX_LEASE_US
