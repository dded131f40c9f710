"""A clock that is wrong by a day, on one side: both sides notice and name it, and no job dies of it without a word."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.agent.job_handle import JobFailed

xp = cm.xp

pytestmark = pytest.mark.processes

SKEWED = Path(__file__).with_name("skewed_agent.py")
DAY = 86_400


def doctor(home: Path) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "coppermesh.agent.cli",
        "doctor",
        "network",
        "--json",
        "--home",
        str(home),
    ]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return [found["name"] for found in json.loads(told.stdout)["findings"]]


@pytest.mark.parametrize(
    "ahead",
    [pytest.param(DAY, id="ahead"), pytest.param(-DAY, id="behind", marks=pytest.mark.slow)],
)
def test_both_sides_name_a_clock_that_is_wrong_by_a_day(lab, ahead):
    provider = lab.start_provider("provider-1", program=(str(SKEWED), str(ahead)))
    (requester,) = lab.mesh.start(["requester"], "--requester-only")
    words = ("behind", "ahead of") if ahead > 0 else ("ahead of", "behind")
    for one, word in zip((provider, requester), words, strict=True):
        lab.wait_until(
            lambda one=one, word=word: f"s {word} ours: set both by NTP" in one.log_path.read_text(),
            "the log",
        )
        assert f"{DAY}" in one.log_path.read_text()
    for one in (provider, requester):
        assert {"clock-wrong", "peer-clock-wrong"} & set(doctor(one.home.path)), one.name
    with pytest.raises(JobFailed) as failure:
        lab.client().compute(xp.asarray(np.float32([1.0])) + 1, deadline_s=2.0)
    assert "clock" in str(failure.value)
