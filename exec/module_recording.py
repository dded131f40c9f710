"""Recording uses of a CUDA module: launches, and reads and writes of its variables, in their order.

A module whose source has variables carries a state from use to use (see `cuda_modules`); the recorder keeps the latest
state beside the source, as a handle keeps the latest version of an array. So what a kernel left in a variable is there
for the next launch of the same module object, in the same program, and for nobody else: two module objects of one
source have states of their own, and every run begins with the variables as the source initialises them.
"""

from collections.abc import Sequence

from coppermesh.exec import kernel_rules, name_expressions
from coppermesh.exec.cuda_modules import ModuleParts, has_state, make_module
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.graph import Operand, Value, record
from coppermesh.exec.program import ArraySpec, Attributes, KernelSource


class ModuleRecorder:
    """One module object of the user's."""

    def __init__(self, source: str, options: tuple[str, ...]) -> None:
        """Raises ProgramInvalid where the source or an option is not possible."""
        self._text = source
        self._options = options
        kernel_rules.check_kernel(self._source())
        self.has_state = has_state(source)
        self.state: Value | None = None

    def _source(self, *, function: str = "", expression: str = "", symbol: str = "") -> KernelSource:
        lists = [(name,) if name else () for name in (function, expression, symbol)]
        return make_module(ModuleParts(self._text, *lists), self._options)

    def kernel(self, name: str, *, is_expression: bool) -> KernelSource:
        """The source with this kernel named. Raises ProgramInvalid (`kernel-name`)."""
        if is_expression:
            return self._source(expression=name_expressions.canonical(name))
        if not name_expressions.is_plain(name):
            raise ProgramInvalid(
                "kernel-name",
                f'{name[:80]!r} is no name of an extern "C" kernel; templates go into name_expressions',
            )
        return self._source(function=name)

    def launch(
        self, kernel: KernelSource, operands: Sequence[Operand], attrs: Attributes
    ) -> tuple[Value, ...]:
        """Record a launch; gives the new versions of what it may write."""
        results = record("module_kernel", [*self._latest(), *operands], attrs, kernel)
        return self._keep(results) if self.has_state else results

    def set_symbol(self, name: str, offset: int, value: Value) -> None:
        """Record that the variable's bytes from `offset` on become those of `value`."""
        attrs: Attributes = {"kernel": 0, "symbol": 0, "offset": offset}
        self._keep(record("module_set", [*self._latest(), value], attrs, self._symbol_source(name)))

    def get_symbol(self, name: str, offset: int, spec: ArraySpec) -> Value:
        """Record a read of the variable's bytes from `offset` on."""
        attrs: Attributes = {
            "kernel": 0,
            "symbol": 0,
            "offset": offset,
            "dtype": spec.dtype,
            "shape": spec.shape,
        }
        [value] = self._keep(record("module_get", self._latest(), attrs, self._symbol_source(name)))
        return value

    def check_symbol(self, name: str) -> None:
        """Refuse a name that no variable of the source can have. Raises ProgramInvalid."""
        kernel_rules.check_kernel(self._symbol_source(name))
        if not self.has_state:
            raise ProgramInvalid(
                "kernel-state",
                f"the source declares no __device__ or __constant__ variable, so none named {name[:80]}",
            )

    def _symbol_source(self, name: str) -> KernelSource:
        return self._source(symbol=name)

    def _latest(self) -> list[Operand]:
        if not self.has_state:
            return []
        if self.state is None:
            [self.state] = record("module_state", [], {"kernel": 0}, self._source())
        return [self.state]

    def _keep(self, results: tuple[Value, ...]) -> tuple[Value, ...]:
        self.state = results[0]
        return results[1:]
