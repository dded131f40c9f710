"""Who may be reached through this relay, and what runs through it: a relay's books and limits (pure).

A *reservation* lets others reach its owner through us until it expires or its owner leaves; a *circuit* is one
connection that we carry. Everything is bounded: per relay, per peer and per host of those who reserve and who call (so
that one machine with many keys does not take every place), and each circuit in bytes and seconds. Source of the limits'
kinds: libp2p circuit relay v2 specification. Times are seconds on any clock that never goes back.
"""

from collections import Counter
from dataclasses import dataclass
from enum import Enum

from coppermesh.p2p.ids import PeerId


class RelayRefusal(Enum):
    """Why a relay says no; the values are the specification's status codes."""

    RESERVATION = 200
    LIMIT = 201
    PERMISSION = 202
    FAILED = 203
    NO_RESERVATION = 204


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayLimits:
    """What a relay gives at most."""

    reservations: int = 256
    reservations_per_host: int = 32
    reservation_seconds: float = 3600.0
    circuits: int = 256
    circuits_per_peer: int = 32
    """That one peer may have through us, as caller and called together."""
    circuits_per_host: int = 64
    """That callers from one host may have together."""
    circuit_seconds: int = 3600
    """0: no limit. So is it with `circuit_bytes`."""
    circuit_bytes: int = 8 << 30
    """In each direction."""


@dataclass(frozen=True, slots=True)
class Circuit:
    """One connection that the relay carries."""

    number: int
    source: PeerId
    target: PeerId
    host: str
    """Where its caller is connected from."""


class RelayBook:
    """The reservations and circuits of one relay."""

    def __init__(self, limits: RelayLimits) -> None:
        self.limits = limits
        self.refused: Counter[RelayRefusal] = Counter()
        self.carried = 0
        """Circuits opened so far."""
        self._reservations: dict[PeerId, tuple[str, float]] = {}
        self._circuits: dict[int, Circuit] = {}
        self._per_peer: Counter[PeerId] = Counter()
        self._per_host: Counter[str] = Counter()

    @property
    def reservations(self) -> int:
        """How many peers can be reached through us."""
        return len(self._reservations)

    @property
    def circuits(self) -> int:
        """How many connections we carry now."""
        return len(self._circuits)

    def reserve(self, peer: PeerId, host: str, now: float) -> float | RelayRefusal:
        """Let `peer`, connected from `host`, be reached through us; when that ends. A renewal takes no new place."""
        self.expire(now)
        if peer not in self._reservations:
            from_host = sum(known == host for known, _ in self._reservations.values())
            if (
                len(self._reservations) >= self.limits.reservations
                or from_host >= self.limits.reservations_per_host
            ):
                return self._refuse(RelayRefusal.RESERVATION)
        expires = now + self.limits.reservation_seconds
        self._reservations[peer] = (host, expires)
        return expires

    def open_circuit(
        self, source: PeerId, target: PeerId, now: float, host: str = ""
    ) -> Circuit | RelayRefusal:
        """Take a place for a connection from `source`, at `host`, to `target`; `close_circuit` gives it back."""
        self.expire(now)
        if target not in self._reservations or source == target:
            return self._refuse(RelayRefusal.NO_RESERVATION)
        most = self.limits.circuits_per_peer
        busy = self._per_peer[source] >= most or self._per_peer[target] >= most
        busy = busy or self._per_host[host] >= self.limits.circuits_per_host
        if busy or len(self._circuits) >= self.limits.circuits:
            return self._refuse(RelayRefusal.LIMIT)
        self.carried += 1
        circuit = Circuit(self.carried, source, target, host)
        self._circuits[circuit.number] = circuit
        self._per_peer.update((source, target))
        self._per_host[host] += 1
        return circuit

    def close_circuit(self, circuit: Circuit) -> None:
        """The connection is over. Once per circuit; more change nothing."""
        if self._circuits.pop(circuit.number, None) is None:
            return
        for peer in (circuit.source, circuit.target):
            self._per_peer[peer] -= 1
            if not self._per_peer[peer]:
                del self._per_peer[peer]
        self._per_host[circuit.host] -= 1
        if not self._per_host[circuit.host]:
            del self._per_host[circuit.host]

    def left(self, peer: PeerId) -> None:
        """`peer` is not connected any more: nobody reaches it through us."""
        self._reservations.pop(peer, None)

    def expire(self, now: float) -> None:
        """Forget reservations that were not renewed."""
        for peer, (_, expires) in list(self._reservations.items()):
            if expires <= now:
                del self._reservations[peer]

    def _refuse(self, why: RelayRefusal) -> RelayRefusal:
        self.refused[why] += 1
        return why
