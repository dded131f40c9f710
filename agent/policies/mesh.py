"""The order is for this mesh."""

from coppermesh.agent.policy_case import Case, DeclineReason, decline


def judge(case: Case) -> DeclineReason | None:
    """Ready, or rejects with `wrong-mesh`."""
    if case.order.mesh == case.state.mesh:
        return None
    return decline(
        "wrong-mesh", "the order names another mesh than the one it was sent on; join that mesh to use it"
    )
