"""Errors of programs and runs, one class per what the caller should do about it.

Every one carries a stable `code` (`[a-z0-9-]+`, fit for a receipt), a `sentence` that a person can act on (printable
ASCII, at most 400 characters, fit for a signed record) and a `detail` that may be long (a compiler's log, a traceback).
Where the trouble has a place in the program, `node` is that node's number. Where it was found while the user's code
ran, `line` is that code's `file:line` (`graph.point_at_caller` sets it), and the text ends with it; it never travels.
"""

MAX_SENTENCE = 400


def plain_sentence(text: str) -> str:
    """`text` as one line of printable ASCII, cut to `MAX_SENTENCE` characters."""
    kept = "".join(c if " " <= c <= "~" else "?" for c in text.replace("\n", " "))
    return kept if len(kept) <= MAX_SENTENCE else kept[: MAX_SENTENCE - 3] + "..."


class ExecError(Exception):
    """Base of everything that `coppermesh.exec` raises on purpose."""

    def __init__(self, code: str, sentence: str, *, node: int | None = None, detail: str = "") -> None:
        self.code = code
        self.sentence = plain_sentence(sentence)
        self.node = node
        self.detail = detail
        self.line = ""
        super().__init__(self.sentence if not detail else f"{self.sentence}\n{detail}")

    def __str__(self) -> str:
        """The sentence, the detail, and the user's own line where it is known."""
        text = f"{self.sentence}\n{self.detail}" if self.detail else self.sentence
        return f"{text} (at {self.line})" if self.line else text


class ProgramInvalid(ExecError, ValueError):
    """The program breaks a rule of the format or of an operation. Change the program; no provider will take it."""

    def __init__(self, code: str, sentence: str, node: int | None = None) -> None:
        super().__init__(code, sentence, node=node)


class OverBudget(ExecError):
    """The program is sound but larger than the limits. Split it, or ask for larger limits."""

    def __init__(self, code: str, sentence: str, node: int | None = None) -> None:
        super().__init__(code, sentence, node=node)


class NeedsValue(ExecError, TypeError):
    """Python asked a lazy array for a value (`bool(x)`, `float(x)`, `np.asarray(x)`). Compute it first."""

    def __init__(self, sentence: str) -> None:
        super().__init__("needs-value", sentence)


class KernelCompileError(ExecError):
    """A kernel's source does not compile. `log` is the compiler's message with line numbers of that source."""

    def __init__(self, kernel: str, log: str) -> None:
        self.kernel = kernel
        self.log = log
        super().__init__("kernel-compile", f"kernel {kernel} does not compile", detail=log)


class KernelCrashed(ExecError):
    """A kernel ended its worker process (wild pointer, stack overflow, trap). Other work is unharmed."""

    def __init__(self, sentence: str, *, node: int | None = None, detail: str = "") -> None:
        super().__init__("kernel-crashed", sentence, node=node, detail=detail)


class RunFailed(ExecError):
    """A sound program failed while it ran, by its own doing (a bad index, a failed launch) or the runtime's."""

    def __init__(
        self, sentence: str, *, code: str = "run-failed", node: int | None = None, detail: str = ""
    ) -> None:
        super().__init__(code, sentence, node=node, detail=detail)
