"""How a kernel's body begins: its indices, the checks that most threads pass, and loops over the whole grid.

Read are, in this order and no further than the first statement that is anything else:

- declarations: indices along x (`int i = INDEX + 1`), numbers that are the same for all threads of a row (*even*:
  `int y = blockIdx.y * blockDim.y + threadIdx.y, last = n - 1;`), and others that can change neither;
- checks `if (x >= w || y >= h) return;`, and as the body's last statement `if (x > 0 && x < w - 1 && ...) ...`;
- loops over the grid behind them, by `cuda_strides`.

A check's comparisons get `coppermesh::whole ||` in front (or `!coppermesh::whole &&`), so a wrong guess here could let
a thread through only if `coppermesh::Range` said that the comparison holds where it does not. It is asked with the
same expressions, of which nothing may have changed since the kernel began: parameters, numbers, block and grid
lengths, the block's and thread's place in y and z.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from coppermesh.exec.cuda_gate import Token
from coppermesh.exec.cuda_indices import INTEGERS, Indices, joined
from coppermesh.exec.cuda_macros import Macros
from coppermesh.exec.cuda_turns import carried

Edit = tuple[int, int, str]

_VECTORS = {
    f"{kind}{length}"
    for kind in ("char", "uchar", "short", "ushort", "int", "uint", "float", "double")
    for length in (2, 3, 4)
}
_TYPES = INTEGERS | {"auto", "float", "double", "char", "short", "bool"} | _VECTORS
_VARIABLES = ("blockDim", "gridDim", "blockIdx", "threadIdx")
_OF_EVEN = frozenset({"+", "-", "*", "(", ")"})
_OF_OTHERS = _OF_EVEN | {"/", "%", ".", "[", "]", ":", "?", "<", ">", "=", ","}
METHODS = {"<": "below", "<=": "up_to", ">": "beyond", ">=": "at_least"}
_NEGATED = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


@dataclass
class Plan:
    """What is to be done with one kernel."""

    edits: list[Edit] = field(default_factory=list)
    declarations: list[str] = field(default_factory=list)
    """Even numbers that `conditions` name."""
    conditions: list[str] = field(default_factory=list)
    """Statements about `coppermesh_row`, a `coppermesh::Range`."""
    loop: str = ""
    """The header of a loop over the grid, as it was written; `variable` is its index."""
    variable: str = ""
    stride: str = ""
    kept: bool = False
    """Whether variables outlive a turn, or something comes after the loop."""
    independent: bool = False
    turn: tuple[int, int] = (0, 0)
    """Where the loop's body stands."""
    sums: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Checked sums of an index and a number that is the same for all threads of a row, with index and number."""
    outer: str = ""
    """The header of a loop round that loop, which is the same for all threads of a row, and its index."""
    outer_variable: str = ""
    outer_parts: tuple[str, str, str] = ("", "", "")
    """Where that loop begins, where it ends, and its stride."""


@dataclass(frozen=True)
class Kind:
    """What the numbers of a kernel count, which decides what else is the same for all threads of a row."""

    thread: tuple[str, ...]
    """Members of `threadIdx` that are."""
    block: tuple[str, ...]
    strided_only: bool = False


ALONG_X = Kind(("y", "z"), ("y", "z"))
IN_BLOCK = Kind(("y", "z"), ("x", "y", "z"), strided_only=True)
LINEAR = Kind((), ())


@dataclass
class _Known:
    """Names while a body is read."""

    even: set[str]
    """Words that have the same value in every thread of a row, parameters first."""
    x: dict[str, int] = field(default_factory=dict)
    """Indices along x, and what is added to them."""
    sums: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Sums of an index and a number that is the same for all threads of a row, with index and number."""
    others: set[str] = field(default_factory=set)
    declared: dict[str, list[str]] = field(default_factory=dict)
    """Declarations of indices, as they were written."""
    statements: list[tuple[int, int, set[str]]] = field(default_factory=list)
    """Declarations, from the type to the semicolon, and the names in each."""


@dataclass
class Source:
    """What is the same for all kernels of a source."""

    code: Sequence[Token]
    words: list[str]
    """Their texts."""
    macros: Macros
    newlines: Sequence[int]
    """Offsets of line ends."""
    aliases: dict[str, bool] = field(default_factory=dict)
    """Macros (False) and device functions without parameters (True) that are nothing but an index."""


class BodyReader:
    """Reads one kernel's body, `code[body]` being its opening brace and `code[end]` the closing one."""

    def __init__(
        self,
        source: Source,
        body: int,
        end: int,
        indices: Indices,
        even: set[str],
        *,
        kind: Kind = ALONG_X,
        types: frozenset[str] = frozenset(),
        parameters: tuple[int, int] = (0, 0),
        stateless: bool = False,
        parts: AbstractSet[str] = frozenset(),
    ) -> None:
        """`indices` has positions in the code; `even` are the parameters and the words that stand for numbers.

        `types` are a template's; `parameters` is where the kernel's stand; `stateless`: the source has no variables;
        `parts` are names that only indices are made of.
        """
        self.source, self.code, self.words, self.end = source, source.code, source.words, end
        self.kind, self.types, self.parameters = kind, _TYPES | types, parameters
        self.stateless, self.parts, self.body = stateless, parts, body
        self.indices = indices.ends()
        self.position = body + 1
        self.known = _Known(even)
        self.plan = Plan()

    def read(self) -> Plan:
        """The plan; an empty one where nothing is recognised."""
        while self._declaration() or self._check():
            pass
        self._widen_sums()
        return self.plan

    def _word(self, position: int) -> str:
        return self.words[position] if 0 <= position <= self.end else ""

    def _text(self, begin: int, end: int) -> str:
        return joined(self.code[begin:end])

    # --- declarations

    def _declaration(self) -> bool:
        start = self.position
        base = start
        while self._word(base) in self.types:
            base += 1
        if base == start or self._word(base) == "(":
            return False
        end = next((p for p in range(base, self.end) if self.words[p] in (";", "{")), None)
        if end is None or self.words[end] != ";":
            return False
        kind = self.words[start:base]
        parts = split_at(self.words, base, end, ",")
        for begin, stop in parts:
            if not self._declarator(kind, begin, stop):
                return False
        self.known.statements.append((start, end, {self.words[begin] for begin, _ in parts}))
        self.position = end + 1
        return True

    def _declarator(self, kind: list[str], begin: int, end: int) -> bool:
        """`name = value`; anything else, of a shape that changes no other variable, is remembered as such."""
        name, first = self.words[begin], begin + 2
        if name in self.source.macros.names:
            return False
        if name in self.parts:
            return True
        plain = self.code[begin].kind == "word" and self._word(begin + 1) == "=" and end > first
        if plain and set(kind) <= INTEGERS | {"auto"}:
            text = f"{' '.join(kind)} {self._text(begin, end)};"
            offset = self._index(first, end)
            if offset is not None:
                self.known.x[name] = offset
                self.known.declared[name] = [text]
                return True
            if self._is_even(first, end):
                self.known.even.add(name)
                self.plan.declarations.append(text)
                return True
            other = self._other_than_index(first, end)
            if other is not None:
                self.known.sums[name] = other
        self.known.others.add(name)
        return self._changes_nothing(begin, end)

    def _changes_nothing(self, begin: int, end: int) -> bool:
        depth = 0
        for position in range(begin, end):
            token, word = self.code[position], self.words[position]
            if token.kind not in ("word", "number") and word not in _OF_OTHERS:
                return False
            follows = self._word(position + 1)
            if word in ("+", "-") and follows == word:
                return False
            if word == "(" and not self._brackets_a_number(position):
                return False
            depth += (word == "(") - (word == ")")
            if word == "=" and depth:
                return False
        return sum(word == "=" for word in self.words[begin:end]) <= 1

    def _brackets_a_number(self, opening: int) -> bool:
        """Whether a bracket is for arithmetic or a conversion: a call may change what it is given."""
        before = self.words[opening - 1]
        if before == ")":
            return self.words[opening - 2] in self.types
        if self.code[opening - 1].kind == "word":
            return before in self.types or before.startswith("make_")
        return before not in ("]", ">")

    def _index(self, begin: int, end: int) -> int | None:
        """What is added to an index along x that stands from `begin` to `end`."""
        while self._word(begin) == "(" and self.words[end - 1] == ")" and self._closing(begin) == end - 1:
            begin, end = begin + 1, end - 1
        after = self._index_at(begin)
        if after is None or after == end:
            return None if after is None else 0
        if after == end - 2 and self.words[after] == "+" and self.words[after + 1].isdecimal():
            offset = int(self.words[after + 1])
            return offset if offset < 1 << 20 else None
        return None

    def _other_than_index(self, begin: int, end: int) -> tuple[str, str] | None:
        """The index in a sum of one and otherwise even numbers, and what is added to it."""
        parts = split_at(self.words, begin, end, "+")
        found = [part for part in parts if part[0] < part[1] and self._named_x(*part) == 0]
        others = [part for part in parts if part not in found]
        if len(found) != 1 or not others or not all(self._is_even(*part) for part in others):
            return None
        return self._text(*found[0]), " + ".join(self._text(*part) for part in others)

    def _index_at(self, position: int) -> int | None:
        after = self.indices.get(position)
        if after is None and self._word(position) in self.source.aliases:
            if not self.source.aliases[self.words[position]]:
                return position + 1
            if self.words[position + 1 : position + 3] == ["(", ")"]:
                return position + 3
        return after

    def _is_even(self, begin: int, end: int) -> bool:
        """Whether these words have one value for all threads of a row, and reading them does nothing else."""
        position = begin
        while position < end:
            token, word = self.code[position], self.words[position]
            if word in _VARIABLES:
                allowed = self._even_members(word)
                if self._word(position + 1) != "." or self._word(position + 2) not in allowed:
                    return False
                position += 2
            elif token.kind == "number":
                pass
            elif token.kind == "word":
                if word not in self.known.even and word not in INTEGERS:
                    return False
                if self._word(position + 1) == "(" and word not in INTEGERS:
                    return False
            elif word in ("+", "-") and self._word(position + 1) == word:
                return False
            elif word == "/" and self._word(position + 1).isdecimal() and int(self.words[position + 1]):
                pass
            elif word not in _OF_EVEN:
                return False
            position += 1
        return end > begin

    def _even_members(self, word: str) -> tuple[str, ...]:
        if word == "threadIdx":
            return self.kind.thread
        return self.kind.block if word == "blockIdx" else ("x", "y", "z")

    def _closing(self, opening: int) -> int:
        """The position of the bracket that closes the one at `opening`; the body's end where there is none."""
        pairs = {"(": ")", "{": "}"}
        own, other = self.words[opening], pairs[self.words[opening]]
        depth = 0
        for position in range(opening, self.end):
            depth += (self.words[position] == own) - (self.words[position] == other)
            if depth == 0:
                return position
        return self.end

    # --- checks

    def _check(self) -> bool:
        """An `if`; True where reading goes on behind it."""
        if self.words[self.position : self.position + 2] != ["if", "("]:
            return False
        opening = self.position + 1
        closing = self._closing(opening)
        begin, end, wanted = opening + 1, closing, True
        if self.words[begin : begin + 2] == ["!", "("] and self._closing(begin + 1) == end - 1:
            begin, end, wanted = begin + 2, end - 1, False
        after = self._return(closing + 1)
        if after is None:
            if self._statement_end(closing + 1) != self.end:
                return False
        else:
            wanted = not wanted
        operators = _double_operators(self.words, begin, end)
        if operators - {"&&" if wanted else "||"}:
            return False
        parts = split_at(self.words, begin, end, "&" if wanted else "|")
        before = len(self.plan.conditions)
        known = [self._comparison(first, last, wanted) for first, last in parts if first < last]
        if any(known) and not all(known):
            self.plan.conditions.insert(before, "coppermesh_row.decided = false;")
        if not all(known) and after is not None:
            self.position = self.end  # threads go different ways from here
            return False
        self.position = self.end if after is None else after
        return after is not None

    def _return(self, position: int) -> int | None:
        """The position after `return;` or `{ return; }`."""
        for form in (["return", ";"], ["{", "return", ";", "}"]):
            if self.words[position : position + len(form)] == form:
                return None if self._word(position + len(form)) == "else" else position + len(form)
        return None

    def _statement_end(self, position: int) -> int:
        """The position after the statement that begins here, and after a last `return;`; -1 before an `else`."""
        if self._word(position) == "{":
            after = self._closing(position) + 1
        else:
            after, depth = position, 0
            while after < self.end and (depth or self.words[after] != ";"):
                depth += (self.words[after] in ("(", "{")) - (self.words[after] in (")", "}"))
                after += 1
            after += 1
        if self._word(after) == "return" and self._word(after + 1) == ";":
            after += 2
        return -1 if self._word(after) == "else" else after

    def _comparison(self, begin: int, end: int, wanted: bool) -> bool:
        """Note what one comparison wants of a row, and rewrite it."""
        outer = begin, end
        while self._word(begin) == "(" and self._closing(begin) == end - 1:
            begin, end = begin + 1, end - 1
        places = [p for p in range(begin, end) if self.words[p] in ("<", ">")]
        if len(places) != 1:
            return False
        place = places[0]
        operator, right = self.words[place], place + 1
        if self._word(right) == "=":
            operator, right = operator + "=", right + 1
        if self._is_even(begin, place) and self._is_even(right, end):
            # As it is written: of two comparisons that are each other's opposite a NaN fails both.
            held = f"(({self._text(begin, place)}) {operator} ({self._text(right, end)}))"
            condition: str | None = f"coppermesh_row.only({held if wanted else f'!{held}'});"
        else:
            condition = self._condition(begin, place, operator if wanted else _NEGATED[operator], right, end)
        if condition is None:
            return False
        self.plan.conditions.append(condition)
        opening = "(::coppermesh::whole || (" if wanted else "(!::coppermesh::whole && ("
        first, last = self.code[outer[0]].start, self.code[outer[1] - 1].end
        self.plan.edits += [(first, first, opening), (last, last, "))")]
        return True

    def _condition(self, begin: int, place: int, operator: str, right: int, end: int) -> str | None:
        left_x, right_x = self._named_x(begin, place), self._named_x(right, end)
        summed = self.known.sums.get(self.words[begin]) if place == begin + 1 else None
        if summed is not None and self._is_even(right, end) and operator == "<":
            self.plan.sums[self.words[begin]] = summed
            return f"coppermesh_row.sum_below({self._text(right, end)}, {summed[1]});"
        if left_x is not None and self._is_even(right, end):
            return f"coppermesh_row.{METHODS[operator]}({self._text(right, end)}, {left_x});"
        if right_x is not None and self._is_even(begin, place):
            return f"coppermesh_row.{METHODS[_MIRRORED[operator]]}({self._text(begin, place)}, {right_x});"
        return None

    def _named_x(self, begin: int, end: int) -> int | None:
        if end == begin + 1 and self.words[begin] in self.known.x:
            return self.known.x[self.words[begin]]
        return self._index(begin, end)

    def _widen_sums(self) -> None:
        """Subscripts by checked sums, in 64 bits: there they are what they say, and cannot wrap round."""
        for name, (index, other) in self.plan.sums.items():
            changed = carried(self.code, self.position, self.end)
            if changed is None or name in changed | self.source.macros.words:
                continue
            for place in range(self.body, self.end):
                if self.words[place - 1 : place + 2] == ["[", name, "]"]:
                    wide = f"(long long)({other}) + (long long)({index})"
                    start, end = self.code[place].start, self.code[place].end
                    self.plan.edits.append(
                        (start, end, f"::coppermesh::whole ? {wide} : (long long)({name})")
                    )


def split_at(words: Sequence[str], begin: int, end: int, separator: str) -> list[tuple[int, int]]:
    """The parts between separators that are in no bracket, as positions; empty ones too."""
    parts, depth, start = [], 0, begin
    for position in range(begin, end):
        word = words[position]
        depth += (word in ("(", "[", "{")) - (word in (")", "]", "}"))
        if word == separator and depth == 0:
            parts.append((start, position))
            start = position + 1
    return [*parts, (start, end)]


def _double_operators(words: Sequence[str], begin: int, end: int) -> set[str]:
    """`&&` and `||` outside of brackets, and any single `&` or `|`."""
    found = set()
    position, depth = begin, 0
    while position < end:
        word = words[position]
        depth += (word in ("(", "[")) - (word in (")", "]"))
        if word in ("&", "|") and depth == 0:
            doubled = words[position + 1] == word
            found.add(word * (1 + doubled))
            position += doubled
        position += 1
    return found
