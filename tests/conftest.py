"""What every test may use: `async def` tests under trio, a virtual clock, a private home.

An `async def test_*` runs in its own `trio.run` with a deadline of `REAL_SECONDS`. A test that requests the fixture
`autojump_clock` runs in virtual time: when every task sleeps the clock jumps to the next deadline, so hours pass in
milliseconds, and a deadlock jumps straight to the deadline and fails at once. Use it for pure-trio code only: a real
socket or thread in flight looks like idleness to the clock. Fixtures are sync functions; an async resource is opened
with `async with` in the test itself. `@given` on an `async def` works too, one `trio.run` per example.
"""

import inspect
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import coppermesh

REAL_SECONDS = 60.0
"""Deadline of an async test on the real clock."""
VIRTUAL_SECONDS = 7 * 86_400.0
"""Deadline of an async test in virtual time: long, since simulated hours cost nothing."""
HANGS_SECONDS = 600
"""After so long any test fails, alone, where pytest-timeout is installed: the slowest takes 90 s on a quiet machine."""

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Agents that tests start, also through the client, are seen by nobody else on the network.
os.environ["COPPERMESH_LISTEN"] = "/ip4/127.0.0.1/tcp/0"

AsyncTest = Callable[..., Coroutine[Any, Any, None]]


def _run_under_trio(test: AsyncTest, arguments: dict[str, Any]) -> None:
    clock = next((value for value in arguments.values() if isinstance(value, trio.testing.MockClock)), None)
    deadline = REAL_SECONDS if clock is None else VIRTUAL_SECONDS

    async def main() -> None:
        with trio.fail_after(deadline):
            await test(**arguments)

    trio.run(main, clock=clock)


def _make_sync(test: AsyncTest) -> Callable[..., None]:
    @wraps(test)
    def run(**arguments: Any) -> None:
        _run_under_trio(test, arguments)

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """No test can hold up the others for ever."""
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(HANGS_SECONDS))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test; leave a plain one to pytest."""
    test = pyfuncitem.obj
    hypothesis_handle = getattr(test, "hypothesis", None)
    if hypothesis_handle is not None:
        # `@given` hides the async function behind a sync wrapper that calls `inner_test` once per example.
        if inspect.iscoroutinefunction(hypothesis_handle.inner_test):
            hypothesis_handle.inner_test = _make_sync(hypothesis_handle.inner_test)
        return None
    if not inspect.iscoroutinefunction(test):
        return None
    names = inspect.signature(test).parameters
    _run_under_trio(test, {name: pyfuncitem.funcargs[name] for name in names})
    return True


def pytest_report_header() -> str:
    """Say which copy is tested: the checkout or an installed wheel."""
    return f"coppermesh: {coppermesh.__file__}"


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """The command line sets variables for the script that it runs: none of them outlives its test."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """Run this async test in virtual time (see the module docstring)."""
    return trio.testing.MockClock(autojump_threshold=0)


@pytest.fixture
def tmp_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory (0700) that COPPERMESH_HOME names for this test and the processes it starts."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("COPPERMESH_HOME", str(home))
    return home
