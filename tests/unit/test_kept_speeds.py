"""Measured speeds outlive the agent, and a damaged file costs only them."""

import json
import logging
from pathlib import Path

import pytest
import trio
import trio.testing

from coppermesh.agent.kept_speeds import keep_speeds, load_speeds
from coppermesh.agent.speeds import MAX_KEPT, OwnSpeeds
from coppermesh.p2p.ids import PeerId

A, B = PeerId(b"a" * 32), PeerId(b"b" * 32)
P, Q = b"p" * 32, b"q" * 32


def measured() -> OwnSpeeds:
    speeds = OwnSpeeds()
    for _ in range(3):
        speeds.note(A, P, 5e6, 1000)
        speeds.note(B, Q, 2e6, 1000)
    return speeds


async def test_what_was_measured_is_there_after_a_restart(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    speeds = measured()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_speeds, speeds, tmp_path / "speeds")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    found = load_speeds(tmp_path / "speeds")
    assert (found.speed(A, {P}), found.speed(B, {Q}), found.speed(A, {Q})) == (5000, 2000, 0)
    assert found.task_us(None, {P}) == 1000
    assert (tmp_path / "speeds").stat().st_mode & 0o777 == 0o600
    assert not found.changed


def test_the_least_recently_used_are_forgotten_first_after_a_restart_too(tmp_path: Path) -> None:
    speeds = measured()
    found = OwnSpeeds()
    found.restore(json.loads(json.dumps(speeds.rows())))
    for number in range(MAX_KEPT - 1):
        found.note(A, number.to_bytes(32, "big"), 1.0, 1)
    assert found.speed(A, {P}) == 0
    assert found.speed(B, {Q}) == 2000


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[[[[[[",
        "{}",
        "[1]",
        json.dumps([["00", "00", 1, 1.0, 1]]),
        json.dumps([[A.hex(), P.hex(), -1, 1.0, 1]]),
        json.dumps([[A.hex(), P.hex(), True, 1.0, 1]]),
        f'[["{A.hex()}", "{P.hex()}", 1, Infinity, 1]]',
        "[" * 100_000,
        "[" + ",".join(["1"] * (MAX_KEPT + 1)) + "]",
    ],
)
def test_a_damaged_file_is_said_and_measured_anew(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "speeds"
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        speeds = load_speeds(path)
    assert speeds.rows() == []
    assert "measured anew" in caplog.text


def test_no_file_is_no_trouble(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_speeds(tmp_path / "none").rows() == []
    assert not caplog.records
