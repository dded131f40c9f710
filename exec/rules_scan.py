"""The rule of `scan`, the one structured loop: a body run once for each element of the leading axis, state carried on.

The body is a program of its own, whose canonical bytes are the first argument; `schema` has decoded and checked it. Its
inputs are the carried values, one element of each scanned array, and what stays the same throughout; its outputs are
the carried values for the next step and one element of each stacked result. Carried values keep dtype and shape: a
body that grows is refused.
"""

from collections.abc import Sequence

from coppermesh.exec.operations import AttributeCheck, Call, define, is_int
from coppermesh.exec.program import ArraySpec
from coppermesh.exec.shapes import array_spec, refuse

MAX_LENGTH = 1 << 40
NODE_OVERHEAD = 1_000.0
"""Operations that looking up and calling one node counts for, each time: a step costs something even on one element."""


def _scan(call: Call) -> tuple[ArraySpec, ...]:
    carries, scanned, length = (call.integer(name) for name in ("carries", "scanned", "length"))
    body = call.body
    assert body is not None  # `schema` refuses a scan without one
    inputs, outputs = body.input_specs, body.output_specs
    if carries < 0 or scanned < 0 or carries + scanned > len(call.specs) or not 0 <= length <= MAX_LENGTH:
        raise refuse("bad-argument", f"{carries} carried, {scanned} scanned arrays, {length} steps")
    if len(inputs) != len(call.specs) or len(outputs) < carries:
        raise refuse("bad-argument", "the body's inputs or outputs are not as many as the scan needs")
    for number, (given, wanted) in enumerate(zip(call.specs, inputs, strict=True)):
        expected = given
        if carries <= number < carries + scanned:
            if given.shape[:1] != (length,):
                raise refuse("shape-mismatch", f"scanned array {given} does not have {length} elements")
            expected = ArraySpec(given.dtype, given.shape[1:])
        if expected != wanted:
            raise refuse("shape-mismatch", f"the body takes {wanted} where it is given {expected}")
    for number in range(carries):
        if outputs[number] != inputs[number]:
            raise refuse(
                "scan-growth",
                f"carried value {number} goes in as {inputs[number]}, comes out as {outputs[number]}",
            )
    stacked = tuple(array_spec(spec.dtype, (length, *spec.shape)) for spec in outputs[carries:])
    return (*outputs[:carries], *stacked)


def _cost(call: Call, _results: Sequence[ArraySpec]) -> float:
    assert call.body is not None
    estimate = call.body.estimate
    return call.integer("length") * (estimate.flops + NODE_OVERHEAD * (estimate.nodes + 1))


def _workspace(call: Call, _results: Sequence[ArraySpec]) -> int:
    """One step of the body, and its results beside the carried values that they replace."""
    assert call.body is not None
    return call.body.estimate.peak_bytes + call.body.estimate.output_bytes


def _define_scan() -> None:
    attrs: dict[str, AttributeCheck] = {
        "carries": is_int,
        "scanned": is_int,
        "length": is_int,
    }
    define("scan", (0, 127), _scan, _cost, attrs, workspace=_workspace, takes_body=True)


_define_scan()
