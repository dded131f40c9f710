"""Nothing is imported per task: neither in a worker, which could not open a file for it, nor on the agent's side."""

import json
import subprocess
import sys

import numpy as np
import pytest

from coppermesh.exec import xp
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.device import probe_cpu
from coppermesh.exec.kernels import RawModule
from coppermesh.exec.supervisor import InputBuffer, WorkerLimits, open_supervisor
from coppermesh.exec.tracing import trace

pytestmark = pytest.mark.processes

SERVE = """
import json, socket, sys
from coppermesh.exec import pipe, sockets, worker, zygote
from coppermesh.exec.blackbox import BlackBox, make_black_box
from coppermesh.exec.lent_files import LentFiles

zygote.preload("cpu")
start = pipe.Start(kind="cpu", threads=1, compiler=(), family="", version="", cache="", scratch="")
order = pipe.Fork(1, "worker", "/", 1 << 28, 1 << 26, 1 << 26, 64, 60, True)
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
serving = worker.Worker(theirs, BlackBox(make_black_box()), order, start)
for number, parts in enumerate(json.load(sys.stdin)):
    before = set(sys.modules)
    lent = LentFiles()
    room = [lent.lend()]
    sockets.send(ours, pipe.encode(pipe.Run(number, tuple(bytes.fromhex(part) for part in parts), lent=1)), room)
    sockets.close_all(room)
    assert serving.serve_one()
    answer, files = sockets.receive(ours)
    sockets.close_all(files)
    message = pipe.decode_from_worker(answer)
    done = "ok" if isinstance(message, pipe.Done) else message.sentence
    print(json.dumps([done, sorted(set(sys.modules) - before)]))
"""


def programs():
    rng = np.random.default_rng(0)
    square = xp.asarray(rng.random((8, 8)))
    row = xp.asarray(rng.random(8))
    rows = [
        square @ square + 1,
        xp.linalg.solve(square, row),
        xp.linalg.svd(square)[1],
        xp.fft.ifft(xp.fft.fft(row)),
        xp.einsum("ij,kj->ik", square, square),
        xp.sort(xp.concatenate([row, row])),
        xp.where(square > 0.5, xp.sqrt(square), 0),
        xp.std(square, axis=0),
    ]
    return [trace(lazy) for lazy in rows]


def test_no_task_imports_a_module_in_a_worker():
    recorded = programs()
    parts = [[one.program.hex(), *(array.tobytes().hex() for array in one.inputs)] for one in recorded]
    answered = subprocess.run(
        [sys.executable, "-I", "-c", SERVE],
        input=json.dumps([*parts, *parts, ["c1"]]),
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "OPENBLAS_NUM_THREADS": "1"},
        cwd="/",
        timeout=120,
    )
    lines = [json.loads(line) for line in answered.stdout.splitlines()]
    assert len(lines) == 2 * len(recorded) + 1, answered.stderr
    assert [done for done, _ in lines[:-1]] == ["ok"] * (2 * len(recorded))
    assert lines[-1][0] != "ok", "a program of nonsense"
    assert [modules for _, modules in lines] == [[]] * len(lines)


async def test_the_second_task_imports_no_module_on_the_agents_side(tmp_path):
    limits = WorkerLimits(memory_bytes=1 << 28, output_bytes=1 << 26)
    recorded = programs()
    async with open_supervisor(probe_cpu(), scratch=tmp_path / "scratch") as supervisor:
        async with supervisor.worker(limits) as worker:
            before: set[str] = set()
            for one in recorded:
                inputs = [InputBuffer(array.nbytes, data=array.tobytes()) for array in one.inputs]
                outcome = await worker.run(one.program, inputs, 60.0)
                assert outcome.status == "ok", outcome.sentence
                outcome.close()
                before = before or set(sys.modules)
            assert set(sys.modules) == before


MODULE = """
__constant__ int step;
__device__ int total;
extern "C" __global__ void count(int* seen) { total += step; seen[0] = total; }
"""


@pytest.mark.skipif(find_toolchain() is None, reason="needs a C++ compiler")
async def test_a_confined_worker_reaches_a_modules_variables(tmp_path):
    """It can open no file any more: whatever reads a variable must have been imported before."""
    module = RawModule(code=MODULE)
    xp.ndarray((), np.int32, module.get_global("step"))[...] = 3
    seen = xp.zeros(1, dtype=np.int32)
    module.get_function("count")((1,), (1,), (seen,))
    recording = trace(seen, xp.ndarray((), np.int32, module.get_global("total")))
    limits = WorkerLimits(memory_bytes=1 << 28, output_bytes=1 << 26)
    async with open_supervisor(probe_cpu(), scratch=tmp_path / "scratch") as supervisor:
        async with supervisor.worker(limits) as worker:
            inputs = [InputBuffer(array.nbytes, data=array.tobytes()) for array in recording.inputs]
            outcome = await worker.run(recording.program, inputs, 60.0)
            assert outcome.status == "ok", outcome.sentence
            outcome.close()
