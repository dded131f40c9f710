"""`xp`, types and the namespace itself: limits of dtypes, promotion, and `__array_namespace_info__`."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from coppermesh.exec import dtypes
from coppermesh.exec.graph import Handle
from coppermesh.exec.program import MAX_DIMENSIONS
from coppermesh.exec.promotion import as_operand, common_dtype

DEVICE = "mesh"

_KINDS = {
    "bool": dtypes.BOOLEAN,
    "signed integer": frozenset(name for name, kind in dtypes.KINDS.items() if kind == "i"),
    "unsigned integer": frozenset(name for name, kind in dtypes.KINDS.items() if kind == "u"),
    "integral": dtypes.INTEGER,
    "real floating": dtypes.REAL_FLOATING | {dtypes.HALF},
    "complex floating": dtypes.COMPLEX,
    "numeric": dtypes.NUMERIC | {dtypes.HALF},
}


@dataclass(frozen=True, slots=True)
class FloatingLimits:
    """What `finfo` gives: limits of a floating-point type, as Python numbers."""

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class IntegerLimits:
    """What `iinfo` gives: limits of an integer type."""

    bits: int
    max: int
    min: int
    dtype: np.dtype[Any]


def _dtype_of(item: Any) -> np.dtype[Any]:
    known = item.dtype if isinstance(item, Handle | np.ndarray | np.generic) else item  # type: ignore[union-attr]
    return dtypes.NUMPY_DTYPES[dtypes.dtype_name(known)]


def finfo(type: Any, /) -> FloatingLimits:
    """Limits of a floating-point dtype (or of an array's); for complex dtypes those of their parts."""
    limits = np.finfo(_dtype_of(type))
    return FloatingLimits(
        bits=int(limits.bits),
        eps=float(limits.eps),
        max=float(limits.max),
        min=float(limits.min),
        smallest_normal=float(limits.smallest_normal),
        dtype=np.dtype(limits.dtype),
    )


def iinfo(type: Any, /) -> IntegerLimits:
    """Limits of an integer dtype (or of an array's)."""
    dtype = _dtype_of(type)
    limits = np.iinfo(dtype)
    return IntegerLimits(bits=int(limits.bits), max=int(limits.max), min=int(limits.min), dtype=dtype)


def isdtype(dtype: Any, kind: Any) -> bool:
    """Whether `dtype` is of a kind: a dtype, one of the standard's words, or a tuple of these."""
    name = dtypes.dtype_name(dtype)
    if isinstance(kind, tuple):
        return any(isdtype(dtype, one) for one in kind)
    if isinstance(kind, str) and kind in _KINDS:
        return name in _KINDS[kind]
    return name == dtypes.dtype_name(kind)


def result_type(*arrays_and_dtypes: Any) -> np.dtype[Any]:
    """The dtype that arrays, dtypes and numbers together promote to."""
    if not arrays_and_dtypes:
        raise ValueError("result_type needs at least one array or dtype")
    known = [as_operand(_sample(item)) for item in arrays_and_dtypes]
    return dtypes.NUMPY_DTYPES[common_dtype(known)]


def _sample(item: Any) -> Any:
    if isinstance(item, bool | int | float | complex | Handle | np.generic):
        return item
    return _dtype_of(item).type(0)


def can_cast(from_: Any, to: Any, /) -> bool:
    """Whether promotion may convert `from_` (an array or dtype) to the dtype `to`."""
    return bool(np.can_cast(_dtype_of(from_), _dtype_of(to)))


class NamespaceInfo:
    """What this namespace offers (the standard's inspection functions)."""

    def capabilities(self) -> dict[str, Any]:
        """Data-dependent shapes are there where an evaluator is set (see `barrier`), at one round trip each."""
        return {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": MAX_DIMENSIONS}

    def default_device(self) -> str:
        """`mesh`."""
        return DEVICE

    def devices(self) -> list[str]:
        """The one device: where an array is computed is decided later."""
        return [DEVICE]

    def default_dtypes(self, *, device: Any = None) -> dict[str, np.dtype[Any]]:
        """The dtypes that functions choose where none is named."""
        names = {
            "real floating": "float64",
            "complex floating": "complex128",
            "integral": "int64",
            "indexing": "int64",
        }
        return {what: dtypes.NUMPY_DTYPES[name] for what, name in names.items()}

    def dtypes(self, *, device: Any = None, kind: Any = None) -> dict[str, np.dtype[Any]]:
        """All dtypes, or those of one kind (or a tuple of kinds)."""
        return {
            name: dtypes.NUMPY_DTYPES[name]
            for name in dtypes.DTYPE_NAMES
            if kind is None or isdtype(name, kind)
        }


def __array_namespace_info__() -> NamespaceInfo:  # noqa: N807  # the standard's name
    """What this namespace offers."""
    return NamespaceInfo()
