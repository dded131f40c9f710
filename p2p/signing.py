"""Keys and signatures: one Ed25519 key per mesh is the peer id there and signs every record.

Theory of operation. What is signed is never the record itself but a short fixed layout, libp2p's signed
envelope (RFC 0002): the record kind's domain, a payload type and a payload, each preceded by its length as a
varint. The payload type is the multicodec of BLAKE3 (0x1e) and the payload the 32-byte BLAKE3 of the record's
body, computed here. So no caller, and no peer, can have this key sign bytes of its choosing, a signature of
one kind never counts for another, and any libp2p implementation can check one.

PyNaCl alone verifies. Implementations differ at the edges of Ed25519, and some accept a signature that
anybody can make for a key of small order; libsodium does not, and `verify` refuses such keys by itself as
well.

The key file is two lines of text, a header and the seed in hexadecimal, readable by its owner only, in a
directory that only its owner can enter. A reader that finds it otherwise refuses it: what others could read
is not a secret.
"""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from blake3 import blake3
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from coppermesh.p2p.errors import IdentityError, LocalProtocolError
from coppermesh.p2p.ids import PeerId

SEED_BYTES = 32
SIGNATURE_BYTES = 64

_DOMAIN_ROOT = "coppermesh/"
_MAX_DOMAIN = 64
_BLAKE3_MULTICODEC = b"\x1e"

_FILE_HEADER = b"coppermesh-key-v1"
_FILE_BYTES = len(_FILE_HEADER) + 1 + 2 * SEED_BYTES + 1

# Every encoding of a point whose order divides 8, by the low 255 bits; the top bit is the sign of x. A
# signature for such a key proves nothing. Tested against the curve arithmetic in tests/unit/test_signing.py.
_SMALL_ORDER_Y = frozenset(
    bytes.fromhex(text)
    for text in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)


class PeerKey:
    """A secret key and the peer it makes. Never shown: `repr` has the peer only, and it cannot be pickled."""

    __slots__ = ("_key", "peer")

    peer: PeerId
    """The public half: this agent's id on its mesh."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise LocalProtocolError(f"a key seed is {SEED_BYTES} bytes, not {len(seed)}")
        self._key = SigningKey(seed)
        self.peer = PeerId(bytes(self._key.verify_key))

    @classmethod
    def generate(cls) -> "PeerKey":
        """A new random key, kept in memory only."""
        return cls(secrets.token_bytes(SEED_BYTES))

    @classmethod
    def load(cls, path: Path) -> "PeerKey":
        """The key in the file `path`.

        Raises IdentityError where it is missing or malformed, not ours, or where others can reach it.
        """
        with _private_directory(path.parent) as directory:
            return cls(_read_seed(directory, path))

    @classmethod
    def load_or_create(cls, path: Path) -> "PeerKey":
        """The key in the file `path`, made (with its directory) where there is none.

        Processes that race to make one all come back with the same key. Raises IdentityError like `load`.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise IdentityError(f"{path.parent}: cannot make the directory: {error.strerror}") from error
        with _private_directory(path.parent) as directory:
            if not _exists(directory, path):
                _write_seed(directory, path, secrets.token_bytes(SEED_BYTES))
            return cls(_read_seed(directory, path))

    def save(self, path: Path) -> None:
        """Keep the key in the file `path`, where there is none yet. Raises IdentityError like `load_or_create`."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise IdentityError(f"{path.parent}: cannot make the directory: {error.strerror}") from error
        with _private_directory(path.parent) as directory:
            if _exists(directory, path):
                raise IdentityError(f"{path}: there is a key already")
            _write_seed(directory, path, bytes(self._key))

    def sign(self, domain: str, body: bytes) -> bytes:
        """The 64-byte signature of a record `body` under its kind's `domain`."""
        return self._key.sign(_signed_bytes(domain, body)).signature

    def libp2p_seed(self) -> bytes:
        """The secret seed, 32 bytes, for the transport's own handshake. Not for logs, files or messages."""
        return bytes(self._key)

    def __repr__(self) -> str:
        return f"PeerKey({self.peer.hex()})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a PeerKey is not pickled: the secret stays in this process")


def verify(peer: PeerId, domain: str, body: bytes, signature: bytes) -> bool:
    """Did `peer` sign `body` under `domain`? Never raises for anything a peer can send."""
    return verify_digest(peer, domain, blake3(body).digest(), signature)


def verify_digest(peer: PeerId, domain: str, digest: bytes, signature: bytes) -> bool:
    """`verify` for a caller that has computed the BLAKE3 of the body itself, from the very bytes it judges."""
    message = _signed_digest(domain, digest)
    if len(signature) != SIGNATURE_BYTES or not is_usable_key(peer):
        return False
    try:
        VerifyKey(peer).verify(message, signature)
    except BadSignatureError:
        return False
    return True


def is_usable_key(peer: PeerId) -> bool:
    """Could a signature by this key mean anything? Not for a wrong length or a point of small order."""
    if len(peer) != 32:
        return False
    return peer[:31] + bytes([peer[31] & 0x7F]) not in _SMALL_ORDER_Y


def _signed_bytes(domain: str, body: bytes) -> bytes:
    return _signed_digest(domain, blake3(body).digest())


def _signed_digest(domain: str, digest: bytes) -> bytes:
    """RFC 0002's layout. All three lengths are below 128, where a varint is the one byte itself."""
    if not (domain.startswith(_DOMAIN_ROOT) and domain.isascii() and len(domain) <= _MAX_DOMAIN):
        raise LocalProtocolError(f"{domain!r} is not a signature domain of this protocol")
    name = domain.encode("ascii")
    return b"".join(
        (
            bytes([len(name)]),
            name,
            bytes([len(_BLAKE3_MULTICODEC)]),
            _BLAKE3_MULTICODEC,
            bytes([len(digest)]),
            digest,
        )
    )


@contextmanager
def _private_directory(path: Path) -> Iterator[int]:
    """A descriptor of the directory, checked to be ours alone, so that what was checked is what is used."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise IdentityError(f"{path}: cannot open the key's directory: {error.strerror}") from error
    try:
        _check_private(os.fstat(descriptor), path, "0700")
        yield descriptor
    finally:
        os.close(descriptor)


def _check_private(status: os.stat_result, path: Path, mode: str) -> None:
    if status.st_uid != os.geteuid():
        raise IdentityError(f"{path}: belongs to user {status.st_uid}; run as that user, or use another home")
    if status.st_mode & 0o077:
        raise IdentityError(f"{path}: others can reach it; if the key is still secret: chmod {mode} {path}")


def _exists(directory: int, path: Path) -> bool:
    try:
        os.stat(path.name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise IdentityError(f"{path}: cannot look at the key: {error.strerror}") from error
    return True


def _read_seed(directory: int, path: Path) -> bytes:
    # O_NONBLOCK: opening a pipe that somebody put there must not wait for its writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path.name, flags, dir_fd=directory)
    except OSError as error:
        raise IdentityError(f"{path}: cannot open the key: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise IdentityError(f"{path}: not a regular file")
        _check_private(status, path, "0600")
        content = os.read(descriptor, _FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    return _parse(content, path)


def _parse(content: bytes, path: Path) -> bytes:
    header, separator, rest = content.partition(b"\n")
    digits, end, nothing = rest.partition(b"\n")
    well_formed = header == _FILE_HEADER and separator and end and not nothing
    # bytes.fromhex takes spaces and capitals: the comparison does not.
    try:
        seed = bytes.fromhex(digits.decode("ascii"))
    except ValueError:
        seed = b""
    if not well_formed or len(seed) != SEED_BYTES or seed.hex().encode() != digits:
        raise IdentityError(f"{path}: not a key file; restore it, or move it away to start as a new peer")
    return seed


def _write_seed(directory: int, path: Path, seed: bytes) -> None:
    """Give `path` this seed unless another process was first: written under a draft's name, then linked."""
    draft = f".{path.name}.{secrets.token_hex(8)}.new"
    try:
        _write_draft(directory, draft, b"%b\n%b\n" % (_FILE_HEADER, seed.hex().encode()))
        try:
            os.link(draft, path.name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        except FileExistsError:
            pass
        finally:
            os.unlink(draft, dir_fd=directory)
        os.fsync(directory)
    except OSError as error:
        raise IdentityError(f"{path}: cannot write the key: {error.strerror}") from error


def _write_draft(directory: int, name: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        # A key file is shorter than any page: a disk with room for some of it has room for all, or says
        # ENOSPC.
        if os.write(descriptor, content) != len(content):
            raise OSError(28, "no space left on device")
        os.fsync(descriptor)
    except BaseException:
        os.unlink(name, dir_fd=directory)
        raise
    finally:
        os.close(descriptor)
