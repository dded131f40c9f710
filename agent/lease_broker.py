"""The requester's side of getting leases: the shell around an `Auction`.

Every provider that fits is asked on its control stream, all at once. What comes back becomes events of the auction, and
what it wants is carried out in a nursery that ends with it: also where a negotiation is cancelled, everybody who may
hold a slot for it is told, so that the slot is free at once. Declines count only with a valid signature.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import trio
from blake3 import blake3

from coppermesh.agent import auction
from coppermesh.agent.auction import Auction
from coppermesh.agent.dispatch_events import WantLeases
from coppermesh.agent.histogram import histogram
from coppermesh.agent.jobs import JobState
from coppermesh.agent.lease_signing import GrantedLease, LeaseSigner
from coppermesh.agent.leases import check_bid, lease_life_us
from coppermesh.agent.ledger_store import LedgerStore
from coppermesh.agent.matching import (
    Candidate,
    Refusal,
    Requirement,
    Survey,
    bid_misfits,
    survey,
    whom_to_ask,
)
from coppermesh.agent.negotiation import Move, Negotiation, Role
from coppermesh.agent.policy import LASTING_CODES
from coppermesh.agent.pricing import MAX_MONEY, format_rate
from coppermesh.agent.ranking import Offer, Place, rank
from coppermesh.agent.speeds import OwnSpeeds
from coppermesh.agent.story import StoryLine
from coppermesh.p2p.announcements import AnnouncementBook
from coppermesh.p2p.control import ControlHub
from coppermesh.p2p.envelope import Opened, open_record, seal_record
from coppermesh.p2p.errors import MeshError, Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import MeshId, PeerId, short_peer
from coppermesh.p2p.messages import Nothing, OrderAbandoned, OrderReply, OrderRequest
from coppermesh.p2p.records import Bid, Decline, Order
from coppermesh.p2p.signing import PeerKey

WINDOW_SECONDS = auction.WINDOW_US / 1e6
TELL_SECONDS = 2.0
"""How long telling a provider that its bid is not taken may take."""
ORDER_LIFE_US = 30_000_000
MAX_SOUGHT = 8
"""Providers that fit and are not connected, sought for one order; the best by announcement first."""
BY_US = "; a lease of ours is among what it serves"

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Round:
    """One order and what came back."""

    order: Opened[Order]
    requirement: Requirement
    jobs: list[JobState]
    auction: Auction
    talks: dict[PeerId, Negotiation] = field(default_factory=dict)
    bids: dict[PeerId, Opened[Bid]] = field(default_factory=dict)
    declined: int = 0
    lasting: set[PeerId] = field(default_factory=set)
    """Who declined for a reason that time does not change."""
    refusals: dict[PeerId, tuple[Refusal, ...]] = field(default_factory=dict)
    held: frozenset[PeerId] = frozenset()
    """Providers that serve us already."""


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What came of a negotiation besides the leases."""

    heard: int
    """Providers whose announcements were heard."""
    declined: int
    """Providers that were asked and declined or did not answer."""
    hopeless: bool
    """Somebody who offers a device was heard, and all of them refuse for a reason that time does not change."""
    left: frozenset[PeerId] | None
    """Those heard that do not refuse for good; None: not known."""
    places: tuple[Place, ...] = ()
    """The ranking of the bids."""
    refusals: dict[PeerId, tuple[Refusal, ...]] = field(default_factory=dict)
    """Everybody else who was heard and offers something."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What this agent knows of providers besides what they say."""

    speeds: OwnSpeeds
    reputation: Callable[[PeerId, str], Awaitable[int]]
    """0 to 1000, for dealings in a unit."""
    missing_bytes: Callable[[Sequence[JobState], PeerId], int]
    """What would have to be sent to a provider for some tasks of the jobs."""


class LeaseBroker:
    """Turns `WantLeases` into signed leases."""

    def __init__(
        self,
        key: PeerKey,
        mesh: MeshId,
        hub: ControlHub,
        ledger: LedgerStore,
        book: AnnouncementBook,
        knowledge: Knowledge,
        *,
        now_us: Callable[[], int],
        random_bytes: Callable[[int], bytes],
        seek: Callable[[list[PeerId]], None] = lambda _: None,
    ) -> None:
        """`seek` is told of providers that fit and are not connected; of nobody where nobody fits."""
        self._key = key
        self._mesh = mesh
        self._hub = hub
        self._ledger = ledger
        self._book = book
        self._knowledge = knowledge
        self._now_us = now_us
        self._random_bytes = random_bytes
        self._seek = seek
        self._signer = LeaseSigner(key, hub, ledger, now_us=now_us, random_bytes=random_bytes)

    async def negotiate(
        self, want: WantLeases, jobs: list[JobState], granted: Callable[[GrantedLease], None]
    ) -> Negotiated:
        """Try to get `want.count` leases for `jobs`, calling `granted` for each. `want.count` 0: only rank the bids."""
        found = survey(
            (known.record for known in self._book.current(self._now_us())),
            want.requirement,
            self._now_us(),
            want.exclude,
        )
        refusals = {peer: why for peer, why in found.misfits.items() if peer not in found.without_device}
        for peer, reasons in found.misfits.items():
            text = f"not asked: {'; '.join(map(str, reasons))}"
            self._note(jobs, "announcement", peer, text)
            if peer not in want.exclude and peer not in found.without_device:
                _note_refusal(jobs, peer, *reasons)
        asked, slow = self._whom_to_ask(found, want, jobs, refusals)
        order = self._new_order(want, jobs)
        draw = partial(_spread, held=want.held, draw=order.id)
        market = Auction(asked, want.count, self._now_us(), draw)
        current = _Round(
            order, want.requirement, jobs, market, lasting=slow, refusals=refusals, held=want.held
        )
        if asked:
            await self._run(current, granted)
        if not market.places and refusals:
            counted = histogram({peer: why[0].code for peer, why in refusals.items()}, want.requirement)
            self._note(jobs, f"order {order.id.hex()[:8]}", None, f"no bids: {counted}")
        providers = (
            {candidate.peer for candidate in found.fitting} | found.misfits.keys()
        ) - found.without_device
        for_good = found.lasting | current.lasting
        return Negotiated(
            heard=len(found.fitting) + len(found.misfits),
            declined=current.declined,
            hopeless=bool(providers) and providers == for_good,
            left=frozenset(providers - for_good),
            places=tuple(market.places),
            refusals=refusals,
        )

    def _whom_to_ask(
        self,
        found: Survey,
        want: WantLeases,
        jobs: list[JobState],
        refusals: dict[PeerId, tuple[Refusal, ...]],
    ) -> tuple[list[PeerId], set[PeerId]]:
        """Of those that fit: who is connected and not known to be too slow; and who is too slow."""
        connected, requirement, know = set(self._hub.peers()), want.requirement, self._knowledge
        away: list[PeerId] = []
        slow: set[PeerId] = set()
        programs = _programs(jobs)
        reachable: list[Candidate] = []
        for candidate in found.fitting:
            peer = candidate.peer
            speed = know.speeds.speed(peer, programs) if requirement.min_speed else 0
            if 0 < speed < requirement.min_speed:
                text = f"measured here at {speed} Mop/s on these programs, wanted {requirement.min_speed}"
                slow.add(peer)
                self._pass_over(jobs, peer, Refusal("speed", text), refusals)
            elif peer not in connected:
                away.append(peer)
                self._pass_over(
                    jobs, peer, Refusal("unconnected", "announced, but no connection to it"), refusals
                )
            else:
                reachable.append(candidate)
        if away or not reachable:
            self._seek(away[:MAX_SOUGHT])
        drawn = self._random_bytes(16)
        chosen = whom_to_ask(
            reachable, want.count, want.fruitless, lambda peer: blake3(drawn + peer).digest()
        )
        return [candidate.peer for candidate in chosen], slow

    def _pass_over(
        self,
        jobs: list[JobState],
        peer: PeerId,
        why: Refusal,
        refusals: dict[PeerId, tuple[Refusal, ...]],
    ) -> None:
        self._tell(jobs, "silent", "announcement", peer, str(why))
        _note_refusal(jobs, peer, why)
        refusals[peer] = (why,)

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
        return seal_record(self._key, order)

    async def _run(self, current: _Round, granted: Callable[[GrantedLease], None]) -> None:
        """The auction from the first question to its end, also where that is a cancellation."""
        events_in, events_out = trio.open_memory_channel[auction.Event](math.inf)
        market = current.auction
        try:
            async with trio.open_nursery() as nursery:
                for peer in market.bidders:
                    nursery.start_soon(self._ask, current, peer, events_in)
                while not market.closed:
                    left_us = market.deadline_us - self._now_us()
                    event: auction.Event = auction.TimePassed()
                    with trio.move_on_after(left_us / 1e6 if left_us > 0 else math.inf):
                        event = await events_out.receive()
                    for instruction in market.handle(event, self._now_us()):
                        if isinstance(instruction, auction.OfferLease):
                            nursery.start_soon(self._sign, current, instruction.place, events_in, granted)
                        elif isinstance(instruction, auction.Abandon):
                            nursery.start_soon(self._abandon, current, instruction.peer)
        finally:
            if not market.closed:
                # Those that are being signed end by themselves, as they are cancelled.
                with trio.move_on_after(TELL_SECONDS, shield=True):
                    async with trio.open_nursery() as nursery:
                        for instruction in market.handle(auction.Stop(), self._now_us()):
                            if isinstance(instruction, auction.Abandon):
                                nursery.start_soon(self._abandon, current, instruction.peer)

    async def _ask(
        self, current: _Round, peer: PeerId, events: trio.MemorySendChannel[auction.Event]
    ) -> None:
        cause = f"order {current.order.id.hex()[:8]}"
        self._tell(current.jobs, "order", cause, peer, "asked for a lease")
        talk = Negotiation(Role.REQUESTER, self._now_us())
        talk.step(Move.ORDER, Role.REQUESTER, self._now_us(), cause)
        current.talks[peer] = talk
        asked_us = self._now_us()
        event: auction.Event = auction.Silent(peer)
        try:
            reply = await self._hub.request(
                peer, "order", OrderRequest(current.order.signed), OrderReply, deadline_s=WINDOW_SECONDS
            )
            bid = self._opened(current, peer, reply, talk)
            offer = await self._offer(current, bid.record, self._now_us() - asked_us)
            current.bids[peer] = bid
            event = auction.BidArrived(peer, offer)
            price = format_rate(bid.record.rate, bid.record.unit)
            self._tell(current.jobs, "bid", cause, peer, f"{bid.record.device_name} at {price}")
        except Refused as refusal:
            self._refused(current, peer, "decline", Refusal(refusal.code, refusal.sentence))
            if refusal.code in LASTING_CODES:
                current.lasting.add(peer)
            event = auction.Declined(peer)
        except Unreachable as error:
            self._refused(current, peer, "silent", Refusal("silent", f"no answer: {error}"))
        except RemoteProtocolError as error:
            self._refused(current, peer, "evidence", Refusal("protocol", f"broke the protocol: {error}"))
        events.send_nowait(event)

    def _opened(self, current: _Round, peer: PeerId, reply: OrderReply, talk: Negotiation) -> Opened[Bid]:
        """The bid, checked against the order. Raises Refused for a signed decline, RemoteProtocolError."""
        cause = f"order {current.order.id.hex()[:8]}"
        if reply.bid is not None:
            bid = open_record(Bid, reply.bid, signer=peer)
            check_bid(current.order, bid, self._now_us())
            if reasons := bid_misfits(bid.record, current.requirement):
                raise RemoteProtocolError("; ".join(reasons))
            talk.step(Move.BID, Role.PROVIDER, self._now_us(), cause)
            return bid
        if reply.decline is None:
            raise RemoteProtocolError("answered an order with neither bid nor decline")
        decline = open_record(Decline, reply.decline, signer=peer)
        if decline.record.order != current.order.id:
            raise RemoteProtocolError("the decline is for another order")
        talk.step(Move.DECLINE, Role.PROVIDER, self._now_us(), cause)
        raise Refused(decline.record.code, decline.record.sentence)

    async def _offer(self, current: _Round, bid: Bid, latency_us: int) -> Offer:
        """The bid with what is known here of its provider."""
        peer, know = PeerId(bid.provider), self._knowledge
        return Offer(
            bid,
            speed=know.speeds.speed(peer, _programs(current.jobs)),
            reputation=await know.reputation(peer, bid.unit),
            missing_bytes=know.missing_bytes(current.jobs, peer),
            latency_us=latency_us,
        )

    def _refused(self, current: _Round, peer: PeerId, kind: str, why: Refusal) -> None:
        current.declined += 1
        cause = f"order {current.order.id.hex()[:8]}"
        by_us = why.code == "busy" and peer in current.held
        self._tell(current.jobs, kind, cause, peer, f"{why}{BY_US if by_us else ''}")
        if not by_us:  # whoever waits would take it for a trouble
            _note_refusal(current.jobs, peer, why)
        current.refusals[peer] = (why,)

    async def _sign(
        self,
        current: _Round,
        place: Place,
        events: trio.MemorySendChannel[auction.Event],
        granted: Callable[[GrantedLease], None],
    ) -> None:
        peer, bid = place.peer, current.bids[place.peer]
        cause = f"bid {bid.id.hex()[:8]}"
        self._tell(current.jobs, "award", cause, peer, f"place {place.number}: {place.reason}")
        try:
            lease = await self._signer.sign(current.order, bid, current.requirement, current.talks[peer])
        except MeshError as error:
            current.declined += 1
            self._tell(current.jobs, "decline", cause, peer, f"no lease: {error}")
            events.send_nowait(auction.LeaseFailed(peer))
            return
        self._tell(current.jobs, "lease", cause, peer, f"lease {lease.lease.id.hex()[:8]} signed by both")
        granted(lease)
        events.send_nowait(auction.LeaseSigned(peer))

    async def _abandon(self, current: _Round, peer: PeerId) -> None:
        body = OrderAbandoned(current.order.id, current.order.record.job)
        try:
            await self._hub.request(peer, "abandon", body, Nothing, deadline_s=TELL_SECONDS)
        except MeshError as error:
            _log.debug("abandon to %s: %s", short_peer(peer), error)  # its reservation expires by itself

    def _note(self, jobs: Iterable[JobState], cause: str, peer: PeerId | None, text: str) -> None:
        """A line of the story that a job that waits long would have over and over: only where it is something new."""
        new = [job for job in jobs if job.is_new_note(peer, text)]
        self._tell(new, "note", cause, peer, text)

    def _tell(self, jobs: Iterable[JobState], kind: str, cause: str, peer: PeerId | None, text: str) -> None:
        for job in jobs:
            if not job.dry:
                self._ledger.note(StoryLine(job.job, self._now_us(), cause, kind, peer, None, text))


def _spread(offers: Sequence[Offer], *, held: Collection[PeerId], draw: bytes) -> list[Place]:
    """The ranking, those that hold a lease for the same already behind all others."""
    return sorted(rank(offers, draw), key=lambda place: place.peer in held)


def _programs(jobs: Iterable[JobState]) -> set[bytes]:
    return {program for job in jobs for program in job.programs}


def _note_refusal(jobs: Iterable[JobState], peer: PeerId, *why: Refusal) -> None:
    for job in jobs:
        job.refused_by(peer, *why)
