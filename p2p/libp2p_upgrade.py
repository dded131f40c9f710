"""From a TCP stream to a multiplexed connection with a proven peer: multistream, Noise, multistream, yamux.

In a private mesh all of that is inside the swarm key (`libp2p_pnet`).

Two security protocols are offered and accepted, in this order, and inside them only `/yamux/1.0.0`:

- `/coppermesh/noise-aes/1`, between agents of ours on processors with AES instructions: the same Noise XX handshake
  with the protocol's id as prologue, so that no message of it can be taken into the other protocol; then the key of
  each direction goes through HKDF (`record_ciphers.derive_aes_key`) and records are AES-256-GCM.
- `/noise`, libp2p's own, with everybody else.

A host that wants plaintext or TLS is refused before it learns anything. Which of the two is taken is negotiated in the
open, so that an attacker on the wire can force `/noise`: both are safe, and there is no third. The caller bounds the
time; a failure or cancellation closes the TCP stream.
"""

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.security.noise.patterns import PatternXX

from coppermesh.p2p.errors import MeshError, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.libp2p_multistream import propose, respond
from coppermesh.p2p.libp2p_noise import RecordError, RecordReader, RecordWriter
from coppermesh.p2p.libp2p_pnet import Wire, enter_swarm
from coppermesh.p2p.record_ciphers import (
    AesCipher,
    NoiseCipher,
    RecordCipher,
    derive_aes_key,
    has_aes_instructions,
)
from coppermesh.p2p.signing import PeerKey, is_usable_key

UNSENT_BYTES = 128 * 1024
"""What the kernel may hold unsent: bulk sent there cannot be overtaken. trio's own 16 KiB cost a sixth more CPU."""
NEAR_US = 200
"""A round trip within which a window of 512 KiB carries 2.5 GB/s."""
_TCP_INFO_BYTES, _RTT_AT = 152, 148
NOISE_LENGTH_BYTES = 2
"""Before each message of the Noise handshake."""
NOISE = "/noise"
NOISE_AES = "/coppermesh/noise-aes/1"
YAMUX = "/yamux/1.0.0"
_IDENTITY_PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])


def libp2p_id(peer: PeerId) -> ID:
    """The library's form of a peer id."""
    return ID(_IDENTITY_PREFIX + peer)


def peer_of(identity: bytes) -> PeerId:
    """The peer named by libp2p's id bytes. Raises RemoteProtocolError unless it is a usable Ed25519 key."""
    peer = PeerId(identity[len(_IDENTITY_PREFIX) :])
    if not identity.startswith(_IDENTITY_PREFIX) or len(peer) != 32 or not is_usable_key(peer):
        raise RemoteProtocolError("its peer id is not a usable Ed25519 key")
    return peer


@dataclass(frozen=True)
class Identity:
    """What the handshake needs of this agent's key."""

    peer: PeerId
    signing: KeyPair
    noise: KeyPair
    turn: trio.Lock = field(default_factory=trio.Lock, compare=False, repr=False)
    """Held for one round through trio by each message of a stranger's handshake, before it is worked on."""

    @classmethod
    def of(cls, key: PeerKey) -> "Identity":
        """With a new Noise key, which lives as long as the transport."""
        return cls(key.peer, create_new_key_pair(key.libp2p_seed()), create_noise_key_pair())


@dataclass(frozen=True)
class Secured:
    """A connection after both negotiations: who is there, the record layer, and bytes that came early."""

    peer: PeerId
    security: str
    reader: RecordReader
    writer: RecordWriter
    early: bytes


def security_protocols() -> tuple[str, ...]:
    """What this machine offers and accepts, best first."""
    return (NOISE_AES, NOISE) if has_aes_instructions() else (NOISE,)


async def upgrade(
    stream: trio.SocketStream,
    identity: Identity,
    expected: PeerId | None,
    swarm_key: bytes | None = None,
    *,
    initiator: bool | None = None,
) -> Secured:
    """Secure the stream. `expected` is who must answer when we dialled, None when we accepted.

    `initiator`: which side begins, where both have dialled. Raises RemoteProtocolError (wrong key, breach of protocol),
    Refused (speaks something else) or Unreachable.
    """
    if isinstance(stream, trio.SocketStream):
        with suppress(OSError):
            stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    begins = expected is not None if initiator is None else initiator
    security, peer, reader, writer = await _secure(stream, identity, expected, swarm_key, begins=begins)
    channel = _RecordChannel(reader, writer)
    if begins:
        await propose(channel, YAMUX)
    elif await respond(channel, (YAMUX,)) is None:
        raise RemoteProtocolError("it did not ask for yamux")
    return Secured(peer, security, reader, writer, channel.rest())


def is_near(stream: trio.SocketStream) -> bool:
    """Whether the kernel has measured a round trip of less than `NEAR_US` to the other end. Linux; else False."""
    if not isinstance(stream, trio.SocketStream) or not hasattr(trio.socket, "TCP_INFO"):
        return False
    try:
        info = stream.socket.getsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return False
    rtt_us = int.from_bytes(info[_RTT_AT : _RTT_AT + 4], sys.byteorder)
    return 0 < rtt_us < NEAR_US


async def prove(
    stream: trio.SocketStream, identity: Identity, expected: PeerId, swarm_key: bytes | None = None
) -> None:
    """Have the other side prove that it is `expected`, and go no further. Raises as `upgrade` does."""
    await _secure(stream, identity, expected, swarm_key, begins=True)


async def _secure(
    stream: trio.SocketStream,
    identity: Identity,
    expected: PeerId | None,
    swarm_key: bytes | None,
    *,
    begins: bool,
) -> tuple[str, PeerId, RecordReader, RecordWriter]:
    try:
        wire = await enter_swarm(stream, swarm_key)
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise Unreachable(f"the connection broke: {error.__cause__ or error}") from error
    plain = _TcpChannel(wire, initiator=begins, turn=None if expected is not None else identity.turn)
    if begins:
        security = await propose(plain, *security_protocols())
    else:
        asked = await respond(plain, security_protocols())
        if asked is None:
            raise RemoteProtocolError("it did not ask for Noise")
        security = asked
    return security, *await _noise_handshake(plain, identity, expected, security, begins=begins)


async def _noise_handshake(
    channel: "_TcpChannel", identity: Identity, expected: PeerId | None, security: str, *, begins: bool
) -> tuple[PeerId, RecordReader, RecordWriter]:
    pattern = PatternXX(
        libp2p_id(identity.peer),
        identity.signing.private_key,
        identity.noise.private_key,
        # libp2p's Noise has an empty prologue.
        prologue=security.encode() if security == NOISE_AES else None,
    )
    try:
        if begins:
            assert expected is not None
            session = await pattern.handshake_outbound(channel, libp2p_id(expected))  # type: ignore[arg-type]
        else:
            session = await pattern.handshake_inbound(channel)  # type: ignore[arg-type]
    except MeshError:
        raise
    except PeerIDMismatchesPubkey as error:
        raise RemoteProtocolError("another key answered than the one that was dialled") from error
    except Exception as error:
        # Hostile bytes went through three libraries here; whatever they make of them ends this handshake only.
        raise RemoteProtocolError(
            f"the Noise handshake failed: {str(error) or type(error).__name__}"
        ) from error
    peer = peer_of(session.get_remote_peer().to_bytes())
    if expected is not None and peer != expected:
        raise RemoteProtocolError("another key answered than the one that was dialled")
    if peer == identity.peer:
        raise RemoteProtocolError("it claims to be this agent itself")
    state = session.conn.noise_state.noise_protocol  # type: ignore[attr-defined]
    if state.cipher_state_encrypt.n or state.cipher_state_decrypt.n:
        raise RemoteProtocolError("the Noise handshake left used nonces")
    sending, receiving = _record_ciphers(security, state, me=identity.peer, peer=peer, initiator=begins)
    return peer, RecordReader(channel.stream, receiving), RecordWriter(channel.stream, sending)


def _record_ciphers(
    security: str, state: Any, *, me: PeerId, peer: PeerId, initiator: bool
) -> tuple[RecordCipher, RecordCipher]:
    """For sending and for receiving, from the library's state after the handshake."""
    sending, receiving = bytes(state.cipher_state_encrypt.k), bytes(state.cipher_state_decrypt.k)
    if security == NOISE:
        return NoiseCipher(sending), NoiseCipher(receiving)
    dialler, acceptor = (me, peer) if initiator else (peer, me)
    derive = partial(
        derive_aes_key, handshake_hash=state.handshake_hash, initiator=dialler, responder=acceptor
    )
    return (
        AesCipher(derive(sending, from_initiator=initiator)),
        AesCipher(derive(receiving, from_initiator=not initiator)),
    )


class _TcpChannel:
    """The bare TCP stream for our negotiation and for the library's handshake (which uses `read` and `write`).

    What the library does with a message takes a millisecond of this thread. Each stranger's waits for its `turn`, so
    that a hundred of them that arrive together cost everybody else one such wait, not a hundred.
    """

    def __init__(self, stream: Wire, *, initiator: bool, turn: trio.Lock | None = None) -> None:
        self.stream = stream
        self.is_initiator = initiator
        self._turn = turn

    async def read(self, count: int | None = None) -> bytes:
        data = await self.read_exactly(count or 0)
        if self._turn is not None and len(data) > NOISE_LENGTH_BYTES:
            async with self._turn:
                await trio.lowlevel.checkpoint()
        return data

    async def read_exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            try:
                piece = await self.stream.receive_some(count - len(data))
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise Unreachable(f"the connection broke: {error.__cause__ or error}") from error
            if not piece:
                raise Unreachable("the connection was closed during the handshake")
            data += piece
        return bytes(data)

    async def write(self, data: bytes) -> None:
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Unreachable(f"the connection broke: {error.__cause__ or error}") from error


class _RecordChannel:
    """The record layer, before the muxer takes it over."""

    def __init__(self, reader: RecordReader, writer: RecordWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._buffer = bytearray()

    async def read_exactly(self, count: int) -> bytes:
        try:
            while len(self._buffer) < count:
                if self._reader.next_size() is not None:
                    self._buffer += self._reader.open()
                elif not await self._reader.fill():
                    raise Unreachable("the connection was closed during the handshake")
        except RecordError as error:
            raise RemoteProtocolError(f"the encrypted connection failed: {error}") from error
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    async def write(self, data: bytes) -> None:
        try:
            self._writer.seal(memoryview(data))
            await self._writer.flush()
        except RecordError as error:
            raise Unreachable(f"the connection broke: {error}") from error

    def rest(self) -> bytes:
        return bytes(self._buffer)
