"""Blobs on streams of their own, verified leaf by leaf on arrival."""

from collections.abc import Callable

from coppermesh.p2p.blob_store import BlobStore, Scope
from coppermesh.p2p.blobs import Buffer
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import Digest, MeshId, PeerId
from coppermesh.p2p.transport import Transport

Admit = Callable[[PeerId, Digest, int], Refused | None]
"""(peer, root, size) -> None to take the blob, or why not. Pure and fast."""


class BlobService:
    """Serves blob streams: a peer puts into its own scope and gets what its scope may see.

    Constructing it registers the handler: before the transport's first dial.
    """

    def __init__(
        self, transport: Transport, mesh: MeshId, store: BlobStore, *, admit: Admit | None = None
    ) -> None: ...


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
    """Put a blob into this agent's scope at `peer`. `source`: its bytes, or a descriptor to read them from (give `size`).

    Raises Unreachable, Refused (`store-full`, `not-admitted`, `busy`, `too-large`), RemoteProtocolError.
    """


async def fetch_blob(
    transport: Transport, mesh: MeshId, peer: PeerId, root: Digest, size: int, store: BlobStore, scope: Scope
) -> None:
    """Get a blob of exactly `size` bytes from `peer` into `store`, visible to `scope`. Returns at once if it is there.

    Raises Unreachable, Refused (`unknown-blob`, ...), StoreFull (ours), RemoteProtocolError (wrong bytes; nothing kept).
    """
