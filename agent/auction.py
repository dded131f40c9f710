"""One order's reverse auction at the requester: who is asked, who answered, who gets a lease, who is let go (pure).

Theory of operation. Everybody who fits is asked at once. The window closes when each has answered, or after
`WINDOW_US`; then leases are offered to the best bids, and to the next best where one is refused, until as many are
signed as were wanted. A bid holds a slot of its provider. So whatever way an auction takes (the window's end, enough
leases, cancellation), each provider that may hold a slot for it is told: `Abandon` where only a bid can be there,
`Withdraw` where a lease was offered and may have been signed. The one who never answered is told too, since its bid may
be on its way. Where that message is lost, the bid's own expiry frees the slot.

Events may come late, twice or after the end: a bid that comes late is abandoned, a signature that comes late is
withdrawn.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum

from coppermesh.agent.ranking import Offer, Place
from coppermesh.p2p.ids import PeerId

WINDOW_US = 2_000_000
"""How long bids are waited for."""


class Bidder(Enum):
    """Where one provider stands in the auction."""

    ASKED = "asked"
    BID = "bid"
    DECLINED = "declined"
    SILENT = "silent"
    OFFERED = "offered"
    LEASED = "leased"
    REFUSED = "refused"
    ABANDONED = "abandoned"
    WITHDRAWN = "withdrawn"


OPEN = frozenset({Bidder.ASKED, Bidder.BID, Bidder.OFFERED})
"""States that a closed auction has nobody in."""


@dataclass(frozen=True, slots=True)
class BidArrived:
    """A bid that holds what it must (`check_bid`, `bid_misfits`)."""

    peer: PeerId
    offer: Offer


@dataclass(frozen=True, slots=True)
class Declined:
    """It does not bid, and is not asked again in this auction."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Silent:
    """It cannot be reached, or broke the protocol: whether it holds a slot is not known."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class LeaseSigned:
    """Both sides signed."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class LeaseFailed:
    """It did not sign the lease that it was offered, or nobody knows; whoever reports it has ended that lease."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Stop:
    """Nobody wants the leases any more."""


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The clock was looked at."""


Event = BidArrived | Declined | Silent | LeaseSigned | LeaseFailed | Stop | TimePassed


@dataclass(frozen=True, slots=True)
class OfferLease:
    """Sign a lease on this bid and send it; report `LeaseSigned` or `LeaseFailed`."""

    place: Place


@dataclass(frozen=True, slots=True)
class Abandon:
    """Tell the provider that its bid is not taken."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Withdraw:
    """End the lease that was offered there, whether or not it was signed."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Closed:
    """The auction is over; nobody holds a slot for it but those whose leases were signed."""


Instruction = OfferLease | Abandon | Withdraw | Closed
Rank = Callable[[Sequence[Offer]], list[Place]]


class Auction:
    """Events in, instructions out."""

    def __init__(
        self, asked: Collection[PeerId], count: int, now_us: int, rank: Rank, window_us: int = WINDOW_US
    ) -> None:
        """`count` leases are wanted; 0: only the ranking. `rank` orders offers, best first."""
        self.bidders = dict.fromkeys(asked, Bidder.ASKED)
        self.places: list[Place] = []
        """The ranking, once the window has closed."""
        self.closed = False
        self.deadline_us = now_us + window_us
        self._count = count
        self._rank = rank
        self._offers: dict[PeerId, Offer] = {}
        self._collecting = True

    def handle(self, event: Event, now_us: int) -> list[Instruction]:
        """Take one event and say what to do, in this order."""
        out = self._take(event)
        if self.closed:
            return out
        if self._collecting and (now_us >= self.deadline_us or not self._any(Bidder.ASKED)):
            out += self._close_window()
        if not self._collecting:
            out += self._go_on()
        return out

    def _take(self, event: Event) -> list[Instruction]:
        if isinstance(event, Stop):
            return self._stop()
        if isinstance(event, TimePassed):
            return []
        peer = event.peer
        state = self.bidders.get(peer)
        match event:
            case BidArrived() if state is Bidder.ASKED:
                self.bidders[peer] = Bidder.BID
                self._offers[peer] = event.offer
            case BidArrived() if state in (Bidder.SILENT, Bidder.ABANDONED, None):
                return [Abandon(peer)]
            case Declined() if state is Bidder.ASKED:
                self.bidders[peer] = Bidder.DECLINED
            case Silent() if state is Bidder.ASKED:
                self.bidders[peer] = Bidder.SILENT
                return [Abandon(peer)]
            case LeaseSigned() if state is Bidder.OFFERED:
                self.bidders[peer] = Bidder.LEASED
            case LeaseSigned() if state in (Bidder.WITHDRAWN, Bidder.REFUSED):
                return [Withdraw(peer)]
            case LeaseFailed() if state is Bidder.OFFERED:
                self.bidders[peer] = Bidder.REFUSED
        return []

    def _any(self, state: Bidder) -> bool:
        return state in self.bidders.values()

    def _close_window(self) -> list[Instruction]:
        self._collecting = False
        late = [peer for peer, state in self.bidders.items() if state is Bidder.ASKED]
        for peer in late:
            self.bidders[peer] = Bidder.SILENT
        self.places = self._rank(list(self._offers.values()))
        return [Abandon(peer) for peer in late]

    def _go_on(self) -> list[Instruction]:
        """Offer leases for what is missing; close where nothing more can come of it."""
        out: list[Instruction] = []
        states = list(self.bidders.values())
        missing = self._count - states.count(Bidder.LEASED) - states.count(Bidder.OFFERED)
        for place in self.places:
            if missing > 0 and self.bidders[place.peer] is Bidder.BID:
                self.bidders[place.peer] = Bidder.OFFERED
                out.append(OfferLease(place))
                missing -= 1
        if self._any(Bidder.OFFERED):
            return out
        return out + self._close(Bidder.BID)

    def _stop(self) -> list[Instruction]:
        if self.closed:
            return []
        out: list[Instruction] = []
        for peer, state in self.bidders.items():
            if state is Bidder.OFFERED:
                self.bidders[peer] = Bidder.WITHDRAWN
                out.append(Withdraw(peer))
        return out + self._close(Bidder.BID, Bidder.ASKED)

    def _close(self, *left: Bidder) -> list[Instruction]:
        """Let go of who still holds a slot for nothing."""
        out: list[Instruction] = []
        for peer, state in self.bidders.items():
            if state in left:
                self.bidders[peer] = Bidder.ABANDONED
                out.append(Abandon(peer))
        self.closed = True
        return [*out, Closed()]
