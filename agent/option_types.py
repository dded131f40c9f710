"""Values of the command line's options, checked while they are parsed: a wrong one is wrong usage (exit code 2).

argparse puts the option's name with its dashes before what is raised here.
"""

import argparse
import difflib
import math
import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from coppermesh.agent.config import wanted_for
from coppermesh.p2p.errors import MeshError

MAX_DEADLINE_SECONDS = 86_400
_WHOLE = re.compile(r"[+-]?[0-9]{1,20}")
_PEER_END = re.compile(r"[1-9A-HJ-NP-Za-km-z]{6,51}")
_ID = re.compile(r"[0-9A-Fa-f]{1,64}")


class WrongOption(MeshError):
    """The value of an option cannot be used here. The text names the option, with its dashes, and what is wanted."""


def text_setting(key: str) -> Callable[[str], str]:
    """An option that is the setting `key` of config.toml, or one item of it where that is a list."""

    def parse(text: str) -> str:
        _require(wanted_for(key, text), text)
        return text

    return parse


def whole_setting(key: str) -> Callable[[str], int]:
    """An option that is the whole number of the setting `key`."""

    def parse(text: str) -> int:
        number = int(text) if _WHOLE.fullmatch(text) else None
        _require(wanted_for(key, number), text)
        assert number is not None
        return number

    return parse


def whole(low: int, high: int, unit: str = "") -> Callable[[str], int]:
    """A whole number from `low` to `high`, of `unit` where it is one of something."""

    def parse(text: str) -> int:
        number = int(text) if _WHOLE.fullmatch(text) else None
        if number is None or not low <= number <= high:
            of = f" of {unit}" if unit else ""
            raise argparse.ArgumentTypeError(f"want a whole number{of} from {low} to {high}, got {text!r}")
        return number

    return parse


def architecture(text: str) -> str:
    """A CUDA architecture: `sm_90`."""
    if not re.fullmatch(r"sm_[1-9][0-9]{1,2}", text):
        raise argparse.ArgumentTypeError(f"want sm_ and a number, such as sm_90, got {text!r}")
    return text


def deadline(text: str) -> float:
    """Seconds that a job may take."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_DEADLINE_SECONDS:
        raise argparse.ArgumentTypeError(
            f"want seconds, above 0 and at most {MAX_DEADLINE_SECONDS}, got {text!r}"
        )
    return seconds


def isolation(text: str) -> tuple[str, ...]:
    """Names of sandbox layers, with commas between."""
    from coppermesh.exec.sandbox.layers import NAMES

    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise argparse.ArgumentTypeError(
                f"want layers of {', '.join(NAMES)}, with commas between, got {name!r}{hint}"
            )
    return names


def home_directory(text: str) -> Path:
    """A home that was named; an empty name is a script's unset variable, not the current directory."""
    if not text:
        raise argparse.ArgumentTypeError("want a directory, got nothing")
    return Path(text)


def id_prefix(text: str) -> str:
    """The first digits of a job's or receipt's id."""
    if not _ID.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"want an id or its first digits: 1 to 64 hexadecimal digits, got {text!r}"
        )
    return text


def peer_id(text: str) -> str:
    """A peer id, 12D3KooW..., or the end of one, which `peer_names.named_peer` makes whole."""
    from coppermesh.p2p.ids import parse_peer

    if _PEER_END.fullmatch(text) and not text.startswith("12D3KooW"):
        return text
    try:
        parse_peer(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"want a peer id like 12D3KooW..., or the last characters that tables show (6 or more), got {text!r}"
            f" ({error})"
        ) from None
    return text


def code(text: str) -> str:
    """A short word of the protocol: letters, digits and hyphens."""
    if not re.fullmatch(r"[a-z0-9-]{1,40}", text):
        raise argparse.ArgumentTypeError(f"want 1 to 40 of a-z, 0-9 and -, got {text!r}")
    return text


def since(text: str) -> int:
    """A moment in the past, in microseconds since the epoch: a date, a time, or how long ago."""
    ago = re.fullmatch(r"([0-9]{1,6})([smhdw])", text)
    if ago:
        seconds = int(ago[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}[ago[2]]
        return max(0, time.time_ns() // 1000 - seconds * 1_000_000)
    try:
        at = datetime.fromisoformat(text)
        at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        return max(0, round(at.timestamp() * 1_000_000))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"want a date (2026-11-01), a time (2026-11-01T08:00, UTC) or how long ago (7d, 24h), got {text!r}"
        ) from None


def check_output(option: str, path: Path) -> None:
    """Raise WrongOption where a file cannot be written at `path`. Writes nothing."""
    if path.is_dir():
        raise WrongOption(f"{option} {path}: is a directory, want a file")
    if not path.parent.is_dir():
        raise WrongOption(f"{option} {path}: there is no directory {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise WrongOption(f"{option} {path}: cannot be written")


def _require(want: str | None, text: str) -> None:
    if want is not None:
        raise argparse.ArgumentTypeError(f"want {want}, got {text!r}")
