"""Programs that carry source code come from strangers only where the sandbox was seen to hold."""

from coppermesh.agent.policy_case import (
    GUARDED_FEATURES,
    SANDBOX_FLOOR,
    BidTerms,
    Case,
    DeclineReason,
    DeviceState,
    decline,
)
from coppermesh.p2p.ids import format_peer


def step(case: Case, device: DeviceState, terms: BidTerms) -> BidTerms | DeclineReason:
    """Ready, or rejects with `not-allowed`."""
    guarded = sorted(GUARDED_FEATURES.intersection(case.order.features))
    unseen = sorted(SANDBOX_FLOOR.difference(case.state.isolation))
    if not guarded or not unseen or case.requester in case.state.allowed:
        return terms
    text = (
        f"{device.offer.device} takes {', '.join(guarded)} only from peers its owner named, for isolation by "
        f"{' and '.join(unseen)} was not witnessed there; the owner can start the agent with --allow "
        f"{format_peer(case.requester)}, or see `coppermesh doctor sandbox`"
    )
    return decline("not-allowed", text)
