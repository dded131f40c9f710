"""Changes of a private mesh's swarm key: what a signed one is worth, and which of two holds (pure)."""

from blake3 import blake3

from coppermesh.p2p.envelope import open_record
from coppermesh.p2p.errors import Refused, RemoteProtocolError
from coppermesh.p2p.ids import MeshId, PeerId
from coppermesh.p2p.membership import SKEW_US, MembershipBook, Right
from coppermesh.p2p.membership_messages import RotateRequest
from coppermesh.p2p.membership_records import Rotation

MAX_EPOCH = 1 << 60
"""No number of a swarm key is higher, so that there is always a next one."""


def read_rotation(mesh: MeshId, request: RotateRequest) -> Rotation:
    """What was signed, if it is about this mesh and the key that came with it. Raises Refused `forged`."""
    try:
        rotation = open_record(Rotation, request.rotation).record
    except RemoteProtocolError as error:
        raise Refused("forged", str(error)) from error
    if rotation.mesh != mesh or blake3(request.swarm_key).digest() != rotation.key_hash:
        raise Refused("forged", "the swarm key is not the one that was signed, or is of another mesh")
    return rotation


def check_rotation(book: MembershipBook, mesh: MeshId, request: RotateRequest, now_us: int) -> Rotation:
    """`read_rotation`, and its signer may change the key, and neither number nor date is ahead. Raises Refused."""
    rotation = read_rotation(mesh, request)
    if rotation.epoch > MAX_EPOCH or rotation.issued_us > now_us + SKEW_US:
        raise Refused("forged", "the swarm key's number or date is too far ahead")
    signer = book.check(request.chain, PeerId(request.rotation.signer), now_us)
    if not signer.may(Right.REVOKE):
        raise Refused("no-right", f"{signer.certificate.role} may not change the swarm key")
    return rotation


def outranks(rotation: Rotation, epoch: int, key_hash: bytes) -> bool:
    """Whether it goes before the key of that number and hash: the higher number, of equals the smaller hash."""
    return rotation.epoch > epoch or (rotation.epoch == epoch and rotation.key_hash < key_hash)
