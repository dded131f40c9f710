"""The requester's history here is as good as the owner wants; a stranger's is 500 of 1000."""

from coppermesh.agent.policy_case import Case, DeclineReason, decline


def judge(case: Case) -> DeclineReason | None:
    """Ready, or rejects with `reputation`."""
    wanted, state = case.state.sharing.min_reputation, case.state
    if state.requester_score >= wanted or case.requester in state.allowed:
        return None
    text = f"the owner serves requesters with a reputation of {wanted} or more; yours here is {state.requester_score}"
    return decline("reputation", f"{text}: {state.score_reason}" if state.score_reason else text)
