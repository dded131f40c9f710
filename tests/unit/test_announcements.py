import itertools
import random
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from coppermesh.p2p.announcements import (
    LIFETIME_US,
    MAX_ANNOUNCEMENT_BYTES,
    MAX_LIFETIME_US,
    MIN_INTERVAL_US,
    REFRESH_US,
    SECOND_US,
    SKEW_US,
    AnnouncementBook,
    AnnouncementPacer,
    Verdict,
)
from coppermesh.p2p.announcer import MAX_TURNS, TURNS_PER_SECOND, Announcer
from coppermesh.p2p.envelope import from_bytes, has_valid_signature, sign_record, to_bytes
from coppermesh.p2p.ids import PeerId, mesh_id
from coppermesh.p2p.messages import MAX_OTHERS, AnnouncementReply, AnnouncementRequest
from coppermesh.p2p.records import Announcement, SignedRecord
from coppermesh.p2p.signing import PeerKey

MESH = mesh_id("test")
KEY = PeerKey(bytes([1]) * 32)
NOW = 1_800_000_000 * SECOND_US


def announcement(key: PeerKey = KEY, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "version": 1,
        "mesh": MESH,
        "peer": key.peer,
        "sequence": 1,
        "issued_us": NOW,
        "expires_us": NOW + LIFETIME_US,
        "software": "test",
        "addresses": [],
        "devices": [],
        "isolation": [],
        "busy_slots": 0,
        "paused": False,
        "shard": "",
    }
    return to_bytes(sign_record(key, Announcement(**(fields | changes))))


def key_number(number: int) -> PeerKey:
    return PeerKey(number.to_bytes(32, "big"))


def held_peers(book: AnnouncementBook, now_us: int = NOW) -> set[bytes]:
    return {opened.signer for opened in book.current(now_us)}


def test_a_higher_sequence_replaces_a_lower_one() -> None:
    book = AnnouncementBook(MESH)
    assert book.offer(announcement(sequence=5), NOW) is Verdict.ACCEPTED
    assert book.offer(announcement(sequence=4), NOW) is Verdict.STALE
    assert book.offer(announcement(sequence=5, busy_slots=1), NOW) is Verdict.STALE
    assert book.offer(announcement(sequence=6, busy_slots=2), NOW) is Verdict.ACCEPTED
    held = book.get(KEY.peer)
    assert held is not None
    assert held.record.busy_slots == 2
    assert book.counts == {Verdict.ACCEPTED: 2, Verdict.STALE: 2}


def test_the_same_bytes_are_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = 0

    def counting(kind: type[Announcement], signed: SignedRecord) -> bool:
        nonlocal checks
        checks += 1
        return has_valid_signature(kind, signed)

    monkeypatch.setattr("coppermesh.p2p.announcements.has_valid_signature", counting)
    book = AnnouncementBook(MESH)
    good = announcement()
    forged = good[:-1] + bytes([good[-1] ^ 1])
    assert [book.offer(data, NOW) for data in (good, good, forged, forged)] == [
        *(Verdict.ACCEPTED, Verdict.REPLAYED, Verdict.FORGED, Verdict.FORGED)
    ]
    assert checks == 2


def test_what_is_remembered_of_judged_messages_is_bounded() -> None:
    book = AnnouncementBook(MESH, max_judged=2)
    first = announcement()
    book.offer(first, NOW)
    book.offer(announcement(sequence=2), NOW)
    for number in range(2):
        book.offer(bytes([number]), NOW)
    assert book.offer(first, NOW) is Verdict.STALE
    assert len(book._judged) == 2


def test_an_announcement_from_ahead_of_our_clock_counts_later() -> None:
    book = AnnouncementBook(MESH)
    data = announcement()
    assert book.offer(data, NOW - SKEW_US - 1) is Verdict.FUTURE
    assert book.offer(data, NOW - SKEW_US) is Verdict.ACCEPTED


def test_expiry_by_our_clock() -> None:
    book = AnnouncementBook(MESH)
    book.offer(announcement(), NOW)
    end = NOW + LIFETIME_US
    assert held_peers(book, end - 1) == {KEY.peer}
    assert held_peers(book, end) == set()
    assert book.forget_expired(end - 1) == []
    assert book.get(KEY.peer) is not None
    assert book.forget_expired(end) == [KEY.peer]
    assert book.forget_expired(end) == []
    assert book.get(KEY.peer) is None
    assert book.offer(announcement(sequence=2), end) is Verdict.EXPIRED


def test_an_older_announcement_does_not_come_back_when_the_newer_expired() -> None:
    book = AnnouncementBook(MESH)
    older = announcement(sequence=1, expires_us=NOW + MAX_LIFETIME_US)
    newer_end = NOW + 10 * SECOND_US
    book.offer(announcement(sequence=2, issued_us=NOW + SECOND_US, expires_us=newer_end), NOW)
    book.forget_expired(newer_end)
    assert book.offer(older, newer_end) is Verdict.STALE
    book.forget_expired(NOW + SECOND_US + MAX_LIFETIME_US)
    assert book._entries == {}


def test_only_this_mesh_only_the_peer_itself_only_a_sane_lifetime() -> None:
    book = AnnouncementBook(MESH)
    stranger = key_number(9)
    assert book.offer(announcement(mesh=mesh_id("other")), NOW) is Verdict.WRONG_MESH
    assert book.offer(announcement(expires_us=NOW + MAX_LIFETIME_US + 1), NOW) is Verdict.MALFORMED
    assert book.offer(announcement(expires_us=NOW), NOW) is Verdict.MALFORMED
    assert book.offer(bytes(MAX_ANNOUNCEMENT_BYTES + 1), NOW) is Verdict.OVERSIZED
    body = sign_record(
        KEY, Announcement(1, MESH, KEY.peer, 1, NOW, NOW + 1, "", [], [], [], 0, False, "")
    ).body
    relayed = SignedRecord(body, stranger.peer, stranger.sign(Announcement.DOMAIN, body))
    assert book.offer(to_bytes(relayed), NOW) is Verdict.FORGED
    assert held_peers(book) == set()
    assert all(verdict.is_misbehaviour for verdict in book.counts)


def test_late_and_repeated_messages_are_nobodys_fault() -> None:
    innocent = (Verdict.STALE, Verdict.REPLAYED, Verdict.EXPIRED, Verdict.FUTURE, Verdict.CROWDED)
    assert not any(verdict.is_misbehaviour for verdict in (*innocent, Verdict.ACCEPTED))


def test_a_full_book_drops_what_expires_first() -> None:
    book = AnnouncementBook(MESH, max_peers=3)
    lifetimes = {1: 100, 2: 50, 3: 200}
    for number, seconds in lifetimes.items():
        book.offer(announcement(key_number(number), expires_us=NOW + seconds * SECOND_US), NOW)
    newcomer = announcement(key_number(4), expires_us=NOW + 150 * SECOND_US)
    assert book.offer(newcomer, NOW) is Verdict.ACCEPTED
    assert held_peers(book) == {key_number(number).peer for number in (1, 3, 4)}
    hasty = announcement(key_number(5), expires_us=NOW + 100 * SECOND_US)
    assert book.offer(hasty, NOW) is Verdict.CROWDED
    assert len(book._entries) == 3


def test_a_full_book_still_takes_news_of_peers_it_holds() -> None:
    book = AnnouncementBook(MESH, max_peers=1)
    book.offer(announcement(sequence=1), NOW)
    sooner = announcement(sequence=2, expires_us=NOW + SECOND_US)
    assert book.offer(sooner, NOW) is Verdict.ACCEPTED


def test_a_crowd_on_gossip_does_not_push_out_whom_we_talk_to() -> None:
    book = AnnouncementBook(MESH, max_peers=3)
    friend, late_friend = announcement(key_number(1)), announcement(key_number(2))
    assert book.offer(friend, NOW) is Verdict.ACCEPTED
    assert book.offer(friend, NOW, source=key_number(1).peer) is Verdict.REPLAYED
    for number in range(10, 20):
        book.offer(announcement(key_number(number), expires_us=NOW + MAX_LIFETIME_US), NOW)
    assert book.offer(late_friend, NOW) is Verdict.CROWDED
    assert book.offer(late_friend, NOW, source=key_number(2).peer) is Verdict.ACCEPTED
    assert {key_number(1).peer, key_number(2).peer} < held_peers(book)
    update = announcement(key_number(1), sequence=2)
    assert book.offer(update, NOW) is Verdict.ACCEPTED
    assert book._entries[key_number(1).peer].direct


def test_who_has_left_is_not_kept_before_others() -> None:
    book = AnnouncementBook(MESH, max_peers=1)
    visitor = announcement(key_number(1))
    assert book.offer(visitor, NOW, source=key_number(1).peer) is Verdict.ACCEPTED
    later = announcement(key_number(2), expires_us=NOW + MAX_LIFETIME_US)
    assert book.offer(later, NOW) is Verdict.CROWDED
    book.lost(key_number(1).peer)
    assert book.offer(later, NOW) is Verdict.ACCEPTED
    book = AnnouncementBook(MESH)
    book.offer(visitor, NOW, source=key_number(1).peer)
    book.lost(key_number(1).peer)
    book.offer(announcement(key_number(1), sequence=2), NOW)
    assert not book._entries[key_number(1).peer].direct


async def test_a_peer_with_ever_more_to_tell_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coppermesh.p2p.announcer.MAX_ASKED_AGAIN", 3)
    monkeypatch.setattr("coppermesh.p2p.announcer.MORE_SECONDS", 0.0)
    numbers, asked = itertools.count(100), []

    async def request(*_: object, **__: object) -> AnnouncementReply:
        asked.append(1)
        invented = [announcement(key_number(next(numbers))) for _ in range(MAX_OTHERS)]
        return AnnouncementReply(None, [from_bytes(data) for data in invented])

    hub: Any = SimpleNamespace(request=request)
    nothing: Any = None
    announcer = Announcer(
        KEY, MESH, nothing, hub, AnnouncementBook(MESH), None,
        software="test", now_us=lambda: NOW, rng=random.Random(1), heard=lambda: None,
    )  # fmt: skip
    await announcer.fetch(key_number(2).peer)
    assert len(asked) == 3


async def test_who_asks_without_end_is_told_less(autojump_clock: trio.testing.MockClock) -> None:
    nothing: Any = None
    book = AnnouncementBook(MESH)
    book.offer(announcement(key_number(5)), NOW)
    announcer = Announcer(
        KEY, MESH, nothing, nothing, book, None,
        software="test", now_us=lambda: NOW, rng=random.Random(1), heard=lambda: None,
    )  # fmt: skip

    def told(peer: PeerId) -> int:
        return len(announcer.reply_to(peer, AnnouncementRequest(b"", 64)).others)

    asker, other = key_number(2).peer, key_number(3).peer
    assert sum(told(asker) for _ in range(200)) == MAX_TURNS
    assert told(other) == 1
    await trio.sleep(1.0)
    assert sum(told(asker) for _ in range(200)) == TURNS_PER_SECOND


def test_a_peer_answers_for_itself_only() -> None:
    book = AnnouncementBook(MESH)
    data = announcement(key_number(1))
    assert book.offer(data, NOW, source=key_number(2).peer) is Verdict.FORGED
    assert book.current(NOW) == []
    assert book.offer(data, NOW) is Verdict.ACCEPTED


def test_what_was_displaced_comes_back_when_asked_for() -> None:
    book = AnnouncementBook(MESH, max_peers=1)
    short = announcement(key_number(1), expires_us=NOW + SECOND_US)
    book.offer(short, NOW)
    book.offer(announcement(key_number(2)), NOW)
    assert book.offer(short, NOW) is Verdict.REPLAYED
    assert book.offer(short, NOW, source=key_number(1).peer) is Verdict.ACCEPTED
    assert held_peers(book) == {key_number(1).peer}


def test_current_is_in_peer_order() -> None:
    book = AnnouncementBook(MESH)
    for number in (3, 1, 2):
        book.offer(announcement(key_number(number)), NOW)
    signers = [opened.signer for opened in book.current(NOW)]
    assert len(signers) == 3
    assert signers == sorted(signers)


# The pacer


def pacer() -> AnnouncementPacer:
    return AnnouncementPacer(random.Random(1))


def test_the_first_announcement_is_due_at_once() -> None:
    assert pacer().due(b"idle", NOW)


def test_a_change_waits_for_the_interval_and_then_goes_out() -> None:
    paced = pacer()
    paced.announced(b"idle", NOW)
    assert not paced.due(b"busy", NOW + MIN_INTERVAL_US - 1)
    assert paced.wait_us(b"busy", NOW + MIN_INTERVAL_US - 1) == 1
    assert paced.due(b"busy", NOW + MIN_INTERVAL_US)
    assert not paced.due(b"idle", NOW + MIN_INTERVAL_US)


def test_unchanged_is_repeated_within_the_refresh_and_not_all_at_once() -> None:
    paced = pacer()
    waits = set()
    for _ in range(50):
        paced.announced(b"idle", NOW)
        waits.add(paced.wait_us(b"idle", NOW))
    assert len(waits) > 40
    assert all(REFRESH_US * 0.9 <= wait <= REFRESH_US for wait in waits)


def test_constant_change_gives_one_announcement_per_interval() -> None:
    paced = pacer()
    sent = 0
    for second in range(600):
        content = str(second).encode()
        if paced.due(content, NOW + second * SECOND_US):
            paced.announced(content, NOW + second * SECOND_US)
            sent += 1
    assert sent == 60


def test_a_clock_set_back_does_not_silence_the_agent() -> None:
    paced = pacer()
    paced.announced(b"idle", NOW)
    assert paced.due(b"idle", NOW - 86_400 * SECOND_US)


def test_our_own_timing_outlives_skew_and_two_refreshes() -> None:
    assert LIFETIME_US >= SKEW_US + 2 * REFRESH_US
    assert LIFETIME_US <= MAX_LIFETIME_US
