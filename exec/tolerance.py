"""`coppermesh.compare(a, b, program)`: are two results of one program the same, as far as arithmetic allows?

Theory of operation. Two runs of one determinism class agree bit for bit (`same_class=True`). Others may differ, by what
the program allows:

- From the program alone (`tolerance_bounds`): by a fraction of the element's own magnitude, where it was made by
  products, quotients, roots, functions and sums that cannot cancel; behind a logarithm, by a number; by a fraction of
  the largest magnitude in its array, where inexact terms may have cancelled, and behind products of matrices,
  transforms and factorisations.
- From the program and its inputs (`running_errors`, by a run on this machine): by what the very numbers that went into
  the element allow.

The first is a criterion, not a proof: where the array's largest magnitude is the scale, small elements of an array with
large ones may be anything. Give the inputs where that matters.

Integers and booleans are exact. Where they, or a choice, come from inexact numbers (`x > 0`, `floor`, `argmax`), single
elements may fall on the other side: without inputs a small fraction may then differ by anything, with inputs only
elements where both sides are possible. Loops and kernels, whose steps can feed back into themselves, get a larger
fraction, with or without inputs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from coppermesh.exec.error_rules import Errors
from coppermesh.exec.graph import Handle
from coppermesh.exec.numpy_runtime import check_inputs
from coppermesh.exec.program import ArraySpec, decode_program
from coppermesh.exec.running_errors import output_errors
from coppermesh.exec.schema import CheckedProgram, check_program
from coppermesh.exec.tolerance_bounds import Bound, output_bounds
from coppermesh.exec.tracing import Recording, trace

NumpyArray = np.ndarray[Any, Any]
ProgramLike = Handle | Recording | CheckedProgram | bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a comparison; true where the results agree."""

    agree: bool
    output: int
    """The output furthest from agreeing."""
    index: tuple[int, ...] | None
    """Its worst element; None where nothing differs, or the arrays do not even have one shape and dtype."""
    first: Any
    second: Any
    """That element in `a` and in `b`."""
    difference: float
    allowed: float
    """What `difference` may be."""
    mismatches: float
    """Fraction of that output's elements that differ by more than allowed."""
    allowed_mismatches: float
    sentence: str

    def __bool__(self) -> bool:
        return self.agree

    def __str__(self) -> str:
        return self.sentence


def compare(
    a: Any,
    b: Any,
    program: ProgramLike,
    inputs: Sequence[Any] | Literal[True] | None = None,
    *,
    same_class: bool = False,
) -> Verdict:
    """Whether `a` and `b`, results of two runs of `program`, agree: an array each, or a tuple for several outputs.

    `program` is the lazy array, a recording, or the program's bytes. `inputs` are what it ran on, in its order; True
    takes what the lazy array or recording holds. Without them, elements that were summed from inexact terms are held
    to the largest magnitude in their array, since what they were summed from is not known; with them, to their own
    terms, which is exact, and looser where large terms cancel. That costs a few runs of the program in this process
    (kernels and loops excepted, whose results are judged without inputs). `same_class` says that both runs name the
    same determinism class: then only equal bits agree.

    Raises ValueError where `a` and `b` are not as many arrays as the program has outputs, RunFailed (`bad-input`)
    where the inputs are not those that it takes.
    """
    checked = _checked(program)
    first, second = _as_arrays(a), _as_arrays(b)
    if not len(first) == len(second) == len(checked.output_specs):
        raise ValueError(
            f"the program has {len(checked.output_specs)} outputs; {len(first)} and {len(second)} were given"
        )
    bounds = [Bound()] * len(first) if same_class else output_bounds(checked)
    errors: list[Errors | None] = [None] * len(first)
    if inputs is not None and not same_class:
        errors = output_errors(checked, _input_arrays(program, checked, inputs))
    verdicts = [
        _compare_one(number, left, right, spec, _Allowance(bound, error))
        for number, (left, right, spec, bound, error) in enumerate(
            zip(first, second, checked.output_specs, bounds, errors, strict=True)
        )
    ]
    return min(verdicts, key=_standing)


def _input_arrays(
    program: ProgramLike, checked: CheckedProgram, inputs: Sequence[Any] | Literal[True]
) -> list[NumpyArray]:
    if inputs is True:
        if not isinstance(program, Handle | Recording):
            raise ValueError("inputs=True: a program's bytes hold no inputs; give them, or the lazy array")
        recording = trace(program) if isinstance(program, Handle) else program
        return recording.inputs
    arrays = [np.asarray(item) for item in inputs]
    check_inputs(checked, arrays)
    return arrays


def _standing(verdict: Verdict) -> tuple[bool, float]:
    """Sorts the worst first."""
    excess = verdict.difference / verdict.allowed if verdict.allowed else verdict.difference
    return verdict.agree, -excess if not math.isnan(excess) else -math.inf


def _checked(program: ProgramLike) -> CheckedProgram:
    if isinstance(program, Handle):
        return trace(program).checked
    if isinstance(program, Recording):
        return program.checked
    if isinstance(program, bytes):
        return check_program(decode_program(program))
    return program


def _as_arrays(result: Any) -> list[NumpyArray]:
    return [np.asarray(item) for item in result] if isinstance(result, tuple | list) else [np.asarray(result)]


# Holding two arrays against each other.


@dataclass(frozen=True, slots=True)
class _Allowance:
    """What one output may differ by."""

    bound: Bound
    errors: Errors | None
    """Element by element, where the inputs were given and say it."""

    @property
    def fraction(self) -> float:
        """Of elements that may differ by more."""
        return self.bound.fraction if self.errors is None else 0.0

    def of(self, a: NumpyArray, b: NumpyArray) -> NumpyArray:
        """For each element how far apart it may be."""
        if self.errors is not None:
            return np.broadcast_to(np.asarray(self.errors, dtype=np.float64), a.shape)
        if a.dtype.kind not in "fc" or not a.size or self.bound.exact:
            return np.zeros(a.shape)
        sizes = np.maximum(_magnitudes(a), _magnitudes(b))
        # Where two numbers are that small, one side may have rounded them to zero.
        smallest = self.bound.absolute + float(np.finfo(a.dtype).tiny)
        return self.bound.relative * sizes + smallest + self.bound.wide * float(sizes.max())


def _magnitudes(x: NumpyArray) -> NumpyArray:
    sizes = np.abs(x.astype(np.complex128 if x.dtype.kind == "c" else np.float64))
    return np.where(np.isfinite(sizes), sizes, 0.0)


def _compare_one(
    number: int, a: NumpyArray, b: NumpyArray, spec: ArraySpec, allowance: _Allowance
) -> Verdict:
    for array in (a, b):
        if (array.shape, array.dtype) != (spec.shape, spec.numpy_dtype):
            sentence = f"output {number}: {array.dtype}{list(array.shape)} where the program gives {spec}"
            return Verdict(False, number, None, None, None, math.inf, 0.0, 1.0, 0.0, sentence)
    differences = _differences(a, b)
    fraction = allowance.fraction
    if not differences.any():
        sentence = f"output {number}: no difference"
        return Verdict(True, number, None, None, None, 0.0, 0.0, 0.0, fraction, sentence)
    allowed = allowance.of(a, b)
    beyond = float(np.mean(differences > allowed))
    agree = beyond <= fraction
    index = _worst(differences, allowed)
    worst, here = float(differences[index]), float(allowed[index])
    sentence = (
        f"output {number}: {'agrees' if agree else 'DIFFERS'}; worst at {list(index)}: {a[index]} and {b[index]}, "
        f"apart by {worst:.3g} where {here:.3g} is allowed; {beyond:.2%} of the elements differ by more than is "
        f"allowed, at most {fraction:.2%} may"
    )
    return Verdict(agree, number, index, a[index], b[index], worst, here, beyond, fraction, sentence)


def _worst(differences: NumpyArray, allowed: NumpyArray) -> tuple[int, ...]:
    """The element furthest beyond what it may be, in proportion; of several the one with the largest difference."""
    with np.errstate(all="ignore"):
        excess = np.where(differences > 0, differences / allowed, 0.0)
    excess = np.where(np.isnan(excess), 1.0, excess)
    furthest = np.where(excess == excess.max(), differences, -1.0)
    return tuple(int(axis) for axis in np.unravel_index(int(np.argmax(furthest)), differences.shape))


def _differences(a: NumpyArray, b: NumpyArray) -> NumpyArray:
    """Absolute differences as float64: 0 for equal elements and for two NaNs, infinite where only one is a number.

    Infinity counts as the largest number of the dtype: beside that one, it is only its rounding.
    """
    if a.dtype.kind not in "fc":
        # Not by subtraction, which can wrap around; how far apart integers are is for the reader only.
        apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
        return np.where(a == b, 0.0, np.maximum(apart, 1.0))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    largest = float(np.finfo(a.dtype).max)
    with np.errstate(all="ignore"):
        if a.dtype.kind == "c":
            apart = np.abs(a.astype(np.complex128) - b.astype(np.complex128))
        else:
            apart = np.abs(_bounded(a, largest) - _bounded(b, largest))
            apart = np.where(np.isinf(a) & np.isinf(b), np.inf, apart)
    return np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))


def _bounded(x: NumpyArray, largest: float) -> NumpyArray:
    return np.clip(x.astype(np.float64), -largest, largest)
