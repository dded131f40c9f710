"""Where agents of a large mesh announce, whoever counts how many."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.shards import (
    DWELL_SECONDS,
    LIMIT,
    Place,
    ShardPlan,
    count_in,
    depth_of,
    home_path,
    is_signpost,
    path_to,
    reader_topics,
)


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32, "big"))


def places(count: int, depth: int, kind: str = "cuda", first: int = 1) -> list[Place]:
    return [
        Place(peer(number), kind, home_path(peer(number), kind, depth))
        for number in range(first, first + count)
    ]


def test_a_place_is_reached_bit_by_bit() -> None:
    leaf = home_path(peer(7), "cpu", 4)
    assert path_to(leaf) == [home_path(peer(7), "cpu", depth) for depth in range(5)]
    assert [depth_of(path) for path in path_to(leaf)] == [0, 1, 2, 3, 4]
    assert path_to("") == [""]


def test_a_mesh_up_to_the_limit_stays_in_one_topic() -> None:
    plan = ShardPlan(peer(0))
    assert not plan.settle("cuda", places(LIMIT - 1, 0), 0.0)
    assert plan.publishes(0.0) == [""]
    assert plan.settle("cuda", places(LIMIT, 0), 0.0)
    assert plan.leaf == "cuda"


def test_around_the_limit_nothing_flaps() -> None:
    plan, now, moves = ShardPlan(peer(0)), 0.0, 0
    rng = random.Random(1)
    for _ in range(200):
        now += DWELL_SECONDS
        count = LIMIT + rng.randrange(-40, 41)
        moves += plan.settle("cuda", places(count, depth_of(plan.leaf)), now)
    assert moves == 2  # to its class, and as all are of that class, to one half of it


def test_a_change_is_not_taken_back_at_once() -> None:
    plan = ShardPlan(peer(0))
    assert plan.settle("cuda", places(300, 0), 100.0)
    few = places(20, 1)
    assert not plan.settle("cuda", few, 100.0 + DWELL_SECONDS - 1)
    assert plan.settle("cuda", few, 100.0 + DWELL_SECONDS)
    assert plan.leaf == ""


def test_whoever_moved_is_heard_for_a_while_where_it_was() -> None:
    plan = ShardPlan(peer(0))
    plan.settle("cuda", places(300, 0), 100.0)
    assert "" in plan.publishes(101.0)
    assert plan.publishes(1000.0)[-1] == "cuda"
    assert plan.subscribes() == ["", "cuda"]


def test_a_newcomer_goes_where_its_class_is_and_some_liars_do_not_move_it() -> None:
    plan = ShardPlan(peer(0))
    liars = [Place(peer(10_000 + n), "cuda", "cuda/111111111111111") for n in range(20)]
    plan.settle("cuda", [*places(60, 3), *liars], 0.0)
    assert depth_of(plan.leaf) == 3


@pytest.mark.parametrize("count", [1_000, 2_000, 4_000])
def test_signposts_tell_how_many_there_are_below(count: int) -> None:
    members = places(count, 5)
    posts = [place for place in members if is_signpost(place, "cuda")]
    assert len(posts) < 100  # what the topic above carries is bounded
    assert 0.5 * count < count_in("cuda", posts, "cuda") < 2 * count


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 2))
def test_a_reader_finds_everybody_while_agents_disagree_on_the_depth(salt: int, low: int, more: int) -> None:
    """Some split, some not: whoever follows the signposts hears all of them."""
    rng = random.Random(salt)
    everybody = []
    for number in range(1, 800):
        depth = low if rng.random() < 0.5 else low + more
        everybody.append(Place(peer(number), "cuda", home_path(peer(number), "cuda", depth)))
    heard: set[Place] = set()
    for _ in range(10):
        topics = set(reader_topics(peer(0), sorted(heard, key=lambda place: place.peer), ["cuda"], leaves=64))
        heard = {
            place
            for place in everybody
            if place.leaf in topics
            or any(path in topics and is_signpost(place, path) for path in path_to(place.leaf)[:-1])
        }
    assert len(heard) == len(everybody)


def test_a_reader_takes_no_more_leaves_than_it_wants_and_readers_spread() -> None:
    known = places(2_000, 4)
    first = [reader_topics(peer(10_000 + n), known, ["cuda"], leaves=1) for n in range(200)]
    assert all(len(topics) == 5 for topics in first)
    ends = {topics[-1] for topics in first}
    assert len(ends) == 8
    assert len(reader_topics(peer(0), known, ["cuda", "cpu"], leaves=2)) <= 9
