"""One peer's attachment to a `MemoryNetwork`: implements `transport.Transport`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from coppermesh.p2p.addresses import Address, parse_address
from coppermesh.p2p.errors import LocalProtocolError, MeshError, Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.gate import Doorkeeper, Gate
from coppermesh.p2p.gossip_conduct import Deed, GossipConduct
from coppermesh.p2p.gossip_inbox import GossipInbox, SeenMessages
from coppermesh.p2p.gossip_outcome import Outcome
from coppermesh.p2p.ids import PeerId, short_peer
from coppermesh.p2p.memory_stream import MemoryStream, memory_stream_pair
from coppermesh.p2p.reachability import Probe
from coppermesh.p2p.transport import (
    DIAL_SECONDS,
    EVENT_BUFFER,
    MAX_GOSSIP_BYTES,
    MAX_STREAMS,
    Gossip,
    PeerDown,
    PeerPath,
    PeerUp,
    StreamHandler,
    TransportCounts,
    Validate,
)

if TYPE_CHECKING:
    from coppermesh.p2p.memory_transport import MemoryNetwork

WINDOW_BYTES = 64 * 1024
MAX_GOSSIP_UNDER_WAY = 1024
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Link:
    """This peer's side of its connection to another."""

    address: str
    outbound: bool
    streams: set[MemoryStream] = field(default_factory=set)
    opened: int = 0
    room: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(MAX_STREAMS))


@dataclass(frozen=True, slots=True)
class _Envelope:
    """A gossip message under way."""

    topic: str
    source: PeerId
    number: int
    data: bytes
    swarm_key: bytes | None = None
    """In its place, topics' names on a real wire change with the swarm key."""


class MemoryTransport:
    """See `transport.Transport`. Made by `MemoryNetwork.transport`."""

    def __init__(
        self,
        network: MemoryNetwork,
        peer: PeerId,
        address: str,
        nursery: trio.Nursery,
        *,
        swarm_key: bytes | None = None,
        gate: Gate | None = None,
    ) -> None:
        self._network = network
        self._peer = peer
        self._address = address
        self._nursery = nursery
        self._links: dict[PeerId, _Link] = {}
        self.swarm_key = swarm_key
        self._doorkeeper = Doorkeeper(
            peer,
            gate,
            nursery,
            tell=self._tell,
            drop=lambda other, reason: network.cut(peer, other, reason=reason),
            open_stream=self._open_at_gate,
        )
        self._handlers: dict[str, StreamHandler] = {}
        if gate is not None:
            self._handlers[gate.protocol] = self._doorkeeper.answer
        self._inboxes: dict[str, GossipInbox] = {}
        self._seen = SeenMessages()
        self._published = 0
        self._gossip_under_way = 0
        self._gone: str | None = None
        self._counts = TransportCounts()
        self.conduct = GossipConduct()
        self._events_in, self._events_out = trio.open_memory_channel[PeerUp | PeerDown](EVENT_BUFFER)

    @property
    def peer(self) -> PeerId:
        """See `transport.Transport`."""
        return self._peer

    @property
    def addresses(self) -> list[str]:
        """See `transport.Transport`."""
        return [self._address]

    @property
    def counts(self) -> TransportCounts:
        """See `transport.Transport`."""
        return self._counts

    def events(self) -> trio.MemoryReceiveChannel[PeerUp | PeerDown]:
        """See `transport.Transport`."""
        return self._events_out

    def connected(self) -> list[PeerId]:
        """See `transport.Transport`."""
        return self._doorkeeper.only_in(list(self._links))

    @property
    def reach(self) -> None:
        """See `transport.Transport`."""
        return None

    def path_to(self, peer: PeerId) -> PeerPath | None:
        """See `transport.Transport`."""
        link = self._links.get(peer)
        return None if link is None else PeerPath(link.address, link.outbound, None)

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """See `transport.Transport`."""
        if protocol in self._handlers:
            raise LocalProtocolError(f"{protocol} has a handler already")
        self._handlers[protocol] = handler

    async def dial(self, address: str) -> PeerId:
        """See `transport.Transport`."""
        await trio.lowlevel.checkpoint()
        self._check_attached()
        target = parse_address(address)
        if target.peer == self._peer:
            raise Unreachable(f"{address} is this agent itself")
        if target.peer not in self._links:
            await self._dial_new(address, target)
        await self._doorkeeper.require_in(target.peer)
        return target.peer

    async def _dial_new(self, address: str, target: Address) -> None:
        self._counts.dials += 1
        try:
            with trio.move_on_after(DIAL_SECONDS):
                await trio.sleep(2 * self._network.latency_s)
                self._check_attached()
                other = self._network.resolve(self._peer, target.port, target.peer)
                now = trio.current_time()
                if self.conduct.is_cut(target.peer, now) or other.conduct.is_cut(self._peer, now):
                    raise Unreachable(f"{short_peer(target.peer)}: cut off for what was gossiped")
                if target.peer not in self._links:
                    other.link(self._peer, self._address, outbound=False)
                    self.link(target.peer, address, outbound=True)
                return
            raise Unreachable(f"{address}: no answer within {DIAL_SECONDS:g} s")
        except MeshError:
            self._counts.dials_failed += 1
            raise

    async def probe(self, address: str) -> Probe:
        """See `transport.Transport`."""
        await trio.lowlevel.checkpoint()
        self._check_attached()
        target = parse_address(address)
        await trio.sleep(2 * self._network.latency_s)
        try:
            self._network.resolve(self._peer, target.port, target.peer)
        except Unreachable:
            return Probe.SILENT
        except RemoteProtocolError:
            return Probe.OTHER
        return Probe.REACHED

    async def disconnect(self, peer: PeerId) -> None:
        """See `transport.Transport`."""
        await trio.lowlevel.checkpoint()
        if peer in self._links:
            self._network.cut(self._peer, peer, reason="disconnected")

    async def open_stream(self, peer: PeerId, protocol: str) -> MemoryStream:
        """See `transport.Transport`."""
        await trio.lowlevel.checkpoint()
        if not self._doorkeeper.is_in(peer):
            raise Unreachable(f"{short_peer(peer)} is not connected")
        return await self._open_at_gate(peer, protocol)

    async def _open_at_gate(self, peer: PeerId, protocol: str) -> MemoryStream:
        link = self._link_to(peer)
        deadline = trio.current_time() + DIAL_SECONDS
        with trio.move_on_at(deadline) as waiting:
            await link.room.acquire()
        if waiting.cancelled_caught:
            raise Unreachable(f"{short_peer(peer)}: {MAX_STREAMS} streams are open already")
        try:
            with trio.move_on_at(deadline) as waiting:
                await trio.sleep(2 * self._network.latency_s)
            if waiting.cancelled_caught or self._links.get(peer) is not link:
                raise Unreachable(f"{short_peer(peer)} left, or gave no answer within {DIAL_SECONDS:g} s")
            mine = self._accept_at(peer, protocol, link)
        except BaseException:
            link.room.release()
            raise
        self._counts.streams_opened += 1
        return mine

    def _accept_at(self, peer: PeerId, protocol: str, link: _Link) -> MemoryStream:
        other = self._network.attached(peer)
        if other is None:
            raise Unreachable(f"{short_peer(peer)} left")
        handler = other.handler_for(protocol)
        if handler is None:
            raise Refused("unknown-protocol", f"{short_peer(peer)} does not speak {protocol}")
        mine: MemoryStream

        def gone(stream: MemoryStream) -> None:
            if stream is mine and stream in link.streams:
                link.streams.discard(stream)
                link.room.release()
            elif stream is not mine:
                other.forget_stream(self._peer, stream)

        mine, theirs = memory_stream_pair(
            self._peer,
            peer,
            window=self._network.window_bytes,
            latency_s=self._network.latency_s,
            on_gone=gone,
        )
        link.streams.add(mine)
        other.accept(self._peer, theirs, handler, protocol)
        return mine

    @asynccontextmanager
    async def subscribe(
        self, topic: str, validate: Validate
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Gossip]]:
        """See `transport.Transport`."""
        self._check_attached()
        if topic in self._inboxes:
            raise LocalProtocolError(f"already subscribed to {topic}")
        inbox = self._inboxes[topic] = GossipInbox(self._doorkeeper.screened(topic, validate), self._counts)
        try:
            yield inbox.receiver
        finally:
            del self._inboxes[topic]
            inbox.close()

    async def publish(self, topic: str, data: bytes) -> None:
        """See `transport.Transport`."""
        await trio.lowlevel.checkpoint()
        self._check_attached()
        if len(data) > MAX_GOSSIP_BYTES:
            raise LocalProtocolError(f"gossip of {len(data)} bytes: at most {MAX_GOSSIP_BYTES} are allowed")
        self._published += 1
        self._counts.gossip_published += 1
        envelope = _Envelope(topic, self._peer, self._published, bytes(data), self.swarm_key)
        self._seen.add((envelope.source, envelope.number))
        self._spread(envelope, came_from=self._peer)

    async def rekey(self, swarm_key: bytes) -> None:
        """See `transport.Transport`."""
        await trio.lowlevel.checkpoint()
        if self.swarm_key is None:
            raise LocalProtocolError("this transport has no swarm key to change")
        self.swarm_key = swarm_key

    # What the network and the other peers' transports call.

    def handler_for(self, protocol: str) -> StreamHandler | None:
        """The handler of `protocol` here, counting a refusal where there is none."""
        handler = self._handlers.get(protocol)
        if handler is None:
            self._counts.streams_refused += 1
        return handler

    def link(self, peer: PeerId, address: str, *, outbound: bool) -> None:
        """A connection to `peer` is open."""
        self._links[peer] = _Link(address, outbound)
        self._doorkeeper.on_event(PeerUp(peer, address, outbound))

    def drop(self, peer: PeerId, reason: str) -> None:
        """The connection to `peer` is gone; nothing if there was none."""
        link = self._links.pop(peer, None)
        if link is None:
            return
        for stream in list(link.streams):
            stream.break_off(f"{short_peer(peer)}: {reason}")
        self._doorkeeper.on_event(PeerDown(peer, reason))

    def detach(self, reason: str) -> None:
        """Leave the network: every connection breaks at both ends, then nothing works any more."""
        if self._gone is not None:
            return
        self._gone = reason
        for peer in list(self._links):
            self.drop(peer, reason)
            other = self._network.attached(peer)
            if other is not None:
                other.drop(self._peer, reason)
        self._events_in.close()

    def accept(self, peer: PeerId, stream: MemoryStream, handler: StreamHandler, protocol: str) -> None:
        """Serve a stream that `peer` opened."""
        self._links[peer].streams.add(stream)
        self._nursery.start_soon(self._serve, stream, handler, protocol)

    def forget_stream(self, peer: PeerId, stream: MemoryStream) -> None:
        """A served stream ended."""
        link = self._links.get(peer)
        if link is not None:
            link.streams.discard(stream)

    def gossip_arrives(self, envelope: _Envelope, forwarder: PeerId, delay_s: float) -> None:
        """A hop of a message is under way to this peer; dropped when too many are."""
        if self._gone is None and self._gossip_under_way < MAX_GOSSIP_UNDER_WAY:
            self._gossip_under_way += 1
            self._nursery.start_soon(self._receive_gossip, envelope, forwarder, delay_s)

    async def _receive_gossip(self, envelope: _Envelope, forwarder: PeerId, delay_s: float) -> None:
        try:
            await trio.sleep(delay_s)
        finally:
            self._gossip_under_way -= 1
        inbox = self._inboxes.get(envelope.topic)
        if inbox is None or envelope.source == self._peer or envelope.swarm_key != self.swarm_key:
            return
        if forwarder not in self._links or not self._doorkeeper.is_in(forwarder):
            return
        message = Gossip(envelope.topic, envelope.source, forwarder, envelope.data)
        first_time = self._seen.add((envelope.source, envelope.number))
        outcome = inbox.offer(message)
        if outcome is Outcome.FORWARD and first_time:
            self._spread(envelope, came_from=forwarder)
        deed = Deed.of(outcome) if first_time else Deed.REPEATED
        if deed is not None and self.conduct.note(forwarder, deed, trio.current_time()):
            self._counts.gossip_cut += 1
            self._network.cut(self._peer, forwarder, reason="cut off for what it gossiped")

    def _spread(self, envelope: _Envelope, *, came_from: PeerId) -> None:
        for peer in self._links:
            other = self._network.attached(peer)
            if other is None or peer in (came_from, envelope.source) or not self._doorkeeper.is_in(peer):
                continue
            for delay_s in self._network.gossip_delays():
                other.gossip_arrives(envelope, self._peer, delay_s)

    async def _serve(self, stream: MemoryStream, handler: StreamHandler, protocol: str) -> None:
        try:
            if not await self._doorkeeper.wait_in(stream.peer, protocol):
                self._counts.streams_refused += 1
                raise Unreachable("it was not let in")
            await handler(stream)
        except MeshError as error:
            _log.debug("stream with %s ended: %s", short_peer(stream.peer), error)
            stream.break_off(f"{short_peer(self._peer)} gave the stream up")
        except Exception:  # noqa: BLE001
            # A handler's bug ends its own conversation; the other peers must not pay for it.
            _log.exception("stream handler failed")
            stream.break_off(f"{short_peer(self._peer)} gave the stream up")
        except BaseException:
            stream.break_off(f"{short_peer(self._peer)} gave the stream up")
            raise
        else:
            stream.close_now()

    def _link_to(self, peer: PeerId) -> _Link:
        self._check_attached()
        link = self._links.get(peer)
        if link is None:
            raise Unreachable(f"{short_peer(peer)} is not connected")
        return link

    def _check_attached(self) -> None:
        if self._gone is not None:
            raise Unreachable(f"this agent is off the network: {self._gone}")

    def _tell(self, event: PeerUp | PeerDown) -> None:
        try:
            self._events_in.send_nowait(event)
        except trio.WouldBlock:
            _log.error("nobody reads transport events: %s was dropped", event)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass
