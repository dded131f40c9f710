"""The dispatcher under random events, late, doubled and out of order, against a model of what must never happen.

The model is the shell's view: it carries out every instruction and refuses any that breaks a promise of the dispatcher.
At the end of each run the world turns friendly, and every job that is left must come to its end.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coppermesh.agent.dispatch import BLAMELESS_CODES, LEASE_OVER_CODES, Dispatcher
from coppermesh.agent.dispatch_events import (
    CancelTask,
    CopyCounted,
    CopyFailed,
    Event,
    ExtendLease,
    ExtensionRefused,
    Fault,
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
    StartTask,
    Supersede,
    TaskDone,
    TaskFailed,
    TaskRefused,
    Tick,
    WantLeases,
)
from coppermesh.agent.dispatch_state import DispatchLimits
from coppermesh.agent.matching import Requirement
from coppermesh.agent.pricing import amount_for
from coppermesh.p2p.ids import PeerId

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
RATE = 36_000
NEEDS = [
    Requirement(max_rate=RATE, wall_limit_us=10 * SECOND),
    Requirement(max_rate=RATE, wall_limit_us=10 * SECOND, providers=3),
    Requirement(max_rate=RATE, wall_limit_us=5 * SECOND, fresh=True),
]
PEERS = [PeerId(bytes([65 + number]) * 32) for number in range(4)]
LIMITS = DispatchLimits(
    max_held=6,
    put_back_us=3 * SECOND,
    task_exclusion_us=8 * SECOND,
    idle_us=60 * SECOND,
    nudge_us=SECOND // 4,
)
"""Shorter than the real ones, so that short runs meet them."""
CODES = ["unreachable", "crashed", *sorted(BLAMELESS_CODES), *sorted(LEASE_OVER_CODES)]

jobs = st.integers(0, 9).map(lambda number: b"job%d" % number)
leases = st.integers(0, 19).map(lambda number: b"lease%02d" % number)
indexes = st.integers(-1, 8)
picks = st.integers(0, 10**6)


@dataclass
class ModelLease:
    provider: PeerId
    need: Requirement
    depth: int
    expires_us: int
    budget: int
    spent: int = 0
    running: set[tuple[bytes, int]] = field(default_factory=set)
    stopping: dict[tuple[bytes, int], int] = field(default_factory=dict)
    paused: bool = False
    extending: bool = False
    final: bool = False


@dataclass
class ModelJob:
    tasks: int
    need: Requirement
    done: set[int] = field(default_factory=set)
    copies: int = 1
    running: set[tuple[int, bytes]] = field(default_factory=set)
    """Task and lease; a task may run under two leases."""
    moved: dict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    done_by: dict[int, PeerId] = field(default_factory=dict)
    failed_on: dict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    failed_at: dict[tuple[int, PeerId], int] = field(default_factory=dict)
    begun: dict[tuple[int, bytes], int] = field(default_factory=dict)
    began_us: dict[tuple[int, bytes], int] = field(default_factory=dict)
    strikes: dict[PeerId, tuple[int, int]] = field(default_factory=dict)
    claims: dict[int, set[PeerId]] = field(default_factory=lambda: defaultdict(set))
    """Who said of a task that it failed by its own doing."""
    voting: set[int] = field(default_factory=set)

    def leases_of(self, index: int) -> list[bytes]:
        """Under which leases a task runs."""
        return sorted(lease for place, lease in self.running if place == index)


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_us = START
        self.dispatcher = Dispatcher(START, LIMITS)
        self.jobs: dict[bytes, ModelJob] = {}
        self.leases: dict[bytes, ModelLease] = {}
        self.ended_jobs: set[bytes] = set()
        self.ended_leases: set[bytes] = set()
        self.put_back: dict[PeerId, int] = {}
        self.negotiating: dict[Requirement, int] = {}
        self.superseded: set[tuple[bytes, int, bytes]] = set()
        self.count = 0
        self.longest_us = 0
        """The longest that any attempt has run."""

    # What happens.

    @rule(
        job=jobs, tasks=st.integers(0, 7), need=st.sampled_from(NEEDS), seconds=st.integers(-1, 300),
        copies=st.sampled_from([1, 1, 2]),
    )  # fmt: skip
    def submit(self, job: bytes, tasks: int, need: Requirement, seconds: int, copies: int) -> None:
        known = job in self.jobs or job in self.ended_jobs
        tasks *= copies
        if not known:
            self.jobs[job] = ModelJob(tasks, need.for_lease(), copies=copies)
        deadline_us = self.now_us + seconds * SECOND
        out = self.tell(JobSubmitted(job, tasks, need, deadline_us, copies=copies))
        if not known and (tasks == 0 or seconds <= 0):
            assert job in self.ended_jobs
        if known:
            assert not out

    @rule(job=jobs)
    def cancel(self, job: bytes) -> None:
        self.tell(JobCancelled(job))
        if job in self.jobs:
            assert not self.jobs[job].running, "every running task of a cancelled job is stopped"
            del self.jobs[job]
            self.ended_jobs.add(job)

    @rule(
        lease=leases, peer=st.sampled_from(PEERS), need=st.sampled_from(NEEDS), depth=st.integers(1, 3),
        seconds=st.one_of(st.integers(0, 200), st.integers(100, 300)), tasks_paid=st.integers(0, 9),
    )  # fmt: skip
    def grant(
        self, lease: bytes, peer: PeerId, need: Requirement, depth: int, seconds: int, tasks_paid: int
    ) -> None:
        budget = tasks_paid * amount_for(RATE, need.wall_limit_us)
        expires_us = self.now_us + seconds * SECOND
        if lease not in self.leases and lease not in self.ended_leases:
            self.leases[lease] = ModelLease(peer, need.for_lease(), depth, expires_us, budget)
            if tasks_paid == 0 or seconds * SECOND < need.wall_limit_us + LIMITS.expiry_margin_us:
                self.put_back[peer] = self.now_us
        self.tell(LeaseUp(lease, peer, need, depth, expires_us, budget, RATE))

    @rule(lease=leases, code=st.sampled_from(CODES))
    def lose(self, lease: bytes, code: str) -> None:
        gone = self.leases.pop(lease, None)
        self.ended_leases.add(lease)
        if gone is not None:
            blame = code not in BLAMELESS_CODES
            self._give_up([(job, index, lease) for job, index in gone.running], gone.provider, blame=blame)
        self.tell(LeaseLost(lease, code, "said the test"))

    @rule(
        need=st.sampled_from(NEEDS),
        granted=st.integers(0, 2),
        left=st.one_of(st.none(), st.frozensets(st.sampled_from(PEERS))),
    )
    def end_negotiation(self, need: Requirement, granted: int, left: frozenset[PeerId] | None = None) -> None:
        self.negotiating.pop(need.for_lease(), None)
        self.tell(NegotiationEnded(need, granted, 3, 3 - granted, left=left))

    @rule(lease=leases, paused=st.booleans())
    def pause_lease(self, lease: bytes, paused: bool) -> None:
        if lease in self.leases:
            self.leases[lease].paused = paused
        self.tell(LeasePaused(lease, paused))

    @rule(lease=leases, seconds=st.integers(0, 100), agreed=st.booleans())
    def answer_extension(self, lease: bytes, seconds: int, agreed: bool) -> None:
        """Mostly to what was asked for; also late, and about nothing."""
        held = self.leases.get(lease)
        expires_us = self.now_us + seconds * SECOND
        if held is not None:
            held.extending = False
            held.final = held.final or not agreed
            if agreed:
                held.expires_us = max(held.expires_us, expires_us)
                last_us = held.expires_us - held.need.wall_limit_us - LIMITS.expiry_margin_us
                held.final = last_us - LIMITS.extend_ahead_us <= self.now_us
        self.tell(LeaseExtended(lease, expires_us) if agreed else ExtensionRefused(lease, "busy", "no"))

    @precondition(lambda self: any(job.voting for job in self.jobs.values()))
    @rule(pick=picks)
    def count_copy(self, pick: int) -> None:
        voting = [(job, index) for job, known in sorted(self.jobs.items()) for index in sorted(known.voting)]
        job_id, index = voting[pick % len(voting)]
        self.jobs[job_id].voting.remove(index)
        self.jobs[job_id].done.add(index)
        self.tell(CopyCounted(job_id, index))

    @precondition(lambda self: any(job.running for job in self.jobs.values()))
    @rule(pick=picks, amount=st.integers(0, 100))
    def finish_task(self, pick: int, amount: int) -> None:
        self._done(*self._pick_running(pick), amount)

    @rule(job=jobs, index=indexes, lease=leases)
    def finish_any(self, job: bytes, index: int, lease: bytes) -> None:
        """Mostly about nothing."""
        self._done(job, index, lease, 1)

    @precondition(lambda self: any(job.running for job in self.jobs.values()))
    @rule(
        pick=picks,
        fault=st.sampled_from(["job", "provider", "provider", "provider"]),
        amount=st.integers(0, 100),
    )
    def fail_task(self, pick: int, fault: Fault, amount: int) -> None:
        self._failed(*self._pick_running(pick), fault, amount)

    @rule(job=jobs, index=indexes, lease=leases, fault=st.sampled_from(["job", "provider"]))
    def fail_any(self, job: bytes, index: int, lease: bytes, fault: Fault) -> None:
        self._failed(job, index, lease, fault, 0)

    @precondition(lambda self: bool(self._given_up()))
    @rule(pick=picks)
    def finish_late(self, pick: int) -> None:
        """A result that was accepted just as its attempt was given up."""
        given_up = self._given_up()
        self._done(*given_up[pick % len(given_up)], 1)

    @precondition(lambda self: any(job.running for job in self.jobs.values()))
    @rule(pick=picks, seconds=st.integers(0, 10))
    def fail_task_and_wait(self, pick: int, seconds: int) -> None:
        """Failures in a row are rare by chance; this makes them likely."""
        self._failed(*self._pick_running(pick), "provider", 0)
        self.pass_time(seconds)

    @precondition(lambda self: any(job.running for job in self.jobs.values()))
    @rule(pick=picks, code=st.sampled_from(CODES))
    def refuse_task(self, pick: int, code: str) -> None:
        job, index, lease = self._pick_running(pick)
        over = code in LEASE_OVER_CODES
        self._free(job, index, lease, 0)
        self._give_up([(job, index, lease)], self.leases[lease].provider, blame=not over)
        if over:
            others = [(other, place, lease) for other, place in self.leases[lease].running]
            self._give_up(others, self.leases[lease].provider, blame=False)
        out = self.tell(TaskRefused(job, index, lease, code))
        assert over == any(isinstance(one, ReleaseLease) and one.code == "lost" for one in out)

    @rule()
    def change_providers(self) -> None:
        self.tell(ProvidersChanged())

    @rule(seconds=st.one_of(st.integers(0, 3), st.integers(0, 90)))
    def pass_time(self, seconds: int) -> None:
        self.now_us += seconds * SECOND
        self.tell(Tick())

    @rule()
    def wake(self) -> None:
        wakeup_us = self.dispatcher.next_wakeup_us
        if wakeup_us is not None:
            self.now_us = max(self.now_us, wakeup_us)
            self.tell(Tick())
            again_us = self.dispatcher.next_wakeup_us
            assert again_us is None or again_us > self.now_us, "woken for nothing"

    # What must hold.

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        counts = self.dispatcher.counts()
        assert counts.jobs == len(self.jobs)
        assert counts.leases == len(self.leases)
        assert counts.tasks_outstanding == sum(len(job.running) for job in self.jobs.values())
        waiting = [
            index
            for job in self.jobs.values()
            for index in range(job.tasks)
            if index not in job.done | job.voting and not job.leases_of(index)
        ]
        assert counts.tasks_waiting == len(waiting)

    @invariant()
    def there_is_always_a_next_moment_while_there_is_something_to_do(self) -> None:
        if self.jobs or self.leases:
            assert self.dispatcher.next_wakeup_us is not None

    def teardown(self) -> None:
        """From here on everything goes well: every job must end."""
        for number in range(400):
            if not self.jobs:
                break
            for job_id, job in list(self.jobs.items()):
                for index, lease in sorted(job.running):
                    if job_id in self.jobs and (index, lease) in self.jobs[job_id].running:
                        self._done(job_id, index, lease, 1)
            while any(job.voting for job in self.jobs.values()):
                self.count_copy(0)
            for need in list(self.negotiating):
                self.grant(b"friendly%d" % number, PeerId(number.to_bytes(32, "big")), need, 2, 200, 5)
                self.end_negotiation(need, 1)
            self.wake()
        assert not self.jobs, "a job is left that never ends"

    # The model.

    def tell(self, event: Event) -> list[Instruction]:
        for lease in self.leases.values():
            for key in [key for key, until_us in lease.stopping.items() if until_us <= self.now_us]:
                del lease.stopping[key]
        began = [job.began_us[attempt] for job in self.jobs.values() for attempt in job.running]
        self.longest_us = max([self.longest_us, *(self.now_us - at_us for at_us in began)])
        out = self.dispatcher.handle(event, self.now_us)
        for instruction in out:
            self._carry_out(instruction)
            assert instruction.cause
        return out

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case StartTask():
                self._start(instruction)
            case Supersede(job, index, lease, cause):
                self._supersede(job, index, lease, moved=cause.startswith("moved"))
            case CancelTask(job, index, lease):
                assert self.jobs[job].begun.get((index, lease)), "only what was started is cancelled"
                self.jobs[job].running.discard((index, lease))
                self.leases[lease].running.discard((job, index))
                self.leases[lease].stopping[job, index] = self.now_us + LIMITS.stop_us
            case WantLeases(need, count, exclude, held):
                assert self.negotiating.get(need, 0) <= self.now_us, "one negotiation at a time"
                # A lease a task only where some task took, or takes, more than half of what makes a lease worth while.
                is_long = 2 * self.longest_us > LIMITS.lease_work_us
                assert 1 <= count <= (LIMITS.max_long_leases if is_long else LIMITS.max_leases)
                assert {peer for peer, at_us in self.put_back.items() if self._is_put_back(at_us)} <= exclude
                assert held <= {lease.provider for lease in self.leases.values()}
                assert self.now_us < instruction.deadline_us
                assert any(job.need == need for job in self.jobs.values())
                self.negotiating[need] = instruction.deadline_us + LIMITS.stop_us
            case ReleaseLease(lease):
                assert not self.leases[lease].running, "a lease is released with a task on it"
                del self.leases[lease]
                self.ended_leases.add(lease)
            case JobFinished(job):
                assert len(self.jobs[job].done) == self.jobs[job].tasks
                self._end(job)
            case JobFailed(job, cause=cause):
                if "fault" in cause:
                    assert self.jobs[job].copies == 1 or max(map(len, self.jobs[job].claims.values())) > 1, (
                        "one word ended a job whose tasks run twice"
                    )
                self._end(job)
            case ExtendLease(lease):
                asked = self.leases[lease]
                assert not asked.extending, "one extension at a time"
                assert not asked.final, "asked again after a refusal"
                assert asked.running, "prolonged for nothing"
                asked.extending = True
            case CopyFailed(job, index, provider):
                known = self.jobs[job]
                assert known.copies > 1
                assert not known.leases_of(index), "it counts as failed while it runs"
                assert provider in known.claims[index % (known.tasks // known.copies)]
                known.voting.add(index)

    def _start(self, start: StartTask) -> None:
        job, lease = self.jobs[start.job], self.leases[start.lease]
        assert 0 <= start.index < job.tasks
        assert start.index not in job.done, "a task is done twice"
        others = job.leases_of(start.index)
        assert len(others) < 2, "a task is on three leases at once"
        if others:
            assert not any(one.tasks > len(one.done) + len(one.running) for one in [job]), (
                "a copy before a task"
            )
            assert self.leases[others[0]].provider != lease.provider, "two copies at one provider"
        assert start.again == bool(others or job.failed_on[start.index] or job.moved[start.index])
        for before in job.moved[start.index]:
            assert (start.job, start.index, before) in self.superseded, "moved before it was superseded"
        count = job.tasks // job.copies
        for twin in range(start.index % count, job.tasks, count):
            if twin != start.index:
                at = {self.leases[held].provider for held in job.leases_of(twin)}
                assert lease.provider not in at | {job.done_by.get(twin)}, (
                    "both copies of a task at one provider"
                )
        assert lease.need == job.need
        assert not lease.paused, "a task for a lease that pauses"
        assert len(lease.running) + len(lease.stopping) < lease.depth, "more tasks than the lease's depth"
        cost = amount_for(RATE, job.need.wall_limit_us)
        taken = len(lease.running) + len(lease.stopping) + 1
        assert lease.spent + taken * cost <= lease.budget, "the lease's budget could be overrun"
        assert self.now_us + job.need.wall_limit_us + LIMITS.expiry_margin_us <= lease.expires_us
        assert not self._is_put_back(self.put_back.get(lease.provider, 0)), (
            "a provider that was put back is picked"
        )
        failed_us = job.failed_at.get((start.index, lease.provider), 0)
        assert self.now_us >= failed_us + LIMITS.task_exclusion_us, (
            "the same task at once again where it failed"
        )
        assert job.strikes.get(lease.provider, (0, 0))[0] < LIMITS.max_strikes, (
            "picked after two failures in a row"
        )
        failed_on = job.failed_on[start.index]
        assert start.attempt == len(failed_on) + 1 <= LIMITS.max_attempts
        for before in failed_on:
            assert (start.job, start.index, before) in self.superseded, "retried before it was superseded"
        self.count += 1
        job.begun[start.index, start.lease] = self.count
        job.began_us[start.index, start.lease] = self.now_us
        job.running.add((start.index, start.lease))
        lease.running.add((start.job, start.index))

    def _supersede(self, job_id: bytes, index: int, lease: bytes, *, moved: bool) -> None:
        job = self.jobs[job_id]
        assert job.begun.get((index, lease)), "only what was started is superseded"
        self.superseded.add((job_id, index, lease))
        if (index, lease) not in job.running:
            return
        # It was moved, the lease expired, or the task was done by another attempt.
        job.running.remove((index, lease))
        self.leases[lease].running.discard((job_id, index))
        if moved:
            assert not job.moved[index], "a task is moved once"
            assert self.leases[lease].running, "what ran is not moved"
            job.moved[index].append(lease)
        elif index not in job.done:
            job.failed_on[index].append(lease)

    def _end(self, job: bytes) -> None:
        assert not self.jobs[job].running, "a job ended while its tasks ran on"
        del self.jobs[job]
        self.ended_jobs.add(job)

    def _is_put_back(self, at_us: int) -> bool:
        return self.now_us < at_us + LIMITS.put_back_us

    def _pick_running(self, pick: int) -> tuple[bytes, int, bytes]:
        running = [
            (job, index, lease)
            for job, known in sorted(self.jobs.items())
            for index, lease in sorted(known.running)
        ]
        return running[pick % len(running)]

    def _given_up(self) -> list[tuple[bytes, int, bytes]]:
        return [
            (job, index, lease)
            for job, known in sorted(self.jobs.items())
            for index in range(known.tasks)
            for lease in known.failed_on[index] + known.moved[index]
            if index not in known.done | known.voting
        ]

    def _free(self, job: bytes, index: int, lease: bytes, amount: int) -> bool:
        """The attempt ended, if it is one that takes up room. True if it was the task's current one."""
        self._drop_old_stops()
        held = self.leases.get(lease)
        if held is None or (job, index) not in held.running | set(held.stopping):
            return False
        held.spent += amount
        held.stopping.pop((job, index), None)
        if (job, index) not in held.running:
            return False
        held.running.remove((job, index))
        self.jobs[job].running.remove((index, lease))
        return True

    def _drop_old_stops(self) -> None:
        for lease in self.leases.values():
            for key in [key for key, until_us in lease.stopping.items() if until_us <= self.now_us]:
                del lease.stopping[key]

    def _done(self, job_id: bytes, index: int, lease: bytes, amount: int) -> None:
        job = self.jobs.get(job_id)
        held = self.leases.get(lease)
        if self._free(job_id, index, lease, amount):
            assert job is not None
            job.done.add(index)
            assert held is not None
            job.done_by[index] = held.provider
            for slow in job.leases_of(index):
                if job.begun[index, slow] < job.begun[index, lease]:
                    self._blame(job, index, slow, self.leases[slow].provider, self.count)
            job.strikes.pop(held.provider, None)
        elif (
            job is not None
            and index not in job.done | job.voting
            and lease in job.failed_on[index] + job.moved[index]
        ):
            job.done.add(index)
        self.tell(TaskDone(job_id, index, lease, amount))

    def _failed(self, job_id: bytes, index: int, lease: bytes, fault: Fault, amount: int) -> None:
        if self._free(job_id, index, lease, amount):
            job, provider = self.jobs[job_id], self.leases[lease].provider
            claims = job.claims[index % (job.tasks // job.copies)]
            if fault == "job":
                claims.add(provider)
            if fault == "provider" or len(claims) < 2:
                self._give_up([(job_id, index, lease)], provider, blame=fault == "provider")
        self.tell(TaskFailed(job_id, index, lease, fault, "crashed", "said the test", amount))

    def _give_up(self, attempts: list[tuple[bytes, int, bytes]], provider: PeerId, *, blame: bool) -> None:
        """The model's account of failed attempts: who is to blame, and that each must be superseded."""
        noted = self.count
        for job_id, index, lease in sorted(attempts, reverse=True):
            job = self.jobs[job_id]
            job.running.discard((index, lease))
            job.failed_on[index].append(lease)
            if lease in self.leases:
                self.leases[lease].running.discard((job_id, index))
            if not blame:
                continue
            self._blame(job, index, lease, provider, noted)

    def _blame(self, job: ModelJob, index: int, lease: bytes, provider: PeerId, noted: int) -> None:
        self.put_back[provider] = self.now_us
        job.failed_at[index, provider] = self.now_us
        count, last = job.strikes.get(provider, (0, -1))
        if job.begun[index, lease] > last:
            job.strikes[provider] = (count + 1, noted)


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
