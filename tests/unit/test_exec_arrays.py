"""Every operation against NumPy itself, over dtypes, broadcasting, empty and zero-dimensional arrays."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coppermesh.exec import xp
from coppermesh.exec.dtypes import DTYPE_NAMES
from coppermesh.exec.evaluate import evaluate

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns of overflow and empty means
quick = settings(max_examples=25, deadline=None)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
any_dtype = st.sampled_from(DTYPE_NAMES)
real_dtype = st.sampled_from(
    [name for name in DTYPE_NAMES if name not in ("bool", "complex64", "complex128")]
)
floating_dtype = st.sampled_from(["float32", "float64", "complex64", "complex128"])


def elements(dtype):
    """Values with room to add and multiply: what overflow does is NumPy's business on both sides."""
    return hnp.from_dtype(np.dtype(dtype), allow_subnormal=False)


@st.composite
def arrays(draw, dtypes=any_dtype, shape=shapes):
    dtype = draw(dtypes)
    return draw(
        hnp.arrays(dtype, shape if isinstance(shape, tuple) else draw(shape), elements=elements(dtype))
    )


@st.composite
def pairs(draw, dtypes=any_dtype, mixed=True):
    both = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=4))
    first = draw(dtypes)
    second = draw(dtypes) if mixed else first
    return tuple(
        draw(hnp.arrays(dtype, shape, elements=elements(dtype)))
        for dtype, shape in zip((first, second), both.input_shapes, strict=True)
    )


def check(lazy, expected, exact=False):
    [result] = evaluate(lazy)
    expected = np.asarray(expected)
    assert result.dtype == expected.dtype == lazy.dtype
    assert result.shape == expected.shape == lazy.shape
    if exact:
        np.testing.assert_array_equal(result, expected)
    else:
        np.testing.assert_allclose(result, expected, rtol=1e-6, equal_nan=True)


NUMPY_NAMES = {"acos": "arccos", "asin": "arcsin", "atan": "arctan", "acosh": "arccosh", "asinh": "arcsinh"}
NUMPY_NAMES |= {
    "atanh": "arctanh",
    "atan2": "arctan2",
    "pow": "power",
    "round": "rint",
    "bitwise_invert": "invert",
}
NUMPY_NAMES |= {"bitwise_left_shift": "left_shift", "bitwise_right_shift": "right_shift"}


def numpy_function(name):
    return getattr(np, NUMPY_NAMES.get(name, name))


@pytest.mark.parametrize(
    "name",
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
        "sqrt",
        "square",
        "negative",
        "reciprocal",
        "round",
        "abs",
        "sign",
        "conj",
        "real",
        "imag",
        "isfinite",
        "isinf",
        "isnan",
    ],
)
@quick
@given(x=arrays(floating_dtype))
def test_unary_floating(name, x):
    check(getattr(xp, name)(xp.asarray(x)), numpy_function(name)(x))


@pytest.mark.parametrize("name", ["ceil", "floor", "trunc", "round", "abs", "sign", "square", "conj", "real"])
@quick
@given(x=arrays(real_dtype))
def test_unary_keeps_real_dtypes(name, x):
    expected = (
        x if x.dtype.kind in "iu" and name in ("ceil", "floor", "trunc", "round") else numpy_function(name)(x)
    )
    check(getattr(xp, name)(xp.asarray(x)), np.asarray(expected), exact=True)


@pytest.mark.parametrize("name", ["isfinite", "isinf", "isnan"])
@quick
@given(x=arrays())
def test_finiteness_of_everything(name, x):
    check(getattr(xp, name)(xp.asarray(x)), numpy_function(name)(x), exact=True)


@quick
@given(x=arrays(st.sampled_from(["int8", "int64", "uint32", "bool"])))
def test_integers_become_float64_in_floating_functions(x):
    check(xp.sin(xp.asarray(x)), np.sin(x.astype(np.float64)))
    check(xp.sqrt(xp.asarray(x)), np.sqrt(x.astype(np.float64)))


@pytest.mark.parametrize(
    ("ours", "numpys"),
    [
        (lambda: xp.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)),
        (lambda: xp.ones(3, "int8"), np.ones(3, "int8")),
        (lambda: xp.full(2, 7, np.int16), np.full(2, 7, np.int16)),
        (lambda: xp.zeros_like(xp.ones(2), np.int32), np.zeros(2, np.int32)),
        (lambda: xp.arange(1, 7, 2, np.float32), np.array([1, 3, 5], np.float32)),
        (lambda: xp.asarray([1, 2], np.float32), np.asarray([1, 2], np.float32)),
    ],
)
def test_a_dtype_may_stand_by_position_as_with_cupy(ours, numpys):
    [result] = evaluate(ours())
    assert result.dtype == numpys.dtype
    np.testing.assert_array_equal(result, numpys)


@pytest.mark.parametrize("name", ["add", "subtract", "multiply", "equal", "not_equal"])
@quick
@given(pair=pairs())
def test_arithmetic_of_mixed_dtypes(name, pair):
    first, second = pair
    assume(not (name == "subtract" and first.dtype == second.dtype == np.bool))
    # NumPy compares int64 with uint64 exactly; programs promote them to float64 as arithmetic does.
    if "equal" in name:
        common = np.result_type(first.dtype, second.dtype)
        first, second = first.astype(common), second.astype(common)
    check(getattr(xp, name)(xp.asarray(first), xp.asarray(second)), numpy_function(name)(first, second))


@pytest.mark.parametrize("name", ["floor_divide", "remainder", "maximum", "minimum", "less", "greater_equal"])
@quick
@given(pair=pairs(real_dtype, mixed=False))
def test_real_pairs(name, pair):
    first, second = pair
    check(getattr(xp, name)(xp.asarray(first), xp.asarray(second)), numpy_function(name)(first, second))


@pytest.mark.parametrize("name", ["divide", "atan2", "hypot", "logaddexp", "copysign", "nextafter", "pow"])
@quick
@given(pair=pairs(st.sampled_from(["float32", "float64"])))
def test_floating_pairs(name, pair):
    first, second = pair
    check(getattr(xp, name)(xp.asarray(first), xp.asarray(second)), numpy_function(name)(first, second))


@pytest.mark.parametrize("name", ["bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_left_shift"])
@quick
@given(pair=pairs(st.sampled_from(["int8", "uint16", "int32", "uint64"]), mixed=False))
def test_bits(name, pair):
    first, second = pair[0], pair[1] % 7
    check(
        getattr(xp, name)(xp.asarray(first), xp.asarray(second)),
        numpy_function(name)(first, second),
        exact=True,
    )


@pytest.mark.parametrize("name", ["logical_and", "logical_or", "logical_xor"])
@quick
@given(pair=pairs())
def test_logic_of_anything(name, pair):
    check(getattr(xp, name)(*map(xp.asarray, pair)), numpy_function(name)(*pair), exact=True)


@quick
@given(x=arrays(), scalar=st.sampled_from([True, 2, -1, 1.5, 2 - 1j]))
def test_python_scalars_take_the_arrays_dtype(x, scalar):
    try:
        expected = np.add(x, scalar)
    except OverflowError:
        with pytest.raises(OverflowError):
            xp.asarray(x) + scalar
        return
    assume(expected.dtype.name in DTYPE_NAMES)
    check(xp.asarray(x) + scalar, expected)
    check(scalar + xp.asarray(x), np.add(scalar, x))


@quick
@given(pair=pairs(), condition=st.booleans())
def test_where(pair, condition):
    first, second = pair
    check(
        xp.where(condition, xp.asarray(first), xp.asarray(second)),
        np.where(condition, first, second),
        exact=True,
    )
    mask = first != 0
    check(xp.where(xp.asarray(mask), xp.asarray(first), second), np.where(mask, first, second), exact=True)


@quick
@given(
    x=arrays(st.sampled_from(["int32", "float32", "float64"])), low=st.integers(-5, 0), high=st.integers(0, 9)
)
def test_clip(x, low, high):
    check(xp.clip(xp.asarray(x), low, high), np.clip(x, low, high), exact=True)
    check(xp.clip(xp.asarray(x), max=high), np.clip(x, None, high), exact=True)


@quick
@given(x=arrays(), target=any_dtype)
def test_astype(x, target):
    if x.dtype.kind == "c" and np.dtype(target).kind not in "cb":
        with pytest.raises(ValueError, match="does not convert"):
            xp.astype(xp.asarray(x), target)
        return
    assume(x.dtype.kind not in "fc" or np.dtype(target).kind in "fcb")  # out of range is undefined
    check(xp.asarray(x).astype(target), x.astype(target), exact=True)


@st.composite
def reductions(draw, dtypes):
    x = draw(arrays(dtypes))
    axes = (
        st.none()
        if x.ndim == 0
        else st.none() | st.integers(-x.ndim, x.ndim - 1) | st.just(tuple(range(x.ndim)))
    )
    return x, draw(axes), draw(st.booleans())


@pytest.mark.parametrize("name", ["sum", "prod"])
@quick
@given(case=reductions(any_dtype))
def test_accumulations(name, case):
    x, axis, keepdims = case
    x = (
        x
        if x.dtype.kind in "biu"
        else np.round(np.nan_to_num(x, posinf=1, neginf=1) % 3 if x.dtype.kind == "f" else x * 0)
    )
    check(
        getattr(xp, name)(xp.asarray(x), axis=axis, keepdims=keepdims),
        getattr(np, name)(x, axis=axis, keepdims=keepdims),
    )


@pytest.mark.parametrize("name", ["max", "min", "argmax", "argmin"])
@quick
@given(case=reductions(real_dtype))
def test_extremes(name, case):
    x, axis, keepdims = case
    if name.startswith("arg"):
        axis = None if isinstance(axis, tuple) else axis
    try:
        expected = getattr(np, name)(x, axis=axis, keepdims=keepdims)
    except ValueError:
        with pytest.raises(ValueError, match="no element"):
            getattr(xp, name)(xp.asarray(x), axis=axis, keepdims=keepdims)
        return
    check(getattr(xp, name)(xp.asarray(x), axis=axis, keepdims=keepdims), expected, exact=True)


@pytest.mark.parametrize("name", ["any", "all", "count_nonzero"])
@quick
@given(case=reductions(any_dtype))
def test_truth(name, case):
    x, axis, keepdims = case
    check(
        getattr(xp, name)(xp.asarray(x), axis=axis, keepdims=keepdims),
        getattr(np, name)(x, axis=axis, keepdims=keepdims),
        exact=True,
    )


@pytest.mark.parametrize("name", ["mean", "var", "std"])
@quick
@given(case=reductions(st.sampled_from(["float32", "float64"])))
def test_statistics(name, case):
    x, axis, keepdims = case
    x = np.nan_to_num(x % 100, nan=0, posinf=0, neginf=0)
    check(
        getattr(xp, name)(xp.asarray(x), axis=axis, keepdims=keepdims),
        getattr(np, name)(x, axis=axis, keepdims=keepdims),
    )


@st.composite
def along_one_axis(draw, dtypes):
    x = draw(arrays(dtypes, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)))
    return x, draw(st.integers(-x.ndim, x.ndim - 1))


@quick
@given(case=along_one_axis(st.sampled_from(["int8", "uint8", "float64"])))
def test_running_sums(case):
    x, axis = case
    x = x if x.dtype.kind in "iu" else np.nan_to_num(x % 100, nan=0, posinf=0, neginf=0)
    check(xp.cumulative_sum(xp.asarray(x), axis=axis), np.cumulative_sum(x, axis=axis))
    check(
        xp.cumulative_sum(xp.asarray(x), axis=axis, include_initial=True),
        np.cumulative_sum(x, axis=axis, include_initial=True),
    )
    if x.dtype != np.bool:
        check(xp.diff(xp.asarray(x), axis=axis), np.diff(x, axis=axis))


def matrices(dtypes):
    @st.composite
    def build(draw):
        m, k, n = (draw(st.integers(0, 4)) for _ in range(3))
        batch = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=1, max_side=3))
        dtype = draw(dtypes)
        small = st.integers(0, 5)
        first = draw(hnp.arrays(np.int64, (*batch, m, k), elements=small)).astype(dtype)
        second = draw(hnp.arrays(np.int64, (k, n), elements=small)).astype(dtype)
        return first, second

    return build()


@quick
@given(pair=matrices(st.sampled_from(["int32", "float32", "float64", "complex64"])))
def test_products(pair):
    first, second = pair
    check(xp.asarray(first) @ xp.asarray(second), first @ second)
    check(xp.asarray(first) @ second, first @ second)
    check(xp.tensordot(xp.asarray(first), xp.asarray(second), axes=1), np.tensordot(first, second, axes=1))
    row = np.conj(first)
    check(xp.vecdot(xp.asarray(row), xp.asarray(first)), np.vecdot(row, first))


@quick
@given(
    x=arrays(st.sampled_from(["float32", "float64", "complex128", "int16"]), shape=(3, 4)),
    n=st.integers(1, 6),
)
def test_fourier(x, n):
    x = np.nan_to_num(x, nan=0, posinf=0, neginf=0) % 50 if x.dtype.kind != "c" else np.ones_like(x)
    lazy = xp.asarray(x)
    wide = x if x.dtype.kind in "fc" else x.astype(np.float64)
    tolerance = {"rtol": 1e-4, "atol": 1e-3 if x.dtype == np.float32 else 1e-9}
    cases = [
        (xp.fft.fft(lazy, n=n), np.fft.fft(wide, n=n)),
        (xp.fft.ifft(lazy, axis=0, norm="ortho"), np.fft.ifft(wide, axis=0, norm="ortho")),
        (xp.fft.fft2(lazy), np.fft.fft2(wide)),
        (xp.fft.ifftn(xp.fft.fftn(lazy)), np.fft.ifftn(np.fft.fftn(wide))),
        (xp.fft.irfft(lazy), np.fft.irfft(wide)),
        (xp.fft.fftshift(xp.fft.fft(lazy)), np.fft.fftshift(np.fft.fft(wide))),
    ]
    if x.dtype.kind != "c":
        cases += [
            (xp.fft.rfft(lazy, n=n), np.fft.rfft(wide, n=n)),
            (xp.fft.rfftn(lazy), np.fft.rfftn(wide)),
            (xp.fft.irfftn(xp.fft.rfftn(lazy)), np.fft.irfftn(np.fft.rfftn(wide))),
        ]
    results = evaluate(*(lazy_result for lazy_result, _ in cases))
    for result, (lazy_result, expected) in zip(results, cases, strict=True):
        assert result.dtype == expected.dtype == lazy_result.dtype
        np.testing.assert_allclose(result, expected, **tolerance)


@quick
@given(x=arrays(real_dtype, shape=(3, 5)), axis=st.sampled_from([0, 1, -1]), descending=st.booleans())
def test_order(x, axis, descending):
    lazy = xp.asarray(x)
    expected = np.sort(x, axis=axis)
    check(
        xp.sort(lazy, axis=axis, descending=descending),
        np.flip(expected, axis) if descending else expected,
        exact=True,
    )
    [positions] = evaluate(xp.argsort(lazy, axis=axis, descending=descending))
    np.testing.assert_array_equal(
        np.take_along_axis(x, positions, axis), np.flip(expected, axis) if descending else expected
    )
    if not descending:
        np.testing.assert_array_equal(positions, np.argsort(x, axis=axis, kind="stable"))
    np.testing.assert_array_equal(
        evaluate(xp.take_along_axis(lazy, xp.asarray(positions), axis=axis))[0],
        np.take_along_axis(x, positions, axis),
    )


@quick
@given(x=arrays(shape=(3, 1, 4)), y=arrays(shape=(3, 2, 4)))
def test_joining(x, y):
    lazy_x, lazy_y = xp.asarray(x), xp.asarray(y)
    dtype = np.result_type(x, y)
    check(xp.concat([lazy_x, lazy_y], axis=1), np.concatenate([x, y], axis=1), exact=True)
    check(xp.concat([lazy_x, lazy_y], axis=None), np.concatenate([x, y], axis=None), exact=True)
    check(
        xp.stack([lazy_x[:, 0], lazy_y[:, 1]], axis=-1),
        np.stack([x[:, 0], y[:, 1]], axis=-1).astype(dtype),
        exact=True,
    )


@quick
@given(x=arrays(shape=(2, 3, 4)), shift=st.integers(-9, 9))
def test_moving(x, shift):
    lazy = xp.asarray(x)
    cases = [
        (xp.reshape(lazy, (4, -1)), x.reshape(4, -1)),
        (xp.permute_dims(lazy, (2, 0, 1)), x.transpose(2, 0, 1)),
        (lazy.T, x.T),
        (lazy.mT, x.mT),
        (xp.moveaxis(lazy, 0, -1), np.moveaxis(x, 0, -1)),
        (xp.swapaxes(lazy, 0, 2), np.swapaxes(x, 0, 2)),
        (xp.expand_dims(lazy, axis=-1), x[..., None]),
        (xp.squeeze(lazy[:, :1], axis=1), x[:, 0]),
        (xp.flip(lazy), np.flip(x)),
        (xp.flip(lazy, axis=(0, 2)), np.flip(x, (0, 2))),
        (xp.roll(lazy, shift), np.roll(x, shift)),
        (xp.roll(lazy, (shift, 1), axis=(0, -1)), np.roll(x, (shift, 1), (0, -1))),
        (xp.broadcast_to(lazy[:, None], (2, 5, 3, 4)), np.broadcast_to(x[:, None], (2, 5, 3, 4))),
        (xp.repeat(lazy, 3, axis=1), np.repeat(x, 3, axis=1)),
        (xp.tile(lazy, (2, 1, 2)), np.tile(x, (2, 1, 2))),
        (xp.tril(lazy, k=1), np.tril(x, k=1)),
        (xp.triu(lazy), np.triu(x)),
        (xp.take(lazy, [2, 0, -1], axis=1), np.take(x, [2, 0, -1], axis=1)),
        (lazy[1, ::-1, None, 1:3], x[1, ::-1, None, 1:3]),
        (lazy[..., -1], x[..., -1]),
        (lazy[:, [2, 0]], x[:, [2, 0]]),
    ]
    results = evaluate(*(lazy_result for lazy_result, _ in cases))
    for result, (lazy_result, expected) in zip(results, cases, strict=True):
        assert result.dtype == expected.dtype == lazy_result.dtype
        assert lazy_result.shape == expected.shape
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric", "wrap"])
@quick
@given(x=arrays(shape=(4, 3)), widths=st.sampled_from([1, (2, 1), ((0, 1), (2, 0))]))
def test_padding(mode, x, widths):
    check(xp.pad(xp.asarray(x), widths, mode=mode), np.pad(x, widths, mode=mode), exact=True)


def slices(length):
    bound = st.none() | st.integers(-length - 2, length + 2)
    step = st.none() | st.integers(-3, 3).filter(lambda number: number != 0)
    return st.builds(slice, bound, bound, step)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), x=arrays(shape=(4, 3)))
def test_indexing_and_assignment(data, x):
    item = st.integers(0, 2) | slices(4) | st.just(Ellipsis) | st.none()
    key = data.draw(st.tuples(item) | st.tuples(item, slices(3)) | slices(4))
    try:
        expected = x[key]
    except IndexError:
        with pytest.raises(IndexError):
            xp.asarray(x)[key]
        return
    check(xp.asarray(x)[key], expected, exact=True)
    lazy, changed = xp.asarray(x), x.copy()
    lazy[key] = 1
    changed[key] = 1
    check(lazy, changed, exact=True)


@pytest.mark.parametrize(
    ("lazy", "expected"),
    [
        (lambda: xp.arange(7), np.arange(7)),
        (lambda: xp.arange(7, 1, -2), np.arange(7, 1, -2)),
        (lambda: xp.arange(3, 3), np.arange(3, 3)),
        (lambda: xp.arange(0.5, 3, 0.25), np.arange(0.5, 3, 0.25)),
        (lambda: xp.arange(5, dtype="float32"), np.arange(5, dtype="float32")),
        (lambda: xp.arange(250, dtype="uint8"), np.arange(250, dtype="uint8")),
        (lambda: xp.linspace(0, 1, 5), np.linspace(0, 1, 5)),
        (
            lambda: xp.linspace(0, 1, 5, endpoint=False, dtype="float32"),
            np.linspace(0, 1, 5, endpoint=False, dtype="float32"),
        ),
        (lambda: xp.linspace(1, 2, 0), np.linspace(1, 2, 0)),
        (lambda: xp.eye(3, 4, k=1), np.eye(3, 4, k=1)),
        (lambda: xp.eye(3, 2, k=2**62), np.zeros((3, 2))),
        (lambda: xp.eye(3, 2, k=-(2**70)), np.zeros((3, 2))),
        (lambda: xp.zeros((2, 0), dtype="int8"), np.zeros((2, 0), dtype="int8")),
        (lambda: xp.ones(3), np.ones(3)),
        (lambda: xp.full((2,), 7), np.full((2,), 7)),
        (lambda: xp.full((), 1.5, dtype="float32"), np.full((), 1.5, dtype="float32")),
        (lambda: xp.meshgrid(xp.arange(2), xp.arange(3))[1], np.meshgrid(np.arange(2), np.arange(3))[1]),
        (lambda: xp.fft.fftfreq(5, d=0.5), np.fft.fftfreq(5, d=0.5)),
        (lambda: xp.fft.rfftfreq(6), np.fft.rfftfreq(6)),
        (
            lambda: xp.searchsorted(xp.asarray([1, 2, 4]), xp.asarray([0, 2, 5])),
            np.searchsorted([1, 2, 4], [0, 2, 5]),
        ),
        (lambda: xp.asarray([1, 2]) ** 2, np.asarray([1, 4])),
        (lambda: xp.asarray([1.0, 4.0]) ** 0.5, np.asarray([1.0, 2.0])),
        (lambda: 2 ** xp.asarray([1, 2]), np.asarray([2, 4])),
        (lambda: xp.outer(xp.arange(2), xp.arange(3)), np.outer(np.arange(2), np.arange(3))),
        (lambda: xp.asarray([xp.asarray(1.0), xp.asarray(2.0)]), np.asarray([1.0, 2.0])),
        (lambda: xp.trace(xp.asarray(np.eye(3))), np.asarray(3.0)),
    ],
)
def test_creation_and_odds(lazy, expected):
    check(lazy(), expected)


@quick
@given(x=arrays(st.sampled_from(["float32", "float64"]), shape=(3, 4)))
def test_numpy_functions_record(x):
    x = np.nan_to_num(x, nan=0, posinf=0, neginf=0) % 10
    lazy = xp.asarray(x)
    cases = [
        (np.sin(lazy), np.sin(x)),
        (np.arctan2(lazy, 2.0), np.arctan2(x, np.asarray(2.0, x.dtype))),
        (np.add(x, lazy), np.add(x, x)),
        (x * lazy, x * x),
        (np.float32(2) * lazy, np.float32(2) * x),
        (np.add.reduce(lazy), np.add.reduce(x)),
        (np.sum(lazy, axis=0), np.sum(x, axis=0)),
        (np.mean(lazy, 1), np.mean(x, 1)),
        (np.std(lazy, ddof=1), np.std(x, ddof=1)),
        (np.amax(lazy, axis=-1), np.amax(x, axis=-1)),
        (np.concatenate([lazy, lazy], axis=1), np.concatenate([x, x], axis=1)),
        (np.where(lazy > 5, lazy, 0), np.where(x > 5, x, np.asarray(0, x.dtype))),
        (np.transpose(lazy), x.T),
        (np.clip(lazy, 1, 5), np.clip(x, 1, 5)),
        (np.roll(lazy, 1, axis=0), np.roll(x, 1, axis=0)),
        (np.dot(lazy, lazy.T), np.dot(x, x.T)),
        (np.expand_dims(lazy, 0), x[None]),
        (np.cumsum(lazy, axis=1), np.cumsum(x, axis=1)),
        (np.fft.fft(lazy), np.fft.fft(x)),
    ]
    results = evaluate(*(lazy_result for lazy_result, _ in cases))
    for result, (_, expected) in zip(results, cases, strict=True):
        assert result.dtype == expected.dtype
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
