"""The requester has answered the receipts of its earlier tasks: what it may leave unpaid is used up otherwise."""

from coppermesh.agent.policy_case import Case, DeclineReason, decline


def judge(case: Case) -> DeclineReason | None:
    """Ready, or rejects with `unpaid`."""
    return decline("unpaid", case.state.unpaid) if case.state.unpaid else None
