"""Small blobs kept in memory beside their files. Pure."""

from collections import OrderedDict

from coppermesh.p2p.ids import Digest

SMALL_BYTES = 64 * 1024
MEMORY_BYTES = 16 << 20


class SmallBlobs:
    """Small blobs in memory, least recently used first, at most `MEMORY_BYTES` in all."""

    def __init__(self) -> None:
        self.size = 0
        self._blobs: OrderedDict[Digest, bytes] = OrderedDict()

    def get(self, root: Digest) -> bytes | None:
        """The bytes, if they are here. Counts as a use."""
        data = self._blobs.get(root)
        if data is not None:
            self._blobs.move_to_end(root)
        return data

    def keep(self, root: Digest, data: bytes) -> None:
        """Keep small ones; the least recently used make room."""
        if len(data) > SMALL_BYTES or root in self._blobs:
            return
        self._blobs[root] = data
        self.size += len(data)
        while self.size > MEMORY_BYTES:
            _, oldest = self._blobs.popitem(last=False)
            self.size -= len(oldest)

    def drop(self, root: Digest) -> None:
        """Forget a blob, if it is here."""
        data = self._blobs.pop(root, None)
        if data is not None:
            self.size -= len(data)
