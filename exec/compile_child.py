"""Compiling for `coppermesh check`: a child process with limits of its own, for NVRTC and for the CPU build.

The source may be anybody's, and compilers can be made to work for ever or to take all memory. So the child bounds its
memory, processor time and files, works in an empty directory of its own, and is ended with everything that it started
when its time is up. It is asked by one line of JSON on its standard input and answers by one on its standard output.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coppermesh.exec import linux
from coppermesh.exec.cuda_build import BUILD_SECONDS, MAX_LOG_BYTES, Kernel, build_kernel
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.errors import ExecError

MEMORY_BYTES = 2 * 1024 * 1024 * 1024
SECONDS = 2 * BUILD_SECONDS


class CompilerFailed(Exception):
    """The compiler came to no answer: out of time, out of memory, or it crashed. The text says which."""


def compile_for_cpu(kernel: Kernel, compiler: str | None) -> dict[str, Any]:
    """Build `kernel` as a CPU device would: `ok`, and `code`, `sentence` and `detail` of the refusal.

    Raises CompilerFailed.
    """
    fields = {name: getattr(kernel, name) for name in Kernel.__dataclass_fields__}
    return _ask({"for": "cpu", "kernel": fields, "compiler": compiler}, "the C++ compiler")


def compile_for_cuda(
    source: str, architecture: str, options: tuple[str, ...], expressions: tuple[str, ...]
) -> dict[str, Any]:
    """Compile by NVRTC: `ok`, `log`, `cubin_bytes`; `missing` where NVRTC is not there. Raises CompilerFailed."""
    return _ask(
        {
            "for": "cuda",
            "source": source,
            "architecture": architecture,
            "options": options,
            "expressions": expressions,
        },
        "NVRTC",
    )


def ask_nvrtc() -> dict[str, Any]:
    """`version` and `architectures`; `missing` where NVRTC is not there. Raises CompilerFailed."""
    return _ask({"for": "facts"}, "NVRTC")


def _ask(question: Mapping[str, Any], who: str) -> dict[str, Any]:
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    with tempfile.TemporaryDirectory(prefix="coppermesh-check-") as directory:
        with subprocess.Popen(
            [sys.executable, "-I", "-m", "coppermesh.exec.compile_child"],
            cwd=directory,
            env={**environment, "TMPDIR": directory, "LC_ALL": "C"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as child:
            try:
                answer, _ = child.communicate(json.dumps(question).encode(), timeout=SECONDS)
            except BaseException as error:
                os.killpg(child.pid, signal.SIGKILL)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise CompilerFailed(f"{who} needed more than {SECONDS:.0f} s") from error
                raise
    if child.returncode != 0 or not answer:
        raise CompilerFailed(f"{who} {_how_it_ended(child.returncode)}")
    decoded: dict[str, Any] = json.loads(answer)
    return decoded


def _how_it_ended(status: int) -> str:
    if status == -signal.SIGXCPU:
        return f"needed more than {SECONDS:.0f} s of processor time"
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}: most likely it ran out of its {MEMORY_BYTES >> 30} GiB"
    return f"ended with status {status}: most likely it ran out of its {MEMORY_BYTES >> 30} GiB of memory"


# --- below runs in the child


def _main() -> None:
    _confine()
    question = json.loads(sys.stdin.buffer.read())
    answer = {"cpu": _build, "cuda": _compile, "facts": _facts}[question.pop("for")](question)
    sys.stdout.buffer.write(json.dumps(answer).encode())


def _confine() -> None:
    linux.die_with_parent(os.getppid())
    linux.forbid_new_privileges()
    linux.set_limits(
        {
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_CPU: int(SECONDS),
            resource.RLIMIT_DATA: MEMORY_BYTES,
            resource.RLIMIT_FSIZE: 256 * 1024 * 1024,
            resource.RLIMIT_NOFILE: 256,
            resource.RLIMIT_STACK: 64 * 1024 * 1024,
        }
    )


def _build(question: dict[str, Any]) -> dict[str, Any]:
    toolchain = find_toolchain(question["compiler"])
    if toolchain is None:
        return {"ok": False, "missing": "there is no C++ compiler"}
    fields: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in question["kernel"].items()
    }
    directory = Path.cwd() / "build"
    directory.mkdir()
    try:
        os.close(build_kernel(Kernel(**fields), toolchain, directory, Path.cwd()))
    except ExecError as error:
        detail = error.detail[:MAX_LOG_BYTES]
        return {"ok": False, "code": error.code, "sentence": error.sentence, "detail": detail}
    return {"ok": True, "compiler": toolchain.version()}


def _compile(question: dict[str, Any]) -> dict[str, Any]:
    from coppermesh.exec import nvrtc

    try:
        done = nvrtc.compile_source(**question)
    except nvrtc.NvrtcMissing as error:
        return {"ok": False, "missing": str(error)}
    return {"ok": done.ok, "log": done.log[:MAX_LOG_BYTES], "cubin_bytes": done.cubin_bytes}


def _facts(_question: dict[str, Any]) -> dict[str, Any]:
    from coppermesh.exec import nvrtc

    try:
        return {"version": nvrtc.nvrtc_version(), "architectures": nvrtc.architectures()}
    except nvrtc.NvrtcMissing as error:
        return {"missing": str(error)}


if __name__ == "__main__":
    _main()
