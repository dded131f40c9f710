"""A bounded memory forgets the oldest first and never holds more than its limit."""

from hypothesis import given
from hypothesis import strategies as st

from coppermesh.p2p.recent import RecentMap, RecentSet


@given(st.lists(st.integers(0, 20)), st.integers(1, 8))
def test_a_recent_set_knows_the_last_keys_that_were_new(keys: list[int], limit: int) -> None:
    recent: RecentSet[int] = RecentSet(limit)
    model: list[int] = []
    for key in keys:
        assert recent.add(key) is (key not in model)
        if key not in model:
            model = [*model, key][-limit:]
        assert len(recent) == len(model)


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans())), st.integers(1, 8))
def test_a_recent_map_gives_the_newest_value_of_the_last_keys(
    puts: list[tuple[int, bool]], limit: int
) -> None:
    recent: RecentMap[int, bool] = RecentMap(limit)
    model: dict[int, bool] = {}
    for key, value in puts:
        recent.put(key, value)
        if key not in model and len(model) == limit:
            del model[next(iter(model))]
        model[key] = value
        assert [recent.get(each) for each in range(21)] == [model.get(each) for each in range(21)]
        assert len(recent) == len(model)
