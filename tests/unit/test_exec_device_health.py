"""A device whose worker could not be killed takes no work until a probe has passed."""

import os
from types import SimpleNamespace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.exec.device_health import FIRST_PROBE_US, LONGEST_US, MOST_STUCK, SECOND, DeviceHealth
from coppermesh.exec.fitness import Fitness
from coppermesh.exec.keeper import WorkerUnavailable
from coppermesh.exec.meter import NoMeter
from coppermesh.exec.runs import WorkerLimits
from coppermesh.exec.supervisor import Supervisor


def test_a_fit_device_wants_no_probe():
    health = DeviceHealth()
    assert health.fit
    assert health.probe_in_us(10**12) is None


def test_a_process_that_does_not_end_makes_it_unfit_until_a_probe_passes():
    health = DeviceHealth()
    health.not_gone(17, 1000, 10)
    assert not health.fit
    assert "17 was killed and had not ended 10 s later" in health.reason
    assert health.probe_in_us(1000) == FIRST_PROBE_US
    assert health.probe_in_us(1000 + FIRST_PROBE_US) == 0
    health.gone(17)
    assert not health.fit, "that it ended at last is no proof"
    health.probed("", 1000 + FIRST_PROBE_US)
    assert health.fit


def test_failed_probes_come_in_growing_distances_and_say_why():
    health = DeviceHealth()
    health.not_gone(17, 0, 10)
    now, distances = 0, []
    for _ in range(7):
        wait = health.probe_in_us(now)
        distances.append(wait)
        now += wait
        health.probed("it gave a wrong answer", now)
    assert distances == [
        30 * SECOND,
        60 * SECOND,
        120 * SECOND,
        240 * SECOND,
        480 * SECOND,
        LONGEST_US,
        LONGEST_US,
    ]
    assert "wrong answer" in health.reason
    health.probed("", now)
    health.not_gone(18, now, 10)
    assert health.probe_in_us(now) == FIRST_PROBE_US, "begins anew"


def test_with_many_stuck_processes_no_probe_adds_one():
    health = DeviceHealth()
    for pid in range(MOST_STUCK):
        health.not_gone(pid, 0, 10)
    assert health.probe_in_us(10**12) is None
    health.gone(0)
    assert health.probe_in_us(10**12) == 0


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["stuck", "gone", "passed", "failed"]), st.integers(0, 5), st.integers(0, 10**9)
    ),
    max_size=40,
)


@given(EVENTS)
def test_only_a_passed_probe_makes_it_fit_again(events):
    health, now, fit = DeviceHealth(), 0, True
    for what, pid, later in events:
        now += later
        if what == "stuck":
            health.not_gone(pid, now, 10)
            fit = False
        elif what == "gone":
            health.gone(pid)
        elif not fit:
            health.probed("" if what == "passed" else "no", now)
            fit = what == "passed"
        assert health.fit == fit
        wait = health.probe_in_us(now)
        assert wait is None or 0 <= wait <= LONGEST_US


async def test_the_shell_probes_when_it_is_due_and_tells_of_both_changes(autojump_clock):
    answers, heard = ["it is still broken", ""], []

    async def probe():
        heard.append(("probed", trio.current_time() - began))
        return answers.pop(0)

    fitness = Fitness(probe, now_us=lambda: int(trio.current_time() * 1e6))
    fitness.changed = lambda: heard.append(
        ("fit" if fitness.health.fit else "unfit", trio.current_time() - began)
    )
    began = trio.current_time()
    child = SimpleNamespace(pid=7, ended=trio.Event())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fitness.run)
        fitness.not_gone(child)
        child.ended.set()
        await trio.sleep(200)
        nursery.cancel_scope.cancel()
    assert [what for what, _ in heard] == ["unfit", "probed", "probed", "fit"]
    assert [round(at) for _, at in heard] == [0, 30, 90, 90]
    assert fitness.health.stuck == 0


class Keeper:
    """Gives a child that SIGKILL does not end."""

    kind = "cpu"
    layers = ()
    zygote_pid = None

    def __init__(self):
        self.forks = 0

    async def fork(self, order, descriptors):
        self.forks += 1

        async def never(seconds=10.0):
            await trio.sleep(seconds)
            return False

        return SimpleNamespace(pid=10**7, ended=trio.Event(), kill=lambda: None, gone=never)


async def test_a_worker_that_outlives_its_kill_stops_the_device(tmp_path, autojump_clock):
    keeper = Keeper()
    supervisor = Supervisor(keeper, tmp_path, NoMeter())
    limits = WorkerLimits(1 << 20, 1 << 20)
    before = len(os.listdir("/proc/self/fd"))
    async with supervisor.worker(limits):
        assert supervisor.unfit == ""
    assert "was killed and had not ended 10 s later" in supervisor.unfit
    with pytest.raises(WorkerUnavailable, match="until a probe has passed"):
        async with supervisor.worker(limits):
            pass
    assert keeper.forks == 1
    supervisor.fitness.health.probed("", 0)
    async with supervisor.worker(limits):
        assert keeper.forks == 2
    assert len(os.listdir("/proc/self/fd")) == before
