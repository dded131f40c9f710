"""Rules of reductions, positions and running sums. Axes are explicit and ascending; an empty list reduces nothing."""

from collections.abc import Callable

from coppermesh.exec import dtypes
from coppermesh.exec.operations import (
    AttributeCheck,
    Call,
    Rule,
    define,
    is_bool,
    is_dtype,
    is_int,
    is_ints,
    need_axis,
    need_dtype,
    need_single,
    per_argument,
)
from coppermesh.exec.program import ArraySpec
from coppermesh.exec.shapes import Shape, array_spec, check_axes, reduced_shape, refuse


def _reduced(call: Call) -> Shape:
    spec = call.specs[0]
    axes = call.integers("axes")
    check_axes(axes, spec.ndim)
    return reduced_shape(spec.shape, axes, call.flag("keepdims"))


def _reduction(allowed: frozenset[str]) -> Rule:
    def rule(call: Call) -> ArraySpec:
        need_dtype(call.specs[0], allowed)
        return array_spec(call.specs[0].dtype, _reduced(call))

    return rule


def _extreme(call: Call) -> ArraySpec:
    spec = call.specs[0]
    need_dtype(spec, dtypes.REAL)
    result = array_spec(spec.dtype, _reduced(call))
    if any(spec.shape[axis] == 0 for axis in call.integers("axes")):
        raise refuse(
            "empty-reduction", f"shape {spec.shape} has no element along axes {call.integers('axes')}"
        )
    return result


def _accumulation(shape_of: Callable[[Call], Shape]) -> Rule:
    """`sum` and its like: the result's dtype is named, and its kind must not be less than the argument's."""

    def rule(call: Call) -> ArraySpec:
        source, target = call.specs[0].dtype, call.word("dtype")
        need_dtype(call.specs[0], dtypes.NUMERIC)
        narrower = (source in dtypes.COMPLEX and target not in dtypes.COMPLEX) or (
            source in dtypes.FLOATING and target not in dtypes.FLOATING
        )
        if target not in dtypes.NUMERIC or narrower:
            raise refuse("bad-dtype", f"{source} cannot be accumulated as {target}")
        return array_spec(target, shape_of(call))

    return rule


def _running_shape(call: Call) -> Shape:
    need_axis(call.integer("axis"), call.specs[0].ndim)
    return call.specs[0].shape


def _spread(call: Call) -> ArraySpec:
    spec, correction = call.specs
    need_dtype(spec, dtypes.REAL_FLOATING)
    need_single(correction, "the correction")
    need_dtype(correction, frozenset({"float64"}), "the correction")
    return array_spec(spec.dtype, _reduced(call))


def _position(call: Call) -> ArraySpec:
    spec, axis = call.specs[0], call.integer("axis")
    need_dtype(spec, dtypes.REAL)
    need_axis(axis, spec.ndim)
    if spec.shape[axis] == 0:
        raise refuse("empty-reduction", f"shape {spec.shape} has no element along axis {axis}")
    return array_spec("int64", reduced_shape(spec.shape, (axis,), call.flag("keepdims")))


def _define_all() -> None:
    axes: dict[str, AttributeCheck] = {"axes": is_ints, "keepdims": is_bool}
    once = per_argument(1)
    for name in ("sum", "prod"):
        define(name, 1, _accumulation(_reduced), once, {**axes, "dtype": is_dtype})
    for name in ("max", "min"):
        define(name, 1, _extreme, once, axes)
    for name in ("any", "all"):
        define(name, 1, _reduction(dtypes.BOOLEAN), once, axes)
    define("mean", 1, _reduction(dtypes.FLOATING), once, axes)
    for name in ("var", "std"):
        define(name, 2, _spread, per_argument(4), axes, scratch=2.0)
    for name in ("argmax", "argmin"):
        define(name, 1, _position, once, {"axis": is_int, "keepdims": is_bool})
    for name in ("cumulative_sum", "cumulative_prod"):
        define(name, 1, _accumulation(_running_shape), once, {"axis": is_int, "dtype": is_dtype})


_define_all()
