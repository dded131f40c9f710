"""Name expressions: the C++ names by which a module's kernels are asked for, such as `scale<float, 4>`.

A name expression of a stranger ends up in source that is compiled here, and in NVRTC's input elsewhere, so what it may
hold is a small grammar and nothing else:

    name      = ["::"] part {"::" part}
    part      = identifier ["<" [argument {"," argument}] ">"]
    argument  = tokens: identifiers, integers, `::`, `*`, `&`, `-`, `[` integer `]`, and parts with their own `<...>`

There is no parenthesis, brace, semicolon, quote, `#`, comment or backslash in it, so it can neither end the expression
that it is pasted into, nor call, declare or include anything. Two spellings of one name have one canonical form,
which is what programs hold.
"""

import re
from itertools import pairwise
from typing import Final

from coppermesh.exec.errors import ProgramInvalid

MAX_CHARACTERS: Final = 256
MAX_DEPTH: Final = 16

_TOKEN = re.compile(
    r"[ \t]+|(?P<word>[A-Za-z_]\w*|(?:0[xX][0-9A-Fa-f]+|[0-9]+)[uUlL]{0,3}(?!\w)|::|[<>,*&\[\]-])", re.ASCII
)
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_KEYWORDS = re.compile(
    r"alignas|alignof|asm|auto|case|catch|class|co_await|co_return|co_yield|concept|const_cast|decltype|"
    r"default|delete|do|dynamic_cast|else|enum|export|extern|for|friend|goto|if|inline|"
    r"mutable|namespace|new|noexcept|operator|private|protected|public|register|reinterpret_cast|requires|"
    r"return|sizeof|static|static_assert|static_cast|struct|switch|template|this|thread_local|throw|try|"
    r"typedef|typeid|typename|typeof|union|using|virtual|while|defined"
)
"""Words that begin anything but a type or a number."""
_RESERVED = re.compile(r"(?!__(?:nv_)?(?:half2?|bfloat162?)$)__\w*|_[A-Z]\w*|(?i:coppermesh)\w*")
"""Words that belong to compilers, and to the shim; but for the names of CUDA's own numbers of 16 bits."""


def is_plain(name: str) -> bool:
    """Whether `name` is one identifier, as an `extern "C"` function has."""
    return _PLAIN.fullmatch(name) is not None


def canonical(expression: str) -> str:
    """The expression in its one spelling. Raises ProgramInvalid (`kernel-name`) where it is none."""
    tokens = _tokens(expression)
    _check(expression, tokens)
    text = tokens[0]
    for before, word in pairwise(tokens):
        words = before[-1].isalnum() or before[-1] == "_", word[0].isalnum() or word[0] == "_"
        # `> >` is two tokens in every standard, and `& &` never one; a comma gets its blank as people write it.
        text += f" {word}" if all(words) or before == "," else word
    return text


def _tokens(expression: str) -> list[str]:
    if not isinstance(expression, str) or not 0 < len(expression) <= MAX_CHARACTERS:
        raise _refuse(str(expression), f"it must have 1 to {MAX_CHARACTERS} characters")
    tokens, position = [], 0
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if match is None:
            raise _refuse(expression, f"{expression[position]!r} cannot stand in a name expression")
        if match["word"]:
            tokens.append(match["word"])
        position = match.end()
    if not tokens:
        raise _refuse(expression, "it is blank")
    return tokens


def _check(expression: str, tokens: list[str]) -> None:
    for word in tokens:
        if _KEYWORDS.fullmatch(word) or _RESERVED.fullmatch(word):
            raise _refuse(expression, f"{word} cannot stand in a name expression")
    # Outside every `<...>` there are identifiers and `::` in turn, each identifier with at most one `<...>` after it.
    depth, wanted, closed = 0, "name", False
    for position, word in enumerate(tokens):
        if depth:
            depth += {"<": 1, ">": -1}.get(word, 0)
            closed = depth == 0
            if depth > MAX_DEPTH:
                raise _refuse(expression, f"templates are nested more than {MAX_DEPTH} deep")
            _check_inside(expression, tokens, position)
        elif word == "::" and (wanted == "separator" or position == 0):
            wanted, closed = "name", False
        elif word == "<" and wanted == "separator" and not closed:
            depth = 1
        elif wanted == "name" and _PLAIN.fullmatch(word):
            wanted, closed = "separator", False
        else:
            raise _refuse(expression, f"{word} is not expected there")
    if depth or wanted == "name":
        raise _refuse(expression, "it ends too early")


def _check_inside(expression: str, tokens: list[str], position: int) -> None:
    """Refuse neighbours that no type or integer has: `, ,`, `[x]`, an operator between values."""
    before, word = tokens[position - 1], tokens[position]
    is_value = word[0].isdigit()
    empty = word == "," or (word == ">" and before == ",")
    if empty and before in ("<", ",", "-", "::"):
        raise _refuse(expression, "an argument of the template is missing")
    if word == "<" and not _PLAIN.fullmatch(before):
        raise _refuse(expression, "< follows no name")
    if word == "-" and before not in ("<", ","):
        raise _refuse(expression, "arithmetic cannot stand in a name expression")
    if is_value and before not in ("<", ",", "-", "["):
        raise _refuse(expression, f"{word} is not expected there")
    if before == "-" and not is_value:
        raise _refuse(expression, "- needs a number")
    bracketed = before == "[" or word == "]"
    if bracketed and not (
        (before == "[" and (is_value or word == "]")) or (word == "]" and before[0].isdigit())
    ):
        raise _refuse(expression, "[ ] may hold one number")
    if before[0].isdigit() and word not in (",", ">", "]"):
        raise _refuse(expression, "arithmetic cannot stand in a name expression")


def _refuse(expression: str, why: str) -> ProgramInvalid:
    return ProgramInvalid("kernel-name", f"{expression[:80]!r} names no kernel: {why}")
