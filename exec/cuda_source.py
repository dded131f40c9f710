"""Reading CUDA C++ source without compiling it: which arguments a kernel writes, and what it may not contain.

A kernel call is a node whose results are new versions of the arrays that the kernel writes, so both sides must agree,
from the source alone, on which those are. The rule errs on the side of "written": an argument is read-only only where
every declaration of the kernel spells it `const T *name` (or `T const *`, `const T name[]`). Where the signature
cannot be found (made by a macro, say) every array argument counts as written, which costs a copy and is never wrong.

Theory. The text is first brought to the compiler's own view: line splices removed, comments and literals blanked,
directives cut out. Then a flat list of tokens is searched for `__global__ ... name (`; parameters are split at the
commas outside any bracket; the pointee of a parameter's last `*` is const or it is not. No macro is expanded.
Deceiving this reader (`#define const`) only harms the deceiver's own job: a runtime never lets a kernel reach memory
of another job.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from coppermesh.exec.errors import ProgramInvalid

# An opening without an end takes what is left: a pattern that can fail late would cost the square of the length.
_LITERAL_OR_COMMENT = re.compile(
    r'R"(?P<mark>[^()\\\s]{0,16})\(.*?(?:\)(?P=mark)"|\Z)'  # raw string
    r'|"(?:\\.|[^"\\\n])*"?'
    r"|'(?:\\.|[^'\\\n])*'?"
    r"|//[^\n]*"
    r"|/\*.*?(?:\*/|\Z)",
    re.DOTALL,
)
_TOKEN = re.compile(r"[A-Za-z_]\w*|::|\d[\w.]*|\S")
_DIRECTIVE = re.compile(r"^[ \t]*(?:#|%:|\?\?=)[ \t]*(\w*)[ \t]*([^\n]*)$", re.MULTILINE)
_HEADER = re.compile(r'<[A-Za-z0-9_][A-Za-z0-9_./]*>|"[A-Za-z0-9_][A-Za-z0-9_./]*"')
_OPENING = frozenset("([{")
_CLOSING = frozenset(")]}")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_OPTION = re.compile(
    r"--?std=(c\+\+11|c\+\+14|c\+\+17|c\+\+20)"
    r"|--?use_fast_math|--?fmad=(true|false)|-D[A-Za-z_]\w*(=[A-Za-z0-9_.+-]*)?"
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a kernel: as far as the reader could tell, is it a pointer, and may the kernel write there?"""

    pointer: bool
    read_only: bool
    element: str | None = None
    """The type that it is, or points to, of `PLAIN_TYPES`; None where it is another, or not plain to see."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A kernel's parameters; `found` is False where no declaration could be read."""

    found: bool
    parameters: tuple[Parameter, ...]

    def written(self, position: int) -> bool:
        """Whether an array given at `position` may be written."""
        return not self.found or not self.parameters[position].read_only


@lru_cache(maxsize=64)
def read_signature(source: str, name: str) -> Signature:
    """The signature of the kernel `name` (a template's arguments and namespaces are left aside)."""
    tokens = _TOKEN.findall(_plain_text(source))
    base = _IDENTIFIER.findall(name.split("<", 1)[0])
    if not base:
        return Signature(False, ())
    declarations = _declarations(tokens, base[-1])
    if not declarations or any(len(other) != len(declarations[0]) for other in declarations):
        return Signature(False, ())
    parameters = tuple(
        Parameter(
            pointer=all(d[position].pointer for d in declarations),
            read_only=all(d[position].read_only for d in declarations),
            element=_common([d[position].element for d in declarations]),
        )
        for position in range(len(declarations[0]))
    )
    return Signature(True, parameters)


def tokens_and_macros(source: str) -> tuple[list[str], dict[str, list[str]]]:
    """The source's tokens without directives, and the tokens that each of its macros stands for."""
    text = _plain_text(source, keep_directives=True)
    macros: dict[str, list[str]] = {}
    for match in _DIRECTIVE.finditer(text):
        words = _TOKEN.findall(_LITERAL_OR_COMMENT.sub(_blank, match.group(2)))
        if match.group(1) == "define" and words:
            macros.setdefault(words[0], []).extend(words[1:])
    return _TOKEN.findall(_plain_text(source)), macros


def check_source(source: str) -> None:
    """Refuse source that reaches for files, whatever would compile it. Raises ProgramInvalid (`kernel-include`).

    Includes must name a header in plain characters; absolute paths, `..` and computed includes are refused on both
    sides. Which of the plain headers exist, and which features of CUDA, is the runtime's own gate to say.
    """
    text = _plain_text(source, keep_directives=True)
    for match in _DIRECTIVE.finditer(text):
        word, operand = match.group(1), match.group(2).strip()
        if word in ("include_next", "import", "embed", "include_once", "line"):
            raise ProgramInvalid("kernel-include", f"#{word} is not possible in a kernel")
        if word == "include" and (".." in operand or not _HEADER.fullmatch(operand)):
            raise ProgramInvalid(
                "kernel-include", f"#include {operand[:80]}: only the runtime's own headers, by plain name"
            )
    words = set(_IDENTIFIER.findall(_LITERAL_OR_COMMENT.sub(_blank, text)))
    for word in ("__has_include", "__has_include_next", "__has_embed"):
        if word in words:
            raise ProgramInvalid("kernel-include", f"{word} is not possible in a kernel")


def check_options(options: tuple[str, ...]) -> None:
    """Compiler options a program may name: language standard, fast math, fused multiply-add, plain macros."""
    for option in options:
        if not _OPTION.fullmatch(option):
            raise ProgramInvalid("kernel-option", f"compiler option {option[:80]!r} is not possible")


def _plain_text(source: str, *, keep_directives: bool = False) -> str:
    spliced = re.sub(r"\\[ \t]*\r?\n", "", source)
    if keep_directives:
        # Comments only: the operand of #include is a literal and is wanted.
        return _LITERAL_OR_COMMENT.sub(_without_comment, spliced)
    return _DIRECTIVE.sub(" ", _LITERAL_OR_COMMENT.sub(_blank, spliced))


def _without_comment(match: re.Match[str]) -> str:
    return " " if match.group().startswith("/") else match.group()


def _blank(match: re.Match[str]) -> str:
    # A literal still separates and still counts as something: extern "C" must not become extern.
    return " " if match.group().startswith("/") else ' "" '


def _declarations(tokens: list[str], name: str) -> list[list[Parameter]]:
    """Parameters of every `__global__` declaration of `name`. Each token is looked at once, whatever the nesting."""
    found = []
    marked = False
    position = 0
    while position < len(tokens):
        token = tokens[position]
        if token == "__global__":
            marked = True
        elif token in (";", "{", "}"):
            marked = False
        elif marked and token == name and tokens[position + 1 : position + 2] == ["("]:
            parameters, position = _parameters(tokens, position + 2)
            found.append(parameters)
            marked = False
        position += 1
    return found


def _parameters(tokens: list[str], position: int) -> tuple[list[Parameter], int]:
    """Split the tokens from `position` to the closing parenthesis at commas outside every bracket.

    What stands inside brackets says nothing of a parameter's own constness; that there is a `[` does.
    """
    groups: list[list[str]] = [[]]
    depth = angles = 0
    while position < len(tokens):
        token = tokens[position]
        if depth == angles == 0 and token not in _CLOSING:
            if token == ",":
                groups.append([])
            else:
                groups[-1].append(token)
        if token in _OPENING:
            depth += 1
        elif token in _CLOSING:
            if depth == 0:
                break
            depth -= 1
        elif depth == 0 and token in ("<", ">"):
            angles = max(0, angles + (1 if token == "<" else -1))
        position += 1
    if groups in ([[]], [["void"]]):
        return [], position
    return [_parameter(group) for group in groups], position


def _common(elements: list[str | None]) -> str | None:
    return elements[0] if len(set(elements)) == 1 else None


PLAIN_TYPES = {
    "bool": "bool",
    "char": "int8",
    "signed char": "int8",
    "unsigned char": "uint8",
    "short": "int16",
    "unsigned short": "uint16",
    "int": "int32",
    "unsigned int": "uint32",
    "long long": "int64",
    "unsigned long long": "uint64",
    "__half": "float16",
    "float": "float32",
    "double": "float64",
}
"""Types that are plain to see, and the dtypes that go with them."""
_NOISE = frozenset(("const", "volatile", "restrict", "__restrict__", "__restrict", "__const__"))
_INTEGER_WORDS = frozenset(("signed", "unsigned", "char", "short", "int", "long"))


def _plain_type(words: list[str]) -> str | None:
    """The plain type that these words spell, or None. `long` is none: its size differs between systems."""
    kept = [word for word in words if word not in _NOISE]
    if kept in (["float"], ["double"], ["bool"], ["__half"]):
        return kept[0]
    if kept == ["half"]:
        return "__half"
    if not kept or not _INTEGER_WORDS.issuperset(kept):
        return None
    sizes = sorted(word for word in kept if word not in ("signed", "unsigned", "int"))
    base = " ".join(sizes) or "int"
    name = f"unsigned {base}" if "unsigned" in kept else base
    return name if name in PLAIN_TYPES else None


def _parameter(tokens: list[str]) -> Parameter:
    if "=" in tokens:
        tokens = tokens[: tokens.index("=")]
    stars = [position for position, token in enumerate(tokens) if token in ("*", "[")]
    if not stars:
        return Parameter(pointer=False, read_only=False, element=_plain_type(tokens[:-1]))
    start = stars[-2] + 1 if len(stars) > 1 else 0
    # With `*` the type is what comes before it, with `[` the name stands between.
    words = tokens[: stars[0] if tokens[stars[0]] == "*" else stars[0] - 1]
    element = _plain_type(words) if len(stars) == 1 else None
    return Parameter(pointer=True, read_only="const" in tokens[start : stars[-1]], element=element)
