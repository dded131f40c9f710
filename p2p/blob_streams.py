"""What travels on a blob stream, and the sending and receiving of it. `transfer` says who asks whom for what."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec
import trio
from msgspec import Meta

from coppermesh.p2p.blob_files import read_exactly
from coppermesh.p2p.blob_store import BlobStore, BlobWriter, Scope
from coppermesh.p2p.blobs import DIGEST_BYTES, LEAF_BYTES, leaf_count
from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.errors import LocalProtocolError, MeshError, RemoteProtocolError, Unreachable
from coppermesh.p2p.framing import HEADER_BYTES, encode_frame
from coppermesh.p2p.ids import Digest, PeerId, short_peer
from coppermesh.p2p.receive_rings import RING_BYTES, RING_LEAVES, ReceiveRings, Tenant
from coppermesh.p2p.records import Count, Hash, Sentence
from coppermesh.p2p.transport import Stream

LEAF_SECONDS = 30.0
MAX_HEADER_BYTES = 1024
SEND_LEAVES = 4
READ_LEAVES = RING_LEAVES // 2
"""What a transfer holds in memory: a ring while it receives, and two halves of one while it sends from a file."""

T = TypeVar("T", bound=msgspec.Struct)


class BlobHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The first frame: what the opener wants. `size` in bytes is part of the question for a get, too.

    `first`: the leaf that a get wants first; the ones before it are there. 0 in a put.
    """

    verb: Annotated[str, Meta(pattern=r"^(put|get)\Z")]
    root: Hash
    size: Count
    first: Count = 0
    lease: Hash | None = None
    """The lease that the transfer belongs to: its memory is used again under that one only (`receive_rings`)."""


class BlobAnswer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Every frame from the side that accepted the stream. Code and sentence are empty unless `refused`."""

    state: Annotated[str, Meta(pattern=r"^(go|have|done|refused)\Z")]
    code: Annotated[str, Meta(max_length=40, pattern=r"^[a-z0-9-]*\Z")] = ""
    sentence: Sentence = ""
    first: Count = 0
    """With `go` in answer to a put: the leaf to send first."""


# Frames


async def send_frame(stream: Stream, value: msgspec.Struct) -> None:
    """Send one frame. Raises Unreachable."""
    await stream.send_all(encode_frame(encode(value)))


async def receive_frame(stream: Stream, kind: type[T]) -> T:
    """One frame and not a byte more, so that what follows can be received in place."""
    header = bytearray(HEADER_BYTES)
    await stream.receive_into(memoryview(header))
    length = int.from_bytes(header, "big")
    if not 0 < length <= MAX_HEADER_BYTES:
        raise RemoteProtocolError(f"blob stream: a frame of {length} bytes, want 1 to {MAX_HEADER_BYTES}")
    payload = bytearray(length)
    await stream.receive_into(memoryview(payload))
    return decode(kind, bytes(payload), max_bytes=MAX_HEADER_BYTES)


# Bytes out


@dataclass(frozen=True, slots=True)
class MemorySource:
    """A blob in memory."""

    view: memoryview

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self.view)


@dataclass(frozen=True, slots=True)
class FileSource:
    """A blob in an open file."""

    fd: int
    size: int


Source = MemorySource | FileSource


@dataclass(frozen=True, slots=True)
class Memory:
    """Where a transfer's ring comes from."""

    rings: ReceiveRings
    tenant: Tenant
    lease: bytes | None

    def borrow(self, size: int) -> AbstractContextManager[memoryview]:
        """See `ReceiveRings.borrow`."""
        return self.rings.borrow(self.tenant, size, self.lease)


async def send_manifest_and_leaves(
    stream: Stream, leaves: list[bytes], source: Source, first: int, memory: Memory
) -> None:
    """The manifest, unless the receiver has it, and the leaves from `first` on."""
    if leaves and not first:
        with within(LEAF_SECONDS, stream.peer, "blob manifest"):
            await stream.send_all(b"".join(leaves))
    if isinstance(source, MemorySource):
        await _send_leaves(stream, source.view[first * LEAF_BYTES :], first)
    elif first < len(leaves):
        size = min(RING_BYTES, 2 * min(source.size, READ_LEAVES * LEAF_BYTES))
        with memory.borrow(size) as ring:
            await _send_file(stream, source, first, ring)


async def _send_file(stream: Stream, source: FileSource, first: int, ring: memoryview) -> None:
    """Read the next leaves, in a thread, into one half of the ring while those in the other are sent."""
    step = len(ring) // 2
    buffers = [ring[:step], ring[step:]]
    # Without a buffer: handing a piece over means that the one before is sent and its memory is free again.
    full, to_send = trio.open_memory_channel[tuple[int, memoryview]](0)

    async def read() -> None:
        with full:
            for number, start in enumerate(range(first * LEAF_BYTES, source.size, step)):
                piece = buffers[number % 2][: min(step, source.size - start)]
                try:
                    await trio.to_thread.run_sync(read_exactly, source.fd, piece, start)
                except (EOFError, OSError) as error:
                    raise LocalProtocolError(f"cannot read the blob that is being sent: {error}") from error
                await full.send((start // LEAF_BYTES, piece))

    async def send() -> None:
        async for index, piece in to_send:
            await _send_leaves(stream, piece, index)

    await _both(read, send)


async def _send_leaves(stream: Stream, view: memoryview, first: int) -> None:
    """Several at once: each hand-over to the connection's writer costs a round through trio."""
    step = SEND_LEAVES * LEAF_BYTES
    for start in range(0, len(view), step):
        piece = view[start : start + step]
        index, count = first + start // LEAF_BYTES, leaf_count(len(piece))
        with within(count * LEAF_SECONDS, stream.peer, f"sending {count} leaves of a blob from {index} on"):
            await stream.send_all(piece)


# Bytes in


async def receive_blob(
    stream: Stream, header: BlobHeader, store: BlobStore, scope: Scope, kept: BlobWriter | None
) -> None:
    """Manifest and leaves of what `header` names into the store, or the leaves that `kept` lacks.

    Raises RemoteProtocolError at the first wrong one; nothing is kept then.
    """
    root, size = Digest(header.root), header.size
    memory = Memory(store.rings, (scope[0], stream.peer), header.lease)
    if kept is not None:
        await _receive_leaves(stream, size, kept, memory)
        kept.commit()
        return
    manifest = bytearray(DIGEST_BYTES * leaf_count(size))
    with within(LEAF_SECONDS, stream.peer, "blob manifest"):
        await stream.receive_into(memoryview(manifest))
    leaves = [bytes(manifest[at : at + DIGEST_BYTES]) for at in range(0, len(manifest), DIGEST_BYTES)]
    with set_aside_if_cut(await store.begin(scope, root, size, leaves)) as writer:
        await _receive_leaves(stream, size, writer, memory)
        writer.commit()


@contextmanager
def set_aside_if_cut(writer: BlobWriter) -> Iterator[BlobWriter]:
    """Keep what was verified when the sender was cut off or we were cancelled; nothing after any other failure."""
    with writer:
        try:
            yield writer
        except (Unreachable, trio.Cancelled):
            writer.set_aside()
            raise


async def _receive_leaves(stream: Stream, size: int, writer: BlobWriter, memory: Memory) -> None:
    slots = max(1, min(RING_LEAVES, leaf_count(size) - writer.done))
    with memory.borrow(min(size, slots * LEAF_BYTES)) as ring:
        await _receive_into_ring(stream, size, writer, ring)


async def _receive_into_ring(stream: Stream, size: int, writer: BlobWriter, ring: memoryview) -> None:
    """Receive leaves into a ring while those before are checked and written, as many at once as there are.

    A thread is visited for all that have arrived meanwhile: on a busy machine the visit costs more than the work.
    """
    first, count = writer.done, leaf_count(size)
    slots = max(1, leaf_count(len(ring)))
    free, full = trio.Semaphore(slots), trio.Semaphore(0)

    async def receive() -> None:
        for index in range(first, count):
            if free.value:
                # Without a round through trio: the next leaf is on its way.
                free.acquire_nowait()
            else:
                await free.acquire()
            start = (index - first) % slots * LEAF_BYTES
            with within(LEAF_SECONDS, stream.peer, f"leaf {index} of a blob"):
                await stream.receive_into(ring[start : start + min(LEAF_BYTES, size - index * LEAF_BYTES)])
            full.release()

    async def write() -> None:
        while (index := writer.done) < count:
            await full.acquire()
            slot, run = (index - first) % slots, 1
            while full.value and slot + run < slots:
                full.acquire_nowait()
                run += 1
            start = slot * LEAF_BYTES
            await writer.write_leaves(ring[start : start + min(run * LEAF_BYTES, size - index * LEAF_BYTES)])
            for _ in range(run):
                free.release()

    await _both(receive, write)


async def _both(one: Callable[[], Awaitable[None]], other: Callable[[], Awaitable[None]]) -> None:
    """Run two parts; the first error ends the other, and stays a plain error instead of a group of them."""
    failures: list[MeshError | OSError] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run_part, one, failures, nursery.cancel_scope)
        nursery.start_soon(_run_part, other, failures, nursery.cancel_scope)
    if failures:
        raise failures[0]


async def _run_part(
    part: Callable[[], Awaitable[None]], failures: list[MeshError | OSError], scope: trio.CancelScope
) -> None:
    try:
        await part()
    except (MeshError, OSError) as error:
        failures.append(error)
        scope.cancel()


@contextmanager
def within(seconds: float, peer: PeerId, what: str) -> Iterator[None]:
    """A deadline for one step; passing it is the peer being out of reach."""
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise Unreachable(f"{short_peer(peer)}: {what} took longer than {seconds:g} s")
