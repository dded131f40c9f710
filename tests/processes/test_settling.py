"""Two real agents work, state, settle and compare by the command line; either is put back to an old backup."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coppermesh as cm

xp = cm.xp
pytestmark = [pytest.mark.processes, pytest.mark.slow]


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One command of the command line on a home."""
    verb, *rest = arguments
    command = [sys.executable, "-m", "coppermesh.agent.cli", verb, *rest, "--home", str(home), "--json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def facts(home: Path, *arguments: str) -> Any:
    done = run(home, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def work(client: cm.Mesh, tasks: int, start: int = 0) -> None:
    arrays = [xp.asarray(np.full(4, start + number, np.float32)) + 1 for number in range(tasks)]
    for number, result in enumerate(client.submit_many(arrays).result(timeout=60)):
        np.testing.assert_array_equal(result, start + number + 1)


def test_work_is_stated_settled_proven_and_the_same_on_both_sides(lab, tmp_path):
    client = lab.start(1)
    provider, requester = lab.mesh.home("provider-1").path, lab.mesh.home("requester").path
    names = {home: facts(home, "id")["peer"] for home in (provider, requester)}
    work(client, 20)
    lab.await_settled("provider-1")
    assert facts(requester, "ledger", "compare", names[provider])["same"]
    signed = facts(requester, "statement", "propose", names[provider])
    assert signed["signed_by_both"]
    assert signed["receipts"] == 20
    (there,) = facts(provider, "statement", "show")
    assert (there["id"], there["net"], there["state"]) == (signed["id"], -signed["net"], "vouched")
    assert facts(provider, "statement", "settle", signed["id"][:12])["undelivered"] == ""
    for home in names:
        assert facts(home, "statement", "show")[0]["state"] == "settled"
        (line,) = facts(home, "ledger")
        assert (line["net"], line["stated"]) == (0, 0)
        assert facts(home, "ledger", "audit")["ok"]
    receipt = facts(requester, "receipts")[7]["id"]
    place = tmp_path / "place.bin"
    assert run(requester, "statement", "prove", receipt, "-o", str(place)).returncode == 0
    assert facts(requester, "receipts", "verify", str(place))["statement"]["id"] == signed["id"]
    assert facts(requester, "reputation", names[provider])[0]["score"] > 900
    assert run(requester, "statement", "propose", names[provider]).returncode == 1, "nothing is left to state"


@pytest.mark.parametrize("side", ["provider-1", "requester"])
def test_an_old_backup_is_put_back_and_nobody_has_a_proof_against_its_owner(lab, tmp_path, side):
    client = lab.start(1)
    home = lab.mesh.home(side).path
    names = {one: facts(lab.mesh.home(one).path, "id")["peer"] for one in ("provider-1", "requester")}
    work(client, 6)
    lab.await_settled("provider-1")
    assert facts(home, "ledger", "backup", str(tmp_path / "old"))["receipts"] == 6
    work(client, 6, 100)
    lab.await_settled("provider-1")
    facts(lab.mesh.home("requester").path, "statement", "propose", names["provider-1"])
    assert run(home, "ledger", "restore", str(tmp_path / "old")).returncode == 4, "an agent runs"
    assert run(home, "stop").returncode == 0
    agent = next(one for one in lab.mesh.agents if one.name == side)
    agent.process.wait(60)
    assert facts(home, "ledger", "restore", str(tmp_path / "old"))["receipts"] == 6
    if side == "requester":
        lab.mesh.start(["requester"], "--requester-only")
    else:
        lab.start_provider(side)
    client = lab.client()
    lab.await_providers(client, 1)
    work(client, 6, 200)
    lab.await_settled("provider-1")
    other = "requester" if side == "provider-1" else "provider-1"
    found = json.loads(run(home, "ledger", "compare", names[other]).stdout)
    assert not found["same"]
    assert found["first"]["what"] == "only-there"
    assert facts(home, "statement", "propose", names[other])["number"] == 1, "it took back what it had signed"
    for one in names:
        assert facts(lab.mesh.home(one).path, "receipts", "proof") == []
        assert facts(lab.mesh.home(one).path, "ledger", "audit")["ok"]
