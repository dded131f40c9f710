"""`xp`, results whose shape depends on data: `nonzero` and the `unique` family. Each is a barrier (see `barrier`).

What is fetched is compared on the client; the answer becomes data of the program that goes on.
"""

from typing import Any, NamedTuple

import numpy as np

from coppermesh.exec import barrier
from coppermesh.exec.promotion import as_value, cast_value, input_value, truth
from coppermesh.exec.recorder import Array


class UniqueAllResult(NamedTuple):
    """Unique elements, where each is found first, which one each element is, and how often each occurs."""

    values: Array
    indices: Array
    inverse_indices: Array
    counts: Array


class UniqueCountsResult(NamedTuple):
    """Unique elements and how often each occurs."""

    values: Array
    counts: Array


class UniqueInverseResult(NamedTuple):
    """Unique elements, and for each element of the array which of them it is."""

    values: Array
    inverse_indices: Array


def _data(array: np.ndarray[Any, Any]) -> Array:
    return Array(input_value(array, copy=False))


def nonzero(x: Any, /) -> tuple[Array, ...]:
    """The positions of elements that are not zero, one index array for each axis. A barrier."""
    value = as_value(x)
    if value.spec.ndim == 0:
        raise ValueError("nonzero needs an array with dimensions")
    [chosen] = barrier.fetch("nonzero(x)", Array(cast_value(truth(value), "bool")))
    return tuple(_data(positions) for positions in np.nonzero(chosen))


def unique_all(x: Any, /) -> UniqueAllResult:
    """Unique elements and all that is known of them. NaNs are all different. A barrier."""
    [data] = barrier.fetch("unique_all(x)", Array(as_value(x)))
    return UniqueAllResult(*map(_data, np.unique_all(data)))


def unique_counts(x: Any, /) -> UniqueCountsResult:
    """Unique elements and their counts. NaNs are all different. A barrier."""
    [data] = barrier.fetch("unique_counts(x)", Array(as_value(x)))
    return UniqueCountsResult(*map(_data, np.unique_counts(data)))


def unique_inverse(x: Any, /) -> UniqueInverseResult:
    """Unique elements and where each element went. NaNs are all different. A barrier."""
    [data] = barrier.fetch("unique_inverse(x)", Array(as_value(x)))
    return UniqueInverseResult(*map(_data, np.unique_inverse(data)))


def unique_values(x: Any, /) -> Array:
    """Unique elements, ascending. NaNs are all different. A barrier."""
    [data] = barrier.fetch("unique_values(x)", Array(as_value(x)))
    return _data(np.sort(np.unique_values(data)))
