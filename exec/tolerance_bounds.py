"""How far two honest results of a program may lie apart, told from the program alone: no data, no run.

Theory of operation. One pass over the nodes carries a `Bound` for each value, in three parts that add up:

- `relative`, a fraction of the element's own magnitude. Inputs and constants are exact. `+ - * / sqrt` of exact numbers
  are rounded once (IEEE 754), so they have this part alone. Products, quotients, roots, powers and what contracts
  (`tanh`, `erf`, `atan`, `asinh`) pass it on, multiplied by their condition number, which is at most 2. `exp` and its
  kin have the condition number |x|, which is at most `ln(largest float)` wherever the result is finite (88.7 in single
  precision). Terms of one sign (`exp(x) + 1`, `sum(x * x)`; see `_sign`) cannot cancel, so sums of them pass it on too.
- `absolute`, a number. `log` turns a relative error of its argument into this: near 1 its value is small, its error is
  not. Sums, shifts, `sin` and what contracts pass it on.
- `wide`, a fraction of the largest magnitude in the array. Where inexact terms of unknown sign are added or summed, and
  where a condition number depends on data (`sin`, `tan`, `asin` of inexact numbers), an element's scale is what it was
  made from, which nobody knows without the inputs. `running_errors` knows it where they are given.

Each node adds its own rounding, for both sides together, in units of u, half the spacing of floats at 1: 2 for
`+ - * / sqrt`, 16 for library functions (4 ulp a side: NumPy's own limit for its vector code, and not below what
CUDA's Programming Guide tabulates for nearly all of them), 2n for sums and products of n terms in any order (Higham,
Accuracy and Stability of Numerical Algorithms, 2nd ed., 3.1 and 4.2), 8 log2 n for transforms of n points (chapter
24), 20 n for factorisations of n rows. In complex numbers, magnitudes are moduli, and a product counts 8.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from coppermesh.exec.dtypes import COMPLEX, INEXACT, KINDS
from coppermesh.exec.program import ArraySpec, Scalar
from coppermesh.exec.schema import CheckedNode, CheckedProgram

ALLOWANCE: Final = 16.0
"""Room in `wide` for moderate cancellation and conditioning, which no rule sees that does not look at values."""
ELEMENT_ALLOWANCE: Final = 4.0
"""Room in `relative` and `absolute`, which are worst cases already but for libraries that miss 4 ulp."""
LARGEST_RELATIVE: Final = 1e-2
"""No part is wider than this: a program whose errors may grow beyond is judged like a loop."""
EDGE_FRACTION: Final = 1e-3
"""Of elements that come from a choice on inexact numbers."""
CHAOTIC_FRACTION: Final = 1e-2
"""Of elements that come from a loop or a kernel."""
ROUNDED_STEPS: Final = 2.0
COMPLEX_STEPS: Final = 8.0
LIBRARY_STEPS: Final = 16.0
KERNEL_STEPS: Final = 256.0
_INEXACT: Final = math.ulp(0.0)
"""Marks integers and booleans that come from inexact numbers: equal, but for single elements."""

# fmt: off
CHAOTIC: Final = frozenset((
    "raw_kernel", "elementwise_kernel", "reduction_kernel", "module_kernel", "module_get", "module_set", "module_state",
    "scan",
))
# fmt: on
FOURIER: Final = frozenset(("fft", "ifft", "rfft", "irfft", "fftn", "ifftn", "rfftn", "irfftn"))
FACTORING: Final = frozenset(
    ("cholesky", "det", "eigh", "eigvalsh", "inv", "qr", "slogdet", "solve", "svd", "svdvals")
)
_PRODUCTS = frozenset(("matmul", "conv"))
_SUMS = frozenset(("sum", "mean", "cumulative_sum", "add_at", "pool")) | _PRODUCTS
_CONTRACTING = frozenset(("tanh", "erf", "atan", "asinh"))
_LOGARITHMS = {"log": 1.0, "log2": 1 / math.log(2), "log10": 1 / math.log(10)}
_DATA_DEPENDENT = frozenset(("tan", "asin", "acos", "acosh", "atanh", "ndtri"))
# fmt: off
LIBRARY: Final = _CONTRACTING | _DATA_DEPENDENT | frozenset((
    "atan2", "cos", "cosh", "exp", "expm1", "hypot", "linspace", "log", "log10", "log1p", "log2", "logaddexp", "pow",
    "sin", "sinh",
))
COMPARING: Final = frozenset(("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"))
CHOOSING: Final = COMPARING | frozenset((
    "ceil", "floor", "round", "trunc", "sign", "signbit", "floor_divide", "remainder", "nextafter", "argmax", "argmin",
    "argsort", "searchsorted", "all", "any", "isfinite", "isinf", "isnan", "logical_and", "logical_or", "logical_not",
    "logical_xor", "eigh", "qr", "svd",
))
_NEVER_NEGATIVE = frozenset((
    "abs", "square", "exp", "sqrt", "cosh", "hypot", "acos", "acosh", "var", "std", "svdvals", "eye",
))
_CONVERTING = frozenset(("astype", "sum", "prod", "cumulative_sum", "cumulative_prod"))
_POSITIONS = frozenset(("argmax", "argmin", "argsort", "searchsorted"))
_KEEPS_SIGN = frozenset((
    "add", "add_at", "asinh", "astype", "atan", "broadcast_to", "ceil", "clip", "concat", "copysign", "cumulative_sum",
    "erf", "expm1", "flip", "floor", "full", "getitem", "log1p", "max", "maximum", "mean", "min", "minimum", "pad",
    "permute_dims", "pool", "put", "reciprocal", "reshape", "roll", "round", "setitem", "sign", "sinh", "sort", "sum",
    "take", "take_along_axis", "tanh", "trunc", "where",
))
# fmt: on
"""Give numbers of one sign where all their arguments of that dtype have it."""


@dataclass(frozen=True, slots=True)
class Bound:
    """How far elements of one value may lie apart; all zero is bit for bit."""

    relative: float = 0.0
    """Of the element's own magnitude."""
    absolute: float = 0.0
    wide: float = 0.0
    """Of the largest magnitude in the array."""
    fraction: float = 0.0
    """Of the elements that may differ by more."""
    sign: int = 0
    """1 where no element is negative, -1 where none is positive, 0 where nobody knows."""

    @property
    def exact(self) -> bool:
        """Whether only equal elements agree."""
        return not (self.relative or self.absolute or self.wide)

    @property
    def widest(self) -> float:
        """All that is known of the error, as if everything had the array's largest magnitude."""
        return self.relative + self.absolute + self.wide


@dataclass(frozen=True, slots=True)
class _Step:
    """One node: what it is given and what it adds itself."""

    node: CheckedNode
    given: Sequence[Bound]
    spec: ArraySpec
    own: float
    """Its own rounding, both sides together."""

    @property
    def op(self) -> str:
        return self.node.node.op

    def constant(self, position: int) -> float | None:
        """The magnitude of a constant written in place; None for an array."""
        scalar = self.node.call.scalars[position]
        return None if scalar is None else float(abs(complex(scalar.value())))

    def total(self, name: str) -> float:
        return math.fsum(getattr(bound, name) for bound in self.given)

    def largest(self, name: str) -> float:
        return max((getattr(bound, name) for bound in self.given), default=0.0)


def output_bounds(checked: CheckedProgram) -> list[Bound]:
    """What each output is allowed, allowances included. One pass over the nodes."""
    bounds = [Bound(sign=_dtype_sign(spec.dtype)) for spec in checked.values]
    for node in checked.nodes:
        given = [_given(argument, bounds) for argument in node.node.args if not isinstance(argument, bytes)]
        for position, spec in enumerate(node.results):
            bounds[node.first + position] = _node_bound(node, given, spec)
    return [_allowed(bounds[number]) for number in checked.program.outputs]


def _given(argument: int | Scalar, bounds: Sequence[Bound]) -> Bound:
    if isinstance(argument, int):
        return bounds[argument]
    value = argument.value()
    if KINDS[argument.dtype] == "c" or math.isnan(value):
        return Bound()
    return Bound(sign=1 if complex(value).real >= 0 else -1)


def _dtype_sign(dtype: str) -> int:
    return 1 if KINDS[dtype] in "bu" else 0


def _node_bound(node: CheckedNode, given: Sequence[Bound], spec: ArraySpec) -> Bound:
    op = node.node.op
    fraction = max((bound.fraction for bound in given), default=0.0)
    inexact = not all(bound.exact for bound in given)
    floating = spec.dtype in INEXACT
    if op in CHAOTIC:
        fraction = max(fraction, CHAOTIC_FRACTION)
        return Bound(wide=KERNEL_STEPS * unit(spec.dtype) if floating else _INEXACT, fraction=fraction)
    if inexact and (op in CHOOSING or (op == "astype" and not floating)):
        fraction = max(fraction, EDGE_FRACTION)
    sign = _sign(node, given, spec)
    if not floating:
        return Bound(relative=_INEXACT if inexact else 0.0, fraction=fraction, sign=sign)
    step = _Step(node, given, spec, own_steps(node, spec) * unit(spec.dtype))
    return replace(_RULES.get(op, _carried)(step), fraction=fraction, sign=sign)


def unit(dtype: str) -> float:
    """Half the spacing of floats at 1."""
    return float(np.finfo(dtype).eps) / 2


def own_steps(node: CheckedNode, spec: ArraySpec) -> float:
    """Rounding errors of one node, for both sides together, in units of `unit`."""
    op, specs = node.node.op, node.call.specs
    if op in FACTORING:
        return 20.0 * max(specs[0].shape[-1:] or (1,))
    if op in FOURIER:
        return 8.0 * math.log2(max(2, specs[0].size))
    if op in LIBRARY:
        return LIBRARY_STEPS
    rounded = COMPLEX_STEPS if spec.dtype in COMPLEX else ROUNDED_STEPS
    if op in _SUMS or op in ("prod", "cumulative_prod", "var", "std"):
        return rounded * (terms(node, spec) + 1)
    if op in ("add", "subtract", "multiply", "divide", "square", "sqrt", "reciprocal", "remainder"):
        return rounded
    if op == "arange":
        return 0.0 if _is_whole_arange(node) else 2 * rounded
    if op in ("abs", "sign") and specs[0].dtype in COMPLEX:
        return rounded
    # Whole numbers convert to the same floats everywhere, and to wider ones nothing is lost.
    narrows = specs and specs[0].dtype in INEXACT and not np.can_cast(specs[0].dtype, spec.dtype)
    return rounded if op == "astype" and narrows else 0.0


def _is_whole_arange(node: CheckedNode) -> bool:
    """Whether every number counted is whole, and small enough to be exact."""
    values = [None if scalar is None else complex(scalar.value()).real for scalar in node.call.scalars]
    start, step = values[0], values[1]
    if start is None or step is None or not (start.is_integer() and step.is_integer()):
        return False
    return abs(start) + abs(step) * node.call.integer("length") < 1 << 24


def terms(node: CheckedNode, spec: ArraySpec) -> float:
    """How many numbers one element of the result is summed from, at most."""
    specs = node.call.specs
    if node.node.op == "matmul":
        return float(specs[0].shape[-1])
    if node.node.op == "conv":
        return specs[1].size / max(1, specs[1].shape[0])
    if node.node.op == "pool":
        return float(math.prod(node.call.integers("window")))
    if node.node.op in ("cumulative_sum", "cumulative_prod"):
        return float(specs[0].shape[node.call.integer("axis")])
    if node.node.op == "add_at":
        return float(specs[1].size)
    return specs[0].size / max(1, spec.size)


# The rules, one for each kind of operation: from bounds of the arguments to the bound of the result.


def _carried(step: _Step) -> Bound:
    """Moving and choosing: errors stay as they are."""
    return Bound(step.largest("relative") + step.own, step.largest("absolute"), step.largest("wide"))


def _part(step: _Step) -> Bound:
    """One part of a complex number may be far smaller than its modulus."""
    return Bound(0.0, step.largest("absolute"), step.largest("relative") + step.largest("wide"))


def _added(step: _Step) -> Bound:
    exact = all(bound.exact for bound in step.given)
    first, second = (bound.sign for bound in step.given)
    aligned = first and first == (second if step.op == "add" else -second)
    absolute, wide = step.total("absolute"), step.total("wide")
    if exact or aligned:
        return Bound(step.largest("relative") + step.own, absolute, wide)
    return Bound(step.own, absolute, wide + step.largest("relative"))


def _multiplied(step: _Step) -> Bound:
    relative, wide = step.total("relative") + step.own, step.total("wide")
    first, second = step.constant(0), step.constant(1)
    if step.op == "divide" and second:
        return Bound(relative, step.given[0].absolute / second, wide)
    if step.op == "multiply" and (first is not None or second is not None):
        factor = first if first is not None else second
        return Bound(relative, step.total("absolute") * (factor or 0.0), wide)
    return Bound(relative, 0.0, wide + step.total("absolute"))


def _powered(step: _Step) -> Bound:
    base, exponent = step.given
    power = step.constant(1)
    if power is not None:
        return _scaled(step, max(1.0, power))
    if base.exact:
        return Bound(exponent.relative * _log_of_largest(step.spec.dtype) + step.own, 0.0, exponent.widest)
    return Bound(step.own, 0.0, base.widest + exponent.widest)


def _scaled(step: _Step, condition: float) -> Bound:
    """What multiplies a relative error by its condition number."""
    given = step.given[0]
    return Bound(condition * given.relative + step.own, 0.0, condition * (given.wide + given.absolute))


def _squared(step: _Step) -> Bound:
    return _scaled(step, 2.0)


def _rooted(step: _Step) -> Bound:
    return _scaled(step, 0.5)


def _inverted(step: _Step) -> Bound:
    return _scaled(step, 1.0)


def _log_of_largest(dtype: str) -> float:
    return math.log(float(np.finfo(dtype).max))


def _exponential(step: _Step) -> Bound:
    """exp(x + a) is exp(x) (1 + a), and |x| is below the logarithm of the largest float."""
    given = step.given[0]
    relative = given.relative * _log_of_largest(step.spec.dtype) + given.absolute + step.own
    return Bound(relative, 0.0 if step.op == "exp" else given.absolute, given.wide)


def _logarithm(step: _Step) -> Bound:
    given = step.given[0]
    factor = _LOGARITHMS[step.op]
    return Bound(step.own, factor * given.relative, factor * (given.absolute + given.wide))


def _log1p(step: _Step) -> Bound:
    given = step.given[0]
    if given.sign > 0 or given.exact:
        return Bound(given.relative + step.own, given.absolute, given.wide)
    return Bound(step.own, 0.0, given.widest)


def _contracted(step: _Step) -> Bound:
    given = step.given[0]
    return Bound(given.relative + step.own, 2 * given.absolute, given.wide)


def _wave(step: _Step) -> Bound:
    given = step.given[0]
    return Bound(step.own, given.absolute, given.relative + given.wide)


def _data_dependent(step: _Step) -> Bound:
    return Bound(step.own, 0.0, step.given[0].widest)


def _length(step: _Step) -> Bound:
    return Bound(step.largest("relative") + step.own, step.total("absolute"), step.total("wide"))


def _angle(step: _Step) -> Bound:
    return Bound(2 * step.total("relative") + step.own, 0.0, step.total("absolute") + step.total("wide"))


def _log_of_sum(step: _Step) -> Bound:
    """Near zero it is small where its arguments are not."""
    return Bound(
        0.0, step.total("absolute") + step.own, step.own + step.largest("relative") + step.total("wide")
    )


def _summed(step: _Step) -> Bound:
    if step.op == "pool" and step.node.call.word("kind") == "max":
        return _carried(replace(step, own=0.0))
    summands = [
        bound
        for bound, spec in zip(step.given, step.node.call.specs, strict=True)
        if step.op != "add_at" or spec.dtype == step.spec.dtype
    ]
    relatives = [bound.relative for bound in summands]
    carried = math.fsum(relatives) if step.op in _PRODUCTS else max(relatives)
    wide = math.fsum(bound.wide for bound in summands)
    absolute = 0.0
    if step.op in _PRODUCTS:
        wide += step.total("absolute")
    else:
        absolute = step.total("absolute") * (1.0 if step.op == "mean" else terms(step.node, step.spec))
    same_sign = len({bound.sign for bound in summands}) == 1 or step.op in _PRODUCTS
    if same_sign and all(bound.sign for bound in summands):
        return Bound(carried + step.own, absolute, wide)
    return Bound(0.0, absolute, wide + carried + step.own)


def _product(step: _Step) -> Bound:
    given, count = step.given[0], terms(step.node, step.spec)
    return Bound(count * given.relative + step.own, 0.0, count * (given.absolute + given.wide))


def _spread(step: _Step) -> Bound:
    """Also transforms, factorisations, evenly spaced numbers: an element's scale is that of the whole."""
    return Bound(0.0, 0.0, step.own + math.fsum(bound.widest for bound in step.given))


_RULES: dict[str, Callable[[_Step], Bound]] = {
    **dict.fromkeys(("real", "imag"), _part),
    **dict.fromkeys(("add", "subtract"), _added),
    **dict.fromkeys(("multiply", "divide"), _multiplied),
    "pow": _powered,
    "square": _squared,
    "sqrt": _rooted,
    "reciprocal": _inverted,
    **dict.fromkeys(("exp", "expm1", "sinh", "cosh"), _exponential),
    **dict.fromkeys(_LOGARITHMS, _logarithm),
    "log1p": _log1p,
    **dict.fromkeys(_CONTRACTING, _contracted),
    **dict.fromkeys(("sin", "cos"), _wave),
    **dict.fromkeys(_DATA_DEPENDENT, _data_dependent),
    "hypot": _length,
    "atan2": _angle,
    "logaddexp": _log_of_sum,
    **dict.fromkeys(_SUMS, _summed),
    **dict.fromkeys(("prod", "cumulative_prod"), _product),
    **dict.fromkeys((*FOURIER, *FACTORING, "var", "std", "linspace", "arange", "remainder"), _spread),
}


def _sign(node: CheckedNode, given: Sequence[Bound], spec: ArraySpec) -> int:
    """The sign of all elements that are not zero. Signed integers wrap around: nothing is known of them."""
    op = node.node.op
    if spec.dtype not in INEXACT:
        return 1 if op in _POSITIONS else _dtype_sign(spec.dtype)
    if spec.dtype in COMPLEX:
        return 0
    if op in _NEVER_NEGATIVE:
        return 1
    signs = [
        bound.sign
        for bound, argument in zip(given, node.call.specs, strict=True)
        if argument.dtype == spec.dtype or op in _CONVERTING
    ]
    if op in ("multiply", "divide", *_PRODUCTS):
        squared = node.node.args[0] == node.node.args[1] and op not in _PRODUCTS
        return 1 if squared else signs[0] * signs[1]
    if op == "negative":
        return -signs[0]
    if op == "subtract":
        return signs[0] if signs[0] == -signs[1] else 0
    if op == "maximum" and max(signs) > 0:
        return 1
    if op == "minimum" and min(signs) < 0:
        return -1
    if op in ("pow", "prod", "cumulative_prod"):
        return max(signs[0], 0)
    if op in ("arange", "linspace"):
        return max(min(signs), 0)
    return signs[0] if op in _KEEPS_SIGN and len(set(signs)) == 1 else 0


def _allowed(bound: Bound) -> Bound:
    """With the allowances, and none wider than `LARGEST_RELATIVE`."""
    relative, wide = ELEMENT_ALLOWANCE * bound.relative, ALLOWANCE * bound.wide
    fraction = bound.fraction
    if max(relative, wide) > LARGEST_RELATIVE:
        relative, wide = min(relative, LARGEST_RELATIVE), LARGEST_RELATIVE
        fraction = max(fraction, CHAOTIC_FRACTION)
    return replace(
        bound, relative=relative, absolute=ELEMENT_ALLOWANCE * bound.absolute, wide=wide, fraction=fraction
    )
