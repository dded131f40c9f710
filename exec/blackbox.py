"""A worker's black box: a small file in memory that tells, after a crash, what it was doing and what it last said.

Agent and worker both map it. The worker writes into the first part what it is about to run; its standard output and
error write into the rest (a C library's "double free", an assertion of a kernel). The file cannot grow, so a worker
that prints without end fills only this. Whatever is in it was written by a stranger's code: it is text for a person
and nothing else.
"""

import mmap
import os

from coppermesh.exec import linux

STAGE_BYTES = 512
OUTPUT_BYTES = 16 * 1024
SIZE = STAGE_BYTES + OUTPUT_BYTES


def make_black_box() -> int:
    """A new, empty one: a memory file of fixed size."""
    descriptor = linux.memory_file("coppermesh-box", SIZE)
    linux.seal(descriptor, linux.SEAL_SIZE | linux.SEAL_SEAL)
    return descriptor


class BlackBox:
    """One process's view of a black box. The descriptor stays the caller's."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, SIZE)

    def clear(self) -> None:
        """Forget everything; later output starts at the beginning again. For the process that writes."""
        self._map[:] = bytes(SIZE)
        os.lseek(self._descriptor, STAGE_BYTES, os.SEEK_SET)

    def note(self, text: str) -> None:
        """Say what runs next; `""`: nothing in particular."""
        data = text.encode("ascii", "replace")[: STAGE_BYTES - 1]
        self._map[: len(data) + 1] = data + b"\0"

    def stage(self) -> str:
        """What was running, or an empty text."""
        return _text(self._map[:STAGE_BYTES])

    def output(self) -> str:
        """What the process printed since `clear`."""
        return _text(self._map[STAGE_BYTES:])

    def close(self) -> None:
        """Unmap it."""
        self._map.close()


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("ascii", "replace")
