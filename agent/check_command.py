"""`coppermesh check`: shows what `exec.kernel_check` found, laid out as compilers lay out their messages."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from coppermesh.agent.screens import counted, printable, table
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.kernel_check import (
    NOT_TRIED,
    OK,
    CheckReport,
    CheckRequest,
    Diagnostic,
    TargetResult,
    UnreadableFile,
    check_file,
    read_source,
)

EXIT_EVERYWHERE = 0
EXIT_NOWHERE = 1
EXIT_USAGE = 2
EXIT_PARTLY = 7

SHOWN = 84
"""Characters of a line of source that are shown at most, around the column."""
_COLOURS = {"error": "\033[1;31m", "warning": "\033[1;35m", "note": "\033[1;36m", OK: "\033[1;32m"}
_BOLD, _PLAIN = "\033[1m", "\033[0m"
_WORDS = {OK: "ok", NOT_TRIED: "not tried"}


def run_check(path: Path, request: CheckRequest, *, as_json: bool) -> int:
    """Check a file, print what was found, and return the exit code."""
    try:
        report = check_file(path, request, _progress if sys.stderr.isatty() else lambda text: None)
    except (UnreadableFile, ProgramInvalid) as error:
        print(f"coppermesh: {printable(str(error))}", file=sys.stderr)
        return EXIT_USAGE
    if as_json:
        print(json.dumps({**report.facts(), "exit": exit_code(report, request)}))
    else:
        source = read_source(path).splitlines()
        print("\n".join(lay_out(report, source, colour=_may_colour())))
    return exit_code(report, request)


def exit_code(report: CheckReport, request: CheckRequest) -> int:
    """0 every target takes it, 1 none does, 7 some do. What was asked for by name and not tried is not taken."""
    states = [result.state for result in report.targets]
    if request.architectures:
        states = [
            "refused" if result.state == NOT_TRIED and result.target != "cpu" else result.state
            for result in report.targets
        ]
    if OK not in states:
        return EXIT_NOWHERE
    return EXIT_EVERYWHERE if set(states) <= {OK, NOT_TRIED} else EXIT_PARTLY


def lay_out(report: CheckReport, source: Sequence[str], *, colour: bool) -> list[str]:
    """The report for a person: messages with their lines, the kernels, and each target's answer."""
    paint = _paint if colour else lambda text, shade: text
    lines = []
    for diagnostic, targets in _together(report.targets):
        where = ":".join(str(part) for part in (report.file, diagnostic.line, diagnostic.column) if part)
        severity = paint(f"{diagnostic.severity}:", _COLOURS.get(diagnostic.severity, _BOLD))
        lines.append(
            f"{paint(printable(where), _BOLD)}: {severity} {printable(diagnostic.message)} [{targets}]"
        )
        lines += _excerpt(diagnostic, source)
    lines += [f"{printable(report.file)}: note: {printable(note)}" for note in report.notes]
    lines += _kernels(report)
    for result in report.targets:
        errors = sum(diagnostic.severity == "error" for diagnostic in result.diagnostics)
        counts = f"{counted(errors, 'error')}: " if errors else ""
        word = paint(_WORDS.get(result.state, "refused"), _COLOURS.get(result.state, _COLOURS["error"]))
        lines.append(f"{_called(result.target)}: {word} ({counts}{printable(result.sentence)})")
    return lines


def _together(results: Sequence[TargetResult]) -> list[tuple[Diagnostic, str]]:
    """Every message once, by place, with the targets that it is from."""
    targets: dict[Diagnostic, list[str]] = {}
    for result in results:
        for diagnostic in result.diagnostics:
            targets.setdefault(diagnostic, []).append(result.target)
    ordered = sorted(targets.items(), key=lambda item: (item[0].line, item[0].column))
    return [(diagnostic, ", ".join(named)) for diagnostic, named in ordered]


def _excerpt(diagnostic: Diagnostic, source: Sequence[str]) -> list[str]:
    """The line that a message is about, with a mark under its column."""
    if not 1 <= diagnostic.line <= len(source):
        return []
    # Control characters are shown as blanks, one for one, so that the mark stays under its column.
    text = "".join(c if c.isprintable() else " " for c in source[diagnostic.line - 1])
    first = 0 if len(text) <= SHOWN or diagnostic.column <= SHOWN // 2 else diagnostic.column - SHOWN // 2
    before, behind = "..." if first else "", "..." if len(text) > first + SHOWN else ""
    shown = [f"{diagnostic.line:5} | {before}{text[first : first + SHOWN]}{behind}"]
    if diagnostic.column:
        shown.append(f"{'':5} | {'':{len(before) + diagnostic.column - 1 - first}}^")
    return shown


def _kernels(report: CheckReport) -> list[str]:
    if not report.kernels:
        return []
    rows: list[tuple[str, ...]] = []
    for kernel in report.kernels:
        kind = "template" if kernel.template else 'extern "C"' if kernel.extern_c else "by name expression"
        parameters = kernel.parameters or (None,)
        for number, parameter in enumerate(parameters):
            head = (kernel.name, str(kernel.line), kind) if number == 0 else ("", "", "")
            rows.append((*head, *((parameter.text, parameter.use) if parameter else ("(none)", ""))))
    return table(("KERNEL", "LINE", "NAMED", "PARAMETER", "ARRAY IS"), rows, right=(1,))


def _called(target: str) -> str:
    return "CPU devices" if target == "cpu" else "CUDA devices" if target == "cuda" else f"CUDA {target}"


def _paint(text: str, shade: str) -> str:
    return f"{shade}{text}{_PLAIN}"


def _may_colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _progress(text: str) -> None:
    print(f"coppermesh: {text}", file=sys.stderr)
