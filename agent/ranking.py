"""In which order bids are taken, and why each is where it is (pure).

The rule. First comes who does the same work for the least money: the rate over the speed, over the reputation, since
work that fails is paid in time; in steps of a tenth, for less is noise. Within a step: the better reputation (in steps
of 100), then less to send (in MiB), then the sooner answer (in steps of 10 ms), then the lower rate. What is alike
after that is drawn by the order's id, so that many requesters do not all take the same one.

A speed counts only beside its like. Where this agent has measured some of the bidders on the programs at hand, those
figures count, and who was not measured counts as the middle one of them; else the providers' own claims count in the
same way; else all are alike.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from coppermesh.agent.pricing import format_rate
from coppermesh.exec.budget import format_bytes
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.records import Bid

STRANGER = 500
"""The reputation of who was never met, of 1000."""
STEP = math.log(1.1)
MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Offer:
    """A bid, and what this agent knows of its provider."""

    bid: Bid
    speed: int = 0
    """Measured here on the programs at hand, Mop/s; 0: not measured."""
    reputation: int = STRANGER
    """0 to 1000."""
    missing_bytes: int = 0
    """What would have to be sent there before the first tasks can run."""
    latency_us: int = 0
    """How long its answer to the order took."""

    @property
    def peer(self) -> PeerId:
        """Who bids."""
        return PeerId(self.bid.provider)


@dataclass(frozen=True, slots=True)
class Place:
    """One place of the ranking."""

    offer: Offer
    number: int
    """1 for the best."""
    reason: str
    """What it offers, and why it comes behind the one before."""

    @property
    def peer(self) -> PeerId:
        """Who bids."""
        return self.offer.peer


@dataclass(frozen=True, slots=True)
class _Scored:
    offer: Offer
    speed: float
    draw: bytes

    @property
    def cost(self) -> int:
        """The step of what the work costs there."""
        offer = self.offer
        if not offer.bid.rate:
            return -(1 << 30)
        work = offer.bid.rate / self.speed / max(1, offer.reputation) * 1000
        return math.floor(math.log(work) / STEP)

    @property
    def key(self) -> tuple[int, int, int, int, int, bytes]:
        offer = self.offer
        return (
            self.cost,
            -(offer.reputation // 100),
            offer.missing_bytes // MEBIBYTE,
            offer.latency_us // 10_000,
            offer.bid.rate,
            self.draw,
        )


_WHY = (
    "the same work costs more there",
    "its reputation is lower",
    "more has to be sent there",
    "it answered later",
    "its rate is higher",
    "drawn: all else is alike",
)


def rank(offers: Sequence[Offer], draw: bytes = b"") -> list[Place]:
    """The offers, best first, each with its reason. `draw`: the order's id. All must be in one unit."""
    speeds = _speeds(offers)
    scored = sorted(
        (_Scored(offer, speed, _drawn(offer, draw)) for offer, speed in zip(offers, speeds, strict=True)),
        key=lambda one: (one.key, one.offer.bid.device, one.offer.bid.nonce),
    )
    places = []
    for number, one in enumerate(scored, 1):
        behind = "" if number == 1 else f"; {_why_behind(scored[number - 2], one)}"
        places.append(Place(one.offer, number, _describe(one.offer) + behind))
    return places


def _speeds(offers: Sequence[Offer]) -> list[float]:
    """A speed for each, all of one kind."""
    own = [float(offer.speed) for offer in offers]
    claimed = [float(offer.bid.speed) for offer in offers]
    known = own if any(own) else claimed
    middle = statistics.median_low([speed for speed in known if speed] or [1.0])
    return [speed or middle for speed in known]


def _drawn(offer: Offer, draw: bytes) -> bytes:
    mixed = int.from_bytes(offer.peer) ^ int.from_bytes(draw[: len(offer.peer)])
    return mixed.to_bytes(len(offer.peer))


def _why_behind(better: _Scored, worse: _Scored) -> str:
    pairs = zip(better.key, worse.key, _WHY, strict=True)
    return next((why for a, b, why in pairs if a != b), "a second device of the same provider")


def _describe(offer: Offer) -> str:
    bid = offer.bid
    if offer.speed:
        speed = f"{offer.speed} Mop/s measured here"
    else:
        speed = f"{bid.speed} Mop/s by its own word" if bid.speed else "speed not known"
    send = f"{format_bytes(offer.missing_bytes)} to send" if offer.missing_bytes else "data already there"
    parts = (
        format_rate(bid.rate, bid.unit),
        speed,
        f"reputation {offer.reputation} of 1000",
        send,
        f"answered in {offer.latency_us / 1000:.0f} ms",
    )
    return ", ".join(parts)
