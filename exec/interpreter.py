"""Running a checked program over one array library: look up, call, check, free.

Nodes run in their order, in one loop without recursion. A value is dropped after its last use. Several values may be
views of one block of memory (`reshape`, `getitem`), so memory is counted, and written in place, by block: `Holdings`
knows how many live values rest on each. A kernel, or `setitem`, writes into an array's own memory when no other value
rests on it and nothing needs it afterwards, and into a copy otherwise. Inputs are never written.

What the checker promised of each result is verified: a library that answers with another dtype or shape is a fault to
report, not an answer to sign.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from coppermesh.exec.array_operations import ArrayFunction
from coppermesh.exec.budget import last_uses, releases
from coppermesh.exec.errors import ExecError, RunFailed
from coppermesh.exec.program import Scalar
from coppermesh.exec.runtime import Watch
from coppermesh.exec.schema import CheckedNode, CheckedProgram
from coppermesh.exec.shapes import as_python_index

KernelRunner = Callable[[CheckedNode, Sequence[Any], Sequence[bool]], Sequence[Any]]
"""Runs a kernel node on its arguments; for each argument whether its memory may be written. Gives the results."""


Scatter = Callable[[str, Any, int, Any, Any], None]
"""Writes `put` or `add_at` into an array in place: (operation, target, axis, int64 indices, values)."""

_ASSIGNMENTS = frozenset(("setitem", "put", "add_at"))


class Holdings:
    """The live values of a run, and the memory that they rest on. Constants lie behind the values, uncounted."""

    def __init__(self, count: int, constants: Sequence[Any] = ()) -> None:
        self.arrays: list[Any] = [None] * count
        self.arrays.extend(constants)
        self._blocks: list[Any] = [None] * count
        self.peak_bytes = 0
        self._held_bytes = 0
        self._resting: dict[int, int] = {}
        self._pinned: set[int] = set()

    def put(self, value: int, array: Any, *, pinned: bool = False) -> None:
        """Hold `array` as `value`; `pinned` memory is never to be written."""
        block = array if array.base is None else _block(array)
        key = id(block)
        count = self._resting.get(key, 0)
        if count == 0:
            self._held_bytes += block.nbytes
            self.peak_bytes = max(self.peak_bytes, self._held_bytes)
        self._resting[key] = count + 1
        self.arrays[value] = array
        self._blocks[value] = block
        if pinned:
            self._pinned.add(key)

    def lend(self, size: int) -> None:
        """Count `size` bytes that are held for a moment beside the live values."""
        self.peak_bytes = max(self.peak_bytes, self._held_bytes + size)

    def drop(self, value: int) -> None:
        """Let go of `value`."""
        block = self._blocks[value]
        key = id(block)
        self.arrays[value] = self._blocks[value] = None
        count = self._resting[key]
        if count > 1:
            self._resting[key] = count - 1
            return
        self._held_bytes -= block.nbytes
        del self._resting[key]
        if self._pinned:
            self._pinned.discard(key)

    def is_alone(self, value: int) -> bool:
        """Whether `value` is a whole C-contiguous block that no other value rests on and that may be written."""
        array = self.arrays[value]
        key = id(array)
        whole = array.base is None and array.flags.c_contiguous and array.flags.owndata
        return bool(whole) and self._resting.get(key) == 1 and key not in self._pinned


def _block(array: Any) -> Any:
    """The array that owns the memory of `array`."""
    base = array.base
    while base is not None and hasattr(base, "nbytes") and hasattr(base, "base"):
        array, base = base, base.base
    return array


@dataclass(frozen=True, slots=True)
class _Step:
    """One node with all that can be looked up before the run: a program runs many times, and nodes can be small."""

    number: int
    node: CheckedNode
    function: ArrayFunction | None
    """None where the interpreter itself has to act: kernels, loops, assignments."""
    slots: tuple[int, ...]
    """Where the arguments lie: numbers of values, then of the plan's constants behind them."""
    attrs: Any
    dues: tuple[tuple[tuple[int, ...], Any], ...]
    """Shape and dtype of each result."""
    released: tuple[int, ...]
    last_of_inputs: tuple[int, ...]
    """Inputs that nothing needs after it."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """The steps of one program, and its constants as scalars."""

    steps: tuple[_Step, ...]
    constants: tuple[Any, ...]


class Interpreter:
    """Runs checked programs with one library's functions and one way to run kernels."""

    def __init__(
        self,
        library: Any,
        table: dict[str, ArrayFunction],
        run_kernel: KernelRunner,
        scatter: Scatter | None = None,
    ) -> None:
        self._library = library
        self._scatter = self._scatter_plainly if scatter is None else scatter
        self._table = table
        self._run_kernel = run_kernel
        self._plan_name = f"plan {library.__name__}"

    def run(
        self,
        checked: CheckedProgram,
        inputs: Iterable[Any],
        given: Sequence[int] = (),
        watch: Watch | None = None,
    ) -> tuple[list[Any], int]:
        """The outputs (as they come: views, any layout) and the peak of held bytes.

        Inputs are not written, but for those whose number is in `given`, which are also let go of after their last use
        (pass an iterator where nobody else is to hold them). `watch` sees each node's results before a
        later node may write into their memory. Raises RunFailed, ExecError.
        """
        plan = self._plan(checked)
        holdings = Holdings(len(checked.values), plan.constants)
        for number, array in enumerate(inputs):
            holdings.put(number, array, pinned=number not in given)
        array = None
        for step in plan.steps:
            results = self._results(step, checked, holdings)
            if watch is not None:
                watch(step.number, results)
            for value, array in enumerate(results, step.node.first):
                holdings.put(value, array)
            for value in step.released:
                holdings.drop(value)
            for value in step.last_of_inputs:
                if value in given:
                    holdings.drop(value)
        return [holdings.arrays[number] for number in checked.program.outputs], holdings.peak_bytes

    def _plan(self, checked: CheckedProgram) -> _Plan:
        known: _Plan | None = checked.memo.get(self._plan_name)
        if known is not None:
            return known
        constants: list[Any] = []
        steps = []
        ending: dict[int, list[int]] = {}
        for value, last in enumerate(last_uses(checked)[: len(checked.input_specs)]):
            ending.setdefault(last, []).append(value)
        for number, (checked_node, released) in enumerate(zip(checked.nodes, releases(checked), strict=True)):
            node = checked_node.node
            slots = []
            for argument in node.args:
                if isinstance(argument, Scalar):
                    slots.append(len(checked.values) + len(constants))
                    constants.append(argument.value())
                elif not isinstance(argument, bytes):
                    slots.append(argument)
            dues = tuple((spec.shape, spec.numpy_dtype) for spec in checked_node.results)
            function = self._table.get(node.op)
            inputs = tuple(ending.get(number, ()))
            steps.append(
                _Step(number, checked_node, function, tuple(slots), node.attrs, dues, released, inputs)
            )
        plan = checked.memo[self._plan_name] = _Plan(tuple(steps), tuple(constants))
        return plan

    def _results(self, step: _Step, checked: CheckedProgram, holdings: Holdings) -> Sequence[Any]:
        try:
            arrays = [holdings.arrays[slot] for slot in step.slots]
            if step.function is None:
                results = self._act(step, checked, arrays, holdings)
            else:
                result = step.function(arrays, step.attrs)
                results = result if isinstance(result, tuple) else (result,)
        except ExecError as error:
            if error.node is None:
                error.node = step.number
            raise
        except (ArithmeticError, IndexError, MemoryError, TypeError, ValueError) as error:
            code = "memory-limit" if isinstance(error, MemoryError) else "run-failed"
            sentence = f"node {step.number} ({step.node.node.op}): {error}"
            raise RunFailed(sentence, code=code, node=step.number) from error
        if isinstance(results[0], self._library.ndarray) and len(results) == 1:
            _check_result(step, results[0], step.dues[0])
            return results
        arrays = [self._library.asarray(one) for one in results]
        for array, due in zip(arrays, step.dues, strict=True):
            _check_result(step, array, due)
        return arrays

    def _act(
        self, step: _Step, checked: CheckedProgram, arrays: list[Any], holdings: Holdings
    ) -> Sequence[Any]:
        node = step.node.node
        last = last_uses(checked)
        writable = [
            isinstance(argument, int)
            and last[argument] == step.number
            and node.args.count(argument) == 1
            and holdings.is_alone(argument)
            for argument in node.args
        ]
        if node.op == "scan":
            return self._scan(step.node, arrays, holdings)
        if node.op in _ASSIGNMENTS:
            return (self._assign(node.op, arrays, step.attrs, writable[0]),)
        return self._run_kernel(step.node, arrays, writable)

    def _scan(self, checked_node: CheckedNode, arrays: Sequence[Any], holdings: Holdings) -> list[Any]:
        attrs: Any = checked_node.node.attrs
        body = checked_node.call.body
        assert body is not None  # the checker put it there
        carries, scanned = attrs["carries"], attrs["scanned"]
        state, constants = list(arrays[:carries]), list(arrays[carries + scanned :])
        stacks = [self._library.empty(s.shape, s.numpy_dtype) for s in checked_node.results[carries:]]
        for step in range(attrs["length"]):
            elements = [self._private(array[step, ...]) for array in arrays[carries : carries + scanned]]
            given = range(
                carries if step else 0
            )  # the first state is the caller's, later ones are the loop's own
            try:
                results, peak = self.run(body.checked, [*state, *elements, *constants], given)
            except RunFailed as error:
                sentence = f"step {step} of the loop: {error.sentence}"
                raise RunFailed(sentence, code=error.code, detail=error.detail) from error
            holdings.lend(peak + body.estimate.output_bytes)
            state = [self._private(array) for array in results[:carries]]
            for stack, array in zip(stacks, results[carries:], strict=True):
                stack[step, ...] = array
        return state + stacks

    def _private(self, array: Any) -> Any:
        """An array that owns its memory."""
        return array if array.base is None else self._library.array(array, order="C", copy=True)

    def _assign(self, op: str, arrays: Sequence[Any], attrs: Any, writable: bool) -> Any:
        target = arrays[0] if writable else self._library.array(arrays[0], order="C", copy=True)
        if op == "setitem":
            target[as_python_index(attrs["index"])] = arrays[1]
            return target
        indices = self._library.asarray(arrays[1]).astype("int64", copy=False)
        self._scatter(op, target, attrs["axis"], indices, arrays[2])
        return target

    def _scatter_plainly(self, op: str, target: Any, axis: int, indices: Any, values: Any) -> None:
        index = (slice(None),) * axis + (indices,)
        if op == "put":
            target[index] = values
        else:
            self._library.add.at(target, index, values)


def _check_result(step: _Step, array: Any, due: tuple[tuple[int, ...], Any]) -> None:
    shape, dtype = due
    if array.shape != shape or (array.dtype is not dtype and array.dtype != dtype):
        raise RunFailed(
            f"node {step.number} ({step.node.node.op}) gave {array.dtype}{list(array.shape)} where"
            f" {dtype}{list(shape)} was due: a fault of this runtime",
            code="runtime-fault",
            node=step.number,
        )


def writable_copy(library: Any, array: Any, may_write: bool) -> Any:
    """`array` itself where it may be written, else a C-contiguous copy."""
    return array if may_write else library.array(array, order="C", copy=True)
