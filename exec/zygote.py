"""The zygote: one clean process with everything loaded, of which workers are forked.

Importing NumPy takes 150 to 400 ms; forking a process that has it takes one or two. The zygote is started by
executing Python afresh (`python -I -m coppermesh.exec.zygote`), so it holds none of the agent's memory, keys or
descriptors, gets an environment of a few fixed words, and never imports the network side. It stays single-threaded,
because only such a process may be forked safely, and never touches a GPU, because a GPU's driver does not survive a
fork. It reads orders from its only socket and forks; it never reads anything that a worker wrote. Where it can, it
leaves the machine's files, network and processes behind before it forks (`sandbox.apply.enter_zygote`).

It dies with the agent (by signal, and by its socket closing), and its children die with it.

Exit statuses are reported to the agent with the child's serial number, never its pid: a pid may be another process
by then. For the same reason the child's pidfd is opened and sent before the child can be reaped.
"""

import contextlib
import fcntl
import gc
import importlib
import os
import select
import signal
import socket
import sys
from typing import NoReturn

from coppermesh.exec import linux, pipe, sockets
from coppermesh.exec.blackbox import BlackBox
from coppermesh.exec.sandbox import apply, namespaces

PRELOAD = (
    "numpy",
    "numpy.fft",
    "numpy.linalg",
    "coppermesh.exec.builder",
    "coppermesh.exec.numpy_runtime",
    "coppermesh.exec.worker",
)
PRELOAD_ON_GPU = ("cupy", "cupy.fft", "cupy.linalg", "cupyx", "coppermesh.exec.cupy_runtime")
"""None of them touches the driver: it does not survive a fork (`tests/unit/test_cupy_names.py`)."""
FORBIDDEN = ("trio", "libp2p", "nacl", "coppermesh.agent", "coppermesh.p2p")
"""Modules of the network side: their presence here means that keys or sockets may be near."""

_SOCKET = 3
_BOX = 4


class Zygote:
    """The loop that forks and reaps."""

    def __init__(self, control: socket.socket, start: pipe.Start, scratch: int | None = None) -> None:
        """`scratch` is a descriptor of the directory that children's own ones lie in."""
        self._control = control
        self._start = start
        self._scratch = scratch
        self._serials: dict[int, int] = {}  # by pid, until reaped

    def serve(self) -> None:
        """Until the agent closes its end; then every child is killed."""
        wake_reading, wake_writing = os.pipe()
        os.set_blocking(wake_reading, False)
        os.set_blocking(wake_writing, False)
        signal.set_wakeup_fd(wake_writing)
        signal.signal(
            signal.SIGCHLD, lambda *_: None
        )  # a handler, so that the wake-up descriptor is written to
        linux.children_stop_unheard()
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(wake_reading, select.POLLIN)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                ready = {descriptor for descriptor, _ in poller.poll()}
                if wake_reading in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake_reading, 4096)
                    self._reap()
                if self._control.fileno() in ready and not self._obey():
                    break
        for pid in self._serials:
            os.kill(pid, signal.SIGKILL)

    def _obey(self) -> bool:
        data, descriptors = sockets.receive(self._control)
        try:
            if not data:
                return False
            self._fork(pipe.decode_fork(data), descriptors)
        finally:
            sockets.close_all(descriptors)
        return True

    def _fork(self, order: pipe.Fork, descriptors: list[int]) -> None:
        zygote = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._tell(pipe.ForkFailed(order.serial, f"fork: {error.strerror}"))
            return
        if pid == 0:
            self._become_child(order, descriptors, zygote)
        self._serials[pid] = order.serial
        pidfd = os.pidfd_open(pid)
        try:
            self._tell(pipe.Forked(order.serial, pid), [pidfd])
        finally:
            os.close(pidfd)

    def _become_child(self, order: pipe.Fork, descriptors: list[int], zygote: int) -> NoReturn:
        """What the forked child does instead of returning. The exit status tells of trouble before it could speak."""
        status = 70
        try:
            linux.die_with_parent(zygote)
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if self._scratch is not None:
                os.fchdir(self._scratch)
            os.chdir(os.path.basename(order.directory) if self._scratch is not None else order.directory)
            sock, box = take_descriptors(descriptors)
            serve = importlib.import_module(f"coppermesh.exec.{order.role}")  # loaded already, by `preload`
            serve.main(sock, box, order, self._start)
            status = 0
        except BaseException as error:  # noqa: BLE001 - nothing may return into the zygote's loop
            os.write(2, f"{type(error).__name__}: {error}".encode()[:1000])
        finally:
            os._exit(status)

    def _reap(self) -> None:
        """Report children that ended. Orphans of builders come here too and are only reaped."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status, used = os.wait4(-1, os.WNOHANG)
                if pid == 0:
                    return
                serial = self._serials.pop(pid, None)
                if serial is not None:
                    cpu_us = int(1e6 * (used.ru_utime + used.ru_stime))
                    self._tell(pipe.Exited(serial, os.waitstatus_to_exitcode(status), cpu_us))
                self._end_orphans()

    def _end_orphans(self) -> None:
        """Kill what a builder that has ended left behind; each death comes back here, until nothing is left.

        Such a process is our child now, so its number is its own until it is reaped. Its session is its builder's:
        a builder's filter lets nobody make another.
        """
        with contextlib.suppress(OSError, ValueError):
            with open("/proc/thread-self/children") as file:
                children = [int(word) for word in file.read().split()]
            for pid in children:
                if pid not in self._serials and os.getsid(pid) not in (*self._serials, os.getsid(0)):
                    os.kill(pid, signal.SIGKILL)

    def _tell(self, message: pipe.PipeMessage, descriptors: list[int] | None = None) -> None:
        sockets.send(self._control, pipe.encode(message), descriptors or [])


def take_descriptors(descriptors: list[int]) -> tuple[socket.socket, BlackBox]:
    """Keep the child's socket and black box, its standard streams on the latter, and close everything else."""
    if len(descriptors) != 2:
        raise pipe.PipeError(f"a child needs 2 descriptors, {len(descriptors)} came")
    # Out of the way first: either may have the number that the other is to get.
    high = [_above(descriptor) for descriptor in descriptors]
    null = _above(os.open("/dev/null", os.O_RDWR))
    os.dup2(null, 0)
    os.dup2(high[1], 1)
    os.dup2(high[1], 2)
    os.dup2(high[0], _SOCKET, inheritable=False)
    os.dup2(high[1], _BOX, inheritable=False)
    os.closerange(_BOX + 1, 1 << 20)
    return socket.socket(fileno=_SOCKET), BlackBox(_BOX)


def _above(descriptor: int) -> int:
    """The same file at a number of 64 or more."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64)


def preload(kind: str) -> None:
    """Import all that workers need. Raises RuntimeError where that brought in what must not be here."""
    for name in (*PRELOAD, *(PRELOAD_ON_GPU if kind == "cuda" else ())):
        importlib.import_module(name)
    present = [name for name in FORBIDDEN if name in sys.modules]
    if present:
        raise RuntimeError(f"the zygote must not import {', '.join(present)}")


def count_threads() -> int:
    """Threads of this process."""
    return len(os.listdir("/proc/self/task"))


def main() -> None:
    """Entry point: `python -I -m coppermesh.exec.zygote SOCKET AGENT_PID`."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    linux.die_with_parent(int(sys.argv[2]))
    linux.adopt_orphans()
    data, _ = sockets.receive(control, 0)
    if not data:
        return
    start = pipe.decode_start(data)
    preload(start.kind)
    apply.prepare(start.compiler, start.family)
    os.umask(0o077)
    layers, scratch = _seclude(start)
    gc.collect()
    gc.freeze()  # what is loaded is garbage to nobody; a child that collects must not touch, and so copy, its pages
    pidfd = os.pidfd_open(os.getpid())
    sockets.send(control, pipe.encode(pipe.Ready(count_threads(), layers)), [pidfd])
    os.close(pidfd)
    Zygote(control, start, scratch).serve()


def _seclude(start: pipe.Start) -> tuple[tuple[str, ...], int | None]:
    """Leave the machine's namespaces and its root user, as far as possible: the layers, and the scratch directory.

    That is opened in between: its path may lead through directories that only root can enter.
    """
    layers: tuple[str, ...] = ()
    if start.namespaces == "own":
        extra = apply.compiler_homes(start.compiler)
        view = namespaces.view_of_python([start.scratch], extra, gpu=start.kind == "cuda")
        layers = tuple(namespaces.enter(view).layers)
    elif start.namespaces == "bubblewrap":
        layers = namespaces.LAYERS
    scratch = os.open(start.scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if start.scratch else None
    apply.leave_root()
    if start.compiler and scratch is not None:
        importlib.import_module("coppermesh.exec.builder").look_around(
            scratch
        )  # loaded already, by `preload`
    return (*layers, *apply.available()), scratch


if __name__ == "__main__":
    main()
