"""What the runtime costs over bare CuPy, both measured here and now, in turns, by medians."""

import os
import statistics
import time
from functools import partial

import numpy as np

from coppermesh.exec import xp
from coppermesh.exec.budget import RunLimits
from coppermesh.exec.cupy_runtime import CupyRuntime
from coppermesh.exec.kernels import RawKernel
from coppermesh.exec.tracing import trace

LIMITS = RunLimits()
SOURCE = """
extern "C" __global__ void work(float* x, int rounds) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float v = x[i];
    for (int r = 0; r < rounds; r++) v = v * 0.999f + 0.5f;
    x[i] = v;
}
"""


def medians(rounds, **actions):
    """Milliseconds of each action, taken in turns."""
    times = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def test_the_fixed_cost_of_a_warm_task(runtime, figure):
    data = np.arange(1000, dtype=np.float32)
    recording = trace(xp.sum(xp.asarray(data) * 2 + 1))
    cupy = runtime._cupy

    def bare():
        with runtime._device, runtime._stream:
            return cupy.asnumpy(cupy.sum(cupy.asarray(data) * np.float32(2) + np.float32(1)))

    def ours():
        return runtime.run(recording.checked, recording.inputs, LIMITS).outputs[0]

    for _ in range(20):
        np.testing.assert_allclose(bare(), ours(), rtol=1e-6)
    cost = medians(200, bare=bare, ours=ours)
    figure("a warm task of three operations: bare CuPy", round(cost["bare"], 3), "ms")
    figure("a warm task of three operations: the runtime", round(cost["ours"], 3), "ms")
    assert cost["ours"] - cost["bare"] < 1.0


def test_kernels_of_20_ms_and_more(runtime, figure):
    cupy = runtime._cupy
    size, block = 1 << 20, 256
    kernel = RawKernel(SOURCE, "work")
    rounds = 1000

    with runtime._device, runtime._stream:
        raw = cupy.RawKernel(SOURCE, "work")
        device = cupy.zeros(size, "float32")

    def bare(rounds):
        with runtime._device, runtime._stream:
            raw((size // block,), (block,), (device, np.int32(rounds)))
            runtime._stream.synchronize()

    bare(rounds)
    while medians(3, bare=partial(bare, rounds))["bare"] < 30:
        rounds *= 2

    def record():
        x = xp.zeros(size, dtype=xp.float32)
        kernel((size // block,), (block,), (x, np.int32(rounds)))
        return trace(xp.sum(x))

    recording = record()

    def bare_task():
        with runtime._device, runtime._stream:
            x = cupy.zeros(size, "float32")
            raw((size // block,), (block,), (x, np.int32(rounds)))
            return cupy.asnumpy(cupy.sum(x))

    def ours():
        return runtime.run(recording.checked, recording.inputs, LIMITS).outputs[0]

    for _ in range(3):
        np.testing.assert_allclose(bare_task(), ours(), rtol=1e-5)
    cost = medians(21, bare=bare_task, ours=ours)
    figure("a kernel of 20 ms and more: bare CuPy", round(cost["bare"], 3), "ms")
    figure("a kernel of 20 ms and more: the runtime", round(cost["ours"], 3), "ms")
    assert cost["bare"] >= 20
    assert cost["ours"] <= 1.03 * cost["bare"]


def test_a_thousand_small_launches(runtime, figure):
    """What waiting after each kernel costs: told, not bounded."""
    cupy = runtime._cupy
    kernel = RawKernel(SOURCE, "work")
    x = xp.zeros(1024, dtype=xp.float32)
    for _ in range(1000):
        kernel((4,), (256,), (x, np.int32(1)))
    recording = trace(x)
    with runtime._device, runtime._stream:
        raw = cupy.RawKernel(SOURCE, "work")

    def bare():
        with runtime._device, runtime._stream:
            y = cupy.zeros(1024, "float32")
            for _ in range(1000):
                raw((4,), (256,), (y, np.int32(1)))
            return cupy.asnumpy(y)

    def ours():
        return runtime.run(recording.checked, recording.inputs, LIMITS).outputs[0]

    np.testing.assert_array_equal(bare(), ours())
    cost = medians(9, bare=bare, ours=ours)
    figure("1,000 small launches: bare CuPy, not waited for", round(cost["bare"], 2), "ms")
    figure("1,000 small launches: the runtime, each waited for", round(cost["ours"], 2), "ms")


def test_kept_inputs_are_not_sent_again(figure, tmp_path):
    runtime = CupyRuntime(memory_limit=4 << 30)
    path = tmp_path / "weights"
    data = np.random.default_rng(0).random(1 << 26, dtype=np.float32)
    data.tofile(path)
    recording = trace(xp.sum(xp.asarray(data)))
    descriptor = os.open(path, os.O_RDONLY)
    try:

        def task(files):
            return runtime.run(recording.checked, recording.inputs, LIMITS, files=files).outputs[0]

        task([descriptor])
        cost = medians(7, sent=lambda: task([None]), kept=lambda: task([descriptor]))
    finally:
        os.close(descriptor)
    figure("a task on 256 MiB: sent", round(cost["sent"], 2), "ms")
    figure("a task on 256 MiB: kept on the device", round(cost["kept"], 2), "ms")
    assert runtime._inputs.uploaded_bytes == 8 * data.nbytes
    assert cost["kept"] < cost["sent"]
