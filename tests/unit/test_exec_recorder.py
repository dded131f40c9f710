"""The lazy array as its user meets it: versions, errors with the user's own line, values that are not there yet."""

import gc
import inspect
import sys

import numpy as np
import pytest

from coppermesh.exec import xp
from coppermesh.exec.errors import ExecError, NeedsValue, ProgramInvalid
from coppermesh.exec.evaluate import evaluate
from coppermesh.exec.kernels import ElementwiseKernel, RawKernel
from coppermesh.exec.recorder import Array, trace


def test_shape_and_dtype_are_known_at_once():
    x = xp.zeros((3, 4), dtype="float32")
    y = (x @ x.T).sum(axis=0) > 1
    assert (y.shape, y.dtype, y.ndim, y.size, y.nbytes) == ((3,), np.bool, 1, 3, 3)
    assert len(x) == 3
    assert "not computed yet" in repr(y)


@pytest.mark.parametrize(
    "ask",
    [
        bool,
        int,
        float,
        complex,
        np.asarray,
        np.array,
        lambda x: x.item(),
        lambda x: x.tolist(),
        lambda x: [1, 2, 3][x],
        lambda x: "yes" if x > 0 else "no",
        lambda x: np.from_dlpack(x),
    ],
)
def test_asking_for_a_value_says_what_to_do(ask):
    with pytest.raises(NeedsValue, match=r"not computed yet: use mesh\.compute"):
        ask(xp.asarray(1) + 1)


def test_reading_through_a_mask_says_what_to_do():
    x = xp.arange(4)
    with pytest.raises(NeedsValue, match=r"xp\.where"):
        x[x > 1]


def test_assignment_makes_a_new_version_and_old_handles_keep_theirs():
    x = xp.zeros(4)
    before = x.copy()
    part = x[1:3]
    x[1:3] = 5
    x[0] += 2
    results = evaluate(x, before, part)
    np.testing.assert_array_equal(results[0], [2, 5, 5, 0])
    np.testing.assert_array_equal(results[1], np.zeros(4))
    np.testing.assert_array_equal(results[2], np.zeros(2))


def test_a_variable_used_in_its_own_update_makes_no_cycle():
    y = xp.arange(4, dtype="float64")
    y[1:] = y[1:] + y[:-1]
    y[:] = y * y
    np.testing.assert_array_equal(evaluate(y)[0], [0, 1, 9, 25])


def test_assignment_casts_and_broadcasts_as_numpy_does():
    x, expected = xp.zeros((2, 3), dtype="int32"), np.zeros((2, 3), dtype="int32")
    for target in (x, expected):
        target[0] = np.asarray([[1.9, 2.1, -3.9]])
        target[:, 1] = 7
        target[1, 2] = np.float64(4.5)
    np.testing.assert_array_equal(evaluate(x)[0], expected)


def test_assignment_through_a_mask():
    x = xp.arange(6).reshape(2, 3)
    x[x > 3] = 0
    x[xp.asarray([True, False])] = -1
    np.testing.assert_array_equal(evaluate(x)[0], [[-1, -1, -1], [3, 0, 0]])


def test_in_place_arithmetic_keeps_shape_and_dtype():
    x = xp.ones(3, dtype="int64")
    x *= 4
    np.testing.assert_array_equal(evaluate(x)[0], [4, 4, 4])
    with pytest.raises(TypeError, match="in-place"):
        x *= 1.5
    with pytest.raises(TypeError, match="in-place"):
        x += xp.ones((2, 3), dtype="int64")


def test_iteration_and_unpacking():
    first, second = xp.arange(4).reshape(2, 2)
    np.testing.assert_array_equal(evaluate(first + second)[0], [2, 4])


@pytest.mark.parametrize(
    ("mistake", "error", "words"),
    [
        (lambda x: x + xp.zeros(7), ValueError, "do not broadcast"),
        (lambda x: x @ xp.zeros(7), ValueError, "matmul"),
        (lambda x: x.reshape(5), ValueError, "cannot take shape"),
        (lambda x: x[9], IndexError, "outside axis 0"),
        (lambda x: x["name"], IndexError, "str"),
        (lambda x: x[1.5], IndexError, "float"),
        (lambda x: x.sum(axis=3), IndexError, "axis 3"),
        (lambda x: x.astype("O"), TypeError, "object"),
        (lambda x: xp.zeros(3, dtype="S4"), TypeError, "bytes"),
        (lambda x: xp.asarray(["a"]), TypeError, "str"),
        (lambda x: xp.asarray(np.longdouble(1)), TypeError, "longdouble|float128"),
        (lambda x: xp.zeros(-1), ValueError, "negative length"),
        (lambda x: x + "a", TypeError, "unsupported operand"),
        (lambda x: xp.sin("a"), TypeError, "not an array"),
        (lambda x: xp.zeros(3, device="cuda"), ValueError, "device"),
        (lambda x: xp.bitwise_and(x, x), ValueError, "float64"),
        (lambda x: xp.full(2, np.nan, dtype="int64"), ValueError, "NaN"),
        (lambda x: xp.asarray([1], dtype="int8") + 300, OverflowError, "300"),
        (lambda x: trace(), ProgramInvalid, "at least one array"),
        (lambda x: trace(3), TypeError, "xp.asarray"),  # type: ignore[arg-type]
        (lambda x: np.linalg.eig(x), TypeError, "no counterpart"),
        (lambda x: np.add(x, x, out=np.zeros((2, 2))), TypeError, "without out="),
    ],
)
def test_mistakes_surface_where_they_are_made(mistake, error, words):
    with pytest.raises(error, match=words):
        mistake(xp.ones((2, 3)))


def test_each_node_knows_the_users_line():
    x = xp.ones(3)
    y = np.exp(x)[1:]  # the exp and the getitem of this line
    line = inspect.currentframe().f_lineno - 1
    recording = trace(y)
    assert [node.op for node in recording.checked.program.nodes] == ["full", "exp", "getitem"]
    assert recording.locate(1) == recording.locate(2) == f"{__file__}:{line}"
    assert recording.locate(0) == f"{__file__}:{line - 1}"
    assert recording.locate(99) == recording.locate(None) == ""


SOURCE = 'extern "C" __global__ void k(float* x, int n) { x[0] = n; }'


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: xp.ones(2) + xp.ones(3),
        lambda: xp.ones((2, 3)) @ xp.ones(7),
        lambda: xp.zeros(-1),
        lambda: xp.broadcast_arrays(xp.ones(2), xp.ones(3)),
        lambda: np.add(xp.ones(2), xp.ones(3)),
        lambda: xp.ones(4)[xp.asarray([0, 1]), None, xp.asarray([0, 1, 2])],
        lambda: bool(xp.ones(1) > 0),
        lambda: trace(),
        lambda: RawKernel(SOURCE, "no name"),
        lambda: RawKernel(SOURCE, "k")((1, 1, 1, 1), (1,), (xp.ones(1), 1)),
        lambda: RawKernel(SOURCE, "k")((1,), (1,), (xp.ones(1),)),
        lambda: ElementwiseKernel("float32 x", "float32 x", "x = 1"),
        lambda: xp.scan(lambda c, x: (c[:1] + 1, x), xp.ones(2), xp.ones(3)),
    ],
)
def test_an_error_of_recording_ends_with_the_users_line(mistake):
    with pytest.raises((ExecError, IndexError)) as failure:
        mistake()
    if isinstance(failure.value, ExecError):
        line = mistake.__code__.co_firstlineno
        assert str(failure.value).endswith(f" (at {__file__}:{line})")
        assert __file__ not in failure.value.sentence


def test_the_users_line_does_not_travel():
    assert b"test_exec_recorder" not in trace(xp.ones(3) + 1).program


def test_too_many_inputs_are_refused_with_the_number():
    total = xp.asarray(0.0)
    for number in range(130):
        total = total + xp.asarray(float(number))
    with pytest.raises(ProgramInvalid, match="131 inputs, at most 128"):
        trace(total)


def test_a_chain_of_100_000_nodes_does_not_recurse():
    x = xp.asarray(np.zeros(2))
    for _ in range(100_000):
        x = x + 1.0
    depth = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 150)
    try:
        [result] = evaluate(x)
        del x
        gc.collect()
    finally:
        sys.setrecursionlimit(depth)
    np.testing.assert_array_equal(result, [100_000, 100_000])


def test_the_namespace_is_the_standards():
    x = xp.ones(2)
    assert x.__array_namespace__() is xp
    assert x.__array_namespace__(api_version="2024.12") is xp
    with pytest.raises(ValueError, match="1999"):
        x.__array_namespace__(api_version="1999")
    assert xp.result_type(xp.float32, xp.int8) == np.float32
    assert xp.result_type(x, 1j) == np.complex128
    assert xp.can_cast(xp.int8, xp.int16)
    assert x.to_device("mesh") is x
    assert isinstance(xp.asarray(x), Array)
