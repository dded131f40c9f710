"""How each operation of a program is done by NumPy, or by CuPy, which has the same functions under the same names.

A table from operation name to function of (arrays, attributes). Names that the standard changed are written in the
older form that both libraries have. Kernels and `setitem` are not here: they may write in place, which is the
interpreter's business.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from coppermesh.exec import special, windows
from coppermesh.exec.shapes import as_python_index

Attributes = Mapping[str, Any]
ArrayFunction = Callable[[Sequence[Any], Attributes], Any]
"""Gives the result; a tuple where the operation has several."""

_LIBRARY_NAMES = {
    "abs": "absolute",
    "acos": "arccos",
    "acosh": "arccosh",
    "asin": "arcsin",
    "asinh": "arcsinh",
    "atan": "arctan",
    "atan2": "arctan2",
    "atanh": "arctanh",
    "bitwise_invert": "invert",
    "bitwise_left_shift": "left_shift",
    "bitwise_right_shift": "right_shift",
    "pow": "power",
    "round": "rint",
}
_BY_NAME = [
    "abs",
    "negative",
    "sign",
    "square",
    "reciprocal",
    "conj",
    "real",
    "imag",
    "sqrt",
    "round",
    "logical_not",
    "bitwise_invert",
    "signbit",
    "ceil",
    "floor",
    "trunc",
    "isfinite",
    "isinf",
    "isnan",
    "exp",
    "expm1",
    "log",
    "log1p",
    "log2",
    "log10",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "tanh",
    "asinh",
    "acosh",
    "atanh",
    "add",
    "subtract",
    "multiply",
    "divide",
    "pow",
    "floor_divide",
    "remainder",
    "maximum",
    "minimum",
    "atan2",
    "hypot",
    "logaddexp",
    "copysign",
    "nextafter",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "bitwise_left_shift",
    "bitwise_right_shift",
    "logical_and",
    "logical_or",
    "logical_xor",
    "equal",
    "not_equal",
    "less",
    "less_equal",
    "greater",
    "greater_equal",
    "where",
    "clip",
    "matmul",
]


def make_table(library: Any) -> dict[str, ArrayFunction]:
    """The table for `library`, which is the module numpy or cupy."""
    table: dict[str, ArrayFunction] = {}
    for name in _BY_NAME:
        table[name] = _positional(getattr(library, _LIBRARY_NAMES.get(name, name)))
    for functions in (_creation, _reductions, _arrangement, _order, _transforms, _linalg, _beyond):
        table.update(functions(library))
    return table


def _positional(function: Callable[..., Any]) -> ArrayFunction:
    return lambda arrays, _attrs: function(*arrays)


def _creation(xp: Any) -> dict[str, ArrayFunction]:
    def full(arrays: Sequence[Any], attrs: Attributes) -> Any:
        return xp.full(attrs["shape"], arrays[0], dtype=arrays[0].dtype)

    def arange(arrays: Sequence[Any], attrs: Attributes) -> Any:
        start, step = arrays
        result = xp.arange(attrs["length"], dtype=start.dtype)
        result *= step
        result += start
        return result

    def linspace(arrays: Sequence[Any], attrs: Attributes) -> Any:
        start, stop = arrays
        return xp.linspace(start, stop, attrs["num"], endpoint=attrs["endpoint"], dtype=start.dtype)

    def eye(_arrays: Sequence[Any], attrs: Attributes) -> Any:
        return xp.eye(attrs["rows"], attrs["columns"], attrs["diagonal"], dtype=attrs["dtype"])

    def astype(arrays: Sequence[Any], attrs: Attributes) -> Any:
        return arrays[0].astype(attrs["dtype"], copy=False)

    return {"full": full, "arange": arange, "linspace": linspace, "eye": eye, "astype": astype}


def _reductions(xp: Any) -> dict[str, ArrayFunction]:
    def plain(function: Callable[..., Any]) -> ArrayFunction:
        return lambda arrays, attrs: function(arrays[0], axis=attrs["axes"], keepdims=attrs["keepdims"])

    def accumulate(function: Callable[..., Any]) -> ArrayFunction:
        return lambda arrays, attrs: function(
            arrays[0], axis=attrs["axes"], dtype=attrs["dtype"], keepdims=attrs["keepdims"]
        )

    def spread(function: Callable[..., Any]) -> ArrayFunction:
        return lambda arrays, attrs: function(
            arrays[0], axis=attrs["axes"], ddof=float(arrays[1]), keepdims=attrs["keepdims"]
        )

    def position(function: Callable[..., Any]) -> ArrayFunction:
        return lambda arrays, attrs: function(arrays[0], axis=attrs["axis"], keepdims=attrs["keepdims"])

    def running(function: Callable[..., Any]) -> ArrayFunction:
        return lambda arrays, attrs: function(arrays[0], axis=attrs["axis"], dtype=attrs["dtype"])

    return {
        **{name: plain(getattr(xp, name)) for name in ("max", "min", "any", "all", "mean")},
        **{name: accumulate(getattr(xp, name)) for name in ("sum", "prod")},
        **{name: spread(getattr(xp, name)) for name in ("var", "std")},
        **{name: position(getattr(xp, name)) for name in ("argmax", "argmin")},
        "cumulative_sum": running(xp.cumsum),
        "cumulative_prod": running(xp.cumprod),
    }


def _arrangement(xp: Any) -> dict[str, ArrayFunction]:
    def pad(arrays: Sequence[Any], attrs: Attributes) -> Any:
        if attrs["mode"] == "constant":
            return xp.pad(arrays[0], attrs["widths"], mode="constant", constant_values=arrays[1])
        return xp.pad(arrays[0], attrs["widths"], mode=attrs["mode"])

    def roll(arrays: Sequence[Any], attrs: Attributes) -> Any:
        # NumPy fails where there is no axis to roll along.
        return xp.roll(arrays[0], attrs["shifts"], attrs["axes"]) if attrs["axes"] else arrays[0]

    def take(arrays: Sequence[Any], attrs: Attributes) -> Any:
        return xp.take(arrays[0], _positions(xp, arrays[1]), axis=attrs["axis"])

    def take_along_axis(arrays: Sequence[Any], attrs: Attributes) -> Any:
        return xp.take_along_axis(arrays[0], _positions(xp, arrays[1]), axis=attrs["axis"])

    return {
        # Methods, where numpy's functions would add a call of their own to a node that moves no data.
        "reshape": lambda arrays, attrs: arrays[0].reshape(attrs["shape"]),
        "broadcast_to": lambda arrays, attrs: xp.broadcast_to(arrays[0], attrs["shape"]),
        "permute_dims": lambda arrays, attrs: arrays[0].transpose(attrs["axes"]),
        "flip": lambda arrays, attrs: xp.flip(arrays[0], attrs["axes"]),
        "roll": roll,
        "concat": lambda arrays, attrs: xp.concatenate([xp.asarray(a) for a in arrays], axis=attrs["axis"]),
        "getitem": lambda arrays, attrs: arrays[0][as_python_index(attrs["index"])],
        "take": take,
        "take_along_axis": take_along_axis,
        "pad": pad,
    }


def _positions(xp: Any, indices: Any) -> Any:
    # uint64 does not convert to an index by NumPy's safe rule; as int64 a huge one is negative and out of range too.
    return xp.asarray(indices).astype("int64", copy=False)


def _order(xp: Any) -> dict[str, ArrayFunction]:
    # CuPy's sort is stable where NumPy's must be asked; NumPy is the one that takes the keyword.
    stable = {"kind": "stable"} if xp.__name__ == "numpy" else {}

    def sort(arrays: Sequence[Any], attrs: Attributes) -> Any:
        result = xp.sort(arrays[0], axis=attrs["axis"], **stable)
        return xp.flip(result, attrs["axis"]) if attrs["descending"] else result

    def argsort(arrays: Sequence[Any], attrs: Attributes) -> Any:
        axis = attrs["axis"]
        if not attrs["descending"]:
            return xp.argsort(arrays[0], axis=axis, **stable)
        # Sorting the reversed array and reversing the answer keeps equal elements in their order.
        backwards = xp.flip(xp.argsort(xp.flip(arrays[0], axis), axis=axis, **stable), axis)
        return arrays[0].shape[axis] - 1 - backwards

    def searchsorted(arrays: Sequence[Any], attrs: Attributes) -> Any:
        return xp.searchsorted(arrays[0], arrays[1], side=attrs["side"])

    return {"sort": sort, "argsort": argsort, "searchsorted": searchsorted}


def _transforms(xp: Any) -> dict[str, ArrayFunction]:
    def one(function: Callable[..., Any]) -> ArrayFunction:
        return lambda arrays, attrs: function(
            arrays[0], n=attrs["length"], axis=attrs["axis"], norm=attrs["norm"]
        )

    def many(function: Callable[..., Any]) -> ArrayFunction:
        return lambda arrays, attrs: function(
            arrays[0], s=attrs["lengths"], axes=attrs["axes"], norm=attrs["norm"]
        )

    return {
        **{name: one(getattr(xp.fft, name)) for name in ("fft", "ifft", "rfft", "irfft")},
        **{name: many(getattr(xp.fft, name)) for name in ("fftn", "ifftn", "rfftn", "irfftn")},
    }


def _linalg(xp: Any) -> dict[str, ArrayFunction]:
    linalg = xp.linalg

    def cholesky(arrays: Sequence[Any], attrs: Attributes) -> Any:
        lower = linalg.cholesky(arrays[0])
        return xp.conj(xp.swapaxes(lower, -1, -2)) if attrs["upper"] else lower

    def svd(arrays: Sequence[Any], attrs: Attributes) -> Any:
        return tuple(linalg.svd(arrays[0], full_matrices=attrs["full_matrices"]))

    return {
        **{name: _positional(getattr(linalg, name)) for name in ("inv", "det", "solve", "eigvalsh")},
        "slogdet": lambda arrays, _attrs: tuple(linalg.slogdet(arrays[0])),
        "eigh": lambda arrays, _attrs: tuple(linalg.eigh(arrays[0])),
        "cholesky": cholesky,
        "svd": svd,
        "svdvals": lambda arrays, _attrs: linalg.svd(arrays[0], compute_uv=False),
        "qr": lambda arrays, attrs: tuple(linalg.qr(arrays[0], mode=attrs["mode"])),
    }


def _beyond(xp: Any) -> dict[str, ArrayFunction]:
    return {
        "erf": lambda arrays, _attrs: special.erf(xp, arrays[0]),
        "ndtri": lambda arrays, _attrs: special.ndtri(xp, arrays[0]),
        "philox": lambda arrays, attrs: special.philox(xp, arrays[0], attrs["shape"], attrs["stream"]),
        "conv": lambda arrays, attrs: windows.conv(xp, arrays[0], arrays[1], attrs),
        "pool": lambda arrays, attrs: windows.pool(xp, arrays[0], attrs),
    }
