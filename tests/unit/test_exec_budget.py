"""The budget's arithmetic: peak by liveness, exact bytes, plausible operation counts, and the runtime agreeing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coppermesh.exec import xp
from coppermesh.exec.budget import RunLimits, estimate, format_bytes
from coppermesh.exec.errors import OverBudget
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.recorder import trace


def estimate_of(*arrays):
    return estimate(trace(*arrays).checked)


def test_a_chain_holds_two_links_at_a_time():
    x = xp.asarray(np.zeros(1_000))
    for _ in range(50):
        x = xp.sqrt(x)
    cost = estimate_of(x)
    assert cost.input_bytes == cost.output_bytes == 8_000
    assert cost.peak_bytes == 3 * 8_000  # the input, one link and the next
    assert cost.nodes == 50


def test_what_is_needed_later_is_held():
    x = xp.asarray(np.zeros(1_000))
    kept = [xp.sqrt(x + float(number)) for number in range(10)]
    total = kept[0]
    for item in kept[1:]:
        total = total + item
    assert estimate_of(total, *kept).peak_bytes >= 11 * 8_000


def test_inputs_alone_may_be_the_peak():
    cost = estimate_of(xp.asarray(np.zeros(1_000)))
    assert (cost.peak_bytes, cost.peak_node, cost.flops) == (8_000, None, 0)


def test_operation_counts():
    a, b = xp.asarray(np.zeros((20, 30))), xp.asarray(np.zeros((30, 40)))
    assert estimate_of(a @ b).flops == 2 * 20 * 30 * 40
    assert estimate_of(a + 1).flops == 600
    assert 5_000 < estimate_of(xp.fft.rfft(xp.asarray(np.zeros(256)))).flops < 20_000


@pytest.mark.parametrize(
    ("count", "text"),
    [(17, "17 bytes"), (1024, "1 KiB"), (1536, "1.5 KiB"), (100 * 2**40, "100 TiB"), (3 * 2**60, "3 EiB")],
)
def test_bytes_for_a_person(count, text):
    assert format_bytes(count) == text


steps = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_the_runtime_never_holds_more_than_was_estimated(plan):
    values = [xp.asarray(np.ones((8, 8)))]
    for kind, position in plan:
        x = values[position % len(values)]
        y = values[-1]
        values.append([x + y, x.T, x @ y, x[::-1], xp.roll(x, 1), xp.where(x > y, x, y)][kind])
    recording = trace(values[-1], values[len(values) // 2])
    result = NumpyRuntime().run(recording.checked, recording.inputs, RunLimits())
    assert result.peak_bytes <= estimate(recording.checked).peak_bytes


def test_a_runtime_refuses_before_it_runs():
    recording = trace(xp.zeros(10_000) + 1)
    with pytest.raises(OverBudget):
        NumpyRuntime().run(recording.checked, [], RunLimits(memory_bytes=1_000))
