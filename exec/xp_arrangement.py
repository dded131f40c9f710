"""`xp`, moving elements about: shapes, joining, repeating, selecting, ordering, padding. Nothing here computes.

Several of these are recorded as others: `expand_dims` and `squeeze` are reshapes, `stack` is a reshape and a `concat`,
`tile` and `repeat` are broadcasts. A runtime needs fewer operations, and one meaning keeps one encoding.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from coppermesh.exec import barrier
from coppermesh.exec.graph import Value, pointing_at_caller, record_one
from coppermesh.exec.indexing import (
    gather_axis,
    normalize_axes,
    normalize_axis,
    normalize_shape,
    wrap_indices,
)
from coppermesh.exec.program import make_scalar
from coppermesh.exec.promotion import (
    as_operand,
    as_value,
    broadcast_value,
    cast,
    cast_value,
    common_dtype,
    input_value,
    permute_value,
    reshape_value,
)
from coppermesh.exec.recorder import Array
from coppermesh.exec.shapes import broadcast_all


def reshape(x: Any, /, shape: int | Sequence[int], *, copy: bool | None = None) -> Array:
    """The same elements in C order in another shape; one length may be -1."""
    value = as_value(x)
    lengths = list(normalize_shape(shape if isinstance(shape, int) else tuple(shape)))
    if lengths.count(-1) == 1:
        known = prod(length for length in lengths if length != -1)
        if known == 0 or value.spec.size % known:
            raise ValueError(f"{value.spec.size} elements cannot take shape {tuple(lengths)}")
        lengths[lengths.index(-1)] = value.spec.size // known
    return Array(reshape_value(value, lengths))


def permute_dims(x: Any, /, axes: Sequence[int] | None = None) -> Array:
    """The axes in another order; left out, reversed."""
    value = as_value(x)
    order = (
        range(value.spec.ndim)[::-1] if axes is None else [normalize_axis(a, value.spec.ndim) for a in axes]
    )
    return Array(permute_value(value, order))


transpose = permute_dims


def matrix_transpose(x: Any, /) -> Array:
    """The last two axes exchanged."""
    return Array(as_value(x)).mT


def moveaxis(x: Any, source: int | Sequence[int], destination: int | Sequence[int], /) -> Array:
    """Axes moved to other places, the rest kept in order."""
    value = as_value(x)
    ndim = value.spec.ndim
    sources = [normalize_axis(a, ndim) for a in ([source] if isinstance(source, int) else source)]
    targets = [
        normalize_axis(a, ndim) for a in ([destination] if isinstance(destination, int) else destination)
    ]
    order = [axis for axis in range(ndim) if axis not in sources]
    for target, axis in sorted(zip(targets, sources, strict=True)):
        order.insert(target, axis)
    return Array(permute_value(value, order))


def swapaxes(x: Any, axis1: int, axis2: int, /) -> Array:
    """Two axes exchanged (NumPy)."""
    value = as_value(x)
    order = list(range(value.spec.ndim))
    first, second = normalize_axis(axis1, len(order)), normalize_axis(axis2, len(order))
    order[first], order[second] = second, first
    return Array(permute_value(value, order))


def expand_dims(x: Any, /, axis: int = 0) -> Array:
    """A new axis of length 1 at `axis` of the result."""
    value = as_value(x)
    position = normalize_axis(axis, value.spec.ndim + 1)
    shape = value.spec.shape
    return Array(reshape_value(value, (*shape[:position], 1, *shape[position:])))


def squeeze(x: Any, /, axis: int | tuple[int, ...] | None = None) -> Array:
    """Axes of length 1 dropped, all of them where none is named."""
    value = as_value(x)
    alone = tuple(one for one, length in enumerate(value.spec.shape) if length == 1)
    axes = normalize_axes(alone if axis is None else axis, value.spec.ndim)
    if any(value.spec.shape[one] != 1 for one in axes):
        raise ValueError(f"axes {axes} of shape {value.spec.shape} are not all of length 1")
    return Array(reshape_value(value, [n for one, n in enumerate(value.spec.shape) if one not in axes]))


def broadcast_to(x: Any, /, shape: int | tuple[int, ...]) -> Array:
    """`x` repeated along new and length-1 axes to `shape`."""
    return Array(broadcast_value(as_value(x), normalize_shape(shape)))


@pointing_at_caller
def broadcast_arrays(*arrays: Any) -> list[Array]:
    """All arrays broadcast to their common shape."""
    values = [as_value(array) for array in arrays]
    shape = broadcast_all([value.spec.shape for value in values])
    return [Array(broadcast_value(value, shape)) for value in values]


def _of_one_dtype(arrays: Sequence[Any]) -> list[Value]:
    operands = [as_operand(array) for array in arrays]
    if not operands:
        raise ValueError("needs at least one array")
    dtype = common_dtype(operands)
    return [cast_value(operand, dtype) for operand in operands]


def concat(arrays: Sequence[Any], /, axis: int | None = 0) -> Array:
    """Arrays joined along an axis; with `axis=None` flattened first."""
    values = _of_one_dtype(arrays)
    if axis is None:
        values = [reshape_value(value, (value.spec.size,)) for value in values]
    number = normalize_axis(0 if axis is None else axis, values[0].spec.ndim)
    while len(values) > 1:
        # A node takes so many arguments; more are joined in steps.
        groups = [values[start : start + 64] for start in range(0, len(values), 64)]
        values = [g[0] if len(g) == 1 else record_one("concat", g, {"axis": number}) for g in groups]
    return Array(values[0])


concatenate = concat


def stack(arrays: Sequence[Any], /, axis: int = 0) -> Array:
    """Arrays of one shape joined along a new axis."""
    values = _of_one_dtype(arrays)
    shape = values[0].spec.shape
    if any(value.spec.shape != shape for value in values):
        raise ValueError("stack needs arrays of one shape")
    position = normalize_axis(axis, len(shape) + 1)
    wide = [Array(reshape_value(v, (*shape[:position], 1, *shape[position:]))) for v in values]
    return concat(wide, axis=position)


def unstack(x: Any, /, axis: int = 0) -> tuple[Array, ...]:
    """The slices of `x` along `axis`."""
    array = moveaxis(x, axis, 0)
    return tuple(array[number] for number in range(array.shape[0]))


def flip(x: Any, /, axis: int | tuple[int, ...] | None = None) -> Array:
    """The order of elements reversed along the axes."""
    value = as_value(x)
    axes = normalize_axes(axis, value.spec.ndim)
    return Array(record_one("flip", (value,), {"axes": axes}) if axes else value)


def roll(x: Any, /, shift: int | tuple[int, ...], axis: int | tuple[int, ...] | None = None) -> Array:
    """Elements shifted along the axes, what falls off coming in at the other end."""
    value = as_value(x)
    shape = value.spec.shape
    if axis is None:
        value, axis = reshape_value(value, (value.spec.size,)), 0
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    shifts = (shift,) * len(axes) if isinstance(shift, int) else tuple(shift)
    if len(shifts) != len(axes):
        raise ValueError("roll needs one shift per axis")
    total: dict[int, int] = {}
    for one, amount in zip(axes, shifts, strict=True):
        number = normalize_axis(one, value.spec.ndim)
        total[number] = total.get(number, 0) + int(amount)
    pairs = sorted((number, amount % max(1, value.spec.shape[number])) for number, amount in total.items())
    attrs = {"axes": tuple(number for number, _ in pairs), "shifts": tuple(amount for _, amount in pairs)}
    return Array(reshape_value(record_one("roll", (value,), attrs), shape))


def repeat(x: Any, repeats: Any, /, axis: int | None = None) -> Array:
    """Each element `repeats` times, one after the other. An array of counts is a barrier: the shape hangs on it."""
    value, number = gather_axis(as_value(x), axis)
    shape = value.spec.shape
    if not isinstance(repeats, int | np.integer):
        [counts] = barrier.fetch("repeat(x, counts)", Array(as_value(repeats)))
        chosen = np.repeat(np.arange(shape[number]), counts)
        return Array(record_one("take", (value, input_value(chosen, copy=False)), {"axis": number}))
    wide = reshape_value(value, (*shape[: number + 1], 1, *shape[number + 1 :]))
    repeated = broadcast_value(wide, (*shape[: number + 1], int(repeats), *shape[number + 1 :]))
    return Array(
        reshape_value(repeated, (*shape[:number], shape[number] * int(repeats), *shape[number + 1 :]))
    )


def tile(x: Any, repetitions: Sequence[int], /) -> Array:
    """The whole array repeated along each axis."""
    value = as_value(x)
    times = list(repetitions)
    shape = list(value.spec.shape)
    times = [1] * (len(shape) - len(times)) + times
    shape = [1] * (len(times) - len(shape)) + shape
    pairs = [length for count, own in zip(times, shape, strict=True) for length in (1, own)]
    targets = [length for count, own in zip(times, shape, strict=True) for length in (count, own)]
    repeated = broadcast_value(reshape_value(value, pairs), targets)
    return Array(reshape_value(repeated, [count * own for count, own in zip(times, shape, strict=True)]))


def take(x: Any, indices: Any, /, axis: int | None = None) -> Array:
    """Elements at `indices` along `axis` (left out only for one dimension). Negative ones count from the end."""
    value = as_value(x)
    if axis is None and value.spec.ndim != 1:
        raise ValueError("axis may be left out only for an array with one dimension")
    number = 0 if axis is None else normalize_axis(axis, value.spec.ndim)
    positions = wrap_indices(as_value(indices), value.spec.shape[number])
    return Array(record_one("take", (value, positions), {"axis": number}))


def put(x: Any, indices: Any, values: Any, /, *, axis: int | None = None) -> Array:
    """`x` with `values` at `indices` along `axis` (left out only for one dimension).

    `values` broadcast to the shape of `take(x, indices, axis=axis)`. Where an index appears twice, NumPy keeps the
    last, a GPU either.
    """
    return _changed("put", x, indices, values, axis)


def add_at(x: Any, indices: Any, values: Any, /, *, axis: int | None = None) -> Array:
    """`x` with `values` added at `indices` along `axis`; an index that appears twice adds twice.

    In floating point a GPU adds in any order: the last digits may differ from run to run.
    """
    return _changed("add_at", x, indices, values, axis)


def _changed(op: str, x: Any, indices: Any, values: Any, axis: int | None) -> Array:
    value = as_value(x)
    if axis is None and value.spec.ndim != 1:
        raise ValueError("axis may be left out only for an array with one dimension")
    number = 0 if axis is None else normalize_axis(axis, value.spec.ndim)
    positions = wrap_indices(as_value(indices), value.spec.shape[number])
    operand = cast(as_operand(values), value.spec.dtype)
    return Array(record_one(op, (value, positions, operand), {"axis": number}))


def topk(x: Any, k: int, /, *, axis: int = -1, largest: bool = True) -> tuple[Array, Array]:
    """The `k` largest (or smallest) elements along `axis`, and their positions, in order; of equals the first."""
    array = Array(as_value(x))
    number = normalize_axis(axis, array.ndim)
    if not 0 <= k <= array.shape[number]:
        raise ValueError(f"{k} of {array.shape[number]} elements")
    order = argsort(array, axis=number, descending=largest)
    positions = order[(slice(None),) * number + (slice(0, int(k)),)]
    return take_along_axis(array, positions, axis=number), positions


def take_along_axis(x: Any, indices: Any, /, axis: int = -1) -> Array:
    """For each position the element that `indices` names along `axis`."""
    value = as_value(x)
    number = normalize_axis(axis, value.spec.ndim)
    positions = wrap_indices(as_value(indices), value.spec.shape[number])
    return Array(record_one("take_along_axis", (value, positions), {"axis": number}))


def sort(x: Any, /, axis: int = -1, *, descending: bool = False, stable: bool = True) -> Array:
    """Elements in order along `axis`; NaN last (first when descending)."""
    return Array(_ordered("sort", x, axis, descending))


def argsort(x: Any, /, axis: int = -1, *, descending: bool = False, stable: bool = True) -> Array:
    """Positions that put the elements in order; equal elements keep their order."""
    return Array(_ordered("argsort", x, axis, descending))


def _ordered(op: str, x: Any, axis: int, descending: bool) -> Value:
    value = as_value(x)
    boolean = value.spec.dtype == "bool"
    if boolean:
        value = cast_value(value, "uint8")
    attrs = {"axis": normalize_axis(axis, value.spec.ndim), "descending": bool(descending)}
    result = record_one(op, (value,), attrs)
    return cast_value(result, "bool") if boolean and op == "sort" else result


def searchsorted(x1: Any, x2: Any, /, *, side: str = "left", sorter: Any = None) -> Array:
    """Where the elements of `x2` belong in the sorted `x1`."""
    ordered = as_value(x1) if sorter is None else take(x1, sorter).recorded
    operands = (ordered, as_operand(x2))
    dtype = common_dtype(operands)
    values = [cast_value(operand, dtype) for operand in operands]
    return Array(record_one("searchsorted", values, {"side": side}))


def pad(x: Any, pad_width: Any, mode: str = "constant", *, constant_values: Any = 0) -> Array:
    """`x` with a border, as `numpy.pad`: modes constant, edge, reflect, symmetric, wrap.

    `pad_width` is one number, one pair, or a pair for each axis. A reflection or wrap may be at most as wide as the
    array.
    """
    value = as_value(x)
    widths = np.broadcast_to(np.asarray(pad_width, dtype=np.int64), (value.spec.ndim, 2))
    pairs = tuple((int(before), int(after)) for before, after in widths)
    fill = cast(as_operand(constant_values), value.spec.dtype) if mode == "constant" else None
    scalar = make_scalar(value.spec.dtype, 0) if fill is None else fill
    return Array(record_one("pad", (value, scalar), {"widths": pairs, "mode": mode}))


def ravel(x: Any, /) -> Array:
    """All elements in one dimension (NumPy)."""
    return Array(as_value(x)).ravel()
