"""One yamux stream: implements `transport.Stream`. See libp2p_yamux for the theory of operation.

Each direction ends once: *finished* (FIN) or *broken* (RST, end of the connection, cancelled send). A finished incoming
direction stays readable to its end even when the stream breaks afterwards: it was complete.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from coppermesh.p2p.errors import Unreachable
from coppermesh.p2p.ids import PeerId, short_peer
from coppermesh.p2p.libp2p_yamux_frames import (
    FIN,
    INITIAL_WINDOW,
    MAX_BULK,
    MAX_SEND_WINDOW,
    RST,
    STALL_SECONDS,
    WINDOW_UPDATE,
)

if TYPE_CHECKING:
    from coppermesh.p2p.libp2p_yamux import YamuxConnection

_BULK_AFTER = 128 * 1024
_CHECKPOINT_EVERY = 64


class YamuxStream:
    """See `transport.Stream`."""

    def __init__(self, connection: YamuxConnection, stream_id: int, *, outbound: bool) -> None:
        self.stream_id = stream_id
        self.outbound = outbound
        self.window_size = INITIAL_WINDOW
        self._connection = connection
        self._peer = connection.peer
        # Sending
        self._send_window = INITIAL_WINDOW
        self._send_finished = False
        self._sending = False
        self._window_lot = trio.lowlevel.ParkingLot()
        # Receiving
        self._buffer = bytearray()
        self._receive_window = INITIAL_WINDOW
        self._unreported = 0
        self._read_in_all = 0
        self._finish_after: int | None = None
        self._receive_finished = False
        self._receiving = False
        self._data_lot = trio.lowlevel.ParkingLot()
        self._destination: memoryview | None = None
        self._filled = 0
        # Both
        self._closed = False
        self._broken: str | None = None
        self._calls = 0

    @property
    def peer(self) -> PeerId:
        """The id that the other side proved in the Noise handshake."""
        return self._peer

    # Sending

    @property
    def sendable(self) -> bool:
        """Whether data may still be sent."""
        return self._broken is None and not self._send_finished

    def check_sendable(self) -> None:
        """Raise Unreachable unless data may still be sent."""
        if self._broken is not None:
            raise Unreachable(self._broken)
        if self._send_finished:
            raise Unreachable(f"stream to {short_peer(self._peer)}: sending was already finished")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `transport.Stream`."""
        await self._checkpoint()
        self.check_sendable()
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        view = memoryview(data).cast("B")
        sent = 0
        self._sending = True
        try:
            while sent < len(view):
                if self._send_window <= 0:
                    await self._wait_for_window()
                size = min(self._send_window, MAX_BULK, len(view) - sent)
                self._send_window -= size
                await self._connection.send_payload(self, view[sent : sent + size])
                sent += size
        except trio.Cancelled:
            self.break_off(f"stream to {short_peer(self._peer)}: a send was cancelled half-way")
            raise
        finally:
            self._sending = False

    async def _wait_for_window(self) -> None:
        with trio.move_on_after(STALL_SECONDS):
            while self._send_window <= 0:
                self.check_sendable()
                await self._window_lot.park()
            return
        self.break_off(f"{short_peer(self._peer)} read nothing for {STALL_SECONDS:g} s")
        self.check_sendable()

    async def send_eof(self) -> None:
        """See `transport.Stream`."""
        await trio.lowlevel.checkpoint()
        self.check_sendable()
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._finish_sending()

    def _finish_sending(self) -> None:
        self._send_finished = True
        self._connection.queue_control(WINDOW_UPDATE, FIN, self.stream_id, 0)
        self._forget_if_over()

    # Receiving

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """See `transport.Stream`."""
        if max_bytes < 1:
            raise ValueError("max_bytes: want at least 1")
        await self._checkpoint()
        self._start_receiving()
        try:
            while not self._buffer:
                if not self._more_will_come():
                    return b""
                await self._data_lot.park()
        finally:
            self._receiving = False
        return self._take(max_bytes)

    async def receive_into(self, buffer: memoryview) -> None:
        """See `transport.Stream`. Cancelled half-way, or ended early: the stream is broken."""
        view = memoryview(buffer).cast("B")
        await self._checkpoint()
        self._start_receiving()
        count = min(len(self._buffer), len(view))
        try:
            view[:count] = memoryview(self._buffer)[:count]
            self._drop(count)
            self._destination, self._filled = view, count
            while self._filled < len(view):
                if not self._more_will_come():
                    missing = len(view) - self._filled
                    raise Unreachable(f"stream from {short_peer(self._peer)} ended {missing} bytes short")
                await self._data_lot.park()
        except trio.Cancelled:
            if self._filled:
                self.break_off(f"stream from {short_peer(self._peer)}: a receive was cancelled half-way")
            raise
        finally:
            self._destination = None
            self._receiving = False

    def _start_receiving(self) -> None:
        if self._closed:
            raise Unreachable(self._broken or f"stream with {short_peer(self._peer)} is closed here")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._receiving = True
        self._filled = 0

    def _more_will_come(self) -> bool:
        if self._receive_finished and not self._closed:
            return False
        if self._broken is not None:
            raise Unreachable(self._broken)
        if self._closed:
            raise Unreachable(f"stream with {short_peer(self._peer)} is closed here")
        return True

    def _take(self, max_bytes: int) -> bytes:
        with memoryview(self._buffer) as view:
            data = bytes(view[:max_bytes])
        self._drop(len(data))
        return data

    def _drop(self, count: int) -> None:
        if count:
            del self._buffer[:count]
            self._connection.release_bytes(count)
            self._consumed(count)

    def _consumed(self, count: int) -> None:
        """Somebody read `count` bytes: let the peer send more, but in few messages."""
        if self._receive_finished or self._finish_after is not None or self._broken is not None:
            return
        self._read_in_all += count
        growth = 0
        if self._read_in_all >= _BULK_AFTER:
            growth = self._connection.grow_window(self.window_size)
            self.window_size += growth
        self._unreported += count + growth
        window = self._connection.window_now(self.window_size, count)
        credit = min(self._unreported, window - self._receive_window)
        if credit >= window // 2 or (growth and credit > 0):
            self._unreported -= credit
            self._receive_window += credit
            self._connection.queue_control(WINDOW_UPDATE, 0, self.stream_id, credit)

    # Ending

    async def aclose(self) -> None:
        """See `transport.Stream`."""
        self.close_now()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def close_now(self) -> None:
        """`aclose` without the checkpoint. A send still under way in another task breaks."""
        if self._closed or self._broken is not None:
            self._discard_unread()
            self._closed = True
            return
        if self._sending:
            self.break_off(f"stream to {short_peer(self._peer)} was closed during a send")
            return
        self._closed = True
        self._discard_unread()
        if not self._send_finished:
            self._finish_sending()
        self._data_lot.unpark_all()

    async def reset(self) -> None:
        """See `transport.Stream`."""
        self.break_off(f"stream with {short_peer(self._peer)} was reset")
        await trio.lowlevel.cancel_shielded_checkpoint()

    def break_off(self, reason: str) -> None:
        """Break both directions here and tell the peer."""
        if self._broken is None:
            over = self._send_finished and self._receive_finished
            self._break(reason, keep_finished=False)
            if not over:
                self._connection.queue_control(WINDOW_UPDATE, RST, self.stream_id, 0)
            self._connection.forget(self)

    def _break(self, reason: str, *, keep_finished: bool) -> None:
        self._broken = reason
        if not (keep_finished and self._receive_finished):
            self._receive_finished = False
            self._discard_unread()
        self._window_lot.unpark_all()
        self._data_lot.unpark_all()

    def _discard_unread(self) -> None:
        self._connection.release_bytes(len(self._buffer))
        self._buffer.clear()

    def _forget_if_over(self) -> None:
        if self._send_finished and self._receive_finished:
            self._connection.forget(self)

    async def _checkpoint(self) -> None:
        """Cheap most times, but now and then let other tasks run: a tight loop must not starve them."""
        self._calls += 1
        if self._calls % _CHECKPOINT_EVERY:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()

    # What the connection's reader calls; none of these waits.

    def expect(self, length: int) -> bool:
        """A DATA frame of `length` bytes begins; False when the window does not allow it."""
        if self._receive_finished or self._finish_after is not None:
            return length == 0
        self._receive_window -= length
        return self._receive_window >= 0

    def direct_destination(self, size: int) -> memoryview | None:
        """The next `size` bytes of the memory a task waits to have filled, or None."""
        destination = self._destination
        if destination is None or self._buffer or size > len(destination) - self._filled:
            return None
        return destination[self._filled : self._filled + size]

    @property
    def is_filled(self) -> bool:
        """Whether the memory that a task waits for is complete, and the task has not run yet."""
        return self._destination is not None and self._filled == len(self._destination)

    def received_directly(self, count: int) -> None:
        """`count` verified bytes lie where `direct_destination` said."""
        assert self._destination is not None
        self._filled += count
        self._consumed(count)
        if self._filled == len(self._destination):
            self._data_lot.unpark_all()
        self._count_down(count)

    def received(self, data: memoryview) -> None:
        """Payload arrived."""
        count = len(data)
        if self._closed:
            # We closed: nobody will read this, and the sender should know.
            self.break_off(f"stream with {short_peer(self._peer)} is closed here")
        elif self._broken is None:
            direct = self.direct_destination(min(count, self._missing()))
            if direct:
                direct[:] = data[: len(direct)]
                self.received_directly(len(direct))
                data = data[len(direct) :]
            self._buffer_rest(data)

    def _missing(self) -> int:
        return 0 if self._destination is None else len(self._destination) - self._filled

    def _buffer_rest(self, data: memoryview) -> None:
        if not len(data):
            return
        if not self._connection.buffer_bytes(len(data)):
            self.break_off("this agent has no memory left for unread data")
            return
        self._buffer += data
        if self._data_lot:
            self._connection.has_woken()
            self._data_lot.unpark_all()
        self._count_down(len(data))

    def _count_down(self, count: int) -> None:
        if self._finish_after is not None:
            self._finish_after -= count
            if self._finish_after <= 0:
                self._finish_receiving()

    def window_opened(self, credit: int) -> None:
        """The peer lets us send more."""
        self._send_window = min(self._send_window + credit, MAX_SEND_WINDOW)
        self._window_lot.unpark_all()

    def finished_by_peer(self, *, after: int) -> None:
        """FIN: nothing comes after the next `after` bytes."""
        if after:
            self._finish_after = after
        elif self._finish_after is None:
            self._finish_receiving()

    def _finish_receiving(self) -> None:
        if self._broken is None and not self._receive_finished:
            self._receive_finished = True
            self._data_lot.unpark_all()
            self._forget_if_over()

    def reset_by_peer(self) -> None:
        """RST: both directions are over."""
        if self._broken is None:
            self._break(f"{short_peer(self._peer)} reset the stream", keep_finished=True)
            self._connection.forget(self)

    def connection_ended(self, reason: str) -> None:
        """The connection is gone."""
        if self._broken is None:
            self._break(reason, keep_finished=True)
