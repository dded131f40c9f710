"""Full addresses as text, the subset of multiaddr this mesh dials.

`/ip4/127.0.0.1/tcp/4001/p2p/12D3KooW...` is a peer that listens there; with `/p2p-circuit/p2p/12D3KooW...` behind it, a
peer that can be reached through the relay that listens there (libp2p circuit relay specification).
"""

import ipaddress
import re
from functools import lru_cache
from typing import NamedTuple

from coppermesh.p2p.errors import Unreachable
from coppermesh.p2p.ids import PeerId, format_peer, parse_peer

MAX_ADDRESS_CHARS = 256
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,63}}\Z){_LABEL}(\.{_LABEL})*\Z")


class Address(NamedTuple):
    """Where a peer listens, and who must answer there."""

    kind: str
    """`ip4`, `ip6` or `dns`."""
    host: str
    port: int
    peer: PeerId
    relay: PeerId | None = None
    """Not None: this one listens there, and `peer` is reached through it."""

    def __str__(self) -> str:
        first = f"/{self.kind}/{self.host}/tcp/{self.port}/p2p/{format_peer(self.relay or self.peer)}"
        return first if self.relay is None else f"{first}/p2p-circuit/p2p/{format_peer(self.peer)}"

    @property
    def next_hop(self) -> "Address":
        """Where to connect to: the relay, where there is one."""
        return self if self.relay is None else Address(self.kind, self.host, self.port, self.relay)


@lru_cache(maxsize=4096)
def parse_address(text: str) -> Address:
    """Read a full address. Raises Unreachable on anything this agent cannot dial, saying what is wrong with it.

    Addresses come from other peers, so a bad one is no bug of the caller: it is one that leads nowhere.
    """
    if len(text) > MAX_ADDRESS_CHARS or not text.isascii() or not text.isprintable():
        raise Unreachable(f"address: want at most {MAX_ADDRESS_CHARS} printable ASCII characters")
    parts = text.split("/")
    relayed = len(parts) == 10 and parts[7:9] == ["p2p-circuit", "p2p"]
    if not (len(parts) == 7 or relayed) or parts[0] or parts[3] != "tcp" or parts[5] != "p2p":
        raise Unreachable(f"address {text!r}: want /ip4/HOST/tcp/PORT/p2p/PEER")
    kind, host, port = parts[1], parts[2], parts[4]
    if not port.isdecimal() or len(port) > 5 or not 0 < int(port) < 65536:
        raise Unreachable(f"address {text!r}: {port!r} is not a TCP port")
    _check_host(text, kind, host)
    try:
        relay = parse_peer(parts[6]) if relayed else None
        address = Address(kind, host, int(port), parse_peer(parts[-1]), relay)
    except ValueError as error:
        raise Unreachable(f"address {text!r}: {error}") from None
    if address.relay == address.peer:
        raise Unreachable(f"address {text!r}: a peer is no relay to itself")
    return address


def _check_host(text: str, kind: str, host: str) -> None:
    try:
        if kind == "ip4":
            ipaddress.IPv4Address(host)
            return
        if kind == "ip6":
            if ipaddress.IPv6Address(host).scope_id is not None:
                raise ValueError  # means something on one machine only, and may be of any length
            return
    except ValueError:
        raise Unreachable(f"address {text!r}: {host!r} is not an {kind} address") from None
    if kind not in ("dns", "dns4", "dns6") or not _HOST_NAME.match(host):
        raise Unreachable(f"address {text!r}: want ip4, ip6 or dns in front of the host")


def listen_address(text: str) -> tuple[str, str, int]:
    """Read `/ip4/HOST/tcp/PORT` (or ip6; port 0 means any): (kind, host, port). Raises Unreachable."""
    parts = text.split("/")
    if len(parts) != 5 or parts[0] or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp":
        raise Unreachable(f"listen address {text!r}: want /ip4/HOST/tcp/PORT")
    _check_host(text, parts[1], parts[2])
    if not parts[4].isdecimal() or len(parts[4]) > 5 or int(parts[4]) > 65535:
        raise Unreachable(f"listen address {text!r}: {parts[4]!r} is not a TCP port")
    return parts[1], parts[2], int(parts[4])


def format_host(host: str, port: int) -> str:
    """A socket's address as text, without a peer id: `/ip4/127.0.0.1/tcp/40312`."""
    return f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}"


def is_loopback(host: str) -> bool:
    """Whether `host` is an IP address of this machine alone. A name is not."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_private(host: str) -> bool:
    """Whether `host` is an IP address of a private network, and not this machine. A name is not."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return not address.is_global and not address.is_loopback
