"""What the dispatcher keeps: a job with its tasks, a lease with its room, and the group that shares leases.

Nothing here decides what happens next; that is `dispatch`. Every operation is cheap however many tasks a job has:
tasks that were never tried are a counter, and only tasks that ran or failed have an entry of their own.
"""

from collections import Counter, deque
from dataclasses import dataclass, field

from coppermesh.agent.dispatch_events import JobSubmitted, LeaseUp
from coppermesh.agent.matching import Requirement
from coppermesh.agent.pricing import amount_for
from coppermesh.p2p.ids import PeerId

SECOND = 1_000_000
MAX_SCAN = 64
"""Waiting retries that are looked at to find one that a provider may take."""


@dataclass(frozen=True, slots=True)
class DispatchLimits:
    """The dispatcher's rules in numbers. Times in microseconds."""

    max_jobs: int = 10_000
    max_tasks: int = 1_000_000
    max_attempts: int = 5
    """Tries of one task, on any provider, before its job fails."""
    max_strikes: int = 2
    """Failures in a row of one provider for one job; it is not picked again for that job."""
    tasks_per_lease: int = 4
    """One more lease is wanted for each so many tasks."""
    max_leases: int = 8
    """Leases wanted for one requirement."""
    max_held: int = 16
    """Leases kept for one requirement, those that are of no use at the moment included."""
    put_back_us: int = 30 * SECOND
    """How long a provider that failed gets no task of any job."""
    task_exclusion_us: int = 60 * SECOND
    """How long it does not get the task it failed at: others come first, but a task never waits for nobody."""
    idle_us: int = 5 * SECOND
    """How long a lease without tasks is kept warm."""
    surplus_retry_us: int = SECOND // 10
    """Wait before asking again when leases were released to make room: their slots need a moment to come free."""
    expiry_margin_us: int = 2 * SECOND
    """A task is started only if it could use all its time and still end so long before the lease does."""
    lost_after_us: int = 5 * SECOND
    """How long after its expiry a lease with tasks outstanding is given up."""
    stop_us: int = 5 * SECOND
    """How long a cancelled task takes up room if nobody says that it ended."""
    negotiation_us: int = 15 * SECOND
    hopeless_us: int = 15 * SECOND
    """How long a job waits without a lease while every provider heard refuses it for good: another may yet appear."""
    first_retry_us: int = SECOND // 2
    """Wait after a negotiation that granted nothing; doubles up to `last_retry_us`."""
    last_retry_us: int = 15 * SECOND
    nudge_us: int = SECOND
    """Least time between two negotiations when something new was heard."""


@dataclass(frozen=True, slots=True)
class DispatchCounts:
    """A snapshot for status pages."""

    jobs: int
    tasks_waiting: int
    tasks_outstanding: int
    leases: int
    events_ignored: int


TaskKey = tuple[bytes, int]
"""(job, index)."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A task on its way under a lease."""

    lease: bytes
    provider: PeerId
    began: int
    """When, on the dispatcher's count of starts."""
    cost: int
    """The most it can cost; kept free in the job's budget until it ends."""


@dataclass(slots=True)
class Trouble:
    """What went wrong with one task so far."""

    leases: list[bytes] = field(default_factory=list)
    """Where it failed, one entry an attempt."""
    excluded: dict[PeerId, int] = field(default_factory=dict)
    """Providers that may not have it, and until when."""
    reasons: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Strikes:
    """Failures in a row of one provider for one job."""

    count: int
    last: int
    """When the last one was noted, on the dispatcher's count of starts."""


class Job:
    """A job's tasks: waiting (never tried, or to be retried), running, done."""

    def __init__(self, submitted: JobSubmitted, now_us: int) -> None:
        self.id = submitted.job
        self.tasks = submitted.tasks
        self.requirement = submitted.requirement.for_lease()
        self.providers = submitted.requirement.providers
        self.submitted_us = now_us
        self.deadline_us = submitted.deadline_us
        self.budget = submitted.budget
        self.spent = 0
        self.running: dict[int, Attempt] = {}
        self.troubles: dict[int, Trouble] = {}
        self.last_reason = ""
        self.done = 0
        self._is_done = bytearray(submitted.tasks)
        self._next = 0
        self._retries: deque[int] = deque()
        self._strikes: dict[PeerId, Strikes] = {}

    @property
    def waiting(self) -> int:
        """Tasks that are neither running nor done."""
        return self.tasks - self._next + len(self._retries)

    def can_pay(self, cost: int) -> bool:
        """One more task of that cost fits into the budget, whatever those that run turn out to cost."""
        return self.spent + sum(attempt.cost for attempt in self.running.values()) + cost <= self.budget

    def is_done(self, index: int) -> bool:
        """Whether task `index` is done; False for a task that does not exist."""
        return 0 <= index < self.tasks and bool(self._is_done[index])

    def take(self, provider: PeerId, now_us: int, max_strikes: int) -> int | None:
        """Remove and return the next task that `provider` may have; retries first, then in order."""
        if self.is_barred(provider, max_strikes):
            return None
        for place in range(min(len(self._retries), MAX_SCAN)):
            index = self._retries[place]
            trouble = self.troubles.get(index)
            if trouble is None or trouble.excluded.get(provider, 0) <= now_us:
                del self._retries[place]
                return index
        if self._next < self.tasks:
            self._next += 1
            return self._next - 1
        return None

    def requeue(self, index: int) -> None:
        """Put a task that was running at the front."""
        self._retries.appendleft(index)

    def finish(self, index: int) -> None:
        """Mark a task done, wherever it was."""
        if self.running.pop(index, None) is None:
            self._retries.remove(index)
        self._is_done[index] = 1
        self.done += 1
        self.troubles.pop(index, None)

    def blame(self, index: int, attempt: Attempt, starts: int, excluded_until_us: int) -> None:
        """Note that the provider failed at a task: it does not get it back soon, and it has one strike more.

        An attempt that began before the last strike is not another: nobody could know better then.
        """
        self.trouble(index).excluded[attempt.provider] = excluded_until_us
        strikes = self._strikes.get(attempt.provider)
        if strikes is None:
            self._strikes[attempt.provider] = Strikes(1, starts)
        elif attempt.began > strikes.last:
            strikes.count += 1
            strikes.last = starts

    def praise(self, provider: PeerId) -> None:
        """The provider did a task of the job: what it failed at before is not in a row any more."""
        self._strikes.pop(provider, None)

    def trouble(self, index: int) -> Trouble:
        """The record of what went wrong with a task."""
        return self.troubles.setdefault(index, Trouble())

    def is_barred(self, provider: PeerId, max_strikes: int) -> bool:
        """The provider gets no more tasks of this job."""
        strikes = self._strikes.get(provider)
        return strikes is not None and strikes.count >= max_strikes

    def barred(self, max_strikes: int) -> set[PeerId]:
        """Every provider that gets no more tasks of this job."""
        return {peer for peer, strikes in self._strikes.items() if strikes.count >= max_strikes}


class Lease:
    """A lease that is held, and how much more it can take."""

    def __init__(self, up: LeaseUp, now_us: int) -> None:
        self.id = up.lease
        self.provider = up.provider
        self.requirement = up.requirement.for_lease()
        self.expires_us = up.expires_us
        self.budget = up.budget
        self.spent = 0
        self.outstanding: dict[TaskKey, None] = {}
        self.stopping: dict[TaskKey, int] = {}
        """Cancelled tasks that take up room until they are reported, or until the time given."""
        self.idle_since_us = now_us
        self.used = 0
        """When it last got a task, on the dispatcher's count of starts: the least is the least recently used."""
        self.task_cost = amount_for(up.rate, up.requirement.wall_limit_us)
        """The most that one task can cost."""
        self._depth = up.depth

    @property
    def is_idle(self) -> bool:
        """Nothing runs under it."""
        return not self.outstanding and not self.stopping

    @property
    def is_spent(self) -> bool:
        """What is left of the budget does not cover one more task at its dearest."""
        return self.budget - self.spent < self.task_cost

    def is_ending(self, now_us: int, margin_us: int) -> bool:
        """A task started now might not end before the lease does."""
        return now_us + self.requirement.wall_limit_us + margin_us > self.expires_us

    @property
    def room(self) -> int:
        """How many more tasks it can take at once: its depth, and its budget if each cost the most it can."""
        taken = len(self.outstanding) + len(self.stopping)
        room = self._depth - taken
        if self.task_cost:
            room = min(room, (self.budget - self.spent) // self.task_cost - taken)
        return max(0, room)

    def end_task(self, key: TaskKey, now_us: int, amount: int = 0) -> None:
        """A task under the lease has ended and cost `amount`."""
        self.outstanding.pop(key, None)
        self.stopping.pop(key, None)
        self.spent += amount
        if self.is_idle:
            self.idle_since_us = now_us


class Group:
    """The jobs of one requirement and the leases they share."""

    def __init__(self, requirement: Requirement) -> None:
        self.requirement = requirement
        self.jobs: dict[bytes, Job] = {}
        self.leases: dict[bytes, Lease] = {}
        self.waiting = 0
        """Tasks of all jobs that are neither running nor done."""
        self.ready: deque[Job] = deque()
        """Jobs with waiting tasks; each is served in turn."""
        self.wanted = 0
        """Leases asked for in the negotiation that is under way."""
        self.negotiating_until_us: int | None = None
        self.retry_us = 0
        self.ended_us = 0
        """When the last negotiation ended."""
        self.fruitless = 0
        """Negotiations in a row that granted nothing."""
        self.heard = 0
        self.declined = 0
        self.held_us = 0
        """The last time at which a lease was held."""
        self.latest_deadline_us = 0
        self.providers: Counter[int] = Counter()
        """How many live jobs want at least so many providers."""

    @property
    def outstanding(self) -> int:
        """Tasks on their way."""
        return sum(len(lease.outstanding) for lease in self.leases.values())

    @property
    def least_leases(self) -> int:
        """What the most demanding live job wants to be spread over."""
        return max(self.providers, default=0)

    @property
    def is_empty(self) -> bool:
        """Nothing is left to keep the group for."""
        return not self.jobs and not self.leases and self.negotiating_until_us is None

    @property
    def fair_share(self) -> int | None:
        """The most tasks one lease should have while others are being negotiated; None while none are."""
        if self.negotiating_until_us is None:
            return None
        leases = max(1, len(self.leases) + self.wanted)
        return max(1, -(-(self.waiting + self.outstanding) // leases))

    def barred(self, max_strikes: int) -> set[PeerId]:
        """Providers that every job with waiting tasks has barred, where those jobs are few enough to look."""
        if not 0 < len(self.ready) <= MAX_SCAN:
            return set()
        return set.intersection(*(job.barred(max_strikes) for job in self.ready))

    def begin_negotiation(self, count: int, now_us: int, limits: DispatchLimits) -> int:
        """`count` leases are asked for. Returns until when that may take."""
        deadline_us = min(now_us + limits.negotiation_us, self.latest_deadline_us)
        self.wanted = count
        self.negotiating_until_us = deadline_us + limits.stop_us
        return deadline_us

    def end_negotiation(self, granted: int, now_us: int, limits: DispatchLimits) -> None:
        """The negotiation is over: wait before the next, the longer the less came of the last ones."""
        self.negotiating_until_us = None
        self.wanted = 0
        self.ended_us = now_us
        self.fruitless = 0 if granted else self.fruitless + 1
        doublings = min(max(self.fruitless - 1, 0), 16)
        self.retry_us = now_us + min(limits.first_retry_us << doublings, limits.last_retry_us)

    def nudge(self, limits: DispatchLimits) -> None:
        """Something changed: ask again soon, though not more often than once in `nudge_us`."""
        self.retry_us = min(self.retry_us, self.ended_us + limits.nudge_us)

    def add_lease(self, lease: Lease, now_us: int) -> None:
        """Take in a new lease."""
        self.leases[lease.id] = lease
        self.held_us = now_us
        self.wanted = max(0, self.wanted - 1)

    def add_job(self, job: Job) -> None:
        """Take in a new job."""
        self.jobs[job.id] = job
        self.ready.append(job)
        self.waiting += job.waiting
        self.providers[job.providers] += 1
        self.latest_deadline_us = max(self.latest_deadline_us, job.deadline_us)

    def remove_job(self, job: Job) -> None:
        """Forget a job that ended, with its waiting tasks."""
        del self.jobs[job.id]
        if job.waiting:
            self.waiting -= job.waiting
            self.ready.remove(job)
        self.providers[job.providers] -= 1
        if not self.providers[job.providers]:
            del self.providers[job.providers]

    def take(self, lease: Lease, now_us: int, max_strikes: int) -> tuple[Job, int] | None:
        """Remove and return a waiting task that may run under `lease`, from each job in turn."""
        for _ in range(min(len(self.ready), MAX_SCAN)):
            job = self.ready[0]
            self.ready.rotate(-1)
            index = job.take(lease.provider, now_us, max_strikes) if job.can_pay(lease.task_cost) else None
            if index is not None:
                self.waiting -= 1
                if not job.waiting:
                    self.ready.pop()
                return job, index
        return None

    def requeue(self, job: Job, index: int) -> None:
        """Put a task that was running at the front of its job, and its job next in turn."""
        if not job.waiting:
            self.ready.appendleft(job)
        job.requeue(index)
        self.waiting += 1

    def finish(self, job: Job, index: int) -> None:
        """Mark a task done, whether it was running or waiting for its next attempt."""
        was_waiting = job.waiting
        job.finish(index)
        if job.waiting < was_waiting:
            self.waiting -= 1
            if not job.waiting:
                self.ready.remove(job)
