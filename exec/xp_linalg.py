"""`xp.linalg`: the linear algebra extension of the Python Array API standard, 2024.12.

The last two axes are matrices, those before them a stack. Integers are refused, as the standard says; convert with
`astype`. Factorisations are operations of a program; everything else here is written with them.
"""

import builtins
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from coppermesh.exec import dtypes
from coppermesh.exec.graph import Value, pointing_at_caller, record, record_one
from coppermesh.exec.indexing import normalize_axes, normalize_axis
from coppermesh.exec.promotion import (
    PythonScalar,
    as_operand,
    as_value,
    broadcast_value,
    cast_value,
    common_dtype,
    permute_value,
    reshape_value,
)
from coppermesh.exec.recorder import Array
from coppermesh.exec.shapes import broadcast
from coppermesh.exec.xp_advice import LINALG_ADVICE
from coppermesh.exec.xp_arrangement import matrix_transpose as matrix_transpose
from coppermesh.exec.xp_arrangement import moveaxis, stack
from coppermesh.exec.xp_creation import eye
from coppermesh.exec.xp_elementwise import abs as _abs
from coppermesh.exec.xp_elementwise import conj, sqrt, where
from coppermesh.exec.xp_elementwise import pow as _pow
from coppermesh.exec.xp_names import missing, public
from coppermesh.exec.xp_products import matmul as matmul
from coppermesh.exec.xp_products import outer as outer
from coppermesh.exec.xp_products import tensordot as tensordot
from coppermesh.exec.xp_products import vecdot as vecdot
from coppermesh.exec.xp_reductions import count_nonzero
from coppermesh.exec.xp_reductions import max as _max
from coppermesh.exec.xp_reductions import min as _min
from coppermesh.exec.xp_reductions import sum as _sum


class EighResult(NamedTuple):
    """Eigenvalues, ascending, and eigenvectors as columns."""

    eigenvalues: Array
    eigenvectors: Array


class QRResult(NamedTuple):
    """An orthonormal factor and an upper triangular one."""

    Q: Array
    R: Array


class SlogdetResult(NamedTuple):
    """Sign of the determinant, and the logarithm of its absolute value."""

    sign: Array
    logabsdet: Array


class SVDResult(NamedTuple):
    """Left singular vectors, singular values (descending), right singular vectors as rows (conjugated)."""

    U: Array
    S: Array
    Vh: Array


def _floating(x: Any) -> Value:
    value = as_value(x)
    if value.spec.dtype not in dtypes.FLOATING:
        raise TypeError(f"linear algebra needs a floating-point array, not {value.spec.dtype}")
    return value


def _matrices(x: Any) -> Value:
    value = as_value(x)
    if value.spec.ndim < 2:
        raise ValueError(f"{value.spec} is no matrix: it needs at least two dimensions")
    return value


def cholesky(x: Any, /, *, upper: bool = False) -> Array:
    """The triangular factor `L` with `x = L @ L^H` (or `U` with `x = U^H @ U`) of positive definite matrices."""
    return Array(record_one("cholesky", (_floating(x),), {"upper": bool(upper)}))


def det(x: Any, /) -> Array:
    """Determinants."""
    return Array(record_one("det", (_floating(x),)))


def slogdet(x: Any, /) -> SlogdetResult:
    """Signs and logarithms of absolute values of determinants."""
    return SlogdetResult(*(Array(value) for value in record("slogdet", (_floating(x),))))


def inv(x: Any, /) -> Array:
    """Inverses."""
    return Array(record_one("inv", (_floating(x),)))


@pointing_at_caller
def solve(x1: Any, x2: Any, /) -> Array:
    """The solution `y` of `x1 @ y = x2`; `x2` with one dimension is one right-hand side, else a stack of matrices."""
    operands: list[Any | PythonScalar] = [as_operand(_floating_array(x1)), as_operand(_floating_array(x2))]
    dtype = common_dtype(operands)
    first, second = (cast_value(operand, dtype) for operand in operands)
    vector = second.spec.ndim == 1
    if vector:
        second = reshape_value(second, (second.spec.size, 1))
    if first.spec.ndim < 2 or second.spec.ndim < 2:
        raise ValueError("solve needs matrices")
    batch = broadcast(first.spec.shape[:-2], second.spec.shape[:-2])
    first = broadcast_value(first, batch + first.spec.shape[-2:])
    second = broadcast_value(second, batch + second.spec.shape[-2:])
    result = record_one("solve", (first, second))
    return Array(reshape_value(result, result.spec.shape[:-1]) if vector else result)


def _floating_array(x: Any) -> Array:
    return Array(_floating(x))


def eigh(x: Any, /) -> EighResult:
    """Eigenvalues and eigenvectors of Hermitian matrices, of which the lower triangle is read."""
    return EighResult(*(Array(value) for value in record("eigh", (_floating(x),))))


def eigvalsh(x: Any, /) -> Array:
    """Eigenvalues of Hermitian matrices, ascending; the lower triangle is read."""
    return Array(record_one("eigvalsh", (_floating(x),)))


def qr(x: Any, /, *, mode: str = "reduced") -> QRResult:
    """Orthonormal and triangular factors; `mode` is `reduced` or `complete`."""
    return QRResult(*(Array(value) for value in record("qr", (_floating(x),), {"mode": mode})))


def svd(x: Any, /, *, full_matrices: bool = True) -> SVDResult:
    """Singular value decomposition."""
    results = record("svd", (_floating(x),), {"full_matrices": bool(full_matrices)})
    return SVDResult(*(Array(value) for value in results))


def svdvals(x: Any, /) -> Array:
    """Singular values, descending."""
    return Array(record_one("svdvals", (_floating(x),)))


def _tolerance(singular: Array, given: Any, shape: tuple[int, ...]) -> Array:
    """The value below which a singular value counts as zero, one for each matrix."""
    relative: Any = builtins.max(shape[-2:]) * float(np.finfo(singular.dtype).eps) if given is None else given
    if isinstance(relative, Array) and relative.ndim:
        relative = Array(reshape_value(relative.recorded, (*relative.shape, 1)))
    # A number as a constant of the values' own type: it must not promote them.
    factor = relative if isinstance(relative, Array) else singular.dtype.type(relative)
    return _max(singular, axis=-1, keepdims=True) * factor


def pinv(x: Any, /, *, rtol: Any = None) -> Array:
    """Moore-Penrose pseudo-inverses; singular values up to `rtol` times the largest count as zero."""
    value = _floating(x)
    if value.spec.size == 0:
        *batch, rows, columns = _matrices(x).spec.shape
        return Array(reshape_value(value, (*batch, columns, rows)))
    left, singular, right = svd(Array(value), full_matrices=False)
    large = singular > _tolerance(singular, rtol, value.spec.shape)
    inverse = where(large, 1 / where(large, singular, 1), 0).astype(value.spec.dtype)
    return matmul(conj(right).mT, inverse[..., None] * conj(left).mT)


def matrix_rank(x: Any, /, *, rtol: Any = None) -> Array:
    """How many singular values are larger than `rtol` times the largest."""
    value = _matrices(Array(_floating(x)))
    singular = svdvals(Array(value))
    if singular.shape[-1] == 0:
        return _sum(singular, axis=-1).astype("int64")
    return count_nonzero(singular > _tolerance(singular, rtol, value.spec.shape), axis=-1)


def matrix_norm(x: Any, /, *, keepdims: bool = False, ord: Any = "fro") -> Array:
    """Norms of matrices: Frobenius, nuclear, or 1, 2, inf and their negatives."""
    array = Array(_matrices(Array(_floating(x))))
    if ord == "fro":
        return _root_of_squares(array, (-2, -1), keepdims)
    if ord in ("nuc", 2, -2):
        singular = svdvals(array)
        reduce = {"nuc": _sum, 2: _max, -2: _min}[ord]
        result = reduce(singular, axis=-1)
        return Array(reshape_value(result.recorded, (*result.shape, 1, 1))) if keepdims else result
    if ord not in (1, -1, inf, -inf):
        raise ValueError("a matrix norm's ord is 'fro', 'nuc', 1, 2, inf or one of their negatives")
    summed = -2 if ord in (1, -1) else -1
    sums = _sum(_abs(array), axis=summed, keepdims=True)
    result = (_max if ord > 0 else _min)(sums, axis=(-2, -1), keepdims=True)
    return result if keepdims else Array(reshape_value(result.recorded, array.shape[:-2]))


def _root_of_squares(array: Array, axes: Any, keepdims: bool) -> Array:
    magnitude = _abs(array)
    return sqrt(_sum(magnitude * magnitude, axis=axes, keepdims=keepdims))


def vector_norm(
    x: Any, /, *, axis: int | tuple[int, ...] | None = None, keepdims: bool = False, ord: Any = 2
) -> Array:
    """Norms of vectors along the axes: inf, -inf, 0 (elements that are not zero) or any power."""
    value = _floating(x)
    axes = normalize_axes(axis, value.spec.ndim)
    array = Array(value)
    magnitude = _abs(array)
    if ord in (inf, -inf):
        result = (_max if ord > 0 else _min)(magnitude, axis=axes, keepdims=keepdims)
    elif ord == 0:
        result = _sum((magnitude != 0).astype(magnitude.dtype), axis=axes, keepdims=keepdims)
    elif ord == 1:
        result = _sum(magnitude, axis=axes, keepdims=keepdims)
    elif ord == 2:
        result = _root_of_squares(array, axes, keepdims)
    else:
        powers = _pow(magnitude, float(ord))
        result = _pow(_sum(powers, axis=axes, keepdims=keepdims), 1.0 / float(ord))
    return result


def matrix_power(x: Any, n: int, /) -> Array:
    """Square matrices multiplied `n` times with themselves; negative powers are those of the inverse."""
    value = _matrices(x)
    order = value.spec.shape[-1]
    if value.spec.shape[-2] != order:
        raise ValueError(f"{value.spec} is no square matrix")
    if n == 0:
        return Array(broadcast_value(eye(order, dtype=value.spec.dtype).recorded, value.spec.shape))
    square = inv(x) if n < 0 else Array(value)
    result: Array | None = None
    for bit in reversed(f"{builtins.abs(int(n)):b}"):
        if bit == "1":
            result = square if result is None else matmul(result, square)
        square = matmul(square, square)
    assert result is not None  # n is not 0, so one bit is set
    return result


def cross(x1: Any, x2: Any, /, *, axis: int = -1) -> Array:
    """The cross product of vectors with three elements along `axis`; other axes broadcast."""
    first, second = Array(as_value(x1)), Array(as_value(x2))
    if not -min(first.ndim, second.ndim) <= axis < min(first.ndim, second.ndim):
        raise ValueError(f"axis {axis} is outside of the arrays")
    if first.shape[axis] != 3 or second.shape[axis] != 3:
        raise ValueError(f"cross needs three elements along axis {axis}")
    a, b = moveaxis(first, axis, -1), moveaxis(second, axis, -1)
    parts = [a[..., i] * b[..., j] - a[..., j] * b[..., i] for i, j in ((1, 2), (2, 0), (0, 1))]
    where_to = axis if axis < 0 else axis - max(first.ndim, second.ndim)
    return moveaxis(stack(parts, axis=-1), -1, where_to)


def diagonal(x: Any, /, *, offset: int = 0) -> Array:
    """The elements `x[..., i, i + offset]`."""
    value = _matrices(x)
    *batch, rows, columns = value.spec.shape
    first = max(0, -offset) * columns + max(0, offset)
    length = max(0, min(rows + min(0, offset), columns - max(0, offset)))
    flat = Array(reshape_value(value, (*batch, rows * columns)))
    if length == 0:
        return flat[..., :0]
    return flat[..., first : first + (length - 1) * (columns + 1) + 1 : columns + 1]


def trace(x: Any, /, *, offset: int = 0, dtype: Any = None) -> Array:
    """Sums along diagonals."""
    return _sum(diagonal(x, offset=offset), axis=-1, dtype=dtype)


def norm(x: Any, ord: Any = None, axis: Any = None, *, keepdims: bool = False) -> Array:
    """NumPy's `linalg.norm`: of all elements, of vectors along one axis, of matrices along two."""
    value = _floating(
        Array(as_value(x)).astype("float64") if as_value(x).spec.dtype not in dtypes.FLOATING else x
    )
    if ord is None:
        return vector_norm(Array(value), axis=axis, keepdims=keepdims)
    if isinstance(axis, int) or (axis is None and value.spec.ndim == 1):
        return vector_norm(Array(value), axis=axis, keepdims=keepdims, ord=ord)
    ndim = value.spec.ndim
    rows, columns = (-2, -1) if axis is None else axis
    pair = [normalize_axis(rows, ndim), normalize_axis(columns, ndim)]
    rest = [number for number in range(ndim) if number not in pair]
    result = matrix_norm(Array(permute_value(value, rest + pair)), ord=ord)
    if not keepdims:
        return result
    return Array(
        reshape_value(result.recorded, [1 if n in pair else s for n, s in enumerate(value.spec.shape)])
    )


if not TYPE_CHECKING:  # a type checker shall go on telling which names there are

    def __getattr__(name: str) -> Any:
        raise missing("coppermesh.xp.linalg", name, public(globals()), LINALG_ADVICE)
