"""What a member of a private mesh writes and reads: requests at doors, first certificates, others' addresses (pure)."""

from collections.abc import Sequence
from contextlib import suppress

from coppermesh.p2p.addresses import parse_address
from coppermesh.p2p.admission import refusal
from coppermesh.p2p.certificates import MAX_LIFE_US, SKEW_US
from coppermesh.p2p.envelope import open_record, sign_record
from coppermesh.p2p.errors import Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import MeshId, PeerId
from coppermesh.p2p.membership_messages import AdmissionRequest
from coppermesh.p2p.membership_records import MAX_DEPTH, Certificate, Joining
from coppermesh.p2p.records import SignedRecord
from coppermesh.p2p.signing import PeerKey


def joining_request(
    key: PeerKey,
    mesh: MeshId,
    issuer: PeerId,
    token: bytes | None,
    name: str,
    now_us: int,
    chain: Sequence[SignedRecord] = (),
) -> AdmissionRequest:
    """A signed request for a door."""
    joining = Joining(1, mesh, key.peer, issuer, token, name, now_us)
    return AdmissionRequest(sign_record(key, joining), list(chain))


def first_certificate(
    root: PeerKey, mesh: MeshId, subject: PeerId, serial: int, name: str, now_us: int
) -> SignedRecord:
    """The root key's own certificate for the mesh's maker."""
    expires_us = now_us + MAX_LIFE_US
    certificate = Certificate(
        1, mesh, root.peer, subject, serial, "admin", None, MAX_DEPTH, name, now_us, expires_us
    )
    return sign_record(root, certificate)


def usable(addresses: Sequence[str]) -> list[str]:
    """Those that are addresses, each once: others say them, and at the next start each is dialled."""
    kept = []
    for address in dict.fromkeys(addresses):
        with suppress(Unreachable):
            parse_address(address)
            kept.append(address)
    return kept


def read_joining(
    request: AdmissionRequest, visitor: PeerId, mesh: MeshId, me: PeerId, now_us: int
) -> Joining:
    """What a visitor asks at the door of `me`. Raises Refused where it is not about this mesh, door and time."""
    try:
        joining = open_record(Joining, request.joining, signer=visitor).record
    except RemoteProtocolError as error:
        raise Refused("forged", f"the request is not signed by who asks: {error}") from error
    if joining.mesh != mesh or joining.issuer != me:
        raise refusal("not-for-us")
    if abs(joining.issued_us - now_us) > SKEW_US:
        raise refusal("clock")
    return joining
