"""Blocking SEQPACKET conversations of the zygote and its children: a message is a datagram, descriptors ride along."""

import array
import errno
import os
import socket
import time
from collections.abc import Iterable, Sequence

from coppermesh.exec.pipe import MAX_DESCRIPTORS, MAX_MESSAGE_BYTES, PipeError

_INT_BYTES = array.array("i").itemsize
CROWDED_TRIES = 200
CROWDED_PAUSE_SECONDS = 0.01
"""How often, and how far apart, a message with descriptors is tried where too many are on their way."""


def receive(sock: socket.socket, max_descriptors: int = MAX_DESCRIPTORS) -> tuple[bytes, list[int]]:
    """The next message and its descriptors (the caller's to close); `(b"", [])` when the other end has closed.

    Raises PipeError where either was cut off.
    """
    # Not socket.recv_fds: in Python 3.11 it leaves out the flags, and a compiler would inherit the descriptors.
    space = socket.CMSG_SPACE(max_descriptors * _INT_BYTES)
    data, ancillary, flags, _ = sock.recvmsg(MAX_MESSAGE_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    return data, read_rights(ancillary, flags)


def read_rights(ancillary: Sequence[tuple[int, int, bytes]], flags: int) -> list[int]:
    """The descriptors that came with a message. Raises PipeError, and closes them, where something was cut off."""
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % _INT_BYTES])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(descriptors)
        raise PipeError("a message was too large, or carried too many descriptors")
    return list(descriptors)


def send(sock: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send one message. Raises OSError where the other end has closed.

    Linux limits the descriptors of one user that are on their way, over all its processes: another lease's worker may
    have used that up for a moment, until its agent reads or ends it.
    """
    if not descriptors:
        sock.send(data)  # without a system call that could carry descriptors: workers may not make that one
        return
    for _ in range(CROWDED_TRIES):
        try:
            socket.send_fds(sock, [data], list(descriptors))
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:
                raise
            time.sleep(CROWDED_PAUSE_SECONDS)
        else:
            return
    socket.send_fds(sock, [data], list(descriptors))


def close_all(descriptors: Iterable[int]) -> None:
    """Close every one of them, whatever happens to the others."""
    for descriptor in descriptors:
        try:
            os.close(descriptor)
        except OSError:
            continue
