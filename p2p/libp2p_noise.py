"""Noise for libp2p connections: the library's XX handshake, then a transport phase of our own.

Theory of operation
===================
The handshake (`Noise_XX_25519_ChaChaPoly_SHA256`, libp2p Noise specification) is py-libp2p's. It proves both peer ids
and yields one ChaCha20-Poly1305 key per direction. After it every byte on the wire belongs to a *record*:

    2 bytes  big-endian length n of the ciphertext, 16 <= n <= 65535
    n bytes  ciphertext: up to 65519 bytes of plaintext and a 16-byte tag

The nonce of a record is 4 zero bytes and its number as 8 little-endian bytes; numbers start at 0 in each direction
and are never sent. That is what stock libp2p speaks, so either end may be stock. What differs is the cost: one socket
read may bring many records and one socket write carries many, and records are sealed from, and opened into, memory
that exists already.

Rules, each of which a test breaks on purpose:

1. A record that is truncated, altered, repeated, left out or out of order does not authenticate, since its number is
   part of the nonce. There is no recovery: the layer is *dead* from then on, and so is the connection.
2. `open_into` decrypts into the caller's buffer. Where the tag is wrong the cipher has already written there, so that
   part is zeroed before the error leaves: unverified plaintext is never seen.
3. A number is taken before it is used and never given back. After any failed or cancelled write nobody knows what the
   other side received, so the layer is dead: it never seals a second text under one number, nor half a record.
4. Numbers end at 2^64 - 2 (the last one is reserved by Noise); a layer that runs out is dead.
5. Nothing is believed about a length but what fits in 16 bits: memory is two fixed buffers per connection.
6. The end of the stream between two records is reported as an ordinary end. An attacker can cause it, so the layer
   above must know by its own lengths and FINs what was complete (yamux does).
"""

import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from coppermesh.p2p.libp2p_pnet import Wire

TAG_BYTES = 16
LENGTH_BYTES = 2
MAX_CIPHERTEXT = 65535
MAX_PLAINTEXT = MAX_CIPHERTEXT - TAG_BYTES
LAST_NONCE = 2**64 - 2
WRITE_BUFFER_BYTES = 512 * 1024
READ_BUFFER_BYTES = 512 * 1024
_RECORD_OVERHEAD = LENGTH_BYTES + TAG_BYTES


class RecordError(Exception):
    """The encrypted connection is dead: a record was bad, or a read or write failed half-way."""


def sealed_size(plaintext_bytes: int) -> int:
    """Bytes on the wire for that many bytes of plaintext sealed at once."""
    records = -(-plaintext_bytes // MAX_PLAINTEXT)
    return plaintext_bytes + records * _RECORD_OVERHEAD


class RecordWriter:
    """Seals plaintext into a buffer and sends the buffer. One task at a time."""

    def __init__(self, stream: Wire, key: bytes, *, first_nonce: int = 0) -> None:
        self._stream = stream
        self._cipher = ChaCha20Poly1305(key)
        self._nonce = first_nonce
        self._buffer = memoryview(bytearray(WRITE_BUFFER_BYTES))
        self._used = 0
        self._dead = False

    @property
    def room(self) -> int:
        """Bytes of sealed records that still fit before the next `flush`."""
        return len(self._buffer) - self._used

    def seal(self, plaintext: memoryview) -> None:
        """Encrypt all of `plaintext` into the buffer, which must have room for `sealed_size(len(plaintext))` bytes.

        Synchronous: the caller's memory is not looked at again. Raises RecordError when the layer is dead.
        """
        if self._dead:
            raise RecordError("the connection broke earlier")
        if sealed_size(len(plaintext)) > self.room:
            raise ValueError(f"{len(plaintext)} bytes of plaintext do not fit in the write buffer")
        for start in range(0, len(plaintext), MAX_PLAINTEXT):
            self._seal_one(plaintext[start : start + MAX_PLAINTEXT])

    def _seal_one(self, plaintext: memoryview) -> None:
        if self._nonce > LAST_NONCE:
            self._dead = True
            raise RecordError("this connection has used up its nonces")
        nonce = _nonce_bytes(self._nonce)
        self._nonce += 1
        size = len(plaintext) + TAG_BYTES
        body = self._used + LENGTH_BYTES
        self._buffer[self._used : body] = size.to_bytes(LENGTH_BYTES, "big")
        self._cipher.encrypt_into(nonce, plaintext, None, self._buffer[body : body + size])
        self._used = body + size

    async def flush(self) -> None:
        """Send what was sealed. Failed or cancelled: the layer is dead, since part of a record may be out."""
        if self._dead:
            raise RecordError("the connection broke earlier")
        used, self._used = self._used, 0
        if not used:
            return
        self._dead = True
        try:
            await self._stream.send_all(self._buffer[:used])
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise RecordError(f"sending failed: {error.__cause__ or error}") from error
        self._dead = False


class RecordReader:
    """Reads the socket into a buffer and opens the records in it, in order. One task at a time."""

    def __init__(self, stream: Wire, key: bytes, *, first_nonce: int = 0) -> None:
        self._stream = stream
        self._cipher = ChaCha20Poly1305(key)
        self._nonce = first_nonce
        self._buffer = memoryview(bytearray(READ_BUFFER_BYTES))
        self._start = 0
        self._end = 0
        self._dead = False

    def next_size(self) -> int | None:
        """Plaintext bytes of the next record, None while it has not arrived completely. Raises RecordError."""
        if self._dead:
            raise RecordError("the connection broke earlier")
        available = self._end - self._start
        if available < LENGTH_BYTES:
            return None
        size = self._ciphertext_size()
        if size < TAG_BYTES:
            self._dead = True
            raise RecordError(f"a record of {size} bytes cannot hold its tag")
        return size - TAG_BYTES if available >= LENGTH_BYTES + size else None

    def open(self) -> bytes:
        """The plaintext of the record that `next_size` announced. Raises RecordError."""
        nonce, ciphertext = self._take()
        try:
            return self._cipher.decrypt(nonce, ciphertext, None)
        except InvalidTag:
            self._dead = True
            raise RecordError("a record did not authenticate") from None

    def open_into(self, destination: memoryview) -> None:
        """Decrypt that record into `destination`, exactly as long. On RecordError it holds zeros."""
        nonce, ciphertext = self._take()
        try:
            self._cipher.decrypt_into(nonce, ciphertext, None, destination)
        except InvalidTag:
            self._dead = True
            destination[:] = bytes(len(destination))
            raise RecordError("a record did not authenticate") from None

    async def fill(self) -> bool:
        """Wait for more bytes; False at an end between two records. Raises RecordError on an end inside one."""
        if self._dead:
            raise RecordError("the connection broke earlier")
        self._make_room()
        try:
            received = await self._stream.socket.recv_into(self._buffer[self._end :])
        except (OSError, trio.ClosedResourceError) as error:
            self._dead = True
            raise RecordError(f"receiving failed: {error}") from error
        if received:
            self._end += received
            return True
        self._dead = True
        if self._start != self._end:
            raise RecordError("the connection ended inside a record")
        return False

    def _ciphertext_size(self) -> int:
        return int.from_bytes(self._buffer[self._start : self._start + LENGTH_BYTES], "big")

    def _take(self) -> tuple[bytes, memoryview]:
        if self._nonce > LAST_NONCE:
            self._dead = True
            raise RecordError("this connection has used up its nonces")
        size = self._ciphertext_size()
        body = self._start + LENGTH_BYTES
        nonce = _nonce_bytes(self._nonce)
        self._nonce += 1
        self._start = body + size
        return nonce, self._buffer[body : body + size]

    def _make_room(self) -> None:
        if self._start == self._end:
            self._start = self._end = 0
        elif len(self._buffer) - self._start < LENGTH_BYTES + MAX_CIPHERTEXT:
            rest = bytes(self._buffer[self._start : self._end])
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)


def _nonce_bytes(number: int) -> bytes:
    return b"\0\0\0\0" + number.to_bytes(8, "little")
