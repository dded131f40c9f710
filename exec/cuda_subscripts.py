"""Subscripts such as `a[y * w + x]`, whose sum of `int`s a compiler cannot follow from thread to thread.

CPU builds let `int` wrap round (`-fwrapv`), so a compiler must think that `y * w + x` wraps somewhere between two
threads of a row, and does not vectorise. In CUDA C++ that is undefined, and NVIDIA's compiler computes such
subscripts in 64 bits. So does this: where a subscript is a sum or product of variables and numbers and its type is
`int`, it becomes `a[is_int<decltype(y * w + x)>::value ? wide(y) * wide(w) + wide(x) : y * w + x]`. The compiler
decides about the types; unsigned subscripts, which may wrap, stay as they are. A variable that is declared as such a
sum and never changed (`int at = y * w + x;`) is replaced by it in subscripts.
"""

from collections.abc import Iterator, Mapping, Sequence

from coppermesh.exec.cuda_gate import Token
from coppermesh.exec.cuda_indices import joined
from coppermesh.exec.cuda_macros import Macros

Edit = tuple[int, int, str]

_OPERATORS = frozenset({"+", "-", "*", "(", ")"})
_ASSIGNING = frozenset({"+", "-", "*", "/", "%", "&", "|", "^"})
_NO_VARIABLES = frozenset(
    {
        "auto", "bool", "blockDim", "blockIdx", "case", "char", "const", "delete", "double", "else", "float", "gridDim",
        "int", "long", "new", "operator", "return", "short", "signed", "sizeof", "this", "threadIdx", "throw",
        "typename", "unsigned", "void",
    }
)  # fmt: skip
_BEFORE_VALUES = frozenset({"return", "else", "case", "and", "or", "not", "do", "throw", "co_return"})
MAX_TOKENS = 64
"""In a subscript after replacing variables."""


class SubscriptReader:
    """Reads the body of one kernel: `code[begin:end]`."""

    def __init__(self, code: Sequence[Token], words: list[str], begin: int, end: int, macros: Macros) -> None:
        self.code, self.words, self.begin, self.end = code, words, begin, end
        self.macros, self.macro_words = macros.names - macros.numbers, macros.words
        self.sums: dict[str, tuple[int, int]] = {}
        """Variables that are declared as a sum and never changed, with the positions of the sum."""

    def read(self) -> list[Edit]:
        """All subscripts to be changed."""
        self._find_sums()
        edits: list[Edit] = []
        opened: list[int] = []
        for position in range(self.begin, self.end):
            word = self.words[position]
            if word == "[":
                opened.append(position)
            elif word == "]" and opened:
                opening = opened.pop()
                if self._is_subscript(opening) and (text := self._widened(opening + 1, position)):
                    edits.append((self.code[opening + 1].start, self.code[position - 1].end, text))
        return edits

    def _is_subscript(self, opening: int) -> bool:
        before = self.code[opening - 1]
        is_value = before.text in (")", "]") or (before.kind == "word" and before.text not in _NO_VARIABLES)
        return is_value and before.start < self.code[opening].start  # not in a macro's place

    def _is_sum(self, begin: int, end: int) -> bool:
        """Whether these words are nothing but variables, members, numbers, `+ - *` and brackets."""
        if not 0 < end - begin <= MAX_TOKENS:
            return False
        for position in range(begin, end):
            token, follows = self.code[position], self.words[position + 1]
            if token.kind == "word":
                if token.text in _NO_VARIABLES or token.text in self.macros or follows == "(":
                    return False
            elif token.text == ".":
                if self.code[position - 1].kind != "word" or self.code[position + 1].kind != "word":
                    return False
            elif token.kind == "number":
                if not token.text.isdecimal():
                    return False
            elif token.text not in _OPERATORS or (token.text in ("+", "-") and follows == token.text):
                return False
        return True

    def _widened(self, begin: int, end: int) -> str:
        """The subscript in 64 bits; empty where nothing is to be changed."""
        if not self._is_sum(begin, end):
            return ""
        conditions = [joined(self.code[begin:end])]
        wide = self._wide(begin, end, conditions, 0)
        if wide is None or (end - begin == 1 and len(conditions) == 1):
            return ""
        same = " && ".join(f"::coppermesh::is_int<decltype({text})>::value" for text in conditions)
        return f"{same} ? ({wide}) : ({conditions[0]})"

    def _wide(self, begin: int, end: int, conditions: list[str], depth: int) -> str | None:
        """A sum of 64-bit numbers, the sums that variables in it stand for included."""
        parts = []
        position = begin
        while position < end:
            token = self.code[position]
            stop = position + 1
            while self.words[stop] == "." and stop < end:
                stop += 2
            if token.kind != "word":
                parts.append(token.text)
            elif stop == position + 1 and token.text in self.sums and depth < 4:
                first, last = self.sums[token.text]
                conditions.append(joined(self.code[first:last]))
                inner = self._wide(first, last, conditions, depth + 1)
                if inner is None or len(conditions) > 8:
                    return None
                parts.append(f"({inner})")
            else:
                parts.append(f"::coppermesh::wide({joined(self.code[position:stop])})")
            position = stop
        return " ".join(parts)

    # --- variables that are sums

    def _find_sums(self) -> None:
        words = self.words
        declared = dict(self._declarations())
        names: dict[str, list[tuple[int, int]]] = {}
        for position, value in declared.items():
            names.setdefault(words[position], []).append(value)
        changed = self._changed(declared)
        once = {name for name, values in names.items() if len(values) == 1}
        if changed is None:
            return
        for name in once - changed:
            first, last = names[name][0]
            inside = {token.text for token in self.code[first:last] if token.kind == "word"}
            steady = not inside & changed and all(len(names.get(word, ())) < 2 for word in inside)
            if (
                inside
                and steady
                and last - first > 1
                and self._is_sum(first, last)
                and "." not in words[first:last]
            ):
                self.sums[name] = (first, last)

    def _declarations(self) -> Iterator[tuple[int, tuple[int, int]]]:
        """Positions of the names of `int a = ..., b = ...;`, each with where its value stands."""
        for start in range(self.begin, self.end):
            if self.words[start] != "int" or self.words[start - 1] in ("unsigned", "long", "short", "<"):
                continue
            name = start + 1
            while name + 2 < self.end and self.code[name].kind == "word" and self.words[name + 1] == "=":
                last, depth = name + 2, 0
                while last < self.end and (depth or self.words[last] not in (",", ";", ")")):
                    depth += (self.words[last] in ("(", "[", "{")) - (self.words[last] in (")", "]", "}"))
                    last += 1
                yield name, (name + 2, last)
                if self.words[last] != ",":
                    break
                name = last + 1

    def _changed(self, declared: Mapping[int, object]) -> set[str] | None:
        """Names that may mean something else, or have another value, after a declaration; None where any may.

        A counter of a `for` loop that only the loop's header changes is as good as constant in what is declared inside.
        """
        counted: dict[str, int] = {}
        for position in range(self.begin, self.end):
            if self.code[position].kind == "word" and position not in declared:
                if self._refers(position):
                    return None
                if self._changes(position):
                    name = self.words[position]
                    counted[name] = counted.get(name, 0) + 1
        for position in declared:
            if self.words[position - 3 : position] == ["for", "(", "int"]:
                name = self.words[position]
                counted[name] = counted.get(name, 0) - self._in_header(position, name)
        return {name for name, times in counted.items() if times} | self.macro_words

    def _refers(self, position: int) -> bool:
        """Whether a reference, or several names at once, may be declared here."""
        before, after = self.words[position - 1], self.words[position + 1]
        return (before == "&" and after in ("=", "{", "(", "[")) or (before == "auto" and after == "[")

    def _changes(self, position: int) -> bool:
        """Whether a variable may be changed here, or one of its name be declared."""
        words = self.words
        before, after, second = words[position - 1], words[position + 1], words[position + 2]
        ands = words[position - 2] == "&" != words[position - 3] and self._touch(position - 2)
        if (before == "&" and not ands) or (before == "[" and after == ","):
            return True
        if before in ("(", ",", "{") and after in (")", ",", "}"):
            return True
        if self.code[position - 1].kind == "word" and before not in _BEFORE_VALUES:
            return True
        if (after in ("+", "-") and second == after) or (
            before in ("+", "-") and words[position - 2] == before
        ):
            return True
        if after == "=":
            return second != "="
        shifts = after in ("<", ">") and second == after and words[position + 3] == "="
        return shifts or (after in _ASSIGNING and second == "=")

    def _touch(self, position: int) -> bool:
        """Whether nothing is between the token here and the next."""
        return self.code[position].end == self.code[position + 1].start

    def _in_header(self, position: int, name: str) -> int:
        """How often the header that declares `name` changes it."""
        depth, found = 1, 0
        for place in range(position + 1, min(self.end, position + MAX_TOKENS)):
            depth += (self.words[place] == "(") - (self.words[place] == ")")
            if depth == 0:
                return found
            found += self.words[place] == name and self._changes(place)
        return 0
