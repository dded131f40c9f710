"""There is room on the disk for a task's blobs and receipts."""

from coppermesh.agent.lending import DISK_FULL
from coppermesh.agent.policy_case import Case, DeclineReason, decline


def judge(case: Case) -> DeclineReason | None:
    """Ready, or rejects with `disk-full`: a lease would only lead to tasks that are refused."""
    return decline(DISK_FULL.code, DISK_FULL.sentence) if case.state.disk_full else None
