"""What other agents announce, kept honest and bounded; and when to announce oneself.

Announcements arrive by gossip and by direct request, repeated, out of order, forged or late.
`AnnouncementBook` takes the raw bytes and the time, says what each one is worth, counts it, and holds the
newest of each peer.

Theory of operation. Cheap checks come first: size, then the hash of the bytes among those already judged, so
that a repeated message costs no second signature check and gets the verdict that it got. Then the signature,
and only then is the body decoded. What follows from the bytes alone is `Examined`: the simulator examines each message
once and lets a thousand books `take` it. A peer's sequence only rises; it is remembered past expiry for as long as an
older announcement could still be alive, so that none comes back. The book holds `MAX_PEERS`; a newcomer beyond that
displaces whichever expires first, so a crowd of invented peers must keep signing to stay. What was asked of a
connected peer itself (`direct`) is not displaced by what gossip says while it is connected: such a crowd cannot push
out the peers that we really talk to.

Clocks. `issued_us` may lie `SKEW_US` ahead of ours, since clocks differ; expiry is taken by our own clock. So
an announcement should live well over `SKEW_US`: `LIFETIME_US` is what ours ask for, `MAX_LIFETIME_US` what is
taken.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from blake3 import blake3

from coppermesh.p2p.encoding import decode
from coppermesh.p2p.envelope import SIGNED_OVERHEAD, Opened, from_bytes, has_valid_signature, record_id
from coppermesh.p2p.errors import RemoteProtocolError
from coppermesh.p2p.ids import MeshId, PeerId
from coppermesh.p2p.recent import RecentMap
from coppermesh.p2p.records import Announcement

MAX_ANNOUNCEMENT_BYTES = Announcement.MAX_BYTES + SIGNED_OVERHEAD
MAX_PEERS = 4096
MAX_JUDGED = 8192
"""How many message hashes are remembered, so that the same bytes are verified once."""

SHORT_ID_BYTES = 8
"""So much of a record's id names an announcement when two agents compare what they know."""

SECOND_US = 1_000_000
SKEW_US = 120 * SECOND_US
MAX_LIFETIME_US = 600 * SECOND_US
LIFETIME_US = 300 * SECOND_US

MIN_INTERVAL_US = 10 * SECOND_US
AUTHOR_SECONDS = 8
"""One announcement of a peer is taken for each so many seconds, after `AUTHOR_BURST`: a flood of true ones is one
too."""
AUTHOR_BURST = 6
REFRESH_US = 60 * SECOND_US
FIRST_WORD_SECONDS = 2.0
"""A newcomer waits at most so long to hear of others before it announces itself."""
REPEAT_SECONDS = (2.0, 6.0)
"""After its first announcement it publishes the same bytes again: gossip's meshes were still forming."""
SETTLE_SECONDS = 15.0
"""How often an agent looks whether it announces in the right shard."""


class Verdict(StrEnum):
    """What became of one announcement."""

    ACCEPTED = "accepted"
    """New and now the peer's current one."""
    STALE = "stale"
    """Not newer than the one held for that peer."""
    REPLAYED = "replayed"
    """Exactly these bytes were accepted before."""
    HASTY = "hasty"
    """Newer, but its author announces more often than `AUTHOR_SECONDS` allows."""
    EXPIRED = "expired"
    FUTURE = "future"
    """Issued more than `SKEW_US` ahead of our clock."""
    FORGED = "forged"
    """The signature is not valid, or the body names another peer than the signer or the one that answered."""
    MALFORMED = "malformed"
    """Not a canonical announcement, or one that lives longer than `MAX_LIFETIME_US`."""
    OVERSIZED = "oversized"
    WRONG_MESH = "wrong-mesh"
    NO_RIGHT = "no-right"
    """In a private mesh: its author is not known as a member that may provide."""
    CROWDED = "crowded"
    """The book is full of announcements that expire later."""

    @property
    def is_misbehaviour(self) -> bool:
        """Would an honest agent never have sent or forwarded it?"""
        return self in _MISBEHAVIOUR


_MISBEHAVIOUR = frozenset({Verdict.FORGED, Verdict.MALFORMED, Verdict.OVERSIZED, Verdict.WRONG_MESH})
_MAY_CHANGE = frozenset({Verdict.FUTURE, Verdict.CROWDED, Verdict.HASTY, Verdict.NO_RIGHT})


@dataclass(frozen=True, slots=True)
class Examined:
    """What the bytes of one message say by themselves, whoever receives them and when."""

    fingerprint: bytes
    opened: Opened[Announcement] | None
    """The announcement; its signature holds and its author signed it."""
    fault: Verdict | None
    """Why there is none."""


def examine(signed_bytes: bytes) -> Examined:
    """Check size and signature, then decode: the costly part of judging, once a message. Never raises."""
    if len(signed_bytes) > MAX_ANNOUNCEMENT_BYTES:
        return Examined(b"", None, Verdict.OVERSIZED)
    return _examine(signed_bytes, _fingerprint(signed_bytes))


def _fingerprint(signed_bytes: bytes) -> bytes:
    return blake3(signed_bytes).digest(16)


def _examine(signed_bytes: bytes, fingerprint: bytes) -> Examined:
    try:
        signed = from_bytes(signed_bytes)
        if not has_valid_signature(Announcement, signed):
            return Examined(fingerprint, None, Verdict.FORGED)
        record = decode(Announcement, signed.body, max_bytes=Announcement.MAX_BYTES)
    except RemoteProtocolError:
        return Examined(fingerprint, None, Verdict.MALFORMED)
    if record.peer != signed.signer:
        return Examined(fingerprint, None, Verdict.FORGED)
    if not 0 < record.expires_us - record.issued_us <= MAX_LIFETIME_US:
        return Examined(fingerprint, None, Verdict.MALFORMED)
    return Examined(fingerprint, Opened(record, signed, record_id(signed.body)), None)


@dataclass(slots=True)
class _Entry:
    sequence: int
    expires_us: int
    keep_until_us: int
    """When no announcement older than this one can be alive any more."""
    opened: Opened[Announcement] | None
    """None once expired: only the sequence is remembered then."""
    direct: bool
    haste_us: int = 0
    """How far its author is ahead of one announcement each `AUTHOR_SECONDS`."""
    heard_us: int = 0
    lost: bool = False
    """Its connection to us ended and nothing newer was heard since."""


class AnnouncementBook:
    """The newest valid announcement of each peer of one mesh."""

    def __init__(
        self,
        mesh: MeshId,
        *,
        max_peers: int = MAX_PEERS,
        max_judged: int = MAX_JUDGED,
        may_announce: Callable[[PeerId], bool] | None = None,
    ) -> None:
        """`may_announce`: who may, in a private mesh; None: everybody."""
        self._mesh = mesh
        self._may_announce = may_announce
        self._max_peers = max_peers
        self._entries: dict[PeerId, _Entry] = {}
        self._shorts: dict[bytes, _Entry] = {}
        """By the short id of the announcement, where there is one."""
        self._judged: RecentMap[bytes, Verdict] = RecentMap(max_judged)
        self._counts: Counter[Verdict] = Counter()

    @property
    def counts(self) -> Mapping[Verdict, int]:
        """How often each verdict was given. Verdicts never given are absent and count as 0 with `.get`."""
        return dict(self._counts)

    def offer(self, signed_bytes: bytes, now_us: int, *, source: PeerId | None = None) -> Verdict:
        """Judge one message as it arrived, hold it if it is its peer's newest, and count the verdict.

        `source`: the connected peer whose answer this is, where it is not gossip. It has to be that peer's own,
        and is judged anew even if seen before.
        """
        if len(signed_bytes) > MAX_ANNOUNCEMENT_BYTES:
            return self._counted(Verdict.OVERSIZED)
        fingerprint = _fingerprint(signed_bytes)
        known = None if source is not None else self._judged.get(fingerprint)
        if known is not None:
            return self._counted(known)
        return self._counted(self._judge(_examine(signed_bytes, fingerprint), now_us, source))

    def examine(self, signed_bytes: bytes) -> Examined:
        """`examine`, without looking again into bytes that were judged before: `take` needs their fingerprint only."""
        if len(signed_bytes) <= MAX_ANNOUNCEMENT_BYTES:
            fingerprint = _fingerprint(signed_bytes)
            known = self._judged.get(fingerprint)
            if known is not None:
                return Examined(fingerprint, None, known)
        return examine(signed_bytes)

    def take(self, examined: Examined, now_us: int, *, source: PeerId | None = None) -> Verdict:
        """`offer` for a message that was examined already."""
        known = None if source is not None else self._judged.get(examined.fingerprint)
        return self._counted(known or self._judge(examined, now_us, source))

    def current(self, now_us: int) -> list[Opened[Announcement]]:
        """The announcements alive at `now_us`, ordered by peer id; without peers that were lost."""
        return sorted(self.alive(now_us), key=lambda opened: opened.signer)

    def alive(self, now_us: int) -> list[Opened[Announcement]]:
        """`current` in the order in which they were first heard of, where order is of no importance."""
        return [
            entry.opened
            for entry in self._entries.values()
            if entry.opened is not None and entry.expires_us > now_us and not entry.lost
        ]

    def holds(self, peer: PeerId, now_us: int) -> bool:
        """Whether `peer` is in `current`."""
        entry = self._entries.get(peer)
        alive = entry is not None and entry.opened is not None and entry.expires_us > now_us
        return alive and entry is not None and not entry.lost

    def known_ids(self, now_us: int, limit: int = MAX_PEERS) -> set[bytes]:
        """The short ids of what need not be handed to us again: all that is held, lost peers' too; where that is more
        than `limit`, the newest that are alive.
        """
        if len(self._shorts) <= limit:
            return set(self._shorts)
        return {opened.id[:SHORT_ID_BYTES] for opened in _newest(self.alive(now_us), limit)}

    def missing(self, known: AbstractSet[bytes], now_us: int, limit: int) -> list[Opened[Announcement]]:
        """The newest `limit` of what is alive here and not in `known`, newest first."""
        lacking = (self._shorts[short] for short in self._shorts.keys() - known)
        found = [
            entry.opened
            for entry in lacking
            if entry.opened is not None and entry.expires_us > now_us and not entry.lost
        ]
        return _newest(found, limit)

    def get(self, peer: PeerId) -> Opened[Announcement] | None:
        """The newest announcement of `peer`. It may have expired since `forget_expired` last ran."""
        entry = self._entries.get(peer)
        return entry.opened if entry is not None else None

    def lost(self, peer: PeerId) -> None:
        """The connection to `peer` ended: what it announced does not count until it answers or announces again."""
        entry = self._entries.get(peer)
        if entry is not None:
            entry.lost = True

    def forget_expired(self, now_us: int) -> list[PeerId]:
        """Drop what has expired; the peers whose announcement was dropped. Call every few seconds."""
        gone = []
        for peer, entry in list(self._entries.items()):
            if entry.opened is not None and entry.expires_us <= now_us:
                self._unlist(entry)
                entry.opened = None
                gone.append(peer)
            if entry.keep_until_us <= now_us:
                del self._entries[peer]
        return gone

    def _counted(self, verdict: Verdict) -> Verdict:
        self._counts[verdict] += 1
        return verdict

    def _judge(self, examined: Examined, now_us: int, source: PeerId | None) -> Verdict:
        verdict = examined.fault or self._judge_genuine(examined, now_us, source)
        # Not what may come out otherwise a minute later, nor what is wrong only as this peer's answer: a neighbour
        # could otherwise make us deaf to somebody else's announcement by answering with it.
        if source is None and verdict not in _MAY_CHANGE:
            # Repeating a forgery is no better than the forgery.
            repeated = Verdict.REPLAYED if verdict is Verdict.ACCEPTED else verdict
            self._judged.put(examined.fingerprint, repeated)
        return verdict

    def _judge_genuine(self, examined: Examined, now_us: int, source: PeerId | None) -> Verdict:
        assert examined.opened is not None
        record = examined.opened.record
        if source not in (None, record.peer):
            return Verdict.FORGED
        if record.mesh != self._mesh:
            return Verdict.WRONG_MESH
        if record.issued_us > now_us + SKEW_US:
            return Verdict.FUTURE
        if record.expires_us <= now_us:
            return Verdict.EXPIRED
        if self._may_announce is not None and not self._may_announce(PeerId(record.peer)):
            return Verdict.NO_RIGHT
        return self._hold(examined.opened, now_us, direct=source is not None)

    def _hold(self, opened: Opened[Announcement], now_us: int, *, direct: bool) -> Verdict:
        record = opened.record
        held = self._entries.get(opened.signer)
        if held is not None and record.sequence <= held.sequence:
            if direct and record.sequence == held.sequence:
                held.direct, held.lost = True, False
            known = held.opened is not None and held.opened.id == opened.id
            return Verdict.REPLAYED if known else Verdict.STALE
        haste_us = 0
        if held is not None and not direct:
            haste_us = max(0, held.haste_us - (now_us - held.heard_us)) + AUTHOR_SECONDS * SECOND_US
            if haste_us > AUTHOR_BURST * AUTHOR_SECONDS * SECOND_US:
                return Verdict.HASTY
        if held is None and not self._has_room(record.expires_us, now_us, direct):
            return Verdict.CROWDED
        keep_until_us = record.issued_us + MAX_LIFETIME_US
        if held is not None:
            keep_until_us = max(keep_until_us, held.keep_until_us)
            direct = direct or (held.direct and not held.lost)
            self._unlist(held)
        entry = _Entry(record.sequence, record.expires_us, keep_until_us, opened, direct, haste_us, now_us)
        self._entries[opened.signer] = self._shorts[opened.id[:SHORT_ID_BYTES]] = entry
        return Verdict.ACCEPTED

    def _unlist(self, entry: "_Entry") -> None:
        if entry.opened is not None:
            self._shorts.pop(entry.opened.id[:SHORT_ID_BYTES], None)

    def _has_room(self, expires_us: int, now_us: int, direct: bool) -> bool:
        """Is there room for one more peer? Drops the entry nearest expiry where the newcomer goes before it."""
        if len(self._entries) >= self._max_peers:
            self.forget_expired(now_us)
        if len(self._entries) < self._max_peers:
            return True
        # Gossip goes before direct, then what expires sooner goes first; the newcomer is compared in the same order.
        first = min(self._entries, key=self._rank)
        if self._rank(first) >= (direct, expires_us):
            return False
        self._unlist(self._entries[first])
        del self._entries[first]
        return True

    def _rank(self, peer: PeerId) -> tuple[bool, int]:
        entry = self._entries[peer]
        return entry.direct and not entry.lost and entry.opened is not None, entry.expires_us


def _newest(found: list[Opened[Announcement]], limit: int) -> list[Opened[Announcement]]:
    """The newest first; of the same moment, in an order that is the same everywhere."""
    return heapq.nlargest(limit, found, key=lambda opened: (opened.record.issued_us, opened.id))


class UniformSource(Protocol):
    """What the pacer needs of a random generator; `random.Random` is one."""

    def random(self) -> float:
        """Uniform in [0, 1)."""


class AnnouncementPacer:
    """Says when to announce: on change at most once per `MIN_INTERVAL_US`, unchanged once per `REFRESH_US`.

    The refresh comes up to a tenth early, by chance, so that agents started together do not announce
    together.
    """

    def __init__(self, rng: UniformSource) -> None:
        self._rng = rng
        self._announced_us: int | None = None
        self.content: bytes = b""
        """What was said last."""
        self._refresh_us = REFRESH_US

    def due(self, content: bytes, now_us: int) -> bool:
        """Announce now? `content` is a digest of what would be said, without sequence and times."""
        return self.wait_us(content, now_us) == 0

    def wait_us(self, content: bytes, now_us: int) -> int:
        """Microseconds until an announcement of `content` is due: 0 is now, at most `REFRESH_US`."""
        if self._announced_us is None:
            return 0
        # The distance: a clock that was set back by a day must not silence the agent for a day.
        since = abs(now_us - self._announced_us)
        interval = MIN_INTERVAL_US if content != self.content else self._refresh_us
        return max(0, interval - since)

    def announced(self, content: bytes, now_us: int) -> None:
        """Call when an announcement of `content` went out."""
        self._announced_us = now_us
        self.content = content
        self._refresh_us = REFRESH_US - int(self._rng.random() * REFRESH_US / 10)
