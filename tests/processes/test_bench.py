"""`coppermesh bench` gives every figure that README names. How large they are is for people to judge, not for tests."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.slow]

FIGURES = {
    "start_to_first_announcement",
    "warm_job_latency",
    "jobs_per_second",
    "array_64mib_there_and_back",
    "raw_trio_tcp_there_and_back",
    "array_to_raw_tcp",
    "receipts_verified_per_second",
}


def test_one_line_of_json_with_median_and_range_of_everything():
    command = [sys.executable, "-m", "coppermesh.agent.cli", "bench", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stderr
    (line,) = run.stdout.splitlines()
    facts = json.loads(line)
    assert facts.keys() - {"seconds"} == FIGURES
    for name in FIGURES:
        assert 0 < facts[name]["minimum"] <= facts[name]["median"] <= facts[name]["maximum"], name
