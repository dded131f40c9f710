"""The provider side of an agent: orders come in, bids and declines go out, leases are served by workers.

Theory of operation. `policy.decide` and `Reservations` decide; this shell carries out. A bid reserves a slot until it
expires, a lease takes it over, and every way a lease can end (its expiry, either side's cancel, a lost connection,
shutdown) gives it back: `LeaseServer` runs the lease in a task of its own and the slot is released when that task ends.
The requester is told of every end that it did not cause, so that it moves its tasks at once. A lease is in the ledger
before our signature on it leaves. Only orders that were bid on are remembered: a flood of others costs no memory.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import trio

from coppermesh.agent.challenge_server import ChallengeServer
from coppermesh.agent.device_speeds import DeviceSpeeds
from coppermesh.agent.exposure import interval_cost
from coppermesh.agent.lease_extension import check_extension
from coppermesh.agent.lease_server import LeaseServer
from coppermesh.agent.leases import check_lease
from coppermesh.agent.ledger import LeaseAgreed, LeaseExtended
from coppermesh.agent.ledger_store import LedgerStore
from coppermesh.agent.lending import Lending
from coppermesh.agent.negotiation import Move, Negotiation, Role
from coppermesh.agent.policies.flood import too_many_orders
from coppermesh.agent.policy import (
    DECLINE_CODES,
    BidTerms,
    DeclineReason,
    DeviceState,
    Limits,
    ProviderState,
    decide,
)
from coppermesh.agent.pricing import format_rate
from coppermesh.agent.provider_group import ProviderGroup
from coppermesh.agent.quota_desk import QuotaDesk
from coppermesh.agent.result_outbox import ResultOutbox
from coppermesh.agent.sharing import Obstacle, Sharing
from coppermesh.agent.traces import NODE_DIGESTS
from coppermesh.exec.device import DeviceInfo
from coppermesh.exec.supervisor import Supervisor
from coppermesh.p2p.blob_store import BlobStore
from coppermesh.p2p.channel import clean_sentence
from coppermesh.p2p.control import ControlHub
from coppermesh.p2p.envelope import Opened, open_record, seal_record, sign_record
from coppermesh.p2p.errors import MeshError, Refused
from coppermesh.p2p.ids import Digest, MeshId, PeerId, short_peer
from coppermesh.p2p.lease_records import Extension
from coppermesh.p2p.messages import (
    CancelRequest,
    ChallengeReply,
    ChallengeRequest,
    ExtendReply,
    ExtendRequest,
    LeaseReply,
    LeaseRequest,
    Nothing,
    OrderAbandoned,
    OrderReply,
    OrderRequest,
    PauseRequest,
    TaskReply,
    TaskRequest,
    TasksReply,
    TasksRequest,
)
from coppermesh.p2p.records import Bid, Decline, DeviceOffer, Lease, Order, SignedRecord
from coppermesh.p2p.signing import PeerKey

MAX_TALKS = 1024
"""Orders with a bid that are remembered; the oldest is forgotten, and its reservation expires by itself."""
TELL_SECONDS = 2.0
"""How long telling a requester of a lease's end may take."""
WAITING_US = 16_000_000
"""A requester that was declined as busy is expected back within this: its dispatcher waits 15 s at most."""
RECLAIM_IDLE_US = 200_000
"""A lease without a task for so long gives way to a requester that waits."""
ORDER_WINDOW_US = 10_000_000
"""Orders of one requester are counted over this span."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedDevice:
    """A device on offer and the zygote that runs its workers."""

    info: DeviceInfo
    offer: DeviceOffer
    supervisor: Supervisor

    @property
    def unfit(self) -> tuple[Obstacle, ...]:
        """Why it takes no work, whatever its owner wants: one worker could not be killed, no probe has passed since."""
        if not self.supervisor.unfit:
            return ()
        sentence = f"{self.offer.device} is out of order; ask again later, or another"
        return (Obstacle("unfit", sentence, f"{self.offer.device}: {self.supervisor.unfit}"),)


def _is_unfit(obstacles: tuple[Obstacle, ...]) -> bool:
    return any(obstacle.code == "unfit" for obstacle in obstacles)


@dataclass(slots=True)
class _Talk:
    """One order and our bid."""

    order: Opened[Order]
    negotiation: Negotiation
    bid: Opened[Bid]
    lease_reply: LeaseReply | None = None
    signing: trio.Lock = field(default_factory=trio.Lock)
    """Held while a lease is being committed: the same lease sent twice is one lease."""


class Provider:
    """What this agent does for others."""

    def __init__(
        self,
        key: PeerKey,
        mesh: MeshId,
        ledger: LedgerStore,
        store: BlobStore,
        devices: Sequence[ServedDevice],
        outbox: ResultOutbox,
        hub: Callable[[], ControlHub],
        *,
        group: ProviderGroup,
        isolation: tuple[str, ...] = (),
        now_us: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        changed: Callable[[], None],
    ) -> None:
        """`group`: the other meshes' providers on this machine, with the slots and the owner they share.

        `changed` is called when what an announcement would say has changed; `isolation` are witnessed layers.
        """
        self._key = key
        self._mesh = mesh
        self._ledger = ledger
        self._store = store
        self._devices = {device.offer.device: device for device in devices}
        self._outbox = outbox
        self._credit = outbox.credit
        self._quotas: QuotaDesk | None = None
        self._hub = hub
        self.isolation = isolation
        self._now_us = now_us
        self._random_bytes = random_bytes
        self._changed = changed
        self._nursery: trio.Nursery | None = None
        self._talks: OrderedDict[Digest, _Talk] = OrderedDict()
        self._closed: OrderedDict[tuple[PeerId, Digest], None] = OrderedDict()
        """Orders that were declined, or taken back before they came: a bid on one would hold a slot for nobody."""
        self._order_times: dict[PeerId, list[int]] = {}
        self._group = group
        self.reservations = group.reservations
        self.leases: dict[Digest, LeaseServer] = {}
        self.lending = Lending(group.sharing, group.paused, group.trusted, dict(group.obstacles))
        self._was_closed = False
        self._waiting: dict[PeerId, int] = {}
        """Requesters that were declined as busy a moment ago, and when: they will ask again."""
        self.challenges = ChallengeServer(
            key, mesh, ledger, store, self._devices, free=self._free_for_challenges, now_us=now_us
        )
        self.speeds = DeviceSpeeds(changed)
        self._last_served: PeerId | None = None
        """Whose lease ended last: of all who wait, it comes last."""

    def hold_to(self, quotas: QuotaDesk) -> None:
        """Members of a private mesh have quotas. Call before `run`."""
        self._quotas = quotas
        quotas.running = self._running_us

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve leases until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.challenges.start(nursery)
            task_status.started()
            await trio.sleep_forever()

    @property
    def offers(self) -> list[DeviceOffer]:
        """What the announcement lists."""
        return [device.offer for device in self._devices.values() if not device.unfit]

    def admits_blob(self, peer: PeerId, root: Digest, size: int) -> Refused | None:
        """Blobs are taken only from peers with a lease, none larger than its memory, and where one was asked for."""
        largest = max(
            (server.lease.record.memory_bytes for server in self.leases.values() if server.requester == peer),
            default=0,
        )
        if self.challenges.awaits(peer, root, size):
            return None
        if not largest:
            return Refused("not-admitted", "no lease with you: send blobs under a lease")
        if size > largest:
            return Refused("too-large", f"a blob of {size} bytes, the lease allows {largest} bytes of memory")
        return None

    def tidy(self) -> None:
        """Let go of what has expired. Call now and then."""
        now_us = self._now_us()
        self.challenges.tidy()
        for server in list(self.leases.values()):
            over = self._over_quota(server.requester, server.lease.record.device_kind)
            # Once: a worker that takes a while to go must not have its time counted at each look.
            if over is not None and self._quotas is not None and not server.is_ending:
                self._quotas.stopped(
                    server.requester, server.lease.record.device_kind, server.running_us(now_us)
                )
                server.stop(over.code, over.sentence)
        if self.reservations.expire(now_us):
            self._changed()
        for peer, times in list(self._order_times.items()):
            if times[-1] <= now_us - ORDER_WINDOW_US:
                del self._order_times[peer]

    # The owner's hand

    @property
    def paused(self) -> bool:
        """Paused by `coppermesh pause`."""
        return self.lending.paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self.lending.paused = paused
        self.follow_owner()

    @property
    def closed(self) -> bool:
        """It bids on nothing now, on any device: what the announcement calls paused."""
        return self.lending.closed(self._now_us()) is not None

    @property
    def busy_slots(self) -> int:
        """Slots that nobody gets now: those held, and free ones of devices that their owner needs."""
        kept = [
            name
            for name, each in self._devices.items()
            if self.lending.obstacles.get(name) and not each.unfit
        ]
        return self.reservations.busy_slots + sum(max(0, self.reservations.free(name)) for name in kept)

    def not_lending(self) -> list[dict[str, str | None]]:
        """Why devices are not lent now, for their owner."""
        return self.lending.reasons(self._devices, self._now_us())

    def works_on(self, device: str) -> bool:
        """A task runs or waits on that device."""
        return any(
            server.tasks_accepted for server in self.leases.values() if server.lease.record.device == device
        )

    @property
    def tasks_accepted(self) -> int:
        """Tasks under all leases that have no result yet."""
        return sum(server.tasks_accepted for server in self.leases.values())

    def serves_on(self, device: str) -> bool:
        """A lease is on that device."""
        return any(server.lease.record.device == device for server in self.leases.values())

    def adopt(self, offers: Mapping[str, DeviceOffer], trusted: frozenset[PeerId], sharing: Sharing) -> None:
        """Settings have changed: they hold for all bids from now on. Leases keep what was agreed."""
        for name, offer in offers.items():
            self._devices[name] = replace(self._devices[name], offer=offer)
        self.reservations.resize({name: device.offer.slots for name, device in self._devices.items()})
        self.lending.trusted, self.lending.sharing = trusted, sharing
        self.follow_owner()
        self._changed()

    def set_obstacles(self, device: str, obstacles: tuple[Obstacle, ...]) -> None:
        """What a look at the device has given. Whether it is fit at all is added here."""
        before = self.lending.obstacles.get(device, ())
        now = (*self._devices[device].unfit, *obstacles)
        self.lending.obstacles[device] = now
        if bool(before) != bool(now) or _is_unfit(before) != _is_unfit(now):
            self.follow_owner()
            self._changed()

    def follow_owner(self) -> None:
        """Carry out what the owner wants now: leases against it end with their accepted tasks. Call each second."""
        now_us = self._now_us()
        self.lending.disk_full = self._store.is_disk_full()
        for server in list(self.leases.values()):
            server.drain(self.lending.against(server.requester, server.lease.record.device, now_us))
        if not all(self.lending.is_lent(name, now_us) for name in self._devices):
            self.challenges.make_way()
        if self.closed != self._was_closed:
            self._was_closed = self.closed
            self._changed()

    def stop_leases(self, reason: Obstacle, device: str | None = None) -> int:
        """End leases now, of one device or all: their tasks cost nothing and run elsewhere. Returns how many."""
        ended = [
            server
            for server in self.leases.values()
            if device is None or server.lease.record.device == device
        ]
        for server in ended:
            server.stop(reason.code, reason.sentence)
        return len(ended)

    # Requests

    async def on_order(self, peer: PeerId, request: OrderRequest) -> OrderReply:
        """Bid or decline. An order that was bid on gets the same bid again. Raises Refused, RemoteProtocolError."""
        order = open_record(Order, request.order, signer=peer)
        known = self._talks.get(order.id)
        if known is not None:
            return OrderReply(known.bid.signed, None)
        self._outbox.require_settled(peer)
        now_us = self._now_us()
        recent = self._count_order(peer, now_us)
        if recent >= Limits().max_orders_per_window:  # before the ledger is read for it
            return self._decline(order, too_many_orders(Limits()), now_us)
        terms = await self._terms_for(order, peer, now_us, recent)
        if order.id in self._talks:  # sent twice, both waited
            return OrderReply(self._talks[order.id].bid.signed, None)
        if isinstance(terms, DeclineReason):
            if terms.code == "busy":
                self._waiting[peer] = now_us
                self._reclaim_idle(peer, now_us)
            elif terms.code == "measuring":
                self._measure_speeds()
            return self._decline(order, terms, now_us)
        if (peer, order.id) in self._closed:
            self.reservations.release_bid(order.id)
            raise Refused("unknown-order", "the order was declined or taken back before: send a new one")
        self._waiting.pop(peer, None)
        talk = self._bid(order, terms, now_us)
        self._talks[order.id] = talk
        while len(self._talks) > MAX_TALKS:
            self._talks.popitem(last=False)
        return OrderReply(talk.bid.signed, None)

    async def _terms_for(
        self, order: Opened[Order], peer: PeerId, now_us: int, recent: int
    ) -> BidTerms | DeclineReason:
        """Terms with a slot reserved for them, or why there are none. Later meshes give way before it says busy."""
        await self._credit.look_up(peer, order.record.unit)
        state = self._state_for(peer, order.record, now_us, recent)
        state = replace(state, disk_full=self._store.is_disk_full())
        terms = decide(order.record, peer, state, now_us)
        if isinstance(terms, DeclineReason) and terms.code == "busy":
            cleared = replace(state, devices=self._device_states(now_us, with_reclaimable=True))
            wanted = decide(order.record, peer, cleared, now_us)
            if isinstance(wanted, BidTerms) and await self._group.make_way(
                wanted.device.device, self, now_us
            ):
                now_us = self._now_us()
                state = replace(state, devices=self._device_states(now_us))
                terms = decide(order.record, peer, state, now_us)
        if isinstance(terms, BidTerms):
            terms = self._over_quota(peer, terms.device.kind) or self._turn_of(peer, now_us) or terms
        if isinstance(terms, BidTerms):
            device = terms.device.device
            if not self.reservations.reserve(order.id, device, peer, terms.expires_us, now_us):
                return DeclineReason("busy", f"every slot of {device} is taken")
            self._group.way_made(device, self)
        return terms

    async def on_abandon(self, peer: PeerId, request: OrderAbandoned) -> Nothing:
        """The requester took another bid: free the slot."""
        talk = self._talks.get(Digest(request.order))
        if talk is None:
            self._close(peer, Digest(request.order))  # it may have overtaken its order
        elif talk.order.signer == peer and talk.lease_reply is None:
            talk.negotiation.step(Move.ABANDON, Role.REQUESTER, self._now_us(), "abandon")
            self.reservations.release_bid(talk.order.id)
        return Nothing()

    async def on_lease(self, peer: PeerId, request: LeaseRequest) -> LeaseReply:
        """Sign the lease and start serving it. Raises Refused, RemoteProtocolError."""
        lease = open_record(Lease, request.lease, signer=peer)
        talk = self._talks.get(Digest(lease.record.order))
        if talk is None or talk.order.signer != peer:
            raise Refused("unknown-order", "there is no bid of ours for that order (any more): order again")
        async with talk.signing:
            return talk.lease_reply or await self._sign(lease, talk)

    async def _sign(self, lease: Opened[Lease], talk: _Talk) -> LeaseReply:
        now_us = self._now_us()
        talk.negotiation.step(Move.LEASE_OFFER, Role.REQUESTER, now_us, f"lease {lease.id.hex()[:8]}")
        check_lease(lease.record, talk.order, talk.bid, now_us)
        obstacle = self.lending.against(talk.order.signer, lease.record.device, now_us)
        if obstacle is not None:
            raise Refused(obstacle.code, f"since the bid: {obstacle.sentence}")
        if not self.reservations.convert(talk.order.id, lease.id, lease.record.expires_us, now_us):
            talk.negotiation.step(Move.LEASE_REFUSE, Role.PROVIDER, now_us, "reservation expired")
            raise Refused("busy", "the bid's reservation has expired: order again")
        signed = sign_record(self._key, lease.record)
        try:
            # Cancelled when the peer's channel ends: a lease in the ledger must have its server, which ends it.
            with trio.CancelScope(shield=True):
                await self._ledger.commit(
                    LeaseAgreed(lease.id, signed, lease.signed, talk.order.signed, talk.bid.signed)
                )
        except MeshError as error:
            self.reservations.release_lease(lease.id)
            raise Refused("provider-ledger", f"the provider cannot record the lease: {error}") from error
        talk.negotiation.step(Move.LEASE_ACCEPT, Role.PROVIDER, self._now_us(), "signed")
        talk.lease_reply = LeaseReply(signed, None)
        self._serve(lease, talk)
        self._end_if_overtaken(self.leases[lease.id])
        return talk.lease_reply

    def _end_if_overtaken(self, server: LeaseServer) -> None:
        """What ends leases may have happened while this one was being recorded: it was not among them yet."""
        server.drain(self.lending.against(server.requester, server.lease.record.device, self._now_us()))
        if server.requester not in self._hub().peers():
            server.stop("unreachable", "the requester's connection was lost", told=True)

    async def on_extend(self, peer: PeerId, request: ExtendRequest) -> ExtendReply:
        """Sign a later end of a lease, or say why not. Raises Refused, RemoteProtocolError."""
        extension = open_record(Extension, request.extension, signer=peer)
        server = self._server_named(peer, Digest(extension.record.lease))
        async with server.extending:
            if server.last_extension is not None and server.last_extension_id == extension.id:
                return server.last_extension
            return await self._extend(server, extension)

    async def _extend(self, server: LeaseServer, extension: Opened[Extension]) -> ExtendReply:
        now_us = self._now_us()
        lease = server.lease
        check_extension(lease.record, server.extensions, server.until_us, extension.record, now_us)
        if reason := self._against_extension(server, now_us):
            return ExtendReply(None, self._signed_decline(Digest(lease.record.order), reason, now_us))
        signed = sign_record(self._key, extension.record)
        try:
            with trio.CancelScope(shield=True):
                await self._ledger.commit(LeaseExtended(extension.signed, signed))
        except MeshError as error:
            raise Refused("provider-ledger", f"the provider cannot record the extension: {error}") from error
        if server.is_over:  # meanwhile: its end was recorded behind this, and stands
            raise Refused("lease-ended", f"the lease has ended ({server.end_code}): order again")
        reply = ExtendReply(signed, None)
        server.extend(extension, reply)
        self.reservations.extend(lease.id, server.until_us)
        return reply

    def _against_extension(self, server: LeaseServer, now_us: int) -> DeclineReason | None:
        """Why a lease ends when it would have. Nobody has a right to more time."""
        record, peer = server.lease.record, server.requester
        obstacle = self.lending.against(peer, record.device, now_us)
        if obstacle is not None:
            return DeclineReason(obstacle.code, obstacle.sentence)
        if over := self._over_quota(peer, record.device_kind):
            return over
        if self._store.is_disk_full():
            return DeclineReason("disk-full", "this provider has no room on its disk: ask another")
        if unpaid := self._credit.why_late(peer, record.unit):
            return DeclineReason("unpaid", unpaid)
        device = self._devices[record.device]
        price = max(device.offer.rate, self._group.floors.get(record.device, 0))
        if record.rate < price:
            price_text = format_rate(price, record.unit)
            return DeclineReason("rate", f"the device costs {price_text} by now: order again")
        waiting = [
            other for other, at_us in self._waiting.items() if other != peer and at_us > now_us - WAITING_US
        ]
        if waiting and not self.reservations.free(record.device):
            return DeclineReason("busy", "others wait for this slot: it is their turn")
        return None

    def _tell_paused(self, server: LeaseServer, sentence: str) -> None:
        """Tell the requester that its lease pauses (or, without a sentence, goes on)."""
        if self._nursery is not None:
            text = sentence or "what waited was answered"
            request = PauseRequest(server.lease.id, bool(sentence), "unpaid", text)
            self._nursery.start_soon(self._send_paused, server.requester, request)

    async def _send_paused(self, peer: PeerId, request: PauseRequest) -> None:
        try:
            await self._hub().request(peer, "pause", request, Nothing, deadline_s=TELL_SECONDS)
        except MeshError as error:
            _log.debug("telling %s of a pause: %s", short_peer(peer), error)

    async def on_task(self, peer: PeerId, request: TaskRequest) -> TaskReply:
        """Take a task, ask for its blobs, or refuse it."""
        server = self._server_for_task(peer, request)
        reply = await server.offer(request)
        if reply.state == "accepted":
            self.challenges.make_way()
        return reply

    async def on_tasks(self, peer: PeerId, request: TasksRequest) -> TasksReply:
        """The same for several, each judged by itself; those of one lease are written down together."""
        replies: dict[int, TaskReply] = {}
        offered: dict[LeaseServer, list[int]] = {}
        for index, task in enumerate(request.tasks):
            try:
                offered.setdefault(self._server_for_task(peer, task), []).append(index)
            except Refused as refusal:
                replies[index] = TaskReply("refused", [], refusal.code, clean_sentence(refusal.sentence))
        for server, indexes in offered.items():
            answers = await server.offer_all([request.tasks[index] for index in indexes])
            replies.update(zip(indexes, answers, strict=True))
        if any(reply.state == "accepted" for reply in replies.values()):
            self.challenges.make_way()
        return TasksReply([replies[index] for index in range(len(request.tasks))])

    def _server_for_task(self, peer: PeerId, request: TaskRequest) -> LeaseServer:
        """Who serves the lease that the task names. Raises Refused, RemoteProtocolError."""
        server = self._server_of(peer, request.task.body)
        self._outbox.require_settled(peer)
        over = self._over_quota(peer, server.lease.record.device_kind)
        if over is not None:
            raise Refused(over.code, over.sentence)
        return server

    async def on_challenge(self, peer: PeerId, request: ChallengeRequest) -> ChallengeReply:
        """The digests of nodes of a task that has its receipt. Raises Refused, RemoteProtocolError."""
        return await self.challenges.on_challenge(peer, request)

    async def on_cancel(self, peer: PeerId, request: CancelRequest) -> None:
        """The requester ends one task or the whole lease."""
        server = self.leases.get(Digest(request.lease))
        if server is None or server.requester != peer:
            return
        if request.task is None:
            server.stop(request.code, request.sentence, told=True)
        else:
            server.cancel_task(request.task, request.sentence)

    def peer_lost(self, peer: PeerId) -> None:
        """A requester's connection is gone: its leases end, what was bid to it is free, its place in the line too."""
        self._waiting.pop(peer, None)
        self.challenges.peer_lost(peer)
        for talk in self._talks.values():
            if talk.order.signer == peer and talk.lease_reply is None and not talk.signing.locked():
                self.reservations.release_bid(talk.order.id)
        for server in list(self.leases.values()):
            if server.requester == peer:
                server.stop("unreachable", "the requester's connection was lost", told=True)

    # Other meshes of this machine

    def holds_on(self, device: str) -> int:
        """Slots of `device` that this mesh's bids and leases hold."""
        return sum(
            hold.device == device and (hold.key in self._talks or hold.key in self.leases)
            for hold in self.reservations.holds()
        )

    def give_way(self, device: str) -> bool:
        """A mesh that comes first wants a slot: end a bid, else an idle lease, else a lease with tasks. False: none."""
        for talk in self._talks.values():
            open_bid = talk.lease_reply is None and not talk.signing.locked()
            on_it = talk.bid.record.device == device
            if open_bid and on_it and self.reservations.release_bid(talk.order.id):
                return True
        now_us = self._now_us()
        servers = [server for server in self.leases.values() if server.lease.record.device == device]
        if not servers:
            return False
        max(servers, key=lambda server: server.idle_us(now_us)).stop(
            "other-mesh", "another mesh, which comes first with this provider's owner, needs the device"
        )
        return True

    # Inside

    def _free_for_challenges(self, device: str) -> int:
        """Slots of `device` where nothing that is paid runs or is promised; a lease without a task counts as free."""
        now_us = self._now_us()
        if not self.lending.is_lent(device, now_us):
            return 0
        idle = [
            server
            for server in self.leases.values()
            if server.lease.record.device == device and server.idle_us(now_us) > 0
        ]
        return self.reservations.free(device) + len(idle)

    def _turn_of(self, peer: PeerId, now_us: int) -> DeclineReason | None:
        """Why it is not this requester's turn: it was just served, and the free slots are for those who wait."""
        for other, at_us in list(self._waiting.items()):
            if at_us <= now_us - WAITING_US:
                del self._waiting[other]
        others = len(self._waiting.keys() - {peer})
        free = sum(self.reservations.free(name) for name in self._devices)
        if peer != self._last_served or not 0 < free <= others:
            return None
        return DeclineReason("busy", "others wait for the slot that your last lease had: it is their turn")

    def _reclaim_idle(self, peer: PeerId, now_us: int) -> None:
        """Somebody waits: end one lease of another requester that has had no task for a while."""
        for server in self.leases.values():
            if server.requester != peer and server.idle_us(now_us) >= RECLAIM_IDLE_US:
                server.stop("reclaimed", "the lease was idle and another requester waits for its slot")
                return

    def _over_quota(self, peer: PeerId, kind: str) -> DeclineReason | None:
        return None if self._quotas is None else self._quotas.against(peer, kind)

    def _running_us(self) -> dict[tuple[PeerId, str], list[int]]:
        now_us = self._now_us()
        running: dict[tuple[PeerId, str], list[int]] = {}
        for server in self.leases.values():
            who = (server.requester, server.lease.record.device_kind)
            running.setdefault(who, []).append(server.running_us(now_us))
        return running

    def _server_of(self, peer: PeerId, body: bytes) -> LeaseServer:
        return self._server_named(peer, LeaseServer.lease_named_in(body))

    def _server_named(self, peer: PeerId, lease: Digest) -> LeaseServer:
        server = self.leases.get(lease)
        if server is None or server.requester != peer:
            raise Refused("unknown-lease", "no such lease with you here (any more): order again")
        return server

    def _count_order(self, peer: PeerId, now_us: int) -> int:
        """How many orders of `peer` came in the window before this one."""
        times = [at_us for at_us in self._order_times.get(peer, []) if at_us > now_us - ORDER_WINDOW_US]
        self._order_times[peer] = [*times[-200:], now_us]
        return len(times)

    def _state_for(self, peer: PeerId, order: Order, now_us: int, recent: int) -> ProviderState:
        self.reservations.expire(now_us)
        rate = max((device.offer.rate for device in self._devices.values()), default=0)
        standing = self._credit.reputation(peer, order.unit, interval_cost(rate, order.wall_limit_us))
        return ProviderState(
            mesh=self._mesh,
            devices=self._device_states(now_us),
            paused=self.lending.paused,
            sharing=self.lending.sharing,
            isolation=self.isolation,
            allowed=self.lending.trusted,
            requester_holds=self.reservations.held_by(peer),
            requester_score=standing.score,
            score_reason=standing.reasons[0] if standing.reasons else "",
            unpaid=self._credit.why_not(peer, order.unit, rate, order.wall_limit_us),
            recent_orders=recent,
        )

    def _measure_speeds(self) -> None:
        assert self._nursery is not None
        for name, device in self._devices.items():
            self._nursery.start_soon(self.speeds.measure, name, device.supervisor)

    def _device_states(self, now_us: int, *, with_reclaimable: bool = False) -> tuple[DeviceState, ...]:
        """Each device and its free slots. `with_reclaimable`: as if later meshes had none."""
        states = []
        for name, device in self._devices.items():
            free = self._group.free(name, self, now_us)
            if with_reclaimable:
                free += self._group.reclaimable(name, self)
            states.append(
                DeviceState(
                    device.offer,
                    free,
                    self.lending.obstacles.get(name, ()),
                    self.speeds.get(name),
                    self._group.floors.get(name, 0),
                )
            )
        return tuple(states)

    def _close(self, peer: PeerId, order: Digest) -> None:
        self._closed[peer, order] = None
        while len(self._closed) > MAX_TALKS:
            self._closed.popitem(last=False)

    def _decline(self, order: Opened[Order], reason: DeclineReason, now_us: int) -> OrderReply:
        self._close(PeerId(order.signer), order.id)
        _log.info("declined an order of %s: %s", short_peer(order.signer), reason.sentence)
        return OrderReply(None, self._signed_decline(order.id, reason, now_us))

    def _signed_decline(self, order: Digest, reason: DeclineReason, now_us: int) -> SignedRecord:
        decline = Decline(1, self._mesh, self._key.peer, order, now_us, reason.code, reason.sentence)
        return sign_record(self._key, decline)

    def _bid(self, order: Opened[Order], terms: BidTerms, now_us: int) -> _Talk:
        bid = Bid(
            version=1,
            mesh=self._mesh,
            provider=self._key.peer,
            order=order.id,
            nonce=self._random_bytes(16),
            issued_us=now_us,
            expires_us=terms.expires_us,
            device=terms.device.device,
            device_kind=terms.device.kind,
            device_name=terms.device.name,
            memory_bytes=terms.memory_bytes,
            rate=terms.rate,
            unit=terms.unit,
            depth=terms.depth,
            speed=terms.speed,
        )
        negotiation = Negotiation(Role.PROVIDER, now_us)
        negotiation.step(Move.ORDER, Role.REQUESTER, now_us, "order")
        negotiation.step(Move.BID, Role.PROVIDER, now_us, "bid")
        return _Talk(order, negotiation, seal_record(self._key, bid))

    def _serve(self, lease: Opened[Lease], talk: _Talk) -> None:
        assert self._nursery is not None
        device = self._devices[lease.record.device]
        features = talk.order.record.features
        kernels = "cuda-source" in features
        server = LeaseServer(
            lease,
            device.info,
            device.supervisor,
            self._key,
            self._mesh,
            self._ledger,
            self._store,
            self._outbox,
            kernels=kernels,
            keep_digests=self.challenges.keep if NODE_DIGESTS in features else None,
            issued=None if self._quotas is None else self._quotas.issued,
            now_us=self._now_us,
        )
        server.tell_paused = partial(self._tell_paused, server)
        self.leases[lease.id] = server
        self._credit.open_lease(lease)
        _log.info(
            "lease %s for %s on %s", lease.id.hex()[:8], short_peer(server.requester), lease.record.device
        )
        self._nursery.start_soon(self._run_server, server)
        self._changed()

    async def _run_server(self, server: LeaseServer) -> None:
        try:
            await server.run()
        finally:
            self.leases.pop(server.lease.id, None)
            self._credit.close_lease(server.lease)
            self._last_served = server.requester
            self.reservations.release_lease(server.lease.id)
            self._changed()
            if not server.told:
                await self._tell_ended(server)

    async def _tell_ended(self, server: LeaseServer) -> None:
        """Also when this agent is being stopped: the requester moves at once then. Else what is finished is answered
        first, since a requester that has moved its tasks does not pay for them any more.
        """
        if server.end_code != "stopping":
            with trio.move_on_after(TELL_SECONDS):
                await self._outbox.answers_for(server.lease.id)
        decline = None
        if server.end_code in DECLINE_CODES:
            reason = DeclineReason(server.end_code, server.end_sentence)
            decline = self._signed_decline(Digest(server.lease.record.order), reason, self._now_us())
        request = CancelRequest(server.lease.id, None, server.end_code, server.end_sentence, decline)
        with trio.CancelScope(shield=True):
            try:
                await self._hub().request(
                    server.requester, "cancel", request, Nothing, deadline_s=TELL_SECONDS
                )
            except MeshError as error:
                _log.debug("telling %s of a lease's end: %s", short_peer(server.requester), error)
