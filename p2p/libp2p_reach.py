"""A transport's connections through relays: calling, being called, and moving on to direct ones."""

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import trio

from coppermesh.p2p.addresses import Address
from coppermesh.p2p.errors import MeshError, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import PeerId, short_peer
from coppermesh.p2p.libp2p_circuit import HOP, RelayedStream, accept, connect, reserve
from coppermesh.p2p.libp2p_connections import ConnectionTable
from coppermesh.p2p.libp2p_punch import DCUTR, HolePuncher
from coppermesh.p2p.libp2p_yamux_stream import YamuxStream
from coppermesh.p2p.transport import DIAL_SECONDS, PeerUp, Reservation, Stream

PUNCH_AGAIN_SECONDS = (0.0, 8.0, 25.0)
"""Waits before each round of a called side's attempts at a direct connection."""
PUNCH_ROUNDS = 2 * len(PUNCH_AGAIN_SECONDS)
PUNCH_WINDOW_SECONDS = 60.0
"""So many rounds with one peer within so long: more would make this agent knock where a stranger points."""
MAX_PUNCHING = 8
"""Rounds under way at once."""
MAX_PUNCHED = 1024

_log = logging.getLogger(__name__)


class Reach:
    """What one transport does with relays. `open_stream` opens one on the first of some protocols.

    `own`: this agent's full addresses.
    """

    def __init__(
        self,
        me: PeerId,
        table: ConnectionTable,
        nursery: trio.Nursery,
        *,
        open_stream: Callable[[PeerId, Sequence[str]], Awaitable[tuple[YamuxStream, str]]],
        own: Callable[[], Sequence[str]],
    ) -> None:
        self.candidates: list[str] = []
        """Where others have seen this agent from outside, without its peer id."""
        self.punches_holes = False
        self.puncher = HolePuncher(table, candidates=self._punch_from, own=own)
        self._me = me
        self._table = table
        self._nursery = nursery
        self._open = open_stream
        self._own = own
        self._relays: set[PeerId] = set()
        self._punching: set[tuple[PeerId, bool]] = set()
        """Rounds under way: with whom, and whether we began."""
        self._punched: OrderedDict[PeerId, list[float]] = OrderedDict()
        """When the last rounds with a peer began."""

    async def reserve_at(self, relay: PeerId) -> Reservation:
        """Ask a connected relay to bring us callers. Raises Refused (also where it is no relay), MeshError.

        What it brings later is taken from then on, until `leave`.
        """
        with trio.move_on_after(DIAL_SECONDS):
            stream, _ = await self._open(relay, [HOP])
            try:
                reservation = await reserve(stream)
            finally:
                stream.close_now()
            self._relays.add(relay)
            return reservation
        raise Unreachable(f"the relay {short_peer(relay)} did not answer within {DIAL_SECONDS:g} s")

    def leave(self, relay: PeerId) -> None:
        """Take no more callers from that relay."""
        self._relays.discard(relay)

    async def open_circuit(self, target: Address) -> trio.SocketStream:
        """A connection to the target, not yet secured, through its relay. Raises MeshError."""
        assert target.relay is not None
        if target.relay not in self._table:
            await self._table.dial(target.next_hop)
        path = self._table.path_to(target.relay)
        if path is None or path.relay is not None:
            raise Unreachable(f"{target}: its relay is itself reached through a relay")
        stream, _ = await self._open(target.relay, [HOP])
        try:
            await connect(stream, target.peer)
        except BaseException:
            stream.break_off("the relay did not connect us")
            raise
        return RelayedStream(stream).as_wire()

    async def on_called(self, stream: Stream) -> None:
        """The handler of stop streams: somebody calls through a relay of ours."""
        if stream.peer not in self._relays:
            raise RemoteProtocolError("a caller from a relay that was not asked for any")
        caller = None
        with trio.move_on_after(DIAL_SECONDS):
            caller = await accept(stream)
        if caller is None or caller == self._me:
            raise RemoteProtocolError("a relay that names no caller, or ourselves")
        await self._table.accept_relayed(RelayedStream(stream).as_wire(), stream.peer, caller)

    def came(self, event: PeerUp) -> None:
        """A peer is connected. A caller that came through a relay: try for a direct connection at once.

        While nothing is under way it costs nobody anything that the peer is down for a moment.
        """
        path = self._table.path_to(event.peer)
        if self.punches_holes and not event.outbound and path is not None and path.relay is not None:
            self._nursery.start_soon(self._begin_punch, event.peer)

    async def on_punch(self, stream: Stream) -> None:
        """The handler of hole punches."""
        if not self.punches_holes:
            raise Unreachable("this agent punches no holes")
        with self._punch_round(stream.peer, begins=False):
            await self.puncher.answer(stream)

    @contextmanager
    def _punch_round(self, peer: PeerId, *, begins: bool) -> Iterator[None]:
        """One round of attempts, in which `peer` says where to dial. Raises Unreachable where it has had enough."""
        now, round_with = trio.current_time(), (peer, begins)
        rounds = [at for at in self._punched.get(peer, ()) if now - at < PUNCH_WINDOW_SECONDS]
        if round_with in self._punching or len(self._punching) >= MAX_PUNCHING or len(rounds) >= PUNCH_ROUNDS:
            raise Unreachable(f"no more hole punches with {short_peer(peer)} now")
        self._punched[peer] = [*rounds, now]
        self._punched.move_to_end(peer)
        while len(self._punched) > MAX_PUNCHED:
            self._punched.popitem(last=False)
        self._punching.add(round_with)
        try:
            yield
        finally:
            self._punching.discard(round_with)

    async def _begin_punch(self, peer: PeerId) -> None:
        """Try now and, since routers forget and packets get lost, twice more soon after."""
        for wait in PUNCH_AGAIN_SECONDS:
            await trio.sleep(wait)
            path = self._table.path_to(peer)
            if path is None or path.relay is None:
                return
            try:
                with self._punch_round(peer, begins=True):
                    stream, _ = await self._open(peer, [DCUTR])
                    try:
                        await self.puncher.call(stream)
                    finally:
                        stream.close_now()
            except MeshError as error:
                _log.debug("hole punch with %s: %s", short_peer(peer), error)
            except Exception:  # noqa: BLE001
                # What a peer says there goes through three libraries; it costs that attempt only.
                _log.exception("a hole punch with %s failed", short_peer(peer))

    def _punch_from(self) -> list[str]:
        own = [text.rpartition("/p2p/")[0] for text in self._own()]
        return [*self.candidates, *(text for text in own if text not in self.candidates)]
