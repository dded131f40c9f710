"""Where CUDA source computes a thread's index along x, read token by token.

Nearly every kernel has `blockIdx.x * blockDim.x + threadIdx.x` in one of its spellings: factors and terms in either
order, casts on either side, the block's length as a number, a macro or a template's parameter, the whole as a macro or
as a device function. Each becomes `coppermesh::index_or(...)`, which the launcher's long loops (coppermesh_launch.h)
can set to one number. A kernel that uses its x indices in any other way must have its loops over blocks and threads:
`Indices.odd` has the places of those.

Products and sums of unsigned numbers and casts to wider ones are all that is taken for an index, and only where the
operators beside it bind less; the launcher uses its own number only where no such product overflows.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from coppermesh.exec.cuda_gate import Token

INTEGERS = frozenset(
    {
        "const",
        "int",
        "unsigned",
        "long",
        "signed",
        "size_t",
        "uint32_t",
        "int32_t",
        "int64_t",
        "uint64_t",
        "uint",
    }
)
"""Words of integer types that hold every index of a launch that fits `LARGE_INDEX`."""
_BEFORE = frozenset({"=", "(", ",", "{", "}", ";", "return", "?", ":", "<", ">", "&", "|", "["})
_AFTER = frozenset({";", ")", ",", "<", ">", "+", "-", "}", "]", "?", ":", "=", "&", "|"})
_VARIABLES = ("threadIdx", "blockIdx")


@dataclass
class Indices:
    """What was found in one source."""

    found: list[tuple[int, int, str]] = field(default_factory=list)
    """Positions of the first token and after the last, and the block's length (`blockDim.x` or what stands for it)."""
    odd: list[int] = field(default_factory=list)
    """Positions of other uses of x indices, among all tokens."""

    def ends(self) -> dict[int, int]:
        """The position after each index by its first."""
        return {begin: end for begin, end, _ in self.found}


class Matcher:
    """Reads indices at a position of a token list."""

    def __init__(self, words: list[str], lengths: frozenset[str]) -> None:
        """`lengths` are the words that may stand for a block's length, beside numbers."""
        self.words = words
        self._lengths = lengths
        self.synonyms: dict[str, str] = {}
        """Variables that hold `threadIdx.x` or `blockIdx.x`."""
        self.length = ""
        """The block's length in what was read last."""

    def word(self, position: int) -> str:
        """The token there; empty beyond the end."""
        return self.words[position] if 0 <= position < len(self.words) else ""

    def matches(self, position: int, *words: str) -> int | None:
        """The position after these words, where they stand there."""
        end = position + len(words)
        return end if self.words[position:end] == list(words) else None

    def index(self, position: int) -> int | None:
        """The position after an index along x that begins here and whose neighbours bind less."""
        if self.word(position - 1) not in _BEFORE:
            return None
        end = self._sum(position)
        return end if end is not None and self.word(end) in _AFTER else None

    def _sum(self, position: int) -> int | None:
        for first, second in ((self._product, self._thread), (self._thread, self._product)):
            middle = first(position)
            if middle is not None and self.word(middle) == "+":
                end = second(middle + 1)
                if end is not None:
                    return end
        return None

    def _product(self, position: int) -> int | None:
        if self.word(position) in ("__mul24", "__umul24"):
            return self._factors(position + 1, ",", bracketed=True)
        bare = self._factors(position, "*", bracketed=False)
        return bare if bare is not None else self._factors(position, "*", bracketed=True)

    def _factors(self, position: int, between: str, *, bracketed: bool) -> int | None:
        if bracketed:
            if self.word(position) != "(":
                return None
            position += 1
        for first, second in ((self._block, self._length), (self._length, self._block)):
            middle = first(position)
            if middle is None or self.word(middle) != between:
                continue
            end = second(middle + 1)
            if end is not None and (not bracketed or self.word(end) == ")"):
                return end + bracketed
        return None

    def _thread(self, position: int) -> int | None:
        return self._cast(position, lambda p: self._variable(p, "threadIdx"))

    def _block(self, position: int) -> int | None:
        return self._cast(position, lambda p: self._variable(p, "blockIdx"))

    def _variable(self, position: int, name: str) -> int | None:
        if self.synonyms.get(self.word(position)) == name:
            return position + 1
        return self.matches(position, name, ".", "x")

    def _length(self, position: int) -> int | None:
        return self._cast(position, self._one_length)

    def _one_length(self, position: int) -> int | None:
        end = self.matches(position, "blockDim", ".", "x")
        word = self.word(position)
        if end is None and (word.isdecimal() or word in self._lengths):
            end = position + 1
        if end is not None:
            self.length = "".join(self.words[position:end])
        return end

    def _cast(self, position: int, inner: Callable[[int], int | None]) -> int | None:
        """`inner`, or `(T)inner`, `T(inner)`, `static_cast<T>(inner)`, `(inner)` with an integer type T."""
        if self.word(position) == "static_cast" and self.word(position + 1) == "<":
            end = self._type(position + 2)
            return self._bracketed(end + 1, inner) if end is not None and self.word(end) == ">" else None
        if self.word(position) == "(":
            end = self._type(position + 1)
            if end is not None and self.word(end) == ")":
                after = inner(end + 1)
                return after if after is not None else self._bracketed(end + 1, inner)
            return self._bracketed(position, inner)
        if self.word(position) in INTEGERS and self.word(position + 1) == "(":
            return self._bracketed(position + 1, inner)
        return inner(position)

    def _type(self, position: int) -> int | None:
        end = position
        while self.word(end) in INTEGERS:
            end += 1
        return end if end > position else None

    def _bracketed(self, position: int, inner: Callable[[int], int | None]) -> int | None:
        if self.word(position) != "(":
            return None
        end = inner(position + 1)
        return end + 1 if end is not None and self.word(end) == ")" else None


def joined(tokens: Sequence[Token]) -> str:
    """Tokens on one line, with blanks where they had something between them."""
    parts = [token.text for token in tokens[:1]]
    for before, token in pairwise(tokens):
        parts.append(token.text if before.end == token.start else f" {token.text}")
    return "".join(parts)


def find_indices(
    words: list[str], lengths: frozenset[str], begin: int, end: int, calls: frozenset[str]
) -> Indices:
    """All indices along x between two positions of a source's code, or of one directive.

    `calls` are macros with parameters, in whose arguments nothing is taken for an index.
    """
    return _find(Matcher(words, lengths), begin, end, calls)


def _find(matcher: Matcher, begin: int, end: int, calls: frozenset[str]) -> Indices:
    indices = Indices()
    position = begin
    while position < end:
        after = matcher.index(position)
        if after is None or after > end or (calls and is_in_call(matcher.words, position, calls)):
            if matcher.word(position) in _VARIABLES and (
                matcher.word(position + 1) != "." or matcher.word(position + 2) not in ("y", "z")
            ):
                indices.odd.append(position)
            position += 1
        else:
            indices.found.append((position, after, matcher.length))
            position = after
    return indices


def find_indices_of_kernel(
    words: list[str], lengths: frozenset[str], begin: int, end: int, calls: frozenset[str]
) -> Indices:
    """The same in a kernel's body, where `int tid = threadIdx.x;` may be for its index alone."""
    matcher = Matcher(words, lengths)
    declared = _synonyms(words, begin, end)
    matcher.synonyms = {words[place]: words[place + 2] for place in declared}
    indices = _find(matcher, begin, end, calls)
    if declared:
        inside = {place for first, after, _ in indices.found for place in range(first, after)}
        uses = {place for place in range(begin, end) if words[place] in matcher.synonyms}
        if uses - inside != set(declared) or len(matcher.synonyms) != len(declared):
            return find_indices(words, lengths, begin, end, calls)
        indices.odd = [place for place in indices.odd if place - 2 not in declared]
    return indices


def indices_in_block(words: list[str], begin: int, end: int, calls: frozenset[str]) -> Indices:
    """All uses of `threadIdx.x` by itself: `int tid = threadIdx.x`, `for (int c = threadIdx.x; ...)`."""
    indices = Indices()
    for position in range(begin, end):
        if words[position] == "threadIdx" and words[position + 2] not in ("y", "z"):
            after = position + 3
            alone = words[position - 1] in _BEFORE and words[after] in _AFTER and words[position + 2] == "x"
            if alone and not (calls and is_in_call(words, position, calls)):
                indices.found.append((position, after, "blockDim.x"))
            else:
                indices.odd.append(position)
    return indices


def _synonyms(words: list[str], begin: int, end: int) -> list[int]:
    """Positions of the names in `int bid = blockIdx.x, tid = threadIdx.x;`."""
    found = []
    for start in range(begin, end):
        if words[start] in INTEGERS and words[start - 1] in ("{", ";", "}"):
            name = start + 1
            while words[name] in INTEGERS:
                name += 1
            while words[name + 1 : name + 2] == ["="] and name < end:
                last = next((p for p in range(name, min(end, name + 100)) if words[p] in (",", ";")), end)
                if (
                    words[name + 2] in _VARIABLES
                    and words[name + 3 : name + 5] == [".", "x"]
                    and last == name + 5
                ):
                    found.append(name)
                if words[last] != ",":
                    break
                name = last + 1
    return found


def is_in_call(words: Sequence[str], position: int, calls: frozenset[str]) -> bool:
    """Whether any bracket round a position belongs to one of these names."""
    depth = 0
    for place in range(position - 1, max(-1, position - 4000), -1):
        word = words[place]
        depth += (word == ")") - (word == "(")
        if word == "(" and depth < 0:
            depth = 0
            if place and words[place - 1] in calls:
                return True
        if word in (";", "{", "}") and depth == 0 and place < position - 200:
            return False
    return False


def functions_of_index(words: list[str], found: Sequence[tuple[int, int, str]]) -> set[str]:
    """Functions without parameters that are nothing but `{ return INDEX; }`, and are defined once."""
    names = set()
    for begin, end, _ in found:
        before = words[max(0, begin - 5) : begin]
        if list(before[1:]) == ["(", ")", "{", "return"] and list(words[end : end + 2]) == [";", "}"]:
            names.add(before[0])
    opened = Counter(words[p] for p in range(len(words) - 3) if words[p + 1 : p + 4] == ["(", ")", "{"])
    return {name for name in names if opened[name] == 1}
