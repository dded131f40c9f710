"""Power sampled and integrated: trapezoids, gaps, and a driver that hangs or tells nothing."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from coppermesh.exec.meter import NoMeter, open_meter
from coppermesh.exec.power_meter import STALE_NS, PowerIntegral, SampledMeter

SECOND = 1_000_000_000


def test_constant_power_is_watts_times_seconds():
    power = PowerIntegral()
    for tenth in range(11):
        power.add(100_000, tenth * SECOND // 10)
    assert power.read_mj(SECOND) == 100_000


def test_a_slope_is_a_trapezoid_and_the_last_sample_lasts_until_now():
    power = PowerIntegral()
    power.add(0, 0)
    power.add(100_000, SECOND)
    assert power.read_mj(SECOND) == 50_000
    assert power.read_mj(SECOND + SECOND // 2) == 100_000


def test_a_gap_is_not_bridged_and_a_stale_sum_is_no_reading():
    power = PowerIntegral()
    assert power.read_mj(0) is None
    power.add(100_000, 0)
    assert power.read_mj(STALE_NS + 1) is None
    power.add(100_000, 10 * SECOND)
    assert power.read_mj(10 * SECOND) == 0


def test_nonsense_is_left_out():
    power = PowerIntegral()
    power.add(-5, 0)
    power.add(1 << 40, 0)
    assert power.read_mj(0) is None


@given(st.lists(st.tuples(st.integers(0, 1_000_000), st.integers(0, 3 * SECOND)), max_size=50))
def test_the_sum_never_falls_and_never_exceeds_the_peak_all_the_time(samples):
    power, now, before = PowerIntegral(), 0, 0
    for milliwatts, span in samples:
        now += span
        power.add(milliwatts, now)
        total = power.read_mj(now)
        assert before <= total <= 1_000_000 * now // SECOND + 1
        before = total


def test_the_meters_thread_samples_and_ends():
    asked, closed = threading.Event(), threading.Event()

    def read_mw():
        asked.set()
        return 50_000

    meter = SampledMeter("nvml-power", read_mw, closed.set)
    assert asked.wait(30)
    meter.close()
    assert closed.wait(30), "the thread lets go of the driver"
    assert meter.read_mj() is None


def test_a_driver_that_hangs_gives_no_reading_and_keeps_nobody():
    release = threading.Event()
    meter = SampledMeter("nvml-power", lambda: release.wait(60) and None, lambda: None)
    assert meter.read_mj() is None
    assert not meter.may_hang
    meter.close()
    release.set()


def test_a_card_that_is_gone_has_no_meter():
    assert isinstance(open_meter("nvml-power", "GPU-none"), NoMeter)
    assert isinstance(open_meter("nvml-power", None), NoMeter)
