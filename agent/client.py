"""The public Python API: `connect()` gives a `Mesh`, `Mesh.submit` a `Job`, `Mesh.compute` the answer.

The client records programs and moves arrays; everything that needs a key, a ledger or a network is done by the home's
agent, reached over its local socket. Where no agent runs, `connect` starts a requester-only one that ends by itself
after ten idle minutes, so that receipts are countersigned even when the script is gone. Nothing is computed here.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self

import numpy as np

from coppermesh.agent import screens
from coppermesh.agent.agent_start import start_agent
from coppermesh.agent.challenge_report import ChallengeReport, challenge
from coppermesh.agent.dask_scheduler import compute_graph
from coppermesh.agent.executor import MeshExecutor
from coppermesh.agent.home import Home, default_home
from coppermesh.agent.local_link import CALL_SECONDS, AgentUnavailable, IdleLinks, LocalLink, socket_alive
from coppermesh.agent.local_messages import (
    WAIT_SECONDS,
    JobEvent,
    JsonBody,
    SubmitAnswer,
    SubmitCall,
    WaitAnswer,
    WaitCall,
)
from coppermesh.agent.mapping import map_chunks, unwrap
from coppermesh.agent.parcels import Parcel, PreparedTask, StoredArray
from coppermesh.agent.quote_text import quote_lines
from coppermesh.agent.scanning import Loop, scan_in_segments
from coppermesh.agent.story import printable
from coppermesh.exec import barrier
from coppermesh.exec.graph import Handle, SourceLine
from coppermesh.exec.program import ArraySpec
from coppermesh.exec.recorder import Array, trace
from coppermesh.exec.source_lines import describe_line, failed_node
from coppermesh.p2p.errors import MeshError, Refused
from coppermesh.p2p.messages import BlobInfo

_open_jobs: "dict[bytes, Mesh]" = {}
"""Jobs that this process submitted and has not seen the end of, oldest first."""
MAX_OPEN_JOBS = 10_000
PROGRESS = "COPPERMESH_PROGRESS"
"""Environment variable: show progress on stderr."""
OPTIONS = "COPPERMESH_OPTIONS"
"""Environment variable: options of jobs as JSON, where the script names none."""


DRY_RUN = "COPPERMESH_DRY_RUN"
"""Environment variable, `text` or `json`: show what the first job would cost and end."""
QUOTE_SECONDS = 10.0
MAX_LINE = 2000


@dataclass(frozen=True)
class JobOptions:
    """What a submitter may ask for, as `Mesh.submit` explains. Times are seconds; money is 10^-6 usd."""

    device: str = "any"
    model: str = ""
    memory: int = 0
    features: tuple[str, ...] = ()
    isolation: tuple[str, ...] = ()
    min_speed: int = 0
    max_rate: int = 100_000_000
    budget: int = 10_000_000
    wall_limit_s: float = 60.0
    deadline_s: float = 300.0
    providers: int = 1
    redundancy: int = 1
    fresh: bool = False
    trace: bool = False


class Quote:
    """What a job would cost, and where it would run. `facts` is plain data; `str(quote)` is for people."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts

    def __str__(self) -> str:
        """The ranking, with the reason of each place, and why others are not in it."""
        return "\n".join(printable(line, MAX_LINE) for line in quote_lines(self.facts))


_OF_A_LAUNCH = frozenset(("kernel-compile", "kernel-trap"))
"""Codes of failures that stay with what a kernel was to write, also where the kernel's source is mended."""


class JobFailed(MeshError):
    """The job ended without a result. `code` is stable; `detail` holds a compiler's log or the like.

    Where it happened at a node of the program, the text shows the line of the user's code that recorded it.
    """

    def __init__(
        self, job: str, code: str, sentence: str, detail: str = "", node: int | None = None, line: str = ""
    ) -> None:
        detail = screens.printable(detail)  # a stranger's text on its way to a terminal
        text = "\n".join(part for part in (sentence, line and f"  recorded at {line}", detail) if part)
        if line and code in _OF_A_LAUNCH:
            text += "\n  arrays that this launch writes keep it: make them anew before another one"
        super().__init__(f"{text}\n(code {code}; the whole story: coppermesh explain {job[:8]})")
        self.job = job
        self.code = code
        self.sentence = sentence
        self.detail = detail
        self.node = node
        """The node of the failed task's program that it happened at, where known."""
        self.line = line
        """The user's own line that recorded it: `photo.py:12: y = xp.take(x, i)`; empty where not known."""


class _Recorded(NamedTuple):
    """A program, and for each of its nodes the user's own line."""

    program: bytes
    sources: Sequence[SourceLine]


class Job:
    """One submitted job. Results arrive as its tasks finish; `result()` waits for all of them."""

    def __init__(
        self, mesh: "Mesh", job: bytes, tasks: Sequence[PreparedTask], *, many: bool, keep: bool = False
    ) -> None:
        self._mesh = mesh
        self._job = job
        self._specs = [task.outputs for task in tasks]
        self._programs = [_Recorded(task.program, task.sources) for task in tasks]
        self._many = many
        self._keep = keep
        self._link: LocalLink | None = None
        self._seen = 0
        self._results: dict[int, tuple[Any, ...]] = {}
        self._receipts: dict[int, dict[str, Any]] = {}
        self._ended = False
        self._failure: JobFailed | None = None

    @property
    def id(self) -> str:
        """32 hex digits; the first eight are enough for `coppermesh explain`."""
        return self._job.hex()

    @property
    def receipts(self) -> list[dict[str, Any]]:
        """Receipts of the finished tasks so far, in task order, as plain dictionaries."""
        return [self._receipts[index] for index in sorted(self._receipts)]

    @property
    def receipt(self) -> dict[str, Any]:
        """The receipt of a job of one task (of the first finished one otherwise). Waits for it."""
        while not self._receipts:
            if not self._advance() and not self._receipts:
                raise MeshError(f"job {self.id[:8]} ended without a receipt")
        return self.receipts[0]

    def events(self) -> Iterator[dict[str, Any]]:
        """Progress as it happens, until the job has ended: `{"kind": "task", "index": 3, ...}`."""
        while not self._ended:
            for event in self._poll():
                yield self._absorb(event)

    def result(self, timeout: float | None = None) -> Any:
        """The arrays: one ndarray, a tuple when several were asked for, a list of these for `submit_many`.

        Waits at most `timeout` seconds for the job, without end where None. Raises TimeoutError, and the job goes
        on: ask again, or `cancel()` it. Raises JobFailed with whose fault it was and what to change.
        """
        results = [unwrap(arrays) for arrays in self.result_tuples(timeout)]
        return results if self._many else results[0]

    def result_tuples(self, timeout: float | None = None) -> list[tuple[Any, ...]]:
        """For each task the tuple of its arrays, also where it has only one. Waits and raises as `result` does."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._ended:
            left = WAIT_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
            events = self._poll(left)
            if not events and deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(
                    f"job {self.id[:8]} has not ended within {timeout:g} s ({self._progress()}); it goes on: "
                    "ask for the result again, or cancel() it"
                )
            for event in events:
                self._absorb(event)
        if self._failure is not None:
            raise self._failure
        return [arrays for _, arrays in sorted(self._results.items())]

    def as_completed(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Each task's number and arrays as soon as they are there, keeping none. Raises JobFailed."""
        yield from self._hand_over()
        while self._advance():
            yield from self._hand_over()
        if self._failure is not None:
            raise self._failure

    def _hand_over(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        while self._results:
            yield self._results.popitem()

    def __repr__(self) -> str:
        """How far the job is, as far as it was waited for."""
        ending = f" failed ({self._failure.code})," if self._failure is not None else ""
        return f"<Job {self.id[:8]}:{ending} {self._progress()}>"

    def _progress(self) -> str:
        count = len(self._specs)
        return f"{len(self._receipts)} of {count} task{'s' if count != 1 else ''} done"

    def challenge(self, task: int = 0, *, local: bool = False, timeout: float = 120.0) -> ChallengeReport:
        """Have the provider of a finished task show what every node of it gave, and find where two runs part.

        The provider runs the task again, where it did not record at once (`trace=True`), and signs a digest for each
        node. It is compared with its receipt, with other providers that ran the same program on the same inputs, and,
        where `local`, with a run on this machine. `report.fault` says whether somebody is wrong, `report.node` which
        node is the first that differs; `str(report)` shows your own line behind it. Waits at most `timeout` seconds
        for providers, which let paid work go first, and as long for the run here.

        Raises NoVerdict where nobody can say now, Refused with the provider's reason, RunFailed.
        """
        if not 0 <= task < len(self._specs):
            raise IndexError(
                f"job {self.id[:8]} has {screens.counted(len(self._specs), 'task')}, numbered from 0"
            )

        sources, results = self._programs[task].sources, self._results.get(task)
        arrays = results if results and all(isinstance(one, np.ndarray) for one in results) else None
        return challenge(
            self._mesh.link_within,
            self.id,
            task,
            local=local,
            timeout=timeout,
            sources=sources,
            results=arrays,
        )

    def cancel(self) -> None:
        """Ask the agent to end the job; what already ran is still settled."""
        with self._mesh.link() as link:
            link.call_json("cancel", json.dumps({"job": self.id}))

    def _advance(self) -> bool:
        if self._ended:
            return False
        for event in self._poll():
            self._absorb(event)
        return True

    def _poll(self, seconds: float = WAIT_SECONDS) -> list[JobEvent]:
        """What happened since the last time; where nothing did, what happens within `seconds`, if anything."""
        if self._link is not None:
            try:
                return self._ask(self._link, seconds)
            except AgentUnavailable:
                pass  # the agent hangs up on a connection that was idle for a minute; it may well live
        self._link = self._mesh.lend_link(WAIT_SECONDS + 30.0)
        return self._ask(self._link, seconds)

    def _ask(self, link: LocalLink, seconds: float) -> list[JobEvent]:
        call = WaitCall(self._job, self._seen, int(1000 * min(seconds, WAIT_SECONDS)))
        try:
            return link.call("wait", call, WaitAnswer).events
        except BaseException:
            link.close()
            self._link = None
            raise

    def _absorb(self, event: JobEvent) -> dict[str, Any]:
        self._seen = event.number
        facts: dict[str, Any] = {"kind": event.kind, "index": event.index, **json.loads(event.text)}
        if PROGRESS in os.environ:
            _show_progress(self.id[:8], facts)
        if event.kind == "task" and event.index is not None:
            self._results[event.index] = self._collect(event, self._specs[event.index])
            self._receipts[event.index] = facts["receipt"]
        elif event.kind in ("finished", "failed"):
            self._ended = True
            _open_jobs.pop(self._job, None)
            if event.kind == "failed":
                self._failure = self._explain(facts)
            if self._link is not None:
                link, self._link = self._link, None
                self._mesh.give_link_back(link)
        return facts

    def _explain(self, facts: dict[str, Any]) -> JobFailed:
        task, sentence = facts["index"], facts["sentence"]
        programs = self._programs if task is None else self._programs[task : task + 1]
        node, line = _locate(programs, sentence)
        return JobFailed(self.id, facts["code"], sentence, facts.get("detail", ""), node, line)

    def _collect(self, event: JobEvent, specs: Sequence[ArraySpec]) -> tuple[Any, ...]:
        inline = {blob.root: blob.data for blob in event.inline}
        if self._keep:
            return tuple(StoredArray(output, inline.get(output.root)) for output in event.outputs)
        arrays = []
        for spec, output in zip(specs, event.outputs, strict=True):
            array = np.empty(spec.shape, dtype=spec.dtype)
            if output.size != array.nbytes:
                raise MeshError(
                    f"job {self.id[:8]}: output of {output.size} bytes where {array.nbytes} were due"
                )
            if array.nbytes:
                raw = array.reshape(-1).view(np.uint8).data
                if output.root in inline:
                    raw[:] = inline[output.root]
                else:
                    with self._mesh.link() as link:
                        link.get_blob(output, raw)
            arrays.append(array)
        return tuple(arrays)


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
        chosen = _chosen({**_options_from_environment(), **options})
        try:
            job = self._send(tasks, chosen)
        except Refused as refusal:
            if refusal.code != "missing-blobs":
                raise _with_line(refusal, tasks) from None
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
        chosen = _chosen({**_options_from_environment(), **options})
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
        _open_jobs[job] = self
        if len(_open_jobs) > MAX_OPEN_JOBS:
            del _open_jobs[next(iter(_open_jobs))]
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


def _with_line(refusal: Refused, tasks: Sequence[PreparedTask]) -> Refused:
    """The refusal, with the user's line where it names a node."""
    _, line = _locate([_Recorded(task.program, task.sources) for task in tasks], refusal.sentence)
    return Refused(refusal.code, f"{refusal.sentence}\n  recorded at {line}") if line else refusal


def _locate(programs: Sequence[_Recorded], sentence: str) -> tuple[int | None, str]:
    """The node that a sentence about one of `programs` names and the line that recorded it, where that is certain.

    Where the sentence does not say which program it is about, all that have such a node must have it from one line.
    """
    if not programs:
        return None, ""
    nodes = {recorded: failed_node(sentence, recorded.program) for recorded in set(programs)}
    places = {
        (node, line) for recorded, node in nodes.items() if (line := describe_line(recorded.sources, node))
    }
    if len(places) == 1:
        return places.pop()
    return (next(iter(nodes.values())), "") if len(nodes) == 1 else (None, "")


def _chosen(options: dict[str, Any]) -> JobOptions:
    """The options. Raises TypeError naming one that there is not."""
    known = [field.name for field in fields(JobOptions)]
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise TypeError(f"there is no option {name!r}; {hint}the options are {', '.join(known)}")
    return JobOptions(**options)


def _options_from_environment() -> dict[str, Any]:
    """What the options of `coppermesh submit` asked for."""
    try:
        options = json.loads(os.environ.get(OPTIONS) or "{}")
        return {name: tuple(given) if isinstance(given, list) else given for name, given in options.items()}
    except (ValueError, AttributeError):
        raise ValueError(f"{OPTIONS} is not a JSON object of options: unset it") from None


def _show_progress(job: str, facts: dict[str, Any]) -> None:
    """One line on stderr for what a person waits for."""
    if facts["kind"] == "task":
        receipt = facts["receipt"]
        text = f"{facts['done']}/{facts['tasks']} done by {receipt['provider'][-8:]} for {receipt['price']}"
    elif facts["kind"] == "progress":
        text = printable(facts["text"])
    else:
        text = facts["kind"]
    print(f"coppermesh: job {job}: {text}", file=sys.stderr, flush=True)


def cancel_open_jobs() -> list[str]:
    """Take back every job of this process that may still run; returns the ids of those that were. For Ctrl-C."""
    cancelled = []
    for job, mesh in list(_open_jobs.items()):
        del _open_jobs[job]
        try:
            with mesh.link(timeout_s=5.0) as link:
                facts = json.loads(link.call_json("cancel", json.dumps({"job": job.hex()})))
        except MeshError:
            continue  # the agent is gone, or has forgotten the job: either way it is over
        if facts["cancelled"]:
            cancelled.append(job.hex())
    return cancelled


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
