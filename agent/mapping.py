"""`Mesh.map`: one function over the chunks of an array, as many tasks of one job.

Theory of operation. The function is called once for each distinct length of chunk (so at most twice), with a lazy array
that stands for the chunk; every chunk of that length then runs the very same program bytes on its own data. What the
function takes from elsewhere (weights) is an input that all tasks share and that travels to a provider once.

Chunks are views of the array and are sent one after the other, so this process holds nothing besides the array and the
results. `concat` copies each result to its place as it arrives. A reducing function is applied on the mesh: results
stay in the agent's store, and rounds of programs fold up to `FAN_IN` neighbours each, in the order of the chunks, until
one is left. How results are grouped depends on their number alone, so a sum of floats comes out the same every time.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce as fold
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from coppermesh.agent.parcels import PreparedTask, StoredArray
from coppermesh.exec import barrier
from coppermesh.exec.dtypes import dtype_name
from coppermesh.exec.graph import Handle
from coppermesh.exec.program import ArraySpec
from coppermesh.exec.recorder import Array, trace
from coppermesh.exec.tracing import placeholder

if TYPE_CHECKING:
    from coppermesh.agent.client import Mesh
    from coppermesh.agent.job_handle import Job

FAN_IN = 32
"""Results that one reducing program folds, where each is a single array."""

R = TypeVar("R")
Function = Callable[[Array], Any]
Reduction = Callable[[Any, Any], Any]


def map_chunks(
    mesh: "Mesh",
    function: Function,
    array: Any,
    *,
    chunks: int,
    reduce: Reduction | str | None,
    progress: bool,
    options: dict[str, Any],
) -> Any:
    """See `Mesh.map`."""
    if reduce is not None and not callable(reduce) and reduce != "concat":
        raise ValueError(f"reduce={reduce!r}: want a function of two results, 'concat' or None")
    tasks = prepare_chunks(function, np.asarray(array), chunks)
    meter = ProgressLine(progress)
    if callable(reduce):
        return _reduce(mesh, reduce, tasks, meter, options)
    if reduce == "concat":
        joined = _room_for(tasks)
        return _concatenate(mesh.submit_prepared(tasks, **options), tasks, joined, meter)
    job = mesh.submit_prepared(tasks, **options)
    return [unwrap(arrays) for arrays in _in_order(job, len(tasks), meter, "chunks")]


def prepare_chunks(function: Function, array: np.ndarray, length: int) -> list[PreparedTask]:
    """One task for each `length` rows of `array`, the last may have fewer.

    Raises TypeError where `function` gives no lazy arrays, ValueError for a chunk length below 1.
    """
    if array.ndim == 0:
        raise ValueError("map() needs an array with at least one dimension")
    if not isinstance(length, int | np.integer) or isinstance(length, bool):
        raise TypeError(
            f"chunks={length!r}: want one whole number, the rows of a chunk; only the first axis is split "
            "(bring another one to the front with np.moveaxis)"
        )
    if length < 1:
        raise ValueError(f"chunks={length}: want the number of rows in a chunk, 1 or more")
    wire_form = array.astype(array.dtype.newbyteorder("<"), copy=False)
    dtype = dtype_name(array.dtype)
    programs: dict[int, Template] = {}
    tasks: list[PreparedTask] = []
    for start in range(0, max(1, array.shape[0]), length):
        chunk = wire_form[start : start + length]
        if len(chunk) not in programs:
            programs[len(chunk)] = record_template(function, [(ArraySpec(dtype, chunk.shape),)])
        tasks.append(programs[len(chunk)].fill([chunk]))
    return tasks


@dataclass(frozen=True, slots=True)
class Template:
    """A task whose inputs are still to be given: all of them, or some beside what the function brought along."""

    task: PreparedTask
    places: tuple[int | None, ...]
    """For each input of the task which of the given arrays it is; None: it stays what it is."""

    def fill(self, arrays: Sequence[np.ndarray | StoredArray]) -> PreparedTask:
        """The task on these arrays."""
        inputs = tuple(
            kept if place is None else arrays[place]
            for kept, place in zip(self.task.inputs, self.places, strict=True)
        )
        return replace(self.task, inputs=inputs)


def record_template(function: Callable[..., Any], specs: Sequence[tuple[ArraySpec, ...]]) -> Template:
    """Call `function` with lazy arrays that have a shape and a dtype but no data; tuples where several belong together.

    Raises TypeError where it gives no lazy arrays, NeedsValue where it asks for a value.
    """
    places = [tuple(placeholder(spec) for spec in together) for together in specs]
    arguments = [unwrap([Array(value) for value in together]) for together in places]
    with barrier.evaluator(None):
        results = as_handles(function(*arguments), function)
    flat = [value for together in places for value in together]
    recording = trace(*results, placeholders=flat)
    numbers = {id(value): number for number, value in enumerate(flat)}
    return Template(
        PreparedTask.of(recording), tuple(numbers.get(id(value)) for value in recording.open_inputs)
    )


def as_handles(result: Any, function: Callable[..., Any]) -> tuple[Handle, ...]:
    """What a user's function returned, as a tuple of lazy arrays. Raises TypeError for anything else."""
    items = tuple(result) if isinstance(result, tuple | list) else (result,)
    if not items or not all(isinstance(item, Handle) for item in items):
        kinds = ", ".join(type(item).__name__ for item in items) or "an empty sequence"
        name = getattr(function, "__name__", repr(function))
        raise TypeError(
            f"{name}() gave {kinds}; a function that runs on the mesh must return lazy arrays, made with cm.xp"
        )
    return items


def unwrap(arrays: Sequence[Any]) -> Any:
    """The one array, or a tuple of several."""
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def _in_order(job: "Job", count: int, meter: "ProgressLine", what: str) -> list[tuple[Any, ...]]:
    results: list[tuple[Any, ...]] = [()] * count
    for number, arrays in meter.watch(job.as_completed(), count, what):
        results[number] = arrays
    return results


# Joining the results here: copies only, no arithmetic.


def _room_for(tasks: Sequence[PreparedTask]) -> list[np.ndarray]:
    """Empty arrays for the joined results. Raises ValueError where they cannot be joined, before anything runs."""
    return [_joined_array([task.outputs[k] for task in tasks]) for k in range(len(tasks[0].outputs))]


def _concatenate(
    job: "Job", tasks: Sequence[PreparedTask], joined: list[np.ndarray], meter: "ProgressLine"
) -> Any:
    """Results one behind the other along their first axis, each put in its place when it comes."""
    starts = [_starts([task.outputs[k].shape[0] for task in tasks]) for k in range(len(joined))]
    for number, arrays in meter.watch(job.as_completed(), len(tasks), "chunks"):
        for target, where, part in zip(joined, starts, arrays, strict=True):
            target[where[number] : where[number] + len(part)] = part
    return unwrap(joined)


def _joined_array(specs: Sequence[ArraySpec]) -> np.ndarray:
    first = specs[0]
    if any(
        spec.shape[1:] != first.shape[1:] or not spec.shape or spec.dtype != first.dtype for spec in specs
    ):
        kinds = " and ".join(sorted({str(spec) for spec in specs})[:3])
        raise ValueError(f"reduce='concat' cannot join results along their first axis: {kinds}")
    return np.empty((sum(spec.shape[0] for spec in specs), *first.shape[1:]), first.numpy_dtype)


def _starts(lengths: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(lengths)[:-1].tolist()]


# Folding the results on the mesh.


def _reduce(
    mesh: "Mesh",
    reduction: Reduction,
    tasks: list[PreparedTask],
    meter: "ProgressLine",
    options: dict[str, Any],
) -> Any:
    """Run `tasks`, then rounds of folding until one result is left, which alone comes here."""
    folder = _Folder(reduction)
    what = "chunks"
    while len(tasks) > 1:
        job = mesh.submit_prepared(tasks, keep=True, **options)
        stored = _in_order(job, len(tasks), meter, what)
        tasks = folder.next_round(
            [(task.outputs, arrays) for task, arrays in zip(tasks, stored, strict=True)]
        )
        what = "partial results"
    return mesh.submit_prepared(tasks, many=False, **options).result()


class _Folder:
    """Makes programs that fold neighbouring results, one program for each combination of shapes."""

    def __init__(self, reduction: Reduction) -> None:
        self._reduction = reduction
        self._known: dict[tuple[tuple[ArraySpec, ...], ...], Template] = {}

    def next_round(
        self, results: Sequence[tuple[tuple[ArraySpec, ...], tuple[StoredArray, ...]]]
    ) -> list[PreparedTask]:
        """Tasks that fold groups of neighbours; a group of one is left as it is, by a program that returns it."""
        size = max(2, FAN_IN // len(results[0][0]))
        return [self._fold(results[start : start + size]) for start in range(0, len(results), size)]

    def _fold(self, group: Sequence[tuple[tuple[ArraySpec, ...], tuple[StoredArray, ...]]]) -> PreparedTask:
        specs = tuple(specs for specs, _ in group)
        if specs not in self._known:
            self._known[specs] = record_template(self._fold_all, specs)
        return self._known[specs].fill([array for _, arrays in group for array in arrays])

    def _fold_all(self, *results: Any) -> Any:
        return fold(self._reduction, results)


class ProgressLine:
    """How far a job is, on stderr: one line that changes on a terminal, else a line per quarter."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._live = sys.stderr.isatty()

    def watch(
        self, results: Iterator[R], count: int, what: str, of: Callable[[R], int] | None = None
    ) -> Iterator[R]:
        """`results`, counted as they come. `of` tells how much is done with a result; None: one more."""
        for done, result in enumerate(results, start=1):
            yield result
            self._show(done if of is None else of(result), count, what)

    def _show(self, done: int, count: int, what: str) -> None:
        if not self._shown:
            return
        text = f"coppermesh: {done}/{count} {what}"
        if self._live:
            sys.stderr.write(f"\r{text}" + ("\n" if done == count else ""))
        elif done == count or done % max(1, count // 4) == 0:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
