"""A builder: a child of the zygote that compiles one kernel and ends.

It is apart from the worker so that a worker never has to start a program, and so that a compiler's memory does not
count against a job's. Its limits bound processor time, memory and file sizes; the agent bounds the wall time.
"""

import os
import resource
import socket
from pathlib import Path

from coppermesh.exec import linux, pipe, sockets
from coppermesh.exec.blackbox import BlackBox
from coppermesh.exec.cuda_build import BUILD_SECONDS, Kernel, build_kernel
from coppermesh.exec.cuda_toolchain import Toolchain
from coppermesh.exec.errors import ExecError, plain_sentence

BUILD_MEMORY_BYTES = 2 * 1024 * 1024 * 1024


def main(sock: socket.socket, box: BlackBox, order: pipe.Fork, start: pipe.Start) -> None:
    """Serve one request and return."""
    confine(order)
    box.clear()
    data, descriptors = sockets.receive(sock, 1)
    if not data:
        return
    request = pipe.decode_build(data)
    source = read_part(request.source, descriptors).decode(errors="strict")
    kernel = Kernel(
        source, request.name, request.options, request.functions, request.expressions, request.symbols
    )
    answer, library = _build(kernel, start)
    sockets.send(sock, pipe.encode(answer), [] if library is None else [library])


def _build(kernel: Kernel, start: pipe.Start) -> tuple[pipe.Built, int | None]:
    try:
        library = build_kernel(kernel, Toolchain(start.compiler, start.family), Path.cwd(), Path(start.cache))
    except ExecError as error:
        return pipe.Built(error.code, error.sentence, pipe.plain_detail(error.detail)), None
    except OSError as error:
        reason = plain_sentence(f"kernel {kernel.name}: the build failed: {error.strerror}")
        return pipe.Built("kernel-build-limit", reason, ""), None
    return pipe.Built("ok", "", ""), library


def confine(order: pipe.Fork) -> None:
    """Limits of this process and of the compiler that it starts."""
    linux.offer_to_oom_killer()
    linux.forbid_new_privileges()
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: int(2 * BUILD_SECONDS),
        resource.RLIMIT_FSIZE: order.scratch_bytes,
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_DATA: BUILD_MEMORY_BYTES,
    }
    if os.geteuid() != 0:
        limits[resource.RLIMIT_NPROC] = order.processes
    linux.set_limits(limits)
    os.chdir(order.directory)


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
