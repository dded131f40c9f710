"""Arithmetic on shapes, axes and indices, exact at any magnitude and without a single array.

Index items, one per axis of the indexed array plus one per new axis, in NumPy's order:

    (0, i)                     the i-th element, the axis goes          0 <= i < length
    (1, start, count, step)    `count` elements from `start` by `step`, every one inside the axis
    (2,)                       a new axis of length 1

Slices carry a count instead of a stop: one form for each selection, and nothing to overflow.
"""

from collections.abc import Sequence

from coppermesh.exec.dtypes import ITEMSIZES
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.program import MAX_DIMENSIONS, ArraySpec

Shape = tuple[int, ...]
IndexItem = tuple[int, ...]

MAX_ARRAY_BYTES = 1 << 60
"""No array of a program may be larger, however much memory a provider has: keeps every later product exact in int64."""

TAKE_ONE, TAKE_SLICE, NEW_AXIS = 0, 1, 2


def refuse(code: str, sentence: str) -> ProgramInvalid:
    """A rule broken by the node at hand; `schema` adds which node that is."""
    return ProgramInvalid(code, sentence)


def array_spec(dtype: str, shape: Sequence[int]) -> ArraySpec:
    """A checked ArraySpec. Raises ProgramInvalid for negative lengths, too many dimensions or an absurd size."""
    if len(shape) > MAX_DIMENSIONS:
        raise refuse("bad-shape", f"{len(shape)} dimensions, at most {MAX_DIMENSIONS} are possible")
    total = ITEMSIZES[dtype]
    empty = False
    for length in shape:
        if length < 0:
            raise refuse("bad-shape", f"shape {tuple(shape)} has a negative length")
        if length >= MAX_ARRAY_BYTES:
            raise refuse("bad-shape", f"shape {_brief(shape)} is beyond what any machine can hold")
        if length == 0:
            empty = True
        else:
            total *= length
    # An empty array still may not name lengths whose product would overflow: NumPy refuses those as well.
    if total > MAX_ARRAY_BYTES:
        size = "would be empty but names a size" if empty else "is"
        raise refuse("bad-shape", f"shape {_brief(shape)} of {dtype} {size} beyond what any machine can hold")
    return ArraySpec(dtype, tuple(shape))


def _brief(shape: Sequence[int]) -> str:
    text = str(tuple(shape))
    return text if len(text) <= 120 else text[:117] + "..."


def broadcast(first: Shape, second: Shape) -> Shape:
    """The common shape of two. Raises ProgramInvalid where a pair of lengths differs and neither is 1."""
    if first == second or not second:
        return first
    if not first:
        return second
    longer, shorter = (first, second) if len(first) >= len(second) else (second, first)
    result = list(longer)
    offset = len(longer) - len(shorter)
    for position, length in enumerate(shorter):
        other = longer[offset + position]
        if other == 1:
            result[offset + position] = length
        elif length not in (1, other):
            raise refuse(
                "shape-mismatch", f"shapes {first} and {second} do not broadcast: {other} against {length}"
            )
    return tuple(result)


def broadcast_all(shapes: Sequence[Shape]) -> Shape:
    """The common shape of all."""
    result: Shape = ()
    for shape in shapes:
        result = broadcast(result, shape)
    return result


def check_axes(axes: Sequence[int], ndim: int, *, ordered: bool = True) -> None:
    """Axes of a program are non-negative, each once, and ascending unless the order has a meaning."""
    if any(not 0 <= axis < ndim for axis in axes):
        raise refuse("bad-axis", f"axes {tuple(axes)} of an array with {ndim} dimensions")
    if len(set(axes)) != len(axes) or (ordered and list(axes) != sorted(axes)):
        raise refuse("bad-axis", f"axes {tuple(axes)} must each appear once, ascending")


def reduced_shape(shape: Shape, axes: Sequence[int], keepdims: bool) -> Shape:
    """The shape after reducing `axes`."""
    gone = set(axes)
    if keepdims:
        return tuple(1 if axis in gone else length for axis, length in enumerate(shape))
    return tuple(length for axis, length in enumerate(shape) if axis not in gone)


def indexed_shape(shape: Shape, index: Sequence[IndexItem]) -> Shape:
    """The shape of `x[index]` for an index in the form that the module's docstring gives."""
    result: list[int] = []
    axis = 0
    for item in index:
        if item == (NEW_AXIS,):
            result.append(1)
            continue
        if axis >= len(shape):
            raise refuse("bad-index", f"the index has more items than the array's {len(shape)} dimensions")
        length = shape[axis]
        if len(item) == 2 and item[0] == TAKE_ONE:
            if not 0 <= item[1] < length:
                raise refuse("bad-index", f"index {item[1]} is outside axis {axis} of length {length}")
        elif len(item) == 4 and item[0] == TAKE_SLICE:
            _check_slice(item, axis, length)
            result.append(item[2])
        else:
            raise refuse("bad-index", f"{item} is not an index item")
        axis += 1
    if axis != len(shape):
        raise refuse("bad-index", f"the index covers {axis} of {len(shape)} dimensions")
    return tuple(result)


def _check_slice(item: IndexItem, axis: int, length: int) -> None:
    _, start, count, step = item
    if count == 0:
        if (start, step) != (0, 1):
            raise refuse("bad-index", "an empty slice must start at 0 with step 1")
        return
    last = start + (count - 1) * step
    if step == 0 or count < 0 or not 0 <= start < length or not 0 <= last < length:
        raise refuse(
            "bad-index", f"slice of {count} from {start} by {step} leaves axis {axis} of length {length}"
        )
    if count == 1 and step != 1:
        raise refuse("bad-index", "a slice of one element must have step 1")


def as_python_index(index: Sequence[IndexItem]) -> tuple[int | slice | None, ...]:
    """The index as NumPy takes it."""
    result: list[int | slice | None] = []
    for item in index:
        if item[0] == NEW_AXIS:
            result.append(None)
        elif item[0] == TAKE_ONE:
            result.append(item[1])
        else:
            _, start, count, step = item
            stop = start + count * step
            result.append(slice(start, stop if stop >= 0 else None, step))
    return tuple(result)
