"""Checking a program: the same rules, run by the client before it sends and by the provider before it runs.

A name from a list is not enough: in a trial, dtype strings and `out=` keywords reached NumPy through whitelisted names.
So each node is checked whole: its operation, the number of arguments, that each refers to an earlier value, that its
attributes are exactly those of the operation and of the right type, and that shapes and dtypes fit. The check visits
every node once, in order, without recursion, and holds no array: time is linear in the program's bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coppermesh.exec import (
    kernel_rules,
    rules_arrangement,
    rules_elementwise,
    rules_linalg,
    rules_modules,
    rules_products,
    rules_reductions,
    rules_scan,
    rules_windows,
)
from coppermesh.exec.cuda_needs import kernel_needs
from coppermesh.exec.dtypes import HALF, ITEMSIZES, NUMPY_DTYPES
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.operations import OPERATIONS, Call, Operation
from coppermesh.exec.program import (
    MAX_BODY_DEPTH,
    MAX_INPUTS,
    MAX_KERNELS,
    MAX_NODES,
    MAX_OUTPUTS,
    ArraySpec,
    KernelSource,
    Node,
    Program,
    Scalar,
    decode_program,
)
from coppermesh.exec.shapes import array_spec

if TYPE_CHECKING:
    from coppermesh.exec.budget import Estimate

# Each of these modules fills its part of the table when it is imported.
_RULES = (
    kernel_rules,
    rules_arrangement,
    rules_elementwise,
    rules_linalg,
    rules_modules,
    rules_products,
    rules_reductions,
    rules_scan,
    rules_windows,
)

FEATURE_ARRAYS = "array-programs"
FEATURE_HALF = "float16-arrays"
_LOOP_KINDS = frozenset({"elementwise", "reduction"})
FEATURE_CUDA_SOURCE = "cuda-source"


@dataclass(frozen=True, slots=True)
class CheckedNode:
    """One node with its place and its results: values `first` to `first + len(results) - 1`."""

    node: Node
    operation: Operation
    first: int
    call: Call
    results: tuple[ArraySpec, ...]


@dataclass(frozen=True, slots=True)
class CheckedProgram:
    """A program whose every rule was checked. Only `check_program` makes one."""

    program: Program
    nodes: tuple[CheckedNode, ...]
    values: tuple[ArraySpec, ...]
    """Specs of all values by number: inputs, then every node's results."""
    input_specs: list[ArraySpec]
    output_specs: list[ArraySpec]
    features: frozenset[str]
    """What a provider must offer to run it."""
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What `budget` has worked out about it, so that it is worked out once."""


@dataclass(frozen=True, slots=True)
class CheckedBody:
    """The body of a loop: checked, and its cost for one step."""

    checked: CheckedProgram
    estimate: "Estimate"

    @property
    def input_specs(self) -> list[ArraySpec]:
        """Carried values, one element of each scanned array, constants."""
        return self.checked.input_specs

    @property
    def output_specs(self) -> list[ArraySpec]:
        """Carried values, one element of each stacked result."""
        return self.checked.output_specs


def checked_body(data: bytes, depth: int = 0) -> CheckedBody:
    """The body of a loop from its bytes. `depth` counts the bodies around the loop.

    Raises ProgramInvalid; the node's number in it, where there is one, is of the body's nodes.
    """
    from coppermesh.exec.budget import estimate  # built on this module

    if depth >= MAX_BODY_DEPTH:
        raise ProgramInvalid("scan-depth", f"loops may be nested {MAX_BODY_DEPTH} deep")
    body = decode_program(data)
    checked = check_program(body, depth + 1)
    return CheckedBody(checked, estimate(checked))


def infer(call_op: str, call: Call) -> tuple[ArraySpec, ...]:
    """Result specs of one operation on arguments of these specs. Raises ProgramInvalid without a node number."""
    operation = OPERATIONS.get(call_op)
    if operation is None:
        raise ProgramInvalid("unknown-operation", f"operation {call_op[:40]!r} is not known")
    if operation.takes_body != (call.body is not None):
        raise ProgramInvalid(
            "bad-argument", "a loop's body as the first argument belongs to loops, and only there"
        )
    low, high = operation.arity
    if not low <= len(call.specs) <= high:
        raise ProgramInvalid("bad-argument", f"takes {low} to {high} arguments, {len(call.specs)} were given")
    if call.attrs.keys() != operation.attrs.keys():
        wanted = ", ".join(operation.attrs) or "none"
        raise ProgramInvalid("bad-attribute", f"has attributes {sorted(call.attrs)}, but must have: {wanted}")
    for name, is_valid in operation.attrs.items():
        if not is_valid(call.attrs[name]):
            raise ProgramInvalid(
                "bad-attribute", f"attribute {name} cannot be {str(call.attrs[name])[:80]!r}"
            )
    result = operation.rule(call)
    return (result,) if isinstance(result, ArraySpec) else result


def check_program(program: Program, depth: int = 0) -> CheckedProgram:
    """Check everything but sizes (see `budget`); `depth` is that of a loop's body. Raises ProgramInvalid."""
    _check_counts(program)
    for number, kernel in enumerate(program.kernels):
        _check_kernel(number, kernel)
    values = [_checked_input(number, spec) for number, spec in enumerate(program.inputs)]
    nodes: list[CheckedNode] = []
    used_kernels: set[int] = set()
    states: dict[int, tuple[int, int]] = {}
    for number, node in enumerate(program.nodes):
        try:
            checked = _check_node(node, values, program.kernels, depth, states)
        except ProgramInvalid as error:
            raise ProgramInvalid(
                error.code, f"node {number} ({node.op[:32]}): {error.sentence}", number
            ) from error
        nodes.append(checked)
        values.extend(checked.results)
        if checked.call.kernel is not None:
            used_kernels.add(_kernel_number(node))
    if len(used_kernels) != len(program.kernels):
        raise ProgramInvalid("unused-kernel", "the program carries a kernel that no node uses")
    if program.outputs and max(program.outputs) >= len(values):
        raise ProgramInvalid("bad-reference", f"output {max(program.outputs)} is no value of the program")
    features = {FEATURE_ARRAYS, FEATURE_CUDA_SOURCE} if program.kernels else {FEATURE_ARRAYS}
    features.update(need.code for need in kernel_needs(program.kernels))
    if _holds_halves(program, values):
        features.add(FEATURE_HALF)
    for checked in nodes:
        if checked.call.body is not None:
            features |= checked.call.body.checked.features
    outputs = [values[number] for number in program.outputs]
    return CheckedProgram(
        program, tuple(nodes), tuple(values), list(program.inputs), outputs, frozenset(features)
    )


def _holds_halves(program: Program, values: Sequence[ArraySpec]) -> bool:
    """Among its arrays, its constants, or the types that its elementwise kernels and reductions name."""
    named = any(
        kernel.kind in _LOOP_KINDS and any(HALF in it for it in kernel.texts) for kernel in program.kernels
    )
    constants = any(isinstance(it, Scalar) and it.dtype == HALF for node in program.nodes for it in node.args)
    return named or constants or any(spec.dtype == HALF for spec in values)


def _check_counts(program: Program) -> None:
    # decode_program has checked these; a program built in memory has not been decoded.
    for what, count, limit in (
        ("inputs", len(program.inputs), MAX_INPUTS),
        ("outputs", len(program.outputs), MAX_OUTPUTS),
        ("kernels", len(program.kernels), MAX_KERNELS),
        ("nodes", len(program.nodes), MAX_NODES),
    ):
        if count > limit:
            raise ProgramInvalid(
                f"too-many-{what}",
                f"the program has {count} {what}, at most {limit} are possible"
                + ("; xp.scan records a loop as one node" if what == "nodes" else ""),
            )
    if not program.outputs:
        raise ProgramInvalid("no-outputs", "the program has no output")


def _check_kernel(number: int, kernel: KernelSource) -> None:
    try:
        kernel_rules.check_kernel(kernel)
    except ProgramInvalid as error:
        raise ProgramInvalid(error.code, f"kernel {number} ({kernel.name}): {error.sentence}") from error


def _checked_input(number: int, spec: ArraySpec) -> ArraySpec:
    if spec.dtype not in NUMPY_DTYPES:
        raise ProgramInvalid(
            "bad-dtype", f"input {number} has dtype {spec.dtype!r}, which no program can hold"
        )
    try:
        return array_spec(spec.dtype, spec.shape)
    except ProgramInvalid as error:
        raise ProgramInvalid(error.code, f"input {number}: {error.sentence}") from error


def _check_node(
    node: Node,
    values: Sequence[ArraySpec],
    kernels: Sequence[KernelSource],
    depth: int,
    states: dict[int, tuple[int, int]],
) -> CheckedNode:
    """`states` holds each state that may still be used: the value that its chain began as, and its module."""
    specs: list[ArraySpec] = []
    scalars: list[Scalar | None] = []
    body = None
    for position, argument in enumerate(node.args):
        if isinstance(argument, bytes):
            if position:
                raise ProgramInvalid("bad-argument", "the body of a loop is its first argument")
            body = checked_body(argument, depth)
        elif isinstance(argument, Scalar):
            specs.append(scalar_spec(argument))
            scalars.append(argument)
        elif 0 <= argument < len(values):
            specs.append(values[argument])
            scalars.append(None)
        else:
            raise ProgramInvalid(
                "bad-reference", f"argument {argument} is no earlier value ({len(values)} are known)"
            )
    kernel = None
    if "kernel" in node.attrs:
        number = _kernel_number(node)
        if not 0 <= number < len(kernels):
            raise ProgramInvalid("bad-reference", f"kernel {number} is not in the program")
        kernel = kernels[number]
    first = len(values)
    chain = None
    if kernel is not None and node.op in rules_modules.OPERATIONS and rules_modules.needs_state(kernel):
        if depth:
            raise ProgramInvalid(
                "scan-kernel", "the body of a loop launches a kernel of a module with variables of its own"
            )
        chain = first if node.op == "module_state" else _take_state(node, states)
    call = Call(specs, node.attrs, scalars, kernel, body, chain)
    results = infer(node.op, call)
    if chain is not None:
        states[first] = chain, _kernel_number(node)
    return CheckedNode(node, OPERATIONS[node.op], first, call, results)


def _take_state(node: Node, states: dict[int, tuple[int, int]]) -> int:
    """The value that the state used by `node` began as. Raises ProgramInvalid where that is not the latest state."""
    state = node.args[0] if node.args else None
    chain = states.pop(state, None) if isinstance(state, int) else None
    if chain is None or chain[1] != _kernel_number(node):
        raise ProgramInvalid(
            "kernel-state", "the first argument is not the latest state of this module: each may be used once"
        )
    return chain[0]


def _kernel_number(node: Node) -> int:
    number = node.attrs["kernel"]
    if not isinstance(number, int) or isinstance(number, bool):
        raise ProgramInvalid("bad-attribute", "a kernel is named by its number")
    return number


def scalar_spec(scalar: Scalar) -> ArraySpec:
    """The spec of a constant written in place: no dimensions. Raises ProgramInvalid for a wrong length or value."""
    if scalar.dtype not in ITEMSIZES:
        raise ProgramInvalid("bad-dtype", f"a constant has dtype {scalar.dtype!r}, which no program can hold")
    if len(scalar.data) != ITEMSIZES[scalar.dtype]:
        raise ProgramInvalid("bad-constant", f"a constant of {scalar.dtype} has {len(scalar.data)} bytes")
    if scalar.dtype == "bool" and scalar.data not in (b"\0", b"\1"):
        raise ProgramInvalid("bad-constant", "a boolean constant is the byte 0 or 1")
    return ArraySpec(scalar.dtype, ())
