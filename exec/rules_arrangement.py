"""Rules of making, reshaping, selecting, joining, padding and ordering arrays."""

from collections.abc import Sequence
from math import log2

from coppermesh.exec import dtypes
from coppermesh.exec.operations import (
    AttributeCheck,
    Call,
    Workspace,
    define,
    is_bool,
    is_dtype,
    is_int,
    is_int_lists,
    is_ints,
    need_axis,
    need_dtype,
    need_equal_dtypes,
    need_single,
    one_of,
    per_argument,
    per_result,
)
from coppermesh.exec.program import ArraySpec
from coppermesh.exec.shapes import array_spec, broadcast, check_axes, indexed_shape, refuse


def _full(call: Call) -> ArraySpec:
    need_single(call.specs[0], "the fill value")
    return array_spec(call.specs[0].dtype, call.integers("shape"))


def _arange(call: Call) -> ArraySpec:
    start, step = call.specs
    need_equal_dtypes(call.specs)
    need_dtype(start, dtypes.REAL)
    need_single(start, "start")
    need_single(step, "step")
    return array_spec(start.dtype, (call.integer("length"),))


def _linspace(call: Call) -> ArraySpec:
    start, stop = call.specs
    need_equal_dtypes(call.specs)
    need_dtype(start, dtypes.FLOATING)
    need_single(start, "start")
    need_single(stop, "stop")
    return array_spec(start.dtype, (call.integer("num"),))


def _eye(call: Call) -> ArraySpec:
    return array_spec(call.word("dtype"), (call.integer("rows"), call.integer("columns")))


def _define_creation() -> None:
    define("full", 1, _full, per_result(1), {"shape": is_ints})
    define("arange", 2, _arange, per_result(2), {"length": is_int})
    define("linspace", 2, _linspace, per_result(2), {"num": is_int, "endpoint": is_bool}, scratch=1.0)
    eye: dict[str, AttributeCheck] = {
        "rows": is_int,
        "columns": is_int,
        "diagonal": is_int,
        "dtype": is_dtype,
    }
    define("eye", 0, _eye, per_result(1), eye)


def _reshape(call: Call) -> ArraySpec:
    spec = call.specs[0]
    result = array_spec(spec.dtype, call.integers("shape"))
    if result.size != spec.size:
        raise refuse("shape-mismatch", f"{spec.size} elements cannot take shape {result.shape}")
    return result


def _broadcast_to(call: Call) -> ArraySpec:
    spec = call.specs[0]
    target = call.integers("shape")
    if len(target) < spec.ndim or broadcast(spec.shape, target) != target:
        raise refuse("shape-mismatch", f"shape {spec.shape} does not broadcast to {target}")
    return array_spec(spec.dtype, target)


def _permute(call: Call) -> ArraySpec:
    spec = call.specs[0]
    axes = call.integers("axes")
    check_axes(axes, spec.ndim, ordered=False)
    if len(axes) != spec.ndim:
        raise refuse("bad-axis", f"{len(axes)} axes for an array with {spec.ndim} dimensions")
    return array_spec(spec.dtype, [spec.shape[axis] for axis in axes])


def _flip(call: Call) -> ArraySpec:
    check_axes(call.integers("axes"), call.specs[0].ndim)
    return call.specs[0]


def _roll(call: Call) -> ArraySpec:
    axes = call.integers("axes")
    check_axes(axes, call.specs[0].ndim)
    if len(call.integers("shifts")) != len(axes):
        raise refuse("bad-argument", "roll needs one shift per axis")
    return call.specs[0]


def _concat(call: Call) -> ArraySpec:
    axis = call.integer("axis")
    first = call.specs[0]
    need_equal_dtypes(call.specs)
    need_axis(axis, first.ndim)
    total = 0
    for spec in call.specs:
        if spec.ndim != first.ndim or _without(spec.shape, axis) != _without(first.shape, axis):
            raise refuse(
                "shape-mismatch", f"shapes {first.shape} and {spec.shape} do not join along axis {axis}"
            )
        total += spec.shape[axis]
    shape = list(first.shape)
    shape[axis] = total
    return array_spec(first.dtype, shape)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _getitem(call: Call) -> ArraySpec:
    spec = call.specs[0]
    return array_spec(spec.dtype, indexed_shape(spec.shape, call.lists("index")))


def _setitem(call: Call) -> ArraySpec:
    target, value = call.specs
    need_equal_dtypes(call.specs)
    selected = indexed_shape(target.shape, call.lists("index"))
    if len(value.shape) > len(selected) or broadcast(value.shape, selected) != selected:
        raise refuse(
            "shape-mismatch", f"a value of shape {value.shape} does not fit a selection of {selected}"
        )
    return target


def _take(call: Call) -> ArraySpec:
    spec, indices = call.specs
    axis = call.integer("axis")
    need_axis(axis, spec.ndim)
    need_dtype(indices, dtypes.INTEGER, "indices")
    if spec.shape[axis] == 0 and indices.size > 0:
        raise refuse("bad-index", f"nothing to take from axis {axis} of length 0")
    return array_spec(spec.dtype, spec.shape[:axis] + indices.shape + spec.shape[axis + 1 :])


def _put(call: Call) -> ArraySpec:
    spec, indices, values = call.specs
    need_equal_dtypes((spec, values))
    selected = _take(Call((spec, indices), call.attrs)).shape
    if len(values.shape) > len(selected) or broadcast(values.shape, selected) != selected:
        raise refuse("shape-mismatch", f"values of shape {values.shape} do not fit a selection of {selected}")
    return spec


def _add_at(call: Call) -> ArraySpec:
    need_dtype(call.specs[0], dtypes.NUMERIC)
    return _put(call)


def _take_along(call: Call) -> ArraySpec:
    spec, indices = call.specs
    axis = call.integer("axis")
    need_axis(axis, spec.ndim)
    need_dtype(indices, dtypes.INTEGER, "indices")
    if indices.ndim != spec.ndim or _without(indices.shape, axis) != _without(spec.shape, axis):
        raise refuse(
            "shape-mismatch", f"indices of shape {indices.shape} do not match {spec.shape} off axis {axis}"
        )
    if spec.shape[axis] == 0 and indices.size > 0:
        raise refuse("bad-index", f"nothing to take from axis {axis} of length 0")
    return array_spec(spec.dtype, indices.shape)


def _pad(call: Call) -> ArraySpec:
    spec, value = call.specs
    widths = call.lists("widths")
    mode = call.word("mode")
    need_equal_dtypes(call.specs)
    need_single(value, "the padding value")
    if len(widths) != spec.ndim or any(len(pair) != 2 or min(pair) < 0 for pair in widths):
        raise refuse("bad-argument", "pad needs one pair of widths, none negative, per dimension")
    for axis, (before, after) in enumerate(widths):
        # NumPy repeats a reflection as often as needed; here one reflection must do, so that cost stays plain.
        available = {"constant": None, "edge": None, "reflect": -1, "symmetric": 0, "wrap": 0}[mode]
        length = spec.shape[axis]
        if mode != "constant" and length == 0 and before + after > 0:
            raise refuse("bad-argument", f"axis {axis} is empty: nothing to pad from")
        if available is not None and max(before, after) > max(0, length + available):
            raise refuse(
                "bad-argument",
                f"padding axis {axis} of length {length} by {max(before, after)} in {mode} mode",
            )
    shape = [length + before + after for length, (before, after) in zip(spec.shape, widths, strict=True)]
    return array_spec(spec.dtype, shape)


def _sort_cost(call: Call, results: Sequence[ArraySpec]) -> float:
    size = sum(spec.size for spec in (*call.specs, *results))
    return size * log2(size + 2)


def _sort(call: Call) -> ArraySpec:
    need_dtype(call.specs[0], dtypes.REAL)
    need_axis(call.integer("axis"), call.specs[0].ndim)
    return call.specs[0]


def _argsort(call: Call) -> ArraySpec:
    return array_spec("int64", _sort(call).shape)


def _searchsorted(call: Call) -> ArraySpec:
    ordered, values = call.specs
    need_equal_dtypes(call.specs)
    need_dtype(ordered, dtypes.REAL)
    if ordered.ndim != 1:
        raise refuse("bad-shape", "searchsorted looks things up in an array with one dimension")
    return array_spec("int64", values.shape)


def _define_arrangement() -> None:
    move = per_result(1)
    define("reshape", 1, _reshape, move, {"shape": is_ints})
    define("broadcast_to", 1, _broadcast_to, move, {"shape": is_ints})
    define("permute_dims", 1, _permute, move, {"axes": is_ints})
    define("flip", 1, _flip, move, {"axes": is_ints})
    define("roll", 1, _roll, move, {"axes": is_ints, "shifts": is_ints})
    define("concat", (1, 128), _concat, move, {"axis": is_int})
    define("getitem", 1, _getitem, move, {"index": is_int_lists})
    define("setitem", 2, _setitem, move, {"index": is_int_lists})
    define("take", 2, _take, move, {"axis": is_int})
    define("put", 3, _put, move, {"axis": is_int}, scratch=1.0)
    define("add_at", 3, _add_at, per_argument(1), {"axis": is_int}, scratch=1.0)
    # NumPy counts along every axis, also of an empty array.
    counts: Workspace = lambda call, _results: 8 * sum(call.specs[0].shape) + 8 * sum(call.specs[1].shape)  # noqa: E731
    define("take_along_axis", 2, _take_along, move, {"axis": is_int}, scratch=1.0, workspace=counts)
    modes = one_of("constant", "edge", "reflect", "symmetric", "wrap")
    define("pad", 2, _pad, move, {"widths": is_int_lists, "mode": modes})
    order: dict[str, AttributeCheck] = {"axis": is_int, "descending": is_bool}
    define("sort", 1, _sort, _sort_cost, order, scratch=1.0)
    define("argsort", 1, _argsort, _sort_cost, order, scratch=1.0)
    define("searchsorted", 2, _searchsorted, _sort_cost, {"side": one_of("left", "right")})


_define_creation()
_define_arrangement()
