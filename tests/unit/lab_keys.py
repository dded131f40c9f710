"""A private mesh's keys and certificates, for tests."""

from dataclasses import dataclass, field
from typing import Any

from coppermesh.p2p.certificates import DAY_US, private_mesh_id
from coppermesh.p2p.envelope import sign_record
from coppermesh.p2p.ids import MeshId, PeerId
from coppermesh.p2p.membership import MembershipBook
from coppermesh.p2p.membership_records import Certificate, Revocation, RevocationNotice
from coppermesh.p2p.records import SignedRecord
from coppermesh.p2p.signing import PeerKey

NOW = 1_800_000_000_000_000


def key(number: int) -> PeerKey:
    return PeerKey(bytes([number]) * 32)


ROOT = key(1)
MESH: MeshId = private_mesh_id(ROOT.peer, "lab")


def book() -> MembershipBook:
    return MembershipBook(ROOT.peer, MESH)


def certificate(issuer: PeerKey, subject: PeerId, **fields: Any) -> SignedRecord:
    values: dict[str, Any] = {
        "version": 1, "mesh": MESH, "issuer": issuer.peer, "subject": subject, "serial": 1, "role": "member",
        "quota": None, "depth": 0, "name": "", "not_before_us": NOW - DAY_US, "expires_us": NOW + 7 * DAY_US,
    }  # fmt: skip
    return sign_record(issuer, Certificate(**(values | fields)))


def admin(issuer: PeerKey, subject: PeerId, depth: int, **fields: Any) -> SignedRecord:
    return certificate(issuer, subject, role="admin", depth=depth, **fields)


@dataclass
class Chain:
    """Root, then admins 2, 3 ..., then the member."""

    admins: int = 1
    last: dict[str, Any] = field(default_factory=dict)

    def build(self) -> tuple[list[SignedRecord], PeerKey]:
        issuer, links = ROOT, []
        for number in range(self.admins):
            subject = key(2 + number)
            links.append(admin(issuer, subject.peer, 3 - number))
            issuer = subject
        member = key(2 + self.admins)
        links.append(certificate(issuer, member.peer, **self.last))
        return links, member


def revocation(
    signer: PeerKey, subject: PeerId, chain: list[SignedRecord], last: int = 0, **fields: Any
) -> RevocationNotice:
    values: dict[str, Any] = {
        "version": 1, "mesh": MESH, "signer": signer.peer, "subject": subject, "last_serial": last,
        "issued_us": NOW, "expires_us": NOW + 31 * DAY_US,
    }  # fmt: skip
    return RevocationNotice(sign_record(signer, Revocation(**(values | fields))), chain)
