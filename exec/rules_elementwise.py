"""Rules of the operations that work element by element: one dtype in, shapes broadcast."""

from collections.abc import Callable

from coppermesh.exec import dtypes
from coppermesh.exec.operations import (
    Call,
    Cost,
    Rule,
    define,
    is_dtype,
    need_dtype,
    need_equal_dtypes,
    per_result,
)
from coppermesh.exec.program import ArraySpec
from coppermesh.exec.shapes import array_spec, broadcast, broadcast_all, refuse


def _elementwise(allowed: frozenset[str], result: Callable[[str], str]) -> Rule:
    def rule(call: Call) -> ArraySpec:
        specs = call.specs
        first = specs[0]
        need_dtype(first, allowed)
        if len(specs) == 1:
            return array_spec(result(first.dtype), first.shape)
        second = specs[1]
        if second.dtype != first.dtype:
            need_equal_dtypes(specs)
        return array_spec(result(first.dtype), broadcast(first.shape, second.shape))

    return rule


_Row = tuple[str, frozenset[str], Callable[[str], str], Cost]
"""Name, dtypes taken, dtype given, cost."""


def _same(dtype: str) -> str:
    return dtype


def _real_part(dtype: str) -> str:
    return dtypes.REAL_PART.get(dtype, dtype)


def _boolean(_dtype: str) -> str:
    return "bool"


def _define_elementwise() -> None:
    transcendental = per_result(16)
    simple = per_result(1)
    unary: list[_Row] = [
        ("abs", dtypes.NUMERIC, _real_part, simple),
        ("negative", dtypes.NUMERIC, _same, simple),
        ("sign", dtypes.NUMERIC, _same, simple),
        ("square", dtypes.NUMERIC, _same, simple),
        ("reciprocal", dtypes.FLOATING, _same, simple),
        ("conj", dtypes.COMPLEX, _same, simple),
        ("real", dtypes.COMPLEX, _real_part, simple),
        ("imag", dtypes.COMPLEX, _real_part, simple),
        ("sqrt", dtypes.FLOATING, _same, simple),
        ("round", dtypes.FLOATING, _same, simple),
        ("logical_not", dtypes.BOOLEAN, _same, simple),
        ("bitwise_invert", dtypes.INTEGER_OR_BOOLEAN, _same, simple),
        ("signbit", dtypes.REAL_FLOATING, _boolean, simple),
    ]
    unary += [(name, dtypes.REAL_FLOATING, _same, simple) for name in ("ceil", "floor", "trunc")]
    unary += [(name, dtypes.FLOATING, _boolean, simple) for name in ("isfinite", "isinf", "isnan")]
    unary += [
        (name, dtypes.FLOATING, _same, transcendental)
        for name in (
            [
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
            ]
        )
    ]
    for name, allowed, result, cost in unary:
        define(name, 1, _elementwise(allowed, result), cost)

    binary: list[_Row] = [(name, dtypes.NUMERIC, _same, simple) for name in ("add", "subtract", "multiply")]
    binary += [("divide", dtypes.FLOATING, _same, simple), ("pow", dtypes.NUMERIC, _same, transcendental)]
    binary += [(n, dtypes.REAL, _same, simple) for n in ("floor_divide", "remainder", "maximum", "minimum")]
    binary += [(n, dtypes.REAL_FLOATING, _same, transcendental) for n in ("atan2", "hypot", "logaddexp")]
    binary += [(n, dtypes.REAL_FLOATING, _same, simple) for n in ("copysign", "nextafter")]
    binary += [
        (n, dtypes.INTEGER_OR_BOOLEAN, _same, simple) for n in ("bitwise_and", "bitwise_or", "bitwise_xor")
    ]
    binary += [(n, dtypes.INTEGER, _same, simple) for n in ("bitwise_left_shift", "bitwise_right_shift")]
    binary += [(n, dtypes.BOOLEAN, _same, simple) for n in ("logical_and", "logical_or", "logical_xor")]
    binary += [(n, dtypes.ALL, _boolean, simple) for n in ("equal", "not_equal")]
    binary += [(n, dtypes.REAL, _boolean, simple) for n in ("less", "less_equal", "greater", "greater_equal")]
    for name, allowed, result, cost in binary:
        define(name, 2, _elementwise(allowed, result), cost)

    define("where", 3, _where, simple)
    define("clip", 3, _clip, per_result(2))
    define("astype", 1, _astype, simple, {"dtype": is_dtype})


def _where(call: Call) -> ArraySpec:
    condition, first, second = call.specs
    need_dtype(condition, dtypes.BOOLEAN, "condition")
    need_equal_dtypes((first, second))
    return array_spec(first.dtype, broadcast_all([spec.shape for spec in call.specs]))


def _clip(call: Call) -> ArraySpec:
    need_dtype(call.specs[0], dtypes.REAL)
    need_equal_dtypes(call.specs)
    return array_spec(call.specs[0].dtype, broadcast_all([spec.shape for spec in call.specs]))


def _astype(call: Call) -> ArraySpec:
    target = call.word("dtype")
    source = call.specs[0]
    if source.dtype in dtypes.COMPLEX and target not in dtypes.COMPLEX and target != "bool":
        raise refuse(
            "bad-dtype", f"{source.dtype} does not convert to {target}; take the real or the imaginary part"
        )
    return array_spec(target, source.shape)


_define_elementwise()
