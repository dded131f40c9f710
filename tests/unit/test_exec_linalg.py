"""Linear algebra, Hermitian transforms and inspection against NumPy: dtypes, stacks, empty and zero-size arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coppermesh.exec import xp
from coppermesh.exec.dtypes import DTYPE_NAMES
from coppermesh.exec.errors import ProgramInvalid, RunFailed
from coppermesh.exec.evaluate import evaluate

quick = settings(max_examples=25, deadline=None)
floating = st.sampled_from(["float32", "float64", "complex64", "complex128"])
stacks = hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3)
sides = st.integers(0, 4)


def filled(shape, dtype, seed=0):
    """Random numbers of size 1: what rounding does to ill-conditioned matrices is LAPACK's business."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    return (x + 1j * rng.normal(size=shape) if dtype.startswith("complex") else x).astype(dtype)


def well_conditioned(shape, dtype, seed=0):
    return filled(shape, dtype, seed) + 5 * np.eye(shape[-1], dtype=dtype)


def close(lazy, expected):
    [result] = evaluate(lazy)
    expected = np.asarray(expected)
    assert result.dtype == expected.dtype == lazy.dtype
    assert result.shape == expected.shape == lazy.shape
    bound = 200 * np.finfo(expected.dtype).eps if expected.dtype.kind in "fc" else 0
    np.testing.assert_allclose(result, expected, rtol=bound, atol=bound * 10)


SQUARE = {
    "inv": np.linalg.inv,
    "det": np.linalg.det,
    "matrix_rank": np.linalg.matrix_rank,
    "trace": np.linalg.trace,
    "diagonal": np.linalg.diagonal,
}


@pytest.mark.parametrize("name", SQUARE)
@quick
@given(stack=stacks, side=sides, dtype=floating)
def test_square_matrices(name, stack, side, dtype):
    if name == "matrix_rank" and side == 0:
        return
    x = well_conditioned((*stack, side, side), dtype)
    close(getattr(xp.linalg, name)(xp.asarray(x)), SQUARE[name](x))


@quick
@given(stack=stacks, side=sides, dtype=floating)
def test_factorisations_give_back_the_matrix(stack, side, dtype):
    x = well_conditioned((*stack, side, side), dtype)
    hermitian = x + np.conj(np.swapaxes(x, -1, -2)) + 10 * np.eye(side, dtype=dtype)
    lower, upper = xp.linalg.cholesky(hermitian), xp.linalg.cholesky(hermitian, upper=True)
    close(lower @ xp.conj(lower).mT, hermitian)
    close(xp.conj(upper).mT @ upper, hermitian)
    close(lower, np.linalg.cholesky(hermitian))
    values, vectors = xp.linalg.eigh(hermitian)
    close(values, np.linalg.eigvalsh(hermitian))
    close(xp.linalg.eigvalsh(hermitian), np.linalg.eigvalsh(hermitian))
    close(vectors * values[..., None, :] @ xp.conj(vectors).mT, hermitian)
    sign, logarithm = xp.linalg.slogdet(x)
    close(sign * xp.exp(logarithm), np.linalg.det(x))
    close(xp.linalg.matrix_power(xp.asarray(x), 3), np.linalg.matrix_power(x, 3))
    close(xp.linalg.matrix_power(xp.asarray(x), 0), np.linalg.matrix_power(x, 0))
    close(xp.linalg.matrix_power(xp.asarray(x), -2), np.linalg.matrix_power(x, -2))


@quick
@given(stack=stacks, rows=sides, columns=sides, dtype=floating, full=st.booleans())
def test_rectangles(stack, rows, columns, dtype, full):
    x = filled((*stack, rows, columns), dtype)
    left, values, right = xp.linalg.svd(xp.asarray(x), full_matrices=full)
    inner = min(rows, columns)
    close(left[..., :inner] * values[..., None, :] @ right[..., :inner, :], x)
    close(values, np.linalg.svd(x, compute_uv=False))
    close(xp.linalg.svdvals(x), np.linalg.svd(x, compute_uv=False))
    q, r = xp.linalg.qr(xp.asarray(x), mode="complete" if full else "reduced")
    close(q @ r, x)
    if rows >= columns:
        close(
            xp.linalg.pinv(xp.asarray(x)) @ x if x.size else xp.linalg.pinv(x),
            np.linalg.pinv(x) @ x if x.size else np.linalg.pinv(x),
        )
    close(xp.linalg.matrix_transpose(xp.asarray(x)), np.swapaxes(x, -1, -2))


@quick
@given(
    shapes=hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=2, min_side=0, max_side=3),
    side=sides,
    columns=sides,
    dtype=floating,
)
def test_solve(shapes, side, columns, dtype):
    first, second = shapes.input_shapes
    a = well_conditioned((*first, side, side), dtype)
    b = filled((*second, side, columns), dtype, 1)
    close(xp.linalg.solve(a, b), np.linalg.solve(a, b))
    vector = filled((side,), dtype, 2)
    close(xp.linalg.solve(a, vector), np.linalg.solve(a, vector))


@pytest.mark.parametrize("order", ["fro", "nuc", 1, -1, 2, -2, np.inf, -np.inf])
@quick
@given(
    stack=stacks, rows=st.integers(1, 4), columns=st.integers(1, 4), dtype=floating, keepdims=st.booleans()
)
def test_matrix_norms(order, stack, rows, columns, dtype, keepdims):
    x = filled((*stack, rows, columns), dtype)
    close(
        xp.linalg.matrix_norm(xp.asarray(x), ord=order, keepdims=keepdims),
        np.linalg.matrix_norm(x, ord=order, keepdims=keepdims),
    )


@pytest.mark.parametrize("order", [0, 1, 2, 3, 0.5, -1, np.inf, -np.inf])
@quick
@given(data=st.data(), dtype=floating, keepdims=st.booleans())
def test_vector_norms(order, data, dtype, keepdims):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
    axes = data.draw(st.none() | st.integers(-len(shape), len(shape) - 1) | hnp.valid_tuple_axes(len(shape)))
    if axes == ():
        return
    x = filled(shape, dtype)
    close(
        xp.linalg.vector_norm(xp.asarray(x), axis=axes, ord=order, keepdims=keepdims),
        np.linalg.vector_norm(x, axis=axes, ord=order, keepdims=keepdims),
    )


@quick
@given(
    shapes=hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=2, max_side=3),
    dtype=st.sampled_from([name for name in DTYPE_NAMES if name != "bool"]),
)
def test_products_of_vectors(shapes, dtype):
    a, b = (
        (filled((*shape, 3), "float64", seed) * 4).astype(dtype)
        for seed, shape in enumerate(shapes.input_shapes)
    )
    with np.errstate(all="ignore"):
        close(xp.linalg.cross(xp.asarray(a), b), np.linalg.cross(a, b))
        close(xp.linalg.vecdot(xp.asarray(a), b), np.vecdot(a, b))
        close(xp.linalg.outer(xp.asarray(a.reshape(-1)), b.reshape(-1)), np.outer(a, b))
        close(
            xp.linalg.tensordot(xp.asarray(a), b, axes=((-1,), (-1,))),
            np.tensordot(a, b, axes=((-1,), (-1,))),
        )


@quick
@given(
    shape=hnp.array_shapes(min_dims=1, max_dims=3, min_side=2, max_side=5),
    n=st.none() | st.integers(1, 7),
    norm=st.sampled_from([None, "ortho", "forward", "backward"]),
    data=st.data(),
)
def test_hermitian_transforms(shape, n, norm, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x, y = filled(shape, "complex128"), filled(shape, "float64")
    close(xp.fft.hfft(xp.asarray(x), n=n, axis=axis, norm=norm), np.fft.hfft(x, n=n, axis=axis, norm=norm))
    close(xp.fft.ihfft(xp.asarray(y), n=n, axis=axis, norm=norm), np.fft.ihfft(y, n=n, axis=axis, norm=norm))


def test_what_is_refused():
    for call in (
        lambda: xp.linalg.inv(xp.ones((2, 3))),
        lambda: xp.linalg.eigh(xp.ones(3)),
        lambda: xp.linalg.qr(xp.ones((2, 2)), mode="raw"),
    ):
        with pytest.raises(ProgramInvalid):
            call()
    with pytest.raises(TypeError, match="floating"):
        xp.linalg.det(xp.ones((2, 2), dtype="int32"))
    with pytest.raises(RunFailed, match="ingular") as caught:
        evaluate(xp.linalg.inv(xp.zeros((2, 2)) + 0))
    assert caught.value.code == "run-failed"


@pytest.mark.parametrize("name", DTYPE_NAMES)
def test_inspection(name):
    dtype = np.dtype(name)
    kinds = [
        "bool",
        "signed integer",
        "unsigned integer",
        "integral",
        "real floating",
        "complex floating",
        "numeric",
    ]
    for kind in [*kinds, np.dtype("int8"), ("bool", np.dtype("float32"))]:
        assert xp.isdtype(dtype, kind) == np.isdtype(dtype, kind)
    if dtype.kind in "iu":
        assert (xp.iinfo(dtype).min, xp.iinfo(dtype).max) == (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if dtype.kind in "fc":
        assert xp.finfo(xp.ones(2, dtype=name)).eps == float(np.finfo(dtype).eps)
    for other in DTYPE_NAMES:
        assert xp.result_type(dtype, np.dtype(other)) == np.result_type(dtype, np.dtype(other))
        assert xp.can_cast(xp.ones((), dtype=name), np.dtype(other)) == np.can_cast(dtype, other)


def test_namespace_info():
    info = xp.__array_namespace_info__()
    assert info.devices() == [info.default_device()] == ["mesh"]
    assert set(info.dtypes()) == set(DTYPE_NAMES)
    assert set(info.dtypes(kind="real floating")) == {"float32", "float64"}
    assert info.default_dtypes()["integral"] == np.int64
    assert info.capabilities()["data-dependent shapes"] is True


def test_numpys_functions_record():
    x = well_conditioned((4, 4), "float64")
    lazy = xp.asarray(x)
    for function in (np.linalg.inv, np.linalg.det, np.linalg.norm, np.linalg.svdvals, np.linalg.matrix_rank):
        close(function(lazy), function(x))
    for options in (
        {"axis": 1},
        {"ord": 1},
        {"ord": "nuc", "axis": (1, 0), "keepdims": True},
        {"ord": np.inf, "axis": 0},
    ):
        close(np.linalg.norm(lazy, **options), np.linalg.norm(x, **options))
    close(np.linalg.solve(lazy, x[0]), np.linalg.solve(x, x[0]))
    assert np.linalg.svd(lazy, full_matrices=False).U.shape == (4, 4)
