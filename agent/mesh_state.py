"""What a home keeps of one private mesh: one file, replaced whole, on disk before anything follows from it.

It holds the swarm key, so it is 0600 beside the peer key. The root key is a file of its own (`root-key`), only where
the mesh was made: it may be taken away and kept elsewhere. It renews the first certificate and revokes anybody.
"""

import os
import secrets
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from coppermesh.agent.config import DEFAULT_MESH
from coppermesh.agent.home import Home
from coppermesh.p2p.admission import Issued
from coppermesh.p2p.certificates import private_mesh_id
from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.errors import MeshError, RemoteProtocolError
from coppermesh.p2p.ids import MeshId, PeerId, mesh_id
from coppermesh.p2p.membership_messages import RotateRequest
from coppermesh.p2p.membership_records import Chain, RevocationNotice, SwarmKey
from coppermesh.p2p.records import Count, Key, Label, Micros, Version

FILE_NAME = "private-mesh"
ROOT_KEY_NAME = "root-key"
MAX_STATE_BYTES = 32 * 1024 * 1024
MAX_LISTED = 1000

Address = Annotated[str, Meta(max_length=200)]
Addresses = Annotated[list[Address], Meta(max_length=64)]


class StateError(MeshError):
    """A private mesh's file cannot be read or written. The text names it."""


class MeshState(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Everything but keys of signing. Changed with `msgspec.structs.replace` and `save_state`."""

    version: Version
    name: Label
    root: Key
    joined_us: Micros
    chain: Chain
    swarm_key: SwarmKey
    epoch: Count
    rotation: RotateRequest | None
    """The last change of the swarm key, to hand on; None before the first."""
    listen: Address
    door: Address
    """Where the door listens, for who may invite; empty: it has none."""
    doors: Addresses
    """Others' doors, where this agent comes back in."""
    addresses: Addresses
    """Where members listened when this agent joined."""
    next_serial: Count
    invitations: Annotated[list[Issued], Meta(max_length=MAX_LISTED)]
    revocations: Annotated[list[RevocationNotice], Meta(max_length=MAX_LISTED)]
    members: Annotated[list[Chain], Meta(max_length=MAX_LISTED)]

    @property
    def mesh(self) -> MeshId:
        """The mesh's id."""
        return private_mesh_id(PeerId(self.root), self.name)


def state_path(home: Home, mesh: MeshId) -> Path:
    """Where the file of that mesh is."""
    return home.mesh_path(mesh) / FILE_NAME


def root_key_path(home: Home, mesh: MeshId) -> Path:
    """Where the root key of a mesh that was made here is."""
    return home.mesh_path(mesh) / ROOT_KEY_NAME


def private_meshes(home: Home) -> list[MeshState]:
    """Every private mesh that this home is in, by name. Raises StateError where a file is damaged."""
    found = [load_state(path) for path in (home.path / "meshes").glob(f"*/{FILE_NAME}")]
    return sorted(found, key=lambda state: (state.name, state.joined_us))


def load_state(path: Path) -> MeshState:
    """The state in the file. Raises StateError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_STATE_BYTES + 1)
        state = decode(MeshState, data, max_bytes=MAX_STATE_BYTES)
        if path.parent.name != state.mesh.hex():
            raise StateError(f"{path}: is of another mesh than its directory")
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror}") from error
    except (RemoteProtocolError, ValueError) as error:
        raise StateError(f"{path}: damaged: {error}; restore it, or join again") from error
    return state


def save_state(home: Home, state: MeshState) -> None:
    """Replace the file in one step; on disk when this returns. Raises StateError, leaving the old one."""
    path = state_path(home, state.mesh)
    data = encode(state)
    if len(data) > MAX_STATE_BYTES:
        # What cannot be read again must not replace what can.
        raise StateError(
            f"{path}: {len(data)} bytes, at most {MAX_STATE_BYTES}: too many uses of invitations are kept; wait until "
            "some have expired"
        )
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(
            fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise StateError(f"{path}: cannot be written: {error.strerror}") from error


def forget_state(home: Home, mesh: MeshId) -> None:
    """The home has left the mesh: keys and state go, the ledger stays. Raises StateError."""
    try:
        for path in (state_path(home, mesh), root_key_path(home, mesh), home.key_path(mesh)):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StateError(f"{error.filename}: cannot be removed: {error.strerror}") from error


def find_mesh(meshes: list[MeshState], wanted: str) -> MeshState | None:
    """The mesh called `wanted`, or whose id begins so (8 digits at least). Raises MeshError where several are."""
    # "open" is the open mesh, whatever else is called so.
    named = [state for state in meshes if state.name == wanted != DEFAULT_MESH]
    if not named and len(wanted) >= 8:
        named = [state for state in meshes if state.mesh.hex().startswith(wanted)]
    if len(named) > 1:
        ids = ", ".join(state.mesh.hex()[:8] for state in named)
        raise MeshError(f"several meshes are called {wanted!r}: name one by its id ({ids})")
    return named[0] if named else None


def doubt_of(name: str, meshes: list[MeshState]) -> str | None:
    """What a home's owner has to know where the configured mesh `name` may be meant as a private one, and is not."""
    by_id = len(name) >= 8
    if name == DEFAULT_MESH or any(
        state.name == name or (by_id and state.mesh.hex().startswith(name)) for state in meshes
    ):
        return None
    return (
        f"no private mesh of this home is called {name!r}: this is an open mesh of that name, which anybody may join "
        "(a private one is made with `coppermesh mesh create` or joined with `mesh join`)"
    )


def elsewhere(home: Home, name: str) -> str:
    """Where else something that is not found in that mesh may be: the home's other meshes; empty where it has none."""
    private = [state.name for state in private_meshes(home)]
    others = [other for other in (*private, DEFAULT_MESH) if other != name] if private else []
    if not others:
        return ""
    options = " or ".join(f"--mesh {other}" for other in others[:3])
    return f"this looked in mesh {name!r} alone; the home has others: {options}"


def id_of(home: Home, name: str) -> MeshId:
    """The id of the mesh that a name means in this home: a private one it is in, else the open one of that name.

    Raises MeshError where the home is in several private meshes of that name.
    """
    found = find_mesh(private_meshes(home), name)
    return found.mesh if found is not None else mesh_id(name)
