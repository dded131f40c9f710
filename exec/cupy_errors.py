"""What CuPy's exceptions mean: whose fault, in words, and whether the process can still use its GPU.

A CUDA error is *sticky* when it ruins the process's context: every later call fails with the same code, and only a new
process helps (CUDA C++ Programming Guide, error checking; the codes are those of `cudaError_t` and `CUresult`, which
agree from 200 on). A kernel's wild access is the program's doing and ends as `kernel-crashed`; a GPU that fell off the
bus is this machine's and ends as `device-lost`. Nothing here imports CuPy: errors are told by class name and number.
"""

import re
from collections.abc import Callable
from typing import Any

from coppermesh.exec.budget import format_bytes
from coppermesh.exec.errors import ExecError, KernelCompileError, KernelCrashed, RunFailed

DEVICE_ERROR = "device-error"
"""The GPU or its library refused a call; the process goes on."""
DEVICE_LOST = "device-lost"
"""The process cannot use its GPU any more."""
DEVICE_MEMORY = "device-memory"
"""The GPU has less memory left than it was announced with."""

_OF_THE_KERNEL = {
    700: "touched memory outside its arrays",
    702: "ran longer than this GPU lets a kernel run",
    710: "failed an assertion",
    714: "overflowed its stack or its call depth",
    715: "ran an invalid instruction or a trap",
    716: "touched memory at a misaligned address",
    717: "used an address of the wrong memory space",
    718: "jumped to an invalid address",
    719: "was stopped by the GPU (a wild access, a trap, or a fault of the GPU)",
}
_OF_THE_DEVICE = frozenset({3, 35, 46, 100, 101, 201, 214, 220, 226, 227, 304, 709, 721, 802, 803, 804, 999})
"""Sticky, or no GPU to begin with: initialisation, insufficient driver, no or busy device, uncorrectable ECC and
NVLink errors, destroyed context, contained errors, unready system, unknown."""
_LAUNCH = {
    9: "an invalid grid or block",
    701: "more registers or shared memory than the GPU has for one block",
}

_NVRTC_FILE = re.compile(r"\b(?:default_program|[0-9a-f]{40}\.cu)\b")
_NVRTC_BLANK = re.compile(r"\n{3,}")
MAX_LOG = 16 * 1024


def status_of(error: BaseException) -> int | None:
    """CUDA's error number, where `error` carries one."""
    status = getattr(error, "status", None)
    named = type(error).__name__ in {"CUDARuntimeError", "CUDADriverError"}
    return status if named and isinstance(status, int) else None


def explain(error: BaseException, stage: str = "") -> ExecError:
    """`error` as ours. `stage` says what was running (`kernel saxpy`); empty where nobody knows."""
    if isinstance(error, ExecError):
        return error
    if type(error).__name__ == "OutOfMemoryError":
        return explain_memory(error)
    status = status_of(error)
    where = stage or "the program"
    if status in _OF_THE_KERNEL:
        return KernelCrashed(f"{where} {_OF_THE_KERNEL[status]}", detail=str(error))
    if status in _LAUNCH:
        return RunFailed(f"{where} asks for {_LAUNCH[status]}", code="launch-limits", detail=str(error))
    if status in _OF_THE_DEVICE:
        return RunFailed(f"the GPU cannot be used: {error}", code=DEVICE_LOST, detail=stage)
    if isinstance(error, NotImplementedError):
        return RunFailed(f"CuPy does not do this: {error}", code=DEVICE_ERROR, detail=stage)
    return RunFailed(f"the GPU reported, in {where}: {error}", code=DEVICE_ERROR)


def explain_memory(error: BaseException) -> RunFailed:
    """CuPy's OutOfMemoryError: over the pool's limit is the job's doing, an empty GPU is this machine's."""
    size, held, limit = (getattr(error, name, 0) for name in ("_size", "_total", "_limit"))
    wanted = f"{format_bytes(size)} of device memory beside {format_bytes(held)} held"
    if limit and size + held > limit:
        return RunFailed(f"{wanted} are more than the pool's {format_bytes(limit)}", code="memory-limit")
    sentence = f"the GPU has no {wanted}: something else on this machine uses it"
    return RunFailed(sentence, code=DEVICE_MEMORY)


def is_sticky(error: ExecError) -> bool:
    """Whether the process that had this error must not be used again."""
    return error.code in {"kernel-crashed", DEVICE_LOST}


def explain_compile(
    kernel: str, log: str, source_name: str = "", line_of: Callable[[int], int] | None = None
) -> Any:
    """NVRTC's log as KernelCompileError: its made-up file name becomes `source_name` (or the kernel's name).

    `line_of` maps a line of what was compiled to the user's; None where they are the same. Parts that carry a
    `#line` directive of ours have their own names and lines already.
    """
    text = _NVRTC_FILE.sub(source_name or kernel, log.replace("\0", ""))
    if line_of is not None:
        pattern = re.compile(rf"\b{re.escape(source_name or kernel)}\((\d+)\)")
        text = pattern.sub(lambda m: f"{source_name or kernel}({line_of(int(m[1]))})", text)
    return KernelCompileError(kernel, _NVRTC_BLANK.sub("\n\n", text).strip()[:MAX_LOG])
