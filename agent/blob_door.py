"""Raw blobs between local clients and the store, in this agent's own scope."""

from coppermesh.agent.config import Config
from coppermesh.p2p.blob_store import BlobMissing, BlobStore, Scope
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import Digest
from coppermesh.p2p.messages import BlobInfo


class StoreDoor:
    """What `local_api` needs of the store."""

    def __init__(self, store: BlobStore, scope: Scope, config: Config) -> None:
        self._store = store
        self._scope = scope
        self._limit_bytes = config.store_bytes

    def check_room(self, blob: BlobInfo) -> None:
        """Refuse what can never fit, before its bytes are sent."""
        if blob.size > self._limit_bytes:
            raise Refused(
                "too-large",
                f"an array of {blob.size} bytes, the agent's store holds {self._limit_bytes} (store_bytes)",
            )

    async def take_blob(self, blob: BlobInfo, data: bytearray) -> None:
        """Verify and keep a blob."""
        await self._store.put(self._scope, Digest(blob.root), data)

    async def give_blob(self, blob: BlobInfo) -> bytes:
        """The bytes of a blob that this agent may see."""
        try:
            data = await self._store.read(self._scope, Digest(blob.root))
        except BlobMissing as error:
            raise Refused("unknown-blob", str(error)) from error
        if len(data) != blob.size:
            raise Refused("wrong-size", f"the blob has {len(data)} bytes, not {blob.size}")
        return data
