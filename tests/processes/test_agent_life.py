"""The life of one agent: its lock, its idle end, its signals, and the sentences it ends with when it cannot start."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import coppermesh as cm
from coppermesh.agent.home import Home

pytestmark = pytest.mark.processes

AGENT = [sys.executable, "-m", "coppermesh.agent.cli", "agent"]


def start(home: Path, *options: str) -> subprocess.Popen[str]:
    """A requester-only agent that is ready."""
    command = [*AGENT, "--home", str(home), "--requester-only", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert json.loads(line)["ready"]
    return process


def fail_to_start(home: Path, *options: str) -> tuple[int, str]:
    """Exit code and the one sentence of an agent that cannot start."""
    command = [*AGENT, "--home", str(home), "--requester-only", *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    (sentence,) = run.stderr.splitlines()
    assert sentence.startswith("coppermesh: ")
    assert run.stdout == ""
    return run.returncode, sentence


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with start(tmp_path / "home") as process:
        yield process
        process.kill()


def test_a_second_agent_on_a_home_says_who_has_it(agent, tmp_path):
    code, sentence = fail_to_start(tmp_path / "home")
    assert code == 4
    assert str(agent.pid) in sentence


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_in_order(agent, tmp_path, number):
    agent.send_signal(number)
    assert agent.wait(15) == 0
    assert not Home(tmp_path / "home").socket_path.exists()


def test_kill_9_leaves_a_home_that_starts_again(agent, tmp_path):
    agent.kill()
    agent.wait(15)
    with start(tmp_path / "home") as again:
        again.terminate()
        assert again.wait(15) == 0


def test_it_ends_by_itself_when_idle(tmp_path):
    with start(tmp_path / "home", "--idle-exit", "1") as process:
        assert process.wait(30) == 0


def test_connect_starts_an_agent_that_outlives_the_script(tmp_path, eventually: Callable[..., Any]):
    home = tmp_path / "home"
    script = "import coppermesh as cm, sys\nwith cm.connect(sys.argv[1]) as mesh: mesh.link().close()"
    subprocess.run([sys.executable, "-c", script, str(home)], timeout=60, check=True)
    holder = holding.pid if (holding := Home(home).lock_holder()) else None
    assert holder is not None
    with cm.connect(home) as mesh, mesh.link() as link:
        facts = json.loads(link.call_json("status"))
        assert facts["provide"] is False
        link.call_json("stop")
    eventually(lambda: not Path(f"/proc/{holder}").exists(), "the agent stopped", 15.0)


def test_nothing_in_the_home_is_open_to_others(agent, tmp_path):
    assert agent.poll() is None
    for path in [tmp_path / "home", *(tmp_path / "home").rglob("*")]:
        assert not stat.S_IMODE(path.lstat().st_mode) & 0o077, path


def test_a_key_that_others_can_read_is_refused(agent, tmp_path):
    agent.terminate()
    agent.wait(15)
    (key,) = (tmp_path / "home").rglob("key")
    key.chmod(0o644)
    code, sentence = fail_to_start(tmp_path / "home")
    assert code == 5
    assert f"chmod 0600 {key}" in sentence


def test_a_taken_port_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, sentence = fail_to_start(tmp_path / "home", "--listen", f"/ip4/127.0.0.1/tcp/{port}")
    assert code == 5
    assert str(port) in sentence


def test_a_typo_in_the_settings_is_named(tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "config.toml").write_text('bootstrapp = ["x"]\n')
    code, sentence = fail_to_start(home)
    assert code == 5
    assert "bootstrapp" in sentence
    assert "config.toml" in sentence


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_that_cannot_be_made_is_named(tmp_path):
    tmp_path.chmod(0o500)
    code, sentence = fail_to_start(tmp_path / "home")
    assert code == 5
    assert str(tmp_path / "home") in sentence
