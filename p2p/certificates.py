"""What one chain of certificates is worth in a private mesh, whoever was revoked (pure).

A private mesh is its root key: the mesh id is a hash of that key and the name, so whoever knows the id knows the only
key that may begin a chain. A chain is a list of certificates: the first issued by the root key, each further one by the
subject of the one before, the last about the peer that shows it. A link never gives more than its issuer has: role,
quota, depth and expiry only narrow, so that the first certificate bounds everything below it. Certificates last
`MAX_LIFE_US` at most and are renewed, so a key that is lost without anybody noticing is worth nothing a month later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from blake3 import blake3

from coppermesh.p2p.envelope import Opened, open_record
from coppermesh.p2p.errors import Refused, RemoteProtocolError
from coppermesh.p2p.ids import MeshId, PeerId, short_peer
from coppermesh.p2p.membership_records import MAX_CHAIN, Certificate, Quota
from coppermesh.p2p.records import SignedRecord

DAY_US = 86_400_000_000
MAX_LIFE_US = 30 * DAY_US
SKEW_US = 120_000_000
"""How far another clock may be ahead."""


class Right(StrEnum):
    """What a member may do."""

    SUBMIT = "submit"
    PROVIDE = "provide"
    INVITE = "invite"
    REVOKE = "revoke"


ROLES: dict[str, frozenset[Right]] = {
    "admin": frozenset(Right),
    "member": frozenset({Right.SUBMIT, Right.PROVIDE}),
    "submit-only": frozenset({Right.SUBMIT}),
    "provide-only": frozenset({Right.PROVIDE}),
}
"""Rights by role."""

MEMBERSHIP_CODES = {
    "no-certificate": "it showed no certificate",
    "chain-too-long": "there are more links between it and the root key than are allowed",
    "wrong-root": "the first link is not signed by the root key of this mesh",
    "wrong-mesh": "a link is for another mesh",
    "broken-link": "a link is not signed by the subject of the link before it",
    "forged": "a link's signature is not valid, or the link is malformed",
    "wrong-subject": "the last link is about another peer than the one that shows it",
    "may-not-issue": "a link was issued by somebody who may not issue it",
    "wider-role": "a link gives a role that its issuer does not have",
    "wider-quota": "a link gives a larger quota than its issuer has",
    "wider-expiry": "a link outlives its issuer's own certificate",
    "too-long": "a certificate is made out for more than 30 days",
    "not-yet-valid": "a certificate is not valid yet: one of the clocks is wrong",
    "expired": "a certificate has expired",
    "revoked": "it was revoked",
    "issuer-revoked": "who issued its certificate was revoked, and this certificate does not count any more",
    "no-right": "its role does not allow this",
}
"""Every code with which a membership is refused."""


def private_mesh_id(root: PeerId, name: str) -> MeshId:
    """The id of the private mesh `name` (1 to 64 printable ASCII characters) with the root key `root`."""
    if not (0 < len(name) <= 64 and name.isascii() and name.isprintable()):
        raise ValueError(f"mesh name {name!r}: want 1 to 64 printable ASCII characters")
    context = "coppermesh 2026 private mesh id v1"
    return MeshId(blake3(root + name.encode(), derive_key_context=context).digest(16))


@dataclass(frozen=True, slots=True)
class Member:
    """A peer with a valid chain. `links` is opened, the root's first."""

    peer: PeerId
    links: tuple[Opened[Certificate], ...]

    @property
    def certificate(self) -> Certificate:
        """Its own, the last link."""
        return self.links[-1].record

    @property
    def chain(self) -> list[SignedRecord]:
        """As it travels."""
        return [link.signed for link in self.links]

    @property
    def expires_us(self) -> int:
        """When the chain stops to hold."""
        return min(link.record.expires_us for link in self.links)

    def may(self, right: Right) -> bool:
        """Whether its role gives the right."""
        return right in ROLES[self.certificate.role]

    def is_below(self, peer: PeerId) -> bool:
        """Whether `peer` is one of its issuers."""
        return any(link.record.subject == peer for link in self.links[:-1])


def subject_of(chain: Sequence[SignedRecord]) -> PeerId:
    """Whom a chain claims to be about; nothing is proven by it. Raises Refused where it is empty or malformed."""
    if not chain:
        raise refusal("no-certificate")
    try:
        return PeerId(open_record(Certificate, chain[-1]).record.subject)
    except RemoteProtocolError as error:
        raise refusal("forged", str(error)) from error


def narrows(inner: Quota | None, outer: Quota | None) -> bool:
    """Whether whoever has `outer` may give `inner`: never more at once, nor more over time, nor of another kind."""
    if outer is None:
        return True
    if inner is None or inner.kind not in ("any", outer.kind):
        return False
    slower = inner.device_us * outer.period_us <= outer.device_us * inner.period_us
    return slower and inner.device_us <= outer.device_us


def check_issue(certificate: Certificate, issuer: Certificate) -> None:
    """Whether the holder of `issuer` may issue `certificate`. Raises Refused with what is wrong."""
    if not ROLES[certificate.role] <= ROLES[issuer.role]:
        raise refusal("wider-role", f"{issuer.role} issued {certificate.role}")
    if Right.INVITE not in ROLES[issuer.role] or issuer.depth == 0:
        raise refusal("may-not-issue", "only an admin below whom there is room may")
    if certificate.depth >= issuer.depth:
        raise refusal("may-not-issue", f"below this issuer at most {issuer.depth - 1} further links may hang")
    if not narrows(certificate.quota, issuer.quota):
        raise refusal("wider-quota")
    if certificate.expires_us > issuer.expires_us:
        raise refusal("wider-expiry")


def walk(chain: Sequence[SignedRecord], root: PeerId, mesh: MeshId, peer: PeerId, now_us: int) -> Member:
    """The membership that `chain` gives `peer`, revocations aside. Raises Refused with one of `MEMBERSHIP_CODES`."""
    if not chain:
        raise refusal("no-certificate")
    if len(chain) > MAX_CHAIN:
        raise refusal("chain-too-long", f"{len(chain)} links, at most {MAX_CHAIN}")
    links: list[Opened[Certificate]] = []
    for number, signed in enumerate(chain):
        if number == 0 and signed.signer != root:
            raise refusal("wrong-root")
        if number and signed.signer != links[-1].record.subject:
            raise refusal("broken-link", f"link {number + 1} of {len(chain)}")
        links.append(_open(signed, mesh, now_us))
        if number:
            check_issue(links[-1].record, links[-2].record)
    if links[-1].record.subject != peer:
        raise refusal("wrong-subject", f"it is about {short_peer(PeerId(links[-1].record.subject))}")
    return Member(peer, tuple(links))


def _open(signed: SignedRecord, mesh: MeshId, now_us: int) -> Opened[Certificate]:
    try:
        link = open_record(Certificate, signed)
    except RemoteProtocolError as error:
        raise refusal("forged", str(error)) from error
    certificate = link.record
    if certificate.mesh != mesh:
        raise refusal("wrong-mesh")
    if not 0 < certificate.expires_us - certificate.not_before_us <= MAX_LIFE_US:
        raise refusal("too-long")
    if certificate.not_before_us > now_us + SKEW_US:
        raise refusal("not-yet-valid")
    if certificate.expires_us <= now_us:
        raise refusal("expired", f"link of {short_peer(PeerId(certificate.subject))}")
    return link


def refusal(code: str, detail: str = "") -> Refused:
    """The error of a code of `MEMBERSHIP_CODES`."""
    return Refused(code, MEMBERSHIP_CODES[code] + (f" ({detail})" if detail else ""))
