"""The swarm key's stream: to the specification, against libsodium, and told apart from a wrong key."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from nacl.secret import SecretBox

from coppermesh.p2p import libp2p_pnet
from coppermesh.p2p.errors import LocalProtocolError
from coppermesh.p2p.libp2p_pnet import (
    WrongSwarmKey,
    XSalsa20,
    enter_swarm,
    hsalsa20,
    swarm_key_text,
    topic_tag,
)

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
HEADER = b"\x13/multistream/1.0.0\n"


def test_hsalsa20_is_the_one_of_the_paper():
    # Bernstein, "Cryptography in NaCl", section 8: firstkey and secondkey.
    shared = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    first = hsalsa20(shared, bytes(16))
    assert first.hex() == "1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389"
    nonce = bytes.fromhex("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37")
    second = hsalsa20(first, nonce[:16])
    assert second.hex() == "dc908dda0b9344a953629b733820778880f3ceb421bb61b91cbd4c3e66256ce4"


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=24, max_size=24), st.binary(max_size=300))
def test_the_stream_is_libsodiums_XSalsa20(key, nonce, data):
    # A secret box is XSalsa20 from byte 32 of the stream on, behind a 16-byte tag.
    sealed = SecretBox(key).encrypt(data, nonce).ciphertext[16:]
    assert XSalsa20(key, nonce).encrypt(bytes(32) + data)[32:] == sealed


@given(
    st.binary(min_size=1, max_size=500),
    st.lists(st.integers(1, 200), max_size=5),
    st.sampled_from([None, libp2p_pnet._XOR]),
)
def test_the_stream_goes_on_over_any_cuts_with_either_library(data, cuts, xor):
    nonce = bytes(range(24))
    whole, parts = XSalsa20(KEY, nonce, xor=None).encrypt(data), b""
    cipher, rest = XSalsa20(KEY, nonce, xor=xor), data
    for cut in cuts:
        parts += cipher.encrypt(rest[:cut])
        rest = rest[cut:]
    assert parts + cipher.encrypt(rest) == whole


async def _pair():
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        dialled = await trio.open_tcp_stream("127.0.0.1", port)
        return dialled, await listener.accept()


async def test_bytes_arrive_and_are_not_readable_on_the_wire():
    left, right = await _pair()
    async with left, right:
        mine, theirs = await enter_swarm(left, KEY), await enter_swarm(right, KEY)
        await mine.send_all(HEADER + b"hello")
        received = b""
        while len(received) < len(HEADER) + 5:
            received += await theirs.receive_some(7)
        assert received == HEADER + b"hello"
        await theirs.send_all(HEADER)
        buffer = bytearray(64)
        assert bytes(buffer[: await mine.socket.recv_into(memoryview(buffer))]) == HEADER
        await left.send_all(b"")
        await mine.send_all(b"secret")
        assert await right.receive_some(6) != b"secret"


async def test_another_key_is_named_at_once():
    left, right = await _pair()
    async with left, right:
        mine, theirs = await enter_swarm(left, KEY), await enter_swarm(right, OTHER)
        await mine.send_all(HEADER)
        with pytest.raises(WrongSwarmKey, match="another one"):
            await theirs.receive_some()


async def test_an_end_inside_the_nonce_is_an_end():
    left, right = await _pair()
    async with right:
        theirs = await enter_swarm(right, KEY)
        await left.send_all(bytes(10))
        while len(await left.receive_some(24)) < 24:
            pass
        await left.aclose()
        assert await theirs.receive_some() == b""


async def test_without_a_key_the_stream_is_left_alone_and_a_short_key_is_a_bug():
    left, right = await _pair()
    async with left, right:
        assert await enter_swarm(left, None) is left
        with pytest.raises(LocalProtocolError, match="32 bytes"):
            await enter_swarm(left, b"short")


def test_here_libsodium_is_called_directly():
    assert libp2p_pnet._XOR is not None


def test_texts():
    assert swarm_key_text(bytes(32)) == "/key/swarm/psk/1.0.0/\n/base16/\n" + "00" * 32 + "\n"
    assert topic_tag(KEY) != topic_tag(OTHER)
    assert len(topic_tag(KEY)) == 16
