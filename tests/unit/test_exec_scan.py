"""The structured loop: against the same loop unrolled, and what it refuses."""

import msgpack
import numpy as np
import pytest

from coppermesh.exec import barrier, xp
from coppermesh.exec.budget import estimate
from coppermesh.exec.errors import NeedsValue, ProgramInvalid, RunFailed
from coppermesh.exec.evaluate import evaluate
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.program import MAX_BODY_DEPTH, decode_program
from coppermesh.exec.runtime import RunLimits
from coppermesh.exec.schema import check_program
from coppermesh.exec.tracing import trace


def test_against_the_unrolled_loop():
    rng = np.random.default_rng(0)
    xs, weights, start = rng.normal(size=(7, 3)), rng.normal(size=(3, 3)), rng.normal(size=3)

    def body(state, x):
        new = xp.tanh(state @ xp.asarray(weights) + x)
        return new, (new * 2, xp.sum(new))

    last, (doubled, sums) = xp.scan(body, xp.asarray(start), xp.asarray(xs))
    states = []
    state = start
    for x in xs:
        state = np.tanh(state @ weights + x)
        states.append(state)
    results = evaluate(last, doubled, sums)
    np.testing.assert_array_equal(results[0], state)
    np.testing.assert_array_equal(results[1], np.array(states) * 2)
    np.testing.assert_array_equal(results[2], np.sum(states, axis=1))


def test_trees_lengths_and_counters():
    start = {"n": xp.zeros((), dtype="int64"), "pair": (xp.ones(2), None)}
    (end, nothing) = xp.scan(
        lambda c, _: ({"n": c["n"] + 1, "pair": (c["pair"][0] * 2, None)}, None), start, length=10
    )
    assert nothing is None
    assert end["pair"][1] is None
    results = evaluate(end["n"], end["pair"][0])
    assert results[0] == 10
    np.testing.assert_array_equal(results[1], [1024, 1024])
    end, ys = xp.scan(lambda c, x: (c, x), xp.ones(3), xp.zeros((0, 2)))
    assert ys.shape == (0, 2)
    np.testing.assert_array_equal(evaluate(end, ys)[0], np.ones(3))
    same, first = xp.scan(lambda c, x: ((c[1], c[1]), 7.0), (xp.zeros(2), xp.ones(2)), xp.arange(3))
    assert evaluate(*same, first)[2].tolist() == [7, 7, 7]


def test_nested_and_in_place():
    def inner(row, k):
        row = row.copy()
        row[0] += k
        row[xp.asarray([1])] = row[0]
        return row, None

    def outer(table, row):
        row, _ = xp.scan(inner, row, xp.arange(4.0))
        table = table + row
        return table, row

    rows = np.arange(6.0).reshape(3, 2)
    table, out = evaluate(*xp.scan(outer, xp.zeros(2), xp.asarray(rows)))
    expected = np.stack([rows[:, 0] + 6, rows[:, 0] + 6], axis=1)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(table, expected.sum(axis=0))


def test_a_long_loop_is_one_node_and_stays_within_its_estimate():
    def body(x, _):
        x = x.copy()
        x[0] = x[1] * 0.5
        return xp.flip(x) + 1, x[::2]

    program = trace(*xp.scan(body, xp.ones(1_000), length=50))
    assert len(program.checked.nodes) <= 3
    cost = estimate(program.checked)
    result = NumpyRuntime().run(program.checked, program.inputs, RunLimits())
    assert 0 < result.peak_bytes <= cost.peak_bytes
    longer = estimate(trace(*xp.scan(body, xp.ones(1_000), length=5_000)).checked)
    assert 90 < longer.flops / cost.flops < 101


def test_what_is_computed_outside_is_computed_once():
    x = xp.asarray(np.ones((4, 4)))

    def body(c, _):
        return c @ (x @ x), None

    recording = trace(xp.scan(body, xp.ones((4, 4)), length=3)[0])
    assert [node.node.op for node in recording.checked.nodes].count("matmul") == 1


def test_refusals():
    ones = xp.ones(3)
    with pytest.raises(ProgramInvalid) as caught:
        xp.scan(lambda c, _: (xp.concat([c, c]), None), ones, length=2)
    assert caught.value.code == "scan-growth"
    with pytest.raises(ProgramInvalid) as caught:
        xp.scan(lambda c, _: (c.astype("float32"), None), ones, length=2)
    assert caught.value.code == "scan-growth"
    with pytest.raises(TypeError, match="carry"):
        xp.scan(lambda c, _: ((c, c), None), ones, length=2)
    with pytest.raises(TypeError, match="two things"):
        xp.scan(lambda c, _: c, ones, length=2)
    with pytest.raises(ValueError, match="length"):
        xp.scan(lambda c, x: (c, None), ones, (xp.ones(2), xp.ones(3)))
    with pytest.raises(ValueError, match="length"):
        xp.scan(lambda c, x: (c, None), ones)
    with barrier.evaluator(lambda arrays: evaluate(*arrays)), pytest.raises(NeedsValue):
        xp.scan(lambda c, _: (c if bool(c[0] > 0) else -c, None), ones, length=2)


def test_an_array_of_the_body_is_of_no_use_outside():
    kept = []
    xp.scan(lambda c, _: (kept.append(c) or c + 1, None), xp.ones(3), length=2)
    with pytest.raises(ProgramInvalid):
        trace(kept[0])


def nest(depth):
    return xp.scan(lambda c, _: (nest(depth - 1) + c if depth else c + 1, None), xp.ones(()), length=2)[0]


def test_depth_is_bounded():
    def nested(depth, c):
        if depth == 0:
            return c + 1
        return xp.scan(lambda inner, _: (nested(depth - 1, inner), None), c, length=3)[0]

    assert evaluate(nested(MAX_BODY_DEPTH, xp.zeros(())))[0] == 3**MAX_BODY_DEPTH
    with pytest.raises(ProgramInvalid) as caught:
        nested(MAX_BODY_DEPTH + 1, xp.zeros(()))
    assert caught.value.code == "scan-depth"


def test_a_failing_step_names_the_loop():
    x = xp.asarray(np.arange(3.0))
    y = xp.scan(lambda c, i: (c + xp.take(x, i), None), xp.zeros(()), xp.asarray([0, 1, 9]))[0]
    with pytest.raises(RunFailed) as caught:
        evaluate(y)
    assert caught.value.node == 1
    assert "step 2 of the loop" in caught.value.sentence


def test_a_body_has_one_encoding():
    recording = trace(xp.scan(lambda c, _: (c + 1, None), xp.ones(3), length=2)[0])
    document = msgpack.unpackb(recording.program)
    body = document[3][-1][1][0]
    assert check_program(decode_program(recording.program)).nodes[-1].call.body is not None
    document[3][-1][1][0] = body[:1] + b"\xd0\x01" + body[2:]
    with pytest.raises(ProgramInvalid) as caught:
        check_program(decode_program(msgpack.packb(document)))
    assert caught.value.code == "program-not-canonical"
