"""Changes of a private mesh's swarm key: what a signed one is worth, and which of two holds (pure)."""

from blake3 import blake3

from coppermesh.p2p.certificates import SKEW_US, Right
from coppermesh.p2p.envelope import open_record
from coppermesh.p2p.errors import Refused, RemoteProtocolError
from coppermesh.p2p.ids import MeshId, PeerId
from coppermesh.p2p.membership import MembershipBook
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


def trouble_with(book: MembershipBook, request: RotateRequest, now_us: int) -> str | None:
    """The code with which others refuse a rotation's signer now, if they do."""
    try:
        book.check(request.chain, PeerId(request.rotation.signer), now_us)
    except Refused as error:
        return error.code
    return None


def replaces(
    rotation: Rotation,
    book: MembershipBook,
    current: RotateRequest | None,
    epoch: int,
    swarm_key: bytes,
    now_us: int,
) -> bool:
    """Whether it goes before the key that is in use, of that number, which `current` made."""
    if current is not None and trouble_with(book, current, now_us) in ("revoked", "issuer-revoked"):
        # Its signer may have given it any number and a small hash: what came later counts.
        return rotation.issued_us > open_record(Rotation, current.rotation).record.issued_us
    return outranks(rotation, epoch, blake3(swarm_key).digest())
