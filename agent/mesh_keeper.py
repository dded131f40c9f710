"""Keeps one private mesh going while the agent runs: the door, renewals, revocations, rotations, and coming back.

`private_mesh` decides and writes; this shell asks it, one change at a time in a thread, and carries out what follows: a
revoked peer is disconnected, a new swarm key is put in place and handed on, a certificate is renewed in time. What must
not be lost travels twice: revocations by gossip, several times, and with the answer to `members` on each new channel.
"""

import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import trio

from coppermesh.agent.private_mesh import PrivateMesh, Terms
from coppermesh.agent.quota_desk import QuotaDesk
from coppermesh.agent.usage_totals import UsageTotals
from coppermesh.p2p.addresses import parse_address
from coppermesh.p2p.admission_door import ask_at_door, keep_door
from coppermesh.p2p.certificates import Right, subject_of
from coppermesh.p2p.control import ControlHub, Handler
from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.errors import MeshError, Refused, RemoteProtocolError
from coppermesh.p2p.ids import PeerId, short_peer
from coppermesh.p2p.membership_gate import MembershipGate, members_topic, revocations_topic, usage_topic
from coppermesh.p2p.membership_messages import (
    AdmissionReply,
    AdmissionRequest,
    MembersReply,
    RenewReply,
    Revocations,
    RotateRequest,
    UsageTotal,
)
from coppermesh.p2p.membership_records import MembershipNotice, Quota, RevocationNotice
from coppermesh.p2p.messages import Message, Nothing
from coppermesh.p2p.records import Lease, Receipt, SignedRecord
from coppermesh.p2p.transport import MAX_GOSSIP_BYTES, PeerUp, Transport
from coppermesh.p2p.usage import UsageBook

LOOK_SECONDS = 1.0
SHOW_SECONDS = 300.0
REMIND_SECONDS = 60.0
MAX_REMINDED = 16
"""Revocations published again at once, by chance: every member does it, and each message goes to everybody."""
RENEW_SECONDS = 60.0
ALONE_SECONDS = 5.0
LAST_ALONE_SECONDS = 300.0
URGENT_SECONDS = (0.0, 1.0, 3.0, 6.0)
"""When a new revocation is published: gossip may lose one."""
ASK_SECONDS = 10.0
DOOR_SECONDS = 40.0
"""Longer than a dial, a request and its reply take."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class MeshKeeper:
    """Runs a `PrivateMesh`. `attach` it to its node's parts, then `run` it."""

    def __init__(self, private: PrivateMesh, now_us: Callable[[], int], rng: random.Random) -> None:
        self.private = private
        self.gate = MembershipGate(private.mesh, private.book, lambda: private.chain, now_us)
        self.trouble = ""
        """Why this agent is not (any more) a member, for people; empty where it is."""
        self._turned_away = ""
        """What a door has said: others know of a revocation before the revoked one does."""
        self._now_us = now_us
        self._rng = rng
        self._writing = trio.Lock()
        self._dirty = trio.Event()
        self._running = trio.Event()
        self._transport: Transport
        self._hub: ControlHub
        self._door: Transport
        self.usage = UsageBook(private.key.peer)
        self.quotas = QuotaDesk(self.usage, self._quota_of, now_us)
        self.totals = UsageTotals(private.key, private.mesh, self.quotas, self._quota_of, now_us)
        self.keeps_door = private.may(Right.INVITE, now_us())
        """Whether strangers with an invitation are answered here."""
        self._nursery: trio.Nursery
        self._dial: Callable[[str], None]

    def attach(
        self, transport: Transport, hub: ControlHub, door: Transport, dial: Callable[[str], None]
    ) -> None:
        """`door`: the transport outside the swarm key. `dial`: have an address dialled."""
        self._transport, self._hub, self._door, self._dial = transport, hub, door, dial
        self.totals.attach(transport, hub, self._publish)
        if self.keeps_door:
            keep_door(door, self.private.mesh, self._decide)

    @property
    def doors(self) -> list[str]:
        """Addresses of this agent's own door."""
        return self._door.addresses if self.keeps_door else []

    def _quota_of(self, peer: PeerId) -> Quota | None:
        member = self.private.book.member(peer, self._now_us())
        return None if member is None else member.certificate.quota

    def may_provide(self, peer: PeerId) -> bool:
        """Whether the peer is known as a member that may."""
        member = self.private.book.member(peer, self._now_us())
        return member is not None and member.may(Right.PROVIDE)

    def count_earlier(self, receipts: Iterable[Receipt], leases: Iterable[tuple[Lease, int]]) -> None:
        """Own receipts of earlier runs, on either side, and leases that were open when the last one ended."""
        self.totals.count_earlier(receipts, leases)

    def handlers(self) -> dict[str, Handler]:
        """Control requests that only private meshes have."""
        return {
            "members": (Nothing, self._on_members),
            "renew": (Nothing, self._on_renew),
            "rotate": (RotateRequest, self._on_rotate),
            "revoked": (Revocations, self._on_revoked),
            "usage": (UsageTotal, self.totals.on_usage),
        }

    def guarded(self, handlers: Mapping[str, Handler]) -> dict[str, Handler]:
        """Requests that need a right, refused to members without it."""
        return {
            method: (kind, partial(self._if_allowed, _NEEDED[method], answer))
            if method in _NEEDED
            else (kind, answer)
            for method, (kind, answer) in handlers.items()
        }

    async def _if_allowed(self, right: Right, answer: Any, peer: PeerId, request: Message) -> Message:
        self.private.book.require(peer, right, self._now_us())
        reply: Message = await answer(peer, request)
        return reply

    # Life

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        mesh = self.private.mesh
        async with (
            trio.open_nursery() as nursery,
            self._transport.subscribe(members_topic(mesh), self._hear_member) as members,
            self._transport.subscribe(revocations_topic(mesh), self._hear_revocation) as revocations,
            self._transport.subscribe(usage_topic(mesh), self.totals.hear) as usages,
        ):
            self._nursery = nursery
            self._running.set()
            nursery.start_soon(_drain, members)
            nursery.start_soon(_drain, revocations)
            nursery.start_soon(_drain, usages)
            for task in (
                self.totals.run,
                self._look,
                self._show,
                self._remind,
                self._renew,
                self._keep,
                self._come_back,
                self._mind_door,
            ):
                nursery.start_soon(task)
            await self._finish_revoking()
            task_status.started()
            await trio.sleep_forever()

    async def channel_up(self, peer: PeerId) -> None:
        """A member is connected: learn whom it knows, and make sure that it has the newest swarm key."""
        try:
            reply = await self._hub.request(peer, "members", Nothing(), MembersReply, deadline_s=ASK_SECONDS)
            self._learn_all(reply)
            self.usage.repeat()
            if reply.doors:
                self.private.book.require(peer, Right.INVITE, self._now_us())
                own = [door for door in reply.doors if parse_address(door).peer == peer]
                await self._write(self.private.learn_doors, own)
            rotation = self.private.state.rotation
            if rotation is not None:
                await self._tell_key(peer, rotation)
        except MeshError as error:
            _log.debug("what %s knows of the mesh: %s", short_peer(peer), error)

    def _learn_all(self, reply: MembersReply) -> None:
        now_us = self._now_us()
        for notice in reply.revocations:
            self._take_revocation(notice, now_us)
        for chain in reply.chains:
            try:
                self.private.book.learn(chain, subject_of(chain), now_us, hearsay=True)
            except Refused as error:
                _log.debug("a member that was named is none here: %s", error)
        self._dirty.set()

    async def _write(self, change: Callable[..., T], *arguments: Any) -> T:
        """One change at a time, in a thread, to its end: what was begun on disk is not left half-way."""
        done: list[T] = []
        async with self._writing:
            with trio.CancelScope(shield=True):
                done.append(await trio.to_thread.run_sync(partial(change, *arguments)))
        return done[0]

    # Gossip

    def _hear_member(self, source: PeerId, data: bytes) -> bool:
        try:
            notice = decode(MembershipNotice, data, max_bytes=MAX_GOSSIP_BYTES)
            self.private.book.learn(notice.chain, source, self._now_us())
        except (RemoteProtocolError, Refused):
            return False
        self._dirty.set()
        return True

    def _hear_revocation(self, _source: PeerId, data: bytes) -> bool:
        try:
            notice = decode(RevocationNotice, data, max_bytes=MAX_GOSSIP_BYTES)
        except RemoteProtocolError:
            return False
        return self._take_revocation(notice, self._now_us())

    def _take_revocation(self, notice: RevocationNotice, now_us: int) -> bool:
        try:
            if self.private.book.offer(notice, now_us):
                self._dirty.set()
        except Refused as error:
            _log.debug("a revocation does not count: %s", error)
            return False
        return True

    async def _show(self) -> None:
        while True:
            shown = self.private.chain
            await self._publish(members_topic(self.private.mesh), encode(MembershipNotice(list(shown))))
            with trio.move_on_after(SHOW_SECONDS * (0.8 + 0.2 * self._rng.random())):
                while self.private.chain == shown:  # noqa: ASYNC110 - renewed in a thread, a few times a year
                    await trio.sleep(LOOK_SECONDS)

    async def _remind(self) -> None:
        while True:
            await trio.sleep(REMIND_SECONDS * (0.8 + 0.4 * self._rng.random()))
            known = self.private.book.revocations(self._now_us())
            await self._publish_revocations(self._rng.sample(known, min(len(known), MAX_REMINDED)))

    async def _publish_revocations(self, notices: Iterable[RevocationNotice]) -> None:
        for notice in notices:
            await self._publish(revocations_topic(self.private.mesh), encode(notice))

    async def _publish(self, topic: str, data: bytes) -> None:
        try:
            await self._transport.publish(topic, data)
        except MeshError as error:
            _log.debug("not published: %s", error)

    # What time brings

    async def _keep(self) -> None:
        """Put what was learned on disk; carry out revocations at once."""
        while True:
            await self._dirty.wait()
            self._dirty = trio.Event()
            await self._sweep()
            try:
                await self._write(self.private.keep_known, self._now_us())
            except MeshError as error:
                _log.warning("what is known of mesh %r is not kept: %s", self.private.name, error)
            await trio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        while True:
            self.private.book.forget_expired(self._now_us())
            await self._sweep()
            self._look_at_oneself()
            await trio.sleep(LOOK_SECONDS)

    async def _sweep(self) -> None:
        """Whoever is connected and no member (any more) is cut off."""
        for peer in self._transport.connected():
            if self.private.book.member(peer, self._now_us()) is None:
                _log.warning("%s is no member of %r any more: cut off", short_peer(peer), self.private.name)
                await self._hub.close_channel(peer, "no member of this mesh any more")

    def _look_at_oneself(self) -> None:
        try:
            self.private.member(self._now_us())
            trouble = self._turned_away
        except Refused as error:
            trouble = str(error)
        if trouble and trouble != self.trouble:
            _log.error("this agent is no member of mesh %r any more: %s", self.private.name, trouble)
        self.trouble = trouble

    # Renewal

    async def _renew(self) -> None:
        while True:
            if self.private.needs_renewal(self._now_us()):
                try:
                    await self._renew_now()
                except MeshError as error:
                    _log.warning("certificate on mesh %r not renewed: %s", self.private.name, error)
            await trio.sleep(RENEW_SECONDS)

    async def _renew_now(self) -> None:
        if await self._write(self.private.renew_by_root, self._now_us()):
            return
        issuer = self.private.certificate.issuer
        for peer in sorted(self._hub.peers(), key=lambda peer: peer != issuer):
            member = self.private.book.member(peer, self._now_us())
            if member is None or not member.may(Right.INVITE):
                continue
            try:
                reply = await self._hub.request(peer, "renew", Nothing(), RenewReply, deadline_s=ASK_SECONDS)
                await self._write(self.private.take_chain, reply.chain, self._now_us())
            except MeshError as error:
                _log.info("%s did not renew our certificate: %s", short_peer(peer), error)
            else:
                _log.info("certificate on mesh %r renewed", self.private.name)
                return

    async def _on_renew(self, peer: PeerId, _request: Nothing) -> RenewReply:
        member = self.private.book.member(peer, self._now_us())
        if member is None:
            raise Refused("no-certificate", "no member of this mesh")
        chain: list[SignedRecord] = await self._write(self.private.renew_for, member, self._now_us())
        return RenewReply(chain)

    async def _on_members(self, _peer: PeerId, _request: Nothing) -> MembersReply:
        await self._running.wait()
        return self.private.members_reply(self.doors, self._now_us())

    # Rotation

    async def _on_rotate(self, peer: PeerId, request: RotateRequest) -> Nothing:
        # A peer may be quicker than our own start; what goes to disk must be put in place as well.
        await self._running.wait()
        if await self._write(self.private.take_rotation, request, self._now_us()):
            _log.info("mesh %r has a new swarm key", self.private.name)
            await self._use_key(request, but=peer)
        return Nothing()

    async def _use_key(self, request: RotateRequest, but: PeerId | None = None) -> None:
        await self._transport.rekey(request.swarm_key)
        for peer in self._hub.peers():
            if peer != but:
                self._nursery.start_soon(self._hand_on, peer, request)

    async def _hand_on(self, peer: PeerId, request: RotateRequest) -> None:
        try:
            await self._tell_key(peer, request)
        except MeshError as error:
            _log.debug("the new swarm key did not reach %s: %s", short_peer(peer), error)

    async def _tell_key(self, peer: PeerId, request: RotateRequest) -> None:
        """Who was revoked, and then the new swarm key: the peer must not hand it on to them."""
        for method, told in (
            ("revoked", self.private.newest_revocations(self._now_us())),
            ("rotate", request),
        ):
            # It may have been revoked meanwhile.
            if self.private.book.member(peer, self._now_us()) is None:
                return
            await self._hub.request(peer, method, told, Nothing, deadline_s=ASK_SECONDS)

    async def _on_revoked(self, _peer: PeerId, request: Revocations) -> Nothing:
        await self._running.wait()
        for notice in request.revocations:
            self._take_revocation(notice, self._now_us())
        # On disk before the answer, upon which the sender goes on to the new key: a crash between the two would leave a
        # key here that is handed to whoever was revoked.
        await self._write(self.private.keep_known, self._now_us())
        await self._sweep()
        return Nothing()

    # What the owner asks for

    async def invite(self, terms: Terms) -> str:
        """An invitation's string. Raises Refused."""
        return await self._write(self.private.invite, terms, self.doors, self._now_us())

    async def revoke(self, subject: PeerId, last_serial: int) -> None:
        """Revoke, tell everybody, cut off, change the swarm key. Raises Refused."""
        done = trio.Event()
        failed: list[MeshError] = []
        # In the keeper's own time: whoever asked may hang up, and the peer must not stay half revoked.
        self._nursery.start_soon(self._revoke, subject, last_serial, done, failed)
        await done.wait()
        if failed:
            raise failed[0]

    async def _revoke(
        self, subject: PeerId, last_serial: int, done: trio.Event, failed: list[MeshError]
    ) -> None:
        # Two writes: once the revocation is made it is told and enforced, whatever becomes of the new swarm key.
        try:
            notice = await self._write(self.private.revoke, subject, last_serial, self._now_us())
            self._nursery.start_soon(self._tell_urgently, notice)
            await self._sweep()
            if self.private.may(Right.REVOKE, self._now_us()):
                await self._use_key(await self._write(self.private.rotate, self._now_us()))
        except MeshError as error:
            failed.append(error)
        finally:
            done.set()

    async def _finish_revoking(self) -> None:
        """A run that ended between a revocation and its new swarm key is finished by this one, or by the next."""
        try:
            if self.private.owes_rotation(self._now_us()):
                await self._use_key(await self._write(self.private.rotate, self._now_us()))
        except MeshError as error:
            _log.error("mesh %r needs a new swarm key and has none: %s", self.private.name, error)

    async def leave(self) -> None:
        """Revoke oneself and say so."""
        notice = await self._write(self.private.revoke, self.private.key.peer, 0, self._now_us())
        await self._publish_revocations([notice])

    async def _tell_urgently(self, notice: RevocationNotice) -> None:
        started = trio.current_time()
        for seconds in URGENT_SECONDS:
            await trio.sleep_until(started + seconds)
            await self._publish_revocations([notice])

    # The door

    async def _decide(self, visitor: PeerId, place: str, request: AdmissionRequest) -> AdmissionReply:
        reply = await self._write(
            self.private.admit, visitor, place, request, self._transport.addresses, self.doors, self._now_us()
        )
        _log.info("%s was admitted to mesh %r", short_peer(visitor), self.private.name)
        self._dirty.set()
        return reply

    async def _mind_door(self) -> None:
        """Nobody stays at the door, or a few idle strangers would fill it."""
        visits: dict[PeerId, PeerUp] = {}

        async def show_out(event: PeerUp) -> None:
            await trio.sleep(DOOR_SECONDS)
            if visits.get(event.peer) is event:
                await self._door.disconnect(event.peer)

        async for event in self._door.events():
            if isinstance(event, PeerUp):
                visits[event.peer] = event
                self._nursery.start_soon(show_out, event)
            else:
                visits.pop(event.peer, None)

    async def _come_back(self) -> None:
        """With no other admin in reach, the reason may be a swarm key that was changed meanwhile: ask at doors.

        Members that missed a rotation may well see each other, and even somebody who was revoked by it.
        """
        delay = ALONE_SECONDS
        while True:
            await trio.sleep(delay * (0.7 + 0.3 * self._rng.random()))
            if self._sees_an_admin():
                delay = ALONE_SECONDS
            else:
                await self._ask_at_doors()
                delay = min(2 * delay, LAST_ALONE_SECONDS)

    def _sees_an_admin(self) -> bool:
        members = (self.private.book.member(peer, self._now_us()) for peer in self._transport.connected())
        return any(member is not None and member.may(Right.INVITE) for member in members)

    async def _ask_at_doors(self) -> None:
        for address in self.private.state.doors:
            try:
                issuer = parse_address(address).peer
                request = self.private.joining(issuer, None, self._now_us())
                reply = await ask_at_door(self._door, self.private.mesh, address, issuer, request)
                rotated = await self._write(self.private.take_readmission, reply, self._now_us())
            except MeshError as error:
                _log.info("not let back into mesh %r at %s: %s", self.private.name, address, error)
                if isinstance(error, Refused) and error.code in ("revoked", "expired", "issuer-revoked"):
                    self._turned_away = str(error)
                continue
            self._turned_away = ""
            self._dirty.set()
            if rotated and self.private.state.rotation is not None:
                await self._use_key(self.private.state.rotation)
            self._dial_all(reply.addresses)
            return

    def _dial_all(self, addresses: Sequence[str]) -> None:
        for address in addresses:
            try:
                self._dial(address)
            except MeshError as error:
                _log.debug("%s: %s", address, error)


_NEEDED = {
    "order": Right.SUBMIT,
    "lease": Right.SUBMIT,
    "extend": Right.SUBMIT,
    "pause": Right.PROVIDE,
    "task": Right.SUBMIT,
    "tasks": Right.SUBMIT,
    "challenge": Right.SUBMIT,
    "result": Right.PROVIDE,
    "results": Right.PROVIDE,
}
"""Rights that requests of other members need."""


async def _drain(messages: trio.MemoryReceiveChannel[Any]) -> None:
    """What is heard was taken when it was validated; reading keeps the buffer empty."""
    async for _ in messages:
        pass
