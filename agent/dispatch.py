"""The requester agent's scheduler: which task runs under which lease, when more leases are wanted, when a job is over.

Theory of operation. `Dispatcher.handle` takes one event and returns instructions, to be carried out in order; it does
no I/O and reads no clock. The shell carries them out and reports what came of it as further events. Events may come
late, twice or about things that are over: those are counted and otherwise ignored.

Jobs whose requirement is the same form a group and share leases. This file takes the events; `dispatch_board` has what
they change and the moves that go with it, `dispatch_placing` decides what follows: after each event ended leases go,
waiting tasks are placed where they are expected to end first, work is evened out, and if tasks still wait (or fewer
leases are held than a job asked for) more leases are wanted, one negotiation at a time. While a negotiation is under
way no lease takes more than its share of the tasks, so that the first lease to come up does not swallow a job that
others could help with.

A lease with room while tasks wait is one whose provider may not have them: it failed at them. So it does not count as
held, and its provider is left out when more are asked for.

A negotiation that gave fewer leases than wanted releases our idle leases of other groups, which may hold the very
slots, and is repeated at once. A job's budget is kept over all its leases: a task starts only if it is covered even
when every task that runs costs the most it can.
"""

import heapq

from coppermesh.agent.dispatch_board import BLAMELESS_CODES, Board, remember
from coppermesh.agent.dispatch_doubts import Doubts
from coppermesh.agent.dispatch_events import (
    CopyCounted,
    Event,
    ExtensionRefused,
    Instruction,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobSubmitted,
    LeaseExtended,
    LeaseLost,
    LeasePaused,
    LeaseUp,
    NegotiationEnded,
    ProvidersChanged,
    ReleaseLease,
    TaskDone,
    TaskFailed,
    TaskRefused,
    Tick,
    too_few_providers,
)
from coppermesh.agent.dispatch_group import Group, Near
from coppermesh.agent.dispatch_placing import Placing
from coppermesh.agent.dispatch_state import SECOND, Attempt, DispatchCounts, DispatchLimits, Job, Lease
from coppermesh.agent.matching import Requirement
from coppermesh.p2p.ids import PeerId

__all__ = ["BLAMELESS_CODES", "LEASE_OVER_CODES", "Dispatcher"]
LEASE_OVER_CODES = frozenset({"unknown-lease", "lease-ended", "lease-expired"})
"""Refusals of a task that mean the whole lease is over: the provider was started again, or its clock is ahead."""
OF_THE_LINE = frozenset({"unreachable", "no-result", "protocol", "cancelled", "superseded", "requester"})
"""Failures that say nothing about the task."""
SURELY_ALIKE = frozenset({"internal-error", "runtime-fault"})
"""Faults of the runtime: the same program meets them again wherever the same software runs."""


class Dispatcher:
    """The requester agent's scheduler over all its jobs and leases: events in, instructions out."""

    def __init__(self, now_us: int, limits: DispatchLimits | None = None, near: Near | None = None) -> None:
        """`near` says whether a task's large blobs are at a provider; without it tasks are taken in order."""
        self._board = Board(now_us, limits or DispatchLimits())
        self._limits = self._board.limits
        self._placing = Placing(self._board, near)
        self._doubts = Doubts(self._board)
        self._ignored = 0
        self._wakeup_us: int | None = None

    @property
    def next_wakeup_us(self) -> int | None:
        """When to send a `Tick` if nothing else happens before; None while there is nothing to wait for."""
        return self._wakeup_us

    def counts(self) -> DispatchCounts:
        """What is going on now."""
        groups = self._board.groups.values()
        return DispatchCounts(
            jobs=len(self._board.jobs),
            tasks_waiting=sum(group.waiting for group in groups),
            tasks_outstanding=sum(group.outstanding for group in groups),
            leases=len(self._board.leases),
            events_ignored=self._ignored,
        )

    def waiting(self) -> dict[Requirement, int]:
        """How many tasks wait for a lease that may have them, by what they need."""
        return {group.requirement: group.waiting for group in self._board.groups.values() if group.waiting}

    def handle(self, event: Event, now_us: int) -> list[Instruction]:
        """Take one event and say what to do, in this order. Events about things unknown or over are ignored.

        A clock that went backwards counts as one that stood still.
        """
        board = self._board
        board.now_us = max(board.now_us, now_us)
        touched = self._take(event)
        if isinstance(event, Tick | ProvidersChanged) or self._is_due():
            self._pass_time()
            touched = list(board.groups.values())
        for group in touched:
            self._placing.settle(group)
        self._wakeup_us = self._next_wakeup()
        out, board.out = board.out, []
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
            case CopyCounted():
                return self._copy_counted(event)
            case LeaseExtended() | ExtensionRefused() | LeasePaused():
                return self._lease_changed(event)
            case ProvidersChanged():
                for group in self._board.groups.values():
                    group.nudge(self._limits)
            case Tick():
                pass
        return []

    def _submit(self, event: JobSubmitted) -> list[Group]:
        if event.job in self._board.jobs or event.job in self._board.ended_jobs:
            return self._ignore()
        problem = self._cannot_take(event)
        if problem is not None:
            code, sentence = problem
            remember(self._board.ended_jobs, event.job)
            self._board.out.append(JobFailed(event.job, code, sentence, "job submitted"))
            return []
        job = Job(event, self._board.now_us)
        if job.tasks == 0:
            remember(self._board.ended_jobs, event.job)
            self._board.out.append(JobFinished(event.job, "the job has no tasks"))
            return []
        group = self._board.add_job(job)
        group.nudge(self._limits)
        return [group]

    def _cannot_take(self, event: JobSubmitted) -> tuple[str, str] | None:
        limits = self._limits
        if not 0 <= event.tasks <= limits.max_tasks:
            return (
                "too-many-tasks",
                f"a job has at most {limits.max_tasks} tasks, this one {event.tasks}; split it",
            )
        if event.deadline_us <= self._board.now_us:
            return "deadline", "the job's deadline was over when it was submitted; allow it more time"
        if len(self._board.jobs) >= limits.max_jobs:
            return (
                "too-many-jobs",
                f"{limits.max_jobs} jobs are under way; submit it again when some have ended",
            )
        return None

    def _cancel(self, event: JobCancelled) -> list[Group]:
        job = self._board.jobs.get(event.job)
        if job is None:
            return self._ignore()
        group = self._board.groups[job.requirement]
        self._board.end_job(job, event.cause)
        return [group]

    def _lease_up(self, event: LeaseUp) -> list[Group]:
        if event.lease in self._board.leases or event.lease in self._board.ended_leases:
            return self._ignore()
        group = self._board.group(event.requirement.for_lease())
        lease = Lease(event, self._board.now_us)
        self._board.leases[lease.id] = lease
        group.add_lease(lease, self._board.now_us)
        if lease.is_spent or self._board.is_ending(lease):
            # It will be released at once; asking the same provider again at once would give the same.
            back_us = self._board.now_us + self._limits.put_back_us
            self._board.put_back[lease.provider] = max(back_us, self._board.put_back.get(lease.provider, 0))
        elif len(group.leases) > group.most_held(self._board.now_us, self._limits):
            self._board.release(lease, "surplus", "more leases were granted than are of use")
        return [group]

    def _lease_lost(self, event: LeaseLost) -> list[Group]:
        lease = self._board.leases.get(event.lease)
        if lease is None:
            remember(self._board.ended_leases, event.lease)
            return self._ignore()
        group = self._board.groups[lease.requirement]
        self._board.lose(lease, event.code, event.sentence)
        return [group]

    def _negotiation_ended(self, event: NegotiationEnded) -> list[Group]:
        group = self._board.groups.get(event.requirement.for_lease())
        if group is None or group.negotiating_until_us is None:
            return self._ignore()
        group.heard, group.declined = event.heard, event.declined
        group.able = None if event.left is None else len(event.left)
        missing = group.wanted > 0
        group.end_negotiation(event.granted, self._board.now_us, self._limits)
        if not event.granted:
            self._pardon(group, event.left)
        if event.hopeless:
            self._give_up_hopeless(group)
        if event.left is not None and not event.granted:
            self._give_up_alike(group, event.left)
            self._doubts.nobody_else(group, event.left)
        return [group, *(self._make_room(group) if missing and group.jobs else [])]

    def _give_up_hopeless(self, group: Group) -> None:
        """Everybody heard refuses for good: fail the jobs that have waited long enough for somebody else."""
        limit_us = self._limits.hopeless_us
        for job in [job for job in group.jobs.values() if not self._has_held(group, job)]:
            waited_us = self._board.now_us - job.submitted_us
            if waited_us >= limit_us:
                sentence = (
                    f"{self._none_took_it(group, job)}; every provider heard refuses for a reason that time "
                    "does not change"
                )
                self._board.fail_job(job, "no-provider", sentence, "every provider heard refuses for good")
            else:
                group.retry_us = min(group.retry_us, job.submitted_us + limit_us)

    def _give_up_alike(self, group: Group, left: frozenset[PeerId]) -> None:
        """Nobody is left but providers at which a task failed alike: fail its job now, not at its deadline."""
        for job in list(group.jobs.values()):
            for index in job.retries():
                for code, peers in job.trouble(index).alike.items():
                    tried = (
                        len(peers) > 1
                        or code in SURELY_ALIKE
                        or peers <= job.barred(self._limits.max_strikes)
                    )
                    if left <= peers and tried and job.id in group.jobs:
                        self._fail_alike(job, index, code)

    def _pardon(self, group: Group, left: frozenset[PeerId] | None) -> None:
        """Nobody gives a lease but, perhaps, those that rest after what they lost: one more try for each."""
        board, limits = self._board, self._limits
        if group.leases:
            return
        resting = board.records.resting(board.now_us)
        alone = left is not None and left <= resting | board.put_back.keys()
        if resting and (alone or group.fruitless >= limits.last_resort):
            board.records.pardon(board.now_us)

    def _make_room(self, group: Group) -> list[Group]:
        """Too few leases were to be had: our own idle ones of other groups may hold the very slots."""
        idle = [
            lease
            for lease in self._board.leases.values()
            if lease.is_idle and lease.requirement != group.requirement
        ]
        for lease in idle:
            self._board.release(lease, "surplus", "another job waits for a device")
        if idle:
            group.retry_us = min(group.retry_us, self._board.now_us + self._limits.surplus_retry_us)
        return [self._board.groups[requirement] for requirement in {lease.requirement for lease in idle}]

    def _task_ended(self, event: TaskRefused | TaskDone | TaskFailed) -> list[Group]:
        board = self._board
        lease = board.leases.get(event.lease)
        job = board.jobs.get(event.job)
        key = (event.job, event.index)
        amount = 0 if isinstance(event, TaskRefused) else event.amount
        found = [] if job is None else [at for at in job.attempts(event.index) if at.lease == event.lease]
        if job is None or not found:
            if lease is not None and key in lease.stopping:
                lease.end_task(key, board.now_us, amount)
                late = (
                    self._late_result(job, event) if job is not None and isinstance(event, TaskDone) else []
                )
                return [board.groups[lease.requirement], *late]
            if job is not None and isinstance(event, TaskDone):
                return self._late_result(job, event)
            return self._ignore()
        group = board.groups[job.requirement]
        job.spent += amount
        board.leases[event.lease].end_task(key, board.now_us, amount, done=isinstance(event, TaskDone))
        if isinstance(event, TaskDone):
            self._finish_task(group, job, event.index, found[0])
        elif isinstance(event, TaskFailed) and event.fault == "job":
            self._doubts.claimed(job, event, found[0])
        elif isinstance(event, TaskFailed) and event.fault == "requester":
            job.end(event.index, event.lease)
            board.fail_job(job, event.code, event.sentence, f"task {event.index} cannot go on", event.index)
        elif isinstance(event, TaskRefused) and event.code in LEASE_OVER_CODES:
            board.retry(job, event.index, event.lease, event.code, event.sentence, blame=False)
            board.lose(board.leases[event.lease], event.code, event.sentence, blame=False)
            board.out.append(ReleaseLease(event.lease, "lost", f"the provider says {event.code}"))
        else:
            failed = isinstance(event, TaskFailed)
            board.retry(job, event.index, event.lease, event.code, event.sentence, blame=True, lost=failed)
            if isinstance(event, TaskFailed) and event.code not in OF_THE_LINE and job.id in board.jobs:
                self._note_alike(job, event, found[0].provider)
        return [group]

    def _note_alike(self, job: Job, event: TaskFailed, provider: PeerId) -> None:
        """A run failed by its provider's doing, it says: where several fail alike, it is the task's doing after all."""
        alike = job.trouble(event.index).alike.setdefault(event.code, set())
        alike.add(provider)
        if len(alike) >= self._limits.max_alike and not job.attempts(event.index):
            self._fail_alike(job, event.index, event.code)

    def _fail_alike(self, job: Job, index: int, code: str) -> None:
        trouble = job.trouble(index)
        count = len(trouble.alike[code])
        where = f"{count} different providers" if count > 1 else "the only provider"
        sentence = f"task {index} failed alike at {where}: {'; '.join(trouble.reasons)}"
        self._board.fail_job(job, "failed-alike", sentence, f"task {index} failed alike everywhere")

    def _late_result(self, job: Job, event: TaskDone) -> list[Group]:
        """A result that was accepted although its attempt had been given up: it was committed first, so it counts."""
        trouble = job.troubles.get(event.index)
        if trouble is None or event.lease not in trouble.leases + trouble.moved:
            return self._ignore()
        group = self._board.groups[job.requirement]
        job.spent += event.amount
        self._finish_task(group, job, event.index, None)
        return [group]

    def _finish_task(self, group: Group, job: Job, index: int, by: Attempt | None) -> None:
        """The task is done: by `by`, or by an attempt that had been given up. What else runs of it is stopped."""
        for other in job.attempts(index):
            if other is by:
                continue
            if by is not None and other.began < by.began:  # what was begun later was done sooner
                self._board.blame(job, index, other)
            if self._is_stalled(group, other, by):
                self._board.records.note_lost(other.provider, self._board.now_us)
            self._board.drop_attempt(job, index, other, f"task {index} was done by another attempt first")
        self._doubts.done(job, index, by)
        group.finish(job, index)
        if by is not None:
            job.praise(by.provider)
            self._board.failing.pop(by.provider, None)
            self._board.records.note_done(by.provider)
        if job.done == job.tasks:
            self._board.end_job(job, "all tasks are done")
            self._board.out.append(
                JobFinished(
                    job.id, "its task is done" if job.tasks == 1 else f"all {job.tasks} tasks are done"
                )
            )

    def _lease_changed(self, event: LeaseExtended | ExtensionRefused | LeasePaused) -> list[Group]:
        lease = self._board.leases.get(event.lease)
        if lease is None:
            return self._ignore()
        match event:
            case LeaseExtended():
                lease.extending = False
                lease.expires_us = max(lease.expires_us, event.expires_us)
                # One that adds next to nothing is the last: it would be asked for again at once.
                lease.final = lease.extend_us(self._limits) <= self._board.now_us
            case ExtensionRefused():
                lease.extending, lease.final = False, True
            case LeasePaused():
                lease.paused = event.paused
        return [self._board.groups[lease.requirement]]

    def _copy_counted(self, event: CopyCounted) -> list[Group]:
        job = self._board.jobs.get(event.job)
        if job is None or event.index not in job.voting:
            return self._ignore()
        group = self._board.groups[job.requirement]
        self._doubts.counted(job, event.index)
        return [group]

    def _is_stalled(self, group: Group, other: Attempt, by: Attempt | None) -> bool:
        """Its provider has done nothing for us yet, and was overtaken, or took much longer than others do."""
        if not self._board.records.is_new(other.provider):
            return False
        slow_us = self._limits.straggle_factor * (group.typical_us or self._limits.least_straggle_us)
        overtaken = by is not None and other.began < by.began
        return overtaken or other.at_us + slow_us <= self._board.now_us

    # Time.

    def _is_due(self) -> bool:
        return self._wakeup_us is not None and self._board.now_us >= self._wakeup_us

    def _pass_time(self) -> None:
        while self._board.deadlines and self._board.deadlines[0][0] <= self._board.now_us:
            _, job_id = heapq.heappop(self._board.deadlines)
            job = self._board.jobs.get(job_id)
            if job is not None:
                self._miss_deadline(job)
        for lease in list(self._board.leases.values()):
            for key, until_us in list(lease.stopping.items()):
                if until_us <= self._board.now_us:
                    lease.end_task(key, self._board.now_us)
            if lease.outstanding and lease.expires_us + self._limits.lost_after_us <= self._board.now_us:
                self._board.lose(lease, "expired", "the lease ended before its tasks did")
                self._board.out.append(
                    ReleaseLease(lease.id, "expired", "the lease ended before its tasks did")
                )
        for group in self._board.groups.values():
            if group.negotiating_until_us is not None and group.negotiating_until_us <= self._board.now_us:
                group.end_negotiation(0, self._board.now_us, self._limits)
        self._doubts.pass_time()
        for peer in [
            peer for peer, until_us in self._board.put_back.items() if until_us <= self._board.now_us
        ]:
            del self._board.put_back[peer]

    def _next_wakeup(self) -> int | None:
        while self._board.deadlines and self._board.deadlines[0][1] not in self._board.jobs:
            heapq.heappop(self._board.deadlines)
        times = [self._board.deadlines[0][0]] if self._board.deadlines else []
        times.extend(self._board.put_back.values())
        times.extend(self._doubts.wakeups())
        for group in self._board.groups.values():
            if group.negotiating_until_us is not None:
                times.append(group.negotiating_until_us)
            elif group.retry_us > self._board.now_us and group.jobs:
                times.append(group.retry_us)
            copy_us = self._placing.next_copy_us(group)
            if copy_us is not None and copy_us > self._board.now_us:
                times.append(copy_us)
            more_us = self._placing.next_longer_us(group)
            if more_us is not None:
                times.append(more_us)
        limits = self._limits
        for lease in self._board.leases.values():
            times.extend(lease.stopping.values())
            if lease.outstanding:
                times.append(lease.expires_us + limits.lost_after_us)
                if lease.may_extend and lease.extend_us(limits) > self._board.now_us:
                    times.append(lease.extend_us(limits))
            elif not lease.stopping:
                latest_start_us = lease.expires_us - lease.requirement.wall_limit_us - limits.expiry_margin_us
                times.append(min(lease.idle_since_us + self._board.warm_us(lease), latest_start_us + 1))
        return min(times, default=None)

    def _miss_deadline(self, job: Job) -> None:
        group = self._board.groups[job.requirement]
        waited_s = (self._board.now_us - job.submitted_us) // SECOND
        if self._has_held(group, job):
            sentence = f"{job.done_so_far} when its time of {waited_s} s was over"
            if job.last_reason:
                sentence += f"; the last trouble: {job.last_reason}"
            sentence += self._too_few(group, job)
            self._board.fail_job(job, "deadline", sentence, "the job's deadline passed")
            return
        sentence = self._none_took_it(group, job)
        self._board.fail_job(job, "no-provider", sentence, "the job's deadline passed")

    def _has_held(self, group: Group, job: Job) -> bool:
        """A lease was there for the job at some time."""
        return bool(group.leases) or group.held_us >= job.submitted_us

    def _none_took_it(self, group: Group, job: Job) -> str:
        waited_s = (self._board.now_us - job.submitted_us) // SECOND
        return (
            f"no provider took the job in {waited_s} s: {group.heard} heard, of which {group.declined} were asked; "
            f"none gave a lease{self._too_few(group, job)}"
        )

    def _too_few(self, group: Group, job: Job) -> str:
        """Said of a job whose tasks run at several providers, where not so many were there."""
        if job.copies == 1 or group.able is None or group.able >= job.copies:
            return ""
        return f"; {too_few_providers(job.copies, group.able)}"

    # Helpers.

    def _ignore(self) -> list[Group]:
        self._ignored += 1
        return []
