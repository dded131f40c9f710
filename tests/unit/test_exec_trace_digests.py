"""Digests of nodes: recorded on request, equal for equal runs, and the first difference found."""

import numpy as np
import pytest

from coppermesh.exec import xp
from coppermesh.exec.budget import RunLimits
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.trace_digests import (
    NOT_RECORDED,
    TraceDigests,
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
    assert len(digests.root()) == 32
    assert digests.root() != NOT_RECORDED
    plain = NumpyRuntime().run(recording.checked, recording.inputs, RunLimits())
    np.testing.assert_array_equal(result.outputs[1], plain.outputs[1])


def test_other_inputs_are_another_chain():
    first, second = digests_of([1, 2])[2], digests_of([1, 3])[2]
    assert first.start != second.start
    with pytest.raises(ValueError, match="different inputs"):
        first_difference(first, second)


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


def test_a_chain_travels_as_bytes():
    digests = digests_of([1, 2])[2]
    assert TraceDigests.from_bytes(digests.start, digests.to_bytes()) == digests
    for start, data in ((bytes(31), b""), (bytes(32), bytes(33))):
        with pytest.raises(ValueError, match="no chain"):
            TraceDigests.from_bytes(start, data)


def test_the_root_stands_for_every_digest_and_their_order():
    digests = digests_of([1, 2])[2]
    swapped = (digests.nodes[1], digests.nodes[0], *digests.nodes[2:])
    roots = {
        TraceDigests(start, nodes).root()
        for start in (digests.start, bytes(32))
        for nodes in (digests.nodes, swapped, digests.nodes[:-1], ())
    }
    assert len(roots) == 8
    assert TraceDigests(digests.start, ()).root() == digests.start


def test_a_loop_is_one_node():
    x = xp.asarray(np.arange(4, dtype=np.float32))
    total, steps = xp.scan(lambda carry, element: (carry + element, carry * 2), x[0], x)
    recording = trace(total, steps)
    _, digests = run_with_digests(NumpyRuntime(), recording.checked, recording.inputs, RunLimits())
    assert len(digests.nodes) == len(recording.checked.nodes)
