"""The device itself: memory limits, endless and wild kernels, two processes, fork and CUDA, NVML, energy."""

import os
import subprocess
import sys
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest

from coppermesh.exec import xp
from coppermesh.exec.budget import RunLimits
from coppermesh.exec.device import CONTEXT_BYTES
from coppermesh.exec.errors import KernelCompileError, RunFailed
from coppermesh.exec.kernels import RawKernel
from coppermesh.exec.supervisor import InputBuffer, WorkerLimits, open_supervisor
from coppermesh.exec.tracing import trace

MEBIBYTE = 1 << 20
LIMITS = WorkerLimits(memory_bytes=512 * MEBIBYTE, output_bytes=64 * MEBIBYTE)
SPIN = RawKernel(
    'extern "C" __global__ void spin(volatile float* x) { while (x[0] == x[0]) x[0] = 1; }', "spin"
)
WILD = RawKernel('extern "C" __global__ void wild(float* x) { x[1ull << 40] = 1; }', "wild")
TRAP = RawKernel('extern "C" __global__ void trapped(float* x) { __trap(); }', "trapped")
BAD = RawKernel('extern "C" __global__ void bad(float* x) {\n x[0] = y;\n}', "bad")
SHARED = RawKernel(
    'extern "C" __global__ void much(float* x) { extern __shared__ float s[]; s[threadIdx.x] = 1; __syncthreads();'
    " x[threadIdx.x] = s[threadIdx.x]; }",
    "much",
)


def one(kernel, **options):
    x = xp.asarray(np.zeros(32, np.float32))
    kernel((1,), (32,), (x,), **options)
    return trace(x)


@asynccontextmanager
async def worker_on(gpu, tmp_path, limits=LIMITS):
    async with open_supervisor(gpu, scratch=tmp_path / "scratch") as supervisor:
        async with supervisor.worker(limits) as worker:
            yield worker, supervisor


async def run(worker, recording, wall_limit_s=60.0):
    inputs = [InputBuffer(array.nbytes, data=array.tobytes()) for array in recording.inputs]
    outcome = await worker.run(recording.program, inputs, wall_limit_s=wall_limit_s)
    values = [
        np.frombuffer(bytes(output.view), spec.numpy_dtype).reshape(spec.shape)
        for output, spec in zip(outcome.outputs, recording.checked.output_specs, strict=False)
    ]
    outcome.close()
    return outcome, values


async def still_works(worker):
    outcome, values = await run(worker, trace(xp.asarray(np.arange(4.0)) + 1))
    assert outcome.status == "ok", outcome.sentence
    np.testing.assert_array_equal(values[0], np.arange(4.0) + 1)


async def test_a_worker_of_its_own_with_device_time_and_energy(gpu, tmp_path, figure):
    began = time.perf_counter()
    async with worker_on(gpu, tmp_path) as (worker, supervisor):
        figure("zygote and first worker ready", round(time.perf_counter() - began, 2), "s")
        x = xp.asarray(np.random.default_rng(0).random((2048, 2048), dtype=np.float32))
        y = x
        for _ in range(200):
            y = y @ x
            y = y / xp.max(y)
        recording = trace(xp.sum(y))
        first, _ = await run(worker, recording)
        outcome, _ = await run(worker, recording)
        assert outcome.status == "ok", (outcome.sentence, outcome.detail)
        assert outcome.device_us is not None
        assert 0 < outcome.device_us <= outcome.wall_us
        figure("200 products of 2048 x 2048 float32: device time", outcome.device_us / 1000, "ms")
        figure("the same, first run of its worker (kernels compiled)", first.wall_us / 1000, "ms")
        figure("determinism class", outcome.determinism)
        if gpu.meter == "nvml":
            assert outcome.meter == "nvml"
            assert outcome.energy_mj is not None
            figure("the same: energy by NVML", outcome.energy_mj, "mJ")
        assert supervisor.meter.kind == gpu.meter


async def test_an_endless_kernel_ends_with_its_worker_and_the_gpu_is_usable_after(gpu, tmp_path, figure):
    async with worker_on(gpu, tmp_path) as (worker, _):
        await still_works(worker)
        pid = worker.pid
        began = time.perf_counter()
        outcome, _ = await run(worker, one(SPIN), wall_limit_s=3)
        took = time.perf_counter() - began
        assert (outcome.status, outcome.code) == ("job-failed", "wall-limit"), outcome.sentence
        assert "kernel spin" in outcome.sentence
        figure("an endless kernel with 3 s of wall time: ended after", round(took, 2), "s")
        assert took < 13
        began = time.perf_counter()
        await still_works(worker)
        figure("the next task, in a new worker", round(time.perf_counter() - began, 2), "s")
        assert worker.pid != pid


@pytest.mark.parametrize(("kernel", "name"), [(WILD, "wild"), (TRAP, "trapped")])
async def test_a_wild_kernel_is_named_and_its_worker_replaced(gpu, tmp_path, kernel, name):
    async with worker_on(gpu, tmp_path) as (worker, _):
        outcome, _ = await run(worker, one(kernel))
        assert (outcome.status, outcome.code) == ("job-failed", "kernel-crashed"), outcome.sentence
        assert f"kernel {name}" in outcome.sentence
        await still_works(worker)


async def test_device_memory_is_bounded(gpu, tmp_path):
    async with worker_on(gpu, tmp_path) as (worker, _):
        x = xp.zeros(100 * MEBIBYTE, dtype=xp.float32)
        outcome, _ = await run(worker, trace(xp.sum(x + 1)))
        assert outcome.code == "over-memory"
        await still_works(worker)


def test_the_pool_refuses_what_the_budget_did_not_see():
    code = (
        "import numpy as np; from coppermesh.exec import xp; from coppermesh.exec.tracing import trace;"
        "from coppermesh.exec.budget import RunLimits; from coppermesh.exec.cupy_runtime import CupyRuntime;"
        "r = trace(xp.sum(xp.ones(1 << 28)));"
        "CupyRuntime(memory_limit=1 << 20).run(r.checked, r.inputs, RunLimits())"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "RunFailed" in answer.stderr
    assert "more than the pool's" in answer.stderr


def test_compile_errors_have_the_users_lines(runtime):
    recording = one(BAD)
    with pytest.raises(KernelCompileError) as failure:
        runtime.run(recording.checked, recording.inputs, RunLimits())
    assert "bad(2): error" in failure.value.log


def test_shared_memory_up_to_the_devices_own_limit(runtime):
    most = runtime._device.attributes["MaxSharedMemoryPerBlockOptin"]
    recording = one(SHARED, shared_mem=min(most, 227 * 1024))
    assert runtime.run(recording.checked, recording.inputs, RunLimits()).outputs[0].all()
    if most < 227 * 1024:
        recording = one(SHARED, shared_mem=227 * 1024)
        with pytest.raises(RunFailed, match="shared memory") as failure:
            runtime.run(recording.checked, recording.inputs, RunLimits())
        assert failure.value.code == "launch-limits"


FILL = """
import cupy, sys, os, signal
free = cupy.cuda.runtime.memGetInfo()[0]
blocks = []
try:
    while True:
        blocks.append(cupy.full(1 << 24, 0x5EC2E7C0FFEE, dtype="uint64")); cupy.cuda.Device().synchronize()
        if len(blocks) * (1 << 27) > free * 0.9: break
except Exception: pass
print(len(blocks), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
SCAN = """
import cupy
found = count = 0
blocks = []
try:
    while True:
        memory = cupy.cuda.alloc(1 << 27)
        block = cupy.ndarray(1 << 24, "uint64", memory); blocks.append(block)
        found += int((block == 0x5EC2E7C0FFEE).sum()); count += 1
        if count * (1 << 27) > cupy.cuda.runtime.memGetInfo()[1] * 0.85: break
except Exception: pass
print(found, count)
"""


def test_what_one_process_leaves_in_memory_the_next_cannot_read(figure):
    filled = subprocess.run([sys.executable, "-c", FILL], check=False, capture_output=True, text=True)
    assert int(filled.stdout) > 0, filled.stderr
    found, count = map(
        int,
        subprocess.run(
            [sys.executable, "-c", SCAN], check=True, capture_output=True, text=True
        ).stdout.split(),
    )
    figure("memory of a killed process: its pattern found again by the next", found, "words")
    figure("searched", count / 8, "GiB")
    assert count > 0
    assert found == 0


FORK = """
import os, sys
from coppermesh.exec import zygote
zygote.preload("cuda")
maps = open("/proc/self/maps").read()
assert "libcuda.so" not in maps, "the driver is loaded before the fork"
assert zygote.count_threads() == 1, f"{zygote.count_threads()} threads before the fork"
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        import numpy as np
        from coppermesh.exec import xp
        from coppermesh.exec.tracing import trace
        from coppermesh.exec.budget import RunLimits
        from coppermesh.exec.cupy_runtime import CupyRuntime
        r = trace(xp.asarray(np.arange(4.0)) + 1)
        ok = CupyRuntime().run(r.checked, r.inputs, RunLimits()).outputs[0][3] == 4
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_the_driver_starts_after_the_fork_in_each_child():
    subprocess.run([sys.executable, "-c", FORK], check=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})


def test_nvmls_fields_are_real(gpu, runtime, figure):
    assert not gpu.simulated
    assert gpu.kind == "cuda"
    assert gpu.features
    assert gpu.uuid
    assert gpu.driver
    with runtime._device:
        total = runtime._cupy.cuda.runtime.memGetInfo()[1]
        capability = runtime._device.compute_capability
    assert gpu.compute_capability.replace(".", "") == capability
    assert abs(gpu.total_bytes - total) < 0.05 * total
    assert 0 < gpu.memory_bytes <= gpu.total_bytes
    for name in ("name", "driver", "uuid", "compute_capability", "meter"):
        figure(f"NVML: {name}", getattr(gpu, name))
    figure("NVML: memory", gpu.total_bytes / (1 << 30), "GiB")


def test_what_a_context_takes_of_the_memory(figure):
    code = (
        "import pynvml, cupy; pynvml.nvmlInit(); h = pynvml.nvmlDeviceGetHandleByIndex(0);"
        "before = pynvml.nvmlDeviceGetMemoryInfo(h).used; x = cupy.ones((64, 64), 'float32'); (x @ x).sum();"
        "cupy.fft.fft(x).sum(); cupy.linalg.inv(x + cupy.eye(64, dtype='float32'));"
        "cupy.cuda.Device().synchronize(); print(pynvml.nvmlDeviceGetMemoryInfo(h).used - before)"
    )
    used = int(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    )
    figure("device memory of a context with cuBLAS, cuFFT and cuSOLVER", round(used / MEBIBYTE), "MiB")
    assert used < CONTEXT_BYTES, "more than device.CONTEXT_BYTES allows for"
