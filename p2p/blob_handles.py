"""A blob being read and a blob being received: what the blob store hands out."""

import os
from collections.abc import Callable
from types import TracebackType
from typing import Self

import trio

from coppermesh.p2p.blob_files import write_all
from coppermesh.p2p.blobs import LEAF_BYTES, Buffer, as_bytes_view, leaf_count, leaf_digest, leaves_of
from coppermesh.p2p.errors import LocalProtocolError, RemoteProtocolError
from coppermesh.p2p.ids import Digest


class OpenBlob:
    """A blob held open. `with` or `close()` ends it; a blob evicted meanwhile stays readable through it."""

    def __init__(self, fd: int, size: int, root: Digest, leaves: list[bytes]) -> None:
        self.fd = fd
        """Read-only, close-on-exec, safe to hand to another process. Its position is shared: read positionally."""
        self.size = size
        self.root = root
        self.leaves = leaves

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; more than once is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class BlobWriter:
    """Takes the leaves of one blob in order; as a context manager it aborts unless `commit` was called.

    `publish`, `keep` and `abandon` are the store's three ways to end it: the file becomes a blob, waits for another
    writer to go on with it, or is deleted. `done` leaves are in the file already, verified.
    """

    def __init__(
        self,
        root: Digest,
        size: int,
        leaves: list[bytes],
        fd: int,
        *,
        publish: Callable[[], None],
        abandon: Callable[[], None],
        keep: Callable[[int], None],
        done: int = 0,
    ) -> None:
        self._root = root
        self._size = size
        self._leaves = leaves
        self._fd = fd
        self._publish = publish
        self._abandon = abandon
        self._keep = keep
        self._done = done
        self._busy = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    @property
    def done(self) -> int:
        """How many leaves, from the first on, are verified and in the file."""
        return self._done

    @property
    def leaf_size(self) -> int:
        """Bytes of the next leaf; 0 after the last."""
        return min(LEAF_BYTES, self._size - self._done * LEAF_BYTES) if self._done < len(self._leaves) else 0

    async def write_leaf(self, leaf: Buffer) -> None:
        """`write_leaves` for the next one."""
        view = as_bytes_view(leaf)
        if self.leaf_size and len(view) != self.leaf_size:
            raise LocalProtocolError(f"leaf {self._done} is {self.leaf_size} bytes, not {len(view)}")
        await self.write_leaves(view)

    async def write_leaves(self, leaves: Buffer) -> None:
        """Check the next leaves, in one piece, and write them, in a thread. The buffer may be reused afterwards.

        Raises RemoteProtocolError where one is not the leaf that the manifest names, StoreFull on a full disk; only
        `abort` is possible then.
        """
        view = as_bytes_view(leaves)
        if self._fd < 0 or self._busy or not self.leaf_size:
            raise LocalProtocolError(
                "this writer takes no leaf now: ended, complete, failed, or in the middle of one"
            )
        rest = self._size - self._done * LEAF_BYTES
        if not view or len(view) > rest or (len(view) < rest and len(view) % LEAF_BYTES):
            raise LocalProtocolError(f"{len(view)} bytes are no whole leaves of the {rest} that are missing")
        self._busy = True
        try:
            await trio.to_thread.run_sync(self._check_and_write, view, self._done)
        except trio.Cancelled:
            self._busy = False  # the thread has not begun: what is there may be set aside
            raise
        self._done += leaf_count(len(view))
        self._busy = False

    def commit(self) -> None:
        """The blob is complete: visible to its scope from now on. Raises StoreFull, keeping nothing."""
        if self._fd < 0 or self._busy or self._done != len(self._leaves):
            raise LocalProtocolError("commit before the last leaf was written")
        self._close_file()
        self._publish()

    def set_aside(self) -> None:
        """The sender was cut off: keep the verified leaves for `BlobStore.resume`. Without any, like `abort`."""
        if self._fd < 0:
            return
        if self._busy or not self._done:
            self.abort()
            return
        self._close_file()
        self._keep(self._done)

    def abort(self) -> None:
        """Drop what was received and give its room back. Nothing after commit or abort."""
        if self._fd >= 0:
            self._close_file()
            self._abandon()

    def _check_and_write(self, view: memoryview, first: int) -> None:
        for index, leaf in enumerate(leaves_of(view), first):
            if leaf_digest(leaf) != self._leaves[index]:
                raise RemoteProtocolError(
                    f"leaf {index} of blob {self._root.hex()[:16]} does not match its digest"
                )
        write_all(self._fd, view, first * LEAF_BYTES)

    def _close_file(self) -> None:
        os.close(self._fd)
        self._fd = -1
