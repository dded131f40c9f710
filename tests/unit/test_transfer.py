"""Blob streams over the in-memory network: what arrives, what is refused, and that bad bytes leave nothing behind."""

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from coppermesh.p2p import blob_streams, transfer
from coppermesh.p2p.blob_store import BlobStore, BlobWriter, StoreFull, open_blob_store
from coppermesh.p2p.blob_streams import BlobAnswer, BlobHeader, receive_frame, send_frame
from coppermesh.p2p.blobs import LEAF_BYTES, Buffer, digest_of, leaf_digests
from coppermesh.p2p.encoding import encode
from coppermesh.p2p.errors import LocalProtocolError, Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.framing import encode_frame
from coppermesh.p2p.ids import Digest, PeerId, mesh_id
from coppermesh.p2p.memory_transport import MemoryNetwork
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transfer import (
    MAX_TRANSFERS_PER_PEER,
    Admit,
    BlobService,
    blob_protocol,
    fetch_blob,
    send_blob,
)
from coppermesh.p2p.transport import Stream, Transport

MESH = mesh_id("test")
CLIENT, SERVER, STRANGER = (PeerKey.generate() for _ in range(3))
QUOTA = 64 << 20


def blob_of(size: int, seed: int = 0) -> tuple[bytes, Digest]:
    data = random.Random(seed).randbytes(size)
    return data, digest_of(data)


@dataclass
class World:
    client: Transport
    server_store: BlobStore
    client_store: BlobStore
    service: BlobService

    async def send(self, data: bytes) -> Digest:
        root = digest_of(data)
        await send_blob(self.client, MESH, SERVER.peer, root, leaf_digests(data), data)
        return root

    async def fetch(self, root: Digest, size: int) -> bytes:
        scope = (MESH, CLIENT.peer)
        await fetch_blob(self.client, MESH, SERVER.peer, root, size, self.client_store, scope)
        return await self.client_store.read(scope, root)


@asynccontextmanager
async def world(tmp_path: Path, *, admit: Admit | None = None, quota: int = QUOTA) -> AsyncIterator[World]:
    network = MemoryNetwork(random.Random(1), window_bytes=4 << 20)
    async with (
        network.transport(CLIENT) as client,
        network.transport(SERVER) as server,
        open_blob_store(tmp_path / "client", quota_bytes=QUOTA, owner=CLIENT.peer) as client_store,
        open_blob_store(tmp_path / "server", quota_bytes=quota, owner=SERVER.peer) as server_store,
    ):
        service = BlobService(server, MESH, server_store, admit=admit)
        await client.dial(server.addresses[0])
        yield World(client, server_store, client_store, service)


SIZES = [0, 1, 1000, LEAF_BYTES - 1, LEAF_BYTES, LEAF_BYTES + 1, 5 * LEAF_BYTES + 7]


@pytest.mark.parametrize("size", SIZES)
async def test_a_blob_goes_there_and_back(tmp_path: Path, size: int) -> None:
    data, root = blob_of(size)
    async with world(tmp_path) as both:
        await both.send(data)
        assert both.server_store.has((MESH, CLIENT.peer), root)
        assert not both.server_store.has((MESH, STRANGER.peer), root)
        assert await both.fetch(root, size) == data


async def test_a_blob_that_is_there_is_not_sent_again(tmp_path: Path) -> None:
    data, root = blob_of(3 * LEAF_BYTES)
    async with world(tmp_path) as both:
        await both.send(data)
        await both.send(data)
        assert (both.service.counts.put, both.service.counts.had) == (1, 1)
        assert both.service.counts.bytes_in == len(data)
        await both.fetch(root, len(data))
        await both.fetch(root, len(data))
        assert both.service.counts.got == 1


async def test_a_blob_is_sent_from_a_descriptor(tmp_path: Path) -> None:
    data, root = blob_of(2 * LEAF_BYTES + 5)
    async with world(tmp_path) as both:
        scope = (MESH, CLIENT.peer)
        await both.client_store.put(scope, root, data)
        with await both.client_store.open(scope, root) as blob:
            await send_blob(both.client, MESH, SERVER.peer, root, blob.leaves, blob.fd, size=blob.size)
        assert await both.server_store.read((MESH, CLIENT.peer), root) == data


async def test_knowing_a_hash_gives_no_right(tmp_path: Path) -> None:
    data, root = blob_of(1000)
    async with world(tmp_path) as both:
        await both.server_store.put((MESH, STRANGER.peer), root, data)
        with pytest.raises(Refused) as caught:
            await both.fetch(root, len(data))
        assert caught.value.code == "unknown-blob"
        unknown = caught.value.sentence
        both.server_store.grant((MESH, CLIENT.peer), root)
        assert await both.fetch(root, len(data)) == data
        with pytest.raises(Refused) as caught:
            await both.fetch(Digest(bytes(32)), len(data))
        assert caught.value.sentence.split()[3:] == unknown.split()[3:]


async def test_uploading_to_learn_whether_another_has_it_uploads_it(tmp_path: Path) -> None:
    data, root = blob_of(2 * LEAF_BYTES)
    async with world(tmp_path) as both:
        await both.server_store.put((MESH, STRANGER.peer), root, data)
        await both.send(data)
        assert both.service.counts.had == 0
        assert both.service.counts.bytes_in == len(data)


async def test_policy_may_refuse_a_put(tmp_path: Path) -> None:
    def admit(peer: PeerId, root: Digest, size: int) -> Refused | None:
        assert peer == CLIENT.peer
        return Refused("not-asked", "nobody asked for that") if size > 10 else None

    async with world(tmp_path, admit=admit) as both:
        await both.send(b"small")
        with pytest.raises(Refused, match="nobody asked") as caught:
            await both.send(b"larger than ten")
        assert caught.value.code == "not-asked"
        assert both.server_store.statistics().blobs == 1


async def test_a_blob_beyond_the_quota_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    async with world(tmp_path, quota=2 << 20) as both:
        with pytest.raises(Refused, match="no room") as caught:
            await both.send(bytes(3 << 20))
        assert caught.value.code == "store-full"
        assert both.service.counts.bytes_in == 0
        assert list((tmp_path / "server" / "incoming").iterdir()) == []


async def test_a_header_of_100_tib_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as both:
        async with raw(both, BlobHeader("put", bytes(32), 100 << 40)) as stream:
            answer = await receive_frame(stream, BlobAnswer)
        assert (answer.state, answer.code) == ("refused", "too-large")
        with pytest.raises(RemoteProtocolError, match="at most"):
            await both.fetch(Digest(bytes(32)), 100 << 40)


async def test_a_disk_that_fills_up_half_way_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_pwrite = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if offset >= LEAF_BYTES:
            raise OSError(28, "No space left on device")
        return real_pwrite(fd, data, offset)

    async with world(tmp_path) as both:
        monkeypatch.setattr(os, "pwrite", pwrite)
        with pytest.raises(Refused, match="disk") as caught:
            await both.send(bytes(20 * LEAF_BYTES))
        assert caught.value.code == "store-full"
        monkeypatch.undo()
        statistics = both.server_store.statistics()
        assert (statistics.blobs, statistics.reserved_bytes) == (0, 0)
        assert list((tmp_path / "server" / "incoming").iterdir()) == []


@asynccontextmanager
async def raw(both: World, header: BlobHeader) -> AsyncIterator[Stream]:
    stream = await both.client.open_stream(SERVER.peer, blob_protocol(MESH))
    try:
        await stream.send_all(encode_frame(encode(header)))
        yield stream
    finally:
        await stream.reset()


async def test_a_manifest_of_another_blob_is_caught_before_any_leaf(tmp_path: Path) -> None:
    data, root = blob_of(3 * LEAF_BYTES)
    async with world(tmp_path) as both:
        async with raw(both, BlobHeader("put", root, len(data))) as stream:
            assert (await receive_frame(stream, BlobAnswer)).state == "go"
            await stream.send_all(b"".join(leaf_digests(bytes(len(data)))))
            with pytest.raises(Unreachable):
                await stream.receive_into(memoryview(bytearray(1)))
        assert both.service.counts.faults == 1
        assert both.server_store.statistics().reserved_bytes == 0


async def test_one_wrong_bit_in_a_leaf_keeps_nothing(tmp_path: Path) -> None:
    data, root = blob_of(3 * LEAF_BYTES)
    wrong = bytearray(data)
    wrong[LEAF_BYTES + 17] ^= 1
    async with world(tmp_path) as both:
        with pytest.raises(Unreachable):
            await send_blob(both.client, MESH, SERVER.peer, root, leaf_digests(data), wrong)
        assert both.service.counts.faults == 1
        assert not both.server_store.has((MESH, CLIENT.peer), root)
        assert list((tmp_path / "server" / "incoming").iterdir()) == []
        assert both.server_store.statistics().reserved_bytes == 0


async def test_our_own_wrong_manifest_is_caught_before_sending(tmp_path: Path) -> None:
    data, root = blob_of(1000)
    async with world(tmp_path) as both:
        with pytest.raises(LocalProtocolError):
            await send_blob(both.client, MESH, SERVER.peer, root, leaf_digests(data[:-1]), data)
        assert both.client.counts.streams_opened == 0


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x00\x00\x00",
        b"\xff\xff\xff\xff",
        encode_frame(b"\xc0"),
        encode_frame(encode(BlobAnswer("go"))),
        encode_frame(b"\x93\xa3pot\xc4\x20" + bytes(32) + b"\x01"),
    ],
)
async def test_garbage_for_a_header_is_a_fault(tmp_path: Path, sent: bytes) -> None:
    async with world(tmp_path) as both:
        stream = await both.client.open_stream(SERVER.peer, blob_protocol(MESH))
        await stream.send_all(sent)
        with pytest.raises(Unreachable):
            await stream.receive_into(memoryview(bytearray(1)))
        assert both.service.counts.faults == 1


@asynccontextmanager
async def lying_server(
    tmp_path: Path, behave: Callable[[Stream], Awaitable[None]]
) -> AsyncIterator[tuple[Transport, BlobStore]]:
    network = MemoryNetwork(random.Random(1), window_bytes=4 << 20)
    async with (
        network.transport(CLIENT) as client,
        network.transport(SERVER) as server,
        open_blob_store(tmp_path / "client", quota_bytes=QUOTA, owner=CLIENT.peer) as store,
    ):
        server.handle(blob_protocol(MESH), behave)
        await client.dial(server.addresses[0])
        yield client, store


async def test_a_fetch_of_other_bytes_blames_the_server_and_keeps_nothing(tmp_path: Path) -> None:
    data, root = blob_of(3 * LEAF_BYTES)

    async def lie(stream: Stream) -> None:
        await receive_frame(stream, BlobHeader)
        await send_frame(stream, BlobAnswer("go"))
        await stream.send_all(b"".join(leaf_digests(data)))
        await stream.send_all(data[:LEAF_BYTES] + bytes(LEAF_BYTES))
        await stream.receive_some()

    async with lying_server(tmp_path, lie) as (client, store):
        scope = (MESH, CLIENT.peer)
        with pytest.raises(RemoteProtocolError, match="leaf 1 "):
            await fetch_blob(client, MESH, SERVER.peer, root, len(data), store, scope)
        assert store.statistics().blobs == 0
        assert store.statistics().reserved_bytes == 0
        assert list((tmp_path / "client" / "incoming").iterdir()) == []


async def test_a_server_that_stalls_is_unreachable_after_the_deadline_of_a_leaf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Threads and the real clock: a short deadline stands in for the long one.
    monkeypatch.setattr(blob_streams, "LEAF_SECONDS", 0.05)
    data, root = blob_of(3 * LEAF_BYTES)

    async def stall(stream: Stream) -> None:
        await receive_frame(stream, BlobHeader)
        await send_frame(stream, BlobAnswer("go"))
        await stream.send_all(b"".join(leaf_digests(data)))
        await stream.send_all(data[: LEAF_BYTES + 5])
        await stream.receive_some()

    async with lying_server(tmp_path, stall) as (client, store):
        with pytest.raises(Unreachable, match="leaf 1 "):
            await fetch_blob(client, MESH, SERVER.peer, root, len(data), store, (MESH, CLIENT.peer))
        # The leaf that did arrive waits for the next attempt.
        assert store.statistics().partial == 1


async def test_our_own_full_store_is_said_before_asking(tmp_path: Path) -> None:
    async def never(stream: Stream) -> None:
        raise AssertionError("nothing should be asked")

    async with lying_server(tmp_path, never) as (client, store):
        with pytest.raises(StoreFull):
            await fetch_blob(
                client, MESH, SERVER.peer, Digest(bytes(32)), 2 * QUOTA, store, (MESH, CLIENT.peer)
            )


async def test_one_peer_has_few_transfers_at_once_and_the_rest_wait(tmp_path: Path) -> None:
    async with world(tmp_path) as both:
        held = []
        for number in range(MAX_TRANSFERS_PER_PEER):
            data, root = blob_of(LEAF_BYTES, seed=number)
            stream = await both.client.open_stream(SERVER.peer, blob_protocol(MESH))
            await stream.send_all(encode_frame(encode(BlobHeader("put", root, len(data)))))
            assert (await receive_frame(stream, BlobAnswer)).state == "go"
            held.append(stream)
        data, root = blob_of(10, seed=99)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.send, data)
            await trio.testing.wait_all_tasks_blocked()
            assert not both.server_store.has((MESH, CLIENT.peer), root)
            await held[0].reset()
        assert both.server_store.has((MESH, CLIENT.peer), root)
        for stream in held:
            await stream.reset()


async def test_too_many_in_line_are_told_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "MAX_WAITING_PER_PEER", 0)
    async with world(tmp_path) as both:
        held = [
            await both.client.open_stream(SERVER.peer, blob_protocol(MESH))
            for _ in range(MAX_TRANSFERS_PER_PEER)
        ]
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Refused) as caught:
            await both.send(b"one more")
        assert caught.value.code == "busy"
        for stream in held:
            await stream.reset()
        await trio.testing.wait_all_tasks_blocked()
        await both.send(b"one more")


# Broken off and resumed


async def leaves_here(store: BlobStore, count: int) -> None:
    """Until the store has set a blob aside with `count` leaves."""
    with trio.fail_after(10):
        while [each.done for each in store._partials._kept.values()] != [count]:
            await trio.testing.wait_all_tasks_blocked(0.01)


async def broken_off(both: World, data: bytes, root: Digest, leaves: int) -> None:
    """A put that breaks in the middle of the leaf after `leaves`."""
    async with raw(both, BlobHeader("put", root, len(data))) as stream:
        assert await receive_frame(stream, BlobAnswer) == BlobAnswer("go")
        await stream.send_all(b"".join(leaf_digests(data)))
        await stream.send_all(data[: leaves * LEAF_BYTES + 1000])
        await trio.testing.wait_all_tasks_blocked(0.01)
    await leaves_here(both.server_store, leaves)


async def test_a_put_goes_on_where_it_broke(tmp_path: Path) -> None:
    data, root = blob_of(5 * LEAF_BYTES + 7)
    async with world(tmp_path) as both:
        await broken_off(both, data, root, 3)
        await both.send(data)
        assert await both.server_store.read((MESH, CLIENT.peer), root) == data
        assert (both.service.counts.put, both.service.counts.resumed) == (1, 1)
        assert both.service.counts.bytes_in == 2 * LEAF_BYTES + 7
        assert both.server_store.statistics().reserved_bytes == 0
        assert list((tmp_path / "server" / "incoming").iterdir()) == []


async def test_a_resumed_put_breaks_again_and_goes_on_again(tmp_path: Path) -> None:
    data, root = blob_of(5 * LEAF_BYTES)
    async with world(tmp_path) as both:
        await broken_off(both, data, root, 1)
        async with raw(both, BlobHeader("put", root, len(data))) as stream:
            assert await receive_frame(stream, BlobAnswer) == BlobAnswer("go", first=1)
            await stream.send_all(data[LEAF_BYTES : 3 * LEAF_BYTES + 5])
            await trio.testing.wait_all_tasks_blocked(0.01)
        await leaves_here(both.server_store, 3)
        # Broken even before the answer arrives: nothing is lost.
        async with raw(both, BlobHeader("put", root, len(data))):
            pass
        await leaves_here(both.server_store, 3)
        await both.send(data)
        assert await both.server_store.read((MESH, CLIENT.peer), root) == data


async def test_wrong_bytes_in_a_resumed_put_keep_nothing(tmp_path: Path) -> None:
    data, root = blob_of(4 * LEAF_BYTES)
    wrong = bytearray(data)
    wrong[-1] ^= 1
    async with world(tmp_path) as both:
        await broken_off(both, data, root, 2)
        with pytest.raises(Unreachable):
            await send_blob(both.client, MESH, SERVER.peer, root, leaf_digests(data), wrong)
        statistics = both.server_store.statistics()
        assert (statistics.partial, statistics.reserved_bytes, statistics.blobs) == (0, 0, 0)
        assert both.service.counts.faults == 1


async def test_what_one_peer_began_is_nothing_to_another(tmp_path: Path) -> None:
    data, root = blob_of(3 * LEAF_BYTES)
    async with world(tmp_path) as both:
        await broken_off(both, data, root, 2)
        assert both.server_store.resume((MESH, STRANGER.peer), root, len(data)) is None
        assert both.server_store.resume((mesh_id("other"), CLIENT.peer), root, len(data)) is None
        # Another size is another blob, and whoever claims it has lost what was kept.
        assert both.server_store.resume((MESH, CLIENT.peer), root, len(data) + 1) is None
        assert both.server_store.statistics().reserved_bytes == 0


async def test_a_fetch_goes_on_where_it_broke(tmp_path: Path) -> None:
    data, root = blob_of(4 * LEAF_BYTES + 9)
    asked: list[int] = []

    async def serve(stream: Stream) -> None:
        header = await receive_frame(stream, BlobHeader)
        asked.append(header.first)
        await send_frame(stream, BlobAnswer("go"))
        if not header.first:
            await stream.send_all(b"".join(leaf_digests(data)))
        last = len(data) if len(asked) > 2 else (header.first + 1) * LEAF_BYTES + 10
        await stream.send_all(data[header.first * LEAF_BYTES : last])
        if len(asked) <= 2:
            await trio.testing.wait_all_tasks_blocked(0.01)
            await stream.reset()

    async with lying_server(tmp_path, serve) as (client, store):
        scope = (MESH, CLIENT.peer)
        for _ in range(2):
            with pytest.raises(Unreachable):
                await fetch_blob(client, MESH, SERVER.peer, root, len(data), store, scope)
        await fetch_blob(client, MESH, SERVER.peer, root, len(data), store, scope)
        assert asked == [0, 1, 2]
        assert await store.read(scope, root) == data
        assert store.statistics().reserved_bytes == 0


async def test_with_patience_one_call_goes_on_over_breaks(tmp_path: Path) -> None:
    data, root = blob_of(6 * LEAF_BYTES)
    network = MemoryNetwork(random.Random(1), window_bytes=LEAF_BYTES)
    async with (
        network.transport(CLIENT) as client,
        network.transport(SERVER) as server,
        open_blob_store(tmp_path / "server", quota_bytes=QUOTA, owner=SERVER.peer) as store,
    ):
        service = BlobService(server, MESH, store)
        await client.dial(server.addresses[0])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(send_blob, client, MESH, SERVER.peer, root, leaf_digests(data), data, patience_s=10)
            )
            for _ in range(2):
                await trio.sleep(0.01)
                await client.disconnect(SERVER.peer)
                await client.dial(server.addresses[0])
        assert await store.read((MESH, CLIENT.peer), root) == data
        assert service.counts.put == 1


class Away:
    """A transport without connections."""

    peer = CLIENT.peer

    def __init__(self) -> None:
        self.attempts = 0

    def connected(self) -> list[PeerId]:
        return []

    async def open_stream(self, peer: PeerId, protocol: str) -> Stream:
        self.attempts += 1
        raise Unreachable("not connected")


@pytest.mark.parametrize("patience", [0, 30])
async def test_a_peer_that_does_not_come_back_is_told_after_that_patience(
    autojump_clock: trio.testing.MockClock, patience: float
) -> None:
    data, root = blob_of(2 * LEAF_BYTES)
    away: Any = Away()
    began = trio.current_time()
    with pytest.raises(Unreachable):
        await send_blob(away, MESH, SERVER.peer, root, leaf_digests(data), data, patience_s=patience)
    assert (away.attempts, round(trio.current_time() - began)) == (1, patience)


async def test_patience_ends_where_no_attempt_brings_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "MAX_ATTEMPTS", 1)
    monkeypatch.setattr(transfer, "_LOOK_SECONDS", 0.01)
    data, root = blob_of(6 * LEAF_BYTES)
    written: list[BlobWriter] = []
    write_leaves = BlobWriter.write_leaves

    async def note(writer: BlobWriter, leaves: Buffer) -> None:
        await write_leaves(writer, leaves)
        written.append(writer)

    monkeypatch.setattr(BlobWriter, "write_leaves", note)
    asked: list[int] = []

    async def serve(stream: Stream) -> None:
        header = await receive_frame(stream, BlobHeader)
        asked.append(header.first)
        await send_frame(stream, BlobAnswer("go"))
        if not header.first:
            await stream.send_all(b"".join(leaf_digests(data)))
        if header.first < 4:
            # One leaf for each connection, and then none.
            await stream.send_all(data[header.first * LEAF_BYTES :][: LEAF_BYTES + 10])
            with trio.fail_after(60):
                while not (written and written[-1].done > header.first):
                    await trio.testing.wait_all_tasks_blocked(0.01)
        await stream.reset()

    async with lying_server(tmp_path, serve) as (client, store):
        scope = (MESH, CLIENT.peer)
        with pytest.raises(Unreachable):
            await fetch_blob(client, MESH, SERVER.peer, root, len(data), store, scope, patience_s=5)
        assert asked == [0, 1, 2, 3, 4, 4, 4]


async def test_impossible_first_leaves_are_refused(tmp_path: Path) -> None:
    data, root = blob_of(3 * LEAF_BYTES)
    async with world(tmp_path) as both:
        await both.send(data)
        async with raw(both, BlobHeader("get", root, len(data), first=4)) as stream:
            answer = await receive_frame(stream, BlobAnswer)
            assert (answer.state, answer.code) == ("refused", "unknown-blob")

    async def lie(stream: Stream) -> None:
        await receive_frame(stream, BlobHeader)
        await send_frame(stream, BlobAnswer("go", first=4))
        await stream.receive_some()

    async with lying_server(tmp_path, lie) as (client, _):
        with pytest.raises(RemoteProtocolError, match="4 of 3"):
            await send_blob(client, MESH, SERVER.peer, root, leaf_digests(data), data)


# Odd moments


@pytest.mark.parametrize("size", [LEAF_BYTES, LEAF_BYTES + 1, 3 * LEAF_BYTES, 3 * LEAF_BYTES + 5])
async def test_a_put_that_breaks_at_any_border_of_leaves_goes_on_there(tmp_path: Path, size: int) -> None:
    data, root = blob_of(size)
    whole = size // LEAF_BYTES
    async with world(tmp_path) as both:
        for done in range(1, whole + 1):
            async with raw(both, BlobHeader("put", root, size)) as stream:
                answer = await receive_frame(stream, BlobAnswer)
                assert (answer.state, answer.first) == ("go", done - 1)
                if done == 1:
                    await stream.send_all(b"".join(leaf_digests(data)))
                if done * LEAF_BYTES == size:
                    break
                await stream.send_all(data[(done - 1) * LEAF_BYTES : done * LEAF_BYTES])
                await trio.testing.wait_all_tasks_blocked(0.01)
            await leaves_here(both.server_store, done)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await both.send(data)
        assert await both.server_store.read((MESH, CLIENT.peer), root) == data
        assert both.server_store.statistics().reserved_bytes == 0


async def test_one_blob_sent_and_fetched_twice_at_once_is_there_once(tmp_path: Path) -> None:
    data, root = blob_of(6 * LEAF_BYTES + 3)
    async with world(tmp_path) as both:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.send, data)
            nursery.start_soon(both.send, data)
        statistics = both.server_store.statistics()
        assert (statistics.blobs, statistics.reserved_bytes) == (1, 0)
        assert statistics.used_bytes == -(-len(data) // 4096) * 4096
        fetched: list[bytes] = []

        async def fetch() -> None:
            fetched.append(await both.fetch(root, len(data)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch)
            nursery.start_soon(fetch)
        assert fetched == [data, data]
        assert both.client_store.statistics().reserved_bytes == 0
        assert list((tmp_path / "server" / "incoming").iterdir()) == []
        assert list((tmp_path / "client" / "incoming").iterdir()) == []


async def test_bytes_that_change_while_they_are_sent_keep_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, root = blob_of(16 * LEAF_BYTES)
    changing = bytearray(data)
    usual = BlobWriter.write_leaves
    written: list[int] = []

    async def change_then_write(self: BlobWriter, leaves: Buffer) -> None:
        changing[-1] ^= not written
        written.append(len(leaves))
        await usual(self, leaves)

    monkeypatch.setattr(BlobWriter, "write_leaves", change_then_write)
    async with world(tmp_path) as both:
        with pytest.raises(Unreachable):
            await send_blob(both.client, MESH, SERVER.peer, root, leaf_digests(data), changing)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(written) > 1, "it was found before it happened"
        statistics = both.server_store.statistics()
        assert (statistics.blobs, statistics.partial, statistics.reserved_bytes) == (0, 0, 0)
        assert both.service.counts.faults == 1
        await both.send(data)
        assert await both.server_store.read((MESH, CLIENT.peer), root) == data


async def test_a_file_that_shrinks_while_it_is_sent_is_our_own_fault(tmp_path: Path) -> None:
    data, root = blob_of(6 * LEAF_BYTES)
    path = tmp_path / "source"
    path.write_bytes(data[: 3 * LEAF_BYTES])
    fd = os.open(path, os.O_RDONLY)
    try:
        async with world(tmp_path) as both:
            with pytest.raises(LocalProtocolError, match="cannot read"):
                await send_blob(both.client, MESH, SERVER.peer, root, leaf_digests(data), fd, size=len(data))
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert both.server_store.statistics().blobs == 0
    finally:
        os.close(fd)


async def test_a_slow_receiver_holds_the_sender_and_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, root = blob_of(24 * LEAF_BYTES)
    gate = trio.Event()
    usual = BlobWriter.write_leaves

    async def slow(self: BlobWriter, leaves: Buffer) -> None:
        await gate.wait()
        await usual(self, leaves)

    begun: list[str] = []
    within = blob_streams.within

    def noted(seconds: float, peer: PeerId, what: str) -> AbstractContextManager[None]:
        if what.startswith("sending"):
            begun.append(what)
        return within(seconds, peer, what)

    monkeypatch.setattr(BlobWriter, "write_leaves", slow)
    monkeypatch.setattr(blob_streams, "within", noted)
    async with world(tmp_path) as both:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.send, data)
            with trio.fail_after(10):
                while len(begun) < 2:
                    await trio.testing.wait_all_tasks_blocked(0.01)
            await trio.testing.wait_all_tasks_blocked(0.05)
            # Nothing is written yet: the ring of four leaves and the stream's window of 4 MiB are full.
            assert len(begun) <= 3
            gate.set()
        assert len(begun) == 6
        assert await both.server_store.read((MESH, CLIENT.peer), root) == data


async def test_a_put_cancelled_inside_a_leaf_goes_on_behind_the_last_whole_one(tmp_path: Path) -> None:
    data, root = blob_of(16 * LEAF_BYTES)
    network = MemoryNetwork(random.Random(1), window_bytes=LEAF_BYTES // 2)
    async with (
        network.transport(CLIENT) as client,
        network.transport(SERVER) as server,
        open_blob_store(tmp_path / "server", quota_bytes=QUOTA, owner=SERVER.peer) as store,
    ):
        service = BlobService(server, MESH, store)
        await client.dial(server.addresses[0])
        send = partial(send_blob, client, MESH, SERVER.peer, root, leaf_digests(data), data)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            with trio.fail_after(10):
                while not store.statistics().reserved_bytes:
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        with trio.fail_after(10):
            while service._lines:
                await trio.testing.wait_all_tasks_blocked(0.01)
        await send()
        assert await store.read((MESH, CLIENT.peer), root) == data
        assert store.statistics().reserved_bytes == 0


@pytest.mark.parametrize("verb", ["put", "get"])
async def test_memory_is_used_again_under_the_same_lease_only(tmp_path: Path, verb: str) -> None:
    """At the side that receives a put, and at the one that receives a get."""
    one, two, strangers = (bytes([number]) * 32 for number in (1, 2, 3))
    async with world(tmp_path) as both:
        seeds = iter(range(100))

        async def transfer(lease: bytes | None) -> None:
            data, root = blob_of(2 * LEAF_BYTES, next(seeds))
            if verb == "put":
                leaves = leaf_digests(data)
                await send_blob(both.client, MESH, SERVER.peer, root, leaves, data, lease=lease)
            else:
                await both.server_store.put((MESH, CLIENT.peer), root, data)
                scope = (MESH, CLIENT.peer)
                await fetch_blob(
                    *(both.client, MESH, SERVER.peer, root, len(data), both.client_store, scope), lease=lease
                )

        store, other = (both.server_store, CLIENT.peer) if verb == "put" else (both.client_store, SERVER.peer)
        rings = store.rings
        for open_lease in (one, two):
            rings.lease_began(open_lease, (MESH, other))
        rings.lease_began(strangers, (MESH, STRANGER.peer))
        for made, reused, lease in (
            (1, 0, one),
            (1, 1, one),
            (2, 1, two),
            (2, 2, two),
            (3, 2, None),
            (4, 2, strangers),
            (5, 2, bytes(32)),
            (5, 3, one),
        ):
            await transfer(lease)
            assert (rings.made, rings.reused) == (made, reused), lease
        with rings.borrow((MESH, STRANGER.peer), LEAF_BYTES, strangers) as theirs:
            assert bytes(theirs) == bytes(LEAF_BYTES)
        rings.lease_ended(one)
        await transfer(one)
        assert (rings.made, rings.reused) == (7, 3)
        await transfer(two)
        assert (rings.made, rings.reused) == (7, 4)
