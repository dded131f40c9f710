"""What the dispatcher keeps: a job with its tasks, a lease with its room, and the group that shares leases.

Nothing here decides what happens next; that is `dispatch`. Every operation is cheap however many tasks a job has:
tasks that were never tried are a counter, and only tasks that ran or failed have an entry of their own.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from coppermesh.agent.dispatch_events import JobSubmitted, LeaseUp
from coppermesh.agent.pricing import amount_for
from coppermesh.p2p.ids import PeerId

SECOND = 1_000_000
MAX_SCAN = 64
"""Waiting retries that are looked at to find one that a provider may take."""
LOOK_AHEAD = 8
"""Tasks in order that are looked at to find one whose blobs are at the provider already."""
MAX_AHEAD = 1024
"""How far a job whose tasks run several times gets ahead of the copies that wait for another provider."""
LEAST_SERVICE_US = 1000
"""Tasks that take less than this all count as equally quick."""


@dataclass(frozen=True, slots=True)
class DispatchLimits:
    """The dispatcher's rules in numbers. Times in microseconds."""

    max_jobs: int = 10_000
    max_tasks: int = 1_000_000
    max_attempts: int = 5
    """Tries of one task, on any provider, before its job fails."""
    max_strikes: int = 2
    """Failures in a row of one provider for one job; it is not picked again for that job."""
    unproven_tasks: int = MAX_SCAN
    """Tasks at once under a lease before the first of them has ended."""
    tasks_per_lease: int = 4
    """One more lease is wanted for each so many tasks, as long as tasks are short or nothing is known of them."""
    lease_work_us: int = SECOND // 2
    """Where tasks are known to take long, one more lease is wanted for each so much work."""
    max_leases: int = 8
    """Leases wanted for one requirement."""
    max_long_leases: int = 64
    """The same where each task takes `lease_work_us` or longer, so that each lease is worth its negotiation."""
    max_held: int = 16
    """Leases kept for one requirement, those that are of no use at the moment included."""
    last_resort: int = 20
    """Negotiations without a lease in a row after which those that rest get one more try."""
    put_back_us: int = 30 * SECOND
    """How long a provider that failed gets no task of any job; each further time in a row `PUT_BACK_FACTOR` times."""
    owners_back_us: int = 4 * SECOND
    """The same for one that its owner took back: it may be lent again soon. Doubled each further time in a row."""
    max_put_back_us: int = 3600 * SECOND
    task_exclusion_us: int = 60 * SECOND
    """How long it does not get the task it failed at: others come first, but a task never waits for nobody."""
    idle_us: int = 5 * SECOND
    """How long a lease without tasks is kept warm."""
    long_idle_us: int = SECOND // 2
    """The same where tasks take `lease_work_us` or longer: a new lease costs little beside one of them."""
    surplus_retry_us: int = SECOND // 10
    """Wait before asking again when leases were released to make room: their slots need a moment to come free."""
    expiry_margin_us: int = 2 * SECOND
    """A task is started only if it could use all its time and still end so long before the lease does."""
    extend_ahead_us: int = 15 * SECOND
    """So long before the last task could start under a lease that work needs, it is asked to be extended."""
    lost_after_us: int = 5 * SECOND
    """How long after its expiry a lease with tasks outstanding is given up."""
    stop_us: int = 5 * SECOND
    """How long a cancelled task takes up room if nobody says that it ended."""
    max_alike: int = 3
    """Different providers at which one task may fail in the same way before its job does."""
    confirm_us: int = 30 * SECOND
    """How long a task that failed by its own doing, as one provider says, waits for another provider's word."""
    move_gain_us: int = SECOND // 20
    """A task that waits behind another is moved to an idle lease only where it starts so much sooner."""
    least_straggle_us: int = SECOND
    """How long a task runs at least before a second copy of it is started."""
    straggle_factor: int = 3
    """And how many times as long as tasks of its kind take."""
    negotiation_us: int = 15 * SECOND
    hopeless_us: int = 15 * SECOND
    """How long a job waits without a lease while every provider heard refuses it for good: another may yet appear."""
    first_retry_us: int = SECOND // 2
    """Wait after a negotiation that granted nothing; doubles up to `last_retry_us`."""
    last_retry_us: int = 15 * SECOND
    nudge_us: int = SECOND
    """Least time between two negotiations when something new was heard."""


AGENT_LIMITS = DispatchLimits(unproven_tasks=2)
"""An agent's: a provider that takes tasks and does none gets two of them, not its whole depth."""


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
    at_us: int = 0
    """When, by the clock."""


@dataclass(slots=True)
class Trouble:
    """What went wrong with one task so far."""

    leases: list[bytes] = field(default_factory=list)
    """Where it failed, one entry an attempt."""
    excluded: dict[PeerId, int] = field(default_factory=dict)
    """Providers that may not have it, and until when."""
    reasons: list[str] = field(default_factory=list)
    alike: dict[str, set[PeerId]] = field(default_factory=dict)
    """Where its run failed, by the code of the failure."""
    moved: list[bytes] = field(default_factory=list)
    """Leases that it was taken from unrun, to be run sooner elsewhere."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A provider's word that a task failed by the job's own doing."""

    attempt: Attempt
    code: str
    sentence: str


@dataclass(slots=True)
class Doubt:
    """Claims about one task, which another provider has to confirm."""

    until_us: int
    """Until when another provider is waited for."""
    claims: dict[PeerId, Claim] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)
    """What is to be run again elsewhere: the task, or copies of it."""


@dataclass(slots=True)
class Strikes:
    """Failures in a row of one provider for one job."""

    count: int
    last: int
    """When the last one was noted, on the dispatcher's count of starts."""


class Job:
    """A job's tasks: waiting (never tried, or to be retried), running, done.

    Where each task runs at several providers, copy `c` of task `t` has the index `c * count + t`, and the copies of one
    task come one after the other.
    """

    def __init__(self, submitted: JobSubmitted, now_us: int) -> None:
        self.id = submitted.job
        self.tasks = submitted.tasks
        self.copies = submitted.copies
        self.requirement = submitted.requirement.for_lease()
        self.providers = max(submitted.requirement.providers, submitted.copies)
        self.submitted_us = now_us
        self.deadline_us = submitted.deadline_us
        self.budget = submitted.budget
        self.spent = 0
        self.running: dict[int, Attempt] = {}
        self.seconds: dict[int, Attempt] = {}
        """Second copies of tasks that are in `running` too and take long there."""
        self.troubles: dict[int, Trouble] = {}
        self.doubts: dict[int, Doubt] = {}
        """By task (where each runs several times: by the task that they are copies of)."""
        self.voting: set[int] = set()
        """Copies that count as failed: the comparison with the others is under way."""
        self.last_reason = ""
        self.done = 0
        self._is_done = bytearray(submitted.tasks)
        self._next = 0
        self._ahead: deque[int] = deque()
        """The next tasks in order, taken from the count so that one further on can be taken first."""
        self._retries: deque[int] = deque()
        self._strikes: dict[PeerId, Strikes] = {}
        self._owners: dict[int, dict[PeerId, int]] = {}
        """For each task whose copies have begun and not all ended: who has which copy."""

    @property
    def waiting(self) -> int:
        """Tasks that are neither running nor done."""
        return self.tasks - self._next + len(self._ahead) + len(self._retries)

    @property
    def done_so_far(self) -> str:
        """`2 of 3 tasks were done`; where each runs at several providers, copies of them are counted."""
        one, many = ("task", "tasks") if self.copies == 1 else ("copy of a task", "copies of its tasks")
        return f"{self.done} of {self.tasks} " + (
            f"{one} was done" if self.tasks == 1 else f"{many} were done"
        )

    def can_pay(self, cost: int) -> bool:
        """One more task of that cost fits into the budget, whatever those that run turn out to cost."""
        taken = sum(attempt.cost for attempt in self.running.values())
        taken += sum(attempt.cost for attempt in self.seconds.values())
        return self.spent + taken + cost <= self.budget

    def is_done(self, index: int) -> bool:
        """Whether task `index` is done; False for a task that does not exist."""
        return 0 <= index < self.tasks and bool(self._is_done[index])

    def attempts(self, index: int) -> list[Attempt]:
        """What runs of a task."""
        found = (self.running.get(index), self.seconds.get(index))
        return [attempt for attempt in found if attempt is not None]

    def take(
        self, provider: PeerId, now_us: int, max_strikes: int, near: Callable[[int], bool] | None = None
    ) -> int | None:
        """Remove and return the next task that `provider` may have.

        Retries come first, then of the next few one that is `near` to it, else the first.
        """
        if self.is_barred(provider, max_strikes):
            return None
        for place in range(min(len(self._retries), MAX_SCAN)):
            index = self._retries[place]
            if self.may_have(provider, index, now_us):
                del self._retries[place]
                return index
        found = self._place_ahead(provider, near)
        if found is None:
            return None
        index = self._ahead[found]
        del self._ahead[found]
        return index

    def _place_ahead(self, provider: PeerId, near: Callable[[int], bool] | None) -> int | None:
        first = None
        for place in range(MAX_AHEAD if self.copies > 1 else LOOK_AHEAD):
            if place >= LOOK_AHEAD and first is not None:
                break
            if place == len(self._ahead) and not self._fill():
                break
            if self._is_owner(provider, self._ahead[place]):
                continue
            if near is None or near(self._ahead[place]):
                return place
            first = place if first is None else first
        return first

    def _fill(self) -> bool:
        """Take one more from the count."""
        if self._next >= self.tasks:
            return False
        task, copy = divmod(self._next, self.copies)
        self._ahead.append(copy * (self.tasks // self.copies) + task)
        self._next += 1
        return True

    def may_have(self, provider: PeerId, index: int, now_us: int) -> bool:
        """It has not failed at that task a moment ago, and has no other copy of it."""
        trouble = self.troubles.get(index)
        excluded = trouble is not None and trouble.excluded.get(provider, 0) > now_us
        return not excluded and not self._is_owner(provider, index)

    def served_out(self) -> set[PeerId]:
        """Who has a copy of every task that waits, and so may have none of them."""
        found: set[PeerId] | None = None
        if self.copies == 1:
            return set()
        for index in self._waiting_first():
            owners = self._owners.get(index % (self.tasks // self.copies), {}).keys()
            found = set(owners) if found is None else found & owners
            if not found:
                return set()
        return found or set()

    def _waiting_first(self) -> Iterator[int]:
        """The waiting tasks in order, as far as `take` would look."""
        yield from islice(self._retries, MAX_SCAN)
        for place in range(MAX_AHEAD):
            if place == len(self._ahead) and not self._fill():
                return
            yield self._ahead[place]

    def _is_owner(self, provider: PeerId, index: int) -> bool:
        if self.copies == 1:
            return False
        return provider in self._owners.get(index % (self.tasks // self.copies), {})

    def begin(self, index: int, attempt: Attempt) -> None:
        """A task runs; beside the copy that runs already, where there is one."""
        (self.seconds if index in self.running else self.running)[index] = attempt
        if self.copies > 1:
            self._owners.setdefault(index % (self.tasks // self.copies), {})[attempt.provider] = index

    def end(self, index: int, lease: bytes) -> Attempt | None:
        """The attempt under that lease, which is over and not done; what runs beside it goes on."""
        for table in (self.seconds, self.running):
            attempt = table.get(index)
            if attempt is not None and attempt.lease == lease:
                del table[index]
                if index in self.seconds:
                    self.running[index] = self.seconds.pop(index)
                if self.copies > 1:
                    self._owners[index % (self.tasks // self.copies)].pop(attempt.provider, None)
                return attempt
        return None

    def base(self, index: int) -> int:
        """The task that `index` is, or is a copy of."""
        return index % (self.tasks // self.copies)

    def owners(self, index: int) -> set[PeerId]:
        """Who has a copy of the task that `index` is one of."""
        return set(self._owners.get(self.base(index), ())) if self.copies > 1 else set()

    def set_aside(self, index: int) -> None:
        """A waiting copy is not run any more; `finish` follows."""
        self._retries.remove(index)
        self.voting.add(index)

    def requeue(self, index: int) -> None:
        """Put a task that was running at the front."""
        self._retries.appendleft(index)

    def retries(self) -> list[int]:
        """The first of the tasks that wait to be tried again."""
        return list(islice(self._retries, MAX_SCAN))

    def finish(self, index: int) -> None:
        """Mark a task done, wherever it was."""
        self.seconds.pop(index, None)
        if index in self.voting:
            self.voting.discard(index)
        elif self.running.pop(index, None) is None:
            self._retries.remove(index)
        self._is_done[index] = 1
        self.done += 1
        self.troubles.pop(index, None)
        if self.copies > 1:
            count = self.tasks // self.copies
            if all(self._is_done[index % count :: count]):
                self._owners.pop(index % count, None)

    def exclude(self, index: int, provider: PeerId, until_us: int) -> None:
        """The provider does not get that task back before then."""
        self.trouble(index).excluded[provider] = until_us

    def strike(self, attempt: Attempt, starts: int) -> None:
        """Note that the provider failed at a task, as a strike.

        An attempt that began before the last strike is not another: nobody could know better then.
        """
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
        self.outstanding: dict[TaskKey, int] = {}
        """Tasks on their way, oldest first, and since when."""
        self.stopping: dict[TaskKey, int] = {}
        """Cancelled tasks that take up room until they are reported, or until the time given."""
        self.idle_since_us = now_us
        self.used = 0
        """When it last got a task, on the dispatcher's count of starts: the least is the least recently used."""
        self.task_cost = amount_for(up.rate, up.requirement.wall_limit_us)
        """The most that one task can cost."""
        self.service_us: int | None = None
        """What one task takes there, as measured over the last few; None before the first."""
        self.paused = False
        """Its provider starts no further task for now."""
        self.extending = False
        """An extension is asked for."""
        self.final = False
        """An extension was refused: it ends when it would have."""
        self._depth = up.depth
        self._last_end_us = now_us

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

    def extend_us(self, limits: DispatchLimits) -> int:
        """When an extension is due, where there is work for it still."""
        last_start_us = self.expires_us - self.requirement.wall_limit_us - limits.expiry_margin_us
        return last_start_us - limits.extend_ahead_us

    @property
    def may_extend(self) -> bool:
        """It was of use, has work, and an extension was neither asked for nor refused."""
        useful = self.service_us is not None and not self.is_spent and bool(self.outstanding)
        return useful and not self.extending and not self.final and not self.paused

    @property
    def room(self) -> int:
        """How many more tasks it can take at once: its depth, and its budget if each cost the most it can."""
        taken = len(self.outstanding) + len(self.stopping)
        room = self._depth - taken
        if self.task_cost:
            room = min(room, (self.budget - self.spent) // self.task_cost - taken)
        return max(0, room)

    def head(self) -> tuple[TaskKey, int] | None:
        """The task that runs there now (the others wait behind it), and since when."""
        for key, began_us in self.outstanding.items():
            return key, max(began_us, self._last_end_us)
        return None

    def end_task(self, key: TaskKey, now_us: int, amount: int = 0, *, done: bool = False) -> None:
        """A task under the lease has ended and cost `amount`; where it is `done`, its time is measured."""
        began_us = self.outstanding.pop(key, None)
        self.stopping.pop(key, None)
        self.spent += amount
        if done and began_us is not None:
            taken_us = max(LEAST_SERVICE_US, now_us - max(began_us, self._last_end_us))
            before_us = taken_us if self.service_us is None else self.service_us
            self.service_us = (3 * before_us + taken_us) // 4
        self._last_end_us = now_us
        if self.is_idle:
            self.idle_since_us = now_us
