"""The public Python API: `connect()` gives a `Mesh`, `Mesh.submit` a `Job`, `Mesh.compute` the answer.

The client records programs and moves arrays; everything that needs a key, a ledger or a network is done by the home's
agent, reached over its local socket. Where no agent runs, `connect` starts a requester-only one that ends by itself
after ten idle minutes, so that receipts are countersigned even when the script is gone. Nothing is computed here.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np

from coppermesh.agent import screens
from coppermesh.agent.agent_start import start_agent
from coppermesh.agent.dask_scheduler import compute_graph
from coppermesh.agent.executor import MeshExecutor
from coppermesh.agent.home import Home, default_home
from coppermesh.agent.job_handle import PROGRESS, Job, note_open, with_line
from coppermesh.agent.job_options import JobOptions, chosen_options, options_from_environment
from coppermesh.agent.local_link import CALL_SECONDS, IdleLinks, LocalLink, socket_alive
from coppermesh.agent.local_messages import JsonBody, SubmitAnswer, SubmitCall
from coppermesh.agent.mapping import map_chunks
from coppermesh.agent.parcels import Parcel, PreparedTask
from coppermesh.agent.quote_text import quote_lines
from coppermesh.agent.scanning import Loop, scan_in_segments
from coppermesh.agent.story import printable
from coppermesh.exec import barrier
from coppermesh.exec.graph import Handle
from coppermesh.exec.recorder import Array, trace
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.messages import BlobInfo

DRY_RUN = "COPPERMESH_DRY_RUN"
"""Environment variable, `text` or `json`: show what the first job would cost and end."""
QUOTE_SECONDS = 10.0
MAX_LINE = 2000


class Quote:
    """What a job would cost, and where it would run. `facts` is plain data; `str(quote)` is for people."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts

    def __str__(self) -> str:
        """The ranking, with the reason of each place, and why others are not in it."""
        return "\n".join(printable(line, MAX_LINE) for line in quote_lines(self.facts))


class Mesh:
    """A connection to the home's agent. Use it as a context manager; many jobs may be open at once.

    Inside the block, and in threads that run meanwhile, Python code that needs a lazy array's value (`float(x)`,
    `if x > 0:`) gets it by a job of its own: one round trip, counted by `coppermesh.trace_report`. Elsewhere, and in
    threads while several meshes are open, it raises NeedsValue.
    """

    def __init__(self, home: Home, mesh: str | None = None) -> None:
        self._home = home
        self._mesh = mesh
        self._sent: set[bytes] = set()
        self._links = IdleLinks()
        self._blocks: list[AbstractContextManager[None]] = []

    def __enter__(self) -> Self:
        block = barrier.evaluator(self._fetch)
        block.__enter__()
        self._blocks.append(block)
        return self

    def _fetch(self, arrays: Sequence[Handle]) -> list[np.ndarray]:
        """What a barrier needs, by one job."""
        task = PreparedTask.of(trace(*arrays))
        return list(self.submit_prepared([task]).result_tuples()[0])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        self._blocks.pop().__exit__(kind, error, trace_)
        self.close()

    def __repr__(self) -> str:
        """Whose agent it is."""
        return f"<Mesh of the agent at {self._home.path}>"

    def close(self) -> None:
        """Forget what was sent. The agent, its jobs and its receipts live on."""
        self._sent.clear()
        self._links.close()

    def link(self, *, timeout_s: float = 60.0) -> LocalLink:
        """A connection to the agent; raises AgentUnavailable when it is gone."""
        return LocalLink(self._home.socket_path, timeout_s=timeout_s, mesh=self._mesh)

    def lend_link(self, timeout_s: float) -> LocalLink:
        """A connection that was used before and is idle, or a new one. Give it back; close it where a call failed."""
        return self._links.take(timeout_s) or self.link(timeout_s=timeout_s)

    def give_link_back(self, link: LocalLink) -> None:
        """Keep a connection for the next call."""
        self._links.keep(link)

    def link_within(self, timeout_s: float) -> LocalLink:
        """The same, for calls that may take `timeout_s` seconds."""
        return self.link(timeout_s=timeout_s)

    def compute(self, *arrays: Array, **options: Any) -> Any:
        """Run what leads to `arrays` on the mesh, as one task, and return NumPy arrays: one, or a tuple for several.

        `options` are those of `submit`: device, model, memory, features, isolation, min_speed, max_rate, budget,
        wall_limit_s, deadline_s, providers, redundancy, fresh, trace. Raises JobFailed.
        """
        return self.submit(*arrays, **options).result()

    def submit(self, *arrays: Array, **options: Any) -> Job:
        """Like `compute`, without waiting: `submit(a, b).result()` gives the NumPy arrays of both.

        Options, each with its default:

            device="any"            "cpu" or "cuda": on such a device only
            model=""                part of the device's name, such as "H100"
            memory=0                least memory for a task in bytes; what the programs need is asked for anyway
            features=()             names of features that the device must have, beside those the programs need
            min_speed=0             least speed in Mop/s, millions of operations per second: by the provider's own
                                    measurement, and by yours of the same programs once there is one
            max_rate=100_000_000    most a provider may ask per device-hour, in 10^-6 usd
            budget=10_000_000       most the whole job may cost, in 10^-6 usd
            wall_limit_s=60.0       most one task may run, in seconds
            deadline_s=300.0        the job fails where it has not ended by then; `coppermesh submit --deadline` sets
                                    the default
            providers=1             spread the tasks over at least so many providers, where so many offer
            redundancy=1            run each task at so many providers and compare the results; each is paid
            fresh=False             True: a new worker process for every task
            isolation=()            names of isolation layers that a provider must have witnessed; `coppermesh submit
                                    --isolation` sets the default
            trace=False             True: record a digest for each node while it runs, and sign their root in the
                                    receipt; hashing is billed like the rest

        Raises Refused where the agent takes no such job, TypeError for what is no lazy array or no option.
        """
        if not arrays:
            raise ValueError("submit() needs at least one array")
        if any(isinstance(array, list | tuple) for array in arrays):
            raise TypeError(
                "a list is no lazy array: pass arrays one by one, submit(a, b), for one task that gives all of them; "
                "or use submit_many([a, b]) for one task each"
            )
        return self.submit_prepared([PreparedTask.of(trace(*arrays))], many=False, **options)

    def submit_many(self, groups: Sequence[Array | tuple[Array, ...]], **options: Any) -> Job:
        """One job of many tasks, one for each array or tuple of arrays; its result is a list in that order.

        `options` are those of `submit`: device, model, memory, features, isolation, min_speed, max_rate, budget,
        wall_limit_s, deadline_s, providers, redundancy, fresh, trace.
        """
        recordings = [trace(*group) if isinstance(group, tuple) else trace(group) for group in groups]
        if not recordings:
            raise ValueError("submit_many() needs at least one array")
        return self.submit_prepared([PreparedTask.of(recording) for recording in recordings], **options)

    def map(
        self,
        function: Callable[[Array], Any],
        array: Any,
        *,
        chunks: int,
        reduce: Callable[[Any, Any], Any] | str | None = None,
        progress: bool = False,
        **options: Any,
    ) -> Any:
        """`function` over `array`, `chunks` rows (along the first axis) at a time, as one job of many tasks.

        `function` takes a lazy array and returns one, or a tuple of them. It is called once per distinct shape of
        chunk, so what it does must depend on shapes only. Without `reduce` the result is a list in the order of the
        chunks. `reduce="concat"` joins the results along their first axis, on this machine. A function of two lazy
        results (`xp.add`) folds them on the mesh, in order, in rounds of jobs; only the last result comes here.
        `progress` counts on stderr. Raises JobFailed, TypeError, ValueError.

        `options` are those of `submit`: device, model, memory, features, isolation, min_speed, max_rate, budget,
        wall_limit_s, deadline_s, providers, redundancy, fresh, trace.
        """
        return map_chunks(
            self, function, array, chunks=chunks, reduce=reduce, progress=progress, options=options
        )

    def scan(
        self,
        body: Callable[[Any, Any], tuple[Any, Any]],
        carry: Any,
        xs: Any = None,
        *,
        length: int | None = None,
        segment: int | None = None,
        progress: bool = False,
        **options: Any,
    ) -> tuple[Any, Any]:
        """`carry, y = body(carry, x)` for each `x` of `xs`, as `xp.scan`, but in tasks of `segment` steps each.

        A provider that leaves costs one segment: the carry after each is kept here, paid, and where the next provider
        goes on. Without `segment` each is meant to take some seconds. `carry` and `xs` are NumPy arrays, None, or
        tuples, lists and dicts of them; gives the last carry and all `y` stacked. Raises JobFailed, TypeError,
        ValueError, and what `xp.scan` raises.

        `options` are those of `submit`.
        """
        loop = Loop.of(body, carry, xs, length)
        return scan_in_segments(self, loop, segment=segment, progress=progress, options=options)

    def executor(self, max_workers: int = 8, **options: Any) -> MeshExecutor:
        """The mesh as a `concurrent.futures.Executor` of up to `max_workers` jobs at once.

        `submit(fn, *arrays)` calls `fn` here, with lazy arrays, and runs what it records. `options` are those of
        `Mesh.submit`.
        """
        return MeshExecutor(self, max_workers, options)

    def dask(self, graph: Any, keys: Any, **options: Any) -> Any:
        """A scheduler for dask: `x.compute(scheduler=mesh.dask)` runs as one program on the mesh.

        The graph's functions are called here with lazy blocks. `options` are those of `submit`. Needs dask.
        """
        return compute_graph(self, graph, keys, options)

    def submit_prepared(
        self, tasks: Sequence[PreparedTask], *, many: bool = True, keep: bool = False, **options: Any
    ) -> Job:
        """One job of tasks that are recorded already.

        `keep` leaves the results in the agent's store: each comes as `StoredArray`s, inputs for other tasks.
        """
        if DRY_RUN in os.environ:
            self._end_dry_run(tasks, options)
        chosen = chosen_options({**options_from_environment(), **options})
        try:
            job = self._send(tasks, chosen)
        except Refused as refusal:
            if refusal.code != "missing-blobs":
                raise with_line(refusal, tasks) from None
            self._sent.clear()  # the agent's store made room, or the agent was restarted: send everything again
            job = self._send(tasks, chosen)
        self._note_submitted(job, len(tasks), chosen)
        return Job(self, job, tasks, many=many, keep=keep)

    def quote(self, *arrays: Array, **options: Any) -> Quote:
        """What `submit` with the same arguments would cost, and where it would run: nothing is leased or run.

        `print(mesh.quote(y))` shows the ranking of the bids with the reason of each place. The inputs go to the home's
        agent, and no further. Raises as `submit` does.
        """
        return self.quote_prepared([PreparedTask.of(trace(*arrays))], **options)

    def quote_prepared(self, tasks: Sequence[PreparedTask], **options: Any) -> Quote:
        """The same for tasks that are recorded already. Where nobody was heard yet it waits, up to 10 s."""
        chosen = chosen_options({**options_from_environment(), **options})
        parcel = Parcel(set(), self._put)
        parcel.add(tasks)
        call = SubmitCall(parcel.tasks, parcel.blobs, json.dumps(asdict(chosen)))
        deadline = time.monotonic() + QUOTE_SECONDS
        while True:
            with self.link() as link:
                facts = json.loads(link.call("quote", call, JsonBody).text)
            if facts["places"] or facts["refusals"] or time.monotonic() > deadline:
                return Quote(facts)
            time.sleep(0.2)

    def _end_dry_run(self, tasks: Sequence[PreparedTask], options: dict[str, Any]) -> NoReturn:
        """`coppermesh submit --dry-run`: the script's first job is shown, and the script ends, having no result."""
        quote = self.quote_prepared(tasks, **options)
        print(json.dumps(quote.facts) if os.environ[DRY_RUN] == "json" else quote)
        raise SystemExit(0 if quote.facts["places"] else 1)

    def _note_submitted(self, job: bytes, tasks: int, chosen: JobOptions) -> None:
        note_open(job, self)
        if PROGRESS in os.environ:
            counted = screens.counted(tasks, "task")
            waiting = f"{counted}, waiting for a provider (deadline {chosen.deadline_s:g} s)"
            print(f"coppermesh: job {job.hex()[:8]}: {waiting}", file=sys.stderr, flush=True)

    def _send(self, tasks: Sequence[PreparedTask], chosen: JobOptions) -> bytes:
        parcel = Parcel(self._sent, self._put)
        parcel.add(tasks)
        call = SubmitCall(parcel.tasks, parcel.blobs, json.dumps(asdict(chosen)))
        link = self.lend_link(CALL_SECONDS)
        try:
            job = link.call("submit", call, SubmitAnswer).job
        except BaseException:
            link.close()
            raise
        self.give_link_back(link)
        return job

    def _put(self, blob: BlobInfo, view: memoryview) -> None:
        with self.link() as link:
            link.put_blob(blob, view)


def connect(home: str | Path | None = None, mesh: str | None = None) -> Mesh:
    """The mesh as this home's agent sees it; starts a requester-only agent where none runs.

    `home` defaults to $COPPERMESH_HOME, then to the user's data folder; `mesh`, the name of one of the home's meshes
    (`coppermesh mesh list`), to $COPPERMESH_MESH, then to the home's default one. When the agent does not come up its
    own words are raised: ConfigError where settings or key cannot be used, HomeError where the home cannot, else
    AgentUnavailable.
    """
    place = Home(home) if home is not None else default_home()
    if not socket_alive(place.socket_path):
        start_agent(place)
    return Mesh(place, mesh)
