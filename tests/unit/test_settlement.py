"""One test body for every way of settling: the embedded ledger, and a stand-in for a chain that holds deposits."""

import importlib.util
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from coppermesh.agent.rehearsal import START_US
from coppermesh.agent.settlement import Channel, Closed, Settlement, State
from coppermesh.p2p.envelope import open_record, sign_record
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import Digest, PeerId
from coppermesh.p2p.records import SignedRecord
from coppermesh.p2p.settlement_records import Payment, Statement, Voucher
from coppermesh.p2p.signing import PeerKey

_spec = importlib.util.spec_from_file_location(
    "ledger_desk_tests", Path(__file__).with_name("test_ledger_desk.py")
)
assert _spec is not None
assert _spec.loader is not None
desks: Any = importlib.util.module_from_spec(_spec)
sys.modules["ledger_desk_tests"] = desks
_spec.loader.exec_module(desks)

MESH, SELLER, BUYER = desks.MESH, desks.SELLER, desks.BUYER


@dataclass
class Chain:
    """What all see: deposits, and what was paid out."""

    deposits: dict[Digest, int] = field(default_factory=dict)
    paid: dict[Digest, int] = field(default_factory=dict)
    settled: dict[Digest, SignedRecord] = field(default_factory=dict)


class ChainStandIn:
    """A backend that enforces: the payer deposits, the payee hands vouchers in. Statements come from a ledger."""

    def __init__(self, key: PeerKey, chain: Chain, store: Any) -> None:
        self._key, self._chain, self._store = key, chain, store
        self._vouchers: dict[Digest, SignedRecord] = {}
        self._made: dict[Digest, SignedRecord] = {}

    async def open(self, peer: PeerId, unit: str, deposit: int = 0) -> Channel:
        name = Digest(b"".join(sorted((peer, self._key.peer)))[16:48])
        self._chain.deposits[name] = max(self._chain.deposits.get(name, 0), deposit)
        return Channel(name, peer, unit)

    async def _statements(self, channel: Channel) -> list[Any]:
        signed = await self._store.look(lambda tables: tables.statements_with(channel.peer, channel.unit))
        return [open_record(Statement, found.proposed) for found in signed]

    async def voucher(self, channel: Channel) -> SignedRecord:
        owed = [one for one in await self._statements(channel) if self._owes(one.record)]
        if not owed:
            raise Refused("nothing-owed", "nothing")
        last = owed[-1]
        if last.id not in self._made:
            total = sum(one.record.net for one in owed)
            record = last.record
            made = Voucher(
                1, MESH, self._key.peer, channel.peer, channel.unit, record.number, last.id, total, START_US
            )
            self._made[last.id] = sign_record(self._key, made)
        return self._made[last.id]

    def _owes(self, record: Statement) -> bool:
        payee = {"proposer": record.proposer, "other": record.other}.get(record.payee)
        return payee is not None and payee != self._key.peer

    async def accept(self, channel: Channel, voucher: SignedRecord) -> int:
        record = open_record(Voucher, voucher, signer=channel.peer).record
        known = self._vouchers.get(channel.id)
        newest = (
            -1 if known is None or known.body == voucher.body else open_record(Voucher, known).record.number
        )
        if newest >= record.number:
            raise Refused("stale", "an older voucher")
        theirs = [one.record for one in await self._statements(channel) if not self._owes(one.record)]
        if record.cumulative != sum(one.net for one in theirs if one.number <= record.number):
            raise Refused("wrong-sum", "another sum than the statements'")
        self._vouchers[channel.id] = voucher
        return record.cumulative

    async def settle(self, statement: Digest, reference: str = "") -> SignedRecord:
        if statement in self._chain.settled:
            return self._chain.settled[statement]
        found = await self._store.look(lambda tables: tables.statement(statement))
        if found is None:
            raise Refused("unknown-statement", "unknown")
        record = open_record(Statement, found.proposed).record
        payer = PeerId(record.other if record.payee == "proposer" else record.proposer)
        if self._owes(record) or record.payee == "none":
            raise Refused("not-payee", "only the payee hands a voucher in")
        channel = await self.open(payer, record.unit)
        self._chain.paid[channel.id] = self._chain.paid.get(channel.id, 0) + record.net
        said = Payment(
            1, MESH, self._key.peer, payer, statement, record.unit, record.net, "chain", "tx", START_US
        )
        self._chain.settled[statement] = sign_record(self._key, said)
        return self._chain.settled[statement]

    async def status(self, statement: Digest) -> State:
        found = await self._store.look(lambda tables: tables.statement(statement))
        if found is None:
            return "unknown"
        record = open_record(Statement, found.proposed).record
        if statement in self._chain.settled or record.payee == "none":
            return "settled"
        promised = [
            open_record(Voucher, one).record.number
            for one in (*self._made.values(), *self._vouchers.values())
        ]
        return "vouched" if any(number >= record.number for number in promised) else "stated"

    async def close(self, channel: Channel) -> Closed:
        statements = await self._statements(channel)
        states = [await self.status(one.id) for one in statements]
        if set(states) - {"settled"}:
            raise Refused("unsettled", "something waits")
        left = self._chain.deposits.pop(channel.id, 0) - self._chain.paid.get(channel.id, 0)
        return Closed(len(statements), max(0, left))


@asynccontextmanager
async def backends(kind: str, folder: Path) -> AsyncIterator[tuple[Any, Settlement, Settlement]]:
    """Both sides' trade, the payer's backend and the payee's."""
    async with desks.trading(folder) as trade:
        if kind == "ledger":
            yield trade, trade.buyer.desk.settlement, trade.seller.desk.settlement
        else:
            chain = Chain()
            payer, payee = (ChainStandIn(one.key, chain, one.store) for one in (trade.buyer, trade.seller))
            yield trade, payer, payee


async def stated(trade: Any, deal: Any, tasks: int) -> Digest:
    await trade.work(deal, tasks)
    signed = await trade.seller.desk.statements.propose(BUYER.peer, "usd")
    return open_record(Statement, signed.proposed).id


@pytest.mark.parametrize("kind", ["ledger", "chain"])
async def test_a_backend_does_what_the_interface_says(kind: str, tmp_path: Path) -> None:
    async with backends(kind, tmp_path) as (trade, payer, payee):
        here, there = await payer.open(SELLER.peer, "usd"), await payee.open(BUYER.peer, "usd")
        assert here.id == there.id == (await payer.open(SELLER.peer, "usd")).id
        with pytest.raises(Refused) as refusal:
            await payer.voucher(here)
        assert refusal.value.code == "nothing-owed"
        assert await payer.status(Digest(bytes(32))) == "unknown"
        deal = await trade.lease(1)
        first = await stated(trade, deal, 2)
        old = await payer.voucher(here)
        assert await payer.voucher(here) == old, "the same promise, byte by byte"
        assert await payee.accept(there, old) == await payee.accept(there, old) == 6
        second = await stated(trade, deal, 3)
        new = await payer.voucher(here)
        assert await payee.accept(there, new) == 15, "cumulative: the newest one holds all"
        with pytest.raises(Refused) as refusal:
            await payee.accept(there, old)
        assert refusal.value.code == "stale"
        assert await payee.status(first) == await payee.status(second) == "vouched"
        with pytest.raises(Refused) as refusal:
            await payee.close(there)
        assert refusal.value.code == "unsettled"
        with pytest.raises(Refused) as refusal:
            await payer.settle(first)
        assert refusal.value.code == "not-payee"
        with pytest.raises(Refused) as refusal:
            await payee.settle(Digest(bytes(32)))
        assert refusal.value.code == "unknown-statement"
        for name, net in ((first, 6), (second, 9)):
            payment = await payee.settle(name, "reference")
            assert await payee.settle(name, "again") == payment, "settled once"
            record = open_record(Payment, payment).record
            assert (record.amount, record.statement, record.payee) == (net, name, SELLER.peer)
            assert await payee.status(name) == "settled"
        assert (await payee.close(there)).settled == 2


async def test_the_ledger_holds_no_money(tmp_path: Path) -> None:
    async with backends("ledger", tmp_path) as (_, payer, _payee):
        with pytest.raises(Refused, match="chain's backend"):
            await payer.open(SELLER.peer, "usd", 5)
        with pytest.raises(Refused, match="between two peers"):
            await payer.open(BUYER.peer, "usd")


async def test_a_chain_gives_back_what_is_left(tmp_path: Path) -> None:
    async with backends("chain", tmp_path) as (trade, payer, payee):
        channel = await payer.open(SELLER.peer, "usd", 100)
        name = await stated(trade, await trade.lease(1), 2)
        await payee.settle(name)
        assert (await payer.close(channel)).returned == 94
