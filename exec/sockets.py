"""Blocking SEQPACKET conversations of the zygote and its children: a message is a datagram, descriptors ride along."""

import os
import socket
from collections.abc import Sequence

from coppermesh.exec.pipe import MAX_DESCRIPTORS, MAX_MESSAGE_BYTES, PipeError


def receive(sock: socket.socket, max_descriptors: int = MAX_DESCRIPTORS) -> tuple[bytes, list[int]]:
    """The next message and its descriptors (the caller's to close); `(b"", [])` when the other end has closed.

    Raises PipeError where either was cut off.
    """
    data, descriptors, flags, _ = socket.recv_fds(
        sock, MAX_MESSAGE_BYTES + 1, max_descriptors, socket.MSG_CMSG_CLOEXEC
    )
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(descriptors)
        raise PipeError("a message was too large, or carried too many descriptors")
    return data, descriptors


def send(sock: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send one message. Raises OSError where the other end has closed."""
    socket.send_fds(sock, [data], list(descriptors))


def close_all(descriptors: Sequence[int]) -> None:
    """Close every one of them, whatever happens to the others."""
    for descriptor in descriptors:
        try:
            os.close(descriptor)
        except OSError:
            continue
