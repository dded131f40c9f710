"""The CuPy runtime on a stand-in for CuPy: what it asks for, in which order, and what it makes of errors.

No GPU is involved and nothing here says how CUDA behaves; `tests/gpu` does, where there is one.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from coppermesh.exec import cupy_runtime, xp
from coppermesh.exec.budget import RunLimits, estimate
from coppermesh.exec.cupy_errors import explain_compile
from coppermesh.exec.cupy_runtime import POOL_SLACK_BYTES, CupyRuntime, LostRuntime
from coppermesh.exec.errors import ExecError, KernelCompileError, KernelCrashed, RunFailed
from coppermesh.exec.kernels import RawKernel, RawModule
from coppermesh.exec.loop_kernels import ElementwiseKernel, ReductionKernel
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.tracing import trace

_spec = importlib.util.spec_from_file_location("cupy_stand_in", Path(__file__).with_name("cupy_stand_in.py"))
assert _spec is not None
assert _spec.loader is not None
stand_in = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stand_in)

GROW = RawKernel('extern "C" __global__ void grow(float* x) {}', "grow")


@pytest.fixture
def gpu(monkeypatch):
    gpu = stand_in.StandInGpu()
    for name, module in gpu.modules().items():
        monkeypatch.setitem(sys.modules, name, module)

    def grow(grid, block, arguments, shared_mem):
        arguments[0][...] += 1

    gpu.kernels["grow"] = grow
    return gpu


def run(runtime, *arrays, inputs=None, files=(), watch=None):
    recording = trace(*arrays)
    return runtime.run(
        recording.checked,
        recording.inputs if inputs is None else inputs,
        RunLimits(),
        watch=watch,
        files=files,
    )


def test_importing_the_module_does_not_import_cupy():
    code = "import sys, coppermesh.exec.cupy_runtime; sys.exit('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_without_cupy_the_error_names_it():
    with pytest.raises(ModuleNotFoundError, match="cupy"):
        CupyRuntime()


def programs():
    x = xp.asarray(np.linspace(-3, 3, 60, dtype=np.float32).reshape(3, 4, 5))
    i = xp.asarray(np.array([4, 0, 2]))
    y = x + 0
    y[1] = 7.0
    yield xp.sum(xp.sin(x) * 2 + xp.abs(x), axis=1)
    yield xp.take(x, i, axis=2)
    yield xp.sort(xp.concat([x, x * 2], axis=0), axis=1, descending=True)
    yield xp.linalg.inv(xp.matmul(x[0], xp.matrix_transpose(x[0])) + xp.eye(4, dtype=xp.float32))
    yield xp.fft.rfft(x, axis=-1)
    yield xp.permute_dims(y, (2, 0, 1))
    yield xp.erf(x)
    yield xp.searchsorted(xp.arange(10), xp.asarray(np.array([3, 11])))
    yield xp.pad(x[0], ((1, 1), (2, 0)))
    yield xp.where(x > 0, x, 0.5)
    yield xp.var(x, axis=(0, 2), correction=1)
    yield xp.broadcast_to(xp.sum(x, axis=0, keepdims=True), (3, 4, 5))


@pytest.mark.parametrize("number", range(12))
def test_programs_give_what_the_numpy_runtime_gives(gpu, number):
    program = list(programs())[number]
    expected = run(NumpyRuntime(), program).outputs[0]
    result = run(CupyRuntime(), program)
    assert type(result.outputs[0]) is np.ndarray
    np.testing.assert_array_equal(result.outputs[0], expected)
    assert isinstance(result.device_us, int)
    assert gpu.log.count("event") == 2


def test_loops_and_watching(gpu):
    def body(carry, element):
        return carry + element, carry * element

    state, stack = xp.scan(body, xp.asarray(np.float64(1)), xp.arange(6, dtype=xp.float64))
    seen = []
    result = run(CupyRuntime(), state, stack, watch=lambda number, arrays: seen.append((number, arrays)))
    expected = run(NumpyRuntime(), state, stack)
    for one, other in zip(result.outputs, expected.outputs, strict=True):
        np.testing.assert_array_equal(one, other)
    assert seen
    assert all(type(array) is np.ndarray for _, arrays in seen for array in arrays)


def test_the_pool_has_the_leases_limit_and_the_stream_does_not_block(gpu):
    CupyRuntime(memory_limit=1 << 20)
    assert gpu.log[0] == f"limit {(1 << 20) + POOL_SLACK_BYTES}"
    # `need_stream` holds every later call to device and stream, in all tests here.


def test_singular_matrices_raise_as_in_numpy(gpu):
    with pytest.raises(RunFailed, match="Singular") as failure:
        run(CupyRuntime(), xp.linalg.inv(xp.zeros((3, 3))))
    assert failure.value.code == "run-failed"
    assert "errstate {'linalg': 'raise'}" in gpu.log  # CuPy leaves the check out otherwise


# Memory


def test_an_input_is_written_in_place_after_its_last_use_and_the_callers_array_never(gpu):
    x = xp.asarray(np.zeros(1 << 18, np.float32))
    y = x + 0  # x is used once, then a chain of assignments
    y[3] = 1.0
    recording = trace(y)
    CupyRuntime().run(recording.checked, recording.inputs, RunLimits())
    assert not recording.inputs[0].any()
    gpu.pool.peak = 0
    z = xp.asarray(np.zeros(1 << 18, np.float32))
    z[3] = 1.0
    recording = trace(z)
    result = CupyRuntime().run(recording.checked, recording.inputs, RunLimits())
    assert result.outputs[0][3] == 1
    assert not recording.inputs[0].any()
    assert gpu.pool.peak < 1.5 * (1 << 20), "one copy on the device, written where it lies"


def test_what_is_used_again_or_twice_is_copied(gpu):
    x = xp.asarray(np.zeros(1 << 16, np.float32))
    before = x + 1
    x[0] = 5.0
    recording = trace(x, before, xp.asarray(recording_input := np.ones(4, np.float32)))
    outputs = CupyRuntime().run(recording.checked, recording.inputs, RunLimits()).outputs
    assert outputs[0][0] == 5
    assert outputs[1][0] == 1
    np.testing.assert_array_equal(outputs[2], recording_input)


def test_inputs_are_let_go_of_after_their_last_use(gpu):
    size = 1 << 20
    arrays = [xp.asarray(np.full(size // 8, float(n))) for n in range(8)]
    total = xp.zeros(size // 8)
    for array in arrays:
        total = total + array
    recording = trace(total)
    held = []
    runtime = CupyRuntime()
    runtime.run(recording.checked, recording.inputs, RunLimits(), watch=lambda *_: held.append(gpu.pool.used))
    assert held[-1] < held[0], "the sum of all needs fewer arrays than the first sum"
    assert held[-1] <= 4 * size
    assert gpu.pool.used == 0, "nothing stays between tasks"


def test_what_is_held_is_within_the_estimate(gpu):
    for program in programs():
        recording = trace(program)
        result = CupyRuntime().run(recording.checked, recording.inputs, RunLimits())
        assert result.peak_bytes <= estimate(recording.checked).peak_bytes


def test_over_the_pools_limit_is_the_jobs_failure_with_numbers(gpu):
    x = xp.asarray(np.zeros(1 << 22, np.uint8))
    recording = trace(x + x)
    runtime = CupyRuntime(memory_limit=1 << 20)
    gpu.pool.limit = 6 << 20
    with pytest.raises(RunFailed, match="4 MiB of device memory beside 4 MiB held") as failure:
        runtime.run(recording.checked, recording.inputs, RunLimits())
    assert failure.value.code == "memory-limit"
    assert failure.value.node == 0
    gpu.pool.limit = 64 << 20
    assert runtime.run(recording.checked, recording.inputs, RunLimits()).outputs[0].size == 1 << 22


def test_a_gpu_that_others_have_filled_is_this_machines_failure(gpu):
    gpu.memory = 5 << 20
    x = xp.asarray(np.zeros(1 << 22, np.uint8))
    with pytest.raises(RunFailed, match="something else on this machine") as failure:
        run(CupyRuntime(memory_limit=1 << 30), x + x)
    assert failure.value.code == "device-memory"


def test_large_free_blocks_go_back_between_tasks_and_small_ones_stay(gpu, monkeypatch):
    runtime = CupyRuntime()
    run(runtime, xp.asarray(np.zeros(1000)) + 1)
    assert "free all blocks" not in gpu.log
    monkeypatch.setattr(cupy_runtime, "IDLE_POOL_BYTES", 100)
    run(runtime, xp.asarray(np.zeros(1000)) + 1)
    assert gpu.log[-1] == "free all blocks"


# Inputs that are kept


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights"
    np.arange(1 << 16, dtype=np.float32).tofile(path)
    return path


def with_file(runtime, path, descriptor=None):
    """The sum of a file's numbers plus one, in place where that is allowed."""
    data = np.fromfile(path, np.float32)
    x = xp.asarray(data)
    x[0] = x[0] + 1
    own = os.open(path, os.O_RDONLY) if descriptor is None else descriptor
    try:
        return float(run(runtime, xp.sum(x), files=[own]).outputs[0])
    finally:
        if descriptor is None:
            os.close(own)


def test_a_file_is_sent_once_per_lease_and_never_written(gpu, weights):
    runtime = CupyRuntime(memory_limit=1 << 30)
    first = with_file(runtime, weights)
    assert [with_file(runtime, weights) for _ in range(3)] == [first] * 3
    assert runtime._inputs.uploaded_bytes == 1 << 18


def test_a_changed_or_replaced_file_is_sent_again(gpu, weights, tmp_path):
    runtime = CupyRuntime(memory_limit=1 << 30)
    first = with_file(runtime, weights)
    other = tmp_path / "other"
    np.ones(1 << 16, np.float32).tofile(other)
    other.replace(weights)
    assert with_file(runtime, weights) == (1 << 16) + 1 != first
    with weights.open("r+b") as file:
        file.write(np.float32(100).tobytes())
    assert with_file(runtime, weights) == (1 << 16) + 100
    assert runtime._inputs.uploaded_bytes == 3 << 18


def test_memory_files_small_files_and_no_files_are_not_kept(gpu, weights, tmp_path):
    runtime = CupyRuntime(memory_limit=1 << 30)
    memory = os.memfd_create("input")
    os.write(memory, weights.read_bytes())
    with_file(runtime, weights, memory)
    os.close(memory)
    small = tmp_path / "small"
    np.ones(16, np.float32).tofile(small)
    with_file(runtime, small)
    assert runtime._inputs.held_bytes == 0


def test_kept_inputs_give_way_and_close_their_files(gpu, tmp_path):
    descriptors = len(os.listdir("/proc/self/fd"))
    runtime = CupyRuntime(memory_limit=1 << 20)
    for number in range(6):
        path = tmp_path / str(number)
        np.full(1 << 16, number, np.float32).tofile(path)
        with_file(runtime, path)
    # 1 MiB: 256 KiB for the program's own input, as much for its copy, so two others fit beside it.
    assert runtime._inputs.held_bytes <= 1 << 20
    assert runtime._inputs.held_bytes >= 2 << 18
    assert len(os.listdir("/proc/self/fd")) - descriptors <= 4
    runtime._inputs.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_without_a_limit_that_is_known_only_the_inputs_of_the_task_stay(gpu, tmp_path):
    runtime = CupyRuntime()
    for number in range(3):
        path = tmp_path / str(number)
        np.full(1 << 16, number, np.float32).tofile(path)
        with_file(runtime, path)
    assert runtime._inputs.held_bytes == 1 << 18


# Kernels


def grow_program(size=8):
    x = xp.asarray(np.zeros(size, np.float32))
    GROW((1,), (size,), (x,))
    return x


def test_a_kernel_writes_its_argument_and_is_compiled_once_and_waited_for(gpu):
    runtime = CupyRuntime()
    for _ in range(3):
        np.testing.assert_array_equal(run(runtime, grow_program()).outputs[0], np.ones(8))
    assert gpu.log.count("compile grow") == 1
    assert gpu.log.count("wait") == 3


def test_the_black_box_says_which_kernel_runs(gpu):
    notes = []
    gpu.kernels["grow"] = lambda *_: notes.append("running")
    run(CupyRuntime(note=notes.append), grow_program())
    assert notes == ["kernel grow", "running", ""]


def test_a_wild_kernel_is_named_and_the_runtime_is_not_used_again(gpu):
    runtime = CupyRuntime()
    gpu.kernels["grow"] = lambda *_: gpu.fault(700)
    with pytest.raises(KernelCrashed, match="kernel grow touched memory outside its arrays") as failure:
        run(runtime, grow_program())
    assert failure.value.node == 0
    gpu.poison = gpu.pending = None  # it does not even ask
    with pytest.raises(RunFailed, match="lost in an earlier run") as later:
        run(runtime, xp.ones(3))
    assert later.value.code == "device-lost"


def test_a_broken_gpu_is_this_machines_failure(gpu):
    runtime = CupyRuntime()
    gpu.fault(214)
    with pytest.raises(RunFailed, match="the GPU cannot be used") as failure:
        run(runtime, xp.asarray(np.ones(3)) + 1)
    assert failure.value.code == "device-lost"


def test_a_machine_without_a_driver(gpu):
    gpu.memory = 0
    with pytest.raises(RunFailed, match="the GPU cannot be used") as failure:
        CupyRuntime()
    recording = trace(xp.ones(3))
    with pytest.raises(RunFailed, match="the GPU cannot be used") as later:
        LostRuntime(failure.value).run(recording.checked, [], RunLimits())
    assert later.value.code == "device-lost"


def launch(gpu, grid=(1,), block=(8,), shared_mem=0):
    x = xp.asarray(np.zeros(8, np.float32))
    GROW(grid, block, (x,), shared_mem=shared_mem)
    return run(CupyRuntime(), x)


def test_shared_memory_above_48_kib_is_asked_for(gpu):
    launch(gpu, shared_mem=48 << 10)
    assert not [line for line in gpu.log if line.startswith("opt in")]
    launch(gpu, shared_mem=64 << 10)
    assert f"opt in {64 << 10}" in gpu.log


@pytest.mark.parametrize(
    ("options", "static", "threads", "message"),
    [
        ({"shared_mem": 100 << 10}, 0, 1024, "100 KiB of shared memory, this GPU allows it 99 KiB"),
        ({"shared_mem": 90 << 10}, 16 << 10, 1024, "106 KiB of shared memory"),
        ({"block": (1024,)}, 0, 256, "1024 threads in a block, this GPU allows it 256"),
    ],
)
def test_launches_that_this_gpu_cannot_do_are_refused(gpu, options, static, threads, message):
    gpu.static_shared, gpu.max_threads = static, threads
    gpu.kernels["grow"] = None
    with pytest.raises(RunFailed, match=message) as failure:
        launch(gpu, **options)
    assert failure.value.code == "launch-limits"


def test_a_grid_is_held_to_the_devices_limits(gpu):
    gpu.limits["MaxGridDimX"] = 65535
    with pytest.raises(RunFailed, match="grid"):
        launch(gpu, grid=(65536,))


def test_a_kernel_that_does_not_compile_has_the_users_lines(gpu):
    kernel = RawKernel('extern "C" __global__ void bad(float* x) {\n x[0] = y; }\n//#error', "bad")
    x = xp.asarray(np.zeros(8, np.float32))
    kernel((1,), (8,), (x,))
    with pytest.raises(KernelCompileError) as failure:
        run(CupyRuntime(), x)
    assert failure.value.log.startswith("bad(2): error")


def test_nvrtcs_log_is_told_in_the_users_words():
    # As NVRTC 13.5 wrote it for a source without a name and one with #line directives.
    log = 'operation(1): error: identifier "y" is undefined\n   x[0] = y;\n\n1 error in "default_program".\n'
    text = explain_compile("kernel", log).log
    assert text.startswith("operation(1): error")
    assert text.endswith('1 error in "kernel".')


def test_elementwise_kernels_get_zeros_line_marks_and_a_size_only_where_nothing_else_decides(gpu):
    seen = []

    def twice(x, y, **options):
        seen.append(options)
        assert not y.any()
        y[...] = 2 * x if x.ndim else x

    gpu.kernels["twice"] = twice
    twice_kernel = ElementwiseKernel("float32 x", "float32 y", "y = 2 * x", "twice")
    result = run(CupyRuntime(), twice_kernel(xp.asarray(np.arange(4, dtype=np.float32))))
    np.testing.assert_array_equal(result.outputs[0], [0, 2, 4, 6])
    assert seen == [{}]


def test_reductions_are_called_as_cupy_wants_them(gpu):
    seen = []

    def total(x, y, **options):
        seen.append(options)
        y[...] = x.sum(axis=options["axis"], keepdims=options["keepdims"])

    gpu.kernels["total"] = total
    kernel = ReductionKernel("T x", "T y", "x", "a + b", "y = a", "0", "total")
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    result = run(CupyRuntime(), kernel(xp.asarray(x), axis=(0, 2), keepdims=True))
    np.testing.assert_array_equal(result.outputs[0], x.sum(axis=(0, 2), keepdims=True))
    assert seen == [{"axis": (0, 2), "keepdims": True}]


COUNTER = """
__device__ int count[2];
extern "C" __global__ void bump(int* out) { out[0] = ++count[0]; }
"""


def count_up(module, times):
    out = xp.asarray(np.zeros(1, np.int32))
    for _ in range(times):
        module.get_function("bump")((1,), (1,), (out,))
    return out


@pytest.fixture
def counting(gpu, monkeypatch):
    """`count` begins at 10 in each loaded copy; `bump` adds one and writes it out."""
    gpu.variables["count"] = np.array([10, 20], np.int32).tobytes()

    def bump(grid, block, arguments, shared_mem, variables):
        value = variables["count"].view(np.int32)
        value[0] += 1
        arguments[0][...] = value[0]

    gpu.kernels["bump"] = bump
    find = staticmethod(lambda module, name: (name, module.variables[name].size))
    monkeypatch.setattr("coppermesh.exec.cupy_kernels.CupyKernels.find_variable", find)
    return gpu


def test_a_modules_variables_live_through_one_run_and_begin_anew_in_the_next(counting):
    runtime = CupyRuntime()
    module = RawModule(code=COUNTER)
    recording = trace(count_up(module, 3))
    for _ in range(2):
        result = runtime.run(recording.checked, recording.inputs, RunLimits())
        assert result.outputs[0][0] == 13
    assert len([line for line in counting.log if line.startswith("compile (")]) == 1
    assert counting.log.count("load") == 2


def test_variables_are_set_and_read_within_their_size(counting):
    module = RawModule(code=COUNTER)
    window = xp.ndarray((2,), np.int32, memptr=module.get_global("count"))
    window[...] = xp.asarray(np.array([5, 6], np.int32))
    out = count_up(module, 1)
    result = run(CupyRuntime(), out, window + 0)
    assert result.outputs[0][0] == 6
    np.testing.assert_array_equal(result.outputs[1], [6, 6])
    other = RawModule(code=COUNTER)
    beyond = xp.ndarray((3,), np.int32, memptr=other.get_global("count"))
    with pytest.raises(RunFailed, match="of the variable count, which has 8") as failure:
        run(CupyRuntime(), beyond + 0)
    assert failure.value.code == "kernel-symbol"


def test_a_module_without_variables_is_cupys_own(gpu):
    code = "template<typename T> __global__ void fill(T* x) { x[0] = 1; }"

    def fill(grid, block, arguments, shared_mem):
        arguments[0][...] = 1

    gpu.kernels["fill<float>"] = fill
    module = RawModule(code=code, name_expressions=("fill<float>",))
    x = xp.asarray(np.zeros(4, np.float32))
    module.get_function("fill<float>")((1,), (1,), (x,))
    assert run(CupyRuntime(), x).outputs[0].all()
    assert gpu.log.count("compile fill<float>") == 1


def test_cupys_own_trouble_is_not_the_jobs(gpu):
    for error, code in (
        (stand_in.CompileException("no headers"), "device-error"),
        (NotImplementedError("no such thing"), "device-error"),
        (RuntimeError("Failed to find CUDA headers"), "device-error"),
    ):
        runtime = CupyRuntime()

        def fail(*_, error=error):
            raise error

        runtime._interpreter._table["negative"] = fail
        with pytest.raises(ExecError) as failure:
            run(runtime, -xp.asarray(np.ones(3)))
        assert failure.value.code == code


# What CuPy does otherwise than NumPy


def test_an_index_out_of_range_is_reported_after_the_program(gpu):
    runtime = CupyRuntime()
    with pytest.raises(RunFailed, match="out of range"):
        run(runtime, _take(5))
    assert run(runtime, _take(4)).outputs[0][1] == 4, "the mark of the last run is gone"
    with pytest.raises(RunFailed, match="out of range"):
        run(runtime, xp.put(xp.zeros(5), xp.asarray(np.array([1, 9])), xp.ones(2), axis=0))


def _take(index):
    return xp.take(xp.asarray(np.arange(5)), xp.asarray(np.array([0, index])), axis=0)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int64", "uint64", "float32", "complex64"])
def test_additions_at_indices_for_types_without_atomics(gpu, dtype):
    target = np.array([100, 2, 3], dtype)
    values = np.array([50, 60, 7, 1], dtype)
    indices = np.array([0, 0, 2, -1])
    program = xp.add_at(xp.asarray(target), xp.asarray(indices), xp.asarray(values), axis=0)
    np.testing.assert_array_equal(
        run(CupyRuntime(), program).outputs[0], run(NumpyRuntime(), program).outputs[0]
    )


def test_the_determinism_class_names_what_decides_bits(gpu):
    assert CupyRuntime().determinism == "cupy/0.stand-in cuda/13020 nvrtc/13.5 driver/13000 sm_75 Stand-in"
