"""The device is of the kind asked for."""

from coppermesh.agent.policy_case import BidTerms, Case, DeclineReason, DeviceState, decline


def step(case: Case, device: DeviceState, terms: BidTerms) -> BidTerms | DeclineReason:
    """Ready, or rejects with `device-kind`."""
    if case.order.device_kind in ("any", device.offer.kind):
        return terms
    return decline(
        "device-kind",
        f"wanted a {case.order.device_kind} device; {device.offer.device} is {device.offer.kind}",
    )
