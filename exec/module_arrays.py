"""`xp.ndarray`: an array by shape and dtype, or a window on a variable of a CUDA module, in CuPy's form.

>>> import numpy as np
>>> import coppermesh as cm
>>> xp = cm.xp
>>> module = cm.RawModule(code='''
... __constant__ float weights[4];
... extern "C" __global__ void weigh(float* x) { x[threadIdx.x] *= weights[threadIdx.x]; }''')
>>> weights = xp.ndarray((4,), xp.float32, module.get_global("weights"))
>>> weights[...] = np.float32([1, 2, 3, 4])

Such an array is the variable: an assignment is recorded as one to the variable, before the launches that follow, and
its value is read where it is used, after the launches so far.
"""

from typing import Any

import numpy as np

from coppermesh.exec import dtypes, indexing
from coppermesh.exec.graph import Value
from coppermesh.exec.indexing import normalize_shape
from coppermesh.exec.module_recording import ModuleRecorder
from coppermesh.exec.program import ArraySpec
from coppermesh.exec.promotion import as_operand, broadcast_value, cast_value
from coppermesh.exec.recorder import Array
from coppermesh.exec.shapes import array_spec


class MemoryPointer:
    """A place in a variable of a module. `pointer + 4` is four bytes further."""

    def __init__(self, module: ModuleRecorder, name: str, offset: int = 0) -> None:
        self._module = module
        self.name = name
        self.offset = offset

    def __add__(self, count: int) -> "MemoryPointer":
        return MemoryPointer(self._module, self.name, self.offset + int(count))

    def __sub__(self, count: int) -> "MemoryPointer":
        return self + -int(count)

    def __repr__(self) -> str:
        return f"MemoryPointer({self.name!r} + {self.offset})"


class SymbolArray(Array):
    """A window on a variable: reading and assigning it are nodes of the module's chain."""

    __slots__ = ("_place", "_read", "_spec")

    def __init__(self, place: MemoryPointer, spec: ArraySpec) -> None:
        self._place = place
        self._spec = spec
        self._read: tuple[Value | None, Value] | None = None

    @property
    def recorded(self) -> Value:
        """The variable's value after everything recorded so far."""
        module = self._place._module  # noqa: SLF001 - one unit with the class above
        if self._read is None or self._read[0] is not module.state:
            value = module.get_symbol(self._place.name, self._place.offset, self._spec)
            self._read = module.state, value
        return self._read[1]

    @recorded.setter
    def recorded(self, value: Value) -> None:
        module = self._place._module  # noqa: SLF001
        if value.spec != self._spec:
            raise TypeError(f"the window on {self._place.name} is {self._spec}, not {value.spec}")
        module.set_symbol(self._place.name, self._place.offset, value)
        self._read = module.state, value

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the dimensions."""
        return self._spec.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type."""
        return self._spec.numpy_dtype

    def __setitem__(self, key: Any, new: Any) -> None:
        everything = key is Ellipsis or (isinstance(key, slice) and key == slice(None))
        if everything:  # the old value is not wanted
            value = cast_value(as_operand(new), self._spec.dtype)
            self.recorded = broadcast_value(value, self._spec.shape)
        else:
            self.recorded = indexing.set_item(self.recorded, key, new)

    def set(self, values: Any) -> None:
        """Set the whole variable, as CuPy's `ndarray.set`."""
        self[...] = values


class _ArrayType(type):
    """Makes every lazy array an instance of `xp.ndarray`."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, Array)


class ndarray(metaclass=_ArrayType):  # noqa: N801 - CuPy's and NumPy's name
    """A lazy array of a shape and dtype: zeros, or with `memptr` a window on a module's variable."""

    def __new__(  # type: ignore[misc]  # a factory, under the name of the class that it stands for
        cls, shape: int | tuple[int, ...], dtype: Any = float, memptr: MemoryPointer | None = None
    ) -> Array:
        """Raises ProgramInvalid for a shape or dtype that no array can have."""
        from coppermesh.exec.xp_creation import zeros  # built on what this is built on

        if memptr is None:
            return zeros(shape, dtype=dtype)
        if not isinstance(memptr, MemoryPointer):
            raise TypeError(f"memptr= takes what RawModule.get_global gives, not a {type(memptr).__name__}")
        return SymbolArray(memptr, array_spec(dtypes.dtype_name(dtype), normalize_shape(shape)))
