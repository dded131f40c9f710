"""What one small task costs each agent process, and where: python tests/bench/bench_task_cost.py [--tasks N] [--spy]

Two providers and a requester on loopback, warm leases, tasks of 1 KiB in and out: one job of many tasks, then jobs of
one task with 32 in flight. Processor time by proc(5), workers apart. With --spy (py-spy is to be installed) the
functions in which the requester and one provider hold the interpreter follow, by their share.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from coppermesh.agent import bench_peers
from coppermesh.agent.client import Mesh, connect
from coppermesh.agent.demo import await_providers
from coppermesh.agent.local_agents import LocalAgent, local_mesh

TICK = os.sysconf("SC_CLK_TCK")
SPY_SECONDS = 8
LINES = 40


def times(agent: LocalAgent) -> tuple[float, float, float]:
    """Seconds in user code and in the kernel of the agent itself, and of its descendants that live."""
    own = _stat(agent.process.pid)
    below, waiting = 0.0, _children(agent.process.pid)
    while waiting:
        pid = waiting.pop()
        try:
            below += sum(_stat(pid))
            waiting += _children(pid)
        except OSError:
            continue
    return (*own, below)


def _stat(pid: int) -> tuple[float, float]:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / TICK, int(fields[12]) / TICK


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (thread / "children").read_text().split())
    return found


def spy_on(agent: LocalAgent, output: Path) -> subprocess.Popen[bytes]:
    """py-spy on one agent, for `SPY_SECONDS`, only threads that hold the interpreter."""
    line = ["py-spy", "record", "--gil", "-r", "400", "-f", "raw", "-d", str(SPY_SECONDS), "-o", str(output)]
    return subprocess.Popen(
        [*line, "-p", str(agent.process.pid)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def tell_profile(name: str, output: Path) -> None:
    """The functions with the largest shares, what they call included."""
    shares: Counter[str] = Counter()
    total = 0
    for line in output.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        total += int(count)
        for function in {frame.rsplit(":", 1)[0] for frame in stack.split(";")}:
            shares[function] += int(count)
    print(f"\n{name}: {total} samples")
    for function, samples in shares.most_common(LINES):
        print(f"{100 * samples / max(1, total):6.1f} %  {function}")


def measure(
    name: str, run: Callable[[Mesh, np.random.Generator, int], None], tasks: int, spy: bool, base: Path
) -> None:
    """One way of sending tasks, on a mesh of its own."""
    with local_mesh(base / name) as mesh:
        providers = mesh.start(["peer-1", "peer-2"])
        (requester,) = mesh.start(["peer-requester"], "--requester-only")
        agents = [requester, *providers]
        rng = np.random.default_rng(1)
        with connect(requester.home.path) as client:
            await_providers(client, 2)
            run(client, rng, 200)
            spies = []
            if spy:
                spies = [spy_on(agent, base / f"{name}-{agent.name}") for agent in agents[:2]]
            before = [times(agent) for agent in agents]
            own, began = time.process_time(), time.perf_counter()
            run(client, rng, tasks)
            seconds, own = time.perf_counter() - began, time.process_time() - own
            after = [times(agent) for agent in agents]
            for spying in spies:
                spying.wait()
    spent = [
        [1000 * (b - a) / tasks for a, b in zip(x, y, strict=True)]
        for x, y in zip(before, after, strict=True)
    ]
    provider = [sum(column) for column in zip(*spent[1:], strict=True)]
    print(
        f"{name}: {tasks / seconds:.0f} tasks/s; ms of processor per task: requester {sum(spent[0][:2]):.2f} "
        f"({spent[0][0]:.2f} user, {spent[0][1]:.2f} kernel), providers {sum(provider[:2]):.2f} ({provider[0]:.2f} "
        f"user, {provider[1]:.2f} kernel), workers {provider[2]:.2f}, client {1000 * own / tasks:.2f}",
        flush=True,
    )
    for agent in agents[:2] if spy else []:
        tell_profile(f"{name}, {agent.name}", base / f"{name}-{agent.name}")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1500)
    parser.add_argument("--spy", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="coppermesh-bench-") as base:
        measure("one-job", bench_peers.send_one_job, options.tasks, options.spy, Path(base))
        measure("in-flight", bench_peers.send_windowed, options.tasks // 2, options.spy, Path(base))
    return 0


if __name__ == "__main__":
    sys.exit(main())
