"""Streams between two tasks of one process, with latency, back-pressure and the failures of a real network.

Theory of operation. A stream is two pipes, one per direction. A pipe is a queue of (arrival time, bytes) whose sum is
bounded: a sender waits while it is full, a receiver waits until the first piece has arrived. There is no background
task: latency is a receiver that sleeps until the arrival time, so virtual clocks (`trio.testing.MockClock`) just work.
A pipe ends in one of two ways, both final: *finished* (the reader sees what was sent, then b"") or *broken* (both ends
raise `Unreachable`, unread bytes are lost).
"""

from collections import deque
from collections.abc import Callable

import trio

from coppermesh.p2p.errors import Unreachable
from coppermesh.p2p.ids import PeerId, short_peer


class MemoryPipe:
    """One direction of a stream: at most `window` bytes under way, each `latency_s` seconds late."""

    def __init__(self, window: int, latency_s: float) -> None:
        self._window = window
        self._latency_s = latency_s
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._pending = 0
        self._changed = trio.Event()
        self.finished = False
        self.broken: str | None = None

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def finish(self) -> None:
        """No more bytes will be sent; what is under way still arrives."""
        self.finished = True
        self._wake()

    def break_off(self, reason: str) -> None:
        """The pipe is gone; unread bytes are lost. A pipe that finished and was read to its end stays finished."""
        if self.broken is None and not (self.finished and not self._pieces):
            self.broken = reason
            self._pieces.clear()
            self._pending = 0
            self._wake()

    async def send_all(self, data: memoryview) -> None:
        """Queue everything, waiting for room. Raises Unreachable when broken."""
        sent = 0
        while sent < len(data) or sent == 0:
            if self.broken is not None:
                raise Unreachable(self.broken)
            room = self._window - self._pending
            if room > 0:
                piece = bytes(data[sent : sent + room])
                sent += len(piece)
                if piece:
                    self._pieces.append((trio.current_time() + self._latency_s, piece))
                    self._pending += len(piece)
                    self._wake()
                if sent == len(data):
                    return
            else:
                await self._changed.wait()

    async def receive_some(self, max_bytes: int) -> bytes:
        """1 to `max_bytes` bytes, or b"" once finished and drained. Raises Unreachable when broken."""
        while True:
            if self.broken is not None:
                raise Unreachable(self.broken)
            changed = self._changed
            if self._pieces:
                arrival = self._pieces[0][0]
                if arrival <= trio.current_time():
                    return self._take(max_bytes)
                with trio.move_on_at(arrival):
                    await changed.wait()
            elif self.finished:
                return b""
            else:
                await changed.wait()

    def _take(self, max_bytes: int) -> bytes:
        arrival, piece = self._pieces.popleft()
        if len(piece) > max_bytes:
            self._pieces.appendleft((arrival, piece[max_bytes:]))
            piece = piece[:max_bytes]
        self._pending -= len(piece)
        self._wake()
        return piece


class MemoryStream:
    """One end of a stream; implements `transport.Stream`."""

    def __init__(
        self,
        peer: PeerId,
        incoming: MemoryPipe,
        outgoing: MemoryPipe,
        on_gone: Callable[["MemoryStream"], None],
    ) -> None:
        self._peer = peer
        self._incoming = incoming
        self._outgoing = outgoing
        self._on_gone = on_gone
        self._closed = False
        self._sending = False
        self._receiving = False

    @property
    def peer(self) -> PeerId:
        """The other side; true by construction, the network made both ends."""
        return self._peer

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `transport.Stream`."""
        await trio.lowlevel.checkpoint()
        self._check_open()
        if self._outgoing.finished:
            raise Unreachable(f"stream to {short_peer(self._peer)}: sending was already finished")
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            await self._outgoing.send_all(memoryview(data).cast("B"))
        except trio.Cancelled:
            self.break_off(f"stream to {short_peer(self._peer)}: a send was cancelled half-way")
            raise
        finally:
            self._sending = False

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """See `transport.Stream`."""
        if max_bytes < 1:
            raise ValueError("max_bytes: want at least 1")
        await trio.lowlevel.checkpoint()
        self._check_open()
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._receiving = True
        try:
            return await self._incoming.receive_some(max_bytes)
        finally:
            self._receiving = False

    async def receive_into(self, buffer: memoryview) -> None:
        """See `transport.Stream`."""
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view):
            piece = await self.receive_some(len(view) - filled)
            if not piece:
                missing = len(view) - filled
                raise Unreachable(f"stream from {short_peer(self._peer)} ended {missing} bytes short")
            view[filled : filled + len(piece)] = piece
            filled += len(piece)

    async def send_eof(self) -> None:
        """See `transport.Stream`."""
        await trio.lowlevel.checkpoint()
        self._check_open()
        if self._outgoing.broken is not None:
            raise Unreachable(self._outgoing.broken)
        self._outgoing.finish()
        self._settle()

    async def aclose(self) -> None:
        """See `transport.Stream`."""
        self.close_now()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def reset(self) -> None:
        """See `transport.Stream`."""
        self.break_off(f"stream with {short_peer(self._peer)} was reset")
        await trio.lowlevel.cancel_shielded_checkpoint()

    def close_now(self) -> None:
        """`aclose` without the checkpoint: what was sent still arrives, what the peer still sends is refused."""
        if not self._closed:
            self._closed = True
            self._outgoing.finish()
            if not self._incoming.finished:
                self._incoming.break_off("the other side closed the stream")
            self._on_gone(self)

    def break_off(self, reason: str) -> None:
        """Break both directions at both ends."""
        self._incoming.break_off(reason)
        self._outgoing.break_off(reason)
        self._on_gone(self)

    def _check_open(self) -> None:
        if self._closed:
            raise Unreachable(f"stream with {short_peer(self._peer)} is closed here")

    def _settle(self) -> None:
        if self._incoming.finished and self._outgoing.finished:
            self._on_gone(self)


def memory_stream_pair(
    first: PeerId,
    second: PeerId,
    *,
    window: int,
    latency_s: float,
    on_gone: Callable[[MemoryStream], None],
) -> tuple[MemoryStream, MemoryStream]:
    """The two ends of a new stream: (the one that `first` holds, the one that `second` holds)."""
    forth = MemoryPipe(window, latency_s)
    back = MemoryPipe(window, latency_s)
    return MemoryStream(second, back, forth, on_gone), MemoryStream(first, forth, back, on_gone)
