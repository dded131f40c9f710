"""A private mesh as one of its members runs it: state and keys, and every change that is made to them.

No trio here: methods take `now_us` and block on the disk, so the agent calls those that write in a thread, one at a
time (`mesh_keeper`), and the command line calls them directly where no agent runs. What a method hands out is on disk
before it returns.
"""

import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from blake3 import blake3

from coppermesh.agent.home import Home
from coppermesh.agent.mesh_state import (
    MAX_LISTED,
    MeshState,
    forget_state,
    save_state,
)
from coppermesh.agent.mesh_words import first_certificate, joining_request, read_joining, usable
from coppermesh.agent.rotations import check_rotation, read_rotation, replaces, trouble_with
from coppermesh.p2p.admission import DoorPace, Invitations, Issued, Use, token_hash
from coppermesh.p2p.certificates import DAY_US, MAX_LIFE_US, Member, Right, check_issue
from coppermesh.p2p.envelope import open_record, sign_record
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import MeshId, PeerId
from coppermesh.p2p.invitation import MAX_DOORS, Invitation, invitation_text
from coppermesh.p2p.membership import MembershipBook
from coppermesh.p2p.membership_messages import (
    MAX_ADDRESSES,
    MAX_KNOWN,
    AdmissionReply,
    AdmissionRequest,
    MembersReply,
    Revocations,
    RotateRequest,
)
from coppermesh.p2p.membership_records import (
    Certificate,
    Quota,
    Revocation,
    RevocationNotice,
    Rotation,
)
from coppermesh.p2p.records import SignedRecord
from coppermesh.p2p.signing import PeerKey

RENEW_PART = 3
"""A certificate is renewed when less than one part in so many of its life is left."""
RENEWAL_GAIN_US = DAY_US // 24
"""A renewal makes a chain last so much longer at least: each costs its issuer a serial and a write to disk."""
MAX_EPOCH_STEP = 1 << 20
"""More swarm keys than anybody can have missed: nobody uses up the numbers."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What an invitation gives. `depth`: of an admin, how many further links may hang below."""

    role: str = "member"
    quota: Quota | None = None
    depth: int | None = None
    uses: int = 1
    expires_us: int = 0


class PrivateMesh:
    """One private mesh in one home."""

    def __init__(self, home: Home, state: MeshState, key: PeerKey, root: PeerKey | None) -> None:
        self.home = home
        self.key = key
        self.mesh: MeshId = state.mesh
        self._root = root
        self._state = state
        self.book = MembershipBook(PeerId(state.root), self.mesh)
        self.invitations = Invitations(state.invitations)
        self._pace = DoorPace()

    @property
    def state(self) -> MeshState:
        """What is on disk."""
        return self._state

    @property
    def name(self) -> str:
        """What the mesh is called."""
        return self._state.name

    @property
    def chain(self) -> list[SignedRecord]:
        """This agent's own."""
        return self._state.chain

    @property
    def certificate(self) -> Certificate:
        """This agent's own, valid or not."""
        return open_record(Certificate, self._state.chain[-1]).record

    @property
    def has_root(self) -> bool:
        """The mesh was made here, and its root key is still here."""
        return self._root is not None

    def member(self, now_us: int) -> Member:
        """This agent as a member. Raises Refused where its own chain does not hold (any more)."""
        return self.book.check(self.chain, self.key.peer, now_us)

    def may(self, right: Right, now_us: int) -> bool:
        """Whether this agent has the right now."""
        try:
            return self.member(now_us).may(right)
        except Refused:
            return False

    def _save(self, **changes: Any) -> None:
        state = msgspec.structs.replace(self._state, invitations=self.invitations.to_list(), **changes)
        save_state(self.home, state)
        self._state = state

    def keep_known(self, now_us: int) -> None:
        """Put what others have shown on disk: members and revocations."""
        members = [member.chain for member in self.book.members(now_us)][:MAX_LISTED]
        revocations = self.book.revocations(now_us)[:MAX_LISTED]
        # Members show themselves again and again: that alone is no reason to write.
        if (members, revocations) != (self._state.members, self._state.revocations):
            self._save(members=members, revocations=revocations)

    # Certificates

    def _issue(
        self, subject: PeerId, role: str, quota: Quota | None, depth: int, name: str, now_us: int
    ) -> list[SignedRecord]:
        """A chain for `subject`, below this agent's own. Raises Refused. The serial is on disk afterwards."""
        me = self.member(now_us)
        certificate = Certificate(
            version=1,
            mesh=self.mesh,
            issuer=self.key.peer,
            subject=subject,
            serial=max(1, self._state.next_serial),
            role=role,
            quota=quota,
            depth=depth,
            name=name,
            not_before_us=now_us,
            expires_us=min(now_us + MAX_LIFE_US, me.expires_us),
        )
        check_issue(certificate, me.certificate)
        self._save(next_serial=certificate.serial + 1)
        return [*self.chain, sign_record(self.key, certificate)]

    def renew_for(self, member: Member, now_us: int) -> list[SignedRecord]:
        """A new chain for a member, with what it has now. Raises Refused."""
        known = self.book.check(member.chain, member.peer, now_us)
        if min(now_us + MAX_LIFE_US, self.member(now_us).expires_us) - known.expires_us < RENEWAL_GAIN_US:
            raise Refused("not-longer", "a renewed certificate would not last longer than the one there is")
        old, mine = known.certificate, self.certificate
        depth = min(old.depth, max(0, mine.depth - 1))
        chain = self._issue(known.peer, old.role, old.quota, depth, old.name, now_us)
        self.book.learn(chain, known.peer, now_us)
        return chain

    def needs_renewal(self, now_us: int) -> bool:
        """Less than a third of the chain's life is left."""
        links = [open_record(Certificate, link).record for link in self.chain]
        soonest = min(links, key=lambda link: link.expires_us)
        life_us = soonest.expires_us - soonest.not_before_us
        return soonest.expires_us - now_us < life_us // RENEW_PART

    def renew_by_root(self, now_us: int) -> bool:
        """Where the root key is here: a new first certificate. False where it is not, or nobody is asked to."""
        if self._root is None or self.book.is_revoked(self.key.peer):
            return False
        old = self.certificate
        first = first_certificate(self._root, self.mesh, self.key.peer, old.serial + 1, old.name, now_us)
        self._save(chain=[first])
        self.learn_oneself(now_us)
        return True

    def take_chain(self, chain: Sequence[SignedRecord], now_us: int) -> None:
        """A renewed chain of our own. Raises Refused where it does not hold, or is shorter-lived than what we have."""
        renewed = self.book.check(chain, self.key.peer, now_us)
        try:
            current = self.member(now_us).expires_us
        except Refused:
            current = 0
        if renewed.expires_us <= current:
            raise Refused("not-longer", "the renewed certificate does not last longer than the old one")
        self._save(chain=list(chain))
        self.learn_oneself(now_us)

    def learn_oneself(self, now_us: int) -> None:
        """This agent is among the members that are known, as long as it is one."""
        if self.may_show(now_us):
            self.book.learn(self.chain, self.key.peer, now_us)

    # The door

    def invite(self, terms: Terms, doors: Sequence[str], now_us: int) -> str:
        """An invitation's string. Raises Refused where this agent may not give that."""
        me = self.member(now_us)
        if not me.may(Right.INVITE) or me.certificate.depth == 0:
            raise Refused(
                "may-not-issue", f"this home is {me.certificate.role} of {self.name} and may not invite"
            )
        if not doors:
            raise Refused("no-door", "this agent's door is not open: start the agent, then invite")
        below = me.certificate.depth - 1
        depth = min(below, terms.depth if terms.depth is not None else below) if terms.role == "admin" else 0
        trial = Certificate(
            1,
            self.mesh,
            self.key.peer,
            self.key.peer,
            1,
            terms.role,
            terms.quota,
            depth,
            "",
            now_us,
            now_us + 1,
        )
        check_issue(trial, me.certificate)
        token = secrets.token_bytes(16)
        issued = Issued(
            token_hash(token), terms.role, terms.quota, depth, terms.expires_us, terms.uses, [], now_us
        )
        self.invitations.add(issued, now_us)
        self._save()
        return invitation_text(
            Invitation(
                1,
                self.name,
                self._state.root,
                self.key.peer,
                [door.partition("/p2p/")[0] for door in doors[:MAX_DOORS]],
                token,
                terms.expires_us,
            )
        )

    def admit(
        self,
        visitor: PeerId,
        place: str,
        request: AdmissionRequest,
        addresses: Sequence[str],
        doors: Sequence[str],
        now_us: int,
    ) -> AdmissionReply:
        """What the door answers. The use of an invitation is on disk before this returns. Raises Refused."""
        self._pace.admit(place, now_us)
        joining = read_joining(request, visitor, self.mesh, self.key.peer, now_us)
        if self.book.is_revoked(visitor):
            raise Refused("revoked", "this peer was revoked")
        if joining.token is None:
            chain = self._readmit(visitor, request.chain, now_us)
        else:
            chain = self._use_up(joining.token, visitor, joining.name, now_us)
        return AdmissionReply(
            "ok",
            "",
            chain,
            self._state.swarm_key,
            self._state.epoch,
            self._rotation_to_show(now_us),
            list(addresses[:MAX_ADDRESSES]),
            list(doors[:MAX_ADDRESSES]),
            self.book.revocations(now_us)[:MAX_KNOWN],
        )

    def _use_up(self, token: bytes, visitor: PeerId, name: str, now_us: int) -> list[SignedRecord]:
        found = self.invitations.look(token, visitor, now_us)
        if isinstance(found, Use):
            return list(found.chain)
        chain = self._issue(visitor, found.role, found.quota, found.depth, name, now_us)
        self.invitations.use(found, Use(visitor, chain))
        try:
            self._save()
        except BaseException:
            # Asked again, the token must not give what is on no disk.
            self.invitations.put_back(found)
            raise
        self.book.learn(chain, visitor, now_us)
        return chain

    def _readmit(self, visitor: PeerId, chain: Sequence[SignedRecord], now_us: int) -> list[SignedRecord]:
        """An old member comes back, after a rotation that it missed, and keeps what it has."""
        return self.book.learn(chain, visitor, now_us).chain

    # Revoking

    def revoke(self, subject: PeerId, last_serial: int, now_us: int) -> RevocationNotice:
        """A revocation by this agent, by the root key where it is here. Raises Refused."""
        signer = self._root if self._root is not None and subject != self.key.peer else self.key
        revocation = Revocation(
            1, self.mesh, signer.peer, subject, last_serial, now_us, now_us + MAX_LIFE_US + DAY_US
        )
        chain = [] if signer is self._root else list(self.chain)
        notice = RevocationNotice(sign_record(signer, revocation), chain)
        self.take_revocation(notice, now_us)
        return notice

    def end_membership(self, subject: PeerId, last_serial: int, now_us: int) -> RevocationNotice:
        """`revoke`, and a new swarm key with it where this agent may make one (`state.rotation`). Raises Refused."""
        notice = self.revoke(subject, last_serial, now_us)
        if self.may(Right.REVOKE, now_us):
            self.rotate(now_us)
        return notice

    def owes_rotation(self, now_us: int) -> bool:
        """This agent has revoked somebody and ended, or been ended, before it made the new swarm key."""
        mine = {self.key.peer} | ({self._root.peer} if self._root is not None else set())
        last = self._state.rotation
        since_us = (
            self._state.joined_us if last is None else open_record(Rotation, last.rotation).record.issued_us
        )
        revoked = (
            open_record(Revocation, notice.revocation).record for notice in self.book.revocations(now_us)
        )
        owed = any(
            one.signer in mine and one.subject != self.key.peer and one.issued_us > since_us
            for one in revoked
        )
        return owed and self.may(Right.REVOKE, now_us)

    def take_revocation(self, notice: RevocationNotice, now_us: int) -> bool:
        """Learn a revocation; on disk afterwards. False where it was known. Raises Refused."""
        if not self.book.offer(notice, now_us):
            return False
        self.keep_known(now_us)
        return True

    def rotate(self, now_us: int) -> RotateRequest:
        """A new swarm key, by this agent. Raises Refused where it may not."""
        self.member(now_us)
        fresh = secrets.token_bytes(32)
        rotation = Rotation(
            1, self.mesh, self.key.peer, self._state.epoch + 1, blake3(fresh).digest(), now_us
        )
        request = RotateRequest(sign_record(self.key, rotation), list(self.chain), fresh)
        self._save(swarm_key=fresh, epoch=rotation.epoch, rotation=request)
        return request

    def take_rotation(self, request: RotateRequest, now_us: int) -> bool:
        """Go on with the swarm key that another member made. False where ours is as new. Raises Refused."""
        rotation = read_rotation(self.mesh, request)
        if not self._is_newer(rotation, now_us):
            return False
        if rotation.epoch > self._state.epoch + MAX_EPOCH_STEP:
            raise Refused("forged", "the swarm key's number is too far ahead")
        check_rotation(self.book, self.mesh, request, now_us)
        self._save(swarm_key=request.swarm_key, epoch=rotation.epoch, rotation=request)
        return True

    def _is_newer(self, rotation: Rotation, now_us: int) -> bool:
        return replaces(
            rotation, self.book, self._state.rotation, self._state.epoch, self._state.swarm_key, now_us
        )

    def _rotation_to_show(self, now_us: int) -> RotateRequest | None:
        """The last rotation; signed by this agent where others would not take its signer's word any more."""
        last = self._state.rotation
        if (
            last is None
            or trouble_with(self.book, last, now_us) is None
            or not self.may(Right.REVOKE, now_us)
        ):
            return last
        key, epoch = self._state.swarm_key, self._state.epoch
        rotation = Rotation(1, self.mesh, self.key.peer, epoch, blake3(key).digest(), now_us)
        return RotateRequest(sign_record(self.key, rotation), list(self.chain), key)

    # Coming and going

    def joining(self, issuer: PeerId, token: bytes | None, now_us: int) -> AdmissionRequest:
        """What this agent says at a door: with its chain where it comes back."""
        return joining_request(
            self.key, self.mesh, issuer, token, self.certificate.name, now_us, [] if token else self.chain
        )

    def take_readmission(self, reply: AdmissionReply, now_us: int) -> bool:
        """The door has let this agent back in. True where the mesh has another swarm key now. Raises Refused."""
        for notice in reply.revocations:
            with suppress(Refused):
                self.book.offer(notice, now_us)
        self.member(now_us)
        doors = usable([*reply.doors, *self._state.doors])[: 2 * MAX_ADDRESSES]
        addresses = usable([*reply.addresses, *self._state.addresses])[: 4 * MAX_ADDRESSES]
        self._save(doors=doors, addresses=addresses)
        # A door that has missed a rotation itself has nothing new.
        return reply.rotation is not None and self.take_rotation(reply.rotation, now_us)

    def learn_doors(self, doors: Sequence[str]) -> None:
        """Where one comes back in, as an admin says."""
        known = usable([*doors, *self._state.doors])[: 2 * MAX_ADDRESSES]
        if known != self._state.doors:
            self._save(doors=known)

    def learn_places(self, listen: str, door: str) -> None:
        """The ports that were free at the first start are kept."""
        if (listen, door) != (self._state.listen, self._state.door):
            self._save(listen=listen, door=door)

    def members_reply(self, doors: Sequence[str], now_us: int) -> MembersReply:
        """What a member is told on a new channel."""
        chains = [member.chain for member in self.book.members(now_us) if member.peer != self.key.peer]
        own = [self.chain] if self.may_show(now_us) else []
        return MembersReply(
            [*own, *chains][:MAX_KNOWN],
            self.book.revocations(now_us)[:MAX_KNOWN],
            list(doors[:MAX_ADDRESSES]) if self.may(Right.INVITE, now_us) else [],
        )

    def newest_revocations(self, now_us: int) -> Revocations:
        """What a member has to know before it gets a new swarm key."""

        def age(notice: RevocationNotice) -> int:
            return -open_record(Revocation, notice.revocation).record.issued_us

        return Revocations(sorted(self.book.revocations(now_us), key=age)[:MAX_KNOWN])

    def may_show(self, now_us: int) -> bool:
        """Whether this agent's own chain holds."""
        try:
            self.member(now_us)
        except Refused:
            return False
        return True

    def forget(self) -> None:
        """The home has left: keys and state go, the ledger stays."""
        forget_state(self.home, self.mesh)
