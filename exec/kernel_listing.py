"""The kernels that a source file defines, read without compiling: for people, not for decisions.

Tokens come from the gate's reader. A list of tokens is searched for `__global__ ... name ( ... )`; a stack of braces
tells namespaces and `extern "C"` blocks; what stands since the last `;` or brace tells `template` and `extern "C"`.
A kernel whose signature a macro makes is not found, and `coppermesh check` says how many were.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from coppermesh.exec.cuda_gate import Token, Unreadable, spliced_tokens
from coppermesh.exec.cuda_source import Signature, read_signature

MAX_KERNELS = 256


@dataclass(frozen=True, slots=True)
class ListedParameter:
    """One parameter as it is written in the source, and what happens to an array given for it."""

    text: str
    use: str
    """`value`, `read` or `written`."""


@dataclass(frozen=True, slots=True)
class ListedKernel:
    """One kernel."""

    name: str
    """With its namespaces: `image::blur`."""
    line: int
    template: bool
    extern_c: bool
    """Declared `extern "C"`: may be named plainly by RawKernel."""
    parameters: tuple[ListedParameter, ...]


def list_kernels(source: str) -> list[ListedKernel]:
    """The kernels of `source` in order, each once; at most `MAX_KERNELS`."""
    try:
        spliced, read = spliced_tokens(source)
    except Unreadable:
        return []
    tokens = _without_directives(read)
    found: dict[str, ListedKernel] = {}
    scopes: list[str] = []
    begins = position = 0
    barren = 0  # up to here there is no list of parameters
    while position < len(tokens) and len(found) < MAX_KERNELS:
        text = tokens[position].text
        if text == "{":
            scopes.append(_scope(tokens[begins:position]))
        elif text == "}" and scopes:
            scopes.pop()
        if text in ("{", "}", ";"):
            begins = position + 1
        elif text == "__global__" and position >= barren:
            opens, barren = _parameter_list(tokens, position)
            if opens is None:
                position += 1
                continue
            closes = _closing(tokens, opens)
            before = [tokens[at].text for at in range(begins, opens)]
            name = "::".join(
                [*(scope for scope in scopes if scope not in ("", '"C"')), tokens[opens - 1].text]
            )
            kernel = ListedKernel(
                name,
                spliced.place(tokens[opens - 1].start)[0],
                "template" in before,
                '"C"' in before or '"C"' in scopes,
                _parameters(spliced.text, tokens[opens + 1 : closes], read_signature(source, name)),
            )
            found.setdefault(name, kernel)
            position = closes
        position += 1
    return list(found.values())


def _without_directives(tokens: Sequence[Token]) -> list[Token]:
    """The tokens that are neither line ends nor parts of a directive."""
    kept: list[Token] = []
    in_directive, at_start = False, True
    for token in tokens:
        if token.kind == "newline":
            in_directive, at_start = False, True
            continue
        in_directive = in_directive or (at_start and token.text in ("#", "%:"))
        at_start = False
        if not in_directive:
            kept.append(token)
    return kept


def _scope(before: Sequence[Token]) -> str:
    """What a brace after these tokens opens: a namespace's name, `"C"`, or nothing that matters."""
    words = [token.text for token in before]
    if words[-2:] == ["extern", '"C"']:
        return '"C"'
    if "namespace" not in words:
        return ""
    return "".join(word for word in words[words.index("namespace") + 1 :] if word != "inline")


def _parameter_list(tokens: Sequence[Token], position: int) -> tuple[int | None, int]:
    """The `(` of the parameters of the kernel marked at `position`, and how far was read where there is none."""
    at = position + 1
    while at < len(tokens) and tokens[at].text not in (";", "{", "}"):
        if tokens[at].text == "(":
            if tokens[at - 1].kind == "word" and not tokens[at - 1].text.startswith("__"):
                return at, 0
            at = _closing(tokens, at)  # __launch_bounds__(256), __attribute__((...))
        at += 1
    return None, at


def _closing(tokens: Sequence[Token], opens: int) -> int:
    depth = 0
    for at in range(opens, len(tokens)):
        depth += {"(": 1, ")": -1}.get(tokens[at].text, 0)
        if depth == 0:
            return at
    return len(tokens)


def _parameters(text: str, tokens: Sequence[Token], signature: Signature) -> tuple[ListedParameter, ...]:
    groups: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += {"(": 1, "[": 1, "{": 1, "<": 1, ")": -1, "]": -1, "}": -1, ">": -1}.get(token.text, 0)
        if token.text == "," and depth <= 0:
            groups.append([])
        else:
            groups[-1].append(token)
    listed = []
    for number, group in enumerate(group for group in groups if group):
        written = " ".join(text[group[0].start : group[-1].end].split())
        if written == "void":
            continue
        known = signature.found and number < len(signature.parameters)
        pointer = signature.parameters[number].pointer if known else "*" in written or "[" in written
        use = "value" if not pointer else "written" if not known or signature.written(number) else "read"
        listed.append(ListedParameter(written, use))
    return tuple(listed)
