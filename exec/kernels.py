"""`RawKernel` and `RawModule`: CUDA C++ source with CuPy's constructors and call forms, on lazy arrays.

>>> import numpy as np
>>> import coppermesh as cm
>>> xp = cm.xp
>>> double = cm.RawKernel('''
... extern "C" __global__ void twice(const float* x, float* y, int n) {
...     int i = blockIdx.x * blockDim.x + threadIdx.x;
...     if (i < n) y[i] = 2 * x[i];
... }''', "twice")
>>> x = xp.asarray(np.arange(256, dtype=np.float32))
>>> y = xp.empty_like(x)
>>> double((2,), (128,), (x, y, np.int32(256)))

A call runs nothing: it records a node. Arrays that the kernel may write (every pointer parameter that is not
`const T*`) become new versions, which the handles passed in name from then on. Handles to earlier versions keep them.
An argument that is a slice or a transpose is passed as a C-contiguous copy.

Keywords of CuPy's constructors are taken; what cannot be had on somebody else's device is refused with the reason.
"""

import re
from collections.abc import Sequence
from typing import Any

from coppermesh.exec import cuda_source, kernel_rules, rules_modules
from coppermesh.exec.cuda_modules import has_state
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.graph import Value, pointing_at_caller, record
from coppermesh.exec.kernel_arguments import (
    check_types,
    dim3,
    kernel_operand,
    refuse_twice_written,
    warn_of_lost_writes,
)
from coppermesh.exec.kernel_listing import list_kernels
from coppermesh.exec.loop_kernels import ElementwiseKernel, ReductionKernel
from coppermesh.exec.module_arrays import MemoryPointer
from coppermesh.exec.module_recording import ModuleRecorder
from coppermesh.exec.program import Attributes, KernelSource

__all__ = ["ElementwiseKernel", "RawKernel", "RawModule", "ReductionKernel"]

_ATTRIBUTES = frozenset(
    (
        "attributes",
        "binary_version",
        "cache_mode_ca",
        "const_size_bytes",
        "kernel",
        "local_size_bytes",
        "max_dynamic_shared_size_bytes",
        "max_threads_per_block",
        "num_regs",
        "preferred_shared_memory_carveout",
        "ptx_version",
        "shared_size_bytes",
    )
)


class RawKernel:
    """A kernel given as CUDA C++ source, as `cupy.RawKernel`.

    `name` must be declared `extern "C"`. `options` may name the language standard, fast math, `-fmad` and `-D` macros.
    `__device__` and `__constant__` variables of the source keep what launches leave in them, within one program; each
    `RawKernel` has its own (CuPy shares them between objects of one source).
    """

    @pointing_at_caller
    def __init__(
        self,
        code: str,
        name: str,
        options: Sequence[str] = (),
        backend: str = "nvrtc",
        *,
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        jitify: bool | None = None,
    ) -> None:
        """`translate_cucomplex` changes nothing: sources may include cuComplex.h in any case."""
        _refuse_keywords(backend, enable_cooperative_groups, jitify)
        self.code = code
        self.name = self.__name__ = name
        self.options = _options(options)
        self.backend = backend
        self._module: ModuleRecorder | None = None
        self._source = KernelSource("raw", name, self.options, (code,))
        if has_state(code):
            self._use_module(ModuleRecorder(code, self.options), is_expression=False)
        kernel_rules.check_kernel(self._source)
        _must_occur("kernel", name, code, self.options)

    def _use_module(self, module: ModuleRecorder, *, is_expression: bool) -> None:
        self._module = module
        self._source = module.kernel(self.name, is_expression=is_expression)
        kernel_rules.check_kernel(self._source)

    @pointing_at_caller
    def __call__(
        self,
        grid: Sequence[int] | int,
        block: Sequence[int] | int,
        args: Sequence[Any],
        *,
        shared_mem: int = 0,
        stream: Any = None,
    ) -> None:
        """Record a launch: `grid` blocks of `block` threads (up to three lengths each), `shared_mem` in bytes.

        Arguments are lazy arrays, numbers and NumPy structures. NumPy scalars keep their type; a Python int is passed
        as `long long` (`unsigned long long` from 2**63), a float as `double`, a bool as `bool`, as CuPy does.
        Raises ProgramInvalid for a wrong number or type of arguments or a launch beyond CUDA's limits.
        """
        refuse_stream(stream)
        if isinstance(args, str) or not isinstance(args, Sequence):
            raise TypeError("the arguments of a kernel are a tuple: kernel(grid, block, (x, y))")
        pairs = [kernel_operand(position, item) for position, item in enumerate(args)]
        operands = [operand for operand, _ in pairs]
        by_value = tuple(position for position, (_, is_structure) in enumerate(pairs) if is_structure)
        attrs: Attributes = {
            "kernel": 0,
            "grid": dim3(grid),
            "block": dim3(block),
            "shared_mem": int(shared_mem),
        }
        signature = cuda_source.read_signature(self.code, self.name)
        check_types(self.name, signature, operands)
        is_array = [
            isinstance(operand, Value) and position not in by_value
            for position, operand in enumerate(operands)
        ]
        if self._module is None and not by_value:
            written = kernel_rules.written_arguments(self._source, is_array)
            refuse_twice_written([args[position] for position in written])
            results = record("raw_kernel", operands, attrs, self._source)
        else:
            if self._module is None:
                self._use_module(ModuleRecorder(self.code, self.options), is_expression=False)
            assert self._module is not None
            written = rules_modules.written_by(self._source, 0, is_array)
            refuse_twice_written([args[position] for position in written])
            attrs = {**attrs, "by_value": by_value, "function": 0}
            results = self._module.launch(self._source, operands, attrs)
        warn_of_lost_writes(self.name, args, written)
        for position, version in zip(written, results, strict=True):
            args[position].recorded = version

    def compile(self, log_stream: Any = None) -> None:
        """Nothing: a kernel is compiled where it runs. `coppermesh check` compiles a source on this machine."""

    def __getattr__(self, name: str) -> Any:
        if name in _ATTRIBUTES:
            raise AttributeError(
                f"a recorded kernel has no {name}: it is compiled on the device that runs it, and devices differ"
            )
        raise AttributeError(f"RawKernel has no {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("max_dynamic_shared_size_bytes", "preferred_shared_memory_carveout"):
            return  # what a launch asks for in shared_mem is what it gets
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"RawKernel({self.name!r})"


class RawModule:
    """A source with several kernels, as `cupy.RawModule`: templates by name expression, and variables.

    The source stands in a program once and is compiled once, however many of its kernels are used. Variables keep
    what launches leave in them within one program; each `RawModule` has its own (CuPy shares them between objects
    of one source).
    """

    @pointing_at_caller
    def __init__(
        self,
        *,
        code: str | None = None,
        path: str | None = None,
        options: Sequence[str] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: Sequence[str] | None = None,
        jitify: bool | None = None,
    ) -> None:
        """`name_expressions` are the kernels that `get_function` takes beside those declared `extern "C"`."""
        if path is not None:
            raise ProgramInvalid(
                "kernel-source", "path= names a compiled file: programs carry source only, give code="
            )
        if code is None:
            raise TypeError("RawModule needs code=")
        _refuse_keywords(backend, enable_cooperative_groups, jitify)
        self.code = code
        self.options = _options(options)
        self.backend = backend
        self.name_expressions = None if name_expressions is None else tuple(name_expressions)
        self._module = ModuleRecorder(code, self.options)
        for expression in self.name_expressions or ():
            self._module.kernel(expression, is_expression=True)

    @pointing_at_caller
    def get_function(self, name: str) -> RawKernel:
        """The kernel of this name: one of `name_expressions`, or one declared `extern "C"`."""
        is_expression = name in (self.name_expressions or ())
        if not is_expression and "<" in name:
            raise ProgramInvalid("kernel-name", f"{name[:80]!r} is not among the module's name_expressions")
        kernel = RawKernel.__new__(RawKernel)
        kernel.code, kernel.name, kernel.options, kernel.backend = self.code, name, self.options, self.backend
        kernel.__name__ = name
        kernel._use_module(self._module, is_expression=is_expression)  # noqa: SLF001 - two halves of one thing
        if not is_expression:
            _must_occur("kernel", name, self.code, self.options)
        return kernel

    @pointing_at_caller
    def get_global(self, name: str) -> MemoryPointer:
        """A pointer to the `__device__` or `__constant__` variable of this name, for `xp.ndarray(..., memptr=)`.

        Assigning to such an array sets the variable for later launches of this module; reading it reads what the
        launches so far have left there.
        """
        self._module.check_symbol(name)
        _must_occur("variable", name, self.code, self.options)
        return MemoryPointer(self._module, name)

    def compile(self, log_stream: Any = None) -> None:
        """Nothing: a module is compiled where it runs. `coppermesh check` compiles a source on this machine."""

    def __repr__(self) -> str:
        return f"RawModule({len(self.code)} characters)"


def refuse_stream(stream: Any) -> None:
    """Refuse a stream: the order of calls is the order of their effects, and there is nothing to choose."""
    if stream is not None:
        raise TypeError("stream= is not possible: calls take effect in the order in which they are written")


def _must_occur(what: str, name: str, code: str, options: Sequence[str]) -> None:
    """Refuse a name that stands nowhere in the source and that no macro could make. Raises ProgramInvalid."""
    if "##" in code or any(re.search(rf"\b{re.escape(name)}\b", text) for text in (code, *options)):
        return
    listed = ", ".join(kernel.name for kernel in list_kernels(code)[:8])
    hint = f"; its kernels are {listed}" if what == "kernel" and listed else ""
    raise ProgramInvalid("kernel-name", f"the source has no {what} {name[:80]!r}{hint}")


def _options(options: Sequence[str]) -> tuple[str, ...]:
    if isinstance(options, str):
        raise TypeError("options are a tuple of strings, as in options=('-std=c++17',)")
    return tuple(options)


def _refuse_keywords(backend: str, enable_cooperative_groups: bool, jitify: bool | None) -> None:
    if backend != "nvrtc":
        raise ProgramInvalid(
            "kernel-option", f"backend={backend!r}: kernels are compiled by NVRTC, or for a CPU"
        )
    if enable_cooperative_groups:
        raise ProgramInvalid(
            "kernel-option",
            "enable_cooperative_groups: a grid-wide barrier is not possible; end the kernel there and launch another"
            " (groups within a block need no option)",
        )
    if jitify:
        raise ProgramInvalid(
            "kernel-option", "jitify: headers of the C++ library are not possible in a kernel"
        )
