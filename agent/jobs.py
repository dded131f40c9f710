"""What the requester's agent keeps of each job: its tasks, what happened, and who is waiting to hear of it.

Events are numbered from 1 and kept until the job is forgotten, ten minutes after it ended; small outputs ride in
them, larger ones stay in the blob store, pinned as long as the job is kept.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from coppermesh.agent.attempts import Outstanding
from coppermesh.agent.copies import CopyTable
from coppermesh.agent.local_messages import Blob, JobEvent, TaskSpec
from coppermesh.agent.matching import Refusal, Requirement
from coppermesh.agent.story import printable
from coppermesh.exec.program import ArraySpec
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import PeerId, short_peer
from coppermesh.p2p.messages import BlobInfo

MAX_JOBS = 256
"""Jobs kept at once, ended ones included."""
KEEP_SECONDS = 600.0
"""How long an ended job can still be asked about."""
MAX_REFUSALS = 256
"""Refusals of one job that are kept and told; peers that announce ever new reasons cannot grow it further."""
MAX_WAITING_TOLD = 16
"""How often a job's client is told why it waits."""
MAX_CODE = 40
MAX_DETAILS = 16
MAX_PLACES = 8
"""Places in the user's kernels told with one refusal."""
INLINE_TASK_BYTES = 64 * 1024
"""Outputs of one task up to this size ride in its event."""
INLINE_TOTAL_BYTES = 64 * 1024 * 1024
"""Outputs held in events at once, all jobs together; beyond it small ones stay in the store like large ones."""
ANSWER_EVENTS = 1000
"""And at this many: what one decoded array may hold."""
ANSWER_BYTES = 4 * 1024 * 1024
"""A `wait` answer stops collecting events at about this size."""


@dataclass(frozen=True, slots=True)
class ProgramFacts:
    """What the agent remembers of a checked program."""

    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    features: frozenset[str]
    needs: Mapping[str, str]
    """Where each feature of CUDA that its kernels need is used: `kernel blur, line 12: asm (inline assembly)`."""
    peak_bytes: int
    flops: float
    size: int


@dataclass(slots=True)
class JobState:
    """One job. `ended` is set exactly once, with the last event."""

    job: bytes
    tasks: Sequence[TaskSpec]
    requirement: Requirement
    deadline_us: int
    budget: int
    """Most the whole job may cost."""
    submitted_us: int
    programs: Mapping[bytes, ProgramFacts]
    """What is known of each program that the tasks name."""
    copies: int = 1
    """At how many providers each task runs."""
    contested: dict[int, list[Outstanding]] = field(default_factory=dict)
    """Attempts at tasks of which more than one may still have a result."""
    dry: bool = False
    """Only asked about: it leaves no story."""
    compared: CopyTable = field(init=False)
    """Results of tasks that run several times, until all copies of one are there."""
    events: list[JobEvent] = field(default_factory=list)
    done: int = 0
    ended_us: int | None = None
    inline_bytes: int = 0
    """Size of the outputs that ride in its events."""
    pinned: list[bytes] = field(default_factory=list)
    refusals: dict[PeerId, str] = field(default_factory=dict)
    """Last reason of each provider that declined, was silent or does not fit: `rate: cpu costs ...`."""
    refusal_codes: dict[PeerId, str] = field(default_factory=dict)
    """Its code alone, to count by."""
    refusals_told: set[tuple[PeerId, str]] = field(default_factory=set)
    waiting_told: str = ""
    """What its client was told last of why it waits."""
    waiting_times: int = 0
    """How often."""
    noted: dict[PeerId | None, str] = field(default_factory=dict)
    """The last note in its story of each provider passed over, not to write the same again."""
    detail: str = ""
    """What the task that ended the job printed: a compiler's log or the like."""
    details: dict[int, str] = field(default_factory=dict)
    """What tasks printed that failed by their own doing, as their providers say; the last `MAX_DETAILS` of them."""
    failed_task: int | None = None
    """The task that ended the job by its own doing."""
    _changed: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        self.compared = CopyTable(self.copies)

    def keep_detail(self, index: int, detail: str) -> None:
        """What a task printed that failed."""
        self.details.pop(index, None)
        self.details[index] = detail
        if len(self.details) > MAX_DETAILS:
            del self.details[next(iter(self.details))]

    def task_of(self, index: int) -> int:
        """The number of the task that the dispatcher's task `index` is a copy of."""
        return index % len(self.tasks)

    def spec(self, index: int) -> TaskSpec:
        """What the dispatcher's task `index` runs."""
        return self.tasks[self.task_of(index)]

    def facts(self, index: int) -> ProgramFacts:
        """What is known of its program."""
        return self.programs[self.spec(index).program]

    def output_bytes(self, index: int) -> int:
        """Size of what task `index` returns."""
        return sum(spec.nbytes for spec in self.facts(index).outputs)

    def tell(
        self,
        kind: str,
        facts: Mapping[str, Any],
        *,
        index: int | None = None,
        outputs: Sequence[BlobInfo] = (),
        inline: Sequence[Blob] = (),
    ) -> None:
        """Append an event and wake whoever waits."""
        number = len(self.events) + 1
        self.events.append(JobEvent(number, kind, index, json.dumps(facts), list(outputs), list(inline)))
        self._changed.set()
        self._changed = trio.Event()

    def refused_by(self, peer: PeerId, *refusals: Refusal) -> None:
        """A provider does not take the job. The client is told, once for each provider and reason."""
        reason = "; ".join(map(str, refusals))
        reason = printable(reason + self._needed_by(reason))
        if peer in self.refusals or len(self.refusals) < MAX_REFUSALS:
            self.refusals[peer] = reason
            self.refusal_codes[peer] = printable(refusals[0].code, MAX_CODE)
        if (peer, reason) not in self.refusals_told and len(self.refusals_told) < MAX_REFUSALS:
            self.refusals_told.add((peer, reason))
            self.tell("progress", {"text": f"{short_peer(peer)}: {reason}", "cause": "refusal"})

    def waits_for(self, text: str) -> None:
        """Tell the client why the job waits, where it is something new."""
        if text != self.waiting_told and self.waiting_times < MAX_WAITING_TOLD:
            self.waiting_told = text
            self.waiting_times += 1
            self.tell("progress", {"text": printable(text), "cause": "waiting"})

    def is_new_note(self, peer: PeerId | None, text: str) -> bool:
        """Whether the story does not have it as the last note of that provider."""
        if self.noted.get(peer) == text:
            return False
        if peer in self.noted or len(self.noted) < MAX_REFUSALS:
            self.noted[peer] = text
        return True

    def _needed_by(self, reason: str) -> str:
        """Where the job needs the features that `reason` names, for its user to find."""
        named = {
            place
            for facts in self.programs.values()
            for code, place in facts.needs.items()
            if re.search(rf"(?<![a-z0-9-]){re.escape(code)}(?![a-z0-9-])", reason)
        }
        places = sorted(named)[:MAX_PLACES]
        return f" (needed: {'; '.join(places)})" if places else ""

    async def wait_after(self, number: int, seconds: float) -> list[JobEvent]:
        """Events after `number`, as soon as there is one; an empty list after `seconds`."""
        with trio.move_on_after(seconds):
            while len(self.events) <= number:
                await self._changed.wait()
        answer: list[JobEvent] = []
        total = 0
        for event in self.events[number:]:
            total += 256 + len(event.text) + sum(len(blob.data) for blob in event.inline)
            if len(answer) >= ANSWER_EVENTS or (answer and total > ANSWER_BYTES):
                break
            answer.append(event)
        return answer


class JobTable:
    """The jobs this agent knows, bounded."""

    def __init__(self) -> None:
        self._jobs: dict[bytes, JobState] = {}
        self._inline_bytes = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: JobState) -> list[JobState]:
        """Keep a new job; returns ended ones that were forgotten for it. Raises Refused when all are still running."""
        forgotten = self.forget_old(job.submitted_us)
        if len(self._jobs) >= MAX_JOBS:
            ended = [known for known in self._jobs.values() if known.ended_us is not None]
            if not ended:
                raise Refused("too-many-jobs", f"{MAX_JOBS} jobs are running already; wait for one to end")
            oldest = min(ended, key=lambda known: known.ended_us or 0)
            forgotten.append(self._forget(oldest))
        self._jobs[job.job] = job
        return forgotten

    def forget_old(self, now_us: int) -> list[JobState]:
        """Drop and return jobs that ended long ago."""
        limit = now_us - int(KEEP_SECONDS * 1e6)
        old = [job for job in self._jobs.values() if job.ended_us is not None and job.ended_us < limit]
        return [self._forget(job) for job in old]

    def _forget(self, job: JobState) -> JobState:
        self._inline_bytes -= job.inline_bytes
        return self._jobs.pop(job.job)

    def take_inline(self, job: JobState, size: int) -> bool:
        """May `size` more bytes of outputs ride in events of `job`?"""
        if size > INLINE_TASK_BYTES or self._inline_bytes + size > INLINE_TOTAL_BYTES:
            return False
        self._inline_bytes += size
        job.inline_bytes += size
        return True

    def get(self, job: bytes) -> JobState:
        """Raises Refused for a job that this agent does not know (any more)."""
        try:
            return self._jobs[job]
        except KeyError:
            raise Refused(
                "unknown-job", f"job {job.hex()[:8]} is not known to this agent (was it restarted?)"
            ) from None

    def find_prefix(self, prefix: str) -> JobState:
        """The one job whose id begins with these hexadecimal digits. Raises Refused where there is not one."""
        found = [job for known, job in self._jobs.items() if known.hex().startswith(prefix.lower())]
        if len(found) > 1:
            raise Refused("unknown-job", f"several jobs begin with {prefix!r}: give more digits")
        if not found:
            raise Refused(
                "unknown-job", f"this agent runs no job {prefix}: `coppermesh jobs` lists what it knows"
            )
        return found[0]

    def all(self) -> list[JobState]:
        """Every job that is kept, oldest first."""
        return list(self._jobs.values())

    def find(self, job: bytes) -> JobState | None:
        """The job, or None."""
        return self._jobs.get(job)

    def running(self) -> list[JobState]:
        """Jobs that have not ended."""
        return [job for job in self._jobs.values() if job.ended_us is None]
