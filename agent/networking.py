"""How this agent reaches others and is reached: the table `[network]` of config.toml, and what follows from it (pure).

What is asked of the network itself is p2p's: `mdns`, `discovery`, and the relays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from coppermesh.p2p.addresses import is_loopback, parse_address


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The defaults need no configuration on a local network, nor behind most routers."""

    mdns: bool = True
    """Say on the local network that this agent is there, and hear who else is. Never on loopback."""
    relay: str = "auto"
    """Be reachable through a relay: `auto` when nobody gets through otherwise, `always`, or `never`."""
    relays: tuple[str, ...] = ()
    """Full addresses of relays to use; none: those of the bootstrap peers that are relays."""
    serve_relay: bool = False
    """Carry connections for members of the same meshes, as a seed does, within the limits of `[seed]`."""
    hole_punching: bool = True
    """Turn relayed connections into direct ones where the routers between let us."""


def mdns_interfaces(wanted: bool, addresses: Sequence[str]) -> list[str]:
    """The IPv4 hosts, of those this agent listens on, where mDNS is spoken. None on loopback: nobody else is there."""
    if not wanted:
        return []
    parsed = [parse_address(address) for address in addresses]
    return [it.host for it in parsed if it.kind == "ip4" and it.relay is None and not is_loopback(it.host)]
