"""Names of things: peers, meshes, blobs and records.

Inside the program an id is its raw bytes (`NewType`, so that a type checker tells them apart); text appears
only where a person reads it. A peer id is the peer's raw Ed25519 public key, shown as libp2p shows it: base58
of the identity multihash of the protobuf-wrapped key (libp2p peer-id specification), always `12D3KooW...`.
"""

from functools import lru_cache
from typing import NewType

from blake3 import blake3

PeerId = NewType("PeerId", bytes)
"""32 bytes: raw Ed25519 public key."""
MeshId = NewType("MeshId", bytes)
"""16 bytes: hash of the mesh's name."""
Digest = NewType("Digest", bytes)
"""32 bytes: BLAKE3 root of a blob, or the id of a signed record."""

_IDENTITY_PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_MAX_PEER_TEXT = 64


def mesh_id(name: str) -> MeshId:
    """The id of the mesh called `name` (printable ASCII, 1 to 64 characters)."""
    if not (0 < len(name) <= 64 and name.isascii() and name.isprintable()):
        raise ValueError(f"mesh name {name!r}: want 1 to 64 printable ASCII characters")
    return MeshId(blake3(name.encode(), derive_key_context="coppermesh 2026 mesh id v1").digest(16))


@lru_cache(maxsize=4096)
def format_peer(peer: PeerId) -> str:
    """The peer's libp2p text form, 52 characters."""
    number = int.from_bytes(_IDENTITY_PREFIX + peer, "big")
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_BASE58[digit])
    return "1" + "".join(reversed(digits))


def short_peer(peer: PeerId) -> str:
    """The last eight characters of the text form: enough to tell peers apart on a screen, never to trust."""
    return format_peer(peer)[-8:]


def parse_peer(text: str) -> PeerId:
    """The inverse of `format_peer`. Raises ValueError on anything else."""
    if not 0 < len(text) <= _MAX_PEER_TEXT:
        raise ValueError("peer id: want the 52-character form 12D3KooW...")
    number = 0
    for character in text:
        digit = _BASE58.find(character)
        if digit < 0:
            raise ValueError(f"peer id: {character!r} is not a base58 digit")
        number = number * 58 + digit
    length = len(_IDENTITY_PREFIX) + 32
    if number >= 1 << (8 * length):
        raise ValueError("peer id: too long for an Ed25519 key")
    raw = number.to_bytes(length, "big")
    peer = PeerId(raw[len(_IDENTITY_PREFIX) :])
    if format_peer(peer) != text:
        raise ValueError("peer id: not the canonical form of an Ed25519 key")
    return peer
