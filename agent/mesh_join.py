"""Joining a private mesh: from an invitation's string to a home that is a member."""

from functools import partial
from typing import Any

import trio

from coppermesh.agent.clock import now_us
from coppermesh.agent.former_ledgers import make_way
from coppermesh.agent.home import Home
from coppermesh.agent.mesh_facts import mesh_facts
from coppermesh.agent.mesh_making import adopt_admission, check_name
from coppermesh.agent.mesh_state import root_key_path, state_path
from coppermesh.agent.mesh_words import joining_request
from coppermesh.p2p.admission_door import ask_at_door
from coppermesh.p2p.errors import MeshError, Refused, Unreachable
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.invitation import Invitation, read_invitation
from coppermesh.p2p.libp2p_transport import open_libp2p_transport
from coppermesh.p2p.membership_messages import AdmissionReply
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import Transport


def join(home: Home, text: str, who: str, listen: str, door: str) -> dict[str, Any]:
    """Redeem an invitation and keep what it gives. Raises MeshError; the home is as before then, but for a key.

    A ledger of an earlier key on this mesh is kept aside (`former_ledgers`).
    """
    invitation = read_invitation(text)
    mesh = invitation.mesh
    check_name(invitation.name)
    if state_path(home, mesh).exists():
        raise Refused("already-joined", _already(home, invitation))
    # Kept before it is used: who asks again after a lost reply asks with the same key, and gets the same certificate.
    key = PeerKey.load_or_create(home.key_path(mesh))
    # All that could keep the mesh from being served is found out before the invitation is spent.
    make_way(home, mesh, key.peer)
    reply = trio.run(_redeem, invitation, key, who)
    private = adopt_admission(home, invitation, key, reply, listen, door, now_us())
    return mesh_facts(private.state, home, now_us())


def _already(home: Home, invitation: Invitation) -> str:
    said = f"this home is in mesh {invitation.name!r} already, the invitation was not used"
    if root_key_path(home, invitation.mesh).exists():
        return f"{said}; the mesh was made here, and its root key is here"
    leave = f"coppermesh mesh leave --mesh {invitation.mesh.hex()[:8]}"
    return f"{said}; to come in anew, as after being revoked, leave first: `{leave}`, then join again"


async def _redeem(invitation: Invitation, key: PeerKey, who: str) -> AdmissionReply:
    async with open_libp2p_transport(
        key, invitation.mesh, listen="/ip4/127.0.0.1/tcp/0", gossip=False
    ) as transport:
        return await redeem(transport, invitation, key, who)


async def redeem(transport: Transport, invitation: Invitation, key: PeerKey, who: str) -> AdmissionReply:
    """Ask at the invitation's doors, one after another. Raises Refused with the first door's reason, or Unreachable."""
    issuer = PeerId(invitation.issuer)
    request = partial(joining_request, key, invitation.mesh, issuer, invitation.token, who)
    troubles = []
    for door in invitation.addresses:
        try:
            return await ask_at_door(transport, invitation.mesh, door, issuer, request(now_us()))
        except Refused as error:
            if error.code != "unknown-protocol":
                raise
            troubles.append(f"{door}: nobody keeps a door for this mesh there")
        except MeshError as error:
            troubles.append(f"{door}: {error}")
    raise Unreachable(
        f"the door of {invitation.name!r} cannot be reached; is the agent of who invited running?\n  "
        + "\n  ".join(troubles)
    )
