"""Merkle trees as in RFC 6962, section 2.1, with SHA-256: one hash for a list, and short proofs for its entries.

A leaf's hash is SHA-256 of a zero byte and its data, a node's of a one byte and its two children; a tree over n leaves
splits at the largest power of two below n, so nothing is ever repeated to fill a level. SHA-256 and not BLAKE3 because
such roots are what other logs, chains and auditors already check.
"""

from collections.abc import Iterator, Sequence
from hashlib import sha256

HASH_BYTES = 32
MAX_PATH = 62
"""Longest proof: a tree has fewer than 2^62 leaves."""
EMPTY_ROOT = sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """The hash of one entry."""
    return sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two neighbours."""
    return sha256(b"\1" + left + right).digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The root over these leaf hashes, in order."""
    level = list(leaves)
    if not level:
        return EMPTY_ROOT
    while len(level) > 1:
        level = _parents(level)
    return level[0]


def inclusion_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """What leads from leaf number `index` to the root, nearest first. Raises IndexError."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"leaf {index} of {len(leaves)}")
    level, path = list(leaves), []
    while len(level) > 1:
        beside = index ^ 1
        if beside < len(level):
            path.append(level[beside])
        level, index = _parents(level), index >> 1
    return path


def inclusion_paths(leaves: Sequence[bytes]) -> Iterator[list[bytes]]:
    """`inclusion_path` of every leaf in turn; the tree is built once."""
    levels = [list(leaves)]
    while len(levels[-1]) > 1:
        levels.append(_parents(levels[-1]))
    for leaf in range(len(leaves)):
        path, index = [], leaf
        for level in levels[:-1]:
            if index ^ 1 < len(level):
                path.append(level[index ^ 1])
            index >>= 1
        yield path


def root_from_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root that a proof leads to, or None where the proof has not the length for this place (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return None
    last, found, used = size - 1, leaf, 0
    while last > 0:
        if index & 1 or index < last:
            if used == len(path):
                return None
            beside = path[used]
            found = node_hash(beside, found) if index & 1 else node_hash(found, beside)
            used += 1
        index, last = index >> 1, last >> 1
    return found if used == len(path) else None


def _parents(level: list[bytes]) -> list[bytes]:
    """Pairs joined; one that is left over goes up as it is."""
    pairs = [node_hash(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
    return pairs + level[len(level) & ~1 :]
