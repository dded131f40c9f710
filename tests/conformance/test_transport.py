"""The guarantees of p2p/transport.py, checked by the same tests on every implementation."""

import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import pytest
import trio
import trio.testing

from coppermesh.p2p.errors import LocalProtocolError, Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import PeerId, format_peer, mesh_id
from coppermesh.p2p.memory_transport import MemoryNetwork
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import (
    MAX_GOSSIP_BYTES,
    MAX_STREAMS,
    Gossip,
    PeerDown,
    PeerUp,
    Stream,
    Transport,
)

ECHO = "/coppermesh-test/echo/1"
TOPIC = "coppermesh-test/1"
Open = Callable[[PeerKey], AbstractAsyncContextManager[Transport]]


def open_memory() -> Open:
    network = MemoryNetwork(random.Random(7))
    return network.transport


def open_libp2p() -> Open:
    from coppermesh.p2p.libp2p_transport import open_libp2p_transport

    ports: dict[PeerId, str] = {}

    @asynccontextmanager
    async def reopen(key: PeerKey) -> AsyncIterator[Transport]:
        # Like the memory network, a key that comes back has its old address.
        listen = ports.get(key.peer, "/ip4/127.0.0.1/tcp/0")
        async with open_libp2p_transport(key, mesh_id("test"), listen=listen) as transport:
            ports[key.peer] = transport.addresses[0].rpartition("/p2p/")[0]
            yield transport

    return reopen


@pytest.fixture(params=["memory", pytest.param("libp2p", marks=pytest.mark.net)])
def open_transport(request: pytest.FixtureRequest) -> Open:
    return open_memory() if request.param == "memory" else open_libp2p()


@asynccontextmanager
async def transports(open_transport: Open, count: int) -> AsyncIterator[list[Transport]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_transport(PeerKey.generate())) for _ in range(count)]


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


@asynccontextmanager
async def connected_pair(
    open_transport: Open, handler: Callable[[Stream], Awaitable[None]] = echo
) -> AsyncIterator[tuple[Transport, Transport]]:
    async with transports(open_transport, 2) as (a, b):
        b.handle(ECHO, handler)
        await a.dial(b.addresses[0])
        assert await next_event(a) == PeerUp(b.peer, b.addresses[0], outbound=True)
        up = await next_event(b)
        assert isinstance(up, PeerUp)
        assert (up.peer, up.outbound) == (a.peer, False)
        yield a, b


async def next_event(transport: Transport) -> PeerUp | PeerDown:
    with trio.fail_after(10):
        return await transport.events().receive()


async def receive_all(stream: Stream) -> bytes:
    data = bytearray()
    while piece := await stream.receive_some():
        data += piece
    return bytes(data)


async def receive_exactly(stream: Stream, count: int) -> bytes:
    data = bytearray(count)
    await stream.receive_into(memoryview(data))
    return bytes(data)


async def send_for_ever(stream: Stream) -> None:
    while True:
        await stream.send_all(b"x" * 4096)


async def check_echo(transport: Transport, peer: PeerId) -> None:
    stream = await transport.open_stream(peer, ECHO)
    await stream.send_all(b"still here?")
    assert await receive_exactly(stream, 11) == b"still here?"
    await stream.aclose()


# Connections


async def test_a_dial_proves_the_peer_and_both_sides_hear_of_it(open_transport):
    async with connected_pair(open_transport) as (a, b):
        assert a.connected() == [b.peer]
        assert b.connected() == [a.peer]
        assert a.addresses[0].endswith("/p2p/" + format_peer(a.peer))


async def test_dialling_a_connected_peer_returns_at_once(open_transport):
    async with connected_pair(open_transport) as (a, b):
        assert await a.dial(b.addresses[0]) == b.peer
        assert a.counts.dials == 1
        assert a.connected() == [b.peer]


async def test_a_dial_to_the_wrong_key_is_blamed_on_the_other_side(open_transport):
    async with transports(open_transport, 2) as (a, b):
        place = b.addresses[0].rpartition("/")[0]
        with pytest.raises(RemoteProtocolError):
            await a.dial(f"{place}/{format_peer(PeerKey.generate().peer)}")
        assert a.connected() == []
        assert a.counts.dials_failed == 1
        assert await a.dial(b.addresses[0]) == b.peer


@pytest.mark.parametrize(
    "address", ["", "nonsense", "/ip4/127.0.0.1/tcp/1", "/ip4/999.0.0.1/tcp/1/p2p/12D3KooW", "/ip4/\0" * 40]
)
async def test_an_address_that_cannot_be_read_leads_nowhere(open_transport, address):
    async with transports(open_transport, 1) as (a,):
        with pytest.raises(Unreachable):
            await a.dial(address)


async def test_an_agent_does_not_dial_itself(open_transport):
    async with transports(open_transport, 1) as (a,):
        with pytest.raises(Unreachable, match="itself"):
            await a.dial(a.addresses[0])


async def test_a_peer_that_was_away_can_be_dialled_as_soon_as_it_is_back(open_transport):
    key = PeerKey.generate()
    async with transports(open_transport, 1) as (a,):
        async with open_transport(key) as b:
            address = b.addresses[0]
        for _ in range(2):
            with pytest.raises(Unreachable):
                await a.dial(address)
        async with open_transport(key):
            assert await a.dial(address) == key.peer


async def test_simultaneous_dials_lose_nobody(open_transport):
    async with transports(open_transport, 2) as (a, b):
        a.handle(ECHO, echo)
        b.handle(ECHO, echo)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(a.dial, b.addresses[0])
                nursery.start_soon(b.dial, a.addresses[0])
        await check_echo(a, b.peer)
        await check_echo(b, a.peer)
        for transport, peer in ((a, b.peer), (b, a.peer)):
            assert transport.connected() == [peer]
            up = await next_event(transport)
            assert isinstance(up, PeerUp)
            assert up.peer == peer
            with pytest.raises(trio.WouldBlock):
                transport.events().receive_nowait()


async def test_disconnect_takes_the_peer_down_on_both_sides(open_transport):
    async with connected_pair(open_transport) as (a, b):
        stream = await a.open_stream(b.peer, ECHO)
        await a.disconnect(b.peer)
        await a.disconnect(b.peer)
        for transport, peer in ((a, b.peer), (b, a.peer)):
            down = await next_event(transport)
            assert isinstance(down, PeerDown)
            assert down.peer == peer
            assert transport.connected() == []
        with pytest.raises(Unreachable):
            await stream.receive_some()
        with pytest.raises(Unreachable):
            await a.open_stream(b.peer, ECHO)
        assert await a.dial(b.addresses[0]) == b.peer


async def test_a_peer_that_leaves_is_down_and_its_streams_are_broken(open_transport):
    async with transports(open_transport, 1) as (a,):
        async with open_transport(PeerKey.generate()) as b:
            b.handle(ECHO, echo)
            await a.dial(b.addresses[0])
            stream = await a.open_stream(b.peer, ECHO)
            await stream.send_all(b"x")
            await receive_exactly(stream, 1)
        assert isinstance(await next_event(a), PeerUp)
        assert isinstance(await next_event(a), PeerDown)
        for _ in range(2):
            with pytest.raises(Unreachable):
                await stream.receive_some()
            with pytest.raises(Unreachable):
                await stream.send_all(b"x")
        await stream.aclose()


async def test_events_end_with_the_block_and_handlers_with_it(open_transport):
    started, ended = trio.Event(), trio.Event()

    async def wait(stream: Stream) -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with connected_pair(open_transport, wait) as (a, b):
        events = b.events()
        await a.open_stream(b.peer, ECHO)
        await started.wait()
    assert ended.is_set()
    while True:
        try:
            events.receive_nowait()
        except trio.EndOfChannel:
            break


async def test_an_error_in_the_block_comes_out_as_it_was(open_transport):
    with pytest.raises(LookupError, match="mine"):
        async with connected_pair(open_transport):
            raise LookupError("mine")


# Streams


async def test_bytes_arrive_once_and_in_order(open_transport):
    async with connected_pair(open_transport) as (a, b):
        stream = await a.open_stream(b.peer, ECHO)
        assert stream.peer == b.peer
        sizes = random.Random(3)
        sent = bytearray()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                for _ in range(400):
                    piece = sizes.randbytes(int(10 ** sizes.uniform(0, 4.6)))
                    sent.extend(piece)
                    await stream.send_all(piece)
                await stream.send_all(b"")
                await stream.send_eof()

            received = await receive_all(stream)
        assert hashlib.sha256(received).digest() == hashlib.sha256(sent).digest()
        assert await stream.receive_some() == b""


async def test_bulk_goes_straight_into_the_receivers_memory(open_transport):
    content = random.Random(5).randbytes(12 * 1024 * 1024 + 77)

    async def send_content(stream: Stream) -> None:
        await stream.send_all(content)

    async with connected_pair(open_transport, send_content) as (a, b):
        stream = await a.open_stream(b.peer, ECHO)
        received = bytearray(len(content))
        view = memoryview(received)
        for start in range(0, len(content), 5_000_000):
            await stream.receive_into(view[start : start + 5_000_000])
        assert received == content
        assert await stream.receive_some() == b""


async def test_receive_some_gives_no_more_than_asked(open_transport):
    async with connected_pair(open_transport) as (a, b):
        stream = await a.open_stream(b.peer, ECHO)
        await stream.send_all(b"abcdefgh")
        received = b""
        while len(received) < 8:
            piece = await stream.receive_some(3)
            assert 1 <= len(piece) <= 3
            received += piece
        assert received == b"abcdefgh"
        with pytest.raises(ValueError):
            await stream.receive_some(0)


async def test_what_was_sent_before_a_close_arrives(open_transport):
    async def say_and_go(stream: Stream) -> None:
        await stream.send_all(b"x" * 20_000)

    async with connected_pair(open_transport, say_and_go) as (a, b):
        stream = await a.open_stream(b.peer, ECHO)
        assert await receive_all(stream) == b"x" * 20_000
        await stream.aclose()
        await stream.aclose()


async def test_an_end_in_the_middle_of_receive_into_is_an_error(open_transport):
    async def say_little(stream: Stream) -> None:
        await stream.send_all(b"short")

    async with connected_pair(open_transport, say_little) as (a, b):
        stream = await a.open_stream(b.peer, ECHO)
        with pytest.raises(Unreachable, match="95 bytes short"):
            await receive_exactly(stream, 100)


async def test_sending_to_a_stream_that_the_peer_closed_fails(open_transport):
    async def go(stream: Stream) -> None:
        pass

    async with connected_pair(open_transport, go) as (a, b):
        stream = await a.open_stream(b.peer, ECHO)
        assert await stream.receive_some() == b""
        with trio.fail_after(10), pytest.raises(Unreachable):
            await send_for_ever(stream)


async def test_a_reset_is_seen_as_broken_from_then_on(open_transport):
    seen = []
    done = trio.Event()

    async def expect_reset(stream: Stream) -> None:
        for _ in range(2):
            with pytest.raises(Unreachable) as caught:
                await stream.receive_some()
            seen.append(caught.value)
        with pytest.raises(Unreachable):
            await stream.send_all(b"x")
        done.set()

    async with connected_pair(open_transport, expect_reset) as (a, b):
        stream = await a.open_stream(b.peer, ECHO)
        await stream.reset()
        with trio.fail_after(10):
            await done.wait()
        assert len(seen) == 2
        with pytest.raises(Unreachable):
            await stream.send_all(b"x")


async def test_a_handler_that_raises_breaks_its_stream_only(open_transport, caplog):
    async def fail(stream: Stream) -> None:
        await receive_exactly(stream, 1)
        await stream.send_all(b"half an ans")
        raise RuntimeError("a bug in a handler")

    async with connected_pair(open_transport, fail) as (a, b):
        stream = await a.open_stream(b.peer, ECHO)
        await stream.send_all(b"?")
        with pytest.raises(Unreachable):
            await receive_all(stream)
        assert a.connected() == [b.peer]
        assert (await a.open_stream(b.peer, ECHO)).peer == b.peer
    assert "a bug in a handler" in caplog.text


async def test_a_protocol_that_is_not_spoken_is_refused(open_transport):
    async with connected_pair(open_transport) as (a, b):
        with pytest.raises(Refused) as caught:
            await a.open_stream(b.peer, "/coppermesh-test/other/1")
        assert caught.value.code == "unknown-protocol"
        await check_echo(a, b.peer)


async def test_one_protocol_has_one_handler(open_transport):
    async with transports(open_transport, 1) as (a,):
        a.handle(ECHO, echo)
        with pytest.raises(LocalProtocolError):
            a.handle(ECHO, echo)


async def test_a_reader_that_does_not_read_stops_its_sender_and_nobody_else(open_transport):
    async def ignore(stream: Stream) -> None:
        await trio.sleep_forever()

    async with connected_pair(open_transport, echo) as (a, b):
        b.handle("/coppermesh-test/ignore/1", ignore)
        stuck = await a.open_stream(b.peer, "/coppermesh-test/ignore/1")
        progress = 0
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                nonlocal progress
                while True:
                    await stuck.send_all(bytes(16_384))
                    progress += 16_384

            last = -1
            while progress != last:
                last = progress
                await check_echo(a, b.peer)
            assert progress <= 512 * 1024
            nursery.cancel_scope.cancel()
        await check_echo(a, b.peer)


async def test_a_cancelled_send_breaks_its_stream_and_not_the_connection(open_transport):
    async def ignore(stream: Stream) -> None:
        await trio.sleep_forever()

    async with connected_pair(open_transport, echo) as (a, b):
        b.handle("/coppermesh-test/ignore/1", ignore)
        stream = await a.open_stream(b.peer, "/coppermesh-test/ignore/1")
        started = trio.Event()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                started.set()
                await stream.send_all(bytes(32 * 1024 * 1024))

            await started.wait()
            await check_echo(a, b.peer)
            nursery.cancel_scope.cancel()
        with pytest.raises(Unreachable):
            await stream.send_all(b"x")
        with pytest.raises(Unreachable):
            await stream.receive_some()
        await check_echo(a, b.peer)
        assert a.connected() == [b.peer]


async def test_a_cancelled_receive_leaves_the_stream_usable(open_transport):
    async with connected_pair(open_transport) as (a, b):
        stream = await a.open_stream(b.peer, ECHO)
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.receive_some()
        with trio.move_on_after(0.01):
            await stream.receive_some()
        await stream.send_all(b"hello")
        assert await receive_exactly(stream, 5) == b"hello"


async def test_two_tasks_do_not_receive_on_one_stream(open_transport):
    async with connected_pair(open_transport) as (a, b):
        stream = await a.open_stream(b.peer, ECHO)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            await trio.testing.wait_all_tasks_blocked(0.01)
            with pytest.raises(trio.BusyResourceError):
                await stream.receive_some()
            nursery.cancel_scope.cancel()


async def test_more_streams_than_allowed_take_turns(open_transport):
    async with connected_pair(open_transport) as (a, b):
        async with trio.open_nursery() as nursery:
            for _ in range(MAX_STREAMS + 50):
                nursery.start_soon(check_echo, a, b.peer)
        await check_echo(a, b.peer)


async def test_streams_run_in_both_directions_at_once(open_transport):
    async with connected_pair(open_transport) as (a, b):
        a.handle(ECHO, echo)
        content = random.Random(6).randbytes(1_000_000)

        async def exchange(transport: Transport, peer: PeerId) -> None:
            stream = await transport.open_stream(peer, ECHO)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, content)
                assert await receive_exactly(stream, len(content)) == content
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(exchange, a, b.peer)
                nursery.start_soon(exchange, b, a.peer)


# Gossip


def accept(_source: PeerId, _data: bytes) -> bool:
    return True


@asynccontextmanager
async def repeated(transport: Transport, *messages: bytes) -> AsyncIterator[None]:
    """Publish again and again for the length of the block: gossip may lose messages, most of all the first ones."""
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def publish() -> None:
            for _ in range(100):
                for message in messages:
                    await transport.publish(TOPIC, message)
                await trio.sleep(0.1)

        with trio.fail_after(10):
            yield
        nursery.cancel_scope.cancel()


async def test_gossip_says_who_wrote_it_and_who_handed_it_on(open_transport):
    async with transports(open_transport, 3) as (a, b, c), AsyncExitStack() as stack:
        await a.dial(b.addresses[0])
        await b.dial(c.addresses[0])
        at_a, at_b, at_c = [
            await stack.enter_async_context(transport.subscribe(TOPIC, accept)) for transport in (a, b, c)
        ]
        async with repeated(a, b"from a"):
            assert await at_b.receive() == Gossip(TOPIC, a.peer, a.peer, b"from a")
            assert await at_c.receive() == Gossip(TOPIC, a.peer, b.peer, b"from a")
        with pytest.raises(trio.WouldBlock):
            at_a.receive_nowait()
        assert a.counts.gossip_published >= 1
        assert c.counts.gossip_delivered >= 1


async def test_a_refused_message_goes_no_further(open_transport):
    def refuse_bad(source: PeerId, data: bytes) -> bool:
        return data != b"bad"

    async with transports(open_transport, 3) as (a, b, c), AsyncExitStack() as stack:
        await a.dial(b.addresses[0])
        await b.dial(c.addresses[0])
        at_b = await stack.enter_async_context(b.subscribe(TOPIC, refuse_bad))
        at_c = await stack.enter_async_context(c.subscribe(TOPIC, accept))
        received = []
        async with repeated(a, b"bad", b"good"):
            while b.counts.gossip_refused < 3 or len(received) < 3:
                received.append((await at_c.receive()).data)
            assert (await at_b.receive()).data == b"good"
        assert set(received) == {b"good"}


async def test_a_validator_that_raises_refuses(open_transport, caplog):
    def fail(source: PeerId, data: bytes) -> bool:
        if data == b"bad":
            raise RuntimeError("a bug in a validator")
        return True

    async with connected_pair(open_transport) as (a, b):
        async with b.subscribe(TOPIC, fail) as at_b, repeated(a, b"bad", b"good"):
            for _ in range(2):
                assert (await at_b.receive()).data == b"good"
    assert "a bug in a validator" in caplog.text


async def test_large_gossip_and_second_subscriptions_are_our_own_mistakes(open_transport):
    async with connected_pair(open_transport) as (a, b):
        with pytest.raises(LocalProtocolError):
            await a.publish(TOPIC, bytes(MAX_GOSSIP_BYTES + 1))
        async with a.subscribe(TOPIC, accept):
            with pytest.raises(LocalProtocolError):
                async with a.subscribe(TOPIC, accept):
                    pass
        async with a.subscribe(TOPIC, accept) as at_a, repeated(b, bytes(MAX_GOSSIP_BYTES)):
            assert len((await at_a.receive()).data) == MAX_GOSSIP_BYTES


async def test_a_subscription_ends_with_its_block(open_transport):
    async with connected_pair(open_transport) as (a, b):
        async with b.subscribe(TOPIC, accept) as at_b:
            pass
        await a.publish(TOPIC, b"late")
        with pytest.raises(trio.EndOfChannel):
            await at_b.receive()
        assert b.counts.gossip_delivered == 0
