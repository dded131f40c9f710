"""The meshes that one agent serves at once: its default mesh and every private one that its home is in.

Each has a node of its own, with its own key, ledger, store and transport; they share the machine. Private meshes come
first in the order of priority, the oldest first, unless `priority` in the settings says otherwise: the open mesh gets
what they leave. Meshes are opened and closed while the agent runs.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from coppermesh.agent.config import Config
from coppermesh.agent.mesh_state import MeshState
from coppermesh.p2p.addresses import listen_address
from coppermesh.p2p.errors import MeshError, Refused
from coppermesh.p2p.ids import MeshId

if TYPE_CHECKING:
    from coppermesh.agent.node import Node

_log = logging.getLogger(__name__)

OpenNode = Callable[[Config, MeshState | None, int], "AbstractAsyncContextManager[Node]"]
"""Called with a mesh's settings, its private state, and its place in the order of priority."""


class MeshSet:
    """The nodes of an agent. `nodes` is in order of priority."""

    def __init__(self, config: Config, open_node: OpenNode, nursery: trio.Nursery) -> None:
        self._config = config
        self._open_node = open_node
        self._nursery = nursery
        self.nodes: list[Node] = []
        self.default: Node
        self.troubles: dict[MeshId, str] = {}
        """Why a mesh of this home is not served."""
        self._scopes: dict[MeshId, tuple[trio.CancelScope, trio.Event]] = {}

    def find(self, name: str) -> "Node":
        """The node of the mesh called `name`, or whose id begins so; "" is the default. Raises Refused."""
        if not name:
            return self.default
        found = [node for node in self.nodes if node.config.mesh == name]
        if not found and len(name) >= 8:
            found = [node for node in self.nodes if node.mesh.hex().startswith(name)]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(node.mesh.hex()[:8] for node in found)
            raise Refused("ambiguous-mesh", f"several meshes are called {name!r}: name one by its id ({ids})")
        raise Refused("unknown-mesh", f"this agent serves no mesh {name!r}; see `coppermesh mesh list`")

    def place_of(self, name: str, *, private: bool) -> int:
        """Where a mesh that is opened now comes in the order of priority."""
        rank = self._rank(name, private=private)
        return sum(
            self._rank(node.config.mesh, private=node.keeper is not None) <= rank for node in self.nodes
        )

    def _rank(self, name: str, *, private: bool) -> int:
        wanted = self._config.priority
        if name in wanted:
            return wanted.index(name)
        return len(wanted) + (0 if private else 1)

    def put(self, node: "Node", place: int) -> None:
        """A node is being served."""
        self.nodes.insert(place, node)

    def take_out(self, node: "Node") -> None:
        """A node is served no more."""
        self.nodes.remove(node)

    async def open_private(self, state: MeshState) -> None:
        """Serve a private mesh from now on. Raises MeshError where that cannot be, and the agent goes on."""
        if any(node.mesh == state.mesh for node in self.nodes):
            return
        started = trio.Event()
        failed: list[MeshError] = []
        self._nursery.start_soon(self._serve, state, started, failed)
        await started.wait()
        if failed:
            raise failed[0]

    async def _serve(self, state: MeshState, started: trio.Event, failed: list[MeshError]) -> None:
        over = trio.Event()
        try:
            with trio.CancelScope() as scope:
                self._scopes[state.mesh] = (scope, over)
                place = self.place_of(state.name, private=True)
                async with self._open_node(private_config(self._config, state), state, place):
                    self.troubles.pop(state.mesh, None)
                    started.set()
                    await trio.sleep_forever()
        except MeshError as error:
            failed.append(error)
            self.troubles[state.mesh] = str(error)
            _log.error("mesh %r is not served: %s", state.name, error)
        except Exception as error:  # noqa: BLE001
            # One mesh that fails must not take the others down.
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            why = str(error) or type(error).__name__
            self.troubles[state.mesh] = why
            _log.exception("mesh %r is not served any more", state.name)
            if not started.is_set():
                failed.append(MeshError(f"mesh {state.name!r} cannot be served: {why}"))
        finally:
            del self._scopes[state.mesh]
            over.set()
            started.set()

    async def close_private(self, mesh: MeshId) -> None:
        """Stop serving a private mesh. Raises Refused where it is the default one."""
        if mesh == self.default.mesh:
            raise Refused(
                "default-mesh", "it is this agent's default mesh: name another in config.toml, and restart"
            )
        found = self._scopes.get(mesh)
        if found is not None:
            found[0].cancel()
            await found[1].wait()

    async def close_all(self) -> None:
        """Stop serving every private mesh but the default one."""
        for mesh in list(self._scopes):
            await self.close_private(mesh)

    async def open_all(self, states: Sequence[MeshState]) -> None:
        """Serve every private mesh of the home; what cannot be is told in `troubles`."""
        for state in states:
            if state.mesh != self.default.mesh:
                try:
                    await self.open_private(state)
                except MeshError:
                    continue  # it is in `troubles`, and in the log


def private_config(config: Config, state: MeshState) -> Config:
    """The settings of one private mesh: those of the agent, with a place of its own."""
    listen = state.listen or _any_port(config.listen)
    return replace(config, mesh=state.name, listen=listen, bootstrap=tuple(state.addresses))


def default_config(config: Config, origins: Mapping[str, str], state: MeshState) -> Config:
    """As `private_config`, of the agent's default mesh: it listens where the agent was told to.

    The command line comes before what `mesh create` or `mesh join` were told, and that before config.toml.
    """
    told = origins.get("listen", "")
    own = private_config(config, state)
    if "bootstrap" in origins:
        # Whoever names first peers means this mesh; those that its door named are tried as well.
        own = replace(own, bootstrap=tuple(dict.fromkeys((*config.bootstrap, *own.bootstrap))))
    if told and (not state.listen or not told.startswith("line ")):
        return replace(own, listen=config.listen)
    return own


def door_listen(config: Config, state: MeshState, *, serves: bool) -> str:
    """Where the door listens; one that only goes out itself is not to be reached from elsewhere."""
    if not serves:
        return "/ip4/127.0.0.1/tcp/0"
    return state.door or _any_port(config.listen)


def _any_port(listen: str) -> str:
    kind, host, _ = listen_address(listen)
    return f"/{kind}/{host}/tcp/0"
