"""The signed records of private meshes: who is a member, who no longer is, and what members used.

Same rules and helpers as `records`. `membership` says what a chain of certificates is worth.
"""

from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from coppermesh.p2p.records import Count, Hash, Key, Label, Mesh, Micros, Record, SignedRecord, Version

MAX_CHAIN = 4
"""Most certificates from the root key to a member."""
MAX_DEPTH = MAX_CHAIN - 1

RoleName = Annotated[str, Meta(pattern=r"^(admin|member|submit-only|provide-only)\Z")]
Chain = Annotated[list[SignedRecord], Meta(max_length=MAX_CHAIN)]
"""Certificates, the one that the root key signed first."""
Depth = Annotated[int, Meta(ge=0, le=MAX_DEPTH)]
SwarmKey = Annotated[bytes, Meta(min_length=32, max_length=32)]
Token = Annotated[bytes, Meta(min_length=16, max_length=16)]


class Quota(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Most device time that a member may use of all providers together within any span of `period_us`."""

    kind: Annotated[str, Meta(pattern=r"^(any|cpu|cuda)\Z")]
    device_us: Count
    period_us: Annotated[int, Meta(ge=60_000_000, lt=1 << 62)]


class Certificate(Record, frozen=True):
    """`issuer` says that `subject` is a member. The first of a chain is issued by the mesh's root key."""

    DOMAIN: ClassVar[str] = "coppermesh/certificate/1"
    MAX_BYTES: ClassVar[int] = 512
    AUTHORS: ClassVar[tuple[str, ...]] = ("issuer",)

    version: Version
    mesh: Mesh
    issuer: Key
    subject: Key
    serial: Annotated[int, Meta(ge=1, lt=1 << 62)]
    """1, 2, 3 ... of this issuer, each for one certificate."""
    role: RoleName
    quota: Quota | None
    depth: Depth
    """How many further certificates may hang below this one; 0: its subject may not issue any."""
    name: Label
    """What people call the member. Proven by nobody."""
    not_before_us: Micros
    expires_us: Micros


class Revocation(Record, frozen=True):
    """`signer` says that `subject` is no member any more, whatever certificate it shows."""

    DOMAIN: ClassVar[str] = "coppermesh/revocation/1"
    MAX_BYTES: ClassVar[int] = 256
    AUTHORS: ClassVar[tuple[str, ...]] = ("signer",)

    version: Version
    mesh: Mesh
    signer: Key
    subject: Key
    last_serial: Count
    """Of what `subject` issued, certificates up to this serial still count; 0: none."""
    issued_us: Micros
    expires_us: Micros


class Joining(Record, frozen=True):
    """Who holds an invitation's token, or an older certificate, asks to be let in under this key."""

    DOMAIN: ClassVar[str] = "coppermesh/joining/1"
    MAX_BYTES: ClassVar[int] = 384
    AUTHORS: ClassVar[tuple[str, ...]] = ("subject",)

    version: Version
    mesh: Mesh
    subject: Key
    issuer: Key
    """Who is asked: a request is worth nothing to another."""
    token: Token | None
    """The invitation's; nil where a chain is shown in its place."""
    name: Label
    issued_us: Micros


class Rotation(Record, frozen=True):
    """`signer` says that the mesh goes on with another swarm key. The key itself travels beside this record."""

    DOMAIN: ClassVar[str] = "coppermesh/rotation/1"
    MAX_BYTES: ClassVar[int] = 256
    AUTHORS: ClassVar[tuple[str, ...]] = ("signer",)

    version: Version
    mesh: Mesh
    signer: Key
    epoch: Count
    """How many keys there were before this one."""
    key_hash: Hash
    """BLAKE3 of the swarm key. Of two rotations to one epoch the smaller hash holds."""
    issued_us: Micros


class Usage(Record, frozen=True):
    """What `provider` has receipts for: device time that `requester` used there in one hour.

    The provider signs it, and the requester the same body where that can be.
    """

    DOMAIN: ClassVar[str] = "coppermesh/usage/1"
    MAX_BYTES: ClassVar[int] = 256
    AUTHORS: ClassVar[tuple[str, ...]] = ("provider", "requester")

    version: Version
    mesh: Mesh
    provider: Key
    requester: Key
    kind: Annotated[str, Meta(pattern=r"^(cpu|cuda)\Z")]
    hour: Count
    """Which one: the time in microseconds divided by 3600000000, cut to a whole number."""
    device_us: Count
    """All of that hour so far. It only rises."""


class RevocationNotice(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A revocation as it travels, with the signer's own chain; empty where the root key signed."""

    revocation: SignedRecord
    chain: Chain


class UsageNotice(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A Usage as it travels in gossip."""

    by_provider: SignedRecord
    by_requester: SignedRecord | None
    """The same body, signed by the requester; nil where it has not signed (yet)."""


class MembershipNotice(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A member's chain as it travels in gossip."""

    chain: Chain
