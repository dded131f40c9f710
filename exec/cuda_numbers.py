"""The number of a thread in the whole launch, which kernels put together from x, y and z in many ways.

`int b = blockIdx.y * gridDim.x + blockIdx.x; int i = b * (blockDim.x * blockDim.y) + threadIdx.y * blockDim.x +
threadIdx.x;` and its like: sums of products in which at most one factor depends on the thread (*degree* 1). Such an
expression is known by its value at nought and at one of each index, and so the launcher asks it in every launch whether
it is the number that counts all threads (`is_linear` in coppermesh_launch.h): nothing here need recognise a formula.
Read are declarations of such numbers at a kernel's beginning, and every use of an index anywhere in it; a kernel in
which one use is of another kind has no such number.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from coppermesh.exec.cuda_gate import Token
from coppermesh.exec.cuda_indices import INTEGERS, Indices, is_in_call, joined
from coppermesh.exec.cuda_turns import carried

_INDICES = ("threadIdx", "blockIdx")
_LENGTHS = ("blockDim", "gridDim")
_MAX_TOKENS = 120
_LEFT = frozenset(
    {"=", "[", "{", "}", ";", ",", "return", "?", ":", "<", ">", "&", "|", "%", "/", "^", "!", "("}
)
_RIGHT = frozenset({"]", "}", ";", ",", "?", ":", "<", ">", "&", "|", "%", "/", "^", "!", "=", ")"})


@dataclass
class Numbers:
    """The numbers of a kernel that must all be the thread's own."""

    indices: Indices = field(default_factory=Indices)
    """Where they stand."""
    declarations: list[str] = field(default_factory=list)
    """What they are put together from."""
    parts: set[str] = field(default_factory=set)
    """Names of those."""
    texts: list[str] = field(default_factory=list)


class _Degrees:
    """Whether words are a sum of products, and how many factors of a product depend on the thread."""

    def __init__(self, words: Sequence[str], code: Sequence[Token], even: set[str], parts: set[str]) -> None:
        self.words, self.code, self.even, self.parts = words, code, even, parts
        self.position = self.end = 0

    def of(self, begin: int, end: int) -> int | None:
        """0 or 1; None for anything else."""
        if not 0 < end - begin <= _MAX_TOKENS:
            return None
        self.position, self.end = begin, end
        degree = self._sum()
        return degree if self.position == end else None

    def _word(self) -> str:
        return self.words[self.position] if self.position < self.end else ""

    def _sum(self) -> int | None:
        degree = self._product()
        while degree is not None and self._word() in ("+", "-"):
            self.position += 1
            term = self._product()
            degree = None if term is None else max(degree, term)
        return degree

    def _product(self) -> int | None:
        degree = self._factor()
        while degree is not None and self._word() == "*":
            self.position += 1
            factor = self._factor()
            degree = None if factor is None or factor + degree > 1 else factor + degree
        return degree

    def _factor(self) -> int | None:
        word, position = self._word(), self.position
        self.position += 1
        if word == "(":
            return self._bracket()
        if word == "static_cast" and self._word() == "<":
            self.position += 1
            while self._word() in INTEGERS:
                self.position += 1
            if self._word() != ">":
                return None
            self.position += 2
            return self._bracket() if self.words[self.position - 1] == "(" else None
        if word in INTEGERS and self._word() == "(":
            self.position += 1
            return self._bracket()
        if word in _INDICES or word in _LENGTHS:
            if self._word() != "." or self.words[self.position + 1] not in ("x", "y", "z"):
                return None
            self.position += 2
            return int(word in _INDICES)
        if word in self.parts:
            return 1
        if word in self.even or (
            position < self.end and self.code[position].kind == "number" and word.isdecimal()
        ):
            return 0
        return None

    def _bracket(self) -> int | None:
        """Behind an opening bracket: a cast, or a sum."""
        start = self.position
        while self._word() in INTEGERS:
            self.position += 1
        if self.position > start and self._word() == ")":
            self.position += 1
            return self._factor()
        self.position = start
        degree = self._sum()
        if self._word() != ")":
            return None
        self.position += 1
        return degree


def find_numbers(
    code: Sequence[Token], words: Sequence[str], body: tuple[int, int], even: set[str], calls: frozenset[str]
) -> Numbers | None:
    """The numbers of the kernel with this body; None where it uses its indices in other ways.

    `even` are words with one value for all threads: parameters and numbers. `calls` are macros with parameters, in
    whose arguments nothing is read.
    """
    changed = carried(code, body[0] + 1, body[1])
    if changed is None or even & changed:
        return None
    degrees = _Degrees(words, code, even, set())
    declared = _declarations(words, body, degrees)
    numbers = Numbers()
    inside: set[int] = set()
    for begin, end in declared:
        if _is_part(code, words, body, (begin, end), declared):
            inside.update(range(begin, end))
            numbers.declarations.append(f"const {_kind(words, begin)} {joined(code[begin:end])};")
            numbers.parts.add(words[begin])
    degrees.parts = numbers.parts
    for position in range(body[0] + 1, body[1]):
        if position in inside or (words[position] not in _INDICES and words[position] not in numbers.parts):
            continue
        spans = [span for span in _spans(words, body, position) if degrees.of(*span) == 1]
        if not spans or (calls and is_in_call(words, position, calls)):
            return None
        begin, end = spans[-1]
        inside.update(range(begin, end))
        numbers.indices.found.append((begin, end, "blockDim.x"))
        numbers.texts.append(joined(code[begin:end]))
    return numbers if numbers.texts else None


def _declarations(words: Sequence[str], body: tuple[int, int], degrees: _Degrees) -> list[tuple[int, int]]:
    """Names at the kernel's beginning with a value of degree 1: where name and value stand."""
    found: list[tuple[int, int]] = []
    position = body[0] + 1
    while words[position] in INTEGERS:
        while words[position] in INTEGERS:
            position += 1
        while True:
            end, depth = position, 0
            while end < body[1] and (depth or words[end] not in (",", ";", "{", "}")):
                depth += (words[end] == "(") - (words[end] == ")")
                end += 1
            if words[position + 1] != "=" or words[end] not in (",", ";"):
                return found
            if degrees.of(position + 2, end) == 1:
                found.append((position, end))
                degrees.parts = degrees.parts | {words[position]}
            position = end + 1
            if words[end] == ";":
                break
    return found


def _is_part(
    code: Sequence[Token],
    words: Sequence[str],
    body: tuple[int, int],
    place: tuple[int, int],
    declared: Sequence[tuple[int, int]],
) -> bool:
    """Whether a declared number stays as it is, and is used in the values of others only."""
    name = words[place[0]]
    uses = [position for position in range(place[1], body[1]) if words[position] == name]
    later = [span for span in declared if span[0] > place[0]]
    within = all(any(first + 1 < use < last for first, last in later) for use in uses)
    changed = carried(code, place[1], body[1])
    return bool(uses) and within and changed is not None and name not in changed


def _kind(words: Sequence[str], name: int) -> str:
    """The type of the declaration in which this name stands."""
    start = name
    while words[start - 1] not in (";", "{", "}"):
        start -= 1
    kind = []
    while words[start] in INTEGERS:
        kind += [words[start]] if words[start] != "const" else []
        start += 1
    return " ".join(kind) or "auto"


def _spans(words: Sequence[str], body: tuple[int, int], position: int) -> Iterator[tuple[int, int]]:
    """Expressions round an index, each within the next: up to what binds less, or to a bracket."""
    begin, end = position, position + 1
    while end - begin <= _MAX_TOKENS:
        begin, end = _left(words, body[0], begin), _right(words, body[1], end)
        yield begin, end
        if words[begin - 1] != "(" or words[end] != ")":
            return
        begin, end = begin - 1, end + 1


def _left(words: Sequence[str], least: int, position: int) -> int:
    while position - 1 > least:
        word = words[position - 1]
        if word == ")":
            depth = 1
            position -= 1
            while depth and position - 1 > least:
                position -= 1
                depth += (words[position] == ")") - (words[position] == "(")
        elif word == ">" and "static_cast" in words[max(least, position - 6) : position]:
            while words[position] != "static_cast":
                position -= 1
        elif word in _LEFT:
            break
        else:
            position -= 1
    return position


def _right(words: Sequence[str], most: int, position: int) -> int:
    while position < most:
        word = words[position]
        if word == "(":
            depth = 1
            while depth and position < most:
                position += 1
                depth += (words[position] == "(") - (words[position] == ")")
            position += 1
        elif word in _RIGHT:
            break
        else:
            position += 1
    return position
