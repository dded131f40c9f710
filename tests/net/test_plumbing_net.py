"""Control hub, blob streams and discovery over real loopback sockets, as an agent puts them together."""

import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from coppermesh.p2p.blob_store import BlobStore, open_blob_store
from coppermesh.p2p.blobs import digest_of, leaf_digests
from coppermesh.p2p.control import (
    MAX_FAULTS,
    ChannelDown,
    ChannelUp,
    ControlHub,
    Handler,
    control_protocol,
    open_control_hub,
)
from coppermesh.p2p.dial_plan import DialPlan
from coppermesh.p2p.discovery import run_discovery
from coppermesh.p2p.errors import Unreachable
from coppermesh.p2p.ids import PeerId, mesh_id
from coppermesh.p2p.libp2p_transport import open_libp2p_transport
from coppermesh.p2p.messages import Nothing
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transfer import BlobService, fetch_blob, send_blob
from coppermesh.p2p.transport import PeerDown, Transport

pytestmark = pytest.mark.net

MESH = mesh_id("plumbing")


async def nothing(peer: PeerId, request: Nothing) -> Nothing:
    return request


HANDLERS: dict[str, Handler] = {"nothing": (Nothing, nothing)}


class Agent:
    def __init__(self, transport: Transport, hub: ControlHub, store: BlobStore) -> None:
        self.transport = transport
        self.hub = hub
        self.store = store


@asynccontextmanager
async def agent(path: Path, bootstrap: list[str], key: PeerKey | None = None) -> AsyncIterator[Agent]:
    key = key or PeerKey.generate()
    async with (
        open_libp2p_transport(key, MESH) as transport,
        open_blob_store(path, quota_bytes=64 << 20, owner=key.peer) as store,
        open_control_hub(
            transport, MESH, key.peer, handlers=HANDLERS, clock=lambda: time.time_ns() // 1000
        ) as hub,
        trio.open_nursery() as nursery,
    ):
        BlobService(transport, MESH, store)
        plan = DialPlan(key.peer, random.Random(1))
        nursery.start_soon(partial(run_discovery, transport, plan, bootstrap=bootstrap))
        yield Agent(transport, hub, store)
        nursery.cancel_scope.cancel()


async def test_requests_and_blobs_travel_and_a_restarted_peer_comes_back(tmp_path: Path) -> None:
    data = os.urandom((5 << 20) + 3)
    root = digest_of(data)
    key = PeerKey.generate()
    async with agent(tmp_path / "first", []) as first:
        for run in range(2):
            async with agent(tmp_path / "second", first.transport.addresses, key) as second:
                up = await first.hub.events().receive()
                assert isinstance(up, ChannelUp)
                assert up.peer == key.peer
                async with trio.open_nursery() as nursery:
                    for _ in range(200):
                        nursery.start_soon(first.hub.request, key.peer, "nothing", Nothing(), Nothing)
                scope = (MESH, first.transport.peer)
                assert second.store.has(scope, root) == (run == 1)
                await send_blob(first.transport, MESH, key.peer, root, leaf_digests(data), data)
                if run == 0:
                    await fetch_blob(first.transport, MESH, key.peer, root, len(data), first.store, scope)
                assert await first.store.read(scope, root) == data
            down = await first.hub.events().receive()
            assert isinstance(down, ChannelDown)


async def test_garbage_on_a_control_stream_ends_that_stream_only(tmp_path: Path) -> None:
    keys = sorted((PeerKey.generate() for _ in range(2)), key=lambda key: key.peer)
    async with (
        agent(tmp_path, [], keys[1]) as victim,
        open_libp2p_transport(keys[0], MESH) as evil,
    ):
        await evil.dial(victim.transport.addresses[0])
        stream = await evil.open_stream(keys[1].peer, control_protocol(MESH))
        await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(Unreachable):
            await stream.receive_into(memoryview(bytearray(1)))
        assert victim.hub.faults(keys[0].peer) == 1
        assert victim.transport.connected() == [keys[0].peer]


async def test_the_acceptor_can_hang_up_from_within_its_stream_handler(tmp_path: Path) -> None:
    keys = sorted((PeerKey.generate() for _ in range(2)), key=lambda key: key.peer)
    async with (
        agent(tmp_path, [], keys[1]) as victim,
        open_libp2p_transport(keys[0], MESH) as evil,
    ):
        await evil.dial(victim.transport.addresses[0])
        for _ in range(MAX_FAULTS):
            stream = await evil.open_stream(keys[1].peer, control_protocol(MESH))
            await stream.send_all(bytes(4))
            with pytest.raises(Unreachable):
                await stream.receive_into(memoryview(bytearray(1)))
        async for event in evil.events():
            if isinstance(event, PeerDown):
                break
        assert victim.hub.faults(keys[0].peer) == MAX_FAULTS
        assert victim.transport.connected() == []
