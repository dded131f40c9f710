"""What CUDA source may reach the C++ compiler of a machine without a GPU: checked by name, before anything runs.

Two purposes. Features that the CPU build does not have (shared memory, barriers, textures, ...) are refused with
their name and line, instead of a page of compiler messages. And no source makes the compiler read a file of this
machine: its error messages go back to a stranger, and `#include "/etc/shadow"` would print that file in them.

Theory. The second purpose holds only if this reader and the compiler see the same tokens, so everything that could
make them differ is refused rather than understood: trigraphs, raw strings, literals without an end, stray
backslashes and non-ASCII text outside comments and literals. Line splices are undone first, as a compiler does (GCC
and Clang allow blanks between the backslash and the line's end). Directives are an allow-list. An #include names one
of the shim's own headers, literally. `#line` makes a compiler quote lines of the file it names, so it may name only
the parts of generated elementwise kernels. What remains is a name put together by token pasting (`__has_##include`):
where a source pastes tokens, no forbidden preprocessor word may be spellable from its tokens.
Inline assembly made by pasting is caught by macros in coppermesh_cuda.h. Whatever passes is native code, and only
the worker process it runs in contains it.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coppermesh.exec.errors import ExecError

SHIM = Path(__file__).with_name("shim")
"""The only directory that compilers are told to look for headers in."""

MAX_REPORTED = 5

HEADERS = frozenset(
    {
        "cuda.h",
        "cuda_runtime.h",
        "cuda_runtime_api.h",
        "device_launch_parameters.h",
        "math_constants.h",
        "math_functions.h",
        "vector_functions.h",
        "vector_types.h",
    }
)
"""Names that a kernel may include: each exists in `SHIM`."""

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
_GENERATED = re.compile(r'\s*\d{1,6}\s*"(?:preamble|operation|generated)"\s*')
_INCLUDE = re.compile(
    r'\s*(?:<(?P<system>[\w.]+(?:/[\w.]+)*)>|"(?P<own>[\w.]+(?:/[\w.]+)*)")\s*(?://[^\n]*)?'
)

_ASSEMBLY = "inline assembly"
_READS_HOST = "asking for headers of this machine"
_FEATURES = {
    "__shared__": "shared memory",
    "__syncwarp": "warp synchronisation",
    "__activemask": "warp votes",
    "__managed__": "managed memory",
    "__cluster_dims__": "thread block clusters",
    "cooperative_groups": "cooperative groups",
    "cudaTextureObject_t": "textures",
    "cudaSurfaceObject_t": "surfaces",
    "nvcuda": "tensor-core (wmma) operations",
    "wmma": "tensor-core (wmma) operations",
    "thrust": "thrust",
    "cub": "cub",
    "__half": "half precision",
    "__half2": "half precision",
    "__nv_bfloat16": "bfloat16",
    "asm": _ASSEMBLY,
    "__asm": _ASSEMBLY,
    "__asm__": _ASSEMBLY,
    "_Pragma": "_Pragma",
    "__pragma": "__pragma",
    "__has_include": _READS_HOST,
    "__has_include_next": _READS_HOST,
    "__has_embed": _READS_HOST,
}
_FEATURE_PATTERNS = (
    (re.compile(r"__syncthreads(?:_and|_or|_count)?|__barrier_sync\w*"), "barriers"),
    (re.compile(r"__shfl(?:_\w+)?"), "warp shuffles"),
    (re.compile(r"__(?:any|all|ballot|uni)(?:_sync)?"), "warp votes"),
    (re.compile(r"__(?:match|reduce)_\w+_sync"), "warp votes and reductions"),
    (re.compile(r"tex(?:1D|2D|3D|Cubemap)\w*"), "textures"),
    (re.compile(r"surf(?:1D|2D|3D|Cubemap)\w*"), "surfaces"),
    (re.compile(r"curand\w*"), "curand"),
    (re.compile(r"cudaLaunch\w*|cudaDeviceSynchronize|cudaGraph\w*"), "dynamic parallelism"),
)
_QUALIFIED_ONLY = frozenset({"thrust", "cub", "wmma"})
"""Ordinary words: refused as namespaces (`cub::`) only."""

_NOT_SPELLABLE = ("_Pragma", "__pragma", "__has_include", "__has_include_next", "__has_embed")

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


class SourceRefused(ExecError):
    """The source uses what this device cannot do. `code` is `unsupported-feature`; the sentence has name and line."""

    def __init__(self, sentence: str, detail: str = "") -> None:
        super().__init__("unsupported-feature", sentence, detail=detail)


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the source after line splices are undone. `start` and `end` are offsets there."""

    kind: str
    text: str
    start: int
    end: int


class _Text:
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

    def line(self, offset: int) -> int:
        """Line number, from 1, of the original source."""
        return 1 + bisect_right(self._newlines, offset - 1) + bisect_right(self._splices, offset)


def check_cpu_source(source: str, options: Sequence[str] = ()) -> None:
    """Refuse source that the CPU build cannot compile, or must not. Raises SourceRefused.

    `options` are a program's compiler options: their macro values count as tokens of the source.
    """
    _check_characters(source)
    text = _Text(source.replace("\r\n", "\n"))
    tokens = list(_tokens(text))
    found = [*_check_directives(text, tokens), *_check_words(text, tokens)]
    values = [option.partition("=")[2] for option in options if option.startswith("-D")]
    option_tokens = [token for value in values for token in _tokens(_Text(value))]
    found += [(0, what) for _, what in _check_words(_Text(""), option_tokens)]
    pasted = next((token for token in tokens if token.text in ("##", "%:%:")), None)
    if pasted is not None and (word := _spellable([*tokens, *option_tokens])):
        found.append(
            (text.line(pasted.start), f"## where {word} could be spelled out of this source's tokens")
        )
    if found:
        _refuse(found)


def _refuse(found: list[tuple[int, str]]) -> None:
    found = sorted(set(found))
    line, what = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    listed = "\n".join(f"kernel.cu:{number}: {what}" for number, what in found[:MAX_REPORTED])
    raise SourceRefused(f"line {line}: {what} is not possible on a CPU device{more}", listed)


def _check_characters(source: str) -> None:
    for match in _TRIGRAPH.finditer(source):
        raise SourceRefused(f"line {_line_of(source, match.start())}: trigraphs are not possible in a kernel")
    for bad in ("\0", "\x1a"):
        if bad in source:
            raise SourceRefused(f"line {_line_of(source, source.index(bad))}: a control character")
    lone = re.search(r"\r(?!\n)", source)
    if lone:
        raise SourceRefused(f"line {_line_of(source, lone.start())}: a carriage return without a line end")


def _line_of(source: str, offset: int) -> int:
    return 1 + source.count("\n", 0, offset)


def _tokens(text: _Text) -> Iterator[Token]:
    """Tokens and line ends, without blanks and comments. Raises SourceRefused at anything else."""
    position, length = 0, len(text.text)
    previous: Token | None = None
    while position < length:
        match = _TOKEN.match(text.text, position)
        if match is None or (text.text.startswith("/*", position) and match.lastgroup != "comment"):
            raise SourceRefused(f"line {text.line(position)}: {_strange(text.text, position)}")
        kind = match.lastgroup or "other"
        token = Token(kind, match.group(), match.start(), match.end())
        position = match.end()
        if kind == "string" and previous and previous.text in _RAW_PREFIXES and previous.end == token.start:
            raise SourceRefused(
                f"line {text.line(token.start)}: raw string literals are not possible in a kernel"
            )
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


def _check_directives(text: _Text, tokens: Sequence[Token]) -> Iterator[tuple[int, str]]:
    """Line and name of every directive that is not allowed."""
    at_start = True
    for position, token in enumerate(tokens):
        begins = at_start and token.text in ("#", "%:")
        if begins and (what := _directive_fault(text, tokens[position + 1 : position + 3], token)):
            yield text.line(token.start), what
        at_start = token.kind == "newline"


def _directive_fault(text: _Text, following: Sequence[Token], mark: Token) -> str | None:
    first = following[0] if following else Token("newline", "\n", mark.end, mark.end)
    name = first.text if first.kind == "word" else ""
    if first.kind not in ("word", "newline") or name not in _DIRECTIVES:
        return f"the directive #{first.text[:40]}"
    line_end = text.text.find("\n", first.end)
    operand = text.text[first.end : line_end if line_end >= 0 else len(text.text)]
    if name == "include":
        match = _INCLUDE.fullmatch(operand)
        header = match and (match["system"] or match["own"])
        if header not in HEADERS:
            return f"#include {operand.strip()[:80]}"
    if name == "line" and not _GENERATED.fullmatch(operand):
        return "#line"
    if name == "pragma":
        second = following[1] if len(following) > 1 else None
        if second is None or second.text not in _PRAGMAS:
            return f"#pragma {second.text[:40] if second and second.kind == 'word' else ''}".rstrip()
    return None


def _check_words(text: _Text, tokens: Sequence[Token]) -> Iterator[tuple[int, str]]:
    """Line and name of every feature that the CPU build does not have."""
    for position, token in enumerate(tokens):
        if token.kind == "launch":
            yield text.line(token.start), "dynamic parallelism (<<<)"
        elif token.kind == "word":
            following = tokens[position + 1].text if position + 1 < len(tokens) else ""
            if feature := _feature(token.text, following):
                yield text.line(token.start), f"{token.text} ({feature})"


def _feature(word: str, following: str) -> str | None:
    if word in _QUALIFIED_ONLY and following != ":":
        return None
    if word == "std" and following == ":":
        return "the C++ standard library"
    if word in _FEATURES:
        return _FEATURES[word]
    if word.lower().startswith("coppermesh"):
        return "a name of the build itself"
    return next((feature for pattern, feature in _FEATURE_PATTERNS if pattern.fullmatch(word)), None)


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
