"""One challenge of one provider: the request, the blobs that it needs, the digests that come back."""

from collections.abc import Sequence

import trio

from coppermesh.agent.ledger_store import ReceiptRow
from coppermesh.agent.traces import check_chain
from coppermesh.exec.trace_digests import DIGEST_BYTES
from coppermesh.p2p.blob_store import BlobMissing, BlobStore, Scope
from coppermesh.p2p.control import ControlHub
from coppermesh.p2p.envelope import Opened
from coppermesh.p2p.errors import Refused, RemoteProtocolError
from coppermesh.p2p.ids import Digest, MeshId, PeerId
from coppermesh.p2p.messages import INLINE_BYTES, BlobInfo, ChallengeReply, ChallengeRequest, InlineBlob
from coppermesh.p2p.records import Receipt, Task, Trace
from coppermesh.p2p.transfer import fetch_blob, send_blob
from coppermesh.p2p.transport import Transport

CHALLENGE_SECONDS = 30.0
"""How long a provider has to answer one request; it says `running` after 20 s."""
MAX_ROUNDS = 3
"""A provider that still needs blobs after so many requests is at fault."""


class ChallengeExchange:
    """Talks with providers and keeps the digests in the store."""

    def __init__(
        self, mesh: MeshId, transport: Transport, hub: ControlHub, store: BlobStore, scope: Scope
    ) -> None:
        self._mesh = mesh
        self._transport = transport
        self._hub = hub
        self._store = store
        self._scope = scope

    async def at_hand(self, task: Task) -> list[BlobInfo]:
        """Those of the task's blobs that are still here."""
        blobs = []
        for name in dict.fromkeys([task.program, *task.inputs]):
            root = Digest(name)
            if await self._store.ensure(self._scope, root):
                blobs.append(BlobInfo(root, self._store.size_of(self._scope, root)))
        return blobs

    async def request(self, row: ReceiptRow, blobs: list[BlobInfo]) -> ChallengeReply:
        """Ask, and send what it needs. Raises Refused, Unreachable, RemoteProtocolError."""
        inline: list[InlineBlob] = []
        for _ in range(MAX_ROUNDS):
            request = ChallengeRequest(row.id, blobs, inline)
            reply = await self._hub.request(
                row.peer, "challenge", request, ChallengeReply, deadline_s=CHALLENGE_SECONDS
            )
            if reply.state != "need":
                return reply
            inline = await self._supply(row.peer, blobs, set(reply.need))
        raise RemoteProtocolError("still needs blobs that it was sent")

    async def _supply(self, peer: PeerId, blobs: Sequence[BlobInfo], needed: set[bytes]) -> list[InlineBlob]:
        """Send the large ones of `needed`; give the small ones, to ride in the next request."""
        wanted = [blob for blob in blobs if blob.root in needed]
        if len(wanted) != len(needed):
            raise RemoteProtocolError("needs blobs that were not offered")
        inline, room = [], INLINE_BYTES
        try:
            for blob in wanted:
                root = Digest(blob.root)
                if blob.size <= room:
                    inline.append(InlineBlob(root, await self._store.read(self._scope, root)))
                    room -= blob.size
                    continue
                with await self._store.open(self._scope, root) as source:
                    await send_blob(
                        self._transport, self._mesh, peer, root, source.leaves, source.fd, size=source.size
                    )
        except BlobMissing as error:
            raise Refused("blobs-gone", f"a blob of the task was evicted here meanwhile: {error}") from error
        return inline

    async def take_chain(self, trace: Opened[Trace], receipt: Opened[Receipt], inline: bytes | None) -> None:
        """The digests into the store, checked. Raises RemoteProtocolError, Refused, Unreachable, StoreFull."""
        record = trace.record
        root = Digest(record.chain)
        if inline is not None:
            await self._store.put(self._scope, root, inline)  # `open_recorded` has checked them
            return
        size = DIGEST_BYTES * record.nodes
        await fetch_blob(self._transport, self._mesh, trace.signer, root, size, self._store, self._scope)
        data = await self._store.read(self._scope, root)
        await trio.to_thread.run_sync(check_chain, record, receipt.record, data)
