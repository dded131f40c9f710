"""The home directory: who may use it, its lock across processes, and its socket."""

import os
import signal
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from coppermesh.agent.home import (
    MAX_SOCKET_PATH_BYTES,
    Home,
    HomeError,
    HomeLocked,
    bind_unix,
    connect_unix,
    default_home,
    peer_uid,
)
from coppermesh.p2p.ids import mesh_id

HOLD_LOCK = """
import sys
from coppermesh.agent.home import Home
with Home(sys.argv[1]).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def start_holder(home: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    return holder


def end(holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.communicate(timeout=30)


def test_default_home_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPPERMESH_HOME", str(tmp_path / "named"))
    assert default_home().path == tmp_path / "named"
    monkeypatch.delenv("COPPERMESH_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_home().path == tmp_path / "data" / "coppermesh"
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_home().path == tmp_path / ".local" / "share" / "coppermesh"
    assert not default_home().path.exists(), "naming a home makes nothing"


def test_everything_under_a_home_is_private(tmp_path: Path) -> None:
    home = Home(tmp_path / "a" / "b")
    home.prepare()
    mesh = mesh_id("a/b ../c")
    assert mode_of(home.path) == 0o700
    assert mode_of(home.scratch_path) == 0o700
    assert mode_of(home.store_path(mesh)) == 0o700
    for path in (home.key_path(mesh), home.ledger_path(mesh), home.peers_path(mesh)):
        assert path.parent == home.path / "meshes" / mesh.hex()
        assert mode_of(path.parent) == 0o700


def test_meshes_do_not_share_files(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.prepare()
    assert home.key_path(mesh_id("open")) != home.key_path(mesh_id("lab"))


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_home_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "home"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(HomeError, match=f"chmod 700 {path}"):
        Home(path).prepare()
    with pytest.raises(HomeError), Home(path).lock():
        pytest.fail("locked an unsafe home")


def test_a_readable_home_of_old_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "home"
    path.mkdir(mode=0o755)
    Home(path).prepare()


def test_a_file_or_a_missing_home_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(HomeError, match="is a file"):
        Home(path).prepare()
    with pytest.raises(HomeError, match="is not a directory"):
        Home(path).check()
    with pytest.raises(HomeError, match="No such file"):
        Home(tmp_path / "missing").check()
    with pytest.raises(HomeError, match="cannot be made"):
        Home(path / "below").prepare()
    with pytest.raises(HomeError, match="cannot be made"):
        Home(tmp_path / "missing").ledger_path(mesh_id("open"))
    assert not (tmp_path / "missing").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_the_home_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "home"
    path.mkdir()
    os.chown(path, 12345, -1)
    with pytest.raises(HomeError, match="belongs to user 12345"):
        Home(path).prepare()


def test_a_second_agent_is_told_who_holds_the_home(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    try:
        with pytest.raises(HomeLocked, match=f"process {holder.pid}") as caught, Home(tmp_path).lock():
            pytest.fail("locked twice")
        assert caught.value.pid == holder.pid
        assert caught.value.path == tmp_path
        assert "--home" in str(caught.value)
        found = Home(tmp_path).lock_holder()
        assert found is not None
        assert (found.pid, found.seed) == (holder.pid, False)
    finally:
        end(holder)


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=30)
    assert Home(tmp_path).lock_holder() is None
    with Home(tmp_path).lock():
        assert Home(tmp_path).lock_path.read_text() == f"{os.getpid()}\n"
        assert mode_of(Home(tmp_path).lock_path) == 0o600


def test_the_lock_does_not_pass_to_programs_that_are_started(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('started', flush=True); input()"]
    with Home(tmp_path).lock():
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, close_fds=False
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "started\n"
    try:
        with Home(tmp_path).lock():
            assert child.poll() is None
    finally:
        child.communicate("\n", timeout=30)


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Home(tmp_path).lock():
        raise RuntimeError
    assert Home(tmp_path).lock_holder() is None


def test_a_lock_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "agent.lock").symlink_to(tmp_path / "target")
    with pytest.raises(HomeError), Home(tmp_path).lock():
        pytest.fail("followed a link")
    assert (tmp_path / "target").read_text() == "precious"


def long_directory(tmp_path: Path) -> Path:
    directory = tmp_path / ("d" * 100) / ("e" * 100)
    directory.mkdir(parents=True)
    assert len(str(directory / "agent.sock")) > MAX_SOCKET_PATH_BYTES
    return directory


def test_a_home_that_the_ledger_could_not_be_opened_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match=r"a path of [0-9]+ bytes"):
        Home(tmp_path / ("d" * 200) / ("e" * 200)).prepare()
    assert not (tmp_path / ("d" * 200)).exists()


@pytest.mark.parametrize("long", [False, True])
def test_socket_round_trip(tmp_path: Path, long: bool) -> None:
    path = (long_directory(tmp_path) if long else tmp_path) / "agent.sock"
    before = len(os.listdir("/proc/self/fd"))
    with bind_unix(path) as listener:
        assert mode_of(path) == 0o600
        with connect_unix(path) as client:
            server, _ = listener.accept()
            with server:
                assert peer_uid(server) == os.geteuid()
                client.sendall(b"hello")
                assert server.recv(5) == b"hello"
    assert len(os.listdir("/proc/self/fd")) == before
    assert [item.name for item in path.parent.iterdir() if item.name != "d" * 100] == ["agent.sock"]


def test_the_socket_of_a_dead_agent_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    bind_unix(path).close()
    with pytest.raises(ConnectionRefusedError):
        connect_unix(path)
    with bind_unix(path), connect_unix(path):
        pass


def test_no_agent_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect_unix(tmp_path / "agent.sock")
    with pytest.raises(FileNotFoundError):
        connect_unix(tmp_path / "no" / ("d" * 200) / "agent.sock")


def test_an_agent_that_accepts_nothing_is_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coppermesh.agent.home.CONNECT_SECONDS", 1)
    monkeypatch.setattr("coppermesh.agent.home.SOCKET_BACKLOG", 0)
    path = tmp_path / "agent.sock"
    with bind_unix(path), ExitStack() as stack:

        def fill_the_backlog() -> None:
            for _ in range(4):
                stack.enter_context(connect_unix(path))

        with pytest.raises(TimeoutError, match="accepts no connection"):
            fill_the_backlog()


def test_a_socket_that_cannot_be_made_says_where(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "agent.sock"
    with pytest.raises(HomeError, match=str(path)):
        bind_unix(path)
