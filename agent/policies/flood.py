"""The requester leaves room for others."""

from coppermesh.agent.policy_case import Case, DeclineReason, Limits, decline


def too_many_orders(limits: Limits) -> DeclineReason:
    """What a requester is told that floods: a shell may say it before it gathers a case."""
    text = f"more than {limits.max_orders_per_window} orders in 10 s from this requester; wait 10 s"
    return decline("too-many-orders", text)


def judge(case: Case) -> DeclineReason | None:
    """Ready, or rejects with `too-many-orders`, `too-many-leases`."""
    limits = case.state.limits
    if case.state.recent_orders >= limits.max_orders_per_window:
        return too_many_orders(limits)
    if case.state.requester_holds >= limits.max_holds_per_requester:
        text = f"this requester holds {case.state.requester_holds} slots here, the most it may; release a lease first"
        return decline("too-many-leases", text)
    return None
