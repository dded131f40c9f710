"""The blob store: rights, quota, eviction, damage, restarts, and a disk that fills."""

import errno
import fcntl
import os
import random
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.p2p import blob_partials, blob_store
from coppermesh.p2p.blob_files import GrantLog, Scope, StoreFull, manifest_checked
from coppermesh.p2p.blob_partials import MAX_KEPT, MAX_KEPT_PER_SCOPE, Partial, PartialBlobs
from coppermesh.p2p.blob_store import (
    MEMORY_BYTES,
    SMALL_BYTES,
    BlobMissing,
    BlobStore,
    open_blob_store,
)
from coppermesh.p2p.blob_table import BLOCK_BYTES, MAX_SCOPES_PER_BLOB, BlobTable, charge_of
from coppermesh.p2p.blobs import LEAF_BYTES, Buffer, digest_of, leaf_digests, leaves_of
from coppermesh.p2p.errors import LocalProtocolError, RemoteProtocolError
from coppermesh.p2p.ids import Digest, MeshId, PeerId

MESH, OTHER_MESH = MeshId(b"m" * 16), MeshId(b"n" * 16)
OWNER, ALICE, BOB = (PeerId(bytes([number]) * 32) for number in (1, 2, 3))
MINE, HERS, HIS = (MESH, OWNER), (MESH, ALICE), (MESH, BOB)
QUOTA = 16 << 20


def blob(size: int, seed: int = 0) -> tuple[Digest, bytes]:
    data = random.Random(seed).randbytes(size)
    return digest_of(data), data


def files_in(path: Path) -> set[str]:
    return {file.name for file in (path / "blobs").iterdir()}


def nothing_incoming(path: Path) -> bool:
    return not list((path / "incoming").iterdir())


@pytest.mark.parametrize("size", [0, 1, SMALL_BYTES, SMALL_BYTES + 1, LEAF_BYTES, 2 * LEAF_BYTES + 3])
async def test_what_is_put_is_read(tmp_path: Path, size: int) -> None:
    root, data = blob(size)
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        await store.put(HERS, root, data)
        assert store.size_of(HERS, root) == size
        assert await store.read(HERS, root) == data
        with await store.open(HERS, root) as opened:
            assert os.pread(opened.fd, size + 1, 0) == data
            assert opened.leaves == leaf_digests(data)
        assert await store.add(HERS, data) == root
        assert store.statistics().blobs == 1


@pytest.mark.parametrize("size", [0, 1, SMALL_BYTES, 6 * LEAF_BYTES])
async def test_what_is_added_is_hashed_once_and_what_is_put_is_checked(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, data = blob(size)
    checked: list[int] = []
    usual = manifest_checked

    def counted(named: Digest, view: Buffer) -> list[bytes] | None:
        checked.append(len(view))
        return usual(named, view)

    monkeypatch.setattr(blob_store, "manifest_checked", counted)
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        assert await store.add(HERS, data) == root
        assert checked == ([] if size else [0])
        assert await store.read(HERS, root) == data
        with await store.open(HERS, root) as opened:
            assert opened.leaves == leaf_digests(data)
        await store.put(HIS, root, data)
        assert checked[-1:] == [size]


async def test_a_scope_sees_only_what_it_put_or_was_granted(tmp_path: Path) -> None:
    root, data = blob(100)
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        await store.put(HERS, root, data)
        for stranger in (HIS, (OTHER_MESH, ALICE)):
            assert not store.has(stranger, root)
            assert not await store.ensure(stranger, root)
            for ask in (store.open, store.read):
                with pytest.raises(BlobMissing):
                    await ask(stranger, root)
            with pytest.raises(BlobMissing):
                store.size_of(stranger, root)
        store.grant(HIS, root)
        assert await store.read(HIS, root) == data
        with pytest.raises(BlobMissing):
            store.grant(HIS, Digest(bytes(32)))


async def test_an_open_file_is_private_and_cannot_be_written(tmp_path: Path) -> None:
    root, data = blob(100)
    async with open_blob_store(tmp_path / "store", quota_bytes=QUOTA) as store:
        await store.put(HERS, root, data)
        with await store.open(HERS, root) as opened:
            assert fcntl.fcntl(opened.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            assert fcntl.fcntl(opened.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
            assert os.fstat(opened.fd).st_mode & 0o777 == 0o600
        opened.close()
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700


async def test_bytes_of_another_name_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    root, data = blob(100)
    good_root, good = blob(100, seed=1)
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        with pytest.raises(RemoteProtocolError):
            await store.put_many(HERS, [(good_root, good), (root, data[:-1])])
        assert not store.has(HERS, root)
        assert not store.has(HERS, good_root)
        assert files_in(tmp_path) == set()
        assert nothing_incoming(tmp_path)
        assert store.statistics().reserved_bytes == 0


async def write(store: BlobStore, data: bytes) -> Digest:
    root = digest_of(data)
    with await store.begin(HERS, root, len(data), leaf_digests(data)) as writer:
        for leaf in leaves_of(data):
            assert writer.leaf_size == len(leaf)
            await writer.write_leaf(leaf)
        assert writer.leaf_size == 0
        assert not store.has(HERS, root)
        writer.commit()
    return root


@pytest.mark.parametrize("size", [0, 5, LEAF_BYTES, 3 * LEAF_BYTES + 1])
async def test_a_blob_arrives_leaf_by_leaf(tmp_path: Path, size: int) -> None:
    _, data = blob(size)
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        root = await write(store, data)
        assert await store.read(HERS, root) == data
        assert store.statistics().reserved_bytes == 0
        assert nothing_incoming(tmp_path)


async def test_a_wrong_manifest_leaf_or_order_never_becomes_a_blob(tmp_path: Path) -> None:
    root, data = blob(2 * LEAF_BYTES)
    leaves = leaf_digests(data)
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        for size, manifest in ((len(data) - 1, leaves), (len(data), leaves[::-1]), (len(data), leaves[:1])):
            with pytest.raises(RemoteProtocolError):
                await store.begin(HERS, root, size, manifest)
        with await store.begin(HERS, root, len(data), leaves) as writer:
            with pytest.raises(RemoteProtocolError, match="leaf 0"):
                await writer.write_leaf(data[LEAF_BYTES:])
            with pytest.raises(LocalProtocolError):
                await writer.write_leaf(data[:LEAF_BYTES])
            with pytest.raises(LocalProtocolError):
                writer.commit()
        with await store.begin(HERS, root, len(data), leaves) as writer:
            await writer.write_leaf(data[:LEAF_BYTES])
            with pytest.raises(LocalProtocolError, match="before the last leaf"):
                writer.commit()
        assert store.statistics().reserved_bytes == 0
        assert files_in(tmp_path) == set()
        assert nothing_incoming(tmp_path)


async def test_the_quota_counts_from_the_start_of_an_upload(tmp_path: Path) -> None:
    root, data = blob(6 << 20)
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        with await store.begin(HERS, root, len(data), leaf_digests(data)):
            with pytest.raises(StoreFull, match="no room"):
                store.check_room(HERS, 3 << 20)
            with pytest.raises(StoreFull):
                await store.put(HERS, *blob(3 << 20, seed=1))
            store.check_room(HIS, 8 << 20)
            await store.put(HIS, *blob(8 << 20, seed=1))
        store.check_room(HERS, 8 << 20)
        with pytest.raises(StoreFull):
            store.check_room(HERS, (8 << 20) + 1)


async def test_the_least_recently_used_goes_first_and_pinned_ones_stay(tmp_path: Path) -> None:
    async with open_blob_store(tmp_path, quota_bytes=QUOTA, owner=OWNER) as store:
        roots = [await store.add(MINE, blob(4 << 20, seed=number)[1]) for number in range(4)]
        await store.read(MINE, roots[0])
        store.pin(roots[1])
        fifth = await store.add(MINE, blob(4 << 20, seed=4)[1])
        assert [store.has(MINE, root) for root in [*roots, fifth]] == [True, True, False, True, True]
        assert store.statistics().evicted == 1
        assert files_in(tmp_path) == {root.hex() for root in (roots[0], roots[1], roots[3], fifth)}
        store.unpin(roots[1])
        await store.add(MINE, blob(4 << 20, seed=5)[1])
        assert not store.has(MINE, roots[1])
        with pytest.raises(LocalProtocolError):
            store.unpin(roots[1])


async def test_a_store_full_of_pinned_blobs_says_so_and_evicts_nothing(tmp_path: Path) -> None:
    async with open_blob_store(tmp_path, quota_bytes=QUOTA, owner=OWNER) as store:
        roots = [await store.add(MINE, blob(4 << 20, seed=number)[1]) for number in range(4)]
        for root in roots[:3]:
            store.pin(root)
        with pytest.raises(StoreFull):
            await store.add(MINE, bytes(5 << 20))
        assert all(store.has(MINE, root) for root in roots)


async def test_a_peer_that_floods_the_store_evicts_itself(tmp_path: Path) -> None:
    async with open_blob_store(tmp_path, quota_bytes=QUOTA, owner=OWNER) as store:
        mine = await store.add(MINE, blob(4 << 20, seed=100)[1])
        his = await store.add(HIS, blob(4 << 20, seed=101)[1])
        for number in range(20):
            await store.put(HERS, *blob(1 << 20, seed=number))
        assert store.has(MINE, mine)
        assert store.has(HIS, his)
        assert store.statistics().used_bytes == QUOTA


async def test_an_evicted_blob_stays_readable_where_it_is_open(tmp_path: Path) -> None:
    root, data = blob(8 << 20)
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        await store.put(HERS, root, data)
        with await store.open(HERS, root) as opened:
            await store.put(HERS, *blob(8 << 20, seed=1))
            assert not store.has(HERS, root)
            assert os.pread(opened.fd, len(data), 0) == data


async def test_blobs_and_grants_survive_a_restart(tmp_path: Path) -> None:
    root, data = blob(3 * LEAF_BYTES)
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        await store.put(HIS, root, data)
        store.grant(HERS, root)
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        assert store.has(HERS, root)
        assert not store.has((OTHER_MESH, ALICE), root)
        assert await store.ensure(HIS, root)
        assert await store.read(HERS, root) == data


@pytest.mark.parametrize("damage", ["bit", "short", "long", "gone"])
async def test_a_blob_damaged_on_disk_is_dropped_never_served(tmp_path: Path, damage: str) -> None:
    root, data = blob(100)
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        await store.put(HERS, root, data)
    file = tmp_path / "blobs" / root.hex()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"bit": b"x" + data[1:], "short": data[:-1], "long": data + b"x"}[damage])
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        assert store.has(HERS, root) == (damage != "gone")
        assert not await store.ensure(HERS, root)
        with pytest.raises(BlobMissing):
            await store.read(HERS, root)
        assert store.statistics().damaged == (damage != "gone")
        assert store.statistics().used_bytes == 0
        await store.put(HERS, root, data)
        assert await store.read(HERS, root) == data


async def test_a_damaged_blob_put_again_before_it_is_noticed_is_whole(tmp_path: Path) -> None:
    root, data = blob(100)
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        await store.put(HERS, root, data)
    (tmp_path / "blobs" / root.hex()).write_bytes(bytes(100))
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        await store.put(HIS, root, data)
        assert await store.read(HERS, root) == data


async def test_a_restart_clears_what_a_crash_left(tmp_path: Path) -> None:
    root, data = blob(100)
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        await store.put(HERS, root, data)
    (tmp_path / "incoming" / "7").write_bytes(b"half a blob")
    ungranted, _ = blob(50, seed=9)
    (tmp_path / "blobs" / ungranted.hex()).write_bytes(b"a blob whose grant was not written")
    with (tmp_path / "grants").open("ab") as log:
        log.write(b"torn entry")
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        assert nothing_incoming(tmp_path)
        assert files_in(tmp_path) == {root.hex()}
        assert await store.read(HERS, root) == data
    assert (tmp_path / "grants").stat().st_size == 88


async def test_small_blobs_are_served_from_memory_within_a_bound(tmp_path: Path) -> None:
    async with open_blob_store(tmp_path, quota_bytes=4 * MEMORY_BYTES) as store:
        count = MEMORY_BYTES // SMALL_BYTES + 10
        for number in range(count):
            await store.put(HERS, *blob(SMALL_BYTES, seed=number))
        assert store.statistics().memory_bytes == MEMORY_BYTES
        newest, data = blob(SMALL_BYTES, seed=count - 1)
        (tmp_path / "blobs" / newest.hex()).unlink()
        assert await store.read(HERS, newest) == data
        with pytest.raises(BlobMissing):
            await store.open(HERS, newest)
        with pytest.raises(BlobMissing):
            await store.read(HERS, newest)


async def test_a_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    root, data = blob(3 * LEAF_BYTES)
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        await store.put(HERS, *blob(10, seed=1))
        with await store.begin(HERS, root, len(data), leaf_digests(data)) as writer:
            monkeypatch.setattr(os, "pwrite", no_room)
            with pytest.raises(StoreFull, match="disk"):
                await writer.write_leaf(data[:LEAF_BYTES])
        with pytest.raises(StoreFull, match="disk"):
            await store.put(HERS, root, data)
        with pytest.raises(StoreFull, match="disk"):
            store.grant(HIS, blob(10, seed=1)[0])
        monkeypatch.undo()
        assert store.statistics().reserved_bytes == 0
        assert store.statistics().blobs == 1
        assert not store.has(HIS, blob(10, seed=1)[0])
        assert nothing_incoming(tmp_path)
        await store.put(HERS, root, data)
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        assert await store.read(HERS, root) == data


async def test_the_last_of_the_disk_is_left_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(tmp_path)

    class AlmostFull:
        f_bavail = (65 << 20) // real.f_frsize
        f_frsize = real.f_frsize

    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        monkeypatch.setattr(os, "statvfs", lambda path: AlmostFull)
        await store.put(HERS, *blob(1 << 19))
        with pytest.raises(StoreFull, match="to spare"):
            await store.put(HERS, *blob(2 << 20))
        with pytest.raises(StoreFull, match="to spare"):
            store.check_room(HERS, 2 << 20)


async def test_a_cancelled_put_gives_its_room_back(tmp_path: Path) -> None:
    root, data = blob(100)
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.put(HERS, root, data)
        assert scope.cancelled_caught
        assert store.statistics().reserved_bytes == 0
        assert nothing_incoming(tmp_path)


def test_the_grant_log_ignores_what_a_crash_or_a_liar_wrote(tmp_path: Path) -> None:
    log = GrantLog(tmp_path / "grants")
    entries = [(blob(1, seed=number)[0], HERS) for number in range(4)]
    log.rewrite(entries[:2])
    log.append(entries[2:])
    assert log.entries == 4
    log.close()
    assert log.load() == entries
    data = bytearray((tmp_path / "grants").read_bytes())
    data[88 + 33] ^= 1
    (tmp_path / "grants").write_bytes(bytes(data) + b"torn")
    assert log.load() == [entries[0], *entries[2:]]


def test_the_oldest_grant_of_a_blob_goes_when_there_are_too_many() -> None:
    table = BlobTable(QUOTA, None)
    root, _ = blob(1)
    scopes = [(MESH, PeerId(number.to_bytes(32, "big"))) for number in range(MAX_SCOPES_PER_BLOB + 1)]
    for scope in scopes:
        table.add(scope, root, 1, None)
    assert table.visible(scopes[0], root) is None
    assert table.visible(scopes[1], root) is not None
    assert table.grants == MAX_SCOPES_PER_BLOB


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "pin", "unpin", "touch", "reserve"]),
            st.sampled_from([MINE, HERS, HIS]),
            st.integers(0, 12),
            st.integers(0, 6 * BLOCK_BYTES),
        ),
        max_size=60,
    )
)
def test_the_books_always_balance(moves: list[tuple[str, tuple[MeshId, PeerId], int, int]]) -> None:
    """Never over the quota or a share; never a pinned blob evicted; sums agree with what is there."""
    table = BlobTable(16 * BLOCK_BYTES, OWNER)
    sizes: dict[Digest, int] = {}
    pins: list[Digest] = []
    for move, scope, number, wanted_size in moves:
        root = Digest(bytes([number]) * 32)
        if move == "pin":
            table.pin(root)
            pins.append(root)
        elif move == "unpin" and root in pins:
            table.unpin(root)
            pins.remove(root)
        elif move == "touch" and table.visible(scope, root):
            table.touch(scope, root)
        elif move in ("put", "reserve"):
            size = sizes.get(root, wanted_size)
            charge = charge_of(size)
            before = len(table)
            try:
                table.check(scope, size)
            except StoreFull:
                with pytest.raises(StoreFull):
                    table.reserve(scope, charge)
                assert len(table) == before
                continue
            evicted = table.reserve(scope, charge)
            assert not set(evicted) & set(pins)
            for gone in evicted:
                del sizes[gone]
            table.release(scope, charge)
            if move == "put":
                table.add(scope, root, size, None)
                sizes[root] = size
        assert table.used == sum(map(charge_of, sizes.values())) <= table.quota
        assert table.reserved == 0
        assert len(table) == len(sizes)
        for who in (HERS, HIS):
            seen = sum(charge_of(sizes[root]) for root, whose in table.all_grants() if whose == who)
            assert seen <= table.quota // 2


async def set_aside(store: BlobStore, scope: Scope, size: int, *, seed: int, leaves: int = 1) -> Digest:
    root, data = blob(size, seed=seed)
    with await store.begin(scope, root, size, leaf_digests(data)) as writer:
        for leaf in list(leaves_of(data))[:leaves]:
            await writer.write_leaf(leaf)
        writer.set_aside()
    return root


async def test_a_blob_that_was_set_aside_is_completed_later(tmp_path: Path) -> None:
    root, data = blob(3 * LEAF_BYTES)
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        assert await set_aside(store, HERS, len(data), seed=0, leaves=2) == root
        assert store.statistics().reserved_bytes == len(data)
        assert not store.has(HERS, root)
        writer = store.resume(HERS, root, len(data))
        assert writer is not None
        assert store.resume(HERS, root, len(data)) is None
        with writer:
            assert (writer.done, writer.leaf_size) == (2, LEAF_BYTES)
            with pytest.raises(LocalProtocolError, match="before the last leaf"):
                writer.commit()
            await writer.write_leaf(data[2 * LEAF_BYTES :])
            writer.commit()
        assert await store.read(HERS, root) == data
        assert store.statistics().reserved_bytes == store.statistics().partial == 0


async def test_nothing_is_set_aside_without_a_leaf_or_after_a_wrong_one(tmp_path: Path) -> None:
    root, data = blob(2 * LEAF_BYTES)
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        await set_aside(store, HERS, len(data), seed=0, leaves=0)
        with await store.begin(HERS, root, len(data), leaf_digests(data)) as writer:
            await writer.write_leaf(data[:LEAF_BYTES])
            with pytest.raises(RemoteProtocolError):
                await writer.write_leaf(bytes(LEAF_BYTES))
            writer.set_aside()
        assert store.resume(HERS, root, len(data)) is None
        assert store.statistics().reserved_bytes == store.statistics().partial == 0
        assert nothing_incoming(tmp_path)


async def test_a_cancelled_leaf_does_not_cost_those_before_it(tmp_path: Path) -> None:
    async with open_blob_store(tmp_path, quota_bytes=64 << 20) as store:
        root, data = blob(3 * LEAF_BYTES, seed=5)
        with await store.begin(HERS, root, len(data), leaf_digests(data)) as writer:
            await writer.write_leaf(data[:LEAF_BYTES])
            with trio.CancelScope() as scope:
                scope.cancel()
                await writer.write_leaf(data[LEAF_BYTES : 2 * LEAF_BYTES])
            writer.set_aside()
        resumed = store.resume(HERS, root, len(data))
        assert resumed is not None
        assert resumed.done == 1
        resumed.abort()


async def test_what_was_set_aside_makes_room_for_anything_else(tmp_path: Path) -> None:
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        mine = await set_aside(store, HERS, 4 << 20, seed=1)
        other = await set_aside(store, HIS, 4 << 20, seed=2)
        await store.put(HERS, *blob(6 << 20, seed=3))
        assert store.resume(HERS, mine, 4 << 20) is None
        store.check_room(HIS, 8 << 20)
        assert store.resume(HIS, other, 4 << 20) is None
        assert store.statistics().reserved_bytes == 0
        assert nothing_incoming(tmp_path)


async def test_little_is_set_aside_and_not_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_blob_store(tmp_path, quota_bytes=64 << 20) as store:
        roots = [
            await set_aside(store, HERS, 2 << 20, seed=number) for number in range(MAX_KEPT_PER_SCOPE + 2)
        ]
        assert store.statistics().partial == MAX_KEPT_PER_SCOPE
        assert store.resume(HERS, roots[0], 2 << 20) is None
        newest = store.resume(HERS, roots[-1], 2 << 20)
        assert newest is not None
        newest.set_aside()
        monkeypatch.setattr(blob_partials, "KEPT_SECONDS", -1.0)
        assert store.resume(HERS, roots[-1], 2 << 20) is None
        assert store.statistics().partial == store.statistics().reserved_bytes == 0
        assert nothing_incoming(tmp_path)


async def test_a_restart_forgets_what_was_set_aside(tmp_path: Path) -> None:
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        root = await set_aside(store, HERS, 2 << 20, seed=1)
    async with open_blob_store(tmp_path, quota_bytes=QUOTA) as store:
        assert store.resume(HERS, root, 2 << 20) is None
        assert nothing_incoming(tmp_path)


def test_partial_blobs_are_few_in_all() -> None:
    kept = PartialBlobs()
    gone = []
    for number in range(MAX_KEPT + 10):
        scope = (MESH, PeerId(number.to_bytes(32, "big")))
        gone += kept.keep(Partial(scope, Digest(bytes(32)), 1, [], 1, 1, Path("x"), float(number)))
    assert len(kept) == MAX_KEPT
    assert [each.kept_at for each in gone] == [float(number) for number in range(10)]
    again = (MESH, PeerId((20).to_bytes(32, "big")))
    assert kept.keep(Partial(again, Digest(bytes(32)), 1, [], 2, 1, Path("y"), 99.0))[0].kept_at == 20.0
    taken = kept.take(again, Digest(bytes(32)))
    assert taken is not None
    assert taken.done == 2
