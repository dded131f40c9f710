"""The soak of `run_mesh.py`, as long as CI has time for: two minutes of transfers over breaking connections."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("run_mesh.py")
MINUTES = float(os.environ.get("COPPERMESH_SOAK_MINUTES", "2"))


@pytest.mark.net
@pytest.mark.slow
def test_transfers_over_breaking_connections_are_right_and_leave_nothing():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--minutes", str(MINUTES), "--seed", "2"],
        capture_output=True,
        text=True,
        timeout=MINUTES * 60 + 600,
        check=False,
        # Else the allocator keeps an arena for each thread, and what it keeps grows for minutes.
        env={**os.environ, "MALLOC_ARENA_MAX": "2"},
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["faults"] == []
    assert done.returncode == 0
    assert report["counts"]["connections dropped"] >= 10 * MINUTES
    assert report["counts"]["fetched"] > 0
