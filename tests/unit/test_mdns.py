"""What is said on the local network: the TXT record (pure), and two agents that find each other on loopback."""

from typing import Any, cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from zeroconf import EventLoopBlocked

from coppermesh.p2p.ids import PeerId, format_peer, mesh_id
from coppermesh.p2p.mdns import Found, Mdns, _text_of
from coppermesh.p2p.mdns_records import MAX_TEXT_BYTES, make_text, mesh_hint, read_text
from coppermesh.p2p.signing import PeerKey

MESH, OTHER_MESH = mesh_id("lab"), mesh_id("open")
PEER, OTHER = (PeerKey.generate().peer for _ in range(2))


def address(peer: PeerId, port: int = 4001, host: str = "/ip4/192.168.1.4") -> str:
    return f"{host}/tcp/{port}/p2p/{format_peer(peer)}"


def strings(*texts: bytes) -> bytes:
    return b"".join(bytes([len(text)]) + text for text in texts)


def test_what_is_said_is_understood_by_members_only() -> None:
    addresses = [address(PEER), address(PEER, host="/ip6/2001:db8::1")]
    text = make_text(MESH, PEER, addresses)
    assert text.startswith(bytes([len(addresses[0]) + 8]) + b"dnsaddr=/ip4/192.168.1.4/tcp/4001/p2p/12D3KooW")
    assert read_text(text, MESH) == (PEER, addresses)
    assert read_text(text, OTHER_MESH) is None
    assert MESH.hex().encode() not in text
    assert mesh_hint(MESH, PEER) != mesh_hint(MESH, OTHER)


def test_at_most_eight_addresses_are_said_and_heard() -> None:
    many = [address(PEER, port) for port in range(1, 20)]
    assert read_text(make_text(MESH, PEER, many), MESH) == (PEER, many[:8])
    hint = b"coppermesh=" + mesh_hint(MESH, PEER).encode()
    text = strings(*(b"dnsaddr=" + one.encode() for one in many), hint)
    assert read_text(text, MESH) == (PEER, many[:8])


@pytest.mark.parametrize(
    "text",
    [
        b"",
        strings(b"coppermesh=" + mesh_hint(MESH, PEER).encode()),
        strings(b"dnsaddr=" + address(PEER).encode()),
        strings(b"dnsaddr=" + address(PEER).encode(), b"coppermesh=" + mesh_hint(MESH, OTHER).encode()),
        make_text(MESH, PEER, [address(PEER), address(OTHER)]),
        make_text(MESH, PEER, [address(PEER)])[:-1],
        make_text(MESH, PEER, ["/ip4/192.168.1.4/udp/4001/quic-v1"]),
        make_text(MESH, PEER, [address(PEER)]) + bytes(MAX_TEXT_BYTES),
    ],
    ids=["empty", "no address", "no hint", "another's hint", "two peers", "cut", "not dialled", "too long"],
)
def test_anything_else_is_nobody(text: bytes) -> None:
    assert read_text(text, MESH) is None


def test_what_others_add_is_passed_over() -> None:
    hint = b"coppermesh=" + mesh_hint(MESH, PEER).encode()
    text = strings(
        b"dnsaddr=/ip4/192.168.1.4/udp/1/quic-v1", b"x", b"dnsaddr=" + address(PEER).encode(), hint
    )
    assert read_text(text, MESH) == (PEER, [address(PEER)])


@given(st.binary(max_size=600))
def test_no_bytes_make_it_fail(data: bytes) -> None:
    assert read_text(data, MESH) is None


@pytest.mark.net
async def test_two_agents_find_each_other_and_the_one_of_another_mesh_is_not_found() -> None:
    """On loopback, where nothing leaves this machine."""
    heard: dict[PeerId, dict[PeerId, list[str]]] = {}
    both = trio.Event()

    def agent(mesh_name: str, port: int) -> Mdns:
        peer = PeerKey.generate().peer
        mine = heard[peer] = {}

        def found(other: PeerId, addresses: list[str]) -> None:
            mine[other] = addresses
            if sum(map(len, heard.values())) == 2:
                both.set()

        said = [address(peer, port, "/ip4/127.0.0.1")]
        return Mdns(
            mesh_id(mesh_name), peer, addresses=lambda: said, interfaces=lambda: ["127.0.0.1"], found=found
        )

    agents = [agent("mdns test", 4001), agent("mdns test", 4002), agent("mdns test 2", 4003)]
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for one in agents:
                nursery.start_soon(one.run)
            await both.wait()
            nursery.cancel_scope.cancel()
    first, second, third = heard
    assert heard[first] == {second: [address(second, 4002, "/ip4/127.0.0.1")]}
    assert heard[second] == {first: [address(first, 4001, "/ip4/127.0.0.1")]}
    assert heard[third] == {}


@pytest.mark.net
async def test_who_moves_is_heard_of_again() -> None:
    mover, watcher = (PeerKey.generate().peer for _ in range(2))
    said = [address(mover, 4001, "/ip4/127.0.0.1")]
    heard: list[list[str]] = []
    news = trio.Event()

    def found(other: PeerId, addresses: list[str]) -> None:
        heard.append(addresses)
        news.set()

    def quiet(other: PeerId, addresses: list[str]) -> None:
        return None

    one = Mdns(MESH, mover, addresses=lambda: said, interfaces=lambda: ["127.0.0.1"], found=quiet)
    two = Mdns(MESH, watcher, addresses=list, interfaces=lambda: ["127.0.0.1"], found=found)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run)
            nursery.start_soon(two.run)
            await news.wait()
            said = [address(mover, 4002, "/ip4/127.0.0.1")]
            while heard[-1] != said:
                news = trio.Event()
                await news.wait()
            nursery.cancel_scope.cancel()


async def test_without_an_interface_nothing_is_said(autojump_clock: trio.testing.MockClock) -> None:
    def nobody(other: PeerId, addresses: list[str]) -> None:
        raise AssertionError

    quiet = Mdns(MESH, PEER, addresses=list, interfaces=list, found=nobody)
    with trio.move_on_after(60):
        await quiet.run()
    assert quiet.trouble is None


@pytest.mark.net
async def test_a_network_without_multicast_is_said_and_tried_again() -> None:
    there = ["203.0.113.77"]  # not an address of this machine
    it = Mdns(MESH, PEER, addresses=list, interfaces=lambda: there, found=lambda *_: None)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.run)
            while it.trouble is None:  # noqa: ASYNC110 - a plain attribute says it
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


async def test_a_library_that_fails_is_tried_again_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries = []
    thrice = trio.Event()
    monkeypatch.setattr("coppermesh.p2p.mdns.RETRY_SECONDS", 0.01)

    class Late:
        """As on a machine that slept: everything takes too long."""

        def get_service_info(self, *_: object) -> None:
            raise EventLoopBlocked

        def close(self) -> None:
            raise EventLoopBlocked

    def browse(*_: object) -> None:
        tries.append(1)
        if len(tries) == 3:
            trio.from_thread.run_sync(thrice.set)
        raise EventLoopBlocked

    late: Any = Late()
    monkeypatch.setattr("coppermesh.p2p.mdns._open", lambda _: late)
    monkeypatch.setattr("coppermesh.p2p.mdns.ServiceBrowser", browse)
    one = Mdns(
        MESH, PEER, addresses=list, interfaces=lambda: ["127.0.0.1"], found=cast("Found", lambda *_: None)
    )
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run)
            await thrice.wait()
            nursery.cancel_scope.cancel()
    assert len(tries) >= 3
    assert one.trouble == "EventLoopBlocked"
    assert _text_of(late, "stranger") is None
