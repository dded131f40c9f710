"""What a program will cost, told before anything runs, on the client and on the provider by the same arithmetic.

Memory is the peak over the program's order of the bytes of all values still needed (inputs are held throughout: the
worker keeps them for the next task), plus the working memory of the operation at hand. Every value counts in full,
also where a runtime could make do with a view, so the figure is an upper bound for a runtime that frees by liveness.
Operations are estimated by simple formulas (a product of m x k by k x n counts 2mkn, a Fourier transform 5 N log2 N):
good enough to refuse the absurd and to compare devices, not to promise a time.

Limits follow from a lease (`lease_limits`): its memory bounds what is held, what comes in and what goes out; its wall
limit, times more than any device of that kind can do in a second, bounds the operations. So a requester who knows what
will be in the lease refuses by the same limits, in the same words, as the provider would.
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from coppermesh.exec.errors import OverBudget
from coppermesh.exec.program import MAX_BODY_DEPTH, MAX_NODES, ArraySpec
from coppermesh.exec.schema import CheckedNode, CheckedProgram

GIB: Final = 1 << 30
WORKER_CORES: Final = 2
"""Processor cores a worker uses, where there are so many."""
CPU_CORE_OPERATIONS: Final = 1_500_000_000_000
"""Per second, more than a core can do: AVX-512 with two units adds and multiplies 16 numbers each (64 operations a
cycle), at 6 GHz; and four times that, since the estimate also counts what a runtime may do without (views)."""
GPU_OPERATIONS: Final = 4_000_000_000_000_000
"""Per second, more than a GPU can do in the precisions that programs have (an H200's tensor cores: 1e15 in TF32, with
sparsity); and four times that."""


@dataclass(frozen=True, slots=True)
class RunLimits:
    """What a program may use."""

    memory_bytes: int = 4 * GIB
    """Arrays held at once, inputs and outputs included."""
    output_bytes: int = 1 * GIB
    flops: float = 1e17
    nodes: int = MAX_NODES
    blob_bytes: int = 1 << 60
    """All inputs together, as they travel and lie in the store."""
    depth: int = MAX_BODY_DEPTH
    """Loops inside loops."""


def lease_limits(kind: str, memory_bytes: int, wall_limit_s: float) -> RunLimits:
    """What a program may use under a lease of a device of `kind` (`cpu`, `cuda`; `any` is the faster).

    A program that needs more operations than this cannot end within the wall limit.
    """
    speed = WORKER_CORES * CPU_CORE_OPERATIONS if kind == "cpu" else GPU_OPERATIONS
    return RunLimits(
        memory_bytes=memory_bytes,
        output_bytes=memory_bytes,
        flops=speed * wall_limit_s,
        blob_bytes=memory_bytes,
    )


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a checked program will use."""

    peak_bytes: int
    peak_node: int | None
    """The node at which the peak is reached; None where the inputs alone are the peak."""
    output_bytes: int
    input_bytes: int
    flops: float
    """A loop counts once for each step."""
    nodes: int
    """As written: the nodes of a loop's body count once."""
    depth: int
    """How many loops are inside one another; 0 without loops."""


def last_uses(checked: CheckedProgram) -> list[int]:
    """For each value the number of the last node that uses it; `len(nodes)` for outputs, -1 where nothing does."""
    known: list[int] | None = checked.memo.get("last_uses")
    if known is not None:
        return known
    last = [-1] * len(checked.values)
    for number, checked_node in enumerate(checked.nodes):
        for argument in checked_node.node.args:
            if isinstance(argument, int):
                last[argument] = number
    for output in checked.program.outputs:
        last[output] = len(checked.nodes)
    checked.memo["last_uses"] = last
    return last


def releases(checked: CheckedProgram) -> list[tuple[int, ...]]:
    """For each node the values that nothing needs after it: last uses of arguments, and results that nothing uses.

    Inputs are held throughout.
    """
    known: list[tuple[int, ...]] | None = checked.memo.get("releases")
    if known is None:
        gone: list[list[int]] = [[] for _ in checked.nodes]
        last = last_uses(checked)
        for checked_node, here in zip(checked.nodes, gone, strict=True):
            first = checked_node.first
            for value in range(first, first + len(checked_node.results)):
                if last[value] < 0:
                    here.append(value)
                elif last[value] < len(gone):
                    gone[last[value]].append(value)
        known = checked.memo["releases"] = [tuple(values) for values in gone]
    return known


def estimate(checked: CheckedProgram) -> Estimate:
    """The program's use of memory and operations. Linear in its nodes; exact integers for bytes."""
    known: Estimate | None = checked.memo.get("estimate")
    if known is None:
        known = checked.memo["estimate"] = _estimate(checked)
    return known


def _estimate(checked: CheckedProgram) -> Estimate:
    released = releases(checked)
    sizes = [spec.nbytes for spec in checked.values]
    input_bytes = sum(sizes[: len(checked.input_specs)])
    held, peak, peak_node = input_bytes, input_bytes, None
    flops, nodes, depth = 0.0, 0, 0
    for number, checked_node in enumerate(checked.nodes):
        flops += _cost(checked_node)
        nodes += _nodes(checked_node)
        depth = max(depth, _depth(checked_node))
        for value in range(checked_node.first, checked_node.first + len(checked_node.results)):
            held += sizes[value]
        now = held + _scratch(checked_node)
        if now > peak:
            peak, peak_node = now, number
        for value in released[number]:
            held -= sizes[value]
    output_bytes = sum(spec.nbytes for spec in checked.output_specs)
    return Estimate(peak, peak_node, output_bytes, input_bytes, flops, nodes, depth)


def _scratch(checked_node: CheckedNode) -> int:
    operation = checked_node.operation
    further = operation.workspace
    own = 0 if further is None else further(checked_node.call, checked_node.results)
    if operation.scratch:
        own += int(operation.scratch * sum(spec.nbytes for spec in checked_node.call.specs))
    return own


def _cost(checked_node: CheckedNode) -> float:
    return checked_node.operation.cost(checked_node.call, checked_node.results)


def _nodes(checked_node: CheckedNode) -> int:
    body = checked_node.call.body
    return 1 if body is None else 1 + body.estimate.nodes


def _depth(checked_node: CheckedNode) -> int:
    body = checked_node.call.body
    return 0 if body is None else 1 + body.estimate.depth


def check_budget(cost: Estimate, limits: RunLimits, checked: CheckedProgram) -> None:
    """Refuse a program that is over its limits, naming the node (or input) that is to blame, and the numbers.

    Raises OverBudget: `over-nodes`, `over-depth`, `over-blob-bytes`, `over-memory`, `over-output` or
    `over-operations`.
    """
    if cost.nodes > limits.nodes:
        raise _over_nodes(cost, limits, checked)
    if cost.depth > limits.depth:
        number = max(range(len(checked.nodes)), key=lambda number: _depth(checked.nodes[number]))
        text = f"{_place(number, checked)} nests loops {cost.depth} deep, the limit is {limits.depth}"
        raise OverBudget("over-depth", text, number)
    if cost.input_bytes > limits.blob_bytes:
        text = (
            f"the inputs have {format_bytes(cost.input_bytes)}; {_largest_input(checked)}; "
            f"the limit is {format_bytes(limits.blob_bytes)}"
        )
        raise OverBudget("over-blob-bytes", text)
    if cost.peak_bytes > limits.memory_bytes:
        raise _over_memory(cost, limits, checked)
    if cost.output_bytes > limits.output_bytes:
        raise _over_output(cost, limits, checked)
    if cost.flops > limits.flops:
        number = max(range(len(checked.nodes)), key=lambda number: _cost(checked.nodes[number]))
        text = (
            f"{_place(number, checked)} needs about {_cost(checked.nodes[number]):.2g} of the program's "
            f"{cost.flops:.2g} operations, the limit is {limits.flops:.2g}"
        )
        raise OverBudget("over-operations", text, number)


def _over_nodes(cost: Estimate, limits: RunLimits, checked: CheckedProgram) -> OverBudget:
    """Names the first node over the limit."""
    counts = accumulate(_nodes(checked_node) for checked_node in checked.nodes)
    crossing = next(number for number, count in enumerate(counts) if count > limits.nodes)
    text = (
        f"{_place(crossing, checked)} is the first over the limit of {limits.nodes} nodes; the program has "
        f"{cost.nodes}, those in the bodies of loops included"
    )
    return OverBudget("over-nodes", text, crossing)


def _over_memory(cost: Estimate, limits: RunLimits, checked: CheckedProgram) -> OverBudget:
    limit = format_bytes(limits.memory_bytes)
    if cost.input_bytes > limits.memory_bytes or cost.peak_node is None:
        text = (
            f"the program's inputs need {format_bytes(cost.input_bytes)} of memory; {_largest_input(checked)}; "
            f"the limit is {limit}"
        )
        return OverBudget("over-memory", text)
    place = _place(cost.peak_node, checked)
    text = f"{place} needs {format_bytes(cost.peak_bytes)} of memory, the limit is {limit}"
    return OverBudget("over-memory", text, cost.peak_node)


def _over_output(cost: Estimate, limits: RunLimits, checked: CheckedProgram) -> OverBudget:
    """Names the largest output by the node that gives it."""
    specs = checked.output_specs
    output = max(range(len(specs)), key=lambda number: specs[number].nbytes)
    value = checked.program.outputs[output]
    node = _node_of(value, checked)
    place = f"input {value} ({specs[output]})" if node is None else _place(node, checked)
    text = (
        f"{place} gives output {output} of {format_bytes(specs[output].nbytes)}; all outputs have "
        f"{format_bytes(cost.output_bytes)}, the limit is {format_bytes(limits.output_bytes)}"
    )
    return OverBudget("over-output", text, node)


def _node_of(value: int, checked: CheckedProgram) -> int | None:
    """The node that gives a value; None for an input."""
    if value < len(checked.input_specs):
        return None
    return bisect_right(checked.nodes, value, key=lambda checked_node: checked_node.first) - 1


def _largest_input(checked: CheckedProgram) -> str:
    number = max(range(len(checked.input_specs)), key=lambda number: checked.input_specs[number].nbytes)
    spec: ArraySpec = checked.input_specs[number]
    return f"input {number} ({spec}) has {format_bytes(spec.nbytes)}"


def _place(node: int, checked: CheckedProgram) -> str:
    results = " and ".join(str(spec) for spec in checked.nodes[node].results[:4])
    return f"node {node} ({checked.nodes[node].node.op}, giving {results})"


def format_bytes(count: int) -> str:
    """`count` bytes for a person, in binary units: `100 TiB`, `1.5 MiB`, `17 bytes`."""
    size = float(count)
    unit = "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    text = f"{size:.2f}".rstrip("0").rstrip(".")
    return f"{text} {unit}"
