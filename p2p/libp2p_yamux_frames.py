"""The sending half of a yamux connection: frames, their two queues, and the one task that seals and sends them.

See libp2p_yamux for the theory of operation.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING

import trio

from coppermesh.p2p.libp2p_noise import RecordError, RecordWriter

if TYPE_CHECKING:
    from coppermesh.p2p.libp2p_yamux_stream import YamuxStream

DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
HEADER = struct.Struct("!BBHII")
INITIAL_WINDOW = 256 * 1024
"""Bytes; fixed by the yamux specification."""
BULK_WINDOW = 4 * 1024 * 1024
SHARED_WINDOW = 512 * 1024
"""Of bulk from a near peer while messages travel beside it: they wait behind what was sent and is not read yet."""
SHARED_BYTES = 16 * 1024 * 1024
"""Bulk that arrives after a message before the window is opened again."""
MAX_WINDOWS = 64 * 1024 * 1024
MAX_SEND_WINDOW = 2**32 - 1
MAX_FRAME = 256 * 1024
SMALL_FRAME = 16 * 1024
MAX_BULK = 4 * 1024 * 1024
"""Bytes that a sender hands over at once; the writer cuts them into frames."""
STALL_SECONDS = 60.0
SEND_QUEUE = 512 * 1024
"""Senders of small frames wait while this much is queued."""
MAX_QUEUED = 2 * 1024 * 1024
"""Control frames are refused beyond this."""
ROUNDS_PER_TURN = 2
"""Frames of bulk, 256 KiB each, after which others run: a round through trio costs as much as sealing half a frame."""
_SEAL_CHUNK = 256 * 1024


class BulkFrame:
    """A large payload in its sender's memory, waiting for its turn; each turn sends up to MAX_FRAME bytes of it."""

    __slots__ = ("_done", "payload", "stream", "withdrawn")

    def __init__(self, stream: YamuxStream, payload: memoryview) -> None:
        self.stream = stream
        self.payload = payload
        self.withdrawn = False
        self._done = trio.Event()

    async def wait(self) -> None:
        """Until the payload was sealed, or never will be."""
        await self._done.wait()

    def advance(self, count: int) -> bool:
        """`count` bytes were sealed; whether more are left."""
        self.payload = self.payload[count:]
        return len(self.payload) > 0

    def finish(self) -> None:
        """Sealed to the end, or given up."""
        self._done.set()

    def withdraw(self) -> None:
        """The sender no longer waits; a frame not sealed yet is not sent."""
        self.withdrawn = True
        self.payload = memoryview(b"")


class FrameSender:
    """Queues frames and sends them from one task, `run`."""

    def __init__(self, writer: RecordWriter) -> None:
        self._writer = writer
        self._queue = bytearray()
        self._bulk: deque[BulkFrame] = deque()
        self._sending = False
        self._abandoned = False
        self._work = trio.lowlevel.ParkingLot()
        self._progress = trio.lowlevel.ParkingLot()

    def queue_control(self, kind: int, flags: int, stream_id: int, value: int) -> bool:
        """Queue a frame without payload; False when too much is queued already."""
        if len(self._queue) > MAX_QUEUED:
            return False
        self._queue += HEADER.pack(0, kind, flags, stream_id, value)
        self._work.unpark()
        return True

    async def send_payload(self, stream: YamuxStream, payload: memoryview) -> None:
        """Queue `payload` as DATA frames; returns when the caller's memory is no longer needed. Raises Unreachable."""
        if len(payload) <= SMALL_FRAME:
            while len(self._queue) > SEND_QUEUE and not self._abandoned:
                await self._progress.park()
            stream.check_sendable()
            self._queue += HEADER.pack(0, DATA, 0, stream.stream_id, len(payload))
            self._queue += payload
            self._work.unpark()
            return
        stream.check_sendable()
        frame = BulkFrame(stream, payload)
        self._bulk.append(frame)
        self._work.unpark()
        try:
            await frame.wait()
        finally:
            frame.withdraw()
        stream.check_sendable()

    async def wait_idle(self) -> None:
        """Until everything queued was handed to the socket, or never will be."""
        while not self._abandoned and (self._queue or self._bulk or self._sending):
            await self._progress.park()

    def abandon(self) -> None:
        """Nothing will be sent any more: let every waiting sender go on (to find its stream broken)."""
        self._abandoned = True
        for frame in self._bulk:
            frame.finish()
        self._bulk.clear()
        self._queue.clear()
        self._progress.unpark_all()

    async def run(self) -> None:
        """Send until cancelled. Raises RecordError when the connection breaks or takes nothing for STALL_SECONDS."""
        rounds = 0
        while True:
            while not self._queue and not self._bulk:
                await self._work.park()
            self._sending = True
            await self._send_round()
            self._sending = False
            self._progress.unpark_all()
            rounds += 1
            if not self._bulk or rounds % ROUNDS_PER_TURN == 0:
                # Bulk may go on without ever waiting for the socket: everybody else gets a turn all the same.
                await trio.lowlevel.checkpoint()

    async def _flush(self) -> None:
        if self._writer.flush_now():
            return
        with trio.move_on_after(STALL_SECONDS) as stalled:
            await self._writer.flush()
        if stalled.cancelled_caught:
            raise RecordError(f"it took nothing off the wire for {STALL_SECONDS:g} s")

    async def _send_round(self) -> None:
        """All small frames queued so far, and at most one large one."""
        queued, self._queue = self._queue, bytearray()
        view = memoryview(queued)
        while len(view) > _SEAL_CHUNK:
            self._writer.seal(view[:_SEAL_CHUNK])
            view = view[_SEAL_CHUNK:]
            await self._flush()
        frame = self._next_bulk_frame()
        if frame is None:
            self._writer.seal(view)
        else:
            await self._seal_with(frame, view)
        await self._flush()

    async def _seal_with(self, frame: BulkFrame, view: memoryview) -> None:
        more = False
        try:
            if self._size_with(frame, len(view)) > self._writer.room:
                self._writer.seal(view)
                view = view[len(view) :]
                await self._flush()
            if frame.withdrawn or not frame.stream.sendable:
                self._writer.seal(view)
                return
            # Nothing waits between these two: header and payload go out together or not at all.
            payload = frame.payload[:MAX_FRAME]
            header = HEADER.pack(0, DATA, 0, frame.stream.stream_id, len(payload))
            self._writer.seal(memoryview(bytes(view) + header))
            self._writer.seal(payload)
            more = frame.advance(len(payload))
        finally:
            if more and not self._abandoned:
                # Behind the others: streams with bulk take turns.
                self._bulk.append(frame)
            else:
                frame.finish()

    def _size_with(self, frame: BulkFrame, queued_bytes: int) -> int:
        sealed_size = self._writer.sealed_size
        return sealed_size(queued_bytes + HEADER.size) + sealed_size(min(len(frame.payload), MAX_FRAME))

    def _next_bulk_frame(self) -> BulkFrame | None:
        while self._bulk:
            frame = self._bulk.popleft()
            if not frame.withdrawn and frame.stream.sendable:
                return frame
            frame.finish()
        return None
