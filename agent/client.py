"""The public Python API: `connect()` gives a `Mesh`, `Mesh.submit` a `Job`, `Mesh.compute` the answer.

The client records programs and moves arrays; everything that needs a key, a ledger or a network is done by the home's
agent, reached over its local socket. Where no agent runs, `connect` starts a requester-only one that ends by itself
after ten idle minutes, so that receipts are countersigned even when the script is gone. Nothing is computed here.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from coppermesh.agent.home import Home, default_home
from coppermesh.agent.local_link import AgentUnavailable, LocalLink, socket_alive
from coppermesh.agent.local_messages import (
    LOCAL_INLINE_BYTES,
    WAIT_SECONDS,
    Blob,
    JobEvent,
    SubmitAnswer,
    SubmitCall,
    TaskSpec,
    WaitAnswer,
    WaitCall,
)
from coppermesh.agent.story import printable
from coppermesh.exec.program import ArraySpec
from coppermesh.exec.recorder import Array, Recording, trace
from coppermesh.p2p.blobs import digest_of
from coppermesh.p2p.errors import MeshError, Refused
from coppermesh.p2p.messages import BlobInfo

_started: list[subprocess.Popen[bytes]] = []
"""Agents this process started; kept so that they can outlive it without a warning about an abandoned child."""
START_SECONDS = 20.0
PROGRESS = "COPPERMESH_PROGRESS"
"""Environment variable: show progress on stderr."""
DEADLINE = "COPPERMESH_DEADLINE"
"""Environment variable: deadline of jobs in seconds, where the script names none."""
IDLE_EXIT_SECONDS = 600
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class JobOptions:
    """What a submitter may ask for. Times are seconds; money is 10^-6 usd.

    device: `any`, `cpu` or `cuda`. max_rate: most a provider may ask per device-hour. budget: most the whole job may
    cost. wall_limit_s: most one task may run. deadline_s: give up when not finished by then. providers: spread over at
    least this many leases when that many providers offer. fresh: a new worker process for every task.
    """

    device: str = "any"
    max_rate: int = 100_000_000
    budget: int = 10_000_000
    wall_limit_s: float = 60.0
    deadline_s: float = 300.0
    providers: int = 1
    fresh: bool = False
    isolation: tuple[str, ...] = ()


class JobFailed(MeshError):
    """The job ended without a result. `code` is stable; `detail` holds a compiler's log or the like."""

    def __init__(self, job: str, code: str, sentence: str, detail: str = "") -> None:
        text = f"{sentence}\n{detail}" if detail else sentence
        super().__init__(f"{text}\n(code {code}; the whole story: coppermesh explain {job[:8]})")
        self.job = job
        self.code = code
        self.sentence = sentence
        self.detail = detail


class Job:
    """One submitted job. Results arrive as its tasks finish; `result()` waits for all of them."""

    def __init__(self, mesh: "Mesh", job: bytes, recordings: Sequence[Recording], *, many: bool) -> None:
        self._mesh = mesh
        self._job = job
        self._specs = [list(recording.checked.output_specs) for recording in recordings]
        self._many = many
        self._link: LocalLink | None = None
        self._seen = 0
        self._results: dict[int, tuple[np.ndarray, ...]] = {}
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

    def result(self) -> Any:
        """The arrays: one ndarray, a tuple when several were asked for, a list of these for `submit_many`.

        Raises JobFailed with whose fault it was and what to change.
        """
        while self._advance():
            pass
        if self._failure is not None:
            raise self._failure
        results = [arrays[0] if len(arrays) == 1 else arrays for _, arrays in sorted(self._results.items())]
        return results if self._many else results[0]

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

    def _poll(self) -> list[JobEvent]:
        if self._link is None:
            self._link = self._mesh.link(timeout_s=WAIT_SECONDS + 30.0)
        return self._link.call("wait", WaitCall(self._job, self._seen), WaitAnswer).events

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
            if event.kind == "failed":
                self._failure = JobFailed(self.id, facts["code"], facts["sentence"], facts.get("detail", ""))
            if self._link is not None:
                self._link.close()
        return facts

    def _collect(self, event: JobEvent, specs: Sequence[ArraySpec]) -> tuple[np.ndarray, ...]:
        inline = {blob.root: blob.data for blob in event.inline}
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
    """A connection to the home's agent. Use it as a context manager; many jobs may be open at once."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._sent: set[bytes] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget what was sent. The agent, its jobs and its receipts live on."""
        self._sent.clear()

    def link(self, *, timeout_s: float = 60.0) -> LocalLink:
        """A connection to the agent; raises AgentUnavailable when it is gone."""
        return LocalLink(self._home.socket_path, timeout_s=timeout_s)

    def compute(self, *arrays: Array, **options: Any) -> Any:
        """Run what leads to `arrays` on the mesh and return NumPy arrays: one, or a tuple for several.

        `options` are those of `JobOptions`. Raises JobFailed.
        """
        return self.submit(*arrays, **options).result()

    def submit(self, *arrays: Array, **options: Any) -> Job:
        """Like `compute`, without waiting."""
        if not arrays:
            raise ValueError("submit() needs at least one array")
        return self._submit([trace(*arrays)], options, many=False)

    def submit_many(self, groups: Sequence[Array | tuple[Array, ...]], **options: Any) -> Job:
        """One job of many tasks, one for each array or tuple of arrays; its result is a list in that order."""
        recordings = [trace(*group) if isinstance(group, tuple) else trace(group) for group in groups]
        if not recordings:
            raise ValueError("submit_many() needs at least one array")
        return self._submit(recordings, options, many=True)

    def _submit(self, recordings: Sequence[Recording], options: dict[str, Any], *, many: bool) -> Job:
        chosen = JobOptions(**{**_options_from_environment(), **options})
        try:
            job = self._send(recordings, chosen)
        except Refused as refusal:
            if refusal.code != "missing-blobs":
                raise
            self._sent.clear()  # the agent's store made room, or the agent was restarted: send everything again
            job = self._send(recordings, chosen)
        return Job(self, job, recordings, many=many)

    def _send(self, recordings: Sequence[Recording], chosen: JobOptions) -> bytes:
        tasks: list[TaskSpec] = []
        inline: dict[bytes, Blob] = {}
        budget = LOCAL_INLINE_BYTES
        for recording in recordings:
            views = [memoryview(recording.program), *(_raw(array) for array in recording.inputs)]
            infos = [BlobInfo(digest_of(view), view.nbytes) for view in views]
            for info, view in zip(infos, views, strict=True):
                if info.root in inline or info.root in self._sent:
                    continue
                if info.size <= budget:
                    inline[info.root] = Blob(info.root, bytes(view))
                    budget -= info.size
                else:
                    with self.link() as link:
                        link.put_blob(info, view)
                    self._sent.add(info.root)
            tasks.append(TaskSpec(infos[0].root, infos[1:]))
        call = SubmitCall(tasks, list(inline.values()), json.dumps(asdict(chosen)))
        with self.link() as link:
            return link.call("submit", call, SubmitAnswer).job


def _options_from_environment() -> dict[str, Any]:
    """What `coppermesh submit --deadline` asked for."""
    deadline = os.environ.get(DEADLINE)
    return {} if deadline is None else {"deadline_s": float(deadline)}


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


def _raw(array: np.ndarray) -> memoryview:
    """The array's bytes in C order, without a copy where it is already so."""
    contiguous = np.ascontiguousarray(array)
    if not contiguous.nbytes:
        return memoryview(b"")
    return contiguous.reshape(-1).view(np.uint8).data


def connect(home: str | Path | None = None) -> Mesh:
    """The mesh as this home's agent sees it; starts a requester-only agent where none runs.

    `home` defaults to $COPPERMESH_HOME, then to the user's data folder. Raises AgentUnavailable with the agent's own
    words when it does not come up.
    """
    place = Home(Path(home)) if home is not None else default_home()
    if not socket_alive(place.socket_path):
        _start_agent(place)
    return Mesh(place)


def _start_agent(home: Home) -> None:
    """Start a requester-only agent of its own session, so that it outlives this script; wait until it listens."""
    home.prepare()
    command = [sys.executable, "-m", "coppermesh.agent.cli", "agent", "--home", str(home.path)]
    command += ["--requester-only", "--idle-exit", str(IDLE_EXIT_SECONDS)]
    with home.log_path.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            env=dict(os.environ),
        )
    _started.append(process)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if socket_alive(home.socket_path):
            return
        code = process.poll()
        if code is not None:
            raise AgentUnavailable(f"the agent ended with exit code {code}; its log is {home.log_path}")
        time.sleep(_POLL_SECONDS)
    raise AgentUnavailable(
        f"the agent did not listen within {START_SECONDS:.0f} s; its log is {home.log_path}"
    )
