"""Relayed connections over real sockets: our client, our relay, and stock messages between them."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import cast

import pytest
import trio
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, StopMessage
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch

from coppermesh.p2p.blob_store import open_blob_store
from coppermesh.p2p.blobs import LEAF_BYTES, digest_of, leaf_digests
from coppermesh.p2p.dial_plan import DialPlan
from coppermesh.p2p.discovery import run_discovery
from coppermesh.p2p.errors import MeshError, Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import PeerId, format_peer, mesh_id
from coppermesh.p2p.libp2p_circuit import (
    HOP,
    STOP,
    address_bytes,
    as_status,
    id_bytes,
    read_message,
    write_message,
)
from coppermesh.p2p.libp2p_punch import DCUTR
from coppermesh.p2p.libp2p_relay import RelayServer, through
from coppermesh.p2p.libp2p_transport import Libp2pTransport, open_libp2p_transport
from coppermesh.p2p.reachability import Probe
from coppermesh.p2p.relay_book import RelayLimits
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transfer import BlobService, fetch_blob, send_blob
from coppermesh.p2p.transport import PeerUp, Stream

pytestmark = pytest.mark.net
MESH = mesh_id("relay test")
ECHO = "/coppermesh-test/echo/1"


@asynccontextmanager
async def agent() -> AsyncIterator[Libp2pTransport]:
    async with open_libp2p_transport(PeerKey.generate(), MESH) as transport:
        transport.handle(ECHO, echo)
        yield cast("Libp2pTransport", transport)


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


class Trio:
    """A relay and two agents connected to it, of which `called` has a reservation."""

    def __init__(self, relay: Libp2pTransport, called: Libp2pTransport, caller: Libp2pTransport) -> None:
        self.relay, self.called, self.caller = relay, called, caller
        self.address = through(relay.addresses[0], called.peer)
        self.server: RelayServer

    async def set_up(self, limits: RelayLimits) -> None:
        self.server = RelayServer(
            self.relay, limits, admits=lambda peer: True, addresses=lambda: self.relay.addresses
        )
        for one in (self.called, self.caller):
            await one.dial(self.relay.addresses[0])
        self.reservation = await self.reserve()

    async def reserve(self):
        return await self.called.reach.reserve_at(self.relay.peer)


@asynccontextmanager
async def three(limits: RelayLimits | None = None) -> AsyncIterator[Trio]:
    async with agent() as relay, agent() as called, agent() as caller:
        made = Trio(relay, called, caller)
        await made.set_up(limits or RelayLimits())
        yield made


async def say(transport: Libp2pTransport, peer: PeerId, data: bytes) -> bytes:
    stream = await transport.open_stream(peer, ECHO)
    heard = bytearray(len(data))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        await stream.receive_into(memoryview(heard))
    await stream.aclose()
    return bytes(heard)


async def nothing_is_carried(server: RelayServer) -> None:
    while server.book.circuits:  # noqa: ASYNC110 - the books tell nobody
        await trio.sleep(0.01)


async def last_words(stream: Stream) -> int | None:
    """The status a relay ended with; None where it broke the stream off without one."""
    try:
        return (await read_message(stream, HopMessage)).status
    except MeshError:
        return None


async def event_of(transport: Libp2pTransport, peer: PeerId) -> PeerUp:
    while True:
        event = await transport.events().receive()
        if isinstance(event, PeerUp) and event.peer == peer:
            return event


async def test_a_blob_travels_through_a_relay_where_there_is_no_direct_path(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(3 * LEAF_BYTES + 11)
    root = digest_of(data)
    async with (
        three() as it,
        open_blob_store(tmp_path / "called", quota_bytes=64 << 20) as store,
        open_blob_store(tmp_path / "caller", quota_bytes=64 << 20) as own,
    ):
        BlobService(it.called, MESH, store)
        await it.caller.dial(it.address)
        path = it.caller.path_to(it.called.peer)
        assert path is not None
        assert path.relay == it.relay.peer
        await send_blob(it.caller, MESH, it.called.peer, root, leaf_digests(data), data)
        scope = (MESH, it.caller.peer)
        assert await store.read(scope, root) == data
        await fetch_blob(it.caller, MESH, it.called.peer, root, len(data), own, scope)
        assert await own.read(scope, root) == data


@asynccontextmanager
async def weak_line(to: str, peer: PeerId, carries: int) -> AsyncIterator[str]:
    """An address of `peer` that leads to the one at `to` until `carries` bytes went there: then it is cut, for good."""
    port = int(to.split("/")[4])
    left = [carries]

    async def pump(source: trio.SocketStream, sink: trio.SocketStream, counted: bool) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                left[0] -= len(data) if counted else 0
                if left[0] < 0:
                    scope.cancel()
                await sink.send_all(data)

    async def carry(near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream("127.0.0.1", port)
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(pump, near, far, True)
            await pump(far, near, False)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

        @nursery.start_soon
        async def serve() -> None:
            with scope:
                await trio.serve_listeners(carry, listeners)

        yield f"/ip4/127.0.0.1/tcp/{listeners[0].socket.getsockname()[1]}/p2p/{format_peer(peer)}"
        nursery.cancel_scope.cancel()


async def test_a_transfer_whose_direct_line_is_cut_goes_on_through_the_relay(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(8 * LEAF_BYTES + 11)
    root = digest_of(data)
    async with (
        three() as it,
        open_blob_store(tmp_path / "called", quota_bytes=64 << 20) as store,
        weak_line(it.called.addresses[0], it.called.peer, 4 * LEAF_BYTES) as direct,
        trio.open_nursery() as nursery,
    ):
        service = BlobService(it.called, MESH, store)
        await it.caller.dial(direct)
        before = it.caller.path_to(it.called.peer)

        @nursery.start_soon
        async def keep_connected() -> None:
            # Once what arrived is set aside, so that the transfer goes on with it on any machine.
            while not store._partials._kept:  # noqa: ASYNC110 - it tells nobody
                await trio.sleep(0.01)
            plan = DialPlan(it.caller.peer, random.Random(1))
            await run_discovery(it.caller, plan, bootstrap=[direct, it.address])

        await send_blob(it.caller, MESH, it.called.peer, root, leaf_digests(data), data, patience_s=60)
        after = it.caller.path_to(it.called.peer)
        assert before is not None
        assert after is not None
        assert (before.relay, after.relay) == (None, it.relay.peer)
        assert await store.read((MESH, it.caller.peer), root) == data
        assert (service.counts.put, service.counts.resumed) == (1, 1)
        nursery.cancel_scope.cancel()


async def test_a_transfer_goes_on_where_a_direct_connection_replaces_the_relayed_one(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(8 * LEAF_BYTES + 11)
    root = digest_of(data)
    async with (
        three() as it,
        open_blob_store(tmp_path / "called", quota_bytes=64 << 20) as store,
        trio.open_nursery() as nursery,
    ):
        service = BlobService(it.called, MESH, store)
        await it.caller.dial(it.address)

        @nursery.start_soon
        async def reach_directly() -> None:
            while not store.statistics().reserved_bytes:
                await trio.lowlevel.checkpoint()
            await it.caller.dial(it.called.addresses[0])

        await send_blob(it.caller, MESH, it.called.peer, root, leaf_digests(data), data, patience_s=60)
        after = it.caller.path_to(it.called.peer)
        assert after is not None
        assert after.relay is None
        assert await store.read((MESH, it.caller.peer), root) == data
        assert service.counts.put == 1


async def test_a_peer_is_reached_through_a_relay_and_proves_its_key_end_to_end() -> None:
    async with three() as it:
        assert it.reservation.relay == it.relay.peer
        assert list(it.reservation.addresses) == it.relay.addresses
        assert await it.caller.dial(it.address) == it.called.peer
        path = it.caller.path_to(it.called.peer)
        assert path is not None
        assert (path.relay, path.outbound, path.address) == (it.relay.peer, True, it.address)
        assert not (await event_of(it.called, it.caller.peer)).outbound
        back = it.called.path_to(it.caller.peer)
        assert back is not None
        assert back.relay == it.relay.peer
        data = bytes(range(256)) * 8192
        assert await say(it.caller, it.called.peer, data) == data
        assert await say(it.called, it.caller.peer, data) == data
        assert it.server.book.circuits == 1
        assert it.server.bytes_carried > 2 * len(data)


async def test_another_key_than_the_one_called_is_refused() -> None:
    async with three() as it:
        # The relay lies: it connects the caller with a peer that it did not ask for.
        async def lie(stream: Stream) -> None:
            await read_message(stream, HopMessage)
            await write_message(stream, HopMessage(type=HopMessage.STATUS, status=as_status(100)))
            onward = await it.relay.open_stream(it.called.peer, STOP)
            request = StopMessage(type=StopMessage.CONNECT)
            request.peer.id = id_bytes(it.caller.peer)
            await write_message(onward, request)
            await read_message(onward, StopMessage)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(it.server._copy, stream, onward, nursery.cancel_scope)
                nursery.start_soon(it.server._copy, onward, stream, nursery.cancel_scope)

        it.relay._handlers[HOP] = lie
        victim = PeerKey.generate().peer
        with pytest.raises(RemoteProtocolError):
            await it.caller.dial(through(it.relay.addresses[0], victim))
        assert it.called.peer not in it.caller.connected()


async def test_without_a_reservation_nobody_is_called() -> None:
    async with three() as it:
        stranger = PeerKey.generate().peer
        with pytest.raises(Unreachable, match="no reservation"):
            await it.caller.dial(through(it.relay.addresses[0], stranger))


async def test_a_reservation_ends_with_its_owner() -> None:
    async with three() as it:
        it.server.peer_left(it.called.peer)
        with pytest.raises(Unreachable, match="no reservation"):
            await it.caller.dial(it.address)


async def test_a_relay_that_was_not_asked_brings_no_caller() -> None:
    async with three() as it:
        it.called.reach.leave(it.relay.peer)
        with pytest.raises(Unreachable, match="could not reach"):
            await it.caller.dial(it.address)
        assert it.caller.peer not in it.called.connected()


async def test_a_relay_carries_for_those_it_admits_only() -> None:
    async with three() as it:
        it.server._admits = lambda peer: peer == it.called.peer
        with pytest.raises(Unreachable, match="does not let us"):
            await it.caller.dial(it.address)
        it.server._admits = lambda peer: False
        with pytest.raises(Refused, match="does not let us"):
            await it.reserve()


async def test_a_circuit_ends_when_its_bytes_are_used_up() -> None:
    async with three(RelayLimits(circuit_bytes=256 * 1024)) as it:
        assert it.reservation.circuit_bytes == 256 * 1024
        await it.caller.dial(it.address)
        with pytest.raises((Unreachable, ExceptionGroup)):
            await say(it.caller, it.called.peer, bytes(1 << 20))
        assert it.server.bytes_carried <= 2 * 256 * 1024 + 1


async def test_a_circuit_ends_when_its_time_is_over() -> None:
    async with three(RelayLimits(circuit_seconds=1)) as it:
        await it.caller.dial(it.address)
        stream = await it.caller.open_stream(it.called.peer, ECHO)
        with pytest.raises(Unreachable):
            await stream.receive_some()
        await nothing_is_carried(it.server)


async def test_a_direct_connection_replaces_a_relayed_one_and_not_the_other_way() -> None:
    async with three() as it:
        await it.caller.dial(it.address)
        await event_of(it.called, it.caller.peer)
        # The called one calls back directly.
        await it.called._connections._connect(parse(it.caller.addresses[0]))
        await event_of(it.called, it.caller.peer)
        path = it.called.path_to(it.caller.peer)
        assert path is not None
        assert path.relay is None
        assert await say(it.called, it.caller.peer, b"direct") == b"direct"
        await nothing_is_carried(it.server)


def parse(text: str):
    from coppermesh.p2p.addresses import parse_address

    return parse_address(text)


async def begin_punch(transport: Libp2pTransport, peer: PeerId) -> None:
    stream = await transport.open_stream(peer, DCUTR)
    await write_message(stream, HolePunch(type=HolePunch.CONNECT))
    await read_message(stream, HolePunch)


async def test_a_hole_punch_on_a_direct_connection_is_refused() -> None:
    async with agent() as one, agent() as other:
        other.reach.punches_holes = True
        await one.dial(other.addresses[0])
        with pytest.raises(Unreachable):
            await begin_punch(one, other.peer)
        assert other.reach.puncher.tried == 0


async def test_a_hole_punch_dials_nothing_that_an_announcement_could_not_name() -> None:
    async with three() as it:
        puncher = it.called.reach.puncher
        offer = HolePunch(type=HolePunch.CONNECT)
        # The called one listens on loopback, so that loopback is its network; the router's and the cloud's are not.
        offer.ObsAddrs.append(b"\xff\xff")
        for text in ("/ip4/169.254.169.254/tcp/80", "/dns4/localhost/tcp/1", "/ip4/127.0.0.1/tcp/9"):
            offer.ObsAddrs.append(address_bytes(text))
        found = puncher._addresses_in(offer, it.caller.peer)
        assert [(address.host, address.port) for address in found] == [("127.0.0.1", 9)]
        with pytest.raises(RemoteProtocolError):
            puncher._addresses_in(HolePunch(type=HolePunch.SYNC), it.caller.peer)


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff\xff\xff", b"\x80\x80\x02", b"\x03abc", b"\x02\x08\x09", b"\x02\x08\x01"],
    ids=["endless length", "too long", "no message", "unknown type", "nobody named"],
)
async def test_nonsense_costs_a_relay_one_stream(data: bytes) -> None:
    async with three() as it:
        stream = await it.caller.open_stream(it.relay.peer, HOP)
        await stream.send_all(data)
        assert await last_words(stream) in (None, 400, 401)
        await it.caller.dial(it.address)
        assert await say(it.caller, it.called.peer, b"still there") == b"still there"


async def test_a_probe_proves_a_peer_and_leaves_no_connection() -> None:
    async with agent() as one:
        async with agent() as other:
            there = other.addresses[0]
            assert await one.probe(there) is Probe.REACHED
            assert one.connected() == other.connected() == []
            assert await one.probe(f"{there.rpartition('/')[0]}/{parse_peer_text()}") is Probe.OTHER
            with pytest.raises(Unreachable, match="relay"):
                await one.probe(through(there, PeerKey.generate().peer))
        assert await one.probe(there) is Probe.CLOSED


def parse_peer_text() -> str:
    from coppermesh.p2p.ids import format_peer

    return format_peer(PeerKey.generate().peer)
