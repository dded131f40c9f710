"""When to ask a neighbour for announcements, and for which. Pure: times are seconds on a clock that never goes back.

Gossip loses messages and a newcomer has missed all before it, so agents compare what they know (anti-entropy). The
asking side names what it has by `SHORT_ID_BYTES` of each id; the answer has the asked peer's own announcement and the
newest that were not named, `MAX_OTHERS` at most. A full answer means that there is more: ask again soon.

On every new connection the other's own is asked for; others' too, but not more often than each `FULL_SECONDS`, or an
agent that opens thirty connections at once would be handed everything thirty times. Without a new connection one
neighbour, chosen by chance, is asked after 3 s, 6 s, 12 s ... and then each minute.
"""

from typing import Protocol

from coppermesh.p2p.messages import MAX_OTHERS

FULL_SECONDS = 2.0
MORE_SECONDS = 0.2
FIRST_SECONDS = 3.0
LAST_SECONDS = 60.0


class Rng(Protocol):
    """What `random.Random` gives."""

    def random(self) -> float:
        """Uniform in [0, 1)."""


class ExchangePacer:
    """One agent's anti-entropy."""

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self._next_full = 0.0
        self._wait = FIRST_SECONDS

    def wants(self, now: float) -> int:
        """How many announcements of others to ask a peer for that has just connected."""
        if now < self._next_full:
            return 0
        self._next_full = now + FULL_SECONDS
        return MAX_OTHERS

    def next_wait(self) -> float:
        """Seconds until a neighbour is asked although nothing happened."""
        wait = self._wait
        self._wait = min(2 * wait, LAST_SECONDS)
        return wait * (0.9 + 0.2 * self._rng.random())

    @property
    def want(self) -> int:
        """How many of others to ask for when nothing new has connected."""
        return MAX_OTHERS

    @staticmethod
    def is_full(others: int) -> bool:
        """An answer with so many of others: there is more."""
        return others >= MAX_OTHERS
