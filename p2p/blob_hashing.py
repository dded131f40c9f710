"""Hashing a large blob before it is sent or stored: in several threads at once, each a run of whole leaves.

Nothing of a blob can leave before its root is known, since the order that names it is signed first. So this time is not
hidden behind the transfer, and all processors that are free may share it.
"""

import os
from functools import partial

import trio

from coppermesh.p2p.blobs import LEAF_BYTES, Buffer, as_bytes_view, leaf_count, leaf_digests

MAX_THREADS = 4
PART_BYTES = 4 * LEAF_BYTES
"""Less than this is not worth a thread of its own."""


async def hash_leaves(data: Buffer) -> list[bytes]:
    """The manifest of `data`, 32 bytes a leaf. The bytes must not change meanwhile, also where it is cancelled."""
    view = as_bytes_view(data)
    threads = min(MAX_THREADS, os.cpu_count() or 1, max(1, len(view) // PART_BYTES))
    step = max(1, -(-leaf_count(len(view)) // threads)) * LEAF_BYTES
    parts = [view[start : start + step] for start in range(0, len(view), step)]
    found: list[list[bytes]] = [[] for _ in parts]

    async def hash_part(number: int, part: memoryview) -> None:
        found[number] = await trio.to_thread.run_sync(leaf_digests, part)

    async with trio.open_nursery() as nursery:
        for number, part in enumerate(parts):
            nursery.start_soon(partial(hash_part, number, part))
    return [digest for part_digests in found for digest in part_digests]
