"""When an owner lends his devices: windows of the clock on the wall (pure; the clock is an argument).

A window is `22:00-07:00`, with days before it where it does not hold for all: `mon-fri 18:00-23:30`, `sat,sun
00:00-24:00`. The days are those on which it begins; one that ends before it begins ends on the next day. What counts is
local time as a clock on the wall shows it, so on the night when clocks are set forward a window can be an hour shorter,
and what lies in the hour that is skipped does not happen; when they are set back, the hour that is shown twice counts
twice.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 24 * 60
SECOND = 1_000_000
STEP_SECONDS = 900
"""Clocks are changed at multiples of a quarter of an hour everywhere."""
LOOK_AHEAD_DAYS = 8
_WINDOW = re.compile(r"(?:([a-z,-]+)\s+)?(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})")


@dataclass(frozen=True, slots=True)
class Window:
    """From minute `start` to before minute `end` of the day; up to `end` of the next day where that is not later."""

    days: frozenset[int]
    """Days on which it begins; 0 is Monday."""
    start: int
    end: int

    def covers(self, local: datetime) -> bool:
        """Whether the clock on the wall stands within it."""
        minute, today = local.hour * 60 + local.minute, local.weekday()
        if self.start < self.end:
            return today in self.days and self.start <= minute < self.end
        began_today = today in self.days and minute >= self.start
        return began_today or ((today - 1) % 7 in self.days and minute < self.end)

    def __str__(self) -> str:
        clock = f"{_clock(self.start)}-{_clock(self.end)}"
        return clock if len(self.days) == 7 else f"{','.join(DAYS[day] for day in sorted(self.days))} {clock}"


def parse_window(text: str) -> Window:
    """The window that `text` names. Raises ValueError with what is wrong about it."""
    found = _WINDOW.fullmatch(text.strip().lower())
    if found is None:
        raise ValueError("want times like 22:00-07:00, days before them where it is not every day")
    start, end = _minute(found[2], found[3]), _minute(found[4], found[5])
    if start == DAY_MINUTES:
        raise ValueError("24:00 is an end; a window that begins at midnight begins at 00:00")
    if start == end:
        raise ValueError("begins and ends at one minute; for the whole day write 00:00-24:00")
    return Window(_days(found[1]) if found[1] else frozenset(range(7)), start, end)


def is_open(windows: Sequence[Window], now_us: int, zone: tzinfo | None) -> bool:
    """Whether some window covers this moment; always, where there is none. `zone` None: this machine's own."""
    if not windows:
        return True
    local = _local(now_us // SECOND, zone)
    return any(window.covers(local) for window in windows)


def next_change_us(windows: Sequence[Window], now_us: int, zone: tzinfo | None) -> int | None:
    """When `is_open` changes next, within `LOOK_AHEAD_DAYS`; None where it does not."""
    return _next_change_us(tuple(windows), now_us // (60 * SECOND), zone)


@lru_cache(maxsize=64)
def _next_change_us(windows: tuple[Window, ...], minute: int, zone: tzinfo | None) -> int | None:
    """Kept, since it takes a millisecond or two and every order of a stranger asks for it."""
    now_s = minute * 60
    before = is_open(windows, now_s * SECOND, zone)
    for at_s in sorted(_candidates(windows, now_s, zone)):
        if at_s > now_s and is_open(windows, at_s * SECOND, zone) != before:
            return at_s * SECOND
    return None


def wall_clock(at_us: int, now_us: int, zone: tzinfo | None) -> str:
    """A moment as an owner reads it: `22:00`, or `Sat 22:00` where it is not within a day."""
    local = _local(at_us // SECOND, zone)
    clock = f"{local.hour:02}:{local.minute:02}"
    if abs(at_us - now_us) < DAY_MINUTES * 60 * SECOND:
        return clock
    return f"{DAYS[local.weekday()].capitalize()} {clock}"


def _candidates(windows: Iterable[Window], now_s: int, zone: tzinfo | None) -> set[int]:
    """Moments at which something can change: the windows' ends, and every change of clocks."""
    first = now_s - now_s % STEP_SECONDS
    moments = {first + step * STEP_SECONDS for step in range(1, LOOK_AHEAD_DAYS * 96 + 1)}
    midnight = _local(now_s, zone).replace(hour=0, minute=0, second=0, microsecond=0)
    minutes = {minute for window in windows for minute in (window.start, window.end)}
    for days in range(-1, LOOK_AHEAD_DAYS + 1):
        for minute in minutes:
            # Arithmetic on a datetime is the wall's; `fold` tells the two moments apart that a wall shows alike.
            local = midnight + timedelta(days=days, minutes=minute)
            moments |= {int(local.replace(fold=fold).timestamp()) for fold in (0, 1)}
    return moments


def _local(at_s: int, zone: tzinfo | None) -> datetime:
    """The wall's time; without a zone attached where it is this machine's own."""
    if zone is not None:
        return datetime.fromtimestamp(at_s, zone)
    return datetime.fromtimestamp(at_s, UTC).astimezone().replace(tzinfo=None)


def _minute(hours: str, minutes: str) -> int:
    minute = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or minute > DAY_MINUTES:
        raise ValueError(f"there is no {hours}:{minutes} on a clock")
    return minute


def _days(text: str) -> frozenset[int]:
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"{part!r} is no day; want {', '.join(DAYS)}, or a range such as mon-fri")
        begin = DAYS.index(first)
        length = (DAYS.index(last) - begin) % 7 if dash else 0
        days |= {(begin + offset) % 7 for offset in range(length + 1)}
    return frozenset(days)


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"
