"""Parts of a source that no runtime's compiler reads: `#ifndef __CUDACC_RTC__ ... #endif`.

Sources that nvcc compiles elsewhere keep their host's headers there. Every compiler here defines that macro: NVRTC by
itself, the CPU build in coppermesh_cuda.h. Known are these tests of it and nothing else about conditions; where a text
has an `#undef` of anything, nothing is taken for skipped. Pure.
"""

from collections.abc import Sequence

_MACRO = "__CUDACC_RTC__"
_ABSENT = (
    ["ifndef", _MACRO],
    ["if", "!", "defined", _MACRO],
    ["if", "!", "defined", "(", _MACRO, ")"],
)
_PRESENT = (["ifdef", _MACRO], ["if", "defined", _MACRO], ["if", "defined", "(", _MACRO, ")"])


class Skipped:
    """Follows a text's conditions; fed with its directives in order."""

    def __init__(self) -> None:
        self._open: list[tuple[bool, bool]] = []
        """Of each open condition: whether its part at hand is skipped, and whether the parts to come are."""

    def read(self, directive: Sequence[str]) -> None:
        """One directive's words, its mark left out."""
        name = directive[0] if directive else ""
        words = list(directive)
        if name in ("if", "ifdef", "ifndef"):
            self._open.append((words in _ABSENT, words in _PRESENT))
        elif name in ("elif", "else") and self._open:
            later = self._open[-1][1]
            self._open[-1] = (later, later)
        elif name == "endif" and self._open:
            self._open.pop()

    def __bool__(self) -> bool:
        """Whether what comes now is skipped."""
        return any(now for now, _ in self._open)
