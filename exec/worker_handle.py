"""One lease's worker, seen from the agent: a conversation with a process that may be running a stranger's code.

A run is `Run`, some requests (`Build`, which a builder process answers, and `Need`, for memory files), then `Done` or
`Failed`. The wall clock is kept here and ends in SIGKILL; after that, or after a crash, the next run gets a new
process. Every message is bounded and checked, and one that makes no sense ends the process.

A process that was given native code is stopped between its answer and its next run: threads that it started would
compute on, unpaid and on a device that counts as idle.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import trio

from coppermesh.exec import pipe
from coppermesh.exec.blackbox import BlackBox
from coppermesh.exec.budget import format_bytes
from coppermesh.exec.buffers import adopt_outputs, prepare_parts
from coppermesh.exec.built_kernels import BuiltKernels
from coppermesh.exec.cgroups import WorkerGroup
from coppermesh.exec.channel import Channel
from coppermesh.exec.cuda_build import scrub
from coppermesh.exec.endings import (
    SPOILING_CODES,
    Answer,
    explain_exit,
    explain_memory_kill,
    explain_nonsense,
    explain_unavailable,
    explain_wall_limit,
)
from coppermesh.exec.errors import plain_sentence
from coppermesh.exec.keeper import Child, WorkerUnavailable
from coppermesh.exec.lent_files import MOST_HELD, FileId, LentFiles
from coppermesh.exec.memory_watch import Allowance, file_ids
from coppermesh.exec.meter import Meter
from coppermesh.exec.metering import read_energy
from coppermesh.exec.program import MAX_OUTPUTS
from coppermesh.exec.receive_buffers import ReceiveBuffer, ReceiveBuffers
from coppermesh.exec.runs import InputBuffer, RunOutcome, WorkerLimits
from coppermesh.exec.sockets import close_all
from coppermesh.exec.trace_digests import DIGEST_BYTES, TraceDigests

MAX_REQUESTS_PER_RUN = 1024
"""A program has at most 256 kernels, each built for at most a few types and copied at most once, and 64 outputs."""
BUILD_FAULTS = frozenset({"compiler-missing", "worker-unavailable"})
"""Failures of a build that are this machine's doing."""


@dataclass
class Process:
    """One live worker process and what belongs to it."""

    child: Child
    channel: Channel
    box: BlackBox
    directory: Path
    spoiled: bool = False
    """It must not get another run: it is in the middle of one, or has misbehaved, or ended."""
    peak_bytes: int = 0
    determinism: str = ""
    allowance: Allowance | None = None
    """What the watchdog lets it hold; None: it is not watched."""
    sent: frozenset[FileId] = frozenset()
    """Memory files that the agent gave it for the run at hand: they count as the agent's."""
    lent: LentFiles = field(default_factory=LentFiles)
    """Memory files that it fills, and libraries: they count as its own for as long as it holds them."""
    ran_native: bool = False
    """It was given a kernel: whatever it says may be a stranger's word from then on."""
    told: frozenset[str] = frozenset()
    """Codes of builds that failed through this machine's fault, in the run at hand."""
    verdict: Answer | None = None
    """Why the watchdog ended it."""
    group: WorkerGroup | None = None
    """Its cgroup, where there are any."""


@dataclass(frozen=True)
class _Run:
    """What one run is asked for."""

    parts: list[bytes | int]
    files: list[int]
    output_sizes: Sequence[int] | None
    digests: bool


class Workshop(Protocol):
    """What a worker needs of its supervisor."""

    @property
    def meter(self) -> Meter:
        """What measures the device's energy."""
        ...

    async def make_process(self, limits: WorkerLimits, kernels: bool) -> Process:
        """A new worker process. Raises WorkerUnavailable."""
        ...

    async def end_process(self, process: Process) -> None:
        """Kill it and remove what it left. Not cancelled from outside."""
        ...

    async def build(
        self, limits: WorkerLimits, request: pipe.Build, source: list[int]
    ) -> tuple[pipe.Built, list[int]]:
        """Have a kernel compiled: the answer, and the library's descriptor where there is one."""
        ...


class _Ended(Exception):
    """The worker's end of the socket has closed."""


class Worker:
    """One worker process at a time, forked again after it was killed or died."""

    def __init__(self, workshop: Workshop, limits: WorkerLimits, kernels: bool) -> None:
        self._workshop = workshop
        self._limits = limits
        self._kernels = kernels
        self._process: Process | None = None
        self._turn = trio.Lock()
        self._number = 0
        self._buffers = ReceiveBuffers()
        self._built = BuiltKernels()

    @property
    def pid(self) -> int | None:
        """The live process's id, for people and tests; None where there is none."""
        return self._process.child.pid if self._process else None

    async def start(self) -> None:
        """Make the process now rather than at the first run. Raises WorkerUnavailable."""
        async with self._turn:
            await self._live_process()

    async def close(self) -> None:
        """End the process, at once, and give back the memory that its inputs came in."""
        try:
            await self._discard()
        finally:
            self._buffers.close()
            self._built.close()

    async def run(
        self,
        program: bytes,
        inputs: Sequence[InputBuffer],
        wall_limit_s: float,
        *,
        output_sizes: Sequence[int] | None = None,
        digests: bool = False,
    ) -> RunOutcome:
        """Run one program; `output_sizes`, where given, are what its outputs must have. `digests` asks for nodes' too.

        Raises only for what the caller did wrong (ValueError: too many inputs, a file shorter than its size).
        Cancelling kills the process. Runs of one worker take turns; waiting for the turn, and for a new process where
        one is needed, does not count against `wall_limit_s`.
        """
        async with self._turn:
            try:
                prepared = await prepare_parts(program, inputs, self._buffers)
            except WorkerUnavailable as error:
                return self._outcome(explain_unavailable(error), time.time_ns() // 1000, 0, None, None)
            try:
                try:
                    process = await self._live_process()
                except WorkerUnavailable as error:
                    return self._outcome(explain_unavailable(error), time.time_ns() // 1000, 0, None, None)
                run = _Run(prepared.parts, prepared.files, output_sizes, digests)
                outcome = await self._timed_run(process, run, wall_limit_s)
                outcome.input_bytes = len(program) + sum(buffer.size for buffer in inputs)
                return outcome
            finally:
                prepared.close()

    def receive_buffer(self, size: int) -> AbstractContextManager[ReceiveBuffer]:
        """`with worker.receive_buffer(size) as buffer`: memory to fill (`buffer.view`) and to run with, uncopied
        (`buffer.as_input()`). Used again for this worker's later inputs. Raises OSError where there is no memory.
        """
        return self._buffers.borrow(size)

    async def _timed_run(self, process: Process, run: _Run, wall_limit_s: float) -> RunOutcome:
        before_mj = await read_energy(self._workshop.meter)
        started_us, began = time.time_ns() // 1000, time.perf_counter_ns()
        process.spoiled = True  # until it has answered: nobody may find it in the middle of a program
        process.sent, process.told = file_ids(run.files), frozenset()
        try:
            answer = await self._bounded(process, run, wall_limit_s)
            wall_us = (time.perf_counter_ns() - began) // 1000
        finally:
            if process.spoiled:  # also when cancelled from outside
                await self._discard()
        after_mj = await read_energy(self._workshop.meter)
        used_mj = after_mj - before_mj if after_mj is not None and before_mj is not None else None
        if used_mj is not None and used_mj < 0:  # a counter that began anew says nothing
            used_mj = None
        return self._outcome(answer, started_us, wall_us, used_mj, process)

    async def _bounded(self, process: Process, run: _Run, wall_limit_s: float) -> Answer:
        with trio.move_on_after(wall_limit_s):
            return await self._converse(process, run)
        process.child.kill()
        return explain_wall_limit(scrub(process.box.stage()), scrub(process.box.output()), wall_limit_s)

    async def _converse(self, process: Process, run: _Run) -> Answer:
        self._number += 1
        if process.ran_native:
            process.child.thaw()
        wanted = (1 if run.output_sizes is None else len(run.output_sizes)) + run.digests
        try:
            with _lend(process, min(wanted, MAX_OUTPUTS + 1)) as lent:
                message = pipe.Run(self._number, tuple(run.parts), run.digests, len(lent))
                await _send(process, message, [*run.files, *lent])
            for requests in range(MAX_REQUESTS_PER_RUN + 1):
                answer = await self._next_answer(process, run, may_ask=requests < MAX_REQUESTS_PER_RUN)
                if answer is not None:
                    return answer
            raise pipe.PipeError("more requests than a program has kernels and outputs")
        except _Ended:
            return await self._explain_end(process)
        except pipe.PipeError as error:
            return process.verdict or explain_nonsense(error)
        except OSError as error:  # of lending: no descriptors, no memory
            return explain_unavailable(
                WorkerUnavailable(f"this machine has no memory file for a worker: {error.strerror}")
            )

    async def _next_answer(self, process: Process, run: _Run, *, may_ask: bool) -> Answer | None:
        """Take one message. None: it asked for something, and has got it."""
        data, descriptors = await process.channel.receive()
        if not data:
            raise _Ended
        try:
            message = pipe.decode_from_worker(data)
            if descriptors:
                raise pipe.PipeError("files that nobody asked for")
            if isinstance(message, pipe.Build | pipe.Need):
                if not may_ask:
                    raise pipe.PipeError("more requests than a program has kernels and outputs")
                await self._give(process, message)
                return None
            if message.number != self._number:
                raise pipe.PipeError("an answer to another run")
            if process.ran_native:
                process.child.freeze()
            process.peak_bytes, process.determinism = message.peak_bytes, message.determinism
            if isinstance(message, pipe.Failed):
                fault = "job" if _is_a_strangers_word(process, message) else message.fault
                answer = Answer(f"{fault}-failed", message.code, message.sentence, message.detail)
            else:
                answer = self._take_outputs(message, process.lent, run)
            held = process.lent.settle()
            process.spoiled = answer.code in SPOILING_CODES or process.verdict is not None or held > MOST_HELD
            return answer
        finally:
            close_all(descriptors)

    def _take_outputs(self, message: pipe.Done, lent: LentFiles, run: _Run) -> Answer:
        total, limit = sum(message.outputs), self._limits.output_bytes
        if total > limit:
            sentence = f"the outputs have {format_bytes(total)}, the limit is {format_bytes(limit)}"
            return Answer("job-failed", "output-limit", sentence)
        if run.output_sizes is not None and list(message.outputs) != list(run.output_sizes):
            raise pipe.PipeError("outputs of other sizes than the program's")
        if (message.nodes is not None) != run.digests:
            raise pipe.PipeError("digests that nobody asked for, or none where they were asked for")
        if len(set(message.files)) != len(message.files):
            raise pipe.PipeError("one file for two outputs")
        descriptors = [_numbered(lent, number) for number in message.files]
        count = len(message.outputs)
        outputs = adopt_outputs(message.outputs, descriptors[:count])
        try:
            digests = _take_digests(message, descriptors[count:])
        except BaseException:
            for output in outputs:
                output.close()
            raise
        return Answer(
            "ok",
            "ok",
            outputs=outputs,
            device_us=message.device_us,
            array_bytes=message.array_bytes,
            digests=digests,
        )

    async def _give(self, process: Process, request: pipe.Build | pipe.Need) -> None:
        if isinstance(request, pipe.Build):
            if not self._kernels:
                raise pipe.PipeError("a build that no program asked for")
            await self._build(process, request)
            return
        if process.lent.count + request.count > pipe.MAX_LENT_PER_RUN:
            raise pipe.PipeError("more memory files than a program needs")
        with _lend(process, request.count) as files:
            await _send(process, pipe.Lent(len(files)), files)

    async def _build(self, process: Process, request: pipe.Build) -> None:
        if isinstance(request.source, int) != (request.file is not None):
            raise pipe.PipeError("a build without its source")
        source = [] if request.file is None else [_numbered(process.lent, request.file)]
        known = self._built.find(request)
        if known is None:
            built, made = await self._workshop.build(self._limits, request, source)
        else:
            built, made = pipe.Built("ok", "", ""), [known]
        library: list[int] = []
        try:
            if made:
                process.ran_native = True
                self._built.keep(request, made[0])
                library.append(process.lent.pass_on(made[0]))
            elif built.code in BUILD_FAULTS:
                process.told |= {built.code}
            close_all(made)
            made = []
            await _send(process, built, library)
        finally:
            close_all([*made, *library])

    async def _explain_end(self, process: Process) -> Answer:
        """Why it ended by itself. It may only have closed its socket: then it is ended here."""
        if not await process.child.gone(seconds=1.0):
            process.child.kill()
            return explain_nonsense(pipe.PipeError("it closed its socket and went on"))
        if process.verdict is not None:
            return process.verdict
        stage, printed = scrub(process.box.stage()), scrub(process.box.output())
        if process.group is not None and process.group.memory_kills():
            return explain_memory_kill(process.group.peak_bytes(), self._limits.memory_bytes, stage, printed)
        child = process.child
        return explain_exit(child.exit_code, stage, printed, self._limits.cpu_seconds, child.cpu_us)

    async def _live_process(self) -> Process:
        process = self._process
        if process is not None and (process.spoiled or process.child.ended.is_set()):
            await self._discard()
            process = None
        if process is None:
            process = self._process = await self._workshop.make_process(self._limits, self._kernels)
        return process

    async def _discard(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.spoiled = True
            await self._workshop.end_process(process)

    def _outcome(
        self, answer: Answer, started_us: int, wall_us: int, used_mj: int | None, process: Process | None
    ) -> RunOutcome:
        return RunOutcome(
            status=answer.status,
            code=answer.code,
            sentence=plain_sentence(answer.sentence),
            detail=answer.detail,
            outputs=answer.outputs,
            started_us=started_us,
            wall_us=wall_us,
            device_us=answer.device_us,
            energy_mj=used_mj,
            meter=self._workshop.meter.kind,
            peak_bytes=process.peak_bytes if process else 0,
            determinism=process.determinism if process else "",
            array_bytes=answer.array_bytes,
            output_bytes=sum(output.size for output in answer.outputs),
            digests=answer.digests,
        )


@contextmanager
def _lend(process: Process, count: int) -> Iterator[list[int]]:
    """New memory files to send, closed here when the block ends. Raises OSError."""
    files: list[int] = []
    try:
        for _ in range(count):
            files.append(process.lent.lend())  # noqa: PERF401 - what was made must be closed where one fails
        yield files
    finally:
        close_all(files)


def _numbered(lent: LentFiles, number: int) -> int:
    descriptor = lent.numbered(number)
    if descriptor is None:
        raise pipe.PipeError("a file that it was not lent")
    return descriptor


def _is_a_strangers_word(process: Process, message: pipe.Failed) -> bool:
    """Whether this says that the machine is to blame, from a process that may not be ours any more.

    A requester does not pay for what a provider failed at. After a kernel ran there, only failures that were seen from
    here count: builds that this agent itself had to refuse, and every way in which the process can end.
    """
    return message.fault == "provider" and process.ran_native and message.code not in process.told


def _take_digests(message: pipe.Done, descriptors: list[int]) -> TraceDigests | None:
    """The nodes' digests out of their file. Raises PipeError."""
    expected = [] if message.nodes is None else [DIGEST_BYTES * message.nodes]
    files = adopt_outputs(expected, descriptors)
    if not files:
        return None
    with closing(files[0]) as file:
        return TraceDigests.from_bytes(bytes(file.view))


async def _send(process: Process, message: pipe.PipeMessage, descriptors: Sequence[int]) -> None:
    try:
        await process.channel.send(pipe.encode(message), descriptors)
    except OSError as error:  # EPIPE, ECONNRESET: it is gone
        raise _Ended from error
