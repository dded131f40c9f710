"""The async test hook itself: it runs the body, virtual time jumps, deadlines and failures come out."""

import time
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

pytest_plugins = ["pytester"]
CONFTEST = Path(__file__).parents[1] / "conftest.py"


async def test_runs_under_trio_on_the_real_clock() -> None:
    assert 0 < trio.current_effective_deadline() - trio.current_time() <= 60


async def test_virtual_hours_take_no_time(autojump_clock: trio.testing.MockClock) -> None:
    began = time.monotonic()
    await trio.sleep(3600)
    assert autojump_clock.current_time() >= 3600
    assert time.monotonic() - began < 30


@given(st.integers())
async def test_given_runs_each_example_under_trio(number: int) -> None:
    await trio.lowlevel.checkpoint()
    assert isinstance(number, int)


def test_failures_and_deadlocks_in_async_tests_fail(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makepyfile(
        """
        import trio
        from hypothesis import given, settings, strategies as st

        async def test_wrong():
            assert False

        async def test_deadlock(autojump_clock):
            await trio.sleep_forever()

        @settings(database=None)
        @given(st.integers())
        async def test_wrong_example(number):
            assert number < 10

        async def test_right():
            await trio.lowlevel.checkpoint()
        """
    )
    result = pytester.runpytest("-p", "no:cacheprovider")
    result.assert_outcomes(failed=3, passed=1)
    result.stdout.fnmatch_lines(["*TooSlowError*"])
