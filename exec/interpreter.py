"""Running a checked program over one array library: look up, call, check, free.

Nodes run in their order, in one loop without recursion. A value is dropped after its last use. Several values may be
views of one block of memory (`reshape`, `getitem`), so memory is counted, and written in place, by block: `Holdings`
knows how many live values rest on each. A kernel, or `setitem`, writes into an array's own memory when no other value
rests on it and nothing needs it afterwards, and into a copy otherwise. Inputs are never written.

What the checker promised of each result is verified: a library that answers with another dtype or shape is a fault to
report, not an answer to sign.
"""

from collections.abc import Callable, Sequence
from typing import Any

from coppermesh.exec.array_operations import ArrayFunction
from coppermesh.exec.budget import last_uses, releases
from coppermesh.exec.errors import ExecError, RunFailed
from coppermesh.exec.program import ArraySpec, Scalar
from coppermesh.exec.schema import CheckedNode, CheckedProgram
from coppermesh.exec.shapes import as_python_index

Watch = Callable[[int, Sequence[Any]], None]
"""Is shown each node's number and results, to look at and not to keep."""
KernelRunner = Callable[[CheckedNode, Sequence[Any], Sequence[bool]], Sequence[Any]]
"""Runs a kernel node on its arguments; for each argument whether its memory may be written. Gives the results."""


_ASSIGNMENTS = frozenset(("setitem", "put", "add_at"))


class Holdings:
    """The live values of a run, and the memory that they rest on."""

    def __init__(self, count: int) -> None:
        self.arrays: list[Any] = [None] * count
        self._blocks: list[Any] = [None] * count
        self.peak_bytes = 0
        self._held_bytes = 0
        self._resting: dict[int, int] = {}
        self._pinned: set[int] = set()

    def put(self, value: int, array: Any, *, pinned: bool = False) -> None:
        """Hold `array` as `value`; `pinned` memory is never to be written."""
        block = _block(array)
        key = id(block)
        if self._resting.get(key, 0) == 0:
            self._held_bytes += block.nbytes
            self.peak_bytes = max(self.peak_bytes, self._held_bytes)
        self._resting[key] = self._resting.get(key, 0) + 1
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
        self._resting[key] -= 1
        if self._resting[key] == 0:
            self._held_bytes -= block.nbytes
            del self._resting[key]
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


class Interpreter:
    """Runs checked programs with one library's functions and one way to run kernels."""

    def __init__(self, library: Any, table: dict[str, ArrayFunction], run_kernel: KernelRunner) -> None:
        self._library = library
        self._table = table
        self._run_kernel = run_kernel

    def run(
        self,
        checked: CheckedProgram,
        inputs: Sequence[Any],
        given: Sequence[int] = (),
        watch: Watch | None = None,
    ) -> tuple[list[Any], int]:
        """The outputs (as they come: views, any layout) and the peak of held bytes.

        Inputs are not written, but for those whose number is in `given`. `watch` sees each node's results before a
        later node may write into their memory. Raises RunFailed, ExecError.
        """
        holdings = Holdings(len(checked.values))
        last, released = last_uses(checked), releases(checked)
        for number, array in enumerate(inputs):
            holdings.put(number, array, pinned=number not in given)
        for number, checked_node in enumerate(checked.nodes):
            results = self._run_node(number, checked_node, holdings, last)
            if watch is not None:
                watch(number, results)
            for position, array in enumerate(results):
                holdings.put(checked_node.first + position, array)
            for value in released[number]:
                holdings.drop(value)
        return [holdings.arrays[number] for number in checked.program.outputs], holdings.peak_bytes

    def _run_node(
        self, number: int, checked_node: CheckedNode, holdings: Holdings, last: list[int]
    ) -> list[Any]:
        node = checked_node.node
        try:
            results = self._call(number, checked_node, holdings, last)
        except ExecError as error:
            if error.node is None:
                error.node = number
            raise
        except (ArithmeticError, IndexError, MemoryError, TypeError, ValueError) as error:
            code = "memory-limit" if isinstance(error, MemoryError) else "run-failed"
            raise RunFailed(f"node {number} ({node.op}): {error}", code=code, node=number) from error
        for array, spec in zip(results, checked_node.results, strict=True):
            _check_result(number, node.op, array, spec)
        return results

    def _call(self, number: int, checked_node: CheckedNode, holdings: Holdings, last: list[int]) -> list[Any]:
        node = checked_node.node
        arrays = [
            argument.value() if isinstance(argument, Scalar) else holdings.arrays[argument]
            for argument in node.args
            if not isinstance(argument, bytes)
        ]
        function = self._table.get(node.op)
        if function is not None:
            result = function(arrays, node.attrs)
            if isinstance(result, self._library.ndarray):
                return [result]
            return [
                self._library.asarray(one) for one in (result if isinstance(result, tuple) else (result,))
            ]
        writable = [
            isinstance(argument, int)
            and last[argument] == number
            and node.args.count(argument) == 1
            and holdings.is_alone(argument)
            for argument in node.args
        ]
        if node.op == "scan":
            return self._scan(checked_node, arrays, holdings)
        if node.op in _ASSIGNMENTS:
            return [self._assign(node.op, arrays, node.attrs, writable[0])]
        return list(self._run_kernel(checked_node, arrays, writable))

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
        index = (slice(None),) * attrs["axis"] + (indices,)
        if op == "put":
            target[index] = arrays[2]
        else:
            self._library.add.at(target, index, arrays[2])
        return target


def _check_result(number: int, op: str, array: Any, spec: ArraySpec) -> None:
    if array.shape != spec.shape or array.dtype != spec.numpy_dtype:
        raise RunFailed(
            f"node {number} ({op}) gave {array.dtype}{list(array.shape)} where {spec} was due: a fault of this runtime",
            code="runtime-fault",
            node=number,
        )


def writable_copy(library: Any, array: Any, may_write: bool) -> Any:
    """`array` itself where it may be written, else a C-contiguous copy."""
    return array if may_write else library.array(array, order="C", copy=True)
