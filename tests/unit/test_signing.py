import copy
import os
import pickle
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from coppermesh.p2p.errors import IdentityError, LocalProtocolError
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.records import Receipt
from coppermesh.p2p.signing import PeerKey, is_usable_key, verify

DOMAIN = Receipt.DOMAIN
KEY = PeerKey(bytes([7]) * 32)

# Ed25519 (RFC 8032): -x^2 + y^2 = 1 + D x^2 y^2 over the integers modulo P, and the order L of the base point.
P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
L = 2**252 + 27742317777372353535851937790883648493
Point = tuple[int, int]


def add(one: Point, two: Point) -> Point:
    (x1, y1), (x2, y2) = one, two
    product = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + product, -1, P) % P
    y = (y1 * y2 + x1 * x2) * pow(1 - product, -1, P) % P
    return x, y


def times(count: int, point: Point) -> Point:
    result = (0, 1)
    while count:
        if count & 1:
            result = add(result, point)
        point = add(point, point)
        count >>= 1
    return result


def point_with(y: int) -> Point | None:
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    return (x, y) if x * x % P == square else None


def encodings(y: int) -> set[bytes]:
    """Every 32 bytes that some decoder reads as this y: reduced or not, with either sign of x."""
    values = {y, y + P} if y + P < 2**255 else {y}
    return {(value | sign << 255).to_bytes(32, "little") for value in values for sign in (0, 1)}


def small_order_encodings() -> set[bytes]:
    # L times any point has an order that divides 8; a few points give all eight.
    points = {times(L, point) for y in range(2, 40) if (point := point_with(y)) is not None}
    points |= {add(one, two) for one in points for two in points}
    return {text for _, y in points for text in encodings(y)}


def test_a_signature_verifies() -> None:
    signature = KEY.sign(DOMAIN, b"body")
    assert len(signature) == 64
    assert verify(KEY.peer, DOMAIN, b"body", signature)
    assert not verify(KEY.peer, DOMAIN, b"Body", signature)
    assert not verify(KEY.peer, "coppermesh/bid/1", b"body", signature)
    assert not verify(PeerKey.generate().peer, DOMAIN, b"body", signature)


def test_libp2p_validates_our_signature() -> None:
    from libp2p.crypto.ed25519 import Ed25519PublicKey
    from libp2p.peer.envelope import Envelope

    from coppermesh.p2p.envelope import record_id

    key = Ed25519PublicKey.from_bytes(KEY.peer)
    envelope = Envelope(key, b"\x1e", record_id(b"body"), KEY.sign(DOMAIN, b"body"))
    envelope.validate(DOMAIN)
    with pytest.raises(ValueError, match="signature"):
        envelope.validate("coppermesh/bid/1")


def test_libp2p_makes_the_same_key_of_the_seed() -> None:
    from libp2p.crypto.ed25519 import create_new_key_pair

    assert create_new_key_pair(KEY.libp2p_seed()).public_key.to_bytes() == KEY.peer


def test_keys_of_small_order_are_refused_in_every_encoding() -> None:
    small = small_order_encodings()
    assert len(small) == 14
    assert [text.hex() for text in small if is_usable_key(PeerId(text))] == []
    forged = b"\x01" + bytes(63)
    assert not any(
        verify(PeerId(text), DOMAIN, body, forged) for text in small for body in (b"a", b"b", b"c")
    )


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    assert not verify(PeerId(bytes([9]) * length), DOMAIN, b"", bytes(64))


@pytest.mark.parametrize(
    "domain", ["", "libp2p-peer-record", "coppermesh/" + "x" * 60, "coppermesh/caf\u00e9/1"]
)
def test_only_our_domains_are_signed(domain: str) -> None:
    with pytest.raises(LocalProtocolError, match="domain"):
        KEY.sign(domain, b"")


def test_the_secret_is_not_shown() -> None:
    secret = KEY.libp2p_seed()
    shown = repr(KEY) + str(KEY) + f"{KEY}"
    assert KEY.peer.hex() in shown
    assert secret.hex() not in shown
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="stays in this process"):
            leak(KEY)
    assert not hasattr(KEY, "__dict__")


# The key file


def test_a_key_is_made_once_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "home" / "key"
    first = PeerKey.load_or_create(path)
    assert PeerKey.load_or_create(path).peer == first.peer
    assert PeerKey.load(path).libp2p_seed() == first.libp2p_seed()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["key"]


def test_the_file_is_a_header_and_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = PeerKey.load_or_create(path)
    assert path.read_text() == f"coppermesh-key-v1\n{key.libp2p_seed().hex()}\n"


def test_a_strict_umask_changes_nothing(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        PeerKey.load_or_create(tmp_path / "open" / "key")
        os.umask(0o077)
        PeerKey.load_or_create(tmp_path / "closed" / "key")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((tmp_path / name / "key").stat().st_mode) for name in ("open", "closed")}
    assert modes == {0o600}


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="key: cannot open"):
        PeerKey.load(tmp_path / "key")
    with pytest.raises(IdentityError, match="cannot open the key's directory"):
        PeerKey.load(tmp_path / "nowhere" / "key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o620])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    PeerKey.load_or_create(path)
    path.chmod(mode)
    for open_key in (PeerKey.load, PeerKey.load_or_create):
        with pytest.raises(IdentityError, match="chmod 0600"):
            open_key(path)


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o770])
def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path, mode: int) -> None:
    home = tmp_path / "home"
    PeerKey.load_or_create(home / "key")
    home.chmod(mode)
    for open_key in (PeerKey.load, PeerKey.load_or_create):
        with pytest.raises(IdentityError, match="chmod 0700"):
            open_key(home / "key")


def test_a_key_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    PeerKey.load_or_create(path)
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(IdentityError, match=f"belongs to user {owner}"):
        PeerKey.load(path)


@pytest.mark.parametrize("kind", ["link", "dangling-link", "directory", "pipe", "socket"])
def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "key"
    listener = socket.socket(socket.AF_UNIX)
    if kind == "link":
        PeerKey.load_or_create(tmp_path / "real")
        path.symlink_to(tmp_path / "real")
    elif kind == "dangling-link":
        path.symlink_to(tmp_path / "nothing")
    elif kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path, 0o600)
    else:
        listener.bind(str(path))
    with listener, pytest.raises(IdentityError):
        PeerKey.load_or_create(path)
    assert not (tmp_path / "nothing").exists()


SEED_LINE = "ab" * 32


@pytest.mark.parametrize(
    "content",
    [
        "",
        SEED_LINE,
        f"{SEED_LINE}\n",
        "coppermesh-key-v1\n",
        f"coppermesh-key-v1\n{SEED_LINE}",
        f"coppermesh-key-v1\n{SEED_LINE}\n\n",
        f"coppermesh-key-v1\n{SEED_LINE}\nmore\n",
        f"coppermesh-key-v2\n{SEED_LINE}\n",
        f"coppermesh-key-v1\r\n{SEED_LINE}\r\n",
        f"coppermesh-key-v1\n{SEED_LINE.upper()}\n",
        f"coppermesh-key-v1\n{SEED_LINE[:-2]}\n",
        f"coppermesh-key-v1\n{SEED_LINE[:-1]}g\n",
        f"coppermesh-key-v1\n{SEED_LINE[:-1]} \n",
        f"coppermesh-key-v1\n{SEED_LINE[:-1]}\u00e9\n",
        "x" * 100_000,
    ],
)
def test_a_malformed_file_is_refused_and_not_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_bytes(content.encode())
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="not a key file"):
        PeerKey.load_or_create(path)
    assert path.read_bytes() == content.encode()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(descriptor: int, data: bytes) -> int:
        return original(descriptor, data[:40])

    original = os.write
    monkeypatch.setattr(os, "write", write_half)
    with pytest.raises(IdentityError, match="cannot write the key"):
        PeerKey.load_or_create(tmp_path / "key")
    assert os.listdir(tmp_path) == []


RACER = """
import sys
from pathlib import Path
from coppermesh.p2p.signing import PeerKey
print("ready", flush=True)
sys.stdin.readline()
print(PeerKey.load_or_create(Path(sys.argv[1])).peer.hex())
"""


def test_processes_that_race_agree(tmp_path: Path) -> None:
    path = tmp_path / "home" / "key"
    command = [sys.executable, "-c", RACER, str(path)]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    answers = {racer.communicate(timeout=30)[0].strip() for racer in racers}
    assert answers == {PeerKey.load(path).peer.hex()}
    assert os.listdir(path.parent) == ["key"]


def test_who_comes_second_takes_the_key_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    winner = PeerKey.load_or_create(path)
    # The loser looked before the winner linked its file.
    monkeypatch.setattr("coppermesh.p2p.signing._exists", lambda directory, path: False)
    assert PeerKey.load_or_create(path).peer == winner.peer
    assert os.listdir(tmp_path) == ["key"]
