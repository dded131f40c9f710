"""Results would still be of use."""

from coppermesh.agent.policy_case import Case, DeclineReason, decline, span


def judge(case: Case) -> DeclineReason | None:
    """Ready, or rejects with `deadline`."""
    late_us = case.now_us - case.order.deadline_us
    if late_us < 0:
        return None
    return decline("deadline", f"the order's deadline was {span(late_us)} ago; order for a later one")
