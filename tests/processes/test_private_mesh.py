"""A lab of three homes, as its users see it: create, invite, join, submit inside, revoke. All real processes.

mDNS is off: the machine's other agents are none of this test's business.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.agent.home import Home
from coppermesh.agent.local_link import LocalLink, socket_alive
from coppermesh.agent.mesh_state import private_meshes

pytestmark = pytest.mark.processes

SECONDS = 60.0
CUT_OFF_SECONDS = 10.0
COMMAND = [sys.executable, "-m", "coppermesh.agent.cli"]
SETTINGS = 'listen = "/ip4/127.0.0.1/tcp/0"\n[network]\nmdns = false\n'


class Machines:
    """Homes under one directory, each with an agent that ends with the test."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def home(self, name: str) -> Home:
        home = Home(self.base / name)
        home.prepare()
        if not home.config_path.exists():
            home.config_path.write_text(SETTINGS)
        return home

    def start(self, *names: str) -> None:
        for name in names:
            home = self.home(name)
            with home.log_path.open("ab") as log:
                self.running[name] = subprocess.Popen(
                    [*COMMAND, "agent", "--home", str(home.path), "--until-eof"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                )
        for name in names:
            self.until(lambda name=name: socket_alive(self.home(name).socket_path), f"{name} is ready")

    def stop(self, name: str) -> None:
        process = self.running.pop(name)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)

    def close(self) -> None:
        for name in list(self.running):
            self.stop(name)

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "COPPERMESH_HOME": str(self.home(name).path)}
        return subprocess.run(
            [*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def ask(self, name: str, *arguments: str) -> Any:
        done = self.run(name, *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refuse(self, name: str, *arguments: str) -> str:
        done = self.run(name, *arguments)
        assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
        return done.stderr

    def invite(self, name: str, *options: str) -> str:
        return str(self.ask(name, "mesh", "invite", "--mesh", "lab", *options)["invitation"])

    def call(self, name: str, method: str, mesh: str = "") -> Any:
        """The agent's own answer, without a process in between."""
        with LocalLink(self.home(name).socket_path, mesh=mesh) as link:
            return json.loads(link.call_json(method))

    def lab(self, name: str) -> dict[str, Any]:
        rows = self.call(name, "mesh-list")["meshes"]
        return next((row for row in rows if row["mesh"] == "lab"), {"connected": 0})

    def connected(self, name: str) -> int:
        return int(self.lab(name)["connected"])

    def names(self, name: str) -> list[str]:
        return sorted(member["name"] for member in self.call(name, "mesh-members", "lab")["members"])

    def until(self, condition, what: str, seconds: float = SECONDS) -> float:
        """Seconds until it held; fails where it does not in time."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < seconds, f"{what}: not within {seconds:.0f} s"
            time.sleep(0.05)
        return time.monotonic() - started


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path)
    yield made
    made.close()


def test_a_lab_from_its_making_to_a_revocation(machines):
    machines.start("alice", "bob", "carol")
    made = machines.ask("alice", "mesh", "create", "lab", "--name", "alice")
    assert made["role"] == "admin"
    for name in ("bob", "carol"):
        joined = machines.ask(name, "mesh", "join", machines.invite("alice"), "--name", name)
        assert joined["role"] == "member"
    for name in ("alice", "bob", "carol"):
        machines.until(lambda name=name: machines.connected(name) == 2, f"{name} knows both others")
    members = machines.ask("bob", "mesh", "members", "--mesh", "lab")["members"]
    assert sorted(member["name"] for member in members) == ["alice", "bob", "carol"]

    # A job inside: only members compute it, and it stands in the lab's own ledger.
    with cm.connect(machines.home("bob").path, mesh="lab") as mesh:
        job = mesh.submit(cm.xp.asarray(np.arange(4.0)) + 1, deadline_s=60)
        assert job.result().tolist() == [1, 2, 3, 4]
        providers = {member["peer"] for member in members if member["name"] != "bob"}
        assert job.receipt["provider"] in providers
    assert len(machines.ask("bob", "receipts", "--mesh", "lab")) == 1
    assert machines.ask("bob", "receipts") == []

    # Bob is revoked while connected, with work of his own under way or not: everybody cuts him off.
    swarm_key = private_meshes(machines.home("carol"))[0].swarm_key
    machines.ask("alice", "mesh", "revoke", "bob", "--mesh", "lab")
    machines.until(lambda: machines.connected("bob") == 0, "bob is cut off", CUT_OFF_SECONDS)
    machines.until(
        lambda: private_meshes(machines.home("carol"))[0].swarm_key != swarm_key,
        "carol has the new swarm key",
    )
    machines.until(lambda: machines.connected("alice") == machines.connected("carol") == 1, "the others stay")
    assert private_meshes(machines.home("bob"))[0].swarm_key == swarm_key

    # He cannot return: not by himself, not after a restart, and the door says why.
    machines.stop("bob")
    machines.start("bob")
    machines.until(lambda: "revoked" in machines.lab("bob")["trouble"], "bob is told why")
    assert machines.connected("bob") == 0
    assert machines.names("carol") == ["alice", "carol"]


@pytest.mark.slow
def test_who_was_away_during_a_rotation_comes_back_by_the_door(machines):
    machines.start("alice", "bob", "carol")
    machines.ask("alice", "mesh", "create", "lab", "--name", "alice")
    for name in ("bob", "carol"):
        machines.ask(name, "mesh", "join", machines.invite("alice"), "--name", name)
    machines.until(lambda: machines.connected("carol") >= 1, "carol is in")
    machines.stop("carol")
    machines.until(lambda: machines.connected("alice") == 1, "carol is away")
    machines.ask("alice", "mesh", "revoke", "bob", "--mesh", "lab")
    machines.start("carol")
    machines.until(lambda: machines.connected("carol") == 1, "carol is back")
    machines.until(lambda: machines.connected("alice") == 1, "alice sees her")
    keys = {private_meshes(machines.home(name))[0].swarm_key for name in ("alice", "carol")}
    assert len(keys) == 1


@pytest.mark.slow
def test_each_refusal_at_the_door_by_name(machines):
    machines.start("alice")
    machines.ask("alice", "mesh", "create", "lab")
    once = machines.invite("alice")
    machines.ask("bob", "mesh", "join", once)
    assert "used already" in machines.refuse("carol", "mesh", "join", once)
    short = machines.invite("alice", "--expires", "1s")
    time.sleep(1.1)
    assert "has expired" in machines.refuse("carol", "mesh", "join", short)
    assert "changed or cut" in machines.refuse(
        "carol", "mesh", "join", once[:-1] + ("a" if once[-1] != "a" else "b")
    )
    assert "not an invitation" in machines.refuse("carol", "mesh", "join", "hello")
    assert "in mesh 'lab' already" in machines.refuse("bob", "mesh", "join", once)
    assert private_meshes(machines.home("carol")) == []
    # Bob is a plain member: his agent invites nobody.
    machines.start("bob")
    machines.until(lambda: machines.connected("bob") == 1, "bob is in")
    assert "may not invite" in machines.refuse("bob", "mesh", "invite", "--mesh", "lab")
    assert "may revoke itself only" in machines.refuse(
        "bob", "mesh", "revoke", "--mesh", "lab", _alice(machines)
    )
    machines.stop("alice")
    assert "cannot be reached" in machines.run("carol", "mesh", "join", short).stderr


def _alice(machines: Machines) -> str:
    members = machines.ask("bob", "mesh", "members", "--mesh", "lab")["members"]
    return str(next(member["peer"] for member in members if member["role"] == "admin"))


@pytest.mark.slow
def test_roles_hold_and_leaving_is_told(machines):
    machines.start("alice", "bob")
    machines.ask("alice", "mesh", "create", "lab", "--name", "alice")
    machines.ask("bob", "mesh", "join", machines.invite("alice", "--role", "provide-only"), "--name", "bob")
    machines.until(lambda: machines.connected("bob") == 1, "bob is in")
    with cm.connect(machines.home("bob").path, mesh="lab") as mesh:
        with pytest.raises(Exception, match="provide-only may not submit"):
            mesh.compute(cm.xp.asarray(np.arange(3.0)) + 1)
    with cm.connect(machines.home("alice").path, mesh="lab") as mesh:
        assert mesh.compute(cm.xp.asarray(np.arange(3.0)) + 1, deadline_s=60).tolist() == [1, 2, 3]
    machines.ask("bob", "mesh", "leave", "--mesh", "lab")
    assert private_meshes(machines.home("bob")) == []
    machines.until(lambda: machines.names("alice") == ["alice"], "bob has left")


def test_who_left_or_was_revoked_joins_again_and_works(machines):
    machines.start("alice", "bob")
    machines.ask("alice", "mesh", "create", "lab", "--name", "alice")
    machines.ask("bob", "mesh", "join", machines.invite("alice"), "--name", "bob")
    machines.until(lambda: machines.connected("bob") == 1, "bob knows alice")
    first = machines.lab("bob")["peer"]
    machines.ask("alice", "mesh", "revoke", "bob", "--mesh", "lab")
    again = machines.invite("alice")
    assert "leave first" in machines.refuse("bob", "mesh", "join", again)
    machines.ask("bob", "mesh", "leave", "--mesh", "lab")
    assert machines.ask("bob", "mesh", "join", again, "--name", "bob")["role"] == "member"
    assert machines.lab("bob")["served"]
    assert machines.lab("bob")["peer"] != first
    machines.until(lambda: machines.connected("bob") == 1, "bob knows alice again")
    with cm.connect(machines.home("bob").path, mesh="lab") as mesh:
        job = mesh.submit(cm.xp.asarray(np.arange(4.0)) + 1, deadline_s=60)
        assert job.result().tolist() == [1, 2, 3, 4]
    meshes = [row["mesh"] for row in machines.ask("bob", "ledger", "audit")["ledgers"]]
    assert "lab" in meshes
    assert f"lab as ..{first[-8:]}" in meshes
