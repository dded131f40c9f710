"""How far two honest results of a program may lie apart, element by element, where the inputs are at hand.

Theory of operation: running error analysis (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 3.3). The
program runs here once, with NumPy, and an array of errors goes along with each value: what two runs may differ by at
that element, as float64. A node's result gets what its arguments' errors become, and its own rounding
(`tolerance_bounds.own_steps`) of the magnitudes that went into it:

- a sum of two adds their errors, so where terms cancel the error is that of the terms and not of what is left;
- monotone functions are taken at both ends of what their argument may be, `sin` and `cos` pass errors on, complex
  functions multiply by the derivative's modulus;
- products of matrices, sums, convolutions add |x| |y| n roundings, and what their terms carry as independent errors
  (root of the sum of squares: Higham and Mary, A new approach to probabilistic rounding error analysis, SIAM J. Sci.
  Comput. 41, 2019). Added up they would grow by the root of n with every product, and say nothing after ten layers;
- moving moves the errors along, and a choice (`x > 0`, `floor`, `where`) is open only where both answers are possible;
- transforms and factorisations have the scale of a row or a matrix, the latter times its condition number.

A bound over 1 % of the largest magnitude in its array says little: what cancelled there is all rounding, or the program
is deep, and worst cases have multiplied. Then the program is run some times more with random errors of the size that
each node has as a rule (Monte Carlo arithmetic: Parker, UCLA CSD-970002, 1997), and the largest change seen in the
array, times `ALLOWANCE`, is allowed where it is less. Not where the program makes open choices: few runs do not show
both sides.

What a kernel or a loop gives is unknown, and so is what follows from it, eigenvectors, singular vectors, `qr`, and
positions (`argsort`) among inexact numbers. There `tolerance_bounds` has to do.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from coppermesh.exec.budget import releases
from coppermesh.exec.dtypes import INEXACT
from coppermesh.exec.error_rules import (
    ASSIGNING,
    POSITIONS,
    TABLE,
    UNDETERMINED,
    Errors,
    Step,
    as_double,
    assign,
    rule_for,
)
from coppermesh.exec.program import ArraySpec, Scalar
from coppermesh.exec.schema import CheckedNode, CheckedProgram
from coppermesh.exec.tolerance_bounds import ALLOWANCE, CHAOTIC, CHOOSING, LARGEST_RELATIVE, own_steps, unit

DISTURBED_RUNS: Final = 5
DISTURBED_SEED: Final = 20110
"""Any will do; always the same, so that a comparison comes out the same."""
RUNNING_ALLOWANCE: Final = 8.0
"""Room for what is correlated after all, and for second-order terms."""


def output_errors(checked: CheckedProgram, inputs: Sequence[Any]) -> list[Errors | None]:
    """For each output what its elements may differ by, allowance included; None where nothing can be told.

    Runs the program in this process, with NumPy: memory and time are those of a few runs. Kernels do not run.
    """
    values: list[Any] = [*inputs, *(None for _ in checked.values[len(inputs) :])]
    errors: list[Errors | None] = [0.0 if number < len(inputs) else None for number in range(len(values))]
    chooses = False
    with np.errstate(all="ignore"):
        for node, released in zip(checked.nodes, releases(checked), strict=True):
            for position, (value, error) in enumerate(_run(node, values, errors)):
                values[node.first + position], errors[node.first + position] = value, error
                chooses = chooses or (node.node.op in CHOOSING and error is not None and bool(np.any(error)))
            for number in released:
                values[number] = errors[number] = None
        outputs = checked.program.outputs
        found = [_with_allowance(errors[number]) for number in outputs]
        if chooses or not any(
            _says_little(error, values[number]) for error, number in zip(found, outputs, strict=True)
        ):
            return found
        changes = _largest_changes(checked, inputs, [values[number] for number in outputs])
        return [
            np.minimum(error, change) if error is not None and _says_little(error, values[number]) else error
            for error, change, number in zip(found, changes, outputs, strict=True)
        ]


def _with_allowance(error: Errors | None) -> Errors | None:
    return None if error is None else RUNNING_ALLOWANCE * error


def _says_little(error: Errors | None, value: Any) -> bool:
    if error is None or value.dtype.kind not in "fc" or not value.size:
        return False
    sizes = np.abs(value[np.isfinite(value)])
    return bool(np.max(error) > LARGEST_RELATIVE * np.max(sizes, initial=0.0))


def _largest_changes(checked: CheckedProgram, inputs: Sequence[Any], unchanged: Sequence[Any]) -> list[float]:
    """For each output by how much any of its elements changes when every node's result has errors of its own size."""
    rng = np.random.default_rng(DISTURBED_SEED)
    largest = [0.0] * len(unchanged)
    for _ in range(DISTURBED_RUNS):
        for number, (before, now) in enumerate(zip(unchanged, _disturbed(checked, inputs, rng), strict=True)):
            if before is None or now is None:
                largest[number] = np.inf
                continue
            apart = np.abs(as_double(now) - as_double(before))
            largest[number] = max(
                largest[number], ALLOWANCE * float(np.max(apart[np.isfinite(apart)], initial=0.0))
            )
    return largest


def _disturbed(checked: CheckedProgram, inputs: Sequence[Any], rng: np.random.Generator) -> list[Any]:
    """The outputs of one run with random errors; None where a kernel or a loop is in the way."""
    values: list[Any] = [*inputs, *(None for _ in checked.values[len(inputs) :])]
    for node, released in zip(checked.nodes, releases(checked), strict=True):
        for position, result in enumerate(_results(node, values) or ()):
            spec = node.results[position]
            if spec.dtype in INEXACT and (steps := own_steps(node, spec)):
                # What n roundings come to when they are independent, not the worst case.
                size = min(steps, 1 + math.sqrt(steps)) * unit(spec.dtype)
                noisy = result * (1 + size * rng.choice((-1.0, 1.0), result.shape))
                values[node.first + position] = noisy.astype(result.dtype)
            else:
                values[node.first + position] = result
        for number in released:
            values[number] = None
    return [values[number] for number in checked.program.outputs]


def _run(
    node: CheckedNode, values: Sequence[Any], errors: Sequence[Errors | None]
) -> list[tuple[Any, Errors | None]]:
    """Value and errors of each result of one node."""
    arguments = [argument for argument in node.node.args if not isinstance(argument, bytes)]
    given = [0.0 if isinstance(argument, Scalar) else errors[argument] for argument in arguments]
    known = [error for error in given if error is not None]
    results = _results(node, values) if len(known) == len(given) else None
    if results is None:
        return [(None, None)] * len(node.results)
    xs = [argument.value() if isinstance(argument, Scalar) else values[argument] for argument in arguments]
    return [
        (result, _result_errors(node, position, xs, known, result, spec))
        for position, (result, spec) in enumerate(zip(results, node.results, strict=True))
    ]


def _results(node: CheckedNode, values: Sequence[Any]) -> list[Any] | None:
    """What one node gives; None where it cannot be run, or not on these values."""
    op, attrs = node.node.op, node.node.attrs
    if op in CHAOTIC:
        return None
    xs = [
        argument.value() if isinstance(argument, Scalar) else values[argument]
        for argument in node.node.args
        if not isinstance(argument, bytes)
    ]
    if any(x is None for x in xs):
        return None
    try:
        found = assign(op, xs, attrs) if op in ASSIGNING else TABLE[op](xs, attrs)
    except (ArithmeticError, IndexError, TypeError, ValueError):  # a singular matrix, an index that is none
        return None
    return [np.asarray(one) for one in (found if isinstance(found, tuple) else (found,))]


def _result_errors(
    node: CheckedNode,
    position: int,
    xs: Sequence[Any],
    errors: Sequence[Errors],
    result: Any,
    spec: ArraySpec,
) -> Errors | None:
    op = node.node.op
    own = own_steps(node, spec) * unit(spec.dtype) if spec.dtype in INEXACT else 0.0
    exact = all(isinstance(error, float) and error == 0.0 for error in errors)
    if exact and not own:
        return 0.0
    if op in UNDETERMINED and position != (0 if op == "eigh" else 1):
        return None
    if op == "qr" or (op in POSITIONS and not exact):
        return None
    step = Step(node, [as_double(x) for x in xs], errors, as_double(result), own)
    try:
        error = np.asarray(rule_for(op)(step), dtype=np.float64)
    except np.linalg.LinAlgError:
        return None
    if exact:  # then what is not finite is so everywhere
        error = np.where(np.isfinite(result), error, 0.0)
    return np.broadcast_to(np.where(np.isnan(error), np.inf, error), result.shape)
