"""Saying what this agent offers, and hearing what others do.

Announcements go out by gossip when something changed and every minute; `ShardPlan` says in which topics, and which
ones this agent listens to. What comes in is judged by `AnnouncementScreen`, which decides what is passed on. Gossip
loses messages, so on each new connection, and now and then without one, a neighbour is asked for what is not known
yet (`exchange`).
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Protocol

import trio
from blake3 import blake3

from coppermesh.p2p.announcement_screen import AnnouncementScreen
from coppermesh.p2p.announcements import (
    FIRST_WORD_SECONDS,
    LIFETIME_US,
    MAX_PEERS,
    REPEAT_SECONDS,
    SETTLE_SECONDS,
    SHORT_ID_BYTES,
    AnnouncementBook,
    AnnouncementPacer,
    Examined,
    Verdict,
    examine,
)
from coppermesh.p2p.control import ControlHub
from coppermesh.p2p.discovery import DialPlan
from coppermesh.p2p.encoding import encode
from coppermesh.p2p.envelope import sign_record, to_bytes
from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.exchange import MORE_SECONDS, ExchangePacer
from coppermesh.p2p.gossip_outcome import Outcome
from coppermesh.p2p.ids import MeshId, PeerId, short_peer
from coppermesh.p2p.messages import MAX_KNOWN_BYTES, MAX_OTHERS, AnnouncementReply, AnnouncementRequest
from coppermesh.p2p.records import Announcement, DeviceOffer, SignedRecord
from coppermesh.p2p.shards import (
    CLASSES,
    LIMIT,
    Place,
    ShardPlan,
    device_class,
    place_of,
    reader_topics,
    topic_of,
)
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import Transport

FETCH_SECONDS = 10.0
MAX_ADDRESSES = 8
MAX_LEAVES = 16
TURNS_PER_SECOND = 6.0
MAX_TURNS = 80.0
"""Questions for others' announcements that one peer gets answered: a little more than it asks for a whole book."""
MAX_ASKED_AGAIN = MAX_PEERS // MAX_OTHERS
"""Answers that hold a whole book: who has more makes it up, and keeps us from asking others."""

_log = logging.getLogger(__name__)


class Offering(Protocol):
    """What an announcement says of the provider; `Provider` is one."""

    isolation: tuple[str, ...]

    @property
    def offers(self) -> list[DeviceOffer]:
        """The devices on offer."""

    @property
    def busy_slots(self) -> int:
        """Slots that nobody gets now."""

    @property
    def closed(self) -> bool:
        """It bids on nothing now."""


class Announcer:
    """This agent's announcements, its own and those it hears."""

    def __init__(
        self,
        key: PeerKey,
        mesh: MeshId,
        transport: Transport,
        hub: ControlHub,
        book: AnnouncementBook,
        provider: Offering | None,
        *,
        software: str,
        now_us: Callable[[], int],
        rng: Random,
        heard: Callable[[], None],
        shard_limit: int = LIMIT,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        self._key = key
        self._mesh = mesh
        self._transport = transport
        self._hub = hub
        self._book = book
        self._screen = AnnouncementScreen(book)
        self._provider = provider
        self._software = software
        self._now_us = now_us
        self._rng = rng
        self._heard = heard
        self._settle_seconds = settle_seconds
        self._pacer = AnnouncementPacer(rng)
        self._exchange = ExchangePacer(rng)
        self._shards = ShardPlan(key.peer, limit=shard_limit)
        self._leaves = 1
        self._listening: dict[str, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self._turns: OrderedDict[PeerId, tuple[float, float]] = OrderedDict()
        self._met = trio.Event()
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

    @property
    def shard(self) -> str:
        """The topic, below the mesh's own, where all announcements of this agent go."""
        return self._shards.leaf

    @property
    def topics(self) -> list[str]:
        """The announcement topics that are listened to."""
        return list(self._listening)

    def changed(self) -> None:
        """Something that the announcement says has changed."""
        self._changed.set()

    def want_more(self) -> None:
        """A job finds too few providers: listen to twice as many shards from now on."""
        if self._leaves < MAX_LEAVES:
            self._leaves = min(2 * self._leaves, MAX_LEAVES)
            self._follow_shards(self._places())

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Announce and listen until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._listening[""] = trio.CancelScope()
            await nursery.start(self._listen, "")
            self._follow_shards(self._places())
            if self._provider is not None:
                nursery.start_soon(self._announce)
            nursery.start_soon(self._settle_now_and_then)
            nursery.start_soon(self._ask_now_and_then)
            task_status.started()
            await trio.sleep_forever()

    # Hearing

    async def _listen(self, path: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be subscribed to one topic until its scope is cancelled."""
        topic = topic_of(self._mesh, path)
        try:
            with self._listening[path]:
                async with self._transport.subscribe(topic, partial(self._validate, topic)) as messages:
                    task_status.started()
                    async for _ in messages:
                        pass  # `_validate` has taken it already; reading keeps the buffer empty
        finally:
            del self._listening[path]

    def _validate(self, topic: str, source: PeerId, data: bytes) -> Outcome:
        examined = self._book.examine(data)
        verdict, outcome = self._screen.judge(topic, examined, self._now_us())
        self._note(verdict, examined)
        return outcome

    def _note(self, verdict: Verdict, examined: Examined) -> None:
        if verdict is not Verdict.ACCEPTED or examined.opened is None:
            return
        if self.first_heard_us is None:
            self.first_heard_us = self._now_us()
        record = examined.opened.record
        if self.plan is not None:
            own = self._transport.addresses
            self.plan.learn(PeerId(record.peer), record.addresses, own, trio.current_time())
        self._heard()

    # Asking

    async def fetch(self, peer: PeerId) -> None:
        """Ask a peer that has just connected for its announcement, and sometimes for others'."""
        await self._ask(peer, self._exchange.wants(trio.current_time()))
        self._met.set()

    async def _ask_now_and_then(self) -> None:
        while True:
            await trio.sleep(self._exchange.next_wait())
            peers = self._hub.peers()
            if peers:
                await self._ask(self._rng.choice(peers), self._exchange.want)

    async def _ask(self, peer: PeerId, want: int) -> None:
        """Ask one peer, again while it has more than one answer holds. Its silence costs nothing."""
        for _ in range(MAX_ASKED_AGAIN):
            most = MAX_KNOWN_BYTES // SHORT_ID_BYTES
            known = b"".join(sorted(self._book.known_ids(self._now_us(), most))) if want else b""
            request = AnnouncementRequest(known, want)
            try:
                reply = await self._hub.request(
                    peer, "announcement", request, AnnouncementReply, deadline_s=FETCH_SECONDS
                )
            except MeshError as error:
                _log.debug("no announcement from %s: %s", short_peer(peer), error)
                return
            news = self._take_reply(peer, reply)
            if not want or not news or not self._exchange.is_full(len(reply.others)):
                return
            await trio.sleep(MORE_SECONDS)

    def _take_reply(self, peer: PeerId, reply: AnnouncementReply) -> int:
        """Judge what a peer handed out; how much of it was news."""
        news = 0
        for signed in [reply.announcement, *reply.others]:
            if signed is not None:
                source = peer if signed is reply.announcement else None
                data = to_bytes(signed)
                examined = examine(data) if source is not None else self._book.examine(data)
                verdict = self._book.take(examined, self._now_us(), source=source)
                self._note(verdict, examined)
                news += verdict is Verdict.ACCEPTED
        return news

    def reply_to(self, peer: PeerId, request: AnnouncementRequest) -> AnnouncementReply:
        """Our newest announcement, and the newest of others that the peer does not know, as many as it wants."""
        size = SHORT_ID_BYTES
        known = {request.known[at : at + size] for at in range(0, len(request.known), size)}
        wanted = request.want if request.want and self._has_turn(peer) else 0
        missing = self._book.missing(known, self._now_us(), wanted + 2) if wanted else []
        others = [opened.signed for opened in missing if opened.signer not in (peer, self._key.peer)]
        return AnnouncementReply(self.newest, others[:wanted])

    def _has_turn(self, peer: PeerId) -> bool:
        """Looking through a full book takes milliseconds: nobody gets all of them by asking without end."""
        now = trio.current_time()
        debt, then = self._turns.pop(peer, (0.0, now))
        debt = max(0.0, debt - (now - then) * TURNS_PER_SECOND) + 1.0
        has_turn = debt <= MAX_TURNS
        self._turns[peer] = (min(debt, MAX_TURNS), now)
        if len(self._turns) > MAX_PEERS:
            self._turns.popitem(last=False)
        return has_turn

    # Shards

    async def _settle_now_and_then(self) -> None:
        while True:
            await trio.sleep(self._settle_seconds * (0.9 + 0.2 * self._rng.random()))
            self._settle()

    def _settle(self) -> None:
        places = self._places()
        if self._provider is not None:
            kind = device_class(self._record(0))
            if self._shards.settle(kind, places, trio.current_time()):
                _log.info("announcing in the shard %r from now on", self._shards.leaf)
                self.changed()
        self._follow_shards(places)

    def _places(self) -> list[Place]:
        current = self._book.current(self._now_us())
        return [place_of(opened.record) for opened in current if opened.signer != self._key.peer]

    def _follow_shards(self, places: Sequence[Place]) -> None:
        """Subscribe to what should be heard, leave the rest, and seek connections to who announces there."""
        if self._nursery is None:
            return
        wanted = dict.fromkeys(self._shards.subscribes() if self._provider is not None else ())
        if self._provider is None or self._leaves > 1:
            wanted.update(dict.fromkeys(reader_topics(self._key.peer, places, CLASSES, self._leaves)))
        for path, scope in list(self._listening.items()):
            if path not in wanted:
                scope.cancel()
        for path in wanted:
            if path not in self._listening:
                self._listening[path] = trio.CancelScope()
                self._nursery.start_soon(self._listen, path)
        if self.plan is not None:
            self.plan.near = frozenset(place.peer for place in places if place.leaf in wanted)

    # Announcing

    async def _announce(self) -> None:
        if self.settled is not None:
            await self.settled.wait()
        with trio.move_on_after(FIRST_WORD_SECONDS):
            await self._met.wait()
        self._settle()
        assert self._nursery is not None
        self._nursery.start_soon(self._repeat)
        while True:
            self._changed = trio.Event()
            content = self._content()
            wait_us = self._pacer.wait_us(content, self._now_us())
            if wait_us == 0:
                self._make(content)
                self._pacer.announced(content, self._now_us())
                await self._publish()
                continue
            with trio.move_on_after(wait_us / 1e6):
                await self._changed.wait()
                # Several things change together when a lease starts or ends: say them once.
                await trio.sleep(0.05)

    async def _repeat(self) -> None:
        """The first announcement again: gossip's meshes were still forming."""
        waited = 0.0
        for due in REPEAT_SECONDS:
            await trio.sleep(due - waited)
            waited = due
            if self._newest is not None:
                await self._publish()

    async def _publish(self) -> None:
        assert self._newest is not None
        data = to_bytes(self._newest)
        for path in self._shards.publishes(trio.current_time()):
            try:
                await self._transport.publish(topic_of(self._mesh, path), data)
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
            shard=self._shards.leaf,
        )
