"""`xp.einsum`: sums of products by index letters, recorded as diagonals, sums, transposes and one `matmul` per pair.

Operands are joined from left to right. A letter that no later operand and not the result has is summed as early as
possible: within its operand, or by the product that joins the two that have it. What a letter stands for is a number
here: its code point, or -1, -2, ... for the axes under an ellipsis, counted from the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from coppermesh.exec.graph import record_one
from coppermesh.exec.promotion import (
    as_operand,
    cast_value,
    common_dtype,
    permute_value,
    reshape_value,
)
from coppermesh.exec.recorder import Array
from coppermesh.exec.xp_reductions import sum as total

_ELLIPSIS = "..."


@dataclass(frozen=True, slots=True)
class _Term:
    """An array, and for each of its axes the letter; each letter once."""

    array: Array
    letters: tuple[int, ...]

    def size(self, letter: int) -> int:
        return self.array.shape[self.letters.index(letter)] if letter in self.letters else 1

    def ordered(self, letters: Sequence[int]) -> Array:
        """With its axes in the order of `letters`, which are a permutation of its own."""
        return Array(permute_value(self.array.recorded, [self.letters.index(letter) for letter in letters]))


def einsum(subscripts: str, /, *operands: Any) -> Array:
    """Sum of products as `subscripts` say: `einsum("ij,jk->ik", a, b)` is `a @ b`. As NumPy's, `...` included.

    Without `->` the result has the letters that occur once, in alphabetical order, after the axes under `...`. Raises
    ValueError where subscripts and operands do not fit, TypeError for booleans.
    """
    if not isinstance(subscripts, str):
        raise TypeError(
            'einsum takes the subscripts as text, einsum("ij,jk->ik", a, b), not as lists after operands'
        )
    values = [as_operand(item) for item in operands]
    dtype = common_dtype(values)
    if dtype == "bool":
        raise TypeError("einsum of boolean arrays is not defined; convert with astype first")
    arrays = [Array(cast_value(value, dtype)) for value in values]
    inputs, output = _parse(subscripts.replace(" ", ""), arrays)
    terms = [_diagonal(array, letters) for array, letters in zip(arrays, inputs, strict=True)]
    sizes = _sizes(terms)
    if not all(letter in sizes for letter in output):
        raise ValueError(f"einsum {subscripts!r}: the result has a letter that no operand has")
    terms = [_without_ones(term, sizes) for term in terms]
    joined = _summed(terms[0], {*output, *(letter for term in terms[1:] for letter in term.letters)})
    for number, term in enumerate(terms[1:], start=2):
        needed = {*output, *(letter for later in terms[number:] for letter in later.letters)}
        joined = _joined(joined, _summed(term, {*needed, *joined.letters}), needed)
    missing = [letter for letter in output if letter not in joined.letters]  # of length 1 everywhere
    whole = reshape_value(joined.array.recorded, (*joined.array.shape, *(1 for _ in missing)))
    return _Term(Array(whole), (*joined.letters, *missing)).ordered(output)


def _parse(text: str, arrays: Sequence[Array]) -> tuple[list[list[int]], list[int]]:
    """The letters of each operand and of the result."""
    left, arrow, right = text.partition("->")
    parts = left.split(",")
    if len(parts) != len(arrays):
        raise ValueError(f"einsum {text!r} is for {len(parts)} operands, {len(arrays)} were given")
    inputs = [_letters(part, text, array.ndim) for part, array in zip(parts, arrays, strict=True)]
    covered = max((-letter for letters in inputs for letter in letters if letter < 0), default=0)
    if arrow:
        named = right.replace(_ELLIPSIS, "")
        output = _letters(right, text, len(named) + (covered if _ELLIPSIS in right else 0))
        if len(set(output)) != len(output):
            raise ValueError(f"einsum {text!r}: the result has a letter twice")
        return inputs, output
    seen = [letter for letters in inputs for letter in letters]
    once = sorted(letter for letter in set(seen) if letter > 0 and seen.count(letter) == 1)
    return inputs, [*range(-covered, 0), *once]


def _letters(part: str, text: str, ndim: int) -> list[int]:
    before, dots, after = part.partition(_ELLIPSIS)
    covered = ndim - len(before) - len(after)
    if not (before + after).isalpha() and before + after:
        raise ValueError(f"einsum {text!r}: {part!r} is not letters with at most one '...'")
    if covered < 0 or (covered and not dots):
        raise ValueError(f"einsum {text!r}: {part!r} does not fit an array with {ndim} dimensions")
    return [*map(ord, before), *range(-covered, 0), *map(ord, after)]


def _diagonal(array: Array, letters: Sequence[int]) -> _Term:
    """Each letter once: where it is there twice, the elements with equal indices."""
    term_letters = list(letters)
    while len(set(term_letters)) < len(term_letters):
        letter = next(letter for letter in term_letters if term_letters.count(letter) > 1)
        first = term_letters.index(letter)
        second = term_letters.index(letter, first + 1)
        length = array.shape[first]
        if array.shape[second] != length:
            raise ValueError(f"einsum: axes of lengths {length} and {array.shape[second]} under one letter")
        kept = [axis for axis in range(array.ndim) if axis not in (first, second)]
        moved = permute_value(array.recorded, [*kept, first, second])
        flat = Array(reshape_value(moved, (*moved.spec.shape[:-2], length * length)))
        array = flat[..., :: length + 1]
        term_letters = [term_letters[axis] for axis in kept] + [letter]
    return _Term(array, tuple(term_letters))


def _sizes(terms: Sequence[_Term]) -> dict[int, int]:
    """What each letter counts to. A length of 1 goes with any."""
    sizes: dict[int, int] = {}
    for term in terms:
        for letter, length in zip(term.letters, term.array.shape, strict=True):
            known = sizes.get(letter, 1)
            if length != 1 and known not in (1, length):
                raise ValueError(f"einsum: one letter stands for lengths {known} and {length}")
            sizes[letter] = known if length == 1 else length
    return sizes


def _without_ones(term: _Term, sizes: dict[int, int]) -> _Term:
    """Without axes of length 1 that go with longer ones elsewhere."""
    kept = [letter for letter in term.letters if term.size(letter) == sizes[letter]]
    shape = [term.size(letter) for letter in kept]
    return _Term(Array(reshape_value(term.array.recorded, shape)), tuple(kept))


def _summed(term: _Term, needed: set[int]) -> _Term:
    """Summed over what nobody else has."""
    gone = tuple(axis for axis, letter in enumerate(term.letters) if letter not in needed)
    if not gone:
        return term
    kept = tuple(letter for letter in term.letters if letter in needed)
    return _Term(total(term.array, axis=gone, dtype=term.array.dtype), kept)


def _joined(first: _Term, second: _Term, needed: set[int]) -> _Term:
    """One product of matrices: (both, first's own, summed) with (both, summed, second's own)."""
    shared = [letter for letter in first.letters if letter in second.letters]
    both = [letter for letter in shared if letter in needed]
    inner = [letter for letter in shared if letter not in needed]
    rows = [letter for letter in first.letters if letter not in shared]
    columns = [letter for letter in second.letters if letter not in shared]

    def lengths(term: _Term, letters: Sequence[int]) -> list[int]:
        return [term.size(letter) for letter in letters]

    stack, count = lengths(first, both), prod(lengths(first, inner))
    left = reshape_value(
        first.ordered([*both, *rows, *inner]).recorded, (*stack, prod(lengths(first, rows)), count)
    )
    right = reshape_value(
        second.ordered([*both, *inner, *columns]).recorded, (*stack, count, prod(lengths(second, columns)))
    )
    result = record_one("matmul", (left, right))
    shape = [*stack, *lengths(first, rows), *lengths(second, columns)]
    return _Term(Array(reshape_value(result, shape)), (*both, *rows, *columns))
