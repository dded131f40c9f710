"""Real agents on machines that differ: `doctor network` names each cause, and two providers hold to a quota."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.agent.home import Home
from coppermesh.agent.local_agents import COMMAND_LINE
from coppermesh.agent.local_link import LocalLink, socket_alive

pytestmark = [pytest.mark.processes, pytest.mark.slow]

SHIFTED = Path(__file__).with_name("shifted_agent.py")
SETTINGS = 'listen = "/ip4/127.0.0.1/tcp/0"\nprovide = false\n[network]\nmdns = false\n'
MONTH = 31 * 86_400


class Agents:
    """Homes under one directory, each agent on a machine of its own kind."""

    def __init__(self, base: Path, eventually: Any) -> None:
        self.base = base
        self._eventually = eventually
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def home(self, name: str) -> Home:
        home = Home(self.base / name)
        home.prepare()
        if not home.config_path.exists():
            home.config_path.write_text(SETTINGS)
        return home

    def start(
        self, name: str, *options: str, ahead: float = 0, software: str = "-", honesty: str | None = None
    ) -> dict[str, Any]:
        home = self.home(name)
        command = [sys.executable, str(SHIFTED), str(ahead), software]
        command += [*([] if honesty is None else [honesty]), "agent", "--home", str(home.path)]
        with home.log_path.open("ab") as log:
            process = subprocess.Popen(
                [*command, "--until-eof", "--json", *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._running[name] = process
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, home.log_path.read_text()
        self._eventually(lambda: socket_alive(home.socket_path), f"{name} is ready")
        return dict(json.loads(line))

    def stop(self, name: str) -> None:
        process = self._running.pop(name)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.wait(30)
        process.stdout.close()

    def close(self) -> None:
        for name in list(self._running):
            self.stop(name)

    def command(self, name: str, *words: str) -> Any:
        command = [sys.executable, *COMMAND_LINE, *words, "--home", str(self.home(name).path), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def findings(self, name: str) -> dict[str, dict[str, Any]]:
        told = self.command(name, "doctor", "network")
        return {finding["name"]: finding for finding in told["findings"]}

    def until_found(self, name: str, finding: str) -> dict[str, Any]:
        found = self._eventually(lambda: self.findings(name).get(finding), f"{name} is told {finding}")
        return dict(found)

    def connected(self, name: str, mesh: str = "") -> int:
        with LocalLink(self.home(name).socket_path, mesh=mesh) as link:
            rows = json.loads(link.call_json("peers"))["peers"]
        return sum(row["connected"] for row in rows)


@pytest.fixture
def agents(tmp_path, eventually):
    made = Agents(tmp_path, eventually)
    yield made
    made.close()


def test_a_wrong_clock_and_an_old_version_are_named_on_both_sides(agents, eventually):
    first = agents.start("sound")
    agents.start("other", "--bootstrap", first["addresses"][0], ahead=-90, software="coppermesh/9.7.0")
    eventually(lambda: agents.connected("other") == 1, "they are connected")
    wrong = agents.until_found("other", "clock-wrong")
    assert wrong["level"] == "bad"
    assert "90 s behind" in wrong["sentence"]
    assert "NTP" in wrong["remedy"]
    # With one peer alone nobody can know whose clock is wrong: each is told what it sees.
    assert "90 s ahead of" in agents.until_found("sound", "clock-wrong")["sentence"]
    old = agents.until_found("sound", "version-too-old")
    assert (old["level"], "9.7" in old["sentence"]) == ("bad", True)
    assert "version-too-old" not in agents.findings("other")
    # More of them decide it.
    for name in ("third", "fourth"):
        agents.start(name, "--bootstrap", first["addresses"][0])
    eventually(lambda: agents.connected("sound") == 3, "all are connected to the sound one")
    eventually(lambda: "clock-wrong" not in agents.findings("sound"), "most agree with the sound one")
    assert agents.findings("sound")["peer-clock-wrong"]["level"] == "note"
    assert agents.findings("other")["clock-wrong"]["level"] == "bad"


def test_the_wrong_key_and_an_expired_certificate_are_named(agents, eventually):
    agents.start("alice")
    agents.command("alice", "mesh", "create", "lab", "--name", "alice")
    lab = next(row for row in agents.command("alice", "mesh", "list")["meshes"] if row["private"])
    address = lab["addresses"][0]

    # Mallory's lab has the same name and another key; alice's address is told to it.
    agents.command("mallory", "mesh", "create", "lab")
    agents.start("mallory", "--mesh", "lab", "--bootstrap", address)
    wrong = agents.until_found("mallory", "wrong-mesh-key")
    assert wrong["level"] == "bad"
    assert address in wrong["sentence"]
    assert "invitation" in wrong["remedy"]
    agents.stop("mallory")

    # Bob joins, and comes back a month later: his certificate has ended, and nobody renewed it.
    invitation = agents.command("alice", "mesh", "invite", "--mesh", "lab")["invitation"]
    agents.command("bob", "mesh", "join", invitation, "--name", "bob")
    agents.stop("alice")
    agents.start("alice", "--mesh", "lab", ahead=MONTH)
    agents.start("bob", "--mesh", "lab", ahead=MONTH)
    ended = agents.until_found("bob", "certificate-expired")
    assert ended["level"] == "bad"
    assert "mesh join" in ended["remedy"]
    assert agents.findings("alice")["certificate"]["level"] == "good"  # its root key has renewed it
    assert agents.connected("bob") == agents.connected("alice") == 0
    secret = (
        next((agents.home("bob").path / "meshes" / lab["id"]).glob("key")).read_bytes().split()[1].decode()
    )
    told = json.dumps(agents.command("bob", "doctor", "network"))
    assert secret not in told


def test_who_has_an_invitation_and_a_wrong_clock_is_told_at_the_door(agents):
    agents.start("alice")
    agents.command("alice", "mesh", "create", "lab")
    invitation = agents.command("alice", "mesh", "invite", "--mesh", "lab")["invitation"]
    home = agents.home("late")
    command = [sys.executable, str(SHIFTED), "600", "-", "mesh", "join", invitation, "--home", str(home.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 1
    assert "clock" in done.stderr
    assert "private-mesh" not in [path.name for path in home.path.rglob("*")]


QUOTA_SECONDS = 6.0
INTERVAL_SECONDS = 2.0
"""Of these agents, where it is 10 s otherwise (`shifted_agent`)."""


class QuotaLab:
    """Two providers and a member with a quota, of 6 s a day if nothing else is said."""

    def __init__(
        self, agents: Agents, eventually: Any, quota: str = "0.1cpu-minutes/day", **honesty: str
    ) -> None:
        self.agents = agents
        self._eventually = eventually
        for name in ("alice", "bob"):
            agents.home(name).config_path.write_text(SETTINGS.replace("provide = false\n", ""))
        agents.start("alice", honesty=honesty.get("alice", "honest"))
        agents.command("alice", "mesh", "create", "lab", "--name", "alice")
        self._join("bob", "--role", "provide-only")
        agents.start("bob", honesty=honesty.get("bob", "honest"))
        self._join("carol", "--role", "submit-only", "--quota", quota)
        agents.start("carol", honesty=honesty.get("carol", "honest"))
        eventually(lambda: agents.connected("carol", "lab") == 2, "carol knows both")

    def _join(self, name: str, *terms: str) -> None:
        invitation = self.agents.command("alice", "mesh", "invite", "--mesh", "lab", *terms)["invitation"]
        self.agents.command(name, "mesh", "join", invitation, "--name", name)

    def work(self, mesh: Any) -> Any:
        """A job of two tasks, one a provider, that goes on for about half a second a task."""
        x = cm.xp.asarray(np.linspace(0.0, 1.0, 1_000_000))
        for _ in range(40):
            x = cm.xp.sin(x)
        return mesh.submit(cm.xp.sum(x), deadline_s=20, redundancy=2)

    def use_up(self) -> None:
        """Work until it is refused."""
        with cm.connect(self.agents.home("carol").path, mesh="lab") as mesh:
            for _ in range(60):
                try:
                    self.work(mesh).result()
                except cm.MeshError as error:  # a deadline may pass on a loaded machine
                    if "quota" in str(error):
                        return
        pytest.fail("the quota was never used up")

    def used(self) -> dict[str, float]:
        """Seconds that were billed, by provider."""
        used: dict[str, float] = {}
        for row in self.agents.command("carol", "receipts", "--mesh", "lab", "--limit", "1000"):
            used[row["other"]] = used.get(row["other"], 0.0) + row["billed_us"] / 1e6
        return used


def test_two_providers_hold_a_member_to_its_quota_between_them(agents, eventually):
    lab = QuotaLab(agents, eventually)
    lab.use_up()
    used = lab.used()
    assert len(used) == 2
    logs = [agents.home(name).log_path.read_text() for name in ("alice", "bob")]
    assert any("quota on this mesh is used up" in log for log in logs)
    assert QUOTA_SECONDS / 2 < sum(used.values()) <= QUOTA_SECONDS + 2 * INTERVAL_SECONDS


def test_a_provider_that_lies_about_a_member_does_not_starve_it(agents, eventually):
    lab = QuotaLab(agents, eventually, "1cpu-minutes/day", bob="liar")
    with cm.connect(agents.home("carol").path, mesh="lab") as mesh:
        assert lab.work(mesh).result() > 0
        # The liar has told by then that she used hours; what only it says counts little.
        eventually(lambda: "not signed" in agents.home("carol").log_path.read_text(), "carol refuses to sign")
        assert mesh.compute(cm.xp.asarray(np.arange(4.0)) + 1, deadline_s=30).tolist() == [1, 2, 3, 4]
