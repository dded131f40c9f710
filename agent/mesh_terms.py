"""What an invitation gives, as people write it: `member`, `7d`, `20gpu-hours/day` (pure)."""

import re
from collections.abc import Mapping
from typing import Any

from coppermesh.agent.private_mesh import Terms
from coppermesh.p2p.admission import MAX_USES
from coppermesh.p2p.certificates import DAY_US, MAX_LIFE_US, ROLES
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.membership_records import Quota

HOUR_US = 3_600_000_000
MAX_INVITATION_US = MAX_LIFE_US
_SPANS = {"s": 1_000_000, "m": 60_000_000, "h": HOUR_US, "d": DAY_US, "w": 7 * DAY_US}
_PERIODS = {"hour": HOUR_US, "day": DAY_US, "week": 7 * DAY_US, "month": 30 * DAY_US}
_KINDS = {"gpu": "cuda", "cpu": "cpu", "device": "any"}
_WORDS = {kind: word for word, kind in _KINDS.items()}
_SPAN = re.compile(r"([0-9]{1,6})([smhdw])")
_QUOTA = re.compile(r"([0-9]{1,7}(?:\.[0-9]{1,6})?) ?(gpu|cpu|device)-(hour|minute)s?/(hour|day|week|month)")


def parse_span(text: str) -> int:
    """`7d`, `12h`, `30m` in microseconds. Raises ValueError."""
    found = _SPAN.fullmatch(text)
    if found is None or int(found[1]) == 0:
        raise ValueError("want a span like 30m, 12h or 7d")
    return int(found[1]) * _SPANS[found[2]]


def parse_quota(text: str) -> Quota:
    """`20gpu-hours/day`, `90cpu-minutes/week`, `1.5device-hours/day`. Raises ValueError."""
    found = _QUOTA.fullmatch(text)
    if found is None:
        raise ValueError("want a quota like 20gpu-hours/day or 90cpu-minutes/week (gpu, cpu or device)")
    whole, _, part = found[1].partition(".")
    unit_us = HOUR_US if found[3] == "hour" else HOUR_US // 60
    device_us = int(whole) * unit_us + (int(part.ljust(6, "0")) * unit_us // 1_000_000 if part else 0)
    return Quota(_KINDS[found[2]], device_us, _PERIODS[found[4]])


def quota_text(quota: Quota | None) -> str | None:
    """The inverse, in hours; None where there is no limit."""
    if quota is None:
        return None
    hours = f"{quota.device_us / HOUR_US:.6f}".rstrip("0").rstrip(".")
    period = next((name for name, us in _PERIODS.items() if us == quota.period_us), None)
    per = period if period is not None else f"{quota.period_us / HOUR_US:g} hours"
    return f"{hours}{_WORDS[quota.kind]}-hours/{per}"


def terms_from(given: Mapping[str, Any], now_us: int) -> Terms:
    """The terms in a local call's arguments. Raises Refused."""
    role, uses, expires, quota = (given.get(name) for name in ("role", "uses", "expires", "quota"))
    if role not in ROLES:
        raise Refused("bad-argument", f"role: want one of {', '.join(ROLES)}")
    if not isinstance(uses, int) or isinstance(uses, bool) or not 1 <= uses <= MAX_USES:
        raise Refused("bad-argument", f"uses: want a number from 1 to {MAX_USES}")
    depth = given.get("depth")
    if depth is not None and (not isinstance(depth, int) or isinstance(depth, bool) or not 0 <= depth <= 2):
        raise Refused("bad-argument", "depth: want a number from 0 to 2")
    try:
        span_us = parse_span(str(expires))
        parsed = None if quota is None else parse_quota(str(quota))
    except ValueError as error:
        raise Refused("bad-argument", str(error)) from None
    if span_us > MAX_INVITATION_US:
        raise Refused("bad-argument", "expires: an invitation lasts at most 30 days")
    return Terms(role, parsed, depth, uses, now_us + span_us)
