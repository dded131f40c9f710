"""Who is cut off from gossip, and who is not; and what is passed on."""

import pytest

from coppermesh.p2p.announcement_screen import AnnouncementScreen
from coppermesh.p2p.announcements import (
    AUTHOR_BURST,
    AUTHOR_SECONDS,
    LIFETIME_US,
    SECOND_US,
    AnnouncementBook,
    Verdict,
    examine,
)
from coppermesh.p2p.envelope import sign_record, to_bytes
from coppermesh.p2p.gossip_conduct import FIRST_CUT_SECONDS, Deed, GossipConduct
from coppermesh.p2p.gossip_outcome import Outcome
from coppermesh.p2p.ids import PeerId, mesh_id
from coppermesh.p2p.records import Announcement
from coppermesh.p2p.signing import PeerKey

MESH = mesh_id("test")
KEY = PeerKey(bytes([1]) * 32)
NOW = 1_800_000_000 * SECOND_US
BAD, GOOD = PeerId(b"b" * 32), PeerId(b"g" * 32)


def announcement(sequence: int, now_us: int = NOW) -> bytes:
    record = Announcement(
        1, MESH, KEY.peer, sequence, now_us, now_us + LIFETIME_US, "test", [], [], [], 0, False, ""
    )
    return to_bytes(sign_record(KEY, record))


def test_a_few_forgeries_are_forgiven_and_a_row_of_them_is_not() -> None:
    conduct = GossipConduct()
    assert [conduct.note(BAD, Deed.BLAMED, 0.0) for _ in range(4)] == [False, False, False, True]
    assert conduct.is_cut(BAD, 1.0)
    assert not conduct.is_cut(GOOD, 1.0)
    assert conduct.cut_peers(1.0) == [BAD]


def test_one_forgery_a_minute_cuts_nobody_off() -> None:
    conduct = GossipConduct()
    assert not any(conduct.note(GOOD, Deed.BLAMED, 60.0 * n) for n in range(1000))


def test_crossing_messages_cost_nothing_and_a_flood_of_them_ends_within_two_seconds() -> None:
    conduct = GossipConduct()
    assert not any(conduct.note(GOOD, Deed.UNWANTED, n / 9) for n in range(10_000))
    cut_at = next(n / 200 for n in range(10_000) if conduct.note(BAD, Deed.UNWANTED, n / 200))
    assert cut_at < 2.0


def test_the_second_time_it_takes_twice_as_long() -> None:
    conduct = GossipConduct()
    now = 0.0
    for expected in (FIRST_CUT_SECONDS, 2 * FIRST_CUT_SECONDS, 4 * FIRST_CUT_SECONDS):
        while not conduct.note(BAD, Deed.BLAMED, now):
            pass
        assert conduct.is_cut(BAD, now + expected - 1)
        now += expected
        assert not conduct.is_cut(BAD, now)


def test_who_is_watched_is_bounded() -> None:
    conduct = GossipConduct(max_watched=2)
    for number in range(5):
        conduct.note(PeerId(bytes([number]) * 32), Deed.UNWANTED, 0.0)
    assert len(conduct._records) == 2


@pytest.fixture
def screen() -> AnnouncementScreen:
    return AnnouncementScreen(AnnouncementBook(MESH))


def test_news_is_passed_on_once_on_each_topic(screen: AnnouncementScreen) -> None:
    seen = examine(announcement(1))
    assert screen.judge("leaf", seen, NOW) == (Verdict.ACCEPTED, Outcome.FORWARD)
    assert screen.judge("leaf", seen, NOW) == (Verdict.REPLAYED, Outcome.IGNORE)
    assert screen.judge("above", seen, NOW) == (Verdict.REPLAYED, Outcome.FORWARD)
    assert screen.judge("above", seen, NOW) == (Verdict.REPLAYED, Outcome.IGNORE)


def test_what_was_fetched_is_still_passed_on() -> None:
    book = AnnouncementBook(MESH)
    screen = AnnouncementScreen(book)
    data = announcement(1)
    book.offer(data, NOW, source=KEY.peer)
    assert screen.judge("leaf", examine(data), NOW) == (Verdict.REPLAYED, Outcome.FORWARD)


def test_old_news_is_ignored_and_a_forgery_is_blamed_each_time(screen: AnnouncementScreen) -> None:
    screen.judge("leaf", examine(announcement(2)), NOW)
    assert screen.judge("leaf", examine(announcement(1)), NOW) == (Verdict.STALE, Outcome.IGNORE)
    good = announcement(3)
    forged = examine(good[:-1] + bytes([good[-1] ^ 1]))
    for _ in range(2):
        assert screen.judge("leaf", forged, NOW) == (Verdict.FORGED, Outcome.BLAME)


def test_an_author_that_announces_all_the_time_is_heard_at_its_pace(screen: AnnouncementScreen) -> None:
    verdicts = [
        screen.judge("leaf", examine(announcement(n, NOW + n * SECOND_US)), NOW + n * SECOND_US)[0]
        for n in range(60)
    ]
    taken = verdicts.count(Verdict.ACCEPTED)
    assert AUTHOR_BURST <= taken <= AUTHOR_BURST + 60 // AUTHOR_SECONDS + 1
    assert verdicts.count(Verdict.HASTY) == 60 - taken


def test_a_lost_peer_does_not_count_until_it_is_heard_again() -> None:
    book = AnnouncementBook(MESH)
    data = announcement(1)
    book.offer(data, NOW)
    book.lost(KEY.peer)
    assert not book.current(NOW)
    assert not book.missing(set(), NOW, 10)
    book.offer(data, NOW, source=KEY.peer)
    assert len(book.current(NOW)) == 1
    book.lost(KEY.peer)
    book.offer(announcement(2), NOW)
    assert len(book.current(NOW)) == 1
