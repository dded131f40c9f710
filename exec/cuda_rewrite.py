"""The few things about CUDA source that no header can make C++: rewritten before compiling, token by token.

Only for modules whose threads wait for each other (`uses_fibers`). What is changed:

- `extern __shared__ T x[];` becomes `T (&x)[] = coppermesh::DynamicShared();`. At file scope it becomes that line at
  the beginning of each function that names `x`, because the memory is another one for each running block. A lambda
  that names `x` gets the line too: on a GPU it need not capture what has static storage.
- `x[i]` of such an array becomes `x[coppermesh::within(x, (i))]`, which holds `i` to the launch's shared memory.
- `return;` inside a kernel's own body, or that of a function or lambda in which threads may wait at a barrier, becomes
  `return coppermesh::leave();`, except as its last statement. A thread that ends after it without a barrier is not
  waited for, as on a GPU since Volta; one that comes to the kernel's end otherwise while others wait at a barrier
  has taken another way, and that is an error.
- `__shared__ T x[16];` becomes `typedef T t[16]; static unsigned int n; t& x = shared_array<t>(n, "x");`
  (coppermesh_fibers.h): the array is where an index that leaves it is seen, through a pointer too. So do structures and
  unions. In lambdas that name it the last part is said again, and where it stands at file scope, in every function that
  names it. In a macro it becomes `T (&x)[16] = StaticShared{...};`, unless the macro stands at file scope somewhere.
  Other shared variables are thread-local, which `__shared__` means there.
- `__shared__ alignas(16) T x` becomes `alignas(16) __shared__ T x`.

Theory. The tokens are the gate's own, so this sees what the compiler will see (`cuda_gate`). Every change puts
well-formed tokens in the place of others and never adds or removes a line, so the compiler's messages have the user's
lines. Macros are not expanded: in a `#define`, `return;` is changed wherever it will stand (which can hide a skipped
barrier and breaks nothing), and `extern __shared__` is refused. What a macro's words name counts as named where the
macro is. A source that does not compile with its arrays in places of their own is compiled with thread-local ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import pairwise

from coppermesh.exec.cuda_gate import SourceRefused, SplicedText, Token, scan, spliced_tokens

FIBER_FEATURES = frozenset({"cuda-shared-memory", "cuda-barriers", "cuda-warps", "cuda-groups"})
"""Features (`cuda_features`) of modules whose threads wait for each other."""

_LEAVE = " coppermesh::leave()"
_MEMORY = " = coppermesh::DynamicShared()"
_ALIGNING = frozenset({"__align__", "__builtin_align__", "alignas", "__attribute__"})
_DROPPED = frozenset({"extern", "__shared__", "__device__"})
_NO_SPECIFIER = frozenset({"case", "default", "else", "do", "goto", "return", "thread_local"})
_BEFORE_BODY = frozenset({")", "const", "noexcept", "override", "final"})
_MAY_PRECEDE_INDEXED = frozenset(
    {"return", "else", "do", "case", "and", "or", "not", "xor", "throw", "co_return"}
)
"""Words after which `x[i]` is an element. After any other word it is a declaration."""
_BARRIERS = frozenset(
    {"__syncthreads", "__syncthreads_and", "__syncthreads_or", "__syncthreads_count", "sync"}
)
_STRUCTURES = frozenset({"struct", "union", "class"})
_NUMBERS = frozenset(
    {
        "bool", "char", "short", "int", "long", "unsigned", "signed", "float", "double", "size_t", "volatile", "static",
        "const", "__device__",
    }
)  # fmt: skip
"""Types that are no larger than an element."""
_MAX_CALLS_DEEP = 8
"""Functions that call functions that wait: followed so far."""
MAX_BRACES_DEEP = 256
MAX_DYNAMIC_ARRAYS = 64
"""Names for the one piece of dynamic shared memory, in a source."""


def uses_fibers(source: str, options: Sequence[str]) -> bool:
    """Whether threads of this module may wait for each other, or share memory."""
    return any(
        finding.feature is not None and finding.feature.code in FIBER_FEATURES
        for finding in scan([source], options)
    )


def rewrite(source: str, *, place_arrays: bool = True) -> str:
    """The source as the compiler gets it. Raises SourceRefused for shared memory declared in an unknown way.

    Without `place_arrays` arrays in static shared memory are thread-local: then indices through pointers are not held.
    """
    text, tokens = spliced_tokens(source)
    code, directives = _split(tokens)
    macros = [token for directive in directives for token in directive]
    for position, token in enumerate(macros):
        following = {other.text for other in macros[position + 1 : position + 4]}
        if token.text == "extern" and "__shared__" in following:
            raise _refused(text, token, "extern __shared__ in a macro")
    reader = _Reader(text, code, _macro_words(directives), place_arrays=place_arrays)
    edits = [*_returns(macros), *reader.read()]
    for directive in directives if place_arrays else ():
        edits += _arrays_in_macro(directive, reader.outside)
    return text.restored(edits)


Edit = tuple[int, int, str]
"""Offsets in the spliced text, and what stands there instead."""


def _refused(text: SplicedText, token: Token, what: str, instead: str = "declare") -> SourceRefused:
    line = text.place(token.start)[0]
    advice = {
        "declare": "is not possible on a CPU device; declare it as extern __shared__ T x[]",
        "assign": "is not possible: let a thread assign it, and wait with __syncthreads()",
    }
    return SourceRefused(f"line {line}: {what} {advice[instead]}")


def _split(tokens: Sequence[Token]) -> tuple[list[Token], list[list[Token]]]:
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


def _macro_words(directives: Sequence[Sequence[Token]]) -> list[tuple[str, frozenset[str]]]:
    """Each macro's name, and the words that it may stand for."""
    return [
        (directive[2].text, frozenset(token.text for token in directive[3:]))
        for directive in directives
        if len(directive) > 2 and directive[1].text == "define"
    ]


def _arrays_in_macro(directive: Sequence[Token], outside: AbstractSet[str]) -> list[Edit]:
    """Changes of `#define M __shared__ T x[16]`, in a function that the macro is part of or that it makes."""
    words = [token.text for token in directive]
    if words[1:2] != ["define"] or len(words) < 4:
        return []
    called = words[3] == "(" and directive[2].end == directive[3].start
    parameters = words[3 : words.index(")")] if called and ")" in words else []
    edits: list[Edit] = []
    depth = 0
    for position, word in enumerate(words):
        depth += (word == "{") - (word == "}")
        if word == "__shared__" and (depth > 0 or words[2] not in outside):
            edits += _array_in_macro(directive, words, position, parameters)
    return edits


def _array_in_macro(
    directive: Sequence[Token], words: list[str], shared: int, parameters: Sequence[str]
) -> list[Edit]:
    """The same of the one array that is declared behind `__shared__`; nothing where it is anything else."""
    end = next((at for at in range(shared, len(words)) if words[at] in (";", "=", "{", "}")), len(words))
    dimensions = [
        at for at in range(shared + 2, end) if words[at] == "[" and directive[at - 1].kind == "word"
    ]
    whole = end == len(words) or words[end] == ";"
    if not whole or words[end - 1] != "]" or not dimensions or "," in words[dimensions[0] : end]:
        return []
    if words[shared - 1] in ("static", "extern"):
        return []
    name = directive[dimensions[0] - 1]
    told = f"#{name.text}" if name.text in parameters else f'"{name.text}"'
    counter = "[]() -> unsigned int& { static unsigned int number; return number; }()"
    return [
        _without(directive[shared]),
        (name.start, name.end, f"(&{name.text})"),
        (
            directive[end - 1].end,
            directive[end - 1].end,
            f" = ::coppermesh::StaticShared{{{counter}, {told}}}",
        ),
    ]


def _returns(tokens: Sequence[Token]) -> list[Edit]:
    return [
        (token.end, token.end, _LEAVE)
        for token, following in pairwise(tokens)
        if token.text == "return" and following.text == ";"
    ]


def _without(token: Token) -> Edit:
    return (token.start, token.end, "")


_CLOSED_BY = {")": "(", "]": "[", "}": "{"}


def _partners(code: Sequence[Token]) -> dict[int, int]:
    """For the position of each bracket that of its other half. A kind is matched without regard to the others."""
    waiting: dict[str, list[int]] = {"(": [], "[": [], "{": []}
    found: dict[int, int] = {}
    for position, token in enumerate(code):
        if token.text in waiting:
            waiting[token.text].append(position)
        elif (opening := _CLOSED_BY.get(token.text)) and waiting[opening]:
            start = waiting[opening].pop()
            found[start], found[position] = position, start
    return found


@dataclass
class _Reader:
    """Goes through the code once, knowing which braces it is in."""

    text: SplicedText
    code: Sequence[Token]
    macros: Sequence[tuple[str, frozenset[str]]]
    place_arrays: bool = True
    edits: list[Edit] = field(default_factory=list)
    arrays: dict[str, str] = field(default_factory=dict)
    """Dynamic shared memory declared at file scope: the declaration of each name within a function."""
    everywhere: dict[str, str] = field(default_factory=dict)
    """The same of arrays in static shared memory."""
    local: dict[str, str] = field(default_factory=dict)
    """The same, of what the function at hand has declared."""
    placed: dict[str, str] = field(default_factory=dict)
    """Arrays in static shared memory that it has declared: what a lambda says to have them too."""
    braces: list[str] = field(default_factory=list)
    """Of each open brace: `kernel` (a kernel's body), `waits` (another body with barriers), `lambda`, `function` (any
    other, and blocks within one), `scope`."""
    in_declaration_of_kernel: bool = False
    statement: int = 0
    """Where the statement or declaration began."""
    outside: set[str] = field(default_factory=set)
    """Words that stand outside of every function."""
    declared_until: int = 0
    """Up to here it is known that no declaration of shared memory begins."""

    def __post_init__(self) -> None:
        self.partners = _partners(self.code)
        self.waiting = self._functions_that_wait()

    def _functions_that_wait(self) -> frozenset[str]:
        """Names of barriers, and of functions in which a thread may come to one."""
        bodies = [*self.macros]
        end = 0
        for position, token in enumerate(self.code):
            if token.text == "(" and position >= end and self.code[position - 1].kind == "word":
                body = self.partners.get(position, len(self.code)) + 1
                while self._at(body) in _BEFORE_BODY:
                    body += 1
                if self._at(body) == "{" and body in self.partners:
                    end = self.partners[body]
                    words = frozenset(token.text for token in self.code[body:end] if token.kind == "word")
                    bodies.append((self.code[position - 1].text, words))
        waiting = _BARRIERS
        for _ in range(_MAX_CALLS_DEEP):
            more = waiting | {name for name, words in bodies if not words.isdisjoint(waiting)}
            if more == waiting:
                break
            waiting = more
        return waiting

    def read(self) -> list[Edit]:
        position = 0
        while position < len(self.code):
            position = self._step(position)
        return self.edits

    def _step(self, position: int) -> int:
        """Look at one token; gives the position of the next one to look at."""
        token = self.code[position].text
        if token == "{":
            self._open(position)
        elif token == "}":
            if self.braces:
                self.braces.pop()
            if not self._in_function():
                self.local, self.placed = {}, {}
            self.statement = position + 1
        elif token == ";":
            self.statement = position + 1
            if not self._in_function():
                self.in_declaration_of_kernel = False
        elif token == "__global__" and not self._in_function():
            self.in_declaration_of_kernel = True
        elif token == "return":
            self._return(position)
        elif token in ("extern", "__shared__"):
            return self._shared(position)
        elif not self._in_function():
            self.outside.add(token)
        elif token in self.arrays or token in self.local:
            self._check_index(position)
        return position + 1

    def _in_function(self) -> bool:
        return bool(self.braces) and self.braces[-1] != "scope"

    def _at(self, position: int) -> str:
        return self.code[position].text if 0 <= position < len(self.code) else ""

    def _open(self, position: int) -> None:
        if len(self.braces) == MAX_BRACES_DEEP:
            line = self.text.place(self.code[position].start)[0]
            raise SourceRefused(f"line {line}: braces within {MAX_BRACES_DEEP} others are not possible")
        if self._in_function():
            start = self._lambda_at(position)
            if start is None:
                self.braces.append("function")
            else:
                self.braces.append("waits" if self._waits(position) else "lambda")
                outer = {**self.arrays, **self.everywhere, **self.local, **self.placed}
                self._bring_arrays(position, start, outer)
        elif self._at(position - 1) in _BEFORE_BODY:
            other = "waits" if self._waits(position) else "function"
            self.braces.append("kernel" if self.in_declaration_of_kernel else other)
            self.in_declaration_of_kernel = False
            self._bring_arrays(position, self.statement, {**self.arrays, **self.everywhere})
        else:
            self.braces.append("scope")
        self.statement = position + 1

    def _lambda_at(self, position: int) -> int | None:
        """Where the lambda begins whose body opens at `position`; None where none does."""
        before = position - 1
        if self._at(before) == "mutable":
            before -= 1
        if self._at(before) == ")":
            before = self.partners.get(before, 0) - 1
        return self.partners.get(before, before) if self._at(before) == "]" else None

    def _body(self, position: int) -> Sequence[Token]:
        return self.code[position : self.partners.get(position, len(self.code))]

    def _waits(self, position: int) -> bool:
        """Whether threads may wait at a barrier in the body that opens at `position`."""
        return any(token.text in self.waiting for token in self._body(position))

    def _named_in(self, position: int) -> set[str]:
        """Words of the body that opens at `position`, and of the macros that it names."""
        used = {token.text for token in self._body(position)}
        waiting = [(name, words) for name, words in self.macros if words]
        while more := [words for name, words in waiting if name in used]:
            waiting = [(name, words) for name, words in waiting if name not in used]
            used.update(*more)
        return used

    def _bring_arrays(self, position: int, start: int, arrays: Mapping[str, str]) -> None:
        """Declare dynamic shared memory in the body that opens at `position`, of what begins at `start`."""
        if not arrays:
            return
        used = self._named_in(position)
        parameters = {token.text for token in self.code[start:position]}
        wanted = [line for name, line in arrays.items() if name in used and name not in parameters]
        at = self.code[position].end
        self.edits.append((at, at, "".join(f" {line};" for line in wanted)))

    def _check_index(self, position: int) -> None:
        """Hold the index of an element of dynamic shared memory to its size."""
        opens, before = position + 1, self.code[position - 1]
        closes = self.partners.get(opens, 0)
        if not self._in_function() or self._at(opens) != "[" or closes <= opens + 1:
            return
        if before.kind == "word" and before.text not in _MAY_PRECEDE_INDEXED:
            return
        if before.text == "." or (self._at(position - 2), before.text) in (("-", ">"), (":", ":")):
            return
        function = "coppermesh::at_most" if before.text == "&" else "coppermesh::within"
        start, end = self.code[opens].end, self.code[closes].start
        self.edits.append((start, start, f"{function}({self.code[position].text}, ("))
        self.edits.append((end, end, "))"))

    def _return(self, position: int) -> None:
        ours = "kernel" in self.braces or "waits" in self.braces
        if self._at(position + 1) != ";" or not ours or self._innermost_body() == "lambda":
            return
        last = self._at(position + 2) == "}" and self.braces[-1] == "kernel"
        if not last:
            self.edits += _returns(self.code[position : position + 2])

    def _innermost_body(self) -> str:
        return next((brace for brace in reversed(self.braces) if brace != "function"), "")

    def _shared(self, position: int) -> int:
        """A declaration that may be of shared memory; gives the position after what was read."""
        if position < self.declared_until:
            return position + 1
        end = position
        while self._at(end) not in ("", ";", "{", "}"):
            end += 1
        words = {token.text for token in self.code[position:end]}
        if "__shared__" in words and "extern" not in words and self._is_initialised(position, end):
            raise _refused(
                self.text, self.code[position], "a __shared__ variable with an initial value", "assign"
            )
        if "__shared__" in words and self._at(end) == "{" and not words.isdisjoint(_STRUCTURES):
            end = self.partners.get(end, end)  # its members
            while self._at(end) not in ("", ";", "{"):
                end += 1
        if "__shared__" not in words or self._at(end) != ";":
            self.declared_until = end
            return position + 1
        if "extern" in words:
            self._dynamic(self.code[position:end], self.code[end])
        elif self.place_arrays and (names := self._array_names(position, end)):
            self._place(position, end, names)
        elif "alignas" in words:
            self._align_first(self.code[position:end])
        return end

    def _array_names(self, position: int, end: int) -> list[int]:
        """Positions of the names in `__shared__ T x[16], y;`; none where there is no array, or anything unusual."""
        before = self.code[self.statement : position]
        if any(token.kind != "word" or token.text in _NO_SPECIFIER for token in before):
            return []
        names, depth, arrays = [], 0, 0
        for place in range(position + 1, end):
            token = self.code[place]
            if depth == 0 and token.text in ("=", "(") and self._at(place - 1) not in _ALIGNING:
                return []
            opens = token.text in ("[", "(", "{", "<")
            after = self._at(place + 1)
            if depth == 0 and token.kind == "word" and after in ("[", ",", ";"):
                names.append(place)
                arrays += after == "["
            depth += opens - (token.text in ("]", ")", "}", ">"))
        kind = {token.text for token in self.code[position + 1 : names[0]]} if names else set()
        return names if depth == 0 and (arrays or not kind <= _NUMBERS) else []

    def _is_initialised(self, position: int, end: int) -> bool:
        """`__shared__ int x = 0;`, which CUDA does not take either."""
        depth = 0
        for token in self.code[position:end]:
            depth += (token.text in ("[", "(", "{", "<")) - (token.text in ("]", ")", "}", ">"))
            if token.text == "=" and depth == 0:
                return True
        return False

    def _place(self, position: int, end: int, names: Sequence[int]) -> None:
        """Put arrays where their bounds are held."""
        for place in range(self.statement, end):
            token = self.code[place]
            if token.text in ("__shared__", "static", "__device__"):
                new = "typedef" if token.text == "__shared__" else ""
                self.edits.append((token.start, token.end, new))
            elif token.text == "alignas" and (closing := self.partners.get(place + 1)):
                self.edits.append((token.start, token.end, "__attribute__((aligned"))
                self.edits.append((self.code[closing].end, self.code[closing].end, "))"))
            elif place in names:
                self.edits.append((token.start, token.end, f"coppermesh_t_{token.text}"))
        text = ""
        for place in names:
            name = self.code[place].text
            kind, number = f"coppermesh_t_{name}", f"coppermesh_n_{name}"
            reference = f'{kind}& {name} = ::coppermesh::shared_array<{kind}>({number}, "{name}")'
            text += f" static unsigned int {number};"
            if self._in_function():
                self.placed[name] = reference
                text += f" {reference};"
            else:
                self.everywhere[name] = reference
        self.edits.append((self.code[end].end, self.code[end].end, text))

    def _align_first(self, declaration: Sequence[Token]) -> None:
        inside = _aligning(declaration, frozenset({"alignas"}))
        words = " ".join(declaration[position].text for position in inside)
        self.edits += [_without(declaration[position]) for position in inside]
        start = self.code[self.statement].start  # before `static` and its like too
        self.edits.append((start, start, f"{words} "))

    def _dynamic(self, declaration: Sequence[Token], end: Token) -> None:
        """`extern __shared__` arrays, several perhaps."""
        aligning = set(_aligning(declaration, _ALIGNING))
        dropped = {
            position
            for position, token in enumerate(declaration)
            if token.text in _DROPPED or position in aligning
        }
        kept = [token for position, token in enumerate(declaration) if position not in dropped]
        names = [token for token, after in pairwise(kept) if token.kind == "word" and after.text == "["]
        if not names or any(token.text in ("=", "(") for token in kept):
            raise _refused(self.text, declaration[0], "extern __shared__ of anything but arrays")
        into = self.local if self._in_function() else self.arrays
        into.update(_declarations(kept, names[0]))
        if len(into) > MAX_DYNAMIC_ARRAYS:
            raise _refused(
                self.text, declaration[0], f"extern __shared__ by more than {MAX_DYNAMIC_ARRAYS} names"
            )
        if not self._in_function():
            self.edits += [_without(token) for token in declaration]
            return
        self.edits += [_without(declaration[position]) for position in dropped]
        for name in names:
            self.edits.append((name.start, name.end, f"(&{name.text})"))
        for comma in [*_commas(kept), end]:
            self.edits.append((comma.start, comma.start, _MEMORY))


def _declarations(kept: Sequence[Token], first_name: Token) -> dict[str, str]:
    """For each name of `T x[], y[][4]` its own declaration."""
    first = kept.index(first_name)
    base = " ".join(token.text for token in kept[:first])
    found: dict[str, str] = {}
    name, sizes = "", ""
    for token in [*kept[first:], Token("other", ",", 0, 0)]:
        if token.text == ",":
            found[name] = f"{base} (&{name}){sizes}{_MEMORY}"
            name, sizes = "", ""
        elif name:
            sizes += token.text
        else:
            name = token.text
    return found


def _aligning(declaration: Sequence[Token], words: Iterable[str]) -> list[int]:
    """Positions of `alignas(...)` and its like."""
    found: list[int] = []
    depth = 0
    open_now = False
    for position, token in enumerate(declaration):
        if depth == 0 and token.text in words:
            open_now = True
        if open_now:
            found.append(position)
            depth += (token.text == "(") - (token.text == ")")
            open_now = depth > 0 or token.text in words
    return found


def _commas(tokens: Sequence[Token]) -> list[Token]:
    """Commas outside of every bracket."""
    depth = 0
    found = []
    for token in tokens:
        depth += (token.text in ("[", "<")) - (token.text in ("]", ">"))
        if token.text == "," and depth == 0:
            found.append(token)
    return found
