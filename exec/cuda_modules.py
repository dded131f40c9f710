"""Modules: CUDA source with several kernels, and the state that the source's own variables are.

A kernel source of kind `module` has four texts: the source, and three lists, one entry a line, sorted, without
doubles: kernels declared `extern "C"`, name expressions, and variables that are read or set from outside. They hold
what the program's nodes use and nothing more, so the source stands in a program once, however many of its kernels run,
and one program has one encoding. A node refers to a kernel by its place in the first two lists together, to a variable
by its place in the third.

State. A source may declare `__device__` or `__constant__` variables that outlive a launch. Such a source *has state*,
and each use of it is ordered: a node `module_state` begins a state (every variable as the source initialises it), and
each launch, `module_set` and `module_get` takes the latest state and gives the next one. A state is an empty uint8
array to the rest of the program. It may be used once: a chain, never a tree, so a runtime keeps one copy of the
variables per chain. It begins anew in every run.

Whether a source has state is read off it by the rule below, on both sides. In doubt it has.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from coppermesh.exec import cuda_source, name_expressions
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.program import ArraySpec, KernelSource

MODULE_NAME: Final = "module"
"""The `name` of every kernel source of this kind."""
MAX_NAMES: Final = 128
STATE_SPEC: Final = ArraySpec("uint8", (0,))

_MARKS: Final[frozenset[str]] = frozenset(("__device__", "__constant__", "__managed__", "static"))
_WITH_ARGUMENTS = frozenset(
    (
        "__align__",
        "__builtin_align__",
        "alignas",
        "__attribute__",
        "__launch_bounds__",
        "decltype",
        "__declspec",
    )
)


@dataclass(frozen=True, slots=True)
class ModuleParts:
    """A kernel source of kind `module`, taken apart."""

    source: str
    functions: tuple[str, ...]
    """Kernels by plain name."""
    expressions: tuple[str, ...]
    """Kernels by name expression."""
    symbols: tuple[str, ...]
    """Variables read or set from outside."""

    @property
    def kernels(self) -> tuple[str, ...]:
        """What a node's `function` counts in."""
        return self.functions + self.expressions


def base_name(kernel: str) -> str:
    """One word for a kernel: its name without namespaces and template arguments."""
    return kernel.partition("<")[0].rpartition("::")[2].strip()[:128]


def make_module(parts: ModuleParts, options: tuple[str, ...]) -> KernelSource:
    """The kernel source that says `parts`."""
    lists = ["\n".join(sorted(set(names))) for names in (parts.functions, parts.expressions, parts.symbols)]
    return KernelSource("module", MODULE_NAME, options, (parts.source, *lists))


@lru_cache(maxsize=64)
def module_parts(kernel: KernelSource) -> ModuleParts:
    """The parts of a checked kernel source."""
    source, *lists = kernel.texts
    functions, expressions, symbols = (tuple(text.split("\n")) if text else () for text in lists)
    return ModuleParts(source, functions, expressions, symbols)


def check_module(kernel: KernelSource) -> None:
    """Refuse lists that are not as the format wants them. Raises ProgramInvalid."""
    if kernel.name != MODULE_NAME:
        raise ProgramInvalid("kernel-name", f"a module is called {MODULE_NAME!r}, not {kernel.name[:40]!r}")
    parts = module_parts(kernel)
    for names in (parts.functions, parts.expressions, parts.symbols):
        if len(names) > MAX_NAMES or list(names) != sorted(set(names)):
            raise ProgramInvalid(
                "kernel-name", f"a module's names are sorted, without doubles, at most {MAX_NAMES}"
            )
    for name in parts.functions + parts.symbols:
        if not name_expressions.is_plain(name):
            raise ProgramInvalid("kernel-name", f"{name[:80]!r} cannot name a kernel or variable")
    for expression in parts.expressions:
        if name_expressions.canonical(expression) != expression:
            raise ProgramInvalid("kernel-name", f"{expression[:80]!r} is not in its one spelling")


@lru_cache(maxsize=64)
def has_state(source: str, *, constants: bool = True) -> bool:
    """Whether the source declares variables that outlive a launch; `constants=False` leaves `__constant__` out."""
    tokens, macros = cuda_source.tokens_and_macros(source)
    marks: set[str] = set(_MARKS)
    if not constants:
        marks.discard("__constant__")
    bodies = [tokens]
    for name, body in macros.items():
        if marks.intersection(body):
            marks.add(name)  # `#define SHARED_BY_ALL __device__`
            bodies.append(body)
    return any(
        token in marks and _declares_variable(body, position, constants=constants)
        for body in bodies
        for position, token in enumerate(body)
    )


def _declares_variable(tokens: list[str], position: int, *, constants: bool) -> bool:
    """Whether what follows the mark at `position` is a variable that can change, and no function."""
    seen = [tokens[position]]
    depth = angles = 0
    inside = 0  # parentheses within `<...>`, where > compares
    for at in range(position + 1, min(len(tokens), position + 256)):
        token = tokens[at]
        if depth:
            depth += (token == "(") - (token == ")")
        elif token == "(" and seen[-1] in _WITH_ARGUMENTS:
            depth = 1
        elif angles:
            inside += (token == "(") - (token == ")")
            angles += 0 if inside else (token == "<") - (token == ">")
        elif token == "<":
            angles = 1
        elif token in ("operator", ")", "}", "__shared__", "__global__") or (
            token == "(" and tokens[at + 1 : at + 2] != ["*"]
        ):
            return False
        elif token in (";", "=", "[", "{", "("):
            return not _is_constant(seen, constants=constants)
        else:
            seen.append(token)
    return False


def _is_constant(seen: list[str], *, constants: bool) -> bool:
    if "__constant__" in seen:
        return not constants  # the host sets it, const or not
    return "constexpr" in seen or ("const" in seen and "*" not in seen)
