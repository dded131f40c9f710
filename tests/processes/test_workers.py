# ruff: noqa: ASYNC110, ASYNC220, ASYNC221, ASYNC240  # these watch real processes; nothing in /proc blocks
"""Programs in real worker processes: what they may see, how they end, and that nothing of them stays behind."""

import contextlib
import ctypes
import mmap
import os
import re
import signal
import socket
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

from coppermesh.exec import linux, pipe, sockets, worker_handle
from coppermesh.exec import supervisor as supervising
from coppermesh.exec.blackbox import BlackBox, make_black_box
from coppermesh.exec.channel import Channel
from coppermesh.exec.cuda_cpu import MAX_LOADED
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.device import probe_cpu
from coppermesh.exec.keeper import Child
from coppermesh.exec.meter import NoMeter
from coppermesh.exec.program import (
    MAX_INPUTS,
    MAX_OUTPUTS,
    ArraySpec,
    KernelSource,
    Node,
    Program,
    encode_program,
)
from coppermesh.exec.supervisor import (
    InputBuffer,
    RunOutcome,
    Supervisor,
    Worker,
    WorkerLimits,
    WorkerUnavailable,
    open_supervisor,
)
from coppermesh.exec.watchdog import Watchdog
from coppermesh.exec.worker import OPEN_FILES
from coppermesh.exec.worker_handle import Process

pytestmark = pytest.mark.processes
needs_compiler = pytest.mark.skipif(find_toolchain() is None, reason="needs a C++ compiler")

MEBIBYTE = 1 << 20
LIMITS = WorkerLimits(memory_bytes=256 * MEBIBYTE, output_bytes=64 * MEBIBYTE)

DOUBLE = 'extern "C" __global__ void k(float* x) { x[threadIdx.x] *= 2.0f; }'
SPIN = 'extern "C" __global__ void k(float* x) { volatile float* y = x; while (y[0] == y[0]) y[0] = 1; }'
WILD = 'extern "C" __global__ void k(float* x) { x[1ull << 40] = 1; }'
NULL = 'extern "C" __global__ void k(float* x) { float* p = nullptr; *p = x[0]; x[0] = 2; }'
NULL_READ = 'extern "C" __global__ void k(float* x) { float* p = nullptr; x[0] = *p; }'


def stolen(name: str, signature: str) -> str:
    """C++ for a function of the C library that kernels are not linked with, found from where `malloc` is.

    Native code gets at everything in its process: what contains it is the process, which is what these tests are about.
    """
    library = ctypes.CDLL(None)
    place, known = (ctypes.cast(library[each], ctypes.c_void_p).value for each in (name, "malloc"))
    assert place is not None
    assert known is not None
    return f"(({signature})((char*)&malloc + ({place - known})))"


ABORT = f"""
extern "C" __global__ void k(float* x) {{
    {stolen("dprintf", "int (*)(int, const char*, ...)")}(2, "last words\\n");
    {stolen("abort", "void (*)()")}();
}}"""
EXIT = f'extern "C" __global__ void k(float* x) {{ {stolen("_exit", "void (*)(int)")}(3); }}'
LIBC = 'extern "C" int system(const char*); extern "C" __global__ void k(float* x) { x[0] = system("true"); }'
STACK = """
__device__ __noinline__ int deep(volatile int* p, int n) {
    volatile int room[1000];
    room[n % 1000] = *p;
    return n ? deep(room, n - 1) + room[n % 1000] : 0;
}
extern "C" __global__ void k(float* x) { volatile int start = 1, depth = 1 << 20; x[0] = deep(&start, depth); }"""
UNDECLARED = 'extern "C" __global__ void k(float* x) {\n x[0] = two;\n}'
TEXTURE = 'extern "C" __global__ void k(float* x) {\n\ncudaTextureObject_t t; }'
SKIPPED = 'extern "C" __global__ void k(float* x) {\n if (x[threadIdx.x] > 1)\n __syncthreads(); }'
BEYOND = (
    'extern "C" __global__ void k(float* x) { __shared__ float s[3];\n s[threadIdx.x] = x[threadIdx.x]; }'
)
DEEP = STACK.replace("x[0] = deep", "__syncthreads(); x[0] = deep")
ASSERT = 'extern "C" __global__ void k(float* x) { assert(x[0] > 5); }'
DIVIDE = 'extern "C" __global__ void k(float* x) { volatile int zero = 0; x[0] = 7 / zero; }'


def kernel_program(source: str, count: int = 4) -> bytes:
    """A program of one kernel on one array of `count` floats."""
    node = Node("raw_kernel", (0,), {"kernel": 0, "grid": (1, 1, 1), "block": (count, 1, 1), "shared_mem": 0})
    kernel = KernelSource("raw", "k", (), (source,))
    return encode_program(Program(1, (ArraySpec("float32", (count,)),), (kernel,), (node,), (1,)))


def negate_program(count: int) -> bytes:
    """A program that gives minus its input of `count` floats."""
    return encode_program(
        Program(1, (ArraySpec("float32", (count,)),), (), (Node("negative", (0,), {}),), (1,))
    )


def floats(*values: float) -> InputBuffer:
    data = np.array(values, np.float32).tobytes()
    return InputBuffer(len(data), data=data)


FOUR = floats(0, 1, 2, 3)


@pytest.fixture
def scratch(tmp_path):
    return tmp_path / "scratch"


@asynccontextmanager
async def supervised(scratch: Path) -> AsyncIterator[Supervisor]:
    async with open_supervisor(probe_cpu(), scratch=scratch) as supervisor:
        yield supervisor


async def run_kernel(worker: Worker, source: str, wall_limit_s: float = 20.0) -> RunOutcome:
    return await worker.run(kernel_program(source), [FOUR], wall_limit_s)


def values(outcome: RunOutcome) -> list[float]:
    """The first output's values; closes the outcome."""
    assert (outcome.status, outcome.code) == ("ok", "ok"), f"{outcome.sentence}\n{outcome.detail}"
    result: list[float] = np.frombuffer(bytes(outcome.outputs[0].view), np.float32).tolist()
    outcome.close()
    return result


def state_of(pid: int) -> str:
    """A process's state letter; empty when there is none, or only a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state in "ZX" else state


def children_of(pid: int) -> list[int]:
    """Live children of a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state not in "ZX":
            found.append(int(path.parent.name))
    return found


async def becomes(condition: Callable[[], bool], seconds: float, what: str) -> None:
    with trio.move_on_after(seconds):
        while not condition():
            await trio.sleep(0.005)
        return
    raise AssertionError(f"not within {seconds} s: {what}")


def left_in(scratch: Path) -> list[str]:
    return sorted(path.name for path in scratch.iterdir() if path.name not in ("zygote.log", "compiler"))


# --- what a run gives


async def test_an_array_program_gives_numpys_answer(scratch):
    x = np.random.default_rng(1).random(300_000).astype(np.float32)
    async with supervised(scratch) as supervisor, supervisor.worker(LIMITS) as worker:
        outcome = await worker.run(negate_program(x.size), [InputBuffer(x.nbytes, data=x.tobytes())], 10)
        assert (outcome.status, outcome.code, outcome.sentence, outcome.detail) == ("ok", "ok", "", "")
        np.testing.assert_array_equal(np.frombuffer(bytes(outcome.outputs[0].view), np.float32), -x)
        assert outcome.outputs[0].view.readonly
        assert abs(outcome.started_us - time.time() * 1e6) < 30e6
        assert 0 < outcome.wall_us < 10e6
        assert (outcome.device_us, outcome.meter) == (None, probe_cpu().meter)
        assert "numpy/" in outcome.determinism
        assert outcome.peak_bytes > x.nbytes
        outcome.close()


async def test_inputs_come_from_files_without_being_written(scratch, tmp_path):
    x = np.arange(100_000, dtype=np.float32)
    path = tmp_path / "blob"
    path.write_bytes(x.tobytes() + b"more")
    descriptor = os.open(path, os.O_RDWR)
    try:
        async with supervised(scratch) as supervisor, supervisor.worker(LIMITS) as worker:
            outcome = await worker.run(negate_program(x.size), [InputBuffer(x.nbytes, fd=descriptor)], 10)
            assert values(outcome) == (-x).tolist()
    finally:
        os.close(descriptor)
    assert path.read_bytes() == x.tobytes() + b"more"


async def test_an_input_may_be_an_output_and_outputs_may_be_empty(scratch):
    program = encode_program(
        Program(1, (ArraySpec("float32", (4,)), ArraySpec("float32", (0, 7))), (), (), (0, 1))
    )
    async with supervised(scratch) as supervisor, supervisor.worker(LIMITS) as worker:
        outcome = await worker.run(program, [FOUR, InputBuffer(0, data=b"")], 10)
        assert [output.size for output in outcome.outputs] == [16, 0]
        assert values(outcome) == [0, 1, 2, 3]


@needs_compiler
async def test_a_kernel_is_built_once_and_stays_warm(scratch):
    async with supervised(scratch) as supervisor, supervisor.worker(LIMITS) as worker:
        cold = await run_kernel(worker, DOUBLE)
        assert "cuda-cpu/" in cold.determinism
        assert values(cold) == [0, 2, 4, 6]
        pid = worker.pid
        warm = await run_kernel(worker, DOUBLE)
        assert warm.wall_us < cold.wall_us / 3
        assert values(warm) == [0, 2, 4, 6]
        assert worker.pid == pid
        assert left_in(scratch) == ["worker-1"]
    assert left_in(scratch) == []


@needs_compiler
async def test_a_source_too_large_for_a_message(scratch):
    source = DOUBLE + "".join(
        f"\n// line {number} of many, to make the source long" for number in range(5000)
    )
    assert len(source) > pipe.MAX_MESSAGE_BYTES
    async with supervised(scratch) as supervisor, supervisor.worker(LIMITS) as worker:
        assert values(await run_kernel(worker, source)) == [0, 2, 4, 6]


@needs_compiler
async def test_workers_run_beside_each_other(scratch):
    async with supervised(scratch) as supervisor, trio.open_nursery() as nursery:

        async def lease(number: int) -> None:
            source = f'extern "C" __global__ void k(float* x) {{ x[threadIdx.x] += {number}; }}'
            async with supervisor.worker(LIMITS) as worker:
                for _ in range(5):
                    assert values(await run_kernel(worker, source)) == [
                        number,
                        number + 1,
                        number + 2,
                        number + 3,
                    ]

        for number in range(6):
            nursery.start_soon(lease, number)
    assert left_in(scratch) == []


async def test_runs_of_one_worker_take_turns(scratch):
    seen: list[int] = []
    async with supervised(scratch) as supervisor, supervisor.worker(LIMITS) as worker:
        async with trio.open_nursery() as nursery:

            async def one(number: int) -> None:
                assert values(await worker.run(negate_program(1), [floats(number)], 10)) == [-number]
                seen.append(number)

            for number in range(20):
                nursery.start_soon(one, number)
    assert sorted(seen) == list(range(20))


# --- how jobs fail


@needs_compiler
async def test_each_failure_is_named_and_the_next_run_works(scratch):
    cases = [
        (UNDECLARED, "kernel-compile", "does not compile", "kernel.cu:2:9: error"),
        (TEXTURE, "unsupported-feature", "line 3: cudaTextureObject_t (textures)", ""),
        (WILD, "crashed", "SIGSEGV (a wild pointer or a stack overflow) in kernel k", ""),
        (NULL, "crashed", "SIGSEGV", ""),
        (NULL_READ, "crashed", "SIGSEGV", ""),
        (STACK, "crashed", "SIGSEGV", ""),
        (DIVIDE, "crashed", "SIGFPE", ""),
        (ABORT, "crashed", "SIGABRT", "last words"),
        (EXIT, "crashed", "status 3", ""),
        (LIBC, "kernel-compile", "does not compile", "a kernel cannot call system: it is no function of CUDA's"),
        (ASSERT, "kernel-trap", "kernel k: line 1: thread (0,0,0) of block (0,0,0) failed the assertion x[0] > 5", ""),
        (SKIPPED, "kernel-trap", "line 3: thread (2,0,0) of block (0,0,0) waits at this barrier", ""),
        (BEYOND, "kernel-trap", "line 2: thread (3,0,0) of block (0,0,0) used index 3", ""),
        (DEEP, "kernel-trap", "overflowed its stack", ""),
        ('extern "C" __global__ void k(float* x, int n) { x[0] = n; }', "kernel-call", "takes 2 arguments", ""),
    ]  # fmt: skip
    async with supervised(scratch) as supervisor, supervisor.worker(LIMITS) as worker:
        for source, code, sentence, detail in cases:
            outcome = await run_kernel(worker, source)
            assert (outcome.status, outcome.code) == ("job-failed", code), (
                f"{outcome.sentence} {outcome.detail}"
            )
            assert sentence in outcome.sentence
            assert detail in outcome.detail
            assert str(scratch) not in outcome.sentence + outcome.detail
            assert outcome.outputs == []
            assert values(await run_kernel(worker, DOUBLE)) == [0, 2, 4, 6]
        assert supervisor.zygote_pid is not None
        assert state_of(supervisor.zygote_pid)


async def test_refused_programs_keep_the_worker(scratch):
    huge = encode_program(Program(1, (ArraySpec("uint8", (100 << 40,)),), (), (), (0,)))
    async with supervised(scratch) as supervisor, supervisor.worker(LIMITS) as worker:
        pid = worker.pid
        for program, inputs, code in [
            (b"garbage", [], "program-malformed"),
            (b"", [], "program-malformed"),
            (huge, [FOUR], "over-blob-bytes"),
            (negate_program(50 * MEBIBYTE), [FOUR], "over-memory"),
            (negate_program(4), [], "bad-input"),
            (negate_program(4), [FOUR, FOUR], "bad-input"),
            (negate_program(5), [FOUR], "bad-input"),
            (negate_program(20 * MEBIBYTE), [FOUR], "over-output"),
        ]:
            outcome = await worker.run(program, inputs, 10)
            assert (outcome.status, outcome.code) == ("job-failed", code), outcome.sentence
            assert outcome.sentence
        assert values(await worker.run(negate_program(4), [FOUR], 10)) == [0, -1, -2, -3]
        assert worker.pid == pid


@needs_compiler
async def test_kernels_can_be_forbidden(scratch):
    async with supervised(scratch) as supervisor, supervisor.worker(LIMITS, kernels=False) as worker:
        outcome = await run_kernel(worker, DOUBLE)
        assert (outcome.status, outcome.code) == ("job-failed", "unsupported-feature")
        assert values(await worker.run(negate_program(4), [FOUR], 10)) == [0, -1, -2, -3]


@needs_compiler
async def test_an_endless_kernel_is_killed_at_its_wall_limit(scratch):
    async with supervised(scratch) as supervisor, supervisor.worker(LIMITS) as worker:
        assert (await run_kernel(worker, DOUBLE)).status == "ok"
        pid = worker.pid
        began = time.monotonic()
        outcome = await run_kernel(worker, SPIN, wall_limit_s=1.5)
        assert 1.4 < time.monotonic() - began < 3.0
        assert (outcome.status, outcome.code) == ("job-failed", "wall-limit")
        assert "1.5 s" in outcome.sentence
        assert "kernel k" in outcome.sentence
        assert pid is not None
        assert not state_of(pid)
        assert values(await run_kernel(worker, DOUBLE)) == [0, 2, 4, 6]
        assert worker.pid != pid


async def test_memory_beyond_the_limit_is_told_before_anything_runs(scratch):
    # Every broadcast argument of an elementwise kernel is written out, which the estimate counts.
    count, extra = 4 * MEBIBYTE, 30
    names = [f"y{number}" for number in range(extra)]
    text = ", ".join(f"float64 {name}" for name in names)
    kernel = KernelSource(
        "elementwise", "k", (), (f"float64 x, {text}", "float64 z", "z = x + " + " + ".join(names), "")
    )
    specs = (ArraySpec("float64", (count,)), *[ArraySpec("float64", (1,))] * extra)
    node = Node("elementwise_kernel", tuple(range(extra + 1)), {"kernel": 0, "size": None})
    program = encode_program(Program(1, specs, (kernel,), (node,), (extra + 1,)))
    x = InputBuffer(count * 8, data=bytes(count * 8))
    small = InputBuffer(8, data=bytes(8))
    limits = WorkerLimits(memory_bytes=128 * MEBIBYTE, output_bytes=64 * MEBIBYTE)
    async with supervised(scratch) as supervisor, supervisor.worker(limits) as worker:
        outcome = await worker.run(program, [x, *[small] * extra], 30)
        assert (outcome.status, outcome.code) == ("job-failed", "over-memory"), outcome.sentence
        assert "128 MiB" in outcome.sentence
        assert "1.03 GiB" in outcome.sentence
        assert values(await worker.run(negate_program(4), [FOUR], 10)) == [0, -1, -2, -3]


@needs_compiler
async def test_native_code_cannot_take_more_memory_either(scratch):
    hoard = """
    extern "C" __global__ void k(float* x) {
        int got = 0;
        if (threadIdx.x) return;
        for (int i = 0; i < 4096; i++) {
            char* p = (char*)malloc(1 << 20);
            if (!p) break;
            memset(p, 1, 1 << 20);
            got++;
        }
        x[0] = got;
    }"""
    limits = WorkerLimits(memory_bytes=64 * MEBIBYTE, output_bytes=MEBIBYTE)
    async with supervised(scratch) as supervisor, supervisor.worker(limits) as worker:
        got = values(await run_kernel(worker, hoard))[0]
        assert 64 <= got < 64 + 128


@needs_compiler
async def test_used_up_processor_time_is_named(scratch):
    limits = WorkerLimits(memory_bytes=256 * MEBIBYTE, output_bytes=MEBIBYTE, cpu_seconds=1)
    async with supervised(scratch) as supervisor, supervisor.worker(limits) as worker:
        outcome = await run_kernel(worker, SPIN, wall_limit_s=30)
        assert (outcome.status, outcome.code) == ("job-failed", "cpu-limit"), outcome.sentence


# --- what goes on between runs


STAYS = f"""
__device__ void* computes(void* place) {{
    volatile float* at = (volatile float*)place;
    for (;;) *at = *at + 1;
}}
extern "C" __global__ void k(float* x) {{
    if (threadIdx.x) return;
    unsigned long made;
    float* place = (float*)malloc(4);
    *place = 0;
    auto create = {stolen("pthread_create", "int (*)(unsigned long*, const void*, void* (*)(void*), void*)")};
    x[0] = create(&made, nullptr, computes, place);
}}"""


def _spent(pid: int | None) -> int:
    """Processor time of a process so far, in clock ticks."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


@needs_compiler
async def test_what_native_code_left_running_computes_nothing_until_the_next_run(scratch):
    async with supervised(scratch) as supervisor, supervisor.worker(LIMITS) as worker:
        assert values(await run_kernel(worker, STAYS))[0] == 0, "the thread was made"
        pid = worker.pid
        with trio.fail_after(20):
            while state_of(pid) != "T":
                await trio.sleep(0.01)
        spent = _spent(pid)
        async with supervisor.worker(LIMITS) as other:  # meanwhile somebody else computes
            assert values(await run_kernel(other, DOUBLE)) == [0, 2, 4, 6]
        assert _spent(pid) == spent
        assert values(await run_kernel(worker, DOUBLE)) == [0, 2, 4, 6], (
            "its next run goes on in the same process"
        )
        assert worker.pid == pid


# --- what a worker can see


PROBE = f"""
extern "C" __global__ void k(float* x) {{
    auto get = {stolen("getenv", "char* (*)(const char*)")};
    x[0] = get("COPPERMESH_SECRET") != 0;
    x[1] = get("HOME")[1] == 'n';
    int first = {stolen("open", "int (*)(const char*, int)")}("/dev/null", 0);
    x[2] = first;
    x[3] = {stolen("getsid", "int (*)(int)")}(0) == {stolen("getppid", "int (*)()")}();
}}"""


def _files_of(worker: Worker) -> list[str]:
    """Names of what a worker has open. (Some builds of libffi keep a memory file of their own.)"""
    names = []
    for path in Path(f"/proc/{worker.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            names.append(re.sub(r"\[.*| .*", "", path.readlink().name))
    return sorted(name for name in names if "libffi" not in name)


@needs_compiler
async def test_workers_have_no_environment_descriptors_or_privileges_of_the_agent(scratch, monkeypatch):
    monkeypatch.setenv("COPPERMESH_SECRET", "key")
    secret = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        async with supervised(scratch) as supervisor, supervisor.worker(LIMITS) as worker:
            zygote = supervisor.zygote_pid
            environment = Path(f"/proc/{zygote}/environ").read_bytes()
            assert b"key" not in environment
            names = {entry.partition(b"=")[0].decode() for entry in environment.split(b"\0") if entry}
            assert names <= {
                "PATH", "LANG", "LC_CTYPE", "HOME", "PYTHONDONTWRITEBYTECODE",
                "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
            }  # fmt: skip
            assert len(os.listdir(f"/proc/{zygote}/task")) == 1
            seen = values(await run_kernel(worker, PROBE))
            assert seen[:2] == [0, 1]
            assert seen[3] == 0
            status = Path(f"/proc/{worker.pid}/status").read_text()
            assert re.search(r"NoNewPrivs:\s+1", status)
            assert re.search(r"Umask:\s+0077", status)
            assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text().strip() == "1000"
            assert Path(f"/proc/{worker.pid}/cwd").readlink().name == "worker-1"
            limits = Path(f"/proc/{worker.pid}/limits").read_text()
            assert re.search(r"Max core file size\s+0\s+0", limits)
            # The box as 1, 2, itself and its mapping, and the kernel's library; standard input and not what the
            # kernel's four threads tried to open; the socket.
            expected = [*["memfd:coppermesh-box"] * 4, "memfd:coppermesh-kernel", "null", "socket:"]
            await becomes(lambda: _files_of(worker) == expected, 1.0, f"{_files_of(worker)} is {expected}")
    finally:
        os.close(secret)


async def test_the_zygote_never_loads_the_network_side():
    from coppermesh.exec.zygote import FORBIDDEN

    code = (
        "import sys; from coppermesh.exec import zygote; zygote.preload('cpu');"
        f"print([name for name in {FORBIDDEN!r} if name in sys.modules], zygote.count_threads())"
    )
    environment = {"PATH": "/usr/bin:/bin", "OPENBLAS_NUM_THREADS": "1"}
    seen = subprocess.run(
        [sys.executable, "-I", "-c", code], env=environment, capture_output=True, check=True, cwd="/"
    )
    assert seen.stdout.decode().strip() == "[] 1"


async def test_a_machine_on_which_no_zygote_starts_says_so(scratch, monkeypatch, tmp_path):
    from coppermesh.exec.supervisor import WorkerUnavailable

    # Not under bubblewrap: it would look for that program in its own view of the files.
    monkeypatch.setattr(supervising, "find_bubblewrap", lambda: None)
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho out of order >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(WorkerUnavailable, match="did not get ready") as caught:
        async with supervised(scratch):
            pass
    assert "out of order" in caught.value.detail
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    with pytest.raises(WorkerUnavailable, match="could be started"):
        async with supervised(scratch):
            pass


async def test_errors_in_the_block_come_out_as_they_are(scratch):
    with pytest.raises(KeyError):
        async with supervised(scratch) as supervisor, supervisor.worker(LIMITS):
            raise KeyError("mine")


# --- killing


@needs_compiler
async def test_cancelling_a_run_kills_its_process_within_a_second(scratch):
    async with supervised(scratch) as supervisor, supervisor.worker(LIMITS) as worker:
        assert values(await run_kernel(worker, DOUBLE)) == [0, 2, 4, 6]
        pid = worker.pid
        assert pid is not None
        with trio.move_on_after(1.0) as scope:
            await run_kernel(worker, SPIN)
        ended = time.monotonic()
        assert scope.cancelled_caught
        await becomes(lambda: not state_of(pid), 1.0, "the worker is gone")
        assert time.monotonic() - ended < 1.0
        assert values(await run_kernel(worker, DOUBLE)) == [0, 2, 4, 6]
    assert left_in(scratch) == []


SLOW_TO_COMPILE = """
template <int N, int M> struct F { enum { v = F<N - 1, M * 2>::v + F<N - 1, M * 2 + 1>::v }; };
template <int M> struct F<0, M> { enum { v = 1 }; };
extern "C" __global__ void k(float* o) { o[0] = F<30, 0>::v; }"""


def compilers_of(zygote: int) -> list[int]:
    """Processes below a builder of this zygote."""
    return [pid for builder in children_of(zygote) for pid in children_of(builder)]


def descendants_of(pid: int) -> list[int]:
    found = []
    todo = [pid]
    while todo:
        below = children_of(todo.pop())
        found += below
        todo += below
    return found


@needs_compiler
async def test_the_wall_limit_ends_a_compiler_with_all_it_started(scratch):
    async with supervised(scratch) as supervisor, supervisor.worker(LIMITS) as worker:
        zygote = supervisor.zygote_pid
        assert zygote is not None
        stays = {pid for pid in descendants_of(zygote) if pid != worker.pid}  # its half inside its namespaces
        seen: set[int] = set()
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await becomes(lambda: len(descendants_of(zygote)) >= 4 + len(stays), 5.0, "a compiler runs")
                seen.update(set(descendants_of(zygote)) - stays)

            nursery.start_soon(watch)
            outcome = await run_kernel(worker, SLOW_TO_COMPILE, wall_limit_s=2.0)
        assert outcome.code == "wall-limit"
        assert "compiling kernel k" in outcome.sentence
        await becomes(lambda: not any(state_of(pid) for pid in seen), 1.0, "compilers are gone")
        assert left_in(scratch) == []
        assert values(await worker.run(negate_program(4), [FOUR], 10)) == [0, -1, -2, -3]


@needs_compiler
async def test_a_killed_zygote_takes_its_workers_and_is_replaced(scratch):
    async with (
        supervised(scratch) as supervisor,
        supervisor.worker(LIMITS) as worker,
        supervisor.worker(LIMITS) as other,
    ):
        assert values(await run_kernel(worker, DOUBLE)) == [0, 2, 4, 6]
        zygote, pids = supervisor.zygote_pid, [worker.pid, other.pid]
        assert zygote is not None
        outcomes: list[RunOutcome] = []
        async with trio.open_nursery() as nursery:

            async def spin() -> None:
                outcomes.append(await run_kernel(worker, SPIN))

            nursery.start_soon(spin)
            await trio.sleep(0.3)
            os.kill(zygote, signal.SIGKILL)
            await becomes(lambda: not any(state_of(pid) for pid in pids if pid), 1.0, "workers are gone")
        assert (outcomes[0].status, outcomes[0].code) == ("provider-failed", "zygote-lost")
        for each in (worker, other):
            assert values(await each.run(negate_program(4), [FOUR], 10)) == [0, -1, -2, -3]
        assert supervisor.zygote_pid not in (None, zygote)


async def test_a_zygote_with_fewer_layers_than_were_announced_makes_no_worker(scratch, monkeypatch):
    async with supervised(scratch) as supervisor:
        if "netns" not in supervisor.layers:
            pytest.skip("this machine gives ordinary processes no namespaces")
        keeper, layers, zygote = supervisor._keeper, supervisor.layers, supervisor.zygote_pid
        whole, prefix = keeper._start, keeper._prefix
        keeper._start, keeper._prefix = msgspec.structs.replace(whole, namespaces="none"), []
        assert zygote is not None
        os.kill(zygote, signal.SIGKILL)
        await becomes(lambda: supervisor.zygote_pid is None, 5.0, "the zygote is gone")
        monkeypatch.setattr("coppermesh.exec.keeper.FORK_SECONDS", 2.0)
        with pytest.raises(WorkerUnavailable):
            async with supervisor.worker(LIMITS):
                pass
        keeper._start, keeper._prefix = whole, prefix
        await becomes(lambda: supervisor.zygote_pid is not None, 10.0, "a whole zygote runs")
        async with supervisor.worker(LIMITS) as worker:
            assert values(await worker.run(negate_program(4), [FOUR], 10)) == [0, -1, -2, -3]
        assert supervisor.layers == layers


AGENT = """
import sys, trio
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_workers import LIMITS, SLOW_TO_COMPILE, SPIN, DOUBLE, run_kernel, supervised

async def main():
    async with supervised(Path(sys.argv[1])) as supervisor:
        async with supervisor.worker(LIMITS) as worker:
            await run_kernel(worker, DOUBLE)
            print(supervisor.zygote_pid, worker.pid, flush=True)
            await run_kernel(worker, {"spin": SPIN, "compile": SLOW_TO_COMPILE}[sys.argv[2]])

trio.run(main)
"""


@needs_compiler
@pytest.mark.parametrize("doing", ["spin", "compile"])
async def test_a_killed_agent_takes_everything_with_it(scratch, doing):
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(scratch), doing, str(Path(__file__).parent)], stdout=subprocess.PIPE
    )
    try:
        assert agent.stdout is not None
        line = await trio.to_thread.run_sync(agent.stdout.readline)
        zygote, worker = map(int, line.split())
        wanted = 1 if doing == "spin" else 4
        await becomes(lambda: len(descendants_of(zygote)) >= wanted, 10.0, "it is busy")
        everything = [zygote, worker, *descendants_of(zygote)]
    finally:
        agent.kill()
        agent.wait()
        assert agent.stdout is not None
        agent.stdout.close()
    await becomes(lambda: not any(state_of(pid) for pid in everything), 1.0, "everything is gone")
    # What the killed agent could not remove, the next one does.
    assert any(name.startswith("worker-") for name in left_in(scratch))
    async with supervised(scratch):
        assert left_in(scratch) == []


@needs_compiler
async def test_a_hundred_runs_with_crashes_and_timeouts_leave_nothing(scratch):
    sources = [
        DOUBLE,
        WILD,
        DOUBLE,
        ABORT,
        SPIN,
        EXIT,
        DOUBLE,
        'extern "C" __global__ void k(float* x) { y; }',
    ]
    async with supervised(scratch) as supervisor:
        async with supervisor.worker(LIMITS) as worker:  # what stays for good is made in the first rounds
            for source in sources:
                (await run_kernel(worker, source, 0.5)).close()
        zygote = supervisor.zygote_pid
        assert zygote is not None
        before, held = _inventory(zygote), _links()
        for _ in range(5):
            async with supervisor.worker(LIMITS) as worker:
                for number in range(20):
                    source = sources[number % len(sources)] if number < len(sources) else DOUBLE
                    outcome = await run_kernel(worker, source, 0.5)
                    outcome.close()
        await becomes(
            lambda: _inventory(zygote) == before, 2.0, f"{_inventory(zygote)} is {before}: {_links()} {held}"
        )
        assert left_in(scratch) == []
        assert supervisor.zygote_pid == zygote
    assert not state_of(zygote)


def _links() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(found)


def _inventory(zygote: int) -> dict[str, object]:
    """What must not grow: descriptors here and in the zygote, its children (zombies too), mappings of memory files."""
    maps = Path("/proc/self/maps").read_text()
    zombies = Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "zygote's descriptors": len(os.listdir(f"/proc/{zygote}/fd")),
        "children": zombies,
        "mappings": maps.count("memfd:coppermesh"),
    }


async def test_a_worker_that_nobody_waits_for_any_more_is_gone_when_the_waiting_ends(scratch):
    async with supervised(scratch) as supervisor:
        async with supervisor.worker(LIMITS):
            pass
        zygote = supervisor.zygote_pid
        assert zygote is not None
        before = _inventory(zygote)
        for number in range(60):
            with trio.move_on_after(number / 20_000):
                async with supervisor.worker(LIMITS):
                    pass
            assert _inventory(zygote) == before
            assert left_in(scratch) == []


async def test_a_fork_takes_milliseconds(scratch):
    async with supervised(scratch) as supervisor:
        times = []
        for _ in range(20):
            began = time.perf_counter()
            async with supervisor.worker(LIMITS):
                times.append(time.perf_counter() - began)
        assert (
            sorted(times)[10] < 0.010 * 5
        )  # under 10 ms; five times that on a machine busy with other tests


# --- a worker process that lies


class FakeWorkshop:
    """Gives a worker handle a process whose other end the test plays."""

    meter = NoMeter()

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.theirs: list[socket.socket] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    async def make_process(self, limits: WorkerLimits, kernels: bool) -> Process:
        body = subprocess.Popen(["sleep", "1000"])
        self.processes.append(body)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs.append(theirs)
        box = make_black_box()
        view = BlackBox(box)
        os.close(box)
        child = Child(len(self.processes), body.pid, os.pidfd_open(body.pid))
        return Process(child, Channel(ours), view, self.directory)

    async def end_process(self, process: Process) -> None:
        process.child.kill()
        process.channel.close()
        process.box.close()
        process.lent.close()
        body = self.processes[process.child.serial - 1]
        assert body.wait(5) == -signal.SIGKILL
        process.child.ended.set()
        os.close(process.child.pidfd)
        self.theirs[process.child.serial - 1].close()

    async def build(
        self, limits: WorkerLimits, request: pipe.Build, source: list[int]
    ) -> tuple[pipe.Built, list[int]]:
        return pipe.Built("kernel-compile", "no", ""), []


def _done(number: int = 1, *sizes: int, files: tuple[int, ...] | None = None) -> bytes:
    numbers = tuple(range(len(sizes))) if files is None else files
    return pipe.encode(pipe.Done(number, sizes, None, 0, "", files=numbers))


def _sealed(data: bytes = b"four") -> int:
    return linux.sealed_file("out", data)


Lie = Callable[[list[int]], tuple[bytes, list[int]]]
"""Of the files that it was lent: what the worker says, and the descriptors that it sends along."""


def _filled(said: bytes, data: bytes = b"four", *, sealed: bool = True) -> Lie:
    """The first lent file filled, and let go."""

    def lie(lent: list[int]) -> tuple[bytes, list[int]]:
        os.write(lent[0], data)
        if sealed:
            linux.seal(lent[0], linux.SEAL_CONTENT | linux.SEAL_SEAL)
        return said, []

    return lie


def _sparse(lent: list[int]) -> tuple[bytes, list[int]]:
    os.ftruncate(lent[0], 1 << 16)
    linux.seal(lent[0], linux.SEAL_CONTENT)
    return _done(1, 1 << 16), []


LIES: dict[str, Lie] = {
    "garbage": lambda lent: (b"\xc1garbage", []),
    "nothing of ours": lambda lent: (pipe.encode(pipe.Ready(1)), []),
    "an order for the agent": lambda lent: (pipe.encode(pipe.Run(1, (b"x",))), []),
    "an answer to another run": lambda lent: (_done(2), []),
    "a non-canonical message": lambda lent: (_done().replace(b"\x01", b"\xcc\x01", 1), []),
    "a file that can change": _filled(_done(1, 4), sealed=False),
    "no file": lambda lent: (_done(1, 4, files=()), []),
    "one file twice": _filled(_done(1, 4, files=(0, 0))),
    "one file for two outputs": _filled(_done(1, 4, 4, files=(0, 0))),
    "a file that it was not lent": _filled(_done(1, 4, files=(1,))),
    "a file with a number beyond all": _filled(_done(1, 4, files=(1 << 61,))),
    "a file of its own": lambda lent: (_done(1, 4), [_sealed()]),
    "files by the hundred": lambda lent: (_done(1, 4), [_sealed() for _ in range(250)]),
    "a smaller file": _filled(_done(1, 4), b"2"),
    "a larger file": _filled(_done(1, 4), b"seventeen bytes.."),
    "a size of its own": _filled(_done(1, 9), b"nine byte"),
    "a file with holes": _sparse,
    "an empty file": lambda lent: (_done(1, 4), []),
    "a build without source": lambda lent: (pipe.encode(pipe.Build(10, "k", ())), []),
    "a build from a file that it was not lent": lambda lent: (
        pipe.encode(pipe.Build(10, "k", (), file=1)),
        [],
    ),
    "a build from two places": lambda lent: (pipe.encode(pipe.Build(b"x", "k", (), file=0)), []),
    "escape codes for a terminal": lambda lent: (
        pipe.encode(pipe.Failed(1, "job", "x", "\x1b[2J", "", 0, "")),
        [],
    ),
    "a message as large as it gets": lambda lent: (bytes(pipe.MAX_MESSAGE_BYTES + 1), []),
}


async def _run_with(
    workshop: FakeWorkshop, worker: Worker, lie: Lie, sizes: list[int] | None = None
) -> RunOutcome:
    """A run whose worker does `lie`, after it has taken the order."""

    def play() -> None:
        end = workshop.theirs[-1]
        data, descriptors = sockets.receive(end)
        message = pipe.decode_to_worker(data)
        assert isinstance(message, pipe.Run)
        said, files = lie(descriptors[len(descriptors) - message.lent :])
        sockets.close_all(descriptors)
        sockets.send(end, said, files)
        sockets.close_all(files)

    outcome: RunOutcome | None = None
    await worker.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, play)
        outcome = await worker.run(b"program", [FOUR], 5, output_sizes=sizes)
    assert outcome is not None
    return outcome


@pytest.mark.parametrize("lie", LIES)
async def test_a_lying_worker_is_caught_killed_and_replaced(tmp_path, lie):
    workshop = FakeWorkshop(tmp_path)
    worker = Worker(workshop, LIMITS, kernels=True)
    await worker.start()
    before = len(os.listdir("/proc/self/fd"))
    outcome = await _run_with(workshop, worker, LIES[lie], [4])
    assert (outcome.status, outcome.code) == ("job-failed", "worker-misbehaved"), outcome.sentence
    assert outcome.outputs == []
    assert workshop.processes[0].returncode == -signal.SIGKILL
    await worker.start()
    assert len(os.listdir("/proc/self/fd")) == before
    outcome = await _run_with(workshop, worker, _filled(_done(2, 4), b"true"), [4])
    assert bytes(outcome.outputs[0].view) == b"true"
    outcome.close()
    await worker.close()


async def test_outputs_beyond_the_limit_are_not_mapped(tmp_path):
    workshop = FakeWorkshop(tmp_path)
    worker = Worker(workshop, WorkerLimits(memory_bytes=1, output_bytes=7), kernels=True)
    outcome = await _run_with(workshop, worker, _filled(_done(1, 4, 4)))
    assert (outcome.status, outcome.code) == ("job-failed", "output-limit")
    assert "8 bytes" in outcome.sentence
    assert "7 bytes" in outcome.sentence
    await worker.close()


async def test_what_a_worker_keeps_open_counts_until_it_lets_go(tmp_path):
    workshop = FakeWorkshop(tmp_path)
    worker = Worker(workshop, LIMITS, kernels=True)
    await worker.start()
    kept: list[int] = []

    def keep_two(lent: list[int]) -> tuple[bytes, list[int]]:
        for descriptor in lent:
            linux.fill_and_seal(descriptor, bytes(1 << 20))
        kept.append(os.dup(lent[0]))  # a descriptor
        kept.append(os.open(f"/proc/self/fd/{lent[1]}", os.O_RDONLY))  # another one of the same file
        return _done(1, 1 << 20, 1 << 20, 1 << 20), []

    outcome = await _run_with(workshop, worker, keep_two, [1 << 20] * 3)
    assert outcome.status == "ok", outcome.sentence
    outcome.close()
    process = worker._process
    assert process is not None
    assert process.lent.held_bytes() == 2 << 20, "the third was let go"
    room = mmap.mmap(kept[1], 1 << 20, mmap.MAP_SHARED, mmap.PROT_READ)
    sockets.close_all(kept)
    outcome = await _run_with(workshop, worker, _filled(_done(2, 4)), [4])
    outcome.close()
    assert process.lent.held_bytes() == 1 << 20, "a mapping holds it too"
    room.close()
    outcome = await _run_with(workshop, worker, _filled(_done(3, 4)), [4])
    outcome.close()
    assert process.lent.held_bytes() == 0
    await worker.close()


async def test_a_worker_that_keeps_too_many_files_gets_no_other_run(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_handle, "MOST_HELD", 1)
    workshop = FakeWorkshop(tmp_path)
    worker = Worker(workshop, LIMITS, kernels=True)
    await worker.start()
    kept: list[int] = []

    def keep(lent: list[int]) -> tuple[bytes, list[int]]:
        for descriptor in lent:
            linux.fill_and_seal(descriptor, b"four")
        kept.extend(map(os.dup, lent))
        return _done(1, 4, 4), []

    outcome = await _run_with(workshop, worker, keep, [4, 4])
    assert outcome.status == "ok", outcome.sentence
    outcome.close()
    assert worker.pid is None
    sockets.close_all(kept)
    await worker.close()


@pytest.mark.parametrize("code", ["internal-error", "device-error", "worker-unavailable"])
async def test_after_a_kernel_ran_there_a_worker_cannot_blame_the_machine(tmp_path, code):
    workshop = FakeWorkshop(tmp_path)
    worker = Worker(workshop, LIMITS, kernels=True)
    await worker.start()
    process = worker._process
    assert process is not None
    said = [pipe.encode(pipe.Failed(number, "provider", code, "not me", "", 0, "")) for number in (1, 2)]
    outcome = await _run_with(workshop, worker, lambda lent: (said[0], []))
    assert outcome.status == "provider-failed"
    process.ran_native = True
    outcome = await _run_with(workshop, worker, lambda lent: (said[1], []))
    assert (outcome.status, outcome.code) == ("job-failed", code)
    await worker.close()


async def test_a_worker_that_asks_for_memory_files_without_end_is_ended(tmp_path):
    workshop = FakeWorkshop(tmp_path)
    worker = Worker(workshop, LIMITS, kernels=True)
    await worker.start()
    before = len(os.listdir("/proc/self/fd"))
    asked: list[int] = []

    def ask() -> None:
        end = workshop.theirs[0]
        sockets.close_all(sockets.receive(end)[1])
        while True:
            try:
                sockets.send(end, pipe.encode(pipe.Need(64)))
                data, descriptors = sockets.receive(end)
            except OSError:
                return
            sockets.close_all(descriptors)
            if not data:
                return
            asked.append(len(descriptors))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, ask)
        outcome = await worker.run(b"program", [], 20)
        assert outcome.code == "worker-misbehaved", outcome.sentence
    assert 0 < sum(asked) <= pipe.MAX_LENT_PER_RUN
    await worker.close()
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_a_worker_that_asks_for_builds_without_end_is_ended(tmp_path):
    workshop = FakeWorkshop(tmp_path)
    worker = Worker(workshop, LIMITS, kernels=True)
    await worker.start()
    request = pipe.encode(pipe.Build(b"source", "k", ()))

    def flood() -> None:
        try:
            while True:
                sockets.send(workshop.theirs[0], request)
                sockets.receive(workshop.theirs[0])
        except OSError:
            return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, flood)
        outcome = await worker.run(b"program", [], 20)
        assert outcome.code == "worker-misbehaved"
    await worker.close()


async def test_descriptors_that_nobody_asked_for_are_not_kept_in_flight(tmp_path):
    """All of a user's processes share one count of them: too many, and the agent itself could send none."""
    workshop = FakeWorkshop(tmp_path)
    worker = Worker(workshop, LIMITS, kernels=True)
    await worker.start()
    process, dog = worker._process, Watchdog(read=lambda pid, sent: None)
    dog.add(process)
    for _ in range(3):
        dog.look()
    assert process.verdict is None
    sockets.send(workshop.theirs[0], b"x", [0] * 253)
    for _ in range(2):
        dog.look()
    assert process.verdict.code == "worker-misbehaved"
    assert await trio.to_thread.run_sync(workshop.processes[0].wait, 5) == -signal.SIGKILL
    outcome = await _run_with(workshop, worker, _filled(_done(1, 4), b"true"), [4])
    assert outcome.status == "ok", outcome.sentence
    outcome.close()
    await worker.close()


def test_what_workers_may_have_in_flight_leaves_the_agent_its_share():
    """The kernel lets a process with `n` descriptors send once more while the user has up to `n` in flight."""
    assert OPEN_FILES + 253 < 1024  # the soft limit of a service and of a login
    assert OPEN_FILES > MAX_LOADED + MAX_INPUTS + 2 * MAX_OUTPUTS


async def test_a_worker_that_only_closes_its_socket_is_killed(tmp_path):
    workshop = FakeWorkshop(tmp_path)
    worker = Worker(workshop, LIMITS, kernels=True)
    await worker.start()
    workshop.theirs[0].close()
    outcome = await worker.run(b"program", [], 5)
    assert outcome.code == "worker-misbehaved"
    assert workshop.processes[0].returncode == -signal.SIGKILL
    await worker.close()


async def test_a_silent_worker_meets_the_wall_limit(tmp_path):
    workshop = FakeWorkshop(tmp_path)
    worker = Worker(workshop, LIMITS, kernels=True)
    outcome = await worker.run(b"program", [], 0.2)
    assert outcome.code == "wall-limit"
    assert workshop.processes[0].returncode == -signal.SIGKILL
    await worker.close()
