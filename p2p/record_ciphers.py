"""How one record of an encrypted connection is sealed and opened: two formats, one interface. Pure.

Each direction of a connection has a cipher of its own, with a key of its own. A record's number is its nonce: it starts
at 0, grows by one per record and is never sent, so that a record that was altered, repeated, left out or moved does not
authenticate. A number is taken before it is used and is never given back.

`NoiseCipher` is what libp2p Noise prescribes: 2 bytes of length (big-endian), then ChaCha20-Poly1305 of at most 65519
bytes, nonce 4 zero bytes and the number little-endian, nothing else authenticated.

`AesCipher` is what coppermesh agents speak among themselves: 4 bytes of length (big-endian), then AES-256-GCM of at
most 256 KiB, nonce 4 zero bytes and the number big-endian. The length is authenticated too. After every
`REKEY_RECORDS` records the key is replaced by one derived from it, so that at most 1 TiB is sealed under one key (NIST
SP 800-38D allows more) and a key that leaks opens nothing that came before it.
"""

from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

TAG_BYTES = 16
KEY_BYTES = 32
LAST_NUMBER = 2**64 - 2
"""Noise keeps 2^64 - 1 for itself."""
REKEY_RECORDS = 2**22
_REKEY_LABEL = b"coppermesh aes-256-gcm next key v1"
_KEY_LABEL = b"coppermesh aes-256-gcm records v1"


class RecordError(Exception):
    """The encrypted connection is dead: a record was bad, or a read or write failed half-way."""


class RecordCipher:
    """Seals or opens the records of one direction, in order. The formats below say how."""

    header_bytes: ClassVar[int]
    max_plaintext: ClassVar[int]
    _byte_order: ClassVar[str]
    _authenticates_header: ClassVar[bool]
    _aead: AESGCM | ChaCha20Poly1305

    def __init__(self, *, first_number: int = 0) -> None:
        self._number = first_number

    @classmethod
    def sealed_size(cls, plaintext_bytes: int) -> int:
        """Bytes on the wire for that many bytes of plaintext sealed at once."""
        records = -(-plaintext_bytes // cls.max_plaintext)
        return plaintext_bytes + records * (cls.header_bytes + TAG_BYTES)

    def seal(self, plaintext: memoryview, record: memoryview) -> int:
        """Write the next record into the beginning of `record`; its length. Raises RecordError at the last number."""
        header_bytes, size = self.header_bytes, len(plaintext) + TAG_BYTES
        header = size.to_bytes(header_bytes, "big")
        nonce = self._next_nonce()
        record[:header_bytes] = header
        self._aead.encrypt_into(
            nonce,
            plaintext,
            header if self._authenticates_header else None,
            record[header_bytes : header_bytes + size],
        )
        return header_bytes + size

    def ciphertext_size(self, header: memoryview) -> int:
        """Bytes that follow this header. Raises RecordError where no record can be that long."""
        size = int.from_bytes(header, "big")
        if not TAG_BYTES <= size <= self.max_plaintext + TAG_BYTES:
            raise RecordError(f"a record of {size} bytes: {TAG_BYTES} to {self.max_plaintext + TAG_BYTES}")
        return size

    def open(self, header: memoryview, ciphertext: memoryview) -> bytes:
        """The plaintext of the next record. Raises RecordError where it does not authenticate."""
        nonce = self._next_nonce()
        try:
            return self._aead.decrypt(nonce, ciphertext, header if self._authenticates_header else None)
        except InvalidTag:
            raise RecordError("a record did not authenticate") from None

    def open_into(self, header: memoryview, ciphertext: memoryview, destination: memoryview) -> None:
        """Decrypt the next record into `destination`, exactly as long. Where that raises, it holds zeros."""
        nonce = self._next_nonce()
        try:
            self._aead.decrypt_into(
                nonce, ciphertext, header if self._authenticates_header else None, destination
            )
        except InvalidTag:
            # The cipher writes before it knows the tag.
            destination[:] = bytes(len(destination))
            raise RecordError("a record did not authenticate") from None

    def _next_nonce(self) -> bytes:
        number = self._number
        if number > LAST_NUMBER:
            raise RecordError("this connection has used up its nonces")
        self._number = number + 1
        return b"\0\0\0\0" + number.to_bytes(8, self._byte_order)  # type: ignore[arg-type]


class NoiseCipher(RecordCipher):
    """The records of `/noise`."""

    header_bytes = 2
    max_plaintext = 65535 - TAG_BYTES
    _byte_order = "little"
    _authenticates_header = False

    def __init__(self, key: bytes, *, first_number: int = 0) -> None:
        super().__init__(first_number=first_number)
        self._aead = ChaCha20Poly1305(key)


class AesCipher(RecordCipher):
    """The records of coppermesh's own security protocol."""

    header_bytes = 4
    max_plaintext = 256 * 1024
    _byte_order = "big"
    _authenticates_header = True

    def __init__(self, key: bytes, *, first_number: int = 0) -> None:
        super().__init__(first_number=first_number)
        self._key = key
        self._aead = AESGCM(key)

    def _next_nonce(self) -> bytes:
        nonce = super()._next_nonce()
        if (self._number - 1) % REKEY_RECORDS == 0 and self._number > 1:
            self._key = HKDFExpand(SHA256(), KEY_BYTES, _REKEY_LABEL).derive(self._key)
            self._aead = AESGCM(self._key)
        return nonce


def derive_aes_key(
    noise_key: bytes, handshake_hash: bytes, *, initiator: bytes, responder: bytes, from_initiator: bool
) -> bytes:
    """The first AES key of one direction, from what the Noise handshake agreed on.

    `noise_key`: that direction's ChaCha20 key, used for nothing else; `handshake_hash`: over the whole handshake with
    its prologue; `initiator`, `responder`: peer ids (32 bytes). A label of its own, so that no key serves two ciphers.
    """
    direction = b"initiator to responder" if from_initiator else b"responder to initiator"
    info = _KEY_LABEL + b"\0" + direction + b"\0" + initiator + responder
    return HKDF(SHA256(), KEY_BYTES, handshake_hash, info).derive(noise_key)


@lru_cache
def has_aes_instructions(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether this processor has instructions for AES and GCM: without, AES is slow and leaks through timing."""
    try:
        text = Path(cpuinfo).read_text(errors="replace")
    except OSError:
        return False
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            words = set(value.split())
            return {"aes", "pclmulqdq"} <= words or {"aes", "pmull"} <= words
    return False
