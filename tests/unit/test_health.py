"""When to ping, and when a peer is dead."""

from hypothesis import given
from hypothesis import strategies as st

from coppermesh.p2p.health import MAX_MISSED, PING_SECONDS, PONG_SECONDS, Liveness, Step


def drive(liveness: Liveness, until: float, step: float = 0.25) -> list[tuple[float, Step]]:
    """What `poll` says on a clock that ticks, without the waits."""
    ticks = [number * step for number in range(int(until / step) + 1)]
    said = [(now, liveness.poll(now)) for now in ticks]
    return [(now, what) for now, what in said if what is not Step.WAIT]


def test_a_silent_peer_gets_three_pings_and_is_dead_within_15_seconds() -> None:
    said = drive(Liveness(0.0), 13.5)
    assert said == [(3.5, Step.PING), (7.0, Step.PING), (10.5, Step.PING), (13.5, Step.DEAD)]


def test_anything_heard_starts_anew() -> None:
    liveness = Liveness(0.0)
    drive(liveness, 11.0)
    assert liveness.unanswered == MAX_MISSED
    liveness.heard(13.4)
    assert liveness.unanswered == 0
    assert liveness.poll(13.5) is Step.WAIT
    assert liveness.next_poll() == 13.4 + PING_SECONDS


def test_dead_is_final() -> None:
    liveness = Liveness(0.0)
    drive(liveness, 19.0)
    liveness.heard(19.1)
    assert liveness.poll(19.2) is Step.DEAD


def test_a_process_that_was_itself_stopped_asks_again_before_it_gives_up() -> None:
    liveness = Liveness(0.0)
    assert liveness.poll(600.0) is Step.PING
    assert liveness.poll(600.1) is Step.WAIT
    assert liveness.next_poll() == 600.0 + PING_SECONDS


@given(st.lists(st.tuples(st.floats(0.0, 30.0), st.booleans()), max_size=50))
def test_nobody_is_dead_before_three_pings_and_a_wait(steps: list[tuple[float, bool]]) -> None:
    liveness, now, pings, last_event = Liveness(0.0), 0.0, 0, 0.0
    for pause, heard in steps:
        now += pause
        if heard:
            liveness.heard(now)
            pings, last_event = 0, now
            continue
        what = liveness.poll(now)
        if what is Step.PING:
            pings, last_event = pings + 1, now
            assert pings <= MAX_MISSED
        elif what is Step.DEAD:
            assert pings == MAX_MISSED
            assert now - last_event >= PONG_SECONDS
            return
