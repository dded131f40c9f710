"""Programs on an NVIDIA GPU, through CuPy. Never run on a GPU so far: see tests/gpu/RESULTS.md.

Theory of operation. CuPy is imported when a runtime is made, never before, since its first use of the device starts
the CUDA driver, which does not survive a fork. Everything runs on one non-blocking stream of one device, so memory
that was freed is used again in the stream's order; device time is measured by two events around the program.

Memory. CuPy's pool has the lease's limit and some slack for working memory of libraries; the interpreter frees by
liveness. Inputs belong to the run and may be written over after their last use, but for those that are kept for the
lease's next tasks (`cupy_inputs`). The CUDA context and what cuBLAS and cuFFT allocate by themselves come on top.

Errors. CuPy's exceptions become ours in `cupy_errors`. After a sticky one the process's context is ruined, so the
runtime refuses to run again and the agent replaces the worker. A kernel that does not end is ended with its process,
by the agent's clock.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from coppermesh.exec.budget import check_budget, estimate
from coppermesh.exec.cupy_errors import DEVICE_ERROR, DEVICE_LOST, explain, is_sticky
from coppermesh.exec.cupy_inputs import InputCache
from coppermesh.exec.cupy_kernels import CupyKernels
from coppermesh.exec.cupy_operations import IndexGuard, make_cupy_table, make_scatter
from coppermesh.exec.errors import ExecError, RunFailed, plain_sentence
from coppermesh.exec.interpreter import Interpreter
from coppermesh.exec.numpy_runtime import check_inputs
from coppermesh.exec.runtime import RunLimits, RunResult, Watch
from coppermesh.exec.schema import CheckedProgram

POOL_SLACK_BYTES = 128 * 1024 * 1024
"""Over the lease's memory: working memory of sorts, reductions and transforms, and what the pool loses to rounding."""
IDLE_POOL_BYTES = 256 * 1024 * 1024
"""Free memory that the pool keeps between tasks; giving it back and asking again costs more than a small task."""


class CupyRuntime:
    """The `Runtime` of one GPU, for one lease. `memory_limit` is in bytes, 0 for none.

    `note` is told what runs next. Raises RunFailed (`device-lost`) where the GPU cannot be used, ModuleNotFoundError
    where CuPy is not installed.
    """

    kind = "cuda"

    def __init__(
        self, device_index: int = 0, memory_limit: int = 0, note: Callable[[str], None] = lambda _: None
    ) -> None:
        self._cupy: Any = import_module("cupy")
        self._cupyx: Any = import_module("cupyx")
        self._limit = memory_limit
        self._lost = False
        try:
            self._open(device_index, note)
        except Exception as error:
            raise RunFailed(f"the GPU cannot be used: {error}", code=DEVICE_LOST) from error

    def _open(self, device_index: int, note: Callable[[str], None]) -> None:
        cupy = self._cupy
        self._device = cupy.cuda.Device(device_index)
        with self._device:
            self._pool = cupy.get_default_memory_pool()
            self._pool.set_limit(size=self._limit + POOL_SLACK_BYTES if self._limit else 0)
            self._stream = cupy.cuda.Stream(non_blocking=True)
            self.determinism = _describe(cupy, self._device)
            attributes = dict(self._device.attributes)
        self._guard = IndexGuard(cupy)
        self._kernels = CupyKernels(cupy, attributes, self._stream.synchronize, note)
        self._inputs = InputCache(cupy)
        self._interpreter = Interpreter(
            cupy,
            make_cupy_table(cupy, self._guard),
            self._kernels.run,
            make_scatter(cupy, self._guard),
        )

    def run(
        self,
        checked: CheckedProgram,
        inputs: Sequence[np.ndarray[Any, Any]],
        limits: RunLimits,
        watch: Watch | None = None,
        files: Sequence[int | None] = (),
    ) -> RunResult:
        """Run to the end. For `watch` each node's results are copied to the host.

        `files[n]` is an open descriptor of the file that input n lies in, None where it came in place. Raises
        OverBudget before anything runs; RunFailed, KernelCompileError, KernelCrashed.
        """
        if self._lost:
            raise RunFailed("the GPU was lost in an earlier run of this worker", code=DEVICE_LOST)
        check_inputs(checked, inputs)
        check_budget(estimate(checked), limits, checked)
        try:
            with self._device, self._stream, self._cupyx.errstate(linalg="raise"):
                return self._run_on_stream(checked, inputs, watch, files)
        except Exception as error:
            failure = _explain(error)
            self._lose(failure)
            if failure is error:
                raise
            raise failure from error
        finally:
            self._tidy()

    def determinism_of(self, checked: CheckedProgram) -> str:
        """The same for every program: CuPy compiles even its own operations."""
        return self.determinism

    def _run_on_stream(
        self,
        checked: CheckedProgram,
        inputs: Sequence[np.ndarray[Any, Any]],
        watch: Watch | None,
        files: Sequence[int | None],
    ) -> RunResult:
        cuda = self._cupy.cuda
        begin, end = cuda.Event(), cuda.Event()
        spare = max(0, self._limit - estimate(checked).peak_bytes) if self._limit else 0
        arrays, given = self._inputs.place(inputs, files, spare)
        begin.record()
        # An iterator, so that this frame holds none of the arrays while the interpreter frees them one by one.
        outputs, peak = self._interpreter.run(checked, _emptying(arrays), given, self._on_host(watch))
        end.record()
        self._guard.finish()
        results = [
            np.ascontiguousarray(self._cupy.asnumpy(array)).reshape(spec.shape)
            for array, spec in zip(outputs, checked.output_specs, strict=True)
        ]
        end.synchronize()
        return RunResult(results, round(1000 * cuda.get_elapsed_time(begin, end)), peak)

    def _on_host(self, watch: Watch | None) -> Watch | None:
        """`watch`, shown NumPy arrays."""
        if watch is None:
            return None
        return lambda number, results: watch(number, [self._cupy.asnumpy(array) for array in results])

    def _lose(self, failure: ExecError) -> None:
        if is_sticky(failure):
            self._lost = True
        elif failure.code == "memory-limit":
            self._inputs.close()

    def _tidy(self) -> None:
        """Between tasks: no marks, no modules' variables, no large free blocks that another process could use."""
        self._kernels.end_run()
        self._guard.forget()
        if not self._lost and self._pool.free_bytes() > IDLE_POOL_BYTES:
            with self._device:
                self._pool.free_all_blocks()
                self._cupy.get_default_pinned_memory_pool().free_all_blocks()


class LostRuntime:
    """Stands where a GPU's runtime could not be made: every run fails, by this provider's fault."""

    kind = "cuda"
    determinism = ""

    def __init__(self, error: ExecError) -> None:
        self._error = error

    def determinism_of(self, checked: CheckedProgram) -> str:
        """Nothing runs, so no runs agree."""
        return self.determinism

    def run(
        self,
        checked: CheckedProgram,
        inputs: Sequence[np.ndarray[Any, Any]],
        limits: RunLimits,
        watch: Watch | None = None,
        files: Sequence[int | None] = (),
    ) -> RunResult:
        """Raises the error that there was."""
        raise RunFailed(self._error.sentence, code=self._error.code, detail=self._error.detail)


def _describe(cupy: Any, device: Any) -> str:
    """What two runs must have in common to agree bit for bit: CuPy, CUDA, NVRTC, driver, architecture, model."""
    runtime = cupy.cuda.runtime
    name = runtime.getDeviceProperties(device.id)["name"]
    words = (
        f"cupy/{cupy.__version__}",
        f"cuda/{runtime.runtimeGetVersion()}",
        f"nvrtc/{'.'.join(map(str, cupy.cuda.nvrtc.getVersion()))}",
        f"driver/{runtime.driverGetVersion()}",
        f"sm_{device.compute_capability}",
        name.decode("ascii", "replace") if isinstance(name, bytes) else str(name),
    )
    return plain_sentence(" ".join(words))[:128]


def _explain(error: Exception) -> ExecError:
    if isinstance(error, ExecError):
        cause = error.__cause__
        # The interpreter has wrapped CuPy's OutOfMemoryError, for it is a MemoryError: say whose limit it was.
        if type(cause).__name__ == "OutOfMemoryError" and error.code == "memory-limit":
            better = explain(cause)  # type: ignore[arg-type]  # not None: its type has a name
            better.node = error.node
            return better
        return error
    if type(error).__name__ == "CompileException":
        return RunFailed("CuPy's own kernel does not compile here", code=DEVICE_ERROR, detail=str(error))
    return explain(error)


def _emptying(arrays: list[Any]) -> Any:
    """The arrays in order, each let go of as it is handed out."""
    arrays.reverse()
    while arrays:
        yield arrays.pop()
