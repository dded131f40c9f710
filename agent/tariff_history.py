"""What electricity has cost at which time, remembered: a receipt is charged the tariff of its own hour, not today's.

One line of JSON each time the settings of `[costs]` change, in a file of the home that is only ever appended to, each
begun on a line of its own: one that was cut off by a full disk is left out and takes no other with it. Without a file
the settings of today count for all of the past.
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coppermesh.agent.costs import Costs, parse_tariff_window

MAX_HISTORY_BYTES = 4 << 20
"""Some ten thousand changes; of a longer file the newest lines count."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Period:
    """These costs hold from `since_us` on."""

    since_us: int
    unit: str
    costs: Costs


def costs_at(history: Sequence[Period], at_us: int, otherwise: Period) -> Period:
    """The period that a moment lies in; the first one also covers what was before it. `history` is in order of time."""
    found = history[0] if history else otherwise
    for period in history:
        if period.since_us > at_us:
            break
        found = period
    return found


def read_history(path: Path) -> list[Period]:
    """Every period in order of time. Blocks. An absent or unreadable file is an empty history."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - MAX_HISTORY_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return []
    periods = [period for line in lines if line and (period := _period(line)) is not None]
    return sorted(periods, key=lambda period: period.since_us)


def note_costs(path: Path, now_us: int, unit: str, costs: Costs) -> None:
    """Append these settings where they differ from the last. Blocks. A full disk costs the entry, not the agent."""
    history = read_history(path)
    if history and (history[-1].unit, history[-1].costs) == (unit, costs):
        return
    line = "\n" + json.dumps({"since_us": now_us, "unit": unit} | _written(costs)) + "\n"
    flags = os.O_APPEND | os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(line.encode())
    except OSError as error:
        _log.warning("%s cannot be written: %s; earnings count with today's costs", path, error.strerror)


def _written(costs: Costs) -> dict[str, object]:
    return {
        "tariff": costs.tariff,
        "tariffs": [str(window) for window in costs.tariffs],
        "time_zone": costs.time_zone,
        "idle_watts": costs.idle_watts,
        "loaded_watts": costs.loaded_watts,
        "count_idle": costs.count_idle,
        "wear": costs.wear,
        "margin": costs.margin,
    }


def _period(line: bytes) -> Period | None:
    try:
        fields = json.loads(line)
        since_us, unit = fields.pop("since_us"), fields.pop("unit")
        fields["tariffs"] = tuple(parse_tariff_window(text) for text in fields["tariffs"])
        return Period(int(since_us), str(unit), Costs(**fields))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
