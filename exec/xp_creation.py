"""`xp`, making arrays: from data, from a constant, from a range.

Data given to `asarray` becomes an input of the program: it travels as a blob of its own, and the program stays the same
when it changes. Everything else here is made where the program runs and costs no transfer. There is no uninitialised
memory: `empty` gives zeros, so that a program has one answer.
"""

from math import ceil as math_ceil
from typing import Any

import numpy as np

from coppermesh.exec import dtypes
from coppermesh.exec.graph import Handle, Value, record_one
from coppermesh.exec.indexing import normalize_shape
from coppermesh.exec.program import Attributes, make_scalar
from coppermesh.exec.promotion import (
    as_operand,
    as_value,
    broadcast_value,
    cast,
    cast_value,
    common_dtype,
    input_value,
)
from coppermesh.exec.recorder import Array

Shape = int | tuple[int, ...] | list[int]


def _check_device(device: Any) -> None:
    if device not in (None, "mesh"):
        raise ValueError(f"device {device!r}: a lazy array is on 'mesh', which chooses where it is computed")


def asarray(obj: Any, /, dtype: Any = None, *, device: Any = None, copy: bool | None = None) -> Array:
    """A lazy array of data: a NumPy array, nested lists, a number, or a lazy array.

    NumPy data is copied, so that later changes to it cannot reach the program, unless `copy=False` asks for the
    memory itself (ValueError where the dtype or layout would need a copy).
    """
    _check_device(device)
    if isinstance(obj, Array) and copy is False:
        if dtype is not None and dtypes.dtype_name(dtype) != obj.dtype.name:
            raise ValueError(f"copy=False needs an array of the wanted dtype, not {obj.dtype}")
        return obj  # the very handle: a change through one name shows under the other
    if isinstance(obj, Handle):
        value = obj.recorded if dtype is None else cast_value(obj.recorded, dtypes.dtype_name(dtype))
        return Array(value)
    if isinstance(obj, list | tuple) and any(isinstance(item, Handle) for item in obj):
        from coppermesh.exec.xp_arrangement import stack  # built on this module

        return stack([asarray(item) for item in obj]).astype(obj[0].dtype if dtype is None else dtype)
    name = None if dtype is None else dtypes.dtype_name(dtype)
    data = np.asarray(obj, dtype=name)
    if copy is False:
        target = dtypes.NUMPY_DTYPES[dtypes.dtype_name(data.dtype)]
        if (
            not isinstance(obj, np.ndarray)
            or data is not obj
            or not data.flags.c_contiguous
            or data.dtype != target
        ):
            raise ValueError("copy=False needs a C-contiguous NumPy array of the wanted dtype")
        return Array(input_value(data, copy=False))
    return Array(input_value(data, copy=data is obj or isinstance(obj, np.ndarray)))


def array(obj: Any, /, dtype: Any = None) -> Array:
    """NumPy's spelling of `asarray`."""
    return asarray(obj, dtype=dtype)


def from_dlpack(x: Any, /, *, device: Any = None, copy: bool | None = None) -> Array:
    """A lazy array of the data of any array that speaks DLPack; a lazy array is taken as it is."""
    _check_device(device)
    if isinstance(x, Handle):
        return Array(x.recorded)
    if copy is False:
        raise BufferError("data of a lazy array is a copy of its own")
    return Array(input_value(np.from_dlpack(x), copy=True))


def full(shape: Shape, fill_value: Any, dtype: Any = None, *, device: Any = None) -> Array:
    """An array of one repeated value."""
    _check_device(device)
    operand = as_operand(fill_value)
    name = common_dtype([operand]) if dtype is None else dtypes.dtype_name(dtype)
    return Array(record_one("full", (cast(operand, name),), {"shape": normalize_shape(shape)}))


def zeros(shape: Shape, dtype: Any = None, *, device: Any = None) -> Array:
    """Zeros, float64 unless told otherwise."""
    return full(shape, 0, dtype="float64" if dtype is None else dtype, device=device)


def ones(shape: Shape, dtype: Any = None, *, device: Any = None) -> Array:
    """Ones, float64 unless told otherwise."""
    return full(shape, 1, dtype="float64" if dtype is None else dtype, device=device)


def empty(shape: Shape, dtype: Any = None, *, device: Any = None) -> Array:
    """Room for a kernel to write to. Zeros: a program reads no uninitialised memory."""
    return zeros(shape, dtype=dtype, device=device)


def full_like(x: Any, /, fill_value: Any, dtype: Any = None, *, device: Any = None) -> Array:
    """`full` with the shape and, unless told otherwise, the dtype of `x`."""
    spec = as_value(x).spec
    return full(spec.shape, fill_value, dtype=spec.dtype if dtype is None else dtype, device=device)


def zeros_like(x: Any, /, dtype: Any = None, *, device: Any = None) -> Array:
    """`zeros` with the shape and, unless told otherwise, the dtype of `x`."""
    return full_like(x, 0, dtype=dtype, device=device)


def ones_like(x: Any, /, dtype: Any = None, *, device: Any = None) -> Array:
    """`ones` with the shape and, unless told otherwise, the dtype of `x`."""
    return full_like(x, 1, dtype=dtype, device=device)


def empty_like(x: Any, /, dtype: Any = None, *, device: Any = None) -> Array:
    """`empty` with the shape and, unless told otherwise, the dtype of `x`."""
    return full_like(x, 0, dtype=dtype, device=device)


def arange(
    start: float, /, stop: float | None = None, step: float = 1, dtype: Any = None, *, device: Any = None
) -> Array:
    """`start`, `start + step`, ... below `stop`; one argument alone is `stop`. Arguments are plain numbers."""
    _check_device(device)
    first, last = (0, start) if stop is None else (start, stop)
    # Arrays of one element are taken for their value, as NumPy takes them: an integer stays one.
    first, last, step = map(_number, (first, last, step))
    if step == 0:
        raise ValueError("arange needs a step other than 0")
    whole = all(isinstance(item, int | np.integer) for item in (first, last, step))
    name = dtypes.dtype_name(dtype) if dtype is not None else "int64" if whole else "float64"
    # Integers are counted exactly at any size: rounding up is rounding down the negative.
    steps = -((int(first) - int(last)) // int(step)) if whole else math_ceil((last - first) / step)
    length = max(0, steps)
    if name in dtypes.INTEGER and not whole:
        # NumPy steps in the target type: both ends are cut before stepping.
        first, step = int(first), int(first + step) - int(first)
    scalars = (make_scalar(name, first), make_scalar(name, step if length > 1 else 1))
    return Array(record_one("arange", scalars, {"length": length}))


def _number(item: Any) -> Any:
    return item.item() if hasattr(item, "item") else item


def linspace(
    start: complex,
    stop: complex,
    /,
    num: int,
    *,
    dtype: Any = None,
    device: Any = None,
    endpoint: bool = True,
) -> Array:
    """`num` evenly spaced numbers from `start` to `stop`, which is included where `endpoint` is."""
    _check_device(device)
    default = "complex128" if isinstance(start, complex) or isinstance(stop, complex) else "float64"
    name = default if dtype is None else dtypes.dtype_name(dtype)
    inner = name if name in dtypes.FLOATING else "float64"
    scalars = (make_scalar(inner, start), make_scalar(inner, stop))
    value = record_one("linspace", scalars, {"num": int(num), "endpoint": bool(endpoint)})
    return Array(cast_value(value, name))


def eye(
    n_rows: int, n_cols: int | None = None, /, *, k: int = 0, dtype: Any = None, device: Any = None
) -> Array:
    """Ones on the `k`-th diagonal, zeros elsewhere."""
    _check_device(device)
    name = "float64" if dtype is None else dtypes.dtype_name(dtype)
    columns = n_rows if n_cols is None else n_cols
    diagonal = max(
        -int(n_rows), min(int(k), int(columns))
    )  # beyond either corner there is nothing, however far
    attrs: Attributes = {"rows": int(n_rows), "columns": int(columns), "diagonal": diagonal, "dtype": name}
    return Array(record_one("eye", (), attrs))


def identity(n: int, /, *, dtype: Any = None) -> Array:
    """NumPy's spelling of a square `eye`."""
    return eye(n, dtype=dtype)


def meshgrid(*arrays: Any, indexing: str = "xy") -> list[Array]:
    """Coordinate arrays of a grid. `xy` swaps the first two axes, as in plotting; `ij` keeps them."""
    if indexing not in ("xy", "ij"):
        raise ValueError("indexing is 'xy' or 'ij'")
    values = [as_value(array) for array in arrays]
    if any(value.spec.ndim > 1 for value in values):
        raise ValueError("meshgrid takes arrays with at most one dimension")
    order = list(range(len(values)))
    if indexing == "xy" and len(order) > 1:
        order[:2] = 1, 0
    shape = [0] * len(values)
    for value, axis in zip(values, order, strict=True):
        shape[axis] = value.spec.size
    return [Array(_along(value, axis, shape)) for value, axis in zip(values, order, strict=True)]


def _along(value: Value, axis: int, shape: list[int]) -> Value:
    lengths = [1] * len(shape)
    lengths[axis] = value.spec.size
    wide = record_one("reshape", (value,), {"shape": tuple(lengths)})
    return broadcast_value(wide, shape)


def _triangle(x: Any, k: int, lower: bool) -> Array:
    value = as_value(x)
    if value.spec.ndim < 2:
        raise ValueError("a triangle needs at least two dimensions")
    rows, columns = value.spec.shape[-2:]
    distance = arange(columns) - arange(rows)[:, None]
    kept = distance <= k if lower else distance >= k
    zero = make_scalar(value.spec.dtype, 0)
    return Array(record_one("where", (kept.recorded, value, zero)))


def tril(x: Any, /, *, k: int = 0) -> Array:
    """`x` with zeros above the `k`-th diagonal of its last two axes."""
    return _triangle(x, k, lower=True)


def triu(x: Any, /, *, k: int = 0) -> Array:
    """`x` with zeros below the `k`-th diagonal of its last two axes."""
    return _triangle(x, k, lower=False)
