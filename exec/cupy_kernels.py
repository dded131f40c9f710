"""CUDA source on a GPU, by CuPy's own classes: compiled by NVRTC once per lease, checked against the device, launched.

Sources without variables go through `RawKernel`, `RawModule`, `ElementwiseKernel` and `ReductionKernel`, whose compiled
code CuPy keeps in memory for the life of the process, which is one lease's. A module with variables that outlive a
launch (`cuda_modules`) must begin anew in every chain of states, so it is compiled once and its code loaded again for
each chain.

After each launch the stream is waited for. That costs some microseconds, and buys that a wild access is told of the
kernel that made it and not of the next call that happens to notice, and that a kernel without end is named when the
wall limit ends it (`note` writes into the worker's black box).

Nothing here imports CuPy: the runtime hands it over.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coppermesh.exec import elementwise, reduction
from coppermesh.exec.budget import format_bytes
from coppermesh.exec.cuda_modules import module_parts
from coppermesh.exec.cupy_errors import explain, explain_compile
from coppermesh.exec.errors import ExecError, RunFailed
from coppermesh.exec.interpreter import writable_copy
from coppermesh.exec.kernel_rules import written_arguments
from coppermesh.exec.program import KernelSource
from coppermesh.exec.rules_modules import launch_arguments, needs_state, written_by
from coppermesh.exec.schema import CheckedNode

CUPYS_OPTIONS = ("-ftz=true",)
"""What CuPy adds to every compilation, and so do modules that are compiled here."""

Note = Callable[[str], None]


@dataclass
class _Launchable:
    """A compiled kernel with what the driver says of it. `kernel(grid, block, arguments, shared_mem=...)`."""

    kernel: Any
    max_threads: int
    static_shared: int
    dynamic_shared: int
    """Most dynamic shared memory that it may be launched with so far; above 48 KiB it has to be asked for."""
    ask: Callable[[int], None]
    """Ask for more dynamic shared memory."""


@dataclass
class _LoadedModule:
    """One chain of states: the module's code with variables of its own."""

    module: Any
    name_of: dict[str, str]
    """Mangled names by name expression."""


class CupyKernels:
    """Runs kernel nodes. `attributes` are the device's own limits, by CUDA's names (`cupy.cuda.Device.attributes`)."""

    def __init__(
        self, cupy: Any, attributes: dict[str, int], synchronize: Callable[[], None], note: Note
    ) -> None:
        self._cupy = cupy
        self._attributes = attributes
        self._synchronize = synchronize
        self._note = note
        self._compiled: dict[tuple[KernelSource, int], Any] = {}
        self._code: dict[KernelSource, tuple[bytes, dict[str, str]]] = {}
        self._states: dict[int, tuple[Any, _LoadedModule]] = {}
        """By the identity of the array that stands for the state, which is held so that the identity is its own."""
        self._operations: dict[str, Callable[[CheckedNode, Sequence[Any], Sequence[bool]], list[Any]]] = {
            "raw_kernel": self._raw,
            "elementwise_kernel": self._elementwise,
            "reduction_kernel": self._reduction,
            "module_kernel": self._module_kernel,
            "module_state": self._module_state,
            "module_set": self._module_set,
            "module_get": self._module_get,
        }

    def run(self, node: CheckedNode, arrays: Sequence[Any], writable: Sequence[bool]) -> list[Any]:
        """The node's results. Raises KernelCompileError, KernelCrashed, RunFailed."""
        stage = f"kernel {self._name(node)}"
        self._note(stage)
        try:
            results = self._operations[node.node.op](node, arrays, writable)
            self._synchronize()
        except (ExecError, TypeError, ValueError):
            raise
        except Exception as error:
            if type(error).__name__ == "CompileException":
                raise explain_compile(self._name(node), str(error)) from error
            raise explain(error, stage) from error
        self._note("")
        return results

    def end_run(self) -> None:
        """Let go of what one run held: its modules' variables."""
        self._states.clear()

    def _name(self, node: CheckedNode) -> str:
        kernel = _kernel(node)
        function = node.node.attrs.get("function")
        return module_parts(kernel).kernels[function] if isinstance(function, int) else kernel.name

    # Raw kernels

    def _raw(self, node: CheckedNode, arrays: Sequence[Any], writable: Sequence[bool]) -> list[Any]:
        kernel = _kernel(node)
        is_array = [scalar is None for scalar in node.call.scalars]
        written = written_arguments(kernel, is_array)
        launchable = self._compiled.get((kernel, 0))
        if launchable is None:
            launchable = _launchable(
                self._cupy.RawKernel(kernel.texts[0], kernel.name, options=kernel.options)
            )
            self._compiled[kernel, 0] = launchable
        return self._launch(node, launchable, arrays, writable, is_array, written)

    def _launch(
        self,
        node: CheckedNode,
        launchable: _Launchable,
        arrays: Sequence[Any],
        writable: Sequence[bool],
        is_array: Sequence[bool],
        written: Sequence[int],
    ) -> list[Any]:
        attrs: Any = node.node.attrs
        by_value = attrs.get("by_value", ())
        arguments = []
        for position, item in enumerate(arrays):
            if position in written:
                arguments.append(writable_copy(self._cupy, item, writable[position]))
            elif position in by_value:
                arguments.append(_structure(self._cupy.asnumpy(item)))
            else:
                arguments.append(self._cupy.ascontiguousarray(item) if is_array[position] else item)
        grid, block, shared = attrs["grid"], attrs["block"], attrs["shared_mem"]
        self._check_launch(self._name(node), launchable, grid, block, shared)
        launchable.kernel(tuple(grid), tuple(block), tuple(arguments), shared_mem=shared)
        return [arguments[position] for position in written]

    def _check_launch(
        self, name: str, launchable: _Launchable, grid: Sequence[int], block: Sequence[int], shared: int
    ) -> None:
        """Refuse what this device or this kernel cannot do (`launch-limits`); ask for shared memory above 48 KiB."""
        limits = self._attributes
        for what, lengths in (("Grid", grid), ("Block", block)):
            for axis, length in zip("XYZ", lengths, strict=True):
                if length > limits.get(f"Max{what}Dim{axis}", length):
                    raise _over(name, f"{what.lower()} {tuple(lengths)}", limits[f"Max{what}Dim{axis}"])
        threads = block[0] * block[1] * block[2]
        most = min(launchable.max_threads, limits.get("MaxThreadsPerBlock", launchable.max_threads))
        if threads > most:
            raise _over(name, f"{threads} threads in a block", most)
        most_shared = limits.get("MaxSharedMemoryPerBlockOptin") or limits.get("MaxSharedMemoryPerBlock", 0)
        wanted = shared + launchable.static_shared
        if wanted > most_shared:
            raise _over(name, f"{format_bytes(wanted)} of shared memory", format_bytes(most_shared))
        if shared > launchable.dynamic_shared:
            launchable.ask(shared)
            launchable.dynamic_shared = shared

    # Modules

    def _module_kernel(self, node: CheckedNode, arrays: Sequence[Any], writable: Sequence[bool]) -> list[Any]:
        kernel = _kernel(node)
        function: Any = node.node.attrs["function"]
        first, is_array = launch_arguments(node.call)
        written = written_by(kernel, function, is_array)
        if not needs_state(kernel):
            launchable = self._compiled.get((kernel, function))
            if launchable is None:
                launchable = self._compiled[kernel, function] = self._module_function(kernel, function)
            return self._launch(node, launchable, arrays, writable, is_array, written)
        loaded = self._take_state(arrays[0])
        launchable = self._loaded_function(loaded, module_parts(kernel).kernels[function])
        results = self._launch(node, launchable, arrays[first:], writable[first:], is_array, written)
        return [self._put_state(loaded), *results]

    def _module_function(self, kernel: KernelSource, function: int) -> _Launchable:
        parts = module_parts(kernel)
        module = self._cupy.RawModule(
            code=parts.source, options=kernel.options, name_expressions=parts.expressions or None
        )
        return _launchable(module.get_function(parts.kernels[function]))

    def _module_state(
        self, node: CheckedNode, _arrays: Sequence[Any], _writable: Sequence[bool]
    ) -> list[Any]:
        kernel = _kernel(node)
        if kernel not in self._code:
            self._code[kernel] = self._compile(kernel)
        code, name_of = self._code[kernel]
        module = self._cupy.cuda.function.Module()
        module.load(code)
        return [self._put_state(_LoadedModule(module, name_of))]

    def _compile(self, kernel: KernelSource) -> tuple[bytes, dict[str, str]]:
        parts = module_parts(kernel)
        options = self._cupy._core.core.assemble_cupy_compiler_options(kernel.options)  # noqa: SLF001 - has no other name
        code, name_of = self._cupy.cuda.compiler.compile_using_nvrtc(
            parts.source,
            options + CUPYS_OPTIONS,
            filename="",
            name_expressions=parts.expressions or None,
            cache_in_memory=True,
        )
        return code, name_of or {}

    def _loaded_function(self, loaded: _LoadedModule, name: str) -> _Launchable:
        driver = self._cupy.cuda.driver
        function = loaded.module.get_function(loaded.name_of.get(name, name))

        def attribute(word: str) -> int:
            return int(driver.funcGetAttribute(getattr(driver, f"CU_FUNC_ATTRIBUTE_{word}"), function.ptr))

        dynamic = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        return _Launchable(
            function,
            attribute("MAX_THREADS_PER_BLOCK"),
            attribute("SHARED_SIZE_BYTES"),
            attribute("MAX_DYNAMIC_SHARED_SIZE_BYTES"),
            lambda size: driver.funcSetAttribute(function.ptr, dynamic, size),
        )

    def _module_set(self, node: CheckedNode, arrays: Sequence[Any], _writable: Sequence[bool]) -> list[Any]:
        loaded = self._take_state(arrays[0])
        values = self._cupy.ascontiguousarray(arrays[1])
        place = self._variable(node, loaded, values.nbytes)
        if values.nbytes:
            place.copy_from_device_async(values.data, values.nbytes)
        self._synchronize()  # `values` may be freed as soon as this returns
        return [self._put_state(loaded)]

    def _module_get(self, node: CheckedNode, arrays: Sequence[Any], _writable: Sequence[bool]) -> list[Any]:
        loaded = self._take_state(arrays[0])
        spec = node.results[1]
        result = self._cupy.empty(spec.shape, spec.numpy_dtype)
        place = self._variable(node, loaded, spec.nbytes)
        if spec.nbytes:
            result.data.copy_from_device_async(place, spec.nbytes)
        return [self._put_state(loaded), result]

    def _variable(self, node: CheckedNode, loaded: _LoadedModule, nbytes: int) -> Any:
        """A pointer to `nbytes` of the variable that the node names, from its offset on. Raises RunFailed."""
        attrs: Any = node.node.attrs
        name, offset = module_parts(_kernel(node)).symbols[attrs["symbol"]], attrs["offset"]
        address, size = self.find_variable(loaded.module, name)
        if offset + nbytes > size:
            raise RunFailed(
                f"{nbytes} bytes at {offset} of the variable {name}, which has {size}", code="kernel-symbol"
            )
        memory = self._cupy.cuda.UnownedMemory(address, size, loaded.module)
        return self._cupy.cuda.MemoryPointer(memory, offset)

    def find_variable(self, module: Any, name: str) -> tuple[int, int]:
        """Address and size of a module's variable. CuPy's own call leaves the size away, so the driver is asked."""
        address, size = ctypes.c_uint64(), ctypes.c_size_t()
        call = ctypes.CDLL("libcuda.so.1").cuModuleGetGlobal_v2
        pointers = ctypes.byref(address), ctypes.byref(size)
        status = call(*pointers, ctypes.c_void_p(module.ptr), ctypes.c_char_p(name.encode()))
        if status:
            raise RunFailed(f"the module has no variable {name} (CUresult {status})", code="kernel-symbol")
        return address.value, size.value

    def _take_state(self, state: Any) -> _LoadedModule:
        return self._states.pop(id(state))[1]  # the checker holds a program to using each state once

    def _put_state(self, loaded: _LoadedModule) -> Any:
        state = self._cupy.zeros(0, "uint8")
        self._states[id(state)] = state, loaded
        return state

    # Elementwise and reduction kernels

    def _elementwise(self, node: CheckedNode, arrays: Sequence[Any], writable: Sequence[bool]) -> list[Any]:
        kernel = _kernel(node)
        texts = elementwise.texts_of(kernel)
        inputs, outputs = elementwise.parse_kernel(kernel)
        compiled = self._compiled.get((kernel, 0))
        if compiled is None:
            compiled = self._compiled[kernel, 0] = self._cupy.ElementwiseKernel(
                texts.in_params,
                texts.out_params,
                _marked("operation", texts.operation),
                kernel.name,
                preamble=_marked("preamble", texts.preamble),
                loop_prep=_marked("loop_prep", texts.loop_prep),
                after_loop=_marked("after_loop", texts.after_loop),
                options=kernel.options,
            )
        count = len(inputs)
        results = self._outputs(node, arrays[count:], writable[count:])
        size: Any = node.node.attrs["size"]
        # CuPy takes a size only where no array decides the loop's shape.
        parameters = zip((*inputs, *outputs), (*arrays[:count], *results), strict=True)
        decided = any(not p.raw and isinstance(a, self._cupy.ndarray) for p, a in parameters)
        options = {} if size is None or decided else {"size": size}
        compiled(*arrays[:count], *results, **options)
        return results

    def _reduction(self, node: CheckedNode, arrays: Sequence[Any], writable: Sequence[bool]) -> list[Any]:
        kernel = _kernel(node)
        texts = reduction.texts_of(kernel)
        compiled = self._compiled.get((kernel, 0))
        if compiled is None:
            compiled = self._compiled[kernel, 0] = self._cupy.ReductionKernel(
                texts.in_params,
                texts.out_params,
                texts.map_expr,
                texts.reduce_expr,
                texts.post_map_expr,
                texts.identity or None,
                kernel.name,
                reduce_type=texts.reduce_type or None,
                preamble=_marked("preamble", texts.preamble),
                options=kernel.options,
            )
        attrs: Any = node.node.attrs
        count = len(reduction.parse_kernel(kernel)[0])
        results = self._outputs(node, arrays[count:], writable[count:])
        compiled(*arrays[:count], *results, axis=tuple(attrs["axes"]), keepdims=attrs["keepdims"])
        return results

    def _outputs(self, node: CheckedNode, given: Sequence[Any], writable: Sequence[bool]) -> list[Any]:
        """What the kernel writes: copies of what was given, or zeros, never memory that somebody else has used."""
        if given:
            return [writable_copy(self._cupy, array, may) for array, may in zip(given, writable, strict=True)]
        return [self._cupy.zeros(spec.shape, spec.numpy_dtype) for spec in node.results]


def _kernel(node: CheckedNode) -> KernelSource:
    kernel = node.call.kernel
    assert kernel is not None  # the checker put it there
    return kernel


def _launchable(kernel: Any) -> _Launchable:
    """A `RawKernel`, compiled now."""

    def ask(size: int) -> None:
        kernel.max_dynamic_shared_size_bytes = size

    return _Launchable(
        kernel,
        kernel.max_threads_per_block,
        kernel.shared_size_bytes,
        kernel.max_dynamic_shared_size_bytes,
        ask,
    )


def _marked(name: str, text: str) -> str:
    """`text` with a line directive, so that the compiler counts its lines from 1 and calls it `name`."""
    return f'\n#line 1 "{name}"\n{text}\n' if text else ""


def _structure(octets: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Bytes as the one-element array that CuPy passes by value."""
    return np.frombuffer(octets.tobytes(), np.dtype((np.void, octets.size)))


def _over(name: str, what: str, limit: int | str) -> RunFailed:
    return RunFailed(f"kernel {name} asks for {what}, this GPU allows it {limit}", code="launch-limits")
