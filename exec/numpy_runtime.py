"""Programs on a CPU: NumPy for array operations, a `KernelBackend` for CUDA source.

Elementwise kernels are written out as plain CUDA kernels over contiguous arrays (`elementwise.generate_source`) and go
through the same backend as raw ones. Kernels get C-contiguous memory; what they may write is a copy, or the array's
own memory where nobody else needs it.
"""

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from coppermesh.exec import elementwise
from coppermesh.exec.array_operations import make_table
from coppermesh.exec.budget import check_budget, estimate
from coppermesh.exec.errors import RunFailed, plain_sentence
from coppermesh.exec.interpreter import Interpreter, writable_copy
from coppermesh.exec.kernel_rules import written_arguments
from coppermesh.exec.program import ArraySpec
from coppermesh.exec.runtime import KernelArgument, KernelBackend, RunLimits, RunResult, Watch
from coppermesh.exec.schema import CheckedNode, CheckedProgram

NumpyArray = np.ndarray[Any, Any]


class NumpyRuntime:
    """The `Runtime` of a machine's CPU. Without a kernel backend it refuses programs with kernels."""

    kind = "cpu"

    def __init__(self, kernels: KernelBackend | None = None) -> None:
        self._kernels = kernels
        self._interpreter = Interpreter(np, make_table(np), self._run_kernel)

    @property
    def determinism(self) -> str:
        """NumPy's version and the machine's architecture, and the kernel backend's own word where it has one."""
        words = [
            f"numpy/{np.__version__}",
            platform.machine(),
            str(getattr(self._kernels, "determinism", "")),
        ]
        return plain_sentence(" ".join(word for word in words if word))[:128]

    def run(
        self,
        checked: CheckedProgram,
        inputs: Sequence[NumpyArray],
        limits: RunLimits,
        watch: Watch | None = None,
    ) -> RunResult:
        """Run to the end. Raises OverBudget before anything runs; RunFailed, KernelCompileError."""
        check_inputs(checked, inputs)
        check_budget(estimate(checked), limits, checked)
        with np.errstate(all="ignore"):
            outputs, peak = self._interpreter.run(checked, inputs, watch=watch)
        return RunResult([np.ascontiguousarray(o).reshape(o.shape) for o in outputs], None, peak)

    def _run_kernel(
        self, checked_node: CheckedNode, arrays: Sequence[Any], writable: Sequence[bool]
    ) -> list[NumpyArray]:
        if self._kernels is None:
            raise RunFailed("this runtime has no way to run CUDA source", code="no-kernel-backend")
        if checked_node.node.op == "raw_kernel":
            return self._run_raw(self._kernels, checked_node, arrays, writable)
        return self._run_elementwise(self._kernels, checked_node, arrays, writable)

    def _run_raw(
        self,
        kernels: KernelBackend,
        checked_node: CheckedNode,
        arrays: Sequence[Any],
        writable: Sequence[bool],
    ) -> list[NumpyArray]:
        kernel, attrs = checked_node.call.kernel, checked_node.node.attrs
        assert kernel is not None  # the checker put it there
        launch = kernels.load(kernel.texts[0], kernel.name, kernel.options)
        is_array = [scalar is None for scalar in checked_node.call.scalars]
        written = written_arguments(kernel, is_array)
        arguments: list[KernelArgument] = []
        for position, item in enumerate(arrays):
            if position in written:
                arguments.append(writable_copy(np, item, writable[position]))
            else:
                arguments.append(
                    np.ascontiguousarray(item).reshape(item.shape) if is_array[position] else item
                )
        launch(attrs["grid"], attrs["block"], attrs["shared_mem"], arguments)  # type: ignore[arg-type]  # is_ints
        return [arguments[position] for position in written]  # type: ignore[misc]  # arrays, by is_array

    def _run_elementwise(
        self,
        kernels: KernelBackend,
        checked_node: CheckedNode,
        arrays: Sequence[Any],
        writable: Sequence[bool],
    ) -> list[NumpyArray]:
        kernel, call = checked_node.call.kernel, checked_node.call
        assert kernel is not None
        inputs, outputs = elementwise.parse_kernel(kernel)
        specs: list[ArraySpec | None] = [
            spec if scalar is None else None for spec, scalar in zip(call.specs, call.scalars, strict=True)
        ]
        size = call.attrs["size"]
        loop = elementwise.resolve(inputs, outputs, specs, size if isinstance(size, int) else None)
        results = self._outputs(checked_node, arrays[len(inputs) :], writable[len(inputs) :])
        count = int(np.prod(loop.shape, dtype=np.int64))
        if count == 0:
            return results
        arguments: list[KernelArgument] = []
        scalars = [scalar is not None for scalar in call.scalars[: len(inputs)]] + [False] * len(outputs)
        for parameter, item, scalar in zip(
            (*inputs, *outputs), (*arrays[: len(inputs)], *results), scalars, strict=True
        ):
            if scalar or parameter.raw:
                arguments.append(item if scalar else np.ascontiguousarray(item))
            else:
                arguments.append(np.ascontiguousarray(np.broadcast_to(item, loop.shape)))
            if parameter.raw:
                arguments.append(np.int64(item.size))
        arguments.append(np.int64(count))
        launch = kernels.load(
            elementwise.generate_source(kernel, loop.dtypes, scalars), kernel.name, kernel.options
        )
        blocks = min(elementwise.MAX_BLOCKS, -(-count // elementwise.THREADS_PER_BLOCK))
        launch((blocks, 1, 1), (elementwise.THREADS_PER_BLOCK, 1, 1), 0, arguments)
        return results

    def _outputs(
        self, checked_node: CheckedNode, given: Sequence[NumpyArray], writable: Sequence[bool]
    ) -> list[NumpyArray]:
        if given:
            return [writable_copy(np, array, may) for array, may in zip(given, writable, strict=True)]
        return [np.zeros(spec.shape, spec.numpy_dtype) for spec in checked_node.results]


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
