# ruff: noqa: T201  # a program that prints its figures
"""What using a transfer's memory again under a lease saves: `python tests/bench/bench_rings.py [--blobs N] [--mib N]`.

Two agents in one process on loopback; blobs of some MiB are put one after another, with and without a lease, in turns.
Milliseconds and page faults of a blob, medians over the rounds, and the same for the memory alone, beside a bytearray
of that size each time (control).
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import trio

from coppermesh.p2p.blob_store import open_blob_store
from coppermesh.p2p.blobs import LEAF_BYTES, digest_of, leaf_digests
from coppermesh.p2p.ids import mesh_id
from coppermesh.p2p.libp2p_transport import open_libp2p_transport
from coppermesh.p2p.receive_rings import RING_BYTES, ReceiveRings
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transfer import BlobService, send_blob

MESH = mesh_id("rings")
LEASE = bytes(32)
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
ROUNDS = 5


def faults() -> int:
    """Page faults of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def memory_alone(*, leased: bool) -> tuple[float, float]:
    """(ms, page faults) of borrowing a ring and touching all of it."""
    rings = ReceiveRings()
    tenant = (MESH, PeerKey.generate().peer)
    if leased:
        rings.lease_began(LEASE, tenant)
    counts, times = [], []
    for _ in range(50):
        before, began = faults(), time.perf_counter()
        with rings.borrow(tenant, RING_BYTES, LEASE) as ring:
            for page in range(0, len(ring), 4096):
                ring[page] = 1
        times.append((time.perf_counter() - began) * 1e3)
        counts.append(faults() - before)
    return statistics.median(times), statistics.median(counts)


def bytearray_alone() -> tuple[float, float]:
    """The same for fresh memory of small pages."""
    counts, times = [], []
    for _ in range(50):
        before, began = faults(), time.perf_counter()
        ring = bytearray(RING_BYTES)
        for page in range(0, len(ring), 4096):
            ring[page] = 1
        times.append((time.perf_counter() - began) * 1e3)
        counts.append(faults() - before)
        del ring
    return statistics.median(times), statistics.median(counts)


async def measure(blobs: int, mib: int) -> None:
    """Print the figures."""
    sender, receiver = PeerKey.generate(), PeerKey.generate()
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory(prefix="coppermesh-bench-", dir=IN_MEMORY) as folder:
        async with (
            open_libp2p_transport(sender, MESH) as here,
            open_libp2p_transport(receiver, MESH) as there,
            open_blob_store(Path(folder), quota_bytes=64 << 20, owner=receiver.peer) as store,
        ):
            BlobService(there, MESH, store)
            await here.dial(there.addresses[0])
            for number in range(ROUNDS + 1):
                for leased in (False, True):
                    if leased:
                        store.rings.lease_began(LEASE, (MESH, sender.peer))
                    contents = [os.urandom(mib * LEAF_BYTES) for _ in range(blobs)]
                    named = [(digest_of(data), leaf_digests(data), data) for data in contents]
                    before, began = faults(), time.perf_counter()
                    for root, leaves, data in named:
                        await send_blob(here, MESH, receiver.peer, root, leaves, data, lease=LEASE)
                    taken = (time.perf_counter() - began) * 1e3
                    if number:
                        found[leased].append((taken / blobs, (faults() - before) / blobs))
                    store.rings.lease_ended(LEASE)
    for leased, rows in found.items():
        ms, count = (statistics.median(column) for column in zip(*rows, strict=True))
        alone_ms, alone_faults = memory_alone(leased=leased)
        print(
            f"{'under a lease' if leased else 'without a lease':16} a blob of {mib} MiB: {ms:.2f} ms, {count:.0f} page "
            f"faults; its memory alone: {alone_ms:.2f} ms, {alone_faults:.0f} page faults"
        )
    control_ms, control_faults = bytearray_alone()
    print(
        f"control: a bytearray of {RING_BYTES >> 20} MiB: {control_ms:.2f} ms, {control_faults:.0f} page faults"
    )


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--blobs", type=int, default=20)
    parser.add_argument("--mib", type=int, default=4)
    arguments = parser.parse_args()
    trio.run(measure, arguments.blobs, arguments.mib)


if __name__ == "__main__":
    main()
