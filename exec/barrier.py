"""Barriers: places where Python needs a lazy array's value now.

`bool(x)`, `float(x)`, `np.asarray(x)`, `x[mask]` and `unique_values(x)` cannot be recorded: what comes next depends on
data. Where an evaluator is set, such a place computes what it needs through it (one round trip, counted and kept for
`barriers()`); where none is, NeedsValue says what to do. An array that the client made from its own data costs no
round trip, and a value that was fetched once is not fetched again.

An evaluator belongs to a block (`evaluator`) and to what runs in its context. A thread that was started inside the
block has a context of its own: it takes the evaluator of the one block that is open in the process, and is told what to
do where several are.

>>> from coppermesh.exec import barrier, xp
>>> from coppermesh.exec.evaluate import evaluate
>>> with barrier.evaluator(lambda arrays: evaluate(*arrays)):
...     bool(xp.sum(xp.ones(3)) > 2)
True
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

from coppermesh.exec.errors import NeedsValue
from coppermesh.exec.graph import INPUT, Handle, SourceLine, Value, caller, pointing_at_caller
from coppermesh.exec.program import ArraySpec

Evaluator = Callable[[Sequence[Handle]], Sequence[np.ndarray[Any, Any]]]
"""Computes lazy arrays: gives one NumPy array for each."""

KEPT_BARRIERS = 1_000


@dataclass(frozen=True, slots=True)
class Barrier:
    """One round trip that was made because Python needed a value."""

    what: str
    """The expression that asked, for example `bool(x)`."""
    source: SourceLine
    """File and line of the user's code."""
    specs: tuple[ArraySpec, ...]
    """What was fetched."""


@dataclass(slots=True)
class _State:
    default: Evaluator | None
    total: int
    recent: deque[Barrier]


_state = _State(None, 0, deque(maxlen=KEPT_BARRIERS))
_open: list[Evaluator] = []
"""Of every open block in the process, for threads that no block has. Changed under `_lock`."""
_lock = threading.Lock()
_scoped: ContextVar[tuple[Evaluator | None] | None] = ContextVar("coppermesh_evaluator", default=None)


@contextmanager
def evaluator(function: Evaluator | None) -> Iterator[None]:
    """Compute at barriers through `function` inside the block; None forbids barriers there.

    Threads started inside the block compute through it too, unless blocks with other functions are open as well.
    """
    token = _scoped.set((function,))
    if function is not None:
        with _lock:
            _open.append(function)
    try:
        yield
    finally:
        _scoped.reset(token)
        if function is not None:
            with _lock:
                _open.remove(function)


def set_default(function: Evaluator | None) -> None:
    """What computes at barriers outside any `evaluator` block; None (at the start) forbids them."""
    _state.default = function


def count() -> int:
    """Barriers of this process so far."""
    return _state.total


def barriers() -> tuple[Barrier, ...]:
    """The latest barriers of this process, oldest first; at most `KEPT_BARRIERS`."""
    return tuple(_state.recent)


def fetch(
    what: str, *arrays: Handle, advice: str = "use mesh.compute(x) first"
) -> list[np.ndarray[Any, Any]]:
    """The values of `arrays`, in one round trip for those not known yet. Not to be written to.

    Raises NeedsValue where no evaluator is set; what the evaluator raises passes through.
    """
    unknown = [array for array in arrays if known(array.recorded) is None]
    if unknown:
        _compute(what, unknown, advice)
    results = [known(array.recorded) for array in arrays]
    return [result for result in results if result is not None]


def known(value: Value) -> np.ndarray[Any, Any] | None:
    """The value where it is on this machine already: the client's own data, or fetched before."""
    return value.node.data if value.node.op == INPUT else value.known


def _chosen(what: str) -> Evaluator | None:
    """This context's evaluator; in a thread of its own that of the open blocks. Raises NeedsValue where they differ."""
    scoped = _scoped.get()
    if scoped is not None:
        return scoped[0]
    with _lock:
        functions = list(_open)
    if any(function != functions[0] for function in functions):
        raise NeedsValue(
            f"{what} in a thread of its own needs the array's value, and several connections are open: give the thread "
            "one of them, by `with` inside the thread or by running it in contextvars.copy_context(), or use "
            "mesh.compute(x)"
        )
    return functions[0] if functions else _state.default


@pointing_at_caller
def _compute(what: str, arrays: Sequence[Handle], advice: str) -> None:
    function = _chosen(what)
    if function is None and _scoped.get() is not None:
        raise NeedsValue(
            f"{what} needs the array's value, but a function given to map or scan is recorded before there is data:"
            " choose between values by xp.where instead"
        )
    if function is None:
        raise NeedsValue(
            f"{what} needs the array's value, which is not computed yet: {advice}; inside"
            " `with cm.connect() as mesh:` it is fetched without asking"
        )
    specs = tuple(array.recorded.spec for array in arrays)
    _state.total += 1
    _state.recent.append(Barrier(what, caller(), specs))
    for array, result in zip(arrays, function(arrays), strict=True):
        result.flags.writeable = False
        array.recorded.known = result
