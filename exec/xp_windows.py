"""`xp`, beyond the array standard: the error function, convolution, pooling."""

from collections.abc import Sequence
from typing import Any

from coppermesh.exec import dtypes
from coppermesh.exec.graph import Value, record_one
from coppermesh.exec.program import Attributes
from coppermesh.exec.promotion import (
    PythonScalar,
    as_operand,
    as_value,
    cast_value,
    common_dtype,
    floating_value,
)
from coppermesh.exec.recorder import Array
from coppermesh.exec.xp_creation import ones

Extent = int | Sequence[int]
Padding = int | str | Sequence[int | Sequence[int]]


def erf(x: Any, /) -> Array:
    """The error function of real numbers, the same bits on every runtime for float32."""
    return Array(record_one("erf", (floating_value(x),)))


def ndtri(p: Any, /) -> Array:
    """The quantile of the standard normal distribution, the same bits on every runtime; float32 is done in float64."""
    value = floating_value(p)
    result = record_one("ndtri", (cast_value(value, "float64"),))
    return Array(cast_value(result, value.spec.dtype))


def _each(extent: Extent, count: int) -> tuple[int, ...]:
    values = (extent,) * count if isinstance(extent, int) else tuple(int(item) for item in extent)
    if len(values) != count:
        raise ValueError(f"{values} must be one number or {count}")
    return values


def _pairs(padding: Padding, window: Sequence[int], dilation: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Padding as a pair for each axis; `same` keeps lengths at stride 1, `valid` is none."""
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError("padding is 'same', 'valid' or numbers")
        reach = [d * (w - 1) if padding == "same" else 0 for w, d in zip(window, dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in reach)
    items = (padding,) * len(window) if isinstance(padding, int) else tuple(padding)
    if len(items) != len(window):
        raise ValueError(f"padding needs one number or pair for each of {len(window)} axes")
    return tuple((one, one) if isinstance(one, int) else (int(one[0]), int(one[1])) for one in items)


def conv(
    x: Any,
    weights: Any,
    /,
    *,
    strides: Extent = 1,
    padding: Padding = 0,
    dilation: Extent = 1,
    groups: int = 1,
) -> Array:
    """The convolution of neural networks (a cross-correlation) in one to three dimensions.

    `x` is (batch, channels, ...), `weights` (outputs, channels / groups, ...). `padding` with zeros is one number, a
    number or pair for each axis, `same` or `valid`. The result is (batch, outputs, ...).
    """
    operands: list[Any | PythonScalar] = [as_operand(x), as_operand(weights)]
    dtype = common_dtype(operands)
    first, second = (cast_value(operand, dtype) for operand in operands)
    count = max(0, first.spec.ndim - 2)
    steps, spread = _each(strides, count), _each(dilation, count)
    attrs: Attributes = {
        "dilation": spread,
        "groups": int(groups),
        "padding": _pairs(padding, second.spec.shape[2:], spread),
        "strides": steps,
    }
    return Array(record_one("conv", (first, second), attrs))


def _pool(
    kind: str, x: Value, window: Extent, strides: Extent | None, padding: Padding, dilation: Extent
) -> Array:
    count = max(0, x.spec.ndim - 2)
    sizes = _each(window, count)
    spread = _each(dilation, count)
    attrs: Attributes = {
        "dilation": spread,
        "kind": kind,
        "padding": _pairs(padding, sizes, spread),
        "strides": sizes if strides is None else _each(strides, count),
        "window": sizes,
    }
    return Array(record_one("pool", (x,), attrs))


def max_pool(
    x: Any, window: Extent, /, *, strides: Extent | None = None, padding: Padding = 0, dilation: Extent = 1
) -> Array:
    """The largest element of each window of `x` (batch, channels, ...); strides are the window unless given."""
    return _pool("max", as_value(x), window, strides, padding, dilation)


def avg_pool(
    x: Any,
    window: Extent,
    /,
    *,
    strides: Extent | None = None,
    padding: Padding = 0,
    dilation: Extent = 1,
    count_padding: bool = False,
) -> Array:
    """The mean of each window of `x` (batch, channels, ...), over the elements that are no padding unless asked."""
    value = floating_value(x)
    total = _pool("sum", value, window, strides, padding, dilation)
    if count_padding:
        size = 1
        for length in _each(window, value.spec.ndim - 2):
            size *= length
        return total / size
    real = dtypes.REAL_PART.get(value.spec.dtype, value.spec.dtype)
    present = ones((1, 1, *value.spec.shape[2:]), dtype=real)
    return total / _pool("sum", present.recorded, window, strides, padding, dilation)
