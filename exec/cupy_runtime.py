"""Programs on an NVIDIA GPU, through CuPy. Never run on a GPU so far: written from CuPy's documentation, type-checked.

CuPy is imported when a runtime is made, never before: it starts the CUDA driver, which must not happen in a process
that forks. Everything runs on one non-blocking stream; device time is measured by two events around the program.
CuPy's own RawKernel and ElementwiseKernel run the kernels. The memory pool's limit bounds arrays only: the CUDA
context and the workspaces of its libraries come on top.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from coppermesh.exec.array_operations import make_table
from coppermesh.exec.budget import check_budget, estimate
from coppermesh.exec.errors import ExecError, KernelCompileError, RunFailed, plain_sentence
from coppermesh.exec.interpreter import Interpreter, writable_copy
from coppermesh.exec.kernel_rules import written_arguments
from coppermesh.exec.numpy_runtime import check_inputs
from coppermesh.exec.program import KernelSource
from coppermesh.exec.runtime import RunLimits, RunResult, Watch
from coppermesh.exec.schema import CheckedNode, CheckedProgram


class CupyRuntime:
    """The `Runtime` of one GPU. `memory_limit` is in bytes, 0 for none."""

    kind = "cuda"

    def __init__(self, device_index: int = 0, memory_limit: int = 0) -> None:
        self._cupy: Any = import_module("cupy")
        self._device = self._cupy.cuda.Device(device_index)
        self._kernels: dict[KernelSource, Any] = {}
        self._interpreter = Interpreter(self._cupy, make_table(self._cupy), self._run_kernel)
        with self._device:
            self._cupy.get_default_memory_pool().set_limit(size=memory_limit)
            self._stream = self._cupy.cuda.Stream(non_blocking=True)

    @property
    def determinism(self) -> str:
        """CuPy's version, the CUDA runtime's, and the device's compute capability."""
        runtime = self._cupy.cuda.runtime.runtimeGetVersion()
        capability = self._device.compute_capability
        return plain_sentence(f"cupy/{self._cupy.__version__} cuda/{runtime} sm_{capability}")[:128]

    def run(
        self,
        checked: CheckedProgram,
        inputs: Sequence[np.ndarray[Any, Any]],
        limits: RunLimits,
        watch: Watch | None = None,
    ) -> RunResult:
        """Run to the end. For `watch` each node's results are copied to the host.

        Raises OverBudget before anything runs; RunFailed, KernelCompileError.
        """
        check_inputs(checked, inputs)
        check_budget(estimate(checked), limits, checked)
        cuda = self._cupy.cuda
        with self._device, self._stream:
            begin, end = cuda.Event(), cuda.Event()
            try:
                arrays = [self._cupy.asarray(array) for array in inputs]
                begin.record()
                outputs, peak = self._interpreter.run(checked, arrays, watch=self._on_host(watch))
                end.record()
                results = [np.ascontiguousarray(self._cupy.asnumpy(array)) for array in outputs]
                end.synchronize()
            except ExecError:
                raise
            except RuntimeError as error:
                # CuPy raises subclasses of RuntimeError for driver, runtime and library errors.
                raise RunFailed(f"the GPU reported: {error}", code="device-error") from error
            device_us = int(1000 * cuda.get_elapsed_time(begin, end))
        shaped = [
            array.reshape(spec.shape) for array, spec in zip(results, checked.output_specs, strict=True)
        ]
        return RunResult(shaped, device_us, peak)

    def _on_host(self, watch: Watch | None) -> Watch | None:
        """`watch`, shown NumPy arrays."""
        if watch is None:
            return None
        return lambda number, results: watch(number, [self._cupy.asnumpy(array) for array in results])

    def _run_kernel(
        self, checked_node: CheckedNode, arrays: Sequence[Any], writable: Sequence[bool]
    ) -> list[Any]:
        kernel = checked_node.call.kernel
        assert kernel is not None  # the checker put it there
        try:
            if kernel.kind == "raw":
                return self._run_raw(kernel, checked_node, arrays, writable)
            return self._run_elementwise(kernel, checked_node, arrays, writable)
        except self._cupy.cuda.compiler.CompileException as error:
            raise KernelCompileError(kernel.name, str(error)) from error

    def _run_raw(
        self, kernel: KernelSource, checked_node: CheckedNode, arrays: Sequence[Any], writable: Sequence[bool]
    ) -> list[Any]:
        attrs: dict[str, Any] = dict(checked_node.node.attrs)
        is_array = [scalar is None for scalar in checked_node.call.scalars]
        written = written_arguments(kernel, is_array)
        arguments = []
        for position, item in enumerate(arrays):
            if position in written:
                arguments.append(writable_copy(self._cupy, item, writable[position]))
            else:
                arguments.append(self._cupy.ascontiguousarray(item) if is_array[position] else item)
        compiled = self._kernels.get(kernel)
        if compiled is None:
            compiled = self._cupy.RawKernel(kernel.texts[0], kernel.name, options=kernel.options)
            self._kernels[kernel] = compiled
        compiled(attrs["grid"], attrs["block"], tuple(arguments), shared_mem=attrs["shared_mem"])
        return [arguments[position] for position in written]

    def _run_elementwise(
        self, kernel: KernelSource, checked_node: CheckedNode, arrays: Sequence[Any], writable: Sequence[bool]
    ) -> list[Any]:
        inputs, outputs, operation, preamble = kernel.texts
        compiled = self._kernels.get(kernel)
        if compiled is None:
            compiled = self._cupy.ElementwiseKernel(
                inputs, outputs, operation, kernel.name, preamble=preamble, options=kernel.options
            )
            self._kernels[kernel] = compiled
        count = compiled.nin
        given = [
            writable_copy(self._cupy, array, may)
            for array, may in zip(arrays[count:], writable[count:], strict=True)
        ]
        results = given or [self._cupy.zeros(spec.shape, spec.numpy_dtype) for spec in checked_node.results]
        size = checked_node.node.attrs["size"]
        options = {} if size is None else {"size": size}
        compiled(*arrays[:count], *results, **options)
        return results
