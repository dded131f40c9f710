"""The local socket under clients that crash it, stall it or crowd it: the agent lives on and says what is wrong."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from coppermesh.agent import local_api
from coppermesh.agent.client import Mesh
from coppermesh.agent.home import Home
from coppermesh.agent.job_handle import Job
from coppermesh.agent.local_api import Door, LocalApi
from coppermesh.agent.local_link import LocalLink
from coppermesh.agent.local_messages import BlobCall, JobEvent, JsonBody, LocalMessage, WaitAnswer
from coppermesh.p2p.blobs import digest_of
from coppermesh.p2p.encoding import encode
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.messages import BlobInfo

T = TypeVar("T")


class HeapDoor:
    """Blobs in memory."""

    def __init__(self) -> None:
        self.blobs: dict[bytes, bytes] = {}

    def check_room(self, blob: BlobInfo) -> None:
        if blob.size > 1 << 62:
            raise Refused("too-large", "too large")

    async def take_blob(self, blob: BlobInfo, data: bytearray) -> None:
        self.blobs[blob.root] = bytes(data)

    async def give_blob(self, blob: BlobInfo) -> bytes:
        return self.blobs[blob.root]


async def echo(body: bytes) -> LocalMessage:
    return JsonBody("{}")


async def crash(body: bytes) -> LocalMessage:
    raise ZeroDivisionError("a bug")


async def wait(body: bytes) -> LocalMessage:
    return WaitAnswer([JobEvent(1, "finished", None, "{}", [], [])])


@asynccontextmanager
async def serving(base: Path) -> AsyncIterator[Path]:
    path = base / "agent.sock"
    door = Door({"echo": echo, "crash": crash, "wait": wait}, HeapDoor())
    api = LocalApi(path, lambda _mesh: door, os.geteuid())
    async with trio.open_nursery() as nursery:
        await nursery.start(api.serve)
        yield path
        nursery.cancel_scope.cancel()


async def ask(call: Callable[[], T]) -> T:
    """A blocking client call, while the agent serves."""
    return await trio.to_thread.run_sync(call)


async def test_a_bug_in_a_method_is_answered_and_ends_nothing(tmp_path):
    async with serving(tmp_path) as path:
        with LocalLink(path) as link:
            with pytest.raises(Refused, match="crash failed in the agent") as caught:
                await ask(lambda: link.call_json("crash"))
            assert caught.value.code == "internal"
            assert await ask(lambda: link.call_json("echo")) == "{}"


async def test_a_bug_in_the_blob_door_ends_one_connection(tmp_path):
    async with serving(tmp_path) as path:
        with LocalLink(path) as link, pytest.raises(Exception, match="went away"):
            await ask(lambda: link.get_blob(BlobInfo(bytes(32), 1), memoryview(bytearray(1))))
        with LocalLink(path) as link:
            assert await ask(lambda: link.call_json("echo")) == "{}"


async def test_a_blob_that_memory_does_not_hold_is_refused(tmp_path):
    async with serving(tmp_path) as path:
        with LocalLink(path) as link, pytest.raises(Refused, match="no memory for an array"):
            await ask(lambda: link.put_blob(BlobInfo(bytes(32), 1 << 60), memoryview(b"")))


async def test_clients_beyond_the_limit_wait_for_their_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(local_api, "MAX_CONNECTIONS", 1)
    async with serving(tmp_path) as path:
        first, second = LocalLink(path), LocalLink(path)
        assert await ask(lambda: first.call_json("echo")) == "{}"
        answers = []

        async def ask_second() -> None:
            answers.append(await ask(lambda: second.call_json("echo")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_second)
            await trio.sleep(0.05)
            assert not answers
            first.close()
        assert answers == ["{}"]
        second.close()


async def test_stalled_uploads_leave_calls_alone(tmp_path):
    async with serving(tmp_path) as path:
        links = [LocalLink(path) for _ in range(local_api.MAX_UPLOADS)]
        for link in links:
            await ask(lambda link=link: link._exchange("put", _put_body()))
        with LocalLink(path) as link:
            assert await ask(lambda: link.call_json("echo")) == "{}"
        for link in links:
            link.close()


def _put_body() -> bytes:
    return encode(BlobCall(BlobInfo(digest_of(b"x"), 1)))


async def test_a_script_that_thinks_for_long_finds_its_job_again(tmp_path, monkeypatch):
    """The agent hangs up on its idle connection meanwhile."""
    monkeypatch.setattr(local_api, "READ_SECONDS", 0.05)
    async with serving(tmp_path) as path:
        mesh = Mesh(Home(path.parent))
        job = Job(mesh, bytes(16), [], many=True)
        assert (await ask(job._poll))[0].kind == "finished"
        await trio.sleep(0.2)
        assert (await ask(job._poll))[0].kind == "finished"
        assert job._link is not None
        job._link.close()
