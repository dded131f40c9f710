"""Two agents' ledgers over the in-memory network: statements that both sign, settling, comparing, refusals."""

import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from coppermesh.agent.ledger import CountersignatureReceived, LedgerConflict, TaskIssued, TaskTaken
from coppermesh.agent.ledger_audit import audit_ledger
from coppermesh.agent.ledger_backup import back_up, restore
from coppermesh.agent.ledger_compare import LEAVES_A_MINUTE, LISTING_SECONDS, LaneAnswers, part_size
from coppermesh.agent.ledger_desk import LedgerDesk
from coppermesh.agent.ledger_settling import copy_of
from coppermesh.agent.ledger_store import LedgerStore, open_ledger
from coppermesh.agent.local_messages import JsonBody
from coppermesh.agent.proofs import InvalidProof, verify_place
from coppermesh.agent.rehearsal import START_US, Deal, issue, make_deal, rehearsal_key, run_facts, settle
from coppermesh.agent.settling import PaymentKept, StatementDrafted, StatementSigned, VoucherKept
from coppermesh.agent.statements import DAY_US, Span, draw_up, pack_spans, unpack_spans
from coppermesh.p2p.control import ControlHub, open_control_hub
from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.envelope import open_record, sign_record
from coppermesh.p2p.errors import Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import PeerId, format_peer, mesh_id
from coppermesh.p2p.ledger_messages import (
    LaneEntryReply,
    LaneEntryRequest,
    LaneListReply,
    LaneListRequest,
    LanePartReply,
    LanePartRequest,
    StatementReply,
    StatementRequest,
    VoucherRequest,
)
from coppermesh.p2p.memory_transport import MemoryNetwork
from coppermesh.p2p.messages import Nothing
from coppermesh.p2p.proof_files import decode_statement_file, encode_statement_file
from coppermesh.p2p.settlement_records import Payment, SignedStatement, Statement, Voucher
from coppermesh.p2p.signing import PeerKey

MESH = mesh_id("rehearsal")
SELLER, BUYER = rehearsal_key(1), rehearsal_key(2)


@dataclass
class Side:
    """One agent as far as its ledger goes."""

    key: PeerKey
    path: Path
    store: LedgerStore
    desk: LedgerDesk
    hub: ControlHub
    ahead_us: int = 0

    def now_us(self) -> int:
        return START_US + self.ahead_us


@dataclass
class Trade:
    """Both sides, and their work under leases either way."""

    seller: Side
    buyer: Side
    deals: dict[int, Deal] = field(default_factory=dict)

    async def lease(self, number: int, *, swapped: bool = False) -> Deal:
        """`swapped`: the buyer works for the seller."""
        deal = make_deal(number, provider=2, requester=1) if swapped else make_deal(number)
        worker, payer = (self.buyer, self.seller) if swapped else (self.seller, self.buyer)
        await payer.store.commit(deal.offered())
        await worker.store.commit(deal.granted())
        await payer.store.commit(deal.answered())
        self.deals[number] = deal
        return deal

    async def work(
        self,
        deal: Deal,
        count: int,
        *,
        swapped: bool = False,
        verdict: str = "ok",
        answered: bool = True,
        billed_us: int = 2500,
    ) -> None:
        worker, payer = (self.buyer, self.seller) if swapped else (self.seller, self.buyer)
        for _ in range(count):
            head = await worker.store.lane_head(deal.lease.record.lane)
            task = deal.task(head.sequence_next)
            receipt = deal.receipt(task, head, run_facts(billed_us))
            answer = deal.answer(receipt, await payer.store.lane_head(deal.lease.record.lane), verdict)
            await payer.store.commit(TaskIssued(task.signed), settle(receipt, answer))
            await worker.store.commit(TaskTaken(task.signed), issue(receipt))
            if answered:
                await worker.store.commit(CountersignatureReceived(answer.signed))


@asynccontextmanager
async def trading(folder: Path) -> AsyncIterator[Trade]:
    network = MemoryNetwork(random.Random(1))
    async with side(network, folder, SELLER) as seller, side(network, folder, BUYER) as buyer:
        async with trio.open_nursery() as nursery:
            transport = network.attached(SELLER.peer)
            assert transport is not None
            await transport.dial(network.address_of(BUYER.peer))
            for one in (seller, buyer):
                await one.hub.events().receive()
            yield Trade(seller, buyer)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def side(network: MemoryNetwork, folder: Path, key: PeerKey) -> AsyncIterator[Side]:
    path = folder / f"{key.peer.hex()[:8]}.sqlite"
    made: list[Side] = []

    def now_us() -> int:
        return made[0].now_us()

    async with open_ledger(path, MESH, key.peer) as store, network.transport(key) as transport:
        desk = LedgerDesk(key, MESH, lambda: made[0].hub, store, unit="usd", now_us=now_us)
        async with open_control_hub(
            transport, MESH, key.peer, handlers=desk.handlers(), clock=lambda: START_US
        ) as hub:
            made.append(Side(key, path, store, desk, hub))
            yield made[0]


async def last_number(one: Side, peer: PeerId) -> int:
    return (await one.store.look(lambda tables: tables.last_statement(peer, "usd"))).number


async def test_both_sides_work_nets_into_one_number_that_both_sign(tmp_path: Path) -> None:
    async with trading(tmp_path) as trade:
        there, back = await trade.lease(1), await trade.lease(2, swapped=True)
        await trade.work(there, 5)
        await trade.work(there, 1, verdict="overbilled")
        await trade.work(back, 2, swapped=True)
        signed = await trade.buyer.desk.statements.propose(SELLER.peer, "usd")
        record = open_record(Statement, signed.proposed).record
        assert (record.receipts, record.earned_other, record.earned_proposer) == (8, 15, 6)
        assert (record.net, record.payee, record.number) == (9, "other", 0)
        for one, peer, net in ((trade.seller, BUYER.peer, 9), (trade.buyer, SELLER.peer, -9)):
            (line,) = await one.store.balances()
            assert (line.net, line.stated, line.paid) == (net, net, 0)
            assert await last_number(one, peer) == 0
        with pytest.raises(Refused, match="nothing to state"):
            await trade.seller.desk.statements.propose(BUYER.peer, "usd")
        await trade.work(there, 3)
        later = await trade.seller.desk.statements.propose(BUYER.peer, "usd")
        second = open_record(Statement, later.proposed).record
        assert (second.number, second.previous, second.receipts, second.net) == (
            1,
            open_record(Statement, signed.proposed).id,
            3,
            9,
        )
    for one in (trade.seller, trade.buyer):
        report = await trio.to_thread.run_sync(audit_ledger, one.path)
        assert report.fault is None
        assert report.counts["statement"] == 2


async def test_a_statement_is_promised_paid_and_settled(tmp_path: Path) -> None:
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 4)
        signed = await trade.seller.desk.statements.propose(BUYER.peer, "usd")
        name = open_record(Statement, signed.proposed).id
        assert await trade.buyer.desk.settlement.status(name) == "vouched"
        with pytest.raises(Refused) as refusal:
            await trade.buyer.desk.statements.settle(name, "")
        assert refusal.value.code == "not-payee"
        assert await trade.seller.desk.settlement.status(name) == "vouched"
        payment, undelivered = await trade.seller.desk.statements.settle(name, "transfer 7")
        assert undelivered == ""
        assert (await trade.seller.desk.statements.settle(name, "other"))[0] == payment, "said once"
        for one, paid in ((trade.seller, 12), (trade.buyer, -12)):
            assert await one.desk.settlement.status(name) == "settled"
            (line,) = await one.store.balances()
            assert (line.net, line.stated, line.paid) == (0, 0, paid)
        history = await trade.seller.desk.history(BUYER.peer, "usd")
        assert (history.settled, history.countersigned, history.tasks_ok) == (12, 0, 4)
    for one in (trade.seller, trade.buyer):
        assert (await trio.to_thread.run_sync(audit_ledger, one.path)).fault is None


async def test_only_what_both_have_is_stated(tmp_path: Path) -> None:
    """The seller has not got the last countersignatures yet: they wait for the next statement."""
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 3)
        await trade.work(deal, 2, answered=False)
        signed = await trade.buyer.desk.statements.propose(SELLER.peer, "usd")
        assert open_record(Statement, signed.proposed).record.receipts == 3


async def test_a_statement_travels_as_a_file(tmp_path: Path) -> None:
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 3)
        draft = encode_statement_file(await trade.seller.desk.statements.draft_for_file(BUYER.peer, "usd"))
        back = encode_statement_file(
            await trade.buyer.desk.statements.sign_file(decode_statement_file(draft))
        )
        again = encode_statement_file(
            await trade.buyer.desk.statements.sign_file(decode_statement_file(draft))
        )
        assert back == again, "the same file gets the same answer"
        with pytest.raises(Refused, match="our own proposal"):
            await trade.seller.desk.statements.sign_file(decode_statement_file(draft))
        await trade.seller.desk.statements.sign_file(decode_statement_file(back))
        await trade.seller.desk.statements.sign_file(decode_statement_file(back))
        assert await last_number(trade.seller, BUYER.peer) == await last_number(trade.buyer, SELLER.peer) == 0


async def test_a_lost_answer_is_caught_up_with(tmp_path: Path) -> None:
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 3)
        draft = await trade.buyer.desk.statements.draft_for_file(SELLER.peer, "usd")
        await trade.seller.desk.statements.on_statement(
            BUYER.peer, StatementRequest(draft)
        )  # the answer is lost
        assert await last_number(trade.buyer, SELLER.peer) == -1
        with pytest.raises(Refused, match="nothing to state"):
            await trade.buyer.desk.statements.propose(SELLER.peer, "usd")
        assert await last_number(trade.buyer, SELLER.peer) == 0
        await trade.work(deal, 1)
        await trade.buyer.desk.statements.propose(SELLER.peer, "usd")


async def test_a_restored_side_signs_nothing_second_until_its_own_proposal_came_back(tmp_path: Path) -> None:
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 3)
        copy = tmp_path / "copy.sqlite"
        await trio.to_thread.run_sync(back_up, trade.buyer.path, copy)
        rival = await trade.seller.desk.statements.draft_for_file(BUYER.peer, "usd")
        trade.seller.ahead_us = 5
        first = await trade.seller.desk.statements.propose(BUYER.peer, "usd")
    await trio.to_thread.run_sync(restore, copy, trade.buyer.path, MESH, BUYER.peer, START_US + 10)
    async with trading(tmp_path) as trade:
        trade.seller.ahead_us = trade.buyer.ahead_us = 20
        with pytest.raises(Refused) as refusal:
            await trade.buyer.desk.statements.on_statement(SELLER.peer, StatementRequest(rival))
        assert refusal.value.code == "restored", "it may have signed another one of that number, and has"
        deal = await trade.lease(2)
        await trade.work(deal, 1)
        await trade.buyer.desk.statements.propose(SELLER.peer, "usd")
        adopted = await trade.buyer.store.look(
            lambda tables: tables.statement_numbered(SELLER.peer, "usd", 0)
        )
        assert adopted == first
        await trade.work(deal, 1)
        await trade.seller.desk.statements.propose(BUYER.peer, "usd")
        assert await last_number(trade.buyer, SELLER.peer) == 2
        assert await trade.seller.store.evidence() == []


async def test_crossing_proposals_end_in_one_statement(tmp_path: Path) -> None:
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 3)
        low, high = sorted((trade.seller, trade.buyer), key=lambda one: one.key.peer)
        mine = await low.desk.statements.draft_for_file(high.key.peer, "usd")
        theirs = await high.desk.statements.draft_for_file(low.key.peer, "usd")
        with pytest.raises(Refused) as refusal:
            await low.desk.statements.on_statement(high.key.peer, StatementRequest(theirs))
        assert refusal.value.code == "crossed"
        await high.desk.statements.on_statement(low.key.peer, StatementRequest(mine))
        with pytest.raises(Refused):
            await high.desk.statements.propose(low.key.peer, "usd")  # catches up, and finds nothing left
        assert await last_number(low, high.key.peer) == await last_number(high, low.key.peer) == 0
        first = await low.store.look(lambda tables: tables.statement_numbered(high.key.peer, "usd", 0))
        assert first is not None
        assert first.proposed == mine.proposed


async def test_the_larger_side_signs_what_waits_at_the_smaller(tmp_path: Path) -> None:
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 3)
        low, high = sorted((trade.seller, trade.buyer), key=lambda one: one.key.peer)
        await low.desk.statements.draft_for_file(high.key.peer, "usd")
        with pytest.raises(Refused, match="nothing to state"):
            await high.desk.statements.propose(low.key.peer, "usd")
        assert await last_number(low, high.key.peer) == await last_number(high, low.key.peer) == 0


Edit = Callable[[Statement, bytes], tuple[dict[str, Any], bytes]]


def shorter(record: Statement, lanes: bytes) -> tuple[dict[str, Any], bytes]:
    (span,) = unpack_spans(lanes)
    return {}, pack_spans([Span(span.lane, 0, span.end - 1)])


def longer(record: Statement, lanes: bytes) -> tuple[dict[str, Any], bytes]:
    (span,) = unpack_spans(lanes)
    return {}, pack_spans([Span(span.lane, 0, span.end + 1)])


def later(record: Statement, lanes: bytes) -> tuple[dict[str, Any], bytes]:
    (span,) = unpack_spans(lanes)
    return {}, pack_spans([Span(span.lane, 1, span.end)])


@pytest.mark.parametrize(
    ("code", "edit"),
    [
        ("wrong-sum", lambda record, lanes: ({"earned_proposer": 13, "net": 13}, lanes)),
        ("wrong-sum", lambda record, lanes: ({"net": 1}, lanes)),
        ("wrong-sum", lambda record, lanes: ({"payee": "other"}, lanes)),
        ("wrong-sum", lambda record, lanes: ({"receipts": 5}, lanes)),
        ("wrong-root", lambda record, lanes: ({"root": bytes(32)}, lanes)),
        ("statement-gap", lambda record, lanes: ({"number": 1}, lanes)),
        ("other-history", lambda record, lanes: ({"previous": bytes([1]) * 32}, lanes)),
        ("unknown-lane", lambda record, lanes: ({"unit": "eur"}, lanes)),
        ("not-ours", lambda record, lanes: ({"mesh": bytes(16)}, lanes)),
        ("not-ours", lambda record, lanes: ({"other": rehearsal_key(3).peer}, lanes)),
        ("bad-spans", lambda record, lanes: ({}, lanes[:-1])),
        ("bad-spans", lambda record, lanes: ({}, lanes * 2)),
        ("unknown-lane", lambda record, lanes: ({}, bytes([7]) * 16 + lanes[16:])),
        ("wrong-sum", lambda record, lanes: ({}, b"")),
        ("wrong-sum", shorter),
        ("not-countersigned", longer),
        ("left-out", later),
        ("clock", lambda record, lanes: ({"issued_us": START_US + DAY_US}, lanes)),
        ("expired", lambda record, lanes: ({"expires_us": START_US}, lanes)),
        ("expired", lambda record, lanes: ({"expires_us": START_US + 8 * DAY_US}, lanes)),
    ],
)
async def test_what_is_wrong_with_a_proposal_is_named(tmp_path: Path, code: str, edit: Edit) -> None:
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 4)
        draft = await trade.seller.desk.statements.draft_for_file(BUYER.peer, "usd")
        record = open_record(Statement, draft.proposed).record
        changes, lanes = edit(record, draft.lanes)
        bad = SignedStatement(sign_record(SELLER, msgspec.structs.replace(record, **changes)), None, lanes)
        with pytest.raises(Refused) as refusal:
            await trade.seller.hub.request(BUYER.peer, "statement", StatementRequest(bad), StatementReply)
        assert refusal.value.code == code
        assert refusal.value.sentence
        assert await last_number(trade.buyer, SELLER.peer) == -1


async def test_replayed_doubled_and_stale_statements_are_refused(tmp_path: Path) -> None:
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 2)
        rival = await trade.seller.desk.statements.draft_for_file(BUYER.peer, "usd")
        trade.seller.ahead_us = 1
        first = await trade.seller.desk.statements.propose(BUYER.peer, "usd")
        await trade.work(deal, 2)
        await trade.seller.desk.statements.propose(BUYER.peer, "usd")
        ask = trade.buyer.desk.statements.on_statement
        assert (await ask(SELLER.peer, StatementRequest(copy_draft(first)))).statement == first
        with pytest.raises(Refused) as refusal:
            await ask(SELLER.peer, StatementRequest(rival))
        assert refusal.value.code == "stale"
        record = open_record(Statement, rival.proposed).record
        last = await trade.buyer.store.look(lambda tables: tables.last_statement(SELLER.peer, "usd"))
        twice = msgspec.structs.replace(record, number=last.number + 1, previous=last.id)
        doubled = SignedStatement(sign_record(SELLER, twice), None, rival.lanes)
        with pytest.raises(Refused) as refusal:
            await ask(SELLER.peer, StatementRequest(doubled))
        assert refusal.value.code == "doubled"


def copy_draft(signed: SignedStatement) -> SignedStatement:
    return msgspec.structs.replace(signed, agreed=None)


async def test_signing_two_statements_of_one_number_is_a_proof(tmp_path: Path) -> None:
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 2)
        drafts = []
        for step in range(2):
            trade.seller.ahead_us = step
            drafts.append(await trade.seller.desk.statements.draft_for_file(BUYER.peer, "usd"))
        for draft in drafts:  # a buyer that signs whatever it gets
            signed = copy_of(draft, sign_record(BUYER, open_record(Statement, draft.proposed).record))
            if draft is drafts[0]:
                await trade.seller.desk.statements.sign_file(signed)
            else:
                with pytest.raises(Refused, match="signed already"):
                    await trade.seller.desk.statements.sign_file(signed)
        (found,) = await trade.seller.store.evidence()
        assert (found.kind, found.peer) == ("double-statement", BUYER.peer)


async def test_a_forged_second_signature_is_no_signature(tmp_path: Path) -> None:
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 2)
        draft = await trade.seller.desk.statements.draft_for_file(BUYER.peer, "usd")
        record = open_record(Statement, draft.proposed).record
        by_seller = copy_of(draft, sign_record(SELLER, record))
        with pytest.raises(RemoteProtocolError):
            await trade.seller.desk.statements.sign_file(by_seller)
        with pytest.raises(LedgerConflict):
            await trade.seller.store.commit(StatementSigned(by_seller))
        with pytest.raises(LedgerConflict, match="has not signed"):
            await trade.seller.store.commit(StatementSigned(draft))
        other = msgspec.structs.replace(record, issued_us=5, expires_us=6)
        made = SignedStatement(sign_record(SELLER, other), sign_record(BUYER, other), draft.lanes)
        with pytest.raises(LedgerConflict, match="did not propose"):
            await trade.seller.store.commit(StatementSigned(made))
        with pytest.raises(LedgerConflict, match="signed first"):
            await trade.buyer.store.commit(StatementDrafted(draft))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"cumulative": 11}, "wrong-sum"),
        ({"number": 1}, "unknown-statement"),
        ({"statement": bytes(32)}, "unknown-statement"),
        ({"unit": "eur"}, "unknown-statement"),
        ({"payee": rehearsal_key(3).peer}, "not-ours"),
        ({"mesh": bytes(16)}, "not-ours"),
        ({"issued_us": START_US + DAY_US}, "clock"),
    ],
)
async def test_wrong_vouchers_are_refused(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 4)
        signed = await trade.seller.desk.statements.propose(BUYER.peer, "usd")
        name = open_record(Statement, signed.proposed).id
        good = Voucher(1, MESH, BUYER.peer, SELLER.peer, "usd", 0, name, 12, START_US)
        bad = sign_record(BUYER, msgspec.structs.replace(good, **changes))
        with pytest.raises(Refused) as refusal:
            await trade.buyer.hub.request(SELLER.peer, "voucher", VoucherRequest(bad), Nothing)
        assert refusal.value.code in (code, "stale")


async def test_a_replayed_voucher_is_taken_once_and_an_old_one_never(tmp_path: Path) -> None:
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 4)
        await trade.seller.desk.statements.propose(BUYER.peer, "usd")
        channel = await trade.buyer.desk.settlement.open(SELLER.peer, "usd")
        old = await trade.buyer.desk.settlement.voucher(channel)
        await trade.work(deal, 1)
        await trade.seller.desk.statements.propose(BUYER.peer, "usd")
        new = await trade.buyer.desk.settlement.voucher(channel)
        there = await trade.seller.desk.settlement.open(BUYER.peer, "usd")
        assert there.id == channel.id
        accept = trade.seller.desk.settlement.accept
        assert await accept(there, new) == await accept(there, new) == 15
        with pytest.raises(Refused) as refusal:
            await accept(there, old)
        assert refusal.value.code == "stale"
        with pytest.raises(Refused, match="wait to be paid"):
            await trade.seller.desk.settlement.close(there)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"amount": 11}, "wrong-sum"),
        ({"statement": bytes(32)}, "unknown-statement"),
        ({"unit": "eur"}, "not-ours"),
        ({"payer": rehearsal_key(3).peer}, "not-ours"),
        ({"issued_us": START_US + DAY_US}, "clock"),
        ({"mesh": bytes(16)}, "not-ours"),
    ],
)
async def test_wrong_payments_are_refused(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 4)
        signed = await trade.seller.desk.statements.propose(BUYER.peer, "usd")
        name = open_record(Statement, signed.proposed).id
        good = Payment(1, MESH, SELLER.peer, BUYER.peer, name, "usd", 12, "ledger", "", START_US)
        bad = sign_record(SELLER, msgspec.structs.replace(good, **changes))
        with pytest.raises(Refused) as refusal:
            await trade.buyer.desk.settlement.accept_payment(SELLER.peer, bad)
        assert refusal.value.code == code
        by_payer = Payment(1, MESH, BUYER.peer, SELLER.peer, name, "usd", 12, "ledger", "", START_US)
        with pytest.raises(LedgerConflict, match="other sides"):
            await trade.buyer.store.commit(PaymentKept(sign_record(BUYER, by_payer)))
        await trade.buyer.desk.settlement.accept_payment(SELLER.peer, sign_record(SELLER, good))
        again = msgspec.structs.replace(good, issued_us=START_US + 1)
        with pytest.raises(Refused) as refusal:
            await trade.buyer.desk.settlement.accept_payment(SELLER.peer, sign_record(SELLER, again))
        assert refusal.value.code == "already-paid"
        stranger = Voucher(1, MESH, SELLER.peer, SELLER.peer, "usd", 0, name, 12, START_US)
        with pytest.raises(LedgerConflict, match="other peers"):
            await trade.seller.store.commit(VoucherKept(sign_record(SELLER, stranger)))


async def test_every_receipt_has_a_proof_of_its_place(tmp_path: Path) -> None:
    from coppermesh.agent.proof_commands import _place

    async with trading(tmp_path) as trade:
        first, second = await trade.lease(1), await trade.lease(2, swapped=True)
        await trade.work(first, 5)
        await trade.work(second, 3, swapped=True)
        await trade.work(first, 1, verdict="overbilled")
        await trade.seller.desk.statements.propose(BUYER.peer, "usd")
        total = 0
        files = []
        for deal in (first, second):
            lane = deal.lease.record.lane
            for sequence in range((await trade.buyer.store.lane_head(lane)).sequence_next):
                data = await trade.buyer.store.look(
                    lambda tables, lane=lane, at=sequence: _place(tables, lane, at)  # type: ignore[misc]
                )
                _, receipt, _, amount = verify_place(data)
                assert receipt.record.sequence == sequence
                total += amount if deal is first else -amount
                files.append(data)
        signed = await trade.buyer.store.look(lambda tables: tables.statement_numbered(SELLER.peer, "usd", 0))
        assert signed is not None
        assert total == open_record(Statement, signed.proposed).record.net == 6
        for position in range(0, len(files[0]), 7):
            spoiled = bytearray(files[0])
            spoiled[position] ^= 1
            with pytest.raises(InvalidProof):
                verify_place(bytes(spoiled))


# Comparing


async def test_equal_ledgers_are_equal(tmp_path: Path) -> None:
    async with trading(tmp_path) as trade:
        for number in range(1, 4):
            deal = await trade.lease(number)
            await trade.work(deal, 5 * number)
        found = await trade.buyer.desk.lanes.compare(SELLER.peer)
        assert (found.lanes, found.receipts, found.differing, found.first) == (3, 30, 0, None)


async def test_a_missing_answer_is_found_and_shown(tmp_path: Path) -> None:
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 37)
        await trade.work(deal, 3, answered=False)
        found = (await trade.buyer.desk.lanes.compare(SELLER.peer)).first
        assert found is not None
        assert (found.sequence, found.what) == (37, "not-answered-there")
        found = (await trade.seller.desk.lanes.compare(BUYER.peer)).first
        assert found is not None
        assert (found.sequence, found.what) == (37, "not-answered-here")


@pytest.mark.parametrize("place", [0, 1, 15, 16, 17, 40, 255, 256, 299])
async def test_two_receipts_for_one_place_are_found_wherever_it_is(tmp_path: Path, place: int) -> None:
    """A seller that tells its own ledger another story from some receipt on."""
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        lane = deal.lease.record.lane
        entries: dict[str, list[Any]] = {"seller": [], "buyer": []}
        heads = {
            "seller": await trade.seller.store.lane_head(lane),
            "buyer": await trade.buyer.store.lane_head(lane),
        }
        for number in range(300):
            task = deal.task(number)
            for name, head in list(heads.items()):
                billed = 2500 if name == "buyer" or number < place else 3500
                receipt = deal.receipt(task, head, run_facts(billed))
                answer = deal.answer(receipt, head)
                if name == "buyer":
                    entries[name] += [TaskIssued(task.signed), settle(receipt, answer)]
                else:
                    steps = (TaskTaken(task.signed), issue(receipt), CountersignatureReceived(answer.signed))
                    entries[name] += steps
                heads[name] = head.after(receipt, answer.record.accepted_cumulative)
        await trade.seller.store.commit(*entries["seller"])
        await trade.buyer.store.commit(*entries["buyer"])
        comparison = await trade.buyer.desk.lanes.compare(SELLER.peer)
        assert comparison.differing == 1
        assert comparison.first is not None
        assert (comparison.first.sequence, comparison.first.what) == (place, "other-receipt")
        (kept,) = await trade.buyer.store.evidence()
        assert (kept.kind, kept.peer) == ("equivocation", SELLER.peer)


async def test_lanes_and_receipts_on_one_side_only_are_shown(tmp_path: Path) -> None:
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 20)
        task = deal.task(20)
        receipt = deal.receipt(task, await trade.seller.store.lane_head(deal.lease.record.lane))
        await trade.seller.store.commit(TaskTaken(task.signed), issue(receipt))
        found = (await trade.buyer.desk.lanes.compare(SELLER.peer)).first
        assert found is not None
        assert (found.sequence, found.what, found.here.receipt) == (20, "only-there", None)
        assert found.there.receipt is not None
        found = (await trade.seller.desk.lanes.compare(BUYER.peer)).first
        assert found is not None
        assert found.what == "only-here"


async def test_a_stranger_learns_nothing_of_others_lanes(tmp_path: Path) -> None:
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 3)
        lane, stranger = deal.lease.record.lane, rehearsal_key(9).peer
        answers = trade.seller.desk.lanes
        assert await answers.on_list(stranger, LaneListRequest(bytes(16))) == LaneListReply(b"", False)
        assert await answers.on_entry(stranger, LaneEntryRequest(lane, 0)) == LaneEntryReply(None, None)
        with pytest.raises(Refused, match="not between us"):
            await answers.on_part(stranger, LanePartRequest(lane, 0, 3))


async def test_comparing_is_bounded(tmp_path: Path) -> None:
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 3)
        lane = deal.lease.record.lane
        for start, end in ((0, 4), (0, 1 << 61), (5, 9)):
            with pytest.raises(Refused):
                await trade.seller.desk.lanes.on_part(BUYER.peer, LanePartRequest(lane, start, end))
        with pytest.raises(RemoteProtocolError):
            await trade.seller.desk.lanes.on_part(BUYER.peer, LanePartRequest(lane, 3, 3))
        answers = LaneAnswers(lambda: trade.seller.hub, trade.seller.store, now_us=lambda: START_US)
        answers._allowance.spend(BUYER.peer, LEAVES_A_MINUTE - 1500, START_US)
        with pytest.raises(Refused) as refusal:
            await answers.on_list(BUYER.peer, LaneListRequest(bytes(16)))
        assert refusal.value.code == "busy"
    assert part_size(1) == part_size(16) == 1
    assert part_size(17) == 2


class Liar:
    """A hub whose peer answers as it likes."""

    def __init__(self, *replies: Any) -> None:
        self.replies = list(replies)

    async def request(self, *_: Any, **__: Any) -> Any:
        return self.replies.pop(0)


@pytest.mark.parametrize(
    "replies",
    [
        [LaneListReply(b"x", False)],
        [LaneListReply(bytes(128), False)],
        [LaneListReply(b"", True)],
        [
            LaneListReply(bytes(15) + b"\1" + bytes(48), True),
            LaneListReply(bytes(15) + b"\1" + bytes(48), False),
        ],
    ],
)
async def test_a_list_of_lanes_that_lies_is_a_breach(tmp_path: Path, replies: list[Any]) -> None:
    async with trading(tmp_path) as trade:
        liar = Liar(*replies)
        answers = LaneAnswers(lambda: liar, trade.seller.store, now_us=lambda: START_US)  # type: ignore[arg-type,return-value]
        with pytest.raises(RemoteProtocolError):
            await answers.lanes_of(BUYER.peer)


async def test_a_list_of_lanes_that_never_ends_is_given_up(autojump_clock: MockClock) -> None:
    class Slow:
        pages = 0

        async def request(self, *_: Any, deadline_s: float, **__: Any) -> Any:
            await trio.sleep(deadline_s - 1)
            self.pages += 1
            return LaneListReply(self.pages.to_bytes(16, "big") + bytes(48), True)

    slow: Any = Slow()
    nothing: Any = None
    answers = LaneAnswers(lambda: slow, nothing, now_us=lambda: START_US)
    with pytest.raises(Unreachable, match="did not list its lanes within 120 s"):
        await answers.lanes_of(BUYER.peer)
    assert trio.current_time() == pytest.approx(LISTING_SECONDS)
    assert slow.pages > 3


async def test_roots_that_lead_nowhere_are_a_breach(tmp_path: Path) -> None:
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 3)
        page = await trade.seller.desk.lanes.on_list(BUYER.peer, LaneListRequest(bytes(16)))
        lied = page.lanes[:32] + bytes(32)
        parts = await trade.seller.desk.lanes.on_part(
            BUYER.peer, LanePartRequest(deal.lease.record.lane, 0, 3)
        )
        bad = LanePartReply([bytes(32), *parts.roots[1:]])
        for replies in ([bad, parts], [LanePartReply([]), parts]):
            liar = Liar(LaneListReply(lied, False), *replies)
            answers = LaneAnswers(lambda liar=liar: liar, trade.buyer.store, now_us=lambda: START_US)  # type: ignore[misc]
            with pytest.raises(RemoteProtocolError):
                await answers.compare(SELLER.peer)


# Payout accounts, scores, and the commands' door


async def call(one: Side, method: str, **arguments: Any) -> Any:
    answer = await one.desk.methods()[method](encode(JsonBody(json.dumps(arguments))))
    assert isinstance(answer, JsonBody)
    return json.loads(answer.text)


async def test_a_payout_account_is_bound_asked_for_replaced_and_taken_back(tmp_path: Path) -> None:
    wallet = rehearsal_key(77)
    async with trading(tmp_path) as trade:
        with pytest.raises(Refused, match="bound no payout"):
            await call(trade.buyer, "payout-ask", peer=format_peer(SELLER.peer))
        asked = await call(
            trade.seller,
            "payout-bind",
            scheme="ed25519",
            address=wallet.peer.hex(),
            key=wallet.peer.hex(),
            days=30,
        )
        signature = wallet.sign("coppermesh/payout/1", bytes.fromhex(asked["sign"]))
        with pytest.raises(Refused):
            await call(trade.seller, "payout-bind", signature=bytes(64).hex())
        made = await call(trade.seller, "payout-bind", signature=signature.hex())
        assert (made["proven"], made["usable"], made["address"]) == (True, True, wallet.peer.hex())
        seen = await call(trade.buyer, "payout-ask", peer=format_peer(SELLER.peer))
        assert seen == made
        second = await call(
            trade.seller, "payout-bind", scheme="iban", address="DE89370400440532013000", days=1
        )
        assert (second["sequence"], second["proven"]) == (1, False)
        assert (await call(trade.buyer, "payout-ask", peer=format_peer(SELLER.peer)))[
            "address"
        ] == "DE89370400440532013000"
        trade.buyer.ahead_us = 2 * DAY_US
        late = await call(trade.buyer, "payout-ask", peer=format_peer(SELLER.peer))
        assert not late["usable"]
        assert "expired" in late["why_not"]
        gone = await call(trade.seller, "payout-bind", scheme="none", address=None)
        assert "taken its payout account back" in gone["why_not"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"scheme": "solana", "address": "x", "key": SELLER.peer.hex()},
        {"scheme": "iban", "address": ""},
        {"scheme": "iban", "address": "DE00"},
        {"scheme": "other-x", "address": "x", "days": 0},
        {"scheme": "other-x", "address": "x", "days": 500},
        {"scheme": "other-x", "address": "x", "key": "zz"},
        {"scheme": "none", "address": None, "key": rehearsal_key(77).peer.hex()},
    ],
)
async def test_accounts_that_cannot_be_are_refused(tmp_path: Path, arguments: dict[str, Any]) -> None:
    """The peer's own key is never a wallet."""
    async with trading(tmp_path) as trade:
        with pytest.raises(Refused):  # noqa: PT012 - at one of the two steps
            asked = await call(trade.seller, "payout-bind", **arguments)
            signature = SELLER.sign("coppermesh/payout/1", bytes.fromhex(asked["sign"]))
            await call(trade.seller, "payout-bind", signature=signature.hex())


async def test_scores_come_only_from_those_who_settled_something_here(tmp_path: Path) -> None:
    async with trading(tmp_path) as trade:
        await trade.buyer.desk.peer_up(SELLER.peer)
        assert await trade.buyer.store.look(lambda tables: tables.scores()) == []
        deal = await trade.lease(1)
        await trade.work(deal, 4)
        third = make_deal(9, provider=1, requester=3)
        task = third.task(0)
        receipt = third.receipt(task, await trade.seller.store.lane_head(third.lease.record.lane))
        answer = third.answer(receipt, await trade.seller.store.lane_head(third.lease.record.lane))
        await trade.seller.store.commit(third.granted(), TaskTaken(task.signed), issue(receipt))
        await trade.seller.store.commit(CountersignatureReceived(answer.signed))
        await trade.buyer.desk.peer_up(SELLER.peer)
        (kept,) = await trade.buyer.store.look(lambda tables: tables.scores())
        assert kept.signer == SELLER.peer


async def test_the_door_refuses_nonsense(tmp_path: Path) -> None:
    async with trading(tmp_path) as trade:
        for method, arguments in (
            ("ledger-compare", {"peer": "x"}),
            ("ledger-compare", {}),
            ("statement-sign", {"file": "zz"}),
            ("statement-sign", {"file": "90"}),
            ("statement-settle", {"statement": "00" * 32}),
            ("statement-propose", {"peer": format_peer(BUYER.peer), "unit": "usd"}),
        ):
            with pytest.raises(Refused):
                await call(trade.seller, method, **arguments)
        with pytest.raises(Unreachable):
            await call(trade.seller, "payout-ask", peer=format_peer(rehearsal_key(8).peer))


def test_spans_come_back_as_they_went() -> None:
    spans = [Span(bytes([number]) * 16, number, 2 * number + 1) for number in (3, 1, 2)]
    assert unpack_spans(pack_spans(spans)) == sorted(spans)
    with pytest.raises(Refused):
        draw_up(MESH, SELLER.peer, BUYER.peer, "usd", None, [], 0)  # type: ignore[arg-type]
    assert (
        decode(SignedStatement, encode(SignedStatement(sign_dummy(), None, b"")), max_bytes=1024).agreed
        is None
    )


def sign_dummy() -> Any:
    from coppermesh.p2p.records import SignedRecord

    return SignedRecord(b"", bytes(32), bytes(64))


async def test_a_statement_that_comes_back_with_other_lanes_is_refused(tmp_path: Path) -> None:
    """Lanes are not signed: another one with the same sum would be taken as covered."""
    async with trading(tmp_path) as trade:
        one, other = await trade.lease(1), await trade.lease(2)
        await trade.work(one, 2)
        draft = await trade.seller.desk.statements.draft_for_file(BUYER.peer, "usd")
        await trade.work(other, 2)
        record = open_record(Statement, draft.proposed).record
        signed = copy_of(draft, sign_record(BUYER, record))
        moved = msgspec.structs.replace(signed, lanes=pack_spans([Span(other.lease.record.lane, 0, 2)]))
        with pytest.raises(Refused) as refusal:
            await trade.seller.desk.statements.sign_file(moved)
        assert refusal.value.code == "bad-spans"
        assert await last_number(trade.seller, BUYER.peer) == -1
        await trade.seller.desk.statements.sign_file(signed)
        assert await last_number(trade.seller, BUYER.peer) == 0


async def test_a_restored_side_takes_no_forgotten_statement_with_made_up_lanes_or_of_another_mesh(
    tmp_path: Path,
) -> None:
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 3)
        copy = tmp_path / "copy.sqlite"
        await trio.to_thread.run_sync(back_up, trade.buyer.path, copy)
        first = await trade.seller.desk.statements.propose(BUYER.peer, "usd")
    await trio.to_thread.run_sync(restore, copy, trade.buyer.path, MESH, BUYER.peer, START_US + 10)
    record = open_record(Statement, first.proposed).record
    elsewhere = msgspec.structs.replace(record, mesh=mesh_id("elsewhere"))
    lane = deal.lease.record.lane
    made_up = [
        msgspec.structs.replace(first, lanes=pack_spans([Span(bytes(16), 0, 2)])),
        msgspec.structs.replace(first, lanes=pack_spans([Span(lane, 2**63, 2**63 + 3)])),
        msgspec.structs.replace(first, lanes=pack_spans([Span(lane, 0, 4)])),
        msgspec.structs.replace(
            first, proposed=sign_record(SELLER, elsewhere), agreed=sign_record(BUYER, elsewhere)
        ),
    ]
    async with trading(tmp_path) as trade:
        for wrong in made_up:
            with pytest.raises(Refused):
                await trade.buyer.desk.statements.sign_file(wrong)
        assert await last_number(trade.buyer, SELLER.peer) == -1
        await trade.buyer.desk.statements.sign_file(first)
        assert await last_number(trade.buyer, SELLER.peer) == 0


async def test_units_that_a_peer_makes_up_are_not_remembered(tmp_path: Path) -> None:
    async with trading(tmp_path) as trade:
        deal = await trade.lease(1)
        await trade.work(deal, 1)
        draft = await trade.seller.desk.statements.draft_for_file(BUYER.peer, "usd")
        record = open_record(Statement, draft.proposed).record
        desk = trade.buyer.desk.statements
        for number in range(3):
            other = msgspec.structs.replace(record, unit=f"unit-{number}")
            with pytest.raises(Refused):
                await desk.on_statement(
                    SELLER.peer,
                    StatementRequest(SignedStatement(sign_record(SELLER, other), None, draft.lanes)),
                )
        assert not desk._turns
