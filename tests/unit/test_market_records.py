"""What a provider may lose: three tasks in an hour, then it rests; who does many may lose some."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.agent.dispatch_records import DONE_FOR_ONE, MAX_LOST, SPAN_US, Records
from coppermesh.p2p.ids import PeerId

A, B = PeerId(b"a" * 32), PeerId(b"b" * 32)
MINUTE = 60_000_000


@pytest.fixture
def records() -> Records:
    return Records()


def test_each_loss_leaves_room_for_one_less_and_the_third_sends_to_rest(records: Records) -> None:
    assert records.allowance(A, 0) is None, "nothing is known against it"
    allowed = []
    for number in range(MAX_LOST):
        records.note_lost(A, number * MINUTE)
        allowed.append(records.allowance(A, number * MINUTE))
    assert allowed == [2, 1, 0]
    assert records.rests(A, 3 * MINUTE)
    assert records.resting(3 * MINUTE) == {A}
    assert not records.rests(B, 3 * MINUTE)


def test_it_rests_until_the_first_of_the_three_is_an_hour_old(records: Records) -> None:
    for number in range(MAX_LOST):
        records.note_lost(A, number * MINUTE)
    assert records.rests(A, SPAN_US - 1)
    assert not records.rests(A, SPAN_US)
    assert records.allowance(A, SPAN_US) == 1
    assert records.resting(SPAN_US) == set()
    assert records.allowance(A, SPAN_US + 3 * MINUTE) is None


def test_whoever_did_many_may_lose_some_and_not_without_end(records: Records) -> None:
    for _ in range(3 * DONE_FOR_ONE):
        records.note_done(A)
    for _ in range(3):
        records.note_lost(A, 0)
    assert records.allowance(A, 0) is None, "it was started anew in the middle of thousands"
    for _ in range(100_000):
        records.note_done(A)
    for _ in range(30):
        records.note_lost(A, 0)
    assert records.rests(A, 0)


def test_where_nobody_else_is_left_it_gets_one_more_try(records: Records) -> None:
    for _ in range(MAX_LOST):
        records.note_lost(A, 0)
    records.pardon(1)
    assert (records.rests(A, 1), records.allowance(A, 1)) == (False, 1)
    records.note_lost(A, 2)
    assert records.rests(A, 2)


@given(st.lists(st.tuples(st.integers(0, 30 * MINUTE), st.booleans()), max_size=60))
def test_with_tasks_as_allowed_no_provider_that_does_none_takes_a_fourth(
    steps: list[tuple[int, bool]],
) -> None:
    """Begin as many as it may have, lose one or all, whenever: never more than three in any hour."""
    records, now_us, lost = Records(), 0, []
    running = 0
    for pause_us, whole in steps:
        now_us += pause_us
        allowed = records.allowance(A, now_us)
        running = max(running, 2 if allowed is None else allowed)  # what a new lease has at once
        for _ in range(running if whole else min(running, 1)):
            running -= 1
            records.note_lost(A, now_us)
            lost.append(now_us)
    for first_us in lost:
        assert sum(first_us <= at_us < first_us + SPAN_US for at_us in lost) <= MAX_LOST
