"""Why a worker ended without an answer, in words for the person whose program it ran."""

import re
import signal
from dataclasses import dataclass, field

from coppermesh.exec.budget import format_bytes
from coppermesh.exec.errors import ExecError
from coppermesh.exec.runs import OutputBuffer
from coppermesh.exec.trace_digests import TraceDigests

_CAUSES = {
    signal.SIGSEGV: "a wild pointer or a stack overflow",
    signal.SIGBUS: "a wild pointer",
    signal.SIGFPE: "an integer division by zero",
    signal.SIGILL: "a trap or an invalid instruction",
    signal.SIGTRAP: "a trap",
    signal.SIGABRT: "it found its memory damaged, or aborted by itself",
    signal.SIGXFSZ: "it wrote more than it may",
}


_CLOCK_TICKS_US = 20_000
"""The kernel's accounting of a process's limit and of its use may be two ticks apart."""
_DAMAGED = re.compile(r"free\(\)|malloc|realloc|corrupt|double free|smash", re.IGNORECASE)
"""What C libraries print when they find their own records overwritten."""
_OUTSIDE = "; a kernel wrote outside of its arrays: have each thread compare its index with the length before it writes"
SPOILING_CODES = frozenset({"device-lost", "kernel-crashed"})
"""Failures after which a worker, though it has answered, cannot run anything more: its GPU's context is ruined."""


@dataclass
class Answer:
    """How one run ended, before it is timed."""

    status: str
    code: str
    sentence: str = ""
    detail: str = ""
    outputs: list[OutputBuffer] = field(default_factory=list)
    device_us: int | None = None
    array_bytes: int = 0
    digests: TraceDigests | None = None


def explain_exit(
    exit_code: int | None, stage: str, printed: str, cpu_seconds: int, cpu_us: int = 0
) -> Answer:
    """What an exit status means. `stage` is what was running, `printed` what the process said.

    `cpu_us` is the processor time that it used, of `cpu_seconds` that it may use. The kernel sends SIGXCPU or SIGKILL
    when that is over, and native code may have caught the former.

    A signal of the code's own making is the job's failure. SIGKILL that did not come from here is the kernel's doing
    on a machine without memory, and no status at all means that the zygote went too: the provider's failures.
    """
    where = f" in {stage}" if stage else ""
    if exit_code is None:
        sentence = f"this machine's worker processes were ended{where}"
        return Answer("provider-failed", "zygote-lost", sentence, printed)
    used_up = cpu_us > 0 and cpu_us >= 1e6 * cpu_seconds - _CLOCK_TICKS_US
    if exit_code == -signal.SIGXCPU or (exit_code == -signal.SIGKILL and used_up):
        spent = f"{cpu_us / 1e6:.3g} s" if cpu_us else "all"
        sentence = f"the worker has used {spent} of its {cpu_seconds} s of processor time{where}"
        return Answer("job-failed", "cpu-limit", sentence, printed)
    if exit_code == -signal.SIGKILL:
        sentence = f"the worker process was killed{where}; this machine may be out of memory"
        return Answer("provider-failed", "worker-killed", sentence, printed)
    if exit_code < 0:
        sentence = f"the worker died of {_signal_words(-exit_code)}{where}"
        if exit_code == -signal.SIGABRT and _DAMAGED.search(printed):
            sentence += _OUTSIDE
        return Answer("job-failed", "crashed", sentence, printed)
    return Answer(
        "job-failed", "crashed", f"the worker process ended with status {exit_code}{where}", printed
    )


def explain_memory_kill(peak_bytes: int | None, limit: int, stage: str, printed: str) -> Answer:
    """A worker that the kernel ended because its cgroup was full."""
    where = f", in {stage}" if stage else ""
    held = f"held {format_bytes(peak_bytes)} of memory" if peak_bytes else "asked for more memory"
    sentence = f"the program {held}, the limit is {format_bytes(limit)}; it was ended{where}"
    return Answer("job-failed", "memory-limit", sentence, printed)


def explain_wall_limit(stage: str, printed: str, limit_s: float) -> Answer:
    """A run that was killed because its time was up."""
    where = f", in {stage}" if stage else ""
    sentence = (
        f"the program ran longer than its {limit_s:g} s of wall time (wall_limit_s) and was ended{where}"
    )
    return Answer("job-failed", "wall-limit", sentence, printed)


def explain_nonsense(error: Exception) -> Answer:
    """A worker that broke the protocol: after a kernel ran in it, that is the job's doing."""
    return Answer("job-failed", "worker-misbehaved", f"the worker process broke its protocol: {error}")


def explain_unavailable(error: ExecError) -> Answer:
    """No worker at all."""
    return Answer("provider-failed", error.code, error.sentence, error.detail)


def _signal_words(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    cause = _CAUSES.get(signal.Signals(number))
    return f"{name} ({cause})" if cause else name
