"""An owner edits `config.toml` beside a running agent: bids follow, mistakes are told and change nothing."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from coppermesh.agent.config_file import template
from coppermesh.agent.job_handle import JobFailed
from coppermesh.exec import xp
from coppermesh.p2p.ids import format_peer

pytestmark = pytest.mark.processes


def run_cli(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coppermesh.agent.cli", *arguments, "--home", str(home)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def replace_as_editors_do(path: Path, text: str) -> None:
    fresh = path.with_name(".config.toml.swp")
    fresh.write_text(text)
    fresh.rename(path)


def test_the_file_is_followed_while_the_agent_runs(lab):
    client = lab.start(1)
    provider = lab.mesh.home("provider-1")
    mesh_line = provider.config_path.read_text()
    me = format_peer(lab.mesh.peer_of("requester"))
    asked = lab.client("provider-1")

    def status() -> dict[str, object]:
        return dict(lab.ask(asked, "status"))

    def from_file(key: str) -> object:
        return lab.ask(asked, "config")["settings"][key]["value"]

    assert client.compute(xp.asarray([1.0]) + 1) == 2.0
    replace_as_editors_do(provider.config_path, f'{mesh_line}[sharing]\ndeny = ["{me}"]\n')
    lab.wait_until(lambda: from_file("sharing.deny") == [me], "the deny list taken")
    with pytest.raises(JobFailed) as failure:
        client.compute(xp.asarray([1.0]) + 1, deadline_s=1.5)
    assert "the owner of this provider takes no work from this requester" in str(failure.value)
    told = run_cli("explain", lab.ask(client, "jobs")[0]["job"], home=lab.mesh.home("requester").path)
    assert "denied: the owner of this provider takes no work from this requester" in told.stdout

    provider.config_path.write_text(f"{mesh_line}[sharing]\ndeny = [\npaused = flase\n")
    lab.wait_until(lambda: status()["settings_error"], "the mistake told")
    shown = run_cli("config", home=provider.path)
    assert (shown.returncode, "those before stay" in shown.stdout) == (5, True), shown
    checked = run_cli("config", "check", home=provider.path)
    assert checked.returncode == 5
    assert "line 4" in checked.stderr
    assert "settings   those before stay: " in run_cli("status", home=provider.path).stdout
    assert from_file("sharing.deny") == [me], "nothing is lost by a mistake"
    assert "settings not taken" in (provider.path / "agent.log").read_text()

    provider.config_path.write_text(f"{mesh_line}rate = 77\n[sharing]\ndeny = []\n")
    lab.wait_until(lambda: from_file("rate") == 77 and not from_file("sharing.deny"), "the cure taken")
    assert status()["settings_error"] is None
    assert run_cli("config", "check", home=provider.path).returncode == 0
    job = client.submit(xp.asarray([1.0]) + 1)
    assert job.result() == 2.0


def test_why_it_is_not_lent_is_shown_and_a_pause_survives_kill_9(lab):
    (agent,) = lab.mesh.start(["provider-1"])
    home = agent.home.path
    assert run_cli("pause", "--now", home=home).returncode == 0
    shown = "not lent   paused by its owner; `coppermesh resume` ends it"
    assert shown in run_cli("status", home=home).stdout
    agent.process.kill()
    agent.process.wait()
    lab.mesh.start(["provider-1"])
    assert shown in run_cli("status", home=home).stdout
    assert "resumed: taking leases" in run_cli("resume", home=home).stderr
    facts = json.loads(run_cli("status", "--json", home=home).stdout)
    assert (facts["paused"], facts["not_lending"]) == (False, [])


def test_the_first_start_leaves_a_file_that_explains_itself(lab, tmp_path):
    home = tmp_path / "new"
    command = [sys.executable, "-m", "coppermesh.agent.cli", "agent", "--home", str(home), "--json"]
    with subprocess.Popen([*command, "--until-eof"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        assert json.loads(agent.stdout.readline())["ready"]
        shown = json.loads(run_cli("config", "--json", home=home).stdout)
        agent.communicate(timeout=60)
    assert (home / "config.toml").read_text() == template()
    assert stat.S_IMODE(os.stat(home / "config.toml").st_mode) == 0o600
    assert {entry["from"] for key, entry in shown["settings"].items() if key != "listen"} == {"default"}
    assert shown["settings"]["listen"]["from"] == "environment", "as tests are kept on loopback"
    assert run_cli("config", home=home).stdout.startswith("SETTING"), "also without an agent"
