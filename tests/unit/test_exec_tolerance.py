"""When two results of one program count as the same."""

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.exec.evaluate import evaluate
from coppermesh.exec.tolerance import CHAOTIC_FRACTION, output_bounds
from coppermesh.exec.tracing import trace

xp = cm.xp


def random(*shape, dtype=np.float32):
    return np.random.default_rng(1).random(shape).astype(dtype)


def test_integers_are_exact_and_the_worst_element_is_named():
    program = xp.asarray(np.arange(6).reshape(2, 3)) * 2
    [a] = evaluate(program)
    assert cm.compare(a, a.copy(), program)
    b = a.copy()
    b[1, 2] += 1
    verdict = cm.compare(a, b, program)
    assert not verdict
    assert (verdict.index, verdict.first, verdict.second) == ((1, 2), 10, 11)
    assert "DIFFERS" in str(verdict)


def test_another_order_of_summation_agrees_and_a_wrong_sum_does_not():
    values = random(64, 10_000)
    program = xp.sum(xp.asarray(values), axis=1)
    in_turn = np.cumsum(values, axis=1, dtype=np.float32)[:, -1]
    [pairwise] = evaluate(program)
    assert (in_turn != pairwise).any()
    assert cm.compare(in_turn, pairwise, program)
    assert not cm.compare(in_turn, pairwise, program, same_class=True)
    assert not cm.compare(in_turn * np.float32(1.05), pairwise, program)


def test_a_deep_program_allows_more_than_a_shallow_one():
    x = xp.asarray(random(100))
    deep = x
    for _ in range(20):
        deep = xp.tanh(deep) + x
    shallow, deeper = output_bounds(trace(x + x, deep).checked)
    assert 0 < shallow.relative < deeper.relative < 1e-2
    assert output_bounds(trace(xp.flip(x), x > 0.5).checked) == [type(shallow)(0.0, 0.0)] * 2


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_computing_in_lower_precision_is_found_out(dtype):
    values = random(50, 50, dtype=dtype)
    program = xp.asarray(values) @ xp.asarray(values)
    [honest] = evaluate(program)
    lower = honest.astype("f4" if dtype == np.float64 else "c8").astype(dtype)
    assert cm.compare(honest, honest * (1 + 1e-15), program)
    assert not cm.compare(honest, lower, program)


def test_a_few_choices_on_inexact_numbers_may_fall_otherwise():
    x = xp.asarray(random(100, 100))
    program = xp.sin(x) > 0.5
    [a] = evaluate(program)
    few, many = a.copy(), a.copy()
    few[0, :5] ^= True
    many[0, :50] ^= True
    assert cm.compare(a, few, program)
    verdict = cm.compare(a, many, program)
    assert not verdict
    assert verdict.mismatches == 0.005
    assert not cm.compare(a, few, x > 0.5)


def test_a_kernel_may_be_chaotic_in_a_stated_fraction():
    y = xp.zeros(1000, dtype=xp.float32)
    source = 'extern "C" __global__ void k(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }'
    cm.RawKernel(source, "k")((1,), (1000,), (xp.asarray(random(1000)), y))
    a = random(1000)
    b = a.copy()
    b[: int(1000 * CHAOTIC_FRACTION)] = 5
    assert cm.compare(a, b, y)
    b[:20] = 5
    assert not cm.compare(a, b, y)


def test_special_values():
    program = xp.log(xp.asarray([1.0, -1.0, 0.0]))
    a = np.array([0.0, np.nan, -np.inf])
    assert cm.compare(a, a.copy(), program)
    assert not cm.compare(a, np.array([0.0, 1.0, -np.inf]), program)
    assert not cm.compare(a, np.array([0.0, np.nan, np.inf]), program)
    assert not cm.compare(a, a.astype(np.float32), program)
    assert cm.compare(np.empty(0), np.empty(0), xp.zeros(0))


def test_several_outputs_and_wrong_counts():
    x = xp.asarray([1.0, 2.0])
    recording = trace(x + 1, xp.sum(x))
    assert cm.compare((np.array([2.0, 3.0]), np.array(3.0)), (np.array([2.0, 3.0]), np.array(3.0)), recording)
    verdict = cm.compare(
        (np.array([2.0, 3.0]), np.array(3.0)), (np.array([2.0, 3.0]), np.array(4.0)), recording
    )
    assert (bool(verdict), verdict.output) == (False, 1)
    with pytest.raises(ValueError, match="2 outputs"):
        cm.compare(np.array(1.0), np.array(1.0), recording.program)
