"""The soak of `run_tasks.py`, as long as CI has time for: 2,000 tasks, one in ten hostile or crashing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("run_tasks.py")
SECONDS = 600
"""It takes 30 s on two idle cores."""


@pytest.mark.processes
@pytest.mark.slow
def test_two_thousand_tasks_leave_nothing_behind():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--tasks", "2000", "--seed", "2"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["faults"] == []
    assert report["tasks"] == 2000
    assert done.returncode == 0
    hostile = sum(count for name, count in report["outcomes"].items() if name != "ok")
    assert hostile > 100, "one in ten is hostile, and some of these end well"
