"""Its owner does not need it, and it is within the owner's limits."""

from coppermesh.agent.policy_case import BidTerms, Case, DeclineReason, DeviceState, as_decline


def step(_case: Case, device: DeviceState, terms: BidTerms) -> BidTerms | DeclineReason:
    """Ready, or rejects with the code of what keeps its owner from lending it now."""
    if device.obstacles:
        return as_decline(device.obstacles[0])
    return terms
