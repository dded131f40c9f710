"""Every limit of a worker, broken by a real one: the answer names the limit, what was asked and what is allowed."""

import ctypes
import functools
import re
from dataclasses import dataclass

import numpy as np
import pytest

from coppermesh.exec import pipe
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.device import probe_cpu
from coppermesh.exec.program import ArraySpec, AttributeValue, KernelSource, Node, Program, encode_program
from coppermesh.exec.supervisor import InputBuffer, RunOutcome, WorkerLimits, open_supervisor

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(find_toolchain() is None, reason="needs a C++ compiler"),
]

MEBIBYTE = 1 << 20
LIMITS = WorkerLimits(memory_bytes=64 * MEBIBYTE, output_bytes=16 * MEBIBYTE, cpu_seconds=60)


@functools.cache
def stolen(name: str, signature: str) -> str:
    """C++ for a function of the C library that kernels are not linked with, found from where `malloc` is."""
    library = ctypes.CDLL(None)
    place, known = (ctypes.cast(library[each], ctypes.c_void_p).value for each in (name, "malloc"))
    assert place is not None
    assert known is not None
    return f"(({signature})((char*)&malloc + ({place - known})))"


def kernel(body: str, before: str = "") -> str:
    return f'{before}extern "C" __global__ void k(float* x) {{ if (threadIdx.x) return; {body} }}'


MMAP = stolen("mmap", "char* (*)(void*, unsigned long, int, int, int, long)")
SHARED_MEMORY = kernel(
    f"""
    for (int i = 0; i < 200; i++) {{
        char* p = {MMAP}(nullptr, 16 << 20, 3, 0x21, -1, 0);
        for (long j = 0; j < (16 << 20); j += 4096) p[j] = 1;
    }}"""
)
"""3.2 GB of shared memory, which no limit of the kernel counts against a process."""

NEED = pipe.encode(pipe.Need(64))
FILES = kernel(
    f"""
    unsigned char need[] = {{ {", ".join(map(str, NEED))} }};
    {stolen("send", "long (*)(int, const void*, unsigned long, int)")}(3, need, sizeof need, 0);
    char answer[100], rights[2000];
    struct {{ void* base; unsigned long size; }} part = {{answer, sizeof answer}};
    struct {{
        void* name; unsigned length; void* parts; unsigned long count; void* rights; unsigned long room; int flags;
    }} message = {{nullptr, 0, &part, 1, rights, sizeof rights, 0}};
    {stolen("recvmsg", "long (*)(int, void*, int)")}(3, &message, 0);
    char* zeros = (char*)malloc(1 << 20);
    for (int file = 5; file < 80; file++)
        for (int j = 0; j < 16; j++)
            {stolen("write", "long (*)(int, const void*, unsigned long)")}(file, zeros, 1 << 20);
    for (;;) x[0] += 1;"""
)
"""The same in files that nobody maps: it asks for 64 in the worker's name, and fills them."""

PAGE_TABLES = kernel(
    f"""
    char* p = {MMAP}(nullptr, 1l << 40, 1, 0x4022, -1, 0);
    {stolen("madvise", "int (*)(void*, unsigned long, int)")}(p, 1l << 40, 15);
    for (long j = 0; j < (1l << 40); j += 2 << 20) x[0] += p[j];
    for (;;) x[0] += 1;"""
)
"""2 GiB of tables for 1 TiB of addresses, all of which lead to the kernel's one page of zeros."""

THREADS = kernel(
    f"""
    unsigned long made[2000];
    for (int i = 0; i < 2000; i++)
        {stolen("pthread_create", "int (*)(unsigned long*, const void*, void* (*)(void*), void*)")}(
            &made[i], nullptr, sleeper, nullptr);
    for (;;) x[0] += 1;""",
    f"""
__device__ void* sleeper(void*) {{
    long time[2] = {{100, 0}};
    {stolen("nanosleep", "int (*)(const void*, void*)")}(time, nullptr);
    return nullptr;
}}
""",
)
HOARD = kernel(
    "for (int i = 0; i < 150; i++) { char* p = (char*)malloc(1 << 20); if (p) memset(p, 1, 1 << 20); }"
)
SPIN = kernel("volatile float* y = x; while (y[0] == y[0]) y[0] = 1;")
CATCH_AND_SPIN = kernel(
    f"{stolen('signal', 'void* (*)(int, long)')}(24, 1); volatile float* y = x; while (y[0] == y[0]) y[0] = 1;"
)
"""Ignores SIGXCPU: the kernel then sends SIGKILL."""
WILD = kernel("x[1ull << 40] = 1;")
BIG_COMPILE = """
template <int N, int M> struct F { enum { v = F<N - 1, M * 2>::v + F<N - 1, M * 2 + 1>::v }; };
template <int M> struct F<0, M> { enum { v = 1 }; };
extern "C" __global__ void k(float* o) { o[0] = F<30, 0>::v; }"""


def kernel_program(source: str) -> bytes:
    node = Node("raw_kernel", (0,), {"kernel": 0, "grid": (1, 1, 1), "block": (1, 1, 1), "shared_mem": 0})
    return encode_program(
        Program(1, (ArraySpec("float32", (4,)),), (KernelSource("raw", "k", (), (source,)),), (node,), (1,))
    )


def hoard_then_negate() -> bytes:
    """A kernel that keeps 150 MiB, of 64 and the 96 that libraries may take, then an array of 20 MiB."""
    kernels = (KernelSource("raw", "k", (), (HOARD,)),)
    call: dict[str, AttributeValue] = {"kernel": 0, "grid": (1, 1, 1), "block": (1, 1, 1), "shared_mem": 0}
    specs = (ArraySpec("float32", (5 * MEBIBYTE,)), ArraySpec("float32", (4,)))
    nodes = (Node("raw_kernel", (1,), call), Node("negative", (0,), {}))
    return encode_program(Program(1, specs, kernels, nodes, (2, 3)))


def arrays(count: int) -> bytes:
    return encode_program(
        Program(1, (ArraySpec("float32", (count,)),), (), (Node("negative", (0,), {}),), (1,))
    )


FOUR = InputBuffer(16, data=np.arange(4, dtype=np.float32).tobytes())


@dataclass(frozen=True)
class Case:
    """A program that breaks a limit, and what its answer must say."""

    program: bytes
    code: str
    asked: str
    allowed: str
    limits: WorkerLimits = LIMITS
    wall_limit_s: float = 30.0
    where: str = ""


CASES = {
    "memory, told beforehand": Case(arrays(15 * MEBIBYTE), "over-memory", "120 MiB", "64 MiB"),
    "memory, at an allocation": Case(
        hoard_then_negate(), "memory-limit", "20.0 MiB", "64 MiB", limits=WorkerLimits(64 * MEBIBYTE, 32 * MEBIBYTE)
    ),
    "shared memory": Case(kernel_program(SHARED_MEMORY), "memory-limit", "holds", "64 MiB", where="kernel k"),
    "memory files": Case(kernel_program(FILES), "memory-limit", "holds", "64 MiB", where="kernel k"),
    "outputs": Case(arrays(5 * MEBIBYTE), "over-output", "20 MiB", "16 MiB"),
    "wall time": Case(
        kernel_program(SPIN), "wall-limit", "longer than", "1.5 s", wall_limit_s=1.5, where="kernel k"
    ),
    "processor time": Case(
        kernel_program(SPIN), "cpu-limit", r"\d s of its", "1 s of processor time", where="kernel k",
        limits=WorkerLimits(64 * MEBIBYTE, MEBIBYTE, cpu_seconds=1),
    ),
    "processor time, its signal ignored": Case(
        kernel_program(CATCH_AND_SPIN), "cpu-limit", r"\d s of its", "1 s of processor time",
        limits=WorkerLimits(64 * MEBIBYTE, MEBIBYTE, cpu_seconds=1),
    ),
    "threads": Case(
        kernel_program(THREADS), "process-limit", r"\d+ threads", "limit is 256", where="kernel k",
        limits=WorkerLimits(4096 * MEBIBYTE, MEBIBYTE),  # a thread's stack counts as memory
    ),
    "a compiler's time or memory": Case(
        kernel_program(BIG_COMPILE), "kernel-build-limit", "needed more", "30 s, 2 GiB of memory", wall_limit_s=60
    ),
    "a compiler's files": Case(
        kernel_program(kernel("x[0] = 1;")), "kernel-build-limit", "files", "16 KiB of files",
        limits=WorkerLimits(64 * MEBIBYTE, MEBIBYTE, scratch_bytes=16 * 1024),
    ),
    "page tables": Case(
        kernel_program(PAGE_TABLES), "memory-limit", "holds [0-9.]+ [MG]iB", "64 MiB", where="kernel k"
    ),
    "a wild pointer": Case(kernel_program(WILD), "crashed", "SIGSEGV", "wild pointer", where="kernel k"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
async def test_a_broken_limit_is_named_with_both_amounts(tmp_path, name):
    case = CASES[name]
    async with open_supervisor(probe_cpu(), scratch=tmp_path / "scratch") as supervisor:
        async with supervisor.worker(case.limits) as worker:
            outcome = await worker.run(case.program, _inputs_of(case), case.wall_limit_s)
            _check(outcome, case)
            after = await worker.run(arrays(4), [FOUR], 20)
            assert after.status == "ok", "the next job is not held up"
            after.close()


def _inputs_of(case: Case) -> list[InputBuffer]:
    if case.program == hoard_then_negate():
        return [InputBuffer(20 * MEBIBYTE, data=bytes(20 * MEBIBYTE)), FOUR]
    for count in (15 * MEBIBYTE, 5 * MEBIBYTE):
        if case.program == arrays(count):
            return [InputBuffer(count * 4, data=bytes(count * 4))]
    return [FOUR]


def _check(outcome: RunOutcome, case: Case) -> None:
    said = f"{outcome.sentence}\n{outcome.detail}"
    assert (outcome.status, outcome.code) == ("job-failed", case.code), said
    assert re.search(case.asked, outcome.sentence), said
    assert re.search(case.allowed, outcome.sentence), said
    assert case.where in outcome.sentence, said
    assert outcome.outputs == []
