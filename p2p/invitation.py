"""An invitation as one string: what somebody needs to find a private mesh's door and to be let in once (pure).

The string is `coppermesh1` and base32 (RFC 4648, small letters, no padding) of the canonical encoding of `Invitation`
and the first 4 bytes of its BLAKE3, which tell a typing mistake from a wrong invitation. Capitals are read too: a QR
code holds them more densely. The token in it is worth what the issuer's door still gives for it, and nothing after.
"""

import base64
import binascii
from typing import Annotated

import msgspec
from blake3 import blake3
from msgspec import Meta

from coppermesh.p2p.certificates import private_mesh_id
from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.errors import MeshError, RemoteProtocolError
from coppermesh.p2p.ids import MeshId, PeerId, format_peer
from coppermesh.p2p.membership_records import Token
from coppermesh.p2p.records import Key, Label, Micros, Version

PREFIX = "coppermesh1"
MAX_DOORS = 4
MAX_INVITATION_BYTES = 768
_CHECK_BYTES = 4


class Invitation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Everything in the string. No lasting secret: a token that the issuer counts, and public keys."""

    version: Version
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    root: Key
    issuer: Key
    """Who must answer at the doors."""
    doors: Annotated[list[Label], Meta(min_length=1, max_length=MAX_DOORS)]
    """Addresses without the peer id, which `issuer` says: the string stays short."""
    token: Token
    expires_us: Micros

    @property
    def mesh(self) -> MeshId:
        """The mesh that it leads to."""
        return private_mesh_id(PeerId(self.root), self.name)

    @property
    def addresses(self) -> list[str]:
        """The doors as full addresses."""
        return [f"{door}/p2p/{format_peer(PeerId(self.issuer))}" for door in self.doors]


def invitation_text(invitation: Invitation) -> str:
    """The string."""
    data = encode(invitation)
    packed = base64.b32encode(data + blake3(data).digest(_CHECK_BYTES))
    return PREFIX + packed.decode().rstrip("=").lower()


def read_invitation(text: str) -> Invitation:
    """The inverse. White space is left out, as mail programs put it in. Raises MeshError that says what is wrong."""
    plain = "".join(text.split()).lower()
    if not plain.startswith(PREFIX):
        raise MeshError(f"not an invitation: one begins with {PREFIX!r}")
    digits = plain.removeprefix(PREFIX)
    if len(digits) > 2 * MAX_INVITATION_BYTES:
        raise MeshError("not an invitation: too long")
    try:
        packed = base64.b32decode(digits.upper() + "=" * (-len(digits) % 8))
    except (binascii.Error, ValueError):
        raise MeshError("the invitation has a character too many, too few or wrong: copy it again") from None
    data, check = packed[:-_CHECK_BYTES], packed[-_CHECK_BYTES:]
    if base64.b32encode(packed).decode().rstrip("=").lower() != digits:
        # The last digit has bits that mean nothing; another one there would be the same invitation.
        raise MeshError("the invitation was changed or cut on its way: copy it again")
    if len(packed) <= _CHECK_BYTES or blake3(data).digest(_CHECK_BYTES) != check:
        raise MeshError("the invitation was changed or cut on its way: copy it again")
    try:
        invitation = decode(Invitation, data, max_bytes=MAX_INVITATION_BYTES)
        private_mesh_id(PeerId(invitation.root), invitation.name)
    except (RemoteProtocolError, ValueError) as error:
        raise MeshError(f"the invitation is of another version: {error}") from error
    return invitation
