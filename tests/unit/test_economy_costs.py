"""What lending costs, floor and electricity: the arithmetic, windows of the day, and what is measured or a model."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.agent.config import Config
from coppermesh.agent.costs import Costs, Power, electricity_cost, floor_at, modelled_mw, parse_tariff_window
from coppermesh.agent.power import ENOUGH, KEPT, PowerLog
from coppermesh.agent.price_list import PriceList
from coppermesh.agent.pricing import amount_for
from coppermesh.exec.device import DeviceInfo

HOUR_US = 3_600_000_000
NOON = int(datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()) * 1_000_000
NIGHT = NOON + 12 * HOUR_US


def device(kind="cpu", cores=2):
    return DeviceInfo(
        device="cpu" if kind == "cpu" else "gpu0",
        kind=kind,
        name="A device",
        memory_bytes=1 << 30,
        total_bytes=None,
        compute_capability=None,
        uuid=None,
        driver=None,
        meter="none",
        features=("array-programs",),
        cores=cores,
    )


def test_the_floor_is_electricity_and_wear_and_the_margin_on_both():
    costs = Costs(tariff=300_000, wear=10_000, margin=0.5)
    floor = floor_at(costs, Power(50_000, 350_000, "owner"), NOON)
    assert floor.counted_mw == 300_000
    assert floor.electricity == 90_000, "0.3 kW at 0.30 usd is 0.09 usd an hour"
    assert (floor.wear, floor.margin, floor.rate) == (10_000, 50_000, 150_000)


def test_a_machine_that_is_on_for_leases_only_counts_all_of_its_power():
    costs = Costs(tariff=1_000_000, count_idle=True)
    assert floor_at(costs, Power(50_000, 350_000, "owner"), NOON).electricity == 350_000


def test_an_hour_at_the_floor_pays_for_its_electricity():
    floor = floor_at(Costs(tariff=123_457), Power(0, 98_765, "owner"), NOON)
    energy_mj = 98_765 * 3600
    assert amount_for(floor.rate, HOUR_US) >= electricity_cost(energy_mj, 123_457)


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**7), st.floats(0, 5, allow_nan=False))
def test_a_floor_never_falls_when_something_gets_dearer(milliwatts, tariff, wear, margin):
    power = Power(0, milliwatts, "owner")
    floor = floor_at(Costs(tariff=tariff, wear=wear, margin=margin), power, NOON).rate
    assert floor >= floor_at(Costs(tariff=tariff, wear=wear), power, NOON).rate
    assert floor <= floor_at(Costs(tariff=tariff + 1, wear=wear + 1, margin=margin), power, NOON).rate
    assert floor >= wear


def test_the_tariff_of_the_hour_counts():
    night = parse_tariff_window("22:00-06:00 100000")
    costs = Costs(tariff=300_000, tariffs=(night,), time_zone="UTC")
    assert costs.tariff_at(NOON) == 300_000
    assert costs.tariff_at(NIGHT) == 100_000
    assert costs.changes_us(NOON) == NOON + 10 * HOUR_US
    assert Costs().tariff_at(NOON) is None
    assert Costs(tariff=1).changes_us(NOON) is None


def test_a_window_within_another_of_the_same_tariff_is_no_change():
    windows = [
        parse_tariff_window(text) for text in ("22:00-06:00 100000", "23:00-05:00 7", "12:00-13:00 300000")
    ]
    costs = Costs(tariff=300_000, tariffs=tuple(windows), time_zone="UTC")
    assert costs.changes_us(NOON) == NOON + 10 * HOUR_US
    assert costs.changes_us(NOON + 10 * HOUR_US) == NOON + 18 * HOUR_US, "the inner one never counts"


def test_the_first_window_that_fits_counts():
    windows = tuple(parse_tariff_window(text) for text in ("mon 11:00-13:00 7", "00:00-24:00 9"))
    assert Costs(tariffs=windows, time_zone="UTC").tariff_at(NOON) == 7
    assert Costs(tariffs=windows, time_zone="UTC").tariff_at(NOON + 24 * HOUR_US) == 9


@pytest.mark.parametrize(
    "text", ["", "22:00-06:00", "180000", "25:00-06:00 1", "22:00-06:00 -1", "22:00-06:00 0.1"]
)
def test_a_window_without_a_price_is_refused(text):
    with pytest.raises(ValueError, match=r"want|clock|ends"):
        parse_tariff_window(text)


def test_a_window_reads_as_it_is_written():
    window = parse_tariff_window("sat,sun  00:00-24:00   200000")
    assert str(window) == "sat,sun 00:00-24:00 200000"
    assert parse_tariff_window(str(window)) == window


@pytest.mark.parametrize(
    ("energy_mj", "tariff", "cost"), [(3_600_000_000, 300_000, 300_000), (0, 5, 0), (1, 1, 0)]
)
def test_a_kilowatt_hour_costs_the_tariff(energy_mj, tariff, cost):
    assert electricity_cost(energy_mj, tariff) == cost


def test_without_a_meter_power_is_a_model_and_says_so():
    power = PowerLog("cpu", 4).power(Costs())
    assert (power.source, power.idle_mw, power.loaded_mw) == ("model", 0, modelled_mw("cpu", 4))


def test_medians_of_both_kinds_are_a_measurement():
    log = PowerLog("cpu", 4)
    for _ in range(ENOUGH):
        log.add(20_000, working=False)
    assert log.power(Costs()).source == "idle-meter"
    for milliwatts in (60_000, 61_000, 59_000, 60_000, 400_000):
        log.add(milliwatts, working=True)
    log.add(999_000, working=True, disturbed=True)
    assert log.power(Costs()) == Power(20_000, 60_000, "meter"), "one wild sample moves no median"


def test_memory_of_samples_is_bounded():
    log = PowerLog("cuda", None)
    for milliwatts in range(10 * KEPT):
        log.add(milliwatts, working=True)
    assert log.power(Costs()).loaded_mw >= 9 * KEPT


def test_what_the_owner_measured_wins():
    log = PowerLog("cpu", 4)
    for _ in range(ENOUGH):
        log.add(20_000, working=False)
        log.add(60_000, working=True)
    assert log.power(Costs(loaded_watts=100)) == Power(20_000, 100_000, "owner")
    assert log.power(Costs(loaded_watts=100, idle_watts=30)) == Power(30_000, 100_000, "owner")
    assert log.power(Costs(idle_watts=30)) == Power(30_000, 60_000, "meter")


def test_a_rate_below_cost_is_raised_to_the_floor():
    prices = PriceList([device()])
    cheap = Config(rate=10, costs=Costs(tariff=1_000_000, loaded_watts=100))
    assert prices.rate("cpu", cheap, NOON) == 100_000
    assert prices.floor_in_force("cpu", cheap, NOON) == 100_000
    (facts,) = prices.facts(cheap, NOON)["devices"]
    assert facts["asked"] == 100_000
    assert "below cost" in facts["sentence"]
    dear = Config(rate=500_000, costs=cheap.costs)
    assert prices.rate("cpu", dear, NOON) == 500_000
    assert prices.facts(dear, NOON)["devices"][0]["left"] == 400_000


def test_no_tariff_is_said_and_asks_the_owners_rate():
    prices = PriceList([device()])
    assert prices.rate("cpu", Config(), NOON) == Config().rate_for("cpu")
    assert "no tariff" in prices.facts(Config(), NOON)["devices"][0]["sentence"]


def test_a_floor_that_wanders_a_little_is_not_announced_again():
    prices = PriceList([device()])
    config = Config(rate=0, costs=Costs(tariff=1_000_000))
    for _ in range(KEPT):
        prices.power["cpu"].add(0, working=False)
        prices.power["cpu"].add(100_000, working=True)
    assert prices.rate("cpu", config, NOON) == 100_000
    for _ in range(KEPT):
        prices.power["cpu"].add(101_000, working=True)
    assert prices.rate("cpu", config, NOON) == 100_000
    for _ in range(KEPT):
        prices.power["cpu"].add(104_000, working=True)
    assert prices.rate("cpu", config, NOON) == 104_000
