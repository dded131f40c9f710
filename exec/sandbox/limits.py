"""Resource limits of workers and compilers, and who goes first when memory runs out.

`RLIMIT_DATA` bounds private writable memory (DECISIONS of exec, 14), `RLIMIT_FSIZE` each file, memory files included.
No queue, locked page or pending signal of the kernel is any use to a job, so those are nought or few. `RLIMIT_NPROC`
counts what the *user* runs and not what the process does, so it is a stop far off; a worker's own stop is that its
filter lets it start threads only.
"""

import os
import resource
from collections.abc import Mapping

from coppermesh.exec import linux

_RLIMIT_NICE, _RLIMIT_RTPRIO = 13, 14
_PENDING_SIGNALS = 256

NOTHING: Mapping[int, int] = {
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_MEMLOCK: 0,
    resource.RLIMIT_MSGQUEUE: 0,
    _RLIMIT_NICE: 0,
    _RLIMIT_RTPRIO: 0,
    resource.RLIMIT_SIGPENDING: _PENDING_SIGNALS,
}
"""What no job gets any of. Locked memory is given to GPU workers: the driver pins what it copies from."""


def worker_limits(
    *, kind: str, data_bytes: int, file_bytes: int, open_files: int, processes: int, cpu_seconds: int
) -> dict[int, int]:
    """Limits of a worker. `data_bytes` is private memory in all; CUDA reserves by device size, so not applied there."""
    limits = {
        **NOTHING,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: open_files,
    }
    if kind == "cpu":
        limits[resource.RLIMIT_DATA] = data_bytes
    else:
        del limits[resource.RLIMIT_MEMLOCK]
    return _with_processes(limits, processes)


def compiler_limits(*, data_bytes: int, file_bytes: int, processes: int, cpu_seconds: int) -> dict[int, int]:
    """Limits of a builder and, each for itself, of the programs it starts."""
    limits = {
        **NOTHING,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_DATA: data_bytes,
    }
    return _with_processes(limits, processes)


def apply(limits: Mapping[int, int]) -> None:
    """Set them, soft and hard, never above what is allowed already; and go first when memory runs out."""
    linux.offer_to_oom_killer()
    linux.set_limits(limits)


def _with_processes(limits: dict[int, int], processes: int) -> dict[int, int]:
    # The kernel does not apply it to root, and counts root's processes against nobody.
    return limits if os.geteuid() == 0 else {**limits, resource.RLIMIT_NPROC: processes}
