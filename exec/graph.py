"""The client's side of a program: immutable nodes, made one by one, checked as they are made.

A `Value` is one result of a recorded node. Nodes only ever refer to older values, so there is no way to make a cycle,
and nothing is ever changed: what a user sees as `x[0] = 1` is a new value that the handle `x` names from then on.
Shapes and dtypes are known at once, by the same rules that a provider will apply, so a mistake surfaces at the line
that makes it. That line is remembered with the node (never sent), for what is found out only later.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

from coppermesh.exec.errors import ExecError, ProgramInvalid
from coppermesh.exec.operations import Call
from coppermesh.exec.program import ArraySpec, AttributeValue, KernelSource, Scalar
from coppermesh.exec.schema import checked_body, infer, scalar_spec

INPUT = "input"
"""The `op` of a node that stands for data of the client."""

_OWN_MODULES = ("coppermesh.", "numpy.", "dask.")
"""Whose frames are never the user's: ours, and those of libraries that call us on the user's behalf."""

SourceLine = tuple[str, int]

P = ParamSpec("P")
R = TypeVar("R")


class RecordedNode:
    """One operation as recorded. Immutable by convention; compared by identity."""

    __slots__ = ("args", "attrs", "data", "kernel", "op", "results", "source")

    def __init__(
        self,
        op: str,
        args: tuple["Operand | bytes", ...],
        attrs: Mapping[str, AttributeValue],
        results: tuple[ArraySpec, ...],
        source: SourceLine,
        *,
        kernel: KernelSource | None = None,
        data: np.ndarray[Any, Any] | None = None,
    ) -> None:
        self.op = op
        self.args = args
        self.attrs = attrs
        self.results = results
        self.source = source
        self.kernel = kernel
        self.data = data


class Value:
    """One result of a node."""

    __slots__ = ("known", "node", "position", "spec")

    def __init__(self, node: RecordedNode, position: int) -> None:
        self.known: np.ndarray[Any, Any] | None = None  # filled in by a barrier, so that none happens twice
        self.node = node
        self.position = position
        self.spec = node.results[position]


Operand = Value | Scalar
"""What a node's argument is: another node's result, or a small constant."""


class Handle:
    """Base of the array that a user holds: names a value, and may come to name a newer one."""

    __slots__ = ("recorded",)

    def __init__(self, value: Value) -> None:
        self.recorded = value


def record(
    op: str,
    args: Sequence[Operand | bytes],
    attrs: Mapping[str, AttributeValue] | None = None,
    kernel: KernelSource | None = None,
) -> tuple[Value, ...]:
    """A new node and its results; bytes among `args` are a loop's body, and come first.

    Raises ProgramInvalid, pointing at the user's line, where the operation does not take such arguments.
    """
    checked_attrs = {} if attrs is None else attrs
    arrays = [argument for argument in args if not isinstance(argument, bytes)]
    specs = [operand_spec(argument) for argument in arrays]
    scalars = [argument if isinstance(argument, Scalar) else None for argument in arrays]
    try:
        body = checked_body(args[0]) if args and isinstance(args[0], bytes) else None
        results = infer(op, Call(specs, checked_attrs, scalars, kernel, body))
    except ExecError as error:
        if error.sentence.startswith(("argument is ", "attribute ")):  # rules do not name the operation
            error = ProgramInvalid(error.code, f"{op}: {error.sentence}")
        point_at_caller(error)
        raise error from None
    node = RecordedNode(op, tuple(args), checked_attrs, results, caller(), kernel=kernel)
    return tuple(Value(node, position) for position in range(len(results)))


def record_one(op: str, args: Sequence[Operand], attrs: Mapping[str, AttributeValue] | None = None) -> Value:
    """A new node with one result."""
    return record(op, args, attrs)[0]


def record_input(data: np.ndarray[Any, Any], dtype: str) -> Value:
    """A value that the client provides. `data` must be C-contiguous, little-endian, and left alone from now on."""
    spec = ArraySpec(dtype, data.shape)
    return Value(RecordedNode(INPUT, (), {}, (spec,), caller(), data=data), 0)


def operand_spec(operand: Operand) -> ArraySpec:
    """Dtype and shape of an operand."""
    return operand.spec if isinstance(operand, Value) else scalar_spec(operand)


def caller() -> SourceLine:
    """File and line of the innermost frame outside `_OWN_MODULES`: the user's own line."""
    frame = sys._getframe(1)  # noqa: SLF001  # the documented way to the calling frames
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OWN_MODULES):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def point_at_caller(error: ExecError) -> None:
    """Have the error's text end with the user's own line, unless it has one already."""
    if not error.line:
        filename, number = caller()
        error.line = f"{filename}:{number}"


def pointing_at_caller(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, with the user's own line in the errors that it raises. For what a user's code calls directly."""

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        try:
            return function(*args, **options)
        except ExecError as error:
            point_at_caller(error)
            raise

    return call
