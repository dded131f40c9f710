"""Blobs on streams of their own, verified leaf by leaf on arrival.

One stream carries one blob. The opener sends a header frame (put or get, root, size); the answer is a frame that says
`go`, `have`, `refused` or, at the end of a put, `done`. Behind a `go` follow the leaf digests and then the bytes of
the blob, without framing, since both sizes are known by then.

    put:  header -->        <-- go (first)     manifest, leaves -->      <-- done
    get:  header (first) -->                   <-- go, manifest, leaves

The receiver checks room before it says `go` (put) or asks (get), the manifest against the root before the first leaf,
and every leaf before it is written; the first wrong byte ends the stream and nothing is kept. A peer puts into its own
scope and gets what its own scope may see: to everyone else a blob does not exist.

Where a connection breaks, the leaves that were verified are kept for a while. The next attempt begins behind them:
the receiver says in `first` how many it has, and then no manifest is sent, since it has that too.

Time is bounded per leaf (`LEAF_SECONDS`), not per blob, so that a slow link may take long and a dead one may not.
While a thread checks and writes leaves the next ones are received: a ring of four leaves per transfer, no more.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from math import ceil

import trio
from msgspec.structs import replace

from coppermesh.p2p.blob_store import BlobMissing, BlobStore, Scope, StoreFull
from coppermesh.p2p.blob_streams import (
    LEAF_SECONDS,
    BlobAnswer,
    BlobHeader,
    FileSource,
    Memory,
    MemorySource,
    Source,
    receive_blob,
    receive_frame,
    send_frame,
    send_manifest_and_leaves,
    set_aside_if_cut,
    within,
)
from coppermesh.p2p.blobs import LEAF_BYTES, MAX_BLOB_BYTES, Buffer, as_bytes_view, blob_root, leaf_count
from coppermesh.p2p.channel import clean_sentence
from coppermesh.p2p.errors import LocalProtocolError, Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import Digest, MeshId, PeerId
from coppermesh.p2p.receive_rings import ReceiveRings
from coppermesh.p2p.transport import Stream, Transport

QUEUE_SECONDS = 60.0
REPLY_SECONDS = QUEUE_SECONDS + LEAF_SECONDS
_REASON_SECONDS = 1.0
_LOOK_SECONDS = 0.2
MAX_ATTEMPTS = 20
"""Breaks in a row that one patient call takes without a leaf more at the receiver."""
MAX_TRANSFERS_PER_PEER = 4
MAX_WAITING_PER_PEER = 128

Admit = Callable[[PeerId, Digest, int], Refused | None]
"""(peer, root, size) -> None to take a blob that a peer wants to put here, or why not. Pure and fast."""


@dataclass(slots=True)
class BlobCounts:
    """Running totals of a `BlobService`, for what other peers opened."""

    put: int = 0
    got: int = 0
    had: int = 0
    resumed: int = 0
    """Those that went on where a connection broke."""
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


@dataclass(slots=True)
class _Progress:
    """How far a transfer has come over all attempts, in leaves that the receiver has verified."""

    leaves: int = 0


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
                with within(LEAF_SECONDS, stream.peer, "blob header"):
                    header = await receive_frame(stream, BlobHeader)
                if header.verb == "put":
                    await self._serve_put(stream, header)
                else:
                    await self._serve_get(stream, header)
        except Refused as refused:
            self.counts.refused += 1
            with within(LEAF_SECONDS, stream.peer, "blob refusal"):
                await send_frame(
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

    async def _serve_put(self, stream: Stream, header: BlobHeader) -> None:
        scope, root, size = (self._mesh, stream.peer), Digest(header.root), header.size
        if size > MAX_BLOB_BYTES:
            raise Refused("too-large", f"a blob of {size} bytes: at most {MAX_BLOB_BYTES} are possible")
        refused = self._admit(stream.peer, root, size) if self._admit else None
        if refused is not None:
            raise refused
        if await self._store.ensure(scope, root):
            self.counts.had += 1
            await send_frame(stream, BlobAnswer("have"))
            return
        try:
            kept = self._store.resume(scope, root, size)
            if kept is None:
                self._store.check_room(scope, size)
            first = 0 if kept is None else kept.done
            with nullcontext() if kept is None else set_aside_if_cut(kept):
                await send_frame(stream, BlobAnswer("go", first=first))
                await receive_blob(stream, header, self._store, scope, kept)
        except StoreFull as full:
            raise Refused("store-full", str(full)) from None
        self.counts.put += 1
        self.counts.resumed += first > 0
        self.counts.bytes_in += size - first * LEAF_BYTES
        await send_frame(stream, BlobAnswer("done"))

    async def _serve_get(self, stream: Stream, header: BlobHeader) -> None:
        try:
            blob = await self._store.open((self._mesh, stream.peer), Digest(header.root))
        except BlobMissing as missing:
            raise Refused("unknown-blob", str(missing)) from None
        with blob:
            if blob.size != header.size or header.first > len(blob.leaves):
                raise Refused("unknown-blob", f"that blob has {blob.size} bytes, not {header.size}")
            await send_frame(stream, BlobAnswer("go"))
            source = FileSource(blob.fd, blob.size)
            memory = Memory(self._store.rings, (self._mesh, stream.peer), header.lease)
            await send_manifest_and_leaves(stream, blob.leaves, source, header.first, memory)
        self.counts.got += 1
        self.counts.resumed += header.first > 0
        self.counts.bytes_out += max(0, header.size - header.first * LEAF_BYTES)


async def send_blob(
    transport: Transport,
    mesh: MeshId,
    peer: PeerId,
    root: Digest,
    leaves: list[bytes],
    source: Buffer | int,
    *,
    size: int | None = None,
    patience_s: float = 0.0,
    rings: ReceiveRings | None = None,
    lease: bytes | None = None,
) -> None:
    """Put a blob into this agent's scope at `peer`; nothing is sent where it is there already.

    `leaves`: its leaf digests. `source`: its bytes, or a descriptor to read them from (then give `size`).
    `patience_s`: when the connection breaks, wait so long for another one and go on where it broke, as long as that
    brings more of the blob there.
    `rings`, `lease`: the store's and the transfer's, so that both sides use memory again under that lease.
    Send a few at a time: `peer` serves `MAX_TRANSFERS_PER_PEER` at once. Raises Unreachable; Refused (`store-full`,
    `too-large`, `busy`, or what `peer`'s policy says); RemoteProtocolError; LocalProtocolError where `leaves`, `root`
    and `size` do not belong together.
    """
    if isinstance(source, int):
        if size is None:
            raise LocalProtocolError("a blob sent from a descriptor needs its size")
        bytes_source: Source = FileSource(source, size)
    else:
        bytes_source = MemorySource(as_bytes_view(source))
    if len(leaves) != leaf_count(bytes_source.size) or blob_root(bytes_source.size, leaves) != root:
        raise LocalProtocolError(f"these leaf digests and this size are not of blob {root.hex()[:16]}")
    memory = Memory(ReceiveRings() if rings is None else rings, (mesh, peer), lease)
    attempt = partial(_send_once, transport, mesh, peer, root, leaves, bytes_source, memory)
    await _with_patience(transport, peer, patience_s, attempt)


async def _send_once(
    transport: Transport,
    mesh: MeshId,
    peer: PeerId,
    root: Digest,
    leaves: list[bytes],
    bytes_source: Source,
    memory: Memory,
    progress: _Progress,
) -> None:
    header = BlobHeader("put", root, bytes_source.size, 0, memory.lease)
    async with _opened(transport, mesh, peer, header) as (stream, answer):
        if answer.state == "have":
            return
        if answer.state != "go":
            raise RemoteProtocolError(f"{answer.state!r} in answer to a put")
        if answer.first > len(leaves):
            raise RemoteProtocolError(f"it has {answer.first} of {len(leaves)} leaves")
        progress.leaves = max(progress.leaves, answer.first)
        try:
            await send_manifest_and_leaves(stream, leaves, bytes_source, answer.first, memory)
        except Unreachable:
            # It may have stopped taking bytes to say why: its disk is full.
            with suppress(Unreachable, RemoteProtocolError), within(_REASON_SECONDS, peer, "a reason"):
                _unrefused(await receive_frame(stream, BlobAnswer))
            raise
        with within(REPLY_SECONDS, peer, "end of a blob"):
            end = _unrefused(await receive_frame(stream, BlobAnswer))
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
    *,
    patience_s: float = 0.0,
    lease: bytes | None = None,
) -> None:
    """Get a blob of exactly `size` bytes from `peer` into `store`, visible to `scope`. Nothing to do if it is there.

    `patience_s`, `lease`: as for `send_blob`. Raises Unreachable; Refused (`unknown-blob`, `busy`); StoreFull (here);
    RemoteProtocolError where the bytes are not the blob, and then nothing is kept.
    """
    if size > MAX_BLOB_BYTES:
        raise RemoteProtocolError(f"a blob of {size} bytes: at most {MAX_BLOB_BYTES} are possible")
    header = BlobHeader("get", root, size, 0, lease)
    attempt = partial(_fetch_once, transport, mesh, peer, header, store, scope)
    await _with_patience(transport, peer, patience_s, attempt)


async def _fetch_once(
    transport: Transport,
    mesh: MeshId,
    peer: PeerId,
    wanted: BlobHeader,
    store: BlobStore,
    scope: Scope,
    progress: _Progress,
) -> None:
    root, size = Digest(wanted.root), wanted.size
    if await store.ensure(scope, root):
        return
    kept = store.resume(scope, root, size)
    if kept is None:
        store.check_room(scope, size)
    first = 0 if kept is None else kept.done
    progress.leaves = max(progress.leaves, first)
    header = replace(wanted, first=first)
    with nullcontext() if kept is None else set_aside_if_cut(kept):
        async with _opened(transport, mesh, peer, header) as (stream, answer):
            if answer.state != "go":
                raise RemoteProtocolError(f"{answer.state!r} in answer to a get")
            await receive_blob(stream, header, store, scope, kept)


async def _with_patience(
    transport: Transport, peer: PeerId, patience_s: float, attempt: Callable[[_Progress], Awaitable[None]]
) -> None:
    """Try, and where the peer was cut off try again when it is back, while that gets the transfer on."""
    progress, in_vain = _Progress(), 0
    while True:
        before = progress.leaves
        try:
            return await attempt(progress)
        except Unreachable:
            in_vain = 0 if progress.leaves > before else in_vain + 1
            if not patience_s or in_vain > MAX_ATTEMPTS or not await _is_back(transport, peer, patience_s):
                raise


async def _is_back(transport: Transport, peer: PeerId, patience_s: float) -> bool:
    """Whether the peer is connected again within `patience_s`."""
    for _ in range(ceil(patience_s / _LOOK_SECONDS)):
        # Before the first look too: the news that the connection is gone may be on its way.
        await trio.sleep(_LOOK_SECONDS)
        if peer in transport.connected():
            return True
    return False


@asynccontextmanager
async def _opened(
    transport: Transport, mesh: MeshId, peer: PeerId, header: BlobHeader
) -> AsyncIterator[tuple[Stream, BlobAnswer]]:
    """A blob stream after its header and the first answer; reset where the block fails."""
    stream = await transport.open_stream(peer, blob_protocol(mesh))
    try:
        with within(REPLY_SECONDS, peer, "blob header"):
            await send_frame(stream, header)
            answer = _unrefused(await receive_frame(stream, BlobAnswer))
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
