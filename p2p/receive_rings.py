"""Memory that leaves are received into or read into: kept for the next transfer under the same lease.

Theory of operation. Fresh pages have to be cleared by the kernel before the first byte arrives. So a ring outlives its
transfer, under three rules, which `tests/unit/test_receive_rings.py` attacks:

1. A ring belongs to one *lease*, and so to one tenant, a mesh and a peer, from its first byte to its end. It is never
   handed to another one, not even of the same peer, so that no bug in what follows could show the bytes of one job to
   another.
2. It is kept only while that lease is open, and gone with it. A transfer that names no open lease of its peer has
   memory of its own.
3. Only after a transfer that went well. What a broken or forged one left is dropped with its ring; what is in a ring
   counts for nothing before its leaf was verified anyway.

Which lease a transfer belongs to is what its opener says (`BlobHeader.lease`). That is a claim, and needs no proof: it
chooses among memory that only the same peer has ever filled.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from coppermesh.p2p.blobs import LEAF_BYTES
from coppermesh.p2p.ids import MeshId, PeerId

RING_LEAVES = 4
RING_BYTES = RING_LEAVES * LEAF_BYTES
MAX_KEPT_PER_LEASE = 4
"""As many as one peer has transfers under way."""
MAX_KEPT = 32
"""128 MiB in all."""

Tenant = tuple[MeshId, PeerId]


class ReceiveRings:
    """The rings of one agent. Use it in the trio thread only."""

    def __init__(self) -> None:
        self._leases: dict[bytes, Tenant] = {}
        self._idle: dict[bytes, list[memoryview]] = {}
        """By lease."""
        self.made = 0
        self.reused = 0

    @property
    def idle_bytes(self) -> int:
        """What is kept now, over all leases."""
        return sum(len(ring) for rings in self._idle.values() for ring in rings)

    def lease_began(self, lease: bytes, tenant: Tenant) -> None:
        """A lease with `tenant` is open, until `lease_ended`."""
        self._leases[lease] = tenant

    def lease_ended(self, lease: bytes) -> None:
        """It is over, and its rings go. Nothing where that lease was not known."""
        self._leases.pop(lease, None)
        self._idle.pop(lease, None)

    @contextmanager
    def borrow(self, tenant: Tenant, size: int, lease: bytes | None = None) -> Iterator[memoryview]:
        """`size` bytes, at most RING_BYTES, for a transfer with `tenant` under `lease`; None: under none.

        What is in them is of no account. No view of them may be used after the block.
        """
        ring = self._take(tenant, size, lease)
        yield ring[:size]
        # Not in a `finally`: only what ended well is kept.
        self._keep(tenant, ring, lease)

    def _is_open(self, lease: bytes | None, tenant: Tenant) -> bool:
        return lease is not None and self._leases.get(lease) == tenant

    def _take(self, tenant: Tenant, size: int, lease: bytes | None) -> memoryview:
        is_open = self._is_open(lease, tenant)
        idle = self._idle.get(lease) if lease is not None and is_open else None
        if idle:
            self.reused += 1
            return idle.pop()
        self.made += 1
        return _fresh(RING_BYTES if is_open else size)

    def _keep(self, tenant: Tenant, ring: memoryview, lease: bytes | None) -> None:
        if lease is None or not self._is_open(lease, tenant) or len(ring) < RING_BYTES:
            return
        idle = self._idle.setdefault(lease, [])
        kept = sum(len(rings) for rings in self._idle.values())
        if len(idle) < MAX_KEPT_PER_LEASE and kept < MAX_KEPT:
            idle.append(ring)


def _fresh(size: int) -> memoryview:
    """New memory of this process alone, all zero, in large pages where the kernel has some."""
    memory = mmap.mmap(-1, max(size, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)[:size]
