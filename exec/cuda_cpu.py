"""CUDA C++ source on a machine without a GPU: the kernel backend of CPU workers.

Theory. A kernel without barriers is a function of its arguments and indices, so a launch is a loop. The source is
compiled as host C++ against the headers in `shim` (their theory is in coppermesh_cuda.h) into a library that exports
`coppermesh_run`, which takes blocks from a shared counter until none is left and runs the threads of each in turn.
A launch calls it from a few operating-system threads at once; ctypes lets go of Python's lock meanwhile.

The library also tells the kernel's parameters, so wrong arguments are an error here and not a wild read: their
number, the size of each scalar, and the element type where both sides are floating point. Arrays beyond their bounds
are the kernel's own affair; they cost its worker process.

A library is loaded from a sealed memory file, and stays loaded while a launch of it exists.
"""

import _ctypes
import ctypes
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from coppermesh.exec.cuda_build import Kernel
from coppermesh.exec.cuda_gate import check_cpu_source
from coppermesh.exec.errors import KernelCompileError, RunFailed
from coppermesh.exec.runtime import Dim3, KernelArgument, Launch
from coppermesh.exec.threads import ThreadTeam

SHIM_VERSION = 1
"""Grows with every change of `shim` that may change a result."""
MAX_LOADED = 256
"""Libraries kept per worker; the one unused for longest goes first."""
THREADS_WORTH_SHARING = 4096
"""CUDA threads below which a launch stays on one processor core: waking a second one costs about 30 us."""
CHUNKS_PER_THREAD = 16
"""Blocks are handed out in this many pieces per core: few enough to be cheap, enough to even out."""

Builder = Callable[[Kernel], int]
"""Compiles; gives the library as a sealed memory file, or raises an ExecError."""
Note = Callable[[str], None]
"""Told what runs, before it does, so that a crash can be explained."""


class _LaunchState(ctypes.Structure):
    """`coppermesh::Launch` of coppermesh_launch.h."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("blocks", ctypes.c_ulonglong),
        ("chunk", ctypes.c_ulonglong),
        ("next", ctypes.c_ulonglong),
    ]


class _Parameter(ctypes.Structure):
    """`coppermesh::Parameter` of coppermesh_launch.h."""

    _fields_ = [
        ("bytes", ctypes.c_uint),
        ("element_bytes", ctypes.c_uint),
        ("kind", ctypes.c_char),
        ("element", ctypes.c_char),
    ]


class _Library:
    """One loaded kernel. Unloaded when nothing refers to it any more."""

    def __init__(self, name: str, descriptor: int) -> None:
        """Load the library in the memory file `descriptor`, which is closed with it."""
        self.name = name
        self._descriptor = descriptor
        self._handle: int | None = None
        try:
            # The dynamic loader tells libraries apart by path: the descriptor stays open so that its number is not
            # used again while this one is loaded.
            self._library = ctypes.CDLL(f"/proc/self/fd/{descriptor}", mode=os.RTLD_NOW | os.RTLD_LOCAL)
        except OSError as error:
            raise KernelCompileError(name, f"the library does not load: {_reason(error)}") from error
        self._handle = self._library._handle  # noqa: SLF001 - ctypes documents it for dlclose
        if not hasattr(self._library, name):
            raise KernelCompileError(name, f"kernel.cu: error: kernel '{name}' must be declared extern \"C\"")
        self.run = self._library.coppermesh_run
        self.run.argtypes = [ctypes.POINTER(_LaunchState), ctypes.c_void_p]
        self.run.restype = None
        self.parameters = self._read_parameters()

    def _read_parameters(self) -> list[_Parameter]:
        count = ctypes.c_uint.in_dll(self._library, "coppermesh_parameter_count").value
        read = self._library.coppermesh_parameters
        read.restype = ctypes.POINTER(_Parameter * count)
        table = read().contents
        return [table[position] for position in range(count)]

    def __del__(self) -> None:
        if self._handle is not None:
            _ctypes.dlclose(self._handle)
        os.close(self._descriptor)


class CudaCpu:
    """Compiles and launches CUDA kernels on this machine's processor cores. One per worker process."""

    def __init__(
        self, builder: Builder, *, threads: int = 2, note: Note | None = None, compiler: str = ""
    ) -> None:
        """`compiler` is its name and version, for `determinism`."""
        self.determinism = f"cuda-cpu/{SHIM_VERSION} {compiler} fp-contract=off".replace("  ", " ")
        self._builder = builder
        self._team = ThreadTeam(threads)
        self._note = note or (lambda text: None)
        self._libraries: OrderedDict[Kernel, _Library] = OrderedDict()

    def load(self, source: str, name: str, options: tuple[str, ...]) -> Launch:
        """The kernel `name` of `source`, ready to launch.

        Raises SourceRefused (`unsupported-feature`), KernelCompileError, or what the builder raises.
        """
        kernel = Kernel(source, name, tuple(options))
        library = self._libraries.get(kernel)
        if library is None:
            check_cpu_source(source, options)
            self._note(f"compiling kernel {name}")
            library = _Library(name, self._builder(kernel))
            self._note("")
            self._libraries[kernel] = library
            while len(self._libraries) > MAX_LOADED:
                self._libraries.popitem(last=False)
        self._libraries.move_to_end(kernel)
        found = library

        def launch(grid: Dim3, block: Dim3, shared_bytes: int, arguments: Sequence[KernelArgument]) -> None:
            self._launch(found, grid, block, shared_bytes, arguments)

        return launch

    def _launch(
        self,
        library: _Library,
        grid: Dim3,
        block: Dim3,
        shared_bytes: int,
        arguments: Sequence[KernelArgument],
    ) -> None:
        if shared_bytes:
            raise RunFailed(
                f"kernel {library.name}: shared memory is not possible on a CPU device",
                code="unsupported-feature",
            )
        _check_arguments(library, arguments)
        pointers, kept = _pass_arguments(arguments)
        blocks = grid[0] * grid[1] * grid[2]
        wanted = (
            1
            if blocks * block[0] * block[1] * block[2] < THREADS_WORTH_SHARING
            else min(self._team.size, blocks)
        )
        chunk = max(1, blocks // (wanted * CHUNKS_PER_THREAD))
        state = _LaunchState(tuple(grid), tuple(block), blocks, chunk, 0)
        self._note(f"kernel {library.name}")
        self._team.run(wanted, lambda: library.run(ctypes.byref(state), pointers))
        self._note("")
        del kept


def _check_arguments(library: _Library, arguments: Sequence[KernelArgument]) -> None:
    if len(arguments) != len(library.parameters):
        raise _wrong(library, f"takes {len(library.parameters)} arguments, {len(arguments)} were given")
    for position, (argument, parameter) in enumerate(zip(arguments, library.parameters, strict=True)):
        if fault := _argument_fault(argument, parameter):
            raise _wrong(library, f"argument {position}: {fault}")


def _argument_fault(argument: KernelArgument, parameter: _Parameter) -> str | None:
    kind, element = parameter.kind, parameter.element
    if isinstance(argument, np.ndarray):
        if kind != b"p":
            return "an array was given for a parameter that is no pointer"
        if not argument.flags.c_contiguous:
            return "the array is not contiguous"
        if element == b"f" and argument.dtype.kind == "f" and argument.itemsize != parameter.element_bytes:
            return f"the kernel reads {8 * parameter.element_bytes}-bit floats, the array is {argument.dtype}"
        return None
    if kind == b"p":
        return "a scalar was given for a pointer"
    if kind in b"if" and argument.dtype.kind == "c":
        return f"the kernel takes no complex number there, {argument.dtype} was given"
    if kind == b"i" and argument.dtype.kind in "iub" and parameter.bytes < argument.itemsize:
        # CUDA would take the low bytes of a wider integer; so does this, where no value is lost.
        return _narrowing_fault(int(argument), parameter.bytes)
    if (kind == b"f") != (argument.dtype.kind == "f") or parameter.bytes != argument.itemsize:
        wanted = {b"i": "an integer", b"f": "a floating-point number"}.get(kind, "a structure")
        return f"the kernel takes {wanted} of {parameter.bytes} bytes, {argument.dtype} was given"
    return None


def _narrowing_fault(value: int, width: int) -> str | None:
    if -(1 << (8 * width - 1)) <= value < 1 << (8 * width):
        return None
    return f"{value} does not fit the kernel's integer of {width} bytes"


def _wrong(library: _Library, text: str) -> RunFailed:
    return RunFailed(f"kernel {library.name}: {text}", code="kernel-arguments")


def _pass_arguments(arguments: Sequence[KernelArgument]) -> tuple[Any, list[Any]]:
    """An array of pointers to each argument's value, and the objects that must live as long as it."""
    values: list[np.ndarray[Any, Any]] = []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            values.append(np.array([argument.ctypes.data], np.uint64))
        else:
            values.append(np.array([argument, np.zeros((), argument.dtype)]))
    pointers = (ctypes.c_void_p * max(1, len(values)))(*[value.ctypes.data for value in values])
    return pointers, [values, list(arguments)]


def _reason(error: OSError) -> str:
    """The loader's complaint without the path it begins with."""
    return str(error).rpartition("/")[2].partition(": ")[2] or "unknown symbol"
