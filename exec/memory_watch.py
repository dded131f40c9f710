"""How much memory a worker process holds, seen from outside, and how much its lease lets it hold.

The kernel's limit on private memory (`RLIMIT_DATA`) ends an honest program at the allocation that is too much. It does
not count shared memory, nor files in memory, and native code can make both. So the agent counts:

- `RssAnon`, `RssShmem`, `VmSwap` and `VmPTE` of /proc/PID/status, which anybody may read: private memory that is in
  use, shared memory and memory files as far as they are mapped and were touched, and the kernel's page tables: reading
  one byte in each 2 MiB of untouched addresses makes 4 KiB of those and nothing else that is counted;
- the memory files that the agent lent it and that it still holds (`lent_files`). A worker on a CPU has no others: it
  may not make any. A file that is mapped as well counts twice: a job has no reason to do that;
- for workers on GPUs, whose driver may make some: the memory files that it holds open, by /proc/PID/fd, less those that
  the agent itself sent. Whether the agent may look there is the kernel's to say (workers are not dumpable): root may,
  and an ordinary user whose workers are under bubblewrap; else only a cgroup bounds such files (`cgroups`).

What is allowed is what an idle worker had, and the lease's memory, and on top the second copy of outputs that is made
when they are handed over, stacks of fibers, and what libraries take for themselves.
"""

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from coppermesh.exec.budget import WORKER_CORES, format_bytes
from coppermesh.exec.lent_files import FileId
from coppermesh.exec.runs import WorkerLimits

MEBIBYTE: Final = 1 << 20
LIBRARY_BYTES: Final = 96 * MEBIBYTE
"""Stacks of threads, NumPy's and BLAS' own buffers, libraries of kernels."""
STACK_BYTES: Final = WORKER_CORES * 2 * 68 * MEBIBYTE
"""Fibers of kernels: two pieces of at most 67 MiB a core (`cuda_launch.Arenas`)."""
DRIVER_BYTES: Final = 1536 * MEBIBYTE
"""What CUDA's driver and libraries take of a process's own memory: 300 to 800 MiB by what others report."""
_BLOCK_BYTES = 512
_COUNTED: Final = ("RssAnon", "RssShmem", "VmSwap", "VmPTE")


@dataclass(frozen=True, slots=True)
class HeldMemory:
    """What a process holds, in bytes."""

    private: int
    """Private memory that is in use, or swapped out, and page tables."""
    shared: int
    """Mapped shared memory and memory files that were touched."""
    files: int | None
    """Pages of memory files that it holds open; None where the agent may not look."""
    threads: int

    @property
    def total(self) -> int:
        """All that could be counted."""
        return self.private + self.shared + (self.files or 0)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a worker may hold, in bytes."""

    idle: int
    """What it held before it had seen a job."""
    memory: int
    """The lease's."""
    extra: int
    """For outputs, stacks and libraries."""
    threads: int

    @classmethod
    def of(cls, idle: int, limits: WorkerLimits, *, gpu: bool) -> Self:
        """For a worker on a CPU, or on a GPU."""
        own = DRIVER_BYTES if gpu else STACK_BYTES
        return cls(idle, limits.memory_bytes, limits.output_bytes + LIBRARY_BYTES + own, limits.threads)

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.idle + self.memory + self.extra

    def excess(self, held: HeldMemory) -> str:
        """Why it must end, as (part of) a sentence; an empty text where it holds no more than it may."""
        job = held.total - self.idle
        if job <= self.memory + self.extra:
            return ""
        return (
            f"the program holds {format_bytes(job)} of memory, the limit is {format_bytes(self.memory)} (and "
            f"{format_bytes(self.extra)} for outputs, stacks and libraries)"
        )

    def excess_threads(self, held: HeldMemory) -> str:
        """The same for threads."""
        if held.threads <= self.threads:
            return ""
        return f"the program runs {held.threads} threads, the limit is {self.threads}"


def read_memory(pid: int, sent: Collection[FileId] = (), proc: Path = Path("/proc")) -> HeldMemory | None:
    """What process `pid` holds now; None where it has ended. `sent` are the files that the agent gave it."""
    try:
        status = _text(f"{proc}/{pid}/status")
    except OSError:
        return None
    pairs = [line.split()[:2] for line in status.splitlines()]
    values = {pair[0].rstrip(":"): pair[1] for pair in pairs if len(pair) == 2}
    if "RssAnon" not in values:  # a zombie has no memory
        return None
    kibibytes = {name: int(values.get(name, "0")) for name in _COUNTED}
    return HeldMemory(
        private=1024 * (sum(kibibytes.values()) - kibibytes["RssShmem"]),
        shared=1024 * kibibytes["RssShmem"],
        files=_memory_files(proc / str(pid) / "fd", sent),
        threads=int(values.get("Threads", "1")),
    )


def read_tree(root: int, reaper: int | None, proc: str = "/proc") -> int:
    """Bytes that process `root`, which leads a session, and all others of that session hold in memory.

    They are found from parent to child, and those that lost their parent among the children of `reaper`. Files that
    several of them map are counted for each. 0 for what has ended.
    """
    members, waiting = {root}, [root]
    if reaper is not None:
        waiting += [pid for pid in _children(reaper, proc) if pid != root and _session_of(pid, proc) == root]
    total = 0
    while waiting:
        pid = waiting.pop()
        total += _resident(pid, proc)
        found = [child for child in _children(pid, proc) if child not in members]
        members.update(found)
        waiting += found
    return total


def _children(pid: int, proc: str) -> list[int]:
    found: list[int] = []
    try:
        for thread in os.listdir(f"{proc}/{pid}/task"):
            found += map(int, _text(f"{proc}/{pid}/task/{thread}/children").split())
    except (OSError, ValueError):
        pass  # it has ended, or this kernel keeps no such list
    return found


def _text(path: str) -> str:
    # Not Path.read_text: pathlib interns every part of a name, and these are others each time.
    with open(path) as file:
        return file.read()


def _session_of(pid: int, proc: str) -> int:
    try:
        return int(_text(f"{proc}/{pid}/stat").rpartition(")")[2].split()[3])
    except (OSError, ValueError, IndexError):
        return 0


def _resident(pid: int, proc: str) -> int:
    try:
        lines = _text(f"{proc}/{pid}/status").splitlines()
    except OSError:
        return 0
    words = [line.split(":") for line in lines]
    return 1024 * sum(int(each[1].split()[0]) for each in words if each[0] in _COUNTED)


def _memory_files(descriptors: Path, sent: Collection[FileId]) -> int | None:
    """Bytes of the memory files that are open there, each counted once; None where we may not look."""
    try:
        names = os.listdir(descriptors)
    except OSError:
        return None
    pages: dict[FileId, int] = {}
    for name in names:
        path = descriptors / name
        try:
            if not os.readlink(path).startswith("/memfd:"):
                continue
            status = os.stat(path)
        except OSError:
            continue  # closed meanwhile
        if stat.S_ISREG(status.st_mode):
            pages[status.st_dev, status.st_ino] = status.st_blocks * _BLOCK_BYTES
    return sum(size for file, size in pages.items() if file not in sent)


def file_ids(descriptors: Collection[int]) -> frozenset[FileId]:
    """Which files these descriptors are of."""
    statuses = [os.fstat(descriptor) for descriptor in descriptors]
    return frozenset((status.st_dev, status.st_ino) for status in statuses)
