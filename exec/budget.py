"""What a program will cost, told before anything runs, on the client and on the provider by the same arithmetic.

Memory is the peak over the program's order of the bytes of all values still needed (inputs are held throughout: the
worker keeps them for the next task), plus the working memory of the operation at hand. Every value counts in full,
also where a runtime could make do with a view, so the figure is an upper bound for a runtime that frees by liveness.
Operations are estimated by simple formulas (a product of m x k by k x n counts 2mkn, a Fourier transform 5 N log2 N):
good enough to refuse the absurd and to compare devices, not to promise a time.
"""

from dataclasses import dataclass
from typing import Final

from coppermesh.exec.errors import OverBudget
from coppermesh.exec.schema import CheckedNode, CheckedProgram

GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class RunLimits:
    """What a program may use."""

    memory_bytes: int = 4 * GIB
    """Arrays held at once, inputs and outputs included."""
    output_bytes: int = 1 * GIB
    flops: float = 1e17
    nodes: int = 100_000


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
    flops, nodes = 0.0, 0
    for number, checked_node in enumerate(checked.nodes):
        flops += checked_node.operation.cost(checked_node.call, checked_node.results)
        nodes += 1 if checked_node.call.body is None else 1 + checked_node.call.body.estimate.nodes
        for value in range(checked_node.first, checked_node.first + len(checked_node.results)):
            held += sizes[value]
        now = held + _scratch(checked_node)
        if now > peak:
            peak, peak_node = now, number
        for value in released[number]:
            held -= sizes[value]
    output_bytes = sum(spec.nbytes for spec in checked.output_specs)
    return Estimate(peak, peak_node, output_bytes, input_bytes, flops, nodes)


def _scratch(checked_node: CheckedNode) -> int:
    operation = checked_node.operation
    further = operation.workspace
    own = 0 if further is None else further(checked_node.call, checked_node.results)
    if operation.scratch:
        own += int(operation.scratch * sum(spec.nbytes for spec in checked_node.call.specs))
    return own


def check_budget(cost: Estimate, limits: RunLimits, checked: CheckedProgram | None = None) -> None:
    """Refuse a program that is over its limits. `checked` lets the sentence name the operation.

    Raises OverBudget: `over-memory`, `over-output`, `over-operations` or `over-nodes`.
    """
    if cost.nodes > limits.nodes:
        raise OverBudget("over-nodes", f"the program has {cost.nodes} nodes, the limit is {limits.nodes}")
    if cost.peak_bytes > limits.memory_bytes:
        place = _place(cost.peak_node, checked)
        raise OverBudget(
            "over-memory",
            f"{place} needs {format_bytes(cost.peak_bytes)} of memory, the limit is"
            f" {format_bytes(limits.memory_bytes)}",
            cost.peak_node,
        )
    if cost.output_bytes > limits.output_bytes:
        raise OverBudget(
            "over-output",
            f"the outputs have {format_bytes(cost.output_bytes)}, the limit is {format_bytes(limits.output_bytes)}",
        )
    if cost.flops > limits.flops:
        raise OverBudget(
            "over-operations",
            f"the program needs about {cost.flops:.2g} operations, the limit is {limits.flops:.2g}",
        )


def _place(node: int | None, checked: CheckedProgram | None) -> str:
    if node is None:
        return "the program's inputs alone"
    if checked is None:
        return f"node {node}"
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
