"""Whether this provider bids on an order: a fold of small components, each with its own reason to say no (pure).

`policies` has one component a file. The first component of the order that rejects declines; else each device's terms
go through the device's components, and the cheapest device that comes through is offered; else the device that got
furthest gives the reason, since that is the one the requester came closest to getting.

A reason is a stable code (see `DECLINE_CODES`) and a sentence that says what would have to change, and on which side.
"""

from coppermesh.agent.policies import DEVICE_COMPONENTS, ORDER_COMPONENTS
from coppermesh.agent.policy_case import (
    DECLINE_CODES,
    LASTING_CODES,
    MAX_SENTENCE,
    SANDBOX_FLOOR,
    BidTerms,
    Case,
    DeclineReason,
    DeviceState,
    Limits,
    ProviderState,
    decline,
)
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.records import Order

__all__ = [
    "DECLINE_CODES",
    "LASTING_CODES",
    "MAX_SENTENCE",
    "SANDBOX_FLOOR",
    "BidTerms",
    "Case",
    "DeclineReason",
    "DeviceState",
    "Limits",
    "ProviderState",
    "decide",
    "decline",
]


def decide(order: Order, requester: PeerId, state: ProviderState, now_us: int) -> BidTerms | DeclineReason:
    """Terms to bid on `order` by `requester`, or the reason not to. The caller still has to reserve the slot."""
    case = Case(order, requester, state, now_us)
    for judge in ORDER_COMPONENTS:
        if reason := judge(case):
            return reason
    cheapest_first = sorted(state.devices, key=lambda device: (device.offer.rate, device.offer.device))
    furthest, best_reason = -1, decline("no-device", "this provider offers no device; ask another")
    for device in cheapest_first:
        passed, answer = _fold(case, device)
        if isinstance(answer, BidTerms):
            return answer
        if passed > furthest:
            furthest, best_reason = passed, answer
    return best_reason


def _fold(case: Case, device: DeviceState) -> tuple[int, BidTerms | DeclineReason]:
    """How many components the device came through, and the terms, or what stopped it."""
    terms = _first_terms(case, device)
    for passed, step in enumerate(DEVICE_COMPONENTS):
        answer = step(case, device, terms)
        if isinstance(answer, DeclineReason):
            return passed, answer
        terms = answer
    return len(DEVICE_COMPONENTS), terms


def _first_terms(case: Case, device: DeviceState) -> BidTerms:
    limits, offer = case.state.limits, device.offer
    return BidTerms(
        device=offer,
        rate=offer.rate,
        unit=offer.unit,
        memory_bytes=offer.memory_bytes,
        depth=limits.depth,
        expires_us=min(case.now_us + limits.bid_us, case.order.expires_us),
        speed=device.speed,
    )
