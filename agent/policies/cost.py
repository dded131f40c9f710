"""The order pays what lending the device costs its owner: electricity, wear and the wanted margin."""

from dataclasses import replace

from coppermesh.agent.policy_case import BidTerms, Case, DeclineReason, DeviceState, decline
from coppermesh.agent.pricing import format_rate


def step(case: Case, device: DeviceState, terms: BidTerms) -> BidTerms | DeclineReason:
    """Ready, negotiates a rate below cost up to the floor, or rejects with `below-cost`."""
    order, offer = case.order, device.offer
    if order.max_rate < device.floor:
        most = format_rate(order.max_rate, order.unit)
        text = f"the order pays at most {most}, less than an hour of {offer.device} costs its owner now"
        return decline(
            "below-cost", f"{text}; it is lent for {format_rate(max(offer.rate, device.floor), offer.unit)}"
        )
    return terms if terms.rate >= device.floor else replace(terms, rate=device.floor)
