"""Loops over the grid: what one turn may know of another.

`for (int i = INDEX; i < n; i += STRIDE)` is turned round: the launcher runs one turn of all threads, then the next.
That is right only where nothing outlives a turn that the launcher does not keep, and this module says when:

- `carried`: names that a loop's body may change, which its turns would hand on to each other;
- `are_independent`: no turn reads or writes memory that another turn writes. Then the order of a thread's own turns is
  open too, and the grid of no matter. It holds where every parameter that points to what is not `const` is used at the
  loop's own index only (`p[i]`), or only to add to it by atomic functions whose answer is dropped. Different parameters
  point to different arrays (the launcher looks), and variables of the module are not there.
"""

from collections.abc import Sequence

from coppermesh.exec.cuda_gate import Token

_ASSIGNING = frozenset({"+", "-", "*", "/", "%", "&", "|", "^"})
_BEFORE_VALUES = frozenset({"return", "else", "case", "and", "or", "not", "do", "throw", "co_return"})
_COMMUTE = ("atomicAdd", "atomicSub", "atomicMin", "atomicMax", "atomicAnd", "atomicOr", "atomicXor")
_OF_POINTERS = frozenset({"__restrict__", "__restrict", "restrict"})
_STATEMENTS = frozenset({"if", "for", "while"})


def carried(code: Sequence[Token], begin: int, end: int) -> set[str] | None:
    """Names that may have another value after this code than before it; None where any may."""
    words = [token.text for token in code]
    names: set[str] = set()
    for position in range(begin, end):
        if code[position].kind != "word":
            continue
        if _refers(code, words, position):
            return None
        if _changes(code, words, position):
            names.add(words[position])
    return names


def _refers(code: Sequence[Token], words: Sequence[str], position: int) -> bool:
    """Whether a reference to a variable, or several names at once, may be declared here."""
    before, after = words[position - 1], words[position + 1]
    if before == "auto" and after == "[":
        return True
    if before != "&" or after not in ("=", "{", "(") or code[position - 2].kind != "word":
        return False
    return not (after == "=" and words[position + 3 : position + 4] == ["["])  # `float& v = x[i];` is memory


def _changes(code: Sequence[Token], words: Sequence[str], position: int) -> bool:
    before, after, second = words[position - 1], words[position + 1], words[position + 2]
    if before == "." or (words[position - 2], before) == ("-", ">"):
        return False  # a member: the structure's name is looked at by itself
    ands = words[position - 2] == "&" and code[position - 2].end == code[position - 1].start
    if before == "&" and not ands and after != "[":
        return True
    if code[position - 1].kind == "word" and before not in _BEFORE_VALUES:
        return True  # a declaration
    if after in ("+", "-") and second == after and code[position + 1].end == code[position + 2].start:
        return True
    doubled = code[position - 2].end == code[position - 1].start
    if before in ("+", "-") and words[position - 2] == before and doubled and after != "[":
        return True
    while after == ".":  # v.x += 1
        position += 2
        after, second = words[position + 1], words[position + 2]
    if after == "=":
        return second != "="
    if after in ("<", ">") and second == after and words[position + 3] == "=":
        return True
    return after in _ASSIGNING and second == "="


def are_independent(
    code: Sequence[Token],
    parameters: tuple[int, int],
    body: tuple[int, int],
    index: str,
    types: frozenset[str],
) -> bool:
    """Whether the turns of a loop with this body touch nothing of each other; `types` are numbers' types."""
    words = [token.text for token in code]
    changed = carried(code, *body)
    if changed is None or index in changed or "this" in words[slice(*body)]:
        return False
    for parameter in _split(words, *parameters):
        name = parameter[-1]
        if name in changed:
            return False
        if "*" not in parameter:
            if not set(parameter[:-1]) <= types:
                return False
        elif not _is_input(parameter) and not _touched_at(words, body, name, index):
            return False
    return True


def _split(words: Sequence[str], begin: int, end: int) -> list[list[str]]:
    parameters: list[list[str]] = [[]]
    for word in words[begin:end]:
        if word == ",":
            parameters.append([])
        elif word not in _OF_POINTERS:
            parameters[-1].append(word)
    return [parameter for parameter in parameters if parameter]


def _is_input(parameter: Sequence[str]) -> bool:
    """`const T*` or `T const*`."""
    return parameter.count("*") == 1 and "const" in parameter[: parameter.index("*")]


def _touched_at(words: Sequence[str], body: tuple[int, int], name: str, index: str) -> bool:
    """Whether an array is used at this index only, or added to only."""
    uses = [position for position in range(*body) if words[position] == name]
    at_index = all(words[use + 1 : use + 4] == ["[", index, "]"] and words[use - 1] != "&" for use in uses)
    return at_index or all(_is_added_to(words, use) for use in uses)


def _is_added_to(words: Sequence[str], use: int) -> bool:
    """`atomicAdd(&name[...], ...);` or `atomicAdd(name + ..., ...);` as a statement, whose answer is dropped."""
    call = use - 2 if words[use - 1] == "&" else use - 1
    if words[call] != "(" or words[call - 1] not in _COMMUTE:
        return False
    before = call - 2
    if words[before] == ")":
        depth = 1
        while depth and before > 0:
            before -= 1
            depth += (words[before] == ")") - (words[before] == "(")
        return words[before - 1] in _STATEMENTS
    return words[before] in (";", "{", "}", "else")
