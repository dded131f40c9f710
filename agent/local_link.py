"""The client's end of the local socket: plain blocking calls, no trio, no libp2p, no keys.

One `LocalLink` is one connection and carries one call at a time. Raw blob bytes move on connections of their own
(`put_blob`, `get_blob`), straight between the socket and the array's memory.
"""

import os
import shlex
import socket
import struct
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from coppermesh.agent.home import Home, connect_unix
from coppermesh.agent.local_messages import (
    MAX_LOCAL_FRAME_BYTES,
    Answer,
    BlobCall,
    Call,
    JsonBody,
    LocalMessage,
)
from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.errors import MeshError, Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.messages import BlobInfo

CALL_SECONDS = 60.0
MESH = "COPPERMESH_MESH"
"""Environment variable: which of the agent's meshes is meant."""
IDLE_SECONDS = 20.0
"""How long a connection is kept for the next call; the agent hangs up on idle ones after a minute."""
MAX_IDLE = 4
_LENGTH = struct.Struct(">I")
_CHUNK = 1 << 20

M = TypeVar("M", bound=LocalMessage)


class AgentUnavailable(Unreachable):
    """No agent answers on this home's socket: start one with `coppermesh agent`, or see its log."""


class LocalLink:
    """One connection to the home's agent. Close it, or use it as a context manager."""

    def __init__(
        self, socket_path: Path, *, timeout_s: float = CALL_SECONDS, mesh: str | None = None
    ) -> None:
        """Connect. `mesh`: which of the agent's meshes is meant; None: what `MESH` names; empty: its default one.

        Raises AgentUnavailable where no agent listens.
        """
        self._mesh = os.environ.get(MESH, "") if mesh is None else mesh
        try:
            self._socket = connect_unix(socket_path)
        except OSError as error:
            holder = Home(socket_path.parent).lock_holder()
            if holder is not None and holder.seed:
                raise AgentUnavailable(str(holder)) from error
            if holder is not None:
                raise AgentUnavailable(
                    f"the agent of {socket_path.parent} ({holder.holder}) does not answer: it is starting or "
                    "ending; try again in some seconds"
                ) from error
            raise AgentUnavailable(
                f"no agent answers on {socket_path} ({error.strerror or error}): "
                f"start one with `coppermesh agent --home {shlex.quote(str(socket_path.parent))}`"
            ) from error
        self._socket.settimeout(timeout_s)

    def use_within(self, timeout_s: float) -> None:
        """From now on a call may take so long."""
        self._socket.settimeout(timeout_s)

    def is_open(self) -> bool:
        """The agent has not hung up, and nothing is left to read."""
        try:
            self._socket.setblocking(False)
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; calling it twice is harmless."""
        self._socket.close()

    def call(self, method: str, body: LocalMessage, answer: type[M]) -> M:
        """Ask and wait. Raises Refused with the agent's reason, or AgentUnavailable when the agent went away."""
        reply = self._exchange(method, encode(body))
        return decode(answer, reply, max_bytes=MAX_LOCAL_FRAME_BYTES)

    def call_json(self, method: str, text: str = "{}") -> str:
        """Ask a reading command; its answer is JSON text."""
        return self.call(method, JsonBody(text), JsonBody).text

    def _exchange(self, method: str, body: bytes) -> bytes:
        frame = encode(Call(method, self._mesh, body))
        if len(frame) > MAX_LOCAL_FRAME_BYTES:
            raise MeshError(
                f"{method}: {len(frame)} bytes in one call, the agent takes {MAX_LOCAL_FRAME_BYTES}; "
                "submit fewer tasks at once"
            )
        try:
            self._socket.sendall(_LENGTH.pack(len(frame)) + frame)
            (length,) = _LENGTH.unpack(self._receive_exactly(_LENGTH.size))
            if length > MAX_LOCAL_FRAME_BYTES:
                raise RemoteProtocolError(f"the agent answered with a frame of {length} bytes")
            answer = decode(Answer, self._receive_exactly(length), max_bytes=MAX_LOCAL_FRAME_BYTES)
        except TimeoutError as error:
            raise AgentUnavailable(f"the agent did not answer {method!r} in time") from error
        except OSError as error:
            raise AgentUnavailable(
                f"the agent went away during {method!r}: {error.strerror or error}"
            ) from error
        if not answer.ok:
            raise Refused(answer.code, answer.sentence)
        return answer.body

    def _receive_exactly(self, size: int) -> bytes:
        buffer = bytearray(size)
        self._receive_into(memoryview(buffer))
        return bytes(buffer)

    def _receive_into(self, view: memoryview) -> None:
        received = 0
        while received < len(view):
            count = self._socket.recv_into(view[received : received + _CHUNK])
            if not count:
                raise ConnectionResetError("connection closed")
            received += count

    def put_blob(self, blob: BlobInfo, data: memoryview) -> None:
        """Hand the agent a blob's bytes. Raises Refused when its store is full."""
        self._exchange("put", encode(BlobCall(blob)))
        try:
            self._socket.sendall(data)
            (length,) = _LENGTH.unpack(self._receive_exactly(_LENGTH.size))
            answer = decode(Answer, self._receive_exactly(length), max_bytes=MAX_LOCAL_FRAME_BYTES)
        except OSError as error:
            raise AgentUnavailable(
                f"the agent went away while taking a blob: {error.strerror or error}"
            ) from error
        if not answer.ok:
            raise Refused(answer.code, answer.sentence)

    def get_blob(self, blob: BlobInfo, into: memoryview) -> None:
        """Fill `into` (exactly `blob.size` bytes) with a blob of the agent's store."""
        self._exchange("get", encode(BlobCall(blob)))
        try:
            self._receive_into(into)
        except OSError as error:
            raise AgentUnavailable(
                f"the agent went away while giving a blob: {error.strerror or error}"
            ) from error


class IdleLinks:
    """A few connections between calls, for a client that makes many. Any thread may take and keep them."""

    def __init__(self) -> None:
        self._idle: deque[tuple[float, LocalLink]] = deque()
        self._process = os.getpid()

    def __del__(self) -> None:
        """Whoever forgets `close` leaves no socket open."""
        self.close()

    def take(self, timeout_s: float) -> LocalLink | None:
        """One that the agent still listens on; None where there is none."""
        if self._process != os.getpid():  # forked: these belong to the parent
            self.close()
            self._process = os.getpid()
        while self._idle:
            try:
                kept_at, link = self._idle.pop()
            except IndexError:  # another thread was quicker
                return None
            if time.monotonic() < kept_at + IDLE_SECONDS and link.is_open():
                link.use_within(timeout_s)
                return link
            link.close()
        return None

    def keep(self, link: LocalLink) -> None:
        """Keep one whose last call went well."""
        self._idle.append((time.monotonic(), link))
        while len(self._idle) > MAX_IDLE:
            try:
                _, oldest = self._idle.popleft()
            except IndexError:
                return
            oldest.close()

    def close(self) -> None:
        """Close them all."""
        while self._idle:
            try:
                self._idle.pop()[1].close()
            except IndexError:
                return


def socket_alive(socket_path: Path) -> bool:
    """Does an agent accept connections there right now?"""
    try:
        connection: socket.socket = connect_unix(socket_path)
    except OSError:
        return False
    connection.close()
    return True
