"""What the macros of CUDA source are, as far as a reader must know that does not expand them.

`cuda_loops` changes source by its tokens, so it must know which of them are not what they seem: a macro may be called
as a variable is, hide a `return`, or be a whole loop header. Macros are listed, never expanded, with one exception:
`#define CUDA_KERNEL_LOOP(i, n) for (int i = ...; i < (n); i += ...)`, which half of all kernels in the field use.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from coppermesh.exec.cuda_gate import Token

_CONDITIONAL = frozenset({"if", "ifdef", "ifndef", "elif", "else", "endif", "undef"})


MAX_LOOP_TOKENS = 100
MAX_ARGUMENT_TOKENS = 50


@dataclass(frozen=True)
class LoopMacro:
    """A macro with parameters that is the header of a `for` loop."""

    parameters: tuple[str, ...]
    body: tuple[Token, ...]


@dataclass
class Macros:
    """Of one source and its options."""

    names: set[str] = field(default_factory=set)
    calls: set[str] = field(default_factory=set)
    """Those with parameters."""
    numbers: set[str] = field(default_factory=set)
    """Those that are one decimal number wherever they are defined."""
    words: set[str] = field(default_factory=set)
    """Words of all replacements but their own parameters, loop headers' left out."""
    loops: dict[str, LoopMacro] = field(default_factory=dict)
    bodies: list[tuple[str, list[Token]]] = field(default_factory=list)
    """Name and replacement of each."""
    pastes: bool = False
    """Whether tokens are pasted together, or brackets stand alone in a replacement: then nothing is what it seems."""


def split_directives(tokens: Sequence[Token]) -> tuple[list[Token], list[list[Token]]]:
    """Tokens of the code, and those of each directive."""
    code: list[Token] = []
    directives: list[list[Token]] = []
    at_start, directive = True, False
    for token in tokens:
        if token.kind == "newline":
            directive = False
        elif at_start and token.text in ("#", "%:"):
            directive = True
            directives.append([token])
        else:
            (directives[-1] if directive else code).append(token)
        at_start = token.kind == "newline"
    return code, directives


def read_macros(directives: Sequence[Sequence[Token]], options: Mapping[str, str]) -> Macros:
    """The macros of a source; `options` are those of the command line with their values."""
    macros = Macros(names=set(options))
    macros.numbers = {name for name, value in options.items() if value.isdecimal()}
    for value in options.values():
        macros.words.add(value)
    others = set(options) - macros.numbers
    for directive in directives:
        if any(token.text in ("##", "%:%:") for token in directive):
            macros.pastes = True
        if len(directive) > 2 and directive[1].text in ("define", "undef"):
            _read_one(macros, directive, others)
    macros.numbers -= others
    return macros


def _read_one(macros: Macros, directive: Sequence[Token], others: set[str]) -> None:
    name, rest = directive[2], list(directive[3:])
    macros.names.add(name.text)
    parameters: tuple[str, ...] = ()
    if rest and rest[0].text == "(" and rest[0].start == name.end:
        closing = next((n for n, token in enumerate(rest) if token.text == ")"), len(rest) - 1)
        parameters = tuple(token.text for token in rest[1:closing] if token.kind == "word")
        rest = rest[closing + 1 :]
        macros.calls.add(name.text)
    if len(rest) == 1 and rest[0].text.isdecimal() and name.text not in macros.calls:
        macros.numbers.add(name.text)
        return
    others.add(name.text)
    texts = [token.text for token in rest]
    for opening, closing_word in ("{}", "()", "[]"):
        macros.pastes = macros.pastes or texts.count(opening) != texts.count(closing_word)
    loop = (
        len(parameters) == 2
        and len(texts) <= MAX_LOOP_TOKENS
        and texts[:2] == ["for", "("]
        and texts[-1:] == [")"]
        and "#" not in texts
    )
    if loop and name.text not in macros.loops:
        macros.loops[name.text] = LoopMacro(parameters, tuple(rest))
    else:
        macros.loops.pop(name.text, None)
        macros.words |= {token.text for token in rest if token.kind == "word"} - set(parameters)
    macros.bodies.append((name.text, rest))


def is_conditional(directive: Sequence[Token]) -> bool:
    """Whether a directive decides which code there is, or what a name means."""
    return len(directive) > 1 and (directive[1].text in _CONDITIONAL or directive[1].text == "define")


def expand_loops(code: Sequence[Token], macros: Macros) -> list[Token]:
    """The code with loop headers in the place of macros; their tokens all lie where the macro was used."""
    expanded: list[Token] = []
    position = 0
    while position < len(code):
        loop = macros.loops.get(code[position].text)
        arguments = _arguments(code, position + 1) if loop else None
        full = len(expanded) > 2 * len(code) + 10_000
        if full or loop is None or arguments is None or len(arguments[0]) != len(loop.parameters):
            expanded.append(code[position])
            position += 1
            continue
        given, end = arguments
        start, stop = code[position].start, code[end - 1].end
        values = dict(zip(loop.parameters, given, strict=True))
        for token in loop.body:
            parts = values.get(token.text, (token,))
            expanded += [replace(part, start=start, end=stop) for part in parts]
        position = end
    return expanded


def _arguments(code: Sequence[Token], opening: int) -> tuple[list[tuple[Token, ...]], int] | None:
    """The arguments of a call, and the position after it."""
    if opening >= len(code) or code[opening].text != "(":
        return None
    parts: list[list[Token]] = [[]]
    depth = 0
    for position in range(opening, min(len(code), opening + MAX_ARGUMENT_TOKENS)):
        word = code[position].text
        depth += (word == "(") - (word == ")")
        if depth == 0:
            return [tuple(part) for part in parts], position + 1
        if position == opening:
            continue
        if word == "," and depth == 1:
            parts.append([])
        else:
            parts[-1].append(code[position])
    return None
