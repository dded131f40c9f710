"""Kernels without barriers as loops that a compiler makes fast code of: the source is changed, token by token.

The launcher (coppermesh_launch.h) runs the threads of a row of blocks in one long loop, if the kernel's indices along x
are one number; it leaves the checks of a kernel out of that loop, if somebody says for which indices they hold; and it
turns loops over the grid round. This module finds out (`cuda_indices`, `cuda_guards`, `cuda_macros`) and says it:
with calls round indices, `coppermesh::whole` in checks, one turn instead of a loop, and before each such kernel a
structure with what the launcher asks. Lines stay. A kernel in any other form stays as it is, and so does the whole
source where its macros could make tokens mean something else, or where threads may wait for memory that others write:
that works only in the order of blocks.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from coppermesh.exec.cuda_gate import Token, spliced_tokens
from coppermesh.exec.cuda_guards import ALONG_X, IN_BLOCK, LINEAR, BodyReader, Edit, Kind, Plan, Source
from coppermesh.exec.cuda_indices import (
    INTEGERS,
    Indices,
    find_indices,
    find_indices_of_kernel,
    functions_of_index,
    indices_in_block,
    is_in_call,
    joined,
)
from coppermesh.exec.cuda_macros import expand_loops, is_conditional, read_macros, split_directives
from coppermesh.exec.cuda_modules import has_state
from coppermesh.exec.cuda_numbers import Numbers, find_numbers
from coppermesh.exec.cuda_rows import are_convex
from coppermesh.exec.cuda_strides import StrideReader
from coppermesh.exec.cuda_subscripts import SubscriptReader

_RELIED_ON = INTEGERS | frozenset(
    {
        "if", "else", "for", "while", "return", "auto", "float", "double", "char", "short", "bool", "struct", "static",
        "template", "typename", "class", "constexpr", "true", "static_cast", "void", "extern", "__global__",
        "threadIdx", "blockIdx", "blockDim", "gridDim", "x", "y", "z", "__mul24", "__umul24", "coppermesh",
        "coppermesh_row", "index_or", "turn", "whole", "Range", "range", "never", "only", "below", "at_least", "up_to",
        "beyond", "fits", "each", "UnknownLoop", "flat", "strided",
        "linear", "number", "convex", "blockwise",
        "kept", "apart", "independent", "stride", "phase", "lane", "LANES", "nested",
        "outer_first", "outer_end", "outer_step", "outer_index", "outer_turn", "sum_below", "atomic",
        "thread_local",
        "decided", "is_int", "wide", "decltype", "value",
    }
)  # fmt: skip
"""Words that must mean what they mean."""
_WAITS = re.compile(
    r"volatile|__threadfence\w*|__ldcv|__nanosleep|atomicCAS\w*|atomicExch\w*|atomic_\w+|__atomic\w*|__sync\w*|asm|__asm__"
)
"""Words of sources whose threads may wait for each other without a barrier."""
_NAMED = re.compile(r"(?:::)?(\w+)(<.*>)?")


@dataclass
class _Kernel:
    """A kernel's definition outside of every brace but those of `extern "C"`: positions among the code's tokens."""

    name: str
    begin: int
    parameters: tuple[int, int]
    body: int
    end: int
    template: tuple[int, int] | None
    """The template's parameters, without the angle brackets."""


def rewrite_loops(
    source: str, names: Sequence[str], options: Mapping[str, str]
) -> tuple[str, tuple[str, ...]]:
    """The source for the launcher's loops, and a line for each of the kernels `names` (or templates' instances).

    `options` are the macros of the command line. The lines are for behind the source. Without any, it is unchanged.
    """
    text, tokens = spliced_tokens(source)
    code, directives = split_directives(tokens)
    macros = read_macros(directives, options)
    if macros.pastes or macros.names & _RELIED_ON or _redefines_types(code) or _waits(tokens):
        return source, ()
    code = expand_loops(code, macros)
    newlines = [token.start for token in tokens if token.kind == "newline"]
    whole = Source(code, [token.text for token in code], macros, newlines)
    stateless = not has_state(source, constants=False)
    edits, lines = _Rewriter(whole, directives, stateless=stateless).rewrite(names)
    return (text.restored(edits), tuple(lines)) if lines else (source, ())


def _waits(tokens: Sequence[Token]) -> bool:
    """Whether a thread could wait for what another writes: by these words, or with an atomic function in a loop."""
    in_test = depth = 0
    for before, token in pairwise(tokens):
        if token.kind == "word" and _WAITS.fullmatch(token.text):
            return True
        if token.text == "(":
            depth += 1
            if before.text in ("while", "for") and not in_test:
                in_test = depth
        elif token.text == ")":
            in_test = 0 if in_test == depth else in_test
            depth -= 1
        elif in_test and token.text.startswith("atomic"):
            return True
    return False


def _redefines_types(code: Sequence[Token]) -> bool:
    """Whether a name of `INTEGERS` could be another type here than elsewhere."""
    words = [token.text for token in code]
    for position, word in enumerate(words):
        if word == "using" and set(words[position + 1 : position + 2]) & INTEGERS:
            return True
        if word == "typedef":
            far = min(len(words), position + 64)
            end = next((p for p in range(position, far) if words[p] == ";"), far)
            if words[end - 1] in INTEGERS and not set(words[position + 1 : end]) <= INTEGERS:
                return True
    return False


class _Rewriter:
    """One source."""

    def __init__(self, source: Source, directives: Sequence[Sequence[Token]], *, stateless: bool) -> None:
        self.stateless = stateless
        self.source, self.code, self.words = source, source.code, source.words
        self.macros, self.directives = source.macros, directives
        self.numbers = frozenset(self.macros.numbers)
        # `assert` tells its text when it fails: nothing is changed in it.
        self.calls = frozenset(self.macros.calls - set(self.macros.loops) | {"assert"})
        self.edits: list[Edit] = []

    def rewrite(self, names: Sequence[str]) -> tuple[list[Edit], list[str]]:
        """All edits, and what goes behind the source."""
        instances = _instances(names)
        kernels = _kernels(self.code)
        defined = Counter(kernel.name for kernel in kernels)
        odd, lengths = self._outside(kernels)
        lines = []
        for kernel in kernels:
            wanted = instances.get(kernel.name, []) if defined[kernel.name] == 1 else []
            wanted = [name for name in wanted if bool(kernel.template) == ("<" in name)]
            if wanted and self._rewrite_kernel(kernel, odd, lengths):
                structure = f"coppermesh_loop_{kernel.name}"
                for name in wanted:
                    arguments = name[len(kernel.name) :]
                    lines.append(f"COPPERMESH_LOOP({name}) : {structure}{arguments} {{}};\n")
        return _outermost(self.edits), lines

    def _outside(self, kernels: Sequence[_Kernel]) -> tuple[bool, set[str]]:
        """Indices in device functions and macros: whether there are odd ones, and the blocks' lengths in the others."""
        found: list[tuple[int, int, str]] = []
        odd, begin = False, 0
        for kernel in [*kernels, None]:
            end = kernel.begin if kernel else len(self.code)
            indices = find_indices(self.words, self.numbers, begin, end, self.calls)
            odd = odd or bool(indices.odd)
            found += indices.found
            begin = kernel.end + 1 if kernel else end
        self._wrap(self.code, found)
        self.source.aliases = dict.fromkeys(functions_of_index(self.words, found), True)
        lengths = {length for _, _, length in found}
        for name, body in self.macros.bodies:
            words = [token.text for token in body]
            indices = find_indices(words, self.numbers, 0, len(body), self.calls)
            odd = odd or bool(indices.odd)
            lengths |= {length for _, _, length in indices.found}
            self._wrap(body, indices.found)
            whole = [(1, len(body) - 1)] == [(first, last) for first, last, _ in indices.found]
            if whole and name not in self.macros.calls:
                self.source.aliases[name] = False
        return odd, lengths

    def _wrap(self, tokens: Sequence[Token], found: Sequence[tuple[int, int, str]]) -> None:
        for begin, end, _ in found:
            first, last = tokens[begin], tokens[end - 1]
            if first.start < last.start:  # not in a macro's place
                self.edits.append((first.start, first.start, " ::coppermesh::index_or("))
                self.edits.append((last.end, last.end, ")"))

    def _rewrite_kernel(self, kernel: _Kernel, odd: bool, lengths: set[str]) -> bool:
        template = _template_names(self.code, kernel)
        if template is None or set(self.words[kernel.begin : kernel.body]) & (
            self.macros.names - {"__launch_bounds__"} - self.macros.numbers
        ):
            return False
        numbers, types = template
        even = self._parameters(kernel) | self.numbers | numbers
        reading = self._reading(kernel, odd, even, numbers, types)
        if reading is None:
            return False
        self._wrap(self.code, reading.indices.found)
        self.edits += reading.plan.edits
        if reading.kind:
            body = kernel.body, kernel.end
            edits = SubscriptReader(self.code, self.words, *body, self.macros).read()
            starts = {token.start: place for place, token in enumerate(self.code)}
            self.edits += [
                edit for edit in edits if not is_in_call(self.words, starts[edit[0]], frozenset({"assert"}))
            ]
        lengths = lengths | {length for _, _, length in reading.indices.found}
        fits = [f"blockDim.x == ({length})" for length in sorted(lengths - {"blockDim.x"})]
        start = self.code[kernel.begin].start
        self.edits.append((start, start, self._structure(kernel, reading, fits)))
        return True

    def _reading(
        self, kernel: _Kernel, odd: bool, even: set[str], numbers: frozenset[str], types: frozenset[str]
    ) -> "_Reading | None":
        """What there is to be done with a kernel: its indices are along x, or those of its launch, or of its block."""
        words, body = self.words, (kernel.body, kernel.end)
        indices = find_indices_of_kernel(words, self.numbers | numbers, *body, self.calls)
        single = self._blocks_of_one(indices)
        span = range(self.code[kernel.begin].start, self.code[kernel.end].end)
        inside = [directive for directive in self.directives if directive[0].start in span]
        plain = not any(is_conditional(directive) for directive in inside)

        def plan(kind: Kind, found: Indices, *, loops: bool, parts: frozenset[str] = frozenset()) -> Plan:
            if not plain:
                return Plan()
            reader = (StrideReader if loops else BodyReader)(
                self.source, *body, found, set(even), kind=kind, types=types, parameters=kernel.parameters,
                stateless=self.stateless, parts=parts,
            )  # fmt: skip
            return reader.read()

        if not odd and not indices.odd:
            return _Reading("flat", indices, plan(ALONG_X, indices, loops=not single))
        if not odd and plain:
            # What comes before and after the loop is called with all indices as they are.
            loop = plan(ALONG_X, indices, loops=True)
            if loop.kept and not any(place in range(*loop.turn) for place in indices.odd):
                return _Reading("flat", indices, loop, apart=True)
            in_block = indices_in_block(words, *body, self.calls)
            if not in_block.odd and (loop := plan(IN_BLOCK, in_block, loops=True)).loop:
                return _Reading("blockwise", in_block, loop)
            found = find_numbers(self.code, words, body, even, self.calls)
            if found is not None:
                linear = plan(LINEAR, found.indices, loops=True, parts=frozenset(found.parts))
                return _Reading("linear", found.indices, linear, found)
        along_x = plan(ALONG_X, indices, loops=False)
        return _Reading("", indices, along_x) if along_x.conditions else None

    def _blocks_of_one(self, indices: Indices) -> bool:
        """Take `blockIdx.x` for the index where there is no other: it is one in blocks of one thread."""
        if indices.found or not indices.odd:
            return False
        if any(self.words[p : p + 3] != ["blockIdx", ".", "x"] for p in indices.odd):
            return False
        indices.found = [(p, p + 3, "1") for p in indices.odd]
        indices.odd = []
        return True

    def _parameters(self, kernel: _Kernel) -> set[str]:
        tokens = self.code[kernel.parameters[0] : kernel.parameters[1] + 1]
        return {
            first.text
            for first, after in pairwise(tokens)
            if after.text in (",", ")") and first.kind == "word"
        } - self.macros.names

    def _structure(self, kernel: _Kernel, reading: "_Reading", fits: Sequence[str]) -> str:
        """What the launcher asks about the kernel, on one line."""
        plan, found = reading.plan, reading.numbers
        parameters = joined(self.code[slice(*kernel.parameters)])
        declarations = " ".join(plan.declarations)
        text = f"struct coppermesh_loop_{kernel.name} : ::coppermesh::UnknownLoop {{ "
        if kernel.template:
            words = joined(self.code[slice(*kernel.template)])
            text = f"template < {words} > {text}"
        if found is not None:
            cases = " ".join(f"case {at}: return (long long)({text});" for at, text in enumerate(found.texts))
            between = ", " if parameters else ""
            text += (
                f"static constexpr int linear = {len(found.texts)}; "
                f"static long long number(int coppermesh_which{between}{parameters}) "
                f"{{ {' '.join(found.declarations)} switch (coppermesh_which) {{ {cases} }} return -1; }} "
            )
        elif reading.kind:
            text += f"static constexpr bool {reading.kind} = true; "
        if any(word.startswith("atomic") for word in self.words):
            text += "static constexpr bool atomic = true; "
        if fits:
            text += f"static bool fits() {{ return {' && '.join(fits)}; }} "
        if plan.conditions:
            text += (
                "static constexpr bool guarded = true; "
                f"static ::coppermesh::Range range({parameters}) {{ ::coppermesh::Range coppermesh_row;"
                f" {declarations} {' '.join(plan.conditions)} return coppermesh_row; }} "
            )
            if are_convex(plan.conditions, plan.declarations, self._parameters(kernel)):
                text += "static constexpr bool convex = true; "
        if plan.loop:
            between = ", " if parameters else ""
            text += (
                "static constexpr bool strided = true; "
                f"static long long stride({parameters}) {{ {declarations} return (long long)({plan.stride}); }} "
            )
            text += "static constexpr bool kept = true; " if plan.kept else ""
            text += "static constexpr bool apart = true; " if reading.apart else ""
            text += "static constexpr bool independent = true; " if plan.independent else ""
            call = "void (*coppermesh_call)(void*, long long), void* coppermesh_data"
            outer, set_outer = plan.outer, ""
            if outer:
                set_outer = f"::coppermesh::outer_index = (long long){plan.outer_variable},"
                text += "static constexpr bool nested = true; "
                for name, value in zip(("first", "end", "step"), plan.outer_parts, strict=True):
                    text += (
                        f"static long long outer_{name}({parameters}) "
                        f"{{ {declarations} return (long long)({value}); }} "
                    )
            text += (
                f"static void each({call}{between}{parameters}) {{ {declarations} {outer} {plan.loop} {set_outer}"
                f" coppermesh_call(coppermesh_data, (long long){plan.variable}); }} "
            )
        return text + "}; "


@dataclass
class _Reading:
    """What was found out about a kernel."""

    kind: str
    """What the launcher's number of a thread counts: `flat`, `blockwise`, `linear`; empty where nothing does."""
    indices: Indices
    plan: Plan
    numbers: Numbers | None = None
    apart: bool = False
    """Whether other indices are used, but none in a loop over the grid."""


def _outermost(edits: Sequence[Edit]) -> list[Edit]:
    """The edits without those that lie in what others replace."""
    kept: list[Edit] = []
    until = -1
    for edit in sorted(edits, key=lambda e: (e[0], -e[1])):
        if edit[1] > until or edit[0] == edit[1] == until:
            kept.append(edit)
            until = max(until, edit[1] if edit[0] < edit[1] else -1)
    return kept


def _instances(names: Sequence[str]) -> dict[str, list[str]]:
    """Kernels' plain names, and which instances of each are wanted."""
    found: dict[str, list[str]] = {}
    for name in names:
        match = _NAMED.fullmatch(name)
        plain = name.removeprefix("::")
        if match and plain not in found.setdefault(match[1], []):
            found[match[1]].append(plain)
    return found


def _kernels(code: Sequence[Token]) -> list[_Kernel]:
    """Kernels defined outside of every brace but `extern "C" {`."""
    found = []
    depth = begin = transparent = position = 0
    while position < len(code):
        word = code[position].text
        if word == "{" and depth == 0:
            if [token.text for token in code[begin:position]] == ["extern", '"C"']:
                transparent += 1
                begin = position + 1
            else:
                end = _closing(code, position)
                kernel = _read_kernel(code, begin, position, end)
                found += [kernel] if kernel else []
                position, begin = end, end + 1
        elif word in (";", "}"):
            begin = position + 1
        position += 1
    return found


def _closing(code: Sequence[Token], opening: int) -> int:
    depth = 0
    for position in range(opening, len(code)):
        depth += (code[position].text == "{") - (code[position].text == "}")
        if depth == 0:
            return position
    return len(code) - 1


def _read_kernel(code: Sequence[Token], begin: int, body: int, end: int) -> _Kernel | None:
    """The kernel whose body opens at `body`: the name stands before the last parentheses."""
    words = [token.text for token in code[begin:body]]
    if "__global__" not in words or code[body - 1].text != ")":
        return None
    depth, position = 1, body - 1
    while depth and position > begin:
        position -= 1
        depth += (code[position].text == ")") - (code[position].text == "(")
    name = code[position - 1]
    if name.kind != "word":
        return None
    template = None
    if "template" in words:
        if words[:2] != ["template", "<"] or words.count("template") > 1:
            return None
        last = begin + 1
        while last < position and code[last].text != ">":
            last += 1
        template = (begin + 2, last)
    return _Kernel(name.text, begin, (position + 1, body - 1), body, end, template)


def _template_names(code: Sequence[Token], kernel: _Kernel) -> tuple[frozenset[str], frozenset[str]] | None:
    """Names of a template's integers and of its types; None where it has any other parameters."""
    if kernel.template is None:
        return frozenset(), frozenset()
    names, types = set(), set()
    parameters: list[list[Token]] = [[]]
    for token in code[slice(*kernel.template)]:
        if token.text == ",":
            parameters.append([])
        else:
            parameters[-1].append(token)
    for parameter in parameters:
        words = [token.text for token in parameter]
        if len(words) < 2 or "=" in words or "<" in words:
            return None
        if set(words[:-1]) <= INTEGERS:
            names.add(words[-1])
        elif words[0] not in ("typename", "class", "bool") or len(words) != 2:
            return None
        elif words[0] != "bool":
            types.add(words[-1])
    return frozenset(names), frozenset(types)
