"""What CUDA source may reach a compiler, on either side and for either kind of device: checked by name and line.

Two purposes. Features that a device's runtime does not have (textures, cub, ...) are refused with their name and
line, instead of a page of compiler messages; `cuda_features` is the table. And no source makes a compiler read a file
of the machine it runs on: its error messages go back to a stranger, and `#include "/etc/shadow"` would print that
file in them. `scan` finds everything; `check_cpu_source` is what stands before the C++ compiler of a CPU device, and
`cuda_needs` what both sides ask before a program is sent or run.

Theory. The second purpose holds only if this reader and the compiler see the same tokens, so everything that could
make them differ is refused rather than understood: trigraphs, raw strings, literals without an end, stray
backslashes and non-ASCII text outside comments and literals. Line splices are undone first, as a compiler does (GCC
and Clang allow blanks between the backslash and the line's end). Directives are an allow-list. An #include names one
of the runtimes' own headers, literally, or stands where no compiler reads it (`cuda_skipped`). `#line` makes a compiler
quote lines of the file it names, so it may name only the parts of generated elementwise kernels. What remains is a name
put together by token pasting (`__has_##include`): where a source pastes tokens, no forbidden word may be spellable from
its tokens.
Attributes that change how a library is linked or loaded (`constructor`, `section`, `ifunc`, ...) are refused too; what
comes out of the compiler is looked at once more in `library_check`. Whatever passes is native code, and only the
worker process it runs in contains it.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from pathlib import Path
from types import MappingProxyType

from coppermesh.exec import cuda_groups
from coppermesh.exec.cuda_features import (
    CPU,
    GRID_SYNC,
    LARGE_TILES,
    Feature,
    feature_of_header,
    feature_of_word,
)
from coppermesh.exec.cuda_skipped import Skipped
from coppermesh.exec.errors import ExecError

SHIM = Path(__file__).with_name("shim")
"""The only directory that compilers are told to look for headers in."""

MAX_REPORTED = 5

_OF_CUDA = """builtin_types.h cuda.h cuda_runtime.h cuda_runtime_api.h device_atomic_functions.h
device_double_functions.h device_functions.h device_launch_parameters.h host_defines.h math_constants.h
math_functions.h sm_20_atomic_functions.h sm_20_intrinsics.h sm_30_intrinsics.h sm_32_atomic_functions.h
sm_32_intrinsics.h sm_35_atomic_functions.h sm_35_intrinsics.h sm_60_atomic_functions.h sm_61_intrinsics.h
vector_functions.h vector_types.h"""
_OF_LIBCUDACXX = "array bit cassert climits cmath cstddef cstdint cstring limits type_traits utility"

HEADERS = frozenset(_OF_CUDA.split()) | {f"cuda/std/{name}" for name in _OF_LIBCUDACXX.split()}
"""Names that a kernel may include on every device: each exists in `SHIM`. Others come with a feature."""

_COMPLEX_NAMES = """complex real imag abs arg norm conj polar proj exp log log10 pow sqrt sin cos tan sinh cosh tanh
asin acos atan asinh acosh atanh"""
_OF_COMPLEX = frozenset(_COMPLEX_NAMES.split())
"""What cupy/complex.cuh has of thrust."""

_DIRECTIVES = frozenset(
    {
        "",
        "define",
        "undef",
        "if",
        "ifdef",
        "ifndef",
        "elif",
        "else",
        "endif",
        "error",
        "warning",
        "line",
        "pragma",
        "include",
    }
)
_PRAGMAS = frozenset(
    {"unroll", "nounroll", "once", "pack", "nv_diag_suppress", "diag_suppress", "nv_exec_check_disable"}
)
_GENERATED = re.compile(
    r'\s*\d{1,6}\s*"(?:preamble|operation|generated|loop_prep|after_loop|map|reduce|post_map)"\s*'
)
_INCLUDE = re.compile(
    r'\s*(?:<(?P<system>[\w.]+(?:/[\w.]+)*)>|"(?P<own>[\w.]+(?:/[\w.]+)*)")\s*(?://[^\n]*)?'
)

_READS_HOST = "asking for headers of this machine"
_FORBIDDEN = {
    "_Pragma": "_Pragma",
    "__pragma": "__pragma",
    "__has_include": _READS_HOST,
    "__has_include_next": _READS_HOST,
    "__has_embed": _READS_HOST,
}
_ATTRIBUTES = frozenset(
    {
        "aligned", "packed", "noinline", "always_inline", "unused", "may_alias", "const", "pure", "hot", "cold",
        "maybe_unused", "nodiscard", "likely", "unlikely", "fallthrough", "noreturn", "deprecated",
        "no_unique_address", "carries_dependency", "assume",
    }
)  # fmt: skip
"""What may stand in `__attribute__((...))` and `[[...]]`: nothing that reaches the linker or the loader."""
_LINKING = frozenset(
    {
        "constructor", "destructor", "ifunc", "weakref", "init_priority", "section", "alias", "symver", "naked",
        "retain", "visibility", "code_seg", "init_seg", "target_clones", "no_split_stack", "patchable_function_entry",
    }
)  # fmt: skip
"""Attributes that say how code is linked, loaded or entered. Ordinary words as well: see `_attribute_fault`."""
_NEVER_NAMES = frozenset({"constructor", "destructor", "ifunc", "weakref", "init_priority", "naked"})
_VENDORS = frozenset({"gnu", "__gnu__", "clang", "_Clang"})
_WORD = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
_OPENS_ATTRIBUTE = frozenset({"__attribute__", "__attribute", "__declspec"})

_NOT_SPELLABLE = tuple(
    sorted({*_FORBIDDEN, *_OPENS_ATTRIBUTE, *_LINKING, *(f"__{word}__" for word in _LINKING)})
)

_TRIGRAPH = re.compile(r"\?\?[=/'()!<>-]")
_SPLICE = re.compile(r"\\[ \t\v\f]*\n")
_TOKEN = re.compile(
    r"""(?P<newline>\n)
    |(?P<blank>[ \t\v\f]+)
    |(?P<comment>//[^\n]*|/\*.*?\*/)
    |(?P<string>"(?:\\[^\n]|[^"\\\n])*")
    |(?P<character>'(?:\\[^\n]|[^'\\\n])*')
    |(?P<number>\.?[0-9](?:[eEpP][+-]|'[0-9A-Za-z_]|[0-9A-Za-z_.])*)
    |(?P<word>[A-Za-z_$][A-Za-z0-9_$]*)
    |(?P<hash>%:%:|\#\#|%:|\#)
    |(?P<launch><<<)
    |(?P<other>[][!%&()*+,./:;<=>?^{|}~-])""",
    re.VERBOSE | re.DOTALL,
)
_RAW_PREFIXES = frozenset({"R", "u8R", "uR", "UR", "LR"})


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in a source that is refused (`feature` None), or that only some runtimes have."""

    line: int
    """From 1; 0 in a compiler option."""
    column: int
    """From 1."""
    what: str
    """`tex2D (textures)`, `#include <stdio.h>`."""
    feature: Feature | None = None
    text: int = 0
    """Which of the kernel's texts it is in."""


class SourceRefused(ExecError):
    """The source uses what this device cannot do. `code` is `unsupported-feature`; the sentence has name and line."""

    def __init__(self, sentence: str, detail: str = "", findings: Sequence[Finding] = ()) -> None:
        super().__init__("unsupported-feature", sentence, detail=detail)
        self.findings = tuple(findings)


class Unreadable(Exception):
    """The reader and a compiler could see different tokens."""

    def __init__(self, line: int, column: int, what: str) -> None:
        super().__init__(what)
        self.finding = Finding(line, column, what)


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the source after line splices are undone. `start` and `end` are offsets there."""

    kind: str
    text: str
    start: int
    end: int


class SplicedText:
    """The spliced source and the way back to line numbers of the original."""

    def __init__(self, source: str) -> None:
        self.text = ""
        self._splices: list[int] = []  # offsets in `text` at which a line end was taken out
        kept, last, length = [], 0, 0
        for match in _SPLICE.finditer(source):
            kept.append(source[last : match.start()])
            last = match.end()
            length += len(kept[-1])
            self._splices.append(length)
        kept.append(source[last:])
        self.text = "".join(kept)
        self._newlines = [position for position, c in enumerate(self.text) if c == "\n"]

    def place(self, offset: int) -> tuple[int, int]:
        """Line and column, from 1, of the original source."""
        newlines, splices = bisect_right(self._newlines, offset - 1), bisect_right(self._splices, offset)
        begins = max(
            self._newlines[newlines - 1] + 1 if newlines else 0, self._splices[splices - 1] if splices else 0
        )
        return 1 + newlines + splices, 1 + offset - begins

    def restored(self, edits: Sequence[tuple[int, int, str]]) -> str:
        """The source with splices put back and other text at `edits` (offsets here), which do not overlap."""
        changes = sorted(
            [*edits, *((splice, splice, "\\\n") for splice in self._splices)], key=lambda c: c[:2]
        )
        parts, last = [], 0
        for start, end, replacement in changes:
            parts += [self.text[last : max(start, last)], replacement]
            last = max(last, end)
        return "".join([*parts, self.text[last:]])


def check_cpu_source(source: str, options: Sequence[str] = ()) -> None:
    """Refuse source that the CPU build cannot compile, or must not. Raises SourceRefused.

    `options` are a program's compiler options: their macro values count as tokens of the source.
    """
    found = scan([source], options)
    refused = [finding for finding in found if finding.feature is None or CPU not in finding.feature.runtimes]
    if refused:
        first = refused[0]
        where = "on a CPU device" if first.feature and first.feature.runtimes else "in a kernel"
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        listed = "\n".join(f"kernel.cu:{finding.line}: {finding.what}" for finding in refused[:MAX_REPORTED])
        raise SourceRefused(f"line {first.line}: {first.what} is not possible {where}{more}", listed, refused)


def spliced_tokens(source: str) -> tuple[SplicedText, list[Token]]:
    """The tokens of a source and the text that their offsets count in. Raises Unreadable, which `scan` reports."""
    text = SplicedText(source.replace("\r\n", "\n"))
    return text, list(_tokens(text))


def scan(texts: Sequence[str], options: Sequence[str] = ()) -> list[Finding]:
    """Everything in a kernel's texts that is refused or that not every runtime has, in order; each thing once a line.

    Lines count within each text. Where a text cannot be read safely, that is the last of its findings.
    """
    found: dict[tuple[int, int, str], Finding] = {}
    read: list[Token] = []
    pasted: Finding | None = None
    sizes = dict(re.findall(r"(?m)^-D(\w+)=(\d{1,6})$", "\n".join(options)))
    may_skip = not any("undef" in SplicedText(source.replace("\r\n", "\n")).text for source in texts)
    for number, source in enumerate(texts):
        faults, tokens, place = _scan_one(source, sizes, may_skip=may_skip)
        read += tokens
        for fault in faults:
            found.setdefault((number, fault.line, fault.what), replace(fault, text=number))
        pasting = next((token for token in tokens if token.text in ("##", "%:%:")), None)
        if pasting is not None and pasted is None:
            pasted = Finding(*place(pasting.start), "##", text=number)
    for option in options:
        faults, tokens, _ = _scan_one(option.partition("=")[2] if option.startswith("-D") else "")
        read += tokens
        named = [Finding(0, 0, f"{token.text} (an attribute)") for token in tokens if _links(token.text)]
        for fault in [*faults, *named]:
            found.setdefault((-1, 0, fault.what), Finding(0, 0, fault.what, fault.feature))
    if pasted is not None and (word := _spellable(read)):
        what = f"## where {word} could be spelled out of this source's tokens"
        found.setdefault((pasted.text, pasted.line, what), replace(pasted, what=what))
    return sorted(found.values(), key=lambda finding: (finding.text, finding.line, finding.what))


Place = Callable[[int], tuple[int, int]]
_Scanned = tuple[list[Finding], list[Token], Place]


def _scan_one(
    source: str, sizes: Mapping[str, str] = MappingProxyType({}), *, may_skip: bool = False
) -> _Scanned:
    text = SplicedText(source.replace("\r\n", "\n"))
    tokens: list[Token] = []
    try:
        _check_characters(source)
        tokens.extend(_tokens(text))
    except Unreadable as error:
        return [error.finding], [], text.place
    found = [*_check_directives(text, tokens, may_skip=may_skip), *_check_words(text, tokens)]
    places = [token for token in tokens if token.kind != "newline"]
    words = [token.text for token in places]
    for position in cuda_groups.grid_waits(words):
        what = f"{words[position]} ({GRID_SYNC.name})"
        found.append(Finding(*text.place(places[position].start), what, GRID_SYNC))
    for position, size in cuda_groups.large_tiles(words, sizes):
        what = f"{words[position]}<{size}> ({LARGE_TILES.name})"
        found.append(Finding(*text.place(places[position].start), what, LARGE_TILES))
    return found, tokens, text.place


def _check_characters(source: str) -> None:
    for match in _TRIGRAPH.finditer(source):
        raise _unreadable_at(source, match.start(), "trigraphs")
    for bad in ("\0", "\x1a"):
        if bad in source:
            raise _unreadable_at(source, source.index(bad), "a control character")
    lone = re.search(r"\r(?!\n)", source)
    if lone:
        raise _unreadable_at(source, lone.start(), "a carriage return without a line end")


def _unreadable_at(source: str, offset: int, what: str) -> Unreadable:
    return Unreadable(1 + source.count("\n", 0, offset), offset - source.rfind("\n", 0, offset), what)


def _tokens(text: SplicedText) -> Iterator[Token]:
    """Tokens and line ends, without blanks and comments. Raises Unreadable at anything else."""
    position, length = 0, len(text.text)
    previous: Token | None = None
    while position < length:
        match = _TOKEN.match(text.text, position)
        if match is None or (text.text.startswith("/*", position) and match.lastgroup != "comment"):
            raise Unreadable(*text.place(position), _strange(text.text, position))
        kind = match.lastgroup or "other"
        token = Token(kind, match.group(), match.start(), match.end())
        position = match.end()
        if kind == "string" and previous and previous.text in _RAW_PREFIXES and previous.end == token.start:
            raise Unreadable(*text.place(token.start), "raw string literals")
        if kind not in ("blank", "comment"):
            yield token
        previous = token


def _strange(text: str, position: int) -> str:
    character = text[position]
    if character in "\"'":
        return f"a {character} without its end on the same line"
    if text.startswith("/*", position):
        return "a comment without an end"
    if character == "\\":
        return "a stray backslash"
    return f"the character U+{ord(character):04X} outside comments and literals"


def _check_directives(text: SplicedText, tokens: Sequence[Token], *, may_skip: bool) -> Iterator[Finding]:
    """Every directive that is not allowed, and every #include that comes with a feature.

    With `may_skip`, includes in parts that no compiler reads do not count.
    """
    at_start, skipped = True, Skipped()
    for position, token in enumerate(tokens):
        if at_start and token.text in ("#", "%:"):
            words = [other.text for other in takewhile(_on_the_line, islice(tokens, position + 1, None))]
            skipped.read(words)
            found = _read_directive(text, tokens[position + 1 : position + 3], token)
            if found is not None and not (may_skip and skipped and words[:1] == ["include"]):
                yield Finding(*text.place(token.start), *found)
        at_start = token.kind == "newline"


def _on_the_line(token: Token) -> bool:
    return token.kind != "newline"


def _read_directive(
    text: SplicedText, following: Sequence[Token], mark: Token
) -> tuple[str, Feature | None] | None:
    first = following[0] if following else Token("newline", "\n", mark.end, mark.end)
    name = first.text if first.kind == "word" else ""
    if first.kind not in ("word", "newline") or name not in _DIRECTIVES:
        return f"the directive #{first.text[:40]}", None
    line_end = text.text.find("\n", first.end)
    operand = text.text[first.end : line_end if line_end >= 0 else len(text.text)]
    if name == "include":
        match = _INCLUDE.fullmatch(operand)
        header = (match["system"] or match["own"]) if match else ""
        if header not in HEADERS:
            feature = feature_of_header(header)
            suffix = "" if feature is None else f" ({feature.name})"
            return f"#include {operand.strip()[:80]}{suffix}", feature
    if name == "line" and not _GENERATED.fullmatch(operand):
        return "#line", None
    second = following[1] if len(following) > 1 else None
    if name == "pragma" and (second is None or second.text not in _PRAGMAS):
        return f"#pragma {second.text[:40] if second and second.kind == 'word' else ''}".rstrip(), None
    if name in ("define", "undef"):
        words = _WORD.findall(operand)
        if words and _plain(words[0]) in _ATTRIBUTES | _LINKING:
            return f"#{name} {words[0]} (an attribute's name)", None
        if linking := next((word for word in words if _links(word)), None):
            return f"#{name} with {linking} (an attribute)", None
    return None


def _check_words(text: SplicedText, tokens: Sequence[Token]) -> Iterator[Finding]:
    """Everything else that is refused, or that not every runtime has."""
    attributes = _has_attributes(tokens)
    for position, token in enumerate(tokens):
        if token.kind in ("launch", "word"):
            following = tokens[position + 1].text if position + 1 < len(tokens) else ""
            if token.text == "std" and _std_is_there(tokens, position):
                continue
            if token.text == "thrust" and _names_complex(tokens, position):
                continue
            if feature := feature_of_word(token.text, following):
                yield Finding(*text.place(token.start), f"{token.text} ({feature.name})", feature)
            elif what := _FORBIDDEN.get(token.text):
                yield Finding(*text.place(token.start), f"{token.text} ({what})")
            elif token.text.lower().startswith("coppermesh"):
                yield Finding(*text.place(token.start), f"{token.text} (a name of the build itself)")
        if what := _attribute_fault(tokens, position, attributes):
            yield Finding(*text.place(token.start), what)


def _std_is_there(tokens: Sequence[Token], position: int) -> bool:
    """Whether the `std` at `position` is libcu++'s (`cuda::std`) or names one of the three that NVRTC has built in."""
    before = [token.text for token in tokens[max(0, position - 3) : position]]
    after = [token.text for token in tokens[position + 1 : position + 4]]
    return before == ["cuda", ":", ":"] or after in (
        [":", ":", "move"],
        [":", ":", "forward"],
        [":", ":", "initializer_list"],
    )


def _names_complex(tokens: Sequence[Token], position: int) -> bool:
    """Whether the `thrust` at `position` is the namespace of CuPy's complex numbers: `thrust::complex<T>`."""
    after = [token.text for token in tokens[position + 1 : position + 4]]
    return after[:2] == [":", ":"] and after[2:] != [] and after[2] in _OF_COMPLEX


def _attribute_fault(tokens: Sequence[Token], position: int, attributes: bool) -> str | None:
    """What is wrong with an attribute that begins at `position`; None where none does.

    `attributes`: whether the source has any.
    """
    text = tokens[position].text
    if text in _OPENS_ATTRIBUTE:
        after = _next_words(tokens, position + 1, 3)
        name = after[2] if after[:2] == ["(", "("] else after[1] if text == "__declspec" else ""
    elif text == "[" and (after := _next_words(tokens, position + 1, 2))[0] == "[":
        name = after[1]
    elif _links(text):
        # `section` may be somebody's variable: it is taken for an attribute where it is called, or spelled as one,
        # or where the source has attributes at all.
        certain = text.startswith("__") or text in _NEVER_NAMES
        called = _next_words(tokens, position + 1, 1) == ["("]
        return f"the attribute {text}" if certain or called or attributes else None
    else:
        return None
    return None if _plain(name) in _ATTRIBUTES else f"the attribute {name[:40]}".rstrip()


def _has_attributes(tokens: Sequence[Token]) -> bool:
    return any(token.text in _OPENS_ATTRIBUTE or token.text in _VENDORS for token in tokens) or any(
        token.text == "[" and _next_words(tokens, position + 1, 1) == ["["]
        for position, token in enumerate(tokens)
    )


def _next_words(tokens: Sequence[Token], start: int, count: int) -> list[str]:
    """The texts of the `count` tokens from `start` on that are no line ends; empty ones where the source ends."""
    words: list[str] = []
    while start < len(tokens) and len(words) < count:
        if tokens[start].kind != "newline":
            words.append(tokens[start].text)
        start += 1
    return [*words, *[""] * count][:count]


def _plain(attribute: str) -> str:
    """`section` for `__section__`."""
    return attribute.strip("_")


def _links(word: str) -> bool:
    return _plain(word) in _LINKING


def _spellable(tokens: Sequence[Token]) -> str | None:
    """A forbidden preprocessor word that is a concatenation of the source's tokens, or None."""
    pieces = {token.text for token in tokens if token.kind in ("word", "number")}
    for word in _NOT_SPELLABLE:
        reachable = [True] + [False] * len(word)
        for end in range(1, len(word) + 1):
            reachable[end] = any(reachable[start] and word[start:end] in pieces for start in range(end))
        if reachable[-1]:
            return word
    return None
