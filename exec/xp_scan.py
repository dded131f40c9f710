"""`xp.scan`: a loop that is one node, however long it runs.

>>> from coppermesh.exec import xp
>>> total, running = xp.scan(lambda total, x: (total + x, total), xp.zeros(()), xp.arange(1000.0))
>>> running.shape
(1000,)

The body is called once, with arrays that stand for one step's values, and recorded as a program of its own. What it
uses from outside and what does not change from step to step is computed once, before the loop.
"""

from collections.abc import Callable, Sequence

from coppermesh.exec import barrier
from coppermesh.exec.graph import RecordedNode, Value, pointing_at_caller, record
from coppermesh.exec.program import VERSION, ArraySpec, Attributes, Program, encode_program
from coppermesh.exec.promotion import as_value
from coppermesh.exec.recorder import Array
from coppermesh.exec.tracing import KernelTable, needed_nodes, placeholder, program_node
from coppermesh.exec.trees import Tree, leaves_of, rebuilt, structure_of


@pointing_at_caller
def scan(
    body: Callable[[Tree, Tree], tuple[Tree, Tree]],
    carry: Tree,
    xs: Tree = None,
    /,
    *,
    length: int | None = None,
) -> tuple[Tree, Tree]:
    """`carry, y = body(carry, x)` for each `x` of `xs` along the first axis; gives the last carry and all `y` stacked.

    `carry`, `xs` and `y` are arrays, None, or tuples, lists and dicts of these; the carry keeps its structure, shapes
    and dtypes. `length` is needed where `xs` has no array. Raises ProgramInvalid (`scan-growth`) for a carry that
    changes, NeedsValue where the body asks for a value.
    """
    carried, scanned = _values(carry), _values(xs)
    steps = _length(scanned, length)
    parameters = [placeholder(value.spec) for value in carried]
    parameters += [placeholder(ArraySpec(value.spec.dtype, value.spec.shape[1:])) for value in scanned]
    handles = [Array(value) for value in parameters]
    with barrier.evaluator(None):
        result = body(rebuilt(carry, handles[: len(carried)]), rebuilt(xs, handles[len(carried) :]))
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError("the body of a scan returns two things: the carry, and what to stack (or None)")
    next_carry, stacked = result
    if structure_of(next_carry) != structure_of(carry):
        raise TypeError(
            f"the carry goes in as {structure_of(carry)} and comes out as {structure_of(next_carry)}"
        )
    outputs = [*_values(next_carry), *_values(stacked)]
    program, constants = _body_program(parameters, outputs)
    attrs: Attributes = {
        "carries": len(carried),
        "length": steps,
        "scanned": len(scanned),
    }
    results = [Array(value) for value in record("scan", [program, *carried, *scanned, *constants], attrs)]
    return rebuilt(carry, results[: len(carried)]), rebuilt(stacked, results[len(carried) :])


def _length(scanned: Sequence[Value], length: int | None) -> int:
    lengths = {value.spec.shape[0] if value.spec.ndim else None for value in scanned}
    if length is not None:
        lengths.add(int(length))
    if len(lengths) != 1 or None in lengths:
        given = ", ".join("no axis" if one is None else str(one) for one in lengths) or "no arrays"
        raise ValueError(f"a scan needs xs of one length along their first axis, or length=; it has {given}")
    [only] = lengths
    assert only is not None
    return only


def _body_program(parameters: list[Value], outputs: list[Value]) -> tuple[bytes, list[Value]]:
    """The program from parameters to outputs, and the values from outside that are its further inputs."""
    inside = {id(value.node) for value in parameters}
    nodes: list[RecordedNode] = []
    for node in needed_nodes([value.node for value in outputs]):
        if any(isinstance(argument, Value) and id(argument.node) in inside for argument in node.args):
            inside.add(id(node))
            nodes.append(node)
    constants: dict[tuple[int, int], Value] = {}
    for value in [
        argument for node in nodes for argument in node.args if isinstance(argument, Value)
    ] + outputs:
        if id(value.node) not in inside:
            constants.setdefault((id(value.node), value.position), value)
    # A value from outside becomes an input of the body; the nodes that use it refer to that input instead.
    stand_ins = {key: placeholder(value.spec) for key, value in constants.items()}
    first: dict[int, int] = {}
    inputs = [*parameters, *stand_ins.values()]
    for number, value in enumerate(inputs):
        first[id(value.node)] = number
    count = len(inputs)
    moved: list[RecordedNode] = []
    for node in nodes:
        args = tuple(
            stand_ins.get((id(a.node), a.position), a) if isinstance(a, Value) else a for a in node.args
        )
        moved.append(RecordedNode(node.op, args, node.attrs, node.results, node.source, kernel=node.kernel))
        first[id(node)] = count
        count += len(node.results)
    numbered = [stand_ins.get((id(value.node), value.position), value) for value in outputs]
    kernels = KernelTable(moved)
    body_nodes = tuple(program_node(node, first, kernels) for node in moved)
    program = Program(
        version=VERSION,
        inputs=tuple(value.spec for value in inputs),
        kernels=kernels.sources(),
        nodes=body_nodes,
        outputs=tuple(first[id(value.node)] + value.position for value in numbered),
    )
    return encode_program(program), list(constants.values())


def _values(tree: Tree) -> list[Value]:
    return [as_value(leaf) for leaf in leaves_of(tree)]
