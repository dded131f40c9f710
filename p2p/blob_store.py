"""Content-addressed files with a quota, where knowing a hash gives no right."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from coppermesh.p2p.blobs import Buffer
from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.ids import Digest, MeshId, PeerId

Scope = tuple[MeshId, PeerId]


class StoreFull(MeshError):
    """The quota or the disk has no room, even after evicting what may go. The text says how much was asked and is there."""


class BlobMissing(MeshError):
    """The scope has no such blob: never uploaded or granted, evicted since, or found corrupted and dropped."""


class OpenBlob:
    """A blob held open. `with` or `close()` ends it; a blob evicted meanwhile stays readable through it."""

    fd: int
    """Read-only, close-on-exec, safe to hand to another process. Use positional reads."""
    size: int
    root: Digest
    leaves: list[bytes]

    def __enter__(self) -> "OpenBlob": ...
    def __exit__(self, *exc: object) -> None: ...
    def close(self) -> None: ...


class BlobWriter:
    """Receives the leaves of one blob in order. `commit` after the last, else `abort`; `async with` aborts by itself."""

    async def write_leaf(self, leaf: Buffer) -> None: ...
    async def commit(self) -> None: ...
    async def abort(self) -> None: ...


class BlobStore:
    """Only to be used in the trio thread."""

    def has(self, scope: Scope, root: Digest) -> bool: ...
    async def ensure(self, scope: Scope, root: Digest) -> bool:
        """Like `has`, and the bytes on disk were verified in this run: what `need` should be computed from."""
    async def put(self, scope: Scope, root: Digest, data: Buffer) -> None: ...
    async def put_many(self, scope: Scope, blobs: Sequence[tuple[Digest, Buffer]]) -> None: ...
    async def add(self, scope: Scope, data: Buffer) -> Digest: ...
    def grant(self, scope: Scope, root: Digest) -> None: ...
    async def open(self, scope: Scope, root: Digest) -> OpenBlob: ...
    async def read(self, scope: Scope, root: Digest) -> bytes: ...
    async def begin(self, scope: Scope, root: Digest, size: int, leaves: list[bytes]) -> BlobWriter: ...
    def pin(self, root: Digest) -> None: ...
    def unpin(self, root: Digest) -> None: ...
    def statistics(self) -> Mapping[str, int]: ...


def open_blob_store(path: Path, *, quota_bytes: int) -> AbstractAsyncContextManager[BlobStore]: ...
