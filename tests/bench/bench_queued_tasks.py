"""Memory of a requester's agent with many tasks queued: python tests/bench/bench_queued_tasks.py [TASKS]

No provider is there, so that all of them wait; the resident memory of the agent's process is read before and after.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import coppermesh as cm
from coppermesh.agent.client import connect
from coppermesh.agent.local_agents import local_mesh
from coppermesh.agent.parcels import PreparedTask
from coppermesh.exec.tracing import trace

xp = cm.xp


def resident_kib(pid: int) -> int:
    """VmRSS (proc(5))."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError("no VmRSS")


def main() -> None:
    tasks = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    task = PreparedTask.of(trace(xp.asarray(np.zeros(16, np.float32)) + 1))
    with tempfile.TemporaryDirectory(prefix="coppermesh-bench-") as base, local_mesh(Path(base)) as mesh:
        (agent,) = mesh.start(["requester"], "--requester-only")
        with connect(agent.home.path) as client:
            before = resident_kib(agent.process.pid)
            started = time.monotonic()
            job = client.submit_prepared([task] * tasks, deadline_s=600.0)
            seconds = time.monotonic() - started
            time.sleep(1.0)
            after = resident_kib(agent.process.pid)
            job.cancel()
    growth = 1024 * (after - before)
    facts = {"tasks": tasks, "before_kib": before, "after_kib": after, "bytes_per_task": growth / tasks}
    sys.stdout.write(json.dumps({**facts, "submit_s": round(seconds, 2)}) + "\n")


if __name__ == "__main__":
    main()
