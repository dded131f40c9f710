"""Who is let in on a connection: until both sides were, nothing but the gate's own protocol is spoken on it.

A transport that has a gate hands every connection's coming and going to a `Doorkeeper`. It holds back `PeerUp` until
the gate has admitted the peer, so that nothing above ever sees one that was not, keeps streams waiting meanwhile, and
drops the connection after `ADMISSION_SECONDS`. Of the two peers the one with the smaller id opens the gate's stream.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import trio

from coppermesh.p2p.errors import MeshError, Unreachable
from coppermesh.p2p.ids import PeerId, short_peer
from coppermesh.p2p.transport import PeerDown, PeerUp, Stream, Validate

ADMISSION_SECONDS = 10.0
MAX_WAITING = 32
"""Streams of a peer that is not let in yet; the places for handlers are everybody's."""
_LAST_WORD_SECONDS = 2.0

_log = logging.getLogger(__name__)


class Gate(Protocol):
    """Decides who is let in. Both methods raise MeshError where the peer is not; `answer` has told it why then."""

    @property
    def protocol(self) -> str:
        """The protocol id of the gate's stream."""

    async def show(self, stream: Stream) -> None:
        """We opened the stream: show who we are, and look at who the other is."""

    async def answer(self, stream: Stream) -> None:
        """The other side opened it."""

    def hears(self, topic: str, source: PeerId) -> bool:
        """Whether gossip of `source` on `topic` counts at all."""


@dataclass(slots=True)
class _Held:
    event: PeerUp
    decided: trio.Event = field(default_factory=trio.Event)
    reason: str = "the connection ended"
    """Why it was not let in."""
    waiting: int = 0
    """Streams that it has opened meanwhile."""


class Doorkeeper:
    """The connections of one transport before and after its gate."""

    def __init__(
        self,
        me: PeerId,
        gate: Gate | None,
        nursery: trio.Nursery,
        *,
        tell: Callable[[PeerUp | PeerDown], None],
        drop: Callable[[PeerId, str], None],
        open_stream: Callable[[PeerId, str], Awaitable[Stream]],
    ) -> None:
        """`tell` hands an event on, `drop` closes a peer's connections, `open_stream` opens one past the gate."""
        self._me = me
        self._gate = gate
        self._nursery = nursery
        self._tell = tell
        self._drop = drop
        self._open_stream = open_stream
        self._held: dict[PeerId, _Held] = {}
        self._admitted: set[PeerId] = set()
        self.refused = 0
        """Peers that were turned away since the start."""

    def on_event(self, event: PeerUp | PeerDown) -> None:
        """A peer's first connection is open, or its last one gone."""
        if self._gate is None:
            self._tell(event)
        elif isinstance(event, PeerUp):
            held = self._held[event.peer] = _Held(event)
            self._nursery.start_soon(self._meet, self._gate, held)
        elif event.peer in self._held:
            self._held.pop(event.peer).decided.set()
        else:
            self._admitted.discard(event.peer)
            self._tell(event)

    def is_in(self, peer: PeerId) -> bool:
        """Whether streams and gossip of the peer's connection are served."""
        return self._gate is None or peer in self._admitted

    def only_in(self, peers: list[PeerId]) -> list[PeerId]:
        """Those of `peers` that are let in."""
        return [peer for peer in peers if self.is_in(peer)]

    def screened(self, topic: str, validate: Validate) -> Validate:
        """`validate` for those whom the gate hears."""
        gate = self._gate
        if gate is None:
            return validate
        return lambda source, data: gate.hears(topic, source) and validate(source, data)

    async def wait_in(self, peer: PeerId, protocol: str) -> bool:
        """Whether a stream of `protocol` may be served, waiting until the gate has decided."""
        if self._gate is None or protocol == self._gate.protocol:
            return True
        held = self._held.get(peer)
        if held is not None:
            if held.waiting >= MAX_WAITING:
                return False
            held.waiting += 1
            await held.decided.wait()
        return peer in self._admitted

    async def require_in(self, peer: PeerId) -> None:
        """Wait until the gate has decided. Raises Unreachable where the peer was turned away, or left."""
        held = self._held.get(peer)
        if held is None or self._gate is None:
            return
        await held.decided.wait()
        if peer not in self._admitted:
            raise Unreachable(f"{short_peer(peer)}: {held.reason}")

    async def answer(self, stream: Stream) -> None:
        """The handler of the gate's protocol."""
        assert self._gate is not None
        peer = stream.peer
        try:
            await self._gate.answer(stream)
        except MeshError as error:
            _log.info("%s is not let in: %s", short_peer(peer), error)
            self._note(peer, str(error))
            await _last_word(stream)
            self._turn_away(peer, str(error))
        else:
            self._admit(peer)

    async def _meet(self, gate: Gate, held: _Held) -> None:
        peer, reason = held.event.peer, f"it showed no card within {ADMISSION_SECONDS:g} s"
        with trio.move_on_after(ADMISSION_SECONDS):
            if self._me < peer:
                try:
                    await self._show(gate, peer)
                    self._admit(peer)
                except MeshError as error:
                    reason = str(error)
            else:
                await held.decided.wait()
        if self._held.get(peer) is held:
            _log.info("%s is not let in: %s", short_peer(peer), reason)
            self._turn_away(peer, reason)

    async def _show(self, gate: Gate, peer: PeerId) -> None:
        stream = await self._open_stream(peer, gate.protocol)
        try:
            await gate.show(stream)
        except MeshError as error:
            self._note(peer, str(error))
            await _last_word(stream)
            raise
        finally:
            await stream.aclose()

    def _admit(self, peer: PeerId) -> None:
        held = self._held.pop(peer, None)
        if held is not None:
            self._admitted.add(peer)
            held.decided.set()
            self._tell(held.event)

    def _turn_away(self, peer: PeerId, reason: str) -> None:
        self.refused += 1
        self._note(peer, reason)
        self._drop(peer, reason)

    def _note(self, peer: PeerId, reason: str) -> None:
        """Whoever waits for the peer is told this reason, whichever side hangs up."""
        if peer in self._held:
            self._held[peer].reason = reason


async def _last_word(stream: Stream) -> None:
    """The other side reads why, and closes the stream; only then the connection may go."""
    with trio.move_on_after(_LAST_WORD_SECONDS):
        try:
            while await stream.receive_some():
                pass
        except MeshError:
            pass
