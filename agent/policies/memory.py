"""A task's memory fits the device."""

from coppermesh.agent.policy_case import BidTerms, Case, DeclineReason, DeviceState, decline


def step(case: Case, device: DeviceState, terms: BidTerms) -> BidTerms | DeclineReason:
    """Ready, or rejects with `memory`."""
    if case.order.memory_bytes <= device.offer.memory_bytes:
        return terms
    text = f"a task may use {device.offer.memory_bytes} bytes on {device.offer.device}"
    return decline("memory", f"{text}, the order asks for {case.order.memory_bytes}")
