"""`np.sin(lazy)`, `np.sum(lazy)`: NumPy's functions, given a lazy array, record instead of running.

NumPy hands ufuncs to `__array_ufunc__` and most other functions to `__array_function__`. Each is looked up by name in
the namespace; keywords that only make sense for memory (`out`, `order`, `where`) are refused. Where there is no
counterpart the error says so in our words: NumPy's own name an internal protocol.
"""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from coppermesh.exec import xp, xp_fft, xp_linalg
from coppermesh.exec.recorder import Array
from coppermesh.exec.xp_advice import LINALG_ADVICE, NUMPY_ADVICE

_UFUNC_NAMES = {
    "absolute": "abs",
    "arccos": "acos",
    "arccosh": "acosh",
    "arcsin": "asin",
    "arcsinh": "asinh",
    "arctan": "atan",
    "arctan2": "atan2",
    "arctanh": "atanh",
    "conjugate": "conj",
    "invert": "bitwise_invert",
    "left_shift": "bitwise_left_shift",
    "power": "pow",
    "right_shift": "bitwise_right_shift",
    "rint": "round",
    "true_divide": "divide",
}
_REDUCING = {
    "add": "sum",
    "multiply": "prod",
    "maximum": "max",
    "minimum": "min",
    "logical_and": "all",
    "logical_or": "any",
}
_LINALG = frozenset(
    [
        "cholesky",
        "cross",
        "det",
        "diagonal",
        "eigh",
        "eigvalsh",
        "inv",
        "matmul",
        "matrix_norm",
        "matrix_power",
        "matrix_rank",
        "matrix_transpose",
        "norm",
        "outer",
        "pinv",
        "qr",
        "slogdet",
        "solve",
        "svd",
        "svdvals",
        "tensordot",
        "trace",
        "vecdot",
        "vector_norm",
    ]
)
_SAME_NAME = frozenset(
    [
        "all",
        "any",
        "argmax",
        "argmin",
        "argsort",
        "broadcast_arrays",
        "broadcast_to",
        "clip",
        "concatenate",
        "count_nonzero",
        "diff",
        "dot",
        "expand_dims",
        "flip",
        "full_like",
        "imag",
        "matmul",
        "mean",
        "median",
        "meshgrid",
        "moveaxis",
        "nonzero",
        "ones_like",
        "outer",
        "pad",
        "prod",
        "ravel",
        "real",
        "repeat",
        "reshape",
        "roll",
        "searchsorted",
        "sort",
        "squeeze",
        "stack",
        "sum",
        "swapaxes",
        "take",
        "take_along_axis",
        "tensordot",
        "tile",
        "trace",
        "transpose",
        "tril",
        "triu",
        "unique_all",
        "unique_counts",
        "unique_inverse",
        "unique_values",
        "vecdot",
        "where",
        "zeros_like",
        "empty_like",
        "std",
        "var",
    ]
)
_RENAMED = {
    "amax": "max",
    "amin": "min",
    "max": "max",
    "min": "min",
    "cumsum": "cumulative_sum",
    "round": "round",
}
_FFT = frozenset(
    [
        "fft",
        "ifft",
        "rfft",
        "irfft",
        "fft2",
        "ifft2",
        "rfft2",
        "irfft2",
        "fftn",
        "ifftn",
        "rfftn",
        "irfftn",
        "fftshift",
        "ifftshift",
    ]
)
_POSITIONAL = {
    "argmax": ("axis",),
    "argmin": ("axis",),
    "argsort": ("axis",),
    "concatenate": ("axis",),
    "cumsum": ("axis",),
    "diff": ("n", "axis"),
    "expand_dims": ("axis",),
    "flip": ("axis",),
    "repeat": ("repeats", "axis"),
    "roll": ("shift", "axis"),
    "sort": ("axis",),
    "squeeze": ("axis",),
    "stack": ("axis",),
    "take": ("indices", "axis"),
    "take_along_axis": ("indices", "axis"),
    "tensordot": ("b", "axes"),
    "tril": ("k",),
    "triu": ("k",),
}
_MEMORY_KEYWORDS = ("out", "where", "order", "casting", "subok", "like", "initial")
"""What only makes sense for memory, or for a part of it."""
_BY_POSITION_ONLY = frozenset(("repeats", "shift", "indices", "b"))
_REDUCTIONS = frozenset(
    [
        "all",
        "any",
        "amax",
        "amin",
        "max",
        "mean",
        "median",
        "min",
        "prod",
        "std",
        "sum",
        "var",
        "count_nonzero",
    ]
)


def call_ufunc(ufunc: np.ufunc, method: str, inputs: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """The lazy counterpart of a ufunc call; NotImplemented where an operand of another library may know one.

    Raises TypeError saying what is possible instead.
    """
    dtype = options.get("dtype")
    rest = {name: value for name, value in options.items() if name != "dtype" and _has_effect(name, value)}
    name = ufunc.__name__
    function = getattr(xp, _UFUNC_NAMES.get(name, name), None)
    if method == "reduce" and name in _REDUCING:
        axis = rest.pop("axis", 0)
        keepdims = bool(rest.pop("keepdims", False))
        if not rest:
            return getattr(xp, _REDUCING[name])(*inputs, axis=axis, keepdims=keepdims)
    elif method == "__call__" and function is not None and not rest:
        result = function(*inputs)
        return result if dtype is None else result.astype(dtype)
    if any(_is_foreign(item) for item in inputs):
        return NotImplemented
    call = name if method == "__call__" else f"{name}.{method}"
    if rest:
        raise _keyword_refused(call, next(iter(rest)))
    raise _not_recorded(call)


def _has_effect(name: str, value: Any) -> bool:
    if name == "order" and value in ("C", "K", "A"):
        return False
    return value is not None and not (name in ("where", "subok") and value is True)


def _is_foreign(item: Any) -> bool:
    return not isinstance(item, Array | np.ndarray | np.generic) and hasattr(item, "__array_ufunc__")


def _keyword_refused(call: str, keyword: str) -> TypeError:
    """Why a keyword makes no sense for an array that has no memory yet."""
    if keyword == "out":
        text = (
            "a lazy array is computed later and cannot be written into memory now: write y = ... without out="
        )
    elif keyword == "where":
        text = "choose afterwards instead, by xp.where(condition, result, other)"
    else:
        text = "leave it out, or compute first: mesh.compute(x)"
    return TypeError(f"np.{call}({keyword}=...) is not recorded for lazy arrays; {text}")


def _not_recorded(call: str) -> TypeError:
    advice = LINALG_ADVICE.get(call[7:]) if call.startswith("linalg.") else NUMPY_ADVICE.get(call)
    if advice:
        return TypeError(f"np.{call} has no counterpart that a lazy array could record: {advice}")
    near = get_close_matches(
        call.rpartition(".")[2], [name for name in dir(xp) if name.islower()], 2, cutoff=0.75
    )
    hint = f"is it {' or '.join(f'xp.{name}' for name in near)} that you want? Else " if near else ""
    return TypeError(
        f"np.{call} has no counterpart that a lazy array could record; {hint}write it with functions of cm.xp, or give "
        "it the value: mesh.compute(x)"
    )


def call_function(function: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """The lazy counterpart of a NumPy function. Raises TypeError where there is none, or not with such keywords."""
    name = function.__name__
    if name in ("shape", "ndim", "size", "result_type", "can_cast", "iscomplexobj", "isrealobj"):
        return _inspect(name, args, options)
    keywords = {key: value for key, value in options.items() if _has_effect(key, value)}
    refused = next((key for key in _MEMORY_KEYWORDS if key in keywords), None)
    if refused is not None:
        raise _keyword_refused(name, refused)
    if name == "einsum":
        keywords.pop("optimize", None)  # the order of products is ours
        return xp.einsum(*args, **keywords)
    if (function.__module__ or "").startswith("numpy.fft") and name in _FFT:
        return getattr(xp_fft, name)(
            *args[:1], **_named(("axes",) if "shift" in name else (), args[1:]), **keywords
        )
    if (function.__module__ or "").startswith("numpy.linalg") and name in _LINALG:
        return getattr(xp_linalg, name)(*args, **keywords)
    if name not in _SAME_NAME and name not in _RENAMED:
        raise _not_recorded(_public_name(function))
    if name in _REDUCTIONS:
        return _reduce(name, args, keywords)
    keywords.update(_named(_POSITIONAL.get(name, ()), args[1:]) if name in _POSITIONAL else {})
    positional = list(args[:1]) if name in _POSITIONAL else list(args)
    for key in [key for key in keywords if key in _BY_POSITION_ONLY]:
        positional.append(keywords.pop(key))
    if name == "squeeze" and "axis" not in keywords:
        return positional[0].squeeze()
    if name == "cumsum":
        return positional[0].cumsum(keywords.get("axis"))
    if name == "take" and "axis" not in keywords:
        return positional[0].take(positional[1])
    return getattr(xp, _RENAMED.get(name, name))(*positional, **keywords)


def _public_name(function: Callable[..., Any]) -> str:
    """`linalg.eig`: as it is written after `np.`."""
    return f"{function.__module__}.{function.__name__}".removeprefix("numpy.")


def _named(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    if len(values) > len(names):
        raise TypeError(
            f"{len(values)} positional arguments, at most {len(names)} are possible with lazy arrays"
        )
    return dict(zip(names, values, strict=False))


def _reduce(name: str, args: Sequence[Any], keywords: dict[str, Any]) -> Any:
    if len(args) > 1:
        keywords["axis"] = args[1]
    if len(args) > 2:
        raise TypeError(f"np.{name} of a lazy array takes axis, dtype and keepdims by name")
    if name in ("std", "var") and "ddof" in keywords:
        keywords["correction"] = keywords.pop("ddof")
    return getattr(xp, {"amax": "max", "amin": "min"}.get(name, name))(args[0], **keywords)


def _inspect(name: str, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    if name in ("result_type", "can_cast"):
        return getattr(xp, name)(*args, **options)
    array = args[0]
    if not isinstance(array, Array):
        return NotImplemented
    if name in ("iscomplexobj", "isrealobj"):
        return (array.dtype.kind == "c") == (name == "iscomplexobj")
    return getattr(array, name)
