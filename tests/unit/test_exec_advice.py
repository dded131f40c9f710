"""What a namespace advises instead of a NumPy function that it lacks: the expressions give what NumPy gives."""

import numpy as np
import pytest

from coppermesh.exec import barrier, xp
from coppermesh.exec.errors import NeedsValue, ProgramInvalid
from coppermesh.exec.evaluate import evaluate
from coppermesh.exec.kernels import RawKernel
from coppermesh.exec.xp_advice import LINALG_ADVICE, NUMPY_ADVICE

ROW = np.array([0.5, -1.5, 2.0, 0.0, -3.25])
OTHER = np.array([2.0, 0.5, -1.0])
SQUARE = np.arange(9.0).reshape(3, 3) - 4
HOLES = np.array([1.0, np.nan, 3.0])

CASES = {
    "argwhere": (SQUARE,),
    "bincount": (np.array([0, 2, 2, 3]),),
    "cbrt": (ROW,),
    "column_stack": (OTHER, OTHER * 2),
    "convolve": (ROW, OTHER),
    "cross": (OTHER, OTHER + 1),
    "cumprod": (ROW,),
    "deg2rad": (ROW,),
    "diagonal": (SQUARE,),
    "digitize": (ROW,),
    "dstack": (SQUARE, SQUARE * 2),
    "ediff1d": (ROW,),
    "fix": (ROW,),
    "flatnonzero": (SQUARE,),
    "fliplr": (SQUARE,),
    "flipud": (SQUARE,),
    "fmod": (ROW, np.array([0.3, 0.4, -0.7, 1.0, 2.0])),
    "heaviside": (ROW, 0.5),
    "inner": (SQUARE, OTHER),
    "isin": (ROW, np.array([2.0, 0.0])),
    "nan_to_num": (HOLES,),
    "nansum": (HOLES,),
    "ptp": (ROW,),
    "rad2deg": (ROW,),
    "rint": (ROW,),
    "rot90": (SQUARE,),
    "sinc": (ROW,),
    "vdot": (SQUARE, SQUARE * 2),
}
BINS = np.array([-2.0, 0.0, 1.0])


def expected(name, given):
    if name in ("column_stack", "dstack"):
        return getattr(np, name)(given)
    return getattr(np, name)(*given, *((BINS,) if name == "digitize" else ()))


@pytest.mark.parametrize("name", CASES)
def test_the_expression_gives_what_numpy_gives(name):
    given = CASES[name]
    names = {"xp": xp, "n": 4, "bins": xp.asarray(BINS)}
    names |= zip("xy", (xp.asarray(item) for item in given), strict=False)
    with barrier.evaluator(lambda arrays: evaluate(*arrays)):
        got = eval(NUMPY_ADVICE[name].removeprefix("use "), names)  # noqa: S307 - our own words
        np.testing.assert_allclose(np.asarray(got), expected(name, given), rtol=1e-12, atol=1e-12)


def test_a_least_squares_fit():
    tall = np.random.default_rng(0).normal(size=(6, 3))
    names = {"xp": xp, "x": xp.asarray(tall), "y": xp.asarray(ROW[[0, 1, 2, 3, 4, 0]])}
    lazy = eval(LINALG_ADVICE["lstsq"].removeprefix("use "), names)  # noqa: S307 - our own words
    [got] = evaluate(lazy)
    np.testing.assert_allclose(got, np.linalg.lstsq(tall, ROW[[0, 1, 2, 3, 4, 0]], rcond=None)[0], rtol=1e-10)


@pytest.mark.parametrize("name", NUMPY_ADVICE)
def test_advice_is_for_what_numpy_has_and_the_namespace_has_not(name):
    assert hasattr(np, name) or name == "asscalar"
    with pytest.raises(AttributeError) as missing:
        getattr(xp, name)
    assert NUMPY_ADVICE[name] in str(missing.value)


def test_numpys_own_functions_give_the_same_advice():
    x = xp.asarray(ROW)
    with pytest.raises(TypeError, match=r"np\.percentile has no counterpart .* use xp\.sort"):
        np.percentile(x, 50)
    with pytest.raises(TypeError, match=r"np\.linalg\.lstsq has no counterpart .* use xp\.linalg\.pinv"):
        np.linalg.lstsq(xp.asarray(SQUARE), xp.asarray(OTHER))
    with pytest.raises(AttributeError, match="eigvalsh"):
        getattr(xp.linalg, "eigvals")  # noqa: B009 - a type checker knows that there is none


def test_a_wrong_method_is_told_and_suggested():
    with pytest.raises(AttributeError) as missing:
        xp.asarray(ROW).summ  # noqa: B018
    assert (missing.value.name, isinstance(missing.value.obj, xp.Array)) == ("summ", True)


def test_a_value_is_formatted_and_rounded():
    with barrier.evaluator(lambda arrays: evaluate(*arrays)):
        total = xp.sum(xp.asarray(ROW))
        assert (f"{total:.3f}", round(total), "float64" in f"{total}") == ("-2.250", -2, True)
        assert float(round(total, 1)) == -2.2
        assert xp.arange(xp.asarray(3)).dtype == np.int64
        assert xp.arange(np.asarray(3)).dtype == np.int64


def test_what_a_value_is_needed_for_where_none_can_be():
    with pytest.raises(NeedsValue, match=r"with cm.connect"):
        bool(xp.sum(xp.asarray(ROW) * 2))
    with pytest.raises(NeedsValue, match=r"map or scan is recorded before there is data: .*xp.where"):
        xp.scan(lambda c, _: (c + 1 if c > 0 else c, None), xp.asarray(1), length=4)
    with pytest.raises(ValueError, match="it has no arrays"):
        xp.scan(lambda c, _: (c, None), xp.asarray(1))


def test_errors_name_the_operation_and_what_to_round():
    with pytest.raises(ProgramInvalid, match="subtract: argument is bool"):
        xp.asarray([True]) - xp.asarray([False])
    kernel = RawKernel('extern "C" __global__ void k(float* x) { x[0] = 1; }', "k")
    with pytest.raises(ProgramInvalid, match=r"whole numbers, not \(1\.5,\): round up"):
        kernel((1.5,), (32,), (xp.zeros(4, dtype=np.float32),))
    with pytest.raises(ProgramInvalid, match="the source has no kernel 'j'; its kernels are k"):
        RawKernel(kernel.code, "j")
