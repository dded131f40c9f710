"""Does a CUDA source file compile, for which devices, and if not, where and why: what `coppermesh check` finds out.

Each target is asked in turn: the CPU build, and NVRTC for each architecture. The gate comes first and its findings
are a target's answer; no compiler ever sees a source that reaches for files. Both compilers run in child processes
with limits (`compile_child`). Errors carry the line and column in the user's file.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from coppermesh.exec import cuda_source, name_expressions
from coppermesh.exec.compile_child import CompilerFailed, ask_nvrtc, compile_for_cpu, compile_for_cuda
from coppermesh.exec.cuda_build import Kernel
from coppermesh.exec.cuda_features import CPU, CUDA
from coppermesh.exec.cuda_gate import Finding, scan
from coppermesh.exec.cuda_rewrite import rewrite, uses_fibers
from coppermesh.exec.errors import ExecError, ProgramInvalid
from coppermesh.exec.kernel_listing import ListedKernel, list_kernels
from coppermesh.exec.program import MAX_SOURCE_CHARACTERS

MAX_FILE_BYTES = 4 * MAX_SOURCE_CHARACTERS
MAX_DIAGNOSTICS = 100
"""Kept for each target."""
MAX_MESSAGE = 400

OK = "ok"
REFUSED = "refused"
NOT_TRIED = "not-tried"

_NVRTC_NAMES = "__nv_name_map"
"""The file that NVRTC makes of the names it is to compile."""
_NVRTC_MESSAGE = re.compile(
    r"^(?P<file>[^\s()][^()\n]*)\((?P<line>\d+)\): (?P<severity>(?:catastrophic )?error|warning|note|remark)"
    r"(?: #[\w-]+)?: (?P<text>.*)$"
)
_OWN_BLANKS = 2
"""What NVRTC puts before the lines that it quotes."""
_HOST_MESSAGE = re.compile(
    r"^(?P<file>[\w./+-]+):(?P<line>\d+):(?:(?P<column>\d+):)? (?P<severity>(?:fatal )?error|warning): (?P<text>.*)$"
)
_LINKER_MESSAGE = re.compile(
    r"undefined reference to [`'](?P<name>[^`']+)['`]|undefined symbol: (?P<other>\S+)"
)


class UnreadableFile(Exception):
    """The file cannot be checked at all; the text says why."""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One message about one place."""

    line: int
    """From 1; 0 where there is no place."""
    column: int
    """From 1; 0 where only the line is known."""
    severity: str
    """`error`, `warning` or `note`."""
    message: str


@dataclass(frozen=True, slots=True)
class TargetResult:
    """What one target says."""

    target: str
    """`cpu`, `sm_90`."""
    state: str
    """`ok`, `refused` or `not-tried`."""
    sentence: str
    """What tried it, or why it was refused or not tried."""
    diagnostics: tuple[Diagnostic, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All that is known of a file."""

    file: str
    kernels: tuple[ListedKernel, ...]
    targets: tuple[TargetResult, ...]
    notes: tuple[str, ...] = field(default=())

    def facts(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """What to check."""

    architectures: tuple[str, ...] = ()
    """`sm_90`, ...; none: the oldest and the newest that NVRTC knows."""
    expressions: tuple[str, ...] = ()
    """Name expressions: instances of templates to compile."""
    options: tuple[str, ...] = ()
    """A program's compiler options."""
    compiler: str | None = None
    """The C++ compiler of the CPU build, by path or name; None: the one that an agent would use."""


def read_source(path: Path) -> str:
    """The file's text. Raises UnreadableFile."""
    try:
        if path.is_dir():
            raise UnreadableFile(f"{path} is a directory")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UnreadableFile(f"{path}: {error.strerror or error}") from error
    if b"\0" in data:
        raise UnreadableFile(f"{path} is not text: it holds NUL bytes")
    try:
        text = data[:MAX_FILE_BYTES].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableFile(f"{path} is not UTF-8 text (byte {error.start})") from None
    if len(data) > MAX_FILE_BYTES or len(text) > MAX_SOURCE_CHARACTERS:
        raise UnreadableFile(
            f"{path} is too large: a kernel's source has at most {MAX_SOURCE_CHARACTERS} characters"
        )
    return text


def check_file(
    path: Path, request: CheckRequest, progress: Callable[[str], None] = lambda text: None
) -> CheckReport:
    """Check one file; `progress` is told what is being done. Raises UnreadableFile, ProgramInvalid for options."""
    source = read_source(path)
    cuda_source.check_options(request.options)
    expressions = tuple(name_expressions.canonical(text) for text in request.expressions)
    findings = scan([source], request.options)
    kernels = tuple(list_kernels(source))
    targets = [_check_cpu(source, request, expressions, findings, kernels, progress)]
    targets += _check_cuda(source, request, expressions, findings, progress)
    return CheckReport(str(path), kernels, tuple(targets), tuple(_notes(kernels, expressions)))


def _notes(kernels: Sequence[ListedKernel], expressions: Sequence[str]) -> list[str]:
    notes = []
    if not kernels:
        notes.append("no kernel found: none is declared __global__ outside a macro")
    plain = {expression.split("<")[0].removeprefix("::") for expression in expressions}
    notes += [
        f"{kernel.name} is a template: only its grammar was checked; compile an instance with --name "
        f"'{kernel.name}<float>'"
        for kernel in kernels
        if kernel.template and kernel.name not in plain
    ]
    return notes


def _refusals(findings: Sequence[Finding], runtime: str) -> tuple[Diagnostic, ...]:
    """What a device of this kind does not take."""
    refused = []
    for finding in findings:
        if finding.feature is None:
            message = f"{finding.what} is not possible in a kernel"
        elif runtime in finding.feature.runtimes:
            continue
        elif finding.feature.runtimes:
            message = (
                f"{finding.what} is not possible on a {runtime.upper()} device; {finding.feature.instead}"
            )
        else:
            message = f"{finding.what} is not possible on any device; {finding.feature.instead}"
        refused.append(Diagnostic(finding.line, finding.column, "error", message))
    return tuple(refused[:MAX_DIAGNOSTICS])


def _check_cpu(
    source: str,
    request: CheckRequest,
    expressions: tuple[str, ...],
    findings: Sequence[Finding],
    kernels: Sequence[ListedKernel],
    progress: Callable[[str], None],
) -> TargetResult:
    if refused := _refusals(findings, CPU):
        return TargetResult("cpu", REFUSED, "uses what CPU devices do not have", refused)
    named = {expression.split("<")[0].removeprefix("::") for expression in expressions}
    plain = tuple(kernel.name for kernel in kernels if kernel.extern_c and not kernel.template)
    others = tuple(
        kernel.name
        for kernel in kernels
        if not kernel.extern_c and not kernel.template and kernel.name not in named
    )
    if not plain + others + expressions:
        return TargetResult("cpu", NOT_TRIED, "there is no kernel to compile: name an instance with --name")
    progress("compiling for CPU devices")
    kernel = Kernel(source, "kernel.cu", request.options, plain, others + expressions)
    try:
        answer = compile_for_cpu(kernel, request.compiler)
    except CompilerFailed as error:
        return TargetResult("cpu", REFUSED, str(error))
    if "missing" in answer:
        return TargetResult("cpu", NOT_TRIED, answer["missing"])
    if answer["ok"]:
        return TargetResult("cpu", OK, answer["compiler"])
    diagnostics = _in_own_columns(host_diagnostics(answer["detail"]), source, request.options)
    sentence = "does not compile" if answer["code"] == "kernel-compile" else answer["sentence"]
    return TargetResult("cpu", REFUSED, sentence, diagnostics)


def _check_cuda(
    source: str,
    request: CheckRequest,
    expressions: tuple[str, ...],
    findings: Sequence[Finding],
    progress: Callable[[str], None],
) -> list[TargetResult]:
    asked = request.architectures or ("cuda",)
    if refused := _refusals(findings, CUDA):
        return [TargetResult(name, REFUSED, "uses what no device has", refused) for name in asked]
    try:
        facts = ask_nvrtc()
    except CompilerFailed as error:
        return [TargetResult(name, REFUSED, str(error)) for name in asked]
    if "missing" in facts:
        return [TargetResult(name, NOT_TRIED, facts["missing"]) for name in asked]
    known: list[str] = facts["architectures"]
    results = []
    failed: str | None = None
    for architecture in request.architectures or (known[0], known[-1]):
        if architecture not in known:
            sentence = f"NVRTC {facts['version']} does not know {architecture}; it knows {', '.join(known)}"
            results.append(TargetResult(architecture, NOT_TRIED, sentence))
            continue
        progress(f"compiling for {architecture}")
        if failed is not None:
            results.append(TargetResult(architecture, NOT_TRIED, f"NVRTC failed for {failed}"))
            continue
        try:
            answer = compile_for_cuda(source, architecture, request.options, expressions)
        except CompilerFailed as error:
            results.append(TargetResult(architecture, REFUSED, str(error)))
            failed = architecture  # out of time or memory there: it will be here
            continue
        diagnostics = nvrtc_diagnostics(answer.get("log", ""))
        state = OK if answer["ok"] else REFUSED
        sentence = f"NVRTC {facts['version']}" if answer["ok"] else "does not compile"
        results.append(TargetResult(architecture, state, sentence, diagnostics))
    return results


def nvrtc_diagnostics(log: str) -> tuple[Diagnostic, ...]:
    """NVRTC's messages. Of those about a name to compile the first, where there is nothing else."""
    lines = log.splitlines()
    found: list[Diagnostic] = []
    names: list[Diagnostic] = []
    for number, line in enumerate(lines):
        match = _NVRTC_MESSAGE.match(line)
        if match is None:
            continue
        severity = match["severity"].removeprefix("catastrophic ")
        if match["file"] == _NVRTC_NAMES:
            names.append(Diagnostic(0, 0, severity, _message(f"a kernel's name: {match['text']}")))
            continue
        own = match["file"] == "kernel.cu"
        found.append(
            Diagnostic(
                int(match["line"]) if own else 0,
                _marked_column(lines[number + 1 : number + 4]) if own else 0,
                severity,
                _message(match["text"] if own else f"{Path(match['file']).name}: {match['text']}"),
            )
        )
    return _bounded(found or names[:1], log)


def _marked_column(lines: Sequence[str]) -> int:
    """Where NVRTC drew its caret, which it moves by the bytes of the line above; 0 where it drew none."""
    for quoted, caret in pairwise(lines):
        if caret.strip() == "^":
            before = quoted.encode()[_OWN_BLANKS : caret.index("^")]
            return 1 + len(before.decode(errors="ignore"))
    return 0


def host_diagnostics(log: str) -> tuple[Diagnostic, ...]:
    """The C++ compiler's messages. Of those about no line of the user's the first, where there is nothing else."""
    found: list[Diagnostic] = []
    elsewhere: list[Diagnostic] = []
    for line in log.splitlines():
        if match := _HOST_MESSAGE.match(line):
            severity = match["severity"].removeprefix("fatal ")
            if match["file"] == "kernel.cu":
                place = int(match["line"]), int(match["column"] or 0)
                found.append(Diagnostic(*place, severity, _message(match["text"])))
            else:
                about = "a kernel's name: " if match["file"] == "module.cpp" else ""
                elsewhere.append(Diagnostic(0, 0, severity, _message(about + match["text"])))
        elif match := _LINKER_MESSAGE.search(line):
            name = match["name"] or match["other"]
            found.append(Diagnostic(0, 0, "error", _message(f"nothing defines {name}")))
    return _bounded(found or elsewhere[:1], log)


def _in_own_columns(
    diagnostics: Sequence[Diagnostic], source: str, options: Sequence[str]
) -> tuple[Diagnostic, ...]:
    """Without the column where the line was rewritten for the CPU build, which counts in another text."""
    if not uses_fibers(source, options):
        return tuple(diagnostics)
    try:
        rewritten = rewrite(source)
    except ExecError:  # that is what was refused
        return tuple(diagnostics)
    pairs = zip(source.split("\n"), rewritten.split("\n"), strict=False)
    changed = {number for number, (before, after) in enumerate(pairs, 1) if before != after}
    return tuple(replace(d, column=0) if d.line in changed else d for d in diagnostics)


def _message(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 3] + "..."


def _bounded(found: Sequence[Diagnostic], log: str) -> tuple[Diagnostic, ...]:
    """Each once, errors first where there are too many; where none could be read, the log's first line."""
    if not found and log.strip():
        return (Diagnostic(0, 0, "error", _message(log.strip().splitlines()[0])),)
    once = list(dict.fromkeys(found))
    if len(once) > MAX_DIAGNOSTICS:
        once.sort(key=lambda diagnostic: diagnostic.severity != "error")
    return tuple(once[:MAX_DIAGNOSTICS])


__all__ = [
    "NOT_TRIED", "OK", "REFUSED", "CheckReport", "CheckRequest", "Diagnostic", "ProgramInvalid", "TargetResult",
    "UnreadableFile", "check_file", "host_diagnostics", "nvrtc_diagnostics", "read_source",
]  # fmt: skip
