"""CUDA C++ source on a machine without a GPU: the kernel backend of CPU workers.

Theory. A kernel without barriers is a function of its arguments and indices, so a launch is a loop. The source is
compiled as host C++ against the headers in `shim` (their theory is in coppermesh_cuda.h) into a library that exports
`coppermesh_run_0` (and so on, for the further kernels of a module), which takes blocks from a shared counter until
none is left and runs the threads of each in turn.
A launch calls it from a few operating-system threads at once; ctypes lets go of Python's lock meanwhile. Where
threads of a block wait for each other, each is a fiber (`shim/coppermesh_fibers.h`) in memory from `cuda_launch`.

The library also tells the kernel's parameters, so wrong arguments are an error here and not a wild read: their
number, the size of each scalar, and the element type where both sides are floating point. Arrays beyond their bounds
are the kernel's own affair; they cost its worker process.

A library is loaded from a sealed memory file, and stays loaded while a launch of it exists.
"""

import _ctypes
import contextlib
import ctypes
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from coppermesh.exec import linux
from coppermesh.exec.cuda_arguments import ArgumentTable, Parameter, launch_fields
from coppermesh.exec.cuda_build import Kernel
from coppermesh.exec.cuda_gate import check_cpu_source
from coppermesh.exec.cuda_launch import MAX_SHARED_BYTES, Arenas, LaunchState, explain_fault, too_much_shared
from coppermesh.exec.cuda_modules import ModuleParts, base_name
from coppermesh.exec.errors import KernelCompileError
from coppermesh.exec.runtime import Dim3, KernelArgument, Launch
from coppermesh.exec.threads import ThreadTeam

SHIM_VERSION = 5
"""Grows with every change of `shim` that may change a result."""
MAX_LOADED = 256
"""Libraries kept per worker; the one unused for longest goes first."""
THREADS_WORTH_SHARING = 4096
"""CUDA threads below which a launch stays on one processor core: waking a second one costs about 30 us."""
CHUNKS_PER_THREAD = 16
"""Blocks are handed out in this many pieces per core: few enough to be cheap, enough to even out."""

Builder = Callable[[Kernel], int]
"""Compiles; gives the library as a sealed memory file, or raises an ExecError."""
StoreFile = Callable[[bytes], int]
"""Puts bytes into a new sealed memory file and gives its descriptor. Raises OSError or an ExecError."""
Note = Callable[[str], None]
"""Told what runs, before it does, so that a crash can be explained."""


class _Symbol(ctypes.Structure):
    """`coppermesh::Symbol` of coppermesh_launch.h."""

    _fields_ = [("address", ctypes.c_void_p), ("bytes", ctypes.c_ulonglong), ("writable", ctypes.c_uint)]


class _Library:
    """One loaded copy of a module. Unloaded when nothing refers to it any more."""

    def __init__(self, kernel: Kernel, descriptor: int) -> None:
        """Load the library in the memory file `descriptor`, which is closed with it."""
        self.kernel = kernel
        self._descriptor = descriptor
        self._handle: int | None = None
        try:
            # The dynamic loader tells libraries apart by path: the descriptor stays open so that its number is not
            # used again while this one is loaded.
            self._library = ctypes.CDLL(f"/proc/self/fd/{descriptor}", mode=os.RTLD_NOW | os.RTLD_LOCAL)
        except OSError as error:
            raise KernelCompileError(kernel.name, f"the library does not load: {_reason(error)}") from error
        self._handle = self._library._handle  # noqa: SLF001 - ctypes documents it for dlclose
        for name in kernel.plain_names:
            if not hasattr(self._library, name):
                raise KernelCompileError(
                    name, f"kernel.cu: error: kernel '{name}' must be declared extern \"C\""
                )
        fibers = _Fibers(self._library) if hasattr(self._library, "coppermesh_static_shared") else None
        self.functions = [
            _Function(self._library, number, label, fibers) for number, label in enumerate(_labels(kernel))
        ]

    def copy(self, store: StoreFile) -> "_Library":
        """Another copy, whose variables are as the source initialises them."""
        size = os.fstat(self._descriptor).st_size
        return _Library(self.kernel, store(os.pread(self._descriptor, size, 0)))

    def symbol(self, number: int) -> np.ndarray[Any, Any]:
        """The bytes of a variable; read-only where it is const. They live as long as this library."""
        read = self._library[f"coppermesh_symbol_{number}"]
        read.restype = ctypes.POINTER(_Symbol)
        symbol = read().contents
        # not np.ctypeslib: NumPy imports that when it is first used, which a confined worker cannot do
        memory = np.frombuffer((ctypes.c_ubyte * symbol.bytes).from_address(symbol.address), dtype=np.uint8)
        memory.flags.writeable = bool(symbol.writable)
        return memory

    def __del__(self) -> None:
        if self._handle is not None:
            _ctypes.dlclose(self._handle)
        os.close(self._descriptor)


class _Fibers:
    """What a library exports beside its kernels where threads may wait for each other (`coppermesh_fibers.h`)."""

    def __init__(self, library: ctypes.CDLL) -> None:
        read = library.coppermesh_static_shared
        read.restype = ctypes.c_ulonglong
        self.static_bytes = int(read())
        self._catch, self._release = library.coppermesh_catch_signals, library.coppermesh_release_signals

    @contextlib.contextmanager
    def signals_caught(self, name: str, dynamic_bytes: int) -> Iterator[None]:
        """While a launch runs: accesses beside shared memory and stack overflows are told from wild pointers."""
        if self.static_bytes + dynamic_bytes > MAX_SHARED_BYTES:
            raise too_much_shared(name, self.static_bytes, dynamic_bytes)
        self._catch()
        try:
            yield
        finally:
            self._release()


class _Function:
    """One kernel of a loaded library, which must outlive it."""

    def __init__(self, library: ctypes.CDLL, number: int, name: str, fibers: _Fibers | None) -> None:
        self.name = name
        self.fibers = fibers
        self.run = library[f"coppermesh_run_{number}"]
        self.run.argtypes = [ctypes.POINTER(LaunchState), ctypes.c_void_p]
        self.run.restype = None
        count = ctypes.c_uint.in_dll(library, f"coppermesh_parameter_count_{number}").value
        read = library[f"coppermesh_parameters_{number}"]
        read.restype = ctypes.POINTER(Parameter * count)
        table = read().contents
        self.arguments = ArgumentTable(name, [table[position] for position in range(count)])


class CudaCpu:
    """Compiles and launches CUDA kernels on this machine's processor cores. One per worker process."""

    def __init__(
        self,
        builder: Builder,
        *,
        threads: int = 2,
        note: Note | None = None,
        compiler: str = "",
        store: StoreFile | None = None,
    ) -> None:
        """`compiler` is its name and version, for `determinism`; without `store` it makes memory files itself."""
        self.determinism = f"cuda-cpu/{SHIM_VERSION} {compiler} fp-contract=off".replace("  ", " ")
        self._builder = builder
        self._store = store or partial(linux.sealed_file, "coppermesh-kernel")
        self._team = ThreadTeam(threads)
        self._arenas = Arenas(self._team.size)
        self._note = note or (lambda text: None)
        self._libraries: OrderedDict[Kernel, _Library] = OrderedDict()

    def load(self, source: str, name: str, options: tuple[str, ...], function: str = "") -> Launch:
        """The kernel `name` of `source`, ready to launch; in a generated source it is called `function`.

        Raises SourceRefused (`unsupported-feature`), KernelCompileError, or what the builder raises.
        """
        kernel = Kernel(source, name, tuple(options), (function,) if function else ())
        module = _Module(self, self._library(kernel))
        return partial(module.launch, 0)

    def load_module(self, parts: ModuleParts, options: tuple[str, ...], *, fresh: bool) -> "_Module":
        """A copy of a module; with `fresh` one whose variables are as initialised. Raises as `load` does."""
        kernel = Kernel(
            parts.source,
            base_name((*parts.kernels, "module")[0]),
            tuple(options),
            parts.functions,
            parts.expressions,
            parts.symbols,
        )
        library = self._library(kernel)
        return _Module(self, library.copy(self._store) if fresh else library)

    def _library(self, kernel: Kernel) -> _Library:
        """The library of this kernel, built where it is not known."""
        library = self._libraries.get(kernel)
        if library is None:
            check_cpu_source(kernel.source, kernel.options)
            self._note(f"compiling kernel {kernel.name}")
            library = _Library(kernel, self._builder(kernel))
            self._note("")
            self._libraries[kernel] = library
            while len(self._libraries) > MAX_LOADED:
                self._libraries.popitem(last=False)
        self._libraries.move_to_end(kernel)
        return library

    def run_function(
        self,
        function: _Function,
        grid: Dim3,
        block: Dim3,
        shared_bytes: int,
        arguments: Sequence[KernelArgument],
    ) -> None:
        """Run one kernel to its end.

        Raises RunFailed where the arguments are not what it takes (`kernel-arguments`), or where it did something that
        it may not and that was noticed (`kernel-trap`).
        """
        function.arguments.check(arguments)
        blocks = grid[0] * grid[1] * grid[2]
        few = blocks * block[0] * block[1] * block[2] < THREADS_WORTH_SHARING
        wanted = 1 if few else min(self._team.size, blocks)
        chunk = max(1, blocks // (wanted * CHUNKS_PER_THREAD))
        frame = function.arguments.take()
        frame.fill(launch_fields(grid, block, chunk, shared_bytes, wanted), arguments)
        work = partial(function.run, frame.reference, frame.pointers)
        self._note(f"kernel {function.name}")
        if function.fibers is None:
            self._team.run(wanted, work)
        else:
            self._arenas.give(frame.state, block[0] * block[1] * block[2])
            with function.fibers.signals_caught(function.name, shared_bytes):
                self._team.run(wanted, work)
        self._note("")
        if frame.state.fault.claimed:
            raise explain_fault(function.name, frame.state.fault)
        function.arguments.give_back(frame)


class _Module:
    """A copy of a module, and who runs its kernels: the `LoadedModule` of this backend."""

    def __init__(self, owner: CudaCpu, library: _Library) -> None:
        self._owner = owner
        self._library = library

    def launch(
        self, function: int, grid: Dim3, block: Dim3, shared_bytes: int, arguments: Sequence[KernelArgument]
    ) -> None:
        """Run kernel `function` to its end."""
        self._owner.run_function(self._library.functions[function], grid, block, shared_bytes, arguments)

    def symbol(self, symbol: int) -> np.ndarray[Any, Any]:
        """The bytes of variable `symbol`, while this copy exists. Raises RunFailed where there is no such."""
        return self._library.symbol(symbol)


def _labels(kernel: Kernel) -> tuple[str, ...]:
    """What messages call each kernel of a library: one word."""
    return (kernel.name,) if len(kernel.kernels) == 1 else tuple(map(base_name, kernel.kernels))


def _reason(error: OSError) -> str:
    """The loader's complaint without the path it begins with."""
    return str(error).rpartition("/")[2].partition(": ")[2] or "unknown symbol"
