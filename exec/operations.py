"""The operations that a program may name: for each its argument count, attributes, shape and dtype rule, and cost.

This table is the whole vocabulary: the recorder writes only what it allows, `schema` checks every node against it, and
a runtime looks an operation up by the same name. Rules work on specs alone, so that a 100 TiB array costs nothing to
refuse. Names are those of the Python Array API standard (2024.12) where it has one.

Programs are stricter than the namespace a user writes in: operands of an arithmetic operation have one dtype, axes are
explicit and non-negative, every attribute is present. What a person may leave out, the recorder fills in, so that one
meaning has one encoding and a runtime needs no promotion rules of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

from coppermesh.exec import dtypes
from coppermesh.exec.program import ArraySpec, AttributeValue, KernelSource, Scalar
from coppermesh.exec.shapes import refuse

if TYPE_CHECKING:
    from coppermesh.exec.schema import CheckedBody


@dataclass(frozen=True, slots=True)
class Call:
    """One node as a rule sees it: the specs of its arguments and its checked attributes."""

    specs: Sequence[ArraySpec]
    attrs: Mapping[str, AttributeValue]
    scalars: Sequence[Scalar | None] = ()
    """For each argument the constant written in place, or None; given for kernels, which treat the two apart."""
    kernel: KernelSource | None = None
    body: "CheckedBody | None" = None
    """The checked program of a loop's body."""
    chain: int | None = None
    """For a node with a module's state: the number of the value that the state began as (`cuda_modules`)."""

    # The attributes by type: the attribute check ran before any rule, the asserts only tell the type checker.

    def flag(self, name: str) -> bool:
        """A boolean attribute."""
        value = self.attrs[name]
        assert isinstance(value, bool)
        return value

    def integer(self, name: str) -> int:
        """An integer attribute."""
        value = self.attrs[name]
        assert isinstance(value, int)
        return value

    def word(self, name: str) -> str:
        """A string attribute."""
        value = self.attrs[name]
        assert isinstance(value, str)
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """An attribute that is a list of integers."""
        value = self.attrs[name]
        assert isinstance(value, tuple)
        return value  # type: ignore[return-value]  # is_ints checked the items

    def lists(self, name: str) -> tuple[tuple[int, ...], ...]:
        """An attribute that is a list of lists of integers."""
        value = self.attrs[name]
        assert isinstance(value, tuple)
        return value  # type: ignore[return-value]  # is_int_lists checked the items


Rule = Callable[[Call], ArraySpec | tuple[ArraySpec, ...]]
Cost = Callable[[Call, Sequence[ArraySpec]], float]
Workspace = Callable[[Call, Sequence[ArraySpec]], int]
AttributeCheck = Callable[[AttributeValue], bool]


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table. `cost` gives floating or integer operations, roughly."""

    name: str
    arity: tuple[int, int]
    attrs: Mapping[str, AttributeCheck]
    rule: Rule
    cost: Cost
    scratch: float = 0.0
    """Working memory beyond arguments and results, as a multiple of the arguments' bytes."""
    takes_body: bool = False
    """Whether the first argument is a program: the body of a loop. It is not among the call's specs."""
    workspace: Workspace | None = None
    """Further working memory in bytes, where it is no multiple of the arguments."""


OPERATIONS: Final[dict[str, Operation]] = {}


def define(
    name: str,
    arity: int | tuple[int, int],
    rule: Rule,
    cost: Cost,
    attrs: Mapping[str, AttributeCheck] | None = None,
    scratch: float = 0.0,
    workspace: Workspace | None = None,
    takes_body: bool = False,
) -> None:
    """Add one operation to the table."""
    bounds = (arity, arity) if isinstance(arity, int) else arity
    OPERATIONS[name] = Operation(name, bounds, attrs or {}, rule, cost, scratch, takes_body, workspace)


# Attribute checks: types and enumerations. Ranges are the rules' business, which know the shapes.


def is_bool(value: AttributeValue) -> bool:
    """A boolean."""
    return isinstance(value, bool)


def is_int(value: AttributeValue) -> bool:
    """An integer (a boolean is none) that leaves room for sums in 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62


def is_dtype(value: AttributeValue) -> bool:
    """The name of a dtype that programs may use."""
    return isinstance(value, str) and value in dtypes.NUMPY_DTYPES


def is_ints(value: AttributeValue) -> bool:
    """A list of integers."""
    return isinstance(value, tuple) and all(not isinstance(item, tuple) and is_int(item) for item in value)


def is_int_lists(value: AttributeValue) -> bool:
    """A list of lists of integers."""
    return isinstance(value, tuple) and all(isinstance(item, tuple) and is_ints(item) for item in value)


def one_of(*words: str) -> AttributeCheck:
    """One of these words."""
    return lambda value: isinstance(value, str) and value in words


# Parts of rules.


def need_dtype(spec: ArraySpec, allowed: frozenset[str], what: str = "argument") -> None:
    """Refuse a dtype that the operation does not take."""
    if spec.dtype not in allowed:
        hint = "; float16 is kept and given to kernels: x.astype(xp.float32) to compute" * (
            spec.dtype == dtypes.HALF
        )
        names = ", ".join(sorted(allowed))
        raise refuse("bad-dtype", f"{what} is {spec.dtype}, but must be one of {names}{hint}")


def need_equal_dtypes(specs: Sequence[ArraySpec]) -> None:
    """Refuse arguments of several dtypes."""
    first = specs[0].dtype
    for spec in specs:
        if spec.dtype != first:
            raise refuse("bad-dtype", f"arguments must have one dtype, not {first} and {spec.dtype}")


def need_axis(axis: int, ndim: int) -> None:
    """Refuse an axis that the array does not have; axes of programs count from the front."""
    if not 0 <= axis < ndim:
        raise refuse("bad-axis", f"axis {axis} of an array with {ndim} dimensions")


def need_single(spec: ArraySpec, what: str) -> None:
    """Refuse an array with dimensions where one element is due."""
    if spec.shape != ():
        raise refuse("bad-argument", f"{what} must be a single element, not {spec}")


def per_result(weight: float) -> Cost:
    """`weight` operations for each element of the results."""
    return lambda _call, results: weight * sum(spec.size for spec in results)


PER_MATRIX = 1_000.0
"""What calling a routine for one matrix of a stack counts for: stacks of empty matrices take time too."""


def matrices(spec: ArraySpec) -> int:
    """How many matrices are in a stack; also where they are empty."""
    return prod(spec.shape[:-2])


def per_argument(weight: float) -> Cost:
    """`weight` operations for each element of the arguments."""
    return lambda call, _results: weight * sum(spec.size for spec in call.specs)
