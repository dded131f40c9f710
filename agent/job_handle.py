"""A submitted job as its submitter sees it: events, results, receipts, and how it failed.

The home's agent does the work; a `Job` asks it what is new, on a connection that it borrows from its mesh.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from coppermesh.agent import screens
from coppermesh.agent.challenge_report import ChallengeReport, challenge
from coppermesh.agent.local_link import AgentUnavailable, LocalLink
from coppermesh.agent.local_messages import WAIT_SECONDS, JobEvent, WaitAnswer, WaitCall
from coppermesh.agent.mapping import unwrap
from coppermesh.agent.parcels import PreparedTask, StoredArray
from coppermesh.agent.story import printable
from coppermesh.exec.graph import SourceLine
from coppermesh.exec.program import ArraySpec
from coppermesh.exec.source_lines import describe_line, failed_node
from coppermesh.p2p.errors import MeshError, Refused

if TYPE_CHECKING:
    from coppermesh.agent.client import Mesh

PROGRESS = "COPPERMESH_PROGRESS"
"""Environment variable: show progress on stderr."""
MAX_OPEN_JOBS = 10_000
_open_jobs: "dict[bytes, Mesh]" = {}
"""Jobs that this process submitted and has not seen the end of, oldest first."""


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
            text += (
                "\n  arrays that it was to write stay bound to it: make them anew, then launch the mended one"
            )
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
        self._heard = ""
        """The last that was said of its progress, such as why a provider refuses."""
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
                heard = f"; last heard: {self._heard}" if self._heard else ""
                raise TimeoutError(
                    f"job {self.id[:8]} has not ended within {timeout:g} s ({self._progress()}{heard}); it goes on: "
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
        elif event.kind == "progress":
            self._heard = printable(facts["text"])
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


def with_line(refusal: Refused, tasks: Sequence[PreparedTask]) -> Refused:
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


def _show_progress(job: str, facts: dict[str, Any]) -> None:
    """One line on stderr for what a person waits for."""
    if facts["kind"] == "task":
        receipt = facts["receipt"]
        text = f"{facts['done']}/{facts['tasks']} done by {receipt['provider'][-8:]} for {receipt['price']}"
    elif facts["kind"] == "progress":
        of_task = "" if facts["index"] is None else f"task {facts['index']}: "
        text = of_task + printable(facts["text"])
    else:
        text = facts["kind"]
    print(f"coppermesh: job {job}: {text}", file=sys.stderr, flush=True)


def note_open(job: bytes, mesh: "Mesh") -> None:
    """That job may still run: `cancel_open_jobs` takes it back."""
    _open_jobs[job] = mesh
    if len(_open_jobs) > MAX_OPEN_JOBS:
        del _open_jobs[next(iter(_open_jobs))]


def open_jobs() -> list[str]:
    """The ids of this process's jobs that may still run, oldest first."""
    return [job.hex() for job in _open_jobs]


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
