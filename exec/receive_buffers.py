"""Memory files that a lease's inputs are received into and that its worker maps: read there, without a copy.

Theory of operation. The agent maps such a file once, writable, and then seals it: nobody can make another writable
mapping of it, write to it by a call, shrink it or grow it (`F_SEAL_FUTURE_WRITE`, Linux 5.1, with the seals on size and
on further seals). The agent's own mapping stays as it is, so the same pages take the next task's input: fresh pages of
a memory file cost several times what writing to used ones does. The worker gets a descriptor for reading only, of a
file that it could not write to if it had any other.

Buffers belong to one worker handle, which is one lease's, and are gone with it. What a buffer held before is the same
requester's; nothing of it reaches another lease. All pages are allocated when the file is made, so that a machine
without memory shows here, as an error, and not as a signal when the agent writes.

    agent    one writable mapping ----+
                                      +---- pages ---- sealed file
    worker   mapping for reading  ----+
"""

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from coppermesh.exec import linux
from coppermesh.exec.runs import InputBuffer

KEPT_BYTES: Final = 256 * 1024 * 1024
"""Most that a lease keeps between its tasks; what is more goes back to the machine after the task."""
STEP_BYTES: Final = 64 * 1024
"""Buffers are made in steps of this, so that a slightly larger input still fits."""
MOST_KEPT: Final = 64


class ReceiveBuffer:
    """One such file, with the only mapping that can write to it."""

    def __init__(self, capacity: int) -> None:
        """Raises OSError: no memory, or a kernel that has no such seal (before 5.1)."""
        self.capacity = capacity
        self.size = 0
        """Bytes of it that are in use."""
        if capacity > linux.available_memory_bytes():  # allocating would bring out the out-of-memory killer
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        self.fd = linux.memory_file("coppermesh-input", capacity)
        try:
            os.posix_fallocate(self.fd, 0, capacity)
            self._mapping = mmap.mmap(self.fd, capacity)
        except OSError:
            os.close(self.fd)
            raise
        try:
            linux.seal(self.fd, linux.SEAL_OTHER_WRITERS | linux.SEAL_SEAL)
        except OSError:
            self.close()
            raise

    @property
    def view(self) -> memoryview:
        """The bytes in use, writable. Release it before `close`, and write nothing while a run reads them."""
        return memoryview(self._mapping)[: self.size]

    def fill(self, data: bytes | bytearray | memoryview) -> None:
        """Take `data` as the content. It must fit."""
        with memoryview(data) as source, source.cast("B") as octets:
            self.size = len(octets)
            self._mapping[: self.size] = octets

    def as_input(self) -> InputBuffer:
        """What `Worker.run` takes: these bytes, in place."""
        return InputBuffer(self.size, fd=self.fd)

    def open_for_reading(self) -> int:
        """Another descriptor of the file, which cannot be written through. The caller's to close."""
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Give the memory back; the worker's mapping, if it still has one, holds it for as long as that lives."""
        with suppress(BufferError):  # somebody still looks at it: the mapping goes with that view
            self._mapping.close()
        os.close(self.fd)


class ReceiveBuffers:
    """All buffers of one lease: those in use, and those kept for its next tasks."""

    def __init__(self) -> None:
        self._idle: list[ReceiveBuffer] = []
        self._closed = False
        self.made = 0
        """How many were ever made, for tests and measurements."""

    def take(self, size: int) -> ReceiveBuffer:
        """A buffer with `size` bytes in use: the smallest idle one that holds them, else a new one.

        May take a while where it is new (its pages are allocated). Raises OSError.
        """
        fitting = [buffer for buffer in self._idle if buffer.capacity >= size]
        if fitting:
            buffer = min(fitting, key=lambda buffer: buffer.capacity)
            self._idle.remove(buffer)
        else:
            buffer = ReceiveBuffer(max(STEP_BYTES, -(-size // STEP_BYTES) * STEP_BYTES))
            self.made += 1
        buffer.size = size
        return buffer

    def has_room_for(self, size: int) -> bool:
        """Whether `take` would find an idle one."""
        return any(buffer.capacity >= size for buffer in self._idle)

    def give_back(self, buffer: ReceiveBuffer) -> None:
        """The worker has answered (or is gone): keep it for the next task, within what may be kept."""
        self._idle.append(buffer)
        if self._closed:
            self.close()
        while len(self._idle) > MOST_KEPT or sum(each.capacity for each in self._idle) > KEPT_BYTES:
            self._idle.pop(0).close()

    def close(self) -> None:
        """The lease has ended: all idle ones go, and those in use when they are given back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def borrow(self, size: int) -> Iterator[ReceiveBuffer]:
        """A buffer for the block. Raises OSError."""
        buffer = self.take(size)
        try:
            yield buffer
        finally:
            self.give_back(buffer)
