"""`xp`, products of arrays. All but `matmul` itself are recorded as transposes, reshapes and one `matmul`."""

from collections.abc import Sequence
from math import prod
from typing import Any

from coppermesh.exec.graph import Operand, Value, record_one
from coppermesh.exec.indexing import normalize_axis
from coppermesh.exec.promotion import (
    PythonScalar,
    as_operand,
    as_value,
    cast_value,
    common_dtype,
    elementwise,
    permute_value,
    reshape_value,
)
from coppermesh.exec.recorder import Array


def _pair(x1: Any, x2: Any) -> tuple[Value, Value]:
    operands: list[Operand | PythonScalar] = [as_operand(x1), as_operand(x2)]
    dtype = common_dtype(operands)
    if dtype == "bool":
        raise TypeError("products of boolean arrays are not defined; convert with astype first")
    return cast_value(operands[0], dtype), cast_value(operands[1], dtype)


def matmul(x1: Any, x2: Any, /) -> Array:
    """The matrix product of the last two axes; the axes before them broadcast."""
    return Array(record_one("matmul", _pair(x1, x2)))


def tensordot(x1: Any, x2: Any, /, *, axes: int | tuple[Sequence[int], Sequence[int]] = 2) -> Array:
    """The product summed over pairs of axes; a number N means the last N of `x1` with the first N of `x2`."""
    first, second = _pair(x1, x2)
    left, right = _contracted(axes, first.spec.ndim, second.spec.ndim)
    left_kept = [axis for axis in range(first.spec.ndim) if axis not in left]
    right_kept = [axis for axis in range(second.spec.ndim) if axis not in right]
    if [first.spec.shape[a] for a in left] != [second.spec.shape[a] for a in right]:
        raise ValueError(f"tensordot of {first.spec.shape} and {second.spec.shape} over {left} and {right}")
    inner = prod(first.spec.shape[axis] for axis in left)
    rows = [first.spec.shape[axis] for axis in left_kept]
    columns = [second.spec.shape[axis] for axis in right_kept]
    a = reshape_value(permute_value(first, left_kept + left), (prod(rows), inner))
    b = reshape_value(permute_value(second, right + right_kept), (inner, prod(columns)))
    return Array(reshape_value(record_one("matmul", (a, b)), rows + columns))


def _contracted(
    axes: int | tuple[Sequence[int], Sequence[int]], m: int, n: int
) -> tuple[list[int], list[int]]:
    if isinstance(axes, int):
        if not 0 <= axes <= min(m, n):
            raise ValueError(f"tensordot over {axes} axes of arrays with {m} and {n} dimensions")
        return list(range(m - axes, m)), list(range(axes))
    left, right = axes
    pairs = ([left] if isinstance(left, int) else left, [right] if isinstance(right, int) else right)
    return [normalize_axis(a, m) for a in pairs[0]], [normalize_axis(a, n) for a in pairs[1]]


def vecdot(x1: Any, x2: Any, /, *, axis: int = -1) -> Array:
    """The inner product along `axis`, the first factor conjugated; other axes broadcast."""
    first, second = _pair(x1, x2)
    if not -min(first.spec.ndim, second.spec.ndim) <= axis < 0:
        raise ValueError("vecdot takes an axis counted from the end, which both arrays have")
    a, b = _last(elementwise("conj", Array(first)), axis), _last(second, axis)
    if a.spec.shape[-1] != b.spec.shape[-1]:
        raise ValueError(f"vecdot of lengths {a.spec.shape[-1]} and {b.spec.shape[-1]}")
    row = reshape_value(a, (*a.spec.shape[:-1], 1, a.spec.shape[-1]))
    column = reshape_value(b, (*b.spec.shape, 1))
    result = record_one("matmul", (row, column))
    return Array(reshape_value(result, result.spec.shape[:-2]))


def _last(value: Value, axis: int) -> Value:
    order = list(range(value.spec.ndim))
    order.append(order.pop(normalize_axis(axis, value.spec.ndim)))
    return permute_value(value, order)


def outer(x1: Any, x2: Any, /) -> Array:
    """The product of every element of one vector with every element of another."""
    first, second = as_value(x1), as_value(x2)
    column = Array(reshape_value(first, (first.spec.size, 1)))
    return Array(elementwise("multiply", column, Array(reshape_value(second, (1, second.spec.size)))))


def dot(x1: Any, x2: Any, /) -> Array:
    """NumPy's `dot`: products of numbers, inner products of vectors, matrix products."""
    first, second = _pair(x1, x2)
    if first.spec.ndim == 0 or second.spec.ndim == 0:
        return Array(elementwise("multiply", Array(first), Array(second)))
    if second.spec.ndim == 1:
        return Array(record_one("matmul", (first, second)))
    return tensordot(Array(first), Array(second), axes=([first.spec.ndim - 1], [second.spec.ndim - 2]))


def trace(x: Any, /, *, offset: int = 0, dtype: Any = None) -> Array:
    """The sum along the diagonal of the last two axes."""
    from coppermesh.exec.xp_creation import eye
    from coppermesh.exec.xp_elementwise import where
    from coppermesh.exec.xp_reductions import sum as total

    value = as_value(x)
    rows, columns = value.spec.shape[-2:]
    kept = where(eye(rows, columns, k=offset, dtype="bool"), Array(value), 0)
    return total(kept, axis=(-2, -1), dtype=dtype)
