"""Announcing over either transport: shards of a small limit, and neighbours that forge or flood."""

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio

from coppermesh.agent.clock import now_us
from coppermesh.p2p.announcements import LIFETIME_US, AnnouncementBook
from coppermesh.p2p.announcer import Announcer
from coppermesh.p2p.control import ChannelUp, ControlHub, open_control_hub
from coppermesh.p2p.dial_plan import DialPlan
from coppermesh.p2p.discovery import run_discovery
from coppermesh.p2p.envelope import sign_record, to_bytes
from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.ids import PeerId, mesh_id
from coppermesh.p2p.libp2p_transport import open_libp2p_transport
from coppermesh.p2p.memory_transport import MemoryNetwork
from coppermesh.p2p.messages import AnnouncementRequest
from coppermesh.p2p.records import Announcement, DeviceOffer
from coppermesh.p2p.shards import depth_of, home_path, path_to, topic_of
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import Transport

MESH = mesh_id("test")
OFFER = DeviceOffer(
    "cpu", "cpu", "made up", 1, "usd", 1 << 30, 1, ["array-programs"], "none", None, None, None, None
)


@pytest.fixture(params=["memory", pytest.param("libp2p", marks=pytest.mark.net)])
def open_transport(request):
    if request.param == "libp2p":
        return lambda key: open_libp2p_transport(key, MESH)
    return MemoryNetwork(random.Random(1)).transport


class MadeUp:
    """What the announcer needs of a provider."""

    isolation: tuple[str, ...] = ()
    busy_slots = 0
    closed = False

    @property
    def offers(self) -> list[DeviceOffer]:
        return [OFFER]


class Agent:
    """Transport, hub and announcer of one agent."""

    def __init__(self, transport: Transport, announcer: Announcer, book: AnnouncementBook) -> None:
        self.transport = transport
        self.announcer = announcer
        self.book = book

    def hears(self) -> set[PeerId]:
        return {opened.signer for opened in self.book.current(now_us())}


@asynccontextmanager
async def agent(
    open_transport, key: PeerKey, bootstrap: list[str], *, provides: bool = True, limit: int = 256
) -> AsyncIterator[Agent]:
    async with AsyncExitStack() as stack:
        transport = await stack.enter_async_context(open_transport(key))
        book = AnnouncementBook(MESH)
        announcers: list[Announcer] = []

        async def answer(peer: PeerId, request: AnnouncementRequest) -> Any:
            return announcers[0].reply_to(peer, request)

        hub: ControlHub = await stack.enter_async_context(
            open_control_hub(
                transport,
                MESH,
                key.peer,
                handlers={"announcement": (AnnouncementRequest, answer)},
                clock=now_us,
            )
        )
        announcer = Announcer(
            key,
            MESH,
            transport,
            hub,
            book,
            MadeUp() if provides else None,
            software="test",
            now_us=now_us,
            rng=random.Random(2),
            heard=lambda: None,
            shard_limit=limit,
            settle_seconds=0.3,
        )
        announcers.append(announcer)
        announcer.plan = DialPlan(key.peer, random.Random(3))
        nursery = await stack.enter_async_context(trio.open_nursery())

        async def follow() -> None:
            async for event in hub.events():
                if isinstance(event, ChannelUp):
                    nursery.start_soon(announcer.fetch, event.peer)
                else:
                    book.lost(event.peer)

        nursery.start_soon(follow)
        await nursery.start(announcer.run)
        nursery.start_soon(partial(run_discovery, transport, announcer.plan, bootstrap=bootstrap))
        try:
            yield Agent(transport, announcer, book)
        finally:
            nursery.cancel_scope.cancel()


async def until(condition) -> None:
    while not condition():  # noqa: ASYNC110 - several real parts have no common event
        await trio.sleep(0.05)


def key_number(number: int) -> PeerKey:
    return PeerKey(number.to_bytes(32, "big"))


async def test_a_topic_with_too_many_splits_and_a_reader_hears_them_all_the_same(open_transport):
    keys = [key_number(number) for number in range(1, 8)]
    async with AsyncExitStack() as stack:
        agents: list[Agent] = []
        for key in keys:
            known = agents[0].transport.addresses[:1] if agents else []
            agents.append(await stack.enter_async_context(agent(open_transport, key, known, limit=4)))
        await until(lambda: all(it.announcer.shard for it in agents))
        for key, it in zip(keys, agents, strict=True):
            shard = it.announcer.shard
            assert shard == home_path(key.peer, "cpu", depth_of(shard))
            await until(lambda it=it, shard=shard: set(it.announcer.topics) >= set(path_to(shard)))
        reader = await stack.enter_async_context(
            agent(open_transport, key_number(99), agents[0].transport.addresses[:1], provides=False, limit=4)
        )
        reader.announcer.want_more()
        await until(lambda: {key.peer for key in keys} <= reader.hears())


def announcement(key: PeerKey, sequence: int) -> bytes:
    record = Announcement(
        1, MESH, key.peer, now_us() + sequence, now_us(), now_us() + LIFETIME_US, "bad", [], [OFFER], [], 0, False, ""
    )  # fmt: skip
    return to_bytes(sign_record(key, record))


def forged(_key: PeerKey, sequence: int) -> bytes:
    good = announcement(key_number(1000 + sequence), sequence)
    return good[:-1] + bytes([good[-1] ^ 1])


@pytest.mark.parametrize("make", [forged, announcement], ids=["forges", "floods"])
async def test_a_neighbour_that_forges_or_floods_is_cut_off_and_the_others_go_on(open_transport, make):
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(agent(open_transport, key_number(1), []))
        known = first.transport.addresses[:1]
        second = await stack.enter_async_context(agent(open_transport, key_number(2), known))
        bad_key = key_number(3)
        bad = await stack.enter_async_context(open_transport(bad_key))
        await until(lambda: second.transport.peer in first.hears())
        await bad.dial(known[0])
        nursery = await stack.enter_async_context(trio.open_nursery())

        async def misbehave() -> None:
            async with bad.subscribe(topic_of(MESH, ""), lambda source, data: False):
                for sequence in range(100_000):
                    await bad.publish(topic_of(MESH, ""), make(bad_key, sequence))
                    await trio.sleep(0.005)

        nursery.start_soon(misbehave)
        await until(lambda: first.transport.counts.gossip_cut)
        await until(lambda: bad.peer not in first.transport.connected())
        assert second.transport.peer in first.transport.connected()
        assert first.transport.counts.gossip_cut == 1
        assert second.transport.peer in first.hears()
        # It is not let in again.
        with trio.move_on_after(1):
            with suppress(MeshError):
                await bad.dial(known[0])
        await until(lambda: bad.peer not in first.transport.connected())
        nursery.cancel_scope.cancel()
