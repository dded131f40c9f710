"""The lazy array: looks like a NumPy array, records what is done with it, computes nothing.

`Array` is a handle. Operations make new nodes and return new handles; `x[0] = v`, `x += 1` and a kernel that writes `x`
make a new version, which `x` names from then on. Handles taken before keep their version: unlike in NumPy, `y = x[0]`
is a value, not a window into `x`. `trace` turns handles into a program and the inputs it needs.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from coppermesh.exec import barrier, indexing
from coppermesh.exec.errors import NeedsValue
from coppermesh.exec.graph import Handle, Value
from coppermesh.exec.promotion import elementwise, permute_value, reshape_value
from coppermesh.exec.tracing import Recording, trace

__all__ = ["Array", "Recording", "matmul", "power", "trace"]

_NAMESPACE = "coppermesh.exec.xp"
_POWER_SHORTCUTS = {2: "square", 0.5: "sqrt", -1: "reciprocal"}


class Array(Handle):
    """A lazy array. Make one with `xp.asarray` and its like, not by calling this class."""

    __slots__ = ()
    __array_priority__ = 1000

    @property
    def shape(self) -> tuple[int, ...]:
        return self.recorded.spec.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.recorded.spec.numpy_dtype

    @property
    def ndim(self) -> int:
        return self.recorded.spec.ndim

    @property
    def size(self) -> int:
        return self.recorded.spec.size

    @property
    def nbytes(self) -> int:
        return self.recorded.spec.nbytes

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def device(self) -> str:
        """Always `mesh`: where it is computed is decided later."""
        return "mesh"

    @property
    def T(self) -> "Array":
        return Array(permute_value(self.recorded, range(self.ndim)[::-1]))

    @property
    def mT(self) -> "Array":
        if self.ndim < 2:
            raise ValueError("mT needs at least two dimensions")
        axes = list(range(self.ndim))
        axes[-2:] = axes[-1], axes[-2]
        return Array(permute_value(self.recorded, axes))

    @property
    def real(self) -> "Array":
        return Array(elementwise("real", self))

    @property
    def imag(self) -> "Array":
        return Array(elementwise("imag", self))

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        if api_version not in (None, "2022.12", "2023.12", "2024.12"):
            raise ValueError(f"array API version {api_version} is not supported")
        return import_module(_NAMESPACE)

    def to_device(self, device: Any, /, *, stream: Any = None) -> "Array":
        if device != self.device or stream is not None:
            raise ValueError("a lazy array is on device 'mesh'; the mesh chooses where it is computed")
        return self

    def __repr__(self) -> str:
        return (
            f"Array(shape={self.shape}, dtype={self.dtype}, from {self.recorded.node.op}; not computed yet)"
        )

    # Python asking for values: each is a barrier.

    def _scalar(self, what: str) -> Any:
        if self.size != 1:
            raise TypeError(f"{what} of an array of {self.size} elements: it must have one")
        return barrier.fetch(what, self)[0].reshape(())[()]

    def __bool__(self) -> bool:
        return bool(self._scalar("bool(x)"))

    def __int__(self) -> int:
        return int(self._scalar("int(x)"))

    def __float__(self) -> float:
        return float(self._scalar("float(x)"))

    def __complex__(self) -> complex:
        return complex(self._scalar("complex(x)"))

    def __index__(self) -> int:
        if self.dtype.kind not in "iu" or self.ndim:
            raise TypeError("only an integer array without dimensions can be an index or a count")
        return int(self._scalar("using x as an index or a count"))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        [data] = barrier.fetch("np.asarray(x)", self)
        if copy is False and dtype is not None and data.dtype != np.dtype(dtype):
            raise ValueError(f"{data.dtype} as {dtype} needs a copy")
        return np.array(data, dtype=dtype, copy=None if copy is False else True)

    def __format__(self, form: str) -> str:
        return format(self._scalar("formatting x").item(), form) if form else str(self)

    def __round__(self, digits: int | None = None) -> Any:
        return round(self._scalar("round(x)").item()) if digits is None else self.round(digits)

    def item(self) -> Any:
        return self._scalar("x.item()").item()

    def get(self) -> np.ndarray[Any, Any]:
        """The value, as CuPy's arrays give it: a NumPy array of its own."""
        return barrier.fetch("x.get()", self)[0].copy()

    def tolist(self) -> Any:
        return barrier.fetch("x.tolist()", self)[0].tolist()

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[Any, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        [data] = barrier.fetch("x.__dlpack__()", self)
        # Given away is memory of its own, whatever `copy` says: a lazy array has none that could be shared.
        return data.copy().__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # kDLCPU: a value is fetched to this machine's memory first

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of an array without dimensions")
        return self.shape[0]

    def __iter__(self) -> Iterator["Array"]:
        if self.ndim == 0:
            raise TypeError("iteration over an array without dimensions")
        return (self[number] for number in range(self.shape[0]))

    __hash__ = object.__hash__

    # Selecting.

    def __getitem__(self, key: Any) -> "Array":
        return Array(indexing.get_item(self.recorded, key))

    def __setitem__(self, key: Any, new: Any) -> None:
        self.recorded = indexing.set_item(self.recorded, key, new)

    # NumPy's functions given a lazy array.

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        from coppermesh.exec.numpy_dispatch import (
            call_ufunc,  # built on the namespace, which is built on this class
        )

        return call_ufunc(ufunc, method, inputs, options)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        from coppermesh.exec.numpy_dispatch import call_function

        return call_function(function, args, options)

    # Arithmetic.

    def __add__(self, other: Any) -> "Array":
        return _binary("add", self, other)

    def __radd__(self, other: Any) -> "Array":
        return _binary("add", other, self)

    def __iadd__(self, other: Any) -> "Array":
        return self._update("add", other)

    def __sub__(self, other: Any) -> "Array":
        return _binary("subtract", self, other)

    def __rsub__(self, other: Any) -> "Array":
        return _binary("subtract", other, self)

    def __isub__(self, other: Any) -> "Array":
        return self._update("subtract", other)

    def __mul__(self, other: Any) -> "Array":
        return _binary("multiply", self, other)

    def __rmul__(self, other: Any) -> "Array":
        return _binary("multiply", other, self)

    def __imul__(self, other: Any) -> "Array":
        return self._update("multiply", other)

    def __truediv__(self, other: Any) -> "Array":
        return _binary("divide", self, other)

    def __rtruediv__(self, other: Any) -> "Array":
        return _binary("divide", other, self)

    def __itruediv__(self, other: Any) -> "Array":
        return self._update("divide", other)

    def __floordiv__(self, other: Any) -> "Array":
        return _binary("floor_divide", self, other)

    def __rfloordiv__(self, other: Any) -> "Array":
        return _binary("floor_divide", other, self)

    def __ifloordiv__(self, other: Any) -> "Array":
        return self._update("floor_divide", other)

    def __mod__(self, other: Any) -> "Array":
        return _binary("remainder", self, other)

    def __rmod__(self, other: Any) -> "Array":
        return _binary("remainder", other, self)

    def __imod__(self, other: Any) -> "Array":
        return self._update("remainder", other)

    def __pow__(self, other: Any) -> "Array":
        return power(self, other)

    def __rpow__(self, other: Any) -> "Array":
        return _binary("pow", other, self)

    def __ipow__(self, other: Any) -> "Array":
        return self._replace(power(self, other).recorded, "**=")

    def __matmul__(self, other: Any) -> "Array":
        return matmul(self, other)

    def __rmatmul__(self, other: Any) -> "Array":
        return matmul(other, self)

    def __imatmul__(self, other: Any) -> "Array":
        return self._replace(matmul(self, other).recorded, "@=")

    def __and__(self, other: Any) -> "Array":
        return _binary("bitwise_and", self, other)

    def __rand__(self, other: Any) -> "Array":
        return _binary("bitwise_and", other, self)

    def __iand__(self, other: Any) -> "Array":
        return self._update("bitwise_and", other)

    def __or__(self, other: Any) -> "Array":
        return _binary("bitwise_or", self, other)

    def __ror__(self, other: Any) -> "Array":
        return _binary("bitwise_or", other, self)

    def __ior__(self, other: Any) -> "Array":
        return self._update("bitwise_or", other)

    def __xor__(self, other: Any) -> "Array":
        return _binary("bitwise_xor", self, other)

    def __rxor__(self, other: Any) -> "Array":
        return _binary("bitwise_xor", other, self)

    def __ixor__(self, other: Any) -> "Array":
        return self._update("bitwise_xor", other)

    def __lshift__(self, other: Any) -> "Array":
        return _binary("bitwise_left_shift", self, other)

    def __rlshift__(self, other: Any) -> "Array":
        return _binary("bitwise_left_shift", other, self)

    def __ilshift__(self, other: Any) -> "Array":
        return self._update("bitwise_left_shift", other)

    def __rshift__(self, other: Any) -> "Array":
        return _binary("bitwise_right_shift", self, other)

    def __rrshift__(self, other: Any) -> "Array":
        return _binary("bitwise_right_shift", other, self)

    def __irshift__(self, other: Any) -> "Array":
        return self._update("bitwise_right_shift", other)

    def __eq__(self, other: object) -> "Array":  # type: ignore[override]  # arrays compare element by element
        return _binary("equal", self, other)

    def __ne__(self, other: object) -> "Array":  # type: ignore[override]
        return _binary("not_equal", self, other)

    def __lt__(self, other: Any) -> "Array":
        return _binary("less", self, other)

    def __le__(self, other: Any) -> "Array":
        return _binary("less_equal", self, other)

    def __gt__(self, other: Any) -> "Array":
        return _binary("greater", self, other)

    def __ge__(self, other: Any) -> "Array":
        return _binary("greater_equal", self, other)

    def __neg__(self) -> "Array":
        return Array(elementwise("negative", self))

    def __pos__(self) -> "Array":
        return Array(self.recorded)

    def __abs__(self) -> "Array":
        return Array(elementwise("abs", self))

    def __invert__(self) -> "Array":
        return Array(elementwise("bitwise_invert", self))

    def _update(self, op: str, other: Any) -> "Array":
        return self._replace(elementwise(op, self, other), f"in-place {op}")

    def _replace(self, value: Value, what: str) -> "Array":
        if value.spec != self.recorded.spec:
            raise TypeError(
                f"{what} would turn {self.recorded.spec} into {value.spec}; write x = ... instead"
            )
        self.recorded = value
        return self

    # Methods as NumPy's arrays have them.

    def astype(self, dtype: Any, *, copy: bool = True) -> "Array":
        return _apply("astype", self, dtype, copy=copy)

    def copy(self) -> "Array":
        return Array(self.recorded)

    def reshape(self, *shape: Any) -> "Array":
        lengths = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        return _apply("reshape", self, tuple(lengths))

    def ravel(self) -> "Array":
        return Array(reshape_value(self.recorded, (self.size,)))

    flatten = ravel

    def transpose(self, *axes: Any) -> "Array":
        order = axes[0] if len(axes) == 1 and isinstance(axes[0], tuple | list) else axes
        return _apply("permute_dims", self, tuple(order)) if order else self.T

    def squeeze(self, axis: Any = None) -> "Array":
        alone = tuple(number for number, length in enumerate(self.shape) if length == 1)
        return _apply("squeeze", self, alone if axis is None else axis)

    def dot(self, other: Any) -> "Array":
        return _apply("dot", self, other)

    def clip(self, min: Any = None, max: Any = None) -> "Array":
        return _apply("clip", self, min, max)

    def round(self, decimals: int = 0) -> "Array":
        return _apply("round", self, decimals)

    def conj(self) -> "Array":
        return Array(elementwise("conj", self))

    def sum(self, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> "Array":
        return _apply("sum", self, axis=axis, dtype=dtype, keepdims=keepdims)

    def prod(self, axis: Any = None, dtype: Any = None, *, keepdims: bool = False) -> "Array":
        return _apply("prod", self, axis=axis, dtype=dtype, keepdims=keepdims)

    def mean(self, axis: Any = None, *, keepdims: bool = False) -> "Array":
        return _apply("mean", self, axis=axis, keepdims=keepdims)

    def var(self, axis: Any = None, *, ddof: float = 0, keepdims: bool = False) -> "Array":
        return _apply("var", self, axis=axis, correction=ddof, keepdims=keepdims)

    def std(self, axis: Any = None, *, ddof: float = 0, keepdims: bool = False) -> "Array":
        return _apply("std", self, axis=axis, correction=ddof, keepdims=keepdims)

    def max(self, axis: Any = None, *, keepdims: bool = False) -> "Array":
        return _apply("max", self, axis=axis, keepdims=keepdims)

    def min(self, axis: Any = None, *, keepdims: bool = False) -> "Array":
        return _apply("min", self, axis=axis, keepdims=keepdims)

    def any(self, axis: Any = None, *, keepdims: bool = False) -> "Array":
        return _apply("any", self, axis=axis, keepdims=keepdims)

    def all(self, axis: Any = None, *, keepdims: bool = False) -> "Array":
        return _apply("all", self, axis=axis, keepdims=keepdims)

    def argmax(self, axis: int | None = None, *, keepdims: bool = False) -> "Array":
        return _apply("argmax", self, axis=axis, keepdims=keepdims)

    def argmin(self, axis: int | None = None, *, keepdims: bool = False) -> "Array":
        return _apply("argmin", self, axis=axis, keepdims=keepdims)

    def cumsum(self, axis: int | None = None) -> "Array":
        flat = self.ravel() if axis is None else self
        return _apply("cumulative_sum", flat, axis=0 if axis is None else axis)

    def take(self, indices: Any, axis: int | None = None) -> "Array":
        flat = self.ravel() if axis is None else self
        return _apply("take", flat, indices, axis=0 if axis is None else axis)

    if not TYPE_CHECKING:  # a type checker shall go on telling which attributes there are

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):  # a protocol asked for, by many libraries and often
                raise AttributeError(name)
            advice = import_module("coppermesh.exec.xp_spellings").METHOD_ADVICE.get(name)
            text = f"a lazy array has no {name!r}" + (f": {advice}" if advice else "")
            raise AttributeError(text, name=name, obj=self)  # for Python's own "Did you mean"


def _apply(function: str, *args: Any, **options: Any) -> Array:
    """Call a function of the namespace, which is built on this class and so cannot be imported above it."""
    result: Array = getattr(import_module(_NAMESPACE), function)(*args, **options)
    return result


def _binary(op: str, first: Any, second: Any) -> Array:
    try:
        return Array(elementwise(op, first, second))
    except TypeError as error:
        if isinstance(error, NeedsValue):
            raise
        return NotImplemented  # type: ignore[no-any-return]  # Python then asks the other operand


def power(base: Any, exponent: Any) -> Array:
    """`base ** exponent`; exponents 2, 0.5 and -1 given as Python numbers become square, sqrt and reciprocal."""
    shortcut = (
        None if isinstance(exponent, Handle | np.generic | np.ndarray) else _POWER_SHORTCUTS.get(exponent)
    )
    if isinstance(base, Array) and shortcut is not None and base.dtype.kind in "fc":
        return Array(elementwise(shortcut, base))
    return Array(elementwise("pow", base, exponent))


def matmul(first: Any, second: Any) -> Array:
    """The matrix product, promoted as arithmetic is."""
    return _apply("matmul", first, second)
