"""The owner lets others use the machine now: it is not paused, and these are its hours."""

from coppermesh.agent.policy_case import Case, DeclineReason, as_decline


def judge(case: Case) -> DeclineReason | None:
    """Ready, or rejects with `paused`, `out-of-hours`."""
    closed = case.state.sharing.closed(case.state.paused, case.now_us)
    return None if closed is None else as_decline(closed)
