"""The Transport over libp2p: TCP, Noise only, yamux, gossipsub 1.2 and 1.1.

One nursery holds everything; leaving the block ends it: handlers are cancelled, connections say goodbye and close.
Connections are kept in libp2p_connections, made by libp2p_upgrade and shared by streams through libp2p_yamux; gossip is
py-libp2p's, mended in libp2p_mends.
"""

import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import trio
from libp2p.tools.anyio_service import background_trio_service

from coppermesh.p2p.addresses import Address, is_loopback, listen_address, parse_address
from coppermesh.p2p.errors import LocalProtocolError, MeshError, Unreachable
from coppermesh.p2p.gate import Doorkeeper, Gate
from coppermesh.p2p.gossip_inbox import GossipInbox
from coppermesh.p2p.ids import MeshId, PeerId, short_peer
from coppermesh.p2p.interfaces import reachable_hosts
from coppermesh.p2p.libp2p_circuit import STOP
from coppermesh.p2p.libp2p_connections import MAX_CONNECTIONS, ConnectionTable
from coppermesh.p2p.libp2p_host import GossipHost, HostStream
from coppermesh.p2p.libp2p_mends import MeshGossipSub, MeshPubsub
from coppermesh.p2p.libp2p_multistream import propose, respond
from coppermesh.p2p.libp2p_pnet import topic_tag
from coppermesh.p2p.libp2p_punch import DCUTR
from coppermesh.p2p.libp2p_reach import Reach
from coppermesh.p2p.libp2p_tcp import share_port
from coppermesh.p2p.libp2p_upgrade import Identity, libp2p_id
from coppermesh.p2p.libp2p_yamux_stream import YamuxStream
from coppermesh.p2p.reachability import Probe
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import (
    DIAL_SECONDS,
    EVENT_BUFFER,
    MAX_GOSSIP_BYTES,
    Gossip,
    PeerDown,
    PeerPath,
    PeerUp,
    Stream,
    StreamHandler,
    Transport,
    TransportCounts,
    Validate,
)

MAX_HANDLERS = 4096
HOSTS_SECONDS = 1.0
"""How often a listener on every interface looks which ones there are."""
_log = logging.getLogger(__name__)


@asynccontextmanager
async def open_libp2p_transport(
    key: PeerKey,
    mesh: MeshId,
    *,
    listen: str = "/ip4/127.0.0.1/tcp/0",
    swarm_key: bytes | None = None,
    gate: Gate | None = None,
    gossip: bool = True,
    max_connections: int = MAX_CONNECTIONS,
) -> AsyncIterator[Transport]:
    """Attach to the network of `mesh` for the length of the block, listening on `listen` (port 0: any free one).

    `swarm_key` is around every connection (`libp2p_pnet`), `gate` decides who is let in on one (`gate`).
    Without `gossip` there are streams only. Of `max_connections` a quarter is kept for those that this side opens.

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
            transport = Libp2pTransport(
                key, mesh, nursery, swarm_key, gate, gossip=gossip, max_connections=max_connections
            )
            async with transport.run(kind, host, listeners):
                try:
                    yield transport
                except Exception as error:  # noqa: BLE001
                    # Kept out of the nurseries here, which would wrap the caller's own error in groups.
                    failure = error
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


class Libp2pTransport:
    """See `transport.Transport`. Made by `open_libp2p_transport`."""

    def __init__(
        self,
        key: PeerKey,
        mesh: MeshId,
        nursery: trio.Nursery,
        swarm_key: bytes | None = None,
        gate: Gate | None = None,
        *,
        gossip: bool = True,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.mesh = mesh
        self._gossips = gossip
        self._identity = Identity.of(key)
        self._nursery = nursery
        self._addresses: list[str] = []
        self._handlers: dict[str, StreamHandler] = {}
        self._running_handlers = 0
        self._closed = False
        self._counts = TransportCounts()
        self._events_in, self._events_out = trio.open_memory_channel[PeerUp | PeerDown](EVENT_BUFFER)
        self._connections = ConnectionTable(
            self._identity,
            nursery,
            self._counts,
            swarm_key=swarm_key,
            max_connections=max_connections,
            on_stream=self._on_stream,
            on_event=lambda event: self._doorkeeper.on_event(event),
            open_circuit=lambda target: self._reach.open_circuit(target),
            own_addresses=lambda: self.addresses,
        )
        self._doorkeeper = Doorkeeper(
            key.peer,
            gate,
            nursery,
            tell=self._tell,
            drop=self._connections.drop,
            open_stream=self._open_at_gate,
        )
        if gate is not None:
            self._handlers[gate.protocol] = self._doorkeeper.answer
        self._reach = Reach(
            key.peer, self._connections, nursery, open_stream=self._open, own=lambda: self._addresses
        )
        self._handlers[STOP] = self._reach.on_called
        self._handlers[DCUTR] = self._reach.on_punch
        self._host = GossipHost(self._identity, self._open, self._connections.__contains__, self._spoken)
        self._router = MeshGossipSub()
        self._pubsub = MeshPubsub(self._host, self._router, key.peer, self._cut_off, self._counts)
        self._connections.is_cut = lambda peer: self._pubsub.conduct.is_cut(peer, trio.current_time())

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

    @property
    def reach(self) -> Reach:
        """See `transport.Transport`."""
        return self._reach

    def events(self) -> trio.MemoryReceiveChannel[PeerUp | PeerDown]:
        """See `transport.Transport`."""
        return self._events_out

    def connected(self) -> list[PeerId]:
        """See `transport.Transport`."""
        return self._doorkeeper.only_in(self._connections.peers())

    def path_to(self, peer: PeerId) -> PeerPath | None:
        """See `transport.Transport`."""
        return self._connections.path_to(peer)

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """See `transport.Transport`."""
        if protocol in self._handlers or protocol in self._host.handlers:
            raise LocalProtocolError(f"{protocol} has a handler already")
        self._handlers[protocol] = handler

    # Life

    @asynccontextmanager
    async def run(
        self, kind: str, host: str, listeners: Sequence[trio.SocketListener]
    ) -> AsyncIterator[None]:
        """Gossip first, so that it hears of every connection; then the port."""
        port = listeners[0].socket.getsockname()[1]
        self._take_hosts(kind, reachable_hosts(host), port)
        if not is_loopback(host):
            for listener in listeners:
                share_port(listener)
            self._connections.local_port = port
        async with AsyncExitStack() as services:
            if self._gossips:
                await services.enter_async_context(background_trio_service(self._pubsub))
                await services.enter_async_context(background_trio_service(self._router))
                await self._pubsub.wait_until_ready()
            self._nursery.start_soon(self._connections.accept_forever, listeners)
            if reachable_hosts(host) != [host]:
                self._nursery.start_soon(self._watch_hosts, kind, host, port)
            try:
                yield
            finally:
                self._closed = True
                with trio.CancelScope(shield=True):
                    await self._connections.close()
                self._events_in.close()

    def _take_hosts(self, kind: str, hosts: Sequence[str], port: int) -> None:
        self._addresses = [str(Address(kind, host, port, self.peer)) for host in hosts]
        self._host.listen_addresses = [text.rpartition("/p2p/")[0] for text in self._addresses]

    async def _watch_hosts(self, kind: str, listening_on: str, port: int) -> None:
        """A laptop changes its network; a socket whose address is gone says nothing of it for many minutes."""
        known = reachable_hosts(listening_on)
        while True:
            await trio.sleep(HOSTS_SECONDS)
            try:
                hosts = reachable_hosts(listening_on)
            except OSError as error:  # no descriptor is left
                _log.debug("this machine's addresses cannot be read: %s", error)
                continue
            if hosts != known:
                _log.info("this machine's addresses are now %s", ", ".join(hosts))
                known = hosts
                self._take_hosts(kind, hosts, port)
                self._connections.drop_from_other_hosts(hosts)

    async def dial(self, address: str) -> PeerId:
        """See `transport.Transport`."""
        await trio.lowlevel.checkpoint()
        target = parse_address(address)
        if target.peer == self.peer:
            raise Unreachable(f"{address} is this agent itself")
        if self._connections.worth_dialling(target):
            await self._connections.dial(target)
        await self._doorkeeper.require_in(target.peer)
        return target.peer

    async def probe(self, address: str) -> Probe:
        """See `transport.Transport`."""
        await trio.lowlevel.checkpoint()
        target = parse_address(address)
        if target.relay is not None:
            raise Unreachable(f"{address}: leads through a relay")
        return await self._connections.probe(target)

    def _cut_off(self, peer: PeerId) -> None:
        self._counts.gossip_cut += 1
        self._connections.drop(peer, "cut off for what it gossiped")

    async def disconnect(self, peer: PeerId) -> None:
        """See `transport.Transport`."""
        await trio.lowlevel.checkpoint()
        self._connections.drop(peer, "disconnected")

    def _tell(self, event: PeerUp | PeerDown) -> None:
        if isinstance(event, PeerUp):
            self._reach.came(event)
        if not self._gossips:
            pass
        elif isinstance(event, PeerUp):
            self._pubsub.peer_up(libp2p_id(event.peer))
        else:
            self._pubsub.peer_down(libp2p_id(event.peer))
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
        if not self._doorkeeper.is_in(peer):
            raise Unreachable(f"{short_peer(peer)} is not connected")
        stream, _ = await self._open(peer, [protocol])
        self._counts.streams_opened += 1
        return stream

    async def _open_at_gate(self, peer: PeerId, protocol: str) -> Stream:
        return (await self._open(peer, [protocol]))[0]

    async def _open(self, peer: PeerId, protocols: Sequence[str]) -> tuple[YamuxStream, str]:
        connection = self._connections.newest(peer)
        with trio.move_on_after(DIAL_SECONDS):
            stream = await connection.open_stream()
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
            if not await self._doorkeeper.wait_in(stream.peer, protocol):
                self._counts.streams_refused += 1
                stream.break_off("it was not let in")
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
        return [*self._handlers, *(self._host.handlers if self._gossips else ())]

    # Gossip

    @asynccontextmanager
    async def subscribe(
        self, topic: str, validate: Validate
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Gossip]]:
        """See `transport.Transport`."""
        if not self._gossips or self._on_wire(topic) in self._pubsub.inboxes:
            raise LocalProtocolError(f"no gossip here, or already subscribed to {topic}")
        inbox = self._pubsub.inboxes[self._on_wire(topic)] = GossipInbox(
            self._doorkeeper.screened(topic, validate), self._counts
        )
        try:
            await self._pubsub.subscribe(self._on_wire(topic))
            yield inbox.receiver
        finally:
            del self._pubsub.inboxes[self._on_wire(topic)]
            inbox.close()
            # Queues a few messages and never waits for a peer.
            with trio.CancelScope(shield=True):
                await self._pubsub.unsubscribe(self._on_wire(topic))

    def _on_wire(self, topic: str) -> str:
        """A topic's name for other peers: in a private mesh it changes with the swarm key."""
        key = self._connections.swarm_key
        return topic if key is None else f"{topic}/{topic_tag(key)}"

    async def rekey(self, swarm_key: bytes) -> None:
        """See `transport.Transport`."""
        before = self._connections.swarm_key
        if before is None:
            raise LocalProtocolError("this transport has no swarm key to change")
        old, new = f"/{topic_tag(before)}", f"/{topic_tag(swarm_key)}"
        self._connections.swarm_key = swarm_key
        if old == new:
            return
        moved = [(name, name.removesuffix(old) + new) for name in self._pubsub.inboxes]
        for name, other in moved:
            self._pubsub.inboxes[other] = self._pubsub.inboxes.pop(name)
        # To the end, whoever asked for it and is gone: half of it would leave this agent deaf. Waits for no peer.
        with trio.CancelScope(shield=True):
            for name, other in moved:
                await self._pubsub.subscribe(other)
                await self._pubsub.unsubscribe(name)

    async def publish(self, topic: str, data: bytes) -> None:
        """See `transport.Transport`."""
        await trio.lowlevel.checkpoint()
        if len(data) > MAX_GOSSIP_BYTES:
            raise LocalProtocolError(f"gossip of {len(data)} bytes: at most {MAX_GOSSIP_BYTES} are allowed")
        self._counts.gossip_published += 1
        await self._pubsub.publish(self._on_wire(topic), bytes(data))


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
