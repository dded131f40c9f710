"""Rules of matrix products and Fourier transforms."""

from collections.abc import Sequence
from math import log2

from coppermesh.exec import dtypes
from coppermesh.exec.operations import (
    PER_MATRIX,
    AttributeCheck,
    Call,
    Rule,
    define,
    is_int,
    is_ints,
    matrices,
    need_dtype,
    need_equal_dtypes,
    one_of,
)
from coppermesh.exec.program import ArraySpec
from coppermesh.exec.shapes import array_spec, broadcast, check_axes, refuse


def _matmul(call: Call) -> ArraySpec:
    first, second = call.specs
    need_equal_dtypes(call.specs)
    need_dtype(first, dtypes.NUMERIC)
    if first.ndim == 0 or second.ndim == 0:
        raise refuse("bad-shape", "matmul needs arrays with at least one dimension")
    rows = first.shape[-2:-1]
    inner = second.shape[-2] if second.ndim > 1 else second.shape[0]
    columns = second.shape[-1:] if second.ndim > 1 else ()
    if first.shape[-1] != inner:
        raise refuse(
            "shape-mismatch", f"matmul of {first.shape} and {second.shape}: {first.shape[-1]} against {inner}"
        )
    batch = broadcast(first.shape[:-2], second.shape[:-2])
    return array_spec(first.dtype, batch + rows + columns)


def _matmul_cost(call: Call, results: Sequence[ArraySpec]) -> float:
    empty = matrices(results[0]) if results[0].size == 0 else 0
    return 2.0 * results[0].size * call.specs[0].shape[-1] + PER_MATRIX * empty


def _fft_cost(call: Call, results: Sequence[ArraySpec]) -> float:
    size = max(call.specs[0].size, results[0].size)
    return 5.0 * size * log2(size + 2)


def _transform(lengths: Sequence[int], axes: Sequence[int], spec: ArraySpec) -> list[int]:
    check_axes(axes, spec.ndim, ordered=False)
    if len(lengths) != len(axes) or min(lengths, default=1) < 1 or not axes:
        raise refuse(
            "bad-argument", "a transform needs at least one axis and a length of at least 1 for each"
        )
    shape = list(spec.shape)
    for axis, length in zip(axes, lengths, strict=True):
        shape[axis] = length
    return shape


def _fft(real_input: bool, real_output: bool, many: bool) -> Rule:
    def rule(call: Call) -> ArraySpec:
        spec = call.specs[0]
        need_dtype(spec, dtypes.REAL_FLOATING if real_input else dtypes.COMPLEX)
        lengths = call.integers("lengths") if many else (call.integer("length"),)
        axes = call.integers("axes") if many else (call.integer("axis"),)
        shape = _transform(lengths, axes, spec)
        if real_input:
            shape[axes[-1]] = lengths[-1] // 2 + 1
        dtype = dtypes.COMPLEX_OF.get(spec.dtype, spec.dtype)
        return array_spec(dtypes.REAL_PART[dtype] if real_output else dtype, shape)

    return rule


def _define_products() -> None:
    define("matmul", 2, _matmul, _matmul_cost, scratch=1.0)
    norm = one_of("backward", "ortho", "forward")
    one: dict[str, AttributeCheck] = {"length": is_int, "axis": is_int, "norm": norm}
    many: dict[str, AttributeCheck] = {"lengths": is_ints, "axes": is_ints, "norm": norm}
    for name, real_input, real_output in (
        ("fft", False, False),
        ("ifft", False, False),
        ("rfft", True, False),
        ("irfft", False, True),
    ):
        define(name, 1, _fft(real_input, real_output, many=False), _fft_cost, one, scratch=2.0)
        define(name + "n", 1, _fft(real_input, real_output, many=True), _fft_cost, many, scratch=2.0)


_define_products()
