import pytest

from coppermesh.p2p.errors import Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.libp2p_multistream import (
    HEADER,
    MAX_MESSAGE,
    MAX_PROPOSALS,
    encode_message,
    propose,
    read_message,
    respond,
)

LONG = "/" + "x" * 300


class Script:
    """A channel whose other side said everything beforehand."""

    def __init__(self, *messages: str | bytes) -> None:
        self.unread = b"".join(m if isinstance(m, bytes) else encode_message(m) for m in messages)
        self.sent = b""

    async def read_exactly(self, count: int) -> bytes:
        if len(self.unread) < count:
            raise Unreachable("the script is over")
        data, self.unread = self.unread[:count], self.unread[count:]
        return data

    async def write(self, data: bytes) -> None:
        self.sent += data


async def test_messages_are_those_of_the_specification():
    assert encode_message(HEADER) == b"\x13/multistream/1.0.0\n"
    assert encode_message("na") == b"\x03na\n"
    assert encode_message(LONG)[:2] == b"\xae\x02"
    assert await read_message(Script(LONG)) == LONG


async def test_a_proposal_is_one_write_and_takes_no_byte_too_many():
    channel = Script(HEADER, "/a", b"data")
    assert await propose(channel, "/a") == "/a"
    assert channel.sent == encode_message(HEADER) + encode_message("/a")
    assert channel.unread == b"data"


async def test_proposals_are_made_in_turn():
    assert await propose(Script(HEADER, "na", LONG), "/a", LONG) == LONG
    with pytest.raises(Refused) as caught:
        await propose(Script(HEADER, "na", "na"), "/a", "/b")
    assert caught.value.code == "unknown-protocol"


async def test_a_response_repeats_what_is_spoken():
    channel = Script(HEADER, "/x", "ls", "/b", b"data")
    assert await respond(channel, ["/a", "/b"]) == "/b"
    assert channel.sent == b"".join(map(encode_message, (HEADER, "na", "na", "/b")))
    assert channel.unread == b"data"


async def test_asking_too_often_ends_it():
    assert await respond(Script(HEADER, *["/x"] * (MAX_PROPOSALS + 5)), ["/a"]) is None


@pytest.mark.parametrize(
    "said",
    [
        b"\x00",
        b"\x05abc",
        b"\x03abc",
        b"\x03\xff\xff\n",
        b"\xff\xff\x01" + bytes(100),
        b"\x80\x00",
        b"\x80\x80\x01",
        bytes([MAX_MESSAGE & 127 | 128, (MAX_MESSAGE >> 7) + 1]) + b"a" * 2000,
        encode_message("/multistream/2.0.0"),
        encode_message(HEADER) + b"\x02/b",
        b"",
    ],
)
async def test_anything_else_is_the_other_sides_mistake(said):
    for negotiate in (propose(Script(said), "/a"), respond(Script(said), ["/a"])):
        with pytest.raises((RemoteProtocolError, Unreachable)):
            await negotiate


async def test_an_answer_that_was_not_asked_for_is_a_mistake():
    with pytest.raises(RemoteProtocolError, match="neither"):
        await propose(Script(HEADER, "/b"), "/a")


def test_our_own_protocol_ids_are_short():
    with pytest.raises(ValueError):
        encode_message("x" * MAX_MESSAGE)
