"""multistream-select 1.0: agree on one protocol over a byte channel (libp2p connections specification).

A message is a varint length, that many bytes, of which the last is a newline. Both sides first send
`/multistream/1.0.0`; then the one that proposes names a protocol and the other repeats it, or answers `na`.
The proposer sends its first two messages at once, which every implementation accepts and saves a round trip.
"""

from collections.abc import Container
from typing import Protocol

from coppermesh.p2p.errors import Refused, RemoteProtocolError

HEADER = "/multistream/1.0.0"
MAX_MESSAGE = 1024
MAX_PROPOSALS = 16


class Channel(Protocol):
    """What a negotiation runs over."""

    async def read_exactly(self, count: int) -> bytes:
        """Exactly `count` bytes, not one more taken. Raises Unreachable when the channel ends before."""

    async def write(self, data: bytes) -> None:
        """Send everything."""


def encode_message(text: str) -> bytes:
    """One message as it travels."""
    body = text.encode() + b"\n"
    if len(body) > MAX_MESSAGE:
        raise ValueError(f"protocol id of {len(body)} bytes: at most {MAX_MESSAGE} are allowed")
    if len(body) < 128:
        return bytes([len(body)]) + body
    return bytes([len(body) & 127 | 128, len(body) >> 7]) + body


async def read_message(channel: Channel) -> str:
    """The next message. Raises RemoteProtocolError on anything that is not one."""
    first = (await channel.read_exactly(1))[0]
    size = first & 127
    if first & 128:
        second = (await channel.read_exactly(1))[0]
        if second == 0 or second & 128:
            raise RemoteProtocolError("multistream: malformed message length")
        size |= second << 7
    if not 0 < size <= MAX_MESSAGE:
        raise RemoteProtocolError(f"multistream: message of {size} bytes")
    body = await channel.read_exactly(size)
    if body[-1:] != b"\n" or not body.isascii():
        raise RemoteProtocolError("multistream: message is no line of ASCII")
    return body[:-1].decode("ascii")


async def propose(channel: Channel, *protocols: str) -> str:
    """Ask for the first of `protocols` that the other side speaks. Raises Refused when it speaks none."""
    first = protocols[0]
    await channel.write(encode_message(HEADER) + encode_message(first))
    if await read_message(channel) != HEADER:
        raise RemoteProtocolError("multistream: the other side speaks another version")
    for protocol in protocols:
        if protocol is not first:
            await channel.write(encode_message(protocol))
        answer = await read_message(channel)
        if answer == protocol:
            return protocol
        if answer != "na":
            raise RemoteProtocolError("multistream: the answer is neither the proposal nor `na`")
    raise Refused("unknown-protocol", f"the other side does not speak {' or '.join(protocols)}")


async def respond(channel: Channel, spoken: Container[str]) -> str | None:
    """Answer proposals until one is in `spoken`; None when the other side gives up or asks too often."""
    await channel.write(encode_message(HEADER))
    if await read_message(channel) != HEADER:
        raise RemoteProtocolError("multistream: the other side speaks another version")
    for _ in range(MAX_PROPOSALS):
        proposal = await read_message(channel)
        if proposal in spoken:
            await channel.write(encode_message(proposal))
            return proposal
        await channel.write(encode_message("na"))
    return None
