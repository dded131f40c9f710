"""NVIDIA's run-time compiler on a machine without a GPU: does this source compile for that architecture?

NVRTC compiles without a driver; it needs its library and the CUDA headers, which the extra `check` installs as wheels.
NVIDIA's own binding (`cuda-bindings`) calls it. It is imported when a compilation is asked for and never before, and
only in the child process that `compile_child` starts: a compiler of hostile source runs where it can be ended.

The source must have passed `cuda_gate.scan` for CUDA devices: NVRTC opens any file that an #include names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

SOURCE_NAME = "kernel.cu"
"""What the compiler's messages call the source."""
DEFAULT_STANDARD = "--std=c++17"

# As in pyproject.toml's extra `check`.
_WHEELS = ("cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-cuda-cccl")
_HEADERS = ("cudart", "cccl")
"""Header directories that the compiler is told of, by cuda-pathfinder's names: the toolkit's own and no other."""


class NvrtcMissing(Exception):
    """NVRTC, its binding or the CUDA headers are not installed; the text says how to get them."""


@dataclass(frozen=True, slots=True)
class Compilation:
    """What NVRTC said."""

    ok: bool
    log: str
    """Messages, lines counted in the source."""
    cubin_bytes: int
    """Size of the machine code; 0 where there is none."""


def missing_parts() -> list[str]:
    """The distributions of the extra `check` that are not installed."""
    missing = []
    for name in _WHEELS:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    return missing


def require_parts() -> None:
    """Raise NvrtcMissing, with what to do, unless everything is installed."""
    missing = missing_parts()
    if missing or find_spec("cuda") is None:
        raise NvrtcMissing(
            f"NVRTC is not installed (missing: {', '.join(missing) or 'cuda-bindings'}); "
            f"get it with bootstrap/setup --check, or: pip install {' '.join(f'{name}==13.*' for name in _WHEELS)}"
        )


def architectures() -> list[str]:
    """What this NVRTC compiles for, oldest first: `sm_75`, ... Raises NvrtcMissing."""
    nvrtc = _binding()
    return [f"sm_{number}" for number in sorted(_call(nvrtc, nvrtc.nvrtcGetSupportedArchs()))]


def nvrtc_version() -> str:
    """`13.5`. Raises NvrtcMissing."""
    nvrtc = _binding()
    major, minor = _call(nvrtc, nvrtc.nvrtcVersion())
    return f"{major}.{minor}"


def compile_source(
    source: str, architecture: str, options: Sequence[str] = (), expressions: Sequence[str] = ()
) -> Compilation:
    """Compile to machine code of `architecture` (`sm_90`), instances of `expressions` included.

    `options` are a program's own, checked (`cuda_source.check_options`). Blocks; call it in a child process whose
    directory is empty: NVRTC looks for headers there too.
    """
    nvrtc = _binding()
    program = _call(nvrtc, nvrtc.nvrtcCreateProgram(source.encode(), SOURCE_NAME.encode(), 0, [], []))
    try:
        for expression in expressions:
            _call(nvrtc, nvrtc.nvrtcAddNameExpression(program, expression.encode()))
        arguments = [argument.encode() for argument in _arguments(architecture, options)]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(arguments), arguments)
        return Compilation(
            ok=int(status) == 0,
            log=_log(nvrtc, program) or ("" if int(status) == 0 else f"error: {_reason(nvrtc, status)}"),
            cubin_bytes=_call(nvrtc, nvrtc.nvrtcGetCUBINSize(program)) if int(status) == 0 else 0,
        )
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _arguments(architecture: str, options: Sequence[str]) -> list[str]:
    pathfinder = import_module("cuda.pathfinder")
    given = [*options]
    if not any("std=" in option for option in given):
        given.append(DEFAULT_STANDARD)
    directories = [pathfinder.find_nvidia_header_directory(name) for name in _HEADERS]
    return [
        f"--gpu-architecture={architecture}",
        *(f"--include-path={directory}" for directory in directories if directory),
        *given,
    ]


def _binding() -> Any:
    require_parts()
    try:
        nvrtc = import_module("cuda.bindings.nvrtc")
        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:
        raise NvrtcMissing(f"NVRTC cannot be loaded: {error}") from error
    return nvrtc


def _call(nvrtc: Any, answer: Any) -> Any:
    """The value of a call of the binding, whose first item is a status. Raises NvrtcMissing at any failure."""
    status, *values = answer
    if int(status) != 0:
        raise NvrtcMissing(f"NVRTC failed: {_reason(nvrtc, status)}")
    return values[0] if len(values) == 1 else values


def _reason(nvrtc: Any, status: Any) -> str:
    text: bytes = nvrtc.nvrtcGetErrorString(status)[1]
    return text.decode(errors="replace")


def _log(nvrtc: Any, program: Any) -> str:
    size = _call(nvrtc, nvrtc.nvrtcGetProgramLogSize(program))
    buffer = bytearray(size)
    _call(nvrtc, nvrtc.nvrtcGetProgramLog(program, buffer))
    return buffer.rstrip(b"\0").decode(errors="replace")
