"""The record that prolongs a lease. See `records` for the rules of records."""

from typing import Annotated, ClassVar

from msgspec import Meta

from coppermesh.p2p.records import Hash, Key, Mesh, Micros, Record, Version


class Extension(Record, frozen=True):
    """A later end of one lease, which both sides sign: the same body twice, told apart by the signer.

    Nothing else of the lease changes. Until both have signed, the end that was agreed before holds.
    """

    DOMAIN: ClassVar[str] = "coppermesh/extension/1"
    MAX_BYTES: ClassVar[int] = 512
    AUTHORS: ClassVar[tuple[str, ...]] = ("requester", "provider")

    version: Version
    mesh: Mesh
    requester: Key
    provider: Key
    lease: Hash
    """Id of the lease."""
    number: Annotated[int, Meta(ge=1, le=1000)]
    """1, 2, 3 ... under the lease."""
    issued_us: Micros
    expires_us: Micros
    """When the lease ends now."""
