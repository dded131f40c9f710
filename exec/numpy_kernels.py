"""Kernel nodes on a CPU: arguments made ready, the backend called, results collected.

Elementwise and reduction kernels are written out as plain CUDA kernels over pointers (`elementwise.generate_source`,
`reduction.generate_source`) and go through the same backend as raw ones. Kernels get C-contiguous memory; what they may
write is a copy, or the array's own memory where nobody else needs it. The copy of a module that a chain of states
belongs to lives as long as the run.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from coppermesh.exec import elementwise, reduction
from coppermesh.exec.cuda_modules import module_parts
from coppermesh.exec.errors import RunFailed
from coppermesh.exec.interpreter import writable_copy
from coppermesh.exec.kernel_rules import resolve_reduction, written_arguments
from coppermesh.exec.program import ArraySpec, KernelSource
from coppermesh.exec.rules_modules import launch_arguments, written_by
from coppermesh.exec.runtime import KernelArgument, KernelBackend, LoadedModule
from coppermesh.exec.schema import CheckedNode

NumpyArray = np.ndarray[Any, Any]
Strides = tuple[int, int]


class NumpyKernels:
    """Runs the kernel nodes of one runtime."""

    def __init__(self, backend: KernelBackend) -> None:
        self._backend = backend
        self._chains: dict[int, LoadedModule] = {}

    def begin(self) -> None:
        """Forget the states of the run before."""
        self._chains.clear()

    def run(
        self, checked_node: CheckedNode, arrays: Sequence[Any], writable: Sequence[bool]
    ) -> list[NumpyArray]:
        """The node's results; the interpreter's `KernelRunner`."""
        kernel = checked_node.call.kernel
        assert kernel is not None  # the checker put it there
        return _RUNNERS[checked_node.node.op](self, kernel, checked_node, arrays, writable)

    def _raw(
        self, kernel: KernelSource, checked_node: CheckedNode, arrays: Sequence[Any], writable: Sequence[bool]
    ) -> list[NumpyArray]:
        attrs: Any = checked_node.node.attrs
        launch = self._backend.load(kernel.texts[0], kernel.name, kernel.options)
        is_array = [scalar is None for scalar in checked_node.call.scalars]
        written = written_arguments(kernel, is_array)
        arguments = _pointers(arrays, is_array, written, writable)
        launch(attrs["grid"], attrs["block"], attrs["shared_mem"], arguments)
        return [arguments[position] for position in written]  # type: ignore[misc]  # arrays, by is_array

    def _module(self, kernel: KernelSource, checked_node: CheckedNode) -> LoadedModule:
        """The copy of the module that the node works on."""
        parts, chain = module_parts(kernel), checked_node.call.chain
        if chain is None:
            return self._backend.load_module(parts, kernel.options, fresh=False)
        if chain not in self._chains:
            self._chains[chain] = self._backend.load_module(parts, kernel.options, fresh=True)
        return self._chains[chain]

    def _module_state(
        self,
        kernel: KernelSource,
        checked_node: CheckedNode,
        _arrays: Sequence[Any],
        _writable: Sequence[bool],
    ) -> list[NumpyArray]:
        self._module(kernel, checked_node)
        return [_state()]

    def _module_kernel(
        self, kernel: KernelSource, checked_node: CheckedNode, arrays: Sequence[Any], writable: Sequence[bool]
    ) -> list[NumpyArray]:
        attrs: Any = checked_node.node.attrs
        first, is_array = launch_arguments(checked_node.call)
        written = written_by(kernel, attrs["function"], is_array)
        items = list(arrays[first:])
        for position in attrs["by_value"]:
            items[position] = np.void(np.ascontiguousarray(items[position]).tobytes())
        arguments = _pointers(items, is_array, written, writable[first:])
        self._module(kernel, checked_node).launch(
            attrs["function"], attrs["grid"], attrs["block"], attrs["shared_mem"], arguments
        )
        results: list[Any] = [arguments[position] for position in written]
        return [_state(), *results] if first else results

    def _place(self, kernel: KernelSource, checked_node: CheckedNode, nbytes: int) -> NumpyArray:
        """The bytes of a module's variable that the node names. Raises RunFailed where it has fewer."""
        attrs: Any = checked_node.node.attrs
        memory = self._module(kernel, checked_node).symbol(attrs["symbol"])
        offset = attrs["offset"]
        if offset + nbytes > memory.size:
            name = module_parts(kernel).symbols[attrs["symbol"]]
            raise RunFailed(
                f"{nbytes} bytes at {offset} of the variable {name}, which has {memory.size}",
                code="kernel-symbol",
            )
        return memory[offset : offset + nbytes]

    def _module_set(
        self,
        kernel: KernelSource,
        checked_node: CheckedNode,
        arrays: Sequence[Any],
        _writable: Sequence[bool],
    ) -> list[NumpyArray]:
        data = np.ascontiguousarray(arrays[1])
        place = self._place(kernel, checked_node, data.nbytes)
        if not place.flags.writeable:
            attrs: Any = checked_node.node.attrs
            name = module_parts(kernel).symbols[attrs["symbol"]]
            raise RunFailed(
                f"the variable {name} is const, so read-only: it cannot be set", code="kernel-symbol"
            )
        place[...] = data.reshape(-1).view(np.uint8)
        return [_state()]

    def _module_get(
        self,
        kernel: KernelSource,
        checked_node: CheckedNode,
        _arrays: Sequence[Any],
        _writable: Sequence[bool],
    ) -> list[NumpyArray]:
        spec = checked_node.results[1]
        data = np.empty(spec.shape, spec.numpy_dtype)
        data.reshape(-1).view(np.uint8)[...] = self._place(kernel, checked_node, spec.nbytes)
        return [_state(), data]

    def _elementwise(
        self, kernel: KernelSource, checked_node: CheckedNode, arrays: Sequence[Any], writable: Sequence[bool]
    ) -> list[NumpyArray]:
        call = checked_node.call
        inputs, outputs = elementwise.parse_kernel(kernel)
        size = call.attrs["size"]
        loop = elementwise.resolve(
            inputs, outputs, _array_specs(checked_node), size if isinstance(size, int) else None
        )
        results = _outputs(checked_node, arrays[len(inputs) :], writable[len(inputs) :])
        count = int(np.prod(loop.shape, dtype=np.int64))
        if count == 0:
            return results
        arguments: list[KernelArgument] = []
        scalars = [scalar is not None for scalar in call.scalars[: len(inputs)]] + [False] * len(outputs)
        for parameter, item, scalar in zip(
            (*inputs, *outputs), (*arrays[: len(inputs)], *results), scalars, strict=True
        ):
            if scalar:
                arguments.append(item)
            elif parameter.raw:
                arguments += _raw_argument(item)
            else:
                arguments.append(np.ascontiguousarray(np.broadcast_to(item, loop.shape)))
        arguments += [np.array(loop.shape or (1,), np.int64), np.int64(count)]
        source = elementwise.generate_source(kernel, loop, scalars)
        launch = self._backend.load(source, kernel.name, kernel.options, elementwise.GENERATED_NAME)
        blocks = elementwise.blocks_for(kernel, count)
        launch((blocks, 1, 1), (elementwise.THREADS_PER_BLOCK, 1, 1), 0, arguments)
        return results

    def _reduction(
        self, kernel: KernelSource, checked_node: CheckedNode, arrays: Sequence[Any], writable: Sequence[bool]
    ) -> list[NumpyArray]:
        resolved = resolve_reduction(checked_node.call)
        inputs, _ = reduction.parse_kernel(kernel)
        results = _outputs(checked_node, arrays[len(inputs) :], writable[len(inputs) :])
        outputs = int(np.prod(resolved.out_shape, dtype=np.int64))
        if outputs == 0:
            return results
        count = int(np.prod([resolved.shape[axis] for axis in resolved.axes], dtype=np.int64))
        scalars = [scalar is not None for scalar in checked_node.call.scalars[: len(inputs)]]
        arguments: list[KernelArgument] = []
        width = 1
        for parameter, item, scalar in zip(inputs, arrays, scalars, strict=False):
            if scalar:
                arguments.append(item)
            elif parameter.raw:
                arguments += _raw_argument(item)
            else:
                memory, strides = _two_strides(np.broadcast_to(item, resolved.shape), resolved.axes)
                arguments += [memory, np.int64(strides[0]), np.int64(strides[1])]
                if 0 < abs(strides[0]) < abs(strides[1]):
                    width = reduction.WIDE
        arguments += [*results, np.int64(outputs), np.int64(count)]
        source = reduction.generate_source(kernel, resolved, scalars, width)
        launch = self._backend.load(source, kernel.name, kernel.options, elementwise.GENERATED_NAME)
        threads = -(-outputs // width)
        block = min(threads, reduction.THREADS_PER_BLOCK)
        launch((min(reduction.MAX_BLOCKS, -(-threads // block)), 1, 1), (block, 1, 1), 0, arguments)
        return results


_RUNNERS = {
    "raw_kernel": NumpyKernels._raw,  # noqa: SLF001
    "module_kernel": NumpyKernels._module_kernel,  # noqa: SLF001
    "module_state": NumpyKernels._module_state,  # noqa: SLF001
    "module_set": NumpyKernels._module_set,  # noqa: SLF001
    "module_get": NumpyKernels._module_get,  # noqa: SLF001
    "elementwise_kernel": NumpyKernels._elementwise,  # noqa: SLF001
    "reduction_kernel": NumpyKernels._reduction,  # noqa: SLF001
}


def _state() -> NumpyArray:
    return np.empty(0, np.uint8)


def _array_specs(checked_node: CheckedNode) -> list[ArraySpec | None]:
    call = checked_node.call
    return [spec if scalar is None else None for spec, scalar in zip(call.specs, call.scalars, strict=True)]


def _pointers(
    items: Sequence[Any], is_array: Sequence[bool], written: Sequence[int], writable: Sequence[bool]
) -> list[KernelArgument]:
    arguments: list[KernelArgument] = []
    for position, item in enumerate(items):
        if position in written:
            arguments.append(writable_copy(np, item, writable[position]))
        else:
            arguments.append(np.ascontiguousarray(item).reshape(item.shape) if is_array[position] else item)
    return arguments


def _raw_argument(item: NumpyArray) -> list[KernelArgument]:
    array = np.ascontiguousarray(item).reshape(item.shape)
    # Not `array.strides`: along a length of one NumPy keeps whatever the array's history left there.
    steps = np.cumprod((array.itemsize, *array.shape[:0:-1]), dtype=np.int64)[::-1] if array.ndim else ()
    places = np.array((*array.shape, *steps, 0), np.int64)  # never without an element
    return [array, places, np.int64(array.ndim), np.int64(array.size)]


def _outputs(
    checked_node: CheckedNode, given: Sequence[NumpyArray], writable: Sequence[bool]
) -> list[NumpyArray]:
    if given:
        return [writable_copy(np, array, may) for array, may in zip(given, writable, strict=True)]
    return [np.zeros(spec.shape, spec.numpy_dtype) for spec in checked_node.results]


def _two_strides(array: NumpyArray, axes: Sequence[int]) -> tuple[NumpyArray, Strides]:
    """Where the array's elements are: its first element, and the strides, in elements, from output to output and from
    one reduced value to the next. Copies where two strides cannot say it.
    """
    kept = [axis for axis in range(array.ndim) if axis not in axes]
    ordered = array.transpose(*kept, *axes)
    outer, inner = _one_stride(ordered, range(len(kept))), _one_stride(ordered, range(len(kept), array.ndim))
    if outer is None or inner is None:
        ordered = np.ascontiguousarray(ordered)
        inner = ordered.itemsize
        outer = inner * int(np.prod(ordered.shape[len(kept) :], dtype=np.int64))
    first = np.lib.stride_tricks.as_strided(ordered, (min(1, ordered.size),), (ordered.itemsize,))
    return first, (outer // ordered.itemsize, inner // ordered.itemsize)


def _one_stride(array: NumpyArray, axes: Sequence[int]) -> int | None:
    """The stride in bytes of these neighbouring axes taken as one, or None where there is no such."""
    stride, expected = 0, None
    for axis in reversed(axes):
        if array.shape[axis] == 1:
            continue
        if expected is None:
            stride = array.strides[axis]
        elif array.strides[axis] != expected:
            return None
        expected = array.strides[axis] * array.shape[axis]
    return stride
