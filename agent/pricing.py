"""Money and rates: what a task costs, how an amount is shown, the least a rate may be.

Everything is an exact integer; there is no float in this module. An `amount` counts millionths (10^-6) of a named
unit such as `usd`; a `rate` is an amount per device-hour. Amounts of different units are never added or compared:
the callers check the unit first.
"""

import re

MILLION = 1_000_000
US_PER_HOUR = 3_600_000_000
DECIMALS = 6
MAX_MONEY = (1 << 62) - 1
"""The most a record's money field can hold."""

_NUMBER = re.compile(r"([0-9]{1,13})(?:\.([0-9]{1,6}))?", re.ASCII)
_UNIT = re.compile(r"[a-z0-9-]{1,40}", re.ASCII)
_MAX_TEXT = 80


def amount_for(rate: int, billed_us: int) -> int:
    """What `billed_us` microseconds cost at `rate`: ceil(rate * billed_us / one hour in microseconds).

    Rounding is up, so that work that was billed is never free: the result is at least 1 when both are above zero.
    Raises ValueError when either is negative.
    """
    if rate < 0 or billed_us < 0:
        raise ValueError(f"amount for rate {rate} and {billed_us} us: neither may be negative")
    return _ceil_div(rate * billed_us, US_PER_HOUR)


def affordable_us(rate: int, amount: int) -> int | None:
    """The longest time in microseconds that costs at most `amount` at `rate`; None where the rate is zero."""
    if rate < 0 or amount < 0:
        raise ValueError(f"time for rate {rate} and amount {amount}: neither may be negative")
    if rate == 0:
        return None
    return amount * US_PER_HOUR // rate


def rate_floor(milliwatts: int, tariff: int, wear: int = 0, margin_ppm: int = 0) -> int:
    """The rate under which a device loses money: electricity plus wear, then the wanted margin on both, rounded up.

    `milliwatts` is what the machine draws under load above what it draws idle; `tariff` is millionths of the unit per
    kilowatt-hour; `wear` is millionths of the unit per hour; `margin_ppm` is parts per million on top of the cost.
    """
    if min(milliwatts, tariff, wear, margin_ppm) < 0:
        raise ValueError("rate floor: power, tariff, wear and margin must not be negative")
    milliwatts_per_kilowatt = MILLION
    cost = milliwatts * tariff + wear * milliwatts_per_kilowatt
    return _ceil_div(cost * (MILLION + margin_ppm), milliwatts_per_kilowatt * MILLION)


def format_money(amount: int, unit: str) -> str:
    """`format_money(30_000, "usd") == "0.03 usd"`: every digit that is not a trailing zero, at least two decimals."""
    sign = "-" if amount < 0 else ""
    whole, fraction = divmod(abs(amount), MILLION)
    digits = f"{fraction:0{DECIMALS}d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{digits} {unit}"


def format_rate(rate: int, unit: str) -> str:
    """`format_rate(30_000, "usd") == "0.03 usd/h"`."""
    return f"{format_money(rate, unit)}/h"


def parse_money(text: str) -> tuple[int, str]:
    """`parse_money("1.50 usd") == (1_500_000, "usd")`. Raises ValueError that says what was expected."""
    number, separator, unit = text[:_MAX_TEXT].strip().partition(" ")
    unit = unit.strip().lower()
    match = _NUMBER.fullmatch(number)
    if len(text) > _MAX_TEXT or not separator or match is None or not _UNIT.fullmatch(unit):
        raise ValueError(
            f"{text[:_MAX_TEXT]!r} is not an amount of money: "
            f'write a number with at most {DECIMALS} decimals and a unit, such as "0.03 usd"'
        )
    whole, fraction = match.groups()
    amount = int(whole) * MILLION + int((fraction or "").ljust(DECIMALS, "0"))
    if amount > MAX_MONEY:
        raise ValueError(f"{text!r} is more than an amount can hold ({format_money(MAX_MONEY, unit)})")
    return amount, unit


def parse_rate(text: str) -> tuple[int, str]:
    """`parse_rate("0.03 usd/h") == (30_000, "usd")`. Raises ValueError that says what was expected."""
    money, separator, per = text.strip().rpartition("/")
    if not separator or per.strip().lower() not in ("h", "hour"):
        raise ValueError(
            f'{text[:_MAX_TEXT]!r} is not a rate: write it as "0.03 usd/h", money per device-hour'
        )
    return parse_money(money.rstrip())


def _ceil_div(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
