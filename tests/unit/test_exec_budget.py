"""The budget's arithmetic: peak by liveness, exact bytes, plausible operation counts, and the runtime agreeing."""

import linecache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import coppermesh as cm
from coppermesh.exec import xp
from coppermesh.exec.budget import RunLimits, check_budget, estimate, format_bytes, lease_limits
from coppermesh.exec.errors import OverBudget
from coppermesh.exec.evaluate import evaluate
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.recorder import trace
from coppermesh.exec.runs import MOST_OPERATIONS, WorkerLimits


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


# Every refusal names the node, or the input, and the number.


def refusal(*arrays, **limits):
    recording = trace(*arrays)
    with pytest.raises(OverBudget) as caught:
        check_budget(estimate(recording.checked), RunLimits(**limits), recording.checked)
    return caught.value


def chain(length):
    x = xp.asarray(np.zeros(10))
    for _ in range(length):
        x = xp.sqrt(x)
    return x


def test_the_first_node_over_the_limit_is_named():
    error = refusal(chain(7), nodes=5)
    assert (error.code, error.node) == ("over-nodes", 5)
    expected = "node 5 (sqrt, giving float64[10]) is the first over the limit of 5 nodes; the program has 7"
    assert error.sentence.startswith(expected)
    looped = xp.scan(lambda c, _: (xp.sqrt(xp.sqrt(c)) + 1, None), xp.sqrt(chain(2)), length=2)[0]
    error = refusal(looped, nodes=4)
    assert (error.node, "node 3 (scan" in error.sentence, "has 7" in error.sentence) == (3, True, True)


def test_the_node_with_the_most_operations_is_named():
    a = xp.asarray(np.zeros((10, 20)))
    error = refusal(xp.sqrt(a @ xp.asarray(np.zeros((20, 30)))) + 1, flops=1e4)
    assert (error.code, error.node) == ("over-operations", 0)
    expected = (
        "node 0 (matmul, giving float64[10, 30]) needs about 1.2e+04 of the program's 1.3e+04 operations"
    )
    assert error.sentence == f"{expected}, the limit is 1e+04"


def test_the_largest_output_is_named():
    x = xp.asarray(np.zeros(100))
    error = refusal(xp.sum(x), xp.sqrt(x), x, output_bytes=1000)
    assert (error.code, error.node) == ("over-output", 1)
    expected = "node 1 (sqrt, giving float64[100]) gives output 1 of 800 bytes; all outputs have 1.57 KiB"
    assert error.sentence == f"{expected}, the limit is 1000 bytes"
    error = refusal(x, xp.sum(x), output_bytes=100)
    assert (error.node, error.sentence[:32]) == (None, "input 0 (float64[100]) gives out")
    left, values, right = xp.linalg.svd(xp.asarray(np.zeros((3, 40))), full_matrices=True)
    assert refusal(values + 1, left, right, output_bytes=100).sentence.startswith("node 0 (svd, ")


def test_inputs_have_a_limit_of_their_own():
    total = xp.sum(xp.asarray(np.zeros(100))) + xp.sum(xp.asarray(np.zeros(200)))
    error = refusal(total, blob_bytes=2000)
    assert (error.code, error.node) == ("over-blob-bytes", None)
    expected = "the inputs have 2.34 KiB; input 1 (float64[200]) has 1.56 KiB; the limit is 1.95 KiB"
    assert error.sentence == expected
    assert "input 1 (float64[200])" in refusal(total, memory_bytes=2000).sentence


def test_loops_in_loops_are_counted():
    def nested(depth, c):
        return c + 1 if depth == 0 else xp.scan(lambda d, _: (nested(depth - 1, d), None), c, length=2)[0]

    assert [estimate_of(nested(depth, xp.zeros(2))).depth for depth in range(4)] == [0, 1, 2, 3]
    error = refusal(nested(3, xp.zeros(2) + 1), depth=2)
    assert (error.code, error.node) == ("over-depth", 2)
    assert error.sentence == "node 2 (scan, giving float64[2]) nests loops 3 deep, the limit is 2"


def test_a_lease_limits_operations_by_its_time_and_device():
    cpu, gpu = lease_limits("cpu", 1 << 30, 60.0), lease_limits("cuda", 1 << 30, 60.0)
    assert cpu.flops < gpu.flops == lease_limits("any", 1, 60.0).flops
    assert lease_limits("cpu", 1, 6.0).flops == cpu.flops / 10
    assert (cpu.memory_bytes, cpu.output_bytes, cpu.blob_bytes) == (1 << 30,) * 3
    worker = WorkerLimits.under_lease("cpu", 1 << 30, 60.0)
    assert (worker.operations, worker.blob_bytes) == (int(cpu.flops), 1 << 30)
    assert WorkerLimits.under_lease("cuda", 1, 1e6).operations == MOST_OPERATIONS


def too_much():
    x = xp.zeros((4000, 4000), dtype="float32")
    return xp.scan(lambda c, _: (c @ c, None), x + 1, length=10**6)[0]  # the loop that never ends


def test_the_users_line_comes_with_the_refusal():
    with pytest.raises(OverBudget, match=r"node 2 \(scan.*operations.*test_exec_budget.py:\d+\)") as caught:
        evaluate(too_much())
    line = linecache.getline(__file__, int(caught.value.line.rsplit(":", 1)[1]))
    assert line.endswith("never ends\n")
    with pytest.raises(OverBudget, match="node 2") as caught:
        cm.run_local(too_much())
    assert "test_exec_budget.py:" in caught.value.line


def test_the_report_says_what_submit_would_refuse():
    y = too_much()
    assert cm.trace_report(y, device="cuda", wall_limit_s=3600).refusal == ""
    report = cm.trace_report(y, device="cpu")
    assert report.refusal.startswith("node 2 (scan, giving float32[4000, 4000]) needs about 1.3e+17 of")
    assert "test_exec_budget.py" in report.refusal
    assert f"refused    {report.refusal}" in str(report)
    assert "memory" in cm.trace_report(y, device="cuda", wall_limit_s=3600, memory_bytes=1 << 20).refusal
    assert cm.trace_report(y + 0, y + 0, y + 0, device="cuda", wall_limit_s=3600).refusal == ""
