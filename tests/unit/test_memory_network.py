"""The faults of the in-memory network, in virtual time. Its guarantees are checked in tests/conformance."""

import itertools
import random
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from coppermesh.p2p.errors import Unreachable
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.memory_transport import WINDOW_BYTES, MemoryNetwork
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import DIAL_SECONDS, PeerDown, PeerUp, Stream, Transport

ECHO = "/coppermesh-test/echo/1"
TOPIC = "coppermesh-test/1"


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


def accept(_source: PeerId, _data: bytes) -> bool:
    return True


async def attach(stack: AsyncExitStack, network: MemoryNetwork, count: int) -> list[Transport]:
    attached = [await stack.enter_async_context(network.transport(PeerKey.generate())) for _ in range(count)]
    for transport in attached:
        transport.handle(ECHO, echo)
    return attached


async def test_latency_is_that_of_the_link(autojump_clock):
    network = MemoryNetwork(random.Random(1), latency_s=0.5)
    async with AsyncExitStack() as stack:
        a, b = await attach(stack, network, 2)
        began = trio.current_time()
        await a.dial(b.addresses[0])
        assert trio.current_time() - began == pytest.approx(1.0)
        stream = await a.open_stream(b.peer, ECHO)
        began = trio.current_time()
        await stream.send_all(b"there and back")
        assert await stream.receive_some() == b"there and back"
        assert trio.current_time() - began == pytest.approx(1.0)


async def test_a_dial_over_a_very_slow_link_is_given_up(autojump_clock):
    network = MemoryNetwork(random.Random(1), latency_s=60)
    async with AsyncExitStack() as stack:
        a, b = await attach(stack, network, 2)
        began = trio.current_time()
        with pytest.raises(Unreachable, match="no answer"):
            await a.dial(b.addresses[0])
        assert trio.current_time() - began == pytest.approx(DIAL_SECONDS)


async def test_a_sender_waits_when_the_window_is_full(autojump_clock):
    network = MemoryNetwork(random.Random(1))
    async with AsyncExitStack() as stack:
        a, b = await attach(stack, network, 2)

        async def ignore(stream: Stream) -> None:
            await trio.sleep_forever()

        b.handle("/ignore", ignore)
        await a.dial(b.addresses[0])
        stream = await a.open_stream(b.peer, "/ignore")
        await stream.send_all(bytes(WINDOW_BYTES))
        with trio.move_on_after(3600) as scope:
            await stream.send_all(b"x")
        assert scope.cancelled_caught


async def test_a_partition_cuts_and_refuses_until_it_heals(autojump_clock):
    network = MemoryNetwork(random.Random(1))
    async with AsyncExitStack() as stack:
        a, b, c = await attach(stack, network, 3)
        for other in (b, c):
            await a.dial(other.addresses[0])
        stream = await a.open_stream(c.peer, ECHO)
        network.partition([a.peer, b.peer], [c.peer])
        assert a.connected() == [b.peer]
        assert c.connected() == []
        with pytest.raises(Unreachable, match="partition"):
            await stream.receive_some()
        with pytest.raises(Unreachable):
            await c.dial(a.addresses[0])
        network.heal()
        assert await c.dial(a.addresses[0]) == a.peer
        events = [await c.events().receive() for _ in range(3)]
        assert [type(event) for event in events] == [PeerUp, PeerDown, PeerUp]


async def test_a_cut_connection_can_be_dialled_again(autojump_clock):
    network = MemoryNetwork(random.Random(1))
    async with AsyncExitStack() as stack:
        a, b = await attach(stack, network, 2)
        await a.dial(b.addresses[0])
        network.cut(a.peer, b.peer)
        network.cut(a.peer, b.peer)
        assert a.connected() == b.connected() == []
        await a.dial(b.addresses[0])


async def test_a_crashed_peer_is_gone_and_its_transport_dead(autojump_clock):
    network = MemoryNetwork(random.Random(1))
    key = PeerKey.generate()
    async with AsyncExitStack() as stack:
        (a,) = await attach(stack, network, 1)
        b = await stack.enter_async_context(network.transport(key))
        b.handle(ECHO, echo)
        await a.dial(b.addresses[0])
        stream = await a.open_stream(b.peer, ECHO)
        network.crash(b.peer)
        network.crash(b.peer)
        with pytest.raises(Unreachable, match="crashed"):
            await stream.receive_some()
        for attempt in (a.dial(b.addresses[0]), b.dial(a.addresses[0]), b.publish(TOPIC, b"x")):
            with pytest.raises(Unreachable):
                await attempt
        # The same key comes back while the dead one's block is still open, at the same address.
        again = await stack.enter_async_context(network.transport(key))
        assert await a.dial(b.addresses[0]) == again.peer


async def test_a_key_is_attached_once():
    network = MemoryNetwork(random.Random(1))
    key = PeerKey.generate()
    async with network.transport(key):
        with pytest.raises(ValueError, match="attached"):
            async with network.transport(key):
                pass


async def gossip_run(seed: int, **faults: Any) -> list[bytes]:
    """What one subscriber hears of 100 messages, in its order."""
    network = MemoryNetwork(random.Random(seed), **faults)
    heard = []
    async with AsyncExitStack() as stack:
        a, b = await attach(stack, network, 2)
        await a.dial(b.addresses[0])
        at_b = await stack.enter_async_context(b.subscribe(TOPIC, accept))
        for number in range(100):
            await a.publish(TOPIC, bytes([number]))
        with trio.move_on_after(60):
            while True:
                message = await at_b.receive()
                heard.append(message.data)
    return heard


async def test_gossip_without_faults_is_complete_and_in_order(autojump_clock):
    heard = await gossip_run(1, latency_s=0.1)
    assert sorted(heard) == [bytes([number]) for number in range(100)]


async def test_gossip_is_lost_as_often_as_asked(autojump_clock):
    heard = await gossip_run(1, gossip_loss=0.5)
    assert len(set(heard)) == len(heard)
    assert 30 < len(heard) < 70


async def test_gossip_is_repeated_as_often_as_asked(autojump_clock):
    heard = await gossip_run(1, gossip_duplicate=0.25)
    assert len(set(heard)) == 100
    assert 110 < len(heard) < 145


async def test_gossip_overtakes(autojump_clock):
    heard = await gossip_run(1, gossip_jitter_s=5.0)
    assert len(heard) == 100
    assert heard != sorted(heard)


async def test_the_seed_decides(autojump_clock):
    first = set(await gossip_run(1, gossip_loss=0.5))
    assert first == set(await gossip_run(1, gossip_loss=0.5))
    assert first != set(await gossip_run(2, gossip_loss=0.5))


async def test_gossip_spreads_over_many_hops(autojump_clock):
    network = MemoryNetwork(random.Random(1), latency_s=0.01)
    async with AsyncExitStack() as stack:
        line = await attach(stack, network, 50)
        ends = [await stack.enter_async_context(peer.subscribe(TOPIC, accept)) for peer in line]
        for near, far in itertools.pairwise(line):
            await near.dial(far.addresses[0])
        await line[0].publish(TOPIC, b"far")
        message = await ends[-1].receive()
        assert (message.source, message.forwarder) == (line[0].peer, line[-2].peer)
