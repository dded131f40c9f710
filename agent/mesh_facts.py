"""Facts about private meshes and their members, for people and scripts: from files or from a running agent alike."""

from typing import Any

from coppermesh.agent.config import DEFAULT_MESH, load_config
from coppermesh.agent.home import Home
from coppermesh.agent.mesh_making import open_private_mesh
from coppermesh.agent.mesh_state import MeshState, find_mesh, private_meshes
from coppermesh.agent.mesh_terms import quota_text
from coppermesh.agent.private_mesh import PrivateMesh
from coppermesh.p2p.certificates import Member
from coppermesh.p2p.errors import MeshError, Refused
from coppermesh.p2p.ids import PeerId, format_peer, mesh_id, parse_peer, short_peer


def mesh_facts(state: MeshState, home: Home, now_us: int) -> dict[str, Any]:
    """One private mesh of this home."""
    facts: dict[str, Any] = {
        "mesh": state.name,
        "id": state.mesh.hex(),
        "private": True,
        "peer": None,
        "role": None,
        "expires_us": None,
        "root_key_here": False,
        "trouble": "",
    }
    try:
        private = open_private_mesh(home, state.mesh, now_us)
        certificate = private.certificate
        facts["peer"] = format_peer(private.key.peer)
        facts["role"] = certificate.role
        facts["root_key_here"] = private.has_root
        facts["expires_us"] = certificate.expires_us
        private.member(now_us)
    except MeshError as error:
        facts["trouble"] = str(error)
    return facts


def open_facts(name: str, default: str) -> dict[str, Any]:
    """An open mesh that nobody serves now; where a private one, `default`, is the default, nobody will: a lab's machine
    is lent to its lab only.
    """
    lent = f"the default mesh is {default!r}, so this agent is in no open one"
    return {
        "mesh": name,
        "id": mesh_id(name).hex(),
        "private": False,
        "peer": None,
        "role": None,
        "expires_us": None,
        "default": name == default,
        "served": False,
        "connected": 0,
        "addresses": [],
        "trouble": "" if name == default else lent,
    }


def unserved_facts(home: Home, now_us: int) -> list[dict[str, Any]]:
    """Every mesh of a home whose agent does not run, as `mesh-list` of a running one tells them. Raises MeshError."""
    states = private_meshes(home)
    default = load_config(home).mesh
    found = find_mesh(states, default)
    rows = [
        mesh_facts(state, home, now_us)
        | {"served": False, "connected": 0, "addresses": [], "default": state is found}
        for state in states
    ]
    return [*rows, open_facts(default if found is None else DEFAULT_MESH, default)]


def member_facts(member: Member, now_us: int) -> dict[str, Any]:
    """One member, as far as its chain says."""
    certificate = member.certificate
    return {
        "peer": format_peer(member.peer),
        "name": certificate.name,
        "role": certificate.role,
        "quota": quota_text(certificate.quota),
        "serial": certificate.serial,
        "issuer": None if len(member.links) == 1 else format_peer(PeerId(certificate.issuer)),
        "depth": certificate.depth,
        "expires_us": member.expires_us,
        "expires_in_s": (member.expires_us - now_us) / 1e6,
    }


def peer_named(private: PrivateMesh, text: str, now_us: int) -> PeerId:
    """The peer that a person means: its whole id, the end of the id of a known member, or a member's name.

    Raises Refused where nobody or several are.
    """
    try:
        return parse_peer(text)
    except ValueError:
        pass
    members = private.book.members(now_us)
    found = [member.peer for member in members if len(text) >= 6 and format_peer(member.peer).endswith(text)]
    found = found or [member.peer for member in members if member.certificate.name == text]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(short_peer(peer) for peer in found)
        raise Refused("ambiguous-peer", f"several members are {text!r}: name one by its peer id ({ids})")
    raise Refused("unknown-peer", f"no member {text!r} is known: see `coppermesh mesh members`")
