"""What a seed, or an agent that is a relay, gives at most: the table `[seed]` of config.toml (pure)."""

from dataclasses import dataclass

from coppermesh.p2p.relay_book import RelayLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """Limits of `coppermesh bootstrap`. The defaults suit a small rented machine."""

    connections: int = 1024
    """Peers connected at once."""
    reservations: int = 256
    """Peers that may be reached through this relay; 0: be no relay."""
    circuits: int = 256
    """Connections that the relay carries at once."""
    circuit_seconds: int = 3600
    """Longest that one of them lasts; 0: no limit."""
    circuit_bytes: int = 8 << 30
    """Most that one carries each way; 0: no limit."""
    status_port: int = 4180
    """The status page is at http://127.0.0.1:PORT/, on this machine only; 0: none."""

    def relay_limits(self) -> RelayLimits:
        """Those that concern a relay."""
        return RelayLimits(
            reservations=self.reservations,
            circuits=self.circuits,
            circuit_seconds=self.circuit_seconds,
            circuit_bytes=self.circuit_bytes,
        )
