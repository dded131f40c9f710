# ruff: noqa: ASYNC110, ASYNC220, ASYNC240  # these watch real processes; nothing in /proc blocks
"""kill -9 of the agent or the zygote: all that came from it is gone within a second, and queued tasks go on.

Tried while native code blocks every signal and loops, while another worker sleeps in the kernel, and while a compiler
runs; in each way that a zygote is set apart (namespaces of its own, bubblewrap, none).
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
import trio
import trio.testing

from coppermesh.exec import supervisor as supervising
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.device import probe_cpu
from coppermesh.exec.program import ArraySpec, KernelSource, Node, Program, encode_program
from coppermesh.exec.sandbox.namespaces import (
    bubblewrap_command,
    bubblewrap_works,
    find_bubblewrap,
    view_of_python,
)
from coppermesh.exec.sandbox.syscall_numbers import NUMBERS
from coppermesh.exec.supervisor import (
    InputBuffer,
    RunOutcome,
    Supervisor,
    Worker,
    WorkerLimits,
    open_supervisor,
)

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(find_toolchain() is None, reason="needs a C++ compiler"),
]

LIMITS = WorkerLimits(memory_bytes=256 << 20, output_bytes=64 << 20)
FOUR = np.arange(4, dtype=np.float32).tobytes()
QUEUED = 5


def stolen(name: str, signature: str) -> str:
    """C++ for a function of the C library that kernels are not linked with, found from where `malloc` is."""
    library = ctypes.CDLL(None)
    place, known = (ctypes.cast(library[each], ctypes.c_void_p).value for each in (name, "malloc"))
    return f"(({signature})((char*)&malloc + ({(place or 0) - (known or 0)})))"


CALL = stolen("syscall", "long (*)(long, ...)")
DEAF = f"""
extern "C" __global__ void k(float* x) {{
    unsigned long long all = ~0ull;
    {CALL}({NUMBERS["rt_sigprocmask"]}l, 0l, &all, 0l, 8l);
    volatile float* y = x;
    while (y[0] == y[0]) y[0] = 1;
}}"""
ASLEEP = f"""
extern "C" __global__ void k(float* x) {{
    int word = 0;
    {CALL}({NUMBERS["futex"]}l, &word, 0l, 0l, 0l);
}}"""
SLOW_TO_COMPILE = """
template <int N, int M> struct F { enum { v = F<N - 1, M * 2>::v + F<N - 1, M * 2 + 1>::v }; };
template <int M> struct F<0, M> { enum { v = 1 }; };
extern "C" __global__ void k(float* o) { o[0] = F<30, 0>::v; }"""
BUSY = (DEAF, ASLEEP, SLOW_TO_COMPILE)


def kernel_program(source: str) -> bytes:
    node = Node("raw_kernel", (0,), {"kernel": 0, "grid": (1, 1, 1), "block": (1, 1, 1), "shared_mem": 0})
    kernel = KernelSource("raw", "k", (), (source,))
    return encode_program(Program(1, (ArraySpec("float32", (4,)),), (kernel,), (node,), (1,)))


NEGATE = encode_program(Program(1, (ArraySpec("float32", (4,)),), (), (Node("negative", (0,), {}),), (1,)))


def status_of(pid: int) -> list[str]:
    """State, parent and the numbers after them; empty where there is no such process, or only its entry."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [] if fields[0] in "ZX" else fields


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def descendants_of(pid: int) -> list[int]:
    """All processes that came from one and still have a parent among them."""
    parents = {
        int(path.name): int(fields[1])
        for path in Path("/proc").glob("[0-9]*")
        if (fields := status_of(int(path.name)))
    }
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


async def becomes(condition: Callable[[], bool], seconds: float, what: str) -> None:
    with trio.move_on_after(seconds):
        while not condition():
            await trio.sleep(0.005)
        return
    raise AssertionError(f"not within {seconds} s: {what}")


def choose(apart: str) -> None:
    """From now on zygotes of this process are set apart in this way."""
    if apart == "bubblewrap":
        return  # where it works it is chosen
    supervising._choose_namespaces = lambda start: (msgspec.structs.replace(start, namespaces=apart), [])


@asynccontextmanager
async def busy_supervisor(
    scratch: Path, outcomes: dict[str, list[RunOutcome]]
) -> AsyncIterator[tuple[Supervisor, trio.Nursery]]:
    """A supervisor with a worker for each of `BUSY`, in the middle of it, and tasks that wait behind."""
    async with open_supervisor(probe_cpu(), scratch=scratch) as supervisor, trio.open_nursery() as nursery:

        async def lease(source: str) -> None:
            async with supervisor.worker(LIMITS) as worker, trio.open_nursery() as queue:
                programs = [kernel_program(source), *[NEGATE] * QUEUED]
                for program in programs:
                    queue.start_soon(run, worker, source, program)
                    await trio.testing.wait_all_tasks_blocked()  # they take turns in this order

        async def run(worker: Worker, source: str, program: bytes) -> None:
            outcome = await worker.run(program, [InputBuffer(16, data=FOUR)], 120.0)
            outcomes.setdefault(source, []).append(outcome)

        for source in BUSY:
            nursery.start_soon(lease, source)
        yield supervisor, nursery


def is_busy(zygote: int) -> bool:
    """A compiler is at work on the slow source, and some worker is in native code without an end."""
    family = descendants_of(zygote)
    compiling = [pid for pid in family if name_of(pid) in ("cc1plus", "clang", "clang++", "zig")]
    spun = [pid for pid in family if int((status_of(pid) or ["0"] * 12)[11]) > 30]
    return bool(compiling and set(spun) - set(compiling)) and len(family) >= 5


AGENT = """
import importlib.util, sys, trio
from pathlib import Path
spec = importlib.util.spec_from_file_location("deaths", sys.argv[1])
deaths = importlib.util.module_from_spec(spec)
spec.loader.exec_module(deaths)
deaths.choose(sys.argv[3])

async def main():
    async with deaths.busy_supervisor(Path(sys.argv[2]), {}) as (supervisor, _):
        print(supervisor.zygote_pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


def bubblewrap_is_usable() -> bool:
    program = find_bubblewrap()
    return program is not None and bubblewrap_works(bubblewrap_command(program, view_of_python([])))


APART = [
    "own",
    "none",
    pytest.param(
        "bubblewrap",
        marks=pytest.mark.skipif(
            not bubblewrap_is_usable(), reason="bubblewrap is not installed, or does not work"
        ),
    ),
]


@pytest.fixture
def apart(request, monkeypatch):
    monkeypatch.setattr(supervising, "_choose_namespaces", supervising._choose_namespaces)
    choose(request.param)
    return request.param


@pytest.mark.parametrize("apart", APART)
async def test_a_killed_agent_takes_workers_builders_and_compilers_with_it(tmp_path, apart):
    command = [sys.executable, "-c", AGENT, __file__, str(tmp_path / "scratch"), apart]
    agent = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert agent.stdout is not None
    try:
        zygote = int(await trio.to_thread.run_sync(agent.stdout.readline))
        await becomes(lambda: is_busy(zygote), 30.0, "all of it is busy")
        family = descendants_of(agent.pid)
        assert zygote in family
    finally:
        killed = time.monotonic()
        agent.kill()
        agent.wait()
        agent.stdout.close()
    await becomes(lambda: not any(status_of(pid) for pid in family), 1.0, "all of it is gone")
    assert time.monotonic() - killed < 1.0


@pytest.mark.parametrize("inner", [False, True], ids=["outer", "inner"])
@pytest.mark.parametrize("apart", APART, indirect=True)
async def test_a_killed_zygote_takes_all_with_it_and_queued_tasks_go_on(tmp_path, apart, inner):
    outcomes: dict[str, list[RunOutcome]] = {}
    async with busy_supervisor(tmp_path / "scratch", outcomes) as (supervisor, _):
        zygote = supervisor.zygote_pid
        assert zygote is not None
        await becomes(lambda: is_busy(zygote), 30.0, "all of it is busy")
        family = descendants_of(zygote)
        victim = zygote
        if inner:
            halves = [
                pid
                for pid in family
                if b"coppermesh.exec.zygote" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ]
            within = [pid for pid in halves if int(status_of(pid)[1]) == zygote]
            if not within or "pidns" not in supervisor.layers:
                pytest.skip("this zygote is one process")
            (victim,) = within
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        await becomes(lambda: not any(status_of(pid) for pid in (zygote, *family)), 1.0, "all of it is gone")
        assert time.monotonic() - killed < 1.0
        with trio.fail_after(30):
            while sum(map(len, outcomes.values())) < len(BUSY) * (1 + QUEUED):
                await trio.sleep(0.01)
        assert supervisor.zygote_pid not in (None, zygote)
    for source in BUSY:
        lost, *queued = outcomes[source]
        assert (lost.status, lost.code) == ("provider-failed", "zygote-lost"), lost.sentence
        for outcome in queued:
            assert outcome.status == "ok", f"{outcome.code}: {outcome.sentence}"
            assert bytes(outcome.outputs[0].view) == (-np.frombuffer(FOUR, np.float32)).tobytes()
            outcome.close()
