"""`xp`, many elements to one: sums, extremes, statistics, truth, positions, running sums.

`axis` is None (all), one axis or a tuple; `keepdims` keeps reduced axes with length 1.
"""

from typing import Any

import numpy as np

from coppermesh.exec import dtypes
from coppermesh.exec.graph import Value, record_one
from coppermesh.exec.indexing import normalize_axes, normalize_axis
from coppermesh.exec.program import Attributes, make_scalar
from coppermesh.exec.promotion import as_value, cast_value, floating_value, reshape_value, truth
from coppermesh.exec.recorder import Array
from coppermesh.exec.xp_arrangement import sort
from coppermesh.exec.xp_elementwise import isnan, where

Axis = int | tuple[int, ...] | None


def _reduce(op: str, value: Value, axis: Axis, keepdims: bool) -> Array:
    attrs: Attributes = {"axes": normalize_axes(axis, value.spec.ndim), "keepdims": bool(keepdims)}
    return Array(record_one(op, (value,), attrs))


def accumulator(dtype: str) -> str:
    """The dtype that sums and products of `dtype` default to: integers widen to 64 bits, signedness kept."""
    kind = dtypes.KINDS[dtype]
    return {"b": "int64", "i": "int64", "u": "uint64"}.get(kind, dtype)


def _accumulate(op: str, x: Any, axis: Axis, dtype: Any, keepdims: bool) -> Array:
    value = as_value(x)
    name = accumulator(value.spec.dtype) if dtype is None else dtypes.dtype_name(dtype)
    if value.spec.dtype == "bool":
        value = cast_value(value, name)
    attrs: Attributes = {
        "axes": normalize_axes(axis, value.spec.ndim),
        "dtype": name,
        "keepdims": bool(keepdims),
    }
    return Array(record_one(op, (value,), attrs))


def sum(x: Any, /, axis: Axis = None, *, dtype: Any = None, keepdims: bool = False) -> Array:
    """Sum; of integers in 64 bits unless `dtype` says otherwise."""
    return _accumulate("sum", x, axis, dtype, keepdims)


def prod(x: Any, /, axis: Axis = None, *, dtype: Any = None, keepdims: bool = False) -> Array:
    """Product; of integers in 64 bits unless `dtype` says otherwise."""
    return _accumulate("prod", x, axis, dtype, keepdims)


def max(x: Any, /, axis: Axis = None, *, keepdims: bool = False) -> Array:
    """Largest element; NaN where there is one."""
    return _extreme("max", x, axis, keepdims)


def min(x: Any, /, axis: Axis = None, *, keepdims: bool = False) -> Array:
    """Smallest element; NaN where there is one."""
    return _extreme("min", x, axis, keepdims)


def _extreme(op: str, x: Any, axis: Axis, keepdims: bool) -> Array:
    value = as_value(x)
    if value.spec.dtype == "bool":
        return _reduce("any" if op == "max" else "all", value, axis, keepdims)
    return _reduce(op, value, axis, keepdims)


def mean(x: Any, /, axis: Axis = None, *, keepdims: bool = False) -> Array:
    """Arithmetic mean; of integers in float64."""
    return _reduce("mean", floating_value(x), axis, keepdims)


def _spread(op: str, x: Any, axis: Axis, correction: float, keepdims: bool) -> Array:
    value = floating_value(x)
    attrs: Attributes = {"axes": normalize_axes(axis, value.spec.ndim), "keepdims": bool(keepdims)}
    return Array(record_one(op, (value, make_scalar("float64", correction)), attrs))


def var(
    x: Any,
    /,
    axis: Axis = None,
    *,
    correction: float = 0.0,
    keepdims: bool = False,
    ddof: float | None = None,
) -> Array:
    """Variance with divisor N - correction; `ddof` is NumPy's name for the correction."""
    return _spread("var", x, axis, correction if ddof is None else ddof, keepdims)


def std(
    x: Any,
    /,
    axis: Axis = None,
    *,
    correction: float = 0.0,
    keepdims: bool = False,
    ddof: float | None = None,
) -> Array:
    """Standard deviation with divisor N - correction; `ddof` is NumPy's name for the correction."""
    return _spread("std", x, axis, correction if ddof is None else ddof, keepdims)


def median(x: Any, /, axis: int | None = None, *, keepdims: bool = False) -> Array:
    """The middle element in order, or the mean of the middle two; NaN where there is one (NumPy)."""
    array = Array(floating_value(x))
    number = 0 if axis is None else normalize_axis(axis, array.ndim)
    kept = tuple(1 if axis is None or one == number else length for one, length in enumerate(array.shape))
    in_order = sort(array.ravel() if axis is None else array, axis=number)
    length = in_order.shape[number]
    if length == 0:
        raise ValueError("the median of no elements")
    before = (slice(None),) * number
    middle = mean(in_order[(*before, slice((length - 1) // 2, length // 2 + 1))], axis=number)
    last = in_order[(*before, -1)]  # NaN is last in order
    result = where(isnan(last), last, middle)
    return result.reshape(kept) if keepdims else result


def any(x: Any, /, axis: Axis = None, *, keepdims: bool = False) -> Array:
    """Whether any element is true (not zero)."""
    return _reduce("any", cast_value(truth(as_value(x)), "bool"), axis, keepdims)


def all(x: Any, /, axis: Axis = None, *, keepdims: bool = False) -> Array:
    """Whether all elements are true (not zero)."""
    return _reduce("all", cast_value(truth(as_value(x)), "bool"), axis, keepdims)


def count_nonzero(x: Any, /, axis: Axis = None, *, keepdims: bool = False) -> Array:
    """How many elements are true (not zero), as int64."""
    counted = cast_value(truth(as_value(x)), "int64")
    return _accumulate("sum", Array(counted), axis, "int64", keepdims)


def _position(op: str, x: Any, axis: int | None, keepdims: bool) -> Array:
    value = as_value(x)
    if value.spec.dtype == "bool":
        value = cast_value(value, "uint8")
    ndim = value.spec.ndim
    if axis is None:
        value = reshape_value(value, (value.spec.size,))
    number = 0 if axis is None else normalize_axis(axis, ndim)
    result = record_one(op, (value,), {"axis": number, "keepdims": bool(keepdims) and axis is not None})
    return Array(reshape_value(result, (1,) * ndim) if axis is None and keepdims else result)


def argmax(x: Any, /, axis: int | None = None, *, keepdims: bool = False) -> Array:
    """Position of the first largest element, along `axis` or in the flattened array."""
    return _position("argmax", x, axis, keepdims)


def argmin(x: Any, /, axis: int | None = None, *, keepdims: bool = False) -> Array:
    """Position of the first smallest element, along `axis` or in the flattened array."""
    return _position("argmin", x, axis, keepdims)


def _running(op: str, x: Any, axis: int | None, dtype: Any, start: int | None) -> Array:
    value = as_value(x)
    name = accumulator(value.spec.dtype) if dtype is None else dtypes.dtype_name(dtype)
    if axis is None and value.spec.ndim != 1:
        raise ValueError("axis may be left out only for an array with one dimension")
    number = 0 if axis is None else normalize_axis(axis, value.spec.ndim)
    if value.spec.dtype == "bool":
        value = cast_value(value, name)
    result = record_one(op, (value,), {"axis": number, "dtype": name})
    if start is None:
        return Array(result)
    shape = tuple(1 if one == number else length for one, length in enumerate(value.spec.shape))
    head = record_one("full", (make_scalar(name, start),), {"shape": shape})
    return Array(record_one("concat", (head, result), {"axis": number}))


def cumulative_sum(
    x: Any, /, axis: int | None = None, *, dtype: Any = None, include_initial: bool = False
) -> Array:
    """Running sum along `axis`; with `include_initial` it starts with a 0 of its own."""
    return _running("cumulative_sum", x, axis, dtype, 0 if include_initial else None)


def cumulative_prod(
    x: Any, /, axis: int | None = None, *, dtype: Any = None, include_initial: bool = False
) -> Array:
    """Running product along `axis`; with `include_initial` it starts with a 1 of its own."""
    return _running("cumulative_prod", x, axis, dtype, 1 if include_initial else None)


def diff(x: Any, /, *, axis: int = -1, n: int = 1, prepend: Any = None, append: Any = None) -> Array:
    """The `n`-th difference of neighbours along `axis`."""
    value = as_value(x)
    number = normalize_axis(axis, value.spec.ndim)
    parts = [as_value(part) for part in (prepend, x, append) if part is not None]
    array = Array(value if len(parts) == 1 else record_one("concat", parts, {"axis": number}))
    before: list[Any] = [slice(None)] * value.spec.ndim
    after = list(before)
    before[number], after[number] = slice(None, -1), slice(1, None)
    for _ in range(n):
        first, second = array[tuple(after)], array[tuple(before)]
        array = first != second if array.dtype == np.bool else first - second
    return array
