import pytest

from coppermesh.p2p.addresses import format_host, listen_address, parse_address, reachable_hosts
from coppermesh.p2p.errors import Unreachable
from coppermesh.p2p.ids import PeerId, format_peer

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


def test_a_wildcard_is_no_address_to_dial():
    assert reachable_hosts("127.0.0.1") == ["127.0.0.1"]
    wildcard = "0.0.0.0"  # noqa: S104
    hosts = reachable_hosts(wildcard)
    assert hosts[-1] == "127.0.0.1"
    assert wildcard not in hosts


def test_a_socket_address_says_its_family():
    assert format_host("127.0.0.1", 5) == "/ip4/127.0.0.1/tcp/5"
    assert format_host("::1", 5) == "/ip6/::1/tcp/5"
