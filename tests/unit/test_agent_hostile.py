"""An agent among strangers: peers that send what no agent of ours would, at the worst moment.

A `RawPeer` is a key and a control hub without an agent behind it. Whatever it does may cost it its lease or its
connection; the agent, its other leases and its slots live on.
"""

import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

import coppermesh.exec.xp as xp  # noqa: PLR0402 - a namespace module, as users import it
from coppermesh.agent.clock import now_us
from coppermesh.agent.config import Config
from coppermesh.agent.exposure import interval_cost
from coppermesh.agent.home import Home
from coppermesh.agent.job_handle import JobFailed
from coppermesh.agent.job_options import JobOptions
from coppermesh.agent.leases import build_lease
from coppermesh.agent.ledger import Entry, LeaseAgreed, LedgerConflict, ReceiptSettled, TaskTaken
from coppermesh.agent.local_messages import Blob, JobEvent, SubmitCall, TaskSpec, WaitCall
from coppermesh.agent.node import Node, Parts, open_node
from coppermesh.agent.pricing import amount_for
from coppermesh.agent.receipts import LaneHead, RunFacts, build_receipt
from coppermesh.exec.device import DeviceInfo
from coppermesh.exec.keeper import WorkerUnavailable
from coppermesh.exec.recorder import trace
from coppermesh.exec.supervisor import InputBuffer, OutputBuffer, RunOutcome, WorkerLimits
from coppermesh.p2p.blobs import digest_of
from coppermesh.p2p.control import ControlHub, Handler, open_control_hub
from coppermesh.p2p.envelope import Opened, open_record, sign_record
from coppermesh.p2p.errors import Refused, Unreachable
from coppermesh.p2p.ids import Digest, PeerId, mesh_id
from coppermesh.p2p.memory_transport import MemoryNetwork
from coppermesh.p2p.messages import (
    AnnouncementReply,
    AnnouncementRequest,
    BlobInfo,
    CancelRequest,
    InlineBlob,
    LeaseReply,
    LeaseRequest,
    Nothing,
    OrderReply,
    OrderRequest,
    ResultReply,
    ResultRequest,
    ResultsReply,
    ResultsRequest,
    TaskReply,
    TaskRequest,
    TasksReply,
    TasksRequest,
)
from coppermesh.p2p.records import (
    Announcement,
    Bid,
    Countersignature,
    Decline,
    DeviceOffer,
    Lease,
    Order,
    Receipt,
    Task,
)
from coppermesh.p2p.signing import PeerKey

CPU = DeviceInfo(
    device="cpu",
    kind="cpu",
    name="scripted processor",
    memory_bytes=1 << 30,
    total_bytes=None,
    compute_capability=None,
    uuid=None,
    driver=None,
    meter="none",
    features=("array-programs",),
    cores=2,
)
MESH = mesh_id("test")
PROGRAM, DATA = b"program", bytes(8)


class HeapOutput(OutputBuffer):
    """An output in ordinary memory."""

    def close(self) -> None:
        self.view.release()


class EchoWorker:
    """Returns its first input."""

    async def run(
        self, program: bytes, inputs: Sequence[InputBuffer], wall_limit_s: float, *, digests: bool = False
    ) -> RunOutcome:
        data = inputs[0].data
        assert data is not None
        return RunOutcome(
            status="ok",
            code="ok",
            sentence="",
            detail="",
            outputs=[HeapOutput(len(data), memoryview(data))],
            started_us=0,
            wall_us=1000,
            device_us=None,
            energy_mj=None,
            meter="none",
            peak_bytes=0,
            determinism="test",
        )


class EchoSupervisor:
    """Makes such workers; raises `failure` where that is set."""

    layers: tuple[str, ...] = ()
    unfit = ""

    def __init__(self) -> None:
        self.failure: Exception | None = None

    @asynccontextmanager
    async def worker(self, limits: WorkerLimits, *, kernels: bool = True) -> AsyncIterator[EchoWorker]:
        if self.failure is not None:
            raise self.failure
        yield EchoWorker()


@dataclass
class World:
    """One agent under attack, and the network that it is on."""

    network: MemoryNetwork
    node: Node
    supervisor: EchoSupervisor


@asynccontextmanager
async def open_world(base: Path, *, provide: bool, slots: int = 2) -> AsyncIterator[World]:
    network = MemoryNetwork(random.Random(1))
    supervisor = EchoSupervisor()

    @asynccontextmanager
    async def transport(key, mesh, listen):
        async with network.transport(key) as attached:
            yield attached

    @asynccontextmanager
    async def open_supervisor(info, scratch):
        yield supervisor

    parts = Parts(transport=transport, supervisor=open_supervisor, probe=lambda: [CPU])
    home = Home(base / "home")
    home.prepare()
    async with open_node(home, Config(mesh="test", provide=provide, slots=slots), parts) as node:
        yield World(network, node, supervisor)


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - what is waited for is an agent's inside, which has no event for it
            await trio.sleep(0.005)


@dataclass
class RawPeer:
    """A peer that says what it likes to `node`."""

    key: PeerKey
    hub: ControlHub
    node: Node
    ended: list[CancelRequest]
    """What it was told of ends."""

    async def lease(self, **changes: object) -> Opened[Lease]:
        """Order, take the bid, and sign a lease, with `changes`, that is not sent yet."""
        order = open_record(Order, sign_record(self.key, make_order(self.key.peer)))
        reply = await self.hub.request(self.node.key.peer, "order", OrderRequest(order.signed), OrderReply)
        assert reply.bid is not None, reply.decline
        bid = open_record(Bid, reply.bid, signer=self.node.key.peer)
        lease = build_lease(order, bid, random.randbytes(16), random.randbytes(16), now_us())
        return open_record(Lease, sign_record(self.key, changed(lease, **changes)))

    async def offer(self, lease: Opened[Lease]) -> LeaseReply:
        return await self.hub.request(self.node.key.peer, "lease", LeaseRequest(lease.signed), LeaseReply)

    async def send_task(
        self,
        lease: Opened[Lease],
        number: int,
        *,
        data: bytes | None = DATA,
        size: int = len(DATA),
        pays: int | None = None,
    ) -> TaskReply:
        """A task on `DATA`; without `data` the input is only declared, with `size`. `pays`: at most, not all."""
        request = self.task(lease, number, data=data, size=size, pays=pays)
        return await self.hub.request(self.node.key.peer, "task", request, TaskReply)

    async def send_tasks(self, *requests: TaskRequest) -> list[str]:
        """What becomes of each of several tasks in one message: its code."""
        reply = await self.hub.request(
            self.node.key.peer, "tasks", TasksRequest(list(requests)), TasksReply, deadline_s=20.0
        )
        return [each.code for each in reply.replies]

    def task(
        self,
        lease: Opened[Lease],
        number: int,
        *,
        data: bytes | None = DATA,
        size: int = len(DATA),
        pays: int | None = None,
    ) -> TaskRequest:
        roots: list[bytes] = [digest_of(PROGRAM), digest_of(DATA)]
        task = Task(
            version=1,
            mesh=MESH,
            lease=lease.id,
            number=number,
            requester=self.key.peer,
            job=bytes(16),
            index=number,
            program=roots[0],
            inputs=roots[1:],
            max_amount=lease.record.budget if pays is None else pays,
            issued_us=now_us(),
            expires_us=now_us() + 10**7,
        )
        inline = [InlineBlob(roots[0], PROGRAM)] + ([InlineBlob(roots[1], data)] if data is not None else [])
        blobs = [BlobInfo(roots[0], len(PROGRAM)), BlobInfo(roots[1], size)]
        return TaskRequest(sign_record(self.key, task), blobs, inline)


def make_order(requester: PeerId) -> Order:
    return Order(
        version=1,
        mesh=MESH,
        requester=requester,
        nonce=random.randbytes(16),
        job=random.randbytes(16),
        issued_us=now_us(),
        expires_us=now_us() + 10**7,
        device_kind="any",
        model="",
        features=["array-programs"],
        isolation=[],
        memory_bytes=1 << 20,
        min_speed=0,
        tasks=1,
        copies=1,
        wall_limit_us=10**6,
        max_rate=10**9,
        unit="usd",
        budget=10**9,
        lease_us=60_000_000,
        deadline_us=now_us() + 60_000_000,
    )


def changed(record, **changes):
    """The record with other values in some fields."""
    fields = {name: getattr(record, name) for name in type(record).__struct_fields__}
    return type(record)(**{**fields, **changes})


@asynccontextmanager
async def raw_peer(
    world: World, handlers: dict[str, Handler] | None = None, key: PeerKey | None = None
) -> AsyncIterator[RawPeer]:
    key = key or PeerKey.generate()
    ended: list[CancelRequest] = []

    async def on_cancel(peer: PeerId, request: CancelRequest) -> Nothing:
        ended.append(request)
        return Nothing()

    async def on_announcement(peer: PeerId, request: AnnouncementRequest) -> AnnouncementReply:
        return AnnouncementReply(None, [])

    defaults: dict[str, Handler] = {
        "cancel": (CancelRequest, on_cancel),
        "announcement": (AnnouncementRequest, on_announcement),
    }
    node = world.node
    async with (
        world.network.transport(key) as transport,
        open_control_hub(
            transport, MESH, key.peer, handlers={**defaults, **(handlers or {})}, clock=now_us
        ) as hub,
    ):
        await transport.dial(node.transport.addresses[0])
        await until(lambda: node.key.peer in hub.peers() and key.peer in node.hub.peers())
        yield RawPeer(key, hub, node, ended)


def delay_commits(node: Node, kind: type[Entry], before: Callable[[], Awaitable[object]]) -> None:
    """Let `before` happen while entries of `kind` are on their way to the disk."""
    commit = node.ledger.commit

    async def slowly(*entries: Entry) -> None:
        if isinstance(entries[0], kind):
            await before()
        await commit(*entries)

    node.ledger.commit = slowly  # type: ignore[method-assign]


async def still_serves(world: World) -> None:
    """A newcomer gets a lease and its task is taken: the agent lives, and a slot is free."""
    async with raw_peer(world) as other:
        lease = await other.lease()
        assert (await other.offer(lease)).lease is not None
        assert (await other.send_task(lease, 0)).state == "accepted"


async def no_lease_left(world: World) -> None:
    provider = world.node.provider
    assert provider is not None
    await until(lambda: not provider.leases and not provider.reservations.holds())


# A hostile requester


async def test_a_lease_that_expires_while_it_is_written_down(tmp_path):
    async with open_world(tmp_path, provide=True) as world:
        delay_commits(world.node, LeaseAgreed, partial(trio.sleep, 0.1))
        async with raw_peer(world) as peer:
            await peer.offer(await peer.lease(expires_us=now_us() + 50_000))
            await no_lease_left(world)
            assert [end.code for end in peer.ended] == ["expired"]
        await still_serves(world)


async def test_one_lease_sent_twice_at_once_is_served_once(tmp_path):
    async with open_world(tmp_path, provide=True) as world:
        provider = world.node.provider
        assert provider is not None
        served = []
        serve = provider._serve
        provider._serve = lambda *arguments: (served.append(arguments), serve(*arguments))
        async with raw_peer(world) as peer:
            lease = await peer.lease()
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(peer.offer, lease)
            assert len(served) == 1
            assert (await peer.send_task(lease, 0)).state == "accepted"


async def test_two_leases_for_one_bid_are_one_lease(tmp_path):
    async with open_world(tmp_path, provide=True) as world:
        async with raw_peer(world) as peer:
            lease = await peer.lease()
            other = open_record(Lease, sign_record(peer.key, changed(lease.record, nonce=bytes(16))))
            replies = []

            async def offer(one: Opened[Lease]) -> None:
                replies.append(await peer.offer(one))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(offer, lease)
                nursery.start_soon(offer, other)
            assert replies[0] == replies[1]
        await no_lease_left(world)
        await still_serves(world)


async def test_a_connection_lost_while_a_lease_is_written_down_leaves_no_lease(tmp_path):
    async with open_world(tmp_path, provide=True) as world:
        async with raw_peer(world) as peer:

            async def cut() -> None:
                world.network.cut(peer.key.peer, world.node.key.peer)
                await trio.sleep(0.05)

            delay_commits(world.node, LeaseAgreed, cut)
            with pytest.raises(Unreachable):
                await peer.offer(await peer.lease())
        await no_lease_left(world)


async def test_a_requester_that_leaves_frees_the_slot_that_was_bid_to_it(tmp_path):
    """At once, not when the bid expires (5 s): it may be back, with the same order, a moment later."""
    async with open_world(tmp_path, provide=True) as world:
        provider = world.node.provider
        assert provider is not None
        async with raw_peer(world) as peer:
            await peer.lease()
            assert provider.reservations.holds()
        with trio.fail_after(3):
            await no_lease_left(world)


async def test_an_idle_lease_gives_way_to_who_waits_and_then_the_turns_change(tmp_path):
    """One slot, two requesters: neither blocks the other by keeping a lease, or by asking again first."""
    async with open_world(tmp_path, provide=True, slots=1) as world:
        async with raw_peer(world) as first, raw_peer(world) as second:
            lease = await first.lease()
            assert (await first.offer(lease)).lease is not None

            async def declined(peer: RawPeer) -> str:
                order = sign_record(peer.key, make_order(peer.key.peer))
                reply = await peer.hub.request(world.node.key.peer, "order", OrderRequest(order), OrderReply)
                return "" if reply.decline is None else open_record(Decline, reply.decline).record.code

            assert await declined(second) == "busy"  # still fresh: nobody's lease ends while it is in use
            assert not first.ended
            await trio.sleep(0.25)
            assert await declined(second) == "busy"  # ... but now the idle one is on its way out
            await until(lambda: first.ended)
            assert [end.code for end in first.ended] == ["reclaimed"]
            await no_lease_left(world)
            assert await declined(first) == "busy"  # the slot is free, and it is the other's turn
            assert (await second.offer(await second.lease())).lease is not None


async def test_a_lease_whose_blobs_are_on_their_way_is_not_idle(tmp_path):
    async with open_world(tmp_path, provide=True, slots=1) as world:
        async with raw_peer(world) as first, raw_peer(world) as second:
            lease = await first.lease()
            assert (await first.offer(lease)).lease is not None
            assert (await first.send_task(lease, 0, data=None)).state == "need"
            await trio.sleep(0.25)
            order = sign_record(second.key, make_order(second.key.peer))
            reply = await second.hub.request(world.node.key.peer, "order", OrderRequest(order), OrderReply)
            assert reply.decline is not None
            assert (await first.send_task(lease, 0)).state == "accepted"
            assert not first.ended


async def test_nobody_gets_work_for_less_than_it_may_cost(tmp_path):
    """By a task's own maximum, or a lease's budget that is at its end."""
    async with open_world(tmp_path, provide=True) as world:
        async with raw_peer(world) as peer:
            lease = await peer.lease()
            most = amount_for(lease.record.rate, lease.record.wall_limit_us)
            lease = open_record(Lease, sign_record(peer.key, changed(lease.record, budget=most)))
            assert (await peer.offer(lease)).lease is not None
            with pytest.raises(Refused, match="pays at most 0"):
                await peer.send_task(lease, 0, pays=0)
            assert (await peer.send_task(lease, 0)).state == "accepted"
            await until(lambda: not world.node.provider.tasks_accepted)
            with pytest.raises(Refused, match="budget has"):
                await peer.send_task(lease, 1)
            poor = await peer.lease(budget=most - 1)
            assert (await peer.offer(poor)).lease is not None
            with pytest.raises(Refused) as refusal:
                await peer.send_task(poor, 0)
            assert refusal.value.code == "budget"
        await still_serves(world)


async def test_who_leaves_the_line_holds_no_slot_free(tmp_path):
    async with open_world(tmp_path, provide=True, slots=1) as world:
        async with raw_peer(world) as first:
            async with raw_peer(world) as second:
                assert (await first.offer(await first.lease())).lease is not None
                await trio.sleep(0.25)
                order = sign_record(second.key, make_order(second.key.peer))
                await second.hub.request(world.node.key.peer, "order", OrderRequest(order), OrderReply)
                await no_lease_left(world)
            await until(lambda: second.key.peer not in world.node.hub.peers())
            assert (await first.offer(await first.lease())).lease is not None


async def test_a_declared_size_that_is_not_the_blobs(tmp_path):
    """The blob is here from an earlier task; its size would decide whether it is read into memory."""
    async with open_world(tmp_path, provide=True) as world:
        async with raw_peer(world) as peer:
            lease = await peer.lease()
            await peer.offer(lease)
            assert (await peer.send_task(lease, 0)).state == "accepted"
            with pytest.raises(Refused, match="another size"):
                await peer.send_task(lease, 1, data=None, size=3)
        await still_serves(world)


@pytest.mark.parametrize(
    "failure", [WorkerUnavailable("no memory for a process"), OSError("the disk is gone")]
)
async def test_a_machine_that_cannot_make_workers_ends_leases_and_says_why(tmp_path, failure):
    async with open_world(tmp_path, provide=True) as world:
        world.supervisor.failure = failure
        async with raw_peer(world) as peer:
            await peer.offer(await peer.lease())
            await no_lease_left(world)
            await until(lambda: peer.ended)
            assert peer.ended[0].code == ("worker-unavailable" if failure.args[0][0] == "n" else "internal")
        world.supervisor.failure = None
        await still_serves(world)


async def test_an_agent_that_stops_tells_its_requesters(tmp_path):
    async with open_world(tmp_path, provide=True) as world:
        async with raw_peer(world) as peer:
            await peer.offer(await peer.lease())
            provider = world.node.provider
            assert provider is not None
            assert provider._nursery is not None
            provider._nursery.cancel_scope.cancel()
            await until(lambda: peer.ended)
            assert peer.ended[0].code == "stopping"


async def test_a_flood_of_orders_leaves_nothing_behind(tmp_path):
    """Neither does it push out the bid of somebody else."""
    async with open_world(tmp_path, provide=True) as world:
        provider = world.node.provider
        assert provider is not None
        async with raw_peer(world) as patient, raw_peer(world) as flooder:
            lease = await patient.lease()
            for _ in range(150):
                order = sign_record(flooder.key, make_order(flooder.key.peer))
                await flooder.hub.request(world.node.key.peer, "order", OrderRequest(order), OrderReply)
            assert len(provider._talks) <= 2
            assert (await patient.offer(lease)).lease is not None


async def test_who_does_not_countersign_gets_no_more_work_and_fills_no_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("coppermesh.agent.result_outbox.MAX_OPEN", 3)

    async def keep_silent(peer: PeerId, request: ResultRequest) -> ResultReply:
        await trio.sleep_forever()
        raise AssertionError

    async with open_world(tmp_path, provide=True) as world:
        async with raw_peer(world, {"result": (ResultRequest, keep_silent)}) as peer:
            lease = await peer.lease()
            await peer.offer(lease)
            for number in range(3):
                assert (await peer.send_task(lease, number)).state == "accepted"
            await until(lambda: world.node.outbox.under_way == 3)
            with pytest.raises(Refused, match="3 receipts wait"):
                await peer.send_task(lease, 3)
            assert world.node.store.statistics().pinned == 1, "three times the same output"
        await still_serves(world)


async def test_who_does_not_countersign_is_waited_for_and_left_with_a_signed_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("coppermesh.agent.exposure.GRACE_US", 300_000)

    async def keep_silent(peer: PeerId, request: ResultRequest) -> ResultReply:
        await trio.sleep_forever()
        raise AssertionError

    async with open_world(tmp_path, provide=True) as world:
        async with raw_peer(world, {"result": (ResultRequest, keep_silent)}) as peer:
            lease = await peer.lease()
            await peer.offer(lease)
            provider, number = world.node.provider, 0
            while not peer.ended:
                with suppress(Refused):  # the lease ended meanwhile
                    await peer.send_task(lease, number)
                number += 1
                await until(lambda: peer.ended or provider.tasks_accepted < 4)
            (ended,) = peer.ended
            assert ended.code == "unpaid"
            assert "for your countersignature" in ended.sentence
            reason = open_record(Decline, ended.decline, signer=world.node.key.peer).record
            assert (reason.code, reason.order) == ("unpaid", lease.record.order)
            credit = world.node.credit
            owed = credit.unpaid(peer.key.peer, "usd")
            assert 0 < owed <= interval_cost(lease.record.rate, lease.record.wall_limit_us)
            order = sign_record(peer.key, make_order(peer.key.peer))
            reply = await peer.hub.request(world.node.key.peer, "order", OrderRequest(order), OrderReply)
            declined = open_record(Decline, reply.decline, signer=world.node.key.peer).record
            assert declined.code == "unpaid", "a new lease would only wait"
        await still_serves(world)


# A hostile provider


OFFER = DeviceOffer(
    device="cpu",
    kind="cpu",
    name="a stranger's",
    rate=36_000,
    unit="usd",
    memory_bytes=1 << 30,
    slots=1,
    features=["array-programs"],
    meter="none",
    compute_capability=None,
    uuid=None,
    driver=None,
    total_bytes=None,
)


def announce(key: PeerKey) -> AnnouncementReply:
    record = Announcement(
        version=1,
        mesh=MESH,
        peer=key.peer,
        sequence=now_us(),
        issued_us=now_us(),
        expires_us=now_us() + 300_000_000,
        software="test",
        addresses=[],
        devices=[OFFER],
        isolation=[],
        busy_slots=0,
        paused=False,
        shard="",
    )
    return AnnouncementReply(sign_record(key, record), [])


def make_bid(key: PeerKey, request: OrderRequest, life_us: int = 10**7) -> OrderReply:
    order = open_record(Order, request.order)
    bid = Bid(
        version=1,
        mesh=MESH,
        provider=key.peer,
        order=order.id,
        nonce=random.randbytes(16),
        issued_us=now_us(),
        expires_us=now_us() + life_us,
        device="cpu",
        device_kind="cpu",
        device_name="a stranger's",
        memory_bytes=1 << 30,
        rate=OFFER.rate,
        unit="usd",
        depth=8,
        speed=0,
    )
    return OrderReply(sign_record(key, bid), None)


class Seller:
    """A provider that signs leases and takes tasks; what it sends back is up to the test."""

    def __init__(self) -> None:
        self.key = PeerKey.generate()
        self.bid_life_us = 10**7
        self.leases: list[Opened[Lease]] = []
        self.tasks: list[Opened[Task]] = []
        self.head = LaneHead()

    def handlers(self) -> dict[str, Handler]:
        return {
            "announcement": (AnnouncementRequest, self.on_announcement),
            "order": (OrderRequest, self.on_order),
            "lease": (LeaseRequest, self.on_lease),
            "task": (TaskRequest, self.on_task),
            "tasks": (TasksRequest, self.on_tasks),
        }

    async def on_announcement(self, peer: PeerId, request: AnnouncementRequest) -> AnnouncementReply:
        return announce(self.key)

    async def on_order(self, peer: PeerId, request: OrderRequest) -> OrderReply:
        return make_bid(self.key, request, self.bid_life_us)

    async def on_lease(self, peer: PeerId, request: LeaseRequest) -> LeaseReply:
        lease = open_record(Lease, request.lease)
        self.leases.append(lease)
        self.head = LaneHead()
        return LeaseReply(sign_record(self.key, lease.record), None)

    async def on_task(self, peer: PeerId, request: TaskRequest) -> TaskReply:
        self.tasks.append(open_record(Task, request.task))
        return TaskReply("accepted", [], "ok", "")

    async def on_tasks(self, peer: PeerId, request: TasksRequest) -> TasksReply:
        return TasksReply([await self.on_task(peer, each) for each in request.tasks])

    def receipt(self, task: Opened[Task], output: bytes) -> Opened[Receipt]:
        """A receipt for `output` at the head of the lane, and the head moved on."""
        (lease,) = [found for found in self.leases if found.id == task.record.lease]
        facts = RunFacts("ok", "ok", [digest_of(output)], now_us(), now_us() + 1000, 1000, "a stranger's")
        receipt = build_receipt(lease.record, task, self.head, facts, now_us())
        opened = open_record(Receipt, sign_record(self.key, receipt))
        self.head = self.head.after(opened)
        return opened


def result_of(receipt: Opened[Receipt], output: bytes) -> ResultRequest:
    root = digest_of(output)
    return ResultRequest(receipt.signed, [BlobInfo(root, len(output))], [InlineBlob(root, output)], "", "")


async def deliver(peer: RawPeer, receipt: Opened[Receipt], output: bytes) -> Countersignature:
    request = result_of(receipt, output)
    reply = await peer.hub.request(peer.node.key.peer, "result", request, ResultReply)
    return open_record(Countersignature, reply.countersignature, signer=peer.node.key.peer).record


async def submit(node: Node, *, tasks: int = 1, **options: Any) -> bytes:
    recording = trace(xp.asarray(np.zeros(2, dtype=np.float32)) + 1)
    data = [recording.program, *(array.tobytes() for array in recording.inputs)]
    infos = [BlobInfo(digest_of(item), len(item)) for item in data]
    blobs = [Blob(info.root, item) for info, item in zip(infos, data, strict=True)]
    chosen = replace(JobOptions(deadline_s=10.0, wall_limit_s=1.0), **options)
    call = SubmitCall([TaskSpec(infos[0].root, infos[1:])] * tasks, blobs, json.dumps(asdict(chosen)))
    return (await node.requester.submit(call)).job


async def end_of(node: Node, job: bytes) -> JobEvent:
    seen: list[JobEvent] = []
    while not seen or seen[-1].kind not in ("finished", "failed"):
        seen += (await node.requester.wait(WaitCall(job, len(seen)))).events
    return seen[-1]


GOOD = np.ones(2, dtype=np.float32).tobytes()


async def test_a_bid_that_expires_before_it_is_taken(tmp_path):
    """It answers an order at once, with a bid that is over when the window for bids closes."""
    seller = Seller()
    seller.bid_life_us = 50_000
    silent = Seller()

    async def keep_silent(peer: PeerId, request: OrderRequest) -> OrderReply:
        await trio.sleep_forever()
        raise AssertionError

    async with open_world(tmp_path, provide=False) as world:
        async with (
            raw_peer(world, seller.handlers(), seller.key),
            raw_peer(world, {**silent.handlers(), "order": (OrderRequest, keep_silent)}, silent.key),
        ):
            await until(lambda: len(world.node.book.current(now_us())) == 2)
            ended = await end_of(world.node, await submit(world.node, deadline_s=3.0))
            assert json.loads(ended.text)["code"] == "no-provider"
            assert not seller.leases


async def test_a_refusal_that_crosses_the_result_does_not_pay_twice(tmp_path):
    """The seller delivers, and refuses the same task while its receipt is on its way to the disk."""
    async with open_world(tmp_path, provide=False) as world:
        seller = Seller()
        refuse = trio.Event()

        async def on_task(peer: PeerId, request: TaskRequest) -> TaskReply:
            seller.tasks.append(open_record(Task, request.task))
            await refuse.wait()
            raise Refused("busy", "changed my mind")

        async def settle_slowly() -> None:
            refuse.set()
            await trio.sleep(0.1)

        handlers = {**seller.handlers(), "task": (TaskRequest, on_task)}
        async with raw_peer(world, handlers, seller.key) as peer:
            await until(lambda: world.node.book.get(seller.key.peer))
            delay_commits(world.node, ReceiptSettled, settle_slowly)
            job = await submit(world.node)
            await until(lambda: seller.tasks)
            answer = await deliver(peer, seller.receipt(seller.tasks[0], GOOD), GOOD)
            assert answer.verdict == "accepted"
            assert (await end_of(world.node, job)).kind == "finished"
            assert len(seller.tasks) == 1, "it was paid for, so it is not tried again"


async def test_a_second_receipt_after_a_dispute_is_not_paid(tmp_path):
    async with open_world(tmp_path, provide=False) as world:
        seller = Seller()
        async with raw_peer(world, seller.handlers(), seller.key) as peer:
            await until(lambda: world.node.book.get(seller.key.peer))
            job = await submit(world.node, deadline_s=2.0)
            await until(lambda: seller.tasks)
            first = await deliver(peer, seller.receipt(seller.tasks[0], b"short"), b"short")
            assert (first.verdict, first.code) == ("disputed", "outputs-mismatch")
            await trio.testing.wait_all_tasks_blocked(0.05)
            again = await deliver(peer, seller.receipt(seller.tasks[0], b"anything"), b"anything")
            assert (again.verdict, again.code) == ("disputed", "already-answered")
            assert (await end_of(world.node, job)).kind == "failed"
            assert not any(line.owed_by_me for line in await world.node.ledger.balances())


async def test_a_receipt_for_nothing_of_ours_is_refused_without_blame(tmp_path):
    """A home that lost its ledger meets its old provider."""
    async with open_world(tmp_path, provide=False) as world:
        seller = Seller()
        async with raw_peer(world, seller.handlers(), seller.key) as peer:
            await until(lambda: world.node.book.get(seller.key.peer))
            await submit(world.node)
            await until(lambda: seller.tasks)
            stranger = PeerKey.generate()
            unknown = changed(seller.tasks[0].record, number=99, requester=stranger.peer)
            receipt = seller.receipt(open_record(Task, sign_record(stranger, unknown)), GOOD)
            with pytest.raises(Refused, match="no such lease or task"):
                await deliver(peer, receipt, GOOD)
            assert world.node.key.peer in peer.hub.peers()


async def test_a_lease_cancelled_as_the_connection_goes_is_lost_once_and_the_task_moves(tmp_path):
    """The cancel's handler dies with its channel, in the middle of a receipt's commit."""
    async with open_world(tmp_path, provide=False) as world:
        seller = Seller()
        async with raw_peer(world, seller.handlers(), seller.key) as peer:
            await until(lambda: world.node.book.get(seller.key.peer))
            await submit(world.node)
            await until(lambda: seller.tasks)
            (lease,) = seller.leases
            held = world.node.requester.find_lease(lease.id)
            assert held is not None
            (attempt,) = held.outstanding.values()
            attempt.begin_settling(accepting=True)
            request = CancelRequest(lease.id, None, "expired", "time is over", None)
            await peer.hub.request(world.node.key.peer, "cancel", request, Nothing)
            world.network.cut(seller.key.peer, world.node.key.peer)
            await until(lambda: not world.node.hub.peers())
            attempt.end_settling()
            await until(lambda: attempt.outcome is not None and not world.node.requester.leases)
            assert world.node.requester._dispatcher.counts().leases == 0


async def test_a_seller_that_takes_leases_and_ends_them_is_put_back(tmp_path):
    """With a code that would excuse it, it could fail the job by coming back five times."""
    async with open_world(tmp_path, provide=False) as world:
        seller = Seller()

        async def on_task(peer: PeerId, request: TaskRequest) -> TaskReply:
            task = open_record(Task, request.task)
            seller.tasks.append(task)
            cancel = CancelRequest(task.record.lease, None, "expired", "no more", None)
            await raw.hub.request(peer, "cancel", cancel, Nothing)
            return TaskReply("accepted", [], "ok", "")

        handlers = {**seller.handlers(), "task": (TaskRequest, on_task)}
        async with raw_peer(world, handlers, seller.key) as raw:
            await until(lambda: world.node.book.get(seller.key.peer))
            ended = await end_of(world.node, await submit(world.node, deadline_s=2.0))
            assert json.loads(ended.text)["code"] == "deadline"
            assert len(seller.tasks) == 1


async def test_outputs_that_cannot_be_kept_here_end_the_job_and_blame_nobody(tmp_path):
    async with open_world(tmp_path, provide=False) as world:
        seller = Seller()
        async with raw_peer(world, seller.handlers(), seller.key) as peer:
            await until(lambda: world.node.book.get(seller.key.peer))
            job = await submit(world.node)
            await until(lambda: seller.tasks)

            async def full(scope: object, blobs: Sequence[tuple[Digest, bytes]]) -> None:
                raise OSError(28, "No space left on device")

            world.node.store.put_many = full
            with pytest.raises(Refused, match="cannot keep the outputs"):
                await deliver(peer, seller.receipt(seller.tasks[0], GOOD), GOOD)
            failure = json.loads((await end_of(world.node, job)).text)
            assert "cannot be kept here" in failure["sentence"]
            assert not await world.node.ledger.evidence()


def test_what_a_strangers_compiler_printed_does_not_steer_the_terminal():
    failure = JobFailed(
        "0" * 32, "kernel-compile", "the kernel does not compile", "line 1\n\x1b]0;owned\x07\x1b[2J"
    )
    assert "\x1b" not in str(failure) + failure.detail
    assert "line 1\n" in str(failure)


# Several in one message


async def test_each_of_several_tasks_is_judged_by_itself(tmp_path):
    async with open_world(tmp_path, provide=True) as world, raw_peer(world) as peer:
        lease = await peer.lease()
        assert (await peer.offer(lease)).lease is not None
        other = await peer.lease()  # never sent: no lease here
        first, second = peer.task(lease, 0), peer.task(lease, 1)
        codes = await peer.send_tasks(
            first,
            peer.task(other, 0),
            second,
            peer.task(lease, 3, pays=1),
            peer.task(lease, 0, data=None),
            peer.task(lease, 2, data=None, size=len(DATA)),
            first,
        )
        assert codes == ["ok", "unknown-lease", "ok", "budget", "spent", "ok", "ok"]
        assert await peer.send_tasks() == []
        assert (await peer.send_tasks(peer.task(lease, 0)))[0] in ("ok", "spent")


async def test_tasks_that_do_not_fit_the_ledger_together_are_taken_one_by_one(tmp_path):
    async with open_world(tmp_path, provide=True) as world, raw_peer(world) as peer:
        lease = await peer.lease()
        assert (await peer.offer(lease)).lease is not None
        commit, refused = world.node.ledger.commit, []

        async def pickily(*entries: Entry) -> None:
            taken = [entry for entry in entries if isinstance(entry, TaskTaken)]
            numbers = {open_record(Task, entry.task).record.number for entry in taken}
            if 1 in numbers:
                refused.append(len(taken))
                raise LedgerConflict("unfit", "not this one")
            await commit(*entries)

        world.node.ledger.commit = pickily
        codes = await peer.send_tasks(*(peer.task(lease, number) for number in range(3)))
        assert codes == ["ok", "provider-ledger", "ok"]
        assert refused == [3, 1]


async def test_a_task_of_somebody_else_among_several_ends_the_channel(tmp_path):
    async with open_world(tmp_path, provide=True) as world, raw_peer(world) as peer:
        lease = await peer.lease()
        assert (await peer.offer(lease)).lease is not None
        good = peer.task(lease, 0)
        forged = changed(good, task=changed(good.task, signature=bytes(64)))
        with pytest.raises((Refused, Unreachable)):
            await peer.send_tasks(good, forged)
        await no_lease_left(world)
        await still_serves(world)


async def test_results_in_one_message_are_settled_in_their_order_and_the_wrong_one_is_disputed(tmp_path):
    async with open_world(tmp_path, provide=False) as world:
        seller = Seller()
        async with raw_peer(world, seller.handlers(), seller.key) as peer:
            await until(lambda: world.node.book.current(now_us()))
            job = await submit(world.node, tasks=2)
            await until(lambda: len(seller.tasks) == 2)
            commits: list[int] = []
            commit = world.node.ledger.commit

            async def counting(*entries: Entry) -> None:
                commits.append(sum(isinstance(entry, ReceiptSettled) for entry in entries))
                await commit(*entries)

            world.node.ledger.commit = counting
            receipts = [seller.receipt(task, GOOD) for task in seller.tasks]
            results = [result_of(receipt, GOOD) for receipt in receipts]
            ask = partial(peer.hub.request, world.node.key.peer, "results")
            reply = await ask(ResultsRequest([*results, results[0]]), ResultsReply)
            answers = [
                open_record(Countersignature, each.countersignature).record.verdict
                for each in reply.answers
                if each.countersignature is not None
            ]
            assert answers == ["accepted"] * 3
            assert reply.answers[0] == reply.answers[2]
            assert 2 in commits
            assert (await end_of(world.node, job)).kind == "finished"
            again = await ask(ResultsRequest(results[::-1]), ResultsReply)
            assert again.answers == reply.answers[1::-1]


async def test_a_lie_among_results_costs_only_itself(tmp_path):
    """The bytes of the first output are not what its receipt names."""
    async with open_world(tmp_path, provide=False) as world:
        seller = Seller()
        async with raw_peer(world, seller.handlers(), seller.key) as peer:
            await until(lambda: world.node.book.current(now_us()))
            await submit(world.node, tasks=2)
            await until(lambda: len(seller.tasks) == 2)
            other = b"\x07" * len(GOOD)
            wrong, right = (
                seller.receipt(task, output) for task, output in zip(seller.tasks, (other, GOOD), strict=True)
            )
            lie = changed(result_of(wrong, other), inline=[InlineBlob(digest_of(other), GOOD)])
            reply = await peer.hub.request(
                world.node.key.peer, "results", ResultsRequest([lie, result_of(right, GOOD)]), ResultsReply
            )
            records = [
                open_record(Countersignature, each.countersignature).record
                for each in reply.answers
                if each.countersignature is not None
            ]
            assert [record.verdict for record in records] == ["disputed", "accepted"]
            assert records[1].accepted_cumulative == right.record.amount


async def test_results_that_come_ahead_of_their_lane_are_told_so_soon_and_taken_behind_it(tmp_path):
    """Once they held up their own lane for twenty seconds: what they wait for may be behind them in the line."""
    async with open_world(tmp_path, provide=False) as world:
        seller = Seller()
        async with raw_peer(world, seller.handlers(), seller.key) as peer:
            await until(lambda: world.node.book.current(now_us()))
            await submit(world.node, tasks=2, wall_limit_s=30.0, deadline_s=60.0)
            await until(lambda: len(seller.tasks) == 2)
            results = [result_of(seller.receipt(task, GOOD), GOOD) for task in seller.tasks]
            ask = partial(peer.hub.request, world.node.key.peer, "results", deadline_s=9.0)
            ahead = await ask(ResultsRequest(results[1:]), ResultsReply)
            assert [answer.code for answer in ahead.answers] == ["gap"]
            reply = await ask(ResultsRequest(results), ResultsReply)
            assert [answer.code for answer in reply.answers] == ["ok"] * 2


async def test_a_result_that_was_given_up_holds_up_none_behind_it(tmp_path):
    """A cancelled task's receipt comes first in its message: the others, behind it on the lane, wait for nothing."""
    async with open_world(tmp_path, provide=False) as world:
        seller = Seller()
        async with raw_peer(world, seller.handlers(), seller.key) as peer:
            await until(lambda: world.node.book.current(now_us()))
            await submit(world.node, tasks=2)
            await until(lambda: len(seller.tasks) == 2)
            (held,) = world.node.requester.leases.values()
            attempts = [held.outstanding[task.record.number] for task in seller.tasks]
            attempts[0].given_up = "superseded"
            commits: list[int] = []
            commit = world.node.ledger.commit

            async def counting(*entries: Entry) -> None:
                commits.append(sum(isinstance(entry, ReceiptSettled) for entry in entries))
                await commit(*entries)

            world.node.ledger.commit = counting
            results = [result_of(seller.receipt(task, GOOD), GOOD) for task in seller.tasks]
            ahead = result_of(seller.receipt(seller.tasks[0], GOOD), GOOD)
            ask = partial(peer.hub.request, world.node.key.peer, "results", deadline_s=9.0)
            reply = await ask(ResultsRequest(results), ResultsReply)
            records = [
                open_record(Countersignature, each.countersignature).record
                for each in reply.answers
                if each.countersignature is not None
            ]
            assert [(record.verdict, record.code) for record in records] == [
                ("disputed", "superseded"),
                ("accepted", "ok"),
            ]
            assert commits == [2]
            again = await ask(ResultsRequest([ahead]), ResultsReply)
            assert [answer.countersignature is not None for answer in again.answers] == [True]
