"""When a device's own state closes it to others, and when it opens again."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.agent.device_gate import CLEAR_US, UNKNOWN_LOOKS, DeviceGate, Judgement
from coppermesh.agent.policy import DECLINE_CODES, MAX_SENTENCE
from coppermesh.agent.sharing import Sharing
from coppermesh.exec.conditions import UNKNOWN, Conditions, DeviceProcess

SECOND = 1_000_000
GIB = 1 << 30


def program(owner: str = "other", **changes: Any) -> DeviceProcess:
    known: dict[str, Any] = {"pid": 1234, "name": "blender", "user": "x", "graphics": False}
    return DeviceProcess(owner=owner, **known | {"memory_bytes": GIB} | changes)


class Watched:
    """A gate that is fed once a second."""

    def __init__(self, device: str = "gpu0", **wishes: Any) -> None:
        self.sharing = Sharing(**wishes)
        self._gate = DeviceGate(device)
        self._now_us = 0

    def look(self, *processes: DeviceProcess, serving: bool = False, **facts: Any) -> Judgement:
        self._now_us += SECOND
        now = Conditions(processes=processes, **facts)
        return self._gate.judge(self.sharing, now, serving=serving, now_us=self._now_us)

    def codes(self, *processes: DeviceProcess, serving: bool = False, **facts: Any) -> list[str]:
        return [item.code for item in self.look(*processes, serving=serving, **facts).obstacles]


def test_the_owner_is_told_who_it_is_and_a_stranger_is_not():
    (found,) = Watched().look(program()).obstacles
    assert found.code == "device-busy"
    assert found.for_owner == "gpu0 is busy with pid 1234 (blender) of user x"
    assert not any(word in found.sentence for word in ("1234", "blender", "user x"))


@pytest.mark.parametrize(
    ("found", "counts"),
    [
        (program("ours"), False),
        (program(name="Xorg"), False),
        (program(), True),
        (program(graphics=True, memory_bytes=GIB - 1), False),
        (program(graphics=True, memory_bytes=GIB), True),
        (program(graphics=True, memory_bytes=None), False),
        (program(memory_bytes=None), True),
    ],
)
def test_which_programs_count(found, counts):
    assert bool(Watched().codes(found)) is counts
    assert Watched(busy="ignore").codes(found) == []


def test_a_card_must_have_been_free_for_a_while():
    watched = Watched()
    watched.look(program())
    free = [watched.codes() for _ in range(CLEAR_US // SECOND)]
    assert all(free[:-1])
    assert not free[-1]


def test_use_counts_only_where_it_cannot_be_ours():
    assert Watched().codes(utilisation=0.2) == []
    assert Watched().codes(utilisation=0.21) == ["device-busy"]
    assert Watched().codes(utilisation=1.0, serving=True) == []
    assert Watched().codes(program("ours"), utilisation=1.0) == []
    assert Watched(busy_utilisation=0.5).codes(utilisation=0.4) == []


def test_a_program_that_cannot_be_told_counts_when_it_stays_without_a_lease():
    """Our own worker looks like that from inside a container, and for a moment when it has ended."""
    watched = Watched()
    assert all(not watched.codes(program("unknown"), serving=True) for _ in range(3 * UNKNOWN_LOOKS))
    for _ in range(UNKNOWN_LOOKS - 1):
        assert not watched.codes(program("unknown"))
    assert watched.codes(program("unknown"), program("unknown", pid=5)) == ["device-busy"]


def test_leases_are_stopped_for_a_program_that_is_seen_twice():
    watched = Watched()
    assert watched.look(program(), serving=True).stop is None
    watched.look(serving=True)
    assert watched.look(program(), serving=True).stop is None, "it was gone in between"
    stop = watched.look(program(), serving=True).stop
    assert stop is not None
    assert stop.code == "device-busy"
    gentle = Watched(on_busy="finish")
    assert not any(gentle.look(program(), serving=True).stop for _ in range(5))


def test_temperature_opens_five_degrees_below_its_limit():
    watched = Watched(max_temperature=80)
    seen = [watched.codes(temperature_c=degrees) for degrees in (80, 84, 80, 76, 75, 78, 81)]
    assert [bool(codes) for codes in seen] == [False, True, True, True, False, False, True]
    (found,) = watched.look(temperature_c=84).obstacles
    assert found.for_owner.startswith("gpu0 is at 84 C, the owner's limit is 80 C")


def test_power_opens_at_nine_tenths_of_its_limit():
    watched = Watched(max_power=200)
    seen = [watched.codes(power_w=watts) for watts in (200.0, 200.1, 181.0, 180.0, 199.0)]
    assert [bool(codes) for codes in seen] == [False, True, True, False, False]


def test_load_is_judged_by_its_mean():
    watched = Watched("cpu", max_load=0.5)
    seen = [watched.codes(load=load) for load in (0.1, 0.9, 0.6, 0.4, 0.9, 0.0, 0.0)]
    assert [bool(codes) for codes in seen] == [False, False, True, True, True, True, False]


def test_limits_stop_leases_only_where_the_owner_says_so():
    assert Watched(max_temperature=80).look(temperature_c=90, serving=True).stop is None
    stop = Watched(max_temperature=80, on_limit="stop").look(temperature_c=90, serving=True).stop
    assert stop is not None
    assert stop.code == "too-hot"


def test_what_is_unknown_stops_a_strict_owner_only():
    wishes: dict[str, Any] = {"max_temperature": 80, "max_power": 100}
    easy, strict = DeviceGate("gpu0"), DeviceGate("gpu0")
    assert easy.judge(Sharing(**wishes), UNKNOWN, serving=False, now_us=0).obstacles == ()
    (found,) = strict.judge(Sharing(strict=True, **wishes), UNKNOWN, serving=False, now_us=0).obstacles
    assert found.code == "not-known"
    assert "programs on it, temperature, power" in found.sentence
    assert DeviceGate("cpu").judge(Sharing(strict=True), UNKNOWN, serving=False, now_us=0).obstacles == ()


def test_a_limit_that_is_taken_back_opens_at_once():
    watched = Watched(max_temperature=80)
    assert watched.codes(temperature_c=90) == ["too-hot"]
    watched.sharing = Sharing()
    assert watched.codes(temperature_c=90) == []
    watched.sharing = Sharing(max_temperature=80)
    assert watched.codes(temperature_c=78) == [], "what was above it before is forgotten"


some = st.none() | st.integers(0, 120)
looks = st.builds(
    Conditions,
    processes=st.none()
    | st.lists(
        st.builds(
            DeviceProcess,
            pid=st.integers(1, 5),
            name=st.sampled_from(["", "Xorg", "x" * 300]),
            user=st.sampled_from(["", "x"]),
            owner=st.sampled_from(["ours", "other", "unknown"]),
            graphics=st.booleans(),
            memory_bytes=st.none() | st.integers(0, 2 * GIB),
        ),
        max_size=6,
    ).map(tuple),
    utilisation=st.none() | st.floats(0, 1),
    temperature_c=some,
    power_w=some,
    load=st.none() | st.floats(0, 1),
)
wishes = st.builds(
    Sharing,
    busy=st.sampled_from(["no-bids", "ignore"]),
    on_busy=st.sampled_from(["stop", "finish"]),
    on_limit=st.sampled_from(["stop", "finish"]),
    max_temperature=st.none() | st.just(80),
    max_power=st.none() | st.just(60),
    max_load=st.none() | st.just(0.5),
    strict=st.booleans(),
)


@given(st.sampled_from(["cpu", "gpu0"]), st.lists(st.tuples(wishes, looks, st.booleans()), max_size=20))
def test_whatever_is_seen_the_gate_says_something_that_fits_the_wire(device, seen):
    gate = DeviceGate(device)
    for number, (sharing, now, serving) in enumerate(seen):
        found = gate.judge(sharing, now, serving=serving, now_us=number * SECOND)
        for obstacle in found.obstacles:
            assert obstacle.code in DECLINE_CODES
            assert len(obstacle.sentence) <= MAX_SENTENCE
        assert found.stop is None or found.stop in found.obstacles
        wants_nothing = sharing.busy == "ignore" and sharing.max_temperature is None
        if wants_nothing and sharing.max_power is None and sharing.max_load is None:
            assert not found.obstacles
