"""Length-prefixed frames over a byte stream: four bytes of length, big-endian, then that many bytes.

Sans-io: bytes in, frames out. A frame is never empty and never longer than the limit, which is checked as
soon as its length has arrived, before any of the rest is kept.
"""

from coppermesh.p2p.errors import LocalProtocolError, RemoteProtocolError

HEADER_BYTES = 4
MAX_PAYLOAD_BYTES = 0xFFFF_FFFF


def encode_frame(payload: bytes) -> bytes:
    """`payload` with its length in front.

    Raises LocalProtocolError where it is empty or its length takes more than 32 bits. The receiver's limit is
    lower; the layer that knows it checks it.
    """
    if not 0 < len(payload) <= MAX_PAYLOAD_BYTES:
        raise LocalProtocolError(f"a frame holds 1 to {MAX_PAYLOAD_BYTES} bytes, not {len(payload)}")
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


class FrameDecoder:
    """Cuts what a stream delivers into frames. After an error it stays broken: the stream is out of step."""

    def __init__(self, max_bytes: int) -> None:
        if not 0 < max_bytes <= MAX_PAYLOAD_BYTES:
            raise ValueError(f"frame limit {max_bytes}: want 1 to {MAX_PAYLOAD_BYTES}")
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._broken = False

    @property
    def buffered(self) -> int:
        """Bytes held of a frame that is not complete yet: never more than a header and the limit."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """The frames that `data` completes, in order.

        Raises RemoteProtocolError on an empty or oversized frame; frames that the same call completed before
        it are lost with it, since the connection ends anyway.
        """
        if self._broken:
            raise RemoteProtocolError("frames after a broken frame")
        self._buffer += data
        frames: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= HEADER_BYTES:
            body = start + HEADER_BYTES
            length = self._checked(int.from_bytes(self._buffer[start:body], "big"))
            if len(self._buffer) - body < length:
                break
            start = body + length
            frames.append(bytes(self._buffer[body:start]))
        # One deletion per call, not per frame: removing from the front moves the rest.
        del self._buffer[:start]
        return frames

    def finish(self) -> None:
        """Call when the stream ended cleanly. Raises RemoteProtocolError where it ended inside a frame."""
        if self._buffer:
            self._broken = True
            raise RemoteProtocolError(f"stream ended {len(self._buffer)} bytes into a frame")

    def _checked(self, length: int) -> int:
        if 0 < length <= self._max_bytes:
            return length
        self._broken = True
        self._buffer.clear()
        if length == 0:
            raise RemoteProtocolError("empty frame")
        raise RemoteProtocolError(f"frame of {length} bytes, at most {self._max_bytes} are allowed")
