"""Host names in addresses: where they may lead, whoever owns the name."""

import socket
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio

from coppermesh.p2p.addresses import parse_address
from coppermesh.p2p.dial_plan import hosts_worth_dialling
from coppermesh.p2p.errors import Unreachable
from coppermesh.p2p.ids import format_peer, mesh_id
from coppermesh.p2p.libp2p_transport import Libp2pTransport, open_libp2p_transport
from coppermesh.p2p.signing import PeerKey

pytestmark = pytest.mark.net

MESH = mesh_id("names")
KEY, OTHER = PeerKey.generate(), PeerKey.generate()
PUBLIC = [f"/ip4/203.0.114.9/tcp/4001/p2p/{format_peer(KEY.peer)}"]
PRIVATE = [f"/ip4/192.168.1.2/tcp/4001/p2p/{format_peer(KEY.peer)}"]
LOOPBACK = [f"/ip4/127.0.0.1/tcp/4001/p2p/{format_peer(KEY.peer)}"]


class Resolver(trio.abc.HostnameResolver):
    """Says that every name stands for these hosts."""

    def __init__(self, *hosts: str) -> None:
        self._hosts = hosts

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        family: int = 0,
        type: int = 0,  # noqa: A002 - its name there
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        await trio.lowlevel.checkpoint()
        with suppress(OSError):  # a number already
            return socket.getaddrinfo(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)
        if not self._hosts:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, int(port))) for each in self._hosts]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("name", "own", "left"),
    [
        ("node.example.org", PUBLIC, ["8.8.8.8", "2606:4700::1111"]),
        ("node.example.org", PRIVATE, ["8.8.8.8", "192.168.1.1", "10.0.0.1", "2606:4700::1111"]),
        ("node.example.org", [], ["8.8.8.8", "2606:4700::1111"]),
        ("seed", PUBLIC, None),  # never learned from others: configured here
        ("nas.lan", PUBLIC, None),
    ],
)
def test_what_a_name_stands_for_is_judged_like_an_announced_address(
    name: str, own: list[str], left: list[str] | None
) -> None:
    hosts = ["8.8.8.8", "192.168.1.1", "127.0.0.1", "169.254.169.254", "::1", "10.0.0.1", "2606:4700::1111"]
    target = parse_address(f"/dns/{name}/tcp/4001/p2p/{format_peer(OTHER.peer)}")
    assert hosts_worth_dialling(target, hosts, own) == (hosts if left is None else left)


async def test_a_name_is_not_followed_into_a_network_that_this_agent_is_not_in() -> None:
    visits = 0

    async def count(stream: trio.SocketStream) -> None:
        nonlocal visits
        visits += 1

    trio.socket.set_custom_hostname_resolver(Resolver("127.0.0.1"))
    async with open_libp2p_transport(KEY, MESH) as transport, trio.open_nursery() as nursery:
        assert isinstance(transport, Libp2pTransport)
        (listener,) = await nursery.start(partial(trio.serve_tcp, count, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        name = f"/dns4/router.example.org/tcp/{port}/p2p/{format_peer(OTHER.peer)}"
        transport._addresses = PUBLIC
        with pytest.raises(Unreachable, match="this agent is not in"):
            await transport.dial(name)
        assert visits == 0
        transport._addresses = LOOPBACK
        with pytest.raises(Unreachable):
            await transport.dial(name)
        assert visits == 1
        nursery.cancel_scope.cancel()


async def test_a_name_leads_to_the_peer_by_whichever_of_its_hosts_answers() -> None:
    trio.socket.set_custom_hostname_resolver(Resolver("127.0.0.9", "127.0.0.1"))
    async with open_libp2p_transport(KEY, MESH) as one, open_libp2p_transport(OTHER, MESH) as other:
        port = parse_address(other.addresses[0]).port
        name = f"/dns/node.example.org/tcp/{port}/p2p/{format_peer(OTHER.peer)}"
        assert await one.dial(name) == OTHER.peer


async def test_a_name_that_stands_for_nothing_is_out_of_reach() -> None:
    trio.socket.set_custom_hostname_resolver(Resolver())
    async with open_libp2p_transport(KEY, MESH) as transport:
        with pytest.raises(Unreachable, match="no such name"):
            await transport.dial(f"/dns/nobody.example.org/tcp/4001/p2p/{format_peer(OTHER.peer)}")
