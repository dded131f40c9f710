"""What `explain` prints from story lines."""

from hypothesis import given
from hypothesis import strategies as st

from coppermesh.agent.rehearsal import START_US, rehearsal_key
from coppermesh.agent.story import MAX_TEXT, StoryLine, printable, tell
from coppermesh.p2p.ids import PeerId, short_peer

JOB = bytes(16)
GOOD, BAD, MUTE = (rehearsal_key(number).peer for number in (1, 2, 3))


def line(
    at_ms: int, kind: str, peer: PeerId | None, text: str, task: int | None = None, cause: str = ""
) -> StoryLine:
    return StoryLine(JOB, START_US + at_ms * 1000, cause, kind, peer, task, text)


STORY = [
    line(0, "order", GOOD, "cpu, 1 GiB"),
    line(0, "order", BAD, "cpu, 1 GiB"),
    line(0, "order", MUTE, "cpu, 1 GiB"),
    line(12, "decline", BAD, "paused by its owner", cause="order 91c0"),
    line(9, "bid", GOOD, "12 per hour"),
    line(40, "task", GOOD, "sent", task=0),
    line(1250, "failed", GOOD, "worker died", task=0),
    line(2000, "accepted", GOOD, "3 usd", task=0),
    line(2001, "silent", MUTE, "no answer in 2 s"),
    line(2002, "done", None, "1 task"),
]


def test_a_story_is_told_in_order_with_times_from_its_start() -> None:
    told = tell(STORY)
    assert told[3] == f"    0.009 s  {short_peer(GOOD)}  bid               12 per hour"
    assert told[4].endswith("declined          paused by its owner (order 91c0)")
    assert told[6] == f"    1.250 s  {short_peer(GOOD)}  task failed       task 0: worker died"
    assert told[9].split() == ["2.002", "s", "-", "job", "done", "1", "task"]


def test_every_provider_has_a_summary() -> None:
    told = tell(STORY)
    assert told[11:] == [
        f"{short_peer(GOOD)}: bid, task sent 1, receipt accepted 1, task failed 1",
        f"{short_peer(BAD)}: declined - paused by its owner",
        f"{short_peer(MUTE)}: no answer - no answer in 2 s",
    ]


def test_an_empty_story_and_an_unknown_kind() -> None:
    assert tell([]) == []
    assert "brand-new" in tell([line(0, "brand-new", None, "x")])[0]


def test_a_strangers_text_cannot_move_the_cursor() -> None:
    hostile = line(0, "decline", BAD, "\x1b[2J\x1b[31mred\r\nnext\u202eline\x00\ud800")
    (told, *_) = tell([hostile])
    assert told.isprintable()
    assert "\\x1b[2J" in told


@given(st.text(max_size=2 * MAX_TEXT))
def test_text_is_printable_one_line_and_bounded(text: str) -> None:
    shown = printable(text)
    assert shown == "" or shown.isprintable()
    assert len(shown) <= MAX_TEXT
    shown.encode()
    if text.isascii() and text.isprintable() and len(text) <= MAX_TEXT:
        assert shown == text
