"""What runs programs: the interface between the worker and a runtime, and between a runtime and its kernels.

A runtime gets a program that was checked (`schema.check_program`) and is within its limits (`budget.check_budget`);
it may trust shapes and dtypes, and must still survive kernels, which are native code. It runs in a worker process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from coppermesh.exec.budget import RunLimits
from coppermesh.exec.cuda_modules import ModuleParts
from coppermesh.exec.schema import CheckedProgram

__all__ = [
    "Dim3",
    "KernelArgument",
    "KernelBackend",
    "Launch",
    "LoadedModule",
    "RunLimits",
    "RunResult",
    "Runtime",
    "Watch",
]

Dim3 = tuple[int, int, int]
KernelArgument = np.ndarray[Any, Any] | np.generic
"""An array (its address is passed; C-contiguous) or a scalar (passed by value, by its own type)."""

Watch = Callable[[int, Sequence[Any]], None]
"""Is shown each node's number and results, to look at and not to keep."""
Launch = Callable[[Dim3, Dim3, int, Sequence[KernelArgument]], None]
"""Run one kernel to its end: grid, block, bytes of dynamic shared memory, arguments. Written arrays change in place."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gave."""

    outputs: list[np.ndarray[Any, Any]]
    """C-contiguous arrays, one per program output, as `CheckedProgram.output_specs` says."""
    device_us: int | None
    """Microseconds between device events; None where the device has none (a CPU)."""
    peak_bytes: int
    """Most bytes of arrays held at once."""


class LoadedModule(Protocol):
    """One copy of a module: its kernels, and variables of its own."""

    def launch(
        self, function: int, grid: Dim3, block: Dim3, shared_bytes: int, arguments: Sequence[KernelArgument]
    ) -> None:
        """Run kernel `function` (see `ModuleParts.kernels`) to its end. Written arrays change in place."""
        ...

    def symbol(self, symbol: int) -> np.ndarray[Any, Any]:
        """The bytes of a variable (see `ModuleParts.symbols`), as uint8; writing there sets it."""
        ...


class KernelBackend(Protocol):
    """Turns CUDA C++ source into something that can be launched on this machine's own memory."""

    def load_module(self, parts: ModuleParts, options: tuple[str, ...], *, fresh: bool) -> LoadedModule:
        """Compile a module once, and give a copy of it: with `fresh` one whose variables are as initialised.

        Raises as `load` does.
        """
        ...

    def load(self, source: str, name: str, options: tuple[str, ...], function: str = "") -> Launch:
        """Compile `source` (or find it compiled) and return its kernel `name`.

        In a generated source the kernel is called `function`, whatever the user's name for it is.
        Raises KernelCompileError with the compiler's message, lines counted in `source`.
        """
        ...


class Runtime(Protocol):
    """Executes checked programs on one device."""

    @property
    def kind(self) -> str:
        """`cpu` or `cuda`."""
        ...

    @property
    def determinism(self) -> str:
        """What must be equal for two runs to agree bit for bit: runtime, versions, device. Printable, <= 128."""
        ...

    def determinism_of(self, checked: CheckedProgram) -> str:
        """The same for runs of one program, which need not share what it does not use."""
        ...

    def run(
        self,
        checked: CheckedProgram,
        inputs: Sequence[np.ndarray[Any, Any]],
        limits: RunLimits,
        watch: Watch | None = None,
        files: Sequence[int | None] = (),
    ) -> RunResult:
        """Run to the end. `inputs` are never written. `watch` is shown each node's results, in this process' memory.

        `files[n]` is an open descriptor of the file that input n lies in, None where it lies in none; a runtime may
        keep what it made of that file for later runs.

        Raises RunFailed, KernelCompileError, OverBudget; a kernel may also end the process.
        """
        ...
