"""The agent's end of a SEQPACKET pair, under trio."""

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
        self.receiving = False
        """Somebody waits for a message."""
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)

    @property
    def unasked(self) -> bool:
        """Whether something came, or the other end has closed, while nobody waits for a message."""
        return not self.receiving and self._sock.fileno() >= 0 and bool(self._readable.poll(0))

    async def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send one message. Raises OSError where the other end has closed. A cancelled send sent nothing.

        Where too many descriptors of this user are on their way it waits, as `sockets.send` does.
        """
        rights = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        for _ in range(CROWDED_TRIES):
            try:
                await self._sock.sendmsg([data], rights)
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise
                await trio.sleep(CROWDED_PAUSE_SECONDS)
            else:
                return
        await self._sock.sendmsg([data], rights)

    async def receive(self) -> tuple[bytes, list[int]]:
        """The next message and its descriptors (the caller's to close); `(b"", [])` at the end.

        Raises PipeError where either was cut off.
        """
        self.receiving = True
        try:
            data, ancillary, flags, _ = await self._sock.recvmsg(
                MAX_MESSAGE_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:  # it ended with something of ours unread
            return b"", []
        finally:
            self.receiving = False
        return data, read_rights(ancillary, flags)

    def close(self) -> None:
        """Close this end; a receive in progress raises trio.ClosedResourceError."""
        self._sock.close()


def channel_pair() -> tuple[Channel, int]:
    """A channel, and the descriptor of its other end for another process (the caller's to close)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours), theirs.detach()
