"""The Transport over libp2p: TCP, Noise only, yamux, gossipsub 1.2 and 1.1.

One nursery holds everything; leaving the block ends it: handlers are cancelled, connections say goodbye and close.

Connections. A peer has usually one. When both sides dial at the same moment there are two, and both are kept: neither
side can know which one the other is using already. New streams go on the newest. A second connection *in the same
direction* means that the peer gave up the first (a restart, a changed network), so it replaces the first. When one of
a peer's connections ends, all are closed: the peer is down, once, and dialled again by whoever wants it.
"""

import logging
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from libp2p.tools.anyio_service import background_trio_service

from coppermesh.p2p.addresses import Address, format_host, listen_address, parse_address, reachable_hosts
from coppermesh.p2p.errors import LocalProtocolError, MeshError, Refused, Unreachable
from coppermesh.p2p.gossip_inbox import GossipInbox
from coppermesh.p2p.ids import MeshId, PeerId, short_peer
from coppermesh.p2p.libp2p_host import GossipHost, HostStream
from coppermesh.p2p.libp2p_mends import MeshGossipSub, MeshPubsub
from coppermesh.p2p.libp2p_multistream import propose, respond
from coppermesh.p2p.libp2p_upgrade import Identity, Secured, libp2p_id, upgrade
from coppermesh.p2p.libp2p_yamux import BufferBudget, YamuxConnection
from coppermesh.p2p.libp2p_yamux_stream import YamuxStream
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import (
    DIAL_SECONDS,
    EVENT_BUFFER,
    MAX_GOSSIP_BYTES,
    Gossip,
    PeerDown,
    PeerUp,
    Stream,
    StreamHandler,
    Transport,
    TransportCounts,
    Validate,
)

MAX_CONNECTIONS = 256
MAX_INBOUND = 192
"""Of which accepted ones; the rest is kept for peers we want to reach."""
MAX_HANDSHAKES = 64
"""Accepted connections that have not proven a peer yet; the oldest goes when one more comes."""
MAX_UNREAD_BYTES = 512 * 1024 * 1024
MAX_HANDLERS = 4096
_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_libp2p_transport(
    key: PeerKey, mesh: MeshId, *, listen: str = "/ip4/127.0.0.1/tcp/0"
) -> AsyncIterator[Transport]:
    """Attach to the network of `mesh` for the length of the block, listening on `listen` (port 0: any free one).

    Raises Unreachable when the address cannot be listened on, or cannot be read.
    """
    _quiet_libp2p()
    kind, host, port = listen_address(listen)
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise Unreachable(f"cannot listen on {listen}: {error.strerror or error}") from error
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            transport = Libp2pTransport(key, mesh, nursery)
            transport.listens_on(kind, host, listeners[0].socket.getsockname()[1])
            async with transport.run_gossip():
                nursery.start_soon(transport.accept_forever, listeners)
                try:
                    yield transport
                except Exception as error:  # noqa: BLE001
                    # Kept out of the nurseries here, which would wrap the caller's own error in groups.
                    failure = error
                finally:
                    await transport.close()
            nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            await trio.aclose_forcefully(listener)
    if failure is not None:
        raise failure


def _quiet_libp2p() -> None:
    """Keep the library's warnings off stderr, unless the user asks for them in the library's own way."""
    logger = logging.getLogger("libp2p")
    if "LIBP2P_DEBUG" not in os.environ and not logger.handlers:
        logger.addHandler(logging.NullHandler())


@dataclass(eq=False)
class _Connection:
    mux: YamuxConnection
    address: str
    outbound: bool


class Libp2pTransport:
    """See `transport.Transport`. Made by `open_libp2p_transport`."""

    def __init__(self, key: PeerKey, mesh: MeshId, nursery: trio.Nursery) -> None:
        self.mesh = mesh
        self._identity = Identity.of(key)
        self._nursery = nursery
        self._addresses: list[str] = []
        self._peers: dict[PeerId, list[_Connection]] = {}
        self._handlers: dict[str, StreamHandler] = {}
        self._running_handlers = 0
        self._handshakes: OrderedDict[int, trio.CancelScope] = OrderedDict()
        self._accepted = 0
        self._dialling: dict[PeerId, trio.Lock] = {}
        self._budget = BufferBudget(MAX_UNREAD_BYTES)
        self._counts = TransportCounts()
        self._events_in, self._events_out = trio.open_memory_channel[PeerUp | PeerDown](EVENT_BUFFER)
        self._closed = False
        self._host = GossipHost(self._identity, self._open, lambda peer: peer in self._peers)
        self._host.spoken = self._spoken
        self._router = MeshGossipSub()
        self._pubsub = MeshPubsub(self._host, self._router, key.peer)

    @property
    def peer(self) -> PeerId:
        """See `transport.Transport`."""
        return self._identity.peer

    @property
    def addresses(self) -> list[str]:
        """See `transport.Transport`."""
        return list(self._addresses)

    @property
    def counts(self) -> TransportCounts:
        """See `transport.Transport`."""
        return self._counts

    def events(self) -> trio.MemoryReceiveChannel[PeerUp | PeerDown]:
        """See `transport.Transport`."""
        return self._events_out

    def connected(self) -> list[PeerId]:
        """See `transport.Transport`."""
        return list(self._peers)

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """See `transport.Transport`."""
        if protocol in self._handlers or protocol in self._host.handlers:
            raise LocalProtocolError(f"{protocol} has a handler already")
        self._handlers[protocol] = handler

    # Life

    def listens_on(self, kind: str, host: str, port: int) -> None:
        """The listener is bound to `port`."""
        addresses = [Address(kind, reachable, port, self.peer) for reachable in reachable_hosts(host)]
        self._addresses = [str(address) for address in addresses]
        self._host.listen_addresses = [text.rpartition("/p2p/")[0] for text in self._addresses]

    @asynccontextmanager
    async def run_gossip(self) -> AsyncIterator[None]:
        """Pubsub and its router, ready before the first connection."""
        async with background_trio_service(self._pubsub), background_trio_service(self._router):
            await self._pubsub.wait_until_ready()
            yield

    async def accept_forever(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Serve the port; running out of descriptors pauses it."""
        await trio.serve_listeners(self._accept, list(listeners), handler_nursery=self._nursery)

    async def close(self) -> None:
        """Say goodbye to every peer, for at most a second, and close."""
        self._closed = True
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for connection in self._all_connections():
                    nursery.start_soon(connection.mux.say_goodbye)
        for peer in list(self._peers):
            self._drop_peer(peer, "the transport was closed")
        self._events_in.close()

    # Connections

    async def dial(self, address: str) -> PeerId:
        """See `transport.Transport`."""
        await trio.lowlevel.checkpoint()
        target = parse_address(address)
        if target.peer == self.peer:
            raise Unreachable(f"{address} is this agent itself")
        if target.peer in self._peers:
            return target.peer
        self._counts.dials += 1
        try:
            with trio.move_on_after(DIAL_SECONDS):
                # One dial per peer at a time: the second finds the first one's connection.
                async with self._dialling.setdefault(target.peer, trio.Lock()):
                    if target.peer not in self._peers:
                        await self._connect(target)
                    return target.peer
            raise Unreachable(f"{address}: no answer within {DIAL_SECONDS:g} s")
        except MeshError:
            self._counts.dials_failed += 1
            raise
        finally:
            lock = self._dialling.get(target.peer)
            if lock is not None and not lock.locked():
                del self._dialling[target.peer]

    async def _connect(self, target: Address) -> None:
        if self._closed or len(self._all_connections()) >= MAX_CONNECTIONS:
            raise Unreachable("this agent is closing, or has as many connections as it may")
        try:
            stream = await trio.open_tcp_stream(target.host, target.port)
        except OSError as error:
            raise Unreachable(f"{target}: {error.strerror or error}") from error
        try:
            secured = await upgrade(stream, self._identity, target.peer)
        except Refused as error:
            await trio.aclose_forcefully(stream)
            raise Unreachable(f"{target}: {error}") from error
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        connection = self._add(stream, secured, str(target), outbound=True)
        self._nursery.start_soon(self._serve_connection, connection)

    async def _accept(self, stream: trio.SocketStream) -> None:
        """Serve one accepted TCP connection until it ends."""
        key = id(stream)
        scope = trio.CancelScope(deadline=trio.current_time() + DIAL_SECONDS)
        if len(self._handshakes) >= MAX_HANDSHAKES:
            self._handshakes.popitem(last=False)[1].cancel()
        self._handshakes[key] = scope
        secured = None
        try:
            with scope:
                secured = await upgrade(stream, self._identity, None)
        except (MeshError, trio.BrokenResourceError) as error:
            _log.debug("an incoming connection failed: %s", error)
        finally:
            self._handshakes.pop(key, None)
            if secured is None:
                await trio.aclose_forcefully(stream)
        if secured is None:
            return
        if self._closed or self._accepted >= MAX_INBOUND or len(self._all_connections()) >= MAX_CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        host, port = stream.socket.getpeername()[:2] if stream.socket.fileno() >= 0 else ("closed", 0)
        await self._serve_connection(self._add(stream, secured, format_host(host, port), outbound=False))

    def _add(
        self, stream: trio.SocketStream, secured: Secured, address: str, *, outbound: bool
    ) -> _Connection:
        peer = secured.peer
        if any(old.outbound == outbound for old in self._peers.get(peer, ())):
            self._drop_peer(peer, "replaced by a newer connection")
        mux = YamuxConnection(
            peer,
            stream,
            secured.reader,
            secured.writer,
            initiator=outbound,
            budget=self._budget,
            on_stream=self._on_stream,
            early=secured.early,
        )
        connection = _Connection(mux, address, outbound)
        first = peer not in self._peers
        self._peers.setdefault(peer, []).append(connection)
        if first:
            self._tell(PeerUp(peer, address, outbound))
            self._pubsub.peer_up(libp2p_id(peer))
        return connection

    async def _serve_connection(self, connection: _Connection) -> None:
        peer = connection.mux.peer
        self._accepted += not connection.outbound
        try:
            await connection.mux.run()
        finally:
            self._accepted -= not connection.outbound
            if connection in self._peers.get(peer, ()):
                self._drop_peer(peer, connection.mux.ended or "the transport was closed")

    def _drop_peer(self, peer: PeerId, reason: str) -> None:
        for connection in self._peers.pop(peer):
            connection.mux.close(reason)
        self._tell(PeerDown(peer, reason))
        self._pubsub.peer_down(libp2p_id(peer))

    def _all_connections(self) -> list[_Connection]:
        return [connection for connections in self._peers.values() for connection in connections]

    async def disconnect(self, peer: PeerId) -> None:
        """See `transport.Transport`."""
        await trio.lowlevel.checkpoint()
        if peer in self._peers:
            self._drop_peer(peer, "disconnected")

    def _tell(self, event: PeerUp | PeerDown) -> None:
        try:
            self._events_in.send_nowait(event)
        except trio.WouldBlock:
            _log.error("nobody reads transport events: %s was dropped", event)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass

    # Streams

    async def open_stream(self, peer: PeerId, protocol: str) -> Stream:
        """See `transport.Transport`."""
        await trio.lowlevel.checkpoint()
        stream, _ = await self._open(peer, [protocol])
        self._counts.streams_opened += 1
        return stream

    async def _open(self, peer: PeerId, protocols: Sequence[str]) -> tuple[YamuxStream, str]:
        connections = self._peers.get(peer)
        if not connections:
            raise Unreachable(f"{short_peer(peer)} is not connected")
        with trio.move_on_after(DIAL_SECONDS):
            stream = await connections[-1].mux.open_stream()
            try:
                return stream, await propose(_StreamChannel(stream), *protocols)
            except BaseException:
                stream.break_off("the negotiation failed")
                raise
        raise Unreachable(f"{short_peer(peer)} opened no stream within {DIAL_SECONDS:g} s")

    def _on_stream(self, stream: YamuxStream) -> None:
        if self._closed or self._running_handlers >= MAX_HANDLERS:
            self._counts.streams_refused += 1
            stream.break_off("this agent serves as many streams as it can")
            return
        self._running_handlers += 1
        self._nursery.start_soon(self._serve_stream, stream)

    async def _serve_stream(self, stream: YamuxStream) -> None:
        try:
            protocol = None
            with trio.move_on_after(DIAL_SECONDS):
                protocol = await respond(_StreamChannel(stream), self._spoken())
            if protocol is None:
                self._counts.streams_refused += 1
                stream.break_off("it asked for nothing this agent speaks")
                return
            host_handler = self._host.handlers.get(protocol)
            if host_handler is not None:
                await host_handler(HostStream(stream, protocol))
            else:
                await self._handlers[protocol](stream)
        except MeshError as error:
            _log.debug("stream with %s ended: %s", short_peer(stream.peer), error)
            stream.break_off("its handler gave it up")
        except Exception:  # noqa: BLE001
            # A handler's bug ends its own conversation; the other peers must not pay for it.
            _log.exception("stream handler failed")
            stream.break_off("its handler failed")
        except BaseException:
            stream.break_off("its handler was cancelled")
            raise
        else:
            stream.close_now()
        finally:
            self._running_handlers -= 1

    def _spoken(self) -> list[str]:
        return [*self._handlers, *self._host.handlers]

    # Gossip

    @asynccontextmanager
    async def subscribe(
        self, topic: str, validate: Validate
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Gossip]]:
        """See `transport.Transport`."""
        if topic in self._pubsub.inboxes:
            raise LocalProtocolError(f"already subscribed to {topic}")
        inbox = self._pubsub.inboxes[topic] = GossipInbox(validate, self._counts)
        try:
            await self._pubsub.subscribe(topic)
            yield inbox.receiver
        finally:
            del self._pubsub.inboxes[topic]
            inbox.close()
            # Queues a few messages and never waits for a peer.
            with trio.CancelScope(shield=True):
                await self._pubsub.unsubscribe(topic)

    async def publish(self, topic: str, data: bytes) -> None:
        """See `transport.Transport`."""
        await trio.lowlevel.checkpoint()
        if len(data) > MAX_GOSSIP_BYTES:
            raise LocalProtocolError(f"gossip of {len(data)} bytes: at most {MAX_GOSSIP_BYTES} are allowed")
        self._counts.gossip_published += 1
        await self._pubsub.publish(topic, bytes(data))


class _StreamChannel:
    """A yamux stream for a protocol negotiation."""

    def __init__(self, stream: YamuxStream) -> None:
        self._stream = stream

    async def read_exactly(self, count: int) -> bytes:
        data = bytearray(count)
        await self._stream.receive_into(memoryview(data))
        return bytes(data)

    async def write(self, data: bytes) -> None:
        await self._stream.send_all(data)
