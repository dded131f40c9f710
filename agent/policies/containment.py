"""The layers of the sandbox without which the owner lends to nobody were witnessed; peers named by `trust` are let
in.
"""

from coppermesh.agent.policy_case import Case, DeclineReason, decline


def judge(case: Case) -> DeclineReason | None:
    """Ready, or rejects with `not-contained`."""
    missing = [layer for layer in case.state.sharing.need_isolation if layer not in case.state.isolation]
    if not missing or case.requester in case.state.allowed:
        return None
    return decline(
        "not-contained", f"the owner lends only with isolation by {', '.join(missing)}, not witnessed there"
    )
