"""Real agent processes for tests: started on loopback, ended with the test, and looked after for what they leave."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coppermesh.agent.client import Mesh, connect
from coppermesh.agent.local_agents import LocalMesh, allow, local_mesh

DEADLINE_SECONDS = 60.0
POLL_SECONDS = 0.02


def wait_until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    """The first true value of `condition`; fails the test where none comes in time."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {seconds:.0f} s")
        # Another process has to move on: there is nothing in this one to wait for.
        os.sched_yield()
        time.sleep(POLL_SECONDS)


def descendants(pid: int) -> set[int]:
    """Ids of all living processes below `pid`."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.add(child)
            waiting.append(child)
    return found


def ask(client: Mesh, method: str, **arguments: Any) -> Any:
    """The JSON answer of one local call."""
    with client.link() as link:
        return json.loads(link.call_json(method, json.dumps(arguments)))


class Lab:
    """A local mesh with a requester and what tests ask of it."""

    def __init__(self, mesh: LocalMesh) -> None:
        self.mesh = mesh

    def start(self, providers: int, *options: str) -> Mesh:
        """`providers` agents that run the requester's kernels, and a client of the requester that knows them all."""
        names = [f"provider-{number + 1}" for number in range(providers)]
        if names:
            self.mesh.start(names, *allow(self.mesh.peer_of("requester")), *options)
        self.mesh.start(["requester"], "--requester-only")
        client = self.client()
        self.await_providers(client, providers)
        return client

    def client(self) -> Mesh:
        """A new client of the requester's agent."""
        return connect(self.mesh.home("requester").path)

    def await_providers(self, client: Mesh, count: int) -> None:
        """Wait until the requester is connected to this many announced providers."""

        def found() -> bool:
            peers = ask(client, "peers")["peers"]
            return sum(peer["connected"] and bool(peer["devices"]) for peer in peers) >= count

        wait_until(found, f"{count} providers found")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Agents on loopback; fails the test when one of their processes outlives them."""
    with local_mesh(tmp_path) as mesh:
        yield Lab(mesh)
        family = set().union(*(descendants(agent.process.pid) for agent in mesh.agents))
    wait_until(lambda: not [pid for pid in family if Path(f"/proc/{pid}").exists()], "workers gone", 10.0)


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """`wait_until`, for tests without a lab."""
    return wait_until
