"""Loops over the grid, or over a block: `for (int i = INDEX; i < n; i += blockDim.x * gridDim.x) ...`.

Behind declarations alone; the same with `while`, with index and stride declared before, and within one other loop whose
header is the same for all threads of a row. Where nothing outlives a turn and nothing comes after it, the loop becomes
one turn (`if (const int i = turn(); ...)`), and the launcher has the loop. Otherwise the kernel becomes three pieces
(`coppermesh::phase`): the body a lambda, and variables that outlive a turn references into arrays. What may outlive a
turn is in `cuda_turns`.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from coppermesh.exec.cuda_gate import Token
from coppermesh.exec.cuda_guards import METHODS, BodyReader, Plan, split_at
from coppermesh.exec.cuda_indices import INTEGERS
from coppermesh.exec.cuda_turns import are_independent, carried

_LEAVES_TURN = frozenset({"return", "break", "continue", "goto", "static", "co_return", "co_yield", "asm"})
"""What would end more than a turn of a loop, or live longer."""
_MAX_KEPT = 16
"""Declarations of variables that outlive a turn."""


@dataclass(frozen=True)
class _Turn:
    """A loop over the grid as it was written."""

    kind: str
    name: str
    """Type and name of its index."""
    first: str
    test: tuple[int, int]
    header: tuple[int, int]
    body: tuple[int, int]
    stride: str
    stride_words: list[str]
    """Of the statement that adds it."""
    after: int = 0
    """The position after the loop, where it is not that after `body`."""
    within: bool = False
    """Whether it is in another loop."""


class StrideReader(BodyReader):
    """Reads a kernel's body, and a loop over the grid in it."""

    def read(self) -> Plan:
        """As BodyReader's."""
        super().read()
        self._loop()
        return self.plan

    def _loop(self) -> None:
        """A loop over the grid behind declarations alone."""
        if self.plan.conditions:
            return
        if self.words[self.position : self.position + 2] == ["for", "("]:
            if not self._outer(self.position + 1):
                self._for(self.position + 1)
        elif self.words[self.position : self.position + 2] == ["while", "("]:
            self._while(self.position + 1)

    def _outer(self, opening: int) -> bool:
        """`for (int y = EVEN; y < h; y += EVEN) for (int x = INDEX; ...) ...`, in braces or not."""
        closing = self._closing(opening)
        clauses = split_at(self.words, opening + 1, closing, ";")
        inner = closing + 1
        end = self._closing(inner) if self._word(inner) == "{" else self.end
        inner += self._word(inner) == "{"
        if len(clauses) != 3 or self.words[inner : inner + 2] != ["for", "("] or self.known.others:
            return False
        (begin, after), test, step = clauses
        name = begin
        while self._word(name) in INTEGERS:
            name += 1
        kind, variable = self._text(begin, name), self.words[name]
        even_start = name > begin and self._word(name + 1) == "=" and self._is_even(name + 2, after)
        tested = self.words[test[0] : test[0] + 2] == [variable, "<"] and self._is_even(test[0] + 2, test[1])
        ends = self._loop_end(self._closing(inner + 1) + 1)
        stride = self._stride(*step, variable)
        if not even_start or not tested or stride is None or "const" in kind:
            return False
        if ends is None or any(word not in ("}", "return", ";") for word in self.words[ends : self.end]):
            return False
        if self.words[ends:end] or variable in self.source.macros.words:
            return False
        self.known.even.add(variable)
        self._for(inner + 1, within=True)
        self.known.even.discard(variable)
        if not self.plan.loop:
            return False
        self.plan.outer = f"for ({self._text(opening + 1, closing)})"
        self.plan.outer_variable = variable
        self.plan.outer_parts = (
            f"({kind})({self._text(name + 2, after)})", self._text(test[0] + 2, test[1]), stride
        )  # fmt: skip
        first, last = self.code[opening - 1].start, self.code[closing].end
        text = f"if (const {kind} {variable} = ::coppermesh::outer_turn(); true){self._newlines(first, last)}"
        self.plan.edits.append((first, last, text))
        return True

    def _for(self, opening: int, *, within: bool = False) -> None:
        closing = self._closing(opening)
        clauses = split_at(self.words, opening + 1, closing, ";")
        after = self._loop_end(closing + 1)
        if len(clauses) != 3 or after is None:
            return
        (begin, end), test, (step, after_step) = clauses
        name = self.words[test[0]]
        declared = self._declared(name) if begin == end else self._first_index(begin, end)
        if declared is None:
            return
        stride = self._stride(step, after_step, declared[1])
        if stride is None:
            return
        header, body = (opening - 1, closing + 1), (closing + 1, after)
        turn = _Turn(
            *declared,
            self._text(begin, end),
            test,
            header,
            body,
            stride,
            self.words[step:after_step],
            within=within,
        )
        if begin == end and name in self.words[after : self.end]:
            return  # what comes after the loop sees where its index got to
        self._turn(turn)

    def _loop_end(self, position: int) -> int | None:
        """The position after a loop's body that begins here."""
        if self._word(position) == "{":
            return self._closing(position) + 1
        after, depth = position, 0
        while after < self.end and (depth or self.words[after] != ";"):
            depth += (self.words[after] in ("(", "{")) - (self.words[after] in (")", "}"))
            after += 1
        return None if self._word(after + 1) == "else" else after + 1

    def _declared(self, name: str) -> tuple[str, str] | None:
        """Type and name of an index that was declared before the loop, which counts it up."""
        if self.known.x.get(name) != 0 or self.known.declared[name][0].startswith("const "):
            return None
        return self.known.declared[name][0].partition(f" {name} =")[0], name

    def _first_index(self, begin: int, end: int) -> tuple[str, str] | None:
        """Type and name of `int i = INDEX`, or of `int i = index` with an index declared before."""
        name = begin
        while self._word(name) in INTEGERS | {"auto"}:
            name += 1
        if name == begin or self._word(name + 1) != "=" or "const" in self.words[begin:name]:
            return None
        value = (name + 2, end)
        if self._named_x(*value) != 0:
            return None
        return self._text(begin, name), self.words[name]

    def _while(self, opening: int) -> None:
        """`while (i < n) { ...; i += stride; }`."""
        closing = self._closing(opening)
        body = closing + 1
        if self._word(body) != "{":
            return
        end = self._closing(body)
        step = max((p for p in range(body, end - 1) if self.words[p] in (";", "{", "}")), default=body)
        declared = self._declared(self.words[opening + 1])
        stride = self._stride(step + 1, end - 1, declared[1]) if declared else None
        if self.words[end - 1] != ";" or declared is None or stride is None:
            return
        if declared[1] in self.words[end + 1 : self.end]:
            return
        test, header = (opening + 1, closing), (opening - 1, closing + 1)
        step_words = self.words[step + 1 : end - 1]
        turn = _Turn(*declared, "", test, header, (body, step + 1), stride, step_words, end + 1)
        if self._turn(turn):
            self.plan.edits.append((self.code[step + 1].start, self.code[end - 1].end, " "))

    def _stride(self, begin: int, end: int, name: str) -> str | None:
        """The stride of `i += stride` or `i = i + stride`: one number for all threads, at which the launcher looks."""
        words = self.words[begin:end]
        if words[:3] == [name, "+", "="]:
            begin += 3
        elif words[:4] == [name, "=", name, "+"]:
            begin += 4
        else:
            return None
        return self._text(begin, end) if self._is_even(begin, end) else None

    def _turn(self, turn: "_Turn") -> bool:
        """Make the loop one turn of it, where all that outlives a turn is known."""
        begin, end = turn.test
        body = turn.body
        after = turn.after or body[1]
        inside = {token.text for token in self.code[body[0] : body[1]] if token.kind == "word"}
        outer = (set(self.known.x) | self.parts) - {turn.name}
        operator, limit = self.words[begin + 1], begin + 2
        if self._word(limit) == "=":
            operator, limit = operator + "=", limit + 1
        if self.words[begin] != turn.name or operator not in ("<", "<="):
            return False
        if inside & (outer | _LEAVES_TURN) or "auto" in turn.kind or not self._is_even(limit, end):
            return False
        if self.source.macros.words & (outer | _LEAVES_TURN | {turn.name}):
            return False
        changed = carried(self.code, body[0], body[1])
        locals_ = {name for _, _, names in self.known.statements for name in names}
        if changed is None or changed & (self.known.even - locals_ | {turn.name}):
            return False
        macros = self._macros_in(body)
        if self._changed_by(macros) or changed & set(self.words[begin:end] + turn.stride_words):
            return False
        ends_here = turn.within or all(word in ("return", ";") for word in self.words[after : self.end])
        kept = not ends_here or bool(self.known.others) or bool(changed & locals_)
        if kept and (turn.within or not self._keep(self.known.others | changed)):
            return False
        for other in self.known.x:
            self.plan.declarations += self.known.declared[other]
        self.plan.conditions.append(f"coppermesh_row.{METHODS[operator]}({self._text(limit, end)}, 0);")
        self.plan.variable, self.plan.stride, self.plan.kept = turn.name, turn.stride, kept
        self.plan.turn = body
        self.plan.loop = f"for ({turn.first}; {self._text(begin, end)}; {turn.name} += {turn.stride})"
        self.plan.independent = (
            not kept
            and not turn.within
            and self.stateless
            and not any(token.text in self.known.even for macro in macros for token in macro)
            and are_independent(self.code, self.parameters, body, turn.name, frozenset(self.types))
        )
        first, last = self.code[turn.header[0]].start, self.code[turn.header[1] - 1].end
        newlines = self._newlines(first, last)
        condition = self._text(begin, end)
        # The index is const, so that a body which changes it does not compile, and is built as it was written.
        index = f"{'' if turn.kind.startswith('const ') else 'const '}{turn.kind} {turn.name}"
        if not kept:
            text = f"if ({index} = ::coppermesh::turn(); ::coppermesh::whole || {condition}){newlines}"
            self.plan.edits.append((first, last, text))
            return True
        text = f"auto coppermesh_turn = [&]({index}) __attribute__((always_inline)) {{{newlines}"
        self.plan.edits.append((first, last, text))
        place = self.code[after - 1].end
        phase = "::coppermesh::phase"
        text = (
            f" }}; if ({phase} == ::coppermesh::WHOLE) {{ {self.plan.loop} coppermesh_turn({turn.name}); }}"
            f" else if ({phase} == ::coppermesh::TURN) coppermesh_turn(({turn.kind})::coppermesh::turn());"
            f" if ({phase} == ::coppermesh::BEFORE || {phase} == ::coppermesh::TURN) return;"
        )
        self.plan.edits.append((place, place, text))
        return True

    def _newlines(self, first: int, last: int) -> str:
        """Those between two offsets, which must stay."""
        ends = bisect_left(self.source.newlines, first), bisect_left(self.source.newlines, last)
        return "".join("\n" for _ in self.source.newlines[slice(*ends)])

    def _macros_in(self, body: tuple[int, int]) -> list[Sequence[Token]]:
        """What stands for the macros that the loop uses, and for those in them."""
        used = set(self.words[slice(*body)])
        waiting = list(self.source.macros.bodies)
        found: list[Sequence[Token]] = []
        while more := [replacement for name, replacement in waiting if name in used]:
            waiting = [(name, replacement) for name, replacement in waiting if name not in used]
            found += more
            used |= {token.text for replacement in more for token in replacement}
        return found

    def _changed_by(self, macros: Sequence[Sequence[Token]]) -> bool:
        """Whether one of these could change a variable from outside of the loop."""
        end = [Token("other", ";", 0, 0)] * 4
        for replacement in macros:
            changed = carried([*end, *replacement, *end], 4, 4 + len(replacement))
            if changed is None or changed & (self.known.even | self.known.others):
                return True
        return False

    def _keep(self, names: set[str]) -> bool:
        """Put variables that outlive a turn where each of the threads that go together has its own."""
        edits = []
        for start, end, declared in self.known.statements:
            if not declared & names:
                continue
            if declared & set(self.known.x):
                return False
            base = start
            while self.words[base] in self.types:
                base += 1
            kind = " ".join(word for word in self.words[start:base] if word != "const")
            if "auto" in kind or not kind:
                return False
            text = ""
            for begin, stop in split_at(self.words, base, end, ","):
                name = self.words[begin]
                if self.code[begin].kind != "word" or (stop != begin + 1 and self.words[begin + 1] != "="):
                    return False
                text += (
                    f"static thread_local {kind} coppermesh_kept_{name}[::coppermesh::LANES];"
                    f" {kind}& {name} = coppermesh_kept_{name}[::coppermesh::lane]; "
                )
                if stop > begin + 1:
                    text += f"if (::coppermesh::phase <= ::coppermesh::BEFORE) {self._text(begin, stop)}; "
            first, last = self.code[start].start, self.code[end].end
            edits.append((first, last, text + self._newlines(first, last)))
        if len(edits) > _MAX_KEPT:
            return False
        self.plan.edits += edits
        return True
