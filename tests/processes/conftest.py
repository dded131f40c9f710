"""Real agent processes for tests: started on loopback, ended with the test, and looked after for what they leave."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from coppermesh.agent.client import Mesh, connect
from coppermesh.agent.ledger_reader import LedgerReader, ReceiptRow
from coppermesh.agent.ledger_store import read_ledger
from coppermesh.agent.local_agents import COMMAND_LINE, LocalAgent, LocalMesh, allow, local_mesh
from coppermesh.agent.receipts import verify_receipt_file
from coppermesh.p2p.ids import mesh_id

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


EVERY_ROW = 100_000


class Lab:
    """A local mesh with a requester and what tests ask of it."""

    wait_until = staticmethod(wait_until)
    descendants = staticmethod(descendants)
    ask = staticmethod(ask)

    def __init__(self, mesh: LocalMesh) -> None:
        self.mesh = mesh

    def start(self, providers: int, *options: str) -> Mesh:
        """`providers` agents that run the requester's kernels, and a client of the requester that knows them all."""
        for number in range(providers):
            self.start_provider(f"provider-{number + 1}", *options)
        self.mesh.start(["requester"], "--requester-only")
        client = self.client()
        self.await_providers(client, providers)
        return client

    def start_provider(self, name: str, *options: str, program: Sequence[str] = COMMAND_LINE) -> LocalAgent:
        """An agent that runs the requester's kernels."""
        allowed = allow(self.mesh.peer_of("requester"))
        return self.mesh.start([name], *allowed, *options, program=program)[0]

    def allowing(self, name: str) -> list[str]:
        """Options for a provider that runs the kernels of the agent called `name` whatever its sandbox."""
        return list(allow(self.mesh.peer_of(name)))

    def client(self, name: str = "requester") -> Mesh:
        """A new client of that agent."""
        return connect(self.mesh.home(name).path)

    def await_providers(self, client: Mesh, count: int) -> None:
        """Wait until the requester is connected to this many announced providers."""

        def found() -> bool:
            peers: list[dict[str, Any]] = ask(client, "peers")["peers"]
            found_now = sum(bool(peer["connected"] and peer["devices"]) for peer in peers)
            return found_now >= count

        wait_until(found, f"{count} providers found")

    def await_settled(self, *providers: str) -> None:
        """Wait until none of these providers has a receipt without a countersignature."""
        for name in providers:
            self.await_settled_at(self.client(name))

    def await_settled_at(self, provider: Mesh) -> None:
        """The same, for a provider whose home is elsewhere."""

        def settled() -> bool:
            return all(row["verdict"] is not None for row in ask(provider, "receipts", limit=1000))

        wait_until(settled, "receipts countersigned")

    def stop(self) -> None:
        """End all agents in order; fails the test when one of their processes outlives them."""
        family = set().union(*(descendants(agent.process.pid) for agent in self.mesh.agents))
        self.mesh.close()
        wait_until(lambda: not [pid for pid in family if alive(pid)], "workers gone", 10.0)

    @contextmanager
    def ledger(self, name: str) -> Iterator[LedgerReader]:
        """The ledger of an agent that is not running."""
        with read_ledger(self.mesh.home(name).ledger_path(mesh_id(self.mesh.name))) as reader:
            yield reader

    def audit(self, *providers: str, requester: str = "requester") -> list[ReceiptRow]:
        """Hold both sides' ledgers to the rules, offline; returns the requester's receipts, oldest first.

        Every receipt stands countersigned in both ledgers with the same bytes and verifies by itself; both agree to
        the unit on what is owed; no task is paid twice; neither keeps evidence against the other.
        """
        with self.ledger(requester) as mine:
            rows = mine.receipts(limit=EVERY_ROW)
            files = {row.id: mine.receipt_file(row.id) for row in rows}
            owed = {balance.peer: balance.owed_by_me for balance in mine.balances()}
            assert not mine.evidence()
        theirs: set[bytes] = set()
        for name in providers:
            with self.ledger(name) as reader:
                assert not reader.evidence()
                for row in reader.receipts(limit=EVERY_ROW):
                    assert row.verdict != "open"
                    assert files[row.id] == reader.receipt_file(row.id)
                    theirs.add(row.id)
                due = sum(balance.owed_to_me for balance in reader.balances())
                assert sum(balance.pending for balance in reader.balances()) == 0
                assert owed.pop(reader.me, 0) == due
        assert not owed
        assert theirs == set(files)
        for data in files.values():
            assert verify_receipt_file(data).complete
        paid = [
            (row.job, row.index) for row in rows if row.verdict == "accepted" and row.receipt.code == "ok"
        ]
        assert len(paid) == len(set(paid))
        return rows[::-1]


def alive(pid: int) -> bool:
    """Is there such a process?"""
    return Path(f"/proc/{pid}").exists()


@pytest.fixture(scope="session")
def lab_on() -> type[Lab]:
    """Makes a lab of a mesh, for fixtures that keep one longer than a test."""
    return Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Agents on loopback; fails the test when one of their processes outlives them."""
    with local_mesh(tmp_path) as mesh:
        found = Lab(mesh)
        yield found
        found.stop()


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """`wait_until`, for tests without a lab."""
    return wait_until
