"""A full disk or store on one side: said clearly, survived, nothing acknowledged lost, and over when there is room."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.agent.client import connect
from coppermesh.agent.job_handle import JobFailed
from coppermesh.agent.local_agents import LocalAgent
from coppermesh.p2p.ids import mesh_id

xp = cm.xp

pytestmark = pytest.mark.processes

SMALL_DISK = Path(__file__).with_name("small_disk_agent.py")
MEBIBYTES = 80
"""What the blob store leaves alone (64 MiB), and a little."""
QUOTA = 1 << 20
BUSY_TICKS = 10
"""Processor time (0.1 s) that a worker spends on nothing but a slow program."""


@pytest.fixture
def small_disk(tmp_path: Path) -> tuple[str, str]:
    """The program of an agent with a small disk; skips where this machine does not let us mount one."""
    probe = tmp_path / "probe"
    probe.mkdir()
    line = [sys.executable, str(SMALL_DISK), "1", "--home", str(probe)]
    script = (
        "import runpy, sys, subprocess;"
        f"names = runpy.run_path({str(SMALL_DISK)!r});"
        f"sys.exit(subprocess.run(names['command']('1', {str(probe)!r}, 'true'), check=False).returncode)"
    )
    if shutil.which("unshare") is None or subprocess.run([line[0], "-c", script], check=False).returncode:
        pytest.skip("this machine does not let us mount a small tmpfs")
    return str(SMALL_DISK), str(MEBIBYTES)


def disk_of(agent: LocalAgent) -> Path:
    """The agent's home as it sees it itself."""
    return Path(f"/proc/{agent.process.pid}/root{agent.home.path}")


def fill(agent: LocalAgent) -> Path:
    """Take every free byte; deleting the returned file gives them back."""
    filler = disk_of(agent) / "filler"
    with filler.open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(bytes(1 << 16)):
                pass
    free = os.statvfs(filler)
    assert free.f_bavail == 0
    return filler


def keep_ledger(lab: Any, agent: LocalAgent) -> None:
    """Copy the ledger to where it outlives the disk, for the audit. Nothing may be under way."""
    place = agent.home.ledger_path(mesh_id(lab.mesh.name))
    inside = disk_of(agent) / place.relative_to(agent.home.path)
    for suffix in ("", "-wal"):
        found = inside.with_name(inside.name + suffix)
        if found.exists():
            shutil.copy(found, place.with_name(place.name + suffix))


def add_one(client: cm.Mesh, value: float, **options: Any) -> float:
    return float(client.compute(xp.asarray(np.array([value], np.float32)) + 1, **options)[0])


def refusal_of(lab: Any, client: cm.Mesh, value: float) -> str:
    """What the story says about a job that nobody could take."""
    with pytest.raises(JobFailed) as failure:
        add_one(client, value, deadline_s=2.0)
    return "\n".join(lab.ask(client, "explain", job=failure.value.job)["text"])


@pytest.mark.slow
@pytest.mark.parametrize("value", [1.0, 7.0], ids=["known-blobs", "new-blobs"])
def test_a_provider_with_a_full_disk_takes_no_work_says_why_and_works_again(lab, small_disk, value):
    provider = lab.start_provider("provider-1", "--mesh", lab.mesh.name, program=small_disk)
    lab.mesh.start(["requester"], "--requester-only")
    client = lab.client()
    lab.await_providers(client, 1)
    job = client.submit(xp.asarray(np.float32([1.0])) + 1)
    assert job.result() == 2.0
    filler = fill(provider)
    status = connect(disk_of(provider))
    lab.wait_until(lambda: not lab.ask(status, "status")["leases_serving"], "the lease ends")
    (reason,) = lab.ask(status, "status")["not_lending"]
    assert (reason["code"], "free some space" in reason["sentence"]) == ("disk-full", True)
    told = refusal_of(lab, client, value)
    assert "disk-full: the provider's disk is full" in told, told
    assert "has no room on disk" in told, told
    assert provider.process.poll() is None
    filler.unlink()
    assert add_one(client, 3.0) == 4.0
    lab.await_settled_at(connect(disk_of(provider)))
    keep_ledger(lab, provider)
    lab.stop()
    rows = lab.audit("provider-1")
    assert rows[0].id.hex() == job.receipt["id"]
    assert [row.verdict for row in rows] == ["accepted"] * len(rows)


def slow_sum(terms: int = 60) -> cm.Array:
    """Some seconds of array operations with a few bytes in and out."""
    x: cm.Array = xp.arange(4_000_000, dtype=xp.float32)
    for _ in range(terms):
        x = xp.sin(x)
    total: cm.Array = xp.sum(x)
    return total


def ticks_below(lab: Any, agent: LocalAgent) -> int:
    """User time of everything that an agent started (proc(5), field 14)."""
    spent = 0
    for pid in lab.descendants(agent.process.pid):
        try:
            spent += int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])
        except OSError:
            continue
    return spent


def test_a_requester_with_a_full_disk_says_so_and_settles_when_there_is_room(lab, small_disk):
    provider = lab.start_provider("provider-1")
    options = ("--requester-only", "--mesh", lab.mesh.name)
    (requester,) = lab.mesh.start(["requester"], *options, program=small_disk)
    client = connect(disk_of(requester))
    lab.await_providers(client, 1)
    assert add_one(client, 1.0) == 2.0
    before = ticks_below(lab, provider)
    job = client.submit(slow_sum())
    lab.wait_until(lambda: ticks_below(lab, provider) - before >= BUSY_TICKS, "a worker computes")
    filler = fill(requester)
    lab.wait_until(lambda: "not countersigned yet" in provider.log_path.read_text(), "the result is refused")
    for known_or_new in (1.0, 7.0):
        with pytest.raises(cm.MeshError, match="disk"):
            add_one(client, known_or_new)
    assert requester.process.poll() is None
    filler.unlink()
    with pytest.raises(JobFailed, match="cannot be kept here"):
        job.result()
    assert add_one(client, 3.0) == 4.0
    lab.await_settled("provider-1")
    keep_ledger(lab, requester)
    lab.stop()
    rows = lab.audit("provider-1")
    assert [row.verdict for row in rows if row.job.hex() == job.id] == ["disputed"], "nobody got that result"
    assert [row.verdict for row in rows if row.job.hex() != job.id] == ["accepted"] * 2


@pytest.mark.slow
def test_a_provider_whose_store_is_too_small_for_a_job_says_so_and_serves_others(lab):
    quota = f'mesh = "{lab.mesh.name}"\nstore_bytes = {QUOTA}\n'
    lab.mesh.home("provider-1").config_path.write_text(quota)
    client = lab.start(1)
    large = np.random.default_rng(1).random(QUOTA // 4, dtype=np.float32)
    with pytest.raises(JobFailed) as failure:
        client.compute(xp.asarray(large) + 1, deadline_s=3.0)
    told = "\n".join(lab.ask(client, "explain", job=failure.value.job)["text"])
    assert "store-full" in told
    assert add_one(client, 1.0) == 2.0
    lab.await_settled("provider-1")
    lab.stop()
    assert len(lab.audit("provider-1")) == 1


def test_a_store_too_small_for_an_array_refuses_it_at_once(lab):
    quota = f'mesh = "{lab.mesh.name}"\nstore_bytes = {QUOTA}\n'
    lab.mesh.home("requester").config_path.write_text(quota)
    client = lab.start(1)
    large = np.random.default_rng(1).random(QUOTA, dtype=np.float32)
    with pytest.raises(cm.MeshError, match="store_bytes"):
        client.compute(xp.asarray(large) + 1)
    assert add_one(client, 1.0) == 2.0
