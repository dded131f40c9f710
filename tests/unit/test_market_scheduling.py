"""Many tasks over many providers: by measured speed, evened out at the end, each copy elsewhere, failures alike."""

import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

import pytest

from coppermesh.agent.dispatch import Dispatcher
from coppermesh.agent.dispatch_events import (
    CancelTask,
    CopyCounted,
    CopyFailed,
    Event,
    Instruction,
    JobFailed,
    JobFinished,
    JobSubmitted,
    LeaseUp,
    NegotiationEnded,
    ReleaseLease,
    StartTask,
    Supersede,
    TaskDone,
    TaskFailed,
    Tick,
    WantLeases,
)
from coppermesh.agent.dispatch_state import AGENT_LIMITS
from coppermesh.agent.matching import Requirement
from coppermesh.p2p.ids import PeerId

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
NEED = Requirement(max_rate=36_000, wall_limit_us=10 * SECOND)
A, B, C = (PeerId(name * 32) for name in (b"a", b"b", b"c"))
I = TypeVar("I", bound=Instruction)  # noqa: E741


class Desk:
    """A dispatcher with a clock, and all instructions it gave since the log was cleared."""

    def __init__(self) -> None:
        self.now_us = START
        self.dispatcher = Dispatcher(START)
        self.log: list[Instruction] = []

    def tell(self, *events: Event, after_s: float = 0) -> list[Instruction]:
        """The events, one after the other, `after_s` later; the instructions of all of them."""
        self.now_us += round(after_s * SECOND)
        out = [instruction for event in events for instruction in self.dispatcher.handle(event, self.now_us)]
        self.log.extend(out)
        return out

    def submit(self, tasks: int = 1, job: bytes = b"job") -> list[Instruction]:
        return self.tell(JobSubmitted(job, tasks, NEED, self.now_us + 600 * SECOND))

    def lease(self, lease: bytes, provider: PeerId = A, depth: int = 4) -> list[Instruction]:
        return self.tell(
            LeaseUp(lease, provider, NEED, depth, self.now_us + 600 * SECOND, 10**9, rate=36_000)
        )

    def ended(self, granted: int = 0) -> list[Instruction]:
        return self.tell(NegotiationEnded(NEED, granted, 0, 0))

    def sleep_until_woken(self) -> list[Instruction]:
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


def measured(desk: Desk, fast_s: float = 0.4, slow_s: float = 4.0) -> None:
    """Leases F (of A) and S (of B) that have each done a task, in so many seconds, and hold nothing."""
    desk.lease(b"F", A, depth=8)
    desk.lease(b"S", B, depth=8)
    desk.submit(2, job=b"first")
    found = {lease: index for index, lease in starts(desk.log)}
    desk.tell(TaskDone(b"first", found[b"F"], b"F", 1), after_s=fast_s)
    desk.tell(TaskDone(b"first", found[b"S"], b"S", 1), after_s=slow_s - fast_s)
    desk.log.clear()


def test_tasks_go_where_they_are_expected_to_end_first(desk: Desk) -> None:
    measured(desk)
    assert starts(desk.submit(3)) == [(0, b"F"), (1, b"F"), (2, b"F")]
    assert starts(desk.submit(3, job=b"more"))[-1][1] == b"S", "the quick one has enough to do"


def test_a_slow_provider_is_sent_few_tasks_ahead(desk: Desk) -> None:
    measured(desk)
    desk.submit(40)
    on_slow = [index for index, lease in starts(desk.log) if lease == b"S"]
    assert len(on_slow) == 2, "one that runs and one behind it"


def waiting_at_the_slow_one(desk: Desk) -> list[Instruction]:
    """F has done its five tasks and is idle; S runs task 5, and 6 waits there. What the last of F's led to."""
    measured(desk)
    desk.submit(7)
    assert starts(desk.log) == [*((index, b"F") for index in range(5)), (5, b"S"), (6, b"S")]
    for index in range(4):
        desk.tell(TaskDone(b"job", index, b"F", 1), after_s=0.1)
    return desk.tell(TaskDone(b"job", 4, b"F", 1))


def test_an_idle_lease_takes_what_waits_behind_others_and_not_what_runs(desk: Desk) -> None:
    out = waiting_at_the_slow_one(desk)
    assert [type(one) for one in out] == [Supersede, CancelTask, StartTask], "superseded before it is begun"
    assert starts(out) == [(6, b"F")]
    assert only(StartTask, out)[0].again
    assert desk.tell(TaskFailed(b"job", 6, b"S", "provider", "cancelled", "")) == []
    assert starts(desk.tell(TaskDone(b"job", 6, b"F", 1), after_s=0.1)) == [], "what runs is left alone"


def test_a_result_that_was_first_counts_though_its_task_was_moved(desk: Desk) -> None:
    waiting_at_the_slow_one(desk)
    out = desk.tell(TaskDone(b"job", 6, b"S", 1))
    assert [(one.index, one.lease) for one in only(Supersede, out)] == [(6, b"F")]
    assert [(one.index, one.lease) for one in only(CancelTask, out)] == [(6, b"F")]
    assert [type(one) for one in desk.tell(TaskDone(b"job", 5, b"S", 1))] == [JobFinished]


def stalled(desk: Desk) -> None:
    """Tasks 0 to 3 are done, task 4 runs at B and does not end, A is idle."""
    measured(desk, slow_s=0.4)
    desk.submit(5)
    running = dict(starts(desk.log))
    assert sorted(running) == [0, 1, 2, 3, 4]
    last = next(index for index, lease in reversed(running.items()) if lease == b"S")
    assert last in (3, 4)
    desk.stalled = last  # type: ignore[attr-defined]
    for index, lease in running.items():
        if index != last:
            desk.tell(TaskDone(b"job", index, lease, 1), after_s=0.4)
    desk.log.clear()


def test_a_straggler_gets_a_second_copy_and_the_first_result_counts(desk: Desk) -> None:
    stalled(desk)
    while not desk.log:
        desk.sleep_until_woken()
    (start,) = only(StartTask, desk.log)
    assert (start.index, start.lease) == (desk.stalled, b"F")  # type: ignore[attr-defined]
    assert start.again
    assert "second copy" in start.cause
    out = desk.tell(TaskDone(b"job", start.index, b"F", 1), after_s=1)
    assert [type(one) for one in out] == [Supersede, CancelTask, JobFinished]
    assert (out[0].lease, out[1].lease) == (b"S", b"S")  # type: ignore[union-attr]


def test_where_one_copy_fails_the_other_goes_on(desk: Desk) -> None:
    stalled(desk)
    while not desk.log:
        desk.sleep_until_woken()
    index: int = desk.stalled  # type: ignore[attr-defined]
    out = desk.tell(TaskFailed(b"job", index, b"S", "provider", "crashed", ""))
    assert [type(one) for one in out] == [Supersede]
    assert [type(one) for one in desk.tell(TaskDone(b"job", index, b"F", 1))] == [JobFinished]


def test_each_copy_of_a_task_is_at_another_provider(desk: Desk) -> None:
    (want,) = desk.tell(JobSubmitted(b"job", 6, NEED, desk.now_us + 600 * SECOND, copies=2))
    assert isinstance(want, WantLeases)
    assert want.count == 2, "two providers for two copies"
    assert starts(desk.lease(b"L", A, depth=2)) == [(0, b"L"), (1, b"L")], "not the copy of what it has"
    assert starts(desk.lease(b"M", B, depth=9)) == [(3, b"M"), (4, b"M"), (2, b"M")]
    desk.ended(granted=2)
    assert starts(desk.tell(TaskDone(b"job", 0, b"L", 1))) == [(5, b"L")]
    for index, lease in [(3, b"M"), (4, b"M"), (2, b"M"), (5, b"L")]:
        desk.tell(TaskDone(b"job", index, lease, 1))
    assert [type(one) for one in desk.tell(TaskDone(b"job", 1, b"L", 1))] == [JobFinished]


def test_one_provider_never_gets_both_copies(desk: Desk) -> None:
    desk.tell(JobSubmitted(b"job", 2, NEED, desk.now_us + 600 * SECOND, copies=2))
    desk.lease(b"L", A)
    desk.lease(b"M", A)
    assert starts(desk.log) == [(0, b"L")]
    wants = only(WantLeases, desk.ended(granted=2))
    while not wants:
        wants = only(WantLeases, desk.sleep_until_woken())
    assert A in wants[0].exclude


def test_no_lease_is_asked_for_that_could_not_be_used_and_the_end_says_who_lacks() -> None:
    desk = Desk()
    desk.tell(JobSubmitted(b"job", 12, NEED, desk.now_us + 100 * SECOND, copies=2))
    desk.lease(b"L", A, depth=9)
    alone = NegotiationEnded(NEED, 1, 1, 0, left=frozenset({A}))
    desk.tell(alone)
    for index in range(6):
        desk.tell(TaskDone(b"job", index, b"L", 1))
    before = len(desk.log)
    while not only(JobFailed, desk.log):
        if only(WantLeases, desk.sleep_until_woken()):
            desk.tell(replace(alone, granted=0))
    assert [one.code for one in only(ReleaseLease, desk.log)] == ["idle"]
    wants = only(WantLeases, desk.log[before:])
    assert wants
    assert all(A in want.exclude for want in wants), "also after its lease has gone"
    assert only(JobFailed, desk.log)[0].sentence.endswith("; redundancy 2 needs 2 providers, 1 heard")


def test_a_provider_that_failed_its_copy_is_asked_again() -> None:
    desk = Desk()
    desk.tell(JobSubmitted(b"job", 2, NEED, desk.now_us + 600 * SECOND, copies=2))
    desk.lease(b"L", A)
    desk.ended(granted=1)
    desk.tell(TaskFailed(b"job", 0, b"L", "provider", "crashed", ""))
    wants: list[WantLeases] = []
    while not any(A not in want.exclude for want in wants):
        wants = only(WantLeases, desk.sleep_until_woken())
        if wants:
            desk.ended()


def test_a_task_that_fails_alike_at_three_providers_fails_its_job(desk: Desk) -> None:
    out = desk.submit()
    for lease, provider in [(b"L", A), (b"M", B), (b"N", C)]:
        out = desk.lease(lease, provider)
        assert starts(out) == [(0, lease)]
        out = desk.tell(TaskFailed(b"job", 0, lease, "provider", "internal-error", "matmul: no such thing"))
    (failed,) = only(JobFailed, out)
    assert failed.code == "failed-alike"
    assert failed.sentence.count("internal-error at ") == 3
    assert "matmul: no such thing" in failed.sentence


def test_failures_of_the_line_are_not_alike(desk: Desk) -> None:
    out = desk.submit()
    for lease, provider in [(b"L", A), (b"M", B), (b"N", C)]:
        desk.lease(lease, provider)
        out = desk.tell(TaskFailed(b"job", 0, lease, "provider", "unreachable", ""))
    assert not only(JobFailed, out)


def test_where_nobody_else_is_left_two_that_failed_alike_are_enough(desk: Desk) -> None:
    desk.submit()
    for lease, provider in [(b"L", A), (b"M", B)]:
        desk.lease(lease, provider)
        desk.tell(TaskFailed(b"job", 0, lease, "provider", "internal-error", "no"))
    more = NegotiationEnded(NEED, 0, 3, 0, left=frozenset({A, B, C}))
    assert not only(JobFailed, desk.tell(more)), "C might"
    desk.sleep_until_woken()
    (failed,) = only(JobFailed, desk.tell(NegotiationEnded(NEED, 0, 2, 0, left=frozenset({A, B}))))
    assert failed.code == "failed-alike"
    assert "2 different providers" in failed.sentence


def test_of_the_next_tasks_one_whose_blobs_are_there_comes_first() -> None:
    desk = Desk()
    desk.dispatcher = Dispatcher(desk.now_us, near=lambda job, index, peer: (index == 3) == (peer == B))
    desk.submit(5)
    assert starts(desk.lease(b"L", B, depth=1)) == [(3, b"L")]
    desk.ended(granted=1)
    assert starts(desk.tell(TaskDone(b"job", 3, b"L", 1))) == [(0, b"L")]


def test_a_hundred_thousand_tasks_are_a_few_bytes_each() -> None:
    tracemalloc.start()
    try:
        dispatcher = Dispatcher(0)
        before = tracemalloc.get_traced_memory()[0]
        dispatcher.handle(JobSubmitted(b"job", 100_000, NEED, 10**12), 0)
        for number in range(4):
            peer = PeerId(bytes([number]) * 32)
            dispatcher.handle(LeaseUp(b"lease%d" % number, peer, NEED, 8, 10**13, 10**12, 36_000), 0)
        waiting = tracemalloc.get_traced_memory()[0] - before
        assert dispatcher.counts().tasks_waiting == 100_000 - 32
        now_us, running = 0, [(index, b"lease%d" % (index % 4)) for index in range(32)]
        done = 0
        while running and done < 3_000:
            now_us += 100
            index, lease = running.pop(0)
            out = dispatcher.handle(TaskDone(b"job", index, lease, 0), now_us)
            running += starts(out)
            done += 1
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert done == 3_000
    assert waiting < 250_000, f"{waiting} bytes for 100,000 tasks that wait"
    assert peak < 400_000, f"{peak} bytes at the most after 3,000 of them"


def test_a_tick_too_many_changes_nothing(desk: Desk) -> None:
    measured(desk)
    desk.submit(4)
    assert desk.tell(Tick()) == []


def test_one_provider_cannot_end_a_job_by_claiming_that_its_task_is_at_fault(desk: Desk) -> None:
    desk.submit()
    desk.lease(b"L", A)
    assert not only(JobFailed, desk.tell(TaskFailed(b"job", 0, b"L", "job", "kernel-compile", "line 1")))
    assert starts(desk.lease(b"M", B)) == [(0, b"M")]
    out = desk.tell(TaskDone(b"job", 0, b"M", 1))
    assert only(JobFinished, out)
    desk.submit(job=b"next")
    desk.tell(TaskDone(b"next", 0, b"M", 1))
    assert not [start for start in only(StartTask, desk.log) if (start.job, start.lease) == (b"next", b"L")]


def test_two_providers_that_claim_the_same_are_believed_and_both_are_quoted(desk: Desk) -> None:
    desk.submit()
    desk.lease(b"L", A)
    desk.lease(b"M", B)
    desk.tell(TaskFailed(b"job", 0, b"L", "job", "kernel-compile", "line 1: expected ;"))
    (failed,) = only(JobFailed, desk.tell(TaskFailed(b"job", 0, b"M", "job", "crashed", "it died")))
    assert failed.code == "crashed"
    assert failed.sentence.startswith("it died; ")
    assert failed.sentence.endswith("said kernel-compile")


def test_a_claim_that_nobody_can_confirm_in_time_is_believed(desk: Desk) -> None:
    desk.submit()
    desk.lease(b"L", A)
    desk.tell(TaskFailed(b"job", 0, b"L", "job", "kernel-compile", "line 1: expected ;"))
    began_us = desk.now_us
    while not only(JobFailed, desk.log):
        for want in only(WantLeases, desk.sleep_until_woken()):
            desk.tell(NegotiationEnded(want.requirement, 0, 2, 1, left=frozenset({A, B})))
    assert 29 * SECOND < desk.now_us - began_us < 31 * SECOND
    assert only(JobFailed, desk.log)[0].sentence == "line 1: expected ;"


def test_while_others_are_busy_with_long_tasks_a_liar_does_not_end_the_job(desk: Desk) -> None:
    desk.lease(b"M", B, depth=1)
    desk.submit(job=b"long")
    assert starts(desk.log)[-1] == (0, b"M")
    desk.submit(job=b"job")
    desk.lease(b"L", A)
    desk.ended(granted=1)
    assert (0, b"L") in starts(desk.log)
    desk.tell(TaskFailed(b"job", 0, b"L", "job", "kernel-compile", "line 1"))
    began_us = desk.now_us
    while desk.now_us < began_us + 70 * SECOND and not only(JobFailed, desk.log):
        for want in only(WantLeases, desk.sleep_until_woken()):
            desk.tell(NegotiationEnded(want.requirement, 0, 2, 2, left=frozenset({A, B})))
    assert not only(JobFailed, desk.log)
    desk.tell(TaskDone(b"long", 0, b"M", 1))
    desk.tell(TaskDone(b"job", 0, b"M", 1))
    assert {finished.job for finished in only(JobFinished, desk.log)} == {b"long", b"job"}


def test_with_copies_one_word_alone_never_ends_a_job(desk: Desk) -> None:
    desk.tell(JobSubmitted(b"job", 3, NEED, desk.now_us + 600 * SECOND, copies=3))
    for lease, provider in [(b"L", A), (b"M", B), (b"N", C)]:
        desk.lease(lease, provider)
    owner = {lease: index for index, lease in starts(desk.log)}
    desk.tell(TaskFailed(b"job", owner[b"L"], b"L", "job", "crashed", "it died"))
    desk.tell(TaskDone(b"job", owner[b"M"], b"M", 1))
    desk.tell(TaskDone(b"job", owner[b"N"], b"N", 1))
    assert not only(JobFailed, desk.log)
    while not only(CopyFailed, desk.log):
        for want in only(WantLeases, desk.sleep_until_woken()):
            desk.tell(NegotiationEnded(want.requirement, 0, 3, 0, left=frozenset({A, B, C})))
    (counted,) = only(CopyFailed, desk.log)
    assert (counted.index, counted.provider, counted.code) == (owner[b"L"], A, "crashed")
    assert only(JobFinished, desk.tell(CopyCounted(b"job", counted.index)))


def test_a_fault_of_the_runtime_at_the_only_provider_ends_the_job_early(desk: Desk) -> None:
    desk.submit()
    desk.lease(b"L", A)
    desk.ended(granted=1)
    desk.tell(TaskFailed(b"job", 0, b"L", "provider", "internal-error", "KeyError: 3"))
    while not only(JobFailed, desk.log):
        for want in only(WantLeases, desk.sleep_until_woken()):
            desk.tell(NegotiationEnded(want.requirement, 0, 1, 0, left=frozenset({A})))
    assert desk.now_us - START < 2 * SECOND
    assert "KeyError: 3" in only(JobFailed, desk.log)[0].sentence


def test_each_long_task_that_waits_is_worth_a_lease_once_the_first_have_run_long() -> None:
    desk = Desk()
    (want,) = only(WantLeases, desk.submit(12))
    assert want.count == 3, "nothing is known of the tasks yet"
    for number in range(3):
        desk.lease(b"L%d" % number, PeerId(bytes([number]) * 32), depth=2)
    desk.ended(granted=3)
    wants: list[WantLeases] = []
    while not wants:
        wants = only(WantLeases, desk.sleep_until_woken())
    assert desk.now_us - START <= SECOND, "as soon as they have run half a second"
    assert wants[0].count == 12 - 3
    for number in range(3, 12):
        desk.lease(b"L%d" % number, PeerId(bytes([number]) * 32), depth=2)
    desk.ended(granted=9)
    busy = [lease for lease in desk.dispatcher._board.leases.values() if lease.outstanding]
    assert len(busy) == 12, "those that waited behind others were moved"


def test_short_tasks_keep_to_eight_leases(desk: Desk) -> None:
    measured(desk, fast_s=0.05, slow_s=0.1)
    wanted = 2
    for _ in range(4):
        for want in only(WantLeases, [*desk.submit(200, job=bytes([wanted])), *desk.tell(Tick(), after_s=1)]):
            wanted += want.count
            desk.ended()
    assert wanted > 2
    assert max(want.count for want in only(WantLeases, desk.log)) <= 8


def test_a_lease_with_a_full_queue_is_not_useless(desk: Desk) -> None:
    measured(desk)
    desk.submit(40)
    (want,) = only(WantLeases, desk.tell(Tick(), after_s=1)) or only(WantLeases, desk.log)
    assert {A, B} & want.exclude == set()
    assert want.cause.endswith(" 2 of 40 leases held") or "2 of" in want.cause


def failing(desk: Desk, lease: bytes, provider: PeerId) -> int:
    """A lease comes up, whatever it is given fails; how many tasks that were."""
    given = only(StartTask, desk.lease(lease, provider, depth=8))
    for one in given:
        desk.tell(TaskFailed(one.job, one.index, lease, "provider", "no-result", ""))
    return len(given)


def taken_by_a_bad_one(left: frozenset[PeerId], seconds: int, last_resort: int = 10**9) -> list[int]:
    """A new job every minute, A fails at whatever it gets and nobody else gives a lease; what it got each time."""
    desk = Desk()
    desk.dispatcher = Dispatcher(START, replace(AGENT_LIMITS, last_resort=last_resort))
    taken: list[int] = []
    minute = 0
    while desk.now_us < START + seconds * SECOND:
        out: list[Instruction] = []
        if desk.now_us >= START + 60 * minute * SECOND:
            out += desk.tell(JobSubmitted(b"job%d" % minute, 50, NEED, desk.now_us + 7200 * SECOND))
            minute += 1
        out += desk.sleep_until_woken()
        for want in only(WantLeases, out):
            if A not in want.exclude:
                taken.append(failing(desk, b"L%d" % len(taken), A))
            desk.tell(NegotiationEnded(NEED, 0, len(left), 0, left=left))
    return taken


def test_a_bad_one_takes_three_tasks_in_an_hour_where_others_are_there() -> None:
    assert taken_by_a_bad_one(frozenset({A, B}), 3590) == [2, 1]
    assert taken_by_a_bad_one(frozenset({A, B}), 1200, last_resort=20) == [2, 1, 1], "they never give a lease"


def test_the_only_provider_gets_another_try() -> None:
    assert taken_by_a_bad_one(frozenset({A}), 1200) == [2, 1, 1], "8 minutes after the second"
