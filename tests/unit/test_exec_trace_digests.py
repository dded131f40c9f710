"""Digests of nodes: recorded on request, equal for equal runs, and the first difference found."""

import numpy as np
import pytest

from coppermesh.exec import xp
from coppermesh.exec.budget import RunLimits
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.trace_digests import (
    NOT_RECORDED,
    TraceDigests,
    find_first_difference,
    first_difference,
    run_with_digests,
)
from coppermesh.exec.tracing import trace


def digests_of(values, runtime=None):
    x = xp.asarray(np.asarray(values, dtype=np.float32))
    y = xp.zeros(4, dtype="float32")
    y[1:3] = x  # written in place by the runtime: its digest must be of what it was at its node
    y[0] = 5
    recording = trace(xp.sum(xp.sin(y) * 2), y.T)
    result, digests = run_with_digests(
        NumpyRuntime() if runtime is None else runtime, recording.checked, recording.inputs, RunLimits()
    )
    return recording, result, digests


def test_equal_runs_have_equal_roots_and_each_node_a_digest():
    recording, result, digests = digests_of([1, 2])
    assert len(digests.nodes) == len(recording.checked.nodes)
    assert len(set(digests.nodes)) == len(digests.nodes)
    assert digests_of([1, 2])[2] == digests
    assert len(digests.root) == 32
    assert digests.root != NOT_RECORDED
    plain = NumpyRuntime().run(recording.checked, recording.inputs, RunLimits())
    np.testing.assert_array_equal(result.outputs[1], plain.outputs[1])


def test_other_inputs_are_another_chain():
    first, second = digests_of([1, 2])[2], digests_of([1, 3])[2]
    assert first.start != second.start
    with pytest.raises(ValueError, match="different inputs"):
        first_difference(first, second)
    with pytest.raises(ValueError, match="different inputs"):
        find_first_difference(first.links, second.links.__getitem__)


def test_a_runtime_that_errs_is_found_at_its_node(monkeypatch):
    recording, _, honest = digests_of([1, 2])
    wrong = NumpyRuntime()
    sine = wrong._interpreter._table["sin"]
    monkeypatch.setitem(
        wrong._interpreter._table, "sin", lambda arrays, attrs: np.nextafter(sine(arrays, attrs), 9)
    )
    _, _, other = digests_of([1, 2], wrong)
    node = first_difference(honest, other)
    assert recording.checked.nodes[node].node.op == "sin"
    assert find_first_difference(honest.links, other.links.__getitem__) == node


@pytest.mark.parametrize("parted_at", [0, 1, 499, 998, 999])
def test_halving_asks_few_questions(parted_at):
    mine = TraceDigests(bytes(32), tuple(number.to_bytes(32, "big") for number in range(1000)))
    nodes = list(mine.nodes)
    nodes[parted_at] = b"?" * 32
    theirs = TraceDigests(mine.start, tuple(nodes)).links
    asked = []
    found = find_first_difference(mine.links, lambda number: asked.append(number) or theirs[number])
    assert found == parted_at
    assert len(asked) <= 13
    assert find_first_difference(mine.links, mine.links.__getitem__) is None
