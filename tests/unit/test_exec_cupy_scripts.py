"""Scripts written for CuPy: the same text, with another import and a last line that computes."""

import textwrap

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.exec import barrier
from coppermesh.exec.errors import NeedsValue
from coppermesh.exec.evaluate import evaluate

cp = cm.xp
SCRIPT = """
    kernel = cp.RawKernel('''
    extern "C" __global__ void axpy(float a, const float* x, float* y, int n) {
        int i = blockDim.x * blockIdx.x + threadIdx.x;
        if (i < n) y[i] += a * x[i];
    }''', "axpy")
    square = cp.ElementwiseKernel("T x", "T y", "y = x * x", "square")
    total = cp.ReductionKernel("T x", "T y", "x", "a + b", "y = a", "0", "total")
    module = cp.RawModule(code='extern "C" __global__ void twice(float* y) { y[threadIdx.x] *= 2; }')

    cp.random.seed(3)
    x = cp.random.rand(64, dtype=cp.float32)
    xp = cp.get_array_module(x)
    y = xp.ascontiguousarray(xp.zeros_like(x))
    kernel((1,), (64,), (cp.float32(2), x, y, 64))
    module.get_function("twice")((1,), (64,), (y,))
    result = total(square(y - 4 * x))
    same = cp.allclose(y, 4 * x)
"""


def run_script(text):
    names = {"cp": cp}
    exec(compile(textwrap.dedent(text), "script.py", "exec"), names)  # noqa: S102 - a script of this file
    return names


def test_a_script_changes_its_import_only():
    names = run_script(SCRIPT)
    assert names["xp"] is cp
    x, result, same = cm.run_local(names["x"], names["result"], names["same"])
    assert result == 0
    assert same
    assert x.shape == (64,)
    assert len(set(x.tolist())) > 60
    assert run_script(SCRIPT)["x"].shape == (64,)


def test_values_come_back_by_cupys_names():
    x = cp.asarray([1.0, 2.0]) + 1
    for take in (cp.asnumpy, lambda a: a.get()):
        with pytest.raises(NeedsValue, match=r"mesh\.compute"):
            take(x)
    with barrier.evaluator(lambda arrays: evaluate(*arrays)):
        values = cp.asnumpy(x)
        assert type(values) is np.ndarray
        values[0] = 100.0
        assert x.get().tolist() == [2.0, 3.0]
    assert cp.asnumpy([1, 2]).tolist() == [1, 2]
    assert cp.get_array_module(np.ones(2), 3) is np


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("equal_nan", [False, True])
def test_closeness_is_numpys(equal_nan):
    a = np.array([1.0, 1.0, 0.0, NAN, INF, INF, -INF, NAN, 1e9])
    b = np.array([1.0, 1.00002, 1e-9, NAN, INF, -INF, 1.0, 1.0, 1e9 + 5000])
    lazy = cp.isclose(cp.asarray(a), cp.asarray(b), equal_nan=equal_nan)
    all_close = cp.allclose(cp.asarray(a), cp.asarray(b), equal_nan=equal_nan)
    loose = cp.allclose(cp.asarray(a[:3]), b[:3], rtol=0.1)
    results = evaluate(lazy, all_close, loose)
    np.testing.assert_array_equal(results[0], np.isclose(a, b, equal_nan=equal_nan))
    assert (bool(results[1]), bool(results[2])) == (False, True)


def test_equality_and_stacking_are_numpys():
    a, b = np.arange(3), np.arange(3) + 1
    m = np.arange(6).reshape(2, 3)
    la, lb, lm = map(cp.asarray, (a, b, m))
    results = evaluate(
        cp.hstack((la, lb)), cp.vstack([la, lb]), cp.hstack((lm, lm)), cp.vstack((lm, lm)),
        cp.array_equal(la, a), cp.array_equal(la, b), cp.array_equal(la, m),
    )  # fmt: skip
    for got, expected in zip(
        results[:4], (np.hstack((a, b)), np.vstack([a, b]), np.hstack((m, m)), np.vstack((m, m))), strict=True
    ):
        np.testing.assert_array_equal(got, expected)
    assert [bool(result) for result in results[4:]] == [True, False, False]


@pytest.mark.parametrize(
    "name",
    ["sum", "prod", "max", "min", "mean", "var", "std", "median", "any", "all", "count_nonzero", "argmax", "argmin",
     "cumsum", "flip", "sort", "argsort"],
)  # fmt: skip
def test_the_axis_may_come_second_without_its_name(name):
    x = np.random.default_rng(1).random((3, 4))
    [result] = evaluate(getattr(cp, name)(cp.asarray(x), 1))
    np.testing.assert_allclose(result, getattr(np, name)(x, 1), rtol=1e-12)


def test_the_axis_may_come_third_without_its_name():
    x, order = np.arange(12.0).reshape(3, 4), np.array([[2, 0, 1, 0]])
    lazy = cp.asarray(x)
    results = evaluate(
        cp.concatenate([lazy, lazy], 1), cp.stack([lazy, lazy], 2), cp.roll(lazy, 1, 0), cp.repeat(lazy, 2, 1),
        cp.take(lazy, [0, 2], 1), cp.take_along_axis(lazy, cp.asarray(order), 0), cp.squeeze(lazy[:1, :, None]),
    )  # fmt: skip
    expected = (
        np.concatenate([x, x], 1), np.stack([x, x], 2), np.roll(x, 1, 0), np.repeat(x, 2, 1),
        np.take(x, [0, 2], 1), np.take_along_axis(x, order, 0), x[0],
    )  # fmt: skip
    for got, wanted in zip(results, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_random_numbers_by_cupys_names():
    cp.random.seed(5)
    arrays = [
        cp.random.rand(500, 2),
        cp.random.random((1000,), dtype=np.float32),
        cp.random.uniform(-2, 3, 1000),
        cp.random.randn(1000),
        cp.random.normal(5, 0.1, size=(1000,)),
        cp.random.randint(3, 9, 1000),
        cp.random.randint(4, size=(10, 100), dtype=np.int32),
        cp.random.random_sample(),
    ]
    values = evaluate(*arrays)
    for array, (low, high) in zip(
        values, [(0, 1), (0, 1), (-2, 3), (-9, 9), (4, 6), (3, 9), (0, 4)], strict=False
    ):
        assert low <= array.min() <= array.max() < high
        assert array.size == 1000
    assert abs(values[3].mean()) < 0.2
    assert abs(values[3].std() - 1) < 0.2
    assert set(values[5].tolist()) == {3, 4, 5, 6, 7, 8}
    assert values[6].dtype == np.int32
    assert values[7].shape == ()
    cp.random.seed(5)
    assert evaluate(cp.random.rand(500, 2))[0].tolist() == values[0].tolist()
    cp.random.seed()
    first = cp.random.rand(8)
    cp.random.seed()
    assert evaluate(first)[0].tolist() != evaluate(cp.random.rand(8))[0].tolist()


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("cp.cuda.Device(0).use()", r"has no 'cuda': which device .* mesh.compute\(y, device='cuda'\)"),
        ("cp.cuda.Stream.null.synchronize()", "nothing to wait for: leave the line out"),
        ("cp.testing.assert_allclose(x, x)", "numpy.testing"),
        ("cp.fuse", "ElementwiseKernel"),
        ("cp.unique(x)", "unique_values"),
        ("cp.asfortranarray(x)", "C order"),
        ("cp.random.choice(3)", "argsort"),
        ("cp.random.default_rng(1)", r"xp.random.generator\(seed\)"),
        ("cp.random.unifrom(3)", "did you mean uniform"),
        ("x.fill(3)", r"a lazy array has no 'fill': use x\[\.\.\.\] = value"),
        ("x.data.ptr", "no memory yet"),
        ("x.sort()", r"x = xp.sort\(x\)"),
        ("x.unheard_of", "a lazy array has no 'unheard_of'"),
    ],
)
def test_what_is_not_here_says_what_to_write(expression, words):
    with pytest.raises(AttributeError, match=words):
        eval(expression, {"cp": cp, "x": cp.asarray([1.0, 2.0])})  # noqa: S307 - an expression of this file
