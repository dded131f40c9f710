"""Yamux: many streams over one encrypted connection, wire compatible with stock libp2p (`/yamux/1.0.0`).

Theory of operation
===================
A frame is a 12-byte header (version 0, type, flags, stream id, length) and, for type DATA, `length` bytes of payload.
The side that dialled opens odd stream ids, the other even ones. SYN opens, ACK accepts, FIN ends one direction, RST
ends both at once. Each direction of a stream has a *window*: what the receiver still allows the sender to send, 256 KiB
at first, raised by WINDOW_UPDATE frames. (Source: hashicorp/yamux spec.md.)

Two tasks serve a connection, whatever the number of streams:

- The **writer** is the only one that seals and sends, so no cancelled sender can leave half a frame or half a record
  behind. Small frames (payloads up to 16 KiB, all control frames) are copied into one queue; everything queued since
  the last round goes out as one record and one write, so that batching needs no timer. Larger payloads stay in the
  sender's memory: the sender waits in a second queue, the writer takes one such frame per round and seals it straight
  from there without a pause, so that bulk cannot hold up small frames for more than one frame of 256 KiB.
- The **reader** opens each record and parses all frames in it without waiting for anybody: payload goes to the stream's
  buffer, or into the memory of a task that waits in `receive_into`. Where the next record holds nothing but such
  payload it is decrypted directly into that memory (see libp2p_noise, rule 2, for what happens when it is forged).

What keeps it bounded, assuming the other side is hostile:

- Received bytes per stream: the window; it grows from 256 KiB to 4 MiB only while somebody is reading bulk, and only
  while all windows of the connection together stay under `MAX_WINDOWS`. Over all connections: a `BufferBudget`; a
  stream that exceeds it is reset.
- Streams: `MAX_STREAMS` per side and connection; more are reset, our own openers wait.
- Sending: a full small-frame queue makes senders wait; replies the other side provokes (window updates, pongs, resets)
  are cut off with the connection when it makes us queue more than `MAX_QUEUED` without reading them.
- Waiting: messages wait behind bulk that was sent and not read yet, here and in this kernel. From a near peer, where a
  small window keeps the line full, no more than `SHARED_WINDOW` of it while messages travel beside it.
- Time: a sender without window, and a socket that takes nothing, are given up after `STALL_SECONDS`. That is generous
  (stock gives 5 s) because a receiver may be busy with a long computation; an honest one resumes.

A breach of the protocol (bad version, type or parity, data for a stream that never was, more than the window allows, a
second SYN) closes this connection and no other. Data for a stream that is over is legal, it crossed our RST: dropped.
GO_AWAY ends the connection at once; what had arrived completely before stays readable.
"""

from collections.abc import Callable

import trio

from coppermesh.p2p.errors import Unreachable
from coppermesh.p2p.ids import PeerId, short_peer
from coppermesh.p2p.libp2p_noise import RecordError, RecordReader, RecordWriter
from coppermesh.p2p.libp2p_yamux_frames import (
    ACK,
    BULK_WINDOW,
    DATA,
    FIN,
    GO_AWAY,
    HEADER,
    INITIAL_WINDOW,
    MAX_WINDOWS,
    PING,
    RST,
    SHARED_BYTES,
    SHARED_WINDOW,
    SYN,
    WINDOW_UPDATE,
    FrameSender,
)
from coppermesh.p2p.libp2p_yamux_stream import YamuxStream
from coppermesh.p2p.transport import DIAL_SECONDS, MAX_STREAMS

LINGER_SECONDS = 1.0
"""How long reading goes on after sending failed."""


TURNS_FOR_WOKEN = 6
"""Records of bulk between which everybody gets a turn once a small message has woken somebody: request, handler and
answer each need one."""
MAX_WORK = 256
"""Records, and KiB of them with frames to look at, that are read before every other task had a turn."""
_WORK_BYTES = 1024


class YamuxError(Exception):
    """The other side broke the yamux protocol."""


class BufferBudget:
    """Bytes received and not yet read, over all connections of a transport."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def take(self, count: int) -> bool:
        """Reserve `count` bytes; False when they are not there."""
        if count > self._left:
            return False
        self._left -= count
        return True

    def give(self, count: int) -> None:
        """Return `count` bytes."""
        self._left += count


class YamuxConnection:
    """One multiplexed connection. `run` serves it until it ends; `on_stream` gets each stream the peer opens.

    `early` is what the peer sent behind its last negotiation message, already decrypted. `near`: its answers take so
    little time that a window of `SHARED_WINDOW` keeps the line full.
    """

    def __init__(
        self,
        peer: PeerId,
        stream: trio.SocketStream,
        reader: RecordReader,
        writer: RecordWriter,
        *,
        initiator: bool,
        budget: BufferBudget,
        on_stream: Callable[[YamuxStream], None],
        early: bytes = b"",
        near: bool = False,
    ) -> None:
        self.peer = peer
        self.ended: str | None = None
        self._stream = stream
        self._reader = reader
        self._sender = FrameSender(writer)
        self._budget = budget
        self._on_stream = on_stream
        self._early = early
        self._next_id = 1 if initiator else 2
        self._peer_parity = 0 if initiator else 1
        self._last_peer_id = 0
        self._streams: dict[int, YamuxStream] = {}
        self._outbound = 0
        self._inbound = 0
        self._windows = 0
        self._buffered = 0
        self._slots = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()
        # The frame whose payload is being read: its stream (None: dropped) and the bytes still to come.
        self._payload_stream: YamuxStream | None = None
        self._payload_left = 0
        self._partial_header = bytearray()
        self._near = near
        self._shared_bytes = 0
        """Bulk to come before it has the line to itself again."""
        self._woken = False
        """A task that waited for data of a stream was given some since this was last looked at."""

    # Life of the connection

    async def run(self) -> None:
        """Serve until the connection ends, however it does; then every stream is finished or broken."""
        reason = "the transport was closed"
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send_forever)
                    reason = await self._read_until_end()
                    nursery.cancel_scope.cancel()
        finally:
            self._end(self.ended or reason)
            await trio.aclose_forcefully(self._stream)

    def close(self, reason: str) -> None:
        """End the connection now; `run` then returns. Queued frames are lost."""
        self._end(reason)
        self._scope.cancel()

    async def say_goodbye(self) -> None:
        """Tell the other side that we leave, after what is queued, as far as it goes within a second."""
        self.queue_control(GO_AWAY, 0, 0, 0)
        with trio.move_on_after(1.0):
            await self._sender.wait_idle()

    def _end(self, reason: str) -> None:
        if self.ended is not None:
            return
        self.ended = reason
        for stream in list(self._streams.values()):
            stream.connection_ended(f"{short_peer(self.peer)}: {reason}")
        self._streams.clear()
        self._budget.give(self._buffered)
        self._buffered = 0
        self._sender.abandon()
        self._slots.unpark_all()

    # Opening streams

    async def open_stream(self) -> YamuxStream:
        """A new stream to the peer, waiting for a free slot up to DIAL_SECONDS. Raises Unreachable."""
        if self._outbound >= MAX_STREAMS:
            with trio.move_on_after(DIAL_SECONDS):
                while self._outbound >= MAX_STREAMS and self.ended is None:
                    await self._slots.park()
        if self.ended is not None:
            raise Unreachable(f"{short_peer(self.peer)}: {self.ended}")
        if self._outbound >= MAX_STREAMS:
            raise Unreachable(f"{short_peer(self.peer)}: {MAX_STREAMS} streams are open already")
        stream_id = self._next_id
        self._next_id += 2
        if stream_id > 0xFFFF_FFFF:
            raise Unreachable(
                f"{short_peer(self.peer)}: this connection has used up its stream ids; reconnect"
            )
        stream = self._add_stream(stream_id, outbound=True)
        self.queue_control(WINDOW_UPDATE, SYN, stream_id, 0)
        return stream

    def _add_stream(self, stream_id: int, *, outbound: bool) -> YamuxStream:
        stream = YamuxStream(self, stream_id, outbound=outbound)
        self._streams[stream_id] = stream
        self._windows += INITIAL_WINDOW
        if outbound:
            self._outbound += 1
        else:
            self._inbound += 1
        return stream

    def forget(self, stream: YamuxStream) -> None:
        """The stream is over in both directions; frames for it are dropped from now on."""
        if self._streams.pop(stream.stream_id, None) is None:
            return
        self._windows -= stream.window_size
        if stream.outbound:
            self._outbound -= 1
            self._slots.unpark()
        else:
            self._inbound -= 1

    # Sending: called by streams

    def queue_control(self, kind: int, flags: int, stream_id: int, value: int) -> None:
        """Queue a frame without payload. Never waits; a peer that makes us queue without reading is cut off."""
        if self.ended is None and not self._sender.queue_control(kind, flags, stream_id, value):
            self.close("it does not read what it asks for")

    async def send_payload(self, stream: YamuxStream, payload: memoryview) -> None:
        """Queue one DATA frame; returns when the caller's memory is no longer needed. Raises Unreachable."""
        await self._sender.send_payload(stream, payload)

    async def _send_forever(self) -> None:
        try:
            await self._sender.run()
        except RecordError as error:
            # The peer may have finished streams before it went: let the reader meet the end by itself.
            await trio.sleep(LINGER_SECONDS)
            self.close(str(error))

    # Receiving

    async def _read_until_end(self) -> str:
        reader, work, turns = self._reader, 0, 0
        try:
            self._parse(memoryview(self._early))
            while True:
                if self.ended is not None:
                    return self.ended
                size = reader.next_size()
                if size is None:
                    if not await reader.fill():
                        return "the connection was closed"
                    continue
                destination = self._direct_destination(size)
                if destination is not None:
                    self._receive_directly(destination)
                    filled = self._payload_stream is not None and self._payload_stream.is_filled
                    if filled or turns:
                        # Let the receiver name its next memory before more arrives, which would have to be copied;
                        # and whoever was sent a message between the bulk must not wait behind megabytes of it.
                        turns = max(0, turns - 1)
                        await trio.lowlevel.checkpoint()
                else:
                    self._parse(memoryview(reader.open()))
                    work += size // _WORK_BYTES
                    if self._woken:
                        self._woken, turns = False, TURNS_FOR_WOKEN
                work += 1
                if work >= MAX_WORK:
                    # Empty records and small frames are cheap to send: everybody else gets a turn meanwhile.
                    work = 0
                    await trio.lowlevel.checkpoint()
        except RecordError as error:
            return str(error)
        except YamuxError as error:
            return f"it broke the stream protocol: {error}"

    def _direct_destination(self, size: int) -> memoryview | None:
        """Where a record of nothing but payload for a waiting task may be decrypted to."""
        stream = self._payload_stream
        if stream is None or not 0 < size <= self._payload_left:
            return None
        return stream.direct_destination(size)

    def _receive_directly(self, destination: memoryview) -> None:
        stream = self._payload_stream
        assert stream is not None
        try:
            self._reader.open_into(destination)
        except RecordError:
            stream.break_off(f"{short_peer(self.peer)}: a record did not authenticate")
            raise
        self._payload_left -= len(destination)
        stream.received_directly(len(destination))

    def _parse(self, data: memoryview) -> None:
        position, size = 0, len(data)
        while position < size:
            if self._payload_left:
                count = min(self._payload_left, size - position)
                self._payload_left -= count
                if self._payload_stream is not None:
                    self._payload_stream.received(data[position : position + count])
                position += count
            elif not self._partial_header and size - position >= HEADER.size:
                fields = HEADER.unpack_from(data, position)
                position += HEADER.size
                self._on_frame(*fields)
            else:
                count = min(HEADER.size - len(self._partial_header), size - position)
                self._partial_header += data[position : position + count]
                position += count
                if len(self._partial_header) == HEADER.size:
                    fields = HEADER.unpack(self._partial_header)
                    self._partial_header.clear()
                    self._on_frame(*fields)

    def _on_frame(self, version: int, kind: int, flags: int, stream_id: int, length: int) -> None:
        if version or kind > GO_AWAY or flags > 15:
            raise YamuxError(f"unknown frame (version {version}, type {kind}, flags {flags})")
        if kind == PING:
            if flags & SYN:
                self.queue_control(PING, ACK, 0, length)
        elif kind == GO_AWAY:
            self._end("it went away")
        else:
            self._on_stream_frame(kind, flags, stream_id, length)

    def _on_stream_frame(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        stream = self._accept(stream_id) if flags & SYN else self._streams.get(stream_id)
        if stream is None and not self._existed(stream_id):
            raise YamuxError(f"a frame for stream {stream_id}, which never was")
        if kind == DATA:
            self._payload_stream = stream
            self._payload_left = length
            if stream is not None and not stream.expect(length):
                raise YamuxError(f"stream {stream_id} sent more than its window, or after its end")
        elif stream is not None and length:
            stream.window_opened(length)
        if stream is not None and flags & RST:
            stream.reset_by_peer()
        elif stream is not None and flags & FIN:
            # A FIN with a payload counts after the payload.
            stream.finished_by_peer(after=length if kind == DATA else 0)

    def _accept(self, stream_id: int) -> YamuxStream | None:
        if stream_id == 0 or stream_id % 2 != self._peer_parity or stream_id in self._streams:
            raise YamuxError(f"it opened stream {stream_id}, which is not its to open")
        self._last_peer_id = max(self._last_peer_id, stream_id)
        if self._inbound >= MAX_STREAMS:
            self.queue_control(WINDOW_UPDATE, RST, stream_id, 0)
            return None
        stream = self._add_stream(stream_id, outbound=False)
        self.queue_control(WINDOW_UPDATE, ACK, stream_id, 0)
        self._on_stream(stream)
        return stream

    def _existed(self, stream_id: int) -> bool:
        if stream_id % 2 == self._peer_parity:
            return 0 < stream_id <= self._last_peer_id
        return 0 < stream_id < self._next_id

    def has_woken(self) -> None:
        """Somebody who waited for a message has one: the reader lets tasks run while bulk goes on."""
        self._woken = True
        if self._near:
            self._shared_bytes = SHARED_BYTES

    def window_now(self, most: int, count: int) -> int:
        """Of a window of `most` bytes, what the peer may send ahead; `count` bytes of it were read just now."""
        if not self._shared_bytes:
            return most
        self._shared_bytes = max(0, self._shared_bytes - count)
        return min(most, SHARED_WINDOW)

    # Memory: called by streams

    def buffer_bytes(self, count: int) -> bool:
        """Account for received bytes that nobody has read yet; False when there is no memory for them."""
        if self.ended is not None or not self._budget.take(count):
            return False
        self._buffered += count
        return True

    def release_bytes(self, count: int) -> None:
        """Those bytes were read or dropped."""
        if self.ended is None:
            self._buffered -= count
            self._budget.give(count)

    def grow_window(self, current: int) -> int:
        """By how much a stream that reads bulk may raise its window."""
        growth = BULK_WINDOW - current
        if growth <= 0 or self._windows + growth > MAX_WINDOWS:
            return 0
        self._windows += growth
        return growth
