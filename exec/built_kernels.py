"""Libraries that builders made for one lease, so that its next worker process need not have them compiled again.

A lease's worker is forked anew after a crash, a limit, or on request. What its predecessor had compiled is kept here,
by the agent, under the very bytes of the request: source, names and options; compiler, flags and headers are the
same as long as the agent runs. Only answers of this agent's own builders come in, as sealed memory files that nobody
can change any more, and none of it outlives the lease or is found by another: native code that one stranger's
compiler run left is never another's. No file has a name on the disk.
"""

import os
from collections import OrderedDict

from coppermesh.exec import linux, pipe

MAX_KEPT = 64
MAX_KEPT_BYTES = 64 << 20


class BuiltKernels:
    """Libraries by request. Holds descriptors until `close`."""

    def __init__(self) -> None:
        self._libraries: OrderedDict[bytes, tuple[int, int]] = OrderedDict()

    def find(self, request: pipe.Build) -> int | None:
        """A new descriptor of the library, which is the caller's; None where none is kept."""
        key = _key(request)
        if key is None or key not in self._libraries:
            return None
        self._libraries.move_to_end(key)
        return os.dup(self._libraries[key][0])

    def keep(self, request: pipe.Build, library: int) -> None:
        """Keep a good answer to `request`. `library` stays the caller's."""
        key, size = _key(request), os.fstat(library).st_size
        sealed = linux.seals_of(library) & linux.SEAL_CONTENT == linux.SEAL_CONTENT
        if key is None or key in self._libraries or size > MAX_KEPT_BYTES or not sealed:
            return
        self._libraries[key] = (os.dup(library), size)
        while (
            len(self._libraries) > MAX_KEPT
            or sum(size for _, size in self._libraries.values()) > MAX_KEPT_BYTES
        ):
            _, (oldest, _) = self._libraries.popitem(last=False)
            os.close(oldest)

    def close(self) -> None:
        """Forget all of them."""
        while self._libraries:
            os.close(self._libraries.popitem()[1][0])


def _key(request: pipe.Build) -> bytes | None:
    """None for a source in a file that the worker lent: it could change it meanwhile."""
    return pipe.encode(request) if isinstance(request.source, bytes) and request.file is None else None
