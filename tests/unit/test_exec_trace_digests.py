"""Digests of nodes: recorded on request, equal for equal runs, and the first difference found."""

import numpy as np
import pytest

from coppermesh.exec import xp
from coppermesh.exec.budget import RunLimits
from coppermesh.exec.kernels import ElementwiseKernel
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.trace_digests import (
    NOT_RECORDED,
    TraceDigests,
    first_difference,
    first_unsteady,
    run_with_digests,
)
from coppermesh.exec.tracing import trace

PROGRAM, INPUTS = bytes([1]) * 32, bytes([2]) * 32
"""Names as a receipt has them."""


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
    assert len(digests.root(PROGRAM, INPUTS)) == 32
    assert digests.root(PROGRAM, INPUTS) != NOT_RECORDED
    plain = NumpyRuntime().run(recording.checked, recording.inputs, RunLimits())
    np.testing.assert_array_equal(result.outputs[1], plain.outputs[1])


def test_chains_of_different_programs_do_not_meet():
    digests = digests_of([1, 2])[2]
    with pytest.raises(ValueError, match="not of one program"):
        first_difference(digests, TraceDigests(digests.nodes[:-1]))


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
    assert TraceDigests.from_bytes(digests.to_bytes()) == digests
    with pytest.raises(ValueError, match="no chain"):
        TraceDigests.from_bytes(bytes(33))


def test_the_root_stands_for_every_digest_their_order_the_program_and_its_inputs():
    digests = digests_of([1, 2])[2]
    swapped = (digests.nodes[1], digests.nodes[0], *digests.nodes[2:])
    roots = {
        TraceDigests(nodes).root(program, inputs)
        for program, inputs in ((PROGRAM, INPUTS), (INPUTS, PROGRAM), (PROGRAM, bytes(32)))
        for nodes in (digests.nodes, swapped, digests.nodes[:-1], ())
    }
    assert len(roots) == 12
    with pytest.raises(ValueError, match="no names"):
        digests.root(PROGRAM, INPUTS[:31])


def test_a_loop_is_one_node():
    x = xp.asarray(np.arange(4, dtype=np.float32))
    total, steps = xp.scan(lambda carry, element: (carry + element, carry * 2), x[0], x)
    recording = trace(total, steps)
    _, digests = run_with_digests(NumpyRuntime(), recording.checked, recording.inputs, RunLimits())
    assert len(digests.nodes) == len(recording.checked.nodes)


def test_from_a_kernel_on_bits_may_vary():
    x = xp.asarray(np.arange(4, dtype=np.float32))
    square = ElementwiseKernel("float32 x", "float32 y", "y = x * x", "square")
    checked = trace(xp.sin(square(x + 1))).checked
    assert checked.nodes[first_unsteady(checked, "cpu")].call.kernel is not None
    looped, _ = xp.scan(lambda carry, element: (carry + square(element), carry), x[0], x)
    assert first_unsteady(trace(looped).checked, "cpu") == len(trace(looped).checked.nodes) - 1
    assert first_unsteady(trace(xp.sin(x)).checked, "cpu") is None


@pytest.mark.parametrize(("dtype", "varies"), [("float32", True), ("int32", False)])
def test_a_gpu_adds_floats_in_any_order(dtype, varies):
    x = xp.add_at(xp.zeros(3, dtype=dtype), xp.asarray([0, 0]), xp.asarray(np.ones(2, dtype)))
    checked = trace(x).checked
    assert (first_unsteady(checked, "cuda") is not None) is varies
    assert first_unsteady(checked, "cpu") is None
