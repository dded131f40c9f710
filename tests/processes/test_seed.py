"""`coppermesh bootstrap` and `coppermesh doctor network`, as real processes on loopback."""

import contextlib
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coppermesh.agent.local_agents import COMMAND_LINE
from coppermesh.agent.local_link import LocalLink

pytestmark = pytest.mark.processes
ENDING_SECONDS = 20


def command(*arguments: str) -> list[str]:
    return [sys.executable, *COMMAND_LINE, *arguments]


def run(*arguments: str) -> tuple[int, Any, str]:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=90, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


@contextlib.contextmanager
def running(verb: str, home: Path, *options: str) -> Iterator[dict[str, Any]]:
    """A seed or an agent until the end of the block; what it said when it was ready."""
    started = command(verb, "--home", str(home), "--json", "--until-eof", *options)
    with (home.parent / f"{home.name}.log").open("ab") as log:
        process = subprocess.Popen(started, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, (home.parent / f"{home.name}.log").read_text()
        yield json.loads(line)
    finally:
        process.stdin.close()
        assert process.wait(ENDING_SECONDS) == 0
        process.stdout.close()


def fetch(url: str, host: str | None = None) -> tuple[dict[str, str], bytes]:
    request = urllib.request.Request(url, headers={"Host": host} if host else {})  # noqa: S310 - on loopback
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return dict(answer.headers), answer.read()


def peers_of(home: Path) -> dict[str, Any]:
    with LocalLink(home / "agent.sock") as link:
        facts = json.loads(link.call_json("peers"))
    return {row["peer"]: row for row in facts["peers"]}


def connected_to(home: Path) -> dict[str, Any]:
    return {peer: row for peer, row in peers_of(home).items() if row["connected"]}


def test_two_agents_meet_through_a_seed_and_outlive_it(tmp_path, eventually):
    mesh = ("--mesh", "seed test")
    with contextlib.ExitStack() as agents:
        with running("bootstrap", tmp_path / "seed", *mesh, "--status-port", "0") as seed:
            assert seed["status"] is None
            first, second = (
                agents.enter_context(
                    running("agent", tmp_path / name, *mesh, "--bootstrap", seed["addresses"][0])
                )
                for name in ("a", "b")
            )
            eventually(lambda: second["peer"] in connected_to(tmp_path / "a"), "the two find each other")
            rows = connected_to(tmp_path / "a")
            assert rows[seed["peer"]]["found"] == "bootstrap"
            assert rows[seed["peer"]]["devices"] == []
            assert {row["path"] for row in rows.values()} == {"direct"}
            assert all(row["latency_ms"] > 0 for row in rows.values())
        eventually(lambda: seed["peer"] not in connected_to(tmp_path / "a"), "the seed is gone")
        assert second["peer"] in connected_to(tmp_path / "a")
        assert first["peer"] in connected_to(tmp_path / "b")

        code, told, _ = run("doctor", "network", "--home", str(tmp_path / "a"), "--json")
        findings = {finding["name"]: finding for finding in told["findings"]}
        assert code == 1
        assert findings["no-seed-answered"]["level"] == "bad"
        assert findings["loopback-only"]["level"] == "note"
        assert findings["peers"]["level"] == "good"
        assert findings["reachable"]["sentence"].startswith("1 peer on this machine dialled back")
        secret = next((tmp_path / "a").rglob("key")).read_bytes().split()[1]
        assert secret.decode() not in json.dumps(told)


@pytest.mark.slow
def test_an_agent_may_be_a_relay_for_its_mesh(tmp_path, eventually):
    for name in ("relay", "called", "caller"):
        (tmp_path / name).mkdir(mode=0o700)
    (tmp_path / "relay" / "config.toml").write_text('mesh = "relays"\n[network]\nserve_relay = true\n')
    with running("agent", tmp_path / "relay") as relay:
        at = relay["addresses"][0]
        rest = f'relay = "always"\nrelays = ["{at}"]\nhole_punching = false\n'
        (tmp_path / "called" / "config.toml").write_text(f'mesh = "relays"\n[network]\n{rest}')
        (tmp_path / "caller" / "config.toml").write_text(f'mesh = "relays"\nbootstrap = ["{at}"]\n')
        with running("agent", tmp_path / "called") as called:
            eventually(
                lambda: relay["peer"] in connected_to(tmp_path / "called"), "the called one is at the relay"
            )
            eventually(
                lambda: "p2p-circuit" in str(peers_of(tmp_path / "relay")),
                "the called one announces its place at the relay",
            )
            with running("agent", tmp_path / "caller"):
                eventually(
                    lambda: called["peer"] in connected_to(tmp_path / "caller"), "the called one is found"
                )
                row = connected_to(tmp_path / "caller")[called["peer"]]
                # On loopback nothing keeps it from the direct address, and whichever dial is first counts; that peers
                # behind routers come through a relay is tests/namespaces' to show.
                assert f"{at}/p2p-circuit/p2p/{called['peer']}" in str(row)
                assert row["path"] == "direct" or row["relay"] == relay["peer"]


@pytest.mark.slow
def test_the_doctor_says_that_a_seed_is_of_another_mesh(tmp_path, eventually):
    with (
        running("bootstrap", tmp_path / "seed", "--mesh", "one", "--status-port", "0") as seed,
        running("agent", tmp_path / "a", "--mesh", "another", "--bootstrap", seed["addresses"][0]),
    ):

        def names() -> dict[str, Any]:
            _, told, _ = run("doctor", "network", "--home", str(tmp_path / "a"), "--json")
            return {finding["name"]: finding for finding in told["findings"]}

        eventually(lambda: "wrong-mesh" in names(), "the doctor names the wrong mesh")
        assert names()["wrong-mesh"]["level"] == "bad"


def test_the_doctor_without_an_agent_says_so(tmp_path):
    code, told, _ = run("doctor", "network", "--home", str(tmp_path), "--json")
    assert code == 3
    assert [finding["name"] for finding in told["findings"]] == ["no-agent"]


def test_the_status_page_is_for_this_machine_and_runs_only_its_own_script(tmp_path, eventually):
    # A free port is found by the seed itself where 0 would mean none: so one is asked of the system first.
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with running("bootstrap", tmp_path / "seed", "--status-port", str(port)) as seed:
        assert seed["status"] == f"http://127.0.0.1:{port}/"
        headers, html = fetch(seed["status"])
        assert b"<title>coppermesh seed</title>" in html
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        facts = eventually(lambda: json.loads(fetch(seed["status"] + "status.json")[1]), "the first facts")
        assert facts["peer"] == seed["peer"]
        assert facts["relay"]["limits"]["reservations"] == 256
        with pytest.raises(urllib.error.HTTPError, match="403"):
            fetch(seed["status"], host=f"evil.example.org:{port}")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(seed["status"] + "../key")
        code, _, said = run(
            "bootstrap", "--home", str(tmp_path / "other"), "--status-port", str(port), "--json"
        )
        assert code == 5
        assert f"port {port}" in said
