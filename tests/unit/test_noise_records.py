"""The record layer against an attacker who owns the wire, with each of the two record formats."""

import os
import socket
from collections.abc import Callable

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from coppermesh.p2p import record_ciphers
from coppermesh.p2p.libp2p_noise import RecordError, RecordReader, RecordWriter
from coppermesh.p2p.record_ciphers import (
    LAST_NUMBER,
    TAG_BYTES,
    AesCipher,
    NoiseCipher,
    RecordCipher,
    derive_aes_key,
    has_aes_instructions,
)

KEY = bytes(range(32))
Format = type[NoiseCipher] | type[AesCipher]


@pytest.fixture(params=[NoiseCipher, AesCipher], autouse=True)
def form(request: pytest.FixtureRequest) -> Format:
    """The record format."""
    form: Format = request.param
    return form


def texts_of(form: Format) -> list[bytes]:
    return [b"first", b"second, which is longer", b"", bytes(form.max_plaintext), b"last"]


def header_of(form: Format, size: int) -> bytes:
    return size.to_bytes(form.header_bytes, "big")


def stream_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    first, second = (trio.socket.from_stdlib_socket(end) for end in socket.socketpair())
    return trio.SocketStream(first), trio.SocketStream(second)


async def sealed(form: Format, texts: list[bytes]) -> list[bytes]:
    """The records of `texts`, as they go over the wire."""
    sender, wire = stream_pair()
    records: list[bytes] = []
    async with sender, wire:
        writer = RecordWriter(sender, form(KEY))
        for text in texts:
            # An empty text makes no record through `seal`; this is what a peer may send all the same.
            writer.seal(memoryview(text)) if text else writer._seal_one(memoryview(b""))
            size = form.sealed_size(len(text)) if text else form.header_bytes + TAG_BYTES
            async with trio.open_nursery() as nursery:
                # A record may be larger than what the socket holds.
                nursery.start_soon(writer.flush)
                record = b""
                while len(record) < size:
                    record += await wire.receive_some(size - len(record))
            records.append(record)
    return records


async def opened(cipher: RecordCipher, wire_bytes: bytes, *, chunk: int = 65536) -> tuple[list[bytes], str]:
    """What a reader makes of these bytes: the texts, and why it died, "" at a proper end."""
    wire, receiver = stream_pair()
    texts: list[bytes] = []

    async def feed() -> None:
        async with wire:
            for start in range(0, len(wire_bytes), chunk):
                await wire.send_all(wire_bytes[start : start + chunk])

    async with receiver, trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        reader = RecordReader(receiver, cipher)
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


async def test_the_records_are_those_of_the_specification(form):
    texts = texts_of(form)
    for number, (text, record) in enumerate(zip(texts, await sealed(form, texts), strict=True)):
        if form is NoiseCipher:
            nonce = bytes(4) + number.to_bytes(8, "little")
            ciphertext = ChaCha20Poly1305(KEY).encrypt(nonce, text, None)
            assert record == len(ciphertext).to_bytes(2, "big") + ciphertext
        else:
            header = (len(text) + 16).to_bytes(4, "big")
            assert record == header + AESGCM(KEY).encrypt(number.to_bytes(12, "big"), text, header)


@pytest.mark.parametrize("chunk", [1, 7, 65536])
async def test_records_are_opened_however_the_bytes_arrive(form, chunk):
    texts = [b"a", b"bc" * 400, b"d"] if chunk < 100 else texts_of(form) * 5
    assert await opened(form(KEY), b"".join(await sealed(form, texts)), chunk=chunk) == (texts, "")


async def test_long_plaintext_is_cut_into_full_records(form):
    sender, wire = stream_pair()
    text = os.urandom(form.max_plaintext + 5)
    async with sender, wire, trio.open_nursery() as nursery:
        writer = RecordWriter(sender, form(KEY))
        room = writer.room
        writer.seal(memoryview(text))
        assert room - writer.room == form.sealed_size(len(text)) == len(text) + 2 * (form.header_bytes + 16)
        nursery.start_soon(writer.flush)
        reader = RecordReader(wire, form(KEY))
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


# (what the attacker makes of the records, how many texts still come out)
ATTACKS: dict[str, tuple[Callable[[list[bytes], Format], bytes], int]] = {
    "bit flipped in the first text": (lambda r, form: flip(0, form.header_bytes)(r), 0),
    "bit flipped in a tag": (lambda r, form: flip(1, -1)(r), 1),
    "bit flipped in a length": (lambda r, form: flip(1, form.header_bytes - 1)(r), 1),
    "record repeated": (lambda r, form: r[0] + r[0] + r[1], 1),
    "records swapped": (lambda r, form: r[1] + r[0], 0),
    "record left out": (lambda r, form: r[0] + r[2], 1),
    "an old record at the end": (lambda r, form: b"".join(r) + r[0], 5),
    "records cut and glued": (lambda r, form: r[0] + r[1][:-20] + r[0][-20:], 1),
    "length without room for a tag": (lambda r, form: r[0] + header_of(form, 15) + bytes(15), 1),
    "length zero": (lambda r, form: header_of(form, 0), 0),
    "greatest length of garbage": (
        lambda r, form: header_of(form, form.max_plaintext + 16) + bytes(form.max_plaintext + 16),
        0,
    ),
    "greatest number of a length": (lambda r, form: b"\xff" * form.header_bytes + bytes(70_000), 0),
    "cut inside a length": (lambda r, form: r[0] + r[1][:1], 1),
    "cut inside a text": (lambda r, form: r[0] + r[1][:10], 1),
    "cut before the last byte": (lambda r, form: r[0] + r[1][:-1], 1),
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_changed_wire_kills_the_connection(form, name):
    change, good = ATTACKS[name]
    texts = texts_of(form)
    received, death = await opened(form(KEY), change(await sealed(form, texts), form))
    assert received == texts[:good]
    assert death


@pytest.mark.parametrize("which", ["nothing", "half a tag", "one too long", "all ones"])
async def test_an_impossible_length_ends_it_before_a_byte_of_the_record_came(form, which):
    most = form.max_plaintext + TAG_BYTES
    all_ones = 256**form.header_bytes - 1
    size = {"nothing": 0, "half a tag": 15, "one too long": min(most + 1, all_ones), "all ones": all_ones}[
        which
    ]
    wire, receiver = stream_pair()
    async with wire, receiver:
        reader = RecordReader(receiver, form(KEY))
        await wire.send_all(header_of(form, size))
        assert await reader.fill()
        if TAG_BYTES <= size <= most:  # Noise has two bytes for it, and all their values are lengths
            assert reader.next_size() is None
            return
        with pytest.raises(RecordError, match=f"a record of {size} bytes"):
            reader.next_size()
        with pytest.raises(RecordError, match="broke earlier"):
            await reader.fill()


async def test_the_other_directions_key_opens_nothing(form):
    wire = b"".join(await sealed(form, texts_of(form)))
    assert await opened(form(bytes(32)), wire) == ([], "a record did not authenticate")


async def test_an_end_between_records_is_an_end(form):
    texts = texts_of(form)
    assert await opened(form(KEY), b"".join((await sealed(form, texts))[:2])) == (texts[:2], "")


async def test_records_of_the_other_format_open_nothing(form):
    other: Format = AesCipher if form is NoiseCipher else NoiseCipher
    received, death = await opened(form(KEY), b"".join(await sealed(other, [b"some text" * 20])))
    assert received == []
    assert death


async def test_opening_into_memory_never_shows_what_did_not_authenticate(form):
    text = b"secret, and forged"
    (record,) = await sealed(form, [text])
    wire, receiver = stream_pair()
    async with wire, receiver:
        await wire.send_all(record[:-1] + bytes([record[-1] ^ 1]))
        reader = RecordReader(receiver, form(KEY))
        await reader.fill()
        memory = bytearray(b"." * (reader.next_size() + 8))
        with pytest.raises(RecordError):
            reader.open_into(memoryview(memory)[4:-4])
        assert memory == b"...." + bytes(len(text)) + b"...."


async def test_opening_into_memory_gives_the_text(form):
    (record,) = await sealed(form, [b"some text"])
    wire, receiver = stream_pair()
    async with wire, receiver:
        await wire.send_all(record)
        reader = RecordReader(receiver, form(KEY))
        await reader.fill()
        memory = bytearray(reader.next_size())
        reader.open_into(memoryview(memory))
        assert memory == b"some text"


async def test_a_cancelled_write_kills_the_writer(form):
    sender, wire = stream_pair()
    async with sender, wire:
        writer = RecordWriter(sender, form(KEY))
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


async def test_a_failed_write_kills_the_writer(form):
    sender, wire = stream_pair()
    async with sender:
        await wire.aclose()
        writer = RecordWriter(sender, form(KEY))
        writer.seal(memoryview(b"to nobody"))
        with pytest.raises(RecordError):
            await writer.flush()
        with pytest.raises(RecordError):
            writer.seal(memoryview(b"again"))


async def test_a_cancelled_read_loses_nothing(form):
    (record,) = await sealed(form, [b"text"])
    wire, receiver = stream_pair()
    async with wire, receiver:
        reader = RecordReader(receiver, form(KEY))
        with trio.move_on_after(0.01):
            await reader.fill()
        await wire.send_all(record)
        assert await reader.fill()
        assert reader.next_size() == 4
        assert reader.open() == b"text"


async def test_a_direction_ends_with_its_last_nonce(form):
    sender, wire = stream_pair()
    async with sender, wire:
        writer = RecordWriter(sender, form(KEY, first_number=LAST_NUMBER))
        writer.seal(memoryview(b"the last"))
        await writer.flush()
        with pytest.raises(RecordError, match="nonces"):
            writer.seal(memoryview(b"one too many"))
        with pytest.raises(RecordError):
            await writer.flush()
        reader = RecordReader(wire, form(KEY, first_number=LAST_NUMBER))
        await reader.fill()
        assert reader.next_size() is not None
        assert reader.open() == b"the last"
        await sender.send_all(header_of(form, 16) + bytes(16))
        await reader.fill()
        assert reader.next_size() == 0
        with pytest.raises(RecordError, match="nonces"):
            reader.open()


async def test_what_does_not_fit_is_our_own_mistake(form):
    sender, wire = stream_pair()
    async with sender, wire:
        writer = RecordWriter(sender, form(KEY))
        with pytest.raises(ValueError):
            writer.seal(memoryview(bytes(writer.room)))


# What only our own format does


def test_each_direction_has_a_key_of_its_own_bound_to_both_peers_and_the_handshake():
    known = {
        "noise_key": KEY,
        "handshake_hash": b"h" * 32,
        "initiator": b"i" * 32,
        "responder": b"r" * 32,
        "from_initiator": True,
    }
    changes = {
        "noise_key": bytes(32),
        "handshake_hash": b"H" * 32,
        "initiator": b"r" * 32,
        "responder": b"i" * 32,
        "from_initiator": False,
    }
    keys = {derive_aes_key(**known)} | {derive_aes_key(**{**known, name: changes[name]}) for name in changes}
    assert len(keys) == 6
    assert KEY not in keys
    # RFC 5869, computed once with another implementation (hmac and hashlib).
    assert derive_aes_key(**known).hex() == "e3253a6871eacad8d039c1dc2edc0907796a32f3fe4d269eddabe4d9c43b5890"


async def test_the_key_is_replaced_before_it_has_sealed_too_much(monkeypatch):
    monkeypatch.setattr(record_ciphers, "REKEY_RECORDS", 3)
    texts = [bytes([number]) * 40 for number in range(10)]
    records = await sealed(AesCipher, texts)
    assert await opened(AesCipher(KEY), b"".join(records)) == (texts, "")
    monkeypatch.undo()
    # A reader that keeps the first key opens what was sealed under it, and nothing after.
    received, death = await opened(AesCipher(KEY), b"".join(records))
    assert received == texts[:3]
    assert death


@pytest.mark.parametrize(
    ("line", "there"),
    [
        ("flags\t\t: fpu sse2 aes pclmulqdq avx2", True),
        ("flags\t\t: fpu sse2 pclmulqdq", False),
        ("flags\t\t: fpu aes", False),
        ("Features\t: fp asimd aes pmull sha2", True),
        ("Features\t: fp asimd", False),
        ("model name\t: a processor with aes pclmulqdq", False),
    ],
)
def test_aes_is_offered_only_where_the_processor_has_it(tmp_path, line, there):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{line}\n")
    assert has_aes_instructions(str(cpuinfo)) is there
    assert not has_aes_instructions(str(tmp_path / "missing"))
