"""Where CuPy differs from NumPy in what an operation means, and what is done about it.

- An index out of range wraps around in CuPy, where NumPy raises. Each use of index arrays leaves a mark on the device
  (one small kernel, no wait), and the marks are read once, after the program: `IndexGuard`.
- `add.at` of CuPy takes the types that have an atomic addition. Others are added through one that has: 64-bit integers
  as unsigned ones (the same bits), small integers in 32 bits, complex numbers by parts.
- `searchsorted` wants an array where NumPy takes a scalar.
"""

from collections.abc import Callable, Sequence
from typing import Any

from coppermesh.exec.array_operations import ArrayFunction, Attributes, make_table
from coppermesh.exec.errors import RunFailed

_ATOMIC = frozenset({"int32", "uint32", "uint64", "float32", "float64"})


class IndexGuard:
    """Remembers on the device whether an index was out of range."""

    def __init__(self, cupy: Any) -> None:
        self._check = cupy.ReductionKernel(
            "int64 index, int64 length",
            "bool outside",
            "index < -length || index >= length",
            "a || b",
            "outside = a",
            "false",
            "coppermesh_index_guard",
            reduce_type="bool",
        )
        self._cupy = cupy
        self._outside: Any = None

    def look(self, indices: Any, length: int) -> None:
        """Mark indices outside -length to length - 1."""
        if indices.size:
            mark = self._check(indices, length)
            if self._outside is None:
                self._outside = mark
            else:
                self._outside |= mark

    def finish(self) -> None:
        """Raise RunFailed where one was outside; forget the marks either way. Waits for the device."""
        outside, self._outside = self._outside, None
        if outside is not None and bool(self._cupy.asnumpy(outside)):
            raise RunFailed(
                "an index of take, put or add_at is out of range (on a GPU it is not known which node's)"
            )

    def forget(self) -> None:
        """Forget the marks of a run that failed."""
        self._outside = None


def make_cupy_table(cupy: Any, guard: IndexGuard) -> dict[str, ArrayFunction]:
    """`make_table` for CuPy, with what differs replaced."""
    table = make_table(cupy)

    def guarded(function: Callable[..., Any]) -> ArrayFunction:
        def call(arrays: Sequence[Any], attrs: Attributes) -> Any:
            indices = cupy.asarray(arrays[1]).astype("int64", copy=False)
            guard.look(indices, arrays[0].shape[attrs["axis"]])
            return function(arrays[0], indices, axis=attrs["axis"])

        return call

    def searchsorted(arrays: Sequence[Any], attrs: Attributes) -> Any:
        return cupy.searchsorted(arrays[0], cupy.asarray(arrays[1]), side=attrs["side"])

    table["take"] = guarded(cupy.take)
    table["take_along_axis"] = guarded(cupy.take_along_axis)
    table["searchsorted"] = searchsorted
    return table


def make_scatter(cupy: Any, guard: IndexGuard) -> Callable[[str, Any, int, Any, Any], None]:
    """What writes `put` and `add_at` into an array in place: (operation, target, axis, int64 indices, values)."""

    def scatter(op: str, target: Any, axis: int, indices: Any, values: Any) -> None:
        guard.look(indices, target.shape[axis])
        index = (slice(None),) * axis + (indices,)
        if op == "put":
            target[index] = values
        else:
            _add_at(cupy, target, index, values)

    return scatter


def _add_at(cupy: Any, target: Any, index: tuple[Any, ...], values: Any) -> None:
    dtype = target.dtype
    values = cupy.asarray(values).astype(dtype, copy=False)
    if dtype.name in _ATOMIC:
        cupy.add.at(target, index, values)
    elif dtype.kind == "c":
        cupy.add.at(target.real, index, values.real)
        cupy.add.at(target.imag, index, values.imag)
    elif dtype.itemsize == 8:
        cupy.add.at(target.view("uint64"), index, values.astype("uint64"))
    else:  # sums of small integers wrap alike, however wide they were added
        wide = target.astype("int32")
        cupy.add.at(wide, index, values.astype("int32"))
        target[...] = wide.astype(dtype)
