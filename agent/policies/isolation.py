"""Each isolation layer asked for was witnessed on this machine."""

from coppermesh.agent.policy_case import Case, DeclineReason, decline


def judge(case: Case) -> DeclineReason | None:
    """Ready, or rejects with `isolation`."""
    missing = [layer for layer in case.order.isolation if layer not in case.state.isolation]
    if not missing:
        return None
    return decline(
        "isolation", f"not witnessed on this machine: {', '.join(missing)}; ask for less or elsewhere"
    )
