"""The device takes the kind of programs that the order names."""

from coppermesh.agent.policy_case import BidTerms, Case, DeclineReason, DeviceState, decline


def step(case: Case, device: DeviceState, terms: BidTerms) -> BidTerms | DeclineReason:
    """Ready, or rejects with `features`."""
    missing = sorted(set(case.order.features) - set(device.offer.features))
    if not missing:
        return terms
    return decline("features", f"{device.offer.device} does not take {', '.join(missing)}")
