"""The NumPy runtime: what it frees, what it copies, what it refuses, and that it never writes an input."""

import numpy as np
import pytest

from coppermesh.exec import xp
from coppermesh.exec.array_operations import make_table
from coppermesh.exec.budget import RunLimits
from coppermesh.exec.errors import RunFailed
from coppermesh.exec.evaluate import evaluate
from coppermesh.exec.kernels import ElementwiseKernel, RawKernel
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.operations import OPERATIONS
from coppermesh.exec.recorder import trace

ADD_ONE = RawKernel('extern "C" __global__ void add_one(const float* x, float* y) {}', "add_one")
IN_PLACE = RawKernel('extern "C" __global__ void grow(float* x) {}', "grow")


class PythonKernels:
    """Kernels written in Python, by name, so that launches can be watched."""

    def __init__(self):
        self.seen = []

    def load(self, source, name, options):
        def launch(grid, block, shared_mem, arguments):
            self.seen.append((name, grid, block, shared_mem, list(arguments)))
            if name == "add_one":
                arguments[1][...] = arguments[0] + 1
            elif name == "grow":
                arguments[0][...] += 1

        return launch


def test_every_operation_has_an_implementation():
    special = {"setitem", "put", "add_at", "scan", "raw_kernel", "elementwise_kernel", "reduction_kernel"}
    special |= {"module_kernel", "module_state", "module_set", "module_get"}
    assert make_table(np).keys() | special == OPERATIONS.keys()


def test_results_are_contiguous_arrays_even_of_one_number():
    results = evaluate(xp.sum(xp.ones(3)), xp.asarray([1, 2, 3])[1], xp.arange(6).reshape(2, 3).T)
    assert [type(result) for result in results] == [np.ndarray] * 3
    assert all(result.flags.c_contiguous for result in results)
    assert results[0].shape == results[1].shape == ()


def test_a_loop_of_assignments_copies_once():
    x = xp.asarray(np.zeros(1_000))
    for position in range(100):
        x[position] = float(position)
    recording = trace(x)
    result = NumpyRuntime().run(recording.checked, recording.inputs, RunLimits())
    np.testing.assert_array_equal(result.outputs[0][:100], np.arange(100))
    assert result.peak_bytes == 16_000
    assert not recording.inputs[0].any()


def test_memory_under_a_view_that_is_still_needed_is_not_written():
    x = xp.asarray(np.arange(6.0)) * 1.0
    window = x[::2]
    x[0] = 99.0
    results = evaluate(x, window)
    np.testing.assert_array_equal(results[1], [0, 2, 4])
    np.testing.assert_array_equal(results[0], [99, 1, 2, 3, 4, 5])


def test_written_kernel_arguments_become_new_versions():
    kernels = PythonKernels()
    x = xp.asarray(np.arange(4, dtype=np.float32))
    y = xp.empty_like(x)
    old = y.copy()
    ADD_ONE((1,), (32,), (x, y))
    IN_PLACE((1, 2), 8, (y,), shared_mem=64)
    results = evaluate(x, y, old, runtime=NumpyRuntime(kernels))
    np.testing.assert_array_equal(results[0], [0, 1, 2, 3])
    np.testing.assert_array_equal(results[1], [2, 3, 4, 5])
    np.testing.assert_array_equal(results[2], [0, 0, 0, 0])
    assert kernels.seen[1][:4] == ("grow", (1, 2, 1), (8, 1, 1), 64)


def test_a_kernel_never_writes_an_input():
    x = xp.asarray(np.zeros(4, dtype=np.float32))
    IN_PLACE((1,), (4,), (x,))
    recording = trace(x)
    result = NumpyRuntime(PythonKernels()).run(recording.checked, recording.inputs, RunLimits())
    np.testing.assert_array_equal(result.outputs[0], np.ones(4))
    assert not recording.inputs[0].any()


def test_a_version_that_nobody_needs_is_written_in_place():
    kernels = PythonKernels()
    x = xp.ones(4, dtype="float32")
    for _ in range(3):
        IN_PLACE((1,), (4,), (x,))
    [result] = evaluate(x, runtime=NumpyRuntime(kernels))
    np.testing.assert_array_equal(result, [4, 4, 4, 4])
    assert len({id(launch[4][0]) for launch in kernels.seen}) == 1


def test_an_array_read_and_written_by_one_launch_is_copied():
    x = xp.ones(4, dtype="float32")
    ADD_ONE((1,), (4,), (x, x))
    kernels = PythonKernels()
    [result] = evaluate(x, runtime=NumpyRuntime(kernels))
    np.testing.assert_array_equal(result, [2, 2, 2, 2])
    assert kernels.seen[0][4][0] is not kernels.seen[0][4][1]


def test_kernels_get_contiguous_memory():
    kernels = PythonKernels()
    x = xp.asarray(np.arange(6, dtype=np.float32).reshape(2, 3)).T
    y = xp.empty_like(x)
    ADD_ONE((1,), (6,), (x, y))
    [result] = evaluate(y, runtime=NumpyRuntime(kernels))
    np.testing.assert_array_equal(result, np.arange(6).reshape(2, 3).T + 1)
    assert all(argument.flags.c_contiguous for argument in kernels.seen[0][4])


def test_without_a_backend_kernels_are_refused():
    x = xp.ones(4, dtype="float32")
    IN_PLACE((1,), (4,), (x,))
    with pytest.raises(RunFailed) as caught:
        evaluate(x)
    assert caught.value.code == "no-kernel-backend"
    assert caught.value.node == 1


def test_an_empty_elementwise_loop_launches_nothing():
    kernels = PythonKernels()
    double = ElementwiseKernel("T x", "T y", "y = 2 * x", "double_it")
    [result] = evaluate(double(xp.zeros((0, 3))), runtime=NumpyRuntime(kernels))
    assert result.shape == (0, 3)
    assert kernels.seen == []


def test_failures_while_running_name_the_node():
    x = xp.asarray([1, 2, 3])
    with pytest.raises(RunFailed, match=r"node 3 \(take\).*out of bounds") as caught:
        evaluate(xp.take(x, xp.asarray([7])))
    assert caught.value.node == 3
    with pytest.raises(RunFailed, match="negative integer powers"):
        evaluate(x ** xp.asarray([-1, -1, -1]))


def test_wrong_inputs_are_refused():
    recording = trace(xp.asarray(np.zeros((2, 3))) + 1)
    runtime = NumpyRuntime()
    for inputs in ([], [np.zeros((3, 2))], [np.zeros((2, 3), np.float32)]):
        with pytest.raises(RunFailed) as caught:
            runtime.run(recording.checked, inputs, RunLimits())
        assert caught.value.code == "bad-input"


def test_floating_point_trouble_is_a_value_not_an_error():
    x = xp.asarray([0.0, -1.0])
    [result] = evaluate(1.0 / x + xp.log(x))
    assert np.isnan(result).all()


def test_read_only_inputs_do():
    data = np.arange(4.0)
    data.flags.writeable = False
    recording = trace(xp.asarray(data, copy=False)[::-1] * 2)
    result = NumpyRuntime().run(recording.checked, recording.inputs, RunLimits())
    np.testing.assert_array_equal(result.outputs[0], [6, 4, 2, 0])


def test_the_determinism_class_fits_a_receipt():
    text = NumpyRuntime().determinism
    assert "numpy/" in text
    assert text.isascii()
    assert len(text) <= 128
