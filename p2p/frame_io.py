"""One structure as one frame on a stream, for protocols of a single question and answer."""

from typing import TypeVar

import msgspec

from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.errors import RemoteProtocolError
from coppermesh.p2p.framing import HEADER_BYTES, encode_frame
from coppermesh.p2p.transport import Stream

T = TypeVar("T", bound=msgspec.Struct)


async def send_frame(stream: Stream, value: msgspec.Struct) -> None:
    """Send `value`. Raises Unreachable."""
    await stream.send_all(encode_frame(encode(value)))


async def receive_frame(stream: Stream, kind: type[T], max_bytes: int) -> T:
    """Receive one `kind`; its length is checked before any of it is kept. Raises Unreachable, RemoteProtocolError."""
    header = bytearray(HEADER_BYTES)
    await stream.receive_into(memoryview(header))
    length = int.from_bytes(header, "big")
    if not 0 < length <= max_bytes:
        raise RemoteProtocolError(f"{kind.__name__}: a frame of {length} bytes, 1 to {max_bytes} are allowed")
    body = bytearray(length)
    await stream.receive_into(memoryview(body))
    return decode(kind, bytes(body), max_bytes=max_bytes)
