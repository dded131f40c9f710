"""A seed: the peer that others know before they know anybody. No GPU, no jobs, no ledger.

It is an ordinary member of its mesh that answers three questions. *Who is here?* A peer asks for announcements and gets
those of others: all that announce are registered here until their announcement expires (`p2p.libp2p_directory` tells
other implementations, by rendezvous and Kademlia). *Can I be reached?* It dials
back (`p2p.dial_back`). *Carry for me*: it is a relay with limits (`p2p.libp2p_relay`). Gossip passes through it as
through any member. Nothing depends on it once agents know each other: a mesh that loses all its seeds goes on.
"""

import math
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from coppermesh.agent.config import Config
from coppermesh.p2p.announcements import AnnouncementBook
from coppermesh.p2p.announcer import MAX_LEAVES, Announcer
from coppermesh.p2p.control import ChannelUp, ControlHub, Handler, open_control_hub
from coppermesh.p2p.dial_back import DialBack
from coppermesh.p2p.discovery import DialPlan, run_discovery
from coppermesh.p2p.ids import MeshId, PeerId, format_peer, mesh_id
from coppermesh.p2p.libp2p_directory import Directory
from coppermesh.p2p.libp2p_relay import RelayServer
from coppermesh.p2p.libp2p_transport import open_libp2p_transport
from coppermesh.p2p.messages import AnnouncementReply, AnnouncementRequest, DialBackRequest, Nothing
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import Transport

SOFTWARE = "coppermesh-seed/0.1.0"
LISTEN = "/ip4/0.0.0.0/tcp/4001"
TIDY_SECONDS = 1.0
MAX_SHOWN = 256


@dataclass(frozen=True, slots=True)
class Place:
    """Where a seed keeps what it has, and what tells it the time."""

    key: Path
    peers: Path
    now_us: Callable[[], int]


class SeedNode:
    """A running seed. Made by `open_seed`."""

    def __init__(
        self, config: Config, mesh: MeshId, key: PeerKey, transport: Transport, place: Place
    ) -> None:
        self.config = config
        self.mesh = mesh
        self.key = key
        self.transport = transport
        self.book = AnnouncementBook(mesh)
        self.relay: RelayServer | None = None
        self.directory = Directory(transport, mesh, self._announced)
        self.plan = DialPlan(key.peer, random.Random(), goal=0)
        self.started_us = place.now_us()
        self.met = 0
        """Control channels opened so far."""
        self.hub: ControlHub
        self.announcer: Announcer
        self._now_us = place.now_us
        self._dial_back = DialBack(transport)
        self._asked = {"announcement": 0, "dialback": 0}

    def handlers(self) -> Mapping[str, Handler]:
        """What peers may ask of a seed."""
        return {
            "announcement": (AnnouncementRequest, self._on_announcement),
            "dialback": (DialBackRequest, self._on_dial_back),
            "ping": (Nothing, self._on_ping),
        }

    async def _on_announcement(self, peer: PeerId, request: AnnouncementRequest) -> AnnouncementReply:
        self._asked["announcement"] += 1
        return self.announcer.reply_to(peer, request)

    async def _on_dial_back(self, peer: PeerId, request: DialBackRequest) -> Any:
        self._asked["dialback"] += 1
        return await self._dial_back.answer(peer, request)

    async def _on_ping(self, peer: PeerId, request: Nothing) -> Nothing:
        return Nothing()

    def _announced(self) -> dict[PeerId, list[str]]:
        current = self.book.current(self._now_us())
        return {PeerId(opened.record.peer): list(opened.record.addresses) for opened in current}

    # Background work

    async def follow(self) -> None:
        """Ask each newcomer for its announcement, and forget who leaves."""
        async with trio.open_nursery() as nursery:
            async for event in self.hub.events():
                if isinstance(event, ChannelUp):
                    self.met += 1
                    nursery.start_soon(self.announcer.fetch, event.peer)
                    continue
                # Newcomers are told of it again once it is back: until then they would dial the dead.
                self.book.lost(event.peer)
                if self.relay is not None:
                    self.relay.peer_left(event.peer)

    async def tidy(self) -> None:
        """Let go of announcements that have expired."""
        while True:
            await trio.sleep(TIDY_SECONDS)
            self.book.forget_expired(self._now_us())

    # What people see

    def facts(self) -> dict[str, Any]:
        """The status page's content: nothing secret, nothing about anybody's jobs."""
        registered = {
            PeerId(opened.record.peer): opened.record for opened in self.book.current(self._now_us())
        }
        connected = set(self.hub.peers())
        shown = sorted(connected | set(registered))[:MAX_SHOWN]
        return {
            "peer": format_peer(self.key.peer),
            "mesh": self.config.mesh,
            "software": SOFTWARE,
            "addresses": self.transport.addresses,
            "uptime_s": (self._now_us() - self.started_us) / 1e6,
            "connected": len(connected),
            "registered": len(registered),
            "met": self.met,
            "asked": dict(self._asked),
            "registered_otherwise": self.directory.registered,
            "dials": self.transport.counts.dials,
            "gossip_delivered": self.transport.counts.gossip_delivered,
            "limits": {"connections": self.config.seed.connections},
            "relay": self._relay_facts(),
            "seeds": self._other_seeds(connected),
            "peers": [
                {
                    "peer": format_peer(peer),
                    "connected": peer in connected,
                    "devices": len(registered[peer].devices) if peer in registered else 0,
                    "expires_in_s": (registered[peer].expires_us - self._now_us()) / 1e6
                    if peer in registered
                    else None,
                }
                for peer in shown
            ],
        }

    def _relay_facts(self) -> dict[str, Any] | None:
        if self.relay is None:
            return None
        book = self.relay.book
        return {
            "reservations": book.reservations,
            "circuits": book.circuits,
            "carried": book.carried,
            "bytes": self.relay.bytes_carried,
            "refused": {why.name.lower(): count for why, count in book.refused.items()},
            "limits": {
                "reservations": book.limits.reservations,
                "circuits": book.limits.circuits,
                "circuit_seconds": book.limits.circuit_seconds,
                "circuit_bytes": book.limits.circuit_bytes,
            },
        }

    def _other_seeds(self, connected: set[PeerId]) -> list[dict[str, Any]]:
        return [
            {"address": address, "error": self.plan.troubles.get(address)}
            for address in self.config.bootstrap
        ]


@asynccontextmanager
async def open_seed(config: Config, place: Place) -> AsyncIterator[SeedNode]:
    """Run a seed for the length of the block. Raises IdentityError, and Unreachable where the port is taken."""
    mesh = mesh_id(config.mesh)
    key = PeerKey.load_or_create(place.key)
    async with open_libp2p_transport(
        key, mesh, listen=config.listen, max_connections=config.seed.connections
    ) as transport:
        node = SeedNode(config, mesh, key, transport, place)
        if config.seed.reservations:
            node.relay = RelayServer(
                transport,
                config.seed.relay_limits(),
                admits=lambda peer: peer in node.hub.peers(),
                addresses=lambda: transport.addresses,
            )
        async with open_control_hub(
            transport, mesh, key.peer, handlers=node.handlers(), clock=place.now_us, software=SOFTWARE
        ) as node.hub:
            node.announcer = Announcer(
                key,
                mesh,
                transport,
                node.hub,
                node.book,
                None,
                software=SOFTWARE,
                now_us=place.now_us,
                rng=random.Random(),
                heard=lambda: None,
            )
            async with trio.open_nursery() as nursery:
                await nursery.start(node.announcer.run)
                for _ in range(int(math.log2(MAX_LEAVES))):
                    node.announcer.want_more()  # whoever asks a seed may want any shard
                nursery.start_soon(node.follow)
                nursery.start_soon(node.tidy)
                discovery = partial(
                    run_discovery,
                    transport,
                    node.plan,
                    bootstrap=config.bootstrap,
                    remembered=place.peers,
                    now_us=place.now_us,
                )
                nursery.start_soon(discovery)
                yield node
                nursery.cancel_scope.cancel()
