"""Being a relay: circuit relay v2's hop protocol, with `relay_book`'s limits.

Theory of operation. A peer that cannot be reached opens a hop stream and reserves. Another one opens a hop stream and
asks for it; we open a stop stream to the peer with the reservation, say who calls, and when both have agreed join the
two streams: two tasks copy, one for each direction, until either side ends or a limit is reached. Back-pressure is that
of the two streams, so a slow reader costs the relay one buffer. What passes is ciphertext between the two.

`admits` is asked for reserving and for calling, so that a relay of a mesh carries for its members only.
"""

import logging
import time
from collections.abc import Callable, Sequence

import trio
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, StopMessage

from coppermesh.p2p.addresses import parse_address
from coppermesh.p2p.errors import MeshError, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import PeerId, short_peer
from coppermesh.p2p.libp2p_circuit import (
    HOP,
    MALFORMED,
    OK,
    STOP,
    UNEXPECTED,
    address_bytes,
    as_status,
    id_bytes,
    limit_of,
    peer_in,
    read_message,
    write_message,
)
from coppermesh.p2p.relay_book import Circuit, RelayBook, RelayLimits, RelayRefusal
from coppermesh.p2p.transport import Stream, Transport

REQUEST_SECONDS = 10.0
PIECE_BYTES = 256 * 1024

_log = logging.getLogger(__name__)


class RelayServer:
    """Carries connections for peers of `transport`. `addresses`: where others reach this relay, for reservations."""

    def __init__(
        self,
        transport: Transport,
        limits: RelayLimits,
        *,
        admits: Callable[[PeerId], bool],
        addresses: Callable[[], Sequence[str]],
    ) -> None:
        self.book = RelayBook(limits)
        self.bytes_carried = 0
        self._transport = transport
        self._admits = admits
        self._addresses = addresses
        transport.handle(HOP, self._serve)

    def peer_left(self, peer: PeerId) -> None:
        """To be told, since the transport's events have one reader."""
        self.book.left(peer)

    async def _serve(self, stream: Stream) -> None:
        """The handler of hop streams."""
        try:
            with trio.fail_after(REQUEST_SECONDS):
                request = await read_message(stream, HopMessage)
            if request.type == HopMessage.RESERVE:
                await self._reserve(stream)
            elif request.type == HopMessage.CONNECT:
                await self._connect(stream, peer_in(request))
            else:
                await _say(stream, UNEXPECTED)
        except trio.TooSlowError:
            raise Unreachable(f"{short_peer(stream.peer)} asked for nothing") from None
        except RemoteProtocolError:
            await _say(stream, MALFORMED)
            raise

    async def _reserve(self, stream: Stream) -> None:
        peer = stream.peer
        path = self._transport.path_to(peer)
        if path is None or path.relay is not None or not self._admits(peer):
            # A relay behind a relay would make chains of them, and nobody could be held to anything.
            await _say(stream, RelayRefusal.PERMISSION.value)
            return
        given = self.book.reserve(peer, _host_in(path.address), trio.current_time())
        if isinstance(given, RelayRefusal):
            await _say(stream, given.value)
            return
        limits = self.book.limits
        answer = HopMessage(type=HopMessage.STATUS, status=as_status(OK))
        # Rounded up, so that a whole second is never missing at the other side.
        answer.reservation.expire = int(time.time() + limits.reservation_seconds) + 1
        answer.reservation.addrs.extend(address_bytes(text) for text in self._addresses())
        answer.limit.CopyFrom(limit_of(limits.circuit_seconds, limits.circuit_bytes))
        await write_message(stream, answer)

    async def _connect(self, stream: Stream, target: PeerId) -> None:
        if not self._admits(stream.peer):
            await _say(stream, RelayRefusal.PERMISSION.value)
            return
        path = self._transport.path_to(stream.peer)
        host = "" if path is None else _host_in(path.address)
        circuit = self.book.open_circuit(stream.peer, target, trio.current_time(), host)
        if isinstance(circuit, RelayRefusal):
            await _say(stream, circuit.value)
            return
        try:
            onward = await self._call(circuit)
            if onward is None:
                await _say(stream, RelayRefusal.FAILED.value)
                return
            try:
                await _say(stream, OK)
                await self._carry(stream, onward)
            finally:
                with trio.CancelScope(shield=True):
                    await onward.reset()
        finally:
            self.book.close_circuit(circuit)

    async def _call(self, circuit: Circuit) -> Stream | None:
        """A stream to the called peer that has agreed; None where it did not."""
        try:
            with trio.fail_after(REQUEST_SECONDS):
                onward = await self._transport.open_stream(circuit.target, STOP)
                try:
                    request = StopMessage(type=StopMessage.CONNECT)
                    request.peer.id = id_bytes(circuit.source)
                    limits = self.book.limits
                    request.limit.CopyFrom(limit_of(limits.circuit_seconds, limits.circuit_bytes))
                    await write_message(onward, request)
                    answer = await read_message(onward, StopMessage)
                    if answer.type == StopMessage.STATUS and answer.status == OK:
                        return onward
                except BaseException:
                    with trio.CancelScope(shield=True):
                        await onward.reset()
                    raise
                await onward.reset()
        except (MeshError, trio.TooSlowError) as error:
            _log.debug("cannot call %s: %s", short_peer(circuit.target), error)
        return None

    async def _carry(self, one: Stream, other: Stream) -> None:
        """Join the two streams until either ends or the circuit's time is over."""
        seconds = self.book.limits.circuit_seconds or float("inf")
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._copy, one, other, nursery.cancel_scope)
                nursery.start_soon(self._copy, other, one, nursery.cancel_scope)
        # Either way it is over for both: the connection inside cannot go on with half of it.
        with trio.CancelScope(shield=True):
            await one.reset()

    async def _copy(self, source: Stream, sink: Stream, scope: trio.CancelScope) -> None:
        left = self.book.limits.circuit_bytes or float("inf")
        try:
            while data := await source.receive_some(PIECE_BYTES):
                left -= len(data)
                if left < 0:
                    _log.info("a circuit of %s has used up its bytes", short_peer(source.peer))
                    break
                await sink.send_all(data)
                self.bytes_carried += len(data)
            else:
                # One direction may end first: what is under way in the other still arrives.
                await sink.send_eof()
                return
        except MeshError:
            pass
        scope.cancel()


async def _say(stream: Stream, status: int) -> None:
    await write_message(stream, HopMessage(type=HopMessage.STATUS, status=as_status(status)))


def _host_in(address: str) -> str:
    """The host of a connection's address, full or not."""
    parts = address.split("/")
    return parts[2] if len(parts) > 2 else ""


def through(relay_address: str, peer: PeerId) -> str:
    """The address of `peer` through the relay at `relay_address`. Raises Unreachable where that is none."""
    relay = parse_address(relay_address)
    return str(relay._replace(peer=peer, relay=relay.peer))
