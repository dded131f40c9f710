"""The requester's side of getting leases: ask those who fit, collect bids, take the best, sign.

Every provider is asked on its control stream, all at once; the window closes when each has answered or `WINDOW_SECONDS`
passed. A lease is committed to the ledger before its signature leaves. Providers whose bid was not taken are told, so
that they free the slot at once.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import trio

from coppermesh.agent.dispatch_events import WantLeases
from coppermesh.agent.jobs import JobState
from coppermesh.agent.leases import build_lease, check_bid, lease_life_us
from coppermesh.agent.ledger import LeaseAgreed, LeaseEnded, LeaseOffered
from coppermesh.agent.ledger_store import LedgerStore
from coppermesh.agent.matching import (
    Candidate,
    Requirement,
    Survey,
    bid_misfits,
    choose_bids,
    rank_bids,
    survey,
)
from coppermesh.agent.negotiation import Move, Negotiation, Role
from coppermesh.agent.policy import LASTING_CODES
from coppermesh.agent.pricing import MAX_MONEY, format_rate
from coppermesh.agent.story import StoryLine
from coppermesh.p2p.announcements import AnnouncementBook
from coppermesh.p2p.control import ControlHub
from coppermesh.p2p.envelope import Opened, open_record, sign_record
from coppermesh.p2p.errors import MeshError, Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import MeshId, PeerId, short_peer
from coppermesh.p2p.messages import (
    CancelRequest,
    LeaseReply,
    LeaseRequest,
    Nothing,
    OrderAbandoned,
    OrderReply,
    OrderRequest,
)
from coppermesh.p2p.records import Bid, Decline, Lease, Order
from coppermesh.p2p.signing import PeerKey

WINDOW_SECONDS = 2.0
"""How long bids are waited for."""
LEASE_SECONDS = 10.0
"""How long a provider has to sign a lease."""
ORDER_LIFE_US = 30_000_000
MAX_ASKED = 64
"""Providers asked for one lease; the best by announcement first."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GrantedLease:
    """A lease that both sides signed."""

    lease: Opened[Lease]
    provider: PeerId
    requirement: Requirement
    device_name: str
    negotiation: Negotiation


@dataclass(slots=True)
class _Round:
    """One order and what came back."""

    order: Opened[Order]
    jobs: list[JobState]
    talks: dict[PeerId, Negotiation] = field(default_factory=dict)
    bids: dict[PeerId, Opened[Bid]] = field(default_factory=dict)
    declined: int = 0
    lasting: set[PeerId] = field(default_factory=set)
    """Who declined for a reason that time does not change."""


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What came of a negotiation besides the leases."""

    heard: int
    """Providers whose announcements were heard."""
    declined: int
    """Providers that were asked and declined or did not answer."""
    hopeless: bool
    """Somebody who offers a device was heard, and all of them refuse for a reason that time does not change."""


class LeaseBroker:
    """Turns `WantLeases` into signed leases."""

    def __init__(
        self,
        key: PeerKey,
        mesh: MeshId,
        hub: ControlHub,
        ledger: LedgerStore,
        book: AnnouncementBook,
        *,
        now_us: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._key = key
        self._mesh = mesh
        self._hub = hub
        self._ledger = ledger
        self._book = book
        self._now_us = now_us
        self._random_bytes = random_bytes

    async def negotiate(
        self, want: WantLeases, jobs: list[JobState], granted: Callable[[GrantedLease], None]
    ) -> Negotiated:
        """Try to get `want.count` leases for `jobs`, calling `granted` for each."""
        found = survey(
            (known.record for known in self._book.current(self._now_us())),
            want.requirement,
            self._now_us(),
            want.exclude,
        )
        heard = len(found.fitting) + len(found.misfits)
        for peer, reasons in found.misfits.items():
            self._tell(jobs, "note", "announcement", peer, f"not asked: {'; '.join(reasons)}")
            if peer not in want.exclude and peer not in found.without_device:
                _note_refusal(jobs, peer, "; ".join(reasons))
        connected = set(self._hub.peers())
        asked = [candidate for candidate in found.fitting if candidate.peer in connected][:MAX_ASKED]
        for candidate in found.fitting:
            if candidate.peer not in connected:
                text = "announced, but no connection to it"
                self._tell(jobs, "silent", "announcement", candidate.peer, text)
                _note_refusal(jobs, candidate.peer, text)
        if not asked:
            return Negotiated(heard, 0, _all_refuse(found, set()))
        current = _Round(self._new_order(want, jobs), jobs)
        await self._ask_all(current, asked, want.requirement)
        await self._award(current, want, granted)
        return Negotiated(heard, current.declined, _all_refuse(found, current.lasting))

    def _new_order(self, want: WantLeases, jobs: list[JobState]) -> Opened[Order]:
        now_us = self._now_us()
        requirement = want.requirement
        order = Order(
            version=1,
            mesh=self._mesh,
            requester=self._key.peer,
            nonce=self._random_bytes(16),
            job=jobs[0].job if jobs else bytes(16),
            issued_us=now_us,
            expires_us=now_us + ORDER_LIFE_US,
            device_kind=requirement.device_kind,
            model=requirement.model,
            features=sorted(requirement.features),
            isolation=list(requirement.isolation),
            memory_bytes=requirement.memory_bytes,
            min_speed=requirement.min_speed,
            tasks=sum((len(job.tasks) - job.done) * job.copies for job in jobs),
            copies=max((job.copies for job in jobs), default=1),
            wall_limit_us=requirement.wall_limit_us,
            max_rate=requirement.max_rate,
            unit=requirement.unit,
            budget=min(sum(job.budget for job in jobs), MAX_MONEY),
            lease_us=lease_life_us(requirement.wall_limit_us),
            deadline_us=max((job.deadline_us for job in jobs), default=now_us + ORDER_LIFE_US),
        )
        return open_record(Order, sign_record(self._key, order))

    async def _ask_all(self, current: _Round, asked: list[Candidate], requirement: Requirement) -> None:
        async with trio.open_nursery() as nursery:
            for candidate in asked:
                nursery.start_soon(self._ask, current, candidate.peer, requirement)

    async def _ask(self, current: _Round, peer: PeerId, requirement: Requirement) -> None:
        cause = f"order {current.order.id.hex()[:8]}"
        self._tell(current.jobs, "order", cause, peer, "asked for a lease")
        talk = Negotiation(Role.REQUESTER, self._now_us())
        talk.step(Move.ORDER, Role.REQUESTER, self._now_us(), cause)
        current.talks[peer] = talk
        try:
            reply = await self._hub.request(
                peer, "order", OrderRequest(current.order.signed), OrderReply, deadline_s=WINDOW_SECONDS
            )
            if reply.bid is not None:
                bid = open_record(Bid, reply.bid, signer=peer)
                check_bid(current.order, bid, self._now_us())
                if reasons := bid_misfits(bid.record, requirement):
                    raise RemoteProtocolError("; ".join(reasons))
                talk.step(Move.BID, Role.PROVIDER, self._now_us(), cause)
                current.bids[peer] = bid
                price = format_rate(bid.record.rate, bid.record.unit)
                self._tell(current.jobs, "bid", cause, peer, f"{bid.record.device_name} at {price}")
            elif reply.decline is not None:
                decline = open_record(Decline, reply.decline, signer=peer)
                if decline.record.order != current.order.id:
                    raise RemoteProtocolError("the decline is for another order")
                talk.step(Move.DECLINE, Role.PROVIDER, self._now_us(), cause)
                self._refused(current, peer, decline.record.code, decline.record.sentence)
            else:
                raise RemoteProtocolError("answered an order with neither bid nor decline")
        except Refused as refusal:
            self._refused(current, peer, refusal.code, refusal.sentence)
        except Unreachable as error:
            current.declined += 1
            self._tell(current.jobs, "silent", cause, peer, str(error))
            _note_refusal(current.jobs, peer, f"no answer: {error}")
        except RemoteProtocolError as error:
            current.declined += 1
            self._tell(current.jobs, "evidence", cause, peer, str(error))
            _note_refusal(current.jobs, peer, f"broke the protocol: {error}")

    def _refused(self, current: _Round, peer: PeerId, code: str, sentence: str) -> None:
        current.declined += 1
        cause = f"order {current.order.id.hex()[:8]}"
        self._tell(current.jobs, "decline", cause, peer, f"{code}: {sentence}")
        _note_refusal(current.jobs, peer, f"{code}: {sentence}")
        if code in LASTING_CODES:
            current.lasting.add(peer)

    async def _award(
        self, current: _Round, want: WantLeases, granted: Callable[[GrantedLease], None]
    ) -> None:
        ranked = rank_bids(bid.record for bid in current.bids.values())
        ordered = choose_bids(ranked, len(ranked), want.held)
        missing = want.count
        while ordered and missing > 0:
            batch, ordered = ordered[:missing], ordered[missing:]
            won: list[bool] = []
            async with trio.open_nursery() as nursery:
                for bid in batch:
                    offered = current.bids[PeerId(bid.provider)]
                    nursery.start_soon(self._sign_with, current, offered, want, granted, won)
            missing -= len(won)
        async with trio.open_nursery() as nursery:
            for bid in ordered:
                nursery.start_soon(self._abandon, current, PeerId(bid.provider))

    async def _sign_with(
        self,
        current: _Round,
        bid: Opened[Bid],
        want: WantLeases,
        granted: Callable[[GrantedLease], None],
        won: list[bool],
    ) -> None:
        peer = PeerId(bid.record.provider)
        talk = current.talks[peer]
        cause = f"bid {bid.id.hex()[:8]}"
        try:
            opened = self._new_lease(current.order, bid, want)
        except MeshError as error:  # it was good when it came, and has expired since
            self._tell(current.jobs, "decline", cause, peer, f"no lease: {error}")
            return
        self._tell(current.jobs, "award", cause, peer, f"lease {opened.id.hex()[:8]} offered")
        try:
            await self._ledger.commit(LeaseOffered(opened.signed, current.order.signed, bid.signed))
            talk.step(Move.LEASE_OFFER, Role.REQUESTER, self._now_us(), cause)
            reply = await self._hub.request(
                peer, "lease", LeaseRequest(opened.signed), LeaseReply, deadline_s=LEASE_SECONDS
            )
            signed = self._agreed(opened, reply, peer)
            await self._ledger.commit(LeaseAgreed(opened.id, signed.signed))
            talk.step(Move.LEASE_ACCEPT, Role.PROVIDER, self._now_us(), cause)
        except MeshError as error:
            current.declined += 1
            self._tell(current.jobs, "decline", cause, peer, f"no lease: {error}")
            await self._end_quietly(opened, peer)
            return
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._end_quietly(opened, peer)
            raise
        won.append(True)
        self._tell(current.jobs, "lease", cause, peer, f"lease {opened.id.hex()[:8]} signed by both")
        granted(GrantedLease(opened, peer, want.requirement, bid.record.device_name, talk))

    def _new_lease(self, order: Opened[Order], bid: Opened[Bid], want: WantLeases) -> Opened[Lease]:
        lane, nonce = self._random_bytes(16), self._random_bytes(16)
        lease = build_lease(order, bid, lane, nonce, self._now_us(), fresh=want.requirement.fresh)
        return open_record(Lease, sign_record(self._key, lease), signer=self._key.peer)

    async def _end_quietly(self, opened: Opened[Lease], peer: PeerId) -> None:
        """Close a lease that came to nothing here. The provider may have signed it: its slot must come free."""
        request = CancelRequest(opened.id, None, "not-agreed", "the lease was not agreed in time", None)
        try:
            await self._ledger.commit(LeaseEnded(opened.id, "not-agreed"))
            await self._hub.request(peer, "cancel", request, Nothing, deadline_s=WINDOW_SECONDS)
        except MeshError as error:
            _log.debug("ending lease %s: %s", opened.id.hex()[:12], error)

    def _agreed(self, opened: Opened[Lease], reply: LeaseReply, peer: PeerId) -> Opened[Lease]:
        """The lease with the provider's signature. Raises Refused with its decline, RemoteProtocolError otherwise."""
        if reply.lease is None:
            if reply.decline is None:
                raise RemoteProtocolError("answered a lease with neither signature nor decline")
            decline = open_record(Decline, reply.decline, signer=peer).record
            raise Refused(decline.code, decline.sentence)
        signed = open_record(Lease, reply.lease, signer=peer)
        if signed.signed.body != opened.signed.body:
            raise RemoteProtocolError("signed another lease than the one offered")
        return signed

    async def _abandon(self, current: _Round, peer: PeerId) -> None:
        body = OrderAbandoned(current.order.id, current.order.record.job)
        try:
            await self._hub.request(peer, "abandon", body, Nothing, deadline_s=WINDOW_SECONDS)
        except MeshError as error:
            _log.debug("abandon to %s: %s", short_peer(peer), error)  # its reservation expires by itself

    def _tell(self, jobs: Iterable[JobState], kind: str, cause: str, peer: PeerId | None, text: str) -> None:
        for job in jobs:
            self._ledger.note(StoryLine(job.job, self._now_us(), cause, kind, peer, None, text))


def _note_refusal(jobs: Iterable[JobState], peer: PeerId, reason: str) -> None:
    for job in jobs:
        job.refused_by(peer, reason)


def _all_refuse(found: Survey, declined: set[PeerId]) -> bool:
    """Is there a provider at all, and does each refuse for good, by its announcement or its decline?"""
    providers = {candidate.peer for candidate in found.fitting} | found.misfits.keys()
    providers -= found.without_device
    return bool(providers) and providers == found.lasting | declined
