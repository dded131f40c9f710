"""What the pinned py-libp2p does of itself that this mesh cannot live with, and that ours does otherwise.

The `stock` half of each test fails when the library has changed: then look whether our mend can go.
"""

import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import trio
import trio.testing
from libp2p import new_swarm
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.network import swarm
from libp2p.pubsub import pubsub
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.rpc_queue import OutBoundQueueSize, RpcQueue
from libp2p.stream_muxer.yamux import yamux

from coppermesh.p2p import libp2p_connections, libp2p_upgrade
from coppermesh.p2p.errors import Unreachable
from coppermesh.p2p.gossip_inbox import INBOX_MESSAGES
from coppermesh.p2p.ids import format_peer, mesh_id
from coppermesh.p2p.libp2p_mends import MAX_OUTBOUND, MeshGossipSub, OutboundQueues
from coppermesh.p2p.libp2p_transport import open_libp2p_transport
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import PeerUp

pytestmark = pytest.mark.net

VERSION = "0.8.1"
ROOT = Path(__file__).parents[2]


def ours():
    return open_libp2p_transport(PeerKey.generate(), mesh_id("test"))


def test_the_mends_are_for_one_version_and_it_is_the_one_that_is_installed():
    assert version("libp2p") == VERSION
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"libp2p=={VERSION}" in wanted


def test_stock_accepts_plaintext_where_nothing_is_said():
    stock = new_swarm(key_pair=create_new_key_pair())
    offered = stock.upgrader.security_multistream.transports
    assert "/plaintext/2.0.0" in offered
    # That ours refuses it is in tests/net/test_libp2p_interop.py and test_libp2p_security.py.
    assert set(libp2p_upgrade.security_protocols()) <= {libp2p_upgrade.NOISE, libp2p_upgrade.NOISE_AES}


async def test_stock_waits_a_quarter_of_a_second_with_each_dial(monkeypatch):
    assert swarm._HAPPY_EYEBALLS_DELAY == 0.25
    waits = "with trio.move_on_after(_HAPPY_EYEBALLS_DELAY):\n" + 28 * " " + "await failed_event.wait()"
    assert waits in inspect.getsource(swarm), "it waits for a failure, also when the dial has succeeded"
    # Ours dials without sleeping, whatever the machine's speed.
    slept: list[float] = []

    async def no_sleep(seconds: float) -> None:
        slept.append(seconds)
        await trio.lowlevel.checkpoint()

    async with ours() as one, ours() as other:
        monkeypatch.setattr(trio, "sleep", no_sleep)
        await one.dial(other.addresses[0])
        monkeypatch.undo()
    # The gossip heartbeat sleeps beside it.
    assert set(slept) <= {MeshGossipSub().heartbeat_interval, MeshGossipSub().heartbeat_initial_delay}


async def test_stock_does_not_dial_for_a_minute_what_failed_once():
    blocked = swarm._NegativePeerCache()
    blocked.mark_failed("peer")
    assert blocked.is_blocked("peer")
    # Ours dials again at once, as soon as somebody is there.
    key = PeerKey.generate()
    async with ours() as one:
        async with open_libp2p_transport(key, mesh_id("test")) as other:
            address = other.addresses[0]
        with pytest.raises(Unreachable):
            await one.dial(address)
        listen = address.rpartition("/p2p/")[0]
        async with open_libp2p_transport(key, mesh_id("test"), listen=listen) as other:
            with trio.fail_after(20):
                await one.dial(f"{listen}/p2p/{format_peer(key.peer)}")
                assert one.connected() == [key.peer]


def test_stock_beats_every_two_minutes():
    parameters = inspect.signature(GossipSub).parameters
    assert parameters["heartbeat_interval"].default == 120
    assert MeshGossipSub().heartbeat_interval == 1


async def test_stock_keeps_32_messages_for_a_neighbour_and_a_subscriber():
    assert (OutBoundQueueSize, pubsub.SUBSCRIPTION_CHANNEL_SIZE) == (32, 32)
    assert RpcQueue()._queue.max_size == 32
    queues = OutboundQueues()
    queues["peer"] = RpcQueue()
    assert [queue._queue.max_size for queue in queues.values()] == [MAX_OUTBOUND]
    assert INBOX_MESSAGES == 256


def test_stock_drops_its_own_messages_beyond_ten_a_second():
    parameters = inspect.signature(GossipSub).parameters
    assert parameters["spam_protection_enabled"].default is True
    assert parameters["max_messages_per_topic_per_second"].default == 10
    stock = GossipSub([PROTOCOL_ID_V12], 6, 4, 12)
    assert stock.spam_protection_enabled
    assert not MeshGossipSub().spam_protection_enabled


async def test_a_burst_of_our_own_messages_arrives_whole():
    """More than the library's queue holds and its spam limit lets through, published without a pause."""
    count = 200
    topic = "coppermesh-test/burst"
    async with ours() as one, ours() as other:
        async with (
            other.subscribe(topic, lambda source, data: True) as heard,
            one.subscribe(topic, lambda source, data: True),
        ):
            await one.dial(other.addresses[0])
            assert isinstance(await other.events().receive(), PeerUp)
            with trio.fail_after(30):
                # Until gossip between the two has begun.
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def call() -> None:
                        while True:
                            await one.publish(topic, b"anybody?")
                            await trio.sleep(0.1)

                    await heard.receive()
                    nursery.cancel_scope.cancel()
                for number in range(count):
                    await one.publish(topic, number.to_bytes(2, "big"))
                received = set()
                while len(received) < count:
                    message = await heard.receive()
                    if message.data != b"anybody?":
                        received.add(int.from_bytes(message.data, "big"))
        assert received == set(range(count))


def test_stock_gives_up_a_reader_that_computes_for_five_seconds():
    assert "5" in inspect.getsource(yamux.YamuxStream.write)
    assert "Timed out waiting for window update after 5 seconds" in inspect.getsource(yamux)
    assert libp2p_connections.DIAL_SECONDS == 10
