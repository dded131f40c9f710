"""The dispatcher in situations that happen: each test is a small story of events and the instructions they call for."""

import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import pytest

from coppermesh.agent.dispatch import Dispatcher
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
from coppermesh.agent.dispatch_state import DispatchLimits
from coppermesh.agent.matching import Requirement
from coppermesh.p2p.ids import PeerId

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
NEED = Requirement(max_rate=36_000, wall_limit_us=10 * SECOND)
A, B, C = (PeerId(name * 32) for name in (b"a", b"b", b"c"))
I = TypeVar("I", bound=Instruction)  # noqa: E741


class Desk:
    """A dispatcher with a clock, and all instructions it ever gave."""

    def __init__(self, limits: DispatchLimits | None = None) -> None:
        self.now_us = START
        self.dispatcher = Dispatcher(START, limits)
        self.log: list[Instruction] = []

    def tell(self, *events: Event, after_s: float = 0) -> list[Instruction]:
        """The events, one after the other, `after_s` later; the instructions of all of them."""
        self.now_us += round(after_s * SECOND)
        out = [instruction for event in events for instruction in self.dispatcher.handle(event, self.now_us)]
        self.log.extend(out)
        assert all(instruction.cause for instruction in out), "every instruction says why"
        return out

    def submit(
        self, tasks: int = 1, job: bytes = b"job", need: Requirement = NEED, seconds: float = 600
    ) -> list[Instruction]:
        return self.tell(JobSubmitted(job, tasks, need, self.now_us + round(seconds * SECOND)))

    def lease(
        self, lease: bytes, provider: PeerId = A, depth: int = 4, seconds: float = 600, budget: int = 10**9
    ) -> list[Instruction]:
        expires_us = self.now_us + round(seconds * SECOND)
        return self.tell(LeaseUp(lease, provider, NEED, depth, expires_us, budget, rate=36_000))

    def ended(self, granted: int = 0, heard: int = 0, declined: int = 0) -> list[Instruction]:
        return self.tell(NegotiationEnded(NEED, granted, heard, declined))

    def sleep_until_woken(self) -> list[Instruction]:
        """Let time pass until the dispatcher wants to be woken."""
        wakeup_us = self.dispatcher.next_wakeup_us
        assert wakeup_us is not None
        assert wakeup_us > self.now_us, "it would be woken again and again"
        self.now_us = wakeup_us
        return self.tell(Tick())


@pytest.fixture
def desk() -> Desk:
    return Desk()


def only(kind: type[I], instructions: Iterable[Instruction]) -> list[I]:
    return [one for one in instructions if isinstance(one, kind)]


def starts(instructions: Iterable[Instruction]) -> list[tuple[int, bytes]]:
    return [(one.index, one.lease) for one in only(StartTask, instructions)]


class TestOneJob:
    def test_submit_lease_run_finish(self, desk: Desk) -> None:
        (want,) = desk.submit(2)
        assert isinstance(want, WantLeases)
        assert (want.count, want.requirement, want.exclude, want.held) == (1, NEED, frozenset(), frozenset())
        assert starts(desk.lease(b"L")) == [(0, b"L"), (1, b"L")]
        desk.ended(granted=1)
        assert desk.tell(TaskDone(b"job", 1, b"L", 5)) == []
        (finished,) = desk.tell(TaskDone(b"job", 0, b"L", 5))
        assert isinstance(finished, JobFinished)

    def test_the_lease_stays_warm_for_the_next_job_and_goes_when_idle(self, desk: Desk) -> None:
        desk.submit()
        desk.lease(b"L")
        desk.ended(granted=1)
        desk.tell(TaskDone(b"job", 0, b"L", 5))
        desk.now_us += 4 * SECOND
        assert starts(desk.submit(job=b"next")) == [(0, b"L")]
        desk.tell(TaskDone(b"next", 0, b"L", 5))
        (release,) = desk.sleep_until_woken()
        assert isinstance(release, ReleaseLease)
        assert (release.lease, release.code) == (b"L", "idle")
        assert desk.now_us == START + 9 * SECOND
        assert desk.dispatcher.next_wakeup_us is None

    def test_no_more_than_depth_at_once(self, desk: Desk) -> None:
        desk.submit(10)
        desk.ended()
        assert starts(desk.lease(b"L", depth=2)) == [(0, b"L"), (1, b"L")]
        assert starts(desk.tell(TaskDone(b"job", 0, b"L", 5))) == [(2, b"L")]

    def test_a_job_without_tasks_is_finished(self, desk: Desk) -> None:
        assert [type(one) for one in desk.submit(0)] == [JobFinished]

    @pytest.mark.parametrize("tasks", [-1, 1_000_001])
    def test_a_job_of_absurd_size_is_refused(self, desk: Desk, tasks: int) -> None:
        (failed,) = desk.submit(tasks)
        assert isinstance(failed, JobFailed)
        assert failed.code == "too-many-tasks"

    def test_a_deadline_that_is_over_fails_at_once(self, desk: Desk) -> None:
        (failed,) = desk.submit(1, seconds=0)
        assert isinstance(failed, JobFailed)
        assert failed.code == "deadline"

    def test_jobs_beyond_the_limit_are_refused(self) -> None:
        desk = Desk(DispatchLimits(max_jobs=1))
        desk.submit(1, b"one")
        (failed,) = desk.submit(1, b"two")
        assert isinstance(failed, JobFailed)
        assert failed.code == "too-many-jobs"


class TestSpreading:
    def test_a_large_job_asks_for_several_leases(self, desk: Desk) -> None:
        assert [one.count for one in only(WantLeases, desk.submit(12))] == [3]
        assert [one.count for one in only(WantLeases, Desk().submit(1000))] == [8]

    def test_a_requirement_may_demand_several_providers(self, desk: Desk) -> None:
        need = Requirement(max_rate=36_000, wall_limit_us=10 * SECOND, providers=3)
        assert [one.count for one in only(WantLeases, desk.submit(1, need=need))] == [3]

    def test_the_first_lease_does_not_swallow_the_job(self, desk: Desk) -> None:
        desk.submit(12)
        assert len(starts(desk.lease(b"L1", A, depth=12))) == 4
        assert len(starts(desk.lease(b"L2", B, depth=12))) == 4
        assert len(starts(desk.lease(b"L3", C, depth=12))) == 4

    def test_what_others_would_have_taken_is_taken_when_none_comes(self, desk: Desk) -> None:
        desk.submit(12)
        desk.lease(b"L1", A, depth=12)
        assert len(starts(desk.ended(granted=1))) == 8

    def test_jobs_in_a_row_go_round_the_leases(self, desk: Desk) -> None:
        need = Requirement(max_rate=36_000, wall_limit_us=10 * SECOND, providers=3)
        desk.submit(1, b"0", need)
        for lease, peer in [(b"L1", A), (b"L2", B), (b"L3", C)]:
            desk.lease(lease, peer)
        desk.ended(granted=3)
        used = [one.lease for one in only(StartTask, desk.log)]
        desk.tell(TaskDone(b"0", 0, used[0], 5))
        for number in range(1, 7):
            ((_, lease),) = starts(desk.submit(1, b"%d" % number, need))
            used.append(lease)
            desk.tell(TaskDone(b"%d" % number, 0, lease, 5))
        assert used == [b"L1", b"L2", b"L3"] * 2 + [b"L1"]

    def test_a_short_job_does_not_wait_behind_a_long_one(self, desk: Desk) -> None:
        desk.submit(1000, b"long")
        desk.ended()
        desk.lease(b"L", depth=2)
        desk.submit(1, b"short")
        (first,) = only(StartTask, desk.tell(TaskDone(b"long", 0, b"L", 5)))
        (second,) = only(StartTask, desk.tell(TaskDone(b"long", 1, b"L", 5)))
        assert b"short" in {first.job, second.job}

    def test_jobs_of_other_requirements_do_not_share_a_lease(self, desk: Desk) -> None:
        desk.submit()
        desk.lease(b"L", depth=8)
        other = Requirement(max_rate=36_000, wall_limit_us=10 * SECOND, fresh=True)
        assert starts(desk.submit(1, b"fresh", other)) == []


class TestFailures:
    def test_a_lost_lease_requeues_at_the_front_and_supersedes_before_the_retry(self, desk: Desk) -> None:
        desk.submit(6)
        desk.lease(b"L1", A, depth=2)
        desk.ended(granted=1)
        out = desk.tell(LeaseLost(b"L1", "unreachable", "no answer to three pings"))
        assert [(one.index, one.lease) for one in only(Supersede, out)] == [(1, b"L1"), (0, b"L1")]
        again = only(StartTask, desk.lease(b"L2", B, depth=3))
        assert [(one.index, one.attempt) for one in again] == [(0, 2), (1, 2), (2, 1)]
        assert "unreachable" in again[0].cause
        for retry in again[:2]:
            superseded = next(
                i for i, one in enumerate(desk.log) if isinstance(one, Supersede) and one.index == retry.index
            )
            assert superseded < desk.log.index(retry)

    def test_a_provider_that_fails_is_put_back_for_every_job(self) -> None:
        desk = Desk(DispatchLimits(idle_us=1000 * SECOND))
        desk.submit(1)
        desk.lease(b"L1", A)
        desk.ended(granted=1)
        desk.tell(TaskFailed(b"job", 0, b"L1", "provider", "bad-output", "wrong length"))
        (want,) = only(
            WantLeases, desk.tell(JobSubmitted(b"other", 1, NEED, START + 600 * SECOND), after_s=1)
        )
        assert A in want.exclude
        assert starts(desk.tell(Tick(), after_s=28)) == []
        assert [one.job for one in only(StartTask, desk.tell(Tick(), after_s=1))] == [b"other"]

    @pytest.mark.parametrize("code", ["ended-other-mesh", "ended-taken-back", "ended-device-busy"])
    def test_a_provider_that_its_owner_took_back_is_asked_again_in_seconds_for_the_same_task(
        self, code: str
    ) -> None:
        desk = Desk()
        desk.submit(1)
        for lease, pause_s in ((b"L1", 4), (b"L2", 8)):  # a third loss, and it rests
            desk.lease(lease, A)
            desk.ended(granted=1)
            wants = only(WantLeases, desk.tell(LeaseLost(lease, code, "its owner comes first")))
            lost_us = desk.now_us
            while not wants or A in wants[-1].exclude:
                desk.ended()
                wants = only(WantLeases, desk.sleep_until_woken()) or wants
            assert lost_us + pause_s * SECOND <= desk.now_us <= lost_us + 2 * pause_s * SECOND
        assert starts(desk.lease(b"L3", A)) == [(0, b"L3")]

    def test_after_being_put_back_it_gets_other_tasks_but_not_the_one_it_failed_at(self) -> None:
        desk = Desk(DispatchLimits(idle_us=1000 * SECOND))
        desk.submit(2)
        desk.lease(b"L1", A, depth=1)
        desk.ended(granted=1)
        desk.tell(TaskFailed(b"job", 0, b"L1", "provider", "crashed", "the worker died"))
        assert starts(desk.tell(Tick(), after_s=30)) == [(1, b"L1")]

    def test_a_task_that_nobody_else_takes_goes_back_after_a_minute(self) -> None:
        desk = Desk(DispatchLimits(idle_us=1000 * SECOND))
        desk.submit(1)
        desk.lease(b"L1", A)
        desk.ended(granted=1)
        desk.tell(TaskFailed(b"job", 0, b"L1", "provider", "crashed", "the worker died"))
        while not starts(desk.sleep_until_woken()):
            desk.ended()
        assert START + 60 * SECOND <= desk.now_us < START + 80 * SECOND

    def test_a_failing_provider_is_not_picked_three_times_in_a_row(self) -> None:
        desk = Desk(DispatchLimits(idle_us=1000 * SECOND))
        desk.submit(5)
        desk.lease(b"L1", A, depth=1)
        desk.ended(granted=1)
        picked = 1
        for _ in range(200):
            if desk.dispatcher.counts().tasks_outstanding:
                start = only(StartTask, desk.log)[-1]
                desk.tell(TaskFailed(b"job", start.index, b"L1", "provider", "crashed", ""))
            picked += len(starts(desk.tell(Tick(), after_s=2)))
            if only(WantLeases, desk.log[-1:]):
                desk.ended()
        assert picked == 2
        assert A in only(WantLeases, desk.log)[-1].exclude

    def test_tasks_that_fail_together_count_as_one_failure(self) -> None:
        desk = Desk(DispatchLimits(idle_us=1000 * SECOND))
        desk.submit(3)
        desk.lease(b"L1", A, depth=4)
        desk.ended(granted=1)
        for index in range(2):
            desk.tell(TaskFailed(b"job", index, b"L1", "provider", "crashed", ""))
        desk.tell(TaskDone(b"job", 2, b"L1", 5))
        desk.submit(1, b"more")
        assert len(starts(desk.tell(Tick(), after_s=61))) == 1, "not put back for minutes"

    def test_five_failed_tries_fail_the_job_with_the_reasons(self, desk: Desk) -> None:
        out = desk.submit(1)
        for number in range(5):
            desk.lease(b"L%d" % number, PeerId(bytes([number]) * 32))
            desk.ended(granted=1)
            out = desk.tell(
                TaskFailed(b"job", 0, b"L%d" % number, "provider", f"fault-{number}", ""), after_s=1
            )
        (failed,) = only(JobFailed, out)
        assert failed.code == "too-many-attempts"
        assert "fault-0" in failed.sentence
        assert "fault-4" in failed.sentence

    def test_the_jobs_own_fault_fails_it_when_nobody_else_can_be_asked_and_stops_the_rest(
        self, desk: Desk
    ) -> None:
        desk.submit(3)
        desk.lease(b"L", A, depth=4)
        desk.ended(granted=1)
        out = desk.tell(TaskFailed(b"job", 1, b"L", "job", "compile-error", "line 3: expected ;"), after_s=1)
        assert not only(JobFailed, out)
        (want,) = only(WantLeases, out)
        assert A in want.exclude
        out = desk.tell(NegotiationEnded(NEED, 0, 1, 0, left=frozenset({A})))
        assert [one.index for one in only(CancelTask, out)] == [0, 2]
        (failed,) = only(JobFailed, out)
        assert (failed.code, failed.sentence, failed.index) == ("compile-error", "line 3: expected ;", 1)

    def test_this_agents_own_trouble_fails_the_job_at_once(self, desk: Desk) -> None:
        desk.submit(1)
        desk.lease(b"L", A)
        (failed,) = only(
            JobFailed, desk.tell(TaskFailed(b"job", 0, b"L", "requester", "requester", "the disk is full"))
        )
        assert failed.code == "requester"

    def test_a_refusal_goes_elsewhere(self, desk: Desk) -> None:
        desk.submit(1)
        desk.lease(b"L1", A)
        desk.lease(b"L2", B)
        out = desk.tell(TaskRefused(b"job", 0, b"L1", "disk-full", "no room for the blobs"))
        assert [type(one) for one in out[:2]] == [Supersede, StartTask]
        assert starts(out) == [(0, b"L2")]

    def test_a_refusal_because_the_lease_is_unknown_drops_the_lease_without_blame(self, desk: Desk) -> None:
        desk.submit(2)
        desk.lease(b"L1", A)
        desk.ended(granted=1)
        out = desk.tell(TaskRefused(b"job", 0, b"L1", "unknown-lease"))
        assert [one.lease for one in only(ReleaseLease, out)] == [b"L1"]
        assert len(only(Supersede, out)) == 2
        assert len(starts(desk.lease(b"L2", A))) == 2

    def test_a_result_accepted_while_its_lease_was_lost_counts_and_the_retry_is_stopped(
        self, desk: Desk
    ) -> None:
        """The receipt was countersigned and committed just before the connection broke."""
        desk.submit(2)
        desk.lease(b"L1", A, depth=1)
        desk.ended(granted=1)
        desk.tell(LeaseLost(b"L1", "unreachable", ""))
        desk.lease(b"L2", B, depth=2)
        out = desk.tell(TaskDone(b"job", 0, b"L1", 5))
        assert [(type(one), one.lease) for one in out if isinstance(one, Supersede | CancelTask)] == [
            (Supersede, b"L2"),
            (CancelTask, b"L2"),
        ]
        assert [type(one) for one in desk.tell(TaskDone(b"job", 1, b"L2", 5))] == [JobFinished]

    def test_the_same_before_the_retry_has_begun(self, desk: Desk) -> None:
        desk.submit(1)
        desk.lease(b"L1", A)
        desk.tell(LeaseLost(b"L1", "unreachable", ""))
        assert [type(one) for one in desk.tell(TaskDone(b"job", 0, b"L1", 5))] == [JobFinished]
        assert starts(desk.lease(b"L2", B)) == []


class TestLeases:
    def test_a_lease_near_its_end_gets_no_task_and_is_replaced(self, desk: Desk) -> None:
        desk.submit(5)
        desk.lease(b"L1", A, depth=1, seconds=60)
        desk.ended(granted=1)
        out = desk.tell(TaskDone(b"job", 0, b"L1", 5), after_s=48.5)
        assert starts(out) == []
        assert [one.code for one in only(ReleaseLease, out)] == ["expiring"]
        assert only(WantLeases, out)

    def test_a_budget_is_never_overrun_and_an_empty_one_is_replaced(self, desk: Desk) -> None:
        cost = 100  # 10 s at 36,000 an hour
        desk.submit(5)
        desk.ended()
        assert len(starts(desk.lease(b"L1", A, depth=4, budget=2 * cost))) == 2
        assert starts(desk.tell(TaskDone(b"job", 0, b"L1", cost))) == []
        out = desk.tell(TaskDone(b"job", 1, b"L1", 1), after_s=2)
        assert [one.code for one in only(ReleaseLease, out)] == ["budget"]
        assert only(WantLeases, out)

    def test_what_a_task_did_not_cost_is_there_for_others(self, desk: Desk) -> None:
        desk.submit(5)
        desk.ended()
        desk.lease(b"L1", A, depth=1, budget=101)
        assert starts(desk.tell(TaskDone(b"job", 0, b"L1", 1))) == [(1, b"L1")]

    def test_a_lease_that_can_never_serve_is_released_and_its_provider_left_out(self, desk: Desk) -> None:
        desk.submit()
        out = desk.lease(b"L1", A, seconds=5)
        assert [one.code for one in only(ReleaseLease, out)] == ["expiring"]
        desk.ended(granted=1)
        (want,) = only(WantLeases, desk.tell(Tick(), after_s=1))
        assert A in want.exclude

    def test_a_lease_with_stuck_tasks_is_given_up_after_its_expiry(self, desk: Desk) -> None:
        desk.submit()
        desk.lease(b"L1", A, seconds=60)
        desk.ended(granted=1)
        out = desk.tell(Tick(), after_s=65)
        assert [type(one) for one in out[:2]] == [Supersede, ReleaseLease]

    def test_cancelled_tasks_take_up_room_until_they_ended(self, desk: Desk) -> None:
        desk.submit(2)
        desk.ended()
        desk.lease(b"L", depth=2)
        assert len(only(CancelTask, desk.tell(JobCancelled(b"job")))) == 2
        assert starts(desk.submit(2, b"next")) == []
        assert starts(desk.tell(TaskFailed(b"job", 0, b"L", "provider", "cancelled", ""))) == [(0, b"L")]
        assert starts(desk.tell(Tick(), after_s=5)) == [(1, b"L")], (
            "nobody said that it ended: it is given up"
        )

    def test_a_lease_that_nobody_wants_any_more_is_released_when_idle(self, desk: Desk) -> None:
        desk.submit()
        desk.tell(JobCancelled(b"job"))
        desk.lease(b"L")
        desk.ended(granted=1)
        assert [one.code for one in only(ReleaseLease, desk.tell(Tick(), after_s=20))] == ["idle"]

    def test_idle_leases_of_other_jobs_make_room_when_a_negotiation_gave_too_few(self, desk: Desk) -> None:
        desk.submit()
        desk.lease(b"L")
        desk.ended(granted=1)
        desk.tell(TaskDone(b"job", 0, b"L", 5))
        other = replace(NEED, memory_bytes=1 << 30)
        (want,) = only(WantLeases, desk.submit(job=b"other", need=other))
        out = desk.tell(NegotiationEnded(want.requirement, 0, heard=1, declined=1), after_s=0.1)
        assert [(one.lease, one.code) for one in only(ReleaseLease, out)] == [(b"L", "surplus")]
        assert [one.requirement for one in only(WantLeases, desk.sleep_until_woken())] == [other]
        assert desk.now_us < START + SECOND // 2, "it asks again at once"

    def test_leases_that_work_or_are_of_the_same_kind_are_kept(self, desk: Desk) -> None:
        desk.submit(2)
        desk.lease(b"L", depth=1)
        out = desk.ended(granted=1)
        (want,) = only(WantLeases, out + desk.submit(job=b"other", need=replace(NEED, memory_bytes=1 << 30)))
        out = desk.tell(NegotiationEnded(want.requirement, 0, heard=1, declined=1))
        assert not only(ReleaseLease, out)

    def test_leases_beyond_all_use_are_released(self) -> None:
        desk = Desk(DispatchLimits(max_held=1))
        desk.submit(50)
        desk.lease(b"L1")
        assert [one.code for one in only(ReleaseLease, desk.lease(b"L2", B))] == ["surplus"]


class TestNegotiating:
    def test_it_tries_again_less_and_less_often_and_then_says_no_provider(self, desk: Desk) -> None:
        desk.submit(seconds=60)
        asked = [desk.now_us]
        while not only(JobFailed, desk.log):
            desk.ended(heard=3, declined=2)
            if only(WantLeases, desk.sleep_until_woken()):
                asked.append(desk.now_us)
        gaps = [(after - before) / SECOND for before, after in pairwise(asked)]
        assert gaps == [0.5, 1, 2, 4, 8, 15, 15]
        (failed,) = only(JobFailed, desk.log)
        assert failed.code == "no-provider"
        assert "60 s" in failed.sentence
        assert "3 heard, of which 2 were asked" in failed.sentence

    def test_when_everybody_refuses_for_good_the_job_ends_early(self, desk: Desk) -> None:
        desk.submit(seconds=600)
        submitted_us = desk.now_us
        while not only(JobFailed, desk.log):
            desk.tell(NegotiationEnded(NEED, 0, 2, 1, hopeless=True))
            if not only(JobFailed, desk.log):
                desk.sleep_until_woken()
        assert desk.now_us - submitted_us == 15 * SECOND
        (failed,) = only(JobFailed, desk.log)
        assert failed.code == "no-provider"
        assert "time does not change" in failed.sentence
        assert desk.dispatcher.counts().jobs == 0

    def test_one_that_may_change_its_mind_is_waited_for(self, desk: Desk) -> None:
        desk.submit(seconds=600)
        for hopeless in (True, True, True, True, True, False):
            desk.tell(NegotiationEnded(NEED, 0, 2, 1, hopeless=hopeless))
            desk.sleep_until_woken()
        assert desk.now_us - START >= 15 * SECOND
        assert not only(JobFailed, desk.log)

    def test_a_job_that_had_a_lease_is_not_given_up_early(self, desk: Desk) -> None:
        desk.submit(seconds=600)
        desk.lease(b"L")
        desk.tell(TaskRefused(b"job", 0, b"L", "unknown-lease"))
        desk.tell(NegotiationEnded(NEED, 1, 1, 0))
        desk.now_us += 60 * SECOND
        desk.tell(NegotiationEnded(NEED, 0, 1, 1, hopeless=True))
        assert not only(JobFailed, desk.log)

    def test_a_new_provider_is_asked_soon(self, desk: Desk) -> None:
        desk.submit()
        for _ in range(6):
            desk.ended()
            desk.sleep_until_woken()
        desk.ended()
        assert only(WantLeases, desk.tell(ProvidersChanged())) == []
        assert only(WantLeases, desk.tell(ProvidersChanged(), after_s=1))

    def test_one_negotiation_at_a_time(self, desk: Desk) -> None:
        assert only(WantLeases, desk.submit(8))
        assert only(WantLeases, desk.submit(8, b"more")) == []

    def test_a_negotiation_that_never_ends_is_given_up(self, desk: Desk) -> None:
        desk.submit()
        assert only(WantLeases, desk.sleep_until_woken()) == []
        assert desk.now_us == START + 20 * SECOND
        assert only(WantLeases, desk.sleep_until_woken())

    def test_a_deadline_with_a_lease_held_is_not_called_no_provider(self, desk: Desk) -> None:
        desk.submit(2, seconds=30)
        desk.lease(b"L", depth=1)
        desk.ended(granted=1)
        desk.tell(TaskDone(b"job", 0, b"L", 5))
        out = desk.tell(Tick(), after_s=30)
        assert [one.index for one in only(CancelTask, out)] == [1]
        (failed,) = only(JobFailed, out)
        assert failed.code == "deadline"
        assert "1 of 2 tasks" in failed.sentence


class TestNoise:
    """Events that come late, twice or about nothing change nothing."""

    def test_duplicates(self, desk: Desk) -> None:
        desk.submit(2)
        desk.lease(b"L", depth=1)
        desk.ended(granted=1)
        desk.tell(TaskDone(b"job", 0, b"L", 5))
        before = desk.dispatcher.counts()
        assert desk.submit(2) == []
        assert desk.lease(b"L", depth=9) == []
        assert desk.tell(TaskDone(b"job", 0, b"L", 5)) == []
        assert desk.ended(granted=1) == []
        after = desk.dispatcher.counts()
        assert after.events_ignored == before.events_ignored + 4
        assert (after.tasks_waiting, after.tasks_outstanding, after.leases) == (0, 1, 1)

    def test_a_job_or_lease_that_ended_does_not_come_back(self, desk: Desk) -> None:
        desk.submit()
        desk.tell(JobCancelled(b"job"))
        assert desk.submit() == []
        desk.tell(LeaseLost(b"L", "unreachable", "heard of before it was up"))
        assert desk.lease(b"L") == []
        assert desk.dispatcher.counts().leases == 0

    def test_unknown_things(self, desk: Desk) -> None:
        assert (
            desk.tell(
                JobCancelled(b"?"),
                TaskDone(b"?", 0, b"?", 1),
                TaskRefused(b"?", -1, b"?", "busy"),
                TaskFailed(b"?", 10**9, b"?", "job", "x", "y"),
                LeaseLost(b"?", "x", "y"),
                NegotiationEnded(NEED, 1, 1, 1),
            )
            == []
        )
        assert desk.dispatcher.counts().events_ignored == 6

    def test_a_clock_that_goes_backwards_stands_still(self, desk: Desk) -> None:
        desk.submit(seconds=60)
        desk.tell(Tick(), after_s=-3600)
        assert only(JobFailed, desk.log) == []


def test_a_hundred_thousand_waiting_tasks_are_cheap() -> None:
    """About 20 us an event here. Looking at every waiting task would take a hundred times the limit."""
    desk = Desk()
    desk.submit(100_000, seconds=10**6)
    for number in range(8):
        desk.lease(b"L%d" % number, PeerId(bytes([number]) * 32), depth=8, seconds=10**6)
    desk.ended(granted=8)
    running = [(one.index, one.lease) for one in only(StartTask, desk.log)]
    assert len(running) == 64
    begun = time.perf_counter()
    for _ in range(10_000):
        index, lease = running.pop()
        running.extend(starts(desk.dispatcher.handle(TaskDone(b"job", index, lease, 1), desk.now_us)))
    assert time.perf_counter() - begun < 5
    assert desk.dispatcher.counts().tasks_waiting == 100_000 - 10_000 - 64


class TestBudget:
    """A task of `NEED` costs at most 100 at the rate of `Desk.lease`."""

    def submit(self, desk: Desk, tasks: int, budget: int) -> list[Instruction]:
        return desk.tell(JobSubmitted(b"job", tasks, NEED, desk.now_us + 600 * SECOND, budget))

    def test_tasks_start_only_while_the_budget_covers_all_at_their_dearest(self, desk: Desk) -> None:
        self.submit(desk, 10, budget=250)
        assert len(starts(desk.lease(b"L1") + desk.lease(b"L2", B))) == 2
        assert len(starts(desk.tell(TaskDone(b"job", 0, b"L1", 10)))) == 1, (
            "it cost less, so another is covered"
        )

    def test_the_job_ends_when_its_budget_is_spent_over_several_leases(self, desk: Desk) -> None:
        self.submit(desk, 3, budget=250)
        desk.lease(b"L1")
        desk.lease(b"L2", B)
        desk.ended(granted=2)
        out = [desk.tell(TaskDone(b"job", index, lease, 100)) for index, lease in starts(desk.log)]
        (failed,) = only(JobFailed, out[-1])
        assert failed.code == "budget"
        assert "2 of 3 tasks were done for 0.0002 usd" in failed.sentence

    def test_work_that_failed_by_the_jobs_fault_counts_too(self, desk: Desk) -> None:
        self.submit(desk, 3, budget=250)
        desk.lease(b"L1")
        desk.tell(TaskFailed(b"job", 0, b"L1", "provider", "crashed", "it died", amount=100))
        assert len(starts(desk.log)) == 2, "the retry is not covered while the other runs"

    def test_an_exact_budget_is_enough(self, desk: Desk) -> None:
        self.submit(desk, 1, budget=100)
        assert len(starts(desk.lease(b"L"))) == 1
