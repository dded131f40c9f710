"""The facts behind `coppermesh peers`: who is there, how each was found, and how it is reached."""

from typing import TYPE_CHECKING, Any

import trio

from coppermesh.agent.clock import now_us
from coppermesh.p2p.discovery import HOW_FOUND
from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.ids import PeerId, format_peer
from coppermesh.p2p.messages import Nothing
from coppermesh.p2p.records import Announcement

if TYPE_CHECKING:
    from coppermesh.agent.node import Node

PING_SECONDS = 2.0


async def peer_rows(node: "Node") -> list[dict[str, Any]]:
    """A row for every peer that is connected or has announced itself. Connected ones are pinged, all at once."""
    announced = {PeerId(opened.record.peer): opened.record for opened in node.book.current(now_us())}
    connected = set(node.transport.connected())
    latencies = await measure(node, connected)
    known = sorted((connected | announced.keys()) - {node.key.peer})
    return [
        {**_network_facts(node, peer, latencies.get(peer)), **_announced_facts(announced.get(peer))}
        for peer in known
    ]


async def measure(node: "Node", peers: set[PeerId]) -> dict[PeerId, float]:
    """Milliseconds there and back, of those that answer within `PING_SECONDS`."""
    latencies: dict[PeerId, float] = {}

    async def ping(peer: PeerId) -> None:
        start = trio.current_time()
        try:
            await node.hub.request(peer, "ping", Nothing(), Nothing, deadline_s=PING_SECONDS)
        except MeshError:
            return
        latencies[peer] = (trio.current_time() - start) * 1e3

    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(ping, peer)
    return latencies


def _network_facts(node: "Node", peer: PeerId, latency_ms: float | None) -> dict[str, Any]:
    path = node.transport.path_to(peer)
    since_us = node.connected_since.get(peer)
    kind = node.plan.kind_of(peer)
    not_dialled = "announced" if path is None else "called"
    return {
        "peer": format_peer(peer),
        "connected": path is not None,
        "found": not_dialled if kind is None else HOW_FOUND[kind],
        "path": None if path is None else "direct" if path.relay is None else "relayed",
        "relay": None if path is None or path.relay is None else format_peer(path.relay),
        "reached_at": None if path is None else path.address,
        "we_called": None if path is None else path.outbound,
        "latency_ms": latency_ms,
        "since_s": (now_us() - since_us) / 1e6 if since_us is not None else None,
        "trust": _trust(node, peer),
    }


def _trust(node: "Node", peer: PeerId) -> str:
    """What this agent's owner has said of the peer: `trusted`, `denied`, `allowed` or nothing."""
    config = node.machine.owner.settings.config
    if peer in config.sharing.deny:
        return "denied"
    if peer in config.trust:
        return "trusted"
    return "allowed" if peer in config.sharing.allow else ""


def _announced_facts(record: Announcement | None) -> dict[str, Any]:
    if record is None:
        return {
            "address": None,
            "software": None,
            "paused": False,
            "expires_in_s": None,
            "isolation": [],
            "devices": [],
        }
    return {
        "address": record.addresses[0] if record.addresses else None,
        "software": record.software,
        "paused": record.paused,
        "expires_in_s": (record.expires_us - now_us()) / 1e6,
        "isolation": record.isolation,
        "devices": [{"device": it.device, "kind": it.kind, "name": it.name} for it in record.devices],
    }
