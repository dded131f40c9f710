"""Rules beyond the array standard: the error function, normal quantiles, random bits, convolution, pooling."""

from collections.abc import Sequence
from math import prod

from coppermesh.exec import dtypes
from coppermesh.exec.operations import (
    PER_MATRIX,
    AttributeCheck,
    Call,
    define,
    is_int,
    is_int_lists,
    is_ints,
    need_dtype,
    need_equal_dtypes,
    one_of,
    per_result,
)
from coppermesh.exec.program import ArraySpec
from coppermesh.exec.shapes import array_spec, refuse
from coppermesh.exec.windows import window_count

MAX_SPATIAL = 3
MAX_EXTENT = 1 << 31
"""Strides, dilations, windows and paddings are below this, so that their products stay exact everywhere."""


def _erf(call: Call) -> ArraySpec:
    need_dtype(call.specs[0], dtypes.REAL_FLOATING)
    return call.specs[0]


def _ndtri(call: Call) -> ArraySpec:
    need_dtype(call.specs[0], frozenset({"float64"}))
    return call.specs[0]


def _philox(call: Call) -> ArraySpec:
    key, stream = call.specs[0], call.integer("stream")
    if key != ArraySpec("uint32", (2,)):
        raise refuse("bad-argument", f"the key of random numbers is uint32[2], not {key}")
    if stream < 0:
        raise refuse("bad-argument", f"the stream of random numbers is not negative, but {stream}")
    return array_spec("uint32", call.integers("shape"))


def _extents(call: Call, name: str, count: int, least: int) -> tuple[int, ...]:
    values = call.integers(name)
    if len(values) != count or not all(least <= value < MAX_EXTENT for value in values):
        raise refuse("bad-argument", f"{name} must be {count} numbers from {least} up, not {values}")
    return values


def _paddings(call: Call, count: int) -> tuple[tuple[int, ...], ...]:
    pairs = call.lists("padding")
    if len(pairs) != count or not all(
        len(pair) == 2 and min(pair) >= 0 and max(pair) < MAX_EXTENT for pair in pairs
    ):
        raise refuse("bad-argument", f"padding must be {count} pairs of widths, none negative")
    return pairs


def _spatial(spec: ArraySpec) -> int:
    count = spec.ndim - 2
    if not 1 <= count <= MAX_SPATIAL:
        raise refuse("bad-shape", f"{spec} needs batch, channels and one to {MAX_SPATIAL} more dimensions")
    return count


def _padded_shape(call: Call) -> list[int]:
    spec = call.specs[0]
    pairs = _paddings(call, _spatial(spec))
    return [length + sum(pair) for length, pair in zip(spec.shape[2:], pairs, strict=True)]


def _windowed(call: Call, window: Sequence[int]) -> list[int]:
    """Lengths of the result's spatial axes."""
    count = _spatial(call.specs[0])
    if not all(1 <= length < MAX_EXTENT for length in window):
        raise refuse(
            "bad-argument", f"a window has at least one element along each axis, not {tuple(window)}"
        )
    strides, dilation = _extents(call, "strides", count, 1), _extents(call, "dilation", count, 1)
    items = zip(_padded_shape(call), window, strides, dilation, strict=True)
    lengths = [window_count(*item) for item in items]
    if min(lengths) < 1:
        raise refuse(
            "bad-shape",
            f"a window of {tuple(window)} does not fit into {call.specs[0].shape[2:]} with its padding",
        )
    return lengths


def _conv(call: Call) -> ArraySpec:
    x, weights = call.specs
    groups = call.integer("groups")
    need_equal_dtypes(call.specs)
    need_dtype(x, dtypes.NUMERIC)
    _spatial(x)
    if weights.ndim != x.ndim:
        raise refuse("bad-shape", f"weights {weights} for {x}: they need as many dimensions")
    if groups < 1 or x.shape[1] % groups or weights.shape[0] % groups:
        raise refuse("bad-argument", f"{groups} groups do not divide the channels of {x} and {weights}")
    if weights.shape[1] != x.shape[1] // groups:
        raise refuse(
            "shape-mismatch", f"weights {weights} take {weights.shape[1]} channels in each group of {x}"
        )
    return array_spec(x.dtype, (x.shape[0], weights.shape[0], *_windowed(call, weights.shape[2:])))


def _conv_cost(call: Call, results: Sequence[ArraySpec]) -> float:
    products = results[0].shape[0] * call.integer(
        "groups"
    )  # one for each image and group, also where it is empty
    return 2.0 * results[0].size * prod(call.specs[1].shape[1:]) + PER_MATRIX * products


def _conv_workspace(call: Call, results: Sequence[ArraySpec]) -> int:
    """The padded array, its windows written out, the product before it is reshaped."""
    x, weights = call.specs
    result = results[0]
    padded = prod(x.shape[:2]) * prod(_padded_shape(call))
    columns = prod(x.shape[:2]) * prod(weights.shape[2:]) * prod(result.shape[2:])
    return (padded + columns + result.size) * x.numpy_dtype.itemsize


def _pool(call: Call) -> ArraySpec:
    spec = call.specs[0]
    need_dtype(spec, dtypes.REAL if call.word("kind") == "max" else dtypes.NUMERIC)
    window = _extents(call, "window", _spatial(spec), 1)
    lengths = _windowed(call, window)
    reach = zip(window, call.integers("dilation"), call.lists("padding"), strict=True)
    if any(max(pair) > dilation * (length - 1) for length, dilation, pair in reach):
        raise refuse("bad-argument", "padding is as wide as a window: some windows would be empty")
    return array_spec(spec.dtype, (*spec.shape[:2], *lengths))


def _pool_cost(call: Call, results: Sequence[ArraySpec]) -> float:
    return float(results[0].size) * sum(call.integers("window")) + call.specs[0].size


def _pool_workspace(call: Call, _results: Sequence[ArraySpec]) -> int:
    """The padded array, and the result of one axis beside that of the next."""
    spec = call.specs[0]
    return 3 * prod(spec.shape[:2]) * prod(_padded_shape(call)) * spec.numpy_dtype.itemsize


def _define_windows() -> None:
    define("erf", 1, _erf, per_result(20), scratch=8.0)
    define("ndtri", 1, _ndtri, per_result(60), scratch=12.0)
    random: dict[str, AttributeCheck] = {"shape": is_ints, "stream": is_int}
    # Twelve words of 64 bits for every four of the result, and the result once more.
    define("philox", 1, _philox, per_result(40), random, workspace=lambda _c, r: 8 * (r[0].nbytes + 64))
    place: dict[str, AttributeCheck] = {"strides": is_ints, "padding": is_int_lists, "dilation": is_ints}
    define("conv", 2, _conv, _conv_cost, {**place, "groups": is_int}, workspace=_conv_workspace)
    pooling = {**place, "window": is_ints, "kind": one_of("max", "sum")}
    define("pool", 1, _pool, _pool_cost, pooling, workspace=_pool_workspace)


_define_windows()
