"""Namespaces: an own network, process table, file system and host name, once for the zygote and all its workers.

Theory. A process in a new network namespace has a loopback device that is down and nothing else; in a new process
namespace it can neither see nor signal anybody outside; in a new mount namespace it sees the file system that was put
together for it. Making them takes root, or a user namespace in which an ordinary user is root over nothing but them;
some machines forbid the latter (Docker's default profile, Ubuntu's AppArmor), so nothing may depend on it: Landlock and
seccomp are the floor, and this is what closes the rest (`stat` of a path above all).

Two ways. Where bubblewrap is installed, the zygote is started under it (`bubblewrap_command`); distributions give it
the right to user namespaces where others lack it. Else the zygote makes them itself (`enter`), in this order: unshare,
map the own user, fork (a process namespace begins with a child, whose end ends all in it), and in the child a new root:
read-only mounts of what is needed, an own /proc, and the old root unmounted.

The zygote's first process stays outside as the parent that the agent knows, and waits. It dies with the agent, and the
child with it.
"""

import contextlib
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coppermesh.exec import linux
from coppermesh.exec.sandbox import kernel_calls

NEW_USER, _NEW_PID, _NEW_NET = 0x10000000, 0x20000000, 0x40000000
_NEW_MOUNT, NEW_UTS, _NEW_IPC = 0x00020000, 0x04000000, 0x08000000
_REST = _NEW_PID | _NEW_NET | _NEW_MOUNT | NEW_UTS | _NEW_IPC

_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_EXEC = 1, 2, 4, 8
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 1 << 18
_MOUNT_SETATTR, _PIVOT_ROOT = 442, 155
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_PR_SET_DUMPABLE = 4
_ROOT_OPTIONS = "mode=755,size=1m"
_MOUNT_POINT = "/tmp"  # noqa: S108 - a directory that every system has; it is mounted upon in this namespace only
_OLD_ROOT = "/.outside"
_SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/alternatives",
)

LAYERS = ("mountns", "netns", "pidns", "ipcns")
"""What `enter` and bubblewrap give, by the names of `layers`."""


@dataclass(frozen=True)
class View:
    """The files that a zygote and its children can see at all. Paths that do not exist are left out."""

    read_only: tuple[str, ...]
    writable: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@dataclass
class Entered:
    """What was done, and what could not be."""

    layers: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """By layer: why not."""


def find_bubblewrap() -> str | None:
    """The path of `bwrap`, or None. Whether it works here is for the witness to say."""
    return shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")


def bubblewrap_command(program: str, view: View) -> list[str]:
    """What to put before a command so that it runs under bubblewrap. Its parent then has the process id 0.

    Started by root it keeps the privilege of becoming another user, which the sandboxed process must then use.
    """
    command = [program, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--as-pid-1"]
    if os.geteuid() == 0:
        command += ["--cap-drop", "ALL"]
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL"):
            command += ["--cap-add", capability]
    else:
        command += ["--unshare-user", "--cap-drop", "ALL"]
    command += ["--die-with-parent", "--new-session", "--hostname", "coppermesh"]
    for path in _parents(_outermost((*view.read_only, *view.writable))):
        command += ["--perms", "0755", "--dir", path]  # else only root could pass through
    for path in _outermost(view.read_only):
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        else:
            command += ["--ro-bind", path, path]
    command += ["--proc", "/proc", "--dev", "/dev"]
    for path in view.devices:
        if path not in View(()).devices and os.path.exists(path):
            command += ["--dev-bind", path, path]
    for path in view.writable:
        command += ["--bind", path, path]
    return [*command, "--chdir", "/", "--"]


def bubblewrap_works(command: Sequence[str]) -> bool:
    """Whether a program runs under that command here. Blocks for some 30 ms, at most 10 s."""
    try:
        done = subprocess.run(  # noqa: S603 - bubblewrap of this machine, with a program of the system
            [*command, "/bin/true"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def enter(view: View) -> Entered:
    """Move this single-threaded process, in a child, into namespaces of its own, and return there.

    The calling process never returns where that worked: it waits for the child and ends as it did. Where no namespace
    can be made it returns in place, with the reason. Capabilities are still held inside; the caller drops them.
    Raises OSError where the machine changed its mind between the trial and the act.
    """
    done = Entered()
    if fault := _try_in_a_child():
        done.missing = dict.fromkeys(LAYERS, fault)
        return done
    parent = os.getppid()
    _unshare()
    linux.die_with_parent(parent)  # new credentials have cleared it
    _continue_as_first_process()
    done.layers = ["netns", "pidns", "ipcns"]
    with contextlib.suppress(OSError):
        socket.sethostname("coppermesh")
    try:
        _make_root(view)
        done.layers.insert(0, "mountns")
    except OSError as error:
        done.missing["mountns"] = f"own file system: {error}"
    return done


def _try_in_a_child() -> str:
    """Why namespaces cannot be made; empty where they can. Half of it done would leave a process without a user."""
    child = os.fork()
    if child == 0:
        try:
            _unshare()
        except OSError as error:
            os._exit(error.errno or 255)
        except BaseException:  # noqa: BLE001 - a forked child must not return into its parent's code
            os._exit(255)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "" if code == 0 else f"unshare: {os.strerror(code) if 0 < code < 255 else f'ended with {code}'}"


def _unshare() -> None:
    if os.geteuid() == 0:
        kernel_calls.unshare(_REST)
    else:
        become_own_user(_REST)


def become_own_user(others: int) -> None:
    """Unshare `others` in a new user namespace that holds this process's user alone. Raises OSError.

    It has every capability over what is made in it until it drops them, and over nothing else.
    """
    user, group = os.geteuid(), os.getegid()
    # The maps belong to root while this process is not dumpable, which changing the user made it.
    linux.prctl(_PR_SET_DUMPABLE, 1)
    kernel_calls.unshare(NEW_USER | others)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def _continue_as_first_process() -> None:
    """Fork; the child returns as process 1 of the new namespace, the parent waits for its end and repeats it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        linux.die_with_parent(0)  # the parent is outside: seen from here it has no number
        # Its end of the pipe closes when it dies, which may have happened before the line above.
        os.set_blocking(reading, False)
        with contextlib.suppress(BlockingIOError):
            if os.read(reading, 1) == b"":
                os._exit(0)
        os.close(reading)
        return
    os.closerange(3, writing)
    os.closerange(writing + 1, 1 << 16)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(status & 0xFF)


def _make_root(view: View) -> None:
    """Replace the file system by `view`. Raises OSError."""
    links = {path: os.readlink(path) for path in view.read_only if os.path.islink(path)}
    sources = [
        *((path, _READ_ONLY | _NO_SUID) for path in _outermost(view.read_only) if path not in links),
        *((path, _NO_SUID | _NO_EXEC) for path in view.devices if os.path.exists(path)),
        *((path, _NO_SUID | _NO_DEVICES) for path in view.writable),
    ]
    # Opened in the old root: a path with a link in it would be followed in the new one.
    opened = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC), flags) for path, flags in sources]
    before = os.umask(0o022)  # what is made here is for whoever the process becomes
    try:
        kernel_calls.mount("none", "/", None, _RECURSIVE | _PRIVATE)
        kernel_calls.mount("coppermesh", _MOUNT_POINT, "tmpfs", _NO_SUID | _NO_DEVICES, _ROOT_OPTIONS)
        os.mkdir(_MOUNT_POINT + _OLD_ROOT)
        kernel_calls.call(_PIVOT_ROOT, f"{_MOUNT_POINT}\0".encode(), f"{_MOUNT_POINT}{_OLD_ROOT}\0".encode())
        os.chdir("/")
        for path, target in links.items():
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            os.symlink(target, path)
        for path, descriptor, flags in opened:
            _show(path, descriptor, flags)
        os.makedirs("/proc", exist_ok=True)
        kernel_calls.mount("proc", "/proc", "proc", _NO_SUID | _NO_DEVICES | _NO_EXEC)
        kernel_calls.detach(_OLD_ROOT)
        os.rmdir(_OLD_ROOT)
        _set_flags("/", _READ_ONLY | _NO_SUID | _NO_DEVICES, 0)
    finally:
        os.umask(before)
        for _, descriptor, _ in opened:
            os.close(descriptor)


def _show(path: str, descriptor: int, flags: int) -> None:
    """Mount an opened file or directory at `path` of the new root, with what is mounted inside it."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.makedirs(path, mode=0o755, exist_ok=True)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    kernel_calls.mount(f"{_OLD_ROOT}/proc/self/fd/{descriptor}", path, None, _BIND | _RECURSIVE)
    _set_flags(path, flags, _AT_RECURSIVE)


def _set_flags(path: str, flags: int, how: int) -> None:
    words = struct.pack("=QQQQ", flags, 0, 0, 0)
    kernel_calls.call(_MOUNT_SETATTR, _AT_FDCWD, path.encode() + b"\0", how, words, len(words))


def _outermost(paths: Iterable[str]) -> list[str]:
    """The existing paths that lie in none of the others, in order."""
    found: list[str] = []
    for path in sorted({os.path.normpath(path) for path in paths if os.path.lexists(path)}):
        if not any(path.startswith(f"{other}/") for other in found):
            found.append(path)
    return found


def _parents(paths: Iterable[str]) -> list[str]:
    """Every directory above the paths, without the root, outermost first."""
    return sorted({str(parent) for path in paths for parent in Path(path).parents if str(parent) != "/"})


def view_of_python(writable: Sequence[str], extra: Sequence[str] = (), *, gpu: bool = False) -> View:
    """What a zygote of this Python needs to see: system libraries, interpreter, packages, its scratch directories."""
    package = Path(__file__).parents[2]
    packages = [path for path in sys.path if path.startswith("/") and os.path.isdir(path)]
    read_only = [*_SYSTEM, sys.prefix, sys.base_prefix, *packages, str(package), *extra]
    devices = View(()).devices
    if gpu:
        read_only += ["/sys", "/run/nvidia-persistenced"]
        devices += tuple(gpu_devices())
    # A prefix of "/" (a relocated interpreter) would show everything.
    kept = tuple(path for path in dict.fromkeys(read_only) if os.path.normpath(path) != "/")
    return View(kept, tuple(writable), devices)


def gpu_devices() -> list[str]:
    """The device files that CUDA needs, of those that are here: control, memory, and each card."""
    names = sorted(os.listdir("/dev"))
    wanted = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "dxg")
    cards = [name for name in names if name.startswith("nvidia") and name[6:].isdigit()]
    return [f"/dev/{name}" for name in (*(name for name in wanted if name in names), *cards)]
