"""The check `if (i < n)` of a kernel that stays a loop, taken out of the loop.

Nearly every kernel begins with `int i = blockIdx.x * blockDim.x + threadIdx.x;` and a check that `i` is below some
parameter. Within a block's loop over x that check holds for all threads except in the last block, but a compiler cannot
know; it masks every store instead, which costs a factor of two where memory decides. So the launcher asks once for a
row of blocks (`coppermesh::row_guard`, in coppermesh_launch.h) and has two loops; where the check holds it is constant.

Only the plainest forms are recognised, token by token: declarations of indices at the beginning of a kernel's body,
and then `if (i < n && j < m)` or `if (i >= n || j >= m)` with parameters of the kernel or numbers as limits. `i < n`
becomes `(coppermesh::whole || i < n)`, and before the kernel stands a structure that tells when all of a row is inside.
Lines stay. A kernel in any other form, in a namespace, a template or a macro stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from coppermesh.exec.cuda_gate import Token, spliced_tokens

_PRODUCTS = ("blockIdx.{0}*blockDim.{0}", "blockDim.{0}*blockIdx.{0}")
_FORMS = {
    form.format(axis): axis
    for axis in "xyz"
    for product in _PRODUCTS
    for form in (f"{product}+threadIdx.{{0}}", f"threadIdx.{{0}}+{product}", f"({product})+threadIdx.{{0}}")
}
"""How a global index is written, without blanks."""
_INTEGERS = frozenset(
    {"const", "int", "unsigned", "long", "size_t", "auto", "uint32_t", "int32_t", "int64_t", "uint64_t"}
)


@dataclass
class _Kernel:
    """A kernel's definition at file scope: positions among the tokens."""

    name: str
    begin: int
    parameters: tuple[int, int]
    body: int


def hoist_guards(source: str, names: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The source with such checks rewritten in the kernels `names`, and which of them had one."""
    text, tokens = spliced_tokens(source)
    code, directives = _without_directives(tokens)
    kernels = [kernel for kernel in _kernels(code) if kernel.name in names]
    edits: list[tuple[int, int, str]] = []
    done: list[str] = []
    for kernel in kernels:
        alone = sum(other.name == kernel.name for other in kernels) == 1
        found = _guard(code, kernel) if alone else None
        if found is None:
            continue
        comparisons, limits, last = found
        inside = range(code[kernel.begin].start, code[last].end)
        if any(directive.start in inside for directive in directives):
            continue
        parameters = " ".join(token.text for token in code[slice(*kernel.parameters)])
        test = " && ".join(f"coppermesh::row_within({limit})" for limit in limits)
        start = code[kernel.begin].start
        edits.append(
            (
                start,
                start,
                f"struct coppermesh_guard_{kernel.name} {{ static bool inside({parameters}) {{ return {test}; }} }}; ",
            )
        )
        edits += comparisons
        done.append(kernel.name)
    return (text.restored(edits), tuple(done)) if done else (source, ())


def _without_directives(tokens: Sequence[Token]) -> tuple[list[Token], list[Token]]:
    code: list[Token] = []
    directives: list[Token] = []
    at_start, directive = True, False
    for token in tokens:
        if token.kind == "newline":
            directive = False
        else:
            directive = directive or (at_start and token.text in ("#", "%:"))
            (directives if directive else code).append(token)
        at_start = token.kind == "newline"
    return code, directives


def _kernels(code: Sequence[Token]) -> list[_Kernel]:
    """Kernels defined outside of every brace, templates left out."""
    found = []
    depth = begin = 0
    for position, token in enumerate(code):
        if token.text == "{":
            if depth == 0 and (kernel := _read_kernel(code, begin, position)):
                found.append(kernel)
            depth += 1
        elif token.text == "}":
            depth -= 1
        if depth == 0 and token.text in (";", "}"):
            begin = position + 1
    return found


def _read_kernel(code: Sequence[Token], begin: int, body: int) -> _Kernel | None:
    """The kernel whose body opens at `body`: the name stands before the last parentheses."""
    words = {token.text for token in code[begin:body]}
    if code[body - 1].text != ")" or "__global__" not in words or "template" in words:
        return None
    depth, position = 1, body - 1
    while depth and position > begin:
        position -= 1
        depth += (code[position].text == ")") - (code[position].text == "(")
    name = code[position - 1]
    return _Kernel(name.text, begin, (position + 1, body - 1), body) if name.kind == "word" else None


Found = tuple[list[tuple[int, int, str]], list[str], int]


def _guard(code: Sequence[Token], kernel: _Kernel) -> Found | None:
    """Edits of a kernel's comparisons, the limits along x, and the position of the check's end."""
    position, axes = kernel.body + 1, {}
    while position < len(code) and code[position].text in _INTEGERS:
        end = next((p for p in range(position, len(code)) if code[p].text == ";"), len(code))
        declared = _indices([token.text for token in code[position:end]])
        if declared is None:
            return None
        axes.update(declared)
        position = end + 1
    if [token.text for token in code[position : position + 2]] != ["if", "("]:
        return None
    end = next((p for p in range(position, len(code)) if code[p].text == ")"), len(code))
    known = {
        first.text
        for first, after in pairwise(code[slice(kernel.parameters[0], kernel.parameters[1] + 1)])
        if after.text in (",", ")")
    }
    return _comparisons(code[position + 2 : end], axes, known, end)


def _indices(words: list[str]) -> dict[str, str] | None:
    """Names and axes of `const int i = ..., j = ...`; None where anything else is declared."""
    start = next((n for n, word in enumerate(words) if word not in _INTEGERS), len(words))
    found = {}
    for declarator in " ".join(words[start:]).split(","):
        name, equals, value = declarator.replace(" ", "").partition("=")
        axis = _FORMS.get(value)
        if not equals or axis is None:
            return None
        found[name] = axis
    return found


def _comparisons(condition: Sequence[Token], axes: dict[str, str], known: set[str], end: int) -> Found | None:
    """`i < n && j < m`, or `i >= n || j >= m`."""
    operators = {token.text for token in condition if token.text in ("&", "|", "<", ">")}
    below = operators <= {"<", "&"}
    if not below and not operators <= {">", "|"}:
        return None
    separator = "&" if below else "|"
    parts: list[list[Token]] = [[]]
    for token in condition:
        if token.text == separator:
            parts.append([])
        else:
            parts[-1].append(token)
    if any(bool(part) == bool(number % 2) for number, part in enumerate(parts)):
        return None  # the operator is doubled: every second part is empty
    edits: list[tuple[int, int, str]] = []
    limits = []
    for part in parts[::2]:
        words = [token.text for token in part]
        if words[1:-1] != (["<"] if below else [">", "="]) or words[0] not in axes:
            return None
        if not (words[-1] in known or words[-1].isdecimal()):
            return None
        if axes[words[0]] == "x":
            limits.append(words[-1])
            opening = "(coppermesh::whole || " if below else "(!coppermesh::whole && "
            edits += [(part[0].start, part[0].start, opening), (part[-1].end, part[-1].end, ")")]
    return (edits, limits, end) if limits else None
