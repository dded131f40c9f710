"""How a home comes to be in a private mesh: it makes one, or keeps what a door gave; and how it opens one later."""

import re
import secrets
from contextlib import suppress

from coppermesh.agent.config import DEFAULT_MESH
from coppermesh.agent.home import Home
from coppermesh.agent.mesh_state import (
    MeshState,
    load_state,
    private_meshes,
    root_key_path,
    save_state,
    state_path,
)
from coppermesh.agent.mesh_words import first_certificate, usable
from coppermesh.agent.private_mesh import PrivateMesh
from coppermesh.agent.rotations import check_rotation
from coppermesh.p2p.certificates import private_mesh_id, subject_of
from coppermesh.p2p.errors import MeshError, Refused
from coppermesh.p2p.ids import MeshId, PeerId
from coppermesh.p2p.invitation import Invitation
from coppermesh.p2p.membership import MembershipBook
from coppermesh.p2p.membership_messages import MAX_ADDRESSES, AdmissionReply
from coppermesh.p2p.signing import PeerKey

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def check_name(name: str) -> None:
    """Raises Refused where a private mesh may not be called so.

    Names are typed in shells and in config.toml, where "open" is what every home begins with: a private mesh of that
    name would take the place of the open one.
    """
    if name.lower() == DEFAULT_MESH:
        raise Refused("bad-name", f"a private mesh may not be called {name!r}: that is the open mesh")
    if _NAME.fullmatch(name) is None:
        raise Refused(
            "bad-name",
            f"a private mesh may not be called {name!r}: want letters, digits, '.', '-' and '_', at most 64, and a "
            "letter or digit first",
        )


def check_new_name(home: Home, name: str) -> None:
    """`check_name`, and no private mesh of this home is called so. Two labs may share a name; a home makes no two."""
    check_name(name)
    if any(state.name == name for state in private_meshes(home)):
        raise Refused("name-taken", f"this home is in a mesh {name!r} already: choose another name")


def create_private_mesh(home: Home, name: str, who: str, listen: str, door: str, now_us: int) -> PrivateMesh:
    """Make a mesh, its root key and the first admin's certificate. Raises MeshError."""
    check_name(name)
    root = PeerKey.generate()
    mesh = private_mesh_id(root.peer, name)
    root.save(root_key_path(home, mesh))
    key = PeerKey.load_or_create(home.key_path(mesh))
    first = first_certificate(root, mesh, key.peer, 1, who, now_us)
    state = MeshState(
        1,
        name,
        root.peer,
        now_us,
        [first],
        secrets.token_bytes(32),
        0,
        None,
        listen,
        door,
        [],
        [],
        1,
        [],
        [],
        [],
    )
    save_state(home, state)
    return open_private_mesh(home, mesh, now_us)


def open_private_mesh(home: Home, mesh: MeshId, now_us: int) -> PrivateMesh:
    """The mesh that this home made or joined. Raises StateError, IdentityError."""
    state = load_state(state_path(home, mesh))
    root_path = root_key_path(home, mesh)
    root = PeerKey.load(root_path) if root_path.exists() else None
    private = PrivateMesh(home, state, PeerKey.load(home.key_path(mesh)), root)
    for notice in state.revocations:
        # What was good when it was written may have expired.
        with suppress(MeshError):
            private.book.offer(notice, now_us)
    for chain in state.members:
        with suppress(MeshError):
            private.book.learn(chain, subject_of(chain), now_us, hearsay=True)
    private.learn_oneself(now_us)
    return private


def adopt_admission(
    home: Home,
    invitation: Invitation,
    key: PeerKey,
    reply: AdmissionReply,
    listen: str,
    door: str,
    now_us: int,
) -> PrivateMesh:
    """Keep what a door gave for `invitation`. `key` lies in the home already. Raises Refused where it does not hold."""
    assert reply.swarm_key is not None
    book = MembershipBook(PeerId(invitation.root), invitation.mesh)
    for notice in reply.revocations:
        with suppress(Refused):
            book.offer(notice, now_us)
    book.check(reply.chain, key.peer, now_us)
    _check_epoch(book, invitation.mesh, reply, now_us)
    state = MeshState(
        1,
        invitation.name,
        invitation.root,
        now_us,
        reply.chain,
        reply.swarm_key,
        reply.epoch,
        reply.rotation,
        listen,
        door,
        usable([*reply.doors, *invitation.addresses])[: 2 * MAX_ADDRESSES],
        usable(reply.addresses),
        1,
        [],
        list(reply.revocations),
        [],
    )
    save_state(home, state)
    return open_private_mesh(home, invitation.mesh, now_us)


def _check_epoch(book: MembershipBook, mesh: MeshId, reply: AdmissionReply, now_us: int) -> None:
    """The swarm key and its number are what somebody who may change it has signed, not what a door says by itself.

    Raises Refused. A number far ahead would keep this member from every later key.
    """
    if reply.rotation is None:
        if reply.epoch:
            raise Refused(
                "forged", f"the door gave swarm key number {reply.epoch} without a word of who made it"
            )
        return
    rotation = check_rotation(book, mesh, reply.rotation, now_us)
    if rotation.epoch != reply.epoch or reply.rotation.swarm_key != reply.swarm_key:
        raise Refused("forged", "the door gave another swarm key, or another number, than was signed")
