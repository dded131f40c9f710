"""The port an agent had in its last run: taken again where it is free.

Others remember where a peer was, and an owner may have opened that port in a firewall; a new one in every run would
make both worthless. An agent that names a port in `listen` gets that one or none.
"""

import logging
import os
import socket
from pathlib import Path

from coppermesh.p2p.addresses import listen_address, parse_address

_log = logging.getLogger(__name__)


def with_last_port(listen: str, path: Path) -> str:
    """`listen` with the port in the file in place of 0, where that port can be had now. Raises Unreachable."""
    kind, host, port = listen_address(listen)
    last = _read(path) if port == 0 else None
    return f"/{kind}/{host}/tcp/{last}" if last is not None and _is_free(host, last) else listen


def keep_port(path: Path, addresses: list[str]) -> None:
    """Remember where this agent listens. A disk that is full costs only that."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(f"{parse_address(addresses[0]).port}\n")
    except OSError as error:
        _log.warning("the port cannot be kept in %s: %s", path, error.strerror)


def _read(path: Path) -> int | None:
    try:
        text = path.read_bytes()[:16].strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and 0 < int(text) < 65536 else None


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()  # Linux lets two bind and only one listen
        except OSError:
            return False
    return True
