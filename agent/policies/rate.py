"""The order pays what the device costs."""

from coppermesh.agent.policy_case import BidTerms, Case, DeclineReason, DeviceState, decline
from coppermesh.agent.pricing import format_rate


def step(case: Case, device: DeviceState, terms: BidTerms) -> BidTerms | DeclineReason:
    """Ready, or rejects with `rate`."""
    order, offer = case.order, device.offer
    if terms.rate <= order.max_rate:
        return terms
    asked, most = format_rate(terms.rate, offer.unit), format_rate(order.max_rate, order.unit)
    return decline("rate", f"{offer.device} costs {asked}, the order pays at most {most}")
