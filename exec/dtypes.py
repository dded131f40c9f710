"""The element types a program may use, and how they combine.

Thirteen types of the Python Array API standard (2024.12), by their NumPy names. No objects, strings, records, dates or
platform-dependent types: a program means the same on every machine. Stored little-endian. A fourteenth, float16, is
only kept: arrays of it are moved, converted and given to kernels, and no operation computes with them.
"""

from typing import Any, Final

import numpy as np

DTYPE_NAMES: Final = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float32",
    "float64",
    "complex64",
    "complex128",
)

HALF: Final = "float16"
NUMPY_DTYPES: Final[dict[str, np.dtype[Any]]] = {name: np.dtype(name) for name in (*DTYPE_NAMES, HALF)}
ITEMSIZES: Final[dict[str, int]] = {name: dtype.itemsize for name, dtype in NUMPY_DTYPES.items()}
KINDS: Final[dict[str, str]] = {name: dtype.kind for name, dtype in NUMPY_DTYPES.items()}
"""NumPy's kind letters: b boolean, i signed, u unsigned, f real floating, c complex floating."""

BOOLEAN: Final = frozenset({"bool"})
INTEGER: Final = frozenset(name for name, kind in KINDS.items() if kind in "iu")
REAL_FLOATING: Final = frozenset({"float32", "float64"})
COMPLEX: Final = frozenset({"complex64", "complex128"})
FLOATING: Final = REAL_FLOATING | COMPLEX
REAL: Final = INTEGER | REAL_FLOATING
NUMERIC: Final = REAL | COMPLEX
INTEGER_OR_BOOLEAN: Final = INTEGER | BOOLEAN
ALL: Final = frozenset(DTYPE_NAMES)
INEXACT: Final = FLOATING | {HALF}
"""What rounds."""

REAL_PART: Final = {"complex64": "float32", "complex128": "float64"}
COMPLEX_OF: Final = {"float32": "complex64", "float64": "complex128"}

_KIND_RANK = {"b": 0, "i": 1, "u": 1, "f": 2, "c": 3}


def dtype_name(dtype: Any) -> str:
    """The name of a dtype given as name, NumPy dtype, NumPy scalar type or Python type.

    Raises TypeError for a type that a program cannot hold.
    """
    if isinstance(dtype, str) and dtype in NUMPY_DTYPES:
        return dtype
    try:
        name = str(np.dtype(dtype).name)
    except TypeError as error:
        raise TypeError(f"{dtype!r} is not a dtype; a program may use {', '.join(NUMPY_DTYPES)}") from error
    if dtype is None or name not in NUMPY_DTYPES:
        raise TypeError(f"dtype {name} cannot be used in a program; it may use {', '.join(NUMPY_DTYPES)}")
    return name


def promote(first: str, second: str) -> str:
    """The type that both convert to, by NumPy's table (which extends the standard's to mixed kinds)."""
    if first == second:
        return first
    return str(np.promote_types(first, second).name)


def promote_python_scalar(array_dtype: str, scalar: bool | complex) -> str:
    """The type of `array op scalar` for a Python scalar: the array's own type wherever the kind allows (NEP 50)."""
    kind = "c" if isinstance(scalar, complex) else "f" if isinstance(scalar, float) else "i"
    if isinstance(scalar, bool):
        kind = "b"
    if _KIND_RANK[kind] <= _KIND_RANK[KINDS[array_dtype]]:
        return array_dtype
    if kind == "i":
        return "int64"
    if kind == "f":
        return "float64"
    return COMPLEX_OF.get(array_dtype, "complex128")
