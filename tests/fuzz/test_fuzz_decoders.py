"""Fuzz targets, one per decoder: whatever the bytes, a decoder answers with a value or with the one error it states.

The default run gives each target some hundred inputs through hypothesis: random bytes, random MessagePack, and the
valid vectors with a few bytes changed. For a longer hunt run this file: it loops over all targets, prints the input
that broke one as hexadecimal, and ends with status 1.

    python tests/fuzz/test_fuzz_decoders.py --seconds 600 --seed 1
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coppermesh.agent.traces import check_chain, open_recorded
from coppermesh.p2p.announcements import AnnouncementBook, Verdict
from coppermesh.p2p.blob_streams import BlobAnswer, BlobHeader
from coppermesh.p2p.certificates import MEMBERSHIP_CODES
from coppermesh.p2p.channel import Frame
from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.envelope import from_bytes, open_record, open_verified, to_bytes
from coppermesh.p2p.errors import IdentityError, MeshError, Refused, RemoteProtocolError
from coppermesh.p2p.framing import FrameDecoder
from coppermesh.p2p.ids import format_peer, mesh_id, parse_peer
from coppermesh.p2p.invitation import Invitation, invitation_text, read_invitation
from coppermesh.p2p.membership import MembershipBook
from coppermesh.p2p.membership_messages import MAX_CARD_BYTES
from coppermesh.p2p.membership_records import MembershipNotice, RevocationNotice
from coppermesh.p2p.messages import MAX_FRAME_BYTES, ChallengeReply, Message
from coppermesh.p2p.receipt_file import check_receipt_file, decode_receipt_file, encode_receipt_file
from coppermesh.p2p.records import Receipt, Record, SignedRecord, Trace
from coppermesh.p2p.signing import PeerKey, verify

Target = Callable[[bytes], None]

DATA = Path(__file__).parents[1] / "vectors" / "data"
NOW_US = 1_800_000_000_000_000
KEY = PeerKey(bytes([1]) * 32)


def vector(name: str) -> bytes:
    return bytes.fromhex((DATA / name).read_text().partition("\n\n")[2])


RECEIPT = open_record(Receipt, from_bytes(vector("signed-good-receipt.txt")))
TRACE = open_record(Trace, from_bytes(vector("signed-good-trace.txt"))).record


# Targets


def structure_target(kind: Any) -> Target:
    """`decode` gives back the very bytes, or refuses."""

    def target(data: bytes) -> None:
        with suppress(RemoteProtocolError):
            assert encode(decode(kind, data, max_bytes=MAX_FRAME_BYTES)) == data

    return target


def signed_target(kind: type[Record]) -> Target:
    """As received; and with a signature that is valid, so that hostile bodies reach the decoder."""

    def target(data: bytes) -> None:
        with suppress(RemoteProtocolError):
            assert to_bytes(open_record(kind, from_bytes(data)).signed) == data
        signed = SignedRecord(data, KEY.peer, KEY.sign(kind.DOMAIN, data))
        with suppress(RemoteProtocolError):
            assert encode(open_record(kind, signed).record) == data
        with suppress(RemoteProtocolError):
            open_verified(kind, signed)

    return target


def verify_target(data: bytes) -> None:
    """Any key and signature are judged without an exception, and none of these is genuine."""
    assert not verify(KEY.peer, Receipt.DOMAIN, b"body", data)
    assert not verify(type(KEY.peer)(data), Receipt.DOMAIN, b"body", bytes(64))


def announcement_target(data: bytes) -> None:
    book = AnnouncementBook(mesh_id("vectors"))
    first = book.offer(data, NOW_US)
    second = book.offer(data, NOW_US)
    assert second is (Verdict.REPLAYED if first is Verdict.ACCEPTED else first)
    assert len(book.current(NOW_US)) == (1 if first is Verdict.ACCEPTED else 0)


def receipt_file_target(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        parts = decode_receipt_file(data)
        assert encode_receipt_file(parts.receipt, parts.countersignature) == data
        check_receipt_file(data)


def challenge_target(data: bytes) -> None:
    """An answer to a challenge as received; and a chain of any bytes under a Trace that is genuine."""
    with suppress(RemoteProtocolError):
        open_recorded(decode(ChallengeReply, data, max_bytes=MAX_FRAME_BYTES), RECEIPT)
    with suppress(RemoteProtocolError):
        digests = check_chain(TRACE, RECEIPT.record, data)
        assert digests.to_bytes() == data


def frames_target(data: bytes) -> None:
    """However the stream is cut, the same frames or the same refusal."""
    assert frames_of(data, 1) == frames_of(data, max(1, len(data))) == frames_of(data, 7)


def frames_of(data: bytes, step: int) -> list[bytes] | None:
    decoder = FrameDecoder(64)
    frames: list[bytes] = []
    try:
        for start in range(0, len(data), step):
            frames += decoder.feed(data[start : start + step])
            assert decoder.buffered <= 64 + 4
        decoder.finish()
    except RemoteProtocolError:
        return None
    return frames


def peer_text_target(data: bytes) -> None:
    text = data.decode("latin-1")
    with suppress(ValueError):
        assert format_peer(parse_peer(text)) == text


def key_file_target(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "key"
        path.touch(mode=0o600)
        path.write_bytes(data)
        with suppress(IdentityError):
            key = PeerKey.load(path)
            assert path.read_text() == f"coppermesh-key-v1\n{key.libp2p_seed().hex()}\n"


def invitation_target(data: bytes) -> None:
    text = data.decode("latin-1")
    with suppress(MeshError):
        assert invitation_text(read_invitation(text)) == "".join(text.split()).lower()


def chain_target(data: bytes) -> None:
    """A chain of whatever certificates, none of them by the root key: refused with a code, never a crash."""
    book = MembershipBook(KEY.peer, mesh_id("lab"))
    with suppress(RemoteProtocolError):
        notice = decode(MembershipNotice, data, max_bytes=MAX_CARD_BYTES)
        with pytest.raises(Refused) as error:
            book.check(notice.chain, KEY.peer, NOW_US)
        assert error.value.code in MEMBERSHIP_CODES


def all_targets() -> dict[str, Target]:
    structures: list[type[msgspec.Struct]] = [
        SignedRecord,
        Frame,
        BlobHeader,
        BlobAnswer,
        Invitation,
        RevocationNotice,
        MembershipNotice,
        *Message.__subclasses__(),
        *Record.__subclasses__(),
    ]
    targets = {f"structure-{kind.__name__}": structure_target(kind) for kind in structures}
    targets |= {f"signed-{kind.__name__}": signed_target(kind) for kind in Record.__subclasses__()}
    return targets | {
        "verify": verify_target,
        "announcement": announcement_target,
        "receipt-file": receipt_file_target,
        "challenge": challenge_target,
        "frames": frames_target,
        "peer-text": peer_text_target,
        "key-file": key_file_target,
        "invitation": invitation_target,
        "chain": chain_target,
    }


TARGETS = all_targets()


# Inputs


def seeds() -> list[bytes]:
    """The vectors' inputs, and the bodies inside the signed ones."""
    found = []
    for path in sorted(DATA.glob("*.txt")):
        data = bytes.fromhex(path.read_text().partition("\n\n")[2])
        found.append(data)
        with suppress(RemoteProtocolError):
            found.append(from_bytes(data).body)
    found.append(f"coppermesh-key-v1\n{'ab' * 32}\n".encode())
    return [data for data in found if len(data) <= 2048]


SEEDS = seeds()
EDGES = [
    0x00,
    0x01,
    0x7F,
    0x80,
    0x90,
    0xA0,
    0xC0,
    0xC1,
    0xC4,
    0xC7,
    0xCB,
    0xCC,
    0xCF,
    0xD3,
    0xD9,
    0xDC,
    0xDD,
    0xFF,
]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to four small changes."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        position = rng.randint(0, len(result))
        match rng.randint(0, 5):
            case 0 if position < len(result):
                result[position] ^= 1 << rng.randint(0, 7)
            case 1 if position < len(result):
                result[position] = rng.choice(EDGES)
            case 2:
                result[position:position] = bytes([rng.choice(EDGES)])
            case 3:
                del result[position : position + rng.randint(1, 8)]
            case 4:
                other = rng.choice(SEEDS)
                start = rng.randint(0, len(other))
                result[position:position] = other[start : start + rng.randint(1, 40)]
            case _:
                del result[position:]
    return bytes(result)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.binary(max_size=70)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda parts: st.lists(parts, max_size=14),
    max_leaves=40,
)
inputs = (
    st.binary(max_size=300)
    | st.builds(msgpack.packb, values)
    | st.builds(mutated, st.sampled_from(SEEDS), st.randoms(use_true_random=False))
)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None)
@given(data=inputs)
def test_decoder_survives(name: str, data: bytes) -> None:
    TARGETS[name](data)


def test_every_seed_through_every_target() -> None:
    for target in TARGETS.values():
        for data in SEEDS:
            target(data)


# The long hunt


def hunt(seconds: float, seed: int) -> int:
    rng = random.Random(seed)
    end = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < end:
        data = mutated(rng.choice(SEEDS), rng) if rng.random() < 0.9 else rng.randbytes(rng.randint(0, 400))
        for name, target in TARGETS.items():
            tried += 1
            try:
                target(data)
            except Exception as error:  # noqa: BLE001
                # Whatever it is, it is the finding: say what input did it.
                sys.stderr.write(f"{name}: {error!r}\ninput: {data.hex()}\n")
                return 1
    sys.stderr.write(f"{tried} inputs, nothing broke\n")
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description="fuzz every decoder until the time is up or one breaks")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.exit(hunt(options.seconds, options.seed))


if __name__ == "__main__":
    main()
