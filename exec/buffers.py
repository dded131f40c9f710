"""Bytes between the agent and a worker: inputs into parts and files, outputs out of sealed files."""

import errno
import mmap
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from coppermesh.exec import linux, pipe
from coppermesh.exec.keeper import WorkerUnavailable
from coppermesh.exec.program import MAX_INPUTS
from coppermesh.exec.receive_buffers import ReceiveBuffer, ReceiveBuffers
from coppermesh.exec.runs import InputBuffer, OutputBuffer
from coppermesh.exec.sockets import close_all

_BLOCK_BYTES = 512
"""What `st_blocks` counts."""
COPY_IN_THREAD_BYTES = 1024 * 1024
"""Above this a copy takes long enough to be kept out of the event loop."""


@dataclass
class PreparedInputs:
    """What travels to the worker for one run, and the receive buffers that are busy until it has answered."""

    parts: list[bytes | int]
    files: list[int]
    """Descriptors that ride along, in order."""
    _pool: ReceiveBuffers
    _busy: list[ReceiveBuffer] = field(default_factory=list)

    def close(self) -> None:
        """The worker has answered or is gone: close the files, give the buffers back. Closing twice is fine."""
        close_all(self.files)
        self.files.clear()
        while self._busy:
            self._pool.give_back(self._busy.pop())

    async def add(self, data: bytes) -> None:
        """One more part, whose bytes are copied into a receive buffer."""
        self.parts.append(len(data))
        try:
            if len(data) < COPY_IN_THREAD_BYTES:
                self._store(data)
            else:
                await trio.to_thread.run_sync(self._store, data)
        except OSError as error:
            raise WorkerUnavailable(
                f"this machine has no memory for an input of {len(data)} bytes: {error.strerror}"
            ) from error

    def _store(self, data: bytes) -> None:
        try:
            buffer = self._pool.take(len(data))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.files.append(linux.sealed_file("coppermesh-input", data))  # a kernel before 5.1
            return
        self._busy.append(buffer)
        buffer.fill(data)
        self.files.append(buffer.open_for_reading())


async def prepare_parts(
    program: bytes, inputs: Sequence[InputBuffer], buffers: ReceiveBuffers
) -> PreparedInputs:
    """The parts of a `Run`; to be closed when the worker has answered.

    What is small goes in place, the smallest first; what is larger is copied into one of `buffers`. Files are opened
    again for reading only, so that the worker cannot write through the descriptor it gets. Raises ValueError: too
    many inputs, or a file that is too short; WorkerUnavailable: no memory.
    """
    if len(inputs) > MAX_INPUTS:
        raise ValueError(f"{len(inputs)} inputs; a program has at most {MAX_INPUTS}")
    wanted = [InputBuffer(len(program), data=program), *inputs]
    inline = pipe.plan_parts([b.size if b.data is not None else pipe.MAX_INLINE_BYTES + 1 for b in wanted])
    prepared = PreparedInputs([], [], buffers)
    try:
        for buffer, in_place in zip(wanted, inline, strict=True):
            if buffer.data is None:
                prepared.parts.append(buffer.size)
                prepared.files.append(_reopen(buffer))
            elif in_place:
                prepared.parts.append(buffer.data)
            else:
                await prepared.add(buffer.data)
    except BaseException:
        prepared.close()
        raise
    return prepared


def _reopen(buffer: InputBuffer) -> int:
    descriptor = os.open(f"/proc/self/fd/{buffer.fd}", os.O_RDONLY | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size < buffer.size:
        os.close(descriptor)
        raise ValueError(f"an input of {buffer.size} bytes lies in a file of {status.st_size}")
    return descriptor


def adopt_outputs(sizes: Sequence[int], descriptors: Sequence[int]) -> list[OutputBuffer]:
    """Map what a worker handed over. `descriptors` stay the caller's.

    Hostile: a file counts only when it is sealed against writing, growing and shrinking (the kernel grants the seal on
    writing only while no writable mapping exists, and refuses new ones afterwards), has exactly the size that was
    named, and all its pages. From here on its bytes are fixed: what is hashed is what is sent. Raises PipeError.
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
    if status.st_blocks * _BLOCK_BYTES < size:
        # The agent would be given the missing pages when it reads them, and killed where there is no memory left.
        raise pipe.PipeError(f"an output file of {size} bytes with holes in it")
    if size == 0:
        return OutputBuffer(0, memoryview(b""))
    try:
        mapping = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ)
    except OSError as error:
        raise pipe.PipeError(f"an output file of {size} bytes that cannot be mapped") from error
    return OutputBuffer(size, memoryview(mapping), mapping)
