"""The agent's end of the local socket: the only door for the command line, the client and the pages.

The socket is 0600 in a 0700 home, and each connection's peer must be this user (or root): whoever may use it may spend
this agent's money. Connections and the frames on them are bounded; a client that stalls is dropped, never waited for.
"""

import logging
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from coppermesh.agent.home import bind_unix, peer_uid
from coppermesh.agent.ledger_reader import NotInLedger
from coppermesh.agent.local_messages import MAX_LOCAL_FRAME_BYTES, Answer, BlobCall, Call, LocalMessage
from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.errors import MeshError, Refused, RemoteProtocolError
from coppermesh.p2p.messages import BlobInfo

MAX_CONNECTIONS = 128
MAX_UPLOADS = 4
"""Blobs held in memory at once while they arrive; others wait for their turn."""
READ_SECONDS = 60.0
"""Longest gap inside a frame or a blob, and longest a connection may idle between calls."""
_LENGTH = struct.Struct(">I")
_CHUNK = 1 << 20
_ACCEPT_PAUSE_SECONDS = 0.1

_log = logging.getLogger(__name__)

Method = Callable[[bytes], Awaitable[LocalMessage]]
"""Takes a call's body, returns the answer's body; raises MeshError to refuse."""


class BlobDoor(Protocol):
    """Where raw blobs go to and come from."""

    async def take_blob(self, blob: BlobInfo, data: bytearray) -> None:
        """Keep `data`, after checking that it is `blob`."""

    async def give_blob(self, blob: BlobInfo) -> bytes | memoryview:
        """The bytes of `blob`; raises Refused where they are not here."""

    def check_room(self, blob: BlobInfo) -> None:
        """Raise Refused when a blob of that size cannot be kept, before its bytes are sent."""


@dataclass(frozen=True, slots=True)
class Door:
    """What a call on one mesh may reach."""

    methods: Mapping[str, Method]
    blobs: BlobDoor


class LocalApi:
    """Serves the agent's meshes on the home's socket for as long as `serve` runs."""

    def __init__(self, socket_path: Path, door_to: Callable[[str], Door], own_uid: int) -> None:
        """`door_to`: by the mesh that a call names, empty for the default one; raises Refused."""
        self._path = socket_path
        self._door_to = door_to
        self._own_uid = own_uid
        self._uploads = trio.Semaphore(MAX_UPLOADS)
        self._places = trio.Semaphore(MAX_CONNECTIONS)
        self.calls = 0
        self.open_connections = 0

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled; the socket file is gone afterwards."""
        listener = trio.socket.from_stdlib_socket(bind_unix(self._path))
        listener.listen(64)
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    # Beyond MAX_CONNECTIONS others wait in the socket's backlog.
                    await self._places.acquire()
                    connection = await _accept(listener)
                    nursery.start_soon(self._serve_connection, connection)
        finally:
            listener.close()
            self._path.unlink(missing_ok=True)

    async def _serve_connection(self, connection: trio.socket.SocketType) -> None:
        self.open_connections += 1
        try:
            with connection:
                await self._converse(connection)
        except (OSError, trio.TooSlowError, RemoteProtocolError) as error:
            _log.debug("local connection ended: %s", error)
        except Exception as error:  # noqa: BLE001 - a bug in serving one client must not end the agent
            _log.error("a local connection failed", exc_info=error)
        finally:
            self.open_connections -= 1
            self._places.release()

    async def _converse(self, connection: trio.socket.SocketType) -> None:
        uid = peer_uid(connection)
        if uid not in (0, self._own_uid):
            _log.warning("refused a local connection of user id %d", uid)
            return
        while (frame := await self._receive_frame(connection)) is not None:
            call = decode(Call, frame, max_bytes=MAX_LOCAL_FRAME_BYTES)
            self.calls += 1
            if call.method == "put":
                await self._take_blob(connection, call)
                return
            if call.method == "get":
                await self._give_blob(connection, call)
                return
            await self._send_answer(connection, await self._answer(call))

    async def _answer(self, call: Call) -> Answer:
        try:
            method = self._door_to(call.mesh).methods.get(call.method)
            if method is None:
                raise Refused("unknown-method", f"this agent has no {call.method!r}")
            return Answer(ok=True, code="ok", sentence="", body=encode(await method(call.body)))
        except MeshError as error:
            return _refusal(error)
        except Exception as error:  # noqa: BLE001 - a bug in one method must not end the agent
            _log.error("%s failed", call.method, exc_info=error)
            return _refusal(Refused("internal", f"{call.method} failed in the agent; its log says why"))

    async def _take_blob(self, connection: trio.socket.SocketType, call: Call) -> None:
        blob = decode(BlobCall, call.body, max_bytes=MAX_LOCAL_FRAME_BYTES).blob
        try:
            blobs = self._door_to(call.mesh).blobs
            blobs.check_room(blob)
            async with self._uploads:
                data = bytearray(blob.size)
                await self._send_answer(connection, _DONE)
                await _receive_into(connection, memoryview(data))
                await blobs.take_blob(blob, data)
        except MemoryError:
            refusal = Refused("too-large", f"no memory for an array of {blob.size} bytes")
            await self._send_answer(connection, _refusal(refusal))
        except MeshError as error:
            await self._send_answer(connection, _refusal(error))
        else:
            await self._send_answer(connection, _DONE)

    async def _give_blob(self, connection: trio.socket.SocketType, call: Call) -> None:
        blob = decode(BlobCall, call.body, max_bytes=MAX_LOCAL_FRAME_BYTES).blob
        try:
            data = await self._door_to(call.mesh).blobs.give_blob(blob)
        except MeshError as error:
            await self._send_answer(connection, _refusal(error))
            return
        await self._send_answer(connection, _DONE)
        await _send_all(connection, memoryview(data))

    async def _receive_frame(self, connection: trio.socket.SocketType) -> bytes | None:
        header = bytearray(_LENGTH.size)
        if not await _receive_into(connection, memoryview(header), eof_ok=True):
            return None
        (length,) = _LENGTH.unpack(header)
        if length > MAX_LOCAL_FRAME_BYTES:
            raise RemoteProtocolError(f"local frame of {length} bytes")
        frame = bytearray(length)
        await _receive_into(connection, memoryview(frame))
        return bytes(frame)

    async def _send_answer(self, connection: trio.socket.SocketType, answer: Answer) -> None:
        frame = encode(answer)
        if len(frame) > MAX_LOCAL_FRAME_BYTES:
            frame = encode(
                _refusal(Refused("answer-too-long", "the answer is too long; ask for less at once"))
            )
        await _send_all(connection, memoryview(_LENGTH.pack(len(frame)) + frame))


_DONE = Answer(ok=True, code="ok", sentence="", body=b"")


async def _accept(listener: trio.socket.SocketType) -> trio.socket.SocketType:
    while True:
        try:
            connection, _ = await listener.accept()
        except OSError as error:  # no descriptor left, or the client has gone again
            _log.warning("a local connection was not taken: %s", error)
            await trio.sleep(_ACCEPT_PAUSE_SECONDS)
        else:
            return connection


def _refusal(error: MeshError) -> Answer:
    code = error.code if isinstance(error, (Refused, NotInLedger)) else "error"
    return Answer(ok=False, code=code, sentence=str(error), body=b"")


async def _receive_into(
    connection: trio.socket.SocketType, view: memoryview, *, eof_ok: bool = False
) -> bool:
    """Fill `view`. False when the peer finished before the first byte and `eof_ok`; OSError when later."""
    received = 0
    while received < len(view):
        with trio.fail_after(READ_SECONDS):
            count = await connection.recv_into(view[received : received + _CHUNK])
        if not count:
            if eof_ok and not received:
                return False
            raise ConnectionResetError("closed in the middle of a frame")
        received += count
    return True


async def _send_all(connection: trio.socket.SocketType, view: memoryview) -> None:
    sent = 0
    while sent < len(view):
        with trio.fail_after(READ_SECONDS):
            sent += await connection.send(view[sent : sent + _CHUNK])
