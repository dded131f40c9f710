"""Our connections against stock py-libp2p, in both directions, and what a stock host may not have."""

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.abc import IHost
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.rsa import create_new_key_pair as create_rsa_key_pair
from libp2p.crypto.secp256k1 import create_new_key_pair as create_secp256k1_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.host.ping import PingService
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.mplex.mplex import MPLEX_PROTOCOL_ID, Mplex
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from coppermesh.p2p.errors import Unreachable
from coppermesh.p2p.ids import mesh_id, parse_peer
from coppermesh.p2p.libp2p_transport import open_libp2p_transport
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import PeerDown, PeerUp, Stream, Transport

pytestmark = pytest.mark.net

ECHO = "/coppermesh-test/echo/1"
TOPIC = "coppermesh-test/1"
LISTEN = Multiaddr("/ip4/127.0.0.1/tcp/0")


def security(kind: str, keys) -> dict[Any, Any]:
    if kind == "noise":
        return {NOISE_PROTOCOL_ID: NoiseTransport(keys, noise_privkey=create_noise_key_pair().private_key)}
    return {PLAINTEXT_PROTOCOL_ID: InsecureTransport(keys)}


@asynccontextmanager
async def stock_host(kind: str = "noise", keys=None, **options) -> AsyncIterator[IHost]:
    keys = keys or create_new_key_pair()
    host = new_host(key_pair=keys, sec_opt=security(kind, keys), listen_addrs=[LISTEN], **options)
    async with host.run(listen_addrs=[LISTEN]):
        yield host
        await host.close()


def ours() -> AbstractAsyncContextManager[Transport]:
    return open_libp2p_transport(PeerKey.generate(), mesh_id("test"))


def address_of(host: IHost) -> str:
    return f"{host.get_transport_addrs()[0]}/p2p/{host.get_id()}"


def info_of(transport: Transport):
    return info_from_p2p_addr(Multiaddr(transport.addresses[0]))


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def stock_echo(stream) -> None:
    try:
        while True:
            await stream.write(await stream.read(65536))
    except StreamEOF:
        await stream.close()


async def exchange(stream, content: bytes) -> bytes:
    """Send and receive at once on a stock stream."""
    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.write, content)
        while len(received) < len(content):
            received += await stream.read(65536)
    return bytes(received)


async def test_a_stock_host_dials_us():
    content = os.urandom(3_000_000)
    async with ours() as mine, stock_host() as stock:
        mine.handle(ECHO, echo)
        with trio.fail_after(20):
            await stock.connect(info_of(mine))
            stream = await stock.new_stream(info_of(mine).peer_id, [ECHO])
            assert await exchange(stream, content) == content
            await stream.close()
            up = await mine.events().receive()
            assert isinstance(up, PeerUp)
            assert up.peer == parse_peer(str(stock.get_id()))
            assert len(await PingService(stock).ping(info_of(mine).peer_id, 3)) == 3


async def test_we_dial_a_stock_host():
    content = os.urandom(3_000_000)
    async with ours() as mine, stock_host() as stock:
        stock.set_stream_handler(ECHO, stock_echo)
        with trio.fail_after(20):
            peer = await mine.dial(address_of(stock))
            assert peer == parse_peer(str(stock.get_id()))
            stream = await mine.open_stream(peer, ECHO)
            received = bytearray(len(content))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, content)
                await stream.receive_into(memoryview(received))
            assert received == content
            await stream.send_eof()
            assert await stream.receive_some() == b""


async def test_a_stock_host_that_closes_is_down():
    async with ours() as mine:
        async with stock_host() as stock:
            await mine.dial(address_of(stock))
            assert isinstance(await mine.events().receive(), PeerUp)
        with trio.fail_after(10):
            assert isinstance(await mine.events().receive(), PeerDown)


@pytest.mark.parametrize("we_dial", [True, False])
async def test_gossip_passes_between_us_and_a_stock_host(we_dial):
    async with ours() as mine, stock_host() as stock:
        router = GossipSub([PROTOCOL_ID_V12], 6, 4, 12, heartbeat_interval=1, spam_protection_enabled=False)
        pubsub = Pubsub(stock, router, strict_signing=True)
        async with background_trio_service(pubsub), background_trio_service(router):
            await pubsub.wait_until_ready()
            there = await pubsub.subscribe(TOPIC)
            async with mine.subscribe(TOPIC, lambda source, data: True) as here:
                if we_dial:
                    await mine.dial(address_of(stock))
                else:
                    await stock.connect(info_of(mine))
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def publish() -> None:
                        for _ in range(50):
                            await mine.publish(TOPIC, b"from us")
                            await pubsub.publish(TOPIC, b"from stock")
                            await trio.sleep(0.2)

                    with trio.fail_after(15):
                        message = await here.receive()
                        assert (message.data, message.source) == (
                            b"from stock",
                            parse_peer(str(stock.get_id())),
                        )
                        while True:
                            heard = await there.get()
                            if heard.from_id != stock.get_id().to_bytes():
                                break
                        assert heard.data == b"from us"
                    nursery.cancel_scope.cancel()
        pubsub.seen_messages.stop()


async def test_a_host_that_only_speaks_plaintext_is_refused_when_it_dials():
    async with ours() as mine, stock_host("plaintext") as stock:
        with trio.fail_after(20), pytest.raises(SwarmException):
            await stock.connect(info_of(mine))
        with pytest.raises(trio.WouldBlock):
            mine.events().receive_nowait()
        assert mine.connected() == []


async def test_a_host_that_only_speaks_plaintext_is_refused_when_we_dial():
    async with ours() as mine, stock_host("plaintext") as stock:
        with pytest.raises(Unreachable, match="/noise"):
            await mine.dial(address_of(stock))


async def test_a_host_that_only_speaks_mplex_is_refused():
    async with ours() as mine, stock_host(muxer_opt={MPLEX_PROTOCOL_ID: Mplex}) as stock:
        with trio.fail_after(20), pytest.raises(SwarmException):
            await stock.connect(info_of(mine))
        with pytest.raises(Unreachable, match="yamux"):
            await mine.dial(address_of(stock))
        assert mine.connected() == []


@pytest.mark.parametrize("create", [create_rsa_key_pair, create_secp256k1_key_pair])
async def test_a_host_whose_id_is_no_ed25519_key_is_refused(create):
    async with ours() as mine, stock_host(keys=create()) as stock:
        with trio.fail_after(20), pytest.raises(SwarmException):
            await stock.connect(info_of(mine))
        assert mine.connected() == []
