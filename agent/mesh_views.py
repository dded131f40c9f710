"""The agent's answers to its local clients about its meshes; and for each mesh the door to its node."""

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from coppermesh.agent.blob_door import StoreDoor
from coppermesh.agent.clock import now_us
from coppermesh.agent.config import DEFAULT_MESH
from coppermesh.agent.local_api import Door, Method
from coppermesh.agent.local_messages import JsonBody, LocalMessage
from coppermesh.agent.machine import Machine
from coppermesh.agent.mesh_facts import member_facts, mesh_facts, open_facts, peer_named
from coppermesh.agent.mesh_making import check_new_name, create_private_mesh, open_private_mesh
from coppermesh.agent.mesh_set import MeshSet
from coppermesh.agent.mesh_state import MeshState, doubt_of, private_meshes
from coppermesh.agent.mesh_terms import terms_from
from coppermesh.agent.node_views import NodeViews
from coppermesh.agent.screens import counted
from coppermesh.p2p.encoding import decode
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import MeshId, format_peer, short_peer

if TYPE_CHECKING:
    from coppermesh.agent.node import Node


class MeshViews:
    """Methods of the local API that are about meshes as such, beside those of each node."""

    def __init__(self, meshes: MeshSet, machine: Machine) -> None:
        self._meshes = meshes
        self._machine = machine
        self._doors: dict[int, Door] = {}

    def door_to(self, mesh: str) -> Door:
        """What a call on `mesh` may reach. Raises Refused."""
        node = self._meshes.find(mesh)
        for known in self._doors.keys() - {id(one) for one in self._meshes.nodes}:
            del self._doors[known]
        if id(node) not in self._doors:
            blobs = StoreDoor(node.store, (node.mesh, node.key.peer), node.config)
            self._doors[id(node)] = Door({**NodeViews(node).methods(), **self._methods(node)}, blobs)
        return self._doors[id(node)]

    def _methods(self, node: "Node") -> dict[str, Method]:
        return {
            "mesh-list": self._list,
            "mesh-create": self._create,
            "mesh-joined": self._joined,
            "mesh-leave": partial(self._leave, node),
            "mesh-invite": partial(self._invite, node),
            "mesh-members": partial(self._members, node),
            "mesh-revoke": partial(self._revoke, node),
        }

    async def _list(self, _body: bytes) -> LocalMessage:
        now = now_us()
        states = await trio.to_thread.run_sync(private_meshes, self._machine.home)
        nodes = {node.mesh: node for node in self._meshes.nodes}
        rows = [_open_facts(node, states) for node in self._meshes.nodes if node.keeper is None]
        if self._meshes.default.keeper is not None:
            rows.append(open_facts(DEFAULT_MESH, self._meshes.default.config.mesh))
        for state in states:
            served = nodes.get(state.mesh)
            facts = await trio.to_thread.run_sync(mesh_facts, state, self._machine.home, now)
            facts["default"] = served is self._meshes.default
            facts["served"] = served is not None
            facts["connected"] = len(served.transport.connected()) if served is not None else 0
            facts["addresses"] = served.transport.addresses if served is not None else []
            if served is not None and served.keeper is not None:
                facts["trouble"] = served.keeper.trouble or facts["trouble"]
                facts["place"] = self._meshes.nodes.index(served)
            else:
                facts["trouble"] = self._meshes.troubles.get(state.mesh, "not served")
            rows.append(facts)
        rows.sort(key=lambda row: row.get("place", len(rows)))
        return _json({"meshes": rows})

    async def _create(self, body: bytes) -> LocalMessage:
        given = _arguments(body)
        await trio.to_thread.run_sync(check_new_name, self._machine.home, _text(given, "name"))
        make = partial(
            create_private_mesh,
            self._machine.home,
            _text(given, "name"),
            _text(given, "who"),
            _text(given, "listen", ""),
            _text(given, "door", ""),
            now_us(),
        )
        private = await trio.to_thread.run_sync(make)
        await self._meshes.open_private(private.state)
        return _json(mesh_facts(private.state, self._machine.home, now_us()))

    async def _joined(self, body: bytes) -> LocalMessage:
        """The command line has joined a mesh: serve it."""
        mesh = MeshId(bytes.fromhex(_text(_arguments(body), "mesh")))
        private = await trio.to_thread.run_sync(open_private_mesh, self._machine.home, mesh, now_us())
        await self._meshes.open_private(private.state)
        return _json(mesh_facts(private.state, self._machine.home, now_us()))

    async def _leave(self, node: "Node", _body: bytes) -> LocalMessage:
        if node.keeper is None:
            raise Refused("open-mesh", f"{node.config.mesh!r} is an open mesh: nobody is a member of it")
        if node is self._meshes.default:
            raise Refused(
                "default-mesh",
                "it is this agent's default mesh: stop the agent (`coppermesh stop`), then leave; or name another in "
                "config.toml, restart, then leave",
            )
        private = node.keeper.private
        await node.keeper.leave()
        await trio.sleep(0.2)  # what was published is on its way
        await self._meshes.close_private(node.mesh)
        await trio.to_thread.run_sync(private.forget)
        return _json(
            {"mesh": private.name, "id": private.mesh.hex(), "sentence": f"left mesh {private.name!r}"}
        )

    async def _invite(self, node: "Node", body: bytes) -> LocalMessage:
        keeper = _keeper_of(node)
        terms = terms_from(_arguments(body), now_us())
        text = await keeper.invite(terms)
        return _json(
            {
                "mesh": keeper.private.name,
                "id": keeper.private.mesh.hex(),
                "invitation": text,
                "role": terms.role,
                "uses": terms.uses,
                "expires_us": terms.expires_us,
                "doors": keeper.doors,
            }
        )

    async def _members(self, node: "Node", _body: bytes) -> LocalMessage:
        keeper = _keeper_of(node)
        connected = set(node.transport.connected())
        rows = [member_facts(member, now_us()) for member in keeper.private.book.members(now_us())]
        for row in rows:
            row["connected"] = any(format_peer(peer) == row["peer"] for peer in connected)
            row["self"] = row["peer"] == format_peer(node.key.peer)
        return _json({"mesh": keeper.private.name, "id": keeper.private.mesh.hex(), "members": rows})

    async def _revoke(self, node: "Node", body: bytes) -> LocalMessage:
        keeper = _keeper_of(node)
        given = _arguments(body)
        peer = peer_named(keeper.private, _text(given, "peer"), now_us())
        last = given.get("last_serial", 0)
        if not isinstance(last, int) or isinstance(last, bool) or last < 0:
            raise Refused("bad-argument", "last_serial: want a number, 0 or more")
        if peer == node.key.peer:
            raise Refused("oneself", "that is this agent itself: `coppermesh mesh leave`")
        await keeper.revoke(peer, last)
        others = counted(len(node.hub.peers()), "connected member")
        return _json(
            {
                "mesh": keeper.private.name,
                "peer": format_peer(peer),
                "epoch": keeper.private.state.epoch,
                "sentence": f"revoked ..{short_peer(peer)}; {others} told, the swarm key is changed",
            }
        )


def _open_facts(node: "Node", states: list[MeshState]) -> dict[str, Any]:
    return {
        "mesh": node.config.mesh,
        "id": node.mesh.hex(),
        "private": False,
        "peer": format_peer(node.key.peer),
        "role": None,
        "expires_us": None,
        "default": node.meshes.default is node,
        "served": True,
        "connected": len(node.transport.connected()),
        "addresses": node.transport.addresses,
        "place": node.meshes.nodes.index(node),
        "trouble": doubt_of(node.config.mesh, states) or "",
    }


def _keeper_of(node: "Node") -> Any:
    if node.keeper is None:
        raise Refused(
            "open-mesh",
            f"{node.config.mesh!r} is an open mesh, anybody may join it; name a private one with --mesh",
        )
    return node.keeper


def _json(facts: Any) -> JsonBody:
    return JsonBody(json.dumps(facts))


def _arguments(body: bytes) -> dict[str, Any]:
    try:
        arguments = json.loads(decode(JsonBody, body, max_bytes=64 * 1024).text)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise Refused("bad-argument", "want a JSON object")
    return arguments


def _text(arguments: dict[str, Any], name: str, default: str | None = None) -> str:
    value = arguments.get(name, default)
    if not isinstance(value, str) or (not value and default is None):
        raise Refused("bad-argument", f"{name}: want text")
    return value
