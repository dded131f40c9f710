"""The corpus of kernels: CUDA C++ written for this project, each beside an independent NumPy oracle.

`CASES` is the list. A case records its launches through `cm` and `xp`, which are `coppermesh` and `coppermesh.xp` or,
on a machine with a GPU, `cupy` twice: both have the same calls. The same oracles judge both.

The cases stand in the `cases_*.py` files beside this one; each has a table `CASES` of rows
`(name, (features, ...), record, oracle, tolerance)`. `record(cm, xp, rng)` gives the inputs as NumPy arrays by name and
the output arrays; `oracle(inputs)` gives what they must be. A tolerance is `EXACT`, or `(rtol, atol, reason)`, or
`(rtol, atol, reason, fraction)` where so many of the elements may lie outside it: results of a branch on inexact
numbers.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
PARTS = (
    "cases_arrays",
    "cases_reductions",
    "cases_sorting",
    "cases_science",
    "cases_language",
    "cases_integers",
    "cases_half",
)

NumpyArray = np.ndarray[Any, Any]
Inputs = Mapping[str, NumpyArray]
Record = Callable[[Any, Any, np.random.Generator], tuple[Inputs, Sequence[Any]]]
Oracle = Callable[[Inputs], Sequence[Any]]


@dataclass(frozen=True)
class Case:
    """One row of the corpus."""

    name: str
    features: tuple[str, ...]
    record: Record
    oracle: Oracle
    rtol: float
    """0 with `atol` 0: bit for bit (of floating-point numbers: equal, NaN to NaN)."""
    atol: float
    reason: str
    """Why this tolerance."""
    fraction: float
    """Part of the elements that may lie outside it."""

    @property
    def file(self) -> Path:
        """The source, named as the case is."""
        return HERE / f"{self.name}.cu"

    def check(self, inputs: Inputs, outputs: Sequence[NumpyArray]) -> None:
        """Raise AssertionError unless `outputs` are what the oracle says."""
        expected = [np.asarray(array) for array in self.oracle(inputs)]
        assert len(outputs) == len(expected), f"{self.name}: {len(outputs)} outputs, {len(expected)} expected"
        for number, (got, wanted) in enumerate(zip(outputs, expected, strict=True)):
            self._compare(f"{self.name}, output {number}", got, wanted.reshape(got.shape))

    def _compare(self, what: str, got: NumpyArray, wanted: NumpyArray) -> None:
        if got.dtype.kind in "iub" or self.rtol == self.atol == self.fraction == 0:
            both_nan = np.isnan(got) & np.isnan(wanted) if got.dtype.kind in "fc" else False
            outside = (got != wanted) & ~np.asarray(both_nan)
        else:
            outside = ~np.isclose(got, wanted, rtol=self.rtol, atol=self.atol, equal_nan=True)
        if np.count_nonzero(outside) <= self.fraction * got.size:
            return
        place = tuple(int(axis[0]) for axis in np.nonzero(outside))
        raise AssertionError(
            f"{what}: {np.count_nonzero(outside)} of {got.size} elements differ; at {place}: {got[place]!r}, "
            f"expected {wanted[place]!r}"
        )


def _load(part: str) -> list[Case]:
    spec = importlib.util.spec_from_file_location(f"coppermesh_corpus_{part}", HERE / f"{part}.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018 - one fact in two attributes
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [_case(*row) for row in module.CASES]


def _case(
    name: str, features: tuple[str, ...], record: Record, oracle: Oracle, tolerance: tuple[Any, ...]
) -> Case:
    rtol, atol, reason, fraction = (*tolerance, 0.0)[:4]
    return Case(name, features, record, oracle, rtol, atol, reason, fraction)


CASES: tuple[Case, ...] = tuple(case for part in PARTS for case in _load(part))
