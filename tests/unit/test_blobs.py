"""Blob names: every byte, the length and the order count, and no name can stand for something else."""

import os

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.p2p.blob_hashing import hash_leaves
from coppermesh.p2p.blobs import (
    LEAF_BYTES,
    blob_root,
    digest_of,
    leaf_count,
    leaf_digest,
    leaf_digests,
    roots_digest,
)


def test_leaves_are_one_mebibyte_and_the_last_is_shorter() -> None:
    assert [leaf_count(size) for size in (0, 1, LEAF_BYTES, LEAF_BYTES + 1)] == [0, 1, 1, 2]
    data = bytes(range(256)) * (LEAF_BYTES // 128 + 1)
    leaves = leaf_digests(data)
    assert leaves == [
        leaf_digest(data[:LEAF_BYTES]),
        leaf_digest(data[LEAF_BYTES : 2 * LEAF_BYTES]),
        leaf_digest(data[2 * LEAF_BYTES :]),
    ]


def test_roots_are_what_the_protocol_says() -> None:
    def derived(context: str, data: bytes) -> bytes:
        return blake3(data, derive_key_context=context).digest()

    leaf = derived("coppermesh 2026 blob leaf v1", b"hello")
    root = derived("coppermesh 2026 blob root v1", (5).to_bytes(8, "big") + leaf)
    assert digest_of(b"hello") == root
    assert digest_of(b"") == derived("coppermesh 2026 blob root v1", bytes(8))
    assert roots_digest([root, root]) == derived("coppermesh 2026 list of blob roots v1", 2 * root)
    assert roots_digest([]) == bytes(32)


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_different_bytes_have_different_roots(first: bytes, second: bytes) -> None:
    assert (digest_of(first) == digest_of(second)) == (first == second)


def test_a_leaf_or_a_manifest_is_no_blob_of_the_same_name() -> None:
    data = bytes(LEAF_BYTES)
    leaf = leaf_digest(data)
    assert leaf != digest_of(data)
    assert digest_of(leaf) != digest_of(data)
    assert digest_of(len(data).to_bytes(8, "big") + leaf) != digest_of(data)


def test_any_contiguous_buffer_has_the_root_of_its_bytes() -> None:
    data = bytes(range(200))
    wide = np.frombuffer(data, dtype="<f8").reshape(5, 5)
    assert digest_of(bytearray(data)) == digest_of(wide.data) == digest_of(data)


@pytest.mark.parametrize(
    ("size", "leaves"),
    [(1, []), (0, [bytes(32)]), (LEAF_BYTES + 1, [bytes(32)]), (5, [bytes(31)]), (-1, [])],
)
def test_a_manifest_that_does_not_fit_the_size_is_refused(size: int, leaves: list[bytes]) -> None:
    with pytest.raises(ValueError, match="digest"):
        blob_root(size, leaves)


def test_a_list_of_roots_takes_roots_only() -> None:
    with pytest.raises(ValueError, match="root"):
        roots_digest([bytes(32), b"short"])


@pytest.mark.parametrize("leaves", [0, 1, 3, 7, 8, 9, 17, 20])
@pytest.mark.parametrize("processors", [1, 2, 64])
async def test_many_threads_make_the_same_manifest(
    leaves: int, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    pattern = bytes(range(251))
    data = (pattern * (leaves * LEAF_BYTES // len(pattern) + 1))[: max(0, leaves * LEAF_BYTES - 5)]
    assert await hash_leaves(data) == leaf_digests(data)
