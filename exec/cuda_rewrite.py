"""The few things about CUDA source that no header can make C++: rewritten before compiling, token by token.

Only for modules whose threads wait for each other (`uses_fibers`). What is changed:

- `extern __shared__ T x[];` becomes `T (&x)[] = coppermesh::DynamicShared();`. At file scope it becomes that line at
  the beginning of each function that names `x`, because the memory is another one for each running block.
- `return;` inside a kernel's own body becomes `return coppermesh::leave();`, except as its last statement. A thread
  that leaves so is not waited for at later barriers, as on a GPU since Volta; one that comes to the kernel's end while
  others wait at a barrier has taken another way, and that is an error.
- `__shared__ alignas(16) T x` becomes `alignas(16) __shared__ T x`.

Theory. The tokens are the gate's own, so this sees what the compiler will see (`cuda_gate`). Every change puts
well-formed tokens in the place of others and never adds or removes a line, so the compiler's messages have the user's
lines. Macros are not expanded: in a `#define`, `return;` is changed wherever it will stand (which can hide a skipped
barrier and breaks nothing), and `extern __shared__` is refused.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from coppermesh.exec.cuda_gate import SourceRefused, SplicedText, Token, scan, spliced_tokens

FIBER_FEATURES = frozenset({"cuda-shared-memory", "cuda-barriers", "cuda-warps", "cuda-groups"})
"""Features (`cuda_features`) of modules whose threads wait for each other."""

_LEAVE = " coppermesh::leave()"
_MEMORY = " = coppermesh::DynamicShared()"
_ALIGNING = frozenset({"__align__", "__builtin_align__", "alignas", "__attribute__"})
_DROPPED = frozenset({"extern", "__shared__", "__device__"})
_BEFORE_BODY = frozenset({")", "const", "noexcept", "override", "final"})


def uses_fibers(source: str, options: Sequence[str]) -> bool:
    """Whether threads of this module may wait for each other, or share memory."""
    return any(
        finding.feature is not None and finding.feature.code in FIBER_FEATURES
        for finding in scan([source], options)
    )


def rewrite(source: str) -> str:
    """The source as the compiler gets it. Raises SourceRefused for shared memory declared in an unknown way."""
    text, tokens = spliced_tokens(source)
    code, macros = _split(tokens)
    for position, token in enumerate(macros):
        following = {other.text for other in macros[position + 1 : position + 4]}
        if token.text == "extern" and "__shared__" in following:
            raise _refused(text, token, "extern __shared__ in a macro")
    edits = _returns(macros)
    edits += _Reader(text, code).read()
    return text.restored(edits)


Edit = tuple[int, int, str]
"""Offsets in the spliced text, and what stands there instead."""


def _refused(text: SplicedText, token: Token, what: str) -> SourceRefused:
    line = text.place(token.start)[0]
    return SourceRefused(
        f"line {line}: {what} is not possible on a CPU device; declare it as extern __shared__ T x[]"
    )


def _split(tokens: Sequence[Token]) -> tuple[list[Token], list[Token]]:
    """Tokens of the code, and those of directives."""
    code: list[Token] = []
    macros: list[Token] = []
    at_start, directive = True, False
    for token in tokens:
        if token.kind == "newline":
            directive = False
        else:
            directive = directive or (at_start and token.text in ("#", "%:"))
            (macros if directive else code).append(token)
        at_start = token.kind == "newline"
    return code, macros


def _returns(tokens: Sequence[Token]) -> list[Edit]:
    return [
        (token.end, token.end, _LEAVE)
        for token, following in pairwise(tokens)
        if token.text == "return" and following.text == ";"
    ]


def _without(token: Token) -> Edit:
    return (token.start, token.end, "")


@dataclass
class _Array:
    """Dynamic shared memory declared at file scope."""

    name: str
    declaration: str


@dataclass
class _Reader:
    """Goes through the code once, knowing which braces it is in."""

    text: SplicedText
    code: Sequence[Token]
    edits: list[Edit] = field(default_factory=list)
    arrays: list[_Array] = field(default_factory=list)
    braces: list[str] = field(default_factory=list)
    """Of each open brace: `scope`, `function`, `kernel` (a kernel's body), `lambda`."""
    in_declaration_of_kernel: bool = False
    statement: int = 0
    """Where the statement or declaration began."""

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
        return position + 1

    def _in_function(self) -> bool:
        return bool(self.braces) and self.braces[-1] != "scope"

    def _at(self, position: int) -> str:
        return self.code[position].text if 0 <= position < len(self.code) else ""

    def _open(self, position: int) -> None:
        if self._in_function():
            self.braces.append("lambda" if self._opens_lambda(position) else "function")
        elif self._at(position - 1) in _BEFORE_BODY:
            self.braces.append("kernel" if self.in_declaration_of_kernel else "function")
            self.in_declaration_of_kernel = False
            self._bring_arrays(position)
        else:
            self.braces.append("scope")
        self.statement = position + 1

    def _opens_lambda(self, position: int) -> bool:
        if self._at(position - 1) == "]":
            return True
        opening = self._matching(position - 1) if self._at(position - 1) == ")" else 0
        return self._at(opening - 1) == "]"

    def _matching(self, closing: int) -> int:
        """The position of the parenthesis that `closing` closes."""
        depth = 0
        for position in range(closing, max(-1, closing - 2000), -1):
            depth += (self._at(position) == ")") - (self._at(position) == "(")
            if depth == 0:
                return position
        return 0

    def _bring_arrays(self, position: int) -> None:
        """Declare the file's dynamic shared memory in the function whose body opens at `position`."""
        if not self.arrays:
            return
        end, depth = position, 0
        while end < len(self.code):
            depth += (self._at(end) == "{") - (self._at(end) == "}")
            end += 1
            if depth == 0:
                break
        used = {token.text for token in self.code[position:end]}
        parameters = {token.text for token in self.code[self.statement : position]}
        wanted = [a for a in self.arrays if a.name in used and a.name not in parameters]
        at = self.code[position].end
        self.edits.append((at, at, "".join(f" {array.declaration};" for array in wanted)))

    def _return(self, position: int) -> None:
        if self._at(position + 1) != ";" or "kernel" not in self.braces or "lambda" in self.braces:
            return
        last = self._at(position + 2) == "}" and self.braces[-1] == "kernel"
        if not last:
            self.edits += _returns(self.code[position : position + 2])

    def _shared(self, position: int) -> int:
        """A declaration that may be of shared memory; gives the position after what was read."""
        end = position
        while self._at(end) not in ("", ";", "{", "}"):
            end += 1
        words = [token.text for token in self.code[position:end]]
        if "__shared__" not in words or self._at(end) != ";":
            return position + 1
        if "extern" in words:
            self._dynamic(self.code[position:end], self.code[end])
        elif "alignas" in words:
            self._align_first(self.code[position:end])
        return end

    def _align_first(self, declaration: Sequence[Token]) -> None:
        inside = _aligning(declaration, frozenset({"alignas"}))
        words = " ".join(declaration[position].text for position in inside)
        self.edits += [_without(declaration[position]) for position in inside]
        start = self.code[self.statement].start  # before `static` and its like too
        self.edits.append((start, start, f"{words} "))

    def _dynamic(self, declaration: Sequence[Token], end: Token) -> None:
        """`extern __shared__` arrays, several perhaps."""
        aligning = set(_aligning(declaration, _ALIGNING))
        kept = [
            token
            for position, token in enumerate(declaration)
            if token.text not in _DROPPED and position not in aligning
        ]
        names = [token for token, after in pairwise(kept) if token.kind == "word" and after.text == "["]
        if not names or any(token.text in ("=", "(") for token in kept):
            raise _refused(self.text, declaration[0], "extern __shared__ of anything but arrays")
        if not self._in_function():
            self._keep_for_functions(kept, names)
            self.edits += [_without(token) for token in declaration]
            return
        self.edits += [_without(token) for token in declaration if token not in kept]
        for name in names:
            self.edits.append((name.start, name.end, f"(&{name.text})"))
        for comma in [*_commas(kept), end]:
            self.edits.append((comma.start, comma.start, _MEMORY))

    def _keep_for_functions(self, kept: Sequence[Token], names: Sequence[Token]) -> None:
        first = kept.index(names[0])
        base = " ".join(token.text for token in kept[:first])
        for name in names:
            start = kept.index(name) + 1
            sizes = []
            for token in kept[start:]:
                if token.text == ",":
                    break
                sizes.append(token.text)
            self.arrays.append(_Array(name.text, f"{base} (&{name.text}){''.join(sizes)}{_MEMORY}"))


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
