"""kill -9 of either side at each step between a lease and a countersignature, and a restart on the same home.

Whatever the step: submitted again, the work is done; every receipt ends countersigned; both ledgers agree to the unit;
no task is paid twice; nobody keeps evidence against an honest peer; what a client was told is in both ledgers.

The agent that lives is started first: the others, also when they are started again, find each other through it.
"""

import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.p2p.errors import MeshError

xp = cm.xp

pytestmark = pytest.mark.processes

CRASHING = Path(__file__).with_name("crashing_agent.py")
TASKS = 12
THIRD = "3"
"""Die at the third of its kind: earlier ones are complete, later ones in flight."""
MOST_SECONDS = 180.0
"""How long jobs are submitted until the provider got to its step."""

REQUESTER_STEPS = [
    (when, step, number)
    for step, number in (
        ("LeaseOffered", "1"),
        ("LeaseAgreed", "1"),
        ("TaskIssued", THIRD),
        ("ReceiptSettled", THIRD),
        ("result", THIRD),
    )
    for when in ("before", "after")
]
PROVIDER_STEPS = [
    (when, step, number)
    for step, number in (
        ("LeaseAgreed", "1"),
        ("TaskTaken", THIRD),
        ("ReceiptIssued", THIRD),
        ("result", THIRD),
        ("CountersignatureReceived", THIRD),
    )
    for when in ("before", "after")
]
REPRESENTATIVE = {
    ("requester", "after", "TaskIssued"),
    ("requester", "after", "ReceiptSettled"),
    ("provider", "after", "ReceiptIssued"),
    ("provider", "before", "CountersignatureReceived"),
}


def cases(side: str, steps: list[tuple[str, str, str]]) -> list[Any]:
    """All of them in the slow lane, a few in the quick one."""
    return [
        pytest.param(
            *step,
            id="-".join(step[:2]),
            marks=() if (side, *step[:2]) in REPRESENTATIVE else pytest.mark.slow,
        )
        for step in steps
    ]


def submit(client: cm.Mesh, providers: int, start: int) -> cm.Job:
    arrays = [xp.asarray(np.array([start + number], np.float32)) * 2 for number in range(TASKS)]
    return client.submit_many(arrays, providers=providers)


def told_before_the_crash(client: cm.Mesh, providers: int) -> list[dict[str, Any]]:
    """Receipts of the tasks whose results the client was given before its agent died."""
    job = submit(client, providers, 0)
    with suppress(MeshError):  # raised when the agent is gone
        job.result()
    return job.receipts


def check_told(receipts: list[dict[str, Any]], rows: list[Any]) -> None:
    accepted = {row.id.hex() for row in rows if row.verdict == "accepted"}
    assert {receipt["id"] for receipt in receipts} <= accepted


@pytest.mark.parametrize(("when", "step", "number"), cases("requester", REQUESTER_STEPS))
def test_the_requester_dies(lab, when, step, number):
    lab.start_provider("provider-1")
    program = (str(CRASHING), when, step, number)
    (requester,) = lab.mesh.start(["requester"], "--requester-only", program=program)
    client = lab.client()
    lab.await_providers(client, 1)
    told = told_before_the_crash(client, 1)
    assert requester.process.wait(30) == -signal.SIGKILL
    assert len(told) < TASKS

    lab.mesh.start(["requester"], "--requester-only")
    client = lab.client()
    lab.await_providers(client, 1)
    again = submit(client, 1, 100)
    assert again.result() == [2 * (100 + number) for number in range(TASKS)]
    lab.await_settled("provider-1")
    lab.stop()
    rows = lab.audit("provider-1")
    check_told([*told, *again.receipts], rows)


@pytest.mark.parametrize(("when", "step", "number"), cases("provider", PROVIDER_STEPS))
def test_a_provider_dies(lab, when, step, number):
    lab.start_provider("provider-2")
    victim = lab.start_provider("provider-1", program=(str(CRASHING), when, step, number))
    lab.mesh.start(["requester"], "--requester-only")
    client = lab.client()
    lab.await_providers(client, 2)
    told = []
    give_up = time.monotonic() + MOST_SECONDS
    start = 0
    while (
        victim.process.poll() is None and time.monotonic() < give_up
    ):  # the other may be quicker for a while
        job = submit(client, 2, start)
        assert job.result() == [2 * (start + number) for number in range(TASKS)]
        told += job.receipts
        start += TASKS
    assert victim.process.wait(30) == -signal.SIGKILL

    lab.start_provider("provider-1")
    lab.await_providers(client, 2)
    lab.await_settled("provider-1", "provider-2")
    again = submit(client, 1, 100)
    assert again.result() == [2 * (100 + number) for number in range(TASKS)]
    lab.await_settled("provider-1", "provider-2")
    lab.stop()
    rows = lab.audit("provider-1", "provider-2")
    check_told([*told, *again.receipts], rows)
