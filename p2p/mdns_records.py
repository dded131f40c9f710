"""What an agent says of itself on its local network: the TXT record of libp2p's mDNS discovery (pure).

Source: libp2p mDNS specification. A peer is one instance of the service `_p2p._udp.local` under a random name; its TXT
record holds one string `dnsaddr=ADDRESS` for each full address. We add `coppermesh=HINT`. The hint tells members of one
mesh from others without naming the mesh: it is a keyed hash of mesh and peer, so whoever knows the mesh can check it,
and nobody else can link the meshes of one machine by it, or learn which mesh a stranger is in.

Anybody on the network may say anything, so nothing here is believed: it yields addresses that are worth a dial, and the
dial proves the key.
"""

from collections.abc import Sequence

from blake3 import blake3

from coppermesh.p2p.addresses import parse_address
from coppermesh.p2p.errors import Unreachable
from coppermesh.p2p.ids import MeshId, PeerId

SERVICE = "_p2p._udp.local."
MAX_ADDRESSES = 8
MAX_TEXT_BYTES = 4096
_ADDRESS = b"dnsaddr="
_HINT = b"coppermesh="
_CONTEXT = "coppermesh 2026 mdns hint v1"


def mesh_hint(mesh: MeshId, peer: PeerId) -> str:
    """16 hexadecimal digits that only who knows the mesh can tell from random ones."""
    return blake3(mesh + peer, derive_key_context=_CONTEXT).digest(8).hex()


def make_text(mesh: MeshId, peer: PeerId, addresses: Sequence[str]) -> bytes:
    """The TXT record's data: strings of at most 255 bytes, each behind its length."""
    strings = [_ADDRESS + address.encode("ascii") for address in addresses[:MAX_ADDRESSES]]
    strings.append(_HINT + mesh_hint(mesh, peer).encode("ascii"))
    return b"".join(bytes([len(string)]) + string for string in strings if len(string) < 256)


def read_text(data: bytes, mesh: MeshId) -> tuple[PeerId, list[str]] | None:
    """Who says that he is where; None where that is no member of `mesh`, or cannot be read.

    All addresses must be of one peer: a record is one peer's.
    """
    if len(data) > MAX_TEXT_BYTES:
        return None
    addresses: list[str] = []
    hints: list[bytes] = []
    peers: set[PeerId] = set()
    for string in _strings(data):
        if string.startswith(_HINT):
            hints.append(string.removeprefix(_HINT))
        elif string.startswith(_ADDRESS) and len(addresses) < MAX_ADDRESSES:
            try:
                text = string.removeprefix(_ADDRESS).decode("ascii")
                peers.add(parse_address(text).peer)
            except (UnicodeDecodeError, Unreachable):
                continue  # an address that we cannot dial, such as one of QUIC
            addresses.append(text)
    if len(peers) != 1:
        return None
    (peer,) = peers
    return (peer, addresses) if mesh_hint(mesh, peer).encode("ascii") in hints else None


def _strings(data: bytes) -> list[bytes]:
    """The character strings of a TXT record, as far as they are whole (RFC 1035, section 3.3.14)."""
    strings = []
    at = 0
    while at < len(data):
        end = at + 1 + data[at]
        if end > len(data):
            break
        strings.append(data[at + 1 : end])
        at = end
    return strings
