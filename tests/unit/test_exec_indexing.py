"""Index expressions and assignments against NumPy's own; barriers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coppermesh.exec import barrier, xp
from coppermesh.exec.errors import NeedsValue
from coppermesh.exec.evaluate import evaluate

quick = settings(max_examples=60, deadline=None)


@pytest.fixture
def values():
    with barrier.evaluator(lambda arrays: evaluate(*arrays)):
        yield


@st.composite
def arrays_and_keys(draw):
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4))
    x = np.arange(np.prod(shape), dtype="float64").reshape(shape)
    kinds = [draw(st.sampled_from("iaasn")) for _ in range(draw(st.integers(1, len(shape))))]
    common = draw(
        hnp.mutually_broadcastable_shapes(num_shapes=len(kinds), max_dims=2, min_side=0, max_side=3)
    )
    key = []
    axis = 0
    for kind, index_shape in zip(kinds, common.input_shapes, strict=True):
        length = shape[axis]
        if kind == "n":
            key.append(None)
            continue
        if kind == "s":
            key.append(draw(st.slices(length)))
        elif kind == "i":
            key.append(draw(st.integers(-length, length - 1)))
        else:
            key.append(draw(hnp.arrays("int64", index_shape, elements=st.integers(-length, length - 1))))
        axis += 1
    if draw(st.booleans()) and axis < len(shape):
        key.append(...)
    return x, tuple(key)


def lazy(key):
    return tuple(xp.asarray(item) if isinstance(item, np.ndarray) and item.ndim else item for item in key)


@quick
@given(arrays_and_keys())
def test_reading(case):
    x, key = case
    [result] = evaluate(xp.asarray(x)[lazy(key)] + 0)
    np.testing.assert_array_equal(result, x[key])
    assert result.shape == x[key].shape


@quick
@given(arrays_and_keys())
def test_writing(case):
    x, key = case
    target = xp.asarray(x)
    new = -1.0 - np.arange(x[key].size, dtype="float64").reshape(x[key].shape)
    target[lazy(key)] = new
    x[key] = new
    [result] = evaluate(target + 0)
    np.testing.assert_array_equal(result, x)


@quick
@given(
    hnp.arrays("bool", hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4)), st.integers(0, 2)
)
def test_masks(mask, more):
    x = np.arange(mask.size * 2**more, dtype="int32").reshape(mask.shape + (2,) * more)
    with barrier.evaluator(lambda arrays: evaluate(*arrays)):
        chosen = xp.asarray(x)[xp.asarray(mask) & True]
        np.testing.assert_array_equal(evaluate(chosen + 0)[0], x[mask])
        target = xp.asarray(x)
        target[xp.asarray(mask) & True] = chosen + 7
    [result] = evaluate(target + 0)
    x[mask] += 7
    np.testing.assert_array_equal(result, x)


def test_a_number_or_a_row_through_a_mask_needs_no_value():
    x = np.arange(6.0).reshape(3, 2)
    target = xp.asarray(x)
    target[xp.asarray(x[:, 0]) > 1] = np.array([8.0, 9.0])
    target[target == 8] = -1
    np.testing.assert_array_equal(evaluate(target)[0], [[0, 1], [-1, 9], [-1, 9]])


def test_indices_known_to_be_outside_are_refused_at_once():
    for key in ([4], [-5], ([0, 0], [0, 2]), np.array([1.0]), "a", 1.5):
        with pytest.raises(IndexError):
            xp.zeros((4, 2))[key]


@quick
@given(st.data())
def test_put_and_add_at(data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    length = shape[axis]
    index = data.draw(
        hnp.arrays(
            "int64", hnp.array_shapes(max_dims=2, max_side=3), elements=st.integers(-length, length - 1)
        )
    )
    x = np.arange(np.prod(shape), dtype="int64").reshape(shape)
    selected = np.take(x, index, axis=axis).shape
    values = np.arange(np.prod(selected), dtype="int64").reshape(selected)
    where = (slice(None),) * (axis % len(shape)) + (index,)
    put, added = x.copy(), x.copy()
    put[where] = values
    np.add.at(added, where, values)
    results = evaluate(xp.put(x, index, values, axis=axis), xp.add_at(x, index, values, axis=axis))
    np.testing.assert_array_equal(results[0], put)
    np.testing.assert_array_equal(results[1], added)


@quick
@given(
    hnp.arrays("float32", hnp.array_shapes(min_dims=1, max_dims=3, min_side=1), elements=st.integers(0, 9))
)
def test_topk(x):
    k = x.shape[-1] // 2
    largest, where = evaluate(*xp.topk(x, k))
    smallest, _ = evaluate(*xp.topk(x, k, largest=False))
    np.testing.assert_array_equal(largest, np.flip(np.sort(x, axis=-1), -1)[..., :k])
    np.testing.assert_array_equal(smallest, np.sort(x, axis=-1)[..., :k])
    np.testing.assert_array_equal(where, np.argsort(-x, axis=-1, stable=True)[..., :k])


def test_values_are_fetched_once_and_counted(values):
    x = xp.sum(xp.ones(3))
    before = barrier.count()
    assert float(x) == 3.0
    assert bool(x)
    assert int(x) == 3
    assert barrier.count() == before + 1
    last = barrier.barriers()[-1]
    assert last.what == "float(x)"
    assert last.source[0] == __file__
    assert float(xp.asarray(2.5)) == 2.5
    assert barrier.count() == before + 1


def test_barriers_can_be_forbidden(values):
    with barrier.evaluator(None), pytest.raises(NeedsValue):
        bool(xp.ones(()) > 0)
    assert bool(xp.ones(()) > 0)


def test_sets_and_positions(values):
    x = xp.asarray([[3, 1], [3, 0]]) + 0
    [rows, columns] = xp.nonzero(x)
    np.testing.assert_array_equal(evaluate(rows)[0], [0, 0, 1])
    np.testing.assert_array_equal(evaluate(columns)[0], [0, 1, 0])
    everything = xp.unique_all(x)
    for ours, theirs in zip(everything, np.unique_all(np.array([[3, 1], [3, 0]])), strict=True):
        np.testing.assert_array_equal(evaluate(ours)[0], theirs)
    np.testing.assert_array_equal(evaluate(xp.unique_values(x))[0], [0, 1, 3])
    np.testing.assert_array_equal(evaluate(xp.unique_counts(x).counts)[0], [1, 1, 2])
    np.testing.assert_array_equal(evaluate(xp.unique_inverse(x).inverse_indices)[0], [[2, 1], [2, 0]])
    np.testing.assert_array_equal(evaluate(xp.repeat(xp.arange(3), xp.asarray([2, 0, 1])))[0], [0, 0, 2])


def test_dlpack_both_ways(values):
    x = xp.arange(4.0) * 2
    np.testing.assert_array_equal(np.from_dlpack(x), [0, 2, 4, 6])
    np.testing.assert_array_equal(evaluate(xp.from_dlpack(np.arange(3)))[0], [0, 1, 2])
