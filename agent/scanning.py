"""`Mesh.scan`: a long loop as a chain of tasks, so that what is done is never done again.

Theory of operation. `xp.scan` is one node of one task: it is paid when it ends, and begun anew where its provider
leaves. Here the loop is cut into segments of steps. Each is a task of its own, which gives the carry after its last
step; the next begins with it, on whichever provider. So a provider that takes its device back, or dies, costs at most
the segment that ran: carries that were delivered are paid and kept here, and the rest goes on from the last one
elsewhere.

A segment's length follows what the last one took, by powers of two so that few programs are recorded. A loop gives
the same numbers however it is cut: the steps are the same, one after the other.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from coppermesh.agent.mapping import ProgressLine, Template, record_template
from coppermesh.exec import xp_scan
from coppermesh.exec.dtypes import dtype_name
from coppermesh.exec.graph import Handle
from coppermesh.exec.program import ArraySpec
from coppermesh.exec.trees import Tree, leaves_of, rebuilt

if TYPE_CHECKING:
    from coppermesh.agent.client import Mesh

Body = Callable[[Tree, Tree], tuple[Tree, Tree]]
SEGMENT_SECONDS = 5.0
"""What one segment is meant to take, where the caller does not say how long it is."""
FIRST_SEGMENT = 64
"""Steps of the first segment then."""


@dataclass(frozen=True, slots=True)
class Loop:
    """What is looped over: the carry's and the steps' trees with their arrays."""

    body: Body
    carry: Tree
    xs: Tree
    carried: list[np.ndarray]
    scanned: list[np.ndarray]
    steps: int

    @classmethod
    def of(cls, body: Body, carry: Tree, xs: Tree, length: int | None) -> "Loop":
        """Raises TypeError for lazy arrays, ValueError where the number of steps is not one."""
        carried, scanned = _data(carry, "carry"), _data(xs, "xs")
        lengths = {len(array) if array.ndim else -1 for array in scanned}
        if length is not None:
            lengths.add(length)
        if len(lengths) != 1 or min(lengths) < 0:
            raise ValueError("scan needs xs of one length along their first axis, or length=")
        return cls(body, carry, xs, carried, scanned, lengths.pop())

    def template(self, steps: int) -> tuple[Template, Tree]:
        """The program of a segment of so many steps, and the form of what one step gives besides the carry."""
        specs = [(_spec(array),) for array in self.carried]
        specs += [(_spec(array[:steps]),) for array in self.scanned]
        stacked: list[Tree] = []

        def segment(*arrays: Any) -> tuple[Any, ...]:
            carry = rebuilt(self.carry, arrays[: len(self.carried)])
            xs = rebuilt(self.xs, arrays[len(self.carried) :])
            last, given = xp_scan.scan(self.body, carry, xs, length=steps)
            stacked.append(given)
            return (*leaves_of(last), *leaves_of(given))

        return record_template(segment, specs), stacked[0]


def scan_in_segments(
    mesh: "Mesh", loop: Loop, *, segment: int | None, progress: bool, options: dict[str, Any]
) -> tuple[Tree, Tree]:
    """See `Mesh.scan`."""
    if segment is not None and (isinstance(segment, bool) or not isinstance(segment, int) or segment < 1):
        raise ValueError(f"segment={segment!r}: want a number of steps, 1 or more")
    parts: list[list[np.ndarray]] = []
    carried, form = loop.carried, None
    templates: dict[int, tuple[Template, Tree]] = {}
    meter = ProgressLine(progress)
    lengths = _Lengths(loop.steps, segment)
    for start, steps in meter.watch(iter(lengths), loop.steps, "steps", of=sum):
        if steps not in templates:
            templates[steps] = loop.template(steps)
        template, form = templates[steps]
        pieces = [array[start : start + steps] for array in loop.scanned]
        job = mesh.submit_prepared([template.fill([*carried, *pieces])], **options)
        outputs = job.result_tuples()[0]
        carried = list(outputs[: len(carried)])
        parts.append(list(outputs[len(carried) :]))
        lengths.took(job.receipt["billed_us"] / 1e6)
    if form is None:
        template, form = loop.template(0)
        outputs = mesh.submit_prepared([template.fill([*carried, *loop.scanned])], **options).result_tuples()[
            0
        ]
        carried, parts = list(outputs[: len(carried)]), [list(outputs[len(carried) :])]
    joined = [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
    return rebuilt(loop.carry, carried), rebuilt(form, joined)


class _Lengths:
    """Start and length of each segment; the next one depends on what the last one took."""

    def __init__(self, steps: int, fixed: int | None) -> None:
        self._left = steps
        self._fixed = fixed
        self._next = fixed or FIRST_SEGMENT
        self._start = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        while self._left:
            steps = min(self._next, self._left)
            start, self._start = self._start, self._start + steps
            self._left -= steps
            yield start, steps

    def took(self, seconds: float) -> None:
        """The last segment ran so long."""
        if self._fixed is not None:
            return
        if seconds < SEGMENT_SECONDS / 2:
            self._next *= 2
        elif seconds > SEGMENT_SECONDS * 2 and self._next > 1:
            self._next //= 2


def _data(tree: Tree, what: str) -> list[np.ndarray]:
    leaves = leaves_of(tree)
    if any(isinstance(leaf, Handle) for leaf in leaves):
        raise TypeError(f"scan: {what} holds lazy arrays; give NumPy arrays (`mesh.compute(x)` makes them)")
    arrays = [np.asarray(leaf) for leaf in leaves]
    return [array.astype(array.dtype.newbyteorder("<"), copy=False) for array in arrays]


def _spec(array: np.ndarray) -> ArraySpec:
    return ArraySpec(dtype_name(array.dtype), array.shape)
