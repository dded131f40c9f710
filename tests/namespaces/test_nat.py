"""Agents behind two routers with NAT, and one relay: real processes in namespaces."""

import time
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.slow]
RELAY = "44.1.0.1"
PARTITION_SECONDS = 60.0


def wait_until(condition: Callable[[], Any], what: str, seconds: float) -> float:
    """How long it took until `condition` held."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)
    return time.monotonic() - start


class TwoLans:
    """A relay on the internet, and agents behind each of two routers."""

    def __init__(self, net, each: int, *, random_ports: bool = False) -> None:
        self.net = net
        self.internet = net.switch("internet")
        self.relay = net.machine("seed", self.internet, f"{RELAY}/16")
        self.start_seed()
        self.routers, self.sides = [], []
        for number in (1, 2):
            lan = net.switch(f"lan{number}")
            inside = f"10.{number}.0"
            outside = f"44.1.0.1{number}/16"
            ports = {"random_ports": random_ports}
            self.routers.append(
                net.router(f"router{number}", self.internet, outside, lan, f"{inside}.1/24", **ports)
            )
            self.sides.append([self.start(lan, number, which) for which in range(1, each + 1)])
        self.agents = [agent for side in self.sides for agent in side]
        net.await_ready(*self.agents)

    def start_seed(self) -> None:
        self.seed = self.net.start("seed", self.relay, "--status-port", "0", verb="bootstrap")
        self.net.await_ready(self.seed)

    def start(self, lan: str, number: int, which: int):
        name = f"a{number}{which}"
        space = self.net.machine(name, lan, f"10.{number}.0.1{which}/24", f"10.{number}.0.1")
        return self.net.start(name, space, "--bootstrap", self.seed.ready["addresses"][0])

    def all_know_all(self) -> bool:
        everybody = {agent.peer for agent in self.agents}
        return all(set(agent.peers()) >= everybody - {agent.peer} for agent in self.agents)

    def across(self) -> set[str]:
        """The ways on which agents of the one side reach those of the other; `none` where one does not."""
        others = [agent.peer for agent in self.sides[1]]
        rows = [agent.peers() for agent in self.sides[0]]
        return {peers[other]["path"] if other in peers else "none" for peers in rows for other in others}


def test_six_agents_behind_two_nats_find_each_other_directly_and_outlive_their_seed(net):
    """One body for what builds on the same network, since building it takes half a minute."""
    lans = TwoLans(net, 3)
    wait_until(lans.all_know_all, "all know all", 60)
    wait_until(lambda: lans.across() == {"direct"}, "holes are punched", 60)
    seed = lans.seed.peer
    assert all(agent.peers()[seed]["found"] == "bootstrap" for agent in lans.agents)

    # The seed dies; what one agent says is still heard by all, and nobody loses anybody.
    net.end(lans.seed)
    wait_until(lambda: not any(seed in agent.peers() for agent in lans.agents), "the seed is gone", 30)
    assert lans.all_know_all()
    speaker = lans.agents[0]
    speaker.ask("pause")
    rest = lans.agents[1:]
    wait_until(lambda: all(it.peers()[speaker.peer]["paused"] for it in rest), "the news is heard", 30)
    assert lans.across() == {"direct"}

    # It comes back; then a partition of a minute between the two sides, and between one side and the relay.
    lans.start_seed()
    wait_until(lambda: all(seed in agent.peers() for agent in lans.agents), "the seed is found again", 30)
    router = lans.routers[0]
    net.inside(router, "ip", "link", "set", "wan", "down")
    start = time.monotonic()
    wait_until(lambda: lans.across() == {"none"}, "the partition is noticed", 30)
    time.sleep(max(0.0, start + PARTITION_SECONDS - time.monotonic()))
    net.inside(router, "ip", "link", "set", "wan", "up")
    net.record("a partition of 60 s healed", wait_until(lans.all_know_all, "the partition heals", 10))


def test_where_no_hole_can_be_punched_the_connection_stays_relayed(net):
    lans = TwoLans(net, 1, random_ports=True)
    wait_until(lans.all_know_all, "both know each other", 60)
    assert lans.across() == {"relayed"}
    (row,) = [agent.peers()[lans.sides[1][0].peer] for agent in lans.sides[0]]
    assert row["relay"] == lans.seed.peer
