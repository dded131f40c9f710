import pytest

from coppermesh.p2p.ids import PeerId, format_peer, mesh_id, parse_peer, short_peer
from coppermesh.p2p.signing import PeerKey

# The Ed25519 key of the libp2p peer-id specification's test vectors, and its text form.
SPECIFIED_KEY = PeerId(bytes.fromhex("1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"))
SPECIFIED_TEXT = "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq"


def test_text_form_is_libp2ps() -> None:
    from libp2p.crypto.ed25519 import Ed25519PublicKey
    from libp2p.peer.id import ID

    for number in range(20):
        key = PeerKey(bytes([number]) * 32).peer
        assert format_peer(key) == ID.from_pubkey(Ed25519PublicKey.from_bytes(key)).to_base58()


def test_text_form_round_trips() -> None:
    assert format_peer(SPECIFIED_KEY) == SPECIFIED_TEXT
    for peer in (PeerId(bytes(32)), PeerId(bytes([255]) * 32), SPECIFIED_KEY):
        assert parse_peer(format_peer(peer)) == peer
        assert len(format_peer(peer)) == 52
        assert format_peer(peer).startswith("12D3KooW")
        assert short_peer(peer) == format_peer(peer)[-8:]


@pytest.mark.parametrize("text", ["", " ", "1" * 65, "12D3KooW", "x" * 52, "0" * 52, "12D3KooW" + "z" * 44])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="peer id"):
        parse_peer(text)


def test_mesh_ids_differ_by_name() -> None:
    assert len(mesh_id("lab")) == 16
    assert mesh_id("lab") == mesh_id("lab")
    assert mesh_id("lab") != mesh_id("Lab")


@pytest.mark.parametrize("name", ["", "a" * 65, "caf\u00e9", "two\nlines"])
def test_mesh_names_are_short_printable_ascii(name: str) -> None:
    with pytest.raises(ValueError, match="mesh name"):
        mesh_id(name)
