"""Can others reach this agent, and how? Decided from what they say when they try (pure).

Each peer that is asked tells at which address it sees us, and whether it got through when it dialled our listening port
there, from a port of its own (`dial_back`). From that follows:

- what to announce beside our own addresses: an address that somebody outside got through to;
- whether to ask a relay: somebody failed, and nobody who sees us at that host got through;
- what kind of router stands between: one that shows one outer port to everybody can be passed by a hole punch.

A peer may lie about where it sees us and whether it got through. So the words of those whom this agent's owner named
(bootstrap peers and relays: *trusted*) come before all others; a host that only one other peer names is not announced;
and what was said is forgotten when the peer leaves or the word is old.
Times are seconds on any clock that never goes back.
"""

from collections import OrderedDict
from collections.abc import Container, Sequence
from dataclasses import dataclass
from enum import Enum

from coppermesh.p2p.ids import PeerId

VALID_SECONDS = 600.0
MAX_WORDS = 64
ENOUGH = 3
"""Peers that have been asked: no more are, until their words are old."""


class Probe(Enum):
    """What became of a dial that is to prove whether somebody can be reached."""

    REACHED = "reached"
    CLOSED = "closed"
    """Something answered that nobody listens there."""
    SILENT = "silent"
    """Nothing answered: a firewall or a router dropped it."""
    OTHER = "other"
    """Somebody else answered than the peer that was dialled."""
    UNREACHABLE = "unreachable"
    """There is no way there."""


class Nat(Enum):
    """What stands between this machine and those who see it."""

    UNKNOWN = "unknown"
    NONE = "none"
    """They see one of this machine's own addresses."""
    STEADY = "steady"
    """One outer port for all: hole punching works."""
    SHIFTING = "shifting"
    """Another outer port for each: only a relay or an opened port helps."""


@dataclass(frozen=True, slots=True)
class Word:
    """What one peer said."""

    host: str
    port: int
    probe: Probe
    said: float


class Reachability:
    """`mode`: `auto`, `always` or `never`, for relays."""

    def __init__(self, mode: str = "auto", trusted: Container[PeerId] = ()) -> None:
        self._mode = mode
        self._trusted = trusted
        self._words: OrderedDict[PeerId, Word] = OrderedDict()

    @property
    def words(self) -> dict[PeerId, Word]:
        """What each peer said last."""
        return dict(self._words)

    def said(self, peer: PeerId, host: str, port: int, probe: Probe, now: float) -> None:
        """`peer` sees us at `host` and `port`, and this became of its dial."""
        self._words.pop(peer, None)
        self._words[peer] = Word(host, port, probe, now)
        while len(self._words) > MAX_WORDS:
            self._words.popitem(last=False)

    def left(self, peer: PeerId) -> None:
        """The peer is not connected any more."""
        self._words.pop(peer, None)

    def moved(self) -> None:
        """This machine's addresses have changed: nothing that was said still holds."""
        self._words.clear()

    def forget_old(self, now: float) -> None:
        """Drop what was said too long ago."""
        for peer, word in list(self._words.items()):
            if now - word.said > VALID_SECONDS:
                del self._words[peer]

    def to_ask(self, first: Sequence[PeerId], others: Sequence[PeerId]) -> list[PeerId]:
        """Whom to ask next: all of `first`, who are likely to be outside; others until enough have said something."""
        missing = max(0, ENOUGH - len(self._words))
        left = [peer for peer in others if peer not in self._words and peer not in first]
        return [peer for peer in first if peer not in self._words] + left[:missing]

    def outside(self, own_hosts: Container[str]) -> list[str]:
        """Hosts that are not this machine's own, where somebody got through to our port: one trusted, or two others."""
        through = [
            word.host
            for peer, word in reversed(self._words.items())
            if word.probe is Probe.REACHED
            for _ in range(2 if peer in self._trusted else 1)
        ]
        return [host for host in dict.fromkeys(through) if host not in own_hosts and through.count(host) > 1]

    def seen_at(self) -> list[tuple[str, int]]:
        """Where others see us, the newest word first, whether or not it can be reached."""
        return list(dict.fromkeys((word.host, word.port) for word in reversed(self._words.values())))

    def wants_relay(self) -> bool:
        """Whether to be reachable through a relay."""
        if self._mode != "auto":
            return self._mode == "always"
        words = [word for peer, word in self._words.items() if peer in self._trusted] or list(
            self._words.values()
        )
        through = {word.host for word in words if word.probe is Probe.REACHED}
        return any(word.host not in through for word in words)

    def nat(self, own_hosts: Container[str]) -> Nat:
        """What kind of router stands between, as far as can be told."""
        outer = [word for word in self._words.values() if word.host not in own_hosts]
        if not outer:
            return Nat.NONE if self._words else Nat.UNKNOWN
        seen = {(word.host, word.port) for word in outer}
        if len(seen) > 1:
            return Nat.SHIFTING
        return Nat.STEADY if len(outer) > 1 else Nat.UNKNOWN
