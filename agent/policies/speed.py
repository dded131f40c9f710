"""The device is as fast as was asked for, by this provider's own measurement."""

from coppermesh.agent.policy_case import BidTerms, Case, DeclineReason, DeviceState, decline


def step(case: Case, device: DeviceState, terms: BidTerms) -> BidTerms | DeclineReason:
    """Ready, or rejects with `measuring`, `speed`."""
    wanted, name = case.order.min_speed, device.offer.device
    if not wanted or device.speed >= wanted:
        return terms
    if not device.speed:
        return decline("measuring", f"the speed of {name} is not known yet; ask again in some seconds")
    return decline("speed", f"{name} was measured at {device.speed} Mop/s, the order wants {wanted}")
