"""The market in the simulator: cheating is bounded, honest work is done."""

import random
from dataclasses import replace
from typing import Any

from coppermesh.agent.simulation import SECOND
from coppermesh.agent.simulation_market import MarketScenario, MarketSimulation
from coppermesh.agent.simulation_market_report import market_lines, simulate_market

SMALL = MarketScenario(providers=32, requesters=8, seed=3, minutes=15.0, never_pay=0.25)


def run(scenario: MarketScenario) -> dict[str, Any]:
    return simulate_market(scenario, random.Random(scenario.seed))


def test_cheats_cost_little_and_honest_jobs_finish() -> None:
    facts = run(SMALL)
    jobs = facts["honest_jobs"]
    assert jobs["submitted"] > 20
    assert jobs["finished"] + jobs["under_way"] + sum(jobs["failed"].values()) == jobs["submitted"]
    assert sum(jobs["failed"].values()) <= 0.05 * jobs["submitted"]
    assert 0 < facts["unpaid_worst_share_of_credit"] <= 1
    assert facts["bad_providers"]["pairs"] > 0  # they were tried
    assert facts["bad_providers"]["most_from_one_requester_in_an_hour"] <= 3
    assert facts["idle_while_queued_share"] < 0.05
    assert len(market_lines(facts)) == 5


def test_who_never_pays_is_left_with_a_bounded_loss_everywhere() -> None:
    market = MarketSimulation(replace(SMALL, never_pay=0.5, stall=0.0, die=0.0, churn=0.0), random.Random(3))
    market.begin()
    market.heap.run_until(market.heap.now_us + 900 * SECOND)
    cheats = [requester for requester in market.requesters if not requester.pays]
    losses = 0
    for provider in market.providers:
        for cheat in cheats:
            exposure = provider.exposures.get(cheat.peer)
            if exposure is not None:
                unpaid = sum(owed.amount for owed in exposure.unpaid.values())
                losses += unpaid > 0
                assert unpaid <= provider.credit(cheat.peer)
    assert losses > 0


def test_the_same_seed_gives_the_same_market() -> None:
    scenario = replace(SMALL, minutes=3.0)
    assert run(scenario) == run(scenario)
    assert run(scenario) != run(replace(scenario, seed=4))
