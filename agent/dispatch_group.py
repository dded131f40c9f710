"""The jobs of one requirement and the leases that they share, with what is known of negotiations for more."""

from collections import Counter, deque
from collections.abc import Callable
from functools import partial

from coppermesh.agent.dispatch_state import MAX_SCAN, DispatchLimits, Job, Lease
from coppermesh.agent.matching import Requirement
from coppermesh.p2p.ids import PeerId

Near = Callable[[bytes, int, PeerId], bool]
"""Whether a task of a job finds its large blobs at a provider: nothing has to be sent to run it there."""


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
        self.able: int | None = None
        """Providers heard last that do not refuse for good; None: not known."""
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

    def served_out(self) -> set[PeerId]:
        """Providers that have a copy of all that waits, whatever job it is of: a lease there could not be used."""
        if not 0 < len(self.ready) <= MAX_SCAN:
            return set()
        return set.intersection(*(job.served_out() for job in self.ready))

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

    def take(
        self, lease: Lease, now_us: int, max_strikes: int, near: Near | None = None
    ) -> tuple[Job, int] | None:
        """Remove and return a waiting task that may run under `lease`, from each job in turn."""
        for _ in range(min(len(self.ready), MAX_SCAN)):
            job = self.ready[0]
            self.ready.rotate(-1)
            if not job.can_pay(lease.task_cost):
                continue
            at_hand = None if near is None else partial(_is_near, near, job.id, lease.provider)
            index = job.take(lease.provider, now_us, max_strikes, at_hand)
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

    def set_aside(self, job: Job, index: int) -> None:
        """A waiting copy is not run any more; `finish` follows."""
        job.set_aside(index)
        self.waiting -= 1
        if not job.waiting:
            self.ready.remove(job)

    @property
    def typical_us(self) -> int | None:
        """What a task takes at the middle one of the leases; None before any is done."""
        known = sorted(lease.service_us for lease in self.leases.values() if lease.service_us is not None)
        return known[(len(known) - 1) // 2] if known else None

    def known_us(self, now_us: int) -> int | None:
        """What a task takes; before any is done, at least as long as the first one runs already."""
        if (typical_us := self.typical_us) is not None:
            return typical_us
        heads = [head for lease in self.leases.values() if (head := lease.head()) is not None]
        return max((now_us - since_us for _, since_us in heads), default=None)

    def tasks_per_lease(self, now_us: int, limits: DispatchLimits) -> int:
        """How many tasks are worth a lease of their own."""
        known_us = self.known_us(now_us)
        if not known_us:
            return limits.tasks_per_lease
        return max(1, min(limits.tasks_per_lease, limits.lease_work_us // known_us))

    def most_leases(self, now_us: int, limits: DispatchLimits) -> int:
        """How many leases may be wanted."""
        return limits.max_long_leases if self.tasks_per_lease(now_us, limits) == 1 else limits.max_leases

    def most_held(self, now_us: int, limits: DispatchLimits) -> int:
        """How many leases may be kept, useless ones included."""
        return limits.max_held + self.most_leases(now_us, limits) - limits.max_leases

    def finish(self, job: Job, index: int) -> None:
        """Mark a task done, whether it was running or waiting for its next attempt."""
        was_waiting = job.waiting
        job.finish(index)
        if job.waiting < was_waiting:
            self.waiting -= 1
            if not job.waiting:
                self.ready.remove(job)


def _is_near(near: Near, job: bytes, provider: PeerId, index: int) -> bool:
    return near(job, index, provider)
