"""A private mesh behind routers: relays, hole punching and changed addresses inside the swarm key, as real processes.

The lab's maker has a public address: its door is where the others join, and it relays. Nobody else can be reached.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.slow]
HUB = "44.1.0.1"


def wait_until(condition: Callable[[], Any], what: str, seconds: float) -> float:
    """How long it took until `condition` held."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)
    return time.monotonic() - start


class Lab:
    """The hub on the internet, `left` behind one router, `right` and `shy`, which punches no holes, behind another."""

    def __init__(self, net) -> None:
        self.net = net
        internet = net.switch("internet")
        self.spaces = {"hub": net.machine("hub", internet, f"{HUB}/16")}
        for number, names in ((1, ["left"]), (2, ["right", "shy"])):
            lan = net.switch(f"lan{number}")
            net.router(f"router{number}", internet, f"44.1.0.1{number}/16", lan, f"10.{number}.0.1/24")
            for which, name in enumerate(names, 11):
                self.spaces[name] = net.machine(name, lan, f"10.{number}.0.{which}/24", f"10.{number}.0.1")
        self.settle("hub", "serve_relay = true")
        self.command("hub", "mesh", "create", "lab", "--name", "hub")
        self.agents = {"hub": self.start("hub")}
        for name, setting in (("left", ""), ("right", ""), ("shy", "hole_punching = false")):
            self.settle(name, setting)
            invitation = self.agents["hub"].ask("mesh", "invite")["invitation"]
            self.command(name, "mesh", "join", invitation, "--name", name)
            self.agents[name] = self.start(name)

    def settle(self, name: str, setting: str) -> None:
        home = self.net.base / name
        home.mkdir(mode=0o700)
        (home / "config.toml").write_text(f'mesh = "lab"\n[network]\nmdns = false\n{setting}\n')

    def start(self, name: str):
        agent = self.net.start(name, self.spaces[name])
        self.net.await_ready(agent)
        return agent

    def command(self, name: str, *words: str) -> None:
        """A verb of the command line on that machine."""
        command = ["ip", "netns", "exec", self.spaces[name], sys.executable, "-m", "coppermesh.agent.cli"]
        done = subprocess.run(
            [*command, *words, "--home", str(self.net.base / name)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def path(self, one: str, other: str) -> str:
        row = self.agents[one].peers().get(self.agents[other].peer)
        return "none" if row is None else str(row["path"])

    def all_know_all(self) -> bool:
        names = list(self.agents)
        return all(self.path(one, other) != "none" for one in names for other in names if one != other)


def test_a_lab_behind_routers_is_relayed_punches_holes_and_follows_a_changed_address(net):
    lab = Lab(net)
    wait_until(lab.all_know_all, "all know all", 60)
    wait_until(lambda: lab.path("left", "right") == "direct", "a hole is punched inside the swarm key", 60)
    assert lab.path("left", "shy") == "relayed"
    (row,) = [peer for peer in lab.agents["left"].peers().values() if peer["path"] == "relayed"]
    assert row["relay"] == lab.agents["hub"].peer

    # What one says is heard through the relay.
    lab.agents["shy"].ask("pause")
    shy = lab.agents["shy"].peer
    wait_until(lambda: lab.agents["left"].peers()[shy]["paused"], "the news is heard", 30)

    # One machine gets another address, and is found again by all.
    space = lab.spaces["left"]
    net.inside(space, "ip", "address", "del", "10.1.0.11/24", "dev", "eth0")
    net.inside(space, "ip", "address", "add", "10.1.0.77/24", "dev", "eth0")
    net.inside(space, "ip", "route", "replace", "default", "via", "10.1.0.1")

    # What it says there reaches all, so the connections that it had are not merely thought to be there.
    left = lab.agents["left"]
    left.ask("pause")

    def is_found() -> bool:
        rows = [lab.agents[name].peers().get(left.peer) for name in ("hub", "right", "shy")]
        return all(row is not None and row["paused"] for row in rows)

    net.record("found after a changed address, private", wait_until(is_found, "it is found again", 15))

    # Whoever is revoked is cut off on every path, relayed ones too.
    lab.agents["hub"].ask("mesh", "revoke", "shy")
    net.record(
        "a relayed member cut off", wait_until(lambda: not lab.agents["shy"].peers(), "shy is cut off", 10)
    )
    wait_until(lambda: lab.path("left", "right") != "none", "the others stay", 15)
