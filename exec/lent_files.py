"""Memory files that the agent makes and a worker fills: what a worker may have of them, and what it still holds.

Theory of operation. Memory in a file that nobody maps shows nowhere from outside, unless one may look at a process's
descriptors, which an ordinary user may not do with a worker. So a CPU worker cannot make such a file at all (seccomp).
It is lent them: for outputs, digests, long sources, copies of libraries. The agent keeps a descriptor of each, sees by
`fstat` how much is in it, and keeps counting it for as long as the worker holds it in any way.

Whether it does is asked by a lease (`fcntl(2)`, F_SETLEASE): the kernel grants a write lease only to who has the only
open file description. A mapping keeps its description open, and so does a descriptor on its way through a socket. What
a lease does not see are descriptors opened with O_PATH, and a CPU worker's filter refuses that flag. Who opens the
file in the instant of asking has the kernel tell us so by SIGIO, which is ignored (`linux.ignore_broken_leases`); the
lease was granted then, and the file counts as given back though it was not: a GPU worker, which may make such files
itself, gains nothing by that, and a CPU worker opens none. The description that
is lent is opened by path, since the one that `memfd_create` gives is not counted as a writer.

    agent    ro ---+
                   +--- pages        lent while anybody but the agent has the file open
    worker   rw ---+
"""

import fcntl
import os
from contextlib import suppress
from typing import Final

from coppermesh.exec import linux

MOST_HELD: Final = 384
"""Files that one worker may still hold after its answer; with more it gets no other task. A worker keeps at most 256
libraries and may have as many copies of them as one program has modules."""
_BLOCK_BYTES: Final = 512

FileId = tuple[int, int]
"""Device and inode."""


class LentFiles:
    """What one worker process was lent. Holds descriptors: close it."""

    def __init__(self) -> None:
        self._run: list[int] = []
        """Lent for the run at hand; their places are their numbers in messages."""
        self._held: list[int] = []
        """From before, and libraries: held by the worker when last asked."""

    def lend(self) -> int:
        """A new empty file: a descriptor to send, then to close. Raises OSError."""
        made = linux.memory_file("coppermesh-lent")
        try:
            theirs = _open(made, os.O_RDWR)
            try:
                self._run.append(_open(made, os.O_RDONLY))
            except OSError:
                os.close(theirs)
                raise
        finally:
            os.close(made)
        return theirs

    def pass_on(self, descriptor: int) -> int:
        """The same for a finished file of somebody else's, for reading only. `descriptor` stays the caller's."""
        theirs = _open(descriptor, os.O_RDONLY)
        try:
            self._held.append(_open(descriptor, os.O_RDONLY))
        except OSError:
            os.close(theirs)
            raise
        return theirs

    def numbered(self, number: int) -> int | None:
        """The agent's descriptor of a file of this run, still owned here; None where there is none of that number."""
        return self._run[number] if 0 <= number < len(self._run) else None

    @property
    def count(self) -> int:
        """Files lent for this run so far."""
        return len(self._run)

    def held_bytes(self) -> int:
        """Pages of all files that were lent and not yet seen given back."""
        statuses = [os.fstat(descriptor) for descriptor in (*self._run, *self._held)]
        return sum(status.st_blocks for status in statuses) * _BLOCK_BYTES

    def ids(self) -> frozenset[FileId]:
        """Which files these are."""
        statuses = [os.fstat(descriptor) for descriptor in (*self._run, *self._held)]
        return frozenset((status.st_dev, status.st_ino) for status in statuses)

    def settle(self) -> int:
        """The run has ended: forget what the worker has let go. How many it still holds."""
        lent, self._run, self._held = (*self._run, *self._held), [], []
        for descriptor in lent:
            if is_only_ours(descriptor):
                os.close(descriptor)
            else:
                self._held.append(descriptor)
        return len(self._held)

    def close(self) -> None:
        """The worker has ended."""
        for descriptor in (*self._run, *self._held):
            os.close(descriptor)
        self._run, self._held = [], []


def is_only_ours(descriptor: int) -> bool:
    """Whether nobody else has this file open or mapped. False too where this machine grants no leases."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return False
    with suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


def _open(descriptor: int, how: int) -> int:
    return os.open(f"/proc/self/fd/{descriptor}", how | os.O_CLOEXEC)
