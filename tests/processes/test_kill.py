"""kill -9 of a provider in the middle of a task: the job goes on elsewhere, and nothing of the dead one is left."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.agent.local_agents import LocalAgent
from coppermesh.p2p.ids import parse_peer

xp = cm.xp

pytestmark = pytest.mark.processes

SPIN = r"""
extern "C" __global__ void spin(float* out, long long rounds) {
    float value = out[0];
    for (long long i = 0; i < rounds; ++i) value = value * 0.999f + 0.001f * (i % 7);
    out[0] = value;
}
"""
ROUNDS = 1_000_000_000
"""A second or more on any machine: each round waits for the one before."""
BUSY_TICKS = 10
"""Processor time (0.1 s) that a worker spends on nothing but this kernel."""


def spin(start: float, rounds: int) -> cm.Array:
    y: cm.Array = xp.full(1, start, dtype=xp.float32)
    cm.RawKernel(SPIN, "spin")((1,), (1,), (y, np.int64(rounds)))
    return y


def ticks(pid: int) -> int:
    """User time of a process (proc(5), field 14); 0 where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])
    except OSError:
        return 0


def running(pid: int) -> bool:
    """Is there such a process, and not only its entry waiting to be collected?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_kill_9_of_a_provider_in_the_middle_of_a_task(lab):
    client = lab.start(2)
    providers: list[LocalAgent] = [agent for agent in lab.mesh.agents if agent.name.startswith("provider")]
    # Both build the kernel: what follows spends its time in it.
    client.submit_many([spin(0.0, 1), spin(1.0, 1)], providers=2).result()
    lab.await_settled("provider-1", "provider-2")
    spent = {pid: ticks(pid) for agent in providers for pid in lab.descendants(agent.process.pid)}
    job = client.submit(spin(4.0, ROUNDS))

    def at_work() -> LocalAgent | None:
        for agent in providers:
            for pid in lab.descendants(agent.process.pid):
                if ticks(pid) - spent.get(pid, 0) >= BUSY_TICKS:
                    return agent
        return None

    victim = lab.wait_until(at_work, "a worker computes")
    family = lab.descendants(victim.process.pid)
    os.kill(victim.process.pid, signal.SIGKILL)
    victim.process.wait(10)
    assert len(family) >= 2, "its zygote and its worker"
    lab.wait_until(lambda: not any(running(pid) for pid in family), "zygote and workers gone", 5.0)

    assert job.result().shape == (1,)
    (other,) = (agent for agent in providers if agent is not victim)
    assert job.receipt["provider"] == other.ready["peer"]

    def told() -> list[tuple[str, str]]:
        lines = lab.ask(client, "explain", job=job.id)["lines"]
        return [(line["kind"], line["peer"]) for line in lines if line["peer"]]

    lab.wait_until(lambda: ("accepted", other.ready["peer"]) in told(), "the story is written")
    story = told()
    assert story.index(("task", victim.ready["peer"])) < story.index(("lease-ended", victim.ready["peer"]))
    assert story.index(("lease-ended", victim.ready["peer"])) < story.index(("retry", other.ready["peer"]))
    lab.await_settled(other.name)
    lab.stop()
    rows = lab.audit("provider-1", "provider-2")
    assert [row.peer for row in rows if row.job.hex() == job.id] == [parse_peer(other.ready["peer"])]


def zygote_of(lab, agent: LocalAgent) -> int:
    """The zygote that the agent started, of however many processes it is."""
    found: set[int] = lab.descendants(agent.process.pid)
    for pid in sorted(found):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if int(fields[1]) == agent.process.pid:
            return pid
    raise AssertionError("the agent has no child")


@pytest.mark.slow
def test_kill_9_of_the_zygote_in_the_middle_of_a_job(lab):
    """The only provider loses its zygote twice; its workers go with it, another one comes, and the job is finished.

    Tasks that wait go on at once; the two that were lost are tried again after the minute for which a provider that
    failed is left out.
    """
    client = lab.start(1)
    (provider,) = (agent for agent in lab.mesh.agents if agent.name.startswith("provider"))
    client.submit_many([spin(0.0, 1)]).result()
    starts = [float(number) for number in range(6)]
    job = client.submit_many([spin(start, ROUNDS // 4) for start in starts])
    for _ in range(2):
        zygote = zygote_of(lab, provider)
        spent = {pid: ticks(pid) for pid in lab.descendants(zygote)}

        def at_work(zygote: int = zygote, spent: dict[int, int] = spent) -> bool:
            return any(ticks(pid) - spent.get(pid, 0) >= 5 * BUSY_TICKS for pid in lab.descendants(zygote))

        lab.wait_until(at_work, "a worker computes")
        family = lab.descendants(zygote)
        os.kill(zygote, signal.SIGKILL)
        lab.wait_until(
            lambda family=family, zygote=zygote: not any(running(pid) for pid in (zygote, *family)),
            "the zygote and its workers are gone",
            1.0,
        )
        lab.wait_until(
            lambda zygote=zygote: (
                any(pid != zygote for pid in lab.descendants(provider.process.pid))
                and zygote_of(lab, provider) != zygote
            ),
            "another zygote",
        )
    results = job.result()
    assert [result.shape for result in results] == [(1,)] * len(starts)
    lab.await_settled(provider.name)
    lab.stop()
    lab.audit("provider-1")
