"""The Transport interface: how bytes reach a peer, with the guarantees everything above may rely on.

Guarantees (the conformance suite in tests/conformance checks them on every implementation)
- **Identity.** The peer id of a connection, a stream or a gossip message is proven by that peer's key; what a handler
  is told is never what the other side merely claims.
- **Streams** are reliable, ordered, encrypted, full duplex, with back-pressure: `send_all` returns once the bytes are
  handed to the network or buffered within the window. A stream that broke raises `Unreachable`, from then on always.
  `receive_some` returns b"" only when the other side finished cleanly. Cancelling a send leaves the stream broken,
  never half a frame for the next caller.
- **Gossip** is best effort: a message may be lost, repeated or late, and one's own comes back never. `validate` runs
  before a message is delivered or forwarded; one that it refuses goes no further. A neighbour that forwards what
  nobody could have accepted, or floods, is disconnected and kept out for a while.
- **Bounds.** Dials and handshakes end within `DIAL_SECONDS`. Accepted but unhandled streams are reset. Nothing queues
  without limit.
- **Lifetime.** `async with` opens and closes everything; no task, socket or thread outlives the block.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import trio

from coppermesh.p2p.gossip_outcome import Outcome
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.reachability import Probe

DIAL_SECONDS = 10.0
MAX_GOSSIP_BYTES = 16 * 1024
EVENT_BUFFER = 1024
MAX_STREAMS = 256
"""Streams one side may have open on one connection."""


@dataclass(frozen=True, slots=True)
class PeerUp:
    """A connection to `peer` is open. `address` is where it was reached or came from."""

    peer: PeerId
    address: str
    outbound: bool


@dataclass(frozen=True, slots=True)
class PeerDown:
    """The last connection to `peer` is gone."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class PeerPath:
    """How a connected peer is reached now."""

    address: str
    """Where it was reached or came from."""
    outbound: bool
    """This agent dialled."""
    relay: PeerId | None
    """The relay that carries the connection; None where it is direct."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a relay has promised: to bring us callers."""

    relay: PeerId
    expires_unix: int
    """Seconds since the epoch, by the relay's clock."""
    addresses: tuple[str, ...]
    """Where the relay says it is."""
    circuit_seconds: int
    circuit_bytes: int
    """What one connection may use; 0: no limit."""


class Relaying(Protocol):
    """Being reached through relays."""

    candidates: list[str]
    """Where others have seen this agent from outside, without its peer id."""
    punches_holes: bool
    """Whether to turn relayed connections into direct ones."""

    async def reserve_at(self, relay: PeerId) -> Reservation:
        """Ask a connected relay to bring us callers, or to go on doing so.

        What it brings is taken from then on, until `leave`. Raises Refused (`unknown-protocol` where it is no relay),
        Unreachable, RemoteProtocolError.
        """

    def leave(self, relay: PeerId) -> None:
        """Take no more callers from that relay."""


@dataclass(frozen=True, slots=True)
class Gossip:
    """A message that passed `validate`. `source` signed it; `forwarder` handed it to us."""

    topic: str
    source: PeerId
    forwarder: PeerId
    data: bytes


@dataclass(slots=True)
class TransportCounts:
    """Running totals for status pages and tests."""

    dials: int = 0
    dials_failed: int = 0
    streams_opened: int = 0
    streams_refused: int = 0
    gossip_published: int = 0
    gossip_delivered: int = 0
    gossip_refused: int = 0
    gossip_copies: int = 0
    """Gossip messages that arrived, repeated ones included."""
    gossip_cut: int = 0
    """Neighbours that were cut off for what they forwarded."""


class Stream(Protocol):
    """One reliable byte stream to one peer. Every method raises `Unreachable` when the stream or peer is gone."""

    @property
    def peer(self) -> PeerId:
        """The proven id of the other side."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything. Cancelled in the middle: the stream is broken."""

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """At least one byte, or b"" when the other side finished sending."""

    async def receive_into(self, buffer: memoryview) -> None:
        """Fill `buffer` completely. Bytes in it mean nothing until this returned. EOF before that: Unreachable."""

    async def send_eof(self) -> None:
        """Finish sending; receiving goes on."""

    async def aclose(self) -> None:
        """Close both directions, quickly and without raising."""

    async def reset(self) -> None:
        """Abandon the stream so that the other side sees it broken, not finished."""


StreamHandler = Callable[[Stream], Awaitable[None]]
"""Called in a task of its own per accepted stream; the stream is closed when it returns and reset when it raises."""

Validate = Callable[[PeerId, bytes], bool | Outcome]
"""(source, data) -> deliver and forward? Fast, never raises. True is Outcome.FORWARD, False Outcome.DROP; what else
there is says something of the neighbour that forwarded it, and a stream of it cuts that neighbour off
(`gossip_conduct`)."""


class Transport(Protocol):
    """One agent's attachment to one mesh's network."""

    @property
    def peer(self) -> PeerId:
        """This agent's own id on this mesh."""

    @property
    def addresses(self) -> list[str]:
        """Full addresses others can dial: `/ip4/127.0.0.1/tcp/4001/p2p/12D3KooW...`."""

    @property
    def counts(self) -> TransportCounts:
        """Running totals."""

    def events(self) -> trio.MemoryReceiveChannel[PeerUp | PeerDown]:
        """Connections coming and going, in order. One reader; a reader that lags `EVENT_BUFFER` behind is a bug."""

    def connected(self) -> list[PeerId]:
        """Peers with an open connection now."""

    @property
    def reach(self) -> Relaying | None:
        """Relays; None where this transport knows none."""

    def path_to(self, peer: PeerId) -> PeerPath | None:
        """How `peer` is reached now; None where it is not connected."""

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """Accept streams of `protocol`. Call before the first dial."""

    async def dial(self, address: str) -> PeerId:
        """Connect to a full address, at most `DIAL_SECONDS`. Raises Unreachable, or RemoteProtocolError on a wrong
        key.

        A peer already connected returns at once, unless it is reached through a relay and the address is direct. An
        earlier failure never makes a later dial fail by itself. An address that cannot be read, and this agent's own,
        raise Unreachable: both come from other peers and lead nowhere.
        """

    async def probe(self, address: str) -> Probe:
        """Try a full address and have who answers prove its key, without connecting: nothing comes of it.

        For telling a peer whether it can be reached. No way that an earlier connection opened is used. Raises
        Unreachable where the address cannot be read.
        """

    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to `peer`; nothing if there is none."""

    async def open_stream(self, peer: PeerId, protocol: str) -> Stream:
        """A new stream to a connected peer, at most `DIAL_SECONDS`. Raises Unreachable; Refused if not spoken there.

        The code of that Refused is `unknown-protocol`. With `MAX_STREAMS` open to that peer it waits for one to end.
        """

    def subscribe(
        self, topic: str, validate: Validate
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Gossip]]:
        """Join a topic for the length of the block. A reader that lags loses the oldest messages, never blocks others.

        One subscription per topic: a second raises LocalProtocolError.
        """

    async def publish(self, topic: str, data: bytes) -> None:
        """Hand a message of at most `MAX_GOSSIP_BYTES` to gossip. Larger: LocalProtocolError."""

    async def rekey(self, swarm_key: bytes) -> None:
        """Go on with another swarm key in a private mesh: for new connections, and in the names of topics.

        Connections stay. Raises LocalProtocolError where there is none.
        """
