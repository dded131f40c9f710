"""A line that breaks every few seconds: the peer is back at once, on the in-memory network and on libp2p.

The clock is moved by the test, and only while no dial is under way, so that the real transport's sockets and a busy
machine take part in nothing that is counted.
"""

import math
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from coppermesh.p2p.dial_plan import DialPlan
from coppermesh.p2p.discovery import run_discovery
from coppermesh.p2p.ids import mesh_id
from coppermesh.p2p.memory_transport import MemoryNetwork
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import Transport

MESH = mesh_id("test")
BREAKS = 12
STEP_SECONDS = 0.1
REAL_SECONDS = 120.0


@asynccontextmanager
async def pair(kind: str) -> AsyncIterator[tuple[Transport, Transport]]:
    network = MemoryNetwork(random.Random(7))

    def opened(key: PeerKey):
        if kind == "memory":
            return network.transport(key)
        from coppermesh.p2p.libp2p_transport import open_libp2p_transport

        return open_libp2p_transport(key, MESH, gossip=False)

    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(opened(PeerKey.generate()))
        second = await stack.enter_async_context(opened(PeerKey.generate()))
        yield first, second


async def until_connected(clock: MockClock, plan: DialPlan, here: Transport, there: Transport) -> float:
    """How many seconds of the clock it takes until both are connected."""
    began, deadline = trio.current_time(), time.monotonic() + REAL_SECONDS
    while not (here.connected() and there.connected()):
        assert time.monotonic() < deadline, "they did not find each other"
        if not plan._dialling:
            clock.jump(STEP_SECONDS)
        await trio.testing.wait_all_tasks_blocked(0.001)
    return trio.current_time() - began


@pytest.mark.parametrize("kind", ["memory", pytest.param("libp2p", marks=pytest.mark.net)])
@pytest.mark.parametrize("by_other_side", [False, True])
async def test_a_peer_on_a_line_that_breaks_every_few_seconds_is_back_at_once(
    autojump_clock: MockClock, kind: str, by_other_side: bool
) -> None:
    clock = autojump_clock
    clock.autojump_threshold = math.inf
    async with pair(kind) as (here, there), trio.open_nursery() as nursery:
        plan = DialPlan(here.peer, random.Random(1))
        nursery.start_soon(partial(run_discovery, here, plan, bootstrap=there.addresses))
        await until_connected(clock, plan, here, there)
        away = []
        for _ in range(BREAKS):
            for _ in range(30):
                clock.jump(STEP_SECONDS)
                await trio.testing.wait_all_tasks_blocked(0.001)
            if by_other_side:
                await there.disconnect(here.peer)
            else:
                await here.disconnect(there.peer)
            deadline = time.monotonic() + REAL_SECONDS
            while here.connected() or there.connected():
                assert time.monotonic() < deadline, "one side does not notice the end"
                await trio.testing.wait_all_tasks_blocked(0.001)
            away.append(await until_connected(clock, plan, here, there))
        assert max(away) < 1, away
        nursery.cancel_scope.cancel()
