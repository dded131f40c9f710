"""A builder: a child of the zygote that compiles one kernel and ends.

It is apart from the worker so that a worker never has to start a program, and so that a compiler's memory does not
count against a job's. Its limits bound processor time, memory and file sizes; the agent bounds the wall time.

It writes one directory, which nobody else sees (`sandbox.private_scratch`), and reads what the agent put beside it for
all builders: the headers, and of zig the parts that it builds of itself. Both are found from the working directory,
since by their own names they may lie behind a directory that only root can enter.
"""

import os
import shutil
import socket
from pathlib import Path

from coppermesh.exec import linux, pipe, sockets
from coppermesh.exec.blackbox import BlackBox
from coppermesh.exec.budget import format_bytes
from coppermesh.exec.cuda_build import BUILD_SECONDS, Kernel, compile_kernel, make_log
from coppermesh.exec.cuda_toolchain import Toolchain
from coppermesh.exec.errors import ExecError, plain_sentence
from coppermesh.exec.sandbox import layers, limits, private_scratch
from coppermesh.exec.sandbox.apply import enter_worker
from coppermesh.exec.sandbox.compilers import compiler_files
from coppermesh.exec.scratch import HEADERS, SHARED, ZIG

BUILD_MEMORY_BYTES = 2 * 1024 * 1024 * 1024

_BESIDE = Path("..") / SHARED
"""What all builders read, from where a builder stands."""
_private: list[bool] = [False]


def look_around(scratch: int) -> None:
    """For the zygote: find out whether builders can have scratch directories of their own in memory."""
    _private[0] = private_scratch.possible(scratch)


def main(sock: socket.socket, box: BlackBox, order: pipe.Fork, start: pipe.Start) -> None:
    """Serve one request and return."""
    log = make_log()  # confined, this process can make no memory file
    confine(order, start)
    box.clear()
    data, descriptors = sockets.receive(sock, 2)
    if not data:
        return
    request = pipe.decode_build(data)
    source = read_part(request.source, descriptors).decode(errors="strict")
    kernel = Kernel(
        source, request.name, request.options, request.functions, request.expressions, request.symbols
    )
    answer = _build(kernel, order, start, log, descriptors[-1])
    sockets.send(sock, pipe.encode(answer))


def _build(kernel: Kernel, order: pipe.Fork, start: pipe.Start, log: int, library: int) -> pipe.Built:
    """Compile into the memory file `library`, which was lent."""
    # By its own name the directory may lie behind one that only root can enter.
    here = Path.cwd() if os.access(Path.cwd(), os.W_OK) else Path()
    cache = _BESIDE if order.prepares else here
    try:
        toolchain = Toolchain(start.compiler, start.family)
        made = compile_kernel(kernel, toolchain, here, cache, _BESIDE / HEADERS, log, apart=False)
        linux.fill_and_seal(library, made)
    except ExecError as error:
        limit = what_it_may_use(order.scratch_bytes) if error.code == "kernel-build-limit" else ""
        sentence = plain_sentence(error.sentence + limit)
        return pipe.Built(error.code, sentence, pipe.plain_detail(error.detail))
    except OSError as error:
        reason = (
            f"kernel {kernel.name}: the build failed: {error.strerror}{what_it_may_use(order.scratch_bytes)}"
        )
        return pipe.Built("kernel-build-limit", plain_sentence(reason), "")
    return pipe.Built("ok", "", "")


def what_it_may_use(scratch_bytes: int) -> str:
    """The end of a sentence about a compiler that broke a limit."""
    return (
        f"; a compiler may use {BUILD_SECONDS:.0f} s, {format_bytes(BUILD_MEMORY_BYTES)} of memory and "
        f"{format_bytes(scratch_bytes)} of files"
    )


def confine(order: pipe.Fork, start: pipe.Start) -> None:
    """Confine this process and the compiler that it starts: which programs, which files, how much."""
    if _private[0] and not order.prepares:
        private_scratch.enter(order.scratch_bytes)
    if start.family == "zig" and not order.prepares and (_BESIDE / ZIG).is_dir():
        shutil.copytree(_BESIDE / ZIG, ZIG)
    compiler_limits = limits.compiler_limits(
        data_bytes=BUILD_MEMORY_BYTES,
        file_bytes=order.scratch_bytes,
        processes=order.processes,
        cpu_seconds=int(2 * BUILD_SECONDS),
    )
    files = compiler_files(start.compiler, start.family)
    enter_worker(
        layers.compiler(
            compiler_limits,
            programs=files.programs,
            reads=(*files.reads, str(_BESIDE)),
            scratch=(".", str(_BESIDE)) if order.prepares else (".",),
        )
    )


def read_part(part: bytes | int, descriptors: list[int]) -> bytes:
    """A part's bytes, read from the next descriptor (which is closed) where they did not come in place."""
    if isinstance(part, bytes):
        return part
    descriptor = descriptors.pop(0)
    try:
        # At a stated place: the file's position is shared with whoever sent it.
        data = os.pread(descriptor, part, 0)
    finally:
        os.close(descriptor)
    if len(data) != part:
        raise pipe.PipeError(f"a file of {len(data)} bytes where {part} were named")
    return data
