"""The worker: a child of the zygote that runs one lease's programs, one after the other.

It is forked with everything loaded, confines itself before it reads a byte of a job, and then answers `Run` messages
until its socket closes. A kernel is native code of somebody else's, so from the first kernel on this process may be
theirs: the agent trusts nothing that comes out of it, and it holds nothing worth taking.
"""

import mmap
import os
import resource
import socket
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from coppermesh.exec import linux, pipe, sockets
from coppermesh.exec.blackbox import BlackBox
from coppermesh.exec.budget import RunLimits, check_budget, estimate, format_bytes
from coppermesh.exec.builder import read_part
from coppermesh.exec.cuda_build import BuildFailed, Kernel, scrub
from coppermesh.exec.cuda_cpu import CudaCpu
from coppermesh.exec.cuda_gate import SourceRefused
from coppermesh.exec.cuda_needs import refuse_missing
from coppermesh.exec.errors import ExecError, KernelCompileError, RunFailed, plain_sentence
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.program import MAX_NODES, MAX_SOURCE_CHARACTERS, ArraySpec, decode_program
from coppermesh.exec.runtime import Runtime
from coppermesh.exec.sandbox import layers, limits, namespaces
from coppermesh.exec.sandbox.apply import enter_worker
from coppermesh.exec.schema import FEATURE_CUDA_SOURCE, CheckedProgram, check_program
from coppermesh.exec.source_lines import with_node
from coppermesh.exec.threads import find_blas_setter
from coppermesh.exec.trace_digests import DIGEST_BYTES, TraceDigests, run_with_digests

SLACK_BYTES = 96 * 1024 * 1024
"""Private memory beside the job's arrays: thread stacks, NumPy's and BLAS' own buffers, loaded libraries."""
OPEN_FILES = 640
"""Also bounds what this user has in flight between processes: the kernel counts it for all of a user's processes, and
refuses whose own limit (the agent's is 1,024 where nobody raised it) is below the count."""
LARGEST_SOURCE = 4 * MAX_SOURCE_CHARACTERS
"""Bytes of a kernel's source that must fit into a file whatever the limit on outputs is."""
REMEMBERED_BYTES = 256 * 1024
"""Programs up to this size are remembered as checked, for the tiles of one picture."""
PROVIDER_CODES = frozenset(
    {
        "device-error",
        "device-lost",
        "device-memory",
        "no-kernel-backend",
        "compiler-missing",
        "worker-unavailable",
    }
)
"""Failures that are this machine's doing; every other one is the program's."""

set_blas_threads = find_blas_setter()
"""Found in the zygote, where libraries can still be looked up."""

Array = np.ndarray[Any, Any]


@dataclass
class _Inputs:
    """The arrays of one run, and the mappings they lie in."""

    arrays: list[Array]
    mappings: list[mmap.mmap]
    files: list[int | None]
    """The descriptor of the file that each lies in, None where it came in place."""


def main(sock: socket.socket, box: BlackBox, order: pipe.Fork, start: pipe.Start) -> None:
    """Serve until the agent closes its end."""
    confine(order, start.kind)
    if set_blas_threads is not None and start.threads > 1:
        set_blas_threads(start.threads)
    worker = Worker(sock, box, order, start)
    while worker.serve_one():
        pass


def confine(order: pipe.Fork, kind: str) -> None:
    """Give up all that a job does not need. Before the first byte of a job, and before the first thread."""
    worker_limits = limits.worker_limits(
        kind=kind,
        data_bytes=linux.private_memory_bytes() + order.memory_bytes + SLACK_BYTES,
        file_bytes=max(order.output_bytes, LARGEST_SOURCE, DIGEST_BYTES * MAX_NODES),
        open_files=OPEN_FILES,
        processes=order.processes,
        cpu_seconds=order.cpu_seconds,
    )
    if kind == "cpu":
        enter_worker(layers.cpu_worker(worker_limits))
    else:
        view = namespaces.view_of_python([], gpu=True)
        enter_worker(layers.gpu_worker(worker_limits, view.read_only, tuple(namespaces.gpu_devices())))


class _LentFiles:
    """The memory files that the agent lent for this run; this process can make none."""

    def __init__(self, ask: Callable[[int], list[int]]) -> None:
        self._ask = ask
        self._spare: deque[int] = deque()
        self._taken = 0

    def begin(self, descriptors: list[int]) -> None:
        """A run's files; its numbers begin at 0."""
        self._spare, self._taken = deque(descriptors), 0

    def put(self, data: bytes | memoryview) -> int:
        """Store `data` for good and let the file go: its number. Raises OSError, where a limit is exceeded."""
        os.close(self.keep(data))
        return self._taken - 1

    def keep(self, data: bytes | memoryview) -> int:
        """The same, and keep the descriptor."""
        if not self._spare:
            self._spare.extend(self._ask(1))
        descriptor = self._spare.popleft()
        self._taken += 1
        try:
            linux.fill_and_seal(descriptor, data)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def end(self) -> None:
        """Let go of what was not needed, before the answer: the agent then looks at what is still held."""
        sockets.close_all(self._spare)
        self._spare.clear()


class Worker:
    """One worker's state: its runtime with the kernels it has built."""

    def __init__(self, sock: socket.socket, box: BlackBox, order: pipe.Fork, start: pipe.Start) -> None:
        self._sock = sock
        self._box = box
        self._order = order
        self._limits = RunLimits(
            memory_bytes=order.memory_bytes,
            output_bytes=order.output_bytes,
            flops=float(order.operations),
            blob_bytes=order.blob_bytes,
        )
        self._files = _LentFiles(self._ask_for_files)
        self._runtime = self._make_runtime(start)

    def _make_runtime(self, start: pipe.Start) -> Runtime:
        if start.kind == "cuda":
            from coppermesh.exec.cupy_runtime import (
                CupyRuntime,
                LostRuntime,
            )  # only here: it starts the driver

            try:
                return CupyRuntime(memory_limit=self._order.memory_bytes, note=self._box.note)
            except ExecError as error:
                return LostRuntime(error)
        if not self._order.kernels or not start.compiler:
            return NumpyRuntime(threads=start.threads)
        backend = CudaCpu(
            self._build_elsewhere,
            threads=start.threads,
            note=self._box.note,
            compiler=start.version,
            store=self._store,
        )
        return NumpyRuntime(backend, start.threads)

    def serve_one(self) -> bool:
        """Answer one message; False when the agent has closed."""
        data, descriptors = sockets.receive(self._sock)
        if not data:
            return False
        self._box.clear()
        try:
            message = pipe.decode_to_worker(data)
            if not isinstance(message, pipe.Run):
                raise pipe.PipeError("an answer that nobody asked for")
            self._run(message, descriptors)
        finally:
            sockets.close_all(descriptors)
        return True

    def _run(self, message: pipe.Run, descriptors: list[int]) -> None:
        self._files.begin(take_last(descriptors, message.lent))
        try:
            answer: pipe.PipeMessage = self._run_program(message, descriptors)
        except ExecError as error:
            sentence = self._with_limit(error.sentence) if error.code == "memory-limit" else error.sentence
            answer = self._failed(message.number, error.code, with_node(sentence, error.node), error.detail)
        except MemoryError as error:
            sentence = self._with_limit(str(error) or "an allocation failed")
            answer = self._failed(message.number, "memory-limit", sentence, "")
        except Exception as error:  # noqa: BLE001 - a bug here is this provider's failure, and must be told
            said = f"{type(error).__name__}: {error}"
            answer = self._failed(message.number, "internal-error", said, traceback.format_exc(), "provider")
        self._files.end()
        sockets.send(self._sock, pipe.encode(answer))

    def _run_program(self, message: pipe.Run, descriptors: list[int]) -> pipe.Done:
        checked = _checked(read_part(message.parts[0], descriptors), self._limits)
        if FEATURE_CUDA_SOURCE in checked.features and not self._order.kernels:
            raise RunFailed("this lease takes no programs with kernels", code="unsupported-feature")
        refuse_missing(checked, self._runtime.kind)
        inputs = _map_inputs(checked.input_specs, message.parts[1:], descriptors)
        digests: TraceDigests | None = None
        files: list[int] = []
        try:
            if message.digests:
                result, digests = run_with_digests(self._runtime, checked, inputs.arrays, self._limits)
            else:
                result = self._runtime.run(checked, inputs.arrays, self._limits, files=inputs.files)
            for number, output in enumerate(result.outputs):
                files.append(self._hand_over(number, output))
        finally:
            _unmap(inputs)
        if digests is not None:
            files.append(self._files.put(digests.to_bytes()))
        sizes = tuple(output.nbytes for output in result.outputs)
        return pipe.Done(
            message.number,
            sizes,
            result.device_us,
            _peak_bytes(),
            self._runtime.determinism_of(checked),
            result.peak_bytes,
            None if digests is None else len(digests.nodes),
            tuple(files),
        )

    def _hand_over(self, number: int, output: Array) -> int:
        """The array's bytes in a file that nobody can change any more: its number."""
        try:
            return self._files.put(np.ascontiguousarray(output).reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise RunFailed(
                f"output {number} of {format_bytes(output.nbytes)} could not be stored: {error.strerror}; "
                f"all outputs may have {format_bytes(self._order.output_bytes)}",
                code="output-limit",
            ) from error

    def _store(self, data: bytes) -> int:
        """A sealed memory file that this process keeps: for copies of libraries."""
        return self._files.keep(data)

    def _ask_for_files(self, count: int) -> list[int]:
        sockets.send(self._sock, pipe.encode(pipe.Need(count)))
        data, descriptors = sockets.receive(self._sock)
        if not data:
            os._exit(0)  # the agent has closed: nobody waits for an answer
        answer = pipe.decode_to_worker(data)
        if not isinstance(answer, pipe.Lent) or answer.count != len(descriptors):
            sockets.close_all(descriptors)
            raise pipe.PipeError("expected memory files")
        return descriptors

    def _failed(self, number: int, code: str, sentence: str, detail: str, fault: str = "job") -> pipe.Failed:
        return pipe.Failed(
            number,
            "provider" if code in PROVIDER_CODES else fault,
            code,
            plain_sentence(scrub(sentence)),
            scrub(detail),
            _peak_bytes(),
            self._runtime.determinism,
        )

    def _with_limit(self, sentence: str) -> str:
        return f"{sentence}; the job's memory limit is {format_bytes(self._order.memory_bytes)}"

    def _build_elsewhere(self, kernel: Kernel) -> int:
        """Ask the agent for a builder. Gives the library; raises what the builder raised."""
        source = kernel.source.encode()
        file = None if len(source) <= pipe.MAX_INLINE_BYTES else self._files.put(source)
        part = source if file is None else len(source)
        request = pipe.Build(
            part, kernel.name, kernel.options, kernel.functions, kernel.expressions, kernel.symbols, file
        )
        sockets.send(self._sock, pipe.encode(request))
        data, descriptors = sockets.receive(self._sock, 1)
        if not data:
            os._exit(0)  # the agent has closed: nobody waits for an answer
        answer = pipe.decode_to_worker(data)
        if not isinstance(answer, pipe.Built):
            sockets.close_all(descriptors)
            raise pipe.PipeError("expected the answer to a build")
        if answer.code == "ok" and descriptors:
            return descriptors[0]
        sockets.close_all(descriptors)
        raise _build_error(kernel.name, answer)


def _build_error(name: str, answer: pipe.Built) -> ExecError:
    if answer.code == "kernel-compile":
        return KernelCompileError(name, answer.detail or answer.sentence)
    if answer.code == "unsupported-feature":
        return SourceRefused(answer.sentence, answer.detail)
    return BuildFailed(answer.code, answer.sentence, detail=answer.detail)


def take_last(descriptors: list[int], count: int) -> list[int]:
    """Remove the last `count` of them, and give those. Raises PipeError where there are not so many."""
    if count > len(descriptors):
        raise pipe.PipeError(f"{len(descriptors)} descriptors where {count} were named")
    kept = len(descriptors) - count
    taken = descriptors[kept:]
    del descriptors[kept:]
    return taken


def _checked(data: bytes, limits: RunLimits) -> CheckedProgram:
    return _check_small(data, limits) if len(data) <= REMEMBERED_BYTES else _check(data, limits)


def _check(data: bytes, limits: RunLimits) -> CheckedProgram:
    checked = check_program(decode_program(data))
    check_budget(estimate(checked), limits, checked)
    return checked


_check_small = lru_cache(maxsize=16)(_check)


def _map_inputs(specs: Sequence[ArraySpec], parts: Sequence[bytes | int], descriptors: list[int]) -> _Inputs:
    """The inputs as read-only arrays, in place where they came in place, else mapped from their files.

    The descriptors stay the caller's.
    """
    if len(parts) != len(specs):
        raise RunFailed(f"the program has {len(specs)} inputs, {len(parts)} were given", code="bad-input")
    arrays: list[Array] = []
    mappings: list[mmap.mmap] = []
    files: list[int | None] = []
    taken = 0
    for number, (spec, part) in enumerate(zip(specs, parts, strict=True)):
        size = part if isinstance(part, int) else len(part)
        if size != spec.nbytes:
            raise RunFailed(f"input {number} has {size} bytes, {spec} has {spec.nbytes}", code="bad-input")
        buffer: bytes | mmap.mmap
        if isinstance(part, bytes):
            buffer = part
            files.append(None)
        else:
            descriptor = descriptors[taken]
            taken += 1
            files.append(descriptor)
            buffer = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ) if size else b""
            if isinstance(buffer, mmap.mmap):
                mappings.append(buffer)
        arrays.append(np.frombuffer(buffer, spec.numpy_dtype).reshape(spec.shape))
    return _Inputs(arrays, mappings, files)


def _unmap(inputs: _Inputs) -> None:
    inputs.arrays.clear()
    for mapping in inputs.mappings:
        try:
            mapping.close()
        except BufferError:
            continue  # an array still looks at it (an output that is a view of an input); it goes with that array


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
