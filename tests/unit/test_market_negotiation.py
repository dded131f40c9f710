"""The two conversations: the tables themselves, one machine alone, and two machines over a connection that breaks."""

from collections import deque
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.agent.negotiation import (
    EITHER,
    LEASE_TABLE,
    MAX_HISTORY,
    MAX_MOVES,
    TASK_TABLE,
    Conversation,
    LeaseState,
    Move,
    Negotiation,
    Role,
    Table,
    TaskRun,
    TaskState,
    draw,
)
from coppermesh.agent.policy import DECLINE_CODES
from coppermesh.p2p.errors import LocalProtocolError, RemoteProtocolError

TABLES: list[Table[Any]] = [LEASE_TABLE, TASK_TABLE]
NOW = 1_700_000_000_000_000
R, P = Role.REQUESTER, Role.PROVIDER
SILENT = {Move.EXPIRE, Move.BREACH}
"""Moves that are no message."""


def states(table: Table[Any]) -> list[Any]:
    return list(LeaseState if table is LEASE_TABLE else TaskState)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
class TestTables:
    def test_every_state_has_a_row(self, table: Table[Any]) -> None:
        assert set(table.transitions) == set(states(table))

    def test_every_state_can_be_reached(self, table: Table[Any]) -> None:
        reached = {table.start}
        front = [table.start]
        while front:
            for _, target in table.transitions[front.pop()].values():
                if target not in reached:
                    reached.add(target)
                    front.append(target)
        assert reached == set(states(table))

    def test_every_state_that_is_not_final_has_a_deadline_and_can_expire_for_both(
        self, table: Table[Any]
    ) -> None:
        for state in states(table):
            if table.is_terminal(state):
                assert state not in table.deadlines
                continue
            assert table.deadlines[state] > 0
            who, target = table.transitions[state][Move.EXPIRE]
            assert who == EITHER
            assert table.is_terminal(target)

    def test_a_breach_ends_every_state_that_is_not_final(self, table: Table[Any]) -> None:
        for state, moves in table.transitions.items():
            if not table.is_terminal(state):
                assert moves[Move.BREACH] == (EITHER, table.broken)

    def test_final_states_are_final(self, table: Table[Any]) -> None:
        final = {state for state, moves in table.transitions.items() if not moves}
        assert table.broken in final
        assert table.start not in final
        assert {state for state in states(table) if state not in table.deadlines} == final

    def test_nothing_may_still_cross_a_broken_conversation(self, table: Table[Any]) -> None:
        assert table.broken not in table.crossings

    def test_a_move_that_crosses_is_not_also_a_transition_for_the_same_side(self, table: Table[Any]) -> None:
        for state, moves in table.crossings.items():
            for move, who in moves.items():
                listed, _ = table.transitions[state].get(move, (frozenset(), state))
                assert not (listed & who), f"{state} {move}"

    def test_every_move_is_made_by_the_same_side_everywhere(self, table: Table[Any]) -> None:
        """Only a cancel may come from either side of a lease, and what is no message from both."""
        makers: dict[Move, set[Role]] = {}
        for moves in table.transitions.values():
            for move, (who, _) in moves.items():
                makers.setdefault(move, set()).update(who)
        for crossings in table.crossings.values():
            for move, who in crossings.items():
                assert who <= makers[move], f"{move} crosses from a side that cannot make it"
        both = {move for move, who in makers.items() if len(who) == 2}
        assert both == SILENT | ({Move.CANCEL} if table is LEASE_TABLE else set())

    def test_the_document_shows_the_table_as_it_is(self, table: Table[Any]) -> None:
        text = Path(__file__).parents[2].joinpath("agent", "MARKET.md").read_text()
        assert draw(table) in text, (
            f"agent/MARKET.md is stale; its block for the {table.name} must be:\n{draw(table)}"
        )


def test_every_move_is_used_by_a_table() -> None:
    used = {move for table in TABLES for moves in table.transitions.values() for move in moves}
    assert used == set(Move)


def test_the_document_lists_every_decline_code() -> None:
    text = Path(__file__).parents[2].joinpath("agent", "MARKET.md").read_text()
    for code, meaning in DECLINE_CODES.items():
        assert f"| `{code}` | {meaning} |" in text


class TestNegotiation:
    def test_a_lease_from_order_to_end(self) -> None:
        talk = Negotiation(P, NOW)
        for move, by, state in [
            (Move.ORDER, R, LeaseState.ORDERED),
            (Move.BID, P, LeaseState.BID),
            (Move.LEASE_OFFER, R, LeaseState.OFFERED),
            (Move.LEASE_ACCEPT, P, LeaseState.LEASED),
            (Move.CANCEL, R, LeaseState.ENDED),
        ]:
            assert not talk.is_terminal
            assert talk.step(move, by, NOW, "test") is state
        assert talk.is_terminal
        assert talk.deadline_us is None
        assert [(step.move, step.by, step.state) for step in talk.history][1] == (Move.BID, P, LeaseState.BID)

    def test_my_illegal_move_is_my_bug_and_changes_nothing(self) -> None:
        talk = Negotiation(R, NOW)
        with pytest.raises(LocalProtocolError, match="requester may not lease-offer while idle"):
            talk.step(Move.LEASE_OFFER, R, NOW, "test")
        assert talk.state is LeaseState.IDLE
        assert not talk.history

    def test_their_illegal_move_breaks_the_conversation(self) -> None:
        talk = Negotiation(R, NOW)
        talk.step(Move.ORDER, R, NOW, "test")
        with pytest.raises(RemoteProtocolError, match="provider may not lease-accept while ordered"):
            talk.step(Move.LEASE_ACCEPT, P, NOW, "unasked")
        assert talk.state is LeaseState.BROKEN
        assert talk.history[-1].move is Move.BREACH
        assert "unasked" in talk.history[-1].cause

    def test_a_move_of_the_other_role_is_judged_by_whose_it_is(self) -> None:
        """The same wrong move: a bug where I make it, a breach where they do."""
        mine, theirs = Negotiation(R, NOW), Negotiation(P, NOW)
        with pytest.raises(LocalProtocolError):
            mine.step(Move.BID, R, NOW, "test")
        with pytest.raises(RemoteProtocolError):
            theirs.step(Move.BID, R, NOW, "test")

    def test_after_the_end_their_illegal_move_changes_nothing(self) -> None:
        talk = Negotiation(R, NOW)
        talk.step(Move.ORDER, R, NOW, "test")
        talk.step(Move.DECLINE, P, NOW, "test")
        with pytest.raises(RemoteProtocolError):
            talk.step(Move.LEASE_ACCEPT, P, NOW, "test")
        assert talk.state is LeaseState.DECLINED

    def test_a_bid_that_crosses_an_abandonment_has_no_effect(self) -> None:
        talk = Negotiation(R, NOW)
        talk.step(Move.ORDER, R, NOW, "test")
        talk.step(Move.ABANDON, R, NOW, "awarded elsewhere")
        assert talk.step(Move.BID, P, NOW, "late") is LeaseState.ABANDONED

    def test_a_deadline_is_the_sooner_of_table_and_record(self) -> None:
        talk = Negotiation(P, NOW)
        longest = LEASE_TABLE.deadlines[LeaseState.ORDERED]
        talk.step(Move.ORDER, R, NOW, "test", until_us=NOW + 10 * longest)
        assert talk.deadline_us == NOW + longest
        talk.step(Move.BID, P, NOW, "test", until_us=NOW + 7)
        assert talk.deadline_us == NOW + 7
        assert not talk.expired(NOW + 6)
        assert talk.expired(NOW + 7)

    def test_nothing_expires_early_or_by_the_others_word(self) -> None:
        talk = Negotiation(P, NOW)
        talk.step(Move.ORDER, R, NOW, "test", until_us=NOW + 5)
        with pytest.raises(LocalProtocolError, match="not expired"):
            talk.step(Move.EXPIRE, P, NOW + 4, "too early")
        with pytest.raises(LocalProtocolError, match="not expired"):
            talk.step(Move.EXPIRE, R, NOW + 5, "not mine")
        assert talk.step(Move.EXPIRE, P, NOW + 5, "due") is LeaseState.EXPIRED

    def test_a_breach_found_elsewhere_ends_the_lease(self) -> None:
        talk = _leased(R)
        assert talk.step(Move.BREACH, P, NOW, "forged receipt") is LeaseState.BROKEN

    def test_a_peer_that_repeats_itself_is_stopped_and_history_stays_short(self) -> None:
        talk = _leased(P)
        with pytest.raises(RemoteProtocolError, match=f"more than {MAX_MOVES} moves"):  # noqa: PT012
            for _ in range(MAX_MOVES + 1):
                talk.step(Move.LEASE_OFFER, R, NOW, "again")
        assert talk.state is LeaseState.BROKEN
        assert len(talk.history) <= MAX_HISTORY


class TestTaskRun:
    def test_a_task_with_missing_blobs_is_offered_twice(self) -> None:
        run = TaskRun(R, NOW)
        for move, by in [
            (Move.OFFER, R),
            (Move.NEED, P),
            (Move.OFFER, R),
            (Move.ACCEPT, P),
            (Move.RESULT, P),
        ]:
            run.step(move, by, NOW, "test")
        assert run.state is TaskState.DELIVERED
        assert run.step(Move.COUNTERSIGN, R, NOW, "accepted") is TaskState.SETTLED

    def test_a_result_sent_again_after_settling_is_no_breach(self) -> None:
        """The countersignature was lost with its connection: the same one is given again."""
        run = _settled(R)
        assert run.step(Move.RESULT, P, NOW, "again") is TaskState.SETTLED
        assert run.step(Move.COUNTERSIGN, R, NOW, "the same bytes") is TaskState.SETTLED

    def test_a_cancelled_task_whose_receipt_was_committed_is_still_delivered(self) -> None:
        run = TaskRun(R, NOW)
        after = run.state
        for move, by in [(Move.OFFER, R), (Move.ACCEPT, P), (Move.CANCEL, R), (Move.RESULT, P)]:
            after = run.step(move, by, NOW, "test")
        assert after is TaskState.DELIVERED
        assert run.step(Move.COUNTERSIGN, R, NOW, "disputed: superseded") is TaskState.SETTLED

    def test_a_result_before_the_offer_is_a_breach(self) -> None:
        run = TaskRun(R, NOW)
        with pytest.raises(RemoteProtocolError):
            run.step(Move.RESULT, P, NOW, "unasked")
        assert run.state is TaskState.BROKEN

    def test_the_requester_cannot_countersign_twice_before_a_result(self) -> None:
        run = TaskRun(P, NOW)
        run.step(Move.OFFER, R, NOW, "test")
        with pytest.raises(RemoteProtocolError):
            run.step(Move.COUNTERSIGN, R, NOW, "test")


moves = st.tuples(st.sampled_from(Move), st.sampled_from(Role), st.integers(0, 10**8))


@given(me=st.sampled_from(Role), table=st.sampled_from(TABLES), steps=st.lists(moves, max_size=80))
def test_any_sequence_of_moves_is_taken_or_refused_and_final_states_hold(
    me: Role, table: Table[Any], steps: list[tuple[Move, Role, int]]
) -> None:
    machine = Conversation(table, me, NOW)
    now_us = NOW
    for move, by, later_us in steps:
        now_us += later_us
        before, was_terminal = machine.state, machine.is_terminal
        try:
            after = machine.step(move, by, now_us, "any")
        except LocalProtocolError:
            assert machine.state is before
        except RemoteProtocolError:
            assert by is not me
            assert machine.state is (before if was_terminal else table.broken)
        else:
            assert after is machine.state
        if was_terminal:
            assert machine.state is before
        assert (machine.deadline_us is None) == machine.is_terminal
        assert len(machine.history) <= MAX_HISTORY


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_honest_sides_never_take_each_others_moves_for_a_breach(table: Table[Any]) -> None:
    """Every interleaving of two honest machines over a connection that is ordered but may break at any moment.

    Each side may make any move of its own that the table allows, send its last message again after a break, and let a
    state expire at any time (clocks differ). The search is exhaustive: up to three messages under way each way.
    """
    start: _World = (table.start, table.start, (), (), None, None)
    seen: set[_World] = {start}
    front: deque[_World] = deque([start])
    while front:
        world = front.popleft()
        for following in _successors(table, world):
            if following not in seen:
                seen.add(following)
                front.append(following)
    assert len(seen) > 50


_World = tuple[Any, Any, tuple[Move, ...], tuple[Move, ...], Move | None, Move | None]
"""(requester's state, provider's state, messages to the provider, to the requester, last sent by each)."""
MAX_UNDER_WAY = 3


def _successors(table: Table[Any], world: _World) -> list[_World]:
    found = []
    requester, provider, to_provider, to_requester, said, answered = world
    for move, (who, target) in table.transitions[requester].items():
        if move is Move.EXPIRE:
            found.append((target, provider, to_provider, to_requester, said, answered))
        elif R in who and move not in SILENT and len(to_provider) < MAX_UNDER_WAY:
            found.append((target, provider, (*to_provider, move), to_requester, move, answered))
    for move, (who, target) in table.transitions[provider].items():
        if move is Move.EXPIRE:
            found.append((requester, target, to_provider, to_requester, said, answered))
        elif P in who and move not in SILENT and len(to_requester) < MAX_UNDER_WAY:
            found.append((requester, target, to_provider, (*to_requester, move), said, move))
    if to_provider:
        state = _deliver(table, P, provider, R, to_provider[0])
        found.append((requester, state, to_provider[1:], to_requester, said, answered))
    if to_requester:
        state = _deliver(table, R, requester, P, to_requester[0])
        found.append((state, provider, to_provider, to_requester[1:], said, answered))
    # The connection breaks: what was under way is lost, and each side may say its last word again.
    words: list[tuple[Move, ...]] = [()] if said is None else [(), (said,)]
    answers: list[tuple[Move, ...]] = [()] if answered is None else [(), (answered,)]
    found.extend(
        (requester, provider, again, answer, said, answered) for again in words for answer in answers
    )
    return found


def _deliver(table: Table[Any], me: Role, state: Any, by: Role, move: Move) -> Any:
    machine = Conversation(table, me, NOW)
    machine._state = state
    return machine.step(move, by, NOW, f"{me.value} hears {move.value}")


def _leased(me: Role) -> Negotiation:
    talk = Negotiation(me, NOW)
    for move, by in [(Move.ORDER, R), (Move.BID, P), (Move.LEASE_OFFER, R), (Move.LEASE_ACCEPT, P)]:
        talk.step(move, by, NOW, "test")
    return talk


def _settled(me: Role) -> TaskRun:
    run = TaskRun(me, NOW)
    for move, by in [(Move.OFFER, R), (Move.ACCEPT, P), (Move.RESULT, P), (Move.COUNTERSIGN, R)]:
        run.step(move, by, NOW, "test")
    return run
