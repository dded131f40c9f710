"""Dialling from the port that this agent listens on.

A router translates by the port that a packet comes from. Only a connection that leaves from the listening port makes
the translation that others can use to reach that port, and lets a peer that we are connected to tell us what it is. So
the listener allows its port to be shared (`SO_REUSEPORT`, set only after it was bound, so that no second agent can take
the same port unnoticed), and dialling binds to it first. Where the kernel says no (an older connection between the same
two ports is not quite over), any port will do.
"""

import errno
import socket
from collections.abc import Sequence

import trio

from coppermesh.p2p.addresses import is_loopback, is_private

CONNECT_SECONDS = 5.0
"""Three tries of the kernel's."""
NEAR_SECONDS = 2.0
"""Two, to an address of a private network: it is near, or in somebody else's network and leads nowhere."""

RESOLVE_SECONDS = 5.0
HEAD_START_SECONDS = 0.25
MAX_HOSTS = 4
"""Of one name."""


def share_port(listener: trio.SocketListener) -> None:
    """Let this process dial from the listener's port."""
    listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


async def open_tcp(kind: str, host: str, port: int, local_port: int) -> trio.SocketStream:
    """A TCP connection to the IP address `host`, from `local_port` where that is not 0 and can be. Raises OSError."""
    seconds = CONNECT_SECONDS if not is_private(host) else NEAR_SECONDS
    with trio.move_on_after(seconds):
        if local_port and kind in ("ip4", "ip6") and not is_loopback(host):
            stream = await _open_from(kind, host, port, local_port)
            if stream is not None:
                return stream
        return await trio.open_tcp_stream(host, port)
    raise OSError(errno.ETIMEDOUT, f"no answer within {seconds:g} s")


async def resolve(kind: str, name: str, port: int) -> list[str]:
    """The hosts that a name (`dns`, `dns4` or `dns6`) stands for, at most `MAX_HOSTS`. Raises OSError: none."""
    family = {"dns4": socket.AF_INET, "dns6": socket.AF_INET6}.get(kind, socket.AF_UNSPEC)
    try:
        with trio.fail_after(RESOLVE_SECONDS):
            found = await trio.socket.getaddrinfo(name, port, family, socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(errno.EINVAL, f"{name!r} is no host name") from error
    except trio.TooSlowError:
        raise OSError(errno.ETIMEDOUT, f"no answer for {name!r} within {RESOLVE_SECONDS:g} s") from None
    # Each once, in the resolver's order; one with a scope belongs to one interface of this machine.
    return [host for host in dict.fromkeys(str(each[4][0]) for each in found) if "%" not in host][:MAX_HOSTS]


async def open_any(hosts: Sequence[str], port: int, local_port: int) -> trio.SocketStream:
    """A connection to whichever host answers first; each has a head start over the next. Raises OSError: none does."""
    opened: list[trio.SocketStream] = []
    errors: list[OSError] = []

    async def attempt(number: int, host: str) -> None:
        await trio.sleep(number * HEAD_START_SECONDS)
        try:
            opened.append(await open_tcp("ip6" if ":" in host else "ip4", host, port, local_port))
        except OSError as error:
            errors.append(error)
        else:
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for number, host in enumerate(hosts):
                nursery.start_soon(attempt, number, host)
    except BaseException:
        for stream in opened:
            await trio.aclose_forcefully(stream)
        raise
    if not opened:
        raise errors[0]
    for stream in opened[1:]:
        await trio.aclose_forcefully(stream)
    return opened[0]


async def _open_from(kind: str, host: str, port: int, local_port: int) -> trio.SocketStream | None:
    """The same, from that port or not at all (None)."""
    sock = await shared_socket(kind, local_port)
    if sock is None:
        return None
    try:
        await sock.connect((host, port))
    except OSError as error:
        sock.close()
        if error.errno in _TAKEN:
            return None
        raise
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


async def shared_socket(kind: str, local_port: int) -> trio.socket.SocketType | None:
    """A socket bound to the listener's port; None where the kernel does not let us."""
    try:
        sock = trio.socket.socket(socket.AF_INET6 if kind == "ip6" else socket.AF_INET, socket.SOCK_STREAM)
    except OSError:  # no descriptor is left
        return None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        await sock.bind(("::" if kind == "ip6" else "0.0.0.0", local_port))  # noqa: S104 - the way out decides
    except OSError:
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


_TAKEN = {errno.EADDRINUSE, errno.EADDRNOTAVAIL}
"""The two ports are connected already, or were a moment ago."""
