"""The budget pays for at least one task that takes all the time it may."""

from coppermesh.agent.policy_case import BidTerms, Case, DeclineReason, DeviceState, decline, span
from coppermesh.agent.pricing import amount_for, format_money


def step(case: Case, device: DeviceState, terms: BidTerms) -> BidTerms | DeclineReason:
    """Ready, or rejects with `budget`."""
    order, offer = case.order, device.offer
    worst = amount_for(terms.rate, order.wall_limit_us)
    if worst <= order.budget:
        return terms
    cost, budget = format_money(worst, offer.unit), format_money(order.budget, order.unit)
    text = (
        f"one task of {span(order.wall_limit_us)} can cost {cost} on {offer.device}, the budget is {budget}: "
        f"give {worst} or more, or less time (wall_limit_s)"
    )
    return decline("budget", text)
