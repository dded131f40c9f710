"""`xp`, what scripts written for CuPy call beside NumPy's functions, and what to write for what cannot be had.

>>> import coppermesh as cm
>>> cp = cm.xp
>>> x = cp.asarray([[1.0, 2.0]])
>>> cp.get_array_module(x) is cp
True
>>> cp.asnumpy(x)
array([[1., 2.]])
"""

from importlib import import_module
from typing import Any

import numpy as np

from coppermesh.exec import barrier
from coppermesh.exec.graph import Handle
from coppermesh.exec.recorder import Array
from coppermesh.exec.xp_arrangement import concat, stack
from coppermesh.exec.xp_creation import asarray
from coppermesh.exec.xp_elementwise import abs as absolute
from coppermesh.exec.xp_elementwise import equal, isfinite, isnan, where
from coppermesh.exec.xp_reductions import all as all_true

_DEVICES = (
    "which device computes is chosen with the job, as in mesh.compute(y, device='cuda'), calls take effect in the order"
    " in which they are written, and there is nothing to wait for: leave the line out"
)
_MEMORY = "memory is the provider's own affair: leave the line out"
_KERNEL = "write it as an ElementwiseKernel, or as functions of the namespace"

ADVICE = {
    "asfortranarray": "every array is in C order; give a kernel the transpose, asarray(x.T)",
    "cuda": _DEVICES,
    "cupyx": "only the namespace itself is here",
    "fuse": _KERNEL,
    "get_default_memory_pool": _MEMORY,
    "get_default_pinned_memory_pool": _MEMORY,
    "is_available": "whether there is a device, the mesh tells: `coppermesh devices`",
    "load": "use asarray(numpy.load(...))",
    "memoize": "use functools.lru_cache",
    "save": "use numpy.save(..., mesh.compute(x))",
    "scatter_add": "use add_at",
    "testing": "use numpy.testing on what mesh.compute(y) gives",
    "unique": "use unique_values, unique_counts, unique_inverse or unique_all",
    "vectorize": _KERNEL,
}
"""What to do instead, by the name in CuPy's namespace."""

METHOD_ADVICE = {
    "argsort": "use xp.argsort(x)",
    "data": "a lazy array has no memory yet; kernels take the array itself",
    "diagonal": "use xp.linalg.diagonal(x)",
    "fill": "use x[...] = value",
    "flags": "a lazy array has no memory yet; kernels get it in C order",
    "nonzero": "use xp.nonzero(x)",
    "ptp": "use xp.max(x) - xp.min(x)",
    "repeat": "use xp.repeat(x, n)",
    "set": "use x[...] = xp.asarray(values)",
    "sort": "use x = xp.sort(x)",
    "strides": "a lazy array has no memory yet; kernels get it in C order",
    "swapaxes": "use xp.swapaxes(x, a, b)",
    "trace": "use xp.trace(x)",
    "view": "use x.astype(dtype) for the values; a kernel may read the bytes through a pointer of another type",
}
"""What to do instead, by the name of a method or attribute of CuPy's arrays."""


def asnumpy(a: Any) -> np.ndarray[Any, Any]:
    """The values, as a NumPy array: of a lazy array by one round trip, as `np.asarray(a)`. Raises NeedsValue."""
    if isinstance(a, Handle):
        return barrier.fetch("xp.asnumpy(x)", a)[0].copy()
    return np.asarray(a)


def get_array_module(*args: Any) -> Any:
    """This namespace where one of `args` is a lazy array, else NumPy."""
    if any(isinstance(arg, Handle) for arg in args):
        return import_module("coppermesh.exec.xp")
    return np


def ascontiguousarray(a: Any, dtype: Any = None) -> Array:
    """`asarray`: lazy arrays are in C order."""
    return asarray(a, dtype=dtype)


def isclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Array:
    """Whether each `a` is within `atol + rtol * abs(b)` of `b`, as NumPy's. Infinities are close to their like only."""
    a, b = asarray(a), asarray(b)
    near = absolute(a - b) <= atol + rtol * absolute(b)
    close = where(isfinite(a) & isfinite(b), near, equal(a, b))
    return close | (isnan(a) & isnan(b)) if equal_nan else close


def allclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Array:
    """Whether all elements are close: a lazy array of no dimensions."""
    return all_true(isclose(a, b, rtol, atol, equal_nan))


def array_equal(a1: Any, a2: Any) -> Array:
    """Whether shapes and all elements are equal: a lazy array of no dimensions."""
    a1, a2 = asarray(a1), asarray(a2)
    if a1.shape != a2.shape:
        return asarray(False)
    return all_true(equal(a1, a2))


def hstack(tup: Any) -> Array:
    """Arrays one after the other along the second axis, or the only one."""
    arrays = [asarray(item) for item in tup]
    return concat(arrays, axis=0 if arrays[0].ndim <= 1 else 1)


def vstack(tup: Any) -> Array:
    """Arrays below each other; those of one dimension are rows."""
    arrays = [asarray(item) for item in tup]
    return stack(arrays, axis=0) if arrays[0].ndim <= 1 else concat(arrays, axis=0)
