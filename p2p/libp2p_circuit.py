"""Circuit relay v2 on the wire: its messages, the client's two questions, and a relayed connection as a byte stream.

Source: libp2p circuit relay v2 specification (`/libp2p/circuit/relay/0.2.0/hop` and `.../stop`). Messages are
protobufs behind a varint length. After `STATUS: OK` the stream carries the connection itself, from end to end: our
Noise and yamux run over it unchanged, so the relay sees ciphertext, and the peer itself proves its key.
"""

from typing import Any, TypeVar, cast

import trio
from google.protobuf.message import DecodeError, Message
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Limit, StopMessage
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from coppermesh.p2p.addresses import parse_address
from coppermesh.p2p.errors import Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import PeerId, short_peer
from coppermesh.p2p.libp2p_host import encode_varint
from coppermesh.p2p.libp2p_upgrade import libp2p_id, peer_of
from coppermesh.p2p.transport import Reservation, Stream

HOP = "/libp2p/circuit/relay/0.2.0/hop"
STOP = "/libp2p/circuit/relay/0.2.0/stop"
OK = 100
MALFORMED = 400
UNEXPECTED = 401
MAX_MESSAGE_BYTES = 4096
MAX_ADDRESSES = 8
_SAID_NO = {
    200: ("relay-full", "it takes no more reservations"),
    201: ("relay-limit", "it carries as many connections as it can"),
    202: ("relay-permission", "it does not let us"),
    203: ("relay-failed", "it could not reach the other side"),
    204: ("no-reservation", "the other side has no reservation there"),
}

M = TypeVar("M", bound=Message)


# Messages


async def read_message(stream: Stream, kind: type[M]) -> M:
    """The next message, reading not one byte too many. Raises RemoteProtocolError, Unreachable."""
    size = shift = 0
    while True:
        byte = (await _exactly(stream, 1))[0]
        size |= (byte & 127) << shift
        if not byte & 128:
            break
        shift += 7
        if shift > 14:
            raise RemoteProtocolError("relay: a message length of more than three bytes")
    if size > MAX_MESSAGE_BYTES:
        raise RemoteProtocolError(f"relay: a message of {size} bytes, at most {MAX_MESSAGE_BYTES}")
    message = kind()
    try:
        message.ParseFromString(await _exactly(stream, size))
    except DecodeError as error:
        raise RemoteProtocolError(f"relay: a message that is none: {error}") from None
    return message


async def write_message(stream: Stream, message: Message) -> None:
    """Send one message. Raises Unreachable."""
    data = message.SerializeToString()
    await stream.send_all(encode_varint(len(data)) + data)


async def _exactly(stream: Stream, count: int) -> bytes:
    data = bytearray(count)
    await stream.receive_into(memoryview(data))
    return bytes(data)


def peer_in(message: HopMessage | StopMessage) -> PeerId:
    """The peer a message names. Raises RemoteProtocolError."""
    if not message.HasField("peer"):
        raise RemoteProtocolError("relay: a message that names no peer")
    return peer_of(message.peer.id)


def id_bytes(peer: PeerId) -> bytes:
    """A peer id as these messages have it."""
    return libp2p_id(peer).to_bytes()


def address_bytes(text: str) -> bytes:
    """An address as these messages have it. Raises Unreachable where it is none."""
    try:
        return bytes(Multiaddr(text).to_bytes())
    except (MultiaddrError, ValueError) as error:
        raise Unreachable(f"an address that cannot be said: {error}") from None


def address_text(data: bytes) -> str:
    """The inverse of `address_bytes`, for a stranger's bytes. Raises Unreachable where they are no address."""
    try:
        return str(Multiaddr(data))
    except (MultiaddrError, ValueError, TypeError, IndexError, KeyError) as error:
        raise Unreachable(f"an address that cannot be read: {error}") from None


def as_status(status: int) -> Any:
    """A status as the messages' constructors want it: their stubs know an enumeration, the library plain numbers."""
    return status


def limit_of(seconds: int, count: int) -> Limit:
    """A circuit's limits as these messages have them."""
    return Limit(duration=seconds, data=count)


# The client's questions


async def reserve(stream: Stream) -> Reservation:
    """Ask the relay at the other end to let others reach us. Raises Refused, RemoteProtocolError, Unreachable."""
    await write_message(stream, HopMessage(type=HopMessage.RESERVE))
    answer = await read_message(stream, HopMessage)
    _check_status(answer.type == HopMessage.STATUS, answer.status, stream.peer)
    if not answer.HasField("reservation"):
        raise RemoteProtocolError("relay: a reservation without its terms")
    addresses = []
    for data in list(answer.reservation.addrs)[:MAX_ADDRESSES]:
        try:
            text = address_text(data)
            parse_address(text)
        except Unreachable:
            continue  # one that we cannot speak to
        addresses.append(text)
    limit = answer.limit
    return Reservation(stream.peer, answer.reservation.expire, tuple(addresses), limit.duration, limit.data)


async def connect(stream: Stream, target: PeerId) -> None:
    """Ask the relay to connect this stream with `target`. Raises Refused, RemoteProtocolError, Unreachable."""
    request = HopMessage(type=HopMessage.CONNECT)
    request.peer.id = id_bytes(target)
    await write_message(stream, request)
    answer = await read_message(stream, HopMessage)
    _check_status(answer.type == HopMessage.STATUS, answer.status, stream.peer)


def _check_status(is_status: bool, status: int, relay: PeerId) -> None:
    if not is_status:
        raise RemoteProtocolError("relay: an answer that is no status")
    if status != OK:
        code, why = _SAID_NO.get(status, ("relay-refused", f"it says {status}"))
        raise Refused(code, f"the relay {short_peer(relay)} refused: {why}")


async def accept(stream: Stream) -> PeerId:
    """The relay at the other end says that somebody calls; who. Raises RemoteProtocolError, Unreachable."""
    request = await read_message(stream, StopMessage)
    if request.type != StopMessage.CONNECT:
        await write_message(stream, StopMessage(type=StopMessage.STATUS, status=as_status(UNEXPECTED)))
        raise RemoteProtocolError("relay: a stop stream that does not begin with CONNECT")
    caller = peer_in(request)
    await write_message(stream, StopMessage(type=StopMessage.STATUS, status=as_status(OK)))
    return caller


# The connection


class RelayedStream:
    """A stream through a relay in the place of a TCP stream: same methods, same exceptions. `socket` is itself."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    @property
    def socket(self) -> "RelayedStream":
        """What `recv` and `recv_into` are called on."""
        return self

    def as_wire(self) -> trio.SocketStream:
        """For those who ask for a TCP stream by type, and use no more of it than is here."""
        return cast("trio.SocketStream", self)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See trio.SocketStream."""
        try:
            await self._stream.send_all(data)
        except Unreachable as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """See trio.SocketStream."""
        try:
            return await self._stream.receive_some(max_bytes)
        except Unreachable as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def recv(self, max_bytes: int) -> bytes:
        """See trio.socket."""
        try:
            return await self._stream.receive_some(max_bytes)
        except Unreachable as error:
            raise OSError(str(error)) from error

    async def recv_into(self, buffer: memoryview) -> int:
        """See trio.socket."""
        data = await self.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    async def aclose(self) -> None:
        """Break the stream: a connection that ends has said its goodbye before, inside."""
        await self._stream.reset()
