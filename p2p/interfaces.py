"""The hosts of this machine: under which addresses of its own others could reach it."""

import ipaddress
import socket

import ifaddr

MAX_HOSTS = 16


def own_hosts(*, ip6: bool = False) -> list[str]:
    """Addresses of this machine's interfaces without loopback and link-local ones, the usual way out first.

    Looks only at this machine. Blocks for well under a millisecond.
    """
    found = []
    for adapter in ifaddr.get_adapters():
        for entry in adapter.ips:
            text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            try:
                host = ipaddress.ip_address(text.partition("%")[0])
            except ValueError:
                continue
            usable = not (host.is_loopback or host.is_link_local or host.is_unspecified or host.is_multicast)
            if usable and (host.version == 6) is ip6 and str(host) not in found:
                found.append(str(host))
    way_out = _way_out(ip6=ip6)
    if way_out in found:
        found.remove(way_out)
        found.insert(0, way_out)
    return found[:MAX_HOSTS]


def _way_out(*, ip6: bool) -> str:
    """The address that traffic to far away leaves from; empty where there is no such way."""
    with socket.socket(socket.AF_INET6 if ip6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a datagram socket sends nothing; it asks the kernel which interface it would use.
            probe.connect(("2001:db8::1" if ip6 else "192.0.2.1", 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def reachable_hosts(host: str) -> list[str]:
    """Under which hosts a listener on `host` can be dialled.

    For a wildcard those of every interface; loopback only where there is no other, since to anybody else it would
    mean his own machine.
    """
    if not ipaddress.ip_address(host).is_unspecified:
        return [host]
    ip6 = ":" in host
    return own_hosts(ip6=ip6) or ["::1" if ip6 else "127.0.0.1"]
