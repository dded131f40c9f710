"""The disk side of the blob store: plain synchronous file work, with no idea of quotas or trio.

Layout below the store's folder (0700; one agent owns it, the home's lock sees to that):

    blobs/<root hex>     the bytes; complete, because they get this name by rename
    incoming/<n>         being received or being deleted; emptied at the next start
    grants               who may see what: an append-only log

The log is a sequence of 88-byte entries (root, mesh, peer, 8 bytes of BLAKE3 over those). A 1 KiB job appends three
of them, which an index in SQLite would make three transactions. It is rewritten at every start, so an entry that a
crash tore costs only itself. Nothing is synced: after a power cut a blob is fetched or computed again, and bytes that
do not match their name are never served (`BlobStore` verifies before first use).
"""

import errno
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from coppermesh.p2p.blobs import (
    LEAF_BYTES,
    Buffer,
    as_bytes_view,
    blob_root,
    leaf_count,
    leaf_digest,
    leaves_of,
)
from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.ids import Digest, MeshId, PeerId

Scope = tuple[MeshId, PeerId]

DISK_RESERVE_BYTES = 64 << 20
"""Room on the disk that blobs leave alone, so that the ledger beside them can go on."""
_ENTRY_BYTES = 88
_CHECK_CONTEXT = "coppermesh 2026 blob grant entry v1"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StoreFull(MeshError):
    """The quota or the disk has no room, even after evicting what may go. The text says what was asked and is there."""


def full_or_same(error: OSError) -> Exception:
    """`StoreFull` for an error that says the disk is full, else the error itself."""
    if error.errno in _NO_ROOM:
        return StoreFull(
            "the disk that holds the blob store is full: free some space, or move COPPERMESH_HOME"
        )
    return error


def write_all(fd: int, data: Buffer, offset: int) -> None:
    """Write everything at `offset`. Raises StoreFull or OSError."""
    view = as_bytes_view(data)
    try:
        while view:
            written = os.pwrite(fd, view, offset)
            view = view[written:]
            offset += written
    except OSError as error:
        raise full_or_same(error) from None


def read_exactly(fd: int, buffer: memoryview, offset: int) -> None:
    """Fill `buffer` from `offset` of the file. Raises EOFError where the file ends before."""
    while buffer:
        count = os.preadv(fd, [buffer], offset)
        if count == 0:
            raise EOFError("the file is shorter than its blob")
        buffer = buffer[count:]
        offset += count


def manifest_of_file(fd: int, size: int) -> list[bytes]:
    """Leaf digests of the first `size` bytes of a file. Raises EOFError where it is shorter."""
    buffer = memoryview(bytearray(min(size, LEAF_BYTES)))
    leaves = []
    for index in range(leaf_count(size)):
        leaf = buffer[: min(LEAF_BYTES, size - index * LEAF_BYTES)]
        read_exactly(fd, leaf, index * LEAF_BYTES)
        leaves.append(leaf_digest(leaf))
    return leaves


class BlobFiles:
    """The files of one store. Methods that only rename, open or unlink take microseconds; the others want a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._blobs = path / "blobs"
        self._blobs_text = str(self._blobs)
        self._incoming = path / "incoming"
        self._counter = 0

    def start(self) -> dict[Digest, int]:
        """Make the folders, empty `incoming`, and give the size of every blob that is there."""
        for folder in (self.path, self._blobs, self._incoming):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in self._incoming.iterdir():
            leftover.unlink()
        found = {}
        with os.scandir(self._blobs) as entries:
            for entry in entries:
                root = _parse_name(entry.name)
                if root is None or not entry.is_file(follow_symlinks=False):
                    continue
                found[root] = entry.stat(follow_symlinks=False).st_size
        return found

    def check_room(self, size: int) -> None:
        """Raises StoreFull where the disk has less than `size` bytes to spare."""
        disk = os.statvfs(self.path)
        spare = disk.f_bavail * disk.f_frsize - DISK_RESERVE_BYTES
        if size > spare:
            raise StoreFull(
                f"a blob of {size} bytes does not fit on the disk, which has {max(spare, 0)} bytes to spare:"
                " free some space, or move COPPERMESH_HOME"
            )

    def next_incoming(self) -> Path:
        """A file name nobody uses yet. Call in one thread only."""
        self._counter += 1
        return self._incoming / str(self._counter)

    def create(self, path: Path, size: int) -> int:
        """A new, empty file to receive `size` bytes; its descriptor. Raises StoreFull."""
        self.check_room(size)
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise full_or_same(error) from None

    def reopen(self, path: Path) -> int:
        """An incoming file again, to write more of it. Raises OSError."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)

    def write_new(self, path: Path, data: Buffer) -> None:
        """A new file of these bytes; none at all where that fails. Raises StoreFull."""
        view = as_bytes_view(data)
        fd = self.create(path, len(view))
        try:
            write_all(fd, view, 0)
        except BaseException:
            self.discard(path)
            raise
        finally:
            os.close(fd)

    def publish(self, path: Path, root: Digest) -> None:
        """Give a complete file its blob's name."""
        os.rename(path, f"{self._blobs_text}/{root.hex()}")

    def discard(self, path: Path) -> None:
        """Delete an incoming file that may or may not be there."""
        with suppress(FileNotFoundError):
            path.unlink()

    def set_aside(self, root: Digest) -> Path | None:
        """Take a blob's name away; the returned file is to be discarded (slow when large). None: there was none."""
        path = self.next_incoming()
        try:
            (self._blobs / root.hex()).rename(path)
        except FileNotFoundError:
            return None
        return path

    def open(self, root: Digest) -> int:
        """A read-only, close-on-exec descriptor. Raises FileNotFoundError."""
        return os.open(self._blobs / root.hex(), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def verify(self, root: Digest, size: int) -> list[bytes] | None:
        """The leaf digests of a blob whose bytes match its name; None where they do not."""
        try:
            fd = self.open(root)
        except OSError:
            return None
        try:
            leaves = manifest_of_file(fd, size)
        except (EOFError, OSError):
            return None
        finally:
            os.close(fd)
        return leaves if blob_root(size, leaves) == root else None


class GrantLog:
    """The append-only log of who may see what."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._length = 0

    @property
    def entries(self) -> int:
        """How many entries the file has, live or not."""
        return self._length // _ENTRY_BYTES

    def load(self) -> list[tuple[Digest, Scope]]:
        """Every intact entry in the file, oldest first. A missing file has none."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        pieces = (data[at : at + _ENTRY_BYTES] for at in range(0, len(data), _ENTRY_BYTES))
        return [entry for entry in map(_parse_entry, pieces) if entry is not None]

    def rewrite(self, grants: Iterable[tuple[Digest, Scope]]) -> None:
        """Replace the file by these entries and keep it open for appending."""
        data = b"".join(_format_entry(root, scope) for root, scope in grants)
        fresh = self._path.with_suffix(".new")
        with suppress(FileNotFoundError):
            fresh.unlink()
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, data, 0)
            fresh.rename(self._path)
        except BaseException:
            os.close(fd)
            raise
        self.close()
        self._fd, self._length = fd, len(data)

    def append(self, grants: Sequence[tuple[Digest, Scope]]) -> None:
        """Add entries: all of them or none. Raises StoreFull."""
        data = b"".join(_format_entry(root, scope) for root, scope in grants)
        try:
            write_all(self._fd, data, self._length)
        except BaseException:
            os.ftruncate(self._fd, self._length)
            raise
        self._length += len(data)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def manifest_checked(root: Digest, data: Buffer) -> list[bytes] | None:
    """The leaf digests of `data` where its root is `root`, else None."""
    view = as_bytes_view(data)
    leaves = [leaf_digest(leaf) for leaf in leaves_of(view)]
    return leaves if blob_root(len(view), leaves) == root else None


def _parse_name(name: str) -> Digest | None:
    try:
        root = bytes.fromhex(name)
    except ValueError:
        return None
    return Digest(root) if len(root) == 32 and root.hex() == name else None


def _check(fields: bytes) -> bytes:
    return blake3(fields, derive_key_context=_CHECK_CONTEXT).digest(_ENTRY_BYTES - 80)


def _format_entry(root: Digest, scope: Scope) -> bytes:
    fields = root + scope[0] + scope[1]
    return fields + _check(fields)


def _parse_entry(entry: bytes) -> tuple[Digest, Scope] | None:
    fields = entry[:80]
    if len(entry) != _ENTRY_BYTES or entry[80:] != _check(fields):
        return None
    return Digest(fields[:32]), (MeshId(fields[32:48]), PeerId(fields[48:80]))
