"""Being reachable: asking others whether they get through, and reserving a place at a relay where they do not.

`p2p.reachability` decides; this asks, reserves, renews, and says which addresses to announce.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from coppermesh.agent.networking import Network
from coppermesh.p2p.addresses import listen_address, parse_address
from coppermesh.p2p.control import ControlHub
from coppermesh.p2p.dial_plan import DialPlan, Kind
from coppermesh.p2p.errors import MeshError, Refused, Unreachable
from coppermesh.p2p.ids import PeerId, format_peer, short_peer
from coppermesh.p2p.messages import DialBackReply, DialBackRequest
from coppermesh.p2p.reachability import Nat, Probe, Reachability
from coppermesh.p2p.transport import PeerPath, Reservation, Transport

LOOK_SECONDS = 0.5
EAGER_SECONDS = 0.1
"""The same until it is settled at the start how this agent is reached, or until `SETTLE_SECONDS` have passed."""
SETTLE_SECONDS = 5.0
ASK_SECONDS = 15.0
ASK_AGAIN_SECONDS = 30.0
"""After a peer that could not say, or a relay that could not help."""
BUSY_SECONDS = 6.0
MAX_ASKING = 4
MAX_RELAYS = 2
MAX_ADDRESSES = 8
_LEAST_RENEWAL_SECONDS = 20.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Place:
    """A reservation at a relay."""

    reservation: Reservation
    address: str
    """Where others reach the relay."""
    renew_at: float


class Reacher:
    """Keeps one agent reachable on one mesh. `changed` is called when what to announce is another."""

    def __init__(
        self,
        transport: Transport,
        hub: ControlHub,
        plan: DialPlan,
        network: Network,
        bootstrap: Sequence[str],
        *,
        now_us: Callable[[], int],
        changed: Callable[[], None],
    ) -> None:
        self._first = [parse_address(address).peer for address in (*network.relays, *bootstrap)]
        self.state = Reachability(network.relay, trusted=frozenset(self._first))
        self.places: dict[PeerId, Place] = {}
        self.settled = trio.Event()
        """What to announce first is known: nobody should be told an address that leads nowhere."""
        self.troubles: dict[PeerId, str] = {}
        """Why a peer could not say, or a relay could not help; by peer."""
        self._transport = transport
        self._hub = hub
        self._plan = plan
        self._network = network
        self._now_us = now_us
        self._changed = changed
        self._not_before: dict[PeerId, float] = {}
        self._asking: set[PeerId] = set()
        self._own: list[str] = []
        self._helped: set[PeerId] = set()
        """Relays that carried for us before: no need to ask again whether we need them."""

    # What others are told

    def addresses(self) -> list[str]:
        """What to announce, the surest way first: from outside, through relays, and on this machine's own networks."""
        me = self._transport.peer
        own = self._transport.addresses
        port = parse_address(own[0]).port if own else 0
        outside = [_full(host, port, me) for host in self.state.outside(_hosts(own))]
        relayed = [self._through(place) for place in self.places.values()]
        return list(dict.fromkeys([*outside, *relayed, *own]))[:MAX_ADDRESSES]

    def nat(self) -> Nat:
        """What stands between this machine and others."""
        return self.state.nat(_hosts(self._transport.addresses))

    def _through(self, place: Place) -> str:
        relay = parse_address(place.address)
        return str(relay._replace(peer=self._transport.peer, relay=relay.peer))

    # Work

    async def run(self) -> None:
        """Until cancelled."""
        for address in self._network.relays:
            self._plan.add(address, Kind.PERMANENT)
        if self._transport.reach is not None:
            self._transport.reach.punches_holes = self._network.hole_punching
        announced = self.addresses()
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            while True:
                self._look(nursery)
                if self._is_settled() or trio.current_time() - start > SETTLE_SECONDS:
                    self.settled.set()
                await trio.sleep(LOOK_SECONDS if self.settled.is_set() else EAGER_SECONDS)
                if self.addresses() != announced:
                    announced = self.addresses()
                    self._changed()

    def _is_settled(self) -> bool:
        if not self._first:
            return True
        here = [peer for peer in self._first if peer in self._hub.peers()]
        heard = [peer for peer in here if peer in self.state.words or peer in self.troubles]
        if not here or len(heard) < len(here):
            return False
        helped = bool(self.places) or all(peer in self.troubles for peer in here)
        return self._transport.reach is None or not self.state.wants_relay() or helped

    def left(self, peer: PeerId) -> None:
        """The peer's channel is gone: what it said counts no more, and it brings nobody."""
        self.state.left(peer)
        self._not_before.pop(peer, None)
        self.troubles.pop(peer, None)
        if self.places.pop(peer, None) is not None and self._transport.reach is not None:
            self._transport.reach.leave(peer)

    def _look(self, nursery: trio.Nursery) -> None:
        now = trio.current_time()
        self.state.forget_old(now)
        if self._transport.addresses != self._own:
            self._own = self._transport.addresses
            self.state.moved()
            self._helped.clear()
            self._not_before.clear()
        direct = self.helpers()
        first = [peer for peer in dict.fromkeys(self._first) if peer in direct]
        for peer in self.state.to_ask(first, direct):
            self._begin(nursery, self._ask, peer, now)
        if self._transport.reach is not None:
            again = [peer for peer in first if peer in self._helped]
            for peer in first if self.state.wants_relay() else again:
                place = self.places.get(peer)
                if (place is None and len(self.places) < MAX_RELAYS) or (place and place.renew_at <= now):
                    self._begin(nursery, self._reserve, peer, now)
            self._transport.reach.candidates = [_text(host, port) for host, port in self.state.seen_at()]

    def _begin(
        self, nursery: trio.Nursery, work: Callable[[PeerId], Awaitable[None]], peer: PeerId, now: float
    ) -> None:
        if (
            peer not in self._asking
            and len(self._asking) < MAX_ASKING
            and self._not_before.get(peer, 0.0) <= now
        ):
            self._asking.add(peer)
            nursery.start_soon(self._guarded, work, peer)

    async def _guarded(self, work: Callable[[PeerId], Awaitable[None]], peer: PeerId) -> None:
        try:
            await work(peer)
        except MeshError as error:
            _log.debug("%s: %s", short_peer(peer), error)
            self.troubles[peer] = str(error)
            soon = isinstance(error, Refused) and error.code == "busy"
            self._not_before[peer] = trio.current_time() + (BUSY_SECONDS if soon else ASK_AGAIN_SECONDS)
        except Exception as error:  # noqa: BLE001
            # What a stranger answers ends this question, never the agent.
            _log.exception("asking %s failed", short_peer(peer))
            self.troubles[peer] = str(error) or type(error).__name__
            self._not_before[peer] = trio.current_time() + ASK_AGAIN_SECONDS
        else:
            self.troubles.pop(peer, None)
        finally:
            self._asking.discard(peer)

    def helpers(self) -> list[PeerId]:
        """Peers that could dial back, bootstrap peers and relays first."""
        direct = [peer for peer in self._hub.peers() if _is_direct(self._transport.path_to(peer))]
        return sorted(direct, key=lambda peer: peer not in self._first)

    async def _ask(self, peer: PeerId) -> None:
        await self.ask(peer)

    async def ask(self, peer: PeerId) -> DialBackReply:
        """Have `peer` dial our port, and hear where it sees us. Raises Refused, Unreachable, RemoteProtocolError."""
        request = DialBackRequest(parse_address(self._transport.addresses[0]).port)
        reply = await self._hub.request(peer, "dialback", request, DialBackReply, deadline_s=ASK_SECONDS)
        host, port = _place_in(reply.seen_at, peer)
        self.state.said(peer, host, port, Probe(reply.state), trio.current_time())
        return reply

    async def _reserve(self, peer: PeerId) -> None:
        """Be reachable through `peer`, or stay so."""
        assert self._transport.reach is not None
        try:
            reservation = await self._transport.reach.reserve_at(peer)
        except Refused as error:
            if error.code == "unknown-protocol":
                raise Unreachable(f"{short_peer(peer)} is no relay") from error
            raise
        path = self._transport.path_to(peer)
        known = [path.address] if path is not None and path.outbound else []
        usable = [address for address in (*known, *reservation.addresses) if _is_of(address, peer)]
        if path is None or not usable:
            raise Unreachable(f"the relay {short_peer(peer)} names no address of its own")
        life = min(max(reservation.expires_unix - self._now_us() / 1e6, 0.0), 3600.0)
        renew_at = trio.current_time() + max(life / 2, _LEAST_RENEWAL_SECONDS)
        if peer not in self.places:
            _log.info("reachable through the relay %s", short_peer(peer))
        self._helped.add(peer)
        self.places[peer] = Place(reservation, usable[0], renew_at)


def _place_in(seen_at: str, peer: PeerId) -> tuple[str, int]:
    """Host and port where `peer` says it sees us: a stranger's words, of which our own announcement is made."""
    try:
        _, host, port = listen_address(seen_at)
    except Unreachable:
        host, port = "", 0
    if not port or "%" in host:
        raise Unreachable(f"{short_peer(peer)} sees us at {seen_at!r}, which is no address")
    return host, port


def _is_direct(path: PeerPath | None) -> bool:
    return path is not None and path.relay is None


def _is_of(address: str, peer: PeerId) -> bool:
    try:
        parsed = parse_address(address)
    except Unreachable:
        return False
    return parsed.peer == peer and parsed.relay is None


def _hosts(addresses: Sequence[str]) -> set[str]:
    return {parse_address(address).host for address in addresses}


def _text(host: str, port: int) -> str:
    return f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}"


def _full(host: str, port: int, peer: PeerId) -> str:
    return f"{_text(host, port)}/p2p/{format_peer(peer)}"
