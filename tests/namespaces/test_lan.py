"""Agents on one network with no configuration at all, as real processes in namespaces."""

import time
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.slow]


def wait_until(condition: Callable[[], Any], what: str, seconds: float) -> float:
    """How long it took until `condition` held."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)
    return time.monotonic() - start


def test_agents_on_a_local_network_find_each_other_with_no_configuration(net):
    lan = net.switch("lan")
    agents = [
        net.start(name, net.machine(name, lan, f"10.1.0.{number}/24", "10.1.0.1"))
        for number, name in enumerate(("a", "b", "c"), 11)
    ]
    net.await_ready(*agents)
    wait_until(lambda: all(len(agent.peers()) == 2 for agent in agents), "all find all", 60)
    rows = [peer for agent in agents for peer in agent.peers().values()]
    found = {row["found"] for row in rows}
    assert "mdns" in found
    assert found <= {"mdns", "called", "announced"}
    assert {row["path"] for row in rows} == {"direct"}


def test_an_agent_that_changes_its_address_is_found_again(net):
    lan = net.switch("lan")
    spaces = [
        net.machine(name, lan, f"10.1.0.{number}/24", "10.1.0.1") for number, name in ((11, "a"), (12, "b"))
    ]
    agents = [net.start(name, space) for name, space in zip("ab", spaces, strict=True)]
    net.await_ready(*agents)
    still, mover = agents
    wait_until(
        lambda: mover.peer in still.peers() and still.peer in mover.peers(), "both find each other", 60
    )
    net.inside(spaces[1], "ip", "address", "del", "10.1.0.12/24", "dev", "eth0")
    net.inside(spaces[1], "ip", "address", "add", "10.1.0.77/24", "dev", "eth0")

    def is_found() -> bool:
        row = still.peers().get(mover.peer)
        return row is not None and "/10.1.0.77/" in row["reached_at"] and row["latency_ms"] is not None

    net.record("found after a changed address", wait_until(is_found, "the mover is found again", 15))
