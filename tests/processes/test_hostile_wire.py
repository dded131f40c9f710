"""Bad input over the wire against live agents: refused or dropped at the right place, and the agent works on."""

import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

import numpy as np
import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V12
from libp2p.pubsub.pb import rpc_pb2
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from multiaddr import Multiaddr

import coppermesh as cm
from coppermesh.agent.clock import now_us
from coppermesh.agent.leases import build_lease
from coppermesh.agent.local_agents import LocalAgent, local_mesh
from coppermesh.agent.receipts import LaneHead, build_countersignature
from coppermesh.exec.recorder import trace
from coppermesh.p2p.blobs import digest_of
from coppermesh.p2p.channel import REQUEST, Frame, frame_bytes
from coppermesh.p2p.control import ControlHub, control_protocol, open_control_hub
from coppermesh.p2p.encoding import encode
from coppermesh.p2p.envelope import Opened, open_record, sign_record
from coppermesh.p2p.errors import MeshError, Refused, Unreachable
from coppermesh.p2p.ids import MeshId, PeerId, mesh_id, parse_peer
from coppermesh.p2p.libp2p_host import encode_varint
from coppermesh.p2p.libp2p_transport import open_libp2p_transport
from coppermesh.p2p.messages import (
    MAX_FRAME_BYTES,
    BlobInfo,
    Hello,
    InlineBlob,
    LeaseReply,
    LeaseRequest,
    OrderReply,
    OrderRequest,
    ResultReply,
    ResultRequest,
    TaskReply,
    TaskRequest,
)
from coppermesh.p2p.records import Bid, Decline, Lease, Order, Receipt, Task
from coppermesh.p2p.shards import topic_of
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import Transport

xp = cm.xp

pytestmark = pytest.mark.processes

SECONDS = 60.0
"""Most that one conversation may take."""
HALF_OPEN = 100
"""More than an agent takes at once."""


@pytest.fixture(scope="module")
def running(lab_on: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A provider and a requester that all tests here share: what one does to them must not show in the next."""
    with local_mesh(tmp_path_factory.mktemp("hostile")) as mesh:
        lab = lab_on(mesh)
        # Strangers need a slot beside the requester's warm lease.
        lab.start(1, "--slots", "8")
        yield lab
        lab.stop()


@pytest.fixture
def provider(running: Any) -> Iterator[LocalAgent]:
    """The provider; it must do an honest job after whatever a test did to it."""
    agent: LocalAgent = running.mesh.agents[0]
    yield agent
    assert agent.process.poll() is None
    check_honest_job(running)


def check_honest_job(lab: Any) -> None:
    value = np.frombuffer(os.urandom(4), np.uint16).astype(np.float32)
    np.testing.assert_array_equal(lab.client().compute(xp.asarray(value) + 1), value + 1)


def port_of(agent: LocalAgent) -> int:
    return int(agent.ready["addresses"][0].split("/")[4])


# On the port


def test_garbage_on_the_port_is_dropped(provider):
    for garbage in (os.urandom(100_000), b"GET / HTTP/1.1\r\n\r\n", b"\x13/multistream/1.0.0\n\x08garbage\n"):
        with socket.create_connection(("127.0.0.1", port_of(provider)), SECONDS) as connection:
            connection.settimeout(SECONDS)
            with suppress(ConnectionError):  # it may hang up while we are talking
                connection.sendall(garbage)
                with suppress(OSError):  # ... or have done so before we do
                    connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass


def test_half_open_handshakes_keep_nobody_out(running, provider):
    with ExitStack() as stack:
        for number in range(HALF_OPEN):
            connection = socket.create_connection(("127.0.0.1", port_of(provider)), SECONDS)
            stack.enter_context(connection)
            if number % 2:
                connection.sendall(b"\x13/multistream/1.0.0\n")

        async def dial() -> None:
            async with stranger(running) as peer:
                assert await peer.transport.dial(provider.ready["addresses"][0])

        run(dial)
        check_honest_job(running)


def test_gossip_of_two_mebibytes_ends_its_stream(running, provider):
    """From a stock libp2p host, over its own gossip stream."""
    packet = rpc_pb2.RPC()
    packet.publish.append(
        rpc_pb2.Message(data=os.urandom(2 << 20), topicIDs=[topic_of(mesh_id(running.mesh.name), "")])
    )
    message = packet.SerializeToString()

    async def flood() -> None:
        async with stock_host() as host:
            target = info_from_p2p_addr(Multiaddr(provider.ready["addresses"][0]))
            await host.connect(target)
            stream = await host.new_stream(target.peer_id, [PROTOCOL_ID_V12])
            with suppress(StreamError):
                await stream.write(encode_varint(len(message)) + message)
                await stream.read(1)

    run(flood)
    refused = f"a message of {len(message)} bytes"
    running.wait_until(lambda: refused in provider.log_path.read_text(), "the message was refused")


@asynccontextmanager
async def stock_host() -> AsyncIterator[Any]:
    keys = create_new_key_pair()
    noise = NoiseTransport(keys, noise_privkey=create_noise_key_pair().private_key)
    listen = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
    host = new_host(key_pair=keys, sec_opt={NOISE_PROTOCOL_ID: noise}, listen_addrs=listen)
    async with host.run(listen_addrs=listen):
        yield host
        await host.close()


# On the control channel


class Stranger:
    """A peer of the test's own, speaking the real protocol with whatever it likes in it."""

    def __init__(self, key: PeerKey, mesh: MeshId, transport: Transport, hub: ControlHub) -> None:
        self.key = key
        self.mesh = mesh
        self.transport = transport
        self.hub = hub

    async def order(self, provider: PeerId) -> tuple[Opened[Order], Opened[Bid]]:
        now = now_us()
        order = Order(
            version=1,
            mesh=self.mesh,
            requester=self.key.peer,
            nonce=os.urandom(16),
            job=os.urandom(16),
            issued_us=now,
            expires_us=now + 30_000_000,
            device_kind="any",
            model="",
            features=["array-programs"],
            isolation=[],
            memory_bytes=1 << 20,
            min_speed=0,
            tasks=1,
            copies=1,
            wall_limit_us=5_000_000,
            max_rate=10_000_000,
            unit="usd",
            budget=1_000_000,
            lease_us=60_000_000,
            deadline_us=now + 60_000_000,
        )
        opened = open_record(Order, sign_record(self.key, order))
        reply = await self.hub.request(provider, "order", OrderRequest(opened.signed), OrderReply)
        if reply.decline is not None:
            pytest.fail(open_record(Decline, reply.decline).record.sentence)
        assert reply.bid is not None
        return opened, open_record(Bid, reply.bid, signer=provider)

    async def lease(self, provider: PeerId) -> Opened[Lease]:
        order, bid = await self.order(provider)
        lease = build_lease(order, bid, os.urandom(16), os.urandom(16), now_us())
        opened = open_record(Lease, sign_record(self.key, lease))
        reply = await self.hub.request(provider, "lease", LeaseRequest(opened.signed), LeaseReply)
        assert reply.lease is not None
        return opened

    def task(self, lease: Opened[Lease], number: int, program: bytes, job: bytes = bytes(16)) -> TaskRequest:
        now = now_us()
        root = digest_of(program)
        task = Task(
            version=1,
            mesh=self.mesh,
            lease=lease.id,
            number=number,
            requester=self.key.peer,
            job=job,
            index=0,
            program=root,
            inputs=[],
            max_amount=lease.record.budget,
            issued_us=now,
            expires_us=now + 60_000_000,
        )
        blobs = [BlobInfo(root, len(program))]
        return TaskRequest(sign_record(self.key, task), blobs, [InlineBlob(root, program)])

    async def ask_task(self, provider: PeerId, request: TaskRequest) -> TaskReply:
        return await self.hub.request(provider, "task", request, TaskReply)


class Results:
    """Countersigns what comes, in order."""

    def __init__(self, key: PeerKey) -> None:
        self._key = key
        self._head = LaneHead()
        self._in, self.arrived = trio.open_memory_channel[ResultRequest](100)

    async def handle(self, peer: PeerId, request: ResultRequest) -> ResultReply:
        receipt = open_record(Receipt, request.receipt, signer=peer)
        answer = build_countersignature(receipt, "ok", self._head, now_us())
        self._head = self._head.after(receipt, answer.accepted_cumulative)
        self._in.send_nowait(request)
        return ResultReply(sign_record(self._key, answer))


@asynccontextmanager
async def stranger(
    lab: Any, key: PeerKey | None = None, handlers: dict[str, Any] | None = None
) -> AsyncIterator[Stranger]:
    key, mesh = key or PeerKey.generate(), mesh_id(lab.mesh.name)
    async with (
        open_libp2p_transport(key, mesh) as transport,
        open_control_hub(transport, mesh, key.peer, handlers=handlers or {}, clock=now_us) as hub,
    ):
        yield Stranger(key, mesh, transport, hub)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(SECONDS):
            await main()

    trio.run(bounded)


def valid_program() -> bytes:
    program: bytes = trace(xp.zeros(3, dtype=xp.float32) + 1).program
    return program


def with_unknown_operation(program: bytes) -> bytes:
    assert program.count(b"\xa3add") == 1
    return program.replace(b"\xa3add", b"\xa3xyz")


def test_programs_made_by_hand_get_a_receipt_that_says_what_is_wrong(running, provider):
    """Signed tasks over a real lease: an unknown operation, bytes that are no program, and a good one after them."""

    async def talk() -> None:
        key = PeerKey.generate()
        results = Results(key)
        async with stranger(running, key, {"result": (ResultRequest, results.handle)}) as peer:
            to = await peer.transport.dial(provider.ready["addresses"][0])
            lease = await peer.lease(to)
            programs = [with_unknown_operation(valid_program()), os.urandom(1000), b"", valid_program()]
            told = []
            for number, program in enumerate(programs):
                reply = await peer.ask_task(to, peer.task(lease, number, program))
                assert reply.state == "accepted"
                result = await results.arrived.receive()
                record = open_record(Receipt, result.receipt).record
                told.append((record.status, result.sentence))
            assert [status for status, _ in told] == ["job-failed"] * 3 + ["ok"]
            assert "xyz" in told[0][1]
            assert all(sentence for _, sentence in told[:3])

    run(talk)


async def first_refusal(peer: Stranger, to: PeerId, request: TaskRequest) -> str:
    """A task is forgotten a moment after its result; until then the same offer is `accepted` once more."""
    while True:
        try:
            reply = await peer.ask_task(to, request)
        except Refused as refused:
            return refused.code
        assert reply.state == "accepted"


def test_replayed_leases_and_tasks_do_nothing_twice(running, provider):
    def status() -> dict[str, Any]:
        found: dict[str, Any] = running.ask(running.client("provider-1"), "status")
        return found

    running.wait_until(lambda: status()["leases_serving"] <= 1, "leases of earlier tests are over")
    before = status()["leases_serving"]

    async def talk() -> None:
        key = PeerKey.generate()
        results = Results(key)
        async with stranger(running, key, {"result": (ResultRequest, results.handle)}) as peer:
            to = await peer.transport.dial(provider.ready["addresses"][0])
            lease = await peer.lease(to)
            again = await peer.hub.request(to, "lease", LeaseRequest(lease.signed), LeaseReply)
            assert again.lease is not None
            assert open_record(Lease, again.lease, signer=to).id == lease.id
            assert status()["leases_serving"] == before + 1
            request = peer.task(lease, 0, valid_program())
            await peer.ask_task(to, request)
            await results.arrived.receive()
            assert await first_refusal(peer, to, request) == "spent"
            with pytest.raises(Refused) as reused:
                await peer.ask_task(to, peer.task(lease, 0, valid_program(), job=os.urandom(16)))
            assert reused.value.code == "spent"
            with pytest.raises(trio.WouldBlock):
                results.arrived.receive_nowait()
        async with stranger(running) as thief:
            await thief.transport.dial(provider.ready["addresses"][0])
            with pytest.raises((Refused, Unreachable)) as refused:
                await thief.hub.request(to, "lease", LeaseRequest(lease.signed), LeaseReply)
            assert "sign" in str(refused.value) or "protocol" in str(refused.value)

    run(talk)


def test_an_oversized_control_frame_ends_the_channel(running, provider):
    to = parse_peer(provider.ready["peer"])

    def key_that_opens() -> PeerKey:
        while (key := PeerKey.generate()).peer > to:
            pass
        return key

    async def talk() -> None:
        key, mesh = key_that_opens(), mesh_id(running.mesh.name)
        async with open_libp2p_transport(key, mesh) as transport:
            await transport.dial(provider.ready["addresses"][0])
            stream = await transport.open_stream(to, control_protocol(mesh))
            hello = encode(Hello(mesh, key.peer, "hostile", now_us()))
            await stream.send_all(frame_bytes(Frame(REQUEST, 0, "hello", hello)))
            assert await stream.receive_some()
            with suppress(Unreachable):
                # The length alone condemns it; more than a window of payload would wait for one that never comes.
                await stream.send_all(struct.pack(">I", MAX_FRAME_BYTES + 1) + bytes(1 << 16))
                while await stream.receive_some():
                    pass

    run(talk)
    assert f"frame of {MAX_FRAME_BYTES + 1} bytes" in provider.log_path.read_text()


def test_a_replayed_receipt_gets_the_same_answer_and_a_second_one_is_evidence(lab):
    """The provider's own key, in hands that lie."""
    lab.mesh.start(["seed"], "--requester-only")  # through which the second provider finds the others
    client = lab.start(1)
    job = client.submit(xp.asarray([1.0]) + 1)
    assert job.result() == 2.0
    lab.await_settled("provider-1")
    (_, provider, requester) = lab.mesh.agents
    key = PeerKey.load(lab.mesh.home("provider-1").key_path(mesh_id(lab.mesh.name)))
    provider.process.stdin.close()
    provider.process.wait(SECONDS)
    with lab.ledger("provider-1") as reader:
        row = reader.find_receipt(job.receipt["id"])
        stored, answer = reader.receipt(row.id), reader.countersignature_of(row.id)
    forged = sign_record(key, changed(row.receipt, billed_us=row.receipt.billed_us + 1))
    me = parse_peer(requester.ready["peer"])

    async def lie() -> None:
        async with stranger(lab, key) as peer:
            await peer.transport.dial(requester.ready["addresses"][0])

            async def send(signed: Any) -> ResultReply:
                request = ResultRequest(signed, [], [], "", "")
                return await peer.hub.request(me, "result", request, ResultReply, deadline_s=30.0)

            for _ in range(2):
                assert (await send(stored.opened.signed)).countersignature == answer
            with pytest.raises(MeshError):
                await send(forged)
        async with stranger(lab) as thief:
            await thief.transport.dial(requester.ready["addresses"][0])
            with pytest.raises(MeshError):
                await thief.hub.request(
                    me, "result", ResultRequest(stored.opened.signed, [], [], "", ""), ResultReply
                )

    run(lie)
    assert requester.process.poll() is None
    lab.start_provider("provider-2")
    lab.await_providers(client, 1)
    assert client.compute(xp.asarray([2.0]) + 1) == 3.0
    lab.stop()
    with lab.ledger("requester") as reader:
        (proof,) = reader.evidence()
        assert (proof.kind, proof.peer) == ("equivocation", key.peer)
        assert len(reader.receipts(limit=10)) == 2
        assert sum(balance.owed_by_me for balance in reader.balances()) == sum(
            found.receipt.amount for found in reader.receipts(limit=10)
        )


def changed(record: Receipt, **changes: Any) -> Receipt:
    fields = {name: getattr(record, name) for name in Receipt.__struct_fields__}
    return Receipt(**{**fields, **changes})
