"""The few parts of a libp2p host that gossipsub, identify and ping need, over our own connections.

py-libp2p's own host and swarm are not used: connections, streams and their limits are libp2p_transport's. What is
here looks to the library like its host, network and stream, so that its gossipsub runs on them unchanged.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio
from libp2p.crypto.keys import PrivateKey, PublicKey
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamClosed, StreamEOF, StreamReset
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from coppermesh.p2p.errors import Unreachable
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.libp2p_upgrade import Identity, libp2p_id, peer_of
from coppermesh.p2p.libp2p_yamux_stream import YamuxStream

IDENTIFY = "/ipfs/id/1.0.0"
PING = "/ipfs/ping/1.0.0"
PING_BYTES = 32

HostHandler = Callable[["HostStream"], Awaitable[None]]
OpenStream = Callable[[PeerId, Sequence[str]], Awaitable[tuple[YamuxStream, str]]]


class _MuxedConnection:
    """What the library reads of a stream's connection."""

    def __init__(self, peer_id: ID) -> None:
        self.peer_id = peer_id
        self.is_closed = False


class HostStream:
    """A stream as the library wants it: its method names, its exceptions, several senders at once."""

    metric_send_channel = None

    def __init__(self, stream: YamuxStream, protocol: str) -> None:
        self.stream = stream
        self.muxed_conn = _MuxedConnection(libp2p_id(stream.peer))
        self._protocol = protocol
        self._sending = trio.Lock()

    def get_protocol(self) -> str:
        """The protocol agreed on."""
        return self._protocol

    async def read(self, count: int | None = None) -> bytes:
        """1 to `count` bytes. Raises StreamEOF or StreamReset."""
        try:
            data = await self.stream.receive_some(count or 65536)
        except Unreachable as error:
            raise StreamReset(str(error)) from error
        if not data:
            raise StreamEOF
        return data

    async def read_exactly(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises StreamEOF or StreamReset."""
        data = bytearray()
        while len(data) < count:
            data += await self.read(count - len(data))
        return bytes(data)

    async def write(self, data: bytes) -> None:
        """Send everything. Raises StreamClosed."""
        try:
            async with self._sending:
                await self.stream.send_all(data)
        except Unreachable as error:
            raise StreamClosed(str(error)) from error

    async def close(self) -> None:
        """Close both directions."""
        await self.stream.aclose()

    async def reset(self) -> None:
        """Break the stream."""
        await self.stream.reset()


class _EmptyPeerRecord:
    """Stands for the signed address record that the library would attach to each message; we send none."""

    def _env_addrs_set(self) -> set[Multiaddr]:
        return set()

    def marshal_envelope(self) -> bytes:
        return b""


class _PeerStore:
    def get_local_record(self) -> _EmptyPeerRecord:
        return _EmptyPeerRecord()


class GossipHost:
    """Looks like the library's host and network to its Pubsub and GossipSub."""

    def __init__(
        self,
        identity: Identity,
        open_stream: OpenStream,
        is_connected: Callable[[PeerId], bool],
        spoken: Callable[[], Sequence[str]],
    ) -> None:
        self.handlers: dict[str, HostHandler] = {IDENTIFY: self._identify, PING: _answer_pings}
        self.listen_addresses: list[str] = []
        self._spoken = spoken
        self._identity = identity
        self._id = libp2p_id(identity.peer)
        self._open_stream = open_stream
        self._is_connected = is_connected
        self._peer_store = _PeerStore()

    def get_id(self) -> ID:
        """Our own id."""
        return self._id

    def get_private_key(self) -> PrivateKey:
        """What gossip messages are signed with."""
        return self._identity.signing.private_key

    def get_public_key(self) -> PublicKey:
        """Its public half."""
        return self._identity.signing.public_key

    def get_network(self) -> "GossipHost":
        """This object plays the network too."""
        return self

    def get_peerstore(self) -> _PeerStore:
        """Holds no addresses: discovery has its own."""
        return self._peer_store

    def get_addrs(self) -> list[Multiaddr]:
        """No addresses go into gossip messages."""
        return []

    def register_notifee(self, notifee: Any) -> None:
        """Ignored: the transport tells Pubsub itself, in order."""

    def get_connections(self, peer_id: ID) -> list[Any]:
        """Only asked for whether there are any."""
        return [HostConnection(peer_id)] if self._is_connected(peer_of(peer_id.to_bytes())) else []

    def set_stream_handler(self, protocol: str, handler: HostHandler) -> None:
        """Serve `protocol`."""
        self.handlers[protocol] = handler

    async def new_stream(self, peer_id: ID, protocols: Sequence[str]) -> HostStream:
        """A stream on the first protocol the peer speaks. Raises SwarmException; Refused when it speaks none."""
        try:
            stream, protocol = await self._open_stream(peer_of(peer_id.to_bytes()), protocols)
        except Unreachable as error:
            raise SwarmException(str(error)) from error
        return HostStream(stream, protocol)

    async def _identify(self, stream: HostStream) -> None:
        message = Identify(
            protocol_version="ipfs/0.1.0",
            agent_version="coppermesh",
            public_key=self.get_public_key().serialize(),
            listen_addrs=[Multiaddr(text).to_bytes() for text in self.listen_addresses],
            protocols=list(self._spoken()),
        ).SerializeToString()
        await stream.write(encode_varint(len(message)) + message)


class HostConnection:
    """A connection as `get_connections` shows it."""

    def __init__(self, peer_id: ID) -> None:
        self.muxed_conn = _MuxedConnection(peer_id)


async def _answer_pings(stream: HostStream) -> None:
    while True:
        try:
            await stream.write(await stream.read_exactly(PING_BYTES))
        except StreamEOF:
            return


def encode_varint(number: int) -> bytes:
    """Unsigned LEB128."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
