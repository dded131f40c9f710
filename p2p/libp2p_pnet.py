"""A swarm key around a connection: libp2p's private networks (specs/pnet, PSK v1), under multistream and Noise.

Each side sends a random nonce of 24 bytes; everything it sends after that is XORed with the XSalsa20 stream under the
shared 32-byte key and that nonce. Nothing here authenticates: it keeps those without the key from learning or saying
anything at all, and Noise inside it proves who is there. The first bytes inside are always multistream's header, so a
peer with another key is told from garbage at once instead of by a timeout.

XSalsa20 is Salsa20 under a key made of the first 16 bytes of the nonce by HSalsa20 (Bernstein, "Extending the Salsa20
nonce", 2011). libsodium has it with a position, but PyNaCl does not hand that function out; where its library has the
symbol it is called directly, in place and twice as fast. Elsewhere PyCryptodome's Salsa20 does it, with our HSalsa20.
"""

import ctypes
import importlib
import secrets
import struct
from collections.abc import Callable
from typing import Any, TypeAlias

import trio
from blake3 import blake3
from Crypto.Cipher import Salsa20

from coppermesh.p2p.errors import LocalProtocolError, RemoteProtocolError

KEY_BYTES = 32
NONCE_BYTES = 24
KEY_FILE_HEADER = "/key/swarm/psk/1.0.0/\n/base16/\n"
_FIRST_BYTES = b"\x13/multistream/1.0.0\n"
_CONSTANTS = struct.unpack("<4I", b"expand 32-byte k")
_COLUMNS = ((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11))
_ROWS = ((0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14))
_MASK = 0xFFFFFFFF


class WrongSwarmKey(RemoteProtocolError):
    """The other side's swarm key is not ours: it is outside this private mesh, or one side missed a rotation."""


def swarm_key_text(key: bytes) -> str:
    """The key as the file that other libp2p implementations read."""
    return f"{KEY_FILE_HEADER}{key.hex()}\n"


def topic_tag(key: bytes) -> str:
    """What is appended to gossip topics under this key."""
    return blake3(key, derive_key_context="coppermesh 2026 swarm topic v1").digest(8).hex()


def hsalsa20(key: bytes, nonce: bytes) -> bytes:
    """A 32-byte key from a 32-byte key and 16 bytes of nonce."""
    k, n, c = struct.unpack("<8I", key), struct.unpack("<4I", nonce), _CONSTANTS
    x = [c[0], *k[:4], c[1], *n, c[2], *k[4:], c[3]]
    for _ in range(10):
        for a, b, d, e in (*_COLUMNS, *_ROWS):
            x[b] ^= _rotated(x[a] + x[e], 7)
            x[d] ^= _rotated(x[b] + x[a], 9)
            x[e] ^= _rotated(x[d] + x[b], 13)
            x[a] ^= _rotated(x[e] + x[d], 18)
    return struct.pack("<8I", *(x[index] for index in (0, 5, 10, 15, 6, 7, 8, 9)))


def _rotated(value: int, places: int) -> int:
    value &= _MASK
    return ((value << places) | (value >> (32 - places))) & _MASK


def _find_libsodium() -> Callable[..., int] | None:
    """`crypto_stream_xsalsa20_xor_ic(out, in, length, nonce, first block, key)` of PyNaCl's own libsodium."""
    try:
        library = ctypes.CDLL(importlib.import_module("nacl._sodium").__file__)
        found: Any = library.crypto_stream_xsalsa20_xor_ic
    except (ImportError, OSError, AttributeError):
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_ulonglong
    found.argtypes = [pointer, pointer, size, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_char_p]
    found.restype = ctypes.c_int
    return found  # type: ignore[no-any-return]


_XOR: Callable[..., int] | None = _find_libsodium()
_BLOCK = 64


class XSalsa20:
    """The stream cipher; each call goes on where the last one ended."""

    def __init__(self, key: bytes, nonce: bytes, *, xor: Callable[..., int] | None = _XOR) -> None:
        """`xor` None: by PyCryptodome."""
        self._key, self._nonce, self._xor = key, nonce, xor
        self._position = 0
        self._cipher = None if xor else Salsa20.new(key=hsalsa20(key, nonce[:16]), nonce=nonce[16:])

    def encrypt(self, data: bytes | bytearray | memoryview) -> bytearray:
        """A copy of `data`, encrypted or decrypted: it is the same."""
        copy = bytearray(data)
        self.in_place(memoryview(copy))
        return copy

    def in_place(self, view: memoryview) -> None:
        """Encrypt or decrypt memory where it is."""
        if self._cipher is not None:
            self._cipher.encrypt(bytes(view), output=view)
            return
        # Inside a block: the rest of it by hand, so that the bulk begins where a block does.
        begun = self._position % _BLOCK
        head = min(len(view), _BLOCK - begun) if begun else 0
        if head:
            block = bytearray(_BLOCK)
            self._call(memoryview(block), self._position // _BLOCK)
            for index in range(head):
                view[index] ^= block[begun + index]
        if len(view) > head:
            self._call(view[head:], (self._position + head) // _BLOCK)
        self._position += len(view)

    def _call(self, view: memoryview, block: int) -> None:
        assert self._xor is not None
        memory = (ctypes.c_char * len(view)).from_buffer(view)
        address = ctypes.addressof(memory)
        self._xor(address, address, len(view), self._nonce, block, self._key)


class SwarmStream:
    """A TCP stream inside a swarm key. Made by `enter_swarm`. `socket` is itself, for readers into memory."""

    def __init__(self, stream: trio.SocketStream, key: bytes, nonce: bytes) -> None:
        self._stream = stream
        self._key = key
        self._sending = XSalsa20(key, nonce)
        self._receiving: XSalsa20 | None = None
        self._unchecked = _FIRST_BYTES

    @property
    def socket(self) -> "SwarmStream":
        """What `recv_into` is called on."""
        return self

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send. Failed or cancelled: the stream is of no more use, as with any."""
        await self._stream.send_all(self._sending.encrypt(data))

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """At least one byte, b"" at the end. Raises WrongSwarmKey, and what a SocketStream raises."""
        data = bytearray(max_bytes)
        return bytes(data[: await self.recv_into(memoryview(data))])

    async def recv_into(self, buffer: memoryview) -> int:
        """Receive into memory and decrypt there; 0 at the end. Raises WrongSwarmKey, OSError, trio's own errors."""
        if self._receiving is None and not await self._receive_nonce():
            return 0
        assert self._receiving is not None
        count = await self._stream.socket.recv_into(buffer)
        part = buffer[:count]
        self._receiving.in_place(part)
        if self._unchecked:
            self._check(bytes(part[: len(self._unchecked)]))
        return count

    async def _receive_nonce(self) -> bool:
        nonce = bytearray()
        while len(nonce) < NONCE_BYTES:
            piece = await self._stream.socket.recv(NONCE_BYTES - len(nonce))
            if not piece:
                return False
            nonce += piece
        self._receiving = XSalsa20(self._key, bytes(nonce))
        return True

    def _check(self, first: bytes) -> None:
        if not self._unchecked.startswith(first):
            raise WrongSwarmKey("its swarm key is another one: it is not in this private mesh (any more)")
        self._unchecked = self._unchecked[len(first) :]

    async def aclose(self) -> None:
        """Close the TCP stream."""
        await self._stream.aclose()


Wire: TypeAlias = trio.SocketStream | SwarmStream
"""What Noise runs on."""


async def enter_swarm(stream: trio.SocketStream, key: bytes | None) -> Wire:
    """The stream inside the swarm key; as it is where there is none."""
    if key is None:
        return stream
    if len(key) != KEY_BYTES:
        raise LocalProtocolError(f"a swarm key is {KEY_BYTES} bytes, not {len(key)}")
    nonce = secrets.token_bytes(NONCE_BYTES)
    await stream.send_all(nonce)
    return SwarmStream(stream, key, nonce)
