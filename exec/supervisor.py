"""Runs programs in worker processes: the agent's side of the zygote and its workers."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from coppermesh.exec.device import DeviceInfo


@dataclass(frozen=True)
class WorkerLimits:
    """What one worker process may use. All in bytes, except `processes`."""

    memory_bytes: int
    """Private memory on top of what an idle worker has; more is `memory-limit`."""
    output_bytes: int
    """Sum of one program's outputs; more is `output-limit`."""
    scratch_bytes: int = 256 * 1024 * 1024
    """Largest file a compiler may write."""
    processes: int = 4096
    """RLIMIT_NPROC: processes and threads of this *user* in all. Not applied to root."""


@dataclass(frozen=True)
class InputBuffer:
    """One input: exactly one of `data` and `fd` is given."""

    size: int
    data: bytes | None = None
    fd: int | None = None
    """A readable descriptor of a file of at least `size` bytes. Stays the caller's; mapped read-only."""


@dataclass
class OutputBuffer:
    """One output as handed over by a worker: nobody can change its bytes any more."""

    size: int
    view: memoryview
    """Read-only, `size` bytes, valid until `close`."""

    def close(self) -> None:
        """Give the memory back. `view` must not be used afterwards. Closing twice is fine."""
        raise NotImplementedError


@dataclass
class RunOutcome:
    """What became of one run. Never an exception: a job's failure is an answer."""

    status: str
    """`ok`, `job-failed` (the requester's doing) or `provider-failed` (this machine's)."""
    code: str
    """`ok`, or why it failed, as a stable word."""
    sentence: str
    """For the person who submitted it; printable ASCII."""
    detail: str
    """Compiler log or traceback, at most 16 KiB, printable, without paths of this machine."""
    outputs: list[OutputBuffer]
    started_us: int
    """Microseconds since the epoch."""
    wall_us: int
    """Measured here, from sending the program to having its answer."""
    device_us: int | None
    energy_mj: int | None
    meter: str
    peak_bytes: int
    """Most resident memory of the worker process so far, as it says itself."""
    determinism: str
    """How far the same program gives the same bits, as the runtime says it."""


class Worker:
    """One worker process at a time, forked again after it was killed or died."""

    async def run(
        self, program: bytes, inputs: Sequence[InputBuffer], wall_limit_s: float
    ) -> RunOutcome:
        """Run one program. Raises only for what the caller did wrong (`ValueError`).

        Cancelling kills the process within a second. Runs of one worker take turns; waiting for the turn does not
        count against `wall_limit_s`.
        """
        raise NotImplementedError


class Supervisor:
    """Owner of one zygote and the workers forked from it."""

    def worker(self, limits: WorkerLimits, *, kernels: bool = True) -> AbstractAsyncContextManager[Worker]:
        """A worker process for the block, gone with everything it held when the block ends.

        `kernels=False` refuses programs that contain kernels (`unsupported-feature`).
        """
        raise NotImplementedError


@asynccontextmanager
async def open_supervisor(
    device: DeviceInfo, *, scratch: Path, compiler: str | None = None
) -> AsyncIterator[Supervisor]:
    """Start a zygote for `device` and keep it alive for the block.

    `scratch` is a directory of this supervisor's own, made when missing and emptied of leftovers. `compiler` is the configured
    C++ compiler. Raises `WorkerUnavailable` where no zygote starts.
    """
    raise NotImplementedError
    yield Supervisor()
