"""Python's index expressions as the index items of a program, and item assignment as a new value.

`x[2, ::-1, None, ...]` is basic indexing and becomes one node. Arrays and lists of integers select by NumPy's rules:
the axes they index are merged into one and a `take` reads from it, a `put` writes to it. A number assigned through a
mask (`x[mask] = 0`) becomes a `where`; reading through a mask is a barrier, for the mask alone: it decides the shape.
"""

from math import prod
from typing import Any

import numpy as np

from coppermesh.exec import barrier, dtypes
from coppermesh.exec.graph import Handle, Operand, Value, pointing_at_caller, record_one
from coppermesh.exec.program import make_scalar
from coppermesh.exec.promotion import (
    as_operand,
    as_value,
    broadcast_value,
    cast,
    cast_value,
    permute_value,
    reshape_value,
)
from coppermesh.exec.shapes import (
    NEW_AXIS,
    TAKE_ONE,
    TAKE_SLICE,
    IndexItem,
    Shape,
    broadcast_all,
    indexed_shape,
)


def normalize_axis(axis: int, ndim: int) -> int:
    """`axis` counted from the front. Raises IndexError (np.exceptions.AxisError) outside the array."""
    number = int(axis)
    if not -ndim <= number < ndim:
        raise np.exceptions.AxisError(number, ndim)
    return number % ndim


def normalize_axes(axis: int | tuple[int, ...] | list[int] | None, ndim: int) -> tuple[int, ...]:
    """Axes ascending and counted from the front; None stands for all."""
    if axis is None:
        return tuple(range(ndim))
    given = (axis,) if isinstance(axis, int | np.integer) else tuple(axis)
    axes = tuple(sorted(normalize_axis(one, ndim) for one in given))
    if len(set(axes)) != len(axes):
        raise ValueError(f"axis {axis} names an axis twice")
    return axes


def normalize_shape(shape: int | tuple[int, ...] | list[int]) -> tuple[int, ...]:
    """A shape given as one length or a sequence of them."""
    if isinstance(shape, int | np.integer):
        return (int(shape),)
    return tuple(int(length) for length in shape)


@pointing_at_caller
def get_item(value: Value, key: Any) -> Value:
    """`value[key]`. Raises IndexError; a mask is a barrier."""
    if _is_lone_mask(key):
        value, key = reshape_value(value, (1, *value.spec.shape)), slice(0, int(_mask_data(key)))
    keys = _expand(_without_masks(key), value.spec.ndim)
    if not any(_is_array_like(item) for item in keys):
        return _basic(value, basic_items(keys, value.spec.shape))
    positions = [n for n, item in enumerate(keys) if _is_array_like(item) or _is_integer(item)]
    rest = [slice(None) if number in positions else item for number, item in enumerate(keys)]
    return _gather(_basic(value, basic_items(rest, value.spec.shape)), keys, positions)


def _gather(value: Value, keys: list[Any], axes: list[int]) -> Value:
    """Elements of `value` at the index arrays `keys[axis]` of `axes`, by NumPy's rule for where their axes go."""
    shape = value.spec.shape
    indices = _broadcast_indices([_index_value(keys[axis], shape[axis]) for axis in axes])
    apart = axes[-1] - axes[0] + 1 != len(axes)
    place = 0 if apart else axes[0]
    others = [axis for axis in range(len(shape)) if axis not in axes]
    order = others[:place] + axes + others[place:]
    lengths = [shape[axis] for axis in order]
    last = place + len(axes)
    merged = (*lengths[:place], prod(lengths[place:last]), *lengths[last:])
    flat = reshape_value(permute_value(value, order), merged)
    position = _flat_position(indices, lengths[place:last])
    return record_one("take", (flat, position), {"axis": place})


def _broadcast_indices(indices: list[Value]) -> list[Value]:
    if len(indices) == 1:
        return indices
    shape = broadcast_all([index.spec.shape for index in indices])
    return [broadcast_value(cast_value(index, "int64"), shape) for index in indices]


def _flat_position(indices: list[Value], lengths: list[int]) -> Value:
    """One index for several axes in C order."""
    result = indices[0]
    for index, length in zip(indices[1:], lengths[1:], strict=True):
        scaled = record_one("multiply", (result, make_scalar("int64", length)))
        result = record_one("add", (scaled, index))
    return result


def _index_value(item: Any, length: int) -> Value:
    """An index array, counted from the front. What the client knows of it is checked here."""
    index = as_value(np.asarray(item) if isinstance(item, list | tuple) or _is_integer(item) else item)
    if index.spec.dtype == "float64" and index.spec.size == 0:
        index = cast_value(index, "int64")  # an empty list is an empty index
    if index.spec.dtype not in dtypes.INTEGER:
        raise IndexError(f"an array of {index.spec.dtype} cannot index; use integers or booleans")
    data = barrier.known(index)
    if data is not None and data.size and not (-length <= int(data.min()) and int(data.max()) < length):
        raise IndexError(f"an index is outside an axis of length {length}")
    return wrap_indices(index, length)


def _without_masks(key: Any) -> tuple[Any, ...]:
    """The key as a tuple, with the positions of each mask's true elements in its place. Each mask is a barrier."""
    result: list[Any] = []
    for item in key if isinstance(key, tuple) else (key,):
        result.extend(_mask_positions(item) if _is_mask(item) else [item])
    return tuple(result)


def _mask_positions(item: Any) -> tuple[np.ndarray[Any, Any], ...]:
    mask = _mask_data(item)
    if mask.ndim == 0:
        raise IndexError("a mask without dimensions must stand alone as the index")
    return np.nonzero(mask)


def _mask_data(item: Any) -> np.ndarray[Any, Any]:
    mask = Handle(as_value(np.asarray(item) if isinstance(item, list) else item))
    advice = "use xp.where(mask, x, other), or mesh.compute(mask) first"
    return barrier.fetch("x[mask]", mask, advice=advice)[0]


def _is_lone_mask(key: Any) -> bool:
    """Whether the key is one truth value, which selects all or nothing and adds an axis of length 1 or 0."""
    return _is_mask(key) and np.ndim(key) == 0


def wrap_indices(indices: Value, length: int) -> Value:
    """Indices counted from the front: negative ones get the axis length added, by the program itself."""
    if indices.spec.dtype.startswith("uint"):
        return indices
    wide = cast_value(indices, "int64")
    negative = record_one("less", (wide, make_scalar("int64", 0)))
    shifted = record_one("add", (wide, make_scalar("int64", length)))
    return record_one("where", (negative, shifted, wide))


@pointing_at_caller
def set_item(value: Value, key: Any, new: Any) -> Value:
    """The value that `x` names after `x[key] = new`."""
    operand = cast(as_operand(new), value.spec.dtype)
    if _is_mask(key):
        chosen = _set_masked(value, as_value(np.asarray(key) if isinstance(key, list) else key), operand)
        if chosen is not None:
            return chosen
    if _is_lone_mask(key):
        return value if not bool(_mask_data(key)) else set_item(value, ..., new)
    keys = _expand(_without_masks(key), value.spec.ndim)
    if any(_is_array_like(item) for item in keys):
        return _scatter(value, keys, operand)
    items = basic_items(keys, value.spec.shape)
    if isinstance(operand, Value):
        operand = _drop_leading_ones(operand, len(indexed_shape(value.spec.shape, items)))
    return record_one("setitem", (value, operand), {"index": items})


def _scatter(value: Value, keys: list[Any], operand: Operand) -> Value:
    """Assignment through index arrays. Where one position is named twice, the last one stays."""
    shape = value.spec.shape
    arrays = [axis for axis, item in enumerate(keys) if _is_array_like(item)]
    if len(arrays) == 1 and all(item == slice(None) for n, item in enumerate(keys) if n != arrays[0]):
        [axis] = arrays
        index = _index_value(keys[axis], shape[axis])
        selected = shape[:axis] + index.spec.shape + shape[axis + 1 :]
        return record_one("put", (value, index, _fitted(operand, selected)), {"axis": axis})
    # Every element's number, selected by the same key, says where the new elements go.
    scalars = (make_scalar("int64", 0), make_scalar("int64", 1))
    numbers = record_one("arange", scalars, {"length": value.spec.size})
    index = get_item(reshape_value(numbers, shape), tuple(keys))
    flat = reshape_value(value, (value.spec.size,))
    put = record_one("put", (flat, index, _fitted(operand, index.spec.shape)), {"axis": 0})
    return reshape_value(put, shape)


def _fitted(operand: Operand, shape: Shape) -> Operand:
    return _drop_leading_ones(operand, len(shape)) if isinstance(operand, Value) else operand


def _set_masked(value: Value, mask: Value, operand: Operand) -> Value | None:
    """`x[mask] = v` as a choice between `v` and `x`; None where `v` has an element for each true one."""
    ndim = mask.spec.ndim
    if mask.spec.shape != value.spec.shape[:ndim]:
        raise IndexError(
            f"a mask of shape {mask.spec.shape} does not fit an array of shape {value.spec.shape}"
        )
    if isinstance(operand, Value) and operand.spec.ndim > value.spec.ndim - ndim:
        return None
    wide = reshape_value(mask, mask.spec.shape + (1,) * (value.spec.ndim - ndim))
    return record_one("where", (broadcast_value(wide, value.spec.shape), operand, value))


def _drop_leading_ones(operand: Value, ndim: int) -> Value:
    # NumPy lets x[0] = [[1, 2, 3]] through: leading axes of length 1 fall away in an assignment.
    shape = operand.spec.shape
    while len(shape) > ndim and shape[0] == 1:
        shape = shape[1:]
    return reshape_value(operand, shape)


def _basic(value: Value, items: tuple[IndexItem, ...]) -> Value:
    whole = tuple((TAKE_SLICE, 0, length, 1) for length in value.spec.shape)
    return value if items == whole else record_one("getitem", (value,), {"index": items})


def _is_array_like(item: Any) -> bool:
    return isinstance(item, list) or (isinstance(item, Handle | np.ndarray) and not _is_integer(item))


def _is_integer(item: Any) -> bool:
    """Whether an index takes one element: a number, or a NumPy array that is one. A lazy one is an index array."""
    if isinstance(item, np.ndarray):
        return item.ndim == 0 and item.dtype.kind in "iu"
    return isinstance(item, int | np.integer) and not isinstance(item, bool)


def _is_mask(item: Any) -> bool:
    if isinstance(item, Handle | np.ndarray | np.generic):
        return bool(item.dtype == np.bool)  # type: ignore[union-attr]  # every handle is an Array
    return isinstance(item, bool) or (
        isinstance(item, list) and bool(item) and np.asarray(item).dtype == np.bool
    )


def _expand(key: Any, ndim: int) -> list[Any]:
    """The key as a list with the ellipsis written out and missing axes filled with full slices."""
    keys = list(key) if isinstance(key, tuple) else [key]
    used = sum(1 for item in keys if item is not None and item is not Ellipsis)
    if used > ndim:
        raise IndexError(f"{used} indices for an array with {ndim} dimensions")
    ellipses = [position for position, item in enumerate(keys) if item is Ellipsis]
    if len(ellipses) > 1:
        raise IndexError("an index can have one ellipsis")
    position = ellipses[0] if ellipses else len(keys)
    fill = [slice(None)] * (ndim - used)
    return keys[:position] + fill + keys[position + 1 :]


def basic_items(keys: list[Any], shape: Shape) -> tuple[IndexItem, ...]:
    """Index items of a key without arrays. Raises IndexError for what is out of range or no index."""
    items: list[IndexItem] = []
    axis = 0
    for item in keys:
        if item is None:
            items.append((NEW_AXIS,))
            continue
        items.append(_one_item(item, axis, shape[axis]))
        axis += 1
    return tuple(items)


def _one_item(item: Any, axis: int, length: int) -> IndexItem:
    if isinstance(item, slice):
        positions = range(*item.indices(length))
        if len(positions) == 0:
            return (TAKE_SLICE, 0, 0, 1)
        return (TAKE_SLICE, positions[0], len(positions), positions.step if len(positions) > 1 else 1)
    if isinstance(item, bool | np.bool) or not hasattr(item, "__index__"):
        raise IndexError(f"{type(item).__name__} cannot index an array; use integers, slices, ... or None")
    number = item.__index__()
    if not -length <= number < length:
        raise IndexError(f"index {number} is outside axis {axis} of length {length}")
    return (TAKE_ONE, number % length)


def gather_axis(value: Value, axis: int | None) -> tuple[Value, int]:
    """The value and axis for functions whose `axis=None` means the flattened array."""
    if axis is None:
        return reshape_value(value, (value.spec.size,)), 0
    return value, normalize_axis(axis, value.spec.ndim)
