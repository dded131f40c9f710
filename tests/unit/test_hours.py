"""Windows of the clock on the wall: over midnight, by day, and on the nights when clocks are changed."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.agent.hours import (
    DAY_MINUTES,
    SECOND,
    Window,
    is_open,
    next_change_us,
    parse_window,
    wall_clock,
)
from coppermesh.agent.sharing import Sharing

BERLIN = ZoneInfo("Europe/Berlin")
MONDAY = datetime(2026, 6, 1, tzinfo=UTC)


def at(local: datetime) -> int:
    return int(local.timestamp()) * SECOND


def berlin(month: int, day: int, hour: int, minute: int = 0, fold: int = 0) -> int:
    return at(datetime(2026, month, day, hour, minute, tzinfo=BERLIN, fold=fold))


def is_open_at(text: str, now_us: int) -> bool:
    return is_open([parse_window(text)], now_us, BERLIN)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("22:00-07:00", "22:00-07:00"),
        (" 9:05 - 17:30 ", "09:05-17:30"),
        ("Sat,Sun 00:00-24:00", "sat,sun 00:00-24:00"),
        ("mon-fri 18:00-23:30", "mon,tue,wed,thu,fri 18:00-23:30"),
        ("fri-mon 20:00-06:00", "mon,fri,sat,sun 20:00-06:00"),
        ("mon-sun 1:00-2:00", "01:00-02:00"),
    ],
)
def test_a_window_is_read_as_people_write_it(text, told):
    assert str(parse_window(text)) == told
    assert parse_window(told) == parse_window(text)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "want times like"),
        ("22-7", "want times like"),
        ("22:00-7:00pm", "want times like"),
        ("25:00-26:00", "no 25:00"),
        ("10:60-11:00", "no 10:60"),
        ("24:00-01:00", "begins at 00:00"),
        ("10:00-10:00", "00:00-24:00"),
        ("00:00-24:01", "no 24:01"),
        ("someday 10:00-11:00", "'someday' is no day"),
        ("mon- 10:00-11:00", "'mon-' is no day"),
        ("mon,,tue 10:00-11:00", "'' is no day"),
    ],
)
def test_what_is_wrong_about_a_window_is_said(text, wrong):
    with pytest.raises(ValueError, match=wrong):
        parse_window(text)


def test_over_midnight_it_belongs_to_the_day_on_which_it_begins():
    friday_night = "fri 22:00-07:00"  # 5 June 2026 is a Friday
    assert not is_open_at(friday_night, berlin(6, 5, 3))
    assert not is_open_at(friday_night, berlin(6, 5, 21, 59))
    assert is_open_at(friday_night, berlin(6, 5, 22))
    assert is_open_at(friday_night, berlin(6, 6, 6, 59))
    assert not is_open_at(friday_night, berlin(6, 6, 7))
    assert not is_open_at(friday_night, berlin(6, 6, 22))


def test_sunday_night_ends_on_monday():
    assert is_open_at("sun 22:00-07:00", berlin(6, 8, 1))  # 8 June is a Monday


def test_when_clocks_go_forward_the_skipped_hour_does_not_happen():
    """29 March 2026: 02:00 is followed by 03:00."""
    before, after = berlin(3, 29, 1, 59), berlin(3, 29, 3)
    assert after - before == 60 * SECOND
    assert not is_open_at("02:00-03:00", before)
    assert not is_open_at("02:00-03:00", after)
    assert is_open_at("02:30-05:00", after), "what begins in it begins when it is over"
    closed = [parse_window("02:30-05:00")]
    assert next_change_us(closed, before, BERLIN) == after
    night = [parse_window("22:00-07:00")]
    begun = berlin(3, 28, 22)
    assert next_change_us(night, begun, BERLIN) == begun + 8 * 3600 * SECOND, "an hour shorter"


def test_when_clocks_go_back_the_hour_shown_twice_counts_twice():
    """25 October 2026: 03:00 is followed by 02:00."""
    first, second = berlin(10, 25, 2, 30), berlin(10, 25, 2, 30, fold=1)
    assert second - first == 3600 * SECOND
    for moment in (first, second):
        assert is_open_at("02:15-02:45", moment)
    between = berlin(10, 25, 2, 45)
    assert not is_open_at("02:15-02:45", between)
    assert next_change_us([parse_window("02:15-02:45")], between, BERLIN) == berlin(10, 25, 2, 15, fold=1)
    night = berlin(10, 24, 22)
    assert next_change_us([parse_window("22:00-07:00")], night, BERLIN) == night + 10 * 3600 * SECOND


def test_no_window_is_always_open_and_a_whole_week_never_changes():
    assert is_open([], 0, BERLIN)
    assert next_change_us([], 0, BERLIN) is None
    assert next_change_us([parse_window("00:00-24:00")], berlin(6, 1, 12), BERLIN) is None


def test_the_owner_is_told_the_day_where_it_is_not_today():
    now = berlin(6, 1, 12)  # a Monday
    assert wall_clock(berlin(6, 1, 22), now, BERLIN) == "22:00"
    assert wall_clock(berlin(6, 6, 8), now, BERLIN) == "Sat 08:00"
    closed = Sharing(hours=(parse_window("sat 08:00-20:00"),), time_zone="Europe/Berlin").closed(False, now)
    assert closed is not None
    assert closed.code == "out-of-hours"
    assert closed.for_owner == "out of hours until Sat 08:00"
    assert "closed until Sat 08:00 by its clock" in closed.sentence


def test_this_machines_own_zone_is_used_where_none_is_named():
    now = at(MONDAY)
    local = datetime.fromtimestamp(now // SECOND, UTC).astimezone()
    around = f"{local.hour:02}:{local.minute:02}-{(local.hour + 1) % 24:02}:{local.minute:02}"
    assert is_open([parse_window(around)], now, None)
    assert next_change_us([parse_window(around)], now, None) == now + 3600 * SECOND


windows = st.builds(
    Window,
    days=st.frozensets(st.integers(0, 6), min_size=1),
    start=st.integers(0, DAY_MINUTES - 1),
    end=st.integers(1, DAY_MINUTES),
).filter(lambda window: window.start != window.end)
zones = st.sampled_from([ZoneInfo(name) for name in ("Europe/Berlin", "UTC", "Australia/Lord_Howe")])
minutes_2026 = st.integers(0, 365 * DAY_MINUTES).map(
    lambda minute: at(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute))
)


@given(window=windows)
def test_any_window_reads_back(window):
    assert parse_window(str(window)) == window


@given(some=st.lists(windows, min_size=1, max_size=3), zone=zones, now_us=minutes_2026)
def test_the_next_change_is_the_first_minute_that_differs(some, zone, now_us):
    """Against a walk along the minutes."""
    change = next_change_us(some, now_us, zone)
    before = is_open(some, now_us, zone)
    minute = 60 * SECOND
    for moment in range(now_us + minute, now_us + 2 * DAY_MINUTES * minute, minute):
        if is_open(some, moment, zone) != before:
            assert change == moment
            return
    assert change is None or change >= now_us + 2 * DAY_MINUTES * minute
