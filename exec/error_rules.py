"""What becomes of errors in each operation: the rules of `running_errors`, which says how they are meant."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from coppermesh.exec.array_operations import make_table
from coppermesh.exec.dtypes import FLOATING
from coppermesh.exec.schema import CheckedNode
from coppermesh.exec.shapes import as_python_index
from coppermesh.exec.tolerance_bounds import COMPARING, FACTORING, FOURIER

NumpyArray = np.ndarray[Any, Any]
Errors = NumpyArray | float
"""An array of the value's shape, or 0.0 where it is exact."""

TABLE: Final = make_table(np)
_MOVING = frozenset(
    ("reshape", "broadcast_to", "permute_dims", "flip", "roll", "getitem", "take", "take_along_axis", "full")
)
# fmt: off
_MONOTONE = frozenset((
    "acos", "acosh", "asin", "asinh", "atan", "atanh", "ceil", "cosh", "erf", "exp", "expm1", "floor", "log", "log10",
    "log1p", "log2", "ndtri", "round", "sign", "sinh", "sqrt", "square", "tanh", "trunc",
))
# fmt: on
_LOGICAL = frozenset(("logical_and", "logical_or", "logical_xor", "logical_not", "all", "any"))
POSITIONS = frozenset(("argmax", "argmin", "argsort", "searchsorted"))
UNDETERMINED = frozenset(("eigh", "svd", "qr"))
"""Vectors up to a sign or a rotation: what a library gives is a choice. Their values have rules of their own."""


@dataclass(frozen=True, slots=True)
class Step:
    """One node that has run: its arguments and their errors, its result, and its own rounding (a factor)."""

    node: CheckedNode
    xs: Sequence[Any]
    errors: Sequence[Errors]
    result: Any
    own: float

    @property
    def op(self) -> str:
        """The operation's name."""
        return self.node.node.op

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Its attributes."""
        return self.node.node.attrs

    def again(self, arrays: Sequence[Any]) -> Any:
        """The same operation on other arrays."""
        return TABLE[self.op](arrays, self.attrs)


def as_double(x: Any) -> Any:
    """In double precision: errors and derivatives must not overflow. Integers stay, they may be indices."""
    array = np.asarray(x)
    return array.astype({"f": np.float64, "c": np.complex128}.get(array.dtype.kind, array.dtype))


def _number(x: Any) -> Any:
    """`x` as something that can be subtracted: no booleans, nothing that wraps around."""
    return x if np.asarray(x).dtype.kind in "fc" else np.asarray(x, dtype=np.float64)


def _times(size: Any, error: Errors) -> Any:
    """No error stays none, also of infinity."""
    return np.where(np.equal(error, 0), 0.0, np.abs(size) * error)


def rule_for(op: str) -> Callable[[Step], Any]:
    """The rule of one operation: gives errors, of the result's shape or broadcast to it."""
    for names, rule in _KINDS:
        if op in names:
            return rule
    return _RULES.get(op, _of_the_whole)


def _own(step: Step) -> Any:
    """Rounding of the result; below the smallest normal number the spacing stays what it is there."""
    if not step.own:
        return 0.0
    smallest = float(np.finfo(step.node.results[0].dtype).tiny)
    return np.where(np.isfinite(step.result), step.own * np.maximum(np.abs(step.result), smallest), 0.0)


# Moving and choosing.

ASSIGNING = frozenset(("setitem", "put", "add_at"))


def assign(op: str, arrays: Sequence[Any], attrs: Mapping[str, Any]) -> NumpyArray:
    """`setitem`, `put`, `add_at`: on a copy."""
    target = np.array(arrays[0])
    if op == "setitem":
        target[as_python_index(attrs["index"])] = arrays[1]
        return target
    where = (slice(None),) * attrs["axis"] + (np.asarray(arrays[1]).astype("int64"),)
    if op == "put":
        target[where] = arrays[2]
    else:
        np.add.at(target, where, arrays[2])
    return target


def _moved(step: Step) -> Any:
    """The same movement of the errors; the other arguments are indices."""
    shape = step.node.call.specs[0].shape
    return step.again([np.broadcast_to(step.errors[0], shape), *step.xs[1:]])


def _joined(step: Step) -> Any:
    pairs = zip(step.errors, step.node.call.specs, strict=True)
    return step.again([np.broadcast_to(error, spec.shape) for error, spec in pairs])


def _padded(step: Step) -> Any:
    return step.again([np.broadcast_to(step.errors[0], step.xs[0].shape), np.float64(0)])


def _assigned(step: Step) -> Any:
    target = np.broadcast_to(step.errors[0], step.xs[0].shape)
    error = assign(step.op, [target, *step.xs[1:-1], step.errors[-1]], step.attrs)
    if step.op == "add_at" and step.own:
        sizes = assign(step.op, [np.abs(step.xs[0]), step.xs[1], np.abs(step.xs[2])], step.attrs)
        error = error + step.own * sizes
    return error


def _selected(step: Step) -> Any:
    condition, first, second = step.xs
    open_choice = np.asarray(step.errors[0]) > 0
    chosen = np.where(condition, step.errors[1], step.errors[2])
    either = np.abs(_number(first) - _number(second)) + np.maximum(step.errors[1], step.errors[2])
    return np.where(open_choice, either, chosen)


def _larger(step: Step) -> Any:
    return np.maximum.reduce(np.broadcast_arrays(*step.errors)) + _own(step)


def _bits(step: Step) -> Any:
    return _judged(step) if step.result.dtype.kind == "b" else _of_the_whole(step)


def _in_order(step: Step) -> Any:
    """The k-th largest of two arrays differs by no more than the arrays do."""
    axis = step.attrs["axis"]
    return np.max(step.errors[0], axis=axis, keepdims=True, initial=0.0)


def _extreme(step: Step) -> Any:
    error = np.broadcast_to(step.errors[0], step.xs[0].shape)
    return np.max(error, axis=step.attrs["axes"], keepdims=step.attrs["keepdims"], initial=0.0)


def _compared(step: Step) -> Any:
    first, second = (_number(x) for x in step.xs)
    return ((np.abs(first - second) <= _sum_of(step)) & (_sum_of(step) > 0)).astype(np.float64)


def _judged(step: Step) -> Any:
    """Truth values: open where one of what they come from is."""
    if step.op in ("all", "any"):
        return np.minimum(_extreme(step), 1.0)
    return np.minimum(_larger(step), 1.0)


def _signed(step: Step) -> Any:
    return ((np.abs(_number(step.xs[0])) <= step.errors[0]) & (np.asarray(step.errors[0]) > 0)).astype(
        np.float64
    )


def _finite(step: Step) -> Any:
    return np.broadcast_to(np.isinf(step.errors[0]), step.result.shape).astype(np.float64)


# Arithmetic.


def _added(step: Step) -> Any:
    return _sum_of(step) + _own(step)


def _multiplied(step: Step) -> Any:
    (x, y), (ex, ey) = step.xs, step.errors
    return _times(x, ey) + _times(y, ex) + np.multiply(ex, ey) + _own(step)


def _divided(step: Step) -> Any:
    (_, y), (ex, ey) = step.xs, step.errors
    left = np.abs(y) - ey
    return _quotient(ex + _times(step.result, ey), left) + _own(step)


def _inverted(step: Step) -> Any:
    size, error = np.abs(step.xs[0]), step.errors[0]
    left = size - error
    return _quotient(error, size * left) + _own(step)


def _quotient(error: Any, size: Any) -> Any:
    """`error / size`; no error stays none, and anything may come of a divisor that may be zero."""
    return np.where(np.equal(error, 0), 0.0, np.where(size > 0, error / size, np.inf))


def _powered(step: Step) -> Any:
    (base, exponent), (eb, ee) = step.xs, step.errors
    size = np.abs(step.result)
    by_base = np.where(np.equal(eb, 0), 0.0, np.abs(exponent) * eb / np.abs(base))
    by_exponent = np.where(np.equal(ee, 0), 0.0, np.abs(np.log(np.abs(base))) * ee)
    return _times(size, by_base + by_exponent) + _own(step)


def _sum_of(step: Step) -> Any:
    return np.add(step.errors[0], step.errors[1])


def _length(step: Step) -> Any:
    return _sum_of(step) + _own(step)


def _angle(step: Step) -> Any:
    (y, x), (ey, ex) = step.xs, step.errors
    return _quotient(_times(x, ey) + _times(y, ex), x * x + y * y) + _own(step)


def _log_of_sum(step: Step) -> Any:
    sizes = np.maximum(np.abs(step.xs[0]), np.abs(step.xs[1]))
    return _larger(step) + step.own * np.maximum(sizes, 1.0)


def _remainder(step: Step) -> Any:
    """By `fmod`, or by x - floor(x / y) y, which rounds x. Where x / y may be on either side of an integer: y."""
    (x, y), (ex, ey) = step.xs, step.errors
    quotient = x / y
    error = ex + np.abs(np.floor(quotient)) * ey + step.own * np.abs(x)
    return np.where(_crosses(quotient, error / np.abs(y)), np.abs(y), error)


def _floor_divided(step: Step) -> Any:
    (x, y), (ex, ey) = step.xs, step.errors
    quotient = x / y
    return _crosses(quotient, (ex + np.abs(quotient) * ey) / np.abs(y)).astype(np.float64)


def _crosses(quotient: Any, error: Any) -> Any:
    return np.floor(quotient - error) != np.floor(quotient + error)


def _converted(step: Step) -> Any:
    x, error = step.xs[0], step.errors[0]
    kind = step.node.results[0].numpy_dtype.kind
    if kind in "fc":
        return error + _own(step)
    if kind == "b":
        return _signed(step)
    return np.maximum(np.abs(np.trunc(x + error) - step.result), np.abs(np.trunc(x - error) - step.result))


# Functions of one number.

_DERIVATIVES: dict[str, Callable[[Any, Any], Any]] = {
    "exp": lambda _x, y: y,
    "expm1": lambda _x, y: y + 1,
    "log": lambda x, _y: 1 / x,
    "log1p": lambda x, _y: 1 / (1 + x),
    "log2": lambda x, _y: 1 / (x * np.log(2)),
    "log10": lambda x, _y: 1 / (x * np.log(10)),
    "sqrt": lambda _x, y: 0.5 / y,
    "square": lambda x, _y: 2 * x,
    "sin": lambda x, _y: np.cos(x),
    "cos": lambda x, _y: np.sin(x),
    "tan": lambda _x, y: 1 + y * y,
    "asin": lambda x, _y: 1 / np.sqrt(1 - x * x),
    "acos": lambda x, _y: 1 / np.sqrt(1 - x * x),
    "atan": lambda x, _y: 1 / (1 + x * x),
    "sinh": lambda x, _y: np.cosh(x),
    "cosh": lambda x, _y: np.sinh(x),
    "tanh": lambda _x, y: 1 - y * y,
    "asinh": lambda x, _y: 1 / np.sqrt(1 + x * x),
    "acosh": lambda x, _y: 1 / np.sqrt(x * x - 1),
    "atanh": lambda x, _y: 1 / (1 - x * x),
}


def _function(step: Step) -> Any:
    if np.iscomplexobj(step.xs[0]):
        return _complex_function(step)
    if not np.any(step.errors[0]):
        return _own(step)
    x, error = step.xs[0], step.errors[0]
    center = step.again([np.asarray(x, dtype=np.float64)])
    above, below = (step.again([np.asarray(end, dtype=np.float64)]) for end in (x + error, x - error))
    spread = np.maximum(np.abs(above - center), np.abs(below - center))
    same = np.isnan(center) & np.isnan(above) & np.isnan(below) | (above == below)
    return np.where(same, 0.0, spread) + _own(step)


def _complex_function(step: Step) -> Any:
    """As if the argument had been rounded first: libraries give moduli well, and parts only up to that."""
    x, y = step.xs[0], step.result
    if step.op == "sign":
        return _quotient(step.errors[0], np.abs(x)) + _own(step)
    if step.op not in _DERIVATIVES:
        return step.errors[0] + _own(step)
    slope = np.abs(_DERIVATIVES[step.op](x, y))
    return _times(slope, step.errors[0] + step.own * np.abs(x)) + _own(step)


def _wave(step: Step) -> Any:
    if np.iscomplexobj(step.xs[0]):
        return _complex_function(step)
    return np.minimum(step.errors[0], 2.0) + _own(step)


def _tangent(step: Step) -> Any:
    if np.iscomplexobj(step.xs[0]):
        return _complex_function(step)
    error, y = step.errors[0], np.abs(step.result)
    left = 1 - y * error  # tan(x + e) = (y + tan e) / (1 - y tan e)
    return np.where(left > 0.1, (1 + y * y) * error / left, np.inf) + _own(step)


# Sums: an element's own rounding is that of all that was summed, what it carries is taken as independent.


def _plain_sum(step: Step) -> Callable[[Any], Any]:
    """The node's sum, of other numbers."""
    table, attrs = TABLE, dict(step.attrs)
    if step.op in ("sum", "mean"):
        options = {"axes": attrs["axes"], "keepdims": attrs["keepdims"], "dtype": "float64"}
        return lambda x: table["sum"]([x], options)
    if step.op == "cumulative_sum":
        return lambda x: table["cumulative_sum"]([x], {**attrs, "dtype": "float64"})
    return lambda x: table["pool"]([x], attrs)


def _summed(step: Step) -> Any:
    x, error = step.xs[0], np.broadcast_to(np.asarray(step.errors[0], dtype=np.float64), step.xs[0].shape)
    if step.op == "pool" and step.attrs["kind"] == "max":
        return step.again([error])
    total = _plain_sum(step)
    if step.node.results[0].dtype not in FLOATING:
        return total(error)
    result = step.own * total(np.abs(x)) + np.sqrt(total(error * error))
    return result / max(1.0, x.size / max(1, step.result.size)) if step.op == "mean" else result


def _contracted(step: Step) -> Any:
    (x, y), (ex, ey) = (np.abs(x) for x in step.xs), step.errors
    result = step.own * step.again([x, y])
    carried: Any = 0.0
    if np.any(ex):
        carried = carried + step.again([np.broadcast_to(np.square(ex), x.shape), np.square(y)])
    if np.any(ey):
        carried = carried + step.again([np.square(x), np.broadcast_to(np.square(ey), y.shape)])
    return result + np.sqrt(carried)


def _product(step: Step) -> Any:
    x, error = step.xs[0], step.errors[0]
    relative = np.where(np.equal(error, 0), 0.0, error / np.abs(x))
    attrs = {**step.attrs, "dtype": "float64"}
    total = TABLE["sum" if step.op == "prod" else "cumulative_sum"](
        [np.broadcast_to(relative, x.shape)], attrs
    )
    return np.abs(step.result) * (total + step.own) + _own(step)


def _spread(step: Step) -> Any:
    """Variances by two passes: an error of the mean counts squared. Standard deviations by the root's own slope."""
    x, error = step.xs[0], step.errors[0]
    axes, keep = step.attrs["axes"], {"axis": step.attrs["axes"], "keepdims": True}
    count = max(1.0, x.size / max(1, step.result.size) - float(step.xs[1]))
    centred = np.abs(x - np.mean(x, **keep))
    of_mean = step.own * np.mean(np.abs(x), **keep)
    shape = step.result.shape
    variance = np.sum(centred * centred, axis=axes).reshape(shape) / count
    carried = 2 * np.sqrt(np.sum(np.square(centred * error), axis=axes)) / count
    total = (
        step.own * variance + carried.reshape(shape) + np.mean(of_mean * of_mean, axis=axes).reshape(shape)
    )
    if step.op == "var":
        return total
    root = np.sqrt(variance)
    return total / (np.sqrt(variance + total) + root) + step.own * root


# Where an element's scale is that of a whole.


def _transformed(step: Step) -> Any:
    """Root mean squares along the transformed axes: a transform keeps them, up to its norm."""
    axes = step.attrs.get("axes") or (step.attrs["axis"],)
    error = np.broadcast_to(np.asarray(step.errors[0]), step.xs[0].shape)
    carried, size = _rms(error, axes), _rms(step.xs[0], axes)
    relative = np.where(carried == 0, 0.0, carried / size)
    return np.broadcast_to(_rms(step.result, axes) * (relative + step.own), step.result.shape)


def _rms(x: Any, axes: Sequence[int]) -> Any:
    return np.sqrt(np.mean(np.square(np.abs(x)), axis=tuple(axes), keepdims=True))


def _factored(step: Step) -> Any:
    """Backward stable: as if the matrix had been rounded, which its condition number magnifies."""
    matrix, error = step.xs[0], np.broadcast_to(np.asarray(step.errors[0]), step.xs[0].shape)
    if not matrix.size:
        return 0.0
    size = np.max(np.abs(matrix), axis=(-2, -1))
    relative = step.own + np.where(size > 0, np.max(error, axis=(-2, -1)) / size, 0.0)
    if step.op in ("eigh", "eigvalsh", "svd", "svdvals"):
        return (relative * np.linalg.norm(matrix, 2, axis=(-2, -1)))[..., None]
    relative = relative * _condition(matrix)
    if step.op == "slogdet":
        return relative if np.isrealobj(step.result) else np.minimum(relative, 2.0)
    if step.op == "det":
        return relative * np.abs(step.result)
    if step.op == "solve" and np.any(step.errors[1]):
        sizes = np.max(np.abs(step.xs[1]), axis=(-2, -1))
        carried = np.max(np.broadcast_to(step.errors[1], step.xs[1].shape), axis=(-2, -1))
        relative = relative + np.where(carried == 0, 0.0, carried / sizes) * _condition(matrix)
    return (relative * np.max(np.abs(step.result), axis=(-2, -1), initial=0.0))[..., None, None]


def _condition(matrix: NumpyArray) -> Any:
    finite = np.all(np.isfinite(matrix), axis=(-2, -1))
    safe = np.where(finite[..., None, None], matrix, 0.0)
    return np.where(finite, np.linalg.cond(safe), np.inf)


def _of_the_whole(step: Step) -> Any:
    """No rule of its own: relative errors add up, and are of the largest magnitude."""
    relative = step.own
    for x, error in zip(step.xs, step.errors, strict=True):
        largest = float(np.max(error, initial=0.0))
        if largest:
            relative += largest / max(float(np.max(np.abs(x), initial=0.0)), float(np.finfo(np.float64).tiny))
    scales = [
        np.max(np.abs(x), initial=0.0) for x in (*step.xs, step.result) if step.op in ("arange", "linspace")
    ]
    return relative * max([float(np.max(np.abs(step.result), initial=0.0)), *map(float, scales)])


_KINDS: tuple[tuple[frozenset[str], Callable[[Step], Any]], ...] = (
    (_MOVING, _moved),
    (_MONOTONE, _function),
    (_LOGICAL, _judged),
    (COMPARING, _compared),
    (FOURIER, _transformed),
    (FACTORING, _factored),
    (ASSIGNING, _assigned),
)
_RULES: dict[str, Callable[[Step], Any]] = {
    **dict.fromkeys(("abs", "negative", "conj", "real", "imag", "copysign", "nextafter"), _larger),
    **dict.fromkeys(("maximum", "minimum", "clip"), _larger),
    **dict.fromkeys(("max", "min"), _extreme),
    **dict.fromkeys(("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_invert"), _bits),
    **dict.fromkeys(("add", "subtract"), _added),
    **dict.fromkeys(("sum", "mean", "cumulative_sum", "pool"), _summed),
    **dict.fromkeys(("matmul", "conv"), _contracted),
    **dict.fromkeys(("prod", "cumulative_prod"), _product),
    **dict.fromkeys(("var", "std"), _spread),
    **dict.fromkeys(("isfinite", "isinf", "isnan"), _finite),
    **dict.fromkeys(("sin", "cos"), _wave),
    "tan": _tangent,
    "astype": _converted,
    "atan2": _angle,
    "concat": _joined,
    "divide": _divided,
    "floor_divide": _floor_divided,
    "hypot": _length,
    "logaddexp": _log_of_sum,
    "multiply": _multiplied,
    "pad": _padded,
    "pow": _powered,
    "reciprocal": _inverted,
    "remainder": _remainder,
    "signbit": _signed,
    "sort": _in_order,
    "where": _selected,
}
