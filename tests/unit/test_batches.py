"""`agent/batches`: what leaves together, what leaves alone, and what becomes of each."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from coppermesh.agent.batches import ALONE_BYTES, BATCH_BYTES, ENOUGH, LINGER_SECONDS, Batches
from coppermesh.p2p.errors import MeshError, Refused, Unreachable
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.messages import MAX_BATCH

PEER, OTHER = PeerId(bytes(32)), PeerId(b"\1" * 32)


class Wire:
    """Notes what left, and holds it up until `answer`."""

    def __init__(self) -> None:
        self.left: list[list[int]] = []
        self.when: list[float] = []
        self.go = trio.Event()
        self.failure: Exception | None = None

    async def send(self, peer: PeerId, things: Sequence[int]) -> list[int | MeshError]:
        self.left.append(list(things))
        self.when.append(trio.current_time())
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        return [Refused("odd", f"{thing} is odd") if thing % 2 else 10 * thing for thing in things]


@asynccontextmanager
async def running(wire: Wire) -> AsyncIterator[tuple[Batches[PeerId, int, int], trio.Nursery]]:
    batches: Batches[PeerId, int, int] = Batches(wire.send)
    async with trio.open_nursery() as nursery:
        await nursery.start(batches.run)
        yield batches, nursery
        nursery.cancel_scope.cancel()


async def test_what_is_alone_leaves_at_once_and_what_comes_meanwhile_leaves_together(
    autojump_clock: MockClock,
) -> None:
    wire = Wire()
    outcomes: dict[int, object] = {}
    async with running(wire) as (batches, nursery):

        async def submit(peer: PeerId, thing: int) -> None:
            try:
                outcomes[thing] = await batches.submit(peer, thing, 100)
            except Refused as refusal:
                outcomes[thing] = refusal.sentence

        nursery.start_soon(submit, PEER, 0)
        await wait_all_tasks_blocked()
        for thing in (2, 3, 4):
            nursery.start_soon(submit, PEER, thing)
            await wait_all_tasks_blocked()
        nursery.start_soon(submit, OTHER, 6)
        await wait_all_tasks_blocked()
        assert wire.left == [[0], [6]]
        wire.go.set()
        await wait_all_tasks_blocked()
        assert wire.left == [[0], [6], [2, 3, 4]]
        assert outcomes == {0: 0, 2: 20, 3: "3 is odd", 4: 40, 6: 60}
        assert set(wire.when) == {wire.when[0]}


async def test_what_more_follows_waits_for_company_but_not_for_long(autojump_clock: MockClock) -> None:
    wire = Wire()
    wire.go.set()
    async with running(wire) as (batches, nursery):
        began = trio.current_time()

        async def submit(thing: int, more: bool) -> None:
            await batches.submit(PEER, thing, 100, more=more)

        nursery.start_soon(submit, 0, True)
        await trio.sleep(10)
        assert [wire.left, wire.when] == [[[0]], [began + LINGER_SECONDS]]
        for thing in range(ENOUGH):
            nursery.start_soon(submit, 2 * thing, True)
            await wait_all_tasks_blocked()
        assert (len(wire.left[1]), wire.when[1]) == (ENOUGH, trio.current_time())
        nursery.start_soon(submit, 2, True)
        await wait_all_tasks_blocked()
        nursery.start_soon(submit, 4, False)
        await wait_all_tasks_blocked()
        assert (wire.left[2], wire.when[2]) == ([2, 4], trio.current_time())


async def test_a_batch_has_an_end(autojump_clock: MockClock) -> None:
    wire = Wire()
    async with running(wire) as (batches, nursery):
        nursery.start_soon(batches.submit, PEER, 0, 1)
        await wait_all_tasks_blocked()
        for thing in range(MAX_BATCH + 1):
            nursery.start_soon(batches.submit, PEER, 2 * thing, 1)
        for _ in range(BATCH_BYTES // ALONE_BYTES + 2):
            nursery.start_soon(batches.submit, OTHER, 0, ALONE_BYTES)
        await wait_all_tasks_blocked()
        wire.go.set()
        await wait_all_tasks_blocked()
        of_peer, of_other = MAX_BATCH + 2, BATCH_BYTES // ALONE_BYTES + 2
        assert max(map(len, wire.left)) == MAX_BATCH
        assert BATCH_BYTES // ALONE_BYTES in map(len, wire.left), "as many as may have so many bytes"
        assert sum(map(len, wire.left)) == of_peer + of_other


async def test_what_is_large_neither_waits_nor_holds_up(autojump_clock: MockClock) -> None:
    wire = Wire()
    async with running(wire) as (batches, nursery):
        for thing in (0, 2, 4):
            nursery.start_soon(partial(batches.submit, PEER, thing, ALONE_BYTES + 1, more=True))
        await wait_all_tasks_blocked()
        nursery.start_soon(batches.submit, PEER, 6, 100)
        await wait_all_tasks_blocked()
        assert sorted(wire.left) == [[0], [2], [4], [6]]
        assert not any(wire.when[0] < when for when in wire.when)


async def test_a_failed_message_fails_all_that_was_in_it_and_nothing_else(autojump_clock: MockClock) -> None:
    wire = Wire()
    wire.failure = Unreachable("gone")
    seen: list[Exception] = []
    async with running(wire) as (batches, nursery):

        async def submit(thing: int) -> None:
            try:
                await batches.submit(PEER, thing, 100)
            except MeshError as error:
                seen.append(error)

        for thing in (0, 2):
            nursery.start_soon(submit, thing)
        await wait_all_tasks_blocked()
        wire.go.set()
        await wait_all_tasks_blocked()
        assert [str(error) for error in seen] == ["gone", "gone"]
        assert seen[0] is not seen[1]
        wire.failure = None
        assert await batches.submit(PEER, 8, 100) == 80


async def test_what_waits_leaves_in_the_order_that_was_asked_for(autojump_clock: MockClock) -> None:
    wire = Wire()
    async with running(wire) as (batches, nursery):
        for thing in (0, 6, 2, 8, 4):
            nursery.start_soon(partial(batches.submit, PEER, thing, 100, order=thing))
            await wait_all_tasks_blocked()
        wire.go.set()
        await wait_all_tasks_blocked()
        assert wire.left == [[0], [2, 4, 6, 8]]


@pytest.mark.parametrize("left", [False, True])
async def test_who_is_cancelled_takes_back_what_has_not_left(autojump_clock: MockClock, left: bool) -> None:
    wire = Wire()
    async with running(wire) as (batches, nursery):
        if not left:
            nursery.start_soon(batches.submit, PEER, 0, 100)
            await wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await batches.submit(PEER, 2, 100)
        nursery.start_soon(batches.submit, PEER, 4, 100)
        await wait_all_tasks_blocked()
        wire.go.set()
        await wait_all_tasks_blocked()
        assert wire.left == ([[2], [4]] if left else [[0], [4]])
