"""Both count in the same money."""

from coppermesh.agent.policy_case import BidTerms, Case, DeclineReason, DeviceState, decline


def step(case: Case, device: DeviceState, terms: BidTerms) -> BidTerms | DeclineReason:
    """Ready, or rejects with `unit`."""
    if case.order.unit == device.offer.unit:
        return terms
    return decline(
        "unit", f"{device.offer.device} is priced in {device.offer.unit}, the order pays in {case.order.unit}"
    )
