"""What the kernels of a program need of a device, read off their sources: the same on both sides.

The client asks when a kernel is made and the agent before it sends; the provider's worker asks before it runs. What
no runtime has is refused there and then, by name and line. What only some have becomes a feature that the order names,
and a device that does not announce it is not asked. Pure.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from coppermesh.exec.cuda_features import Feature, runtime_features
from coppermesh.exec.cuda_gate import Finding, scan
from coppermesh.exec.errors import ProgramInvalid, RunFailed
from coppermesh.exec.program import KernelSource

if TYPE_CHECKING:
    from coppermesh.exec.schema import CheckedProgram

_TEXT_NAMES = {
    "elementwise": ("input parameters", "output parameters", "operation", "preamble"),
    "reduction": (
        "input parameters", "output parameters", "map expression", "reduction", "post map expression", "identity",
        "reduction type", "preamble",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Need:
    """A feature that a kernel uses."""

    code: str
    """As announcements and orders call it."""
    kernel: str
    place: str
    """`line 12`, `line 2 of its operation`."""
    what: str
    """`asm (inline assembly)`."""
    instead: str

    def __str__(self) -> str:
        return f"kernel {self.kernel}, {self.place}: {self.what}"


def check_kernel_source(kernel: KernelSource) -> None:
    """Refuse what no runtime takes. Raises ProgramInvalid (`unsupported-feature`) with the first's name and line."""
    for finding in _findings(kernel):
        if finding.feature is None:
            raise ProgramInvalid(
                "unsupported-feature", f"{_sentence(kernel, finding)} is not possible in a kernel"
            )
        if not finding.feature.runtimes:
            raise ProgramInvalid(
                "unsupported-feature",
                f"{_sentence(kernel, finding)} is not possible on any device: {finding.feature.instead}",
            )


def kernel_needs(kernels: Iterable[KernelSource]) -> Iterator[Need]:
    """What `kernels` need beyond `cuda-source`, in order; each feature of a kernel once, where it is used first."""
    for kernel in kernels:
        told: set[str] = set()
        for finding in _findings(kernel):
            feature = finding.feature
            if feature is not None and feature.code not in told:
                told.add(feature.code)
                yield _need(kernel, finding, feature)


def program_needs(checked: "CheckedProgram") -> Iterator[Need]:
    """What the kernels of a program and of its loops' bodies need."""
    yield from kernel_needs(checked.program.kernels)
    for node in checked.nodes:
        if node.call.body is not None:
            yield from program_needs(node.call.body.checked)


def refuse_missing(checked: "CheckedProgram", device_kind: str) -> None:
    """Refuse a program that a device of this kind cannot run. Raises RunFailed (`unsupported-feature`)."""
    having = runtime_features(device_kind)
    for need in program_needs(checked):
        if need.code not in having:
            raise RunFailed(
                f"{need} is not possible on a {device_kind} device: {need.instead}",
                code="unsupported-feature",
            )


def _need(kernel: KernelSource, finding: Finding, feature: Feature) -> Need:
    return Need(feature.code, kernel.name, _place(kernel, finding), finding.what, feature.instead)


def _sentence(kernel: KernelSource, finding: Finding) -> str:
    return f"kernel {kernel.name}, {_place(kernel, finding)}: {finding.what}"


def _place(kernel: KernelSource, finding: Finding) -> str:
    if finding.line == 0:
        return "its options"
    names = _TEXT_NAMES.get(kernel.kind, ())
    name = names[finding.text] if finding.text < len(names) else ""
    return f"line {finding.line} of its {name}" if name else f"line {finding.line}"


def _findings(kernel: KernelSource) -> tuple[Finding, ...]:
    # A module's other texts are names, which `name_expressions` reads by a grammar of their own.
    return _scan(kernel.texts[:1] if kernel.kind == "module" else kernel.texts, kernel.options)


@lru_cache(maxsize=32)
def _scan(texts: tuple[str, ...], options: tuple[str, ...]) -> tuple[Finding, ...]:
    return tuple(scan(texts, options))
