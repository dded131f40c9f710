"""Bytes between the agent and a worker: inputs into parts and files, outputs out of sealed files."""

import mmap
import os
import stat
from collections.abc import Sequence

import trio

from coppermesh.exec import linux, pipe
from coppermesh.exec.program import MAX_INPUTS
from coppermesh.exec.runs import InputBuffer, OutputBuffer
from coppermesh.exec.sockets import close_all

COPY_IN_THREAD_BYTES = 1024 * 1024
"""Above this a copy takes long enough to be kept out of the event loop."""


async def prepare_parts(program: bytes, inputs: Sequence[InputBuffer]) -> tuple[list[bytes | int], list[int]]:
    """The parts of a `Run`, and the descriptors that ride along (the caller's to close).

    What is small goes in place, the smallest first. Files are opened again for reading only, so that the worker
    cannot write through the descriptor it gets. Raises ValueError: too many inputs, or a file that is too short.
    """
    if len(inputs) > MAX_INPUTS:
        raise ValueError(f"{len(inputs)} inputs; a program has at most {MAX_INPUTS}")
    buffers = [InputBuffer(len(program), data=program), *inputs]
    inline = pipe.plan_parts([b.size if b.data is not None else pipe.MAX_INLINE_BYTES + 1 for b in buffers])
    parts: list[bytes | int] = []
    files: list[int] = []
    try:
        for buffer, in_place in zip(buffers, inline, strict=True):
            if buffer.data is not None and in_place:
                parts.append(buffer.data)
                continue
            parts.append(buffer.size)
            files.append(_reopen(buffer) if buffer.data is None else await _store(buffer.data))
    except BaseException:
        close_all(files)
        raise
    return parts, files


async def _store(data: bytes) -> int:
    if len(data) < COPY_IN_THREAD_BYTES:
        return linux.sealed_file("coppermesh-input", data)
    return await trio.to_thread.run_sync(linux.sealed_file, "coppermesh-input", data)


def _reopen(buffer: InputBuffer) -> int:
    descriptor = os.open(f"/proc/self/fd/{buffer.fd}", os.O_RDONLY | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size < buffer.size:
        os.close(descriptor)
        raise ValueError(f"an input of {buffer.size} bytes lies in a file of {status.st_size}")
    return descriptor


def adopt_outputs(sizes: Sequence[int], descriptors: Sequence[int]) -> list[OutputBuffer]:
    """Map what a worker handed over. `descriptors` stay the caller's.

    Hostile: a file counts only when it is sealed against writing, growing and shrinking (the kernel grants that seal
    only while nobody can write) and has exactly the size that was named. Raises PipeError.
    """
    if len(sizes) != len(descriptors):
        raise pipe.PipeError(f"{len(descriptors)} files for {len(sizes)} outputs")
    outputs: list[OutputBuffer] = []
    try:
        for size, descriptor in zip(sizes, descriptors, strict=True):
            outputs.append(_adopt(size, descriptor))
    except BaseException:
        for output in outputs:
            output.close()
        raise
    return outputs


def _adopt(size: int, descriptor: int) -> OutputBuffer:
    try:
        sealed = linux.seals_of(descriptor) & linux.SEAL_CONTENT == linux.SEAL_CONTENT
    except OSError:  # no memory file at all
        sealed = False
    if not sealed:
        raise pipe.PipeError("an output whose file could still change")
    status = os.fstat(descriptor)
    if status.st_size != size or status.st_blksize != mmap.PAGESIZE:
        # Another block size means huge pages, whose faults can fail where ordinary ones cannot.
        raise pipe.PipeError(f"an output file of {status.st_size} bytes where {size} were named")
    if size == 0:
        return OutputBuffer(0, memoryview(b""))
    try:
        mapping = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ)
    except OSError as error:
        raise pipe.PipeError(f"an output file of {size} bytes that cannot be mapped") from error
    return OutputBuffer(size, memoryview(mapping), mapping)
