"""Names that the namespace has beside the standard's, and what it says about those that it does not have."""

import numpy as np
import pytest

from coppermesh.exec import xp
from coppermesh.exec.evaluate import evaluate

RNG = np.random.default_rng(11)
VALUES = RNG.standard_normal((4, 5, 6))


@pytest.mark.parametrize(
    ("namespace", "name", "words"),
    [
        (xp, "busday_count", "coppermesh.xp has no .busday_count.; it follows the Python Array API standard"),
        (xp, "maximun", r"no 'maximun' \(did you mean maximum\?\); it follows"),
        (xp.linalg, "lstsq", "coppermesh.xp.linalg has no 'lstsq'"),
        (xp.fft, "rfft3", "rfft2"),
    ],
)  # fmt: skip
def test_a_missing_name_says_where_to_look(namespace, name, words):
    with pytest.raises(AttributeError, match=words):
        getattr(namespace, name)
    assert not hasattr(namespace, name)
    assert not hasattr(namespace, "__path__")


def test_what_the_namespace_lists_is_there_and_is_for_users():
    names = dir(xp)
    assert {"sum", "linalg", "float32", "pi", "newaxis", "scan", "Array", "median"} <= set(names)
    assert not {"np", "Any", "TYPE_CHECKING", "xp_fft", "xp_names"} & set(names)
    assert all(hasattr(xp, name) for name in names)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        VALUES,
        VALUES.astype("float32"),
        RNG.integers(-9, 9, (3, 4)),
        np.where(VALUES > 1.5, np.nan, VALUES),
        np.where(VALUES > 0, np.inf, -np.inf),
    ],
)
def test_median(values, axis, keepdims):
    with np.errstate(invalid="ignore"):
        expected = np.median(values, axis=axis, keepdims=keepdims)
    lazy = xp.median(xp.asarray(values), axis=axis, keepdims=keepdims)
    by_numpy = np.median(xp.asarray(values), axis=axis)
    assert lazy.dtype == expected.dtype
    results = evaluate(lazy, by_numpy)
    np.testing.assert_array_equal(results[0], expected)
    np.testing.assert_array_equal(results[1], np.squeeze(expected, axis) if keepdims else expected)


def test_the_median_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no elements"):
        xp.median(xp.zeros((3, 0)), axis=1)


def test_numpys_name_for_the_correction():
    lazy = xp.asarray(VALUES)
    results = evaluate(xp.var(lazy, axis=1, ddof=1), xp.std(lazy, ddof=2), xp.var(lazy, correction=1))
    np.testing.assert_allclose(results[0], np.var(VALUES, axis=1, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(results[1], np.std(VALUES, ddof=2), rtol=1e-12)
    np.testing.assert_allclose(results[2], np.var(VALUES, ddof=1), rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"norm": "ortho"}, {"s": (4, 6)}, {"axes": (0, 1)}])
def test_real_transforms_of_two_axes(options):
    lazy = xp.asarray(VALUES)
    half = np.fft.rfft2(VALUES, **options)
    results = evaluate(xp.fft.rfft2(lazy, **options), xp.fft.irfft2(xp.asarray(half), **options))
    np.testing.assert_allclose(results[0], half, atol=1e-12)
    np.testing.assert_allclose(results[1], np.fft.irfft2(half, **options), atol=1e-12)
    np.testing.assert_allclose(evaluate(np.fft.rfft2(lazy))[0], np.fft.rfft2(VALUES), atol=1e-12)
