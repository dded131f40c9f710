"""Who is a member of a private mesh: chains that were shown, and who was revoked (pure).

Theory of operation. What a chain is worth by itself is what `certificates` says. An admin revokes anybody who is not
above it in its own chain, the root key anybody, and every member itself (that is leaving). A revoked peer is no member
whatever it shows. What it had issued counts up to the serial that the revocation names.
A revoked admin may still have signed revocations: they count only if no revocation by a
signer *nearer the root* (with a shorter chain) names that admin, so the outcome depends on what is known and not on
the order in which it arrived. Between equals both count: each mistrusts the other, and the root key decides. The same
holds for whom a revoked admin made an admin: a certificate that does not count any more gives no right to revoke.
Nobody revokes the root key. One revocation is held for each signer and subject, the strictest, and of one signer not
more than `MAX_BY_SIGNER`; where there is no room, those nearer the root displace the others: no member can fill the
book so that it could not be revoked.

A member says itself which chain is its own. What others say of it counts until it has.

Nothing here reads a clock; times are microseconds since the epoch. Safe to use from several threads.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from coppermesh.p2p.certificates import DAY_US, MAX_LIFE_US, SKEW_US, Member, Right, refusal, walk
from coppermesh.p2p.envelope import Opened, open_record
from coppermesh.p2p.errors import Refused, RemoteProtocolError
from coppermesh.p2p.ids import MeshId, PeerId, short_peer
from coppermesh.p2p.membership_records import Certificate, Revocation, RevocationNotice
from coppermesh.p2p.records import SignedRecord

MAX_REVOCATIONS = 1024
MAX_BY_SIGNER = 256
"""Revocations of one signer but the root key."""
MAX_MEMBERS = 4096


@dataclass(frozen=True, slots=True)
class _Held:
    """A revocation, how it travels, and its signer's chain: its length, and who issued its links by which serials."""

    opened: Opened[Revocation]
    notice: RevocationNotice
    distance: int
    issuers: tuple[tuple[PeerId, int], ...]

    @property
    def is_leave(self) -> bool:
        """Its signer leaves by it."""
        return self.opened.record.subject == self.opened.signer

    def counts(self, revoked: Mapping[PeerId, int]) -> bool:
        """Whether it does, given what those nearer the root have revoked."""
        if self.is_leave:
            return True
        holds = all(serial <= revoked.get(issuer, serial) for issuer, serial in self.issuers)
        return holds and self.opened.signer not in revoked

    def is_stricter_than(self, other: "_Held | None") -> bool:
        """Whether it says more than another of the same signer and subject."""
        if other is None:
            return True
        one, two = self.opened.record, other.opened.record
        return (-one.last_serial, one.expires_us) > (-two.last_serial, two.expires_us)


class MembershipBook:
    """Who is a member of one private mesh, as far as this agent has been shown: chains and revocations."""

    def __init__(self, root: PeerId, mesh: MeshId) -> None:
        self._root = root
        self._mesh = mesh
        self._members: dict[PeerId, Member] = {}
        self._hearsay: set[PeerId] = set()
        """Members that have not shown a chain themselves."""
        self._notices: dict[tuple[PeerId, PeerId], _Held] = {}
        """By signer and subject."""
        self._revoked: dict[PeerId, int] = {}
        """Who is revoked, and the last serial of theirs that counts."""
        self._lock = threading.RLock()

    # Chains

    def check(self, chain: Sequence[SignedRecord], peer: PeerId, now_us: int) -> Member:
        """The membership that `chain` gives `peer`. Raises Refused with a code of `MEMBERSHIP_CODES`."""
        member = walk(chain, self._root, self._mesh, peer, now_us)
        if peer in self._revoked:
            raise refusal("revoked")
        for link in member.links:
            last = self._revoked.get(PeerId(link.record.issuer))
            if last is not None and link.record.serial > last:
                raise refusal("issuer-revoked")
        return member

    def learn(
        self, chain: Sequence[SignedRecord], peer: PeerId, now_us: int, *, hearsay: bool = False
    ) -> Member:
        """`check`, and remember the longest-lived chain that each member has shown. Raises Refused.

        `hearsay`: not `peer` itself shows it; it is remembered where nothing better is known.
        """
        member = self.check(chain, peer, now_us)
        with self._lock:
            held = self.member(peer, now_us)
            if peer not in self._members and len(self._members) >= MAX_MEMBERS:
                raise Refused("crowded", f"{MAX_MEMBERS} members are known already")
            longer = held is None or member.expires_us >= held.expires_us
            if held is None or (not hearsay and (longer or peer in self._hearsay)):
                self._members[peer] = held = member
                (self._hearsay.add if hearsay else self._hearsay.discard)(peer)
            return held

    def member(self, peer: PeerId, now_us: int) -> Member | None:
        """Who `peer` is, where a valid chain of it is known and it is not revoked."""
        found = self._members.get(peer)
        return found if found is not None and found.expires_us > now_us else None

    def members(self, now_us: int) -> list[Member]:
        """Every member that is known and valid, by peer id."""
        with self._lock:
            return [self._members[peer] for peer in sorted(self._members) if self.member(peer, now_us)]

    def require(self, peer: PeerId, right: Right, now_us: int) -> Member:
        """The member, if it has the right. Raises Refused."""
        member = self.member(peer, now_us)
        if member is None:
            raise refusal("no-certificate", f"{short_peer(peer)} is no member here")
        if not member.may(right):
            raise refusal("no-right", f"{member.certificate.role} may not {right}")
        return member

    def highest_serial(self, issuer: PeerId) -> int:
        """The highest serial by `issuer` in the chains known; 0 for none."""
        links = (link.record for member in list(self._members.values()) for link in member.links)
        return max((link.serial for link in links if link.issuer == issuer), default=0)

    # Revocations

    def is_revoked(self, peer: PeerId) -> bool:
        """Whether a revocation of `peer` counts."""
        return peer in self._revoked

    def revocations(self, now_us: int) -> list[RevocationNotice]:
        """Those alive, to hand on: those of signers nearest the root first, and of these the newest."""
        with self._lock:
            alive = [held for held in self._notices.values() if held.opened.record.expires_us > now_us]
        alive.sort(key=lambda held: (held.distance, -held.opened.record.issued_us))
        return [held.notice for held in alive]

    def offer(self, notice: RevocationNotice, now_us: int) -> bool:
        """Take a revocation. False where no more is said than is known. Raises Refused where it does not hold."""
        try:
            opened = open_record(Revocation, notice.revocation)
        except RemoteProtocolError as error:
            raise refusal("forged", str(error)) from error
        revocation = opened.record
        place = opened.signer, PeerId(revocation.subject)
        known = self._notices.get(place)
        if known is not None and known.opened.id == opened.id:
            return False
        if revocation.mesh != self._mesh:
            raise refusal("wrong-mesh")
        if not 0 < revocation.expires_us - revocation.issued_us <= MAX_LIFE_US + DAY_US:
            raise refusal("too-long", "a revocation lasts at most 31 days")
        if revocation.issued_us > now_us + SKEW_US:
            raise refusal("not-yet-valid")
        if revocation.expires_us <= now_us:
            raise refusal("expired")
        links = self._links_of(opened, notice.chain)
        issuers = tuple((PeerId(link.record.issuer), link.record.serial) for link in links)
        held = _Held(opened, notice, len(links), issuers)
        with self._lock:
            known = self._notices.get(place)
            if known is not None and known.opened.record.expires_us > now_us:
                if not held.is_stricter_than(known):
                    return False
            elif known is None:
                self._make_room(held)
            self._notices[place] = held
            self._settle()
        return True

    def _make_room(self, held: _Held) -> None:
        """For one more; a far one gives way to a nearer one. Raises Refused where there is none."""
        own = sum(signer == held.opened.signer for signer, _ in self._notices)
        if held.distance and own >= MAX_BY_SIGNER:
            raise Refused("crowded", f"{MAX_BY_SIGNER} revocations of that signer are held already")
        if len(self._notices) < MAX_REVOCATIONS:
            return
        place, farthest = max(self._notices.items(), key=lambda item: item[1].distance)
        if farthest.distance <= held.distance:
            raise Refused("crowded", f"{MAX_REVOCATIONS} revocations are held already")
        del self._notices[place]

    def _links_of(
        self, opened: Opened[Revocation], chain: Sequence[SignedRecord]
    ) -> tuple[Opened[Certificate], ...]:
        """The chain of its signer, empty for the root key. Raises Refused where it may not revoke that peer.

        The chain must have held when the revocation was signed: it may end before the revocation does.
        """
        revocation = opened.record
        if revocation.subject == self._root:
            raise refusal("no-right", "nobody revokes the root key")
        if opened.signer == self._root:
            return ()
        member = walk(chain, self._root, self._mesh, opened.signer, revocation.issued_us)
        if revocation.subject != opened.signer:
            if not member.may(Right.REVOKE):
                raise refusal("no-right", f"{member.certificate.role} may revoke itself only")
            if member.is_below(PeerId(revocation.subject)):
                raise refusal("no-right", "nobody revokes who is above in its own chain")
        return member.links

    def forget_expired(self, now_us: int) -> None:
        """Drop what has expired. Call now and then."""
        with self._lock:
            gone = [place for place, held in self._notices.items() if held.opened.record.expires_us <= now_us]
            for place in gone:
                del self._notices[place]
            self._forget(peer for peer, member in self._members.items() if member.expires_us <= now_us)
            if gone:
                self._settle()

    def _settle(self) -> None:
        """Who is revoked, given everything that is known: nearest the root first, equals together."""
        revoked: dict[PeerId, int] = {}
        for distance in sorted({held.distance for held in self._notices.values()}):
            before = dict(revoked)
            for held in self._notices.values():
                if held.distance != distance or not held.counts(before):
                    continue
                subject, last = PeerId(held.opened.record.subject), held.opened.record.last_serial
                revoked[subject] = min(revoked.get(subject, last), last)
        self._revoked = revoked
        self._forget(peer for peer, member in self._members.items() if not self._still_counts(member))

    def _forget(self, peers: Iterable[PeerId]) -> None:
        for peer in list(peers):
            del self._members[peer]
            self._hearsay.discard(peer)

    def _still_counts(self, member: Member) -> bool:
        issuers: Iterable[Certificate] = (link.record for link in member.links)
        return member.peer not in self._revoked and all(
            link.serial <= self._revoked.get(PeerId(link.issuer), link.serial) for link in issuers
        )
