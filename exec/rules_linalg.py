"""Rules of linear algebra on stacks of matrices: the last two axes are the matrix, those before them the stack.

Only what needs a factorisation of its own is an operation. Norms, ranks, powers and pseudo-inverses are written by the
recorder with these. Stacks are not broadcast here: the recorder does that.
"""

from collections.abc import Sequence

from coppermesh.exec import dtypes
from coppermesh.exec.operations import (
    PER_MATRIX,
    Call,
    Cost,
    define,
    is_bool,
    matrices,
    need_dtype,
    need_equal_dtypes,
    one_of,
)
from coppermesh.exec.program import ArraySpec
from coppermesh.exec.shapes import Shape, array_spec, refuse


def _matrix(spec: ArraySpec) -> tuple[Shape, int, int]:
    """The stack's shape, rows and columns."""
    need_dtype(spec, dtypes.FLOATING)
    if spec.ndim < 2:
        raise refuse("bad-shape", f"{spec} is no matrix: it needs at least two dimensions")
    return spec.shape[:-2], spec.shape[-2], spec.shape[-1]


def _square(spec: ArraySpec) -> tuple[Shape, int]:
    stack, rows, columns = _matrix(spec)
    if rows != columns:
        raise refuse("bad-shape", f"{spec} is no square matrix")
    return stack, rows


def _same(call: Call) -> ArraySpec:
    _square(call.specs[0])
    return call.specs[0]


def _det(call: Call) -> ArraySpec:
    return array_spec(call.specs[0].dtype, _square(call.specs[0])[0])


def _slogdet(call: Call) -> tuple[ArraySpec, ...]:
    spec = call.specs[0]
    stack, _ = _square(spec)
    real = dtypes.REAL_PART.get(spec.dtype, spec.dtype)
    return array_spec(spec.dtype, stack), array_spec(real, stack)


def _solve(call: Call) -> ArraySpec:
    first, second = call.specs
    need_equal_dtypes(call.specs)
    stack, order = _square(first)
    other_stack, rows, _ = _matrix(second)
    if stack != other_stack or rows != order:
        raise refuse("shape-mismatch", f"solve of {first.shape} and {second.shape}: stack or rows differ")
    return second


def _eigvalsh(call: Call) -> ArraySpec:
    spec = call.specs[0]
    stack, order = _square(spec)
    return array_spec(dtypes.REAL_PART.get(spec.dtype, spec.dtype), (*stack, order))


def _eigh(call: Call) -> tuple[ArraySpec, ...]:
    return _eigvalsh(call), call.specs[0]


def _svdvals(call: Call) -> ArraySpec:
    spec = call.specs[0]
    stack, rows, columns = _matrix(spec)
    return array_spec(dtypes.REAL_PART.get(spec.dtype, spec.dtype), (*stack, min(rows, columns)))


def _svd(call: Call) -> tuple[ArraySpec, ...]:
    spec = call.specs[0]
    stack, rows, columns = _matrix(spec)
    inner = min(rows, columns)
    full = call.flag("full_matrices")
    left = array_spec(spec.dtype, (*stack, rows, rows if full else inner))
    right = array_spec(spec.dtype, (*stack, columns if full else inner, columns))
    return left, _svdvals(call), right


def _qr(call: Call) -> tuple[ArraySpec, ...]:
    spec = call.specs[0]
    stack, rows, columns = _matrix(spec)
    inner = rows if call.word("mode") == "complete" else min(rows, columns)
    return array_spec(spec.dtype, (*stack, rows, inner)), array_spec(spec.dtype, (*stack, inner, columns))


def _cubic(weight: float) -> Cost:
    """`weight` times rows x columns x the larger of the two, for each matrix of the stack."""

    def cost(call: Call, results: Sequence[ArraySpec]) -> float:
        spec = call.specs[0]
        own = weight * spec.size * max(spec.shape[-2:]) + sum(result.size for result in results)
        return own + PER_MATRIX * matrices(spec)

    return cost


def _solve_cost(call: Call, _results: Sequence[ArraySpec]) -> float:
    first, second = call.specs
    own = 0.7 * first.size * first.shape[-1] + 2.0 * second.size * first.shape[-1]
    return own + PER_MATRIX * matrices(first)


def _define_linalg() -> None:
    define("cholesky", 1, _same, _cubic(0.4), {"upper": is_bool}, scratch=2.0)
    define("inv", 1, _same, _cubic(2), scratch=3.0)
    define("det", 1, _det, _cubic(0.7), scratch=2.0)
    define("slogdet", 1, _slogdet, _cubic(0.7), scratch=2.0)
    define("solve", 2, _solve, _solve_cost, scratch=2.0)
    define("eigh", 1, _eigh, _cubic(9), scratch=5.0)
    define("eigvalsh", 1, _eigvalsh, _cubic(2), scratch=4.0)
    define("svd", 1, _svd, _cubic(20), {"full_matrices": is_bool}, scratch=8.0)
    define("svdvals", 1, _svdvals, _cubic(4), scratch=4.0)
    define("qr", 1, _qr, _cubic(4), {"mode": one_of("reduced", "complete")}, scratch=4.0)


_define_linalg()
