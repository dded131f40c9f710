"""The transport phase of Noise against an attacker who owns the wire."""

import os
import socket
from collections.abc import Callable

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from coppermesh.p2p.libp2p_noise import (
    LAST_NONCE,
    MAX_PLAINTEXT,
    RecordError,
    RecordReader,
    RecordWriter,
    sealed_size,
)

KEY = bytes(range(32))
TEXTS = [b"first", b"second, which is longer", b"", bytes(MAX_PLAINTEXT), b"last"]


def stream_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    first, second = (trio.socket.from_stdlib_socket(end) for end in socket.socketpair())
    return trio.SocketStream(first), trio.SocketStream(second)


async def sealed(texts: list[bytes]) -> list[bytes]:
    """The records of `texts`, as they go over the wire."""
    sender, wire = stream_pair()
    async with sender, wire:
        writer = RecordWriter(sender, KEY)
        records = []
        for text in texts:
            # An empty text makes no record through `seal`; this is what a peer may send all the same.
            writer.seal(memoryview(text)) if text else writer._seal_one(memoryview(b""))
            await writer.flush()
            size = len(text) + 18
            record = b""
            while len(record) < size:
                record += await wire.receive_some(size - len(record))
            records.append(record)
        return records


async def opened(wire_bytes: bytes, *, key: bytes = KEY, chunk: int = 65536) -> tuple[list[bytes], str]:
    """What a reader makes of these bytes: the texts, and why it died, "" at a proper end."""
    wire, receiver = stream_pair()
    texts: list[bytes] = []

    async def feed() -> None:
        async with wire:
            for start in range(0, len(wire_bytes), chunk):
                await wire.send_all(wire_bytes[start : start + chunk])

    async with receiver, trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        reader = RecordReader(receiver, key)
        death = ""
        try:
            while True:
                if reader.next_size() is not None:
                    texts.append(reader.open())
                elif not await reader.fill():
                    break
        except RecordError as error:
            death = str(error)
        # Dead means dead: nothing more comes out, even of bytes that are there.
        with pytest.raises(RecordError):
            reader.next_size()
        with pytest.raises(RecordError):
            await reader.fill()
        nursery.cancel_scope.cancel()
    return texts, death


async def test_the_records_are_those_of_the_noise_specification():
    for number, (text, record) in enumerate(zip(TEXTS, await sealed(TEXTS), strict=True)):
        nonce = bytes(4) + number.to_bytes(8, "little")
        ciphertext = ChaCha20Poly1305(KEY).encrypt(nonce, text, None)
        assert record == len(ciphertext).to_bytes(2, "big") + ciphertext


@pytest.mark.parametrize("chunk", [1, 7, 65536])
async def test_records_are_opened_however_the_bytes_arrive(chunk):
    texts = [b"a", b"bc" * 400, b"d"] if chunk < 100 else TEXTS * 20
    assert await opened(b"".join(await sealed(texts)), chunk=chunk) == (texts, "")


async def test_long_plaintext_is_cut_into_full_records():
    sender, wire = stream_pair()
    text = os.urandom(3 * MAX_PLAINTEXT + 5)
    async with sender, wire, trio.open_nursery() as nursery:
        writer = RecordWriter(sender, KEY)
        room = writer.room
        writer.seal(memoryview(text))
        assert room - writer.room == sealed_size(len(text)) == len(text) + 4 * 18
        nursery.start_soon(writer.flush)
        reader = RecordReader(wire, KEY)
        received = b""
        while len(received) < len(text):
            if reader.next_size() is not None:
                received += reader.open()
            else:
                assert await reader.fill()
        assert received == text


def flip(index: int, byte: int) -> Callable[[list[bytes]], bytes]:
    def change(records: list[bytes]) -> bytes:
        record = bytearray(records[index])
        record[byte] ^= 1
        return b"".join([*records[:index], bytes(record), *records[index + 1 :]])

    return change


ATTACKS = {
    "bit flipped in the first text": (flip(0, 2), 0),
    "bit flipped in a tag": (flip(1, -1), 1),
    "bit flipped in a length": (flip(1, 1), 1),
    "record repeated": (lambda r: r[0] + r[0] + r[1], 1),
    "records swapped": (lambda r: r[1] + r[0], 0),
    "record left out": (lambda r: r[0] + r[2], 1),
    "length without room for a tag": (lambda r: r[0] + b"\x00\x0f" + bytes(15), 1),
    "length zero": (lambda r: b"\x00\x00", 0),
    "greatest length of garbage": (lambda r: b"\xff\xff" + bytes(65535), 0),
    "cut inside a length": (lambda r: r[0] + r[1][:1], 1),
    "cut inside a text": (lambda r: r[0] + r[1][:10], 1),
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_changed_wire_kills_the_connection(name):
    change, good = ATTACKS[name]
    texts, death = await opened(change(await sealed(TEXTS)))
    assert texts == TEXTS[:good]
    assert death


async def test_the_other_directions_key_opens_nothing():
    assert await opened(b"".join(await sealed(TEXTS)), key=bytes(32)) == ([], "a record did not authenticate")


async def test_an_end_between_records_is_an_end():
    assert await opened(b"".join((await sealed(TEXTS))[:2])) == (TEXTS[:2], "")


async def test_opening_into_memory_never_shows_what_did_not_authenticate():
    text = b"secret, and forged"
    (record,) = await sealed([text])
    wire, receiver = stream_pair()
    async with wire, receiver:
        await wire.send_all(record[:-1] + bytes([record[-1] ^ 1]))
        reader = RecordReader(receiver, KEY)
        await reader.fill()
        memory = bytearray(b"." * (reader.next_size() + 8))
        with pytest.raises(RecordError):
            reader.open_into(memoryview(memory)[4:-4])
        assert memory == b"...." + bytes(len(text)) + b"...."


async def test_opening_into_memory_gives_the_text():
    (record,) = await sealed([b"some text"])
    wire, receiver = stream_pair()
    async with wire, receiver:
        await wire.send_all(record)
        reader = RecordReader(receiver, KEY)
        await reader.fill()
        memory = bytearray(reader.next_size())
        reader.open_into(memoryview(memory))
        assert memory == b"some text"


async def test_a_cancelled_write_kills_the_writer():
    sender, wire = stream_pair()
    async with sender, wire:
        writer = RecordWriter(sender, KEY)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def fill_the_socket() -> None:
                    while True:
                        writer.seal(memoryview(bytes(200_000)))
                        await writer.flush()

                await trio.testing.wait_all_tasks_blocked(0.01)
                scope.cancel()
        with pytest.raises(RecordError):
            writer.seal(memoryview(b"again"))
        with pytest.raises(RecordError):
            await writer.flush()


async def test_a_failed_write_kills_the_writer():
    sender, wire = stream_pair()
    async with sender:
        await wire.aclose()
        writer = RecordWriter(sender, KEY)
        writer.seal(memoryview(b"to nobody"))
        with pytest.raises(RecordError):
            await writer.flush()
        with pytest.raises(RecordError):
            writer.seal(memoryview(b"again"))


async def test_a_cancelled_read_loses_nothing():
    (record,) = await sealed([b"text"])
    wire, receiver = stream_pair()
    async with wire, receiver:
        reader = RecordReader(receiver, KEY)
        with trio.move_on_after(0.01):
            await reader.fill()
        await wire.send_all(record)
        assert await reader.fill()
        assert reader.next_size() == 4
        assert reader.open() == b"text"


async def test_a_direction_ends_with_its_last_nonce():
    sender, wire = stream_pair()
    async with sender, wire:
        writer = RecordWriter(sender, KEY, first_nonce=LAST_NONCE)
        writer.seal(memoryview(b"the last"))
        await writer.flush()
        with pytest.raises(RecordError, match="nonces"):
            writer.seal(memoryview(b"one too many"))
        with pytest.raises(RecordError):
            await writer.flush()
        reader = RecordReader(wire, KEY, first_nonce=LAST_NONCE)
        await reader.fill()
        assert reader.next_size() is not None
        assert reader.open() == b"the last"
        await sender.send_all(b"\x00\x10" + bytes(16))
        await reader.fill()
        assert reader.next_size() == 0
        with pytest.raises(RecordError, match="nonces"):
            reader.open()


async def test_what_does_not_fit_is_our_own_mistake():
    sender, wire = stream_pair()
    async with sender, wire:
        writer = RecordWriter(sender, KEY)
        with pytest.raises(ValueError):
            writer.seal(memoryview(bytes(writer.room)))
