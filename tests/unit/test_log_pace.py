"""The log under a flood: bounded, with a count of what was left out, and plain text whatever peers sent."""

import io
import logging
from pathlib import Path

from coppermesh.agent import agent_start
from coppermesh.agent.home import Home
from coppermesh.agent.log_pace import (
    BURST,
    FORMAT,
    MAX_KINDS,
    MAX_LINE,
    REFILL_SECONDS,
    LogPace,
    PlainFormatter,
)


def record_of(
    sentence: str, *values: object, at: float = 0.0, level: int = logging.WARNING
) -> logging.LogRecord:
    record = logging.LogRecord("coppermesh.p2p.control", level, __file__, 1, sentence, values, None)
    record.created = at
    return record


def test_a_flood_of_one_sentence_shows_a_burst_then_one_line_in_five_seconds() -> None:
    pace = LogPace()
    shown = [
        at for at in range(1000) if pace.filter(record_of("%s broke the protocol", at, at=float(at) / 10))
    ]
    # 100 s of ten lines a second: the burst, and what filled again meanwhile.
    assert shown[:BURST] == list(range(BURST))
    assert BURST + 100 / REFILL_SECONDS - 2 <= len(shown) <= BURST + 100 / REFILL_SECONDS + 1


def test_what_was_left_out_is_counted_in_the_next_line_that_is_shown() -> None:
    pace = LogPace()
    for each in range(BURST + 7):
        pace.filter(record_of("%s broke the protocol", each))
    later = record_of("%s broke the protocol: %d%%", "QmPeer", 5, at=REFILL_SECONDS)
    assert pace.filter(later)  # another sentence: a bucket of its own
    assert later.getMessage() == "QmPeer broke the protocol: 5%"
    same = record_of("%s broke the protocol", "QmPeer%s", at=REFILL_SECONDS)
    assert pace.filter(same)
    assert same.getMessage() == "QmPeer%s broke the protocol (7 more lines like this one were left out)"


def test_one_sentence_in_a_flood_silences_no_other_and_errors_are_always_shown() -> None:
    pace = LogPace()
    for each in range(10 * BURST):
        pace.filter(record_of("noise %d", each))
    assert pace.filter(record_of("disk almost full"))
    assert all(
        pace.filter(record_of("cannot write the ledger", level=logging.ERROR)) for _ in range(10 * BURST)
    )


def test_sentences_without_end_keep_memory_bounded() -> None:
    pace = LogPace()
    for each in range(3 * MAX_KINDS):
        assert pace.filter(record_of(f"a sentence made of data {each}", at=float(each)))
    assert len(pace._buckets) == MAX_KINDS


def test_a_clock_set_back_neither_fills_nor_blocks() -> None:
    pace = LogPace()
    for _ in range(BURST):
        assert pace.filter(record_of("x", at=1000.0))
    assert not pace.filter(record_of("x", at=10.0))
    assert pace.filter(record_of("x", at=10.0 + REFILL_SECONDS))


def test_control_characters_of_strangers_do_not_reach_the_terminal() -> None:
    formatter = PlainFormatter(FORMAT)
    text = formatter.format(record_of("the peer says %s", "\x1b[2Jowned\r\x9b31m\u202egnp.exe\tend\u00e9"))
    assert text.isprintable() or "\t" in text
    assert "\\x1b[2Jowned\\r\\x9b31m\\u202egnp.exe\tend\u00e9" in text


def test_a_line_without_end_is_cut_and_says_so() -> None:
    text = PlainFormatter("%(message)s").format(record_of("%s", "a" * (MAX_LINE + 50)))
    assert text == "a" * MAX_LINE + "... (50 characters more)"


def test_a_traceback_keeps_its_lines() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter("%(message)s"))
    logger = logging.getLogger("coppermesh.tests.alone")
    logger.propagate = False
    logger.addHandler(handler)
    try:
        raise ValueError("bad\x1b[0m")
    except ValueError:
        logger.exception("failed")
    finally:
        logger.removeHandler(handler)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "failed"
    assert lines[1].startswith("Traceback")
    assert lines[-1] == "ValueError: bad\\x1b[0m"


def test_a_long_log_is_set_aside_at_the_next_start(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.log_path.write_bytes(b"x" * (agent_start.MAX_LOG_BYTES + 1))
    with agent_start._open_log(home) as log:
        assert log.tell() == 0
    assert home.log_path.with_suffix(".log.1").stat().st_size == agent_start.MAX_LOG_BYTES + 1
    home.log_path.write_bytes(b"a short one")
    with agent_start._open_log(home) as log:
        assert log.tell() == len(b"a short one")
