"""Every hostile act against the sandbox as it is in production, with a control that shows what it does without.

The acts are data (`acts`); `battery_zygote` is the real zygote with an act in the place of a job. Configurations: as
whoever runs the tests, as an ordinary user where that is root, in namespaces of its own, under bubblewrap, in neither.
"""

import importlib.util
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coppermesh.exec import linux, pipe, sockets
from coppermesh.exec.blackbox import make_black_box
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.device import probe_cpu
from coppermesh.exec.lent_files import LentFiles
from coppermesh.exec.sandbox import apply, landlock, namespaces, seccomp
from coppermesh.exec.sandbox.capabilities import SANDBOX_ID
from coppermesh.exec.sandbox.namespaces import (
    bubblewrap_command,
    bubblewrap_works,
    find_bubblewrap,
    view_of_python,
)
from coppermesh.exec.scratch import remove_tree
from coppermesh.exec.supervisor import _environment

pytestmark = pytest.mark.processes

HERE = Path(__file__).parent
ORDINARY = 54_321
ACT_SECONDS = 20.0


def load_acts():
    spec = importlib.util.spec_from_file_location("battery_acts", HERE / "acts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["battery_acts"] = module
    spec.loader.exec_module(module)
    return module


acts = load_acts()
TOOLCHAIN = find_toolchain()
TRIED = [act for act in (*acts.ACTS, *acts.DUTIES) if act.role == "worker" or TOOLCHAIN is not None]
DUTIES = {act.name for act in acts.DUTIES}
NAMESPACE_ACTS = {"make_user_namespace", "make_namespaces", "mount_tmpfs", "compiler_namespace"}
"""Their controls work only on a machine that gives processes namespaces."""


@dataclass
class Bench:
    """A running battery zygote."""

    control: socket.socket
    stage: Any
    scratch: Path
    layers: tuple[str, ...]
    user: int
    serial: int = 0

    def run(self, act) -> str:
        """What became of one act: a text that begins with `succeeded` or `blocked`."""
        self.serial += 1
        self._set_out()
        directory = self.scratch / f"{act.role}-{self.serial}"
        directory.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(directory, self.user, self.user)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        box = make_black_box()
        try:
            order = pipe.Fork(
                self.serial, act.role, str(directory), 1 << 26, 1 << 24, 1 << 26, 4096, 60, True
            )
            sockets.send(self.control, pipe.encode(order), [theirs.fileno(), box])
            theirs.close()
            ours.settimeout(ACT_SECONDS)
            with _lent() as files:
                sockets.send(ours, act.name.encode() + b"\0" + self.stage.encode(), files)
            # Where an act fills the socket, nobody empties it meanwhile.
            status = self._exit_of(self.serial) if act.unread else None
            try:
                answer = _last_message(ours).decode()
            except TimeoutError:
                return "blocked: no end within its time"
            status = self._exit_of(self.serial) if status is None else status
            return answer or (
                "succeeded: another program" if status == 0 else f"blocked: ended with {status}"
            )
        finally:
            ours.close()
            os.close(box)

    def _exit_of(self, serial: int) -> int:
        while True:
            assert select.select([self.control], [], [], ACT_SECONDS)[0], "the zygote says nothing"
            data, descriptors = sockets.receive(self.control)
            sockets.close_all(descriptors)
            message = pipe.decode_from_zygote(data)
            if isinstance(message, pipe.Exited) and message.serial == serial:
                return message.code

    def _set_out(self) -> None:
        """Put the bait back."""
        directory = Path(self.stage.directory)
        for name in ("secret", "spare", "more", "keep", "cut", "mine"):
            (directory / name).write_text(acts.SECRET)
            (directory / name).chmod(0o666)
        if os.geteuid() == 0:  # what only an owner may do, the one who tries owns
            for name in ("keep", "mine"):
                os.chown(directory / name, self.user, self.user)


@contextmanager
def _lent() -> Iterator[list[int]]:
    """What a worker gets: a file for an output, and an input."""
    files = LentFiles()
    lent, written = files.lend(), linux.sealed_file("input", b"x" * 4096)
    given = files.pass_on(written)
    os.close(written)
    try:
        yield [lent, given]
    finally:
        sockets.close_all([lent, given])
        files.close()


def _last_message(sock: socket.socket) -> bytes:
    """The answer; an act may have filled the socket before it."""
    last = b""
    while data := sock.recv(pipe.MAX_MESSAGE_BYTES):
        last = data if data.startswith((b"succeeded", b"blocked")) else last
    return last


@contextmanager
def services(directory: Path) -> Iterator[Any]:
    """What the acts try to reach on this machine."""
    listener, listener6 = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET6)
    stream, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    name = f"coppermesh-battery-{os.getpid()}"
    stream.bind(str(directory / "stream"))
    datagram.bind(str(directory / "datagram"))
    abstract.bind(f"\0{name}")
    port6 = 1
    try:
        listener6.bind(("::1", 0))
        port6 = listener6.getsockname()[1]
    except OSError:
        pass  # a machine without IPv6
    else:
        listener6.listen()
    stream.listen()
    abstract.listen()
    for path in ("stream", "datagram"):
        (directory / path).chmod(0o777)
    listening = [listener, stream, abstract, *([listener6] if port6 > 1 else [])]
    stop, wake = socket.socketpair()

    def greet() -> None:
        while stop not in (ready := select.select([*listening, stop], [], [])[0]):
            for sock in ready:
                with sock.accept()[0] as peer:
                    peer.sendall(b"hello")

    thread = threading.Thread(target=greet)
    thread.start()
    try:
        yield acts.Stage(str(directory), listener.getsockname()[1], port6, name, os.getpid())
    finally:
        wake.send(b"x")
        thread.join()
        for sock in (listener, listener6, stream, abstract, datagram, stop, wake):
            sock.close()


@contextmanager
def bench(mode: str, *, user: int = 0, outer: str = "none", abi: int = 0) -> Iterator[Bench]:
    """A battery zygote: `mode` is confined or bare, `outer` its namespaces, `user` other than 0 an ordinary one.

    `abi` other than 0: with no more of Landlock than that version has.
    """
    as_root = os.geteuid() == 0
    works_as = user or (SANDBOX_ID if as_root and mode == "confined" else os.geteuid())
    directory = Path(tempfile.mkdtemp(prefix="coppermesh-bait-"))
    scratch = Path(tempfile.mkdtemp(prefix="coppermesh-battery-"))
    directory.chmod(0o777)
    if as_root:
        os.chown(scratch, works_as, works_as)
    for name in ("compiler/header.h", "builder-0/kernel.cu"):  # what builds share, and what another one has
        file = scratch / name
        file.parent.mkdir()
        file.write_text(acts.SECRET)
        if as_root:
            os.chown(file.parent, works_as, works_as)
            os.chown(file, works_as, works_as)
    (directory / "link").symlink_to(directory / "secret")
    (directory / "secret").write_text(acts.SECRET)
    toolchain = TOOLCHAIN
    start = pipe.Start(
        kind="cpu",
        threads=1,
        compiler=toolchain.command if toolchain else (),
        family=toolchain.family if toolchain else "",
        version="",
        cache=str(scratch),
        scratch=str(scratch),
        namespaces=outer,
    )
    prefix: list[str] = []
    if outer == "bubblewrap":
        program = find_bubblewrap()
        assert program is not None
        view = view_of_python([str(scratch)], [*apply.compiler_homes(start.compiler), str(HERE)])
        prefix = bubblewrap_command(program, view)
    environment = _environment(probe_cpu()) | ({"BATTERY_SECRET": acts.SECRET} if mode == "bare" else {})
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    held = os.open(directory / "secret", os.O_RDONLY)
    os.set_inheritable(held, True)
    parent = "0" if prefix else str(os.getpid())
    log = (scratch / "log").open("wb")
    process = subprocess.Popen(
        [
            *prefix,
            sys.executable,
            "-I",
            str(HERE / "battery_zygote.py"),
            str(theirs.fileno()),
            parent,
            mode,
            str(user),
            str(abi),
        ],
        env=environment,
        pass_fds=(theirs.fileno(), held),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stderr=log,
    )
    theirs.close()
    log.close()
    try:
        with services(directory) as stage:
            sockets.send(control, pipe.encode(start))
            data, descriptors = sockets.receive(control)
            sockets.close_all(descriptors)
            assert data, (scratch / "log").read_text()
            ready = pipe.decode_from_zygote(data)
            assert isinstance(ready, pipe.Ready)
            yield Bench(control, stage, scratch, ready.layers, works_as)
    finally:
        control.close()
        process.kill()
        process.wait()
        os.close(held)
        remove_tree(scratch)
        shutil.rmtree(directory)


def outcomes(mode: str, tried=None, **configuration) -> tuple[tuple[str, ...], dict[str, str]]:
    """Layers, and by act what became of it."""
    with bench(mode, **configuration) as running:
        return running.layers, {act.name: running.run(act) for act in tried or TRIED}


def succeeded(results: dict[str, str]) -> dict[str, str]:
    return {
        name: text for name, text in results.items() if not text.startswith("blocked") and name not in DUTIES
    }


def hindered(results: dict[str, str]) -> dict[str, str]:
    """What a worker or builder must be able to do, and could not."""
    return {name: text for name, text in results.items() if name in DUTIES and text.startswith("blocked")}


def stopped_by_accident(results: dict[str, str]) -> dict[str, str]:
    """Acts that Python itself could not carry out: they show nothing of a sandbox."""
    accidents = (
        "Import",
        "ModuleNotFound",
        "Lookup",
        "Name",
        "Type",
        "Attribute",
        "Assertion",
        "ctypes.ArgumentError",
    )
    return {
        name: text
        for name, text in results.items()
        if text.startswith(tuple(f"blocked: {a}" for a in accidents))
    }


USERS = [pytest.param(0, id="as-started")]
if os.geteuid() == 0:
    USERS.append(pytest.param(ORDINARY, id="ordinary-user"))
needs_floor = pytest.mark.skipif(
    not (landlock.abi() and seccomp.supported()), reason="this kernel lacks Landlock or seccomp filters"
)


def test_there_are_many_acts():
    assert len(acts.ACTS) >= 80
    assert all(act.what for act in acts.ACTS)


@pytest.mark.parametrize("user", USERS)
def test_the_acts_work_without_a_sandbox(user):
    _, results = outcomes("bare", user=user)
    excused = NAMESPACE_ACTS if namespaces._try_in_a_child() else set()
    failed = {
        act.name: results[act.name]
        for act in TRIED
        if not act.control and act.name not in excused and results[act.name].startswith("blocked")
    }
    assert not failed, (
        f"of {len(TRIED)} acts these show nothing, for they fail without a sandbox too: {failed}"
    )


@needs_floor
@pytest.mark.parametrize("user", USERS)
def test_nothing_succeeds_in_namespaces_of_its_own(user):
    layers, results = outcomes("confined", user=user, outer="own")
    if "mountns" not in layers:
        pytest.skip("this machine gives ordinary processes no namespaces")
    assert succeeded(results) == {}
    assert stopped_by_accident(results) == {}
    assert hindered(results) == {}


@needs_floor
@pytest.mark.slow
def test_nothing_succeeds_in_namespaces_with_the_oldest_landlock():
    layers, results = outcomes("confined", outer="own", abi=1)
    if "mountns" not in layers:
        pytest.skip("this machine gives ordinary processes no namespaces")
    assert succeeded(results) == {}
    assert hindered(results) == {}


@needs_floor
@pytest.mark.parametrize("user", USERS)
def test_nothing_succeeds_under_bubblewrap(user):
    program = find_bubblewrap()
    if program is None:
        pytest.skip("bubblewrap is not installed (apt install bubblewrap)")
    if user and os.geteuid() == 0:
        pytest.skip(
            "started by root, bubblewrap is tried as root; as an ordinary user the tests try it as that"
        )
    if not bubblewrap_works(bubblewrap_command(program, view_of_python([]))):
        pytest.skip("bubblewrap does not work on this machine")
    layers, results = outcomes("confined", user=user, outer="bubblewrap")
    assert "mountns" in layers
    assert succeeded(results) == {}
    assert stopped_by_accident(results) == {}
    assert hindered(results) == {}


@needs_floor
@pytest.mark.parametrize("user", USERS)
def test_without_any_namespace_only_files_sizes_are_told(user):
    _, results = outcomes("confined", user=user, outer="none")
    known = {act.name for act in TRIED if act.needs}
    assert set(succeeded(results)) <= known
    assert stopped_by_accident(results) == {}
    assert hindered(results) == {}
