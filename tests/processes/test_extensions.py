"""A lease that outlasts its first agreement, between real processes: extended, killed at the extension, taken back."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.agent import cli
from coppermesh.agent.ledger_audit import audit_ledger
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import mesh_id

xp = cm.xp

pytestmark = [pytest.mark.processes, pytest.mark.slow]

SHORT = str(Path(__file__).with_name("short_lease_agent.py"))
SIDE = 1000
MANY = 500
"""More tasks than any test waits for: each ends its job when it has seen enough."""


def submit(client: cm.Mesh, count: int) -> cm.Job:
    """Tasks of some tenths of a second each."""
    ones = xp.ones((SIDE, SIDE), dtype=np.float32)
    inputs = [xp.asarray(np.array([number], np.float32)) for number in range(count)]
    return client.submit_many(
        [(ones @ ones @ (ones * value)).sum() for value in inputs], wall_limit_s=1.0, deadline_s=300.0
    )


def check(client: cm.Mesh) -> None:
    """A small job, from its beginning to its right end."""
    results = [float(result) for result in submit(client, 4).result()]
    assert results == pytest.approx([float(SIDE) ** 4 * number for number in range(4)], rel=1e-4)


def await_extension(lab: Any, client: cm.Mesh, job: cm.Job) -> None:
    def told() -> bool:
        try:
            return '"extended"' in json.dumps(lab.ask(client, "explain", job=job.id))
        except Refused:  # its first line is not written yet
            return False

    lab.wait_until(told, "an extension", 90.0)


def done(lab: Any, client: cm.Mesh, job: cm.Job) -> int:
    return next(int(row["done"]) for row in lab.ask(client, "jobs") if row["job"] == job.id)


def extensions(lab: Any, name: str) -> int:
    report = audit_ledger(lab.mesh.home(name).ledger_path(mesh_id(lab.mesh.name)))
    assert report.fault is None, report.fault
    return int(report.counts.get("extension", 0))


def test_a_lease_is_extended_by_both_and_both_ledgers_know(lab):
    lab.start_provider("provider-1", program=(SHORT,))
    lab.mesh.start(["requester"], "--requester-only", program=(SHORT,))
    client = lab.client()
    lab.await_providers(client, 1)
    job = submit(client, MANY)
    await_extension(lab, client, job)
    job.cancel()
    check(client)
    lab.await_settled("provider-1")
    lab.stop()
    lab.audit("provider-1")
    assert extensions(lab, "requester") == extensions(lab, "provider-1") >= 1


@pytest.mark.parametrize("victim", ["provider-1", "requester"])
def test_who_dies_right_after_signing_an_extension_comes_back_with_a_whole_ledger(lab, victim):
    """What the provider signed before it died, the requester may never hear of: nothing but time hangs on it."""
    dying = (SHORT, "after", "LeaseExtended", "1")
    provider = lab.start_provider("provider-1", program=dying if victim == "provider-1" else (SHORT,))
    (requester,) = lab.mesh.start(
        ["requester"], "--requester-only", program=dying if victim == "requester" else (SHORT,)
    )
    client = lab.client()
    lab.await_providers(client, 1)
    job = submit(client, MANY)
    dead = provider if victim == "provider-1" else requester
    assert dead.process.wait(90) == -signal.SIGKILL
    if victim == "provider-1":
        lab.start_provider(victim, program=(SHORT,))
        before = done(lab, client, job)
        lab.wait_until(lambda: done(lab, client, job) > before, "the job goes on", 90.0)
        job.cancel()
    else:
        lab.mesh.start([victim], "--requester-only", program=(SHORT,))
        client = lab.client()
    lab.await_providers(client, 1)
    check(client)
    lab.await_settled("provider-1")
    lab.stop()
    lab.audit("provider-1")
    assert extensions(lab, "provider-1") >= 1
    assert extensions(lab, "provider-1") >= extensions(lab, "requester")


def test_an_owner_who_takes_the_device_back_extends_nothing_and_another_goes_on(lab, capsys):
    for name in ("provider-1", "provider-2"):
        lab.start_provider(name, program=(SHORT,))
    lab.mesh.start(["requester"], "--requester-only", program=(SHORT,))
    client = lab.client()
    lab.await_providers(client, 2)
    job = submit(client, MANY)
    busy = lab.client("provider-1")
    lab.wait_until(lambda: lab.ask(busy, "status")["leases_serving"], "a lease at provider-1")
    assert cli.main(["reclaim", "--home", str(lab.mesh.home("provider-1").path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    await_extension(lab, client, job)
    job.cancel()
    lab.await_settled("provider-1", "provider-2")
    lab.stop()
    lab.audit("provider-1", "provider-2")
    assert extensions(lab, "provider-1") == 0
    assert extensions(lab, "provider-2") >= 1
