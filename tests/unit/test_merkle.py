"""RFC 6962 trees, against the roots that certificate logs test themselves with, and proofs of every place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.p2p.merkle import (
    EMPTY_ROOT,
    inclusion_path,
    inclusion_paths,
    leaf_hash,
    merkle_root,
    node_hash,
    root_from_path,
)

LEAVES = [
    leaf_hash(bytes.fromhex(data))
    for data in (
        *("", "00", "10", "2021", "3031", "40414243", "5051525354555657"),
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
"""Of the first one to eight of these leaves (the vectors of the certificate-transparency project)."""


@pytest.mark.parametrize("count", range(1, 9))
def test_roots_are_those_of_certificate_logs(count):
    assert merkle_root(LEAVES[:count]).hex() == ROOTS[count - 1]


def test_the_empty_tree_has_the_hash_of_nothing():
    assert merkle_root([]) == EMPTY_ROOT
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def recursive_root(leaves):
    """The RFC's own definition."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    return node_hash(recursive_root(leaves[:split]), recursive_root(leaves[split:]))


@pytest.mark.parametrize("count", [*range(1, 70), 127, 128, 129])
def test_every_place_has_a_proof_that_leads_to_the_root(count):
    leaves = [leaf_hash(bytes([number])) for number in range(count)]
    root = merkle_root(leaves)
    assert root == recursive_root(leaves)
    for index, leaf in enumerate(leaves):
        path = inclusion_path(leaves, index)
        assert root_from_path(leaf, index, count, path) == root
        assert len(path) <= (count - 1).bit_length()
    assert list(inclusion_paths(leaves)) == [inclusion_path(leaves, index) for index in range(count)]


@given(
    st.integers(1, 200),
    st.integers(0, 199),
    st.integers(0, 210),
    st.integers(1, 210),
    st.lists(st.binary(min_size=32, max_size=32), max_size=9),
)
def test_a_proof_for_another_place_leads_elsewhere(count, index, other, size, junk):
    leaves = [leaf_hash(number.to_bytes(2, "big")) for number in range(count)]
    index %= count
    root, path = merkle_root(leaves), inclusion_path(leaves, index)
    if other != index:
        assert root_from_path(leaves[index], other, count, path) != root
    assert root_from_path(leaf_hash(b"not there"), index, count, path) != root
    if junk:
        assert root_from_path(leaves[index], index, count, path + junk) != root
    root_from_path(leaves[index], other, size, junk)  # never raises


def test_a_place_that_is_not_there_has_none():
    with pytest.raises(IndexError):
        inclusion_path(LEAVES, 8)
    assert root_from_path(LEAVES[0], 1, 1, []) is None
    assert root_from_path(LEAVES[0], -1, 1, []) is None
    assert root_from_path(LEAVES[0], 0, 2, []) is None
