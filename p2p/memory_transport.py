"""A network inside one process, for tests and simulations: seeded faults, virtual clocks, no socket.

`MemoryNetwork` is the wire, `network.transport(key)` one agent's attachment to it. Identity is proven by construction:
the network made both ends of every stream. Everything waits with trio's clock, so a test under
`trio.testing.MockClock` runs at full speed, and every random choice comes from the `rng` that the test seeded.

Faults: `latency_s` on every link, gossip `loss`, `duplicate` and `jitter` (which reorders), `partition`/`heal`,
`cut` (one connection, may be dialled again) and `crash` (a peer that vanishes as under kill -9).
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from coppermesh.p2p.errors import RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import PeerId, format_peer, short_peer
from coppermesh.p2p.memory_peer import WINDOW_BYTES, MemoryTransport
from coppermesh.p2p.transport import Transport

if TYPE_CHECKING:
    from coppermesh.p2p.gate import Gate
    from coppermesh.p2p.signing import PeerKey

__all__ = ["WINDOW_BYTES", "MemoryNetwork"]


class MemoryNetwork:
    """A wire between any number of in-process transports.

    `latency_s` is one way, in seconds. `gossip_loss` and `gossip_duplicate` are probabilities per hop;
    `gossip_jitter_s` adds up to that many seconds to each hop, so that messages overtake each other.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        latency_s: float = 0.0,
        gossip_loss: float = 0.0,
        gossip_duplicate: float = 0.0,
        gossip_jitter_s: float = 0.0,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self.rng = rng
        self.latency_s = latency_s
        self.gossip_loss = gossip_loss
        self.gossip_duplicate = gossip_duplicate
        self.gossip_jitter_s = gossip_jitter_s
        self.window_bytes = window_bytes
        self._ports: dict[PeerId, int] = {}
        self._listening: dict[int, MemoryTransport] = {}
        self._separated: set[frozenset[PeerId]] = set()

    @asynccontextmanager
    async def transport(
        self, key: PeerKey, *, swarm_key: bytes | None = None, gate: Gate | None = None
    ) -> AsyncIterator[Transport]:
        """Attach a peer for the length of the block. A key keeps its address when it comes back."""
        port = self._ports.setdefault(key.peer, len(self._ports) + 1)
        if port in self._listening:
            raise ValueError(f"{short_peer(key.peer)} is attached to this network already")
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            attached = MemoryTransport(
                self, key.peer, self.address_of(key.peer), nursery, swarm_key=swarm_key, gate=gate
            )
            self._listening[port] = attached
            try:
                yield attached
            except Exception as error:  # noqa: BLE001
                # Kept out of the nursery, which would wrap the caller's own error in a group.
                failure = error
            finally:
                if self._listening.get(port) is attached:
                    del self._listening[port]
                attached.detach("the peer left")
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def address_of(self, peer: PeerId) -> str:
        """The address `peer` has, or had, on this network."""
        return f"/ip4/127.0.0.1/tcp/{self._ports[peer]}/p2p/{format_peer(peer)}"

    def partition(self, *groups: Iterable[PeerId]) -> None:
        """Let nothing pass between the groups: connections across them are cut, dials refused, until `heal`."""
        sides = [list(group) for group in groups]
        for index, side in enumerate(sides):
            for other in sides[index + 1 :]:
                self._separated.update(frozenset((a, b)) for a in side for b in other)
        for attached in list(self._listening.values()):
            for peer in attached.connected():
                if frozenset((attached.peer, peer)) in self._separated:
                    self.cut(attached.peer, peer, reason="the network is partitioned")

    def heal(self) -> None:
        """End every partition. Connections do not come back by themselves."""
        self._separated.clear()

    def cut(self, first: PeerId, second: PeerId, *, reason: str = "the connection was cut") -> None:
        """Break the connection between two peers, if there is one."""
        for mine, theirs in ((first, second), (second, first)):
            attached = self.attached(mine)
            if attached is not None:
                attached.drop(theirs, reason)

    def crash(self, peer: PeerId) -> None:
        """The peer vanishes: its connections break, nobody answers at its address, its transport is dead."""
        attached = self._listening.pop(self._ports[peer], None)
        if attached is not None:
            attached.detach("the peer crashed")

    def attached(self, peer: PeerId) -> MemoryTransport | None:
        """The peer's transport, or None where it is not attached now."""
        return self._listening.get(self._ports.get(peer, -1))

    def passes(self, first: PeerId, second: PeerId) -> bool:
        """Whether a partition lets these two reach each other."""
        return frozenset((first, second)) not in self._separated

    def resolve(self, caller: PeerId, port: int, wanted: PeerId) -> MemoryTransport:
        """Who answers at `port` when `caller` asks for `wanted`. Raises Unreachable or RemoteProtocolError."""
        answering = self._listening.get(port)
        if answering is None or not self.passes(caller, answering.peer):
            raise Unreachable(f"nobody answers at port {port}: is {short_peer(wanted)} running?")
        if answering.peer != wanted:
            raise RemoteProtocolError(
                f"port {port} is answered by {short_peer(answering.peer)}, not by {short_peer(wanted)}"
            )
        calling = self.attached(caller)
        if calling is None or calling.swarm_key != answering.swarm_key:
            raise RemoteProtocolError(
                "its swarm key is another one: it is not in this private mesh (any more)"
            )
        return answering

    def gossip_delays(self) -> list[float]:
        """For one hop of one message: after how many seconds it arrives, none when lost, two when duplicated."""
        if self.rng.random() < self.gossip_loss:
            return []
        copies = 2 if self.rng.random() < self.gossip_duplicate else 1
        return [self.latency_s + self.rng.random() * self.gossip_jitter_s for _ in range(copies)]
