"""Money is exact: rounding, text and floors."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.agent.pricing import (
    MAX_MONEY,
    US_PER_HOUR,
    affordable_us,
    amount_for,
    format_money,
    format_rate,
    parse_money,
    parse_rate,
    rate_floor,
)

rates = st.integers(0, 10**12)
spans = st.integers(0, 10**12)


def test_an_hour_costs_the_rate_and_a_microsecond_costs_at_least_one() -> None:
    assert amount_for(30_000, US_PER_HOUR) == 30_000
    assert amount_for(30_000, 1) == 1
    assert amount_for(0, US_PER_HOUR) == 0
    assert amount_for(30_000, 0) == 0
    assert amount_for(30_000, US_PER_HOUR + 1) == 30_001


@given(rate=rates, billed_us=spans)
def test_an_amount_is_the_exact_price_rounded_up(rate: int, billed_us: int) -> None:
    exact = Fraction(rate * billed_us, US_PER_HOUR)
    amount = amount_for(rate, billed_us)
    assert exact <= amount < exact + 1
    if rate and billed_us:
        assert amount >= 1


@given(rate=st.integers(1, 10**12), amount=st.integers(0, 10**12))
def test_affordable_time_is_the_longest_that_the_amount_pays(rate: int, amount: int) -> None:
    longest = affordable_us(rate, amount)
    assert longest is not None
    assert amount_for(rate, longest) <= amount < amount_for(rate, longest + 1)


def test_what_is_free_can_be_had_for_any_time() -> None:
    assert affordable_us(0, 5) is None


@pytest.mark.parametrize(("rate", "billed_us"), [(-1, 1), (1, -1)])
def test_negative_prices_are_refused(rate: int, billed_us: int) -> None:
    with pytest.raises(ValueError, match="negative"):
        amount_for(rate, billed_us)
    with pytest.raises(ValueError, match="negative"):
        affordable_us(rate, billed_us)


def test_the_floor_is_power_and_wear_with_the_margin_on_top() -> None:
    # 350 W at 0.30 usd/kWh is 0.105 usd/h; 0.02 of wear; 20 % on top: 0.15 usd/h.
    assert rate_floor(350_000, 300_000, 20_000, 200_000) == 150_000
    assert rate_floor(1, 1) == 1, "a cost of next to nothing is still rounded up"
    assert rate_floor(0, 300_000) == 0
    with pytest.raises(ValueError, match="negative"):
        rate_floor(-1, 1)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (30_000, "0.03 usd"),
        (1, "0.000001 usd"),
        (0, "0.00 usd"),
        (1_500_000, "1.50 usd"),
        (-1_234_567, "-1.234567 usd"),
    ],
)
def test_money_is_shown_without_trailing_zeros_beyond_two_decimals(amount: int, text: str) -> None:
    assert format_money(amount, "usd") == text


@given(amount=st.integers(0, MAX_MONEY), unit=st.from_regex(r"[a-z0-9-]{1,40}", fullmatch=True))
def test_money_and_rates_survive_being_shown_and_read(amount: int, unit: str) -> None:
    assert parse_money(format_money(amount, unit)) == (amount, unit)
    assert parse_rate(format_rate(amount, unit)) == (amount, unit)


@pytest.mark.parametrize("text", ["0.03 usd/h", " 0.03 USD / h ", "0.030000 usd/hour"])
def test_a_rate_may_be_written_in_several_ways(text: str) -> None:
    assert parse_rate(text) == (30_000, "usd")


@pytest.mark.parametrize(
    "text",
    [
        "", "usd", "0.03", "0.03usd/h", "0.03 usd", "-1 usd/h", "1e3 usd/h", "0.0000001 usd/h", ".5 usd/h", "1. usd/h",
        "nan usd/h", "1_000 usd/h", "\u0661 usd/h", "1 us$/h", "1 usd/s", "1 usd/h/h", "9" * 14 + " usd/h",
        "1 " + "u" * 90,
    ],
)  # fmt: skip
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"0\.03 usd|more than an amount can hold"):
        parse_rate(text)


@given(text=st.text(max_size=100))
def test_any_text_is_a_rate_or_a_value_error(text: str) -> None:
    try:
        rate, unit = parse_rate(text)
    except ValueError:
        return
    assert 0 <= rate <= MAX_MONEY
    assert unit
