"""What goes into a run and what comes out of it, for the agent."""

import mmap
from dataclasses import dataclass, field
from typing import Self

from coppermesh.exec.budget import lease_limits
from coppermesh.exec.trace_digests import TraceDigests

MEBIBYTE = 1024 * 1024
MOST_OPERATIONS = (1 << 62) - 1
"""What fits into a message to a worker."""


@dataclass(frozen=True)
class WorkerLimits:
    """What one worker process may use. In bytes, except `processes` and `cpu_seconds`."""

    memory_bytes: int
    """Memory for arrays, over what an idle worker has; more is `memory-limit` (or `over-memory`, told beforehand)."""
    output_bytes: int
    """Sum of one program's outputs; more is `over-output` or `output-limit`."""
    scratch_bytes: int = 256 * MEBIBYTE
    """Most that one build may write in all, and in any one file."""
    processes: int = 4096
    """RLIMIT_NPROC, which counts the processes and threads of the *user*. Not applied to root."""
    threads: int = 256
    """Threads of one worker; more is `process-limit`. It cannot have processes."""
    cpu_seconds: int = 24 * 3600
    """Processor time of one worker process in all; more is `cpu-limit`."""
    blob_bytes: int | None = None
    """Sum of one program's inputs, `over-blob-bytes`; None: as much as `memory_bytes`."""
    operations: int = 10**17
    """Estimated operations of one program, `over-operations`."""

    @classmethod
    def under_lease(cls, kind: str, memory_bytes: int, wall_limit_s: float) -> Self:
        """Limits as a lease of a device of `kind` has them (`budget.lease_limits`)."""
        limits = lease_limits(kind, memory_bytes, wall_limit_s)
        operations = min(int(limits.flops), MOST_OPERATIONS)
        return cls(
            limits.memory_bytes, limits.output_bytes, blob_bytes=limits.blob_bytes, operations=operations
        )


@dataclass(frozen=True)
class InputBuffer:
    """One input: exactly one of `data` and `fd` is given."""

    size: int
    data: bytes | None = None
    fd: int | None = None
    """A readable descriptor of a file of at least `size` bytes. Stays the caller's; mapped read-only."""

    def __post_init__(self) -> None:
        if (self.data is None) == (self.fd is None):
            raise ValueError("an input buffer has either data or a descriptor")
        if self.data is not None and len(self.data) != self.size:
            raise ValueError(f"an input buffer of {self.size} bytes holds {len(self.data)}")


@dataclass
class OutputBuffer:
    """One output as a worker handed it over: nobody can change its bytes any more."""

    size: int
    view: memoryview
    """Read-only, `size` bytes, valid until `close`."""
    _mapping: mmap.mmap | None = field(default=None, repr=False)

    def close(self) -> None:
        """Give the memory back; `view` must not be used afterwards. Closing twice is fine.

        Raises BufferError while something else still looks at `view` (an array made from it).
        """
        self.view.release()
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None


@dataclass
class RunOutcome:
    """What became of one run. Never an exception: a job's failure is an answer."""

    status: str
    """`ok`, `job-failed` (the requester's doing) or `provider-failed` (this machine's)."""
    code: str
    """`ok`, or why it failed, as a stable word."""
    sentence: str
    """For the person who submitted it; printable ASCII, at most 400 characters."""
    detail: str
    """Compiler log or traceback, at most 16 KiB, printable, without paths of this machine."""
    outputs: list[OutputBuffer]
    started_us: int
    """Microseconds since the epoch."""
    wall_us: int
    """Measured by the agent, from sending the program to having its answer."""
    device_us: int | None
    energy_mj: int | None
    """What the device used meanwhile, everything else on it included."""
    meter: str
    peak_bytes: int
    """Most resident memory of the worker process so far, in its own words; 0 where it could not say."""
    determinism: str
    """What must be equal for two runs to agree bit for bit, in the runtime's words; empty where it could not say."""
    array_bytes: int = 0
    """Most bytes of arrays that this run held at once, on the device; in the worker's own words, 0 where it failed."""
    input_bytes: int = 0
    """Program and inputs, as they were handed to the worker."""
    output_bytes: int = 0
    """All outputs."""
    digests: TraceDigests | None = None
    """What each node gave; None where it was not asked for, or the run failed."""

    def close(self) -> None:
        """Close every output."""
        for output in self.outputs:
            output.close()
