"""What `trace_report` says before anything runs."""

import json

import coppermesh as cm
from coppermesh.exec import barrier
from coppermesh.exec.evaluate import evaluate

xp = cm.xp


def test_figures_of_a_small_program():
    x = xp.ones((100, 50), dtype="float32")
    w = xp.asarray([[0.5] * 20] * 50, dtype="float32")
    y = x @ w
    report = cm.trace_report(y, xp.sum(y))
    assert report.operations["matmul"] == 1
    assert report.nodes == sum(report.operations.values())
    assert (report.inputs, report.input_bytes) == (1, 4000)
    assert (report.outputs, report.output_bytes) == (2, 8004)
    assert report.flops >= 2 * 100 * 50 * 20
    assert report.peak_bytes >= 20_000 + 4_000 + 8_000
    assert __file__ in report.peak_line
    assert "x @ w" in report.peak_line
    assert report.features == ("array-programs",)
    assert json.loads(json.dumps(report.as_dict()))["nodes"] == report.nodes
    assert "matmul 1" in str(report)


def test_barriers_so_far_are_counted_with_their_lines():
    x = xp.ones(3)
    before = cm.trace_report(x).barriers
    with barrier.evaluator(lambda arrays: evaluate(*arrays)):
        assert xp.sum(x) > 2  # asks for a value
    report = cm.trace_report(x)
    assert report.barriers == before + 1
    assert "asks for a value" in report.recent_barriers[-1]
    assert "asks for a value" in str(report)
