"""Python's index expressions as the index items of a program, and item assignment as a new value.

`x[2, ::-1, None, ...]` is basic indexing and becomes one node. One array or list of integers selects along its axis
(`take`). A boolean mask may be assigned through (`x[mask] = 0` becomes a `where`), but not read through: the result's
shape would depend on data.
"""

from typing import Any

import numpy as np

from coppermesh.exec.errors import NeedsValue
from coppermesh.exec.graph import Handle, Value, record_one
from coppermesh.exec.program import make_scalar
from coppermesh.exec.promotion import as_operand, as_value, broadcast_value, cast, cast_value, reshape_value
from coppermesh.exec.shapes import NEW_AXIS, TAKE_ONE, TAKE_SLICE, IndexItem, Shape, indexed_shape


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


def get_item(value: Value, key: Any) -> Value:
    """`value[key]`. Raises IndexError, or NeedsValue for a mask."""
    keys = _expand(key, value.spec.ndim)
    advanced = [position for position, item in enumerate(keys) if _is_array_like(item)]
    if not advanced:
        return _basic(value, basic_items(keys, value.spec.shape))
    if len(advanced) > 1 or any(isinstance(item, int | np.integer) for item in keys):
        raise IndexError("one index array, beside slices only, is possible in a program")
    return _select(value, keys, advanced[0])


def _select(value: Value, keys: list[Any], position: int) -> Value:
    indices = as_value(np.asarray(keys[position]) if isinstance(keys[position], list) else keys[position])
    if indices.spec.dtype == "bool":
        raise NeedsValue(
            "x[mask] has a shape that depends on data; use xp.where(mask, x, other), or mesh.compute(x) first"
        )
    rest = list(keys)
    rest[position] = slice(None)
    sliced = _basic(value, basic_items(rest, value.spec.shape))
    axis = sum(1 for item in rest[:position] if not isinstance(item, int | np.integer))
    return record_one("take", (sliced, wrap_indices(indices, sliced.spec.shape[axis])), {"axis": axis})


def wrap_indices(indices: Value, length: int) -> Value:
    """Indices counted from the front: negative ones get the axis length added, by the program itself."""
    if indices.spec.dtype.startswith("uint"):
        return indices
    wide = cast_value(indices, "int64")
    negative = record_one("less", (wide, make_scalar("int64", 0)))
    shifted = record_one("add", (wide, make_scalar("int64", length)))
    return record_one("where", (negative, shifted, wide))


def set_item(value: Value, key: Any, new: Any) -> Value:
    """The value that `x` names after `x[key] = new`."""
    operand = cast(as_operand(new), value.spec.dtype)
    if isinstance(key, Handle | np.ndarray) and as_value(key).spec.dtype == "bool":
        return _set_masked(value, as_value(key), operand)
    keys = _expand(key, value.spec.ndim)
    if any(_is_array_like(item) for item in keys):
        raise IndexError("x[index array] = value is not possible in a program yet; use xp.where or slices")
    items = basic_items(keys, value.spec.shape)
    if isinstance(operand, Value):
        operand = _drop_leading_ones(operand, len(indexed_shape(value.spec.shape, items)))
    return record_one("setitem", (value, operand), {"index": items})


def _set_masked(value: Value, mask: Value, operand: Any) -> Value:
    ndim = mask.spec.ndim
    if mask.spec.shape != value.spec.shape[:ndim]:
        raise IndexError(
            f"a mask of shape {mask.spec.shape} does not fit an array of shape {value.spec.shape}"
        )
    if isinstance(operand, Value) and operand.spec.shape != ():
        raise NeedsValue(
            "x[mask] = array depends on data; assign one number, or use xp.where(mask, array, x)"
        )
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
    return isinstance(item, Handle | list) or (isinstance(item, np.ndarray) and item.ndim > 0)


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
