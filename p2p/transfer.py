"""Blobs on streams of their own, verified leaf by leaf on arrival.

One stream carries one blob. The opener sends a header frame (put or get, root, size); the answer is a frame that says
`go`, `have`, `refused` or, at the end of a put, `done`. Behind a `go` follow the leaf digests and then the bytes of
the blob, without framing, since both sizes are known by then.

    put:  header -->        <-- go             manifest, leaves -->      <-- done
    get:  header -->        <-- go, manifest, leaves

The receiver checks room before it says `go` (put) or asks (get), the manifest against the root before the first leaf,
and every leaf before it is written; the first wrong byte ends the stream and nothing is kept. A peer puts into its own
scope and gets what its own scope may see: to everyone else a blob does not exist.

Time is bounded per leaf (`LEAF_SECONDS`), not per blob, so that a slow link may take long and a dead one may not.
While a thread checks and writes one leaf the next one is received: two buffers of a leaf per transfer, no more.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import msgspec
import trio
from msgspec import Meta

from coppermesh.p2p.blob_files import read_exactly
from coppermesh.p2p.blob_store import BlobMissing, BlobStore, BlobWriter, Scope, StoreFull
from coppermesh.p2p.blobs import (
    DIGEST_BYTES,
    LEAF_BYTES,
    MAX_BLOB_BYTES,
    Buffer,
    as_bytes_view,
    blob_root,
    leaf_count,
)
from coppermesh.p2p.channel import clean_sentence
from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.errors import LocalProtocolError, MeshError, Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.framing import HEADER_BYTES, encode_frame
from coppermesh.p2p.ids import Digest, MeshId, PeerId, short_peer
from coppermesh.p2p.records import Count, Hash, Sentence
from coppermesh.p2p.transport import Stream, Transport

LEAF_SECONDS = 30.0
QUEUE_SECONDS = 60.0
REPLY_SECONDS = QUEUE_SECONDS + LEAF_SECONDS
_REASON_SECONDS = 1.0
MAX_TRANSFERS_PER_PEER = 4
MAX_WAITING_PER_PEER = 128
MAX_HEADER_BYTES = 1024

Admit = Callable[[PeerId, Digest, int], Refused | None]
"""(peer, root, size) -> None to take a blob that a peer wants to put here, or why not. Pure and fast."""

T = TypeVar("T", bound=msgspec.Struct)


class BlobHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The first frame: what the opener wants. `size` in bytes is part of the question for a get, too."""

    verb: Annotated[str, Meta(pattern=r"^(put|get)\Z")]
    root: Hash
    size: Count


class BlobAnswer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Every frame from the side that accepted the stream. Code and sentence are empty unless `refused`."""

    state: Annotated[str, Meta(pattern=r"^(go|have|done|refused)\Z")]
    code: Annotated[str, Meta(max_length=40, pattern=r"^[a-z0-9-]*\Z")] = ""
    sentence: Sentence = ""


@dataclass(slots=True)
class BlobCounts:
    """Running totals of a `BlobService`, for what other peers opened."""

    put: int = 0
    got: int = 0
    had: int = 0
    refused: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    faults: int = 0
    """Streams that ended because the other side broke the protocol."""


@dataclass(slots=True)
class _Line:
    """The transfers of one peer: those that run hold the semaphore."""

    running: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(MAX_TRANSFERS_PER_PEER))
    present: int = 0


def blob_protocol(mesh: MeshId) -> str:
    """The protocol id of blob streams on a mesh."""
    return f"/coppermesh/blob/1/{mesh.hex()}"


class BlobService:
    """Serves blob streams: a peer puts into its own scope and gets what its scope may see.

    Constructing it registers the handler, so do that before the transport's first dial. Each peer has at most
    `MAX_TRANSFERS_PER_PEER` transfers under way and `MAX_WAITING_PER_PEER` in line.
    """

    def __init__(
        self, transport: Transport, mesh: MeshId, store: BlobStore, *, admit: Admit | None = None
    ) -> None:
        self.counts = BlobCounts()
        self._mesh = mesh
        self._store = store
        self._admit = admit
        self._lines: dict[PeerId, _Line] = {}
        transport.handle(blob_protocol(mesh), self._serve)

    async def _serve(self, stream: Stream) -> None:
        try:
            async with self._turn(stream.peer):
                with _within(LEAF_SECONDS, stream.peer, "blob header"):
                    header = await _receive_frame(stream, BlobHeader)
                if header.verb == "put":
                    await self._serve_put(stream, Digest(header.root), header.size)
                else:
                    await self._serve_get(stream, Digest(header.root), header.size)
        except Refused as refused:
            self.counts.refused += 1
            with _within(LEAF_SECONDS, stream.peer, "blob refusal"):
                await _send_frame(
                    stream, BlobAnswer("refused", refused.code, clean_sentence(refused.sentence))
                )
        except RemoteProtocolError:
            self.counts.faults += 1
            raise

    @asynccontextmanager
    async def _turn(self, peer: PeerId) -> AsyncIterator[None]:
        """Wait in the peer's line. Raises Refused where it is too long or does not move."""
        line = self._lines.setdefault(peer, _Line())
        if line.present >= MAX_TRANSFERS_PER_PEER + MAX_WAITING_PER_PEER:
            raise Refused(
                "busy", f"more than {line.present} blob streams from one peer: send fewer at a time"
            )
        line.present += 1
        try:
            with trio.move_on_after(QUEUE_SECONDS) as scope:
                await line.running.acquire()
            if scope.cancelled_caught:
                raise Refused("busy", f"no turn within {QUEUE_SECONDS:g} s: send fewer blobs at a time")
            try:
                yield
            finally:
                line.running.release()
        finally:
            line.present -= 1
            if not line.present:
                del self._lines[peer]

    async def _serve_put(self, stream: Stream, root: Digest, size: int) -> None:
        scope = (self._mesh, stream.peer)
        if size > MAX_BLOB_BYTES:
            raise Refused("too-large", f"a blob of {size} bytes: at most {MAX_BLOB_BYTES} are possible")
        refused = self._admit(stream.peer, root, size) if self._admit else None
        if refused is not None:
            raise refused
        if await self._store.ensure(scope, root):
            self.counts.had += 1
            await _send_frame(stream, BlobAnswer("have"))
            return
        try:
            self._store.check_room(scope, size)
            await _send_frame(stream, BlobAnswer("go"))
            await _receive_blob(stream, root, size, self._store, scope)
        except StoreFull as full:
            raise Refused("store-full", str(full)) from None
        self.counts.put += 1
        self.counts.bytes_in += size
        await _send_frame(stream, BlobAnswer("done"))

    async def _serve_get(self, stream: Stream, root: Digest, size: int) -> None:
        try:
            blob = await self._store.open((self._mesh, stream.peer), root)
        except BlobMissing as missing:
            raise Refused("unknown-blob", str(missing)) from None
        with blob:
            if blob.size != size:
                raise Refused("unknown-blob", f"that blob has {blob.size} bytes, not {size}")
            await _send_frame(stream, BlobAnswer("go"))
            await _send_manifest_and_leaves(stream, blob.leaves, _FileSource(blob.fd, size))
        self.counts.got += 1
        self.counts.bytes_out += size


async def send_blob(
    transport: Transport,
    mesh: MeshId,
    peer: PeerId,
    root: Digest,
    leaves: list[bytes],
    source: Buffer | int,
    *,
    size: int | None = None,
) -> None:
    """Put a blob into this agent's scope at `peer`; nothing is sent where it is there already.

    `leaves`: its leaf digests. `source`: its bytes, or a descriptor to read them from (then give `size`).
    Send a few at a time: `peer` serves `MAX_TRANSFERS_PER_PEER` at once. Raises Unreachable; Refused (`store-full`,
    `too-large`, `busy`, or what `peer`'s policy says); RemoteProtocolError; LocalProtocolError where `leaves`, `root`
    and `size` do not belong together.
    """
    if isinstance(source, int):
        if size is None:
            raise LocalProtocolError("a blob sent from a descriptor needs its size")
        bytes_source: _Source = _FileSource(source, size)
    else:
        bytes_source = _MemorySource(as_bytes_view(source))
    if len(leaves) != leaf_count(bytes_source.size) or blob_root(bytes_source.size, leaves) != root:
        raise LocalProtocolError(f"these leaf digests and this size are not of blob {root.hex()[:16]}")
    async with _opened(transport, mesh, peer, BlobHeader("put", root, bytes_source.size)) as (stream, answer):
        if answer.state == "have":
            return
        if answer.state != "go":
            raise RemoteProtocolError(f"{answer.state!r} in answer to a put")
        try:
            await _send_manifest_and_leaves(stream, leaves, bytes_source)
        except Unreachable:
            # It may have stopped taking bytes to say why: its disk is full.
            with suppress(Unreachable, RemoteProtocolError), _within(_REASON_SECONDS, peer, "a reason"):
                _unrefused(await _receive_frame(stream, BlobAnswer))
            raise
        with _within(REPLY_SECONDS, peer, "end of a blob"):
            end = _unrefused(await _receive_frame(stream, BlobAnswer))
        if end.state != "done":
            raise RemoteProtocolError(f"{end.state!r} at the end of a put")


async def fetch_blob(
    transport: Transport,
    mesh: MeshId,
    peer: PeerId,
    root: Digest,
    size: int,
    store: BlobStore,
    scope: Scope,
) -> None:
    """Get a blob of exactly `size` bytes from `peer` into `store`, visible to `scope`. Nothing to do if it is there.

    Raises Unreachable; Refused (`unknown-blob`, `busy`); StoreFull (here); RemoteProtocolError where the bytes are not
    the blob, and then nothing is kept.
    """
    if await store.ensure(scope, root):
        return
    if size > MAX_BLOB_BYTES:
        raise RemoteProtocolError(f"a blob of {size} bytes: at most {MAX_BLOB_BYTES} are possible")
    store.check_room(scope, size)
    async with _opened(transport, mesh, peer, BlobHeader("get", root, size)) as (stream, answer):
        if answer.state != "go":
            raise RemoteProtocolError(f"{answer.state!r} in answer to a get")
        await _receive_blob(stream, root, size, store, scope)


@asynccontextmanager
async def _opened(
    transport: Transport, mesh: MeshId, peer: PeerId, header: BlobHeader
) -> AsyncIterator[tuple[Stream, BlobAnswer]]:
    """A blob stream after its header and the first answer; reset where the block fails."""
    stream = await transport.open_stream(peer, blob_protocol(mesh))
    try:
        with _within(REPLY_SECONDS, peer, "blob header"):
            await _send_frame(stream, header)
            answer = _unrefused(await _receive_frame(stream, BlobAnswer))
        yield stream, answer
    except BaseException:
        with trio.CancelScope(shield=True):
            await stream.reset()
        raise
    await stream.aclose()


def _unrefused(answer: BlobAnswer) -> BlobAnswer:
    if answer.state == "refused":
        raise Refused(answer.code or "refused", answer.sentence)
    return answer


# Frames


async def _send_frame(stream: Stream, value: msgspec.Struct) -> None:
    await stream.send_all(encode_frame(encode(value)))


async def _receive_frame(stream: Stream, kind: type[T]) -> T:
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
class _MemorySource:
    view: memoryview

    @property
    def size(self) -> int:
        return len(self.view)

    async def leaf(self, index: int) -> memoryview:
        return self.view[index * LEAF_BYTES : (index + 1) * LEAF_BYTES]


class _FileSource:
    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._buffer = memoryview(bytearray(min(size, LEAF_BYTES)))
        self.size = size

    async def leaf(self, index: int) -> memoryview:
        start = index * LEAF_BYTES
        view = self._buffer[: min(LEAF_BYTES, self.size - start)]
        try:
            await trio.to_thread.run_sync(read_exactly, self._fd, view, start)
        except (EOFError, OSError) as error:
            raise LocalProtocolError(f"cannot read the blob that is being sent: {error}") from error
        return view


_Source = _MemorySource | _FileSource


async def _send_manifest_and_leaves(stream: Stream, leaves: list[bytes], source: _Source) -> None:
    if leaves:
        with _within(LEAF_SECONDS, stream.peer, "blob manifest"):
            await stream.send_all(b"".join(leaves))
    for index in range(len(leaves)):
        leaf = await source.leaf(index)
        with _within(LEAF_SECONDS, stream.peer, f"leaf {index} of a blob"):
            await stream.send_all(leaf)


# Bytes in


async def _receive_blob(stream: Stream, root: Digest, size: int, store: BlobStore, scope: Scope) -> None:
    """Manifest and leaves into the store. Raises RemoteProtocolError at the first wrong one; nothing is kept then."""
    manifest = bytearray(DIGEST_BYTES * leaf_count(size))
    with _within(LEAF_SECONDS, stream.peer, "blob manifest"):
        await stream.receive_into(memoryview(manifest))
    leaves = [bytes(manifest[at : at + DIGEST_BYTES]) for at in range(0, len(manifest), DIGEST_BYTES)]
    with await store.begin(scope, root, size, leaves) as writer:
        await _receive_leaves(stream, size, writer)
        writer.commit()


async def _receive_leaves(stream: Stream, size: int, writer: BlobWriter) -> None:
    """Receive one leaf while the one before is checked and written."""
    buffers = [memoryview(bytearray(min(size, LEAF_BYTES))) for _ in range(min(2, leaf_count(size)))]
    failures: list[MeshError | OSError] = []
    async with trio.open_nursery() as nursery:
        # Without a buffer: handing leaf n over means that leaf n-1 is written and its memory is free again.
        full, to_write = trio.open_memory_channel[memoryview](0)

        async def receive() -> None:
            with full:
                for index in range(leaf_count(size)):
                    leaf = buffers[index % 2][: min(LEAF_BYTES, size - index * LEAF_BYTES)]
                    with _within(LEAF_SECONDS, stream.peer, f"leaf {index} of a blob"):
                        await stream.receive_into(leaf)
                    await full.send(leaf)

        async def write() -> None:
            async for leaf in to_write:
                await writer.write_leaf(leaf)

        nursery.start_soon(_run_part, receive, failures, nursery.cancel_scope)
        nursery.start_soon(_run_part, write, failures, nursery.cancel_scope)
    if failures:
        raise failures[0]


async def _run_part(
    part: Callable[[], Awaitable[None]], failures: list[MeshError | OSError], scope: trio.CancelScope
) -> None:
    """Run one of two parts; its error ends the other, and stays a plain error instead of a group of them."""
    try:
        await part()
    except (MeshError, OSError) as error:
        failures.append(error)
        scope.cancel()


@contextmanager
def _within(seconds: float, peer: PeerId, what: str) -> Iterator[None]:
    """A deadline for one step; passing it is the peer being out of reach."""
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise Unreachable(f"{short_peer(peer)}: {what} took longer than {seconds:g} s")
