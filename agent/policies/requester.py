"""The owner lets this requester use it."""

from coppermesh.agent.policy_case import Case, DeclineReason, as_decline


def judge(case: Case) -> DeclineReason | None:
    """Ready, or rejects with `denied`, `not-listed`."""
    refused = case.state.sharing.refuses(case.requester)
    return None if refused is None else as_decline(refused)
