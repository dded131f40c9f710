"""From lazy arrays to a program: what they need, in an order that depends on nothing else.

The order is that of a depth-first walk from the outputs, arguments left to right, each node after what it uses. It
does not depend on when nodes were recorded, on identities or on data, so the same code on the same shapes gives the
same bytes; what no output needs is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coppermesh.exec.cuda_modules import ModuleParts, make_module, module_parts
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.graph import (
    INPUT,
    Handle,
    Operand,
    RecordedNode,
    SourceLine,
    Value,
    caller,
    pointing_at_caller,
)
from coppermesh.exec.program import (
    ArraySpec,
    AttributeValue,
    KernelSource,
    Node,
    Program,
    Scalar,
    encode_program,
)
from coppermesh.exec.schema import CheckedProgram, check_program


@dataclass(frozen=True, slots=True)
class Recording:
    """A program ready to send, and what it needs."""

    program: bytes
    """Canonical bytes (`program.encode_program`)."""
    inputs: list[np.ndarray[Any, Any]]
    """C-contiguous, little-endian, in the program's order."""
    checked: CheckedProgram
    sources: tuple[SourceLine, ...]
    """For each node the file and line that recorded it. Stays on the client."""
    open_inputs: tuple[Value | None, ...] = ()
    """For each input the placeholder that it stands for; None where `inputs` holds its data."""

    def locate(self, node: int | None) -> str:
        """`file:line` of the user's code that recorded node `node`; empty where it is not known."""
        if node is None or not 0 <= node < len(self.sources):
            return ""
        filename, line = self.sources[node]
        return f"{filename}:{line}"


def placeholder(spec: ArraySpec) -> Value:
    """An input whose data will be given later: it has no value, not even where one is fetched at a barrier."""
    return Value(RecordedNode(INPUT, (), {}, (spec,), caller()), 0)


@pointing_at_caller
def trace(*arrays: Handle, placeholders: Sequence[Value] = ()) -> Recording:
    """The program that computes `arrays`, with only what they need, in an order that depends on nothing else.

    An input that is one of `placeholders` is an empty array in `inputs`, for the caller to replace. Raises
    ProgramInvalid where the whole breaks a limit (too many inputs, outputs or nodes), or needs other placeholders.
    """
    if not arrays:
        raise ProgramInvalid("no-outputs", "nothing to compute: pass at least one array")
    roots = [_value_of(array) for array in arrays]
    order = needed_nodes([root.node for root in roots])
    inputs = [node for node in order if node.op == INPUT]
    nodes = [node for node in order if node.op != INPUT]
    first: dict[int, int] = {}
    count = 0
    for node in (*inputs, *nodes):
        first[id(node)] = count
        count += len(node.results)
    kernels = KernelTable(nodes)
    program = Program(
        version=1,
        inputs=tuple(node.results[0] for node in inputs),
        kernels=(),
        nodes=tuple(program_node(node, first, kernels) for node in nodes),
        outputs=tuple(first[id(root.node)] + root.position for root in roots),
    )
    program = Program(program.version, program.inputs, kernels.sources(), program.nodes, program.outputs)
    sources = tuple(node.source for node in nodes)
    try:
        checked = check_program(program)
    except ProgramInvalid as error:
        if error.node is not None:
            file, line = sources[error.node]
            error.line = f"{file}:{line}"
        raise
    known = {id(value.node): value for value in placeholders}
    data = [_input_data(node, known) for node in inputs]
    opened = tuple(known.get(id(node)) for node in inputs)
    return Recording(encode_program(program), data, checked, sources, opened)


def _input_data(node: RecordedNode, placeholders: Mapping[int, Value]) -> np.ndarray[Any, Any]:
    if node.data is not None:
        return node.data
    if id(node) in placeholders:
        return np.empty(0, node.results[0].numpy_dtype)
    raise ProgramInvalid(
        "open-input",
        "an array that stood for data only while a function was traced is used after that; return it instead",
    )


def _value_of(array: Any) -> Value:
    if not isinstance(array, Handle):
        raise TypeError(f"{type(array).__name__} is not a lazy array; make one with xp.asarray")
    return array.recorded


def needed_nodes(roots: list[RecordedNode]) -> list[RecordedNode]:
    """Every node that the roots need, each after what it uses, arguments left to right. Never recurses."""
    order: list[RecordedNode] = []
    done: set[int] = set()
    entered: set[int] = set()
    stack = roots[::-1]
    while stack:
        node = stack[-1]
        key = id(node)
        if key in done:
            stack.pop()
        elif key in entered:
            stack.pop()
            done.add(key)
            order.append(node)
        else:
            entered.add(key)
            for argument in reversed(node.args):
                if isinstance(argument, Value) and id(argument.node) not in done:
                    stack.append(argument.node)
    return order


class KernelTable:
    """The kernel sources of a program, each once, in the order in which nodes use them.

    A recorded node names one kernel or variable of its module; here what the nodes use of a module comes together.
    """

    def __init__(self, nodes: Sequence[RecordedNode]) -> None:
        self._numbers: dict[KernelSource, int] = {}
        used: dict[tuple[str, tuple[str, ...]], list[ModuleParts]] = {}
        for node in nodes:
            if node.kernel is not None and node.kernel.kind == "module":
                parts = module_parts(node.kernel)
                used.setdefault((parts.source, node.kernel.options), []).append(parts)
        self._modules = {
            (source, options): make_module(
                ModuleParts(
                    source,
                    tuple({name for parts in several for name in parts.functions}),
                    tuple({name for parts in several for name in parts.expressions}),
                    tuple({name for parts in several for name in parts.symbols}),
                ),
                options,
            )
            for (source, options), several in used.items()
        }

    def sources(self) -> tuple[KernelSource, ...]:
        """What the program carries, after all its nodes were written."""
        return tuple(self._numbers)

    def attributes(self, node: RecordedNode) -> dict[str, AttributeValue]:
        """The node's attributes, with its kernel by number."""
        attrs = dict(sorted(node.attrs.items()))
        kernel = node.kernel
        if kernel is None:
            return attrs
        if kernel.kind == "module":
            own = module_parts(kernel)
            kernel = self._modules[own.source, kernel.options]
            whole = module_parts(kernel)
            if "function" in attrs:
                attrs["function"] = whole.kernels.index(own.kernels[0])
            if "symbol" in attrs:
                attrs["symbol"] = whole.symbols.index(own.symbols[0])
        attrs["kernel"] = self._numbers.setdefault(kernel, len(self._numbers))
        return attrs


def program_node(node: RecordedNode, first: dict[int, int], kernels: KernelTable) -> Node:
    """The node as a program writes it; `first` gives the number of each node's first result."""

    def number(operand: Operand | bytes) -> int | bytes | Scalar:
        return first[id(operand.node)] + operand.position if isinstance(operand, Value) else operand

    return Node(node.op, tuple(number(operand) for operand in node.args), kernels.attributes(node))
