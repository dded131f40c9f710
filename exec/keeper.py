"""The agent's side of the zygote: starts it, asks it for children, starts it again when it was killed.

A child is known by a serial number that this side chose, and held by its pidfd, which stays that process's even after
its pid belongs to another. Whoever asks for a child gets a `Child` that tells when it has ended and how.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio

from coppermesh.exec import pipe
from coppermesh.exec.channel import Channel, channel_pair
from coppermesh.exec.errors import ExecError
from coppermesh.exec.sockets import close_all

START_SECONDS = 30.0
"""Most a zygote may take to load everything."""
FORK_SECONDS = 5.0
"""Most a fork may take, a zygote's restart before it included."""
ABANDONED_SECONDS = 1.0
"""Most that somebody who is cancelled waits for a fork that is under way to come and to end."""
GONE_SECONDS = 10.0
"""After SIGKILL a process is gone within milliseconds, unless it is stuck in a driver."""
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 5.0
HEALTHY_SECONDS = 30.0
"""A zygote that lived this long is restarted without a pause."""


class WorkerUnavailable(ExecError):
    """This machine cannot make a worker process now. Try again later, or elsewhere."""

    def __init__(self, sentence: str, detail: str = "") -> None:
        super().__init__("worker-unavailable", sentence, detail=detail)


@dataclass
class Child:
    """One child of the zygote."""

    serial: int
    pid: int
    pidfd: int
    ended: trio.Event = field(default_factory=trio.Event)
    exit_code: int | None = None
    """Once `ended`: exit status or minus the signal's number; None where nobody was left to ask."""
    cpu_us: int = 0
    """Once `ended`: processor time it used, in microseconds; 0 where nobody was left to ask."""

    def kill(self) -> None:
        """SIGKILL. Harmless when it has ended already."""
        self._signal(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: none of its threads runs until `thaw`. It can neither refuse nor end that. SIGKILL works still."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT. Harmless when it was not stopped."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):  # ended, not yet reported
                signal.pidfd_send_signal(self.pidfd, number)

    @property
    def is_over(self) -> bool:
        """Whether it has ended, reported or not: its pidfd is readable then."""
        if self.ended.is_set():
            return True
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return bool(poller.poll(0))

    async def gone(self, seconds: float = GONE_SECONDS) -> bool:
        """Wait until it has ended, at most so long; True when it has. Not cancelled from outside."""
        with trio.move_on_after(seconds) as scope:
            scope.shield = True
            await self.ended.wait()
        return self.ended.is_set()


class _Pending:
    """A fork that was asked for."""

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.child: Child | None = None
        self.reason = ""
        self.abandoned = False

    async def abandon(self) -> None:
        """Nobody wants it any more: it comes all the same, and is ended. Not cancelled from outside."""
        self.abandoned = True
        with trio.CancelScope(shield=True), trio.move_on_after(ABANDONED_SECONDS):
            await self.answered.wait()
            if self.child is not None:
                self.child.kill()
                await self.child.ended.wait()


class _Session:
    """One zygote process, from its start to its end."""

    def __init__(self, process: "subprocess.Popen[bytes]", channel: Channel, log: Path) -> None:
        self.process = process
        self.pidfd = os.pidfd_open(process.pid)
        self.forker: int | None = None
        """The pidfd of the process that forks: where there are namespaces, a child of the one that was started."""
        self.channel = channel
        self.log = log
        self.children: dict[int, Child] = {}
        self.pending: dict[int, _Pending] = {}
        self.sending = trio.Lock()

    async def read(self) -> None:
        """Take its messages until it ends, or the process around it does. Raises PipeError, OSError.

        Bubblewrap, once it has given up root, has no right to end a process of another user with itself.
        """
        faults: list[Exception] = []

        async def read_messages() -> None:
            try:
                await self._read_messages()
            except (pipe.PipeError, OSError) as error:
                faults.append(error)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_messages)
            await trio.lowlevel.wait_readable(self.pidfd)
            nursery.cancel_scope.cancel()
        if faults:
            raise faults[0]

    async def _read_messages(self) -> None:
        while True:
            data, descriptors = await self.channel.receive()
            try:
                if not data:
                    return
                self._take(pipe.decode_from_zygote(data), descriptors)
            finally:
                close_all(descriptors)

    def _take(self, message: pipe.FromZygote, descriptors: list[int]) -> None:
        if isinstance(message, pipe.Forked) and len(descriptors) == 1:
            pidfd = descriptors.pop()
            child = Child(message.serial, _pid_here(pidfd) or message.pid, pidfd)
            self.children[message.serial] = child
            pending = self.pending.pop(message.serial, None)
            if pending is None or pending.abandoned:
                child.kill()
            if pending is not None:
                pending.child = child
                pending.answered.set()
        elif isinstance(message, pipe.ForkFailed):
            if pending := self.pending.pop(message.serial, None):
                pending.reason = message.reason
                pending.answered.set()
        elif isinstance(message, pipe.Exited):
            if message.serial in self.children:
                _end(self.children.pop(message.serial), message.code, message.cpu_us)
        else:
            raise pipe.PipeError(
                f"the zygote said {type(message).__name__} with {len(descriptors)} descriptors"
            )

    async def finish(self) -> None:
        """End it and everything that came from it."""
        with trio.CancelScope(shield=True):
            self.channel.close()
            for child in self.children.values():
                child.kill()
            self.process.kill()
            if self.forker is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self.forker, signal.SIGKILL)
                os.close(self.forker)
                self.forker = None
            await trio.to_thread.run_sync(self.process.wait)
            os.close(self.pidfd)
            for pending in self.pending.values():
                pending.reason = "the zygote ended"
                pending.answered.set()
            # Nobody is left to report them; a pidfd becomes readable when its process ends.
            for child in list(self.children.values()):
                with trio.move_on_after(GONE_SECONDS):
                    await trio.lowlevel.wait_readable(child.pidfd)
                _end(child, None)
            self.children.clear()


def _pid_here(pidfd: int) -> int | None:
    """The process's number in our own process namespace; the zygote may live in another. None once it has ended."""
    try:
        lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    except OSError:
        return None
    numbers = [int(line.split()[1]) for line in lines if line.startswith("Pid:")]
    return numbers[0] if numbers and numbers[0] > 0 else None


def _end(child: Child, code: int | None, cpu_us: int = 0) -> None:
    child.exit_code = code
    child.cpu_us = cpu_us
    child.ended.set()
    os.close(child.pidfd)


class Keeper:
    """Keeps one zygote alive and forks from it."""

    def __init__(
        self,
        start: pipe.Start,
        directory: Path,
        environment: dict[str, str],
        prefix: Sequence[str] = (),
    ) -> None:
        """`prefix` is a command to start the zygote under (bubblewrap)."""
        self._start = start
        self._directory = directory
        self._environment = environment
        self._prefix = list(prefix)
        self.layers: tuple[str, ...] = ()
        """The sandbox's layers that the zygote is in or puts on its children, in its own words.

        They have been announced, so a later zygote with fewer of them is ended, and tried again without end.
        """
        self._session: _Session | None = None
        self._changed = trio.Event()
        self._last_log = ""
        self._serial = 0

    @property
    def kind(self) -> str:
        """Which runtime the workers have: `cpu` or `cuda`."""
        return self._start.kind

    @property
    def zygote_pid(self) -> int | None:
        """The running zygote's process id, for tests and for people."""
        return self._session.process.pid if self._session else None

    @property
    def forker_pid(self) -> int | None:
        """The process that forks, by its number here; a child of the zygote's where there are namespaces."""
        forker = self._session.forker if self._session else None
        return None if forker is None else _pid_here(forker)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a zygote running until cancelled. Started when the first one is ready.

        Raises WorkerUnavailable where the first one does not start; later ones are tried without end.
        """
        pause, first = 0.0, True
        while True:
            await trio.sleep(pause)
            began = trio.current_time()
            try:
                async with self._zygote() as session:
                    if first:
                        task_status.started()
                        first = False
                    await session.read()
            except (WorkerUnavailable, pipe.PipeError, OSError):
                if first:
                    raise
            lived = trio.current_time() - began
            pause = 0.0 if lived > HEALTHY_SECONDS else min(max(2 * pause, FIRST_PAUSE), LONGEST_PAUSE)

    @asynccontextmanager
    async def _zygote(self) -> AsyncIterator[_Session]:
        session = await self._spawn()
        try:
            await self._wait_until_ready(session)
            self._switch(session)
            yield session
        finally:
            self._switch(None)
            await session.finish()

    async def _spawn(self) -> _Session:
        log = self._directory / "zygote.log"
        parent = (
            "0" if self._prefix else str(os.getpid())
        )  # from a process namespace, nobody outside has a number
        channel, theirs = channel_pair()
        try:
            with open(log, "wb") as errors:  # noqa: ASYNC230 - one empty file
                # Here and not in a thread: the zygote's death signal follows the thread that started it, and trio's
                # threads end after some idle seconds.
                process = subprocess.Popen(  # noqa: ASYNC220, S603 - see above; ourselves, without a shell
                    [
                        *self._prefix,
                        sys.executable,
                        "-I",
                        "-m",
                        "coppermesh.exec.zygote",
                        str(theirs),
                        parent,
                    ],
                    cwd="/",
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    pass_fds=(theirs,),
                    start_new_session=True,
                )
        except OSError as error:
            channel.close()
            raise WorkerUnavailable(f"no process for workers could be started: {error}") from error
        finally:
            os.close(theirs)
        return _Session(process, channel, log)

    async def _wait_until_ready(self, session: _Session) -> None:
        data, descriptors = b"", list[int]()
        with trio.move_on_after(START_SECONDS), contextlib.suppress(OSError):  # it may be gone already
            await session.channel.send(pipe.encode(self._start))
            data, descriptors = await session.channel.receive()
        if data:
            ready = pipe.decode_from_zygote(data)
            if isinstance(ready, pipe.Ready) and ready.threads == 1 and len(descriptors) == 1:
                if lost := [layer for layer in self.layers if layer not in ready.layers]:
                    close_all(descriptors)
                    raise WorkerUnavailable(f"the sandbox around workers has lost {', '.join(lost)}")
                self.layers, session.forker = ready.layers, descriptors[0]
                return
            close_all(descriptors)
            raise WorkerUnavailable(f"the process for workers is not fit to be forked: {ready}")
        said = session.log.read_bytes()[-2000:].decode(errors="replace")
        raise WorkerUnavailable(
            f"the process for workers did not get ready within {START_SECONDS:.0f} s", said
        )

    def _switch(self, session: _Session | None) -> None:
        self._session = session
        self._changed.set()
        self._changed = trio.Event()

    async def fork(self, order: pipe.Fork, descriptors: list[int]) -> Child:
        """A new child for `order` (whose serial number is filled in here). `descriptors` stay the caller's.

        Raises WorkerUnavailable.
        """
        with trio.move_on_after(FORK_SECONDS):
            while (session := self._session) is None:
                await self._changed.wait()
            return await self._fork_from(session, order, descriptors)
        raise WorkerUnavailable(f"no worker process within {FORK_SECONDS:.0f} s")

    async def _fork_from(self, session: _Session, order: pipe.Fork, descriptors: list[int]) -> Child:
        self._serial += 1
        serial = self._serial
        pending, sent = _Pending(), False
        try:
            async with session.sending:
                session.pending[serial] = pending
                await session.channel.send(pipe.encode(_with_serial(order, serial)), descriptors)
                sent = True
            await pending.answered.wait()
        except (OSError, trio.ClosedResourceError) as error:
            session.pending.pop(serial, None)
            raise WorkerUnavailable("the process that makes workers has just ended") from error
        except trio.Cancelled:
            if sent:
                await pending.abandon()
            session.pending.pop(serial, None)
            raise
        if pending.child is None:
            raise WorkerUnavailable(f"no worker process could be made: {pending.reason}")
        return pending.child


def _with_serial(order: pipe.Fork, serial: int) -> pipe.Fork:
    return msgspec.structs.replace(order, serial=serial)
