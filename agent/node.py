"""The composition root: one agent on one mesh, from its home's files to its open socket.

`open_node` builds the parts in the order in which they depend on each other and takes them down in reverse; nothing it
started outlives the block. The parts know each other only through what is passed here.
"""

import logging
import os
import random
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import trio

from coppermesh.agent.announcer import Announcer
from coppermesh.agent.blob_door import StoreDoor
from coppermesh.agent.challenger import Challenger
from coppermesh.agent.clock import now_us
from coppermesh.agent.config import Config, ConfigError, Loaded
from coppermesh.agent.config_file import ConfigFile
from coppermesh.agent.home import Home
from coppermesh.agent.isolation import announced, witness_once
from coppermesh.agent.job_intake import JobIntake
from coppermesh.agent.lease_broker import LeaseBroker
from coppermesh.agent.ledger import LeaseEnded
from coppermesh.agent.ledger_store import LedgerStore, open_ledger
from coppermesh.agent.lending import Lending
from coppermesh.agent.local_api import LocalApi
from coppermesh.agent.node_views import NodeViews
from coppermesh.agent.owner import OwnersHand
from coppermesh.agent.provider import Provider, ServedDevice
from coppermesh.agent.requester import Requester
from coppermesh.agent.result_intake import ResultIntake
from coppermesh.agent.result_outbox import ResultOutbox
from coppermesh.agent.screens import counted
from coppermesh.agent.story import printable
from coppermesh.agent.task_driver import TaskDriver
from coppermesh.agent.traces import NODE_DIGESTS
from coppermesh.exec.conditions import ConditionsReader, open_conditions
from coppermesh.exec.device import ARRAY_PROGRAMS, DeviceInfo, probe_devices
from coppermesh.exec.supervisor import Supervisor, open_supervisor
from coppermesh.p2p.announcements import AnnouncementBook
from coppermesh.p2p.blob_store import BlobStore, open_blob_store
from coppermesh.p2p.control import ChannelUp, ControlHub, Handler, open_control_hub
from coppermesh.p2p.discovery import DialPlan, run_discovery
from coppermesh.p2p.errors import Refused, Unreachable
from coppermesh.p2p.ids import Digest, MeshId, PeerId, mesh_id, short_peer
from coppermesh.p2p.libp2p_transport import open_libp2p_transport
from coppermesh.p2p.messages import (
    AnnouncementReply,
    CancelRequest,
    ChallengeRequest,
    LeaseRequest,
    Message,
    Nothing,
    OrderAbandoned,
    OrderRequest,
    ResultRequest,
    TaskRequest,
)
from coppermesh.p2p.records import DeviceOffer
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transfer import BlobService
from coppermesh.p2p.transport import Transport

SOFTWARE = "coppermesh/0.1.0"
IDLE_POLL_SECONDS = 1.0
TIDY_SECONDS = 1.0
MAX_BOOTSTRAP_SHOWN = 4
SKEW_WORTH_SAYING_US = 30_000_000
"""Orders are refused from 60 s on."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a node is built on. Tests put other implementations of the same interfaces here."""

    transport: Callable[..., AbstractAsyncContextManager[Transport]] = open_libp2p_transport
    """Called with key, mesh and `listen=`."""
    supervisor: Callable[..., AbstractAsyncContextManager[Supervisor]] = open_supervisor
    """Called with a device and `scratch=`."""
    probe: Callable[[], list[DeviceInfo]] = probe_devices
    """Blocking; called in a thread."""
    conditions: Callable[[str, str | None], ConditionsReader] = open_conditions
    """Called with a device's kind and uuid; blocking, in a thread."""


class Node:
    """A running agent. Made by `open_node`."""

    def __init__(self, home: Home, config: Config, key: PeerKey, mesh: MeshId, transport: Transport) -> None:
        self.home = home
        self.config = config
        self.key = key
        self.mesh = mesh
        self.transport = transport
        self.book = AnnouncementBook(mesh)
        self.started_us = now_us()
        self.active_us = self.started_us
        self.stopping = trio.Event()
        self.connected_since: dict[PeerId, int] = {}
        self.plan = DialPlan(key.peer, random.Random())
        self.provider: Provider | None = None
        self.served: list[DeviceInfo] = []
        self.owner: OwnersHand
        self.simulated: list[str] = []
        """GPUs that a stand-in for NVML reports: shown to the owner, never announced, never given work."""
        self.hub: ControlHub
        self.ledger: LedgerStore
        self.store: BlobStore
        self.blobs: BlobService
        self.requester: Requester
        self.intake: ResultIntake
        self.challenger: Challenger
        self.outbox: ResultOutbox
        self.announcer: Announcer
        self.api: LocalApi

    def touch(self) -> None:
        """A client or a peer made use of this agent."""
        self.active_us = now_us()

    def is_idle(self) -> bool:
        """Nothing is going on that anybody waits for."""
        serving = self.provider is not None and self.provider.leases
        busy = self.requester.jobs.running() or self.requester.leases or serving or self.outbox.under_way
        return not busy and not self.api.open_connections

    # Control requests: which part answers what

    def handlers(self) -> dict[str, Handler]:
        """What other agents may ask of this one. Orders and tasks only where it offers devices."""
        handlers: dict[str, Handler] = {
            "announcement": (Nothing, self._on_announcement),
            "cancel": (CancelRequest, self._on_cancel),
            "result": (ResultRequest, self._on_result),
            "ping": (Nothing, self._on_ping),
        }
        if self.config.provide:
            handlers["order"] = (OrderRequest, partial(self._ask_provider, "on_order"))
            handlers["abandon"] = (OrderAbandoned, partial(self._ask_provider, "on_abandon"))
            handlers["lease"] = (LeaseRequest, partial(self._ask_provider, "on_lease"))
            handlers["task"] = (TaskRequest, partial(self._ask_provider, "on_task"))
            handlers["challenge"] = (ChallengeRequest, partial(self._ask_provider, "on_challenge"))
        return handlers

    async def _ask_provider(self, method: str, peer: PeerId, request: Message) -> Message:
        self.touch()
        assert self.provider is not None
        reply: Message = await getattr(self.provider, method)(peer, request)
        return reply

    async def _on_announcement(self, peer: PeerId, request: Nothing) -> AnnouncementReply:
        return self.announcer.reply_to(peer)

    async def _on_ping(self, peer: PeerId, request: Nothing) -> Nothing:
        return Nothing()

    async def _on_result(self, peer: PeerId, request: ResultRequest) -> Message:
        self.touch()
        return await self.intake.handle(peer, request)

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
                    _check_clock(event)
                    nursery.start_soon(self.announcer.fetch, event.peer)
                    nursery.start_soon(self.outbox.peer_up, event.peer)
                    self.requester.providers_changed()
                else:
                    self.connected_since.pop(event.peer, None)
                    if self.provider is not None:
                        self.provider.peer_lost(event.peer)
                    nursery.start_soon(self.requester.peer_lost, event.peer, event.reason)

    async def tidy(self) -> None:
        """Let go of what has expired, so that neither memory nor what we announce holds on to it."""
        while True:
            await trio.sleep(TIDY_SECONDS)
            self.book.forget_expired(now_us())
            self.requester.tidy()
            self.outbox.tidy()
            if self.provider is not None:
                self.provider.tidy()

    async def watch_idleness(self) -> None:
        """End an agent that was started for a script and is not needed any more."""
        limit = self.config.idle_exit_seconds
        if limit is None:
            return
        while not self.stopping.is_set():
            await trio.sleep(IDLE_POLL_SECONDS)
            if not self.is_idle():
                self.touch()
            elif now_us() - self.active_us > limit * 1_000_000:
                self.stopping.set()

    async def end_old_leases(self) -> None:
        """Leases of an earlier run are over: their workers and connections are gone."""
        for stored in await self.ledger.open_leases():
            await self.ledger.commit(LeaseEnded(stored.opened.id, "restart"))


@asynccontextmanager
async def open_node(
    home: Home, settings: Config | Loaded, parts: Parts | None = None, file: ConfigFile | None = None
) -> AsyncIterator[Node]:
    """Run an agent for the length of the block. The caller holds the home's lock. `file`: read again when it changes.

    Raises IdentityError, HomeError, LedgerUnusable, and OSError where the listening address is taken.
    """
    parts = parts or Parts()
    loaded = settings if isinstance(settings, Loaded) else Loaded(settings, {})
    config = loaded.config
    mesh = mesh_id(config.mesh)
    key = PeerKey.load_or_create(home.key_path(mesh))
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(open_ledger(home.ledger_path(mesh), mesh, key.peer))
        store = await stack.enter_async_context(
            open_blob_store(home.store_path(mesh), quota_bytes=config.store_bytes, owner=key.peer)
        )
        transport = await _attach(stack, parts.transport(key, mesh, listen=config.listen))
        node = Node(home, config, key, mesh, transport)
        node.ledger, node.store = ledger, store
        node.outbox = ResultOutbox(lambda: node.hub, mesh, ledger, store, now_us=now_us)
        if config.provide:
            node.provider = await _open_provider(stack, node, parts)
        node.owner = OwnersHand(
            node.provider,
            node.served,
            loaded,
            file,
            make_offer=_offer,
            open_reader=parts.conditions,
            now_us=now_us,
        )
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
        views = NodeViews(node)
        node.api = LocalApi(
            home.socket_path, views.methods(), StoreDoor(store, (mesh, key.peer), config), os.geteuid()
        )
        await node.end_old_leases()
        async with trio.open_nursery() as nursery:
            await _start(nursery, node)
            yield node
            nursery.cancel_scope.cancel()


async def _attach(stack: AsyncExitStack, transport: AbstractAsyncContextManager[Transport]) -> Transport:
    try:
        return await stack.enter_async_context(transport)
    except Unreachable as error:
        raise ConfigError(f"{error}: name another address with --listen") from error


async def _start(nursery: trio.Nursery, node: Node) -> None:
    await nursery.start(node.outbox.run)
    await nursery.start(node.requester.run)
    if node.provider is not None:
        await nursery.start(node.provider.run)
    await nursery.start(node.owner.run)
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
        )
    )
    nursery.start_soon(node.watch_idleness)
    nursery.start_soon(node.tidy)
    await nursery.start(node.api.serve)


async def _open_provider(stack: AsyncExitStack, node: Node, parts: Parts) -> Provider:
    """Probe the devices and start a zygote for each one on offer: the GPUs, or the CPU where there is none."""
    found = await trio.to_thread.run_sync(parts.probe)
    node.simulated = [device.name for device in found if device.simulated]
    gpus = [
        device
        for device in found
        if device.kind == "cuda" and ARRAY_PROGRAMS in device.features and not device.simulated
    ]
    served = []
    for info in gpus or [device for device in found if device.kind == "cpu"]:
        scratch = node.home.scratch_path / info.device
        supervisor = await stack.enter_async_context(parts.supervisor(info, scratch=scratch))
        node.served.append(info)
        served.append(ServedDevice(info, _offer(info, node.config), supervisor))
    put_on = [device.supervisor.layers for device in served]
    # Nothing is put on in some tests, and trying the layers takes a while.
    seen = await trio.to_thread.run_sync(witness_once, node.home.path) if any(put_on) else []
    return Provider(
        node.key,
        node.mesh,
        node.ledger,
        node.store,
        served,
        node.outbox,
        lambda: node.hub,
        isolation=announced(seen, put_on),
        lending=Lending(node.config.sharing, node.home.paused_path.exists(), frozenset(node.config.trust)),
        now_us=now_us,
        random_bytes=secrets.token_bytes,
        changed=lambda: node.announcer.changed(),
    )


def _offer(info: DeviceInfo, config: Config) -> DeviceOffer:
    kind: Literal["cpu", "cuda"] = "cuda" if info.kind == "cuda" else "cpu"
    memory = min(info.memory_bytes, config.memory_bytes) if kind == "cpu" else info.memory_bytes
    memory = int(memory * config.sharing.memory_share)
    return DeviceOffer(
        device=info.device,
        kind=kind,
        name=info.name,
        rate=config.rate_for(kind),
        unit=config.unit,
        memory_bytes=memory,
        slots=config.slots,
        features=sorted({*info.features, NODE_DIGESTS} if info.features else ()),
        meter=info.meter,
        compute_capability=info.compute_capability,
        uuid=info.uuid,
        driver=info.driver,
        total_bytes=info.total_bytes,
    )


def _open_requester(node: Node) -> None:
    scope = (node.mesh, node.key.peer)
    jobs = JobIntake(node.store, scope, now_us=now_us, random_bytes=secrets.token_bytes)
    broker = LeaseBroker(
        node.key, node.mesh, node.hub, node.ledger, node.book, now_us=now_us, random_bytes=secrets.token_bytes
    )
    driver = TaskDriver(node.key, node.mesh, node.transport, node.hub, node.ledger, node.store, now_us=now_us)
    node.requester = Requester(
        node.hub,
        node.ledger,
        node.store,
        scope,
        jobs,
        broker,
        driver,
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
        now_us=now_us,
    )


def _check_clock(event: ChannelUp) -> None:
    ahead_s = (event.hello.time_us - now_us()) / 1e6
    if abs(ahead_s) * 1e6 > SKEW_WORTH_SAYING_US:
        direction = "ahead of" if ahead_s > 0 else "behind"
        _log.warning(
            "the clock of %s is %.0f s %s ours: set both by NTP, or its orders and announcements will not count",
            short_peer(event.peer),
            abs(ahead_s),
            direction,
        )


def _describe_heard(node: Node) -> str:
    announced = node.book.current(now_us())
    devices = sum(len(opened.record.devices) for opened in announced)
    connected = len(node.transport.connected())
    text = (
        f"{counted(connected, 'peer')} connected, {len(announced)} announced {counted(devices, 'device')} "
        f"on mesh {node.config.mesh!r}"
    )
    if connected or announced:
        return text
    if not node.config.bootstrap:
        return f"{text}; nobody is known: set `bootstrap` in {node.home.config_path}, or give --bootstrap"
    troubles = [
        f"\n  {address}: {printable(node.plan.troubles.get(address, 'no answer yet'))}"
        for address in node.config.bootstrap[:MAX_BOOTSTRAP_SHOWN]
    ]
    return f"{text}; no `bootstrap` address leads to anybody:{''.join(troubles)}"


def _admit_nothing(_peer: PeerId, _root: Digest, _size: int) -> Refused | None:
    return Refused("not-admitted", "this agent offers no device and takes no blobs")
