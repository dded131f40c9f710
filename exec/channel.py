"""The agent's end of a SEQPACKET pair, under trio.

Whoever is at the other end speaks when it is asked: each message from here may be answered by one. What it says
otherwise is `unasked`. From the moment in which a question has left, an answer may lie here, long before the task that
asked gets to read it: a busy machine runs the other end first. So what was asked is noted with the sending itself, and
not with the waiting for the answer.
"""

import array
import errno
import select
import socket
from collections.abc import Sequence

import trio

from coppermesh.exec.pipe import MAX_DESCRIPTORS, MAX_MESSAGE_BYTES
from coppermesh.exec.sockets import CROWDED_PAUSE_SECONDS, CROWDED_TRIES, read_rights

_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)


class Channel:
    """Sends and receives whole messages with descriptors. Not for several tasks at once in one direction."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._sending = sock
        self._asked = False
        """Something was said to the other end, and nothing has been read since."""
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)

    @property
    def unasked(self) -> bool:
        """Whether something came, or the other end has closed, with nothing asked that is not answered."""
        return not self._asked and self._sock.fileno() >= 0 and bool(self._readable.poll(0))

    async def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send one message. Raises OSError where the other end has closed. A cancelled send sent nothing.

        Where too many descriptors of this user are on their way it waits, as `sockets.send` does.
        """
        rights = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        for _ in range(CROWDED_TRIES):
            try:
                await self._send_once(data, rights)
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise
                await trio.sleep(CROWDED_PAUSE_SECONDS)
            else:
                return
        await self._send_once(data, rights)

    async def _send_once(self, data: bytes, rights: list[tuple[int, int, "array.array[int]"]]) -> None:
        await trio.lowlevel.checkpoint()
        while True:
            try:
                self._sending.sendmsg([data], rights)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sending)
            else:
                self._asked = True  # before any other task runs: the watchdog is one
                return

    async def receive(self) -> tuple[bytes, list[int]]:
        """The next message and its descriptors (the caller's to close); `(b"", [])` at the end.

        Raises PipeError where either was cut off.
        """
        try:
            data, ancillary, flags, _ = await self._sock.recvmsg(
                MAX_MESSAGE_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:  # it ended with something of ours unread
            return b"", []
        self._asked = False
        return data, read_rights(ancillary, flags)

    def close(self) -> None:
        """Close this end; a receive in progress raises trio.ClosedResourceError."""
        self._sock.close()


def channel_pair() -> tuple[Channel, int]:
    """A channel, and the descriptor of its other end for another process (the caller's to close)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours), theirs.detach()
