"""Noise for libp2p connections: the library's XX handshake, then a transport phase of our own.

Theory of operation
===================
The handshake (`Noise_XX_25519_ChaChaPoly_SHA256`, libp2p Noise specification) is py-libp2p's. It proves both peer ids
and yields one key per direction. After it every byte on the wire belongs to a *record*: its length, then that many
bytes of ciphertext that end in a 16-byte tag. `record_ciphers` has the two formats, that of libp2p's Noise, so that
either end may be stock, and a faster one between agents of our own. What this layer saves is copies and calls: one
socket read may bring many records and one socket write carries many, and records are sealed from, and opened into,
memory that exists already.

Rules, each of which a test breaks on purpose:

1. A record that is truncated, altered, repeated, left out or out of order does not authenticate, since its number is
   part of the nonce. There is no recovery: the layer is *dead* from then on, and so is the connection.
2. `open_into` decrypts into the caller's buffer. Where the tag is wrong the cipher has already written there, so that
   part is zeroed before the error leaves: unverified plaintext is never seen.
3. A number is taken before it is used and never given back. After any failed or cancelled write nobody knows what the
   other side received, so the layer is dead: it never seals a second text under one number, nor half a record.
4. Numbers end at 2^64 - 2 (the last one is reserved by Noise); a layer that runs out is dead.
5. A length beyond the format's limit kills the layer before anything is kept: memory is two fixed buffers per
   connection, which no other connection ever uses.
6. The end of the stream between two records is reported as an ordinary end. An attacker can cause it, so the layer
   above must know by its own lengths and FINs what was complete (yamux does).
"""

import os

import trio

from coppermesh.p2p.libp2p_pnet import Wire
from coppermesh.p2p.record_ciphers import TAG_BYTES, RecordCipher, RecordError

__all__ = ["RecordError", "RecordReader", "RecordWriter"]

WRITE_BUFFER_BYTES = 640 * 1024
READ_BUFFER_BYTES = 1024 * 1024
LARGE_RECORD = 128 * 1024
NEXT_HEADERS = 64
"""What follows a large record: the small one with the next frame's header, and the length of the one after it."""
SMALL_REST = 4096
MAX_WITHOUT_WAITING = 2 * 1024 * 1024
"""Bytes a busy connection receives before every other task had a turn."""


class RecordWriter:
    """Seals plaintext into a buffer and sends the buffer. One task at a time."""

    def __init__(self, stream: Wire, cipher: RecordCipher) -> None:
        self._stream = stream
        self._cipher = cipher
        self.sealed_size = cipher.sealed_size
        self._buffer = memoryview(bytearray(WRITE_BUFFER_BYTES))
        self._used = 0
        self._sent = 0
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
        if self.sealed_size(len(plaintext)) > self.room:
            raise ValueError(f"{len(plaintext)} bytes of plaintext do not fit in the write buffer")
        step = self._cipher.max_plaintext
        for start in range(0, len(plaintext), step):
            self._seal_one(plaintext[start : start + step])

    def _seal_one(self, plaintext: memoryview) -> None:
        try:
            self._used += self._cipher.seal(plaintext, self._buffer[self._used :])
        except RecordError:
            self._dead = True
            raise

    def flush_now(self) -> bool:
        """Hand the socket what it takes without waiting; whether that was all. Raises RecordError."""
        if self._dead:
            raise RecordError("the connection broke earlier")
        if self._sent < self._used and isinstance(self._stream, trio.SocketStream):
            try:
                self._sent += os.write(self._stream.socket.fileno(), self._buffer[self._sent : self._used])
            except BlockingIOError:
                return False
            except OSError as error:
                self._dead = True
                raise RecordError(f"sending failed: {error}") from error
        if self._sent < self._used:
            return False
        self._sent = self._used = 0
        return True

    async def flush(self) -> None:
        """Send what was sealed. Failed or cancelled: the layer is dead, since part of a record may be out."""
        if self._dead:
            raise RecordError("the connection broke earlier")
        if self._sent == self._used:
            return
        rest = self._buffer[self._sent : self._used]
        self._sent = self._used = 0
        self._dead = True
        try:
            await self._stream.send_all(rest)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise RecordError(f"sending failed: {error.__cause__ or error}") from error
        self._dead = False


class RecordReader:
    """Reads the socket into a buffer and opens the records in it, in order. One task at a time."""

    def __init__(self, stream: Wire, cipher: RecordCipher) -> None:
        self._stream = stream
        self._cipher = cipher
        self._ciphertext_bytes = 0
        self._received_without_waiting = 0
        self._buffer = memoryview(bytearray(READ_BUFFER_BYTES))
        self._start = 0
        self._end = 0
        self._dead = False

    def next_size(self) -> int | None:
        """Plaintext bytes of the next record, None while it has not arrived completely. Raises RecordError."""
        if self._dead:
            raise RecordError("the connection broke earlier")
        available = self._end - self._start
        header_bytes = self._cipher.header_bytes
        if available < header_bytes:
            return None
        try:
            size = self._cipher.ciphertext_size(self._buffer[self._start : self._start + header_bytes])
        except RecordError:
            self._dead = True
            raise
        self._ciphertext_bytes = size
        return size - TAG_BYTES if available >= header_bytes + size else None

    def open(self) -> bytes:
        """The plaintext of the record that `next_size` announced. Raises RecordError."""
        header, ciphertext = self._take()
        try:
            return self._cipher.open(header, ciphertext)
        except RecordError:
            self._dead = True
            raise

    def open_into(self, destination: memoryview) -> None:
        """Decrypt that record into `destination`, exactly as long. On RecordError it holds zeros."""
        header, ciphertext = self._take()
        try:
            self._cipher.open_into(header, ciphertext, destination)
        except RecordError:
            self._dead = True
            raise

    async def fill(self) -> bool:
        """Wait for more bytes; False at an end between two records. Raises RecordError on an end inside one."""
        if self._dead:
            raise RecordError("the connection broke earlier")
        room = self._make_room()
        try:
            received = self._receive_now(room)
            if received is None:
                self._received_without_waiting = 0
                received = await self._stream.socket.recv_into(room)
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

    def _receive_now(self, room: memoryview) -> int | None:
        """What has arrived, without a round through trio; None where that is nothing, or others must run first."""
        if self._received_without_waiting >= MAX_WITHOUT_WAITING or not isinstance(
            self._stream, trio.SocketStream
        ):
            return None
        try:
            received = os.readv(self._stream.socket.fileno(), [room])
        except BlockingIOError:
            return None
        self._received_without_waiting += received
        return received

    def _take(self) -> tuple[memoryview, memoryview]:
        body = self._start + self._cipher.header_bytes
        end = body + self._ciphertext_bytes
        header = self._buffer[self._start : body]
        self._start = end
        return header, self._buffer[body:end]

    def _make_room(self) -> memoryview:
        """Where to receive next: behind what is there, with room for a whole record.

        Of a large record that has begun no more than its rest and the next headers are taken from the socket. So almost
        nothing is left behind it to be moved, and bulk passes through the same few pages, which stay in the cache.
        """
        cipher = self._cipher
        pending = self._end - self._start
        if not pending:
            self._start = self._end = 0
        elif (
            pending <= SMALL_REST
            or len(self._buffer) - self._start < cipher.header_bytes + cipher.max_plaintext + TAG_BYTES
        ):
            rest = bytes(self._buffer[self._start : self._end])
            self._buffer[:pending] = rest
            self._start, self._end = 0, pending
        if pending >= cipher.header_bytes and self._ciphertext_bytes >= LARGE_RECORD:
            limit = self._start + cipher.header_bytes + self._ciphertext_bytes + NEXT_HEADERS
            if self._end < limit:
                return self._buffer[self._end : limit]
        return self._buffer[self._end :]
