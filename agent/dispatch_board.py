"""What the dispatcher has in front of it, and the moves that its parts share: end a job, try again, lose a lease.

Every task that is tried again is superseded first, and of two copies of a task that run at once the one that loses is
superseded and stopped: the requester will never owe for two results of one task.
"""

import heapq
from collections import OrderedDict
from collections.abc import Hashable
from typing import TypeVar

from coppermesh.agent.dispatch_events import (
    CancelTask,
    Instruction,
    JobFailed,
    ReleaseLease,
    StartTask,
    Supersede,
)
from coppermesh.agent.dispatch_group import Group
from coppermesh.agent.dispatch_records import Records
from coppermesh.agent.dispatch_state import Attempt, DispatchLimits, Job, Lease
from coppermesh.agent.matching import Requirement
from coppermesh.p2p.ids import PeerId, short_peer

BLAMELESS_CODES = frozenset(
    {"expired", "idle", "surplus", "expiring", "budget", "paused", "reclaimed", "released"}
)
"""Ways in which a lease ends that say nothing against its provider."""
OWNERS_CODES = frozenset(
    {
        "taken-back", "other-mesh", "device-busy", "out-of-hours", "stopping",
        "too-hot", "power-limit", "load-limit", "kept-memory",
    }
)  # fmt: skip
"""Ways in which a provider takes itself back for its owner. It is asked again sooner than one that failed; what it had
begun counts as lost all the same, since its word is no excuse."""
OWNERS_FACTOR = 2
PUT_BACK_FACTOR = 16
"""30 s, 8 min, 1 h: a provider that fails whenever it is asked gets three tasks in an hour."""
MAX_REMEMBERED = 4096
"""Ids of ended jobs and leases that are kept, so that a late event does not bring one back."""

K = TypeVar("K", bound=Hashable)


class Board:
    """Jobs, leases and groups, and the instructions that the event at hand has led to so far."""

    def __init__(self, now_us: int, limits: DispatchLimits) -> None:
        self.limits = limits
        self.now_us = now_us
        self.groups: dict[Requirement, Group] = {}
        self.jobs: dict[bytes, Job] = {}
        self.leases: dict[bytes, Lease] = {}
        self.ended_jobs: OrderedDict[bytes, None] = OrderedDict()
        self.ended_leases: OrderedDict[bytes, None] = OrderedDict()
        self.put_back: dict[PeerId, int] = {}
        self.failing: dict[PeerId, tuple[int, int]] = {}
        """Failures in a row of each provider over all jobs, and when the last was noted, on the count of starts."""
        self.records = Records()
        self.deadlines: list[tuple[int, bytes]] = []
        self.starts = 0
        self.out: list[Instruction] = []

    def group(self, requirement: Requirement) -> Group:
        """The group of a requirement, made where there is none."""
        found = self.groups.get(requirement)
        if found is None:
            found = self.groups[requirement] = Group(requirement)
        return found

    # Jobs and tasks.

    def add_job(self, job: Job) -> Group:
        """Take in a job."""
        group = self.group(job.requirement)
        group.add_job(job)
        self.jobs[job.id] = job
        heapq.heappush(self.deadlines, (job.deadline_us, job.id))
        return group

    def end_job(self, job: Job, cause: str) -> None:
        """Stop what still runs and forget the job."""
        for index, attempt in sorted([*job.running.items(), *job.seconds.items()], key=lambda item: item[0]):
            self.stop(job.id, index, attempt, cause)
        job.running.clear()
        job.seconds.clear()
        self.groups[job.requirement].remove_job(job)
        del self.jobs[job.id]
        remember(self.ended_jobs, job.id)

    def fail_job(self, job: Job, code: str, sentence: str, cause: str, index: int | None = None) -> None:
        """The job is over without its result; by the doing of its task `index`, where it is one's."""
        self.end_job(job, cause)
        self.out.append(JobFailed(job.id, code, sentence, cause, index))

    def start(self, job: Job, index: int, lease: Lease, why: str = "") -> None:
        """Run a task under a lease; `why` where that follows from something else than room for it."""
        self.starts += 1
        lease.used = self.starts
        lease.outstanding[job.id, index] = self.now_us
        job.begin(index, Attempt(lease.id, lease.provider, self.starts, lease.task_cost, self.now_us))
        trouble = job.troubles.get(index)
        failed = trouble.reasons if trouble else []
        where = f"lease {short(lease.id)} of {short_peer(lease.provider)}"
        cause = why or (f"again on {where} after {failed[-1]}" if failed else f"room on {where}")
        again = trouble is not None or index in job.seconds
        self.out.append(StartTask(job.id, index, lease.id, len(failed) + 1, cause, again=again))

    def stop(self, job: bytes, index: int, attempt: Attempt, cause: str) -> None:
        """Cancel a running task. It takes up room until the shell reports its end."""
        lease = self.leases.get(attempt.lease)
        if lease is None:
            return
        lease.outstanding.pop((job, index), None)
        lease.stopping[job, index] = self.now_us + self.limits.stop_us
        self.out.append(CancelTask(job, index, attempt.lease, cause))

    def drop_attempt(self, job: Job, index: int, attempt: Attempt, cause: str) -> None:
        """Another attempt at the task was first: this one will not be paid."""
        self.out.append(Supersede(job.id, index, attempt.lease, cause))
        self.stop(job.id, index, attempt, cause)

    def blame(self, job: Job, index: int, attempt: Attempt, code: str = "") -> None:
        """The provider failed at a task: it gets nothing for a while, and that task for longer.

        Where its owner took it back, that says nothing of the task.
        """
        count, last = self.failing.pop(attempt.provider, (0, -1))
        if attempt.began > last:  # nobody could know better when the others of a row were begun
            count, last = count + 1, self.starts
        self.failing[attempt.provider] = count, last
        if len(self.failing) > MAX_REMEMBERED:
            del self.failing[next(iter(self.failing))]
        until_us = self.now_us + _put_back_us(count, code, self.limits)
        if _is_owners(code):
            job.exclude(index, attempt.provider, until_us)
        else:
            job.exclude(index, attempt.provider, self.now_us + self.limits.task_exclusion_us)
            job.strike(attempt, self.starts)
        self.put_back[attempt.provider] = max(until_us, self.put_back.get(attempt.provider, 0))

    def retry(
        self, job: Job, index: int, lease: bytes, code: str, sentence: str, *, blame: bool, lost: bool = True
    ) -> None:
        """Give up an attempt and queue the task again, or fail the job where that was the last.

        `lost`: where its provider is to blame, it had begun, or would have.
        """
        limits = self.limits
        attempt = job.end(index, lease)
        assert attempt is not None
        reason = f"{code} at {short_peer(attempt.provider)}" + (f" ({sentence})" if sentence else "")
        trouble = job.trouble(index)
        trouble.leases.append(attempt.lease)
        trouble.reasons.append(reason)
        job.last_reason = reason
        if blame:
            self.blame(job, index, attempt, code if lost else "")  # else the excuse would cost nothing
            if lost:
                self.records.note_lost(attempt.provider, self.now_us)
        self.out.append(Supersede(job.id, index, attempt.lease, reason))
        if index not in job.running:
            self.groups[job.requirement].requeue(job, index)
        if len(trouble.leases) >= limits.max_attempts:
            tried = "; ".join(trouble.reasons)
            sentence = f"task {index} was tried {limits.max_attempts} times: {tried}"
            self.fail_job(job, "too-many-attempts", sentence, f"task {index} failed again")

    # Leases.

    def lose(self, lease: Lease, code: str, sentence: str, *, blame: bool = True) -> None:
        """Forget a lease that ended by itself; its tasks go back to the front, lowest first."""
        self.forget_lease(lease)
        blame = blame and code not in BLAMELESS_CODES
        if code == "expired":  # no fault by itself; but what was sent could have been done in time
            for _ in lease.outstanding:
                self.records.note_lost(lease.provider, self.now_us)
        for job_id, index in sorted(lease.outstanding, reverse=True):
            job = self.jobs.get(job_id)
            if job is not None:  # else an earlier task of this loop was its job's last attempt
                self.retry(job, index, lease.id, code, sentence, blame=blame)
        lease.outstanding.clear()

    def release(self, lease: Lease, code: str, cause: str) -> None:
        """End a lease of ours that is not needed."""
        self.forget_lease(lease)
        self.out.append(ReleaseLease(lease.id, code, cause))

    def forget_lease(self, lease: Lease) -> None:
        """It is over."""
        group = self.groups[lease.requirement]
        group.held_us = self.now_us
        del group.leases[lease.id]
        del self.leases[lease.id]
        remember(self.ended_leases, lease.id)

    def is_ending(self, lease: Lease) -> bool:
        """A task started now might not end before the lease does."""
        return lease.is_ending(self.now_us, self.limits.expiry_margin_us)

    def is_usable(self, lease: Lease) -> bool:
        """May be given tasks now, if it has room."""
        return (
            not lease.is_spent
            and not lease.paused
            and self.may_take_more(lease.provider)
            and not self.is_ending(lease)
        )

    def may_take_more(self, provider: PeerId) -> bool:
        """It is neither put back nor at rest."""
        return provider not in self.put_back and not self.records.rests(provider, self.now_us)

    def warm_us(self, lease: Lease) -> int:
        """How long a lease without tasks is kept."""
        limits = self.limits
        is_long = lease.service_us is not None and lease.service_us >= limits.lease_work_us
        return min(limits.idle_us, limits.long_idle_us) if is_long else limits.idle_us

    def may_take(self, lease: Lease) -> bool:
        """Its provider's record allows one more task there."""
        allowed = self.records.allowance(lease.provider, self.now_us)
        if allowed is None:
            return True
        mine = (held for held in self.leases.values() if held.provider == lease.provider)
        return sum(len(held.outstanding) for held in mine) < allowed


def _is_owners(code: str) -> bool:
    return code.removeprefix("ended-") in OWNERS_CODES


def _put_back_us(count: int, code: str, limits: DispatchLimits) -> int:
    """How long a provider gets no task after failing for the `count`th time in a row, in such a way."""
    first, factor = limits.put_back_us, PUT_BACK_FACTOR
    if _is_owners(code):
        first, factor = limits.owners_back_us, OWNERS_FACTOR
    back_us: int = first * factor ** min(count - 1, 8)
    return min(back_us, limits.max_put_back_us)


def remember(ended: OrderedDict[K, None], key: K) -> None:
    """Keep an id, and forget the oldest where there are too many."""
    ended[key] = None
    if len(ended) > MAX_REMEMBERED:
        ended.popitem(last=False)


def short(lease: bytes) -> str:
    """An id for a person."""
    return lease.hex()[:8]
