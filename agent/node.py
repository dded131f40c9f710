"""The composition root: an agent on its mesh, from its home's files to its open socket.

What belongs to the machine is `machine`'s; `open_mesh` adds what belongs to one mesh: key, ledger, store, transport,
the parts of requester and provider. Parts are built in the order in which they depend on each other and taken down in
reverse; nothing started here outlives its block. The parts know each other only through what is passed here.
"""

import logging
import os
import random
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import trio

from coppermesh.agent.challenger import Challenger
from coppermesh.agent.clock import now_us
from coppermesh.agent.config import Config, ConfigError, Loaded
from coppermesh.agent.config_file import ConfigFile
from coppermesh.agent.credit_desk import CreditDesk
from coppermesh.agent.home import Home
from coppermesh.agent.job_intake import JobIntake
from coppermesh.agent.jobs import JobState
from coppermesh.agent.kept_speeds import keep_speeds, load_speeds
from coppermesh.agent.last_port import keep_port, with_last_port
from coppermesh.agent.lease_broker import Knowledge, LeaseBroker
from coppermesh.agent.lease_extending import LeaseExtender
from coppermesh.agent.ledger import LeaseEnded, StoredLease
from coppermesh.agent.ledger_desk import LedgerDesk
from coppermesh.agent.ledger_store import LedgerStore, open_ledger
from coppermesh.agent.local_api import LocalApi
from coppermesh.agent.machine import Machine, Parts, open_machine
from coppermesh.agent.mesh_keeper import MeshKeeper
from coppermesh.agent.mesh_making import open_private_mesh
from coppermesh.agent.mesh_set import MeshSet, default_config, door_listen
from coppermesh.agent.mesh_state import MeshState, doubt_of, find_mesh, private_meshes
from coppermesh.agent.mesh_views import MeshViews
from coppermesh.agent.networking import mdns_interfaces
from coppermesh.agent.provider import Provider
from coppermesh.agent.reach import Reacher
from coppermesh.agent.reputation import DEFAULT_INTERVAL
from coppermesh.agent.requester import Requester
from coppermesh.agent.result_intake import ResultIntake
from coppermesh.agent.result_outbox import ResultOutbox
from coppermesh.agent.screens import counted
from coppermesh.agent.software import SOFTWARE
from coppermesh.agent.speeds import OwnSpeeds
from coppermesh.agent.story import printable
from coppermesh.agent.task_driver import KnownBlobs, TaskDriver
from coppermesh.p2p.announcements import AnnouncementBook
from coppermesh.p2p.announcer import Announcer
from coppermesh.p2p.blob_store import BlobStore, open_blob_store
from coppermesh.p2p.certificates import Right
from coppermesh.p2p.control import ChannelUp, ControlHub, Handler, open_control_hub
from coppermesh.p2p.dial_back import DialBack
from coppermesh.p2p.discovery import DialPlan, Kind, run_discovery
from coppermesh.p2p.errors import MeshError, Refused, Unreachable
from coppermesh.p2p.ids import Digest, MeshId, PeerId, mesh_id, short_peer
from coppermesh.p2p.libp2p_relay import RelayServer
from coppermesh.p2p.mdns import Mdns
from coppermesh.p2p.messages import (
    AnnouncementReply,
    AnnouncementRequest,
    CancelRequest,
    ChallengeRequest,
    DialBackRequest,
    ExtendRequest,
    LeaseRequest,
    Message,
    Nothing,
    OrderAbandoned,
    OrderRequest,
    PauseRequest,
    ResultRequest,
    ResultsRequest,
    TaskRequest,
    TasksRequest,
)
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transfer import BlobService
from coppermesh.p2p.transport import Transport

__all__ = ["Node", "Parts", "open_mesh", "open_node"]

IDLE_POLL_SECONDS = 1.0
TIDY_SECONDS = 1.0
MAX_SOUGHT_AT_ONCE = 16
"""Requesters dialled for their countersignatures: an order's own providers find room in the plan beside them."""
OWN_DEVICE = (
    "; this agent's own device does not count, for an agent does not run its own jobs: start a second one beside it "
    "(coppermesh agent --home OTHER), or run the program here with cm.run_local"
)
"""Said of an agent that offers a device to somebody who submits at the same one."""
MAX_BOOTSTRAP_SHOWN = 4
MAX_COUNTED = 10_000
"""Own receipts of earlier runs that are looked at for members' quotas, the newest."""
SKEW_WORTH_SAYING_US = 30_000_000
"""Orders are refused from 60 s on."""

TASKS_LOOKED_AT = 64
"""Of each job, for what a bidder would have to be sent."""

_log = logging.getLogger(__name__)


class Node:
    """The agent on one mesh. Made by `open_mesh`."""

    def __init__(
        self, machine: Machine, config: Config, key: PeerKey, mesh: MeshId, transport: Transport
    ) -> None:
        self.machine = machine
        self.meshes: MeshSet
        self.keeper: MeshKeeper | None = None
        """Of a private mesh."""
        self.home = machine.home
        self.config = config
        self.key = key
        self.mesh = mesh
        self.transport = transport
        self.book = AnnouncementBook(mesh)
        self.connected_since: dict[PeerId, int] = {}
        self.wrong_clocks: dict[PeerId, str] = {}
        """Of those connected: whose clock is too far from this machine's, in words."""
        self.plan = DialPlan(key.peer, random.Random())
        self.plan.out_of_reach = self._nobody_there
        self.mdns = Mdns(
            mesh,
            key.peer,
            addresses=lambda: transport.addresses,
            interfaces=lambda: mdns_interfaces(config.network.mdns, transport.addresses),
            found=self.found_nearby,
        )
        self.dial_back = DialBack(transport)
        self.reach: Reacher
        self.relay: RelayServer | None = None
        self.provider: Provider | None = None
        self.hub: ControlHub
        self.ledger: LedgerStore
        self.store: BlobStore
        self.blobs: BlobService
        self.requester: Requester
        self.speeds: OwnSpeeds
        self.intake: ResultIntake
        self.challenger: Challenger
        self.outbox: ResultOutbox
        self.credit: CreditDesk
        self.desk: LedgerDesk
        self.announcer: Announcer

    def is_idle(self) -> bool:
        """Nothing is going on that anybody waits for."""
        serving = self.provider is not None and self.provider.leases
        busy = self.requester.jobs.running() or self.requester.leases or serving or self.outbox.under_way
        return not busy

    def found_nearby(self, peer: PeerId, addresses: list[str]) -> None:
        """A member of this mesh on this local network says where it is."""
        self.plan.learn(peer, addresses, self.transport.addresses, trio.current_time(), Kind.NEARBY)

    def _nobody_there(self, peer: PeerId) -> None:
        """What is announced for it does not count until it answers or announces again: it may be gone."""
        if peer not in self.transport.connected():
            self.book.lost(peer)

    # Control requests: which part answers what

    def handlers(self) -> dict[str, Handler]:
        """What other agents may ask of this one. Orders and tasks only where it offers devices."""
        handlers: dict[str, Handler] = {
            "announcement": (AnnouncementRequest, self._on_announcement),
            "cancel": (CancelRequest, self._on_cancel),
            "pause": (PauseRequest, self._on_pause),
            "result": (ResultRequest, self._on_result),
            "results": (ResultsRequest, self._on_results),
            "dialback": (DialBackRequest, self.dial_back.answer),
            "ping": (Nothing, self._on_ping),
            **self.desk.handlers(),
        }
        if self.provider is not None:
            handlers["order"] = (OrderRequest, partial(self._ask_provider, "on_order"))
            handlers["abandon"] = (OrderAbandoned, partial(self._ask_provider, "on_abandon"))
            handlers["lease"] = (LeaseRequest, partial(self._ask_provider, "on_lease"))
            handlers["extend"] = (ExtendRequest, partial(self._ask_provider, "on_extend"))
            handlers["task"] = (TaskRequest, partial(self._ask_provider, "on_task"))
            handlers["tasks"] = (TasksRequest, partial(self._ask_provider, "on_tasks"))
            handlers["challenge"] = (ChallengeRequest, partial(self._ask_provider, "on_challenge"))
        if self.keeper is not None:
            handlers = {**self.keeper.guarded(handlers), **self.keeper.handlers()}
        return handlers

    async def _ask_provider(self, method: str, peer: PeerId, request: Message) -> Message:
        self.machine.touch()
        assert self.provider is not None
        reply: Message = await getattr(self.provider, method)(peer, request)
        return reply

    async def _on_announcement(self, peer: PeerId, request: AnnouncementRequest) -> AnnouncementReply:
        return self.announcer.reply_to(peer, request)

    async def _on_ping(self, peer: PeerId, request: Nothing) -> Nothing:
        return Nothing()

    async def _on_result(self, peer: PeerId, request: ResultRequest) -> Message:
        self.machine.touch()
        return await self.intake.handle(peer, request)

    async def _on_results(self, peer: PeerId, request: ResultsRequest) -> Message:
        self.machine.touch()
        return await self.intake.handle_all(peer, request)

    async def _on_pause(self, peer: PeerId, request: PauseRequest) -> Nothing:
        self.requester.lease_paused(peer, request)
        return Nothing()

    async def _on_cancel(self, peer: PeerId, request: CancelRequest) -> Nothing:
        self.requester.lease_cancelled(peer, request)
        if self.provider is not None:
            await self.provider.on_cancel(peer, request)
        return Nothing()

    # Background work

    async def follow_channels(self) -> None:
        """React to control channels coming and going."""
        async with trio.open_nursery() as nursery:
            async for event in self.hub.events():
                if isinstance(event, ChannelUp):
                    self.connected_since[event.peer] = now_us()
                    self._note_clock(event)
                    nursery.start_soon(self.announcer.fetch, event.peer)
                    if self.keeper is not None:
                        nursery.start_soon(self.keeper.channel_up, event.peer)
                    nursery.start_soon(self.outbox.peer_up, event.peer)
                    nursery.start_soon(self.desk.peer_up, event.peer)
                    self.requester.providers_changed()
                else:
                    self.connected_since.pop(event.peer, None)
                    self.wrong_clocks.pop(event.peer, None)
                    self.reach.left(event.peer)
                    if self.relay is not None:
                        self.relay.peer_left(event.peer)
                    self.book.lost(event.peer)
                    if self.provider is not None:
                        self.provider.peer_lost(event.peer)
                    nursery.start_soon(self.requester.peer_lost, event.peer, event.reason)

    def _note_clock(self, event: ChannelUp) -> None:
        """Name a clock that is too far off, here, in the log, and to whose jobs wait; the other side does the same."""
        ahead_s = (event.hello.time_us - now_us()) / 1e6
        self.wrong_clocks.pop(event.peer, None)
        if abs(ahead_s) * 1e6 <= SKEW_WORTH_SAYING_US:
            return
        direction = "ahead of" if ahead_s > 0 else "behind"
        said = f"the clock of {short_peer(event.peer)} is {abs(ahead_s):.0f} s {direction} ours"
        self.wrong_clocks[event.peer] = said
        _log.warning("%s: set both by NTP, or its orders and announcements will not count", said)

    def seek_requesters(self) -> None:
        """Whoever has receipts to countersign and is not connected is dialled, also where enough others are."""
        away = self.outbox.requesters().difference(self.transport.connected())
        if away:
            chosen = random.sample(sorted(away), min(len(away), MAX_SOUGHT_AT_ONCE))
            self.plan.seek(chosen, trio.current_time())

    async def tidy(self) -> None:
        """Let go of what has expired, so that neither memory nor what we announce holds on to it."""
        addresses = self.transport.addresses
        while True:
            await trio.sleep(TIDY_SECONDS)
            if self.transport.addresses != addresses:
                # Another network: who was out of reach may be in it, and who was in reach must be told.
                addresses = self.transport.addresses
                self.plan.retry_all(trio.current_time())
                self.announcer.changed()
            self.book.forget_expired(now_us())
            self.requester.tidy()
            self.outbox.tidy()
            self.seek_requesters()
            if self.provider is not None:
                self.provider.tidy()

    async def end_old_leases(self) -> list[StoredLease]:
        """Leases of an earlier run are over: their workers and connections are gone."""
        found = await self.ledger.open_leases()
        for stored in found:
            await self.ledger.commit(LeaseEnded(stored.opened.id, "restart"))
        return found


@asynccontextmanager
async def open_node(
    home: Home, settings: Config | Loaded, parts: Parts | None = None, file: ConfigFile | None = None
) -> AsyncIterator[Node]:
    """Run an agent for the length of the block. The caller holds the home's lock. `file`: read again when it changes.

    Gives the node of the default mesh. Raises IdentityError, HomeError, LedgerUnusable, and ConfigError where the
    listening address is taken.
    """
    parts = parts or Parts()
    loaded = settings if isinstance(settings, Loaded) else Loaded(settings, {})
    failure: MeshError | None = None
    async with open_machine(home, loaded, parts, file) as machine:
        async with trio.open_nursery() as nursery:
            await nursery.start(machine.owner.run)
            try:
                async with _open_meshes(machine, loaded, parts, nursery) as node:
                    yield node
            except MeshError as error:
                # Kept out of the nursery, which would wrap what a person is told in a group.
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


@asynccontextmanager
async def _open_meshes(
    machine: Machine, loaded: Loaded, parts: Parts, nursery: trio.Nursery
) -> AsyncIterator[Node]:
    """Every mesh of the home, and the local door to all of them; gives the default mesh's node."""
    config = loaded.config
    states = await trio.to_thread.run_sync(private_meshes, machine.home)
    meshes = MeshSet(config, lambda *plan: open_mesh(machine, meshes, parts, *plan), nursery)
    default = find_mesh(states, config.mesh)
    if default is not None:
        config = default_config(config, loaded.origins, default)
    elif (unsure := doubt_of(config.mesh, states)) is not None:
        _log.warning("%s", unsure)
    async with open_mesh(machine, meshes, parts, config, default, 0) as node:
        meshes.default = node
        await meshes.open_all(states)
        views = MeshViews(meshes, machine)
        api = LocalApi(machine.home.socket_path, views.door_to, os.geteuid())
        await nursery.start(api.serve)
        nursery.start_soon(_watch_idleness, machine, api, meshes)
        try:
            yield node
        finally:
            with trio.CancelScope(shield=True):
                await meshes.close_all()


async def _watch_idleness(machine: Machine, api: LocalApi, meshes: MeshSet) -> None:
    """End an agent that was started for a script and is not needed any more."""
    limit = machine.config.idle_exit_seconds
    if limit is None:
        return
    while not machine.stopping.is_set():
        await trio.sleep(IDLE_POLL_SECONDS)
        if api.open_connections or not all(node.is_idle() for node in meshes.nodes):
            machine.touch()
        elif now_us() - machine.active_us > limit * 1_000_000:
            machine.stopping.set()


@asynccontextmanager
async def open_mesh(
    machine: Machine, meshes: MeshSet, parts: Parts, config: Config, state: MeshState | None, place: int
) -> AsyncIterator[Node]:
    """Serve one mesh on this machine for the length of the block, as number `place` in the order of priority.

    `state`: of a private mesh; None: the open one that `config.mesh` names.
    """
    mesh = mesh_id(config.mesh) if state is None else state.mesh
    home = machine.home
    async with AsyncExitStack() as stack:
        keeper = await _open_keeper(home, state)
        key = PeerKey.load_or_create(home.key_path(mesh)) if keeper is None else keeper.private.key
        ledger = await stack.enter_async_context(open_ledger(home.ledger_path(mesh), mesh, key.peer))
        store = await stack.enter_async_context(
            open_blob_store(home.store_path(mesh), quota_bytes=config.store_bytes, owner=key.peer)
        )
        attach = partial(parts.transport, key, mesh)
        if keeper is not None:
            attach = partial(attach, swarm_key=keeper.private.state.swarm_key, gate=keeper.gate)
        transport = await _attach(stack, config.listen, home.port_path(mesh), attach)
        node = Node(machine, config, key, mesh, transport)
        node.meshes, node.keeper = meshes, keeper
        if keeper is not None:
            node.book = AnnouncementBook(mesh, may_announce=keeper.may_provide)
        node.ledger, node.store = ledger, store
        node.desk = LedgerDesk(key, mesh, lambda: node.hub, ledger, unit=config.unit, now_us=now_us)
        node.credit = CreditDesk(node.desk.history, now_us)
        node.outbox = ResultOutbox(lambda: node.hub, mesh, ledger, store, credit=node.credit, now_us=now_us)
        if machine.providers is not None and (keeper is None or keeper.private.may(Right.PROVIDE, now_us())):
            node.provider = _open_provider(node)
            if keeper is not None:
                node.provider.hold_to(keeper.quotas)
        node.blobs = BlobService(
            transport, mesh, store, admit=node.provider.admits_blob if node.provider else _admit_nothing
        )
        node.hub = await stack.enter_async_context(
            open_control_hub(
                transport, mesh, key.peer, handlers=node.handlers(), clock=now_us, software=SOFTWARE
            )
        )
        _open_requester(node)
        node.announcer = Announcer(
            key,
            mesh,
            transport,
            node.hub,
            node.book,
            node.provider,
            software=SOFTWARE,
            now_us=now_us,
            rng=random.Random(),
            heard=node.requester.providers_changed,
        )
        if config.network.serve_relay and transport.reach is not None:
            node.relay = RelayServer(
                transport,
                config.seed.relay_limits(),
                admits=lambda peer: peer in node.hub.peers(),
                addresses=lambda: transport.addresses,
            )
        node.reach = Reacher(
            transport,
            node.hub,
            node.plan,
            config.network,
            config.bootstrap,
            now_us=now_us,
            changed=node.announcer.changed,
        )
        node.announcer.addresses = node.reach.addresses
        node.announcer.settled = node.reach.settled
        old_leases = await node.end_old_leases()
        if keeper is not None:
            rows = await ledger.receipts(limit=MAX_COUNTED)
            until = await ledger.lease_ends([stored.opened.id for stored in old_leases])
            held = [
                (stored.opened.record, until.get(stored.opened.id, stored.opened.record.expires_us))
                for stored in old_leases
            ]
            keeper.count_earlier([row.receipt for row in rows], held)
            node.requester.leased = keeper.totals.leased
            await _open_door(stack, node, keeper, parts)
        async with trio.open_nursery() as nursery:
            with _served(node, place):
                await _start(nursery, node)
                yield node
                nursery.cancel_scope.cancel()


@contextmanager
def _served(node: Node, place: int) -> Iterator[None]:
    """The node is among the agent's, and the machine's devices are offered on its mesh."""
    group = node.machine.providers if node.provider is not None else None
    node.meshes.put(node, place)
    if group is not None and node.provider is not None:
        before = sum(other.provider is not None for other in node.meshes.nodes[:place])
        group.add(node.provider, before, node.announcer.changed)
    try:
        yield
    finally:
        node.meshes.take_out(node)
        if group is not None and node.provider is not None:
            group.remove(node.provider, node.announcer.changed)


async def _open_keeper(home: Home, state: MeshState | None) -> MeshKeeper | None:
    if state is None:
        return None
    private = await trio.to_thread.run_sync(open_private_mesh, home, state.mesh, now_us())
    return MeshKeeper(private, now_us, random.Random())


async def _open_door(stack: AsyncExitStack, node: Node, keeper: MeshKeeper, parts: Parts) -> None:
    """What is outside a private mesh's swarm key: strangers with an invitation come in by it, old members back."""
    listen = door_listen(node.config, keeper.private.state, serves=keeper.keeps_door)
    opened = partial(parts.door, node.key, node.mesh)
    door = await _attach(stack, listen, node.home.door_port_path(node.mesh), opened)
    keeper.attach(node.transport, node.hub, door, partial(node.plan.add, kind=Kind.REMEMBERED))


async def _attach(
    stack: AsyncExitStack,
    listen: str,
    last_port: Path,
    open_transport: Callable[..., AbstractAsyncContextManager[Transport]],
) -> Transport:
    try:
        listen = with_last_port(listen, last_port)
        transport = await stack.enter_async_context(open_transport(listen=listen))
    except Unreachable as error:
        raise ConfigError(f"{error}: name another address with --listen") from error
    keep_port(last_port, transport.addresses)
    return transport


async def _start(nursery: trio.Nursery, node: Node) -> None:
    await nursery.start(node.outbox.run)
    await nursery.start(node.requester.run)
    if node.provider is not None:
        await nursery.start(node.provider.run)
    if node.keeper is not None:
        await nursery.start(node.keeper.run)
    nursery.start_soon(node.follow_channels)
    await nursery.start(node.announcer.run)
    node.announcer.plan = node.plan
    nursery.start_soon(
        partial(
            run_discovery,
            node.transport,
            node.plan,
            bootstrap=node.config.bootstrap,
            remembered=node.home.peers_path(node.mesh),
            now_us=now_us,
        )
    )
    nursery.start_soon(node.mdns.run)
    nursery.start_soon(node.reach.run)
    nursery.start_soon(node.tidy)
    nursery.start_soon(keep_speeds, node.speeds, node.home.speeds_path(node.mesh))


def _open_provider(node: Node) -> Provider:
    """What this machine's devices do for others on this mesh."""
    machine = node.machine
    assert machine.providers is not None
    return Provider(
        node.key,
        node.mesh,
        node.ledger,
        node.store,
        machine.devices,
        node.outbox,
        lambda: node.hub,
        group=machine.providers,
        isolation=machine.isolation,
        now_us=now_us,
        random_bytes=secrets.token_bytes,
        changed=machine.providers.changed,
    )


def _open_requester(node: Node) -> None:
    scope = (node.mesh, node.key.peer)
    jobs = JobIntake(node.store, scope, now_us=now_us, random_bytes=secrets.token_bytes)
    driver = TaskDriver(node.key, node.mesh, node.transport, node.hub, node.ledger, node.store, now_us=now_us)
    node.speeds = speeds = load_speeds(node.home.speeds_path(node.mesh))
    broker = LeaseBroker(
        node.key,
        node.mesh,
        node.hub,
        node.ledger,
        node.book,
        Knowledge(speeds, partial(_reputation, node.credit), partial(_missing_bytes, driver.known)),
        now_us=now_us,
        random_bytes=secrets.token_bytes,
        seek=partial(_seek, node),
    )
    node.requester = Requester(
        node.hub,
        node.ledger,
        node.store,
        scope,
        jobs,
        broker,
        driver,
        LeaseExtender(node.key, node.hub, node.ledger, now_us=now_us, rng=random.random),
        speeds=speeds,
        heard=lambda: _describe_heard(node),
        now_us=now_us,
    )
    node.challenger = Challenger(
        node.mesh, node.transport, node.hub, node.ledger, node.store, scope, now_us=now_us
    )
    node.intake = ResultIntake(
        node.key,
        node.mesh,
        node.transport,
        node.ledger,
        node.store,
        find_lease=node.requester.find_lease,
        output_specs=node.requester.output_specs,
        rivals=node.requester.rivals,
        now_us=now_us,
    )


def _seek(node: Node, peers: list[PeerId]) -> None:
    """An order has a use for these providers; where there are none, more shards are listened to."""
    if peers:
        node.plan.seek(peers, trio.current_time())
    else:
        node.announcer.want_more()


async def _reputation(credit: CreditDesk, peer: PeerId, unit: str) -> int:
    """What a provider's history with this agent is worth, 0 to 1000."""
    try:
        await credit.look_up(peer, unit)
    except MeshError as error:
        _log.warning("the history of %s cannot be read: %s", short_peer(peer), error)
    return credit.reputation(peer, unit, DEFAULT_INTERVAL).score


def _missing_bytes(known: KnownBlobs, jobs: Sequence[JobState], peer: PeerId) -> int:
    """What the first tasks of some jobs would have to be sent to a provider, each blob once."""
    blobs = {
        blob.root: blob for job in jobs for task in islice(job.tasks, TASKS_LOOKED_AT) for blob in task.inputs
    }
    return known.missing_bytes(peer, blobs.values())


def _describe_heard(node: Node) -> str:
    announced = node.book.current(now_us())
    devices = sum(len(opened.record.devices) for opened in announced)
    connected = len(node.transport.connected())
    text = (
        f"{counted(connected, 'peer')} connected, {len(announced)} announced with {counted(devices, 'device')} "
        f"on mesh {node.config.mesh!r}"
    )
    own = "" if node.provider is None or not node.provider.offers else OWN_DEVICE
    if node.wrong_clocks:
        said = "; ".join(list(node.wrong_clocks.values())[:MAX_BOOTSTRAP_SHOWN])
        text += f"; {said}: set the clocks by NTP"
    if node.keeper is not None and node.keeper.trouble:
        return f"this agent is no member of mesh {node.config.mesh!r} any more: {node.keeper.trouble}"
    if connected or announced:
        return text + own
    if node.keeper is not None and not node.config.bootstrap:
        invite = f"coppermesh mesh invite --mesh {node.config.mesh}"
        return f"{text}; no other member is here: start their agents, or invite somebody ({invite}){own}"
    if not node.config.bootstrap:
        return (
            f"{text}; nobody is known: set `bootstrap` in {node.home.config_path}, or give --bootstrap{own}"
        )
    troubles = [
        f"\n  {address}: {printable(node.plan.troubles.get(address, 'no answer yet'))}"
        for address in node.config.bootstrap[:MAX_BOOTSTRAP_SHOWN]
    ]
    return f"{text}; no `bootstrap` address leads to anybody:{''.join(troubles)}{own}"


def _admit_nothing(_peer: PeerId, _root: Digest, _size: int) -> Refused | None:
    return Refused("not-admitted", "this agent offers no device and takes no blobs")
