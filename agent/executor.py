"""`Mesh.executor()`: the mesh behind the interface of `concurrent.futures`.

`submit(fn, *arrays)` calls `fn` at once, in the caller's thread, with lazy arrays in place of NumPy's, and ships the
program that it recorded: code never travels. A few threads wait for the jobs. A future stays cancellable until its
result is there; cancelling one ends its job on the mesh.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from coppermesh.agent.mapping import as_handles
from coppermesh.agent.parcels import PreparedTask
from coppermesh.exec.promotion import input_value
from coppermesh.exec.recorder import Array, trace
from coppermesh.p2p.errors import MeshError

if TYPE_CHECKING:
    from coppermesh.agent.client import Mesh
    from coppermesh.agent.job_handle import Job

MAX_WORKERS = 64
"""Each waits on a connection of its own, and the agent takes 128 of them."""


class MeshFuture(Future[Any]):
    """The arrays of one `submit`. `job` is there once it was sent: its receipts, its id for `coppermesh explain`."""

    def __init__(self) -> None:
        super().__init__()
        self.job: Job | None = None


class MeshExecutor(Executor):
    """At most `max_workers` jobs at once; further ones wait their turn here."""

    def __init__(self, mesh: "Mesh", max_workers: int, options: dict[str, Any]) -> None:
        if not 1 <= max_workers <= MAX_WORKERS:
            raise ValueError(f"max_workers={max_workers}: want 1 to {MAX_WORKERS}")
        self._mesh = mesh
        self._options = options
        self._threads = ThreadPoolExecutor(max_workers, thread_name_prefix="coppermesh-executor")
        self._open: set[MeshFuture] = set()
        self._lock = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> MeshFuture:
        """Record `fn(*args, **kwargs)` and run it on the mesh. NumPy arrays among the arguments become lazy ones.

        The future gives one NumPy array, or a tuple where `fn` returned several. What `fn` raises is the future's
        exception; so is TypeError where it returns anything but lazy arrays. Raises RuntimeError after `shutdown`.
        """
        future = MeshFuture()
        try:
            task = _record(fn, args, kwargs)
        except Exception as error:  # noqa: BLE001 - the user's function may raise anything, and the future tells it
            future.set_exception(error)
            return future
        with self._lock:
            self._threads.submit(self._carry, future, task)
            self._open.add(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more; `cancel_futures` also ends what has no result yet. The threads end with their jobs."""
        if cancel_futures:
            with self._lock:
                unfinished = list(self._open)
            for future in unfinished:
                future.cancel()
        self._threads.shutdown(wait)

    def _carry(self, future: MeshFuture, task: PreparedTask) -> None:
        """In a thread: send, wait, settle the future. It counts as pending until then, so that it can be cancelled."""
        result: Any = None
        failure: BaseException | None = None
        try:
            if not future.cancelled():
                result = self._wait(future, task)
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to whoever asks the future
            failure = error
        finally:
            with self._lock:
                self._open.discard(future)
        if not future.set_running_or_notify_cancel():
            return
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(result)

    def _wait(self, future: MeshFuture, task: PreparedTask) -> Any:
        job = future.job = self._mesh.submit_prepared([task], many=False, **self._options)
        future.add_done_callback(_cancel_job)
        return job.result()


def _cancel_job(future: Future[Any]) -> None:
    """Runs when the future is cancelled, or settled: only the first concerns the mesh."""
    if not future.cancelled() or not isinstance(future, MeshFuture) or future.job is None:
        return
    try:
        future.job.cancel()
    except MeshError:
        return  # no agent, or the job has ended: there is nothing to cancel


def _record(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> PreparedTask:
    result = fn(*map(_lazy, args), **{name: _lazy(value) for name, value in kwargs.items()})
    return PreparedTask.of(trace(*as_handles(result, fn)))


def _lazy(item: Any) -> Any:
    return Array(input_value(item, copy=True)) if isinstance(item, np.ndarray) else item
