"""A worker that answers, but can run nothing more, is replaced before the next run: its GPU's context is ruined."""

import os
import socket
from types import SimpleNamespace

import pytest
import trio

from coppermesh.exec import pipe, sockets
from coppermesh.exec.blackbox import BlackBox, make_black_box
from coppermesh.exec.channel import channel_pair
from coppermesh.exec.keeper import WorkerUnavailable
from coppermesh.exec.meter import NoMeter
from coppermesh.exec.runs import WorkerLimits
from coppermesh.exec.supervisor import Supervisor
from coppermesh.exec.worker_handle import Process, Worker

LIMITS = WorkerLimits(memory_bytes=1 << 20, output_bytes=1 << 20)


class Child:
    """A process that was never started; it ends when it is told to."""

    pid = 1
    exit_code = None

    def __init__(self):
        self.ended = trio.Event()

    def kill(self):
        self.ended.set()


class Workshop:
    """Hands out processes whose other end this test holds."""

    meter = NoMeter()

    def __init__(self, code):
        self.code = code
        self.ends = []
        self.ended = 0

    async def make_process(self, limits, kernels):
        channel, theirs = channel_pair()
        self.ends.append(theirs)
        return Process(Child(), channel, BlackBox(make_black_box()), None)

    async def end_process(self, process):
        self.ended += 1
        process.channel.close()
        process.lent.close()

    async def answer(self):
        end = socket.socket(fileno=os.dup(self.ends[-1]))
        data, _ = await trio.to_thread.run_sync(sockets.receive, end)
        number = pipe.decode_to_worker(data).number
        failed = pipe.Failed(number, "job", self.code, "it went wrong", "", 0, "")
        sockets.send(end, pipe.encode(failed), [])
        end.close()


@pytest.mark.parametrize(("code", "replaced"), [("kernel-crashed", 2), ("device-lost", 2), ("run-failed", 0)])
async def test_what_can_run_nothing_more_is_replaced(code, replaced):
    workshop = Workshop(code)
    worker = Worker(workshop, LIMITS, kernels=True)
    await worker.start()
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workshop.answer)
            outcome = await worker.run(b"program", [], wall_limit_s=10)
        assert (outcome.status, outcome.code) == ("job-failed", code)
        if replaced:
            assert worker.pid is None
            await worker.start()
    assert workshop.ended == replaced
    await worker.close()
    for end in workshop.ends:
        os.close(end)


async def test_after_a_process_that_cannot_be_killed_no_other_is_started(tmp_path):
    supervisor = Supervisor(SimpleNamespace(), tmp_path, NoMeter())
    stuck = Stuck()
    channel, theirs = channel_pair()
    folder = tmp_path / "worker"
    folder.mkdir()
    await supervisor.end_process(Process(stuck, channel, BlackBox(make_black_box()), folder))
    os.close(theirs)
    with pytest.raises(WorkerUnavailable, match="worker process 1 was killed and had not ended"):
        await supervisor.make_process(LIMITS, kernels=True)
    stuck.ended.set()
    with pytest.raises(WorkerUnavailable, match="until a probe has passed"):
        await supervisor.make_process(LIMITS, kernels=True)
    supervisor.fitness.health.probed("", 0)
    with pytest.raises(AttributeError):  # it goes on to ask the zygote, which this test has none of
        await supervisor.make_process(LIMITS, kernels=True)


class Stuck(Child):
    """Does not die."""

    def kill(self):
        pass

    async def gone(self):
        return self.ended.is_set()
