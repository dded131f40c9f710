"""Names of blobs: what the 32-byte root of some bytes is, and how a piece of them is checked alone.

A blob is cut into leaves of `LEAF_BYTES`; the last may be shorter, and an empty blob has none. The digest of a leaf is
BLAKE3 in key-derivation mode over its bytes, and the root is the same over the length and all leaf digests, each under
a context of its own. So a receiver who holds the leaf digests (the manifest) can check them against the root before
the first byte arrives, and then every leaf as it arrives; a leaf can never pass for a root, nor a blob for a signed
record of the same bytes.

Hashing runs at several GB/s and releases the interpreter lock: from 4 MiB on, call these in a thread.
"""

from collections.abc import Iterator, Sequence

from blake3 import blake3

from coppermesh.p2p.ids import Digest
from coppermesh.p2p.records import ZERO_HASH

LEAF_BYTES = 1 << 20
DIGEST_BYTES = 32
MAX_BLOB_BYTES = 64 << 30
"""Largest blob that has a name on the wire; its manifest is 2 MiB."""
THREAD_BYTES = 4 << 20
"""From this size on, hash in a thread."""

_LEAF_CONTEXT = "coppermesh 2026 blob leaf v1"
_ROOT_CONTEXT = "coppermesh 2026 blob root v1"
_LIST_CONTEXT = "coppermesh 2026 list of blob roots v1"

Buffer = bytes | bytearray | memoryview


def leaf_count(size: int) -> int:
    """How many leaves a blob of `size` bytes has."""
    return -(-size // LEAF_BYTES)


def leaf_digest(leaf: Buffer) -> bytes:
    """The digest of one leaf, 32 bytes."""
    return blake3(leaf, derive_key_context=_LEAF_CONTEXT).digest()


def as_bytes_view(data: Buffer) -> memoryview:
    """`data` as a flat view of unsigned bytes. It must be C-contiguous."""
    view = memoryview(data)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def leaves_of(data: Buffer) -> Iterator[memoryview]:
    """The leaves of a blob in order, without copying."""
    view = as_bytes_view(data)
    for start in range(0, len(view), LEAF_BYTES):
        yield view[start : start + LEAF_BYTES]


def leaf_digests(view: Buffer) -> list[bytes]:
    """The manifest of a blob: the digest of each leaf, in order."""
    return [leaf_digest(leaf) for leaf in leaves_of(view)]


def blob_root(size: int, leaves: list[bytes]) -> Digest:
    """The root of a blob of `size` bytes with these leaf digests.

    Raises ValueError where the number or length of the digests does not fit the size.
    """
    if size < 0 or len(leaves) != leaf_count(size):
        raise ValueError(f"{len(leaves)} leaf digests do not fit a blob of {size} bytes")
    if any(len(leaf) != DIGEST_BYTES for leaf in leaves):
        raise ValueError(f"a leaf digest is {DIGEST_BYTES} bytes")
    hasher = blake3(size.to_bytes(8, "big"), derive_key_context=_ROOT_CONTEXT)
    hasher.update(b"".join(leaves))
    return Digest(hasher.digest())


def digest_of(view: Buffer) -> Digest:
    """The root of these bytes."""
    flat = as_bytes_view(view)
    return blob_root(len(flat), leaf_digests(flat))


def roots_digest(roots: Sequence[bytes]) -> Digest:
    """One digest over blob roots in order, as receipts carry it; 32 zero bytes for none."""
    if not roots:
        return Digest(ZERO_HASH)
    if any(len(root) != DIGEST_BYTES for root in roots):
        raise ValueError(f"a blob root is {DIGEST_BYTES} bytes")
    return Digest(blake3(b"".join(roots), derive_key_context=_LIST_CONTEXT).digest())
