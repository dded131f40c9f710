"""One control channel to every connected peer, kept while the connection lasts.

Who opens. Of two connected peers the one with the smaller id opens the control stream, the other accepts; a stream
from the wrong side is the other's protocol error. So the two never hold one each. When the opener opens a second one,
the first must have died unnoticed (it was restarted, say): the newer wins.

The first frame each way is a hello: request 0 `hello` from the opener, its reply from the other side. Mesh and peer
id in it must be what the transport proved. Only then does anything else travel (`channel`).

The hub is the one reader of `transport.events()`. A channel that is lost while the connection stays is opened again
after 0.2, 0.4 ... 5 s; a peer that answers no ping is disconnected.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio

from coppermesh.p2p.channel import (
    MAX_REQUESTS,
    REFUSAL,
    REPLY,
    REQUEST,
    Channel,
    ChannelCounts,
    Frame,
    Handler,
    M,
    Refusal,
    frame_bytes,
    refusal_frame,
)
from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.errors import MeshError, Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.framing import FrameDecoder
from coppermesh.p2p.ids import MeshId, PeerId, short_peer
from coppermesh.p2p.messages import MAX_FRAME_BYTES, Hello, Message
from coppermesh.p2p.transport import EVENT_BUFFER, PeerUp, Stream, Transport

__all__ = [
    "MAX_REQUESTS",
    "ChannelDown",
    "ChannelUp",
    "ControlHub",
    "Handler",
    "control_protocol",
    "open_control_hub",
]

HELLO_SECONDS = 10.0
_FIRST_RETRY_SECONDS = 0.2
_LAST_RETRY_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
MAX_FAULTS = 3
"""From its third fault on, each one costs the peer its connection, and no longer a line in the log."""
_MAX_BLAMED = 4096

_log = logging.getLogger(__name__)


def control_protocol(mesh: MeshId) -> str:
    """The protocol id of control streams on a mesh."""
    return f"/coppermesh/control/1/{mesh.hex()}"


@dataclass(frozen=True, slots=True)
class ChannelUp:
    """Requests to `peer` work from now on."""

    peer: PeerId
    hello: Hello


@dataclass(frozen=True, slots=True)
class ChannelDown:
    """The control channel is gone; requests in flight raised Unreachable."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class _Open:
    channel: Channel
    hello: Hello


class ControlHub:
    """The control channels of one agent. Made by `open_control_hub`."""

    def __init__(
        self,
        transport: Transport,
        mesh: MeshId,
        me: PeerId,
        handlers: Mapping[str, Handler],
        clock: Callable[[], int],
        software: str,
    ) -> None:
        self.counts = ChannelCounts()
        self._transport = transport
        self._mesh = mesh
        self._me = me
        self._handlers = handlers
        self._clock = clock
        self._software = software
        self._open: dict[PeerId, _Open] = {}
        self._changed = trio.Event()
        self._wake: dict[PeerId, trio.Event] = {}
        self._blamed: Counter[PeerId] = Counter()
        self._closing = False
        self._events_in, self._events_out = trio.open_memory_channel[ChannelUp | ChannelDown](EVENT_BUFFER)

    def peers(self) -> list[PeerId]:
        """Peers with an open control channel."""
        return list(self._open)

    def hello_of(self, peer: PeerId) -> Hello | None:
        """What the peer said of itself; None where no channel is open."""
        found = self._open.get(peer)
        return found.hello if found else None

    def faults(self, peer: PeerId) -> int:
        """How many of the peer's channels ended because it broke the protocol."""
        return self._blamed[peer]

    def events(self) -> trio.MemoryReceiveChannel[ChannelUp | ChannelDown]:
        """Channels coming and going, in order. One reader."""
        return self._events_out

    async def request(
        self, peer: PeerId, method: str, body: Message, reply: type[M], *, deadline_s: float = 10.0
    ) -> M:
        """Ask `peer` and wait for its reply, at most `deadline_s` seconds in all.

        A connected peer whose channel is still being opened is waited for. Raises Unreachable (not connected, gone, or
        too late), Refused (its refusal), RemoteProtocolError (its reply is not a `reply`; the channel is closed then).
        """
        with trio.move_on_after(deadline_s):
            channel = await self._channel_to(peer)
            return await channel.request(method, body, reply)
        raise Unreachable(f"{short_peer(peer)} gave no answer to {method} within {deadline_s:g} s")

    async def close_channel(self, peer: PeerId, reason: str) -> None:
        """End the channel to `peer` and the connection with it."""
        found = self._open.get(peer)
        if found is not None:
            found.channel.close(reason)
        await self._transport.disconnect(peer)

    async def _channel_to(self, peer: PeerId) -> Channel:
        while True:
            found = self._open.get(peer)
            if found is not None and not found.channel.ended:
                return found.channel
            if self._closing or peer not in self._transport.connected():
                # Who asks again and again must not keep everybody else from running, or the peer would never be back.
                await trio.lowlevel.checkpoint()
                raise Unreachable(f"{short_peer(peer)} is not connected")
            await self._changed.wait()

    # Opening and accepting

    async def follow(self, nursery: trio.Nursery) -> None:
        """Open channels to peers that come, where that is our part. Run by `open_control_hub`."""
        for peer in self._transport.connected():
            self._peer_came(peer, nursery)
        async for event in self._transport.events():
            if isinstance(event, PeerUp):
                self._peer_came(event.peer, nursery)
            self._tell_waiters()

    def _peer_came(self, peer: PeerId, nursery: trio.Nursery) -> None:
        if self._me >= peer:
            return
        if peer in self._wake:
            self._wake[peer].set()
        else:
            self._wake[peer] = trio.Event()
            nursery.start_soon(self._keep_open, peer)

    async def _keep_open(self, peer: PeerId) -> None:
        """Open the channel and open it again when it is lost, until the peer leaves."""
        delay = _FIRST_RETRY_SECONDS
        try:
            while peer in self._transport.connected():
                if await self._open_once(peer):
                    delay = _FIRST_RETRY_SECONDS
                self._wake[peer] = trio.Event()
                with trio.move_on_after(delay):
                    await self._wake[peer].wait()
                delay = min(2 * delay, _LAST_RETRY_SECONDS)
        finally:
            del self._wake[peer]

    async def _open_once(self, peer: PeerId) -> bool:
        """One channel from its opening to its end. Was it ever up?"""
        up = False
        try:
            stream = await self._transport.open_stream(peer, control_protocol(self._mesh))
            try:
                with trio.fail_after(HELLO_SECONDS):
                    hello, decoder, early = await self._say_hello(stream)
                up = True
                await self._serve(stream, hello, decoder, early)
            finally:
                # Not reset: a last word to the peer should still arrive.
                with trio.CancelScope(shield=True):
                    await stream.aclose()
        except RemoteProtocolError as error:
            await self._blame(peer, error)
        except trio.TooSlowError:
            _log.debug("control channel to %s: no hello within %g s", short_peer(peer), HELLO_SECONDS)
        except MeshError as error:
            _log.debug("control channel to %s: %s", short_peer(peer), error)
        return up

    async def accept(self, stream: Stream) -> None:
        """The transport's handler: a peer opened a control stream."""
        try:
            if self._closing:
                raise Unreachable("this agent is stopping")
            if self._me < stream.peer:
                raise RemoteProtocolError("a control stream from the side that should have accepted one")
            with trio.fail_after(HELLO_SECONDS):
                hello, decoder, early = await self._answer_hello(stream)
            await self._serve(stream, hello, decoder, early)
        except RemoteProtocolError as error:
            # Returning closes the stream in order, so that a last word to the peer still arrives.
            await self._blame(stream.peer, error)
        except trio.TooSlowError:
            raise Unreachable(f"{short_peer(stream.peer)}: no hello within {HELLO_SECONDS:g} s") from None

    async def _serve(self, stream: Stream, hello: Hello, decoder: FrameDecoder, early: list[bytes]) -> None:
        channel = Channel(stream, self._handlers, self.counts, decoder, early)
        peer = stream.peer
        older = self._open.get(peer)
        if older is not None:
            older.channel.close("a newer control channel replaced it")
            self._went(peer, "replaced by a newer one")
        self._open[peer] = _Open(channel, hello)
        self._tell(ChannelUp(peer, hello))
        reason = "the agent is stopping"
        try:
            reason = await channel.run()
        except RemoteProtocolError as error:
            reason = str(error)
            raise
        finally:
            if peer in self._open and self._open[peer].channel is channel:
                self._went(peer, reason)
        if channel.unresponsive:
            await self._transport.disconnect(peer)

    def _went(self, peer: PeerId, reason: str) -> None:
        del self._open[peer]
        self._tell(ChannelDown(peer, reason))

    # Hello

    def _hello(self) -> Hello:
        return Hello(self._mesh, self._me, self._software, self._clock())

    async def _say_hello(self, stream: Stream) -> tuple[Hello, FrameDecoder, list[bytes]]:
        await stream.send_all(frame_bytes(Frame(REQUEST, 0, "hello", encode(self._hello()))))
        decoder = FrameDecoder(MAX_FRAME_BYTES)
        frame, early = await _first_frame(stream, decoder)
        if frame.kind == REFUSAL and frame.id == 0:
            refusal = decode(Refusal, frame.body, max_bytes=MAX_FRAME_BYTES)
            raise Refused(refusal.code, refusal.sentence)
        if (frame.kind, frame.id, frame.method) != (REPLY, 0, ""):
            raise RemoteProtocolError("the first frame of a control stream is not the reply to hello")
        return self._checked_hello(stream.peer, frame), decoder, early

    async def _answer_hello(self, stream: Stream) -> tuple[Hello, FrameDecoder, list[bytes]]:
        decoder = FrameDecoder(MAX_FRAME_BYTES)
        frame, early = await _first_frame(stream, decoder)
        if (frame.kind, frame.id, frame.method) != (REQUEST, 0, "hello"):
            raise RemoteProtocolError("the first frame of a control stream is not hello")
        try:
            hello = self._checked_hello(stream.peer, frame)
        except RemoteProtocolError as error:
            await stream.send_all(frame_bytes(refusal_frame(0, "protocol-error", str(error))))
            raise
        await stream.send_all(frame_bytes(Frame(REPLY, 0, "", encode(self._hello()))))
        return hello, decoder, early

    def _checked_hello(self, peer: PeerId, frame: Frame) -> Hello:
        hello = decode(Hello, frame.body, max_bytes=MAX_FRAME_BYTES)
        if hello.mesh != self._mesh:
            raise RemoteProtocolError(f"hello for mesh {hello.mesh.hex()}, this is {self._mesh.hex()}")
        if hello.peer != peer:
            raise RemoteProtocolError("hello in the name of another peer than the connection proves")
        return hello

    # Telling

    async def _blame(self, peer: PeerId, error: RemoteProtocolError) -> None:
        if peer not in self._blamed and len(self._blamed) >= _MAX_BLAMED:
            del self._blamed[next(iter(self._blamed))]
        self._blamed[peer] += 1
        if self._blamed[peer] <= MAX_FAULTS:
            _log.warning("%s broke the protocol: %s", short_peer(peer), error)
        if self._blamed[peer] >= MAX_FAULTS:
            await self._transport.disconnect(peer)

    def _tell(self, event: ChannelUp | ChannelDown) -> None:
        self._tell_waiters()
        try:
            self._events_in.send_nowait(event)
        except trio.WouldBlock:
            _log.error("nobody reads the hub's events: %s was dropped", type(event).__name__)

    def _tell_waiters(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def close(self) -> None:
        """End every channel, also those that run in the transport's tasks, and wait for them."""
        self._closing = True
        self._tell_waiters()
        for found in self._open.values():
            found.channel.close("the agent is stopping")
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_SECONDS):
            while self._open:
                await self._changed.wait()


async def _first_frame(stream: Stream, decoder: FrameDecoder) -> tuple[Frame, list[bytes]]:
    """The first frame of a stream, and the payloads that came with it."""
    payloads: list[bytes] = []
    while not payloads:
        data = await stream.receive_some()
        if not data:
            raise Unreachable(f"{short_peer(stream.peer)} closed the control stream before its hello")
        payloads = decoder.feed(data)
    return decode(Frame, payloads[0], max_bytes=MAX_FRAME_BYTES), payloads[1:]


@asynccontextmanager
async def open_control_hub(
    transport: Transport,
    mesh: MeshId,
    me: PeerId,
    *,
    handlers: Mapping[str, Handler],
    clock: Callable[[], int],
    software: str = "coppermesh",
) -> AsyncIterator[ControlHub]:
    """Accept and keep control channels for the length of the block. Enter it before the transport's first dial.

    `handlers`: by method; `hello` and `ping` are the hub's own. A handler runs in a task of its own and is cancelled
    when its channel ends. What it raises: Refused becomes a refusal; RemoteProtocolError, about the asking peer only,
    a refusal `protocol-error` and the end of the channel; anything else a refusal `internal` and a line in the log.
    `clock`: microseconds since the epoch, for the hello.
    """
    hub = ControlHub(transport, mesh, me, handlers, clock, software)
    transport.handle(control_protocol(mesh), hub.accept)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(hub.follow, nursery))
        try:
            yield hub
        finally:
            await hub.close()
            nursery.cancel_scope.cancel()
