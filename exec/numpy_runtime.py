"""Programs on a CPU: NumPy for array operations, a `KernelBackend` for CUDA source.

What kernel nodes need is in `numpy_kernels`.
"""

import platform
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from blake3 import blake3

from coppermesh.exec.array_operations import make_table
from coppermesh.exec.budget import check_budget, estimate
from coppermesh.exec.errors import RunFailed, plain_sentence
from coppermesh.exec.interpreter import Interpreter
from coppermesh.exec.numpy_kernels import NumpyKernels
from coppermesh.exec.runtime import KernelBackend, RunLimits, RunResult, Watch
from coppermesh.exec.schema import FEATURE_CUDA_SOURCE, CheckedNode, CheckedProgram

NumpyArray = np.ndarray[Any, Any]


class NumpyRuntime:
    """The `Runtime` of a machine's CPU. Without a kernel backend it refuses programs with kernels."""

    kind = "cpu"

    def __init__(self, kernels: KernelBackend | None = None, threads: int = 1) -> None:
        """`threads`: how many the libraries use; how sums are split, and so their last bits, may depend on it."""
        self._threads = threads
        self._kernels = None if kernels is None else NumpyKernels(kernels)
        self._backend_word = str(getattr(kernels, "determinism", ""))
        self._interpreter = Interpreter(np, make_table(np), self._run_kernel)

    @property
    def determinism(self) -> str:
        """NumPy's version, the processor's architecture and vector instructions, threads, the kernel backend's word."""
        return self._describe(self._backend_word)

    def determinism_of(self, checked: CheckedProgram) -> str:
        """Without the kernel backend's word where the program has no kernels: only some leases bring one."""
        return self._describe(self._backend_word if FEATURE_CUDA_SOURCE in checked.features else "")

    def _describe(self, backend: str) -> str:
        processor = f"{platform.machine()} simd/{_vector_instructions()} threads/{self._threads}"
        words = [f"numpy/{np.__version__}", processor, backend]
        return plain_sentence(" ".join(word for word in words if word))[:128]

    def run(
        self,
        checked: CheckedProgram,
        inputs: Sequence[NumpyArray],
        limits: RunLimits,
        watch: Watch | None = None,
        files: Sequence[int | None] = (),
    ) -> RunResult:
        """Run to the end. Raises OverBudget before anything runs; RunFailed, KernelCompileError."""
        check_inputs(checked, inputs)
        check_budget(estimate(checked), limits, checked)
        if self._kernels is not None:
            self._kernels.begin()
        with np.errstate(all="ignore"):
            outputs, peak = self._interpreter.run(checked, inputs, watch=watch)
        return RunResult([np.ascontiguousarray(o).reshape(o.shape) for o in outputs], None, peak)

    def _run_kernel(
        self, checked_node: CheckedNode, arrays: Sequence[Any], writable: Sequence[bool]
    ) -> list[NumpyArray]:
        if self._kernels is None:
            raise RunFailed("this runtime has no way to run CUDA source", code="no-kernel-backend")
        return self._kernels.run(checked_node, arrays, writable)


@cache
def _vector_instructions() -> str:
    """A short name for the instruction sets that NumPy found: its loops, and those of BLAS, differ by them."""
    configuration: Any = np.show_config(mode="dicts")
    found = configuration["SIMD Extensions"]["found"]
    return blake3(" ".join(sorted(found)).encode()).hexdigest(4)


def check_inputs(checked: CheckedProgram, inputs: Sequence[Any]) -> None:
    """The arrays given must be what the program names. Raises RunFailed (`bad-input`)."""
    if len(inputs) != len(checked.input_specs):
        raise RunFailed(
            f"the program has {len(checked.input_specs)} inputs, {len(inputs)} were given", code="bad-input"
        )
    for number, (array, spec) in enumerate(zip(inputs, checked.input_specs, strict=True)):
        if array.shape != spec.shape or array.dtype != spec.numpy_dtype:
            raise RunFailed(
                f"input {number} is {array.dtype}{list(array.shape)}, the program names {spec}",
                code="bad-input",
            )
