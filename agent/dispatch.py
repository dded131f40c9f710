"""The requester agent's scheduler: which task runs under which lease, when more leases are wanted, when a job is over.

Theory of operation. `Dispatcher.handle` takes one event and returns instructions, to be carried out in order; it does
no I/O and reads no clock. The shell carries them out and reports what came of it as further events. Events may come
late, twice or about things that are over: those are counted and otherwise ignored.

Jobs whose requirement is the same form a group and share leases. Waiting tasks go to the lease with the fewest tasks
outstanding, among equals to the least recently used, so that jobs that come one after the other spread over what is
held. While a negotiation is under way no lease takes more than its share of the tasks, so that the first lease to come
up does not swallow a job that others could help with. After each event: ended leases go, waiting tasks are placed, and
if tasks still wait (or fewer leases are held than a job asked for) more leases are wanted, one negotiation at a time.

A lease with room while tasks wait is one whose provider may not have them: it failed at them. So it does not count as
held, and its provider is left out when more are asked for.

A negotiation that gave fewer leases than wanted releases our idle leases of other groups, which may hold the very
slots, and is repeated at once. A job's budget is kept over all its leases: a task starts only if it is covered even
when every task that runs costs the most it can.

Every task that is tried again is superseded first: the requester will never owe for two results of one task.
"""

import heapq
from collections import OrderedDict
from collections.abc import Hashable
from itertools import islice
from typing import TypeVar

from coppermesh.agent.dispatch_events import (
    CancelTask,
    Event,
    Instruction,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobSubmitted,
    LeaseLost,
    LeaseUp,
    NegotiationEnded,
    ProvidersChanged,
    ReleaseLease,
    StartTask,
    Supersede,
    TaskDone,
    TaskFailed,
    TaskRefused,
    Tick,
    WantLeases,
)
from coppermesh.agent.dispatch_state import (
    MAX_SCAN,
    SECOND,
    Attempt,
    DispatchCounts,
    DispatchLimits,
    Group,
    Job,
    Lease,
)
from coppermesh.agent.matching import Requirement
from coppermesh.agent.pricing import format_money
from coppermesh.p2p.ids import PeerId, short_peer

BLAMELESS_CODES = frozenset(
    {"expired", "idle", "surplus", "expiring", "budget", "paused", "reclaimed", "released"}
)
"""Ways in which a lease ends that say nothing against its provider."""
LEASE_OVER_CODES = frozenset({"unknown-lease", "lease-ended", "lease-expired"})
"""Refusals of a task that mean the whole lease is over: the provider was started again, or its clock is ahead."""
MAX_REMEMBERED = 4096
"""Ids of ended jobs and leases that are kept, so that a late event does not bring one back."""

K = TypeVar("K", bound=Hashable)


class Dispatcher:
    """The requester agent's scheduler over all its jobs and leases: events in, instructions out."""

    def __init__(self, now_us: int, limits: DispatchLimits | None = None) -> None:
        self._limits = limits or DispatchLimits()
        self._now_us = now_us
        self._groups: dict[Requirement, Group] = {}
        self._jobs: dict[bytes, Job] = {}
        self._leases: dict[bytes, Lease] = {}
        self._ended_jobs: OrderedDict[bytes, None] = OrderedDict()
        self._ended_leases: OrderedDict[bytes, None] = OrderedDict()
        self._put_back: dict[PeerId, int] = {}
        self._deadlines: list[tuple[int, bytes]] = []
        self._starts = 0
        self._ignored = 0
        self._wakeup_us: int | None = None
        self._out: list[Instruction] = []

    @property
    def next_wakeup_us(self) -> int | None:
        """When to send a `Tick` if nothing else happens before; None while there is nothing to wait for."""
        return self._wakeup_us

    def counts(self) -> DispatchCounts:
        """What is going on now."""
        groups = self._groups.values()
        return DispatchCounts(
            jobs=len(self._jobs),
            tasks_waiting=sum(group.waiting for group in groups),
            tasks_outstanding=sum(group.outstanding for group in groups),
            leases=len(self._leases),
            events_ignored=self._ignored,
        )

    def handle(self, event: Event, now_us: int) -> list[Instruction]:
        """Take one event and say what to do, in this order. Events about things unknown or over are ignored.

        A clock that went backwards counts as one that stood still.
        """
        self._now_us = max(self._now_us, now_us)
        touched = self._take(event)
        if isinstance(event, Tick | ProvidersChanged) or self._is_due():
            self._pass_time()
            touched = list(self._groups.values())
        for group in touched:
            self._settle(group)
        self._wakeup_us = self._next_wakeup()
        out, self._out = self._out, []
        return out

    # Events.

    def _take(self, event: Event) -> list[Group]:
        """Note what happened. Returns the groups that it may have changed."""
        match event:
            case JobSubmitted():
                return self._submit(event)
            case JobCancelled():
                return self._cancel(event)
            case LeaseUp():
                return self._lease_up(event)
            case LeaseLost():
                return self._lease_lost(event)
            case NegotiationEnded():
                return self._negotiation_ended(event)
            case TaskRefused() | TaskDone() | TaskFailed():
                return self._task_ended(event)
            case ProvidersChanged():
                for group in self._groups.values():
                    group.nudge(self._limits)
            case Tick():
                pass
        return []

    def _submit(self, event: JobSubmitted) -> list[Group]:
        if event.job in self._jobs or event.job in self._ended_jobs:
            return self._ignore()
        problem = self._cannot_take(event)
        if problem is not None:
            code, sentence = problem
            _remember(self._ended_jobs, event.job)
            self._out.append(JobFailed(event.job, code, sentence, "job submitted"))
            return []
        job = Job(event, self._now_us)
        if job.tasks == 0:
            _remember(self._ended_jobs, event.job)
            self._out.append(JobFinished(event.job, "the job has no tasks"))
            return []
        group = self._group(job.requirement)
        group.add_job(job)
        self._jobs[job.id] = job
        heapq.heappush(self._deadlines, (job.deadline_us, job.id))
        group.nudge(self._limits)
        return [group]

    def _cannot_take(self, event: JobSubmitted) -> tuple[str, str] | None:
        limits = self._limits
        if not 0 <= event.tasks <= limits.max_tasks:
            return (
                "too-many-tasks",
                f"a job has at most {limits.max_tasks} tasks, this one {event.tasks}; split it",
            )
        if event.deadline_us <= self._now_us:
            return "deadline", "the job's deadline was over when it was submitted; allow it more time"
        if len(self._jobs) >= limits.max_jobs:
            return (
                "too-many-jobs",
                f"{limits.max_jobs} jobs are under way; submit it again when some have ended",
            )
        return None

    def _cancel(self, event: JobCancelled) -> list[Group]:
        job = self._jobs.get(event.job)
        if job is None:
            return self._ignore()
        group = self._groups[job.requirement]
        self._end_job(job, event.cause)
        return [group]

    def _lease_up(self, event: LeaseUp) -> list[Group]:
        if event.lease in self._leases or event.lease in self._ended_leases:
            return self._ignore()
        group = self._group(event.requirement.for_lease())
        lease = Lease(event, self._now_us)
        self._leases[lease.id] = lease
        group.add_lease(lease, self._now_us)
        if lease.is_spent or self._is_ending(lease):
            # It will be released at once; asking the same provider again at once would give the same.
            self._put_back[lease.provider] = self._now_us + self._limits.put_back_us
        elif len(group.leases) > self._limits.max_held:
            self._release(lease, "surplus", "more leases were granted than are of use")
        return [group]

    def _lease_lost(self, event: LeaseLost) -> list[Group]:
        lease = self._leases.get(event.lease)
        if lease is None:
            _remember(self._ended_leases, event.lease)
            return self._ignore()
        group = self._groups[lease.requirement]
        self._lose(lease, event.code, event.sentence)
        return [group]

    def _negotiation_ended(self, event: NegotiationEnded) -> list[Group]:
        group = self._groups.get(event.requirement.for_lease())
        if group is None or group.negotiating_until_us is None:
            return self._ignore()
        group.heard, group.declined = event.heard, event.declined
        missing = group.wanted > 0
        group.end_negotiation(event.granted, self._now_us, self._limits)
        if event.hopeless:
            self._give_up_hopeless(group)
        return [group, *(self._make_room(group) if missing and group.jobs else [])]

    def _give_up_hopeless(self, group: Group) -> None:
        """Everybody heard refuses for good: fail the jobs that have waited long enough for somebody else."""
        limit_us = self._limits.hopeless_us
        for job in [job for job in group.jobs.values() if not self._has_held(group, job)]:
            waited_us = self._now_us - job.submitted_us
            if waited_us >= limit_us:
                sentence = (
                    f"{self._none_took_it(group, job)}; every provider heard refuses for a reason that time "
                    "does not change"
                )
                self._fail_job(job, "no-provider", sentence, "every provider heard refuses for good")
            else:
                group.retry_us = min(group.retry_us, job.submitted_us + limit_us)

    def _make_room(self, group: Group) -> list[Group]:
        """Too few leases were to be had: our own idle ones of other groups may hold the very slots."""
        idle = [
            lease
            for lease in self._leases.values()
            if lease.is_idle and lease.requirement != group.requirement
        ]
        for lease in idle:
            self._release(lease, "surplus", "another job waits for a device")
        if idle:
            group.retry_us = min(group.retry_us, self._now_us + self._limits.surplus_retry_us)
        return [self._groups[requirement] for requirement in {lease.requirement for lease in idle}]

    def _task_ended(self, event: TaskRefused | TaskDone | TaskFailed) -> list[Group]:
        lease = self._leases.get(event.lease)
        job = self._jobs.get(event.job)
        key = (event.job, event.index)
        amount = 0 if isinstance(event, TaskRefused) else event.amount
        attempt = None if job is None else job.running.get(event.index)
        if job is None or attempt is None or attempt.lease != event.lease:
            if lease is not None and key in lease.stopping:
                lease.end_task(key, self._now_us, amount)
                return [self._groups[lease.requirement]]
            if job is not None and isinstance(event, TaskDone):
                return self._late_result(job, event)
            return self._ignore()
        group = self._groups[job.requirement]
        job.spent += amount
        self._leases[attempt.lease].end_task(key, self._now_us, amount)
        if isinstance(event, TaskDone):
            self._finish_task(group, job, event.index, attempt.provider)
        elif isinstance(event, TaskFailed) and event.fault == "job":
            del job.running[event.index]
            self._fail_job(job, event.code, event.sentence, f"task {event.index} failed by the job's fault")
        elif isinstance(event, TaskRefused) and event.code in LEASE_OVER_CODES:
            self._retry(group, job, event.index, attempt, event.code, event.sentence, blame=False)
            self._lose(self._leases[attempt.lease], event.code, event.sentence, blame=False)
            self._out.append(ReleaseLease(event.lease, "lost", f"the provider says {event.code}"))
        else:
            self._retry(group, job, event.index, attempt, event.code, event.sentence, blame=True)
        return [group]

    def _late_result(self, job: Job, event: TaskDone) -> list[Group]:
        """A result that was accepted although its attempt had been given up: it was committed first, so it counts."""
        trouble = job.troubles.get(event.index)
        if trouble is None or event.lease not in trouble.leases:
            return self._ignore()
        group = self._groups[job.requirement]
        job.spent += event.amount
        retry = job.running.get(event.index)
        if retry is not None:
            cause = f"task {event.index} was done under lease {_short(event.lease)} after all"
            self._out.append(Supersede(job.id, event.index, retry.lease, cause))
            self._stop(job.id, event.index, retry, cause)
        self._finish_task(group, job, event.index, None)
        return [group]

    # Time.

    def _is_due(self) -> bool:
        return self._wakeup_us is not None and self._now_us >= self._wakeup_us

    def _pass_time(self) -> None:
        while self._deadlines and self._deadlines[0][0] <= self._now_us:
            _, job_id = heapq.heappop(self._deadlines)
            job = self._jobs.get(job_id)
            if job is not None:
                self._miss_deadline(job)
        for lease in list(self._leases.values()):
            for key, until_us in list(lease.stopping.items()):
                if until_us <= self._now_us:
                    lease.end_task(key, self._now_us)
            if lease.outstanding and lease.expires_us + self._limits.lost_after_us <= self._now_us:
                self._lose(lease, "expired", "the lease ended before its tasks did")
                self._out.append(ReleaseLease(lease.id, "expired", "the lease ended before its tasks did"))
        for group in self._groups.values():
            if group.negotiating_until_us is not None and group.negotiating_until_us <= self._now_us:
                group.end_negotiation(0, self._now_us, self._limits)
        for peer in [peer for peer, until_us in self._put_back.items() if until_us <= self._now_us]:
            del self._put_back[peer]

    def _next_wakeup(self) -> int | None:
        while self._deadlines and self._deadlines[0][1] not in self._jobs:
            heapq.heappop(self._deadlines)
        times = [self._deadlines[0][0]] if self._deadlines else []
        times.extend(self._put_back.values())
        for group in self._groups.values():
            if group.negotiating_until_us is not None:
                times.append(group.negotiating_until_us)
            elif group.retry_us > self._now_us and group.jobs:
                times.append(group.retry_us)
        limits = self._limits
        for lease in self._leases.values():
            times.extend(lease.stopping.values())
            if lease.outstanding:
                times.append(lease.expires_us + limits.lost_after_us)
            elif not lease.stopping:
                latest_start_us = lease.expires_us - lease.requirement.wall_limit_us - limits.expiry_margin_us
                times.append(min(lease.idle_since_us + limits.idle_us, latest_start_us + 1))
        return min(times, default=None)

    def _miss_deadline(self, job: Job) -> None:
        group = self._groups[job.requirement]
        waited_s = (self._now_us - job.submitted_us) // SECOND
        if self._has_held(group, job):
            sentence = f"{job.done} of {job.tasks} tasks were done when its time of {waited_s} s was over"
            if job.last_reason:
                sentence += f"; the last trouble: {job.last_reason}"
            self._fail_job(job, "deadline", sentence, "the job's deadline passed")
            return
        sentence = self._none_took_it(group, job)
        self._fail_job(job, "no-provider", sentence, "the job's deadline passed")

    def _has_held(self, group: Group, job: Job) -> bool:
        """A lease was there for the job at some time."""
        return bool(group.leases) or group.held_us >= job.submitted_us

    def _none_took_it(self, group: Group, job: Job) -> str:
        waited_s = (self._now_us - job.submitted_us) // SECOND
        return (
            f"no provider took the job in {waited_s} s: {group.heard} heard, of which {group.declined} were asked; "
            "none gave a lease"
        )

    # Tasks and jobs.

    def _finish_task(self, group: Group, job: Job, index: int, provider: PeerId | None) -> None:
        group.finish(job, index)
        if provider is not None:
            job.praise(provider)
        if job.done == job.tasks:
            self._end_job(job, "all tasks are done")
            self._out.append(JobFinished(job.id, f"all {job.tasks} tasks are done"))

    def _retry(
        self, group: Group, job: Job, index: int, attempt: Attempt, code: str, sentence: str, *, blame: bool
    ) -> None:
        """Give up an attempt and queue the task again, or fail the job where that was the last."""
        limits = self._limits
        del job.running[index]
        reason = f"{code} at {short_peer(attempt.provider)}" + (f" ({sentence})" if sentence else "")
        trouble = job.trouble(index)
        trouble.leases.append(attempt.lease)
        trouble.reasons.append(reason)
        job.last_reason = reason
        if blame:
            job.blame(index, attempt, self._starts, self._now_us + limits.task_exclusion_us)
            self._put_back[attempt.provider] = self._now_us + limits.put_back_us
        self._out.append(Supersede(job.id, index, attempt.lease, reason))
        group.requeue(job, index)
        if len(trouble.leases) >= limits.max_attempts:
            tried = "; ".join(trouble.reasons)
            sentence = f"task {index} was tried {limits.max_attempts} times: {tried}"
            self._fail_job(job, "too-many-attempts", sentence, f"task {index} failed again")

    def _fail_job(self, job: Job, code: str, sentence: str, cause: str) -> None:
        self._end_job(job, cause)
        self._out.append(JobFailed(job.id, code, sentence, cause))

    def _end_job(self, job: Job, cause: str) -> None:
        """Stop what still runs and forget the job."""
        for index, attempt in sorted(job.running.items()):
            self._stop(job.id, index, attempt, cause)
        job.running.clear()
        self._groups[job.requirement].remove_job(job)
        del self._jobs[job.id]
        _remember(self._ended_jobs, job.id)

    def _stop(self, job: bytes, index: int, attempt: Attempt, cause: str) -> None:
        """Cancel a running task. It takes up room until the shell reports its end."""
        lease = self._leases.get(attempt.lease)
        if lease is None:
            return
        lease.outstanding.pop((job, index), None)
        lease.stopping[job, index] = self._now_us + self._limits.stop_us
        self._out.append(CancelTask(job, index, attempt.lease, cause))

    # Leases.

    def _lose(self, lease: Lease, code: str, sentence: str, *, blame: bool = True) -> None:
        """Forget a lease that ended by itself; its tasks go back to the front, lowest first."""
        group = self._groups[lease.requirement]
        self._forget_lease(lease)
        blame = blame and code not in BLAMELESS_CODES
        for job_id, index in sorted(lease.outstanding, reverse=True):
            job = self._jobs.get(job_id)
            if job is not None:  # else an earlier task of this loop was its job's last attempt
                self._retry(group, job, index, job.running[index], code, sentence, blame=blame)
        lease.outstanding.clear()

    def _release(self, lease: Lease, code: str, cause: str) -> None:
        self._forget_lease(lease)
        self._out.append(ReleaseLease(lease.id, code, cause))

    def _forget_lease(self, lease: Lease) -> None:
        group = self._groups[lease.requirement]
        group.held_us = self._now_us
        del group.leases[lease.id]
        del self._leases[lease.id]
        _remember(self._ended_leases, lease.id)

    def _is_ending(self, lease: Lease) -> bool:
        return lease.is_ending(self._now_us, self._limits.expiry_margin_us)

    def _is_usable(self, lease: Lease) -> bool:
        """May be given tasks now, if it has room."""
        return not lease.is_spent and lease.provider not in self._put_back and not self._is_ending(lease)

    # What follows from the state.

    def _settle(self, group: Group) -> None:
        """Do everything that the group's state calls for."""
        self._drop_leases(group)
        self._place_tasks(group)
        self._fail_the_broke(group)
        self._ask_for_leases(group)
        if group.is_empty:
            self._groups.pop(group.requirement, None)

    def _drop_leases(self, group: Group) -> None:
        for lease in [lease for lease in group.leases.values() if lease.is_idle]:
            if lease.is_spent:
                self._release(lease, "budget", "its budget does not cover another task")
            elif self._is_ending(lease):
                self._release(lease, "expiring", "another task might not end before the lease does")
            elif lease.idle_since_us + self._limits.idle_us <= self._now_us:
                idle_s = self._limits.idle_us // SECOND
                self._release(lease, "idle", f"no task for {idle_s} s")

    def _place_tasks(self, group: Group) -> None:
        """Start waiting tasks wherever there is room for them."""
        share = group.fair_share
        usable = [lease for lease in group.leases.values() if self._is_usable(lease)]
        while group.waiting and usable:
            lease = min(usable, key=lambda found: (len(found.outstanding), found.used))
            full = not lease.room or (share is not None and len(lease.outstanding) >= share)
            found = None if full else group.take(lease, self._now_us, self._limits.max_strikes)
            if found is None:
                usable.remove(lease)
            else:
                self._start(*found, lease)

    def _fail_the_broke(self, group: Group) -> None:
        """End jobs that cannot pay one more task under any lease held, with nothing running that may cost less."""
        cheapest = min((lease.task_cost for lease in group.leases.values()), default=0)
        looked_at = list(islice(group.ready, MAX_SCAN))
        for job in [job for job in looked_at if not job.running and not job.can_pay(cheapest)]:
            unit = group.requirement.unit
            sentence = (
                f"{job.done} of {job.tasks} tasks were done for {format_money(job.spent, unit)}; one more can cost "
                f"{format_money(cheapest, unit)}, the budget is {format_money(job.budget, unit)}"
            )
            self._fail_job(job, "budget", sentence, "the budget does not cover another task")

    def _start(self, job: Job, index: int, lease: Lease) -> None:
        self._starts += 1
        lease.used = self._starts
        lease.outstanding[job.id, index] = None
        job.running[index] = Attempt(lease.id, lease.provider, self._starts, lease.task_cost)
        trouble = job.troubles.get(index)
        failed = trouble.reasons if trouble else []
        where = f"lease {_short(lease.id)} of {short_peer(lease.provider)}"
        cause = f"again on {where} after {failed[-1]}" if failed else f"room on {where}"
        self._out.append(StartTask(job.id, index, lease.id, len(failed) + 1, cause))

    def _ask_for_leases(self, group: Group) -> None:
        limits = self._limits
        if not group.jobs or group.negotiating_until_us is not None or self._now_us < group.retry_us:
            return
        usable = [lease for lease in group.leases.values() if self._is_usable(lease)]
        if group.waiting:
            useless = [lease for lease in usable if lease.room]
            held = len(usable) - len(useless)
            by_load = -(-(group.waiting + group.outstanding) // limits.tasks_per_lease)
        else:
            useless = []
            held = len(group.leases)
            by_load = 0
        target = min(limits.max_leases, max(group.least_leases, by_load))
        count = min(target - held, limits.max_held - len(group.leases))
        if count <= 0:
            return
        exclude = (
            set(self._put_back) | {lease.provider for lease in useless} | group.barred(limits.max_strikes)
        )
        deadline_us = group.begin_negotiation(count, self._now_us, limits)
        self._out.append(
            WantLeases(
                group.requirement,
                count,
                exclude=frozenset(exclude),
                held=frozenset(lease.provider for lease in group.leases.values()),
                deadline_us=deadline_us,
                cause=f"{group.waiting} tasks wait, {held} of {target} leases held",
            )
        )

    # Helpers.

    def _group(self, requirement: Requirement) -> Group:
        found = self._groups.get(requirement)
        if found is None:
            found = self._groups[requirement] = Group(requirement)
        return found

    def _ignore(self) -> list[Group]:
        self._ignored += 1
        return []


def _remember(ended: OrderedDict[K, None], key: K) -> None:
    """Keep an id, and forget the oldest where there are too many."""
    ended[key] = None
    if len(ended) > MAX_REMEMBERED:
        ended.popitem(last=False)


def _short(lease: bytes) -> str:
    return lease.hex()[:8]
