"""The mesh of many processes, shorter: everybody knows everybody, the dead are forgotten, bad ones are cut off.

What is compared with the simulator is messages a peer and minute, as recorded in run_thirty.json; a minute of thirty
processes is too long for every run.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from coppermesh.agent.simulation_mesh import MeshSimulation, Scenario

HERE = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.net]


def test_thirty_processes_know_each_other_and_bad_ones_change_nothing() -> None:
    command = [sys.executable, str(HERE / "run_thirty.py"), "--peers", "30", "--bad", "5", "--watch", "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    facts = json.loads(done.stdout)
    # The script has waited for each of these, with deadlines that a loaded machine keeps.
    assert facts["killed"] == 10
    assert facts["view_right_share"] > 0.99


def test_the_simulator_sends_as_many_messages_as_thirty_processes_did() -> None:
    recorded = json.loads((HERE / "run_thirty.json").read_text())["runs"][0][
        "gossip_messages_a_peer_and_minute"
    ]
    simulation = MeshSimulation(
        Scenario(peers=30, seed=1, requesters=0.0, start_seconds=0.5), random.Random(1)
    )
    simulation.begin()
    simulation.run_for(30.0)
    before = sum(simulation.network.traffic.copies)
    simulation.run_for(240.0)
    after = sum(simulation.network.traffic.copies)
    simulated = (after - before) / 30 / 4
    assert 0.8 * recorded < simulated < 1.2 * recorded
