"""What lending has brought: income, electricity at the tariff of its hour, wear, and where money is lost."""

import json
from dataclasses import replace

import pytest

from coppermesh.agent import economy_screens
from coppermesh.agent.costs import Costs, electricity_cost, modelled_mw
from coppermesh.agent.earnings import Accounts, Earned, summed
from coppermesh.agent.tariff_history import Period, costs_at, note_costs, read_history

HOUR_US = 3_600_000_000
WATT_HOUR_MJ = 3_600_000
WORK = Earned(
    id="aa" * 32,
    job="bb" * 16,
    peer="12D3KooWpeer",
    device="cpu",
    device_kind="cpu",
    started_us=10 * HOUR_US,
    ended_us=11 * HOUR_US,
    energy_mj=100 * WATT_HOUR_MJ,
    meter="rapl",
    unit="usd",
    amount=30_000,
    verdict="accepted",
)


def accounts(*history, **costs):
    return Accounts(history, Period(0, "usd", Costs(**costs)), {"cpu": 2})


def one_total(receipts, how, by="day"):
    lines, totals = summed(receipts, how, by, lambda at_us: f"day {at_us // (24 * HOUR_US)}")
    (total,) = totals
    return lines, total


def test_income_less_electricity_and_wear_is_net():
    _, total = one_total([WORK], accounts(tariff=200_000, wear=1_000))
    assert (total.income, total.electricity, total.wear, total.net) == (30_000, 20_000, 1_000, 9_000)
    assert not total.loses
    assert total.measured_mj == total.energy_mj


def test_a_thousand_small_tasks_cost_what_one_of_their_length_does():
    small = replace(
        WORK, energy_mj=WORK.energy_mj // 1000, ended_us=WORK.started_us + HOUR_US // 1000, amount=1
    )
    _, total = one_total([small] * 1000, accounts(tariff=200, wear=7))
    assert (total.electricity, total.wear) == (20, 7)


def test_what_is_not_accepted_is_no_income():
    receipts = [replace(WORK, verdict="open"), replace(WORK, verdict="disputed")]
    _, total = one_total(receipts, accounts())
    assert (total.income, total.pending, total.disputed) == (0, 30_000, 30_000)


def test_a_loss_is_named_once_it_is_certain():
    lines, total = one_total([WORK], accounts(tariff=400_000))
    assert total.net == -10_000
    assert total.loses
    facts = {"by": "day", "lines": [lines[0].as_dict()], "totals": [total.as_dict()]}
    shown = "\n".join(economy_screens.earnings(facts))
    assert "you are losing money on day 0: 0.010000 usd" in shown
    assert "-0.010000  usd" in shown
    waiting = [replace(WORK, amount=41_000, verdict="open")]
    assert not one_total(waiting, accounts(tariff=400_000))[1].loses, "it may still be paid"


def test_energy_without_a_meter_is_a_models_and_marked():
    _, total = one_total([replace(WORK, energy_mj=None, meter="none")], accounts(tariff=1_000_000))
    assert total.energy_mj == modelled_mw("cpu", 2) * 3600
    assert total.measured_mj == 0
    assert total.electricity == electricity_cost(total.energy_mj, 1_000_000)
    facts = {"by": "day", "lines": [total.as_dict()], "totals": [total.as_dict()]}
    assert "~" in "\n".join(economy_screens.earnings(facts))


def test_a_simulated_meter_is_no_measurement():
    _, total = one_total([replace(WORK, meter="simulated")], accounts())
    assert total.measured_mj == 0


def test_the_owners_watts_replace_the_model():
    without = replace(WORK, energy_mj=None, meter="none")
    _, total = one_total([without], accounts(loaded_watts=150, idle_watts=50))
    assert total.energy_mj == 100 * WATT_HOUR_MJ
    _, total = one_total([without], accounts(loaded_watts=150, idle_watts=50, count_idle=True))
    assert total.energy_mj == 150 * WATT_HOUR_MJ


def test_units_never_add_and_a_foreign_tariff_does_not_count():
    lines, totals = summed(
        [WORK, replace(WORK, unit="eur")], accounts(tariff=100_000), "device", lambda _: ""
    )
    assert [(line.group, line.unit) for line in lines] == [("cpu", "usd"), ("cpu", "eur")]
    assert [total.unit for total in totals] == ["usd", "eur"]
    assert (totals[1].electricity, totals[1].unknown_tariff) == (0, 1)


@pytest.mark.parametrize(
    ("by", "group"),
    [
        ("job", "bb" * 16),
        ("device", "cpu"),
        ("peer", "12D3KooWpeer"),
        ("receipt", "aa" * 32),
        ("day", "day 0"),
    ],
)
def test_groupings(by, group):
    lines, _ = one_total([WORK, WORK], accounts(), by)
    assert [(line.group, line.tasks) for line in lines] == [(group, 2)]


def test_a_receipt_is_charged_the_tariff_of_its_own_time(tmp_path):
    path = tmp_path / "tariffs.jsonl"
    note_costs(path, 1 * HOUR_US, "usd", Costs(tariff=100_000))
    note_costs(path, 2 * HOUR_US, "usd", Costs(tariff=100_000))
    note_costs(path, 20 * HOUR_US, "usd", Costs(tariff=900_000, loaded_watts=12.5))
    assert len(read_history(path)) == 2, "what has not changed is not written again"
    assert path.stat().st_mode & 0o777 == 0o600
    history = read_history(path)
    assert history[1].costs == Costs(tariff=900_000, loaded_watts=12.5)
    later = replace(WORK, started_us=30 * HOUR_US, ended_us=31 * HOUR_US)
    lines, _ = summed([WORK, later], accounts(*history, tariff=5), "receipt", lambda _: "")
    _, total = one_total([WORK, later], accounts(*history, tariff=5))
    assert total.electricity == 10_000 + 90_000
    assert len(lines) == 1


def test_the_first_period_covers_what_was_before():
    first = Period(50, "usd", Costs(tariff=1))
    assert costs_at([first], 10, Period(0, "usd", Costs())) is first


def test_damaged_history_is_left_out_and_costs_nothing_else(tmp_path):
    path = tmp_path / "tariffs.jsonl"
    note_costs(path, 1, "usd", Costs(tariff=7))
    good = path.read_text()
    path.write_text("garbage\n" + good + json.dumps({"since_us": 3}) + "\n[1]\n" + good[:20])
    assert [period.costs.tariff for period in read_history(path)] == [7]
    note_costs(path, 9, "usd", Costs(tariff=8))
    assert [period.costs.tariff for period in read_history(path)] == [7, 8], (
        "what was cut off takes nothing with it"
    )
    assert read_history(tmp_path / "none") == []


def test_a_history_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    note_costs(tmp_path / "no" / "folder", 1, "usd", Costs(tariff=1))
    assert "cannot be written" in caplog.text
