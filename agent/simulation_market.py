"""The market under simulation: requesters with jobs, providers with one device each, and some of both that cheat
(pure).

Every requester runs the real `Dispatcher`, `survey`, `Auction` with its ranking, and reputation from its own dealings;
every provider the real policy (`decide`), `Reservations` and `Exposure`. What is left out is the wire: announcements
are known `KNOWN_SECONDS` late, messages take some ten milliseconds, nothing is signed, and a lease's tasks run one
after another at the device's speed.

Bad ones, by share: requesters that never countersign; providers that bid low, take tasks and never deliver; providers
that die in the middle of their work, again and again. With churn, honest providers leave and come back too.

`simulation_market_report` says what is looked at.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from blake3 import blake3

from coppermesh.agent import dispatch_events as events
from coppermesh.agent.auction import (
    Abandon,
    Auction,
    BidArrived,
    Declined,
    LeaseFailed,
    LeaseSigned,
    OfferLease,
    TimePassed,
)
from coppermesh.agent.auction import Event as AuctionEvent
from coppermesh.agent.exposure import Exposure, Go, Leave, interval_cost
from coppermesh.agent.leases import lease_life_us
from coppermesh.agent.matching import Requirement, bid_misfits, survey, whom_to_ask
from coppermesh.agent.policy import BidTerms, DeviceState, ProviderState, decide
from coppermesh.agent.pricing import amount_for
from coppermesh.agent.ranking import Offer, rank
from coppermesh.agent.reputation import Dealings, Facts, score
from coppermesh.agent.reservations import Reservations
from coppermesh.agent.simulation import SECOND, EventHeap
from coppermesh.agent.simulation_deals import bid_on, order_for
from coppermesh.agent.simulation_traders import (
    MESH,
    WALL_US,
    HeldLease,
    MarketCounts,
    SimProvider,
    SimRequester,
    Work,
)
from coppermesh.p2p.ids import Digest, PeerId
from coppermesh.p2p.records import Bid, DeviceOffer, Order

if TYPE_CHECKING:
    from random import Random

KNOWN_SECONDS = 2.0
UNIT = "usd"
DEADLINE_SECONDS = 900.0
GRACE_SECONDS = 20.0
"""As `task_driver`: a result is waited for so long past the wall limits of the tasks ahead."""
MEAN_AWAY_SECONDS = 120.0
MEAN_LIFE_SECONDS = 240.0
"""Of a provider that dies again and again."""
MEAN_JOB_SECONDS = 120.0
TASK_SECONDS = 0.03
"""From a requester to a provider."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketScenario:
    """What is simulated. Shares are between 0 and 1."""

    providers: int = 200
    requesters: int = 50
    seed: int = 1
    minutes: float = 60.0
    churn: float = 0.02
    """Share of the honest providers that leaves in a minute."""
    never_pay: float = 0.1
    """Of the requesters."""
    stall: float = 0.1
    """Of the providers."""
    die: float = 0.05
    """Of the providers."""


class MarketSimulation:
    """One run."""

    def __init__(self, scenario: MarketScenario, rng: "Random") -> None:
        self.scenario = scenario
        self.rng = rng
        self.heap = EventHeap()
        self.counts = MarketCounts()
        self.providers = [self._make_provider(number) for number in range(scenario.providers)]
        self.by_peer = {provider.peer: provider for provider in self.providers}
        self.requesters = [
            SimRequester(
                _peer(b"requester", number, scenario.seed),
                self.heap.now_us,
                pays=number >= round(scenario.never_pay * scenario.requesters),
            )
            for number in range(scenario.requesters)
        ]
        self._numbers = 0

    def _make_provider(self, number: int) -> SimProvider:
        scenario, rng = self.scenario, self.rng
        stalls = round(scenario.stall * scenario.providers)
        dies = round(scenario.die * scenario.providers)
        kind = "stalls" if number < stalls else "dies" if number < stalls + dies else "honest"
        speed = rng.choice((0.5, 1.0, 1.0, 2.0))
        rate = int(rng.uniform(200_000, 500_000) * speed)
        offer = DeviceOffer(
            device="gpu0", kind="cuda", name="simulated GPU", rate=rate // 4 if kind == "stalls" else rate,
            unit=UNIT, memory_bytes=rng.choice((8, 16, 24, 48)) << 30, slots=1, features=["array-programs"],
            meter="simulated", compute_capability="8.9", uuid=None, driver=None, total_bytes=None,
        )  # fmt: skip
        return SimProvider(_peer(b"provider", number, scenario.seed), offer, speed, kind)

    def begin(self) -> None:
        """Plan what happens by itself."""
        for requester in self.requesters:
            self.heap.after(MEAN_JOB_SECONDS * self.rng.random(), self._submit, requester)
        for provider in self.providers:
            if provider.kind == "dies":
                self._plan(MEAN_LIFE_SECONDS, self._die, provider)
            elif provider.kind == "honest" and self.scenario.churn:
                self._plan(60.0 / self.scenario.churn, self._die, provider)

    def _plan(self, mean_seconds: float, action: Callable[..., None], *arguments: object) -> None:
        self.heap.after(self.rng.expovariate(1 / mean_seconds), action, *arguments)

    def _soon(self, action: Callable[..., object], *arguments: object) -> None:
        """After a message has gone one way."""
        self.heap.after(0.01 + 0.04 * self.rng.random(), action, *arguments)

    # Providers coming and going

    def _die(self, provider: SimProvider) -> None:
        provider.up = False
        provider.life += 1
        for lease in list(provider.leases.values()):
            self._end_lease(lease)
            self._soon(self._lost, lease, "connection-lost", "the provider died")
        self.heap.after(KNOWN_SECONDS, self._make_known, provider, False)
        self._plan(MEAN_AWAY_SECONDS, self._return, provider)

    def _return(self, provider: SimProvider) -> None:
        provider.up = True
        provider.reservations = Reservations({provider.offer.device: 1})
        self.heap.after(KNOWN_SECONDS, self._make_known, provider, True)
        mean = MEAN_LIFE_SECONDS if provider.kind == "dies" else 60.0 / self.scenario.churn
        self._plan(mean, self._die, provider)

    def _make_known(self, provider: SimProvider, up: bool) -> None:
        provider.known_up = up
        for requester in self.requesters:
            if requester.dispatcher.counts().tasks_waiting:
                self._tell(requester, events.ProvidersChanged())

    # The requester

    def _submit(self, requester: SimRequester) -> None:
        self._numbers += 1
        job = self._numbers.to_bytes(16, "big")
        if requester.pays:
            self.counts.jobs += 1
        requirement = Requirement(
            device_kind="cuda", memory_bytes=self.rng.choice((4, 8, 16)) << 30, wall_limit_us=WALL_US,
            max_rate=2_000_000,
        )  # fmt: skip
        deadline_us = self.heap.now_us + int(DEADLINE_SECONDS * SECOND)
        tasks = self.rng.randrange(4, 33)
        self._tell(requester, events.JobSubmitted(job, tasks, requirement, deadline_us))
        self._plan(MEAN_JOB_SECONDS, self._submit, requester)

    def _tell(self, requester: SimRequester, event: events.Event) -> None:
        """Give the dispatcher an event and carry out what it says."""
        for instruction in requester.dispatcher.handle(event, self.heap.now_us):
            self._carry_out(requester, instruction)
        due_us = requester.dispatcher.next_wakeup_us
        if due_us is not None and (requester.tick_due_us is None or due_us < requester.tick_due_us):
            requester.tick_due_us = due_us
            self.heap.at(due_us, self._tick, requester, due_us)

    def _tick(self, requester: SimRequester, due_us: int) -> None:
        if requester.tick_due_us == due_us:
            requester.tick_due_us = None
            self._tell(requester, events.Tick())

    def _carry_out(self, requester: SimRequester, instruction: events.Instruction) -> None:
        match instruction:
            case events.WantLeases():
                self.heap.after(0.0, self._negotiate, requester, instruction)
            case events.StartTask():
                self._start_task(requester, instruction)
            case events.CancelTask(job, index, lease):
                self._soon(self._cancel_task, requester, job, index, lease)
            case events.ReleaseLease(lease):
                held = requester.leases.pop(lease, None)
                if held is not None:
                    self._soon(self._end_lease, held)
            case events.JobFinished():
                self.counts.finished += requester.pays
            case events.JobFailed(_, code):
                if requester.pays:
                    self.counts.failed[code] = self.counts.failed.get(code, 0) + 1
            case events.ExtendLease(lease):  # providers here never extend: leases are negotiated anew
                refused = events.ExtensionRefused(lease, "busy", "others wait")
                self._soon(self._tell, requester, refused)
            case events.Supersede() | events.CopyFailed():
                pass

    def _negotiate(self, requester: SimRequester, want: events.WantLeases) -> None:
        now_us = self.heap.now_us
        known = [provider.announcement(now_us) for provider in self.providers if provider.known_up]
        found = survey(known, want.requirement, now_us, want.exclude)
        self._numbers += 1
        drawn = self._numbers.to_bytes(16, "big")
        chosen = whom_to_ask(
            found.fitting, want.count, want.fruitless, lambda peer: blake3(drawn + peer).digest()
        )
        asked = [candidate.peer for candidate in chosen]
        order = self._order(requester, want, self._numbers)
        auction = Auction(asked, want.count, now_us, partial(rank, draw=order.nonce * 2))
        self.heap.at(auction.deadline_us, self._feed, requester, want, order, auction, TimePassed())
        for peer in asked:
            self._soon(self._asked, self.by_peer[peer], requester, want, order, auction)
        if not asked:
            self._feed(requester, want, order, auction, TimePassed())

    def _order(self, requester: SimRequester, want: events.WantLeases, number: int) -> Order:
        return order_for(
            MESH,
            requester.peer,
            number.to_bytes(16, "big"),
            want.requirement,
            self.heap.now_us,
            tasks=8,
            budget=10**12,
            lease_us=lease_life_us(want.requirement.wall_limit_us),
        )

    def _feed(
        self,
        requester: SimRequester,
        want: events.WantLeases,
        order: Order,
        auction: Auction,
        event: AuctionEvent,
    ) -> None:
        was_closed = auction.closed
        for instruction in auction.handle(event, self.heap.now_us):
            match instruction:
                case OfferLease(place):
                    self._soon(self._sign, requester, want, order, auction, place.offer.bid)
                case Abandon(peer):
                    self._soon(self.by_peer[peer].reservations.release_bid, Digest(order.nonce * 2))
                case _:
                    pass
        if auction.closed and not was_closed:
            states = [state.value for state in auction.bidders.values()]
            declined = len(states) - states.count("leased") - states.count("abandoned")
            event_ended = events.NegotiationEnded(
                want.requirement, states.count("leased"), len(states), declined
            )
            self._tell(requester, event_ended)

    # The provider

    def _asked(
        self,
        provider: SimProvider,
        requester: SimRequester,
        want: events.WantLeases,
        order: Order,
        auction: Auction,
    ) -> None:
        if not provider.up:
            self._soon(self._feed, requester, want, order, auction, Declined(provider.peer))
            return
        now_us = self.heap.now_us
        interval = interval_cost(provider.offer.rate, order.wall_limit_us)
        known = provider.dealings.get(requester.peer, Dealings())
        exposure = provider.exposures.get(requester.peer)
        cost = amount_for(provider.offer.rate, order.wall_limit_us)
        used_up = exposure is not None and exposure.used_up(cost, provider.credit(requester.peer), now_us)
        state = ProviderState(
            mesh=MESH,
            devices=(DeviceState(provider.offer, provider.reservations.free(provider.offer.device)),),
            requester_holds=provider.reservations.held_by(requester.peer),
            requester_score=score(requester.peer, Facts(known, interval=interval)).score,
            unpaid="receipts wait for an answer" if used_up else "",
        )
        terms = decide(order, requester.peer, state, now_us)
        if not isinstance(terms, BidTerms) or not provider.reservations.reserve(
            Digest(order.nonce * 2), provider.offer.device, requester.peer, terms.expires_us, now_us
        ):
            self._soon(self._feed, requester, want, order, auction, Declined(provider.peer))
            return
        bid = bid_on(
            MESH,
            Digest(order.nonce * 2),
            provider.peer,
            order.nonce,
            terms.device,
            now_us,
            rate=terms.rate,
            depth=terms.depth,
            speed=int(1000 * provider.speed),
        )
        if bid_misfits(bid, want.requirement):
            raise AssertionError("the policy bid what the order does not want")
        dealt = requester.dealings.get(provider.peer, Dealings())
        reputation = score(provider.peer, Facts(dealt, interval=interval)).score
        arrived = BidArrived(provider.peer, Offer(bid, reputation=reputation))
        self._soon(self._feed, requester, want, order, auction, arrived)

    def _sign(
        self,
        requester: SimRequester,
        want: events.WantLeases,
        order: Order,
        auction: Auction,
        bid: Bid,
    ) -> None:
        provider, now_us = self.by_peer[PeerId(bid.provider)], self.heap.now_us
        lease_id = Digest(blake3(order.nonce + bid.provider).digest())
        expires_us = now_us + order.lease_us
        signed = provider.up and provider.reservations.convert(
            Digest(order.nonce * 2), lease_id, expires_us, now_us
        )
        if not signed:
            self._soon(self._feed, requester, want, order, auction, LeaseFailed(provider.peer))
            return
        lease = HeldLease(lease_id, provider, requester, bid.rate, want.requirement)
        provider.leases[lease_id] = requester.leases[lease_id] = lease
        self.heap.at(expires_us, self._expire, lease)
        self._tell(
            requester,
            events.LeaseUp(
                lease_id, provider.peer, want.requirement, bid.depth, expires_us, order.budget, bid.rate
            ),
        )
        self._feed(requester, want, order, auction, LeaseSigned(provider.peer))

    def _expire(self, lease: HeldLease) -> None:
        if not lease.over:
            self._end_lease(lease)
            self._soon(self._lost, lease, "expired", "the lease's time was up")

    def _end_lease(self, lease: HeldLease) -> None:
        """At the provider: its slot comes free, its tasks are dropped unpaid."""
        if lease.over:
            return
        lease.over = True
        provider = lease.provider
        provider.leases.pop(lease.id, None)
        provider.reservations.release_lease(lease.id)
        exposure = provider.exposures.get(lease.requester.peer)
        if exposure is not None and lease.running is not None:
            exposure.released(lease.running.number.to_bytes(8, "big"))
        lease.running = None
        lease.queue.clear()

    def _lost(self, lease: HeldLease, code: str, sentence: str) -> None:
        """The requester learns that a lease is over."""
        if lease.requester.leases.pop(lease.id, None) is not None:
            for key in [key for key in lease.requester.attempts if key[2] == lease.id]:
                del lease.requester.attempts[key]
                self._waste(lease)
            if code == "connection-lost":
                self._note(lease.requester.dealings, lease.provider.peer, tasks_failed=1)
            self._tell(lease.requester, events.LeaseLost(lease.id, code, sentence))

    # Tasks

    def _start_task(self, requester: SimRequester, start: events.StartTask) -> None:
        lease = requester.leases[start.lease]
        self._numbers += 1
        work = Work(start.job, start.index, self._numbers, self.rng.uniform(2.0, 8.0) / lease.provider.speed)
        requester.attempts[start.job, start.index, start.lease] = work.number
        self.heap.after(TASK_SECONDS, self._arrive, lease, work)  # one stream: they come in their order
        ahead = sum(key[2] == start.lease for key in requester.attempts)
        self.heap.after(ahead * WALL_US / SECOND + GRACE_SECONDS, self._time_out, lease, work)

    def _arrive(self, lease: HeldLease, work: Work) -> None:
        if not lease.over:
            lease.queue.append(work)
            self._run_next(lease)

    def _run_next(self, lease: HeldLease) -> None:
        """Start the next task where the requester's credit allows it."""
        if lease.over or lease.running is not None or not lease.queue:
            return
        provider, peer = lease.provider, lease.requester.peer
        exposure = provider.exposures.setdefault(peer, Exposure())
        work = lease.queue[0]
        cost = amount_for(lease.rate, WALL_US)
        verdict = exposure.ask(work.number.to_bytes(8, "big"), cost, provider.credit(peer), self.heap.now_us)
        if isinstance(verdict, Leave):
            self._note(provider.dealings, peer, overdue=1)
            self._end_lease(lease)
            self._soon(self._lost, lease, "unpaid", verdict.sentence)
        elif isinstance(verdict, Go):
            lease.queue.popleft()
            lease.running = work
            if provider.kind != "stalls":
                self.heap.after(work.seconds, self._done, lease, work)
        else:
            self.heap.at(verdict.until_us, self._run_next, lease)

    def _done(self, lease: HeldLease, work: Work) -> None:
        if lease.over or lease.running is not work:
            return
        lease.running = None
        provider, requester = lease.provider, lease.requester
        amount = amount_for(lease.rate, int(work.seconds * SECOND))
        receipt = work.number.to_bytes(8, "big")
        exposure = provider.exposures[requester.peer]
        exposure.billed(receipt, receipt, amount, 0, self.heap.now_us)
        self._look_at_stake(provider, requester)
        self._soon(self._result, lease, work, amount)
        self._run_next(lease)

    def _look_at_stake(self, provider: SimProvider, requester: SimRequester) -> None:
        unpaid = sum(owed.amount for owed in provider.exposures[requester.peer].unpaid.values())
        if provider.kind == "honest":
            self.counts.worst_unpaid = max(self.counts.worst_unpaid, unpaid)
            credit = max(1, provider.credit(requester.peer))
            self.counts.worst_share = max(self.counts.worst_share, unpaid / credit)

    def _result(self, lease: HeldLease, work: Work, amount: int) -> None:
        """The requester has the outputs; who never pays keeps them and says nothing."""
        requester, key = lease.requester, (work.job, work.index, bytes(lease.id))
        wanted = requester.attempts.get(key) == work.number
        if wanted:
            del requester.attempts[key]
            self.counts.tasks_done += requester.pays
            self._note(requester.dealings, lease.provider.peer, tasks_ok=1, countersigned=amount)
            self._tell(requester, events.TaskDone(work.job, work.index, lease.id, amount))
        if requester.pays:
            self._soon(self._countersigned, lease, work, amount if wanted else 0)

    def _countersigned(self, lease: HeldLease, work: Work, amount: int) -> None:
        provider, peer = lease.provider, lease.requester.peer
        provider.exposures[peer].answered(work.number.to_bytes(8, "big"))
        self._note(provider.dealings, peer, tasks_ok=1, countersigned=amount)
        self._run_next(lease)

    def _time_out(self, lease: HeldLease, work: Work) -> None:
        requester, key = lease.requester, (work.job, work.index, bytes(lease.id))
        if requester.attempts.get(key) != work.number:
            return
        del requester.attempts[key]
        if lease.id not in requester.leases:
            return  # the dispatcher knows already
        self._note(requester.dealings, lease.provider.peer, tasks_failed=1)
        self._waste(lease)
        self._soon(self._drop, lease, work)
        sentence = "no result came in time"
        self._tell(
            requester,
            events.TaskFailed(work.job, work.index, lease.id, "provider", "no-result", sentence),
        )

    def _waste(self, lease: HeldLease) -> None:
        """A task came to nothing there."""
        if lease.provider.kind != "honest" and lease.requester.pays:
            key = (lease.requester.peer, lease.provider.peer)
            self.counts.wasted_at_bad.setdefault(key, []).append(self.heap.now_us)

    def _cancel_task(self, requester: SimRequester, job: bytes, index: int, lease_id: bytes) -> None:
        lease = requester.leases.get(lease_id)
        number = requester.attempts.pop((job, index, bytes(lease_id)), None)
        if lease is None:
            return
        if lease.running is not None and lease.running.number == number and lease.provider.kind == "stalls":
            self._waste(lease)  # it was overtaken there
        for work in [*lease.queue, *([lease.running] if lease.running else [])]:
            if work.number == number:
                self._drop(lease, work)
        self._tell(requester, events.TaskFailed(job, index, lease_id, "provider", "cancelled", "cancelled"))

    def _drop(self, lease: HeldLease, work: Work) -> None:
        if lease.running is work:
            lease.running = None
            lease.provider.exposures[lease.requester.peer].released(work.number.to_bytes(8, "big"))
            self._run_next(lease)
        elif work in lease.queue:
            lease.queue.remove(work)

    @staticmethod
    def _note(dealings: dict[PeerId, Dealings], peer: PeerId, **more: int) -> None:
        before = dealings.get(peer, Dealings())
        dealings[peer] = replace(before, **{name: getattr(before, name) + n for name, n in more.items()})


def _peer(role: bytes, number: int, seed: int) -> PeerId:
    return PeerId(blake3(b"%s %d of seed %d" % (role, number, seed)).digest())
