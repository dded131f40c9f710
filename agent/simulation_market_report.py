"""Running a market simulation and telling what came of it (pure).

*Unpaid*: what an honest provider had billed to one requester without an answer, as a share of the credit that its
exposure rule gave that requester at the time; at most 1 is the bound. *Most from one requester*: tasks that one
requester started at one bad provider within any hour. *Idle while queued*: each second, the honest providers that run
nothing (an idle lease there counts as idle too), or as many tasks as wait behind another at a provider where an idle
one fits, whichever is less, over all honest providers; *idle while waiting* counts the tasks too that wait at their
requester.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from coppermesh.agent.simulation import SECOND
from coppermesh.agent.simulation_market import MarketScenario, MarketSimulation

if TYPE_CHECKING:
    from random import Random

HOUR_US = 3600 * SECOND


def simulate_market(
    scenario: MarketScenario, rng: "Random", progress: Callable[[float], None] | None = None
) -> dict[str, Any]:
    """Run a scenario to its end; the same scenario gives the same facts."""
    market = MarketSimulation(scenario, rng)
    market.begin()
    idle = idle_waiting = looked = 0
    end_s = 60.0 * scenario.minutes
    while market.heap.now < end_s:
        market.heap.run_until(market.heap.now_us + SECOND)
        queued, waiting = _idle_and_queued(market)
        idle += queued
        idle_waiting += waiting
        looked += sum(provider.up and provider.kind == "honest" for provider in market.providers)
        if progress is not None:
            progress(market.heap.now)
    counts = market.counts
    most = max((_most_in_an_hour(times) for times in counts.wasted_at_bad.values()), default=0)
    over = sum(_most_in_an_hour(times) > 3 for times in counts.wasted_at_bad.values())
    open_jobs = sum(it.dispatcher.counts().jobs for it in market.requesters if it.pays)
    return {
        "scenario": asdict(scenario),
        "honest_jobs": {
            "submitted": counts.jobs,
            "finished": counts.finished,
            "failed": dict(sorted(counts.failed.items())),
            "under_way": open_jobs,
        },
        "tasks_done": counts.tasks_done,
        "unpaid_worst_share_of_credit": round(counts.worst_share, 4),
        "unpaid_worst_amount": counts.worst_unpaid,
        "bad_providers": {
            "most_from_one_requester_in_an_hour": most,
            "pairs": len(counts.wasted_at_bad),
            "pairs_over_three": over,
        },
        "idle_while_queued_share": round(idle / max(1, looked), 5),
        "idle_while_waiting_share": round(idle_waiting / max(1, looked), 5),
        "events": market.heap.events,
    }


def _most_in_an_hour(times: list[int]) -> int:
    most = first = 0
    for last, time_us in enumerate(times):
        while times[first] <= time_us - HOUR_US:
            first += 1
        most = max(most, last - first + 1)
    return most


def _idle_and_queued(market: MarketSimulation) -> tuple[int, int]:
    """Honest providers with nothing to do while a task that fits waits: behind another at a provider, or anywhere."""
    idle = sorted(
        (
            provider.offer.memory_bytes
            for provider in market.providers
            if provider.up
            and provider.kind == "honest"
            and not any(lease.running or lease.queue for lease in provider.leases.values())
        ),
        reverse=True,
    )
    behind = [
        lease.requirement.memory_bytes
        for provider in market.providers
        for lease in provider.leases.values()
        for _ in lease.queue
        if lease.requester.pays
    ]
    waiting = [
        requirement.memory_bytes
        for requester in market.requesters
        if requester.pays
        for requirement, count in requester.dispatcher.waiting().items()
        for _ in range(count)
    ]
    return _pairs(idle, behind), _pairs(idle, behind + waiting)


def _pairs(free: list[int], wanted: list[int]) -> int:
    """How many of the wanted could be had at once; `free` is in falling order."""
    used = 0
    for memory in sorted(wanted, reverse=True):
        if used < len(free) and free[used] >= memory:
            used += 1
    return used


def market_lines(facts: dict[str, Any]) -> list[str]:
    """The facts for a person."""
    jobs, bad = facts["honest_jobs"], facts["bad_providers"]
    failed = ", ".join(f"{count} {code}" for code, count in jobs["failed"].items()) or "none"
    rows = {
        "honest jobs": f"{jobs['submitted']} submitted, {jobs['finished']} finished, {jobs['under_way']} under way, "
        f"failed: {failed}",
        "tasks done": str(facts["tasks_done"]),
        "unpaid": f"at most {100 * facts['unpaid_worst_share_of_credit']:.0f} % of the credit that was given",
        "bad providers": f"at most {bad['most_from_one_requester_in_an_hour']} tasks from one requester in an hour; "
        f"{bad['pairs_over_three']} of {bad['pairs']} pairs over three",
        "idle while queued": f"{100 * facts['idle_while_queued_share']:.2f} % of provider-seconds; tasks that wait "
        f"at their requester counted too {100 * facts['idle_while_waiting_share']:.2f} %",
    }
    return [f"{name:<20} {text}" for name, text in rows.items()]
