"""The real CuPy, without a driver: every name that `exec` uses of it is there, and importing it starts no driver.

Skipped where CuPy is not installed (the extras cuda12 and cuda13 install it). What CuPy computes is not tested here:
that needs a GPU (`tests/gpu`).
"""

import ast
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coppermesh.exec import interpreter, special, windows
from coppermesh.exec.cupy_errors import explain, status_of

cupy = pytest.importorskip("cupy")

from coppermesh.exec.cupy_operations import IndexGuard, make_cupy_table  # noqa: E402
from coppermesh.exec.operations import OPERATIONS  # noqa: E402


def test_the_table_of_operations_finds_every_function():
    table = make_cupy_table(cupy, IndexGuard(cupy))
    ours = {"setitem", "put", "add_at", "scan", "raw_kernel", "elementwise_kernel", "reduction_kernel"}
    ours |= {"module_kernel", "module_state", "module_set", "module_get"}
    assert table.keys() | ours == OPERATIONS.keys()


@pytest.mark.parametrize("module", [special, windows, interpreter])
def test_functions_written_for_any_library_find_theirs(module):
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Attribute):
            path, inner = [node.attr], node.value
            while isinstance(inner, ast.Attribute):
                path, inner = [inner.attr, *path], inner.value
            if isinstance(inner, ast.Name) and inner.id == "library" and path != ["__name__"]:
                found = cupy
                for name in path:
                    found = getattr(found, name)


@pytest.mark.parametrize(
    "path",
    [
        "asnumpy",
        "ndarray.base",
        "ndarray.flags",
        "ndarray.data",
        "get_default_memory_pool",
        "get_default_pinned_memory_pool",
        "cuda.Device",
        "cuda.Stream",
        "cuda.Event",
        "cuda.get_elapsed_time",
        "cuda.UnownedMemory",
        "cuda.MemoryPointer.copy_from_device_async",
        "cuda.runtime.runtimeGetVersion",
        "cuda.runtime.driverGetVersion",
        "cuda.runtime.getDeviceProperties",
        "cuda.nvrtc.getVersion",
        "cuda.compiler.CompileException",
        "cuda.function.Module.load",
        "cuda.function.Module.get_function",
        "cuda.function.Module.ptr",
        "cuda.function.Function.ptr",
        "cuda.driver.funcGetAttribute",
        "cuda.driver.funcSetAttribute",
        "cuda.driver.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK",
        "cuda.driver.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES",
        "cuda.driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES",
        "RawKernel.max_threads_per_block",
        "RawKernel.shared_size_bytes",
        "RawKernel.max_dynamic_shared_size_bytes",
        "RawModule.get_function",
        "_core.core.assemble_cupy_compiler_options",
        "add.at",
    ],
)
def test_a_name_that_the_runtime_uses(path):
    found = cupy
    for name in path.split("."):
        found = getattr(found, name)


def test_the_pools_have_what_is_asked_of_them():
    for name in ("set_limit", "get_limit", "free_bytes", "free_all_blocks"):
        assert callable(getattr(cupy.get_default_memory_pool(), name))
    assert callable(cupy.get_default_pinned_memory_pool().free_all_blocks)


def test_constructors_take_what_they_are_given():
    assert cupy.RawKernel('extern "C" __global__ void k() {}', "k", options=("-DX=1",)).name == "k"
    assert cupy.RawModule(code="", options=(), name_expressions=None).options == ()
    kernel = cupy.ElementwiseKernel(
        "T x", "T y", "y = x", "k", preamble="", loop_prep="", after_loop="", options=()
    )
    assert kernel.nin == 1
    reduction = cupy.ReductionKernel(
        "T x", "T y", "x", "a + b", "y = a", None, "k", reduce_type=None, preamble="", options=()
    )
    assert reduction.nout == 1
    parameters = inspect.signature(cupy.cuda.compiler.compile_using_nvrtc).parameters
    assert {"source", "options", "filename", "name_expressions", "cache_in_memory"} <= parameters.keys()
    import cupyx

    with cupyx.errstate(linalg="raise"):
        assert cupyx.geterr()["linalg"] == "raise"


def test_errors_are_told_apart():
    memory = explain(cupy.cuda.memory.OutOfMemoryError(4 << 20, 4 << 20, 6 << 20))
    assert memory.code == "memory-limit"
    assert "4 MiB of device memory beside 4 MiB held" in memory.sentence
    assert explain(cupy.cuda.memory.OutOfMemoryError(4 << 20, 4 << 20)).code == "device-memory"
    for status, code in (
        (700, "kernel-crashed"),
        (719, "kernel-crashed"),
        (701, "launch-limits"),
        (35, "device-lost"),
    ):
        error = cupy.cuda.runtime.CUDARuntimeError(status)
        assert status_of(error) == status
        assert explain(error, "kernel k").code == code
    log = cupy.cuda.compiler.CompileException("default_program(1): error", "", "", ())
    assert type(log).__name__ == "CompileException"
    assert str(log) == "default_program(1): error"


PRELOAD = """
import os, sys
from coppermesh.exec import zygote
zygote.preload("cuda")

import cupy
cupy.RawKernel('extern "C" __global__ void k() {}', "k")
loaded = os.path.exists(sys.argv[1])
threads = zygote.count_threads()
try:
    cupy.cuda.runtime.getDeviceCount()
except Exception:
    pass
print(loaded, threads, os.path.exists(sys.argv[1]))
"""


def test_importing_cupy_starts_no_driver_and_no_thread(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    source = tmp_path / "cuda.c"
    mark = tmp_path / "loaded"
    source.write_text(
        "#include <fcntl.h>\n#include <unistd.h>\n"
        f'__attribute__((constructor)) static void mark(void) {{ close(open("{mark}", O_CREAT | O_WRONLY, 0600)); }}\n'
        "int cuInit(unsigned flags) { return 100; }\n"  # CUDA_ERROR_NO_DEVICE
    )
    library = tmp_path / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(tmp_path),
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if Path(path).is_dir()),
    }
    answer = subprocess.run(
        [sys.executable, "-c", PRELOAD, mark], env=environment, check=True, capture_output=True, text=True
    )
    loaded, threads, after = answer.stdout.split()
    assert loaded == "False", "the driver's library is loaded before the fork"
    assert threads == "1", "only a process with one thread may be forked"
    assert after == "True", "the stand-in would have been noticed"


@pytest.mark.processes
async def test_a_worker_on_a_gpu_that_is_not_there_fails_by_this_machines_fault(tmp_path):
    """The whole way to a run: zygote with CuPy, fork, confinement, runtime; then no driver."""
    from coppermesh.exec.device import DeviceInfo, probe_gpus
    from coppermesh.exec.program import ArraySpec, Node, Program, encode_program
    from coppermesh.exec.supervisor import InputBuffer, WorkerLimits, open_supervisor

    if probe_gpus():
        pytest.skip("there is a GPU here")
    no_gpu = DeviceInfo(
        "gpu0", "cuda", "none", 1 << 30, 1 << 30, None, None, None, "none", ("array-programs",), None
    )
    program = encode_program(
        Program(1, (ArraySpec("float32", (2,)),), (), (Node("negative", (0,), {}),), (1,))
    )
    limits = WorkerLimits(memory_bytes=64 << 20, output_bytes=1 << 20)
    async with open_supervisor(no_gpu, scratch=tmp_path / "scratch") as supervisor:
        async with supervisor.worker(limits) as worker:
            outcome = await worker.run(program, [InputBuffer(8, data=bytes(8))], wall_limit_s=30)
    assert (outcome.status, outcome.code) == ("provider-failed", "device-lost"), outcome.sentence
    assert "the GPU cannot be used" in outcome.sentence
