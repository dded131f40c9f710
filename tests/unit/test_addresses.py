import errno
import ipaddress

import pytest
import trio

from coppermesh.p2p import interfaces
from coppermesh.p2p.addresses import format_host, listen_address, parse_address
from coppermesh.p2p.errors import Unreachable
from coppermesh.p2p.ids import PeerId, format_peer
from coppermesh.p2p.interfaces import own_hosts, reachable_hosts
from coppermesh.p2p.libp2p_tcp import resolve, shared_socket

PEER = PeerId(bytes(range(32)))
TEXT = format_peer(PEER)


@pytest.mark.parametrize(
    "text",
    [
        f"/ip4/127.0.0.1/tcp/1/p2p/{TEXT}",
        f"/ip6/2001:db8::1/tcp/65535/p2p/{TEXT}",
        f"/dns/mesh.example.org/tcp/4001/p2p/{TEXT}",
        f"/dns4/localhost/tcp/4001/p2p/{TEXT}",
    ],
)
def test_an_address_is_read_and_written_alike(text):
    address = parse_address(text)
    assert address.peer == PEER
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/" * 6,
        f"/ip4/127.0.0.1/tcp/4001/p2p/{TEXT}/",
        f"/ip4/127.0.0.1/tcp/4001/p2p/{TEXT[:-1]}",
        f"/ip4/127.0.0.1/tcp/0/p2p/{TEXT}",
        f"/ip4/127.0.0.1/tcp/65536/p2p/{TEXT}",
        f"/ip4/127.0.0.1/tcp/-1/p2p/{TEXT}",
        f"/ip4/127.0.0.1/tcp/٤٠/p2p/{TEXT}",
        f"/ip4/127.0.0.1/udp/4001/p2p/{TEXT}",
        f"/ip4/127.1/tcp/4001/p2p/{TEXT}",
        f"/ip4/::1/tcp/4001/p2p/{TEXT}",
        f"/ip6/127.0.0.1/tcp/4001/p2p/{TEXT}",
        f"/dns/-bad-/tcp/4001/p2p/{TEXT}",
        f"/dns/{'a' * 64}/tcp/4001/p2p/{TEXT}",
        f"/ip6/2001:db8::1%{'z' * 100}/tcp/4001/p2p/{TEXT}",
        f"/dns/a..example.org/tcp/4001/p2p/{TEXT}",
        f"/dns/.example.org/tcp/4001/p2p/{TEXT}",
        f"/dns/a-.example.org/tcp/4001/p2p/{TEXT}",
        f"/dns/{'a.' * 31}org/tcp/4001/p2p/{TEXT}",
        f"/unix/socket/tcp/4001/p2p/{TEXT}",
        f"/ip4/127.0.0.1/tcp/4001/p2p/{TEXT}\n",
        "/ip4/127.0.0.1/tcp/4001",
        "x" * 10_000,
    ],
)
def test_anything_else_leads_nowhere(text):
    with pytest.raises(Unreachable):
        parse_address(text)


def test_a_listen_address_has_no_peer():
    assert listen_address("/ip4/127.0.0.1/tcp/0") == ("ip4", "127.0.0.1", 0)
    assert listen_address("/ip6/::/tcp/4001") == ("ip6", "::", 4001)
    for text in (
        "",
        "/ip4/127.0.0.1/tcp",
        "/dns/localhost/tcp/1",
        "/ip4/127.0.0.1/tcp/70000",
        "/ip4/x/tcp/1",
    ):
        with pytest.raises(Unreachable, match="address"):
            listen_address(text)


def test_a_wildcard_is_no_address_to_dial(monkeypatch):
    assert reachable_hosts("127.0.0.1") == ["127.0.0.1"]
    wildcard = "0.0.0.0"  # noqa: S104
    assert wildcard not in reachable_hosts(wildcard)
    monkeypatch.setattr(interfaces, "own_hosts", lambda *, ip6: ["192.168.1.4"])
    # Loopback would be the dialling machine's own.
    assert reachable_hosts(wildcard) == ["192.168.1.4"]
    monkeypatch.setattr(interfaces, "own_hosts", lambda *, ip6: [])
    assert reachable_hosts(wildcard) == ["127.0.0.1"]


def test_this_machines_hosts_are_no_loopback():
    for host in own_hosts() + own_hosts(ip6=True):
        assert not ipaddress.ip_address(host).is_loopback


def test_an_address_through_a_relay_names_both():
    other = format_peer(PeerId(bytes(32)))
    text = f"/ip4/192.0.2.1/tcp/4001/p2p/{other}/p2p-circuit/p2p/{TEXT}"
    address = parse_address(text)
    assert (address.peer, address.relay) == (PEER, PeerId(bytes(32)))
    assert str(address) == text
    assert str(address.next_hop) == f"/ip4/192.0.2.1/tcp/4001/p2p/{other}"
    for wrong in (
        text.removesuffix(f"/{TEXT}"),
        text + f"/p2p-circuit/p2p/{TEXT}",
        text.replace("p2p-circuit", "p2p"),
        f"/ip4/192.0.2.1/tcp/4001/p2p/{TEXT}/p2p-circuit/p2p/{TEXT}",
    ):
        with pytest.raises(Unreachable):
            parse_address(wrong)


def test_a_socket_address_says_its_family():
    assert format_host("127.0.0.1", 5) == "/ip4/127.0.0.1/tcp/5"
    assert format_host("::1", 5) == "/ip6/::1/tcp/5"


async def test_a_name_that_cannot_be_looked_up_is_an_ordinary_failure():
    """Python's own encoding of host names raises what is no OSError."""
    with pytest.raises(OSError, match="no host name"):
        await resolve("dns", "a..localhost", 1)


async def test_with_no_descriptor_left_there_is_no_socket_and_no_error(monkeypatch):
    def none_left(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(trio.socket, "socket", none_left)
    assert await shared_socket("ip4", 4001) is None
