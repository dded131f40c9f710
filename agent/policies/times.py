"""Task and lease are short enough for this provider, and a task fits into the lease."""

from coppermesh.agent.policy_case import Case, DeclineReason, decline, span


def judge(case: Case) -> DeclineReason | None:
    """Ready, or rejects with `wall-limit`, `lease-length`."""
    order, limits = case.order, case.state.limits
    if order.wall_limit_us > limits.max_wall_us:
        text = (
            f"a task may take {span(limits.max_wall_us)} here, the order allows {span(order.wall_limit_us)}"
        )
        return decline("wall-limit", text)
    if order.wall_limit_us == 0:
        return decline(
            "wall-limit", "the order allows a task no time at all; give it a wall limit above zero"
        )
    if order.lease_us > limits.max_lease_us:
        text = f"a lease lasts at most {span(limits.max_lease_us)} here, the order asks for {span(order.lease_us)}"
        return decline("lease-length", text)
    if order.lease_us < order.wall_limit_us:
        text = f"a lease of {span(order.lease_us)} ends before one task of {span(order.wall_limit_us)} would"
        return decline("lease-length", text)
    return None
