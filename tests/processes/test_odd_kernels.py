"""Native code that turns on its own worker: stops it, closes or floods its pipe, forges answers, hoards, hides signals.

Each act is a kernel that calls the operating system directly, as a stranger's code could, in a real worker
with every layer on. It comes back as the job's failure, or has no effect; never as a hang, and never as this machine's
failure, which nobody pays for. After each, the same lease computes rightly.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from coppermesh.exec import pipe
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.device import probe_cpu
from coppermesh.exec.program import ArraySpec, KernelSource, Node, Program, encode_program
from coppermesh.exec.sandbox import landlock, seccomp
from coppermesh.exec.sandbox.syscall_numbers import NUMBERS
from coppermesh.exec.supervisor import InputBuffer, WorkerLimits, open_supervisor

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(find_toolchain() is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(
        not (landlock.abi() and seccomp.supported()), reason="no Landlock or seccomp filters here"
    ),
]

MEBIBYTE = 1 << 20
LIMITS = WorkerLimits(memory_bytes=64 * MEBIBYTE, output_bytes=4 * MEBIBYTE)
FOREVER = "volatile float* y = x; for (;;) y[1] = 1;"


def place_of(name: str) -> int:
    """Of a function of the C library, seen from `malloc`, which kernels are linked with."""
    library = ctypes.CDLL(None)
    found, known = (ctypes.cast(library[each], ctypes.c_void_p).value for each in (name, "malloc"))
    assert found is not None
    assert known is not None
    return found - known


def kernel(body: str, before: str = "") -> str:
    numbers = "\n".join(f"#define SYS_{name} {number}l" for name, number in NUMBERS.items())
    return (
        f"{numbers}\n#define CALL ((long (*)(long, ...))((char*)&malloc + ({place_of('syscall')})))\n{before}\n"
        f'extern "C" __global__ void odd(float* x) {{ if (threadIdx.x) return; {body} }}'
    )


def saying(message: bytes) -> str:
    return (
        f"unsigned char said[] = {{ {', '.join(map(str, message))} }};"
        "CALL(SYS_sendto, 3l, said, (long)sizeof said, 0l, 0l, 0l);"
    )


ON_SIGNAL = """
__device__ void caught(int) { for (volatile int i = 0;; i = i + 1) {} }
struct Action { void (*handler)(int); unsigned long flags; void* restorer; unsigned long mask; };
"""
HANDLE = "Action action = {caught, 0x04000000 | 0x08000000 | 0x40000000, (void*)caught, 0};"


@dataclass(frozen=True)
class Act:
    """What a kernel does, and the codes with which it may come back (`ok`: it had no effect)."""

    source: str
    codes: tuple[str, ...]
    wall_s: float = 20.0
    answer: Callable[[int], pipe.PipeMessage] | None = None
    """Instead of `source`: what it says in the worker's name, by the number of the run."""

    def text(self, number: int) -> str:
        return (
            self.source if self.answer is None else kernel(saying(pipe.encode(self.answer(number))) + FOREVER)
        )


ACTS = {
    "stop itself": Act(kernel("CALL(SYS_kill, CALL(SYS_getpid), 19l); " + FOREVER), ("wall-limit",), 1.5),
    "sleep on a futex": Act(
        kernel("int word = 0; for (;;) CALL(SYS_futex, &word, 0l, 0l, 0l, 0l, 0l);"), ("wall-limit",), 1.5
    ),
    "block every signal": Act(
        kernel("unsigned long all = ~0ul; CALL(SYS_rt_sigprocmask, 2l, &all, 0l, 8l); " + FOREVER),
        ("wall-limit",),
        1.5,
    ),
    "handle its faults on a stack of its own, for ever": Act(
        kernel(
            "char room[65536]; struct { void* at; int flags; unsigned long size; } stack = {room, 0, 65536};"
            f"CALL(SYS_sigaltstack, &stack, 0l); {HANDLE}"
            "CALL(SYS_rt_sigaction, 11l, &action, 0l, 8l); x[1ull << 40] = 1;",
            ON_SIGNAL,
        ),
        ("wall-limit", "crashed"),
        1.5,
    ),
    "close its pipe and go on": Act(
        kernel("CALL(SYS_close, 3l); " + FOREVER), ("worker-misbehaved", "wall-limit"), 4.0
    ),
    "close everything": Act(
        kernel("for (long i = 0; i < 1000; ++i) CALL(SYS_close, i);"), ("worker-misbehaved", "crashed")
    ),
    "put another file in the place of its pipe": Act(
        kernel("CALL(SYS_dup2, 1l, 3l);"), ("worker-misbehaved", "crashed")
    ),
    "end with status 0": Act(kernel("CALL(SYS_exit_group, 0l);"), ("crashed",)),
    "end one thread only": Act(kernel("CALL(SYS_exit, 0l);"), ("crashed", "wall-limit"), 1.5),
    "say garbage": Act(kernel(saying(b"\xc1garbage")), ("worker-misbehaved",)),
    "say nothing, as a message": Act(
        kernel("CALL(SYS_sendto, 3l, x, 0l, 0l, 0l, 0l);"), ("worker-misbehaved", "crashed")
    ),
    "shut its pipe down": Act(kernel("CALL(SYS_shutdown, 3l, 2l);"), ("worker-misbehaved", "crashed")),
    "forge a good answer without outputs": Act(
        "", ("worker-misbehaved",), answer=lambda number: pipe.Done(number, (16,), None, 0, "", files=(0,))
    ),
    "say that the machine failed": Act(
        "", ("device-lost",), answer=lambda number: pipe.Failed(number, "provider", "device-lost", "x", "", 0, "")
    ),
    "flood its pipe": Act(
        kernel("for (long i = 0; i < 100000; ++i) CALL(SYS_sendto, 3l, x, 16l, 0x40l, 0l, 0l);"),
        ("worker-misbehaved",),
    ),
    "die as if the machine had no memory": Act(
        kernel("CALL(SYS_kill, CALL(SYS_getpid), 9l);"
            "CALL(SYS_tgkill, CALL(SYS_getpid), CALL(SYS_gettid), 9l);"),
        ("ok",),
    ),
    "have the kernel kill it by a lower limit": Act(
        kernel(
            "unsigned long limit[2] = {0, 0}; CALL(SYS_prlimit64, 0l, 0l, limit, 0l);"
            "CALL(SYS_setrlimit, 0l, limit); for (long i = 0; i < 100000000; ++i) ((volatile float*)x)[1] = 1;"
        ),
        ("ok",),
    ),
    "start processes in every way": Act(
        kernel(
            "long flags[] = {0x11, 0x4111, 0x100, 0x8011, 0x80000011, 0x1011}; long made = 0;"
            "for (int i = 0; i < 6; ++i) { long pid = CALL(SYS_clone, flags[i], 0l, 0l, 0l, 0l);"
            " if (pid == 0) CALL(SYS_exit_group, 7l); made += pid > 0; }"
            "made += CALL(SYS_fork) > 0; made += CALL(SYS_vfork) > 0; made += CALL(SYS_clone3, flags, 88l) > 0;"
            "if (made) for (;;) ((volatile float*)x)[1] = 1;"
        ),
        ("ok",),
        4.0,
    ),
    "map until nothing can be mapped": Act(
        kernel(
            "for (long i = 0; i < 200000; ++i)"
            " if (CALL(SYS_mmap, 0l, 4096l, 1l + (i & 1), 0x22l, -1l, 0l) < 0) break;"
        ),
        ("ok", "crashed", "memory-limit"),
    ),
    "reserve all addresses": Act(
        kernel("for (long i = 0; i < 200; ++i) CALL(SYS_mmap, 0l, 1l << 46, 0l, 0x4022l, -1l, 0l);"),
        ("ok", "crashed", "memory-limit"),
    ),
    "make its output's file huge and empty": Act(
        kernel("for (long i = 5; i < 80; ++i) CALL(SYS_ftruncate, i, 1l << 40);"),
        ("ok",),  # past its limit on files, whose signal Python ignores
    ),
    "seal its output's file before it is written": Act(
        kernel("for (long i = 5; i < 80; ++i) CALL(SYS_fcntl, i, 1033l, 15l);"),
        ("output-limit", "worker-misbehaved", "internal-error"),
    ),
    "write into its output's file beforehand": Act(
        kernel("for (long i = 5; i < 80; ++i) CALL(SYS_pwrite64, i, x, 16l, 100l);"),
        ("worker-misbehaved", "crashed"),
    ),
    "keep its output's file mapped for writing": Act(
        kernel("for (long i = 5; i < 80; ++i) CALL(SYS_mmap, 0l, 4096l, 3l, 1l, i, 0l);"),
        ("output-limit", "worker-misbehaved"),
    ),
    "hold its output's files open": Act(
        kernel("for (long i = 5; i < 40; ++i) CALL(SYS_dup, i);"), ("ok",)
    ),
    "name somebody else in its black box": Act(
        kernel(
            "for (long i = 0; i < 512; ++i) CALL(SYS_pwrite64, 4l, \"/etc/passwd \\033[2J\", 16l, i);"
            "x[1ull << 40] = 1;"
        ),
        ("crashed",),
    ),
}  # fmt: skip


def program(source: str) -> bytes:
    node = Node("raw_kernel", (0,), {"kernel": 0, "grid": (1, 1, 1), "block": (1, 1, 1), "shared_mem": 0})
    kernels = (KernelSource("raw", "odd", (), (source,)),)
    return encode_program(Program(1, (ArraySpec("float32", (4,)),), kernels, (node,), (1,)))


def negate() -> bytes:
    return encode_program(Program(1, (ArraySpec("float32", (4,)),), (), (Node("negative", (0,), {}),), (1,)))


FOUR = InputBuffer(16, data=np.arange(4, dtype=np.float32).tobytes())


@pytest.mark.parametrize("part", [0, *(pytest.param(each, marks=pytest.mark.slow) for each in (1, 2, 3))])
async def test_a_worker_turned_on_itself_is_the_jobs_failure_and_the_lease_goes_on(tmp_path, part):
    names = list(ACTS)[part::4]
    async with open_supervisor(probe_cpu(), scratch=tmp_path / "scratch") as supervisor:
        zygote = supervisor.zygote_pid
        for name in names:
            async with supervisor.worker(LIMITS) as worker:
                act = ACTS[name]
                outcome = await worker.run(
                    program(act.text(worker._number + 1)), [FOUR], act.wall_s, output_sizes=[16]
                )
                told = f"{name}: {outcome.status} {outcome.code}: {outcome.sentence} {outcome.detail}"
                outcome.close()
                assert outcome.status in ("ok", "job-failed"), told
                assert outcome.code in act.codes, told
                assert "\x1b" not in told, told
                assert "/etc" not in outcome.sentence, told
                after = await worker.run(negate(), [FOUR], 20.0, output_sizes=[16])
                assert after.status == "ok", f"after {name}: {after.sentence}"
                assert bytes(after.outputs[0].view) == (-np.arange(4, dtype=np.float32)).tobytes()
                after.close()
        assert supervisor.zygote_pid == zygote


async def test_sixty_four_small_outputs_and_as_many_empty_ones(tmp_path):
    nodes = tuple(Node("negative", (0,), {}) for _ in range(32)) + tuple(
        Node("negative", (1,), {}) for _ in range(32)
    )
    specs = (ArraySpec("float32", (4,)), ArraySpec("float32", (0,)))
    data = encode_program(Program(1, specs, (), nodes, tuple(range(2, 66))))
    async with open_supervisor(probe_cpu(), scratch=tmp_path / "scratch") as supervisor:
        async with supervisor.worker(LIMITS) as worker:
            for sizes in (None, [16] * 32 + [0] * 32):
                for _ in range(10):
                    outcome = await worker.run(
                        data, [FOUR, InputBuffer(0, data=b"")], 20.0, output_sizes=sizes
                    )
                    assert outcome.status == "ok", outcome.sentence
                    assert [output.size for output in outcome.outputs] == [16] * 32 + [0] * 32
                    outcome.close()
            process = worker._process
            assert process is not None
            assert process.lent.held_bytes() == 0
