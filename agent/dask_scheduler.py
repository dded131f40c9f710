"""`x.compute(scheduler=mesh.dask)`: dask's own graph, run on the client over lazy blocks, collected into one program.

Nothing is pickled and no block function travels. dask's synchronous scheduler calls the functions of the graph here;
the blocks that they get are lazy arrays, so what they do is recorded. Three things make that hold:

- NumPy arrays that the graph holds become inputs. Where there are many, those of one dtype are packed into one input
  and cut apart again by the program, for a program has at most 128 inputs.
- A function that makes a NumPy array (`ones`, reading a file) has its result become an input too, or, where it is
  one element repeated, a `full`.
- dask's final step joins the blocks, lazily as well; its result is what the one program returns.

A function that needs NumPy memory (`map_blocks` with C code) finds a lazy array and raises NeedsValue, or costs a round
trip where a barrier may compute.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from coppermesh.agent.parcels import PreparedTask
from coppermesh.exec import xp
from coppermesh.exec.dtypes import NUMPY_DTYPES
from coppermesh.exec.graph import Handle
from coppermesh.exec.promotion import input_value
from coppermesh.exec.recorder import Array, trace

if TYPE_CHECKING:
    from coppermesh.agent.client import Mesh

SEPARATE_INPUTS = 64
"""Up to this many arrays of a graph become inputs of their own."""


def compute_graph(mesh: "Mesh", graph: Any, keys: Any, options: Mapping[str, Any]) -> Any:
    """What a dask scheduler returns: the values of `keys`, in the same nesting. `options` are those of `JobOptions`."""
    from dask.local import get_sync  # an extra, loaded by whoever has a dask array already

    nodes = _as_nodes(graph)
    recorded = get_sync(_Lazily(nodes).nodes(), keys)
    handles = list({id(array): array for array in _handles_in(recorded)}.values())
    if not handles:
        return recorded
    job = mesh.submit_prepared([PreparedTask.of(trace(*handles))], **options)
    results = zip(handles, job.result_tuples()[0], strict=True)
    # Without dimensions a NumPy scalar, as from dask's other schedulers.
    return _replaced(recorded, {id(array): result[()] for array, result in results})


def _as_nodes(graph: Any) -> dict[Any, Any]:
    """The graph in dask's one form of tasks, whatever form it was given in."""
    from dask._task_spec import convert_legacy_graph

    plain = graph if isinstance(graph, Mapping) else graph.__dask_graph__()
    return dict(convert_legacy_graph(plain))


class _Lazily:
    """Rewrites a graph so that its functions see lazy arrays. The graph itself is left as it is."""

    def __init__(self, graph: dict[Any, Any]) -> None:
        self._graph = graph
        self._found: dict[int, np.ndarray] = {}
        self._lazy: dict[int, Handle] = {}

    def nodes(self) -> dict[Any, Any]:
        """The rewritten graph."""
        for node in self._graph.values():
            self._find(node)
        self._lazy = _pack(self._found) if len(self._found) > SEPARATE_INPUTS else {}
        return {key: self._rewrite(node) for key, node in self._graph.items()}

    def _find(self, item: Any) -> None:
        """Collect the arrays that the graph holds as data."""
        from dask._task_spec import DataNode, Task

        if isinstance(item, DataNode):
            if _takes(item.value):
                self._found[id(item.value)] = item.value
        elif isinstance(item, Task):
            for part in (*item.args, *item.kwargs.values()):
                self._find(part)
        elif isinstance(item, dict):
            for part in item.values():
                self._find(part)
        elif isinstance(item, list | tuple):
            for part in item:
                self._find(part)

    def _rewrite(self, item: Any) -> Any:
        from dask._task_spec import DataNode, Task

        if isinstance(item, DataNode):
            return DataNode(item.key, self._as_lazy(item.value)) if _takes(item.value) else item
        if isinstance(item, Task):
            return self._rewrite_task(item)
        if type(item) is dict:
            return {key: self._rewrite(part) for key, part in item.items()}
        if type(item) in (list, tuple):
            return type(item)(self._rewrite(part) for part in item)
        return item

    def _rewrite_task(self, task: Any) -> Any:
        from dask._task_spec import NestedContainer

        changed = copy.copy(task)
        changed.args = tuple(self._rewrite(part) for part in task.args)
        if not isinstance(task, NestedContainer):
            changed.kwargs = {name: self._rewrite(part) for name, part in task.kwargs.items()}
            changed.func = partial(_call_lazily, task.func)
        return changed

    def _as_lazy(self, array: np.ndarray) -> Handle:
        known = self._lazy.get(id(array))
        if known is None:
            known = self._lazy[id(array)] = as_lazy(array)
        return known


def _takes(item: Any) -> bool:
    return isinstance(item, np.ndarray) and item.dtype.name in NUMPY_DTYPES


def _call_lazily(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    result = function(*args, **kwargs)
    return as_lazy(result) if _takes(result) else result


def as_lazy(array: np.ndarray) -> Array:
    """The array as an input; one element repeated (`np.broadcast_to`, dask's `ones`) as a `full`."""
    if array.size > 1 and not any(array.strides):
        return xp.full(array.shape, array.flat[0], dtype=array.dtype)
    return Array(input_value(array, copy=False))


def _pack(arrays: Mapping[int, np.ndarray]) -> dict[int, Handle]:
    """Lazy arrays by the id of the array that each stands for, cut from one input per dtype."""
    lazy: dict[int, Handle] = {}
    for dtype in {array.dtype for array in arrays.values()}:
        together = {key: array for key, array in arrays.items() if array.dtype == dtype}
        joined = xp.asarray(np.concatenate([array.reshape(-1) for array in together.values()]), copy=False)
        start = 0
        for key, array in together.items():
            lazy[key] = xp.reshape(joined[start : start + array.size], array.shape)
            start += array.size
    return lazy


def _handles_in(item: Any) -> list[Handle]:
    if isinstance(item, Handle):
        return [item]
    if isinstance(item, list | tuple):
        return [array for part in item for array in _handles_in(part)]
    return []


def _replaced(item: Any, results: Mapping[int, Any]) -> Any:
    if isinstance(item, Handle):
        return results[id(item)]
    if isinstance(item, list | tuple):
        return type(item)(_replaced(part, results) for part in item)
    return item
