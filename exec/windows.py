"""Convolution and pooling over one array library: strided views of a padded array, then one product or reduction.

No index is taken from data, and `rules_windows` has checked that every window lies inside the padded array.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any


def window_count(length: int, window: int, stride: int, dilation: int) -> int:
    """How many windows fit along an axis of `length`; zero or negative where none does."""
    return (length - dilation * (window - 1) - 1) // stride + 1


def _padded(library: Any, x: Any, padding: Sequence[Sequence[int]], fill: Any) -> Any:
    if not any(sum(pair) for pair in padding):
        return library.ascontiguousarray(x)
    widths = ((0, 0), (0, 0), *((before, after) for before, after in padding))
    return library.pad(x, widths, mode="constant", constant_values=fill)


def conv(library: Any, x: Any, weights: Any, attrs: Mapping[str, Any]) -> Any:
    """Cross-correlation of `x` (batch, channels, ...) with `weights` (outputs, channels / groups, ...)."""
    groups, strides, dilation = attrs["groups"], attrs["strides"], attrs["dilation"]
    x = _padded(library, x, attrs["padding"], 0)
    batch, channels = x.shape[:2]
    outputs, inner, *window = weights.shape
    lengths = [window_count(*item) for item in zip(x.shape[2:], window, strides, dilation, strict=True)]
    steps = x.strides[2:]
    view = library.lib.stride_tricks.as_strided(
        x,
        shape=(batch, channels, *window, *lengths),
        strides=(
            *x.strides[:2],
            *(step * d for step, d in zip(steps, dilation, strict=True)),
            *(step * s for step, s in zip(steps, strides, strict=True)),
        ),
    )
    columns = view.reshape(batch, groups, inner * prod(window), prod(lengths))
    kernel = weights.reshape(groups, outputs // groups, inner * prod(window))
    return library.matmul(kernel, columns).reshape(batch, outputs, *lengths)


def pool(library: Any, x: Any, attrs: Mapping[str, Any]) -> Any:
    """The largest element, or the sum, of each window; one axis after the other."""
    largest = attrs["kind"] == "max"
    fill = _lowest(library, x.dtype) if largest else 0
    x = _padded(library, x, attrs["padding"], fill)
    shapes = zip(attrs["window"], attrs["strides"], attrs["dilation"], strict=True)
    for axis, (window, stride, dilation) in enumerate(shapes, start=2):
        x = library.ascontiguousarray(x)
        count = window_count(x.shape[axis], window, stride, dilation)
        step = x.strides[axis]
        view = library.lib.stride_tricks.as_strided(
            x,
            shape=(window, *x.shape[:axis], count, *x.shape[axis + 1 :]),
            strides=(step * dilation, *x.strides[:axis], step * stride, *x.strides[axis + 1 :]),
        )
        x = view.max(axis=0) if largest else view.sum(axis=0, dtype=x.dtype)
    return x


def _lowest(library: Any, dtype: Any) -> Any:
    return -float("inf") if dtype.kind == "f" else library.iinfo(dtype).min
