"""Networks made of Linux namespaces, for tests with real agents behind real NAT: nothing leaves this machine.

`internet` is a bridge with public addresses. A `Router` hangs on it and translates for a bridge of its own; a machine
hangs on either. Everything is named after this process and removed with the test. Needs root, iproute2 and nftables.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

READY_SECONDS = 60.0
END_SECONDS = 10.0


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


def why_not() -> str | None:
    """Why namespaces cannot be made here; None where they can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    if missing:
        return f"needs {' and '.join(missing)} (apt-get install iproute2 nftables)"
    name = f"cm{os.getpid()}-try"
    script = (
        f"ip netns add {name} && ip netns exec {name} nft list ruleset; s=$?; ip netns del {name}; exit $s"
    )
    tried = subprocess.run(
        [
            "sh",
            "-c",
            script,
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return None if tried.returncode == 0 else f"no network namespaces here: {tried.stderr.strip()}"


@dataclass
class Agent:
    """A process in a namespace."""

    name: str
    home: Path
    process: subprocess.Popen[bytes]
    ready: dict[str, Any]

    @property
    def peer(self) -> str:
        return str(self.ready["peer"])

    def ask(self, *verb: str) -> Any:
        """What the command line says of this home, as JSON."""
        command = [sys.executable, "-m", "coppermesh.agent.cli", *verb, "--home", str(self.home), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def peers(self) -> dict[str, dict[str, Any]]:
        """The connected peers, by id."""
        from coppermesh.agent.local_link import LocalLink

        with LocalLink(self.home / "agent.sock") as link:
            facts = json.loads(link.call_json("peers"))
        return {peer["peer"]: peer for peer in facts["peers"] if peer["connected"]}

    def log(self) -> str:
        return (self.home / "agent.log").read_text(errors="replace")


@dataclass
class Net:
    """What one test has built."""

    base: Path
    prefix: str
    spaces: list[str] = field(default_factory=list)
    agents: list[Agent] = field(default_factory=list)
    _links: int = 0

    def space(self, name: str) -> str:
        """A new namespace with its loopback up."""
        full = f"{self.prefix}-{name}"
        run("ip", "netns", "add", full)
        self.spaces.append(full)
        self.inside(full, "ip", "link", "set", "lo", "up")
        return full

    def inside(self, space: str, *command: str) -> str:
        return run("ip", "netns", "exec", space, *command)

    def switch(self, name: str) -> str:
        """A namespace that is a switch: everything plugged into it is one network."""
        space = self.space(name)
        self.inside(space, "ip", "link", "add", "br0", "type", "bridge")
        self.inside(space, "ip", "link", "set", "br0", "up")
        return space

    def plug(self, space: str, switch: str, address: str, device: str = "eth0") -> None:
        """A cable from `space` to the switch."""
        self._links += 1
        port = f"p{self._links}"
        run(
            "ip", "link", "add", device, "netns", space, "type", "veth", "peer", "name", port, "netns", switch
        )
        self.inside(switch, "ip", "link", "set", port, "master", "br0", "up")
        self.inside(space, "ip", "address", "add", address, "dev", device)
        self.inside(space, "ip", "link", "set", device, "up")

    def machine(self, name: str, switch: str, address: str, gateway: str | None = None) -> str:
        space = self.space(name)
        self.plug(space, switch, address)
        if gateway is not None:
            self.inside(space, "ip", "route", "add", "default", "via", gateway)
        return space

    def router(
        self, name: str, internet: str, outside: str, lan: str, inside: str, *, random_ports: bool = False
    ) -> str:
        """NAT as routers at home do it: what comes from outside unasked is dropped. `random_ports`: symmetric."""
        space = self.space(name)
        self.plug(space, internet, outside, "wan")
        self.plug(space, lan, inside, "lan")
        self.inside(space, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        how = "masquerade random" if random_ports else "masquerade"
        rules = f"""
            table ip nat {{
                chain post {{ type nat hook postrouting priority 100; oifname "wan" {how}; }}
            }}
            table inet filter {{
                chain forward {{
                    type filter hook forward priority 0; policy drop;
                    iifname "lan" accept
                    ct state established,related accept
                }}
                chain input {{
                    type filter hook input priority 0; policy accept;
                    iifname "wan" ct state new drop
                }}
            }}
        """
        self.inside(space, "nft", rules)
        return space

    def start(self, name: str, space: str, *options: str, verb: str = "agent") -> Agent:
        """Start an agent; `await_ready` waits for it."""
        home = self.base / name
        home.mkdir(mode=0o700, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if key != "COPPERMESH_LISTEN"}
        command = ["ip", "netns", "exec", space, sys.executable, "-m", "coppermesh.agent.cli", verb]
        command += ["--home", str(home), "--json", "--until-eof", *options]
        with (home / "agent.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
        agent = Agent(name, home, process, {})
        self.agents.append(agent)
        return agent

    def await_ready(self, *agents: Agent) -> None:
        for agent in agents:
            assert agent.process.stdout is not None
            line = agent.process.stdout.readline()
            assert line, f"{agent.name} did not start: {agent.log()}"
            agent.ready.update(json.loads(line))

    def record(self, what: str, seconds: float) -> None:
        """A figure for RESULTS.md, in pytest's output (`-rA` or `-s`)."""
        sys.stderr.write(f"\nnamespaces: {what}: {seconds:.1f} s\n")

    def end(self, agent: Agent) -> None:
        for pipe in (agent.process.stdin, agent.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            agent.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            agent.process.kill()
            agent.process.wait()
        self.agents.remove(agent)

    def close(self) -> None:
        for agent in list(self.agents):
            self.end(agent)
        for space in self.spaces:
            subprocess.run(["ip", "netns", "del", space], check=False, timeout=30)


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    """An empty internet, removed with the test."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    made = Net(tmp_path, f"cm{os.getpid()}")
    try:
        yield made
    finally:
        made.close()
