"""From a relayed connection to a direct one: libp2p's DCUtR, a TCP connection that both sides open at the same moment.

Theory of operation (libp2p DCUtR specification). Two peers that each sit behind a router talk through a relay. Each has
been told by somebody outside how its router translates its port. Over the relayed connection they tell each other; then
both dial at once. Each router sees its own machine's packet leave first and lets the other one's in: it is the answer
to something, as far as the router knows. TCP allows two sides to open one connection together.

The side that was called through the relay begins. It measures the time there and back with its first message, says
SYNC, waits half that time and dials; the other dials when SYNC arrives. Both dial from the port they listen on. Of one
TCP connection that both opened, the side that began is the initiator of everything inside (Noise, yamux).

An address comes from a stranger, so it is dialled only where `may_be_dialled` lets it, and only `MAX_ADDRESSES` of
them, `TRIES` times: this is no means to have others knock on doors. It works with routers that translate one inner port
to one outer port whoever it talks to; with others the connection stays relayed.
"""

import logging
from collections.abc import Callable, Sequence

import trio
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch

from coppermesh.p2p.addresses import Address, parse_address
from coppermesh.p2p.dial_plan import may_be_dialled
from coppermesh.p2p.errors import MeshError, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import PeerId, format_peer, short_peer
from coppermesh.p2p.libp2p_circuit import address_bytes, address_text, read_message, write_message
from coppermesh.p2p.libp2p_connections import ConnectionTable
from coppermesh.p2p.libp2p_tcp import shared_socket
from coppermesh.p2p.transport import Stream

DCUTR = "/libp2p/dcutr"
MAX_ADDRESSES = 4
TRIES = 3
TALK_SECONDS = 10.0
CONNECT_SECONDS = 4.0
"""Long enough for the kernel's second and third try of a first packet that came too early."""

_log = logging.getLogger(__name__)


class HolePuncher:
    """Tries to replace relayed connections of `table` by direct ones.

    `candidates`: where this agent may be reached from outside, as far as it knows, without its peer id; `own`: its full
    addresses.
    """

    def __init__(
        self,
        table: ConnectionTable,
        *,
        candidates: Callable[[], Sequence[str]],
        own: Callable[[], Sequence[str]],
    ) -> None:
        self._table = table
        self._candidates = candidates
        self._own = own
        self.tried = 0
        self.succeeded = 0

    async def call(self, stream: Stream) -> None:
        """Begin, over a stream of `DCUTR` to a peer that has called through a relay. Raises MeshError."""
        for _ in range(TRIES):
            theirs, there_and_back = await self._ask(stream)
            await trio.sleep(there_and_back / 2)
            if await self._punch(stream.peer, theirs, initiator=True):
                return
        _log.info("no direct connection to %s: it stays relayed", short_peer(stream.peer))

    async def _ask(self, stream: Stream) -> tuple[list[Address], float]:
        """Their addresses, and the seconds there and back; SYNC is said."""
        with trio.move_on_after(TALK_SECONDS):
            start = trio.current_time()
            await write_message(stream, self._offer())
            theirs = self._addresses_in(await read_message(stream, HolePunch), stream.peer)
            there_and_back = trio.current_time() - start
            await write_message(stream, HolePunch(type=HolePunch.SYNC))
            return theirs, there_and_back
        raise Unreachable(f"no answer to a hole punch within {TALK_SECONDS:g} s")

    async def answer(self, stream: Stream) -> None:
        """The handler of `DCUTR`: the peer that we have called through a relay begins. Raises MeshError."""
        path = self._table.path_to(stream.peer)
        if path is None or path.relay is None:
            raise RemoteProtocolError("a hole punch on a connection that is direct")
        for _ in range(TRIES):
            theirs = await self._await_sync(stream)
            if await self._punch(stream.peer, theirs, initiator=False):
                return

    async def _await_sync(self, stream: Stream) -> list[Address]:
        with trio.move_on_after(TALK_SECONDS):
            theirs = self._addresses_in(await read_message(stream, HolePunch), stream.peer)
            await write_message(stream, self._offer())
            if (await read_message(stream, HolePunch)).type != HolePunch.SYNC:
                raise RemoteProtocolError("a hole punch without SYNC")
            return theirs
        raise Unreachable(f"nothing more of a hole punch within {TALK_SECONDS:g} s")

    def _offer(self) -> HolePunch:
        offer = HolePunch(type=HolePunch.CONNECT)
        offer.ObsAddrs.extend(address_bytes(text) for text in list(self._candidates())[:MAX_ADDRESSES])
        return offer

    def _addresses_in(self, message: HolePunch, peer: PeerId) -> list[Address]:
        if message.type != HolePunch.CONNECT:
            raise RemoteProtocolError("a hole punch that does not begin with CONNECT")
        found = []
        for data in list(message.ObsAddrs)[:MAX_ADDRESSES]:
            try:
                text = f"{address_text(data)}/p2p/{format_peer(peer)}"
            except Unreachable:
                continue
            if may_be_dialled(text, peer, self._own()):
                address = parse_address(text)
                if address.relay is None and address.kind in ("ip4", "ip6"):
                    found.append(address)
        return found

    async def _punch(self, peer: PeerId, addresses: Sequence[Address], *, initiator: bool) -> bool:
        """Dial all at once; the first that leads to the peer counts. Is there a direct connection now?"""
        self.tried += 1
        async with trio.open_nursery() as nursery:
            for address in addresses:
                nursery.start_soon(self._try, address, initiator, nursery.cancel_scope)
        path = self._table.path_to(peer)
        direct = path is not None and path.relay is None
        self.succeeded += direct
        return direct

    async def _try(self, address: Address, initiator: bool, scope: trio.CancelScope) -> None:
        sock = await shared_socket(address.kind, self._table.local_port)
        if sock is None:
            return
        try:
            with trio.fail_after(CONNECT_SECONDS):
                await sock.connect((address.host, address.port))
        except (OSError, trio.TooSlowError) as error:
            _log.debug("hole punch to %s: %s", address, str(error) or "no answer")
            sock.close()
            return
        except BaseException:
            sock.close()
            raise
        try:
            await self._table.add_punched(trio.SocketStream(sock), address, initiator=initiator)
        except MeshError as error:
            _log.debug("hole punch to %s: %s", address, error)
        else:
            scope.cancel()
