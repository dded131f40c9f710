"""Agents as child processes on loopback: what the demo and the benchmark run on.

Each child has a home and a key of its own, and ends when this process does, however that ends: it watches its standard
input, whose other end only this process holds. Ctrl-C reaches only this process (children are in sessions of their
own), which then ends them in order.
"""

import json
import secrets
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coppermesh.agent.home import Home
from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.ids import PeerId, format_peer, mesh_id
from coppermesh.p2p.signing import PeerKey

READY_SECONDS = 60.0
END_SECONDS = 8.0
COMMAND_LINE = ("-m", "coppermesh.agent.cli")
"""What the interpreter runs for an agent."""


LISTEN = "/ip4/127.0.0.1/tcp/0"


class AgentDidNotStart(MeshError):
    """A child agent ended or stayed silent; the text ends with its own last words."""


@dataclass(frozen=True)
class LocalAgent:
    """A running child agent."""

    name: str
    home: Home
    process: subprocess.Popen[bytes]
    ready: dict[str, Any]
    """What it printed once it was ready: `peer`, `addresses`, ..."""

    @property
    def log_path(self) -> Path:
        """Its standard error."""
        return self.home.path / "agent.log"


class LocalMesh:
    """A private mesh of this machine's own, with a random name."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.name = f"local-{secrets.token_hex(4)}"
        self.agents: list[LocalAgent] = []

    def home(self, name: str) -> Home:
        """The home of the agent called `name`, made; its settings name this mesh, also for whoever looks later."""
        home = Home(self.base / name)
        home.prepare()
        if not home.config_path.exists():  # tests write settings of their own, with the mesh among them
            home.config_path.write_text(f'mesh = "{self.name}"\n')
        return home

    def peer_of(self, name: str) -> PeerId:
        """The id that the agent called `name` has or will have on this mesh."""
        return PeerKey.load_or_create(self.home(name).key_path(mesh_id(self.name))).peer

    def start(
        self, names: Sequence[str], *options: str, program: Sequence[str] = COMMAND_LINE
    ) -> list[LocalAgent]:
        """Start agents at the same time and wait until each is ready. The first one ever started is the bootstrap.

        An agent that ended is started again by its name, on the home it left. `program`: what runs in place of the
        command line, given its arguments (tests start agents that crash on purpose).
        """
        bootstrap = self.agents[0].ready["addresses"][0] if self.agents else None
        if bootstrap is None and len(names) > 1:
            first = self.start(names[:1], *options, program=program)
            return [*first, *self.start(names[1:], *options, program=program)]
        extra = ["--bootstrap", bootstrap] if bootstrap is not None else []
        agents = []
        for name in names:
            with _interrupt_later():  # a child that was started is always known to `close`
                agent = LocalAgent(name, self.home(name), self._launch(name, [*options, *extra], program), {})
                self.agents.append(agent)
                agents.append(agent)
        for agent in agents:
            agent.ready.update(_await_ready(agent))
        return agents

    def _launch(self, name: str, options: Sequence[str], program: Sequence[str]) -> subprocess.Popen[bytes]:
        home = self.home(name)
        command = [sys.executable, *program, "agent", "--home", str(home.path)]
        # Of no concern to anybody but this machine; an option given by the caller comes later and counts.
        command += ["--json", "--until-eof", "--listen", LISTEN, *options]
        with (home.path / "agent.log").open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )

    def close(self) -> None:
        """End every agent: first by closing its input, then by signals. Nothing is left when this returns."""
        with _interrupt_later():
            self._end_all()

    def _end_all(self) -> None:
        for agent in self.agents:
            for pipe in (agent.process.stdin, agent.process.stdout):
                if pipe is not None:
                    pipe.close()
        deadline = time.monotonic() + END_SECONDS
        for agent in self.agents:
            try:
                agent.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                agent.process.kill()
                agent.process.wait()
        self.agents.clear()


@contextmanager
def local_mesh(base: Path) -> Iterator[LocalMesh]:
    """A `LocalMesh` under `base` whose agents end with the block."""
    mesh = LocalMesh(base)
    try:
        yield mesh
    finally:
        mesh.close()


@contextmanager
def _interrupt_later() -> Iterator[None]:
    """Let a Ctrl-C during the block take effect at its end. Only the main thread can be interrupted at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: interrupted.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted:
        raise KeyboardInterrupt


def allow(peer: PeerId) -> tuple[str, str]:
    """The options that let `peer` run kernels on an agent."""
    return "--allow", format_peer(peer)


def _await_ready(agent: LocalAgent) -> dict[str, Any]:
    """The line that an agent prints when it is ready. Raises AgentDidNotStart."""
    stdout = agent.process.stdout
    assert stdout is not None
    deadline = time.monotonic() + READY_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        if not selector.select(max(0.0, deadline - time.monotonic())):
            raise AgentDidNotStart(
                f"{agent.name} was not ready within {READY_SECONDS:.0f} s; {_last_words(agent)}"
            )
    line = stdout.readline()
    if not line:
        code = agent.process.wait()
        raise AgentDidNotStart(f"{agent.name} ended with exit code {code}; {_last_words(agent)}")
    facts: dict[str, Any] = json.loads(line)
    return facts


def _last_words(agent: LocalAgent) -> str:
    text = agent.log_path.read_text(errors="replace")[-2000:].strip()
    return f"its log {agent.log_path} ends:\n{text}" if text else f"its log {agent.log_path} is empty"
