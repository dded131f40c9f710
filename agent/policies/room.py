"""The device has a slot that is not promised to anyone."""

from coppermesh.agent.policy_case import BidTerms, Case, DeclineReason, DeviceState, decline


def step(_case: Case, device: DeviceState, terms: BidTerms) -> BidTerms | DeclineReason:
    """Ready, or rejects with `busy`."""
    if device.free_slots > 0:
        return terms
    offer = device.offer
    return decline("busy", f"{offer.device} serves {offer.slots} at once and is busy; ask again later")
