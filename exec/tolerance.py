"""`coppermesh.compare(a, b, program)`: are two results of one program the same, as far as arithmetic allows?

Theory of operation. Two runs of one determinism class agree bit for bit (`same_class=True`). Others may differ, by
how much is accumulated over the program, node by node, as a relative error in units of `u`, half the spacing of
floats at 1:

- rearranging, choosing and comparing add nothing;
- operations that IEEE 754 rounds correctly add 1 on each side: `+ - * /`, `sqrt`;
- library functions add 4 ulp on each side: NumPy's own limit for its vector code, and not below what CUDA's Programming
  Guide tabulates (maximum ulp error of the mathematical functions) for nearly all of them;
- sums and products of n terms, in any order, add n: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
  section 4.2 for sums, 3.1 for inner products; a Fourier transform of n points adds 4 log2 n (chapter 24);
- factorisations add 10 n for matrices of n rows: backward stable, so good where the matrix is well conditioned.

Errors of factors add up; of terms the larger counts. `ALLOWANCE` is room for moderate cancellation and conditioning,
which no rule sees that does not look at values: the bound is a criterion, not a theorem. An element may differ by that
relative bound times the largest magnitude in its array.

Integers and booleans are exact. Where they, or a choice, come from inexact numbers (`x > 0`, `floor`, `argmax`), single
elements may fall on the other side: a small fraction may then differ by anything. Loops and kernels, whose steps can
feed back into themselves, get a larger one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from coppermesh.exec.dtypes import FLOATING
from coppermesh.exec.graph import Handle
from coppermesh.exec.program import ArraySpec, decode_program
from coppermesh.exec.schema import CheckedNode, CheckedProgram, check_program
from coppermesh.exec.tracing import Recording, trace

ALLOWANCE: Final = 16.0
LARGEST_RELATIVE: Final = 1e-2
"""No bound is wider than this: a program whose errors may grow beyond is judged like a loop."""
EDGE_FRACTION: Final = 1e-3
"""Of elements that come from a choice on inexact numbers."""
CHAOTIC_FRACTION: Final = 1e-2
"""Of elements that come from a loop or a kernel."""
LIBRARY_STEPS: Final = 16.0
KERNEL_STEPS: Final = 256.0

_ROUNDED = frozenset(("add", "subtract", "multiply", "divide", "sqrt", "square", "reciprocal", "mean"))
_LIBRARY = frozenset(
    [
        "acos",
        "acosh",
        "asin",
        "asinh",
        "atan",
        "atan2",
        "atanh",
        "cos",
        "cosh",
        "erf",
        "exp",
        "expm1",
        "hypot",
        "log",
        "log10",
        "log1p",
        "log2",
        "logaddexp",
        "ndtri",
        "pow",
        "sin",
        "sinh",
        "tan",
        "tanh",
        "linspace",
    ]
)
_SUMMING = frozenset(
    [
        "sum",
        "prod",
        "mean",
        "std",
        "var",
        "matmul",
        "conv",
        "pool",
        "add_at",
        "cumulative_sum",
        "cumulative_prod",
    ]
)
_FOURIER = frozenset(("fft", "ifft", "rfft", "irfft", "fftn", "ifftn", "rfftn", "irfftn"))
_FACTORING = frozenset(
    ["cholesky", "det", "eigh", "eigvalsh", "inv", "qr", "slogdet", "solve", "svd", "svdvals"]
)
_FACTORS = frozenset(("multiply", "divide", "matmul", "conv", "prod", "cumulative_prod", "pow"))
_CHOOSING = frozenset(
    [
        "equal",
        "not_equal",
        "less",
        "less_equal",
        "greater",
        "greater_equal",
        "ceil",
        "floor",
        "round",
        "trunc",
        "sign",
        "signbit",
        "floor_divide",
        "remainder",
        "argmax",
        "argmin",
        "argsort",
        "searchsorted",
        "all",
        "any",
        "logical_and",
        "logical_or",
        "logical_not",
        "logical_xor",
        "isfinite",
        "isinf",
        "isnan",
        "nextafter",
        "eigh",
        "qr",
        "svd",
    ]
)
_CHAOTIC = frozenset(("raw_kernel", "elementwise_kernel", "scan"))

NumpyArray = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Bound:
    """How far elements of one value may lie apart."""

    relative: float = 0.0
    """Of the largest magnitude in the array; 0 is bit for bit."""
    fraction: float = 0.0
    """Of the elements that may differ by more."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a comparison; true where the results agree."""

    agree: bool
    output: int
    """The output furthest from agreeing."""
    index: tuple[int, ...] | None
    """Its worst element; None where nothing differs, or the arrays do not even have one shape and dtype."""
    first: Any
    second: Any
    """That element in `a` and in `b`."""
    difference: float
    allowed: float
    """What `difference` may be."""
    mismatches: float
    """Fraction of that output's elements that differ by more than allowed."""
    allowed_mismatches: float
    sentence: str

    def __bool__(self) -> bool:
        return self.agree

    def __str__(self) -> str:
        return self.sentence


def compare(
    a: Any, b: Any, program: Handle | Recording | CheckedProgram | bytes, *, same_class: bool = False
) -> Verdict:
    """Whether `a` and `b`, results of two runs of `program`, agree: an array each, or a tuple for several outputs.

    `program` is the lazy array, a recording, or the program's bytes. `same_class` says that both runs name the same
    determinism class: then only equal bits agree. Raises ValueError where `a` and `b` are not that many arrays.
    """
    checked = _checked(program)
    first, second = _as_arrays(a), _as_arrays(b)
    if not len(first) == len(second) == len(checked.output_specs):
        raise ValueError(
            f"the program has {len(checked.output_specs)} outputs; {len(first)} and {len(second)} were given"
        )
    bounds = [Bound()] * len(first) if same_class else output_bounds(checked)
    verdicts = [
        _compare_one(number, left, right, bound, spec)
        for number, (left, right, bound, spec) in enumerate(
            zip(first, second, bounds, checked.output_specs, strict=True)
        )
    ]
    return min(verdicts, key=_standing)


def _standing(verdict: Verdict) -> tuple[bool, float]:
    """Sorts the worst first."""
    excess = verdict.difference / verdict.allowed if verdict.allowed else verdict.difference
    return verdict.agree, -excess if not math.isnan(excess) else -math.inf


def _checked(program: Handle | Recording | CheckedProgram | bytes) -> CheckedProgram:
    if isinstance(program, Handle):
        return trace(program).checked
    if isinstance(program, Recording):
        return program.checked
    if isinstance(program, bytes):
        return check_program(decode_program(program))
    return program


def _as_arrays(result: Any) -> list[NumpyArray]:
    return [np.asarray(item) for item in result] if isinstance(result, tuple | list) else [np.asarray(result)]


# What a program allows.


def output_bounds(checked: CheckedProgram) -> list[Bound]:
    """The bound of each output. One pass over the nodes."""
    bounds = [Bound()] * len(checked.values)
    for node in checked.nodes:
        given = [bounds[item] for item in node.node.args if isinstance(item, int)]
        for position, spec in enumerate(node.results):
            bounds[node.first + position] = _node_bound(node, given, spec)
    return [_capped(bounds[number]) for number in checked.program.outputs]


def _node_bound(node: CheckedNode, given: Sequence[Bound], spec: ArraySpec) -> Bound:
    op = node.node.op
    relative = [bound.relative for bound in given]
    fraction = max((bound.fraction for bound in given), default=0.0)
    inexact = any(relative)
    if op in _CHAOTIC:
        fraction = max(fraction, CHAOTIC_FRACTION)
    elif inexact and (op in _CHOOSING or _loses_fraction(node, spec)):
        fraction = max(fraction, EDGE_FRACTION)
    if spec.dtype not in FLOATING:
        # Exact where what it comes from is; else right but for single elements, and inexact for what follows.
        return Bound(math.ulp(0.0) if inexact or op in _CHAOTIC else 0.0, fraction)
    carried = sum(relative) if op in _FACTORS else max(relative, default=0.0)
    return Bound(carried + _steps(node, spec) * _unit(spec.dtype), fraction)


def _loses_fraction(node: CheckedNode, spec: ArraySpec) -> bool:
    return node.node.op == "astype" and spec.dtype not in FLOATING


def _unit(dtype: str) -> float:
    return float(np.finfo(dtype).eps) / 2


def _steps(node: CheckedNode, spec: ArraySpec) -> float:
    """Rounding errors of one node, for both sides together."""
    op, specs = node.node.op, node.call.specs
    if op in _CHAOTIC:
        return KERNEL_STEPS
    if op in _FACTORING:
        return 20.0 * max(specs[0].shape[-1:] or (1,))
    if op in _FOURIER:
        return 8.0 * math.log2(max(2, specs[0].size))
    steps = 0.0
    if op in _SUMMING:
        steps += 2.0 * _terms(node, spec)
    if op in _LIBRARY:
        steps += LIBRARY_STEPS
    if op in _ROUNDED or (op == "astype" and specs[0].dtype != spec.dtype):
        steps += 2.0
    return steps


def _terms(node: CheckedNode, spec: ArraySpec) -> float:
    """How many numbers one element of the result is summed from, at most."""
    specs = node.call.specs
    if node.node.op == "matmul":
        return float(specs[0].shape[-1])
    if node.node.op == "conv":
        return specs[1].size / max(1, specs[1].shape[0])
    if node.node.op in ("cumulative_sum", "cumulative_prod", "add_at"):
        return float(max(specs[-1].shape, default=1))
    return specs[0].size / max(1, spec.size)


def _capped(bound: Bound) -> Bound:
    relative = ALLOWANCE * bound.relative
    if relative <= LARGEST_RELATIVE:
        return Bound(relative, bound.fraction)
    return Bound(LARGEST_RELATIVE, max(bound.fraction, CHAOTIC_FRACTION))


# Holding two arrays against each other.


def _compare_one(number: int, a: NumpyArray, b: NumpyArray, bound: Bound, spec: ArraySpec) -> Verdict:
    for array in (a, b):
        if (array.shape, array.dtype) != (spec.shape, spec.numpy_dtype):
            sentence = f"output {number}: {array.dtype}{list(array.shape)} where the program gives {spec}"
            return Verdict(False, number, None, None, None, math.inf, 0.0, 1.0, 0.0, sentence)
    differences = _differences(a, b)
    allowed = _allowed(a, b, bound)
    beyond = float(np.mean(differences > allowed)) if a.size else 0.0
    agree = beyond <= bound.fraction
    if not differences.any():
        return Verdict(
            True,
            number,
            None,
            None,
            None,
            0.0,
            allowed,
            0.0,
            bound.fraction,
            f"output {number}: no difference",
        )
    index = tuple(int(axis) for axis in np.unravel_index(int(np.argmax(differences)), a.shape))
    worst = float(differences[index])
    sentence = (
        f"output {number}: {'agrees' if agree else 'DIFFERS'}; worst at {list(index)}: {a[index]} and {b[index]}, "
        f"apart by {worst:.3g} where {allowed:.3g} is allowed; {beyond:.2%} of the elements are beyond that, "
        f"{bound.fraction:.2%} may be"
    )
    return Verdict(agree, number, index, a[index], b[index], worst, allowed, beyond, bound.fraction, sentence)


def _differences(a: NumpyArray, b: NumpyArray) -> NumpyArray:
    """Absolute differences as float64: 0 for equal elements and for two NaNs, infinite where only one is finite."""
    if a.dtype.kind not in "fc":
        # Not by subtraction, which can wrap around; how far apart integers are is for the reader only.
        apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
        return np.where(a == b, 0.0, np.maximum(apart, 1.0))
    with np.errstate(all="ignore"):
        apart = np.abs(a.astype(np.complex128) - b.astype(np.complex128))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    finite = np.isfinite(a) & np.isfinite(b)
    return np.where(same, 0.0, np.where(finite, apart, np.inf))


def _allowed(a: NumpyArray, b: NumpyArray, bound: Bound) -> float:
    if a.dtype.kind not in "fc" or not a.size or not bound.relative:
        return 0.0
    magnitudes = np.maximum(np.abs(a), np.abs(b))
    finite = magnitudes[np.isfinite(magnitudes)]
    return bound.relative * float(finite.max()) if finite.size else 0.0
