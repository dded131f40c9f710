"""Building one kernel of CUDA source into a shared library, in the process that may run a compiler.

A worker never starts a program: it asks the agent, which has the zygote fork a builder, a process with limits of its
own that runs one compiler and ends. The directory is private to that builder and is removed afterwards; the library
leaves it as a sealed file in memory. `kernel.cu` holds the program's source, unchanged or with changes that keep every
line (`cuda_rewrite`, `cuda_loops`), so that the compiler's line numbers are the user's, and its name is the only path
that its messages show.
"""

import contextlib
import os
import platform
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coppermesh.exec import linux, name_expressions
from coppermesh.exec.cuda_gate import SHIM, SourceRefused, check_cpu_source
from coppermesh.exec.cuda_loops import rewrite_loops
from coppermesh.exec.cuda_rewrite import rewrite, uses_fibers
from coppermesh.exec.cuda_toolchain import Toolchain
from coppermesh.exec.errors import ExecError, KernelCompileError
from coppermesh.exec.library_check import check_library
from coppermesh.exec.pipe import MAX_DETAIL, plain_detail

BUILD_SECONDS = 30.0
MAX_LOG_BYTES = 256 * 1024
MAX_LIBRARY_BYTES = 64 * 1024 * 1024

_TIMED_OUT = -signal.SIGXCPU
_NO_SPACE = "No space left on device"
_DEFINE = re.compile(r"-D(?P<name>[A-Za-z_]\w*)(?:=(?P<value>[A-Za-z0-9_.+-]*))?")
_STANDARD = re.compile(r"--?std=c\+\+(?P<year>11|14|17|20)")
_IGNORED = re.compile(r"--?use_fast_math|--?fmad=(?:true|false)")
"""Speed for accuracy: the CPU build is always accurate and never contracts."""
_INCLUDED_FROM = re.compile(
    r"^(?:In file included from| +from) module\.cpp:\d+[:,]\n|\./(?=kernel\.cu:)", re.MULTILINE
)
_WORD = re.compile(r"[^\s:'\"()]+")
_ROOT = re.compile(r"(?<![\w.])/")


class BuildFailed(ExecError):
    """The build ended without a library for a reason other than the source's grammar. `code` says which."""


@dataclass(frozen=True)
class Kernel:
    """What to build: the kernel `name`, or where there are other names, all kernels and variables that they name.

    A module's `name` only stands in messages.
    """

    source: str
    name: str
    options: tuple[str, ...]
    functions: tuple[str, ...] = ()
    """Kernels declared `extern "C"`."""
    expressions: tuple[str, ...] = ()
    """Kernels by name expression, each checked by `name_expressions`."""
    symbols: tuple[str, ...] = ()
    """Variables."""

    @property
    def plain_names(self) -> tuple[str, ...]:
        """Kernels that must be declared `extern "C"`."""
        return self.functions if self.functions or self.expressions or self.symbols else (self.name,)

    @property
    def kernels(self) -> tuple[str, ...]:
        """All kernels, in the order of their numbers in the library."""
        return self.plain_names + self.expressions


def make_log() -> int:
    """A memory file for a compiler's messages, which cannot grow."""
    log = linux.memory_file("coppermesh-log", MAX_LOG_BYTES)
    linux.seal(log, linux.SEAL_SIZE | linux.SEAL_SEAL)
    return log


def build_kernel(
    kernel: Kernel, toolchain: Toolchain, directory: Path, cache: Path, headers: Path = SHIM
) -> int:
    """`compile_kernel`, with the library in a sealed memory file."""
    log = make_log()
    try:
        library = compile_kernel(kernel, toolchain, directory, cache, headers, log)
    finally:
        os.close(log)
    return linux.sealed_file("coppermesh-kernel", library)


def compile_kernel(
    kernel: Kernel,
    toolchain: Toolchain,
    directory: Path,
    cache: Path,
    headers: Path,
    log: int,
    *,
    apart: bool = True,
) -> bytes:
    """Compile in `directory` and return the library.

    `cache` is where a compiler may keep parts of itself; `headers` holds what `SHIM` does; `log` is a `make_log`.
    `apart`: the compiler gets a process group of its own; else it stays in the one that this process leads, which is
    killed with all that is left in it when this process ends.
    Raises SourceRefused, KernelCompileError, or BuildFailed (`kernel-build-limit`, `compiler-missing`). Blocks for up
    to `BUILD_SECONDS`.
    """
    check_cpu_source(kernel.source, kernel.options)
    for expression in kernel.expressions:
        if name_expressions.canonical(expression) != expression:  # it is pasted into source below
            raise SourceRefused(f"the name expression {expression[:80]!r} is not in its one spelling")
    for name in kernel.plain_names + kernel.symbols:
        if not name_expressions.is_plain(name) or not re.search(rf"\b{re.escape(name)}\b", kernel.source):
            what = "variable" if name in kernel.symbols else "function"
            raise KernelCompileError(kernel.name, f"kernel.cu: error: there is no {what} '{name}'")
    standard, defines = _read_options(kernel.options)
    fibers = uses_fibers(kernel.source, kernel.options)
    if fibers and platform.machine() not in ("x86_64", "AMD64"):
        raise SourceRefused(
            f"shared memory, barriers and warp functions need an x86-64 processor; this one is {platform.machine()}"
        )
    loops: tuple[str, ...] = ()
    if fibers:
        source = rewrite(kernel.source)
    else:
        source, loops = rewrite_loops(kernel.source, kernel.kernels, _macros(kernel.options))
    command = toolchain.arguments(standard, headers, "module.cpp", "module.so", fibers=fibers)
    environment = toolchain.environment(str(cache))
    _write_module(directory, kernel, source, defines, loops=loops, fibers=fibers)
    status, said = _run_compiler(command, environment, directory, log, apart)
    if (loops or fibers) and status not in (0, _TIMED_OUT):
        # As it was written, or nearly: then the compiler's messages quote the user's lines and count their columns.
        source = rewrite(kernel.source, place_arrays=False) if fibers else kernel.source
        _write_module(directory, kernel, source, defines, loops=(), fibers=fibers)
        status, said = _run_compiler(command, environment, directory, log, apart)
    if status != 0:
        raise _explain(kernel.name, status, scrub(_INCLUDED_FROM.sub("", said), directory))
    try:
        with open(directory / "module.so", "rb") as file:
            library = file.read(MAX_LIBRARY_BYTES + 1)
        check_library(library, kernel.name, start_files=toolchain.start_files)
    except OSError as error:
        raise BuildFailed(
            "kernel-build-limit", f"kernel {kernel.name}: the compiler left no library"
        ) from error
    return library


def _write_module(
    directory: Path, kernel: Kernel, source: str, defines: str, *, loops: tuple[str, ...], fibers: bool
) -> None:
    """`kernel.cu`, which holds `source`, and `module.cpp`, which includes it and exports what `kernel` names."""
    (directory / "kernel.cu").write_text(source)
    (directory / "module.cpp").write_text(
        ("#define COPPERMESH_FIBERS 1\n" if fibers else "")
        + ("#define COPPERMESH_LOOPS 1\n" if loops else "")
        + '#include "coppermesh_cuda.h"\n'
        + defines
        + '#include "kernel.cu"\n'
        + "".join(loops)
        + "".join(f"COPPERMESH_EXPORT({number}, {name})\n" for number, name in enumerate(kernel.kernels))
        + "".join(f"COPPERMESH_SYMBOL({number}, {name})\n" for number, name in enumerate(kernel.symbols))
    )


def _read_options(options: tuple[str, ...]) -> tuple[str, str]:
    """The language standard, and the macros as lines of source. Raises SourceRefused."""
    standard = "c++17"
    defines = []
    for option in options:
        if match := _DEFINE.fullmatch(option):
            defines.append(f"#define {match['name']} {match['value'] if match['value'] is not None else 1}\n")
        elif match := _STANDARD.fullmatch(option):
            standard = "c++20" if match["year"] == "20" else "c++17"
        elif not _IGNORED.fullmatch(option):
            raise SourceRefused(f"compiler option {option[:80]} is not possible on a CPU device")
    return standard, "".join(defines)


def _macros(options: tuple[str, ...]) -> dict[str, str]:
    """Names and values of the macros among the options."""
    matches = (_DEFINE.fullmatch(option) for option in options)
    return {match["name"]: match["value"] or "1" for match in matches if match}


def _run_compiler(
    command: list[str], environment: dict[str, str], directory: Path, log: int, apart: bool
) -> tuple[int, str]:
    """Exit status and messages, at most `MAX_LOG_BYTES` of them. What it started ends with this process.

    The messages go into a memory file that cannot grow: when the directory is full they must still say so.
    """
    os.pwrite(log, bytes(MAX_LOG_BYTES), 0)
    os.lseek(log, 0, os.SEEK_SET)
    try:
        process = subprocess.Popen(  # noqa: S603 - the compiler this machine's owner has, without a shell
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0 if apart else None,
        )
    except OSError as error:
        raise BuildFailed("compiler-missing", f"the compiler does not start: {error.strerror}") from error
    with _group_dies_with_me(process.pid if apart else os.getpgrp(), until_then=not apart):
        try:
            status = process.wait(BUILD_SECONDS)
        except subprocess.TimeoutExpired:
            status = _TIMED_OUT
            if apart:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return status, os.pread(log, MAX_LOG_BYTES, 0).rstrip(b"\0").decode(errors="replace")


def _explain(name: str, status: int, log: str) -> ExecError:
    if "error" in log and "internal compiler error" not in log and not _out_of_resources(log):
        return KernelCompileError(name, log)
    if status == _TIMED_OUT:
        reason = f"the compiler needed more than {BUILD_SECONDS:.0f} s"
    elif _NO_SPACE in log:
        reason = "the compiler wrote more than its scratch directory may hold"
    else:
        reason = "the compiler needed more memory, or larger files, than it may use"
    return BuildFailed("kernel-build-limit", f"kernel {name}: {reason}; make the source smaller", detail=log)


def _out_of_resources(log: str) -> bool:
    return any(
        sign in log
        for sign in (
            "out of memory",
            "Killed signal",
            "File size limit",
            "virtual memory exhausted",
            _NO_SPACE,
        )
    )


def scrub(text: str, directory: Path | None = None) -> str:
    """`text` fit to leave this machine: printable, bounded, and with the last part only of every absolute path."""
    if directory is not None:
        text = text.replace(f"{directory}/", "")
    return plain_detail(_WORD.sub(_last_part, text[: 4 * MAX_DETAIL]))


def _last_part(word: re.Match[str]) -> str:
    """A word with the last part only of the absolute path that begins in it.

    In time that grows with its length alone: a stranger chose it, and this runs in the agent.
    """
    text = word[0]
    root = _ROOT.search(text)
    if root is None:
        return text
    parts = [part for part in text[root.start() :].split("/") if part]
    if not parts:
        return text
    return text[: root.start()] + parts[-1] + ("/" if text.endswith("/") else "")


@contextlib.contextmanager
def _group_dies_with_me(group: int, *, until_then: bool) -> Iterator[None]:
    """Within the block, the process group is killed as soon as this process ends, however it ends.

    A compiler driver starts compilers of its own, which no death signal reaches. A forked watcher waits on a pipe
    whose other end only this process holds: when it closes without a word, the watcher kills the group and ends.
    `until_then`: also after the block, as long as this process lives.
    """
    reading, writing = os.pipe()
    watcher = os.fork()
    if watcher == 0:
        os.closerange(3, reading)
        os.closerange(reading + 1, 1 << 20)
        with contextlib.suppress(OSError):
            if not os.read(reading, 1):
                os.killpg(group, signal.SIGKILL)
        os._exit(0)
    os.close(reading)
    try:
        yield
    finally:
        if not until_then:
            with contextlib.suppress(BrokenPipeError):  # somebody ended it
                os.write(writing, b"x")
            os.close(writing)
            os.waitpid(watcher, 0)
