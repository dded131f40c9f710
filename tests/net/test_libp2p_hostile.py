"""What a hostile or broken peer can do to the port, the handshake and gossip: nothing that others notice."""

import gc
import os
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import trio
import trio.testing
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.pubsub.pb import rpc_pb2
from libp2p.security.noise.patterns import PatternXX

from coppermesh.p2p import libp2p_connections, libp2p_yamux_frames
from coppermesh.p2p.errors import RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import PeerId, format_peer, mesh_id
from coppermesh.p2p.libp2p_host import encode_varint
from coppermesh.p2p.libp2p_mends import MAX_RPC_BYTES, Pace
from coppermesh.p2p.libp2p_multistream import HEADER, encode_message
from coppermesh.p2p.libp2p_transport import open_libp2p_transport
from coppermesh.p2p.libp2p_upgrade import Identity, libp2p_id, upgrade
from coppermesh.p2p.libp2p_yamux_frames import DATA, SYN, WINDOW_UPDATE
from coppermesh.p2p.libp2p_yamux_frames import HEADER as FRAME
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import Gossip, PeerDown, PeerUp, Stream, Transport

pytestmark = pytest.mark.net

ECHO = "/coppermesh-test/echo/1"
TOPIC = "coppermesh-test/1"
GOSSIP = "/meshsub/1.2.0"


def ours(key: PeerKey | None = None, max_connections: int = 256):
    return open_libp2p_transport(key or PeerKey.generate(), mesh_id("test"), max_connections=max_connections)


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


@asynccontextmanager
async def server(max_connections: int = 256) -> AsyncIterator[Transport]:
    async with ours(max_connections=max_connections) as transport:
        transport.handle(ECHO, echo)
        yield transport


async def check_served(transport: Transport, *, client: Transport | None = None) -> None:
    """A peer that behaves can connect and is answered."""
    if client is None:
        async with ours() as fresh:
            await check_served(transport, client=fresh)
        return
    with trio.fail_after(10):
        peer = await client.dial(transport.addresses[0])
        stream = await client.open_stream(peer, ECHO)
        await stream.send_all(b"hello")
        buffer = bytearray(5)
        await stream.receive_into(memoryview(buffer))
        assert buffer == b"hello"
        await stream.aclose()


async def connect(transport: Transport) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", port_of(transport))


def port_of(transport: Transport) -> int:
    return int(transport.addresses[0].split("/")[4])


async def closed_by_peer(stream: trio.SocketStream) -> None:
    with trio.fail_after(10), suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass


NOISE_CHOSEN = encode_message(HEADER) + encode_message("/noise")
GARBAGE = {
    "http": b"GET / HTTP/1.0\r\n\r\n",
    "random": os.urandom(4000),
    "a long length": b"\xff" * 100_000,
    "a proposal of everything else": encode_message(HEADER) + encode_message("/tls/1.0.0") * 40,
    "plaintext": encode_message(HEADER) + encode_message("/plaintext/2.0.0") * 20,
    "an empty handshake message": NOISE_CHOSEN + b"\x00\x00",
    "a handshake of zeros": NOISE_CHOSEN + b"\x00\x20" + bytes(32),
    "a handshake of garbage": NOISE_CHOSEN + b"\x00\x20" + os.urandom(32) + b"\x00\xc8" + os.urandom(200),
    "nothing": b"",
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_on_the_port_is_closed(name, monkeypatch):
    monkeypatch.setattr(libp2p_connections, "DIAL_SECONDS", 0.5)
    async with server() as transport, await connect(transport) as stream:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(GARBAGE[name])
        await closed_by_peer(stream)
        assert transport.connected() == []
        monkeypatch.undo()
        await check_served(transport)


async def test_half_open_handshakes_lock_nobody_out():
    async with server() as transport, AsyncExitStack() as stack:
        silent = [
            await stack.enter_async_context(await connect(transport))
            for _ in range(libp2p_connections.MAX_HANDSHAKES + 20)
        ]
        await check_served(transport)
        # The oldest made room.
        await closed_by_peer(silent[0])


class Rounds(trio.abc.Instrument):
    """Counts the rounds of trio's loop."""

    count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def test_handshakes_that_arrive_together_are_worked_on_in_rounds_of_their_own(monkeypatch):
    rounds = Rounds()
    worked_on: list[int] = []
    usual = PatternXX.make_handshake_payload

    def noted(self):
        worked_on.append(rounds.count)
        return usual(self)

    monkeypatch.setattr(PatternXX, "make_handshake_payload", noted)
    begun = NOISE_CHOSEN + b"\x00\x20"
    async with server() as transport, AsyncExitStack() as stack:
        trio.lowlevel.add_instrument(rounds)
        held = [await stack.enter_async_context(await connect(transport)) for _ in range(30)]
        for stream in held:
            await stream.send_all(begun)
        await trio.testing.wait_all_tasks_blocked(0.05)
        for stream in held:
            # Not by trio: that would give the server a round after each.
            os.write(stream.socket.fileno(), os.urandom(32))
        with trio.fail_after(10):
            while len(worked_on) < len(held):
                await trio.testing.wait_all_tasks_blocked(0.01)
        trio.lowlevel.remove_instrument(rounds)
    assert len(set(worked_on)) == len(held)


async def test_idle_connections_are_few_and_cost_the_others_nothing(monkeypatch):
    async with server() as transport, ours() as client, AsyncExitStack() as stack:
        await check_served(transport, client=client)
        table = transport._connections
        crowd = 4 * libp2p_connections.MAX_HANDSHAKES
        idle = []
        for _ in range(crowd):
            idle.append(await stack.enter_async_context(await connect(transport)))
            assert len(table._handshakes) <= libp2p_connections.MAX_HANDSHAKES
        for oldest in idle[: crowd - libp2p_connections.MAX_HANDSHAKES - 1]:
            await closed_by_peer(oldest)
        await check_served(transport, client=client)
        assert transport.connected() == [client.peer]


async def test_a_peer_that_reads_a_byte_at_a_time_holds_up_nobody_and_is_given_up(monkeypatch):
    monkeypatch.setattr(libp2p_yamux_frames, "STALL_SECONDS", 1.0)
    async with server() as transport, ours() as client:

        async def pour(stream: Stream) -> None:
            while True:
                await stream.send_all(bytes(1 << 20))

        transport.handle("/coppermesh-test/pour/1", pour)
        await check_served(transport, client=client)
        async with await connect(transport) as tcp:
            secured = await upgrade(tcp, Identity.of(PeerKey.generate()), transport.peer)
            ask = encode_message(HEADER) + encode_message("/coppermesh-test/pour/1")
            frames = FRAME.pack(0, WINDOW_UPDATE, SYN, 1, 2**31) + FRAME.pack(0, DATA, 0, 1, len(ask)) + ask
            secured.writer.seal(memoryview(frames))
            await secured.writer.flush()
            for _ in range(20):
                await tcp.receive_some(1)
                await check_served(transport, client=client)
            with trio.fail_after(30):
                while len(transport.connected()) > 1:
                    await tcp.receive_some(1)
                    await trio.testing.wait_all_tasks_blocked(0.05)
        await check_served(transport, client=client)


async def test_a_slow_handshake_ends_in_time(monkeypatch):
    monkeypatch.setattr(libp2p_connections, "DIAL_SECONDS", 0.5)
    async with server() as transport, await connect(transport) as stream:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def drip() -> None:
                with suppress(trio.BrokenResourceError):
                    for byte in NOISE_CHOSEN * 50:
                        await stream.send_all(bytes([byte]))
                        await trio.sleep(0.05)

            await closed_by_peer(stream)
            nursery.cancel_scope.cancel()


async def test_a_listener_that_says_nothing_is_given_up_in_time(monkeypatch):
    monkeypatch.setattr(libp2p_connections, "DIAL_SECONDS", 0.3)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, ours() as mine:
        port = listener.socket.getsockname()[1]
        with trio.fail_after(5), pytest.raises(Unreachable, match="no answer"):
            await mine.dial(f"/ip4/127.0.0.1/tcp/{port}/p2p/{format_peer(PeerKey.generate().peer)}")
        assert mine.counts.dials_failed == 1


async def test_a_peer_with_our_own_key_is_refused():
    key = PeerKey.generate()
    async with ours(key) as one, ours(key) as two:
        address = two.addresses[0]
        with pytest.raises(Unreachable):
            await one.dial(address)
        assert one.connected() == two.connected() == []


async def test_too_many_peers_are_refused():
    async with server(max_connections=3) as transport, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(ours()) for _ in range(3)]
        for client in clients[:2]:
            await check_served(transport, client=client)
        await clients[2].dial(transport.addresses[0])
        assert isinstance(await clients[2].events().receive(), PeerUp)
        with trio.fail_after(10):
            assert isinstance(await clients[2].events().receive(), PeerDown)
        assert len(transport.connected()) == 2
        await check_served(transport, client=clients[0])


async def test_a_peer_that_connects_anew_replaces_its_old_connection():
    key = PeerKey.generate()
    async with server() as transport, ours(key) as before, ours(key) as after:
        await check_served(transport, client=before)
        await check_served(transport, client=after)
        kinds = [type(await transport.events().receive()) for _ in range(3)]
        assert kinds == [PeerUp, PeerDown, PeerUp]
        assert transport.connected() == [key.peer]
        with trio.fail_after(10):
            assert isinstance(await before.events().receive(), PeerUp)
            assert isinstance(await before.events().receive(), PeerDown)


# Gossip


def message(author, text: bytes, number: int, *, topic: str = TOPIC) -> rpc_pb2.Message:
    """A gossip message as `author` (a libp2p key pair and peer id) signs it."""
    keys, peer = author
    made = rpc_pb2.Message(
        data=text, topicIDs=[topic], from_id=libp2p_id(peer).to_bytes(), seqno=number.to_bytes(8, "big")
    )
    made.signature = keys.private_key.sign(b"libp2p-pubsub:" + made.SerializeToString())
    made.key = keys.public_key.serialize()
    return made


def new_author():
    keys = create_new_key_pair()
    return keys, PeerId(keys.public_key.to_bytes())


def rpc(*messages: rpc_pb2.Message) -> bytes:
    body = rpc_pb2.RPC(publish=messages).SerializeToString()
    return encode_varint(len(body)) + body


@asynccontextmanager
async def listening(attacker: Transport, transport: Transport):
    """The attacker's own gossip stream to a subscribed transport, and what that one hears."""
    async with transport.subscribe(TOPIC, lambda source, data: True) as heard:
        peer = await attacker.dial(transport.addresses[0])
        yield await attacker.open_stream(peer, GOSSIP), heard


async def test_only_signed_and_well_formed_gossip_is_delivered():
    author, victim = new_author(), new_author()
    forged = message(author, b"forged", 1)
    forged.from_id = libp2p_id(victim[1]).to_bytes()
    altered = message(author, b"before", 2)
    altered.data = b"altered"
    unsigned = message(author, b"unsigned", 3)
    unsigned.ClearField("signature")
    short_number = message(author, b"number", 4)
    short_number.seqno = b"\x04"
    large = message(author, bytes(16 * 1024 + 1), 5)
    elsewhere = message(author, b"elsewhere", 6, topic="other")
    nobody = message(author, b"nobody", 7)
    nobody.from_id = b""
    other_text = message(author, b"another text under a number that is taken", 8)
    async with server() as transport, ours() as attacker:
        async with listening(attacker, transport) as (stream, heard):
            await stream.send_all(rpc(forged, altered, unsigned, short_number, large, elsewhere, nobody))
            await stream.send_all(rpc(message(author, b"true", 8), other_text, message(author, b"last", 9)))
            with trio.fail_after(10):
                assert await heard.receive() == Gossip(TOPIC, author[1], attacker.peer, b"true")
                assert (await heard.receive()).data == b"last"


@pytest.mark.parametrize(
    "garbage",
    [
        encode_varint(2 * 1024 * 1024) + bytes(1024),
        encode_varint(MAX_RPC_BYTES + 1),
        b"\xff" * 12,
        encode_varint(100) + os.urandom(100),
        encode_varint(2) + b"\xff\xff",
    ],
)
async def test_gossip_that_breaks_the_rules_ends_its_stream_and_nothing_else(garbage):
    author = new_author()
    async with server() as transport, ours() as attacker:
        async with listening(attacker, transport) as (stream, heard):
            with suppress(Unreachable):
                await stream.send_all(garbage)
                await stream.send_all(bytes(2 * 1024 * 1024))
            with trio.fail_after(10), pytest.raises(Unreachable):
                await stream.receive_some()
            again = await attacker.open_stream(transport.peer, GOSSIP)
            await again.send_all(rpc(message(author, b"after", 1)))
            with trio.fail_after(10):
                assert (await heard.receive()).data == b"after"
            assert transport.connected() == [attacker.peer]
            await check_served(transport)


async def test_a_flood_of_gossip_is_slowed_and_does_not_starve_others():
    author = new_author()
    async with server() as transport, ours() as attacker:
        async with listening(attacker, transport) as (stream, _):
            flood = b"".join(rpc(message(author, b"x", number)) for number in range(3000))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, flood)
                await check_served(transport)
                await check_served(transport, client=attacker)
                nursery.cancel_scope.cancel()


async def test_the_pace_of_one_peers_gossip_is_bounded(autojump_clock):
    began = trio.current_time()
    pace = Pace(per_second=200, burst=400)
    for _ in range(400):
        await pace.spend(1)
    assert trio.current_time() == began
    for _ in range(1000):
        await pace.spend(1)
    assert trio.current_time() - began == pytest.approx(5)
    await trio.sleep(3600)
    began = trio.current_time()
    await pace.spend(600)
    assert trio.current_time() - began == pytest.approx(1)


async def test_control_messages_in_bulk_end_the_stream():
    async with server() as transport, ours() as attacker:
        async with listening(attacker, transport) as (stream, _):
            packet = rpc_pb2.RPC()
            for number in range(1000):
                packet.control.graft.add(topicID=f"topic {number}")
            body = packet.SerializeToString()
            await stream.send_all(encode_varint(len(body)) + body)
            with trio.fail_after(10), pytest.raises(Unreachable):
                await stream.receive_some()
            await check_served(transport)


# Leaks


async def test_nothing_is_left_behind():
    async def cycle() -> None:
        async with server() as transport, ours() as client:
            await check_served(transport, client=client)
            with pytest.raises(RemoteProtocolError):
                await client.dial(
                    transport.addresses[0].rpartition("/")[0] + "/" + format_peer(PeerKey.generate().peer)
                )
            stream = await client.open_stream(transport.peer, ECHO)
            await stream.send_all(b"unanswered")

    await cycle()
    gc.collect()
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    tasks = trio.lowlevel.current_statistics().tasks_living
    for _ in range(10):
        await cycle()
    gc.collect()
    await trio.testing.wait_all_tasks_blocked()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    # An idle worker thread of an earlier test may have ended meanwhile.
    assert threading.active_count() <= threads
    assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_closing_does_not_wait_for_a_peer_that_does_not_read():
    async with ours() as client:
        async with server() as transport:

            async def ignore(stream: Stream) -> None:
                await trio.sleep_forever()

            client.handle("/coppermesh-test/ignore/1", ignore)
            await client.dial(transport.addresses[0])
            with trio.fail_after(10):
                assert isinstance(await transport.events().receive(), PeerUp)
            stream = await transport.open_stream(client.peer, "/coppermesh-test/ignore/1")
            with trio.move_on_after(0.05):
                await stream.send_all(bytes(1 << 20))
            began = trio.current_time()
        assert trio.current_time() - began < 2
