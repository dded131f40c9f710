"""The simulator: what it says is the same each time, and what a mesh must do happens in it."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from coppermesh.agent.simulation import SECOND, EventHeap
from coppermesh.agent.simulation_gossip import GossipNetwork, Message
from coppermesh.agent.simulation_mesh import MeshSimulation, Scenario
from coppermesh.agent.simulation_report import lines, simulate

SMALL = Scenario(peers=60, seed=3, minutes=3.0, churn=0.2, liars=0.1, limit=16)


def run(scenario: Scenario) -> dict[str, Any]:
    return simulate(scenario, random.Random(scenario.seed))


def test_events_run_in_the_order_of_their_times_then_of_their_making() -> None:
    heap = EventHeap()
    seen: list[str] = []
    heap.after(2.0, seen.append, "late")
    heap.after(1.0, seen.append, "first")
    heap.after(1.0, seen.append, "second")
    heap.run_until(heap.now_us + SECOND)
    assert seen == ["first", "second"]
    heap.run_until(heap.now_us + SECOND)
    assert seen == ["first", "second", "late"]
    assert heap.now == 2.0


def gossip_among(count: int, refuse: int = -1) -> tuple[EventHeap, GossipNetwork, list[int]]:
    heap, got = EventHeap(), []

    def judge(receiver: int, _forwarder: int, _message: Message) -> bool:
        got.append(receiver)
        return receiver != refuse

    network = GossipNetwork(heap, random.Random(1), judge)
    for _ in range(count):
        network.add_peer()
        network.subscribe(len(network.links) - 1, "topic")
    return heap, network, got


def test_a_message_reaches_every_subscriber_once_over_many_hops() -> None:
    heap, network, got = gossip_among(20)
    for index in range(19):
        network.connect(index, index + 1)
    network.beat()
    network.publish(0, "topic", 100, None)
    heap.run_until(heap.now_us + 10 * SECOND)
    assert sorted(got) == list(range(1, 20))


def test_what_a_peer_refuses_goes_no_further() -> None:
    heap, network, got = gossip_among(20, refuse=10)
    for index in range(19):
        network.connect(index, index + 1)
    network.beat()
    network.publish(0, "topic", 100, None)
    for _ in range(5):
        heap.run_until(heap.now_us + SECOND)
        network.beat()
    assert sorted(got) == list(range(1, 11))


def test_the_same_seed_gives_the_same_bytes_in_every_process() -> None:
    command = [sys.executable, "-m", "coppermesh.agent.cli", "simulate", "--peers", "30", "--minutes", "1.5"]
    command += ["--churn", "20%/min", "--liars", "10%", "--shard-limit", "8", "--seed", "7", "--json"]
    outputs = {
        subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": salt}, capture_output=True, check=True
        ).stdout
        for salt in ("1", "2")
    }
    assert len(outputs) == 1
    assert json.loads(outputs.pop())["scenario"]["peers"] == 30


def test_another_seed_gives_another_run() -> None:
    scenario = replace(SMALL, minutes=0.5)
    assert run(scenario)["events"] != run(replace(scenario, seed=4))["events"]


def test_a_mesh_with_churn_and_liars_knows_itself_and_its_orders_find_a_match() -> None:
    facts = run(SMALL)
    assert facts["convergence_s"] is not None
    assert facts["stale"]["missing"] + facts["stale"]["outdated"] < 0.01 * facts["stale"]["of"]
    assert facts["cut_off"]["honest"] == 0
    assert facts["cut_off"]["liars"] > 0
    assert facts["orders"]["possible"] > 10
    assert facts["orders"]["matched_of_possible"] > 0.9
    assert len(lines(facts)) == 8


def test_a_topic_with_too_many_splits_and_nobody_gets_more_than_the_limit() -> None:
    facts = run(Scenario(peers=40, seed=2, minutes=5.0, limit=8))
    assert facts["shards"]["leaves"] >= 4
    assert facts["shards"]["largest"] <= 8
    assert facts["orders"]["matched_of_possible"] > 0.9


def test_forgers_are_cut_off_by_whoever_hears_them_and_nobody_else_is() -> None:
    simulation = MeshSimulation(Scenario(peers=40, seed=9, liars=0.15), random.Random(9))
    simulation.begin()
    simulation.run_for(60.0)
    liars = sum(peer.liar for peer in simulation.peers)
    assert liars
    assert simulation.honest_cut == 0
    honest = [peer for peer in simulation.peers if peer.announces and not peer.liar]
    for peer in simulation.peers:
        if not peer.liar:  # each liar got four forgeries across before it was cut off
            assert sum(n for verdict, n in peer.book.counts.items() if verdict.is_misbehaviour) <= 4 * liars
            assert all(other is peer or peer.book.get(other.peer) for other in honest)


def test_a_peer_that_vanishes_is_given_up_by_its_neighbours_after_some_seconds() -> None:
    simulation = MeshSimulation(Scenario(peers=10, seed=1, requesters=0.0), random.Random(1))
    simulation.begin()
    simulation.run_for(30.0)
    gone = simulation.peers[5]
    assert len(simulation.network.links[5]) == 9
    simulation.stop(gone, silently=True)
    simulation.run_for(1.0)
    assert len(simulation.network.links[5]) == 9
    simulation.run_for(14.0)
    assert not simulation.network.links[5]
    alive = [opened.signer for opened in simulation.peers[0].book.current(simulation.heap.now_us)]
    assert gone.peer not in alive


@pytest.mark.parametrize(
    ("option", "value"), [("--churn", "110%/min"), ("--liars", "many"), ("--minutes", "0"), ("--peers", "1")]
)
def test_a_wrong_option_is_named(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    from coppermesh.agent.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["simulate", option, value])
    assert ended.value.code == 2
    assert option in capsys.readouterr().err
