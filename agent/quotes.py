"""What a job would cost, and where it would run: an auction that ends before any lease is offered."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coppermesh.agent.histogram import histogram
from coppermesh.agent.jobs import JobState
from coppermesh.agent.lease_broker import Negotiated
from coppermesh.agent.pricing import amount_for
from coppermesh.agent.ranking import Offer
from coppermesh.agent.speeds import OwnSpeeds
from coppermesh.p2p.ids import PeerId, format_peer


@dataclass(frozen=True, slots=True)
class Estimate:
    """What all tasks of a job would cost at one bidder, money."""

    expected: int | None
    """None: nothing is known of how long they take."""
    most: int
    """Where each took all the time it may; the job's budget at most."""
    basis: str
    """What the expectation rests on."""


@dataclass(frozen=True, slots=True)
class OwnLease:
    """A lease that the asking agent holds: its provider may decline further orders as busy because of it."""

    provider: PeerId
    tasks: int
    """Under way."""
    left_s: int
    """Until it ends, where nothing ends it sooner."""


def estimate(job: JobState, offer: Offer, speeds: OwnSpeeds) -> Estimate:
    """The cost at a bidder: by what such tasks took there, else elsewhere, else by operations and speed."""
    tasks = len(job.tasks) * job.copies
    most = min(tasks * amount_for(offer.bid.rate, job.requirement.wall_limit_us), job.budget)
    programs = set(job.programs)
    there, anywhere = speeds.task_us(offer.peer, programs), speeds.task_us(None, programs)
    speed = offer.speed or offer.bid.speed
    operations = sum(job.facts(index).flops for index in range(len(job.tasks))) / len(job.tasks)
    if there is not None:
        task_us, basis = there, "measured there"
    elif anywhere is not None:
        task_us, basis = anywhere, "measured at others"
    elif speed:
        task_us, basis = int(operations / speed) + 1, "counted operations by its speed"
    else:
        return Estimate(None, most, "nothing measured yet")
    return Estimate(min(most, tasks * amount_for(offer.bid.rate, task_us)), most, basis)


def quote_facts(
    job: JobState, result: Negotiated, speeds: OwnSpeeds, leases: Sequence[OwnLease] = ()
) -> dict[str, Any]:
    """The ranking and the refusals, for programs and for `quote_lines`. `leases`: those of the asker itself."""
    places = []
    for place in result.places:
        bid, cost = place.offer.bid, estimate(job, place.offer, speeds)
        places.append(
            {
                "place": place.number,
                "peer": format_peer(place.peer),
                "device": bid.device_name,
                "rate": bid.rate,
                "unit": bid.unit,
                "speed": place.offer.speed,
                "claimed_speed": bid.speed,
                "reputation": place.offer.reputation,
                "missing_bytes": place.offer.missing_bytes,
                "latency_ms": place.offer.latency_us / 1000,
                "reason": place.reason,
                "expected": cost.expected,
                "most": cost.most,
                "basis": cost.basis,
            }
        )
    codes = {peer: why[0].code for peer, why in result.refusals.items()}
    return {
        "tasks": len(job.tasks),
        "redundancy": job.copies,
        "heard": result.heard,
        "places": places,
        "refusals": [
            {"peer": format_peer(peer), "code": why[0].code, "sentence": "; ".join(map(str, why))}
            for peer, why in result.refusals.items()
        ],
        "histogram": histogram(codes, job.requirement),
        "own_leases": [
            {"peer": format_peer(lease.provider), "tasks": lease.tasks, "left_s": lease.left_s}
            for lease in leases
            if codes.get(lease.provider) == "busy"
        ],
    }
