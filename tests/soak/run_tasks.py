# ruff: noqa: T201  # a program that prints what it found
"""Many tasks in a row in real workers, one in ten of them hostile or crashing; nothing may stay behind.

    python tests/soak/run_tasks.py [--tasks 20000] [--seed 1] [--leases 2]

Leases of 1 to 60 tasks, `--leases` of them at a time. Right answers are compared with NumPy's. After the first 1,000
tasks, and again at the end, with every lease closed, it takes stock of this process (which holds the agent's side: the
supervisor) and of the zygote: child processes and zombies, descriptors, memory files, mounts, files in scratch and
resident memory. The stocks must be equal, resident memory within 5 %. Exits with 1 and says what differs if they are
not.
"""

import argparse
import ctypes
import gc
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import trio

from coppermesh.exec import xp
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.device import probe_cpu
from coppermesh.exec.program import ArraySpec, KernelSource, Node, Program, encode_program
from coppermesh.exec.sandbox.syscall_numbers import NUMBERS
from coppermesh.exec.supervisor import InputBuffer, RunOutcome, Supervisor, WorkerLimits, open_supervisor
from coppermesh.exec.tracing import trace

MEBIBYTE = 1 << 20
LIMITS = WorkerLimits(memory_bytes=64 * MEBIBYTE, output_bytes=8 * MEBIBYTE)
FIRST = 1000
"""Tasks until what stays for good is there."""
HOSTILE_SHARE = 0.1
GROWTH = 1.05
LONGEST_LEASE = 60
HOARD = "all memory, kept"
STARVED = frozenset({"crashed", "memory-limit"})
"""How later tasks of a lease may end whose own native code keeps all its memory (OpenBLAS gives up with a message)."""
SHORT_S, LONG_S = 0.6, 30.0
"""Wall limits of what never ends (a kernel is compiled within it), and of all others."""


def _stolen(name: str, signature: str) -> str:
    """C++ for a function of the C library that kernels are not linked with: native code gets at all of its process."""
    library = ctypes.CDLL(None)
    place, known = (ctypes.cast(library[each], ctypes.c_void_p).value for each in (name, "malloc"))
    return f"(({signature})((char*)&malloc + ({(place or 0) - (known or 0)})))"


def _kernel(body: str) -> bytes:
    node = Node("raw_kernel", (0,), {"kernel": 0, "grid": (1, 1, 1), "block": (1, 1, 1), "shared_mem": 0})
    source = KernelSource("raw", "k", (), (f'extern "C" __global__ void k(float* x) {{ {body} }}',))
    return encode_program(Program(1, (ArraySpec("float32", (4,)),), (source,), (node,), (1,)))


def _negate(count: int) -> bytes:
    node = Node("negative", (0,), {})
    return encode_program(Program(1, (ArraySpec("float32", (count,)),), (), (node,), (1,)))


@dataclass(frozen=True)
class Task:
    """One program, its input, and what must come of it."""

    name: str
    program: bytes
    inputs: tuple[bytes, ...]
    codes: frozenset[str] = frozenset({"ok"})
    expected: bytes | None = None
    """The first output's bytes."""
    close: bool = False
    """The expected bytes are float64 and may differ in the last places."""
    wall_limit_s: float = LONG_S


FOUR = np.arange(4, dtype=np.float32).tobytes()


def honest_tasks() -> list[Task]:
    """What is computed as NumPy computes it, some of it large enough to travel in files."""
    rng = np.random.default_rng(7)
    small, large = rng.random(256).astype(np.float32), rng.random(100_000).astype(np.float32)
    square = rng.random((24, 24))
    tasks = [Task("negate", _negate(x.size), (x.tobytes(),), expected=(-x).tobytes()) for x in (small, large)]
    for name, lazy, eager in (
        ("product", xp.asarray(square) @ xp.asarray(square), square @ square),
        (
            "solve",
            xp.linalg.solve(xp.asarray(square), xp.asarray(square[0])),
            np.linalg.solve(square, square[0]),
        ),
        (
            "sums",
            xp.cumsum(xp.sort(xp.asarray(square), axis=0), axis=1),
            np.cumsum(np.sort(square, axis=0), axis=1),
        ),
        ("transform", xp.abs(xp.fft.fft(xp.asarray(square[0]))), np.abs(np.fft.fft(square[0]))),
    ):
        recorded = trace(lazy)
        inputs = tuple(array.tobytes() for array in recorded.inputs)
        tasks.append(Task(name, recorded.program, inputs, expected=eager.tobytes(), close=True))
    return tasks


def kernel_task() -> Task:
    """A kernel, built by each worker that meets it, run warm afterwards."""
    doubled = (2 * np.arange(4, dtype=np.float32)).tobytes()
    return Task("kernel", _kernel("for (int i = 0; i < 4; ++i) x[i] *= 2.0f;"), (FOUR,), expected=doubled)


def hostile_programs() -> list[Task]:
    """Refused before anything native runs."""
    huge = encode_program(Program(1, (ArraySpec("uint8", (100 << 40,)),), (), (), (0,)))
    return [
        Task("garbage", b"\xc1garbage", (), frozenset({"program-malformed"})),
        Task("cut off", _negate(4)[:-3], (FOUR,), frozenset({"program-malformed"})),
        Task("huge input", huge, (FOUR,), frozenset({"over-blob-bytes"})),
        Task(
            "too much memory", _negate(40 * MEBIBYTE), (FOUR,), frozenset({"over-memory", "over-blob-bytes"})
        ),
        Task("too large output", _negate(4 * MEBIBYTE), (FOUR,), frozenset({"over-output"})),
        Task("missing input", _negate(4), (), frozenset({"bad-input"})),
    ]


def hostile_kernels() -> list[Task]:
    """Native code that does its worst. What each may end as; a busy machine may meet the wall limit in the compiler."""
    call = _stolen("syscall", "long (*)(long, ...)")
    number = NUMBERS
    endless = frozenset({"wall-limit"})
    crash = frozenset({"crashed"})
    return [
        Task("wild pointer", _kernel("x[1ull << 40] = 1;"), (FOUR,), crash),
        Task("stack overflow", _kernel("volatile char room[1 << 26]; room[0] = 1; x[0] = room[0];"), (FOUR,), crash),
        Task("exit", _kernel(f"{_stolen('_exit', 'void (*)(int)')}(3);"), (FOUR,), crash),
        Task("abort", _kernel(f"{_stolen('abort', 'void (*)()')}();"), (FOUR,), crash),
        Task(
            "damaged heap",
            _kernel("char* p = (char*)malloc(64); memset(p - 16, 255, 256); free(p); free(p);"),
            (FOUR,),
            frozenset({"crashed", "ok", "worker-misbehaved"}),
        ),
        Task("endless", _kernel("volatile float* y = x; while (y[0] == y[0]) y[0] = 1;"), (FOUR,), endless, None,
             False, SHORT_S),
        Task(
            "sleep on a futex",
            _kernel(f"int word = 0; {call}({number['futex']}l, &word, 0l, 0l, 0l);"),
            (FOUR,), endless, None, False, SHORT_S,
        ),
        Task(
            HOARD,
            _kernel("for (int i = 0; i < 4096; ++i) { char* p = (char*)malloc(1 << 20); if (!p) break;"
                    " memset(p, 1, 1 << 20); } x[0] = 1;"),
            (FOUR,), frozenset({"ok"}),
        ),
        Task(
            "processes",
            _kernel(f"int made = 0; for (int i = 0; i < 100; ++i) {{ if ({call}({number['fork']}l) >= 0) ++made;"
                    f" if ({call}({number['clone']}l, 17l, 0l, 0l, 0l, 0l) >= 0) ++made; }} x[1] = 7 + made;"),
            (FOUR,), expected=np.array([0, 7, 2, 3], np.float32).tobytes(),
        ),
        Task(
            "memory files, left open and mapped",
            _kernel(f"for (int i = 0; i < 60; ++i) {{ long f = {call}({number['memfd_create']}l, \"left\", 1l);"
                    f" {call}({number['ftruncate']}l, f, 1l << 20);"
                    f" long p = {call}({number['mmap']}l, 0l, 1l << 20, 3l, 1l, f, 0l); if (p > 0) *(char*)p = 1; }}"),
            (FOUR,), frozenset({"ok", "memory-limit", "crashed", "worker-misbehaved"}),
        ),
        Task(
            "a full pipe",
            _kernel(f"char noise[32768]; for (;;) if ({call}({number['sendto']}l, 3l, noise, 32768l, 0x4000l,"
                    " 0l, 0l) < 0) break;"),
            (FOUR,), frozenset({"worker-misbehaved"}),
        ),
        Task(
            "noise",
            _kernel(f"for (int i = 0; i < 2000; ++i) {call}({number['write']}l, 2l, \"noise noise noise\\n\", 18l);"),
            (FOUR,), frozenset({"ok"}),
        ),
        Task("does not compile", _kernel("x[0] = two;"), (FOUR,), frozenset({"kernel-compile"})),
        Task("host header", _kernel("\n#include </etc/passwd>\n"), (FOUR,),
             frozenset({"kernel-include"})),
    ]  # fmt: skip


@dataclass
class Soak:
    """The counts of a run, and what went wrong."""

    rng: random.Random
    honest: list[Task]
    kernel: Task | None
    hostile: list[Task]
    codes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    left: int = 0

    async def lease(self, supervisor: Supervisor) -> None:
        """One lease: tasks until it ends or none is left."""
        wanted = self.rng.randint(1, LONGEST_LEASE)
        with_kernels = self.kernel is not None and self.rng.random() < 0.2
        starved: int | None = None
        async with supervisor.worker(LIMITS) as worker:
            while wanted and self.left:
                wanted, self.left = wanted - 1, self.left - 1
                task = self._next(with_kernels)
                inputs = [InputBuffer(len(data), data=data) for data in task.inputs]
                hungry = starved is not None and worker.pid == starved
                outcome = await worker.run(task.program, inputs, task.wall_limit_s)
                if not hungry or outcome.code not in STARVED:
                    self._check(task, outcome)
                else:
                    self.codes[f"after its own lease took all memory: {outcome.code}"] += 1
                outcome.close()
                if task.name == HOARD:
                    starved = worker.pid

    def _next(self, with_kernels: bool) -> Task:
        if self.rng.random() < HOSTILE_SHARE:
            return self.rng.choice(self.hostile)
        if with_kernels and self.kernel is not None and self.rng.random() < 0.5:
            return self.kernel
        return self.rng.choice(self.honest)

    def _check(self, task: Task, outcome: RunOutcome) -> None:
        self.codes[
            f"{'' if 'ok' in task.codes and len(task.codes) == 1 else task.name + ': '}{outcome.code}"
        ] += 1
        if outcome.code not in task.codes:
            self.faults.append(f"{task.name}: {outcome.code}: {outcome.sentence} {outcome.detail[:200]}")
        elif task.expected is not None and not _agrees(task, bytes(outcome.outputs[0].view)):
            self.faults.append(f"{task.name}: another answer than NumPy's")


def _agrees(task: Task, given: bytes) -> bool:
    if not task.close:
        return given == task.expected
    return bool(np.allclose(np.frombuffer(given), np.frombuffer(task.expected or b""), rtol=1e-9, atol=1e-9))


async def run_tasks(supervisor: Supervisor, soak: Soak, tasks: int, leases: int) -> None:
    """Run so many, in leases, `leases` at a time; all of them are closed afterwards."""
    soak.left = tasks

    async def one_after_another() -> None:
        while soak.left:
            await soak.lease(supervisor)

    async with trio.open_nursery() as nursery:
        for _ in range(leases):
            nursery.start_soon(one_after_another)


def zygotes(pid: int) -> list[int]:
    """The zygote and, where it made namespaces, its half inside them."""
    return [pid, *(child for child in _children(pid) if b"coppermesh.exec.zygote" in _command(child))]


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def stock(supervisor: Supervisor, scratch: Path) -> dict[str, Any]:
    """What there is, apart from resident memory."""
    assert supervisor.zygote_pid is not None
    found: dict[str, Any] = {"scratch": sorted(path.name for path in scratch.iterdir())}
    for name, pid in [
        ("agent", os.getpid()),
        *((f"zygote {n}", p) for n, p in enumerate(zygotes(supervisor.zygote_pid))),
    ]:
        links = [_link(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
        found[name] = {
            "pid": pid,
            "children": _children(pid),
            "descriptors": len(links) - (name == "agent"),  # the directory that is being read
            "memory files": sum("memfd:" in link for link in links),
            "mapped memory files": Path(f"/proc/{pid}/maps").read_text().count("memfd:"),
            "mounts": _mounts(pid),
        }
    return found


def _mounts(pid: int) -> int:
    """Mounts that the process sees, but for network namespaces that others have named on this machine."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return sum(not line.split()[4].startswith("/run/netns") for line in lines)


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def resident(supervisor: Supervisor) -> dict[str, int]:
    """Resident bytes of this process and of the zygote that forks."""
    assert supervisor.zygote_pid is not None
    gc.collect()
    return {"agent": _resident(os.getpid()), "zygote": _resident(zygotes(supervisor.zygote_pid)[-1])}


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def settled(look: Callable[[], Any], wanted: Any) -> Any:
    """What `look` gives, once it is `wanted` or two seconds have passed: the last process may just be ending."""
    with trio.move_on_after(2.0):
        while (seen := look()) != wanted:  # noqa: ASYNC110 - it watches processes
            await trio.sleep(0.02)
        return seen
    return look()


async def soak_all(tasks: int, seed: int, leases: int, scratch: Path) -> dict[str, Any]:
    """Run everything and give the report; its `faults` are empty where all is well."""
    native = find_toolchain() is not None
    hostile = hostile_programs() + (hostile_kernels() if native else [])
    soak = Soak(random.Random(seed), honest_tasks(), kernel_task() if native else None, hostile)
    began = time.monotonic()
    async with open_supervisor(probe_cpu(), scratch=scratch) as supervisor:
        await run_tasks(supervisor, soak, min(FIRST, tasks), leases)
        before, memory_before = stock(supervisor, scratch), resident(supervisor)
        await run_tasks(supervisor, soak, tasks - min(FIRST, tasks), leases)
        after = await settled(lambda: stock(supervisor, scratch), before)
        memory_after = resident(supervisor)
        layers = supervisor.layers
    faults = soak.faults[:20] + [
        f"{name}: {before.get(name)} became {after.get(name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    for name, size in memory_before.items():
        if memory_after[name] > GROWTH * size:
            faults.append(f"resident memory of the {name}: {size} bytes became {memory_after[name]}")
    return {
        "tasks": sum(soak.codes.values()),
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "layers": list(layers),
        "outcomes": dict(sorted(soak.codes.items())),
        "resident after the first": memory_before,
        "resident at the end": memory_after,
        "stock": after,
        "faults": faults,
    }


def main(arguments: Sequence[str]) -> int:
    """Run and print the report as JSON. 0 where nothing was left behind and every outcome was as it must be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--leases", type=int, default=2, help="at a time")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="coppermesh-soak-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103 - the sandbox's user goes through it
        report = trio.run(soak_all, options.tasks, options.seed, options.leases, Path(directory) / "scratch")
    print(json.dumps(report, indent=1))
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
