"""Tasks over four providers for a minute, with twelve kill -9 of either side, each step of the protocol among them.

Each victim dies at a step of its own (`crashing_agent.py`) and is started again on its home; two more die wherever they
are. All results are right, every receipt ends countersigned, both sides' ledgers agree to the unit, their audits are
clean, no task is paid twice, and what a client was told is in both ledgers.
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.agent import cli
from coppermesh.agent.local_agents import COMMAND_LINE, LocalAgent
from coppermesh.p2p.errors import MeshError

xp = cm.xp

pytestmark = [pytest.mark.processes, pytest.mark.slow]

CRASHING = Path(__file__).with_name("crashing_agent.py")
PROVIDERS = 4
TASKS = 24
LEAST_SECONDS = 60.0
MOST_SECONDS = 450.0
PATIENCE_SECONDS = 40.0
"""A provider that lost three tasks of the requester rests for an hour and never gets to its next step. When nobody died
for so long, the requester is killed once more: started again, it gives everyone tasks."""
KILL = ("kill", "", "")
STEPS: dict[str, list[tuple[str, str, str]]] = {
    "provider-2": [("after", "LeaseAgreed", "1"), ("after", "TaskTaken", "2")],
    "provider-3": [("before", "ReceiptIssued", "2"), ("after", "result", "2")],
    "provider-4": [("before", "CountersignatureReceived", "2"), KILL],
    "requester": [
        ("after", "LeaseOffered", "1"),
        ("before", "LeaseAgreed", "1"),
        ("after", "TaskIssued", "3"),
        ("before", "ReceiptSettled", "3"),
        ("after", "result", "3"),
        KILL,
    ],
}
"""Where each dies, one after the other: before or after a ledger's commit or an answer, or at any moment. Never the
first: it is through it that the others find each other again."""


class Work:
    """Batches of tasks whose results are known, and every receipt that the client was told of."""

    def __init__(self, lab: Any) -> None:
        self.lab = lab
        self.client = lab.client()
        self.told: list[dict[str, Any]] = []
        self.batches = 0
        self.start = 0

    def batch(self) -> None:
        """One batch to its end; submitted again where its agent dies meanwhile."""
        self.start += TASKS
        want = [2.0 * (self.start + number) for number in range(TASKS)]
        arrays = [xp.asarray(np.array([self.start + number], np.float32)) * 2 for number in range(TASKS)]
        job = self.client.submit_many(arrays, providers=PROVIDERS, deadline_s=120.0)
        try:
            assert [float(result[0]) for result in job.result()] == want
            self.batches += 1
        finally:
            self.told += job.receipts


def start(lab: Any, name: str, step: tuple[str, str, str] | None) -> LocalAgent:
    """Start the agent of that name on its home; it dies at `step`."""
    program = COMMAND_LINE if step in (None, KILL) else (str(CRASHING), *(step or ()))
    if name == "requester":
        agent: LocalAgent = lab.mesh.start([name], "--requester-only", program=program)[0]
        return agent
    provider: LocalAgent = lab.start_provider(name, program=program)
    return provider


class Deaths:
    """Starts each agent with its next step, and again when it has died there."""

    def __init__(self, lab: Any) -> None:
        self.lab = lab
        self.left = {name: list(steps) for name, steps in STEPS.items()}
        self.count = 0
        self.extra = 0
        self.last = time.monotonic()
        self.agents: dict[str, LocalAgent] = {}
        for name in sorted(STEPS):
            self.agents[name] = start(lab, name, self.left[name][0])

    def look(self) -> bool:
        """Start again who has died; true where the requester was among them."""
        died = []
        if any(self.left.values()) and time.monotonic() - self.last > PATIENCE_SECONDS:
            self.extra += 1
            self.left["requester"].insert(0, KILL)
        for name, agent in self.agents.items():
            if self.left[name] and self.left[name][0] == KILL and agent.process.poll() is None:
                os.kill(agent.process.pid, signal.SIGKILL)
                agent.process.wait(10)
            if agent.process.poll() is not None:
                assert agent.process.returncode == -signal.SIGKILL, name
                died.append(name)
        for name in died:
            self.count += 1
            self.last = time.monotonic()
            del self.left[name][0]
            self.agents[name] = start(self.lab, name, next(iter(self.left[name]), None))
        return "requester" in died


def test_a_minute_of_tasks_with_twelve_deaths(lab, capsys):
    began = time.monotonic()
    lab.start_provider("provider-1")
    deaths = Deaths(lab)
    work = Work(lab)
    whole = 0
    while any(deaths.left.values()) or not whole or time.monotonic() - began < LEAST_SECONDS:
        assert time.monotonic() - began < MOST_SECONDS, f"still to die: {deaths.left}"
        try:
            work.batch()
            whole += not any(deaths.left.values())
        except MeshError:  # its own agent is gone
            deaths.agents["requester"].process.wait(30)
        if deaths.look():
            work.client = lab.client()
    assert deaths.count - deaths.extra == sum(map(len, STEPS.values())) == 12
    names = [f"provider-{number + 1}" for number in range(PROVIDERS)]
    lab.await_settled(*names)
    lab.stop()
    rows = lab.audit(*names)
    accepted = {row.id.hex() for row in rows if row.verdict == "accepted"}
    assert {receipt["id"] for receipt in work.told} <= accepted, "nothing acknowledged is lost"
    assert len(work.told) >= TASKS * work.batches
    capsys.readouterr()
    for name in [*names, "requester"]:
        assert cli.main(["ledger", "audit", "--home", str(lab.mesh.home(name).path), "--json"]) == 0, name
        assert json.loads(capsys.readouterr().out)["ok"], name
