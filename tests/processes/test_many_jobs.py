"""Five hundred small jobs in a row: every receipt on both sides, and nothing left over from any of them."""

from pathlib import Path

import numpy as np
import pytest

import coppermesh as cm

xp = cm.xp

pytestmark = pytest.mark.processes

JOBS = 500
FIRST = 50
"""After so many, whatever is opened once is open."""
PROVIDERS = ("provider-1", "provider-2", "provider-3")


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_500_jobs_over_three_providers_leave_500_receipts_and_nothing_else(lab):
    client = lab.start(len(PROVIDERS))
    agents = {agent.name: agent.process.pid for agent in lab.mesh.agents}

    def in_use() -> dict[str, tuple[int, int, int]]:
        """Open files, child processes and trio tasks of every agent."""
        return {
            name: (
                open_files(pid),
                len(lab.descendants(pid)),
                lab.ask(lab.client(name), "status")["trio_tasks"],
            )
            for name, pid in agents.items()
        }

    def nothing_under_way() -> bool:
        status = lab.ask(client, "status")
        return not status["jobs_open"] and not status["results_waiting"]

    seen = set()
    for number in range(JOBS):
        if number == FIRST:
            lab.wait_until(nothing_under_way, "first jobs concluded")
            before = in_use()
        job = client.submit(xp.asarray(np.float32([number])) * 2, providers=3)
        assert job.result() == 2 * number
        seen.add(job.receipt["id"])
    assert len(seen) == JOBS

    def no_more_than_before() -> bool:
        now = in_use()
        return all(
            count <= earlier
            for name in agents
            for count, earlier in zip(now[name], before[name], strict=True)
        )

    lab.await_settled(*PROVIDERS)
    # Asking opens a connection and starts a task, and a lease may just be changing hands: wait for a quiet moment.
    lab.wait_until(no_more_than_before, "no more files, processes and tasks than after the first jobs")
    lab.stop()
    rows = lab.audit(*PROVIDERS)
    assert {row.id.hex() for row in rows} == seen
    assert all(row.verdict == "accepted" for row in rows)
    assert len({row.peer for row in rows}) == len(PROVIDERS)
