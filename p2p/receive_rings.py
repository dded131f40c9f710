"""Memory that leaves are received into or read into: kept for the same peer's next transfer while it has a lease.

Theory of operation. Fresh pages have to be cleared by the kernel before the first byte arrives. So a ring outlives its
transfer, under three rules, which `tests/unit/test_receive_rings.py` attacks:

1. A ring belongs to one *tenant*, a mesh and a peer, from its first byte to its end. It is never handed to another
   one, so that no bug in what follows could show one peer's bytes to another.
2. It is kept only while a lease with that tenant is open, and gone with the last of them. Without a lease every
   transfer has memory of its own.
3. Only after a transfer that went well. What a broken or forged one left is dropped with its ring; what is in a ring
   counts for nothing before its leaf was verified anyway.

Several leases of one tenant share its rings: they see the same blobs.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from coppermesh.p2p.blobs import LEAF_BYTES
from coppermesh.p2p.ids import MeshId, PeerId

RING_LEAVES = 4
RING_BYTES = RING_LEAVES * LEAF_BYTES
MAX_KEPT_PER_TENANT = 4
"""As many as it has transfers under way."""
MAX_KEPT = 32
"""128 MiB in all."""

Tenant = tuple[MeshId, PeerId]


class ReceiveRings:
    """The rings of one agent. Use it in the trio thread only."""

    def __init__(self) -> None:
        self._leases: dict[bytes, Tenant] = {}
        self._idle: dict[Tenant, list[memoryview]] = {}
        self.made = 0
        self.reused = 0

    @property
    def idle_bytes(self) -> int:
        """What is kept now, over all tenants."""
        return sum(len(ring) for rings in self._idle.values() for ring in rings)

    def lease_began(self, lease: bytes, tenant: Tenant) -> None:
        """A lease with `tenant` is open, until `lease_ended`."""
        self._leases[lease] = tenant

    def lease_ended(self, lease: bytes) -> None:
        """It is over; with the last one of a tenant its rings go. Nothing where that lease was not known."""
        tenant = self._leases.pop(lease, None)
        if tenant is not None and not self._has_lease(tenant):
            self._idle.pop(tenant, None)

    def _has_lease(self, tenant: Tenant) -> bool:
        return tenant in self._leases.values()

    @contextmanager
    def borrow(self, tenant: Tenant, size: int) -> Iterator[memoryview]:
        """`size` bytes, at most RING_BYTES, for a transfer with `tenant`. What is in them is of no account.

        No view of them may be used after the block.
        """
        ring = self._take(tenant, size)
        yield ring[:size]
        # Not in a `finally`: only what ended well is kept.
        self._keep(tenant, ring)

    def _take(self, tenant: Tenant, size: int) -> memoryview:
        idle = self._idle.get(tenant)
        if idle:
            self.reused += 1
            return idle.pop()
        self.made += 1
        return _fresh(RING_BYTES if self._has_lease(tenant) else size)

    def _keep(self, tenant: Tenant, ring: memoryview) -> None:
        if not self._has_lease(tenant) or len(ring) < RING_BYTES:
            return
        idle = self._idle.setdefault(tenant, [])
        kept = sum(len(rings) for rings in self._idle.values())
        if len(idle) < MAX_KEPT_PER_TENANT and kept < MAX_KEPT:
            idle.append(ring)


def _fresh(size: int) -> memoryview:
    """New memory of this process alone, all zero, in large pages where the kernel has some."""
    memory = mmap.mmap(-1, max(size, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)[:size]
