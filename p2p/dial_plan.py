"""Whom to dial and when again. Pure: `now` is an argument, in seconds on a clock that never goes back.

There is one target per peer, with up to `MAX_ADDRESSES` of its addresses, tried in turn. Four kinds of target differ
in how hard they are pursued:

- *permanent* (bootstrap addresses): for ever;
- *remembered* (answered in an earlier run): until `GIVE_UP_AFTER` failures in a row, and only while fewer than `goal`
  peers are connected;
- *nearby* (said on this local network, by mDNS): likewise;
- *learned* (from the peer's own announcement): likewise, and after the others.

After a failure the next try waits 0.2 s, doubling to 30 s (2 s for ten minutes after a lasting connection broke: a
network that comes back is to be noticed within seconds), times a random factor between one half and one, so that
peers that lost the same bootstrap do not come back in step. A connection that lasted `LASTING_SECONDS` was no failure,
however often one breaks: the peer lets us in and the line is poor. One that ends at once is: the peer is full, or does
not want us. Two peers that learn of each other at the same moment
would both dial; so the one with the larger id waits `YIELD_SECONDS` for the other first.

Announcements are a stranger's words: an address is taken only where it names the announcing peer and is one that this
machine could reach it at (`may_be_dialled`), so that nobody makes agents knock on machines of their own network.
"""

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import Protocol

from coppermesh.p2p.addresses import Address, parse_address
from coppermesh.p2p.errors import Unreachable
from coppermesh.p2p.ids import PeerId

FIRST_DELAY_SECONDS = 0.2
LAST_DELAY_SECONDS = 30.0
MISSED_DELAY_SECONDS = 2.0
MISSED_SECONDS = 600.0
"""For so long a peer whose connection had lasted is dialled again at least every `MISSED_DELAY_SECONDS`."""
YIELD_SECONDS = 3.0
LASTING_SECONDS = 2.0
"""A dial costs two milliseconds; one every two seconds is no burden, and half a minute without the peer is one."""
GIVE_UP_AFTER = 10
MAX_ADDRESSES = 4
MAX_TARGETS = 1024
NEAR_GOAL = 12
SEEK_SECONDS = 60.0
MAX_SOUGHT = 64
MAX_DIALS = 8
"""Dials under way at once."""


class Rng(Protocol):
    """What `random.Random` gives."""

    def random(self) -> float:
        """Uniform in [0, 1)."""


class Kind(IntEnum):
    """Why a peer is dialled; a larger one is kept longer and dialled first."""

    LEARNED = 0
    NEARBY = 1
    REMEMBERED = 2
    PERMANENT = 3


@dataclass(slots=True)
class _Target:
    kind: Kind
    addresses: list[str] = field(default_factory=list)
    turn: int = 0
    failures: int = 0
    not_before: float = 0.0
    dialling: bool = False
    connected_since: float = 0.0
    lost_at: float | None = None
    """When a connection that had lasted ended."""


class DialPlan:
    """Which addresses are due. `me`: this agent; `rng`: for jitter; `goal`: enough connections to learned peers."""

    def __init__(self, me: PeerId, rng: Rng, *, goal: int = 32, near_goal: int = NEAR_GOAL) -> None:
        self._me = me
        self._rng = rng
        self._goal = goal
        self._near_goal = near_goal
        self.near: frozenset[PeerId] = frozenset()
        """Peers of the topics that this agent is in: `near_goal` of them are wanted whoever else is connected."""
        self._sought: dict[PeerId, float] = {}
        """Peers that somebody has a use for, and until when."""
        self._targets: dict[PeerId, _Target] = {}
        self._connected: set[PeerId] = set()
        self._relayed: set[PeerId] = set()
        self._permanent: set[PeerId] = set()
        """Targets of that kind, which are never forgotten."""
        self._dialling: set[PeerId] = set()
        self.out_of_reach: Callable[[PeerId], None] = lambda _peer: None
        """Told of a peer at whose addresses there is nobody."""
        self.troubles: dict[str, str] = {}
        """Permanent addresses whose last dial failed, and why."""

    def __len__(self) -> int:
        return len(self._targets)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._targets

    def seek(self, peers: Iterable[PeerId], now: float) -> None:
        """Somebody has a use for these: dial those that are known, whoever else is connected."""
        for peer in peers:
            if peer in self._targets and (peer in self._sought or len(self._sought) < MAX_SOUGHT):
                self._sought[peer] = now + SEEK_SECONDS

    def wants_more(self, peer: PeerId) -> bool:
        """Too few connections yet to leave `peer` alone, were it known."""
        return len(self._connected) < self._goal or (peer in self.near and self._lacks_near())

    def add(self, address: str, kind: Kind) -> None:
        """Dial this address from now on. Raises Unreachable where it cannot be dialled at all."""
        parsed = parse_address(address)
        if parsed.peer != self._me:
            self._add(parsed.peer, [address], kind, not_before=0.0)

    def learn(
        self,
        peer: PeerId,
        addresses: Iterable[str],
        own: Sequence[str],
        now: float,
        kind: Kind = Kind.LEARNED,
    ) -> None:
        """What `peer` says are its addresses; `own`: this agent's. Unusable ones are ignored."""
        usable = [address for address in addresses if may_be_dialled(address, peer, own)][:MAX_ADDRESSES]
        if peer == self._me or not usable:
            return
        known = self._targets.get(peer)
        if known is not None and known.kind is kind:
            # What was said last says where the peer is now, and is worth a try at once.
            if known.addresses != usable:
                known.addresses, known.turn = usable, 0
                known.not_before = min(known.not_before, now + self._politeness(peer))
            return
        if known is not None and known.kind is Kind.NEARBY and kind is Kind.LEARNED:
            return  # the way on the local network is the shorter one, and given up where it fails
        self._add(peer, usable, kind, not_before=now + self._politeness(peer))

    def observe(self, connected: Iterable[PeerId], now: float, relayed: Iterable[PeerId] = ()) -> None:
        """The peers that are connected now, whoever dialled; `relayed`: those of them only through a relay."""
        current = set(connected)
        self._relayed = set(relayed)
        for peer in current - self._connected:
            if peer in self._targets:
                self._targets[peer].connected_since = now
        # Sorted: a simulation gives the same run each time.
        for peer in sorted(self._connected - current):
            self.lost(peer, now)
        self._connected = current

    def due(self, now: float) -> list[str]:
        """Addresses to dial now, one per peer, which count as being dialled until `succeeded` or `failed`."""
        for peer in [peer for peer, until in self._sought.items() if until <= now]:
            del self._sought[peer]
        room = MAX_DIALS - len(self._dialling)
        ready = [(peer, target) for peer, target in self._wanted() if target.not_before <= now]
        ready.sort(key=lambda found: (-found[1].kind, found[1].not_before))
        addresses = []
        for peer, target in ready[: max(room, 0)]:
            target.dialling = True
            self._dialling.add(peer)
            addresses.append(target.addresses[target.turn % len(target.addresses)])
        return addresses

    def _is_settled(self, peer: PeerId, target: _Target) -> bool:
        """Connected as well as can be: a neighbour on the local network is not left to a relay far away."""
        return peer in self._connected and not (peer in self._relayed and target.kind is Kind.NEARBY)

    def next_due(self, now: float) -> float | None:
        """When `due` should be asked next, if nothing else happens; None: not before something does."""
        wanted = self._wanted()
        return max(now, min(target.not_before for _, target in wanted)) if wanted else None

    def _wanted(self) -> list[tuple[PeerId, _Target]]:
        """Those worth a dial that are not there or being dialled: all permanent ones, others while there are too few
        connections.
        """
        if len(self._connected) < self._goal:
            peers: Iterable[PeerId] = self._targets
        else:
            # Most of the time: nobody looks through thousands of targets then.
            few = {*self._permanent, *self._sought, *(self.near if self._lacks_near() else ())}
            peers = sorted(few)
        found = []
        for peer in peers:
            target = self._targets.get(peer)
            if target is not None and not target.dialling and not self._is_settled(peer, target):
                found.append((peer, target))
        return found

    def _lacks_near(self) -> bool:
        return bool(self.near) and len(self.near & self._connected) < self._near_goal

    def succeeded(self, address: str, now: float) -> None:
        """A dial ended in a connection; `observe` decides how long it lasts."""
        target = self._dialled(address)
        if target is not None:
            self.troubles.pop(address, None)
            # Should the connection be gone before it is observed, this is not a reason to dial in a tight loop.
            target.not_before = now + FIRST_DELAY_SECONDS

    def failed(self, address: str, now: float, reason: str = "", *, nobody: bool = False) -> None:
        """A dial failed: back off, try the peer's next address then, and give up on strangers after a while.

        `nobody`: there was no program at that address, where else it did not want us.
        """
        target = self._dialled(address)
        if target is None:
            return
        if target.kind is Kind.PERMANENT:
            self.troubles[address] = reason
        target.turn += 1
        if target.turn % len(target.addresses):
            # The peer's other addresses may lead to it now; waiting is for when none does.
            target.not_before = now
            return
        self._back_off(target, now)
        peer = parse_address(address).peer
        if nobody and peer not in self._connected:
            self.out_of_reach(peer)
        given_up = target.failures >= GIVE_UP_AFTER and not _is_missed(target, now)
        if target.kind is not Kind.PERMANENT and given_up:
            del self._targets[peer]

    def lost(self, peer: PeerId, now: float) -> None:
        """A connection ended. One that had lasted is dialled again at once, one that flaps backs off."""
        self._connected.discard(peer)
        target = self._targets.get(peer)
        if target is not None:
            if now - target.connected_since >= LASTING_SECONDS:
                target.failures = 0
                target.lost_at = now
            self._back_off(target, now)
            if target.kind in (Kind.LEARNED, Kind.NEARBY):
                target.not_before += self._politeness(peer)

    def retry_all(self, now: float) -> None:
        """This machine's own addresses have changed: nothing that failed before says anything any more."""
        for target in self._targets.values():
            target.failures = 0
            target.not_before = min(target.not_before, now)

    def kind_of(self, peer: PeerId) -> Kind | None:
        """Why the peer is dialled; None where it is not."""
        target = self._targets.get(peer)
        return None if target is None else target.kind

    def _politeness(self, peer: PeerId) -> float:
        """Of two that learn of each other at the same moment the one with the larger id waits for the other."""
        return YIELD_SECONDS if self._me > peer else 0.0

    def _back_off(self, target: _Target, now: float) -> None:
        most = MISSED_DELAY_SECONDS if _is_missed(target, now) else LAST_DELAY_SECONDS
        delay = min(FIRST_DELAY_SECONDS * 2.0 ** min(target.failures, 20), most)
        target.failures += 1
        target.not_before = now + delay * (0.5 + 0.5 * self._rng.random())

    def _dialled(self, address: str) -> _Target | None:
        """The target of a dial that has ended; None where it is wanted no more."""
        peer = parse_address(address).peer
        self._dialling.discard(peer)
        target = self._targets.get(peer)
        if target is not None:
            target.dialling = False
        return target

    def _add(self, peer: PeerId, addresses: list[str], kind: Kind, *, not_before: float) -> None:
        target = self._targets.get(peer)
        if target is None:
            if len(self._targets) >= MAX_TARGETS and not self._make_room(kind):
                return
            target = self._targets[peer] = _Target(kind, not_before=not_before)
        target.kind = max(target.kind, kind)
        if target.kind is Kind.PERMANENT:
            self._permanent.add(peer)
        new = [address for address in addresses if address not in target.addresses]
        # Newer is likelier to be right, but a bootstrap address is never pushed out by what somebody announces.
        order = target.addresses + new if target.kind is Kind.PERMANENT else new + target.addresses
        target.addresses = order[:MAX_ADDRESSES]

    def _make_room(self, kind: Kind) -> bool:
        """Forget the least promising target for one of `kind`."""
        candidates = [
            (target.kind, -target.failures, peer)
            for peer, target in self._targets.items()
            if not target.dialling and peer not in self._connected
        ]
        if not candidates:
            return False
        worst_kind, no_failures, peer = min(candidates)
        if worst_kind > kind or (worst_kind == kind and no_failures == 0):
            return False
        del self._targets[peer]
        return True


def _is_missed(target: _Target, now: float) -> bool:
    """A peer that was there for a while until lately: likelier a cable than the end of it."""
    return target.lost_at is not None and now - target.lost_at < MISSED_SECONDS


def may_be_dialled(text: str, peer: PeerId, own: Sequence[str]) -> bool:
    """Whether an address that `peer` announced is one to dial, given this agent's own addresses.

    It must name `peer`. Loopback counts only where this agent itself listens on loopback (everything is on one
    machine then), a private network only where this agent is on one or on loopback; multicast, unspecified, link-local
    and reserved addresses never do. A host name must look public.
    """
    try:
        address = parse_address(text)
    except Unreachable:
        return False
    if address.peer != peer:
        return False
    return _is_within_reach(_reach(address), own)


def _is_within_reach(reach: str, own: Sequence[str]) -> bool:
    if reach in ("public", "never"):
        return reach == "public"
    mine = {_reach(parsed) for parsed in map(_parse_or_none, own) if parsed is not None and not parsed.relay}
    return "loopback" in mine or (reach == "private" and "private" in mine)


def hosts_worth_dialling(target: Address, hosts: Sequence[str], own: Sequence[str]) -> list[str]:
    """Of the `hosts` that a name turned out to stand for, those that may be dialled, given this agent's addresses.

    Whoever owns a public name can point it into anybody's private network, so what it stands for is judged like an
    announced address. A name that does not look public (`localhost`, `nas.lan`) is never learned from others: it was
    configured here, and means what it says.
    """
    if _reach(target) != "public":
        return list(hosts)
    return [host for host in hosts if _is_within_reach(_reach_of_host(host), own)]


def _parse_or_none(text: str) -> Address | None:
    try:
        return parse_address(text)
    except Unreachable:
        return None


@lru_cache(maxsize=4096)
def _reach(address: Address) -> str:
    """`loopback`, `private`, `public` or `never`."""
    if address.kind not in ("ip4", "ip6"):
        last = address.host.rsplit(".", 1)[-1].lower()
        looks_public = "." in address.host and last not in ("local", "localhost", "internal", "lan", "home")
        return "public" if looks_public and not last.isdecimal() else "never"
    return _reach_of_host(address.host)


def _reach_of_host(text: str) -> str:
    host = ipaddress.ip_address(text)
    if isinstance(host, ipaddress.IPv6Address) and host.ipv4_mapped is not None:
        host = host.ipv4_mapped
    if host.is_loopback:
        return "loopback"
    if host.is_unspecified or host.is_multicast or host.is_link_local or host.is_reserved:
        return "never"
    return "public" if host.is_global else "private"
