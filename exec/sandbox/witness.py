"""Witnessing: for each layer, a hostile act that fails under that layer alone and succeeds without it.

Theory. A layer counts when it was seen to hold, on this machine, now. So for each one a throw-away child puts on that
layer and nothing else and tries an act which it should stop, and a second child, the control, tries the same act bare.
`witnessed` means that the control succeeded and the confined child failed; where the control fails, the act shows
nothing, and the layer is not witnessed however likely it is to work. The bait (a file, a port, a process, a queue) is
this helper's own, so that what stops an act is never an ordinary permission.

The helper is a process of its own, `python -I -m coppermesh.exec.sandbox.witness`, that prints what it saw as JSON: it
forks some twenty children and takes about a tenth of a second. The agent keeps the answer until the machine is
started again or anything that the answer depends on has changed.
"""

import contextlib
import json
import os
import platform
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from coppermesh.exec import linux
from coppermesh.exec.sandbox import capabilities, kernel_calls, landlock, limits, namespaces, seccomp
from coppermesh.exec.sandbox.filters import CPU_WORKER
from coppermesh.exec.sandbox.layers import NAMES

WITNESS_SECONDS = 20.0
"""Most the helper may take; it needs a hundredth of that."""
ACT_SECONDS = 3.0
_SUCCEEDED, _STOPPED = 0, 7
_LARGE = 1 << 30
_GRANTED = 64 << 20


@dataclass(frozen=True)
class Witnessed:
    """What was seen of one layer."""

    layer: str
    held: bool
    act: str
    """What was tried."""
    why: str = ""
    """Where it did not hold: what was missing, for people."""
    remedy: str = ""
    """The command that would add the layer, or what to change; empty where nothing would."""
    lacks: str = ""
    """Where it held: what this kernel's edition of it does not cover, for people."""


@dataclass(frozen=True)
class Bait:
    """What the acts are after."""

    file: str
    port: int
    process: int
    queue: int
    """Number of a shared memory segment."""


@dataclass(frozen=True)
class Trial:
    """One layer's act."""

    layer: str
    what: str
    act: Callable[[Bait], object]
    """Returns something true where the act worked; raises OSError where it was stopped."""
    confine: Callable[[], object]
    """Puts on the layer, in the child. Raises OSError where it cannot."""
    before: Callable[[], object] = lambda: None
    """Done by both children first."""


def examine() -> list[Witnessed]:
    """Every layer of `layers.NAMES`, in that order. Forks: call it in a single-threaded process."""
    with _bait() as bait:
        seen = {trial.layer: _try(trial, bait) for trial in _trials()}
        seen.update(_examine_namespaces(bait))
    return [seen[name] for name in NAMES if name in seen]


def _trials() -> list[Trial]:
    return [
        Trial("limits", "map 1 GiB of memory under a limit of 64 MiB", _map_much, _limit_memory),
        Trial(
            "privileges",
            "change what only a capability lets change",
            _use_capability,
            capabilities.drop_capabilities,
            _be_capable,
        ),
        Trial("landlock", "open a file", _open_file, landlock.restrict),
        Trial("seccomp", "start a process", _start_process, lambda: seccomp.install(CPU_WORKER)),
        *(
            [Trial("uid", "read a file that is root's alone", _read_roots, capabilities.drop_root)]
            if _is_root()
            else []
        ),
    ]


# --- the acts


def _map_much(_bait: Bait) -> object:
    import mmap

    return mmap.mmap(-1, _LARGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _limit_memory() -> None:
    linux.set_limits({resource.RLIMIT_DATA: linux.private_memory_bytes() + _GRANTED})
    limits.apply(limits.NOTHING)


def _use_capability(_bait: Bait) -> object:
    kernel_calls.unshare(namespaces.NEW_UTS)
    return True


def _be_capable() -> None:
    """Root has capabilities; anybody else gets them over a namespace of one's own."""
    if not _is_root():
        kernel_calls.unshare(namespaces.NEW_USER)


def _open_file(bait: Bait) -> object:
    with open(bait.file) as file:
        return file.read()


def _read_roots(bait: Bait) -> object:
    with open(f"{bait.file}.root") as file:
        return file.read()


def _start_process(_bait: Bait) -> object:
    child = os.fork()
    if child == 0:
        os._exit(0)
    return os.waitpid(child, 0)


def _see_file(bait: Bait) -> object:
    return os.stat(bait.file).st_size


def _connect(bait: Bait) -> object:
    with socket.create_connection(("127.0.0.1", bait.port), ACT_SECONDS) as sock:
        return sock.getpeername()


def _signal_process(bait: Bait) -> object:
    os.kill(bait.process, 0)
    return True


def _attach_queue(bait: Bait) -> object:
    return kernel_calls.shared_memory_size(bait.queue)


_NAMESPACE_ACTS: dict[str, tuple[str, Callable[[Bait], object]]] = {
    "mountns": ("learn a file's size", _see_file),
    "netns": ("connect to a service of this machine", _connect),
    "pidns": ("signal a process outside", _signal_process),
    "ipcns": ("see shared memory of another process", _attach_queue),
}


# --- trying


def _try(trial: Trial, bait: Bait) -> Witnessed:
    control = _child(trial.before, trial.act, bait)
    if control != _SUCCEEDED:
        return Witnessed(
            trial.layer, False, trial.what, f"the act does not work without the layer either ({control})"
        )
    if trial.layer == "landlock" and not landlock.abi():
        return Witnessed(trial.layer, False, trial.what, "this kernel has no Landlock", _LANDLOCK_REMEDY)
    if trial.layer == "seccomp" and not seccomp.supported():
        return Witnessed(trial.layer, False, trial.what, _no_seccomp())
    confined = _child(lambda: (trial.before(), trial.confine()), trial.act, bait)
    if confined == _STOPPED:
        lacks = landlock.not_denied(landlock.abi()) if trial.layer == "landlock" else ""
        return Witnessed(trial.layer, True, trial.what, lacks=lacks)
    why = (
        "the act worked all the same"
        if confined == _SUCCEEDED
        else f"the layer could not be put on ({confined})"
    )
    return Witnessed(trial.layer, False, trial.what, why)


def _child(confine: Callable[[], object], act: Callable[[Bait], object], bait: Bait) -> int | str:
    """What a child that confines itself and tries the act ends with: succeeded, stopped, or an accident's name."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os._exit(_act_out(confine, act, bait, writing))
    os.close(writing)
    try:
        if not select.select([reading], [], [], ACT_SECONDS)[0]:
            os.kill(child, signal.SIGKILL)
        said = os.read(reading, 200).decode()
    finally:
        os.close(reading)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return said or (status if status in (_SUCCEEDED, _STOPPED) else f"ended with {status}")


def _act_out(confine: Callable[[], object], act: Callable[[Bait], object], bait: Bait, said: int) -> int:
    """In the child. The pipe carries what went wrong before the act; silence and the exit status tell of the act."""
    try:
        confine()
    except BaseException as error:  # noqa: BLE001 - a forked child must not return into its parent's code
        os.write(said, f"{type(error).__name__}: {error}"[:200].encode())
        return _STOPPED
    try:
        return _SUCCEEDED if act(bait) else _STOPPED
    except (OSError, MemoryError):
        return _STOPPED
    except BaseException as error:  # noqa: BLE001 - an accident is not the layer's doing
        with contextlib.suppress(OSError):
            os.write(said, f"{type(error).__name__}: {error}"[:200].encode())
        return _STOPPED


# --- namespaces, which are entered once for all of them


def _examine_namespaces(bait: Bait) -> dict[str, Witnessed]:
    controls = {name: _child(lambda: None, act, bait) for name, (_, act) in _NAMESPACE_ACTS.items()}
    program = namespaces.find_bubblewrap()
    inside, missing = ({}, "bubblewrap is installed and does not work here") if program else ({}, "")
    if program:
        inside = _under_bubblewrap(program, bait)
    if not inside:
        inside, why = _in_own(bait)
        missing = why or missing
    result, remedy = {}, namespace_remedy()
    for name, (what, _) in _NAMESPACE_ACTS.items():
        if controls[name] != _SUCCEEDED:
            why = f"the act does not work without the layer either ({controls[name]})"
            result[name] = Witnessed(name, False, what, why)
        elif inside.get(name) == _STOPPED:
            result[name] = Witnessed(name, True, what)
        elif name in inside:
            result[name] = Witnessed(
                name, False, what, f"the act worked all the same ({inside[name]})", remedy
            )
        else:
            result[name] = Witnessed(name, False, what, missing or "it could not be made", remedy)
    return result


def _in_own(bait: Bait) -> tuple[dict[str, int | str], str]:
    """Enter namespaces as the zygote does, in a child, and try each act there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            entered = namespaces.enter(namespaces.view_of_python([]))
            found = {name: _child(lambda: None, _NAMESPACE_ACTS[name][1], bait) for name in entered.layers}
            why = next(iter(entered.missing.values()), "")
            os.write(writing, json.dumps([found, why]).encode())
        except BaseException as error:  # noqa: BLE001 - as above
            os.write(writing, json.dumps([{}, f"{type(error).__name__}: {error}"[:200]]).encode())
        os._exit(0)
    os.close(writing)
    try:
        data = os.read(reading, 65536)
    finally:
        os.close(reading)
        os.waitpid(child, 0)
    found, why = json.loads(data) if data else ({}, "the process that tried ended")
    return found, why


def _under_bubblewrap(program: str, bait: Bait) -> dict[str, int | str]:
    command = namespaces.bubblewrap_command(program, namespaces.view_of_python([]))
    command += [sys.executable, "-I", "-m", "coppermesh.exec.sandbox.witness", json.dumps(asdict(bait))]
    try:
        done = subprocess.run(  # noqa: S603 - ourselves, under bubblewrap
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=WITNESS_SECONDS / 2, check=True
        )
        found: dict[str, int | str] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    return found


@contextlib.contextmanager
def _bait() -> Iterator[Bait]:
    directory = Path(tempfile.mkdtemp(prefix="coppermesh-witness-"))
    directory.chmod(0o755)
    (directory / "file").write_text("bait")
    (directory / "file").chmod(0o644)
    (directory / "file.root").write_text("bait")
    (directory / "file.root").chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as server:
        queue = kernel_calls.make_shared_memory()
        process = os.fork()
        if process == 0:
            linux.die_with_parent(os.getppid())
            signal.pause()
            os._exit(0)
        try:
            yield Bait(str(directory / "file"), server.getsockname()[1], process, queue)
        finally:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            kernel_calls.remove_shared_memory(queue)
            shutil.rmtree(directory)


_UID_TRIAL = Trial("uid", "read a file that is root's alone", _read_roots, capabilities.drop_root)


def _is_root() -> bool:
    return os.geteuid() == 0


def _no_seccomp() -> str:
    machine = platform.machine()
    if machine != "x86_64":
        return f"the filters are for x86-64, this machine is {machine}: it takes array programs only"
    return "this kernel has no seccomp filters"


_LANDLOCK_REMEDY = (
    "start Linux 5.13 or later with `lsm=landlock,...` on its command line (see /sys/kernel/security/lsm)"
)
_NAMESPACE_SWITCHES = (
    ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"),
    ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)
"""Below /proc/sys: what forbids ordinary processes namespaces, at which value, and the command that allows them."""


def namespace_remedy(switches: Path = Path("/proc/sys")) -> str:
    """How to get namespaces, by what this machine says of them."""
    for name, forbidding, command in _NAMESPACE_SWITCHES:
        with contextlib.suppress(OSError):
            if (switches / name).read_text().strip() == forbidding:
                return f"{command} (as root; keep it in /etc/sysctl.d)"
    if namespaces.find_bubblewrap() is None:
        return (
            "apt install bubblewrap; in a container, start that with a seccomp profile that allows `unshare`"
        )
    return "in a container, start that with a seccomp profile that allows `unshare`"


def main() -> None:
    """Print what was seen; with a bait as argument, only try the namespaces' acts, for a process inside them."""
    if len(sys.argv) == 2:
        bait = Bait(**json.loads(sys.argv[1]))
        found = {name: _child(lambda: None, act, bait) for name, (_, act) in _NAMESPACE_ACTS.items()}
        json.dump(found, sys.stdout)
    else:
        json.dump([asdict(entry) for entry in examine()], sys.stdout)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
