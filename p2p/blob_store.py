"""Content-addressed blobs on disk with a quota, where knowing a hash gives no right.

Theory of operation. A blob is there once, however many may see it; who may is a set of *scopes*, a scope being one
requester on one mesh. A scope sees what it uploaded completely or was granted, and nothing else: to every other asker
a blob that is on this disk does not exist.

All bookkeeping (`blob_table`), every rename and every line of the grant log happen in the trio thread, one after the
other; only reading, writing and hashing go to worker threads (of a few KiB not even these: see `AT_ONCE_BYTES`), on
files that have no name in the store yet. So the
table and the folder never disagree, and a failed upload leaves nothing. One whose sender was cut off may be set aside
and resumed (`blob_partials`); a restart forgets it.

Files and grants outlive the process. After a restart a blob is verified when it is first used: one that is damaged is
dropped, never served. Blobs of up to `SMALL_BYTES` are also kept in memory, up to `MEMORY_BYTES` in all.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import trio

from coppermesh.p2p.blob_files import BlobFiles, GrantLog, Scope, StoreFull, manifest_checked, read_exactly
from coppermesh.p2p.blob_handles import BlobWriter, OpenBlob
from coppermesh.p2p.blob_hashing import hash_leaves
from coppermesh.p2p.blob_memory import MEMORY_BYTES, SMALL_BYTES, SmallBlobs
from coppermesh.p2p.blob_partials import Partial, PartialBlobs
from coppermesh.p2p.blob_table import BlobTable, Entry, charge_of
from coppermesh.p2p.blobs import Buffer, as_bytes_view, blob_root, leaf_count, leaf_digests
from coppermesh.p2p.errors import MeshError, RemoteProtocolError
from coppermesh.p2p.ids import Digest, PeerId
from coppermesh.p2p.receive_rings import ReceiveRings

__all__ = [
    "MEMORY_BYTES",
    "SMALL_BYTES",
    "BlobMissing",
    "BlobStore",
    "BlobWriter",
    "OpenBlob",
    "Scope",
    "StoreFull",
    "open_blob_store",
]

T = TypeVar("T")

AT_ONCE_BYTES = 16 * 1024
"""So few bytes are hashed and handed to the kernel sooner than a thread takes them over."""
_SLACK_ENTRIES = 16_384
"""How many dead entries the grant log may carry, besides as many as live ones, before it is rewritten."""


class BlobMissing(MeshError):
    """The scope has no such blob: never uploaded or granted, evicted since, or found damaged and dropped."""


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """What the store holds now, and totals since it was opened. Sizes in bytes."""

    blobs: int
    used_bytes: int
    reserved_bytes: int
    quota_bytes: int
    memory_bytes: int
    pinned: int
    evicted: int
    damaged: int
    partial: int = 0
    """Blobs that broke off and wait to be resumed; their room is in `reserved_bytes`."""


class BlobStore:
    """The blobs of one agent. Made by `open_blob_store`; use it in the trio thread only."""

    def __init__(self, files: BlobFiles, log: GrantLog, table: BlobTable) -> None:
        self._files = files
        self._log = log
        self._table = table
        self.rings = ReceiveRings()
        """What transfers into and out of this store hold in memory."""
        self._memory = SmallBlobs()
        self._partials = PartialBlobs()
        self._damaged = 0
        self._verifying = trio.Lock()
        self._discarded: list[Path] = []

    # Asking

    def has(self, scope: Scope, root: Digest) -> bool:
        """May `scope` see this blob, and is it here? One from before a restart may still prove damaged: `ensure`."""
        return self._table.visible(scope, root) is not None

    def is_disk_full(self) -> bool:
        """Not even a small blob could be stored."""
        try:
            self._files.check_room(1)
        except StoreFull:
            return True
        return False

    async def ensure(self, scope: Scope, root: Digest) -> bool:
        """Like `has`, and its bytes were verified in this run. What `need` is computed from. Counts as a use."""
        entry = self._table.visible(scope, root)
        if entry is None:
            return False
        if entry.leaves is None:
            await self._verify(root)
            if not self.has(scope, root):
                return False
        self._table.touch(scope, root)
        return True

    async def open(self, scope: Scope, root: Digest) -> OpenBlob:
        """The blob as an open file. Raises BlobMissing."""
        if await self.ensure(scope, root):
            entry = self._entry(scope, root)
            with suppress(FileNotFoundError):
                return OpenBlob(self._files.open(root), entry.size, root, entry.leaves or [])
            self._drop(root)
        raise _missing(root)

    async def read(self, scope: Scope, root: Digest) -> bytes:
        """The whole blob in memory. Raises BlobMissing."""
        if self.has(scope, root) and (data := self._memory.get(root)) is not None:
            self._table.touch(scope, root)
            return data
        with await self.open(scope, root) as blob:
            data = await trio.to_thread.run_sync(_read_whole, blob.fd, blob.size)
        if self.has(scope, root):
            self._memory.keep(root, data)
        return data

    def size_of(self, scope: Scope, root: Digest) -> int:
        """Bytes of a blob that `scope` may see. Raises BlobMissing."""
        return self._entry(scope, root).size

    def statistics(self) -> StoreStatistics:
        """A snapshot for status pages."""
        return StoreStatistics(
            blobs=len(self._table),
            used_bytes=self._table.used,
            reserved_bytes=self._table.reserved,
            quota_bytes=self._table.quota,
            memory_bytes=self._memory.size,
            pinned=self._table.pinned,
            evicted=self._table.evicted,
            damaged=self._damaged,
            partial=len(self._partials),
        )

    # Adding

    async def add(self, scope: Scope, data: Buffer) -> Digest:
        """Store bytes of our own, hashed once and not to change meanwhile; their root. Raises StoreFull."""
        view = as_bytes_view(data)
        leaves = leaf_digests(view) if len(view) <= SMALL_BYTES else await hash_leaves(view)
        root = blob_root(len(view), leaves)
        await self._put_many(scope, [(root, view)], {root: leaves})
        return root

    async def put(self, scope: Scope, root: Digest, data: Buffer) -> None:
        """Store a complete blob for `scope`.

        Raises RemoteProtocolError where the bytes do not hash to `root`, StoreFull; nothing is kept then.
        """
        await self.put_many(scope, [(root, data)])

    async def put_many(self, scope: Scope, blobs: Sequence[tuple[Digest, Buffer]]) -> None:
        """`put` for several with at most one visit to a thread: all of them or none."""
        await self._put_many(scope, blobs, {})

    async def _put_many(
        self, scope: Scope, blobs: Sequence[tuple[Digest, Buffer]], hashed: dict[Digest, list[bytes]]
    ) -> None:
        """`hashed`: leaf digests of those that were hashed here just now; the others are checked."""
        wanted = {root: as_bytes_view(data) for root, data in blobs if not self._is_verified(scope, root)}
        if not wanted:
            return
        charge = sum(charge_of(len(view)) for view in wanted.values())
        await self._reserve(scope, charge)
        paths = {root: self._files.next_incoming() for root in wanted}
        try:
            if sum(len(view) for view in wanted.values()) <= AT_ONCE_BYTES:
                manifests = self._write_checked(wanted, paths, hashed)
            else:
                manifests = await trio.to_thread.run_sync(self._write_checked, wanted, paths, hashed)
        finally:
            self._table.release(scope, charge)
        self._publish(scope, [(root, len(wanted[root]), manifests[root], paths[root]) for root in wanted])
        for root, view in wanted.items():
            if len(view) <= SMALL_BYTES:
                self._memory.keep(root, bytes(view))

    async def begin(self, scope: Scope, root: Digest, size: int, leaves: list[bytes]) -> BlobWriter:
        """A writer for a blob of `size` bytes with this manifest; the room is reserved from now on.

        Raises RemoteProtocolError where the manifest does not belong to `root`, StoreFull.
        """
        if len(leaves) != leaf_count(size) or blob_root(size, leaves) != root:
            raise RemoteProtocolError(f"the manifest of blob {root.hex()[:16]} does not match its root")
        charge = charge_of(size)
        await self._reserve(scope, charge)
        path = self._files.next_incoming()
        try:
            fd = self._files.create(path, size)
        except BaseException:
            self._table.release(scope, charge)
            raise
        return self._writer(Partial(scope, root, size, leaves, 0, charge, path, 0.0), fd)

    def resume(self, scope: Scope, root: Digest, size: int) -> BlobWriter | None:
        """A writer that goes on where one of `scope` for this blob was set aside; None where there is none."""
        self._drop_partials(self._partials.expired(trio.current_time()))
        partial = self._partials.take(scope, root)
        if partial is None:
            return None
        if partial.size == size:
            with suppress(OSError):
                return self._writer(partial, self._files.reopen(partial.path))
        self._drop_partials([partial])
        return None

    def _writer(self, partial: Partial, fd: int) -> BlobWriter:
        scope, root, size, leaves = partial.scope, partial.root, partial.size, partial.leaves

        def publish() -> None:
            self._table.release(scope, partial.charge)
            self._publish(scope, [(root, size, leaves, partial.path)])

        def keep(done: int) -> None:
            kept = replace(partial, done=done, kept_at=trio.current_time())
            self._drop_partials(self._partials.keep(kept))

        return BlobWriter(
            root,
            size,
            leaves,
            fd,
            publish=publish,
            abandon=lambda: self._drop_partials([partial]),
            keep=keep,
            done=partial.done,
        )

    def _drop_partials(self, partials: Sequence[Partial]) -> None:
        for partial in partials:
            self._table.release(partial.scope, partial.charge)
            self._files.discard(partial.path)

    def check_room(self, scope: Scope, size: int) -> None:
        """Raises StoreFull where a blob of `size` bytes could not be taken now. Gives up broken-off blobs for it."""

        def check() -> None:
            self._table.check(scope, size)
            self._files.check_room(size)

        self._with_room(scope, check)

    def _with_room(self, scope: Scope, attempt: Callable[[], T]) -> T:
        """The attempt's result; what was set aside goes, one by one, as long as it raises StoreFull."""
        while True:
            try:
                return attempt()
            except StoreFull:
                partial = self._partials.oldest(scope)
                if partial is None:
                    raise
                self._drop_partials([partial])

    # Rights and lifetime

    def grant(self, scope: Scope, root: Digest) -> None:
        """Let `scope` see a blob that is here; it lasts over restarts. Raises BlobMissing, StoreFull."""
        if self._table.get(root) is None:
            raise _missing(root)
        if not self.has(scope, root):
            self._log.append([(root, scope)])
            self._table.show(scope, root)
            self._tidy_log()

    def pin(self, root: Digest) -> None:
        """Keep a blob from eviction until as many `unpin`. It need not be here yet. Not remembered over a restart."""
        self._table.pin(root)

    def unpin(self, root: Digest) -> None:
        """Undo one `pin`."""
        self._table.unpin(root)

    # Inside

    def start(self) -> None:
        """Read the folder and the log. Called once, by `open_blob_store`, in a thread."""
        found = self._files.start()
        for root, scope in self._log.load():
            if root in found:
                self._table.add(scope, root, found[root], None)
        for root in found:
            if self._table.get(root) is None:
                # No scope can see it: its upload was cut off between the file and the log.
                self._delete_file(root)
        self._log.rewrite(self._table.all_grants())
        self._empty_bin(self._take_bin())

    def _entry(self, scope: Scope, root: Digest) -> Entry:
        entry = self._table.visible(scope, root)
        if entry is None:
            raise _missing(root)
        return entry

    def _is_verified(self, scope: Scope, root: Digest) -> bool:
        entry = self._table.visible(scope, root)
        if entry is None or entry.leaves is None:
            return False
        self._table.touch(scope, root)
        return True

    async def _reserve(self, scope: Scope, charge: int) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        for root in self._with_room(scope, lambda: self._table.reserve(scope, charge)):
            self._forget(root)
        if self._discarded:
            try:
                await trio.to_thread.run_sync(self._empty_bin, self._take_bin())
            except BaseException:
                self._table.release(scope, charge)
                raise

    def _write_checked(
        self, wanted: dict[Digest, memoryview], paths: dict[Digest, Path], hashed: dict[Digest, list[bytes]]
    ) -> dict[Digest, list[bytes]]:
        # May run in a thread: touches only files that have no name in the store yet.
        manifests = {}
        try:
            for root, view in wanted.items():
                leaves = hashed.get(root) or manifest_checked(root, view)
                if leaves is None:
                    raise RemoteProtocolError(f"the bytes given for blob {root.hex()[:16]} do not hash to it")
                self._files.write_new(paths[root], view)
                manifests[root] = leaves
        except BaseException:
            for path in paths.values():
                self._files.discard(path)
            raise
        return manifests

    def _publish(self, scope: Scope, complete: Sequence[tuple[Digest, int, list[bytes], Path]]) -> None:
        """Turn complete incoming files into blobs that `scope` sees. Raises StoreFull, having deleted them."""
        try:
            self._log.append([(root, scope) for root, _, _, _ in complete])
        except BaseException:
            for _, _, _, path in complete:
                self._files.discard(path)
            raise
        for root, size, leaves, path in complete:
            self._files.publish(path, root)
            self._table.add(scope, root, size, leaves)
        self._tidy_log()

    def _drop(self, root: Digest) -> None:
        self._table.remove(root)
        self._forget(root)

    def _forget(self, root: Digest) -> None:
        self._memory.drop(root)
        self._delete_file(root)

    def _delete_file(self, root: Digest) -> None:
        # The name goes at once, so that the same blob can come again; freeing a large file takes long and waits for
        # the next thread.
        path = self._files.set_aside(root)
        if path is not None:
            self._discarded.append(path)

    def _take_bin(self) -> list[Path]:
        paths, self._discarded = self._discarded, []
        return paths

    def _empty_bin(self, paths: list[Path]) -> None:
        for path in paths:
            self._files.discard(path)

    async def _verify(self, root: Digest) -> None:
        """Check a blob from before the restart, dropping it where its bytes are not what its name says."""
        async with self._verifying:
            entry = self._table.get(root)
            if entry is None or entry.leaves is not None:
                return
            leaves = await trio.to_thread.run_sync(self._files.verify, root, entry.size)
            if self._table.get(root) is not entry or entry.leaves is not None:
                return
            entry.leaves = leaves
            if leaves is None:
                self._damaged += 1
                self._drop(root)

    def _tidy_log(self) -> None:
        if self._log.entries > 2 * self._table.grants + _SLACK_ENTRIES:
            self._log.rewrite(self._table.all_grants())


@asynccontextmanager
async def open_blob_store(
    path: Path, *, quota_bytes: int, owner: PeerId | None = None
) -> AsyncIterator[BlobStore]:
    """The store in folder `path`, made where it does not exist, for the length of the block.

    `quota_bytes`: most bytes on disk. `owner`: this agent itself, which may use all of it; other peers half each.
    Raises StoreFull where not even the log can be written, OSError where the folder cannot be used.
    """
    log = GrantLog(path / "grants")
    store = BlobStore(BlobFiles(path), log, BlobTable(quota_bytes, owner))
    try:
        await trio.to_thread.run_sync(store.start)
        yield store
    finally:
        log.close()


def _missing(root: Digest) -> BlobMissing:
    return BlobMissing(f"no blob {root.hex()[:16]} here for this peer: upload it, or run the task again")


def _read_whole(fd: int, size: int) -> bytes:
    buffer = bytearray(size)
    read_exactly(fd, memoryview(buffer), 0)
    return bytes(buffer)
