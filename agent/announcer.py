"""Saying what this agent offers, and hearing what others do.

Announcements go out by gossip when something changed and every minute, and are handed out on request; on each new
connection the other side's newest is asked for directly, since gossip may lose it. What comes in goes through the
`AnnouncementBook`, by whichever way it came.
"""

import logging
from collections.abc import Callable
from random import Random

import trio
from blake3 import blake3

from coppermesh.agent.provider import Provider
from coppermesh.p2p.announcements import LIFETIME_US, AnnouncementBook, AnnouncementPacer, Verdict
from coppermesh.p2p.control import ControlHub
from coppermesh.p2p.discovery import DialPlan
from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.envelope import from_bytes, sign_record, to_bytes
from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.ids import MeshId, PeerId, short_peer
from coppermesh.p2p.messages import MAX_OTHERS, AnnouncementReply, Nothing
from coppermesh.p2p.records import Announcement, SignedRecord
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import Transport

FETCH_SECONDS = 10.0
MAX_ADDRESSES = 8

_log = logging.getLogger(__name__)


def announcement_topic(mesh: MeshId) -> str:
    """The gossip topic of a mesh's announcements."""
    return f"coppermesh/announcements/1/{mesh.hex()}"


class Announcer:
    """This agent's announcements, its own and those it hears."""

    def __init__(
        self,
        key: PeerKey,
        mesh: MeshId,
        transport: Transport,
        hub: ControlHub,
        book: AnnouncementBook,
        provider: Provider | None,
        *,
        software: str,
        now_us: Callable[[], int],
        rng: Random,
        heard: Callable[[], None],
    ) -> None:
        self._key = key
        self._mesh = mesh
        self._transport = transport
        self._hub = hub
        self._book = book
        self._provider = provider
        self._software = software
        self._now_us = now_us
        self._heard = heard
        self._pacer = AnnouncementPacer(rng)
        self._changed = trio.Event()
        self._sequence = 0
        self._newest: SignedRecord | None = None
        self._newest_content = b""
        self.plan: DialPlan | None = None
        self.addresses: Callable[[], list[str]] = lambda: transport.addresses
        """Where this agent is to be reached, the surest way first."""
        self.settled: trio.Event | None = None
        """Not None: nothing is announced before it is set."""
        self.first_heard_us: int | None = None

    @property
    def newest(self) -> SignedRecord | None:
        """What to answer a peer that asks; made anew when it says what is no longer so. None for a requester only."""
        if self._provider is None:
            return None
        content = self._content()
        if self._newest is None or content != self._newest_content:
            self._make(content)
        return self._newest

    def changed(self) -> None:
        """Something that the announcement says has changed."""
        self._changed.set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Announce and listen until cancelled."""
        async with self._transport.subscribe(announcement_topic(self._mesh), self._validate) as messages:
            async with trio.open_nursery() as nursery:
                if self._provider is not None:
                    nursery.start_soon(self._announce)
                task_status.started()
                async for _ in messages:
                    pass  # `_validate` has taken it already; reading keeps the buffer empty

    async def fetch(self, peer: PeerId) -> None:
        """Ask a peer that has just connected for its announcement."""
        try:
            reply = await self._hub.request(
                peer, "announcement", Nothing(), AnnouncementReply, deadline_s=FETCH_SECONDS
            )
        except MeshError as error:
            _log.debug("no announcement from %s: %s", short_peer(peer), error)
            return
        for signed in [reply.announcement, *reply.others]:
            if signed is not None:
                data = to_bytes(signed)
                if self._take(data, asked=peer if signed is reply.announcement else None) is Verdict.ACCEPTED:
                    # Others may have missed it too, as we had.
                    await self._publish(data)

    def reply_to(self, peer: PeerId) -> AnnouncementReply:
        """Our newest announcement, and as many of others as an answer holds."""
        known = [
            opened
            for opened in self._book.current(self._now_us())
            if opened.signer not in (peer, self._key.peer)
        ]
        newest = sorted(known, key=lambda opened: opened.record.issued_us, reverse=True)[:MAX_OTHERS]
        return AnnouncementReply(self.newest, [opened.signed for opened in newest])

    def _validate(self, source: PeerId, data: bytes) -> bool:
        return not self._take(data).is_misbehaviour

    def _take(self, data: bytes, asked: PeerId | None = None) -> Verdict:
        """Judge what was heard; `asked` is the peer that handed out its own on our asking."""
        verdict = self._book.offer(data, self._now_us(), source=asked)
        if verdict is Verdict.ACCEPTED:
            if self.first_heard_us is None:
                self.first_heard_us = self._now_us()
            record = decode(Announcement, from_bytes(data).body, max_bytes=Announcement.MAX_BYTES)
            if self.plan is not None:
                own = self._transport.addresses
                self.plan.learn(PeerId(record.peer), record.addresses, own, trio.current_time())
            self._heard()
        return verdict

    async def _announce(self) -> None:
        if self.settled is not None:
            await self.settled.wait()
        while True:
            self._changed = trio.Event()
            content = self._content()
            wait_us = self._pacer.wait_us(content, self._now_us())
            if wait_us == 0:
                self._make(content)
                self._pacer.announced(content, self._now_us())
                assert self._newest is not None
                await self._publish(to_bytes(self._newest))
                continue
            with trio.move_on_after(wait_us / 1e6):
                await self._changed.wait()
                # Several things change together when a lease starts or ends: say them once.
                await trio.sleep(0.05)

    async def _publish(self, data: bytes) -> None:
        try:
            await self._transport.publish(announcement_topic(self._mesh), data)
        except MeshError as error:
            _log.warning("announcement not published: %s", error)

    def _content(self) -> bytes:
        """Digest of what would be said, without sequence and times."""
        record = self._record(0)
        return blake3(encode(record)).digest()

    def _make(self, content: bytes) -> None:
        now_us = self._now_us()
        # The clock keeps the sequence rising over restarts; the counter keeps it rising when the clock is set back.
        self._sequence = max(self._sequence + 1, now_us)
        self._newest = sign_record(self._key, self._record(now_us))
        self._newest_content = content

    def _record(self, now_us: int) -> Announcement:
        assert self._provider is not None
        return Announcement(
            version=1,
            mesh=self._mesh,
            peer=self._key.peer,
            sequence=self._sequence if now_us else 0,
            issued_us=now_us,
            expires_us=now_us + LIFETIME_US if now_us else 0,
            software=self._software,
            addresses=self.addresses()[:MAX_ADDRESSES],
            devices=self._provider.offers,
            isolation=list(self._provider.isolation),
            busy_slots=self._provider.busy_slots,
            paused=self._provider.closed,
            shard="",
        )
