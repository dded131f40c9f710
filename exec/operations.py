"""The operations that a program may name: for each its argument count, attributes, shape and dtype rule, and cost.

This table is the whole vocabulary: the recorder writes only what it allows, `schema` checks every node against it, and
a runtime looks an operation up by the same name. Rules work on specs alone, so that a 100 TiB array costs nothing to
refuse. Names are those of the Python Array API standard (2024.12) where it has one.

Programs are stricter than the namespace a user writes in: operands of an arithmetic operation have one dtype, axes are
explicit and non-negative, every attribute is present. What a person may leave out, the recorder fills in, so that one
meaning has one encoding and a runtime needs no promotion rules of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import Final

from coppermesh.exec import dtypes
from coppermesh.exec.program import ArraySpec, AttributeValue, KernelSource, Scalar
from coppermesh.exec.shapes import (
    array_spec,
    broadcast,
    broadcast_all,
    check_axes,
    indexed_shape,
    reduced_shape,
    refuse,
)


@dataclass(frozen=True, slots=True)
class Call:
    """One node as a rule sees it: the specs of its arguments and its checked attributes."""

    specs: Sequence[ArraySpec]
    attrs: Mapping[str, AttributeValue]
    scalars: Sequence[Scalar | None] = ()
    """For each argument the constant written in place, or None; given for kernels, which treat the two apart."""
    kernel: KernelSource | None = None


Rule = Callable[[Call], ArraySpec | tuple[ArraySpec, ...]]
Cost = Callable[[Call, Sequence[ArraySpec]], float]
AttributeCheck = Callable[[AttributeValue], bool]


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table. `cost` gives floating or integer operations, roughly."""

    name: str
    arity: tuple[int, int]
    attrs: Mapping[str, AttributeCheck]
    rule: Rule
    cost: Cost
    scratch: float = 0.0
    """Working memory beyond arguments and results, as a multiple of the arguments' bytes."""


OPERATIONS: Final[dict[str, Operation]] = {}


def define(
    name: str,
    arity: int | tuple[int, int],
    rule: Rule,
    cost: Cost,
    attrs: Mapping[str, AttributeCheck] | None = None,
    scratch: float = 0.0,
) -> None:
    """Add one operation to the table."""
    bounds = (arity, arity) if isinstance(arity, int) else arity
    OPERATIONS[name] = Operation(name, bounds, attrs or {}, rule, cost, scratch)


# Attribute checks: types and enumerations. Ranges are the rules' business, which know the shapes.


def is_bool(value: AttributeValue) -> bool:
    return isinstance(value, bool)


def is_int(value: AttributeValue) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62


def is_dtype(value: AttributeValue) -> bool:
    return isinstance(value, str) and value in dtypes.NUMPY_DTYPES


def is_ints(value: AttributeValue) -> bool:
    return isinstance(value, tuple) and all(is_int(item) for item in value if not isinstance(item, tuple)) and not any(
        isinstance(item, tuple) for item in value
    )


def is_int_lists(value: AttributeValue) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, tuple) and is_ints(item) for item in value)


def one_of(*words: str) -> AttributeCheck:
    return lambda value: isinstance(value, str) and value in words


def int_attr(call: Call, name: str) -> int:
    value = call.attrs[name]
    assert isinstance(value, int)  # the attribute check ran before the rule
    return value


def str_attr(call: Call, name: str) -> str:
    value = call.attrs[name]
    assert isinstance(value, str)
    return value


def ints_attr(call: Call, name: str) -> tuple[int, ...]:
    value = call.attrs[name]
    assert isinstance(value, tuple)
    return value  # type: ignore[return-value]  # is_ints checked the items


def lists_attr(call: Call, name: str) -> tuple[tuple[int, ...], ...]:
    value = call.attrs[name]
    assert isinstance(value, tuple)
    return value  # type: ignore[return-value]  # is_int_lists checked the items


# Helpers of rules.


def need_dtype(spec: ArraySpec, allowed: frozenset[str], what: str = "argument") -> None:
    if spec.dtype not in allowed:
        raise refuse("bad-dtype", f"{what} is {spec.dtype}, but must be one of {', '.join(sorted(allowed))}")


def need_equal_dtypes(specs: Sequence[ArraySpec]) -> None:
    first = specs[0].dtype
    for spec in specs:
        if spec.dtype != first:
            raise refuse("bad-dtype", f"arguments must have one dtype, not {first} and {spec.dtype}")


def need_axis(axis: int, ndim: int) -> None:
    if not 0 <= axis < ndim:
        raise refuse("bad-axis", f"axis {axis} of an array with {ndim} dimensions")


def per_result(weight: float) -> Cost:
    return lambda call, results: weight * sum(spec.size for spec in results)


def per_argument(weight: float) -> Cost:
    return lambda call, results: weight * sum(spec.size for spec in call.specs)


def _sort_cost(call: Call, results: Sequence[ArraySpec]) -> float:
    size = sum(spec.size for spec in call.specs)
    return 2.0 * size * log2(size + 2)


# Element by element.


def _elementwise(allowed: frozenset[str], result: Callable[[str], str]) -> Rule:
    def rule(call: Call) -> ArraySpec:
        specs = call.specs
        first = specs[0]
        need_dtype(first, allowed)
        if len(specs) == 1:
            return array_spec(result(first.dtype), first.shape)
        second = specs[1]
        if second.dtype != first.dtype:
            need_equal_dtypes(specs)
        return array_spec(result(first.dtype), broadcast(first.shape, second.shape))

    return rule


def _same(dtype: str) -> str:
    return dtype


def _real_part(dtype: str) -> str:
    return dtypes.REAL_PART.get(dtype, dtype)


def _boolean(_dtype: str) -> str:
    return "bool"


def _define_elementwise() -> None:
    transcendental = per_result(16)
    simple = per_result(1)
    unary = [
        ("abs", dtypes.NUMERIC, _real_part, simple),
        ("negative", dtypes.NUMERIC, _same, simple),
        ("sign", dtypes.NUMERIC, _same, simple),
        ("square", dtypes.NUMERIC, _same, simple),
        ("reciprocal", dtypes.FLOATING, _same, simple),
        ("conj", dtypes.COMPLEX, _same, simple),
        ("real", dtypes.COMPLEX, _real_part, simple),
        ("imag", dtypes.COMPLEX, _real_part, simple),
        ("sqrt", dtypes.FLOATING, _same, simple),
        ("round", dtypes.FLOATING, _same, simple),
        ("logical_not", dtypes.BOOLEAN, _same, simple),
        ("bitwise_invert", dtypes.INTEGER_OR_BOOLEAN, _same, simple),
        ("signbit", dtypes.REAL_FLOATING, _boolean, simple),
    ]
    unary += [(name, dtypes.REAL_FLOATING, _same, simple) for name in ("ceil", "floor", "trunc")]
    unary += [(name, dtypes.FLOATING, _boolean, simple) for name in ("isfinite", "isinf", "isnan")]
    unary += [
        (name, dtypes.FLOATING, _same, transcendental)
        for name in (
            "exp expm1 log log1p log2 log10 sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh".split()
        )
    ]
    for name, allowed, result, cost in unary:
        define(name, 1, _elementwise(allowed, result), cost)

    binary = [(name, dtypes.NUMERIC, _same, simple) for name in ("add", "subtract", "multiply")]
    binary += [("divide", dtypes.FLOATING, _same, simple), ("pow", dtypes.NUMERIC, _same, transcendental)]
    binary += [(n, dtypes.REAL, _same, simple) for n in ("floor_divide", "remainder", "maximum", "minimum")]
    binary += [(n, dtypes.REAL_FLOATING, _same, transcendental) for n in ("atan2", "hypot", "logaddexp")]
    binary += [(n, dtypes.REAL_FLOATING, _same, simple) for n in ("copysign", "nextafter")]
    binary += [(n, dtypes.INTEGER_OR_BOOLEAN, _same, simple) for n in ("bitwise_and", "bitwise_or", "bitwise_xor")]
    binary += [(n, dtypes.INTEGER, _same, simple) for n in ("bitwise_left_shift", "bitwise_right_shift")]
    binary += [(n, dtypes.BOOLEAN, _same, simple) for n in ("logical_and", "logical_or", "logical_xor")]
    binary += [(n, dtypes.ALL, _boolean, simple) for n in ("equal", "not_equal")]
    binary += [(n, dtypes.REAL, _boolean, simple) for n in ("less", "less_equal", "greater", "greater_equal")]
    for name, allowed, result, cost in binary:
        define(name, 2, _elementwise(allowed, result), cost)

    define("where", 3, _where, simple)
    define("clip", 3, _clip, per_result(2))
    define("astype", 1, _astype, simple, {"dtype": is_dtype})


def _where(call: Call) -> ArraySpec:
    condition, first, second = call.specs
    need_dtype(condition, dtypes.BOOLEAN, "condition")
    need_equal_dtypes((first, second))
    return array_spec(first.dtype, broadcast_all([spec.shape for spec in call.specs]))


def _clip(call: Call) -> ArraySpec:
    need_dtype(call.specs[0], dtypes.REAL)
    need_equal_dtypes(call.specs)
    return array_spec(call.specs[0].dtype, broadcast_all([spec.shape for spec in call.specs]))


def _astype(call: Call) -> ArraySpec:
    target = str_attr(call, "dtype")
    source = call.specs[0]
    if source.dtype in dtypes.COMPLEX and target not in dtypes.COMPLEX and target != "bool":
        raise refuse("bad-dtype", f"{source.dtype} does not convert to {target}; take the real or the imaginary part")
    return array_spec(target, source.shape)


# Reductions.


def _reduction(allowed: frozenset[str], result: Callable[[str], str], *, empty: bool = True) -> Rule:
    def rule(call: Call) -> ArraySpec:
        spec = call.specs[0]
        need_dtype(spec, allowed)
        axes = ints_attr(call, "axes")
        check_axes(axes, spec.ndim)
        if not empty and any(spec.shape[axis] == 0 for axis in axes):
            raise refuse("empty-reduction", f"shape {spec.shape} has nothing to reduce along axes {axes}")
        return array_spec(result(spec.dtype), reduced_shape(spec.shape, axes, bool(call.attrs["keepdims"])))

    return rule


def _accumulation(shape_of: Callable[[Call], ArraySpec]) -> Rule:
    """`sum` and its like: the result's dtype is named, and must be able to hold the argument's kind."""

    def rule(call: Call) -> ArraySpec:
        spec = call.specs[0]
        target = str_attr(call, "dtype")
        need_dtype(spec, dtypes.NUMERIC)
        if target not in dtypes.NUMERIC or (spec.dtype in dtypes.COMPLEX) > (target in dtypes.COMPLEX):
            raise refuse("bad-dtype", f"{spec.dtype} cannot be accumulated as {target}")
        return array_spec(target, shape_of(call).shape)

    return rule


def _spread(call: Call) -> ArraySpec:
    spec, correction = call.specs
    if correction.shape != () or correction.dtype != "float64":
        raise refuse("bad-argument", "the correction must be one float64 number")
    return _reduction(dtypes.REAL_FLOATING, _same)(Call((spec,), call.attrs))


def _position(call: Call) -> ArraySpec:
    spec = call.specs[0]
    axis = int_attr(call, "axis")
    need_dtype(spec, dtypes.REAL)
    need_axis(axis, spec.ndim)
    if spec.shape[axis] == 0:
        raise refuse("empty-reduction", f"shape {spec.shape} has no element along axis {axis}")
    return array_spec("int64", reduced_shape(spec.shape, (axis,), bool(call.attrs["keepdims"])))


def _along_axis(call: Call) -> ArraySpec:
    spec = call.specs[0]
    need_axis(int_attr(call, "axis"), spec.ndim)
    return spec


def _define_reductions() -> None:
    axes: dict[str, AttributeCheck] = {"axes": is_ints, "keepdims": is_bool}
    plain = _reduction(dtypes.NUMERIC, _same)
    for name in ("sum", "prod"):
        define(name, 1, _accumulation(lambda call: _first(plain(call))), per_argument(1), {**axes, "dtype": is_dtype})
    for name in ("max", "min"):
        define(name, 1, _reduction(dtypes.REAL, _same, empty=False), per_argument(1), axes)
    for name in ("any", "all"):
        define(name, 1, _reduction(dtypes.BOOLEAN, _same), per_argument(1), axes)
    define("mean", 1, _reduction(dtypes.FLOATING, _same), per_argument(1), axes)
    for name in ("var", "std"):
        define(name, 2, _spread, per_argument(4), axes, scratch=2.0)
    for name in ("argmax", "argmin"):
        define(name, 1, _position, per_argument(1), {"axis": is_int, "keepdims": is_bool})
    for name in ("cumulative_sum", "cumulative_prod"):
        define(name, 1, _accumulation(_along_axis), per_argument(1), {"axis": is_int, "dtype": is_dtype})


def _first(result: ArraySpec | tuple[ArraySpec, ...]) -> ArraySpec:
    return result if isinstance(result, ArraySpec) else result[0]


# Making arrays.


def _full(call: Call) -> ArraySpec:
    if call.specs[0].shape != ():
        raise refuse("bad-argument", "the fill value must be a single element")
    return array_spec(call.specs[0].dtype, ints_attr(call, "shape"))


def _arange(call: Call) -> ArraySpec:
    start, step = call.specs
    need_equal_dtypes(call.specs)
    need_dtype(start, dtypes.REAL)
    if start.shape != () or step.shape != ():
        raise refuse("bad-argument", "start and step must be single elements")
    return array_spec(start.dtype, (int_attr(call, "length"),))


def _linspace(call: Call) -> ArraySpec:
    start, stop = call.specs
    need_equal_dtypes(call.specs)
    need_dtype(start, dtypes.FLOATING)
    if start.shape != () or stop.shape != ():
        raise refuse("bad-argument", "start and stop must be single elements")
    return array_spec(start.dtype, (int_attr(call, "num"),))


def _eye(call: Call) -> ArraySpec:
    return array_spec(str_attr(call, "dtype"), (int_attr(call, "rows"), int_attr(call, "columns")))


def _define_creation() -> None:
    define("full", 1, _full, per_result(1), {"shape": is_ints})
    define("arange", 2, _arange, per_result(2), {"length": is_int})
    define("linspace", 2, _linspace, per_result(2), {"num": is_int, "endpoint": is_bool}, scratch=1.0)
    eye: dict[str, AttributeCheck] = {"rows": is_int, "columns": is_int, "diagonal": is_int, "dtype": is_dtype}
    define("eye", 0, _eye, per_result(1), eye)


# Shapes, selections, order.


def _reshape(call: Call) -> ArraySpec:
    spec = call.specs[0]
    result = array_spec(spec.dtype, ints_attr(call, "shape"))
    if result.size != spec.size:
        raise refuse("shape-mismatch", f"{spec.size} elements cannot take shape {result.shape}")
    return result


def _broadcast_to(call: Call) -> ArraySpec:
    spec = call.specs[0]
    target = ints_attr(call, "shape")
    if len(target) < spec.ndim or broadcast(spec.shape, target) != target:
        raise refuse("shape-mismatch", f"shape {spec.shape} does not broadcast to {target}")
    return array_spec(spec.dtype, target)


def _permute(call: Call) -> ArraySpec:
    spec = call.specs[0]
    axes = ints_attr(call, "axes")
    check_axes(axes, spec.ndim, ordered=False)
    if len(axes) != spec.ndim:
        raise refuse("bad-axis", f"{len(axes)} axes for an array with {spec.ndim} dimensions")
    return array_spec(spec.dtype, [spec.shape[axis] for axis in axes])


def _flip(call: Call) -> ArraySpec:
    check_axes(ints_attr(call, "axes"), call.specs[0].ndim)
    return call.specs[0]


def _roll(call: Call) -> ArraySpec:
    axes = ints_attr(call, "axes")
    check_axes(axes, call.specs[0].ndim)
    if len(ints_attr(call, "shifts")) != len(axes):
        raise refuse("bad-argument", "roll needs one shift per axis")
    return call.specs[0]


def _concat(call: Call) -> ArraySpec:
    axis = int_attr(call, "axis")
    first = call.specs[0]
    need_equal_dtypes(call.specs)
    need_axis(axis, first.ndim)
    total = 0
    for spec in call.specs:
        if spec.ndim != first.ndim or _without(spec.shape, axis) != _without(first.shape, axis):
            raise refuse("shape-mismatch", f"shapes {first.shape} and {spec.shape} do not join along axis {axis}")
        total += spec.shape[axis]
    shape = list(first.shape)
    shape[axis] = total
    return array_spec(first.dtype, shape)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _getitem(call: Call) -> ArraySpec:
    spec = call.specs[0]
    return array_spec(spec.dtype, indexed_shape(spec.shape, lists_attr(call, "index")))


def _setitem(call: Call) -> ArraySpec:
    target, value = call.specs
    need_equal_dtypes(call.specs)
    selected = indexed_shape(target.shape, lists_attr(call, "index"))
    if len(value.shape) > len(selected) or broadcast(value.shape, selected) != selected:
        raise refuse("shape-mismatch", f"a value of shape {value.shape} does not fit a selection of {selected}")
    return target


def _take(call: Call) -> ArraySpec:
    spec, indices = call.specs
    axis = int_attr(call, "axis")
    need_axis(axis, spec.ndim)
    need_dtype(indices, dtypes.INTEGER, "indices")
    if spec.shape[axis] == 0 and indices.size > 0:
        raise refuse("bad-index", f"nothing to take from axis {axis} of length 0")
    return array_spec(spec.dtype, spec.shape[:axis] + indices.shape + spec.shape[axis + 1 :])


def _take_along(call: Call) -> ArraySpec:
    spec, indices = call.specs
    axis = int_attr(call, "axis")
    need_axis(axis, spec.ndim)
    need_dtype(indices, dtypes.INTEGER, "indices")
    if indices.ndim != spec.ndim or _without(indices.shape, axis) != _without(spec.shape, axis):
        raise refuse("shape-mismatch", f"indices of shape {indices.shape} do not match {spec.shape} off axis {axis}")
    if spec.shape[axis] == 0 and indices.size > 0:
        raise refuse("bad-index", f"nothing to take from axis {axis} of length 0")
    return array_spec(spec.dtype, indices.shape)


def _pad(call: Call) -> ArraySpec:
    spec, value = call.specs
    widths = lists_attr(call, "widths")
    mode = str_attr(call, "mode")
    need_equal_dtypes(call.specs)
    if value.shape != ():
        raise refuse("bad-argument", "the padding value must be a single element")
    if len(widths) != spec.ndim or any(len(pair) != 2 or min(pair) < 0 for pair in widths):
        raise refuse("bad-argument", "pad needs one pair of widths, none negative, per dimension")
    for axis, (before, after) in enumerate(widths):
        # NumPy repeats a reflection as often as needed; here one reflection must do, so that cost stays plain.
        available = {"constant": None, "edge": None, "reflect": -1, "symmetric": 0, "wrap": 0}[mode]
        length = spec.shape[axis]
        if mode != "constant" and length == 0 and before + after > 0:
            raise refuse("bad-argument", f"axis {axis} is empty: nothing to pad from")
        if available is not None and max(before, after) > max(0, length + available):
            raise refuse("bad-argument", f"padding axis {axis} of length {length} by {max(before, after)} in {mode} mode")
    shape = [length + before + after for length, (before, after) in zip(spec.shape, widths, strict=True)]
    return array_spec(spec.dtype, shape)


def _sort(call: Call) -> ArraySpec:
    need_dtype(call.specs[0], dtypes.REAL)
    need_axis(int_attr(call, "axis"), call.specs[0].ndim)
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
    define("take_along_axis", 2, _take_along, move, {"axis": is_int}, scratch=1.0)
    modes = one_of("constant", "edge", "reflect", "symmetric", "wrap")
    define("pad", 2, _pad, move, {"widths": is_int_lists, "mode": modes})
    order: dict[str, AttributeCheck] = {"axis": is_int, "descending": is_bool}
    define("sort", 1, _sort, _sort_cost, order, scratch=1.0)
    define("argsort", 1, _argsort, _sort_cost, order, scratch=1.0)
    define("searchsorted", 2, _searchsorted, _sort_cost, {"side": one_of("left", "right")})


# Products and transforms.


def _matmul(call: Call) -> ArraySpec:
    first, second = call.specs
    need_equal_dtypes(call.specs)
    need_dtype(first, dtypes.NUMERIC)
    if first.ndim == 0 or second.ndim == 0:
        raise refuse("bad-shape", "matmul needs arrays with at least one dimension")
    rows = first.shape[-2:-1]
    inner = second.shape[-2] if second.ndim > 1 else second.shape[0]
    columns = second.shape[-1:] if second.ndim > 1 else ()
    if first.shape[-1] != inner:
        raise refuse("shape-mismatch", f"matmul of {first.shape} and {second.shape}: {first.shape[-1]} against {inner}")
    batch = broadcast(first.shape[:-2], second.shape[:-2])
    return array_spec(first.dtype, batch + rows + columns)


def _matmul_cost(call: Call, results: Sequence[ArraySpec]) -> float:
    return 2.0 * results[0].size * call.specs[0].shape[-1]


def _fft_cost(call: Call, results: Sequence[ArraySpec]) -> float:
    size = max(call.specs[0].size, results[0].size)
    return 5.0 * size * log2(size + 2)


def _transform(lengths: Sequence[int], axes: Sequence[int], spec: ArraySpec) -> list[int]:
    check_axes(axes, spec.ndim, ordered=False)
    if len(lengths) != len(axes) or min(lengths, default=1) < 1 or not axes:
        raise refuse("bad-argument", "a transform needs at least one axis and a length of at least 1 for each")
    shape = list(spec.shape)
    for axis, length in zip(axes, lengths, strict=True):
        shape[axis] = length
    return shape


def _fft(real_input: bool, real_output: bool, many: bool) -> Rule:
    def rule(call: Call) -> ArraySpec:
        spec = call.specs[0]
        need_dtype(spec, dtypes.REAL_FLOATING if real_input else dtypes.COMPLEX)
        lengths = ints_attr(call, "lengths") if many else (int_attr(call, "length"),)
        axes = ints_attr(call, "axes") if many else (int_attr(call, "axis"),)
        shape = _transform(lengths, axes, spec)
        if real_input:
            shape[axes[-1]] = lengths[-1] // 2 + 1
        dtype = dtypes.COMPLEX_OF.get(spec.dtype, spec.dtype)
        return array_spec(dtypes.REAL_PART[dtype] if real_output else dtype, shape)

    return rule


def _define_products() -> None:
    define("matmul", 2, _matmul, _matmul_cost, scratch=1.0)
    norm = one_of("backward", "ortho", "forward")
    one: dict[str, AttributeCheck] = {"length": is_int, "axis": is_int, "norm": norm}
    many: dict[str, AttributeCheck] = {"lengths": is_ints, "axes": is_ints, "norm": norm}
    for name, real_input, real_output in (
        ("fft", False, False),
        ("ifft", False, False),
        ("rfft", True, False),
        ("irfft", False, True),
    ):
        define(name, 1, _fft(real_input, real_output, many=False), _fft_cost, one, scratch=2.0)
        define(name + "n", 1, _fft(real_input, real_output, many=True), _fft_cost, many, scratch=2.0)


_define_elementwise()
_define_reductions()
_define_creation()
_define_arrangement()
_define_products()
