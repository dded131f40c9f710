"""What `coppermesh doctor network` looks at, gathered by the running agent: facts, not yet judged, and no secret."""

from typing import TYPE_CHECKING, Any

import trio

from coppermesh.agent.clock import now_us
from coppermesh.p2p.addresses import is_loopback, parse_address
from coppermesh.p2p.errors import MeshError, Refused
from coppermesh.p2p.ids import PeerId, format_peer

if TYPE_CHECKING:
    from coppermesh.agent.node import Node

MAX_HELPERS = 8
WAIT_SECONDS = 12.0


async def network_facts(node: "Node", software: str) -> dict[str, Any]:
    """How this agent stands on its mesh; asks up to `MAX_HELPERS` peers to dial back now."""
    tried = await _try_all(node)
    addresses = node.transport.addresses
    keeper = node.keeper
    return {
        "mesh": node.config.mesh,
        "private": keeper is not None,
        "peer": format_peer(node.key.peer),
        "software": software,
        "listens_on": addresses,
        "loopback_only": all(is_loopback(parse_address(address).host) for address in addresses),
        "announced": node.reach.addresses(),
        "mdns": {
            "on": node.config.network.mdns,
            "trouble": node.mdns.trouble,
            "heard": node.mdns.heard,
        },
        "seeds": [_seed_facts(node, address) for address in node.config.bootstrap],
        "peers": [_peer_facts(node, peer) for peer in node.transport.connected()],
        "tried": tried,
        "nat": node.reach.nat().value,
        "relay_mode": node.config.network.relay,
        "wants_relay": node.reach.state.wants_relay(),
        "relays": [
            {
                "peer": format_peer(peer),
                "address": place.address,
                "expires_in_s": place.reservation.expires_unix - now_us() / 1e6,
            }
            for peer, place in node.reach.places.items()
        ],
        "membership": None
        if keeper is None
        else {
            "expires_in_s": (keeper.private.certificate.expires_us - now_us()) / 1e6,
            "trouble": keeper.trouble,
        },
    }


async def _try_all(node: "Node") -> list[dict[str, Any]]:
    """What became of dials back to this agent, by each peer that was asked."""
    results: list[dict[str, Any]] = []

    async def ask(peer: PeerId) -> None:
        facts: dict[str, Any] = {"peer": format_peer(peer), "state": None, "seen_at": None, "refused": None}
        try:
            reply = await node.reach.ask(peer)
            facts |= {"state": reply.state, "seen_at": reply.seen_at}
        except Refused as error:
            word = node.reach.state.words.get(peer)
            if error.code == "busy" and word is not None:
                facts |= {"state": word.probe.value, "seen_at": f"{word.host} port {word.port}"}
            else:
                facts["refused"] = error.sentence
        except MeshError as error:
            facts["refused"] = str(error)
        results.append(facts)

    with trio.move_on_after(WAIT_SECONDS):
        async with trio.open_nursery() as nursery:
            for peer in node.reach.helpers()[:MAX_HELPERS]:
                nursery.start_soon(ask, peer)
    return results


def _seed_facts(node: "Node", address: str) -> dict[str, Any]:
    peer = parse_address(address).peer
    connected = node.transport.path_to(peer) is not None
    return {
        "address": address,
        "self": peer == node.key.peer,
        "connected": connected,
        "in_mesh": peer in node.hub.peers(),
        "error": None if connected else node.plan.troubles.get(address),
    }


def _peer_facts(node: "Node", peer: PeerId) -> dict[str, Any]:
    hello = node.hub.hello_of(peer)
    heard_us = node.connected_since.get(peer)
    path = node.transport.path_to(peer)
    return {
        "peer": format_peer(peer),
        "path": None if path is None else "direct" if path.relay is None else "relayed",
        "in_mesh": hello is not None,
        "software": None if hello is None else hello.software,
        # The hello came within a second or so of the channel's opening.
        "clock_ahead_s": None if hello is None or heard_us is None else (hello.time_us - heard_us) / 1e6,
    }
