"""The device's name has what was asked for."""

from coppermesh.agent.policy_case import BidTerms, Case, DeclineReason, DeviceState, decline


def step(case: Case, device: DeviceState, terms: BidTerms) -> BidTerms | DeclineReason:
    """Ready, or rejects with `model`."""
    if case.order.model.lower() in device.offer.name.lower():
        return terms
    offer = device.offer
    return decline("model", f"wanted a {case.order.model}; {offer.device} is a {offer.name}")
