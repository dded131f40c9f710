"""The control hub over the in-memory network: hello, requests, refusals, limits, liveness."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from coppermesh.p2p import channel as channel_module
from coppermesh.p2p.channel import MAX_REQUESTS, REPLY, REQUEST, Frame, Refusal, frame_bytes
from coppermesh.p2p.control import (
    MAX_FAULTS,
    ChannelDown,
    ChannelUp,
    ControlHub,
    Handler,
    control_protocol,
    open_control_hub,
)
from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.errors import LocalProtocolError, Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.framing import FrameDecoder
from coppermesh.p2p.ids import MeshId, PeerId, mesh_id
from coppermesh.p2p.memory_transport import MemoryNetwork
from coppermesh.p2p.messages import MAX_FRAME_BYTES, BlobInfo, Hello, Message, Nothing
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import Stream, Transport

MESH = mesh_id("test")
KEYS = sorted((PeerKey.generate() for _ in range(2)), key=lambda key: key.peer)
LOW, HIGH = KEYS
ROOT = bytes(32)


class Word(Message, frozen=True):
    text: str


def clock() -> int:
    return 1_700_000_000_000_000


async def echo(peer: PeerId, request: Word) -> Word:
    return request


ECHO: dict[str, Handler] = {"echo": (Word, echo)}


@dataclass
class Pair:
    network: MemoryNetwork
    low: ControlHub
    high: ControlHub
    low_transport: Transport
    high_transport: Transport


async def until(hub: ControlHub, peer: PeerId) -> None:
    """Wait for the channel to `peer`."""
    event = await hub.events().receive()
    assert isinstance(event, ChannelUp)
    assert event.peer == peer
    assert peer in hub.peers()


@asynccontextmanager
async def pair(
    low_handlers: dict[str, Handler] = ECHO,
    high_handlers: dict[str, Handler] = ECHO,
    *,
    dial_from_low: bool = True,
    latency_s: float = 0.0,
) -> AsyncIterator[Pair]:
    network = MemoryNetwork(random.Random(1), latency_s=latency_s)
    async with (
        network.transport(LOW) as low_transport,
        network.transport(HIGH) as high_transport,
        open_control_hub(low_transport, MESH, LOW.peer, handlers=low_handlers, clock=clock) as low,
        open_control_hub(high_transport, MESH, HIGH.peer, handlers=high_handlers, clock=clock) as high,
    ):
        if dial_from_low:
            await low_transport.dial(high_transport.addresses[0])
        else:
            await high_transport.dial(low_transport.addresses[0])
        await until(low, HIGH.peer)
        await until(high, LOW.peer)
        yield Pair(network, low, high, low_transport, high_transport)


@pytest.mark.parametrize("dial_from_low", [True, False])
async def test_one_channel_serves_both_directions(autojump_clock: MockClock, dial_from_low: bool) -> None:
    async with pair(dial_from_low=dial_from_low) as both:
        assert await both.low.request(HIGH.peer, "echo", Word("a"), Word) == Word("a")
        assert await both.high.request(LOW.peer, "echo", Word("b"), Word) == Word("b")
        streams = both.low_transport.counts.streams_opened + both.high_transport.counts.streams_opened
        assert streams == 1
        hello = both.low.hello_of(HIGH.peer)
        assert hello == Hello(MESH, HIGH.peer, "coppermesh", clock())


async def test_requests_are_pipelined_and_batched(autojump_clock: MockClock) -> None:
    async with pair(latency_s=0.05) as both:
        before = trio.current_time()
        batches = both.low.counts.batches
        answers: list[str] = []

        async def ask(number: int) -> None:
            answers.append((await both.low.request(HIGH.peer, "echo", Word(str(number)), Word)).text)

        async with trio.open_nursery() as nursery:
            for number in range(MAX_REQUESTS):
                nursery.start_soon(ask, number)
        assert sorted(map(int, answers)) == list(range(MAX_REQUESTS))
        assert trio.current_time() - before == pytest.approx(0.1, abs=0.02)
        assert both.low.counts.batches - batches <= 4


async def test_a_request_beyond_the_limit_waits_its_turn(autojump_clock: MockClock) -> None:
    running = most = 0

    async def slow(peer: PeerId, request: Word) -> Word:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(1)
        running -= 1
        return request

    async with pair(high_handlers={"slow": (Word, slow)}) as both:
        async with trio.open_nursery() as nursery:
            for _ in range(3 * MAX_REQUESTS):
                nursery.start_soon(both.low.request, HIGH.peer, "slow", Word("x"), Word)
        assert most == MAX_REQUESTS


async def test_refusals_keep_their_code_and_the_channel(autojump_clock: MockClock) -> None:
    async def no(peer: PeerId, request: Word) -> Word:
        raise Refused("too-busy", "ask again in 5 s: naïve\n")

    async with pair(high_handlers={"no": (Word, no), **ECHO}) as both:
        with pytest.raises(Refused, match=r"ask again in 5 s: na\?ve\?") as caught:
            await both.low.request(HIGH.peer, "no", Word("x"), Word)
        assert caught.value.code == "too-busy"
        with pytest.raises(Refused) as caught:
            await both.low.request(HIGH.peer, "nosuch", Word("x"), Word)
        assert caught.value.code == "unknown-method"
        assert await both.low.request(HIGH.peer, "echo", Word("a"), Word) == Word("a")


async def test_a_handler_bug_is_internal_and_the_channel_lives(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(peer: PeerId, request: Word) -> Word:
        raise KeyError("secret detail")

    async def wrong_reply(peer: PeerId, request: Word) -> Message:
        return BlobInfo(b"short", 1)

    handlers: dict[str, Handler] = {"broken": (Word, broken), "wrong": (Word, wrong_reply), **ECHO}
    async with pair(high_handlers=handlers) as both:
        for method in ("broken", "wrong"):
            with pytest.raises(Refused) as caught:
                await both.low.request(HIGH.peer, method, Word("x"), Word)
            assert caught.value.code == "internal"
            assert "secret" not in caught.value.sentence
        assert await both.low.request(HIGH.peer, "echo", Word("a"), Word) == Word("a")
    assert "secret detail" in caplog.text


async def test_a_protocol_error_in_a_handler_ends_the_channel_after_a_last_word(
    autojump_clock: MockClock,
) -> None:
    async def blame(peer: PeerId, request: Word) -> Word:
        raise RemoteProtocolError("the lease was forged")

    async with pair(high_handlers={"blame": (Word, blame)}) as both:
        with pytest.raises(Refused, match="the lease was forged") as caught:
            await both.low.request(HIGH.peer, "blame", Word("x"), Word)
        assert caught.value.code == "protocol-error"
        event = await both.high.events().receive()
        assert isinstance(event, ChannelDown)
        assert both.high.faults(LOW.peer) == 1
        assert both.low.faults(HIGH.peer) == 0


async def test_a_request_body_that_does_not_decode_is_a_protocol_error(autojump_clock: MockClock) -> None:
    async with pair() as both:
        with pytest.raises(Refused) as caught:
            await both.low.request(HIGH.peer, "echo", Nothing(), Word)
        assert caught.value.code == "protocol-error"
        await trio.testing.wait_all_tasks_blocked()
        assert both.high.faults(LOW.peer) == 1


async def test_a_reply_of_another_kind_is_blamed_on_the_replier(autojump_clock: MockClock) -> None:
    async def wrong(peer: PeerId, request: Word) -> Message:
        return Nothing()

    async with pair(high_handlers={"echo": (Word, wrong)}) as both:
        with pytest.raises(RemoteProtocolError):
            await both.low.request(HIGH.peer, "echo", Word("x"), Word)
        await trio.testing.wait_all_tasks_blocked()
        assert both.low.faults(HIGH.peer) == 1


async def test_a_cancelled_request_is_forgotten_and_its_late_reply_ignored(autojump_clock: MockClock) -> None:
    async def slow(peer: PeerId, request: Word) -> Word:
        await trio.sleep(2)
        return request

    async with pair(high_handlers={"slow": (Word, slow), **ECHO}) as both:
        with pytest.raises(Unreachable, match="no answer to slow within 1 s"):
            await both.low.request(HIGH.peer, "slow", Word("x"), Word, deadline_s=1)
        await trio.sleep(2)
        assert both.low.counts.late_replies == 1
        assert await both.low.request(HIGH.peer, "echo", Word("a"), Word) == Word("a")


async def test_requests_in_flight_fail_when_the_connection_breaks(autojump_clock: MockClock) -> None:
    async def never(peer: PeerId, request: Word) -> Word:
        await trio.sleep_forever()
        raise AssertionError

    async with pair(high_handlers={"never": (Word, never)}) as both:
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(Unreachable):
                    await both.low.request(HIGH.peer, "never", Word("x"), Word, deadline_s=1000)

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            before = trio.current_time()
            both.network.cut(LOW.peer, HIGH.peer)
        assert trio.current_time() - before < 1
        with pytest.raises(Unreachable, match="not connected"):
            await both.low.request(HIGH.peer, "never", Word("x"), Word)


async def test_the_channel_comes_back_with_the_connection(autojump_clock: MockClock) -> None:
    async with pair() as both:
        both.network.cut(LOW.peer, HIGH.peer)
        await trio.testing.wait_all_tasks_blocked()
        await both.high_transport.dial(both.low_transport.addresses[0])
        assert await both.low.request(HIGH.peer, "echo", Word("a"), Word) == Word("a")
        assert await both.high.request(LOW.peer, "echo", Word("a"), Word) == Word("a")


async def test_an_idle_channel_stays_and_a_silent_peer_is_dropped_within_15_s(
    autojump_clock: MockClock,
) -> None:
    async with pair() as both:
        await trio.sleep(600)
        assert both.low.peers() == [HIGH.peer]
        assert both.low.counts.late_replies == 0

    network = MemoryNetwork(random.Random(1))
    async with (
        network.transport(LOW) as transport,
        network.transport(HIGH) as silent,
        open_control_hub(transport, MESH, LOW.peer, handlers=ECHO, clock=clock) as hub,
    ):

        async def hello_then_nothing(stream: Stream) -> None:
            await answer_hello(stream, MESH, HIGH.peer)
            await trio.sleep_forever()

        silent.handle(control_protocol(MESH), hello_then_nothing)
        await transport.dial(silent.addresses[0])
        await until(hub, HIGH.peer)
        before = trio.current_time()
        event = await hub.events().receive()
        assert isinstance(event, ChannelDown)
        assert "ping" in event.reason
        assert 12 <= trio.current_time() - before <= 15
        await trio.testing.wait_all_tasks_blocked()
        assert transport.connected() == []


async def test_a_flood_stops_being_read_but_not_being_heard(autojump_clock: MockClock) -> None:
    """A peer that ignores the limit waits; it is not called dead while it is we who do not read."""
    released = trio.Event()
    running = 0

    async def hold(peer: PeerId, request: Word) -> Word:
        nonlocal running
        running += 1
        await released.wait()
        return request

    async with hostile(lambda stream: flood(stream), {"hold": (Word, hold)}) as hub:
        await trio.sleep(100)
        assert running == MAX_REQUESTS
        assert hub.peers() == [LOW.peer]
        released.set()
        await trio.sleep(1)
        assert running == 3 * MAX_REQUESTS


async def flood(stream: Stream) -> None:
    await say_hello(stream)
    for number in range(1, 3 * MAX_REQUESTS + 1):
        await stream.send_all(frame_bytes(Frame(REQUEST, number, "hold", encode(Word("x")))))
    while await stream.receive_some():
        pass


async def say_hello(stream: Stream, mesh: MeshId = MESH, peer: PeerId = LOW.peer) -> Frame:
    await stream.send_all(frame_bytes(Frame(REQUEST, 0, "hello", encode(Hello(mesh, peer, "evil", 0)))))
    return await one_frame(stream)


async def answer_hello(stream: Stream, mesh: MeshId, peer: PeerId) -> None:
    await one_frame(stream)
    await stream.send_all(frame_bytes(Frame(REPLY, 0, "", encode(Hello(mesh, peer, "evil", 0)))))


async def one_frame(stream: Stream) -> Frame:
    decoder = FrameDecoder(MAX_FRAME_BYTES)
    payloads: list[bytes] = []
    while not payloads:
        data = await stream.receive_some()
        if not data:
            raise Unreachable("closed")
        payloads = decoder.feed(data)
    return decode(Frame, payloads[0], max_bytes=MAX_FRAME_BYTES)


@asynccontextmanager
async def hostile(
    behave: Callable[[Stream], Awaitable[None]], handlers: dict[str, Handler] = ECHO
) -> AsyncIterator[ControlHub]:
    """A hub with the higher key, and a peer with the lower one that opens a control stream and does as it likes."""
    network = MemoryNetwork(random.Random(1))
    async with (
        network.transport(LOW) as evil,
        network.transport(HIGH) as transport,
        open_control_hub(transport, MESH, HIGH.peer, handlers=handlers, clock=clock) as hub,
    ):
        await evil.dial(transport.addresses[0])
        stream = await evil.open_stream(HIGH.peer, control_protocol(MESH))

        async def attack() -> None:
            with suppress(Unreachable):
                await behave(stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(attack)
            await trio.testing.wait_all_tasks_blocked()
            yield hub
            nursery.cancel_scope.cancel()


def after_hello(data: bytes) -> Callable[[Stream], Awaitable[None]]:
    async def behave(stream: Stream) -> None:
        await say_hello(stream)
        await stream.send_all(data)
        await stream.receive_some()

    return behave


def other_mesh(stream: Stream) -> Awaitable[Frame]:
    return say_hello(stream, mesh=mesh_id("other"))


def other_peer(stream: Stream) -> Awaitable[Frame]:
    return say_hello(stream, peer=HIGH.peer)


def before_hello(stream: Stream) -> Awaitable[None]:
    return stream.send_all(frame_bytes(Frame(REQUEST, 1, "echo", encode(Word("x")))))


@pytest.mark.parametrize(
    "behave",
    [
        pytest.param(other_mesh, id="wrong mesh"),
        pytest.param(other_peer, id="wrong peer"),
        pytest.param(before_hello, id="request before hello"),
        pytest.param(after_hello(b"\xff" * 64), id="frame too long"),
        pytest.param(after_hello(bytes(4)), id="empty frame"),
        pytest.param(after_hello(b"\x00\x00\x00\x04GET "), id="not a frame"),
        pytest.param(after_hello(frame_bytes(Frame(REPLY, 7, "", b""))), id="reply to nothing"),
        pytest.param(after_hello(frame_bytes(Frame(REPLY, 0, "", b""))), id="second hello reply"),
        pytest.param(after_hello(frame_bytes(Frame(REQUEST, 0, "hello", b""))), id="second hello"),
        pytest.param(
            after_hello(2 * frame_bytes(Frame(REQUEST, 3, "echo", encode(Word("x"))))), id="id used twice"
        ),
        pytest.param(after_hello(frame_bytes(Frame(REQUEST, 1, "ping", b"\x91\x01"))), id="ping with a body"),
    ],
)
async def test_what_breaks_the_protocol_ends_the_channel_and_counts(
    autojump_clock: MockClock, behave: Callable[[Stream], Awaitable[None]]
) -> None:
    async with hostile(behave) as hub:
        await trio.sleep(1)
        assert hub.faults(LOW.peer) == 1
        assert hub.peers() == []


async def test_a_stream_from_the_wrong_side_is_a_fault(autojump_clock: MockClock) -> None:
    async with pair() as both:
        stream = await both.high_transport.open_stream(LOW.peer, control_protocol(MESH))
        with pytest.raises(Unreachable):
            await stream.receive_into(memoryview(bytearray(1)))
        assert both.low.faults(HIGH.peer) == 1
        assert await both.low.request(HIGH.peer, "echo", Word("a"), Word) == Word("a")


async def test_a_peer_that_goes_on_breaking_the_protocol_loses_its_connection(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with pair() as both:
        for _ in range(10):
            await both.high_transport.dial(both.low_transport.addresses[0])
            stream = await both.high_transport.open_stream(LOW.peer, control_protocol(MESH))
            with pytest.raises(Unreachable):
                await stream.receive_into(memoryview(bytearray(1)))
            await trio.testing.wait_all_tasks_blocked()
            assert (LOW.peer in both.high_transport.connected()) == (both.low.faults(HIGH.peer) < MAX_FAULTS)
    assert caplog.text.count("broke the protocol") == MAX_FAULTS


async def test_a_second_stream_from_the_opener_replaces_the_first(autojump_clock: MockClock) -> None:
    async with pair() as both:
        stream = await both.low_transport.open_stream(HIGH.peer, control_protocol(MESH))
        await say_hello(stream)
        assert isinstance(await both.high.events().receive(), ChannelDown)
        assert isinstance(await both.high.events().receive(), ChannelUp)
        assert both.high.peers() == [LOW.peer]


async def test_a_frame_too_large_is_our_own_bug_and_sends_nothing(autojump_clock: MockClock) -> None:
    async with pair() as both:
        with pytest.raises(LocalProtocolError):
            await both.low.request(HIGH.peer, "echo", Word("x" * MAX_FRAME_BYTES), Word)
        assert await both.low.request(HIGH.peer, "echo", Word("a"), Word) == Word("a")


async def test_a_peer_that_stops_taking_bytes_loses_the_channel(autojump_clock: MockClock) -> None:
    async def say_nothing_more(stream: Stream) -> None:
        await say_hello(stream)
        await trio.sleep_forever()

    async with hostile(say_nothing_more) as hub:
        large = Word("x" * 500_000)
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(Unreachable):
                    await hub.request(LOW.peer, "echo", large, Word, deadline_s=100)

            for _ in range(12):
                nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert hub.peers() == []


async def test_leaving_the_block_ends_every_channel(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(random.Random(1))
    async with (
        network.transport(LOW) as low_transport,
        network.transport(HIGH) as high_transport,
        open_control_hub(low_transport, MESH, LOW.peer, handlers=ECHO, clock=clock) as low,
    ):
        async with open_control_hub(high_transport, MESH, HIGH.peer, handlers=ECHO, clock=clock) as high:
            await low_transport.dial(high_transport.addresses[0])
            await until(low, HIGH.peer)
            await until(high, LOW.peer)
        assert high.peers() == []
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Unreachable):
            await low.request(HIGH.peer, "echo", Word("a"), Word, deadline_s=1)


def test_a_refusal_can_always_be_sent() -> None:
    frame = channel_module.refusal_frame(3, "busy", "é\x00" * 1000)
    refusal = decode(Refusal, frame.body, max_bytes=MAX_FRAME_BYTES)
    assert len(refusal.sentence) == 400


async def test_asking_a_peer_that_is_away_lets_others_run() -> None:
    """Else a loop that asks until the peer is back would keep it from coming back."""
    network = MemoryNetwork(random.Random(1))
    key, away = PeerKey.generate(), PeerKey.generate()
    async with (
        network.transport(key) as transport,
        open_control_hub(transport, MESH, key.peer, handlers={}, clock=lambda: 0) as hub,
        trio.open_nursery() as nursery,
    ):
        ran = False

        @nursery.start_soon
        async def other() -> None:
            nonlocal ran
            ran = True

        while not ran:
            with pytest.raises(Unreachable):
                await hub.request(away.peer, "nothing", Nothing(), Nothing)
