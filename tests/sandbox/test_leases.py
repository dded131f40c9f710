"""Two leases share nothing: native code plants secrets in one, and native code of the next hunts for them.

The hunter reads all readable pages and files of its process. It knows secrets only by products with an odd number,
so what it looks for is nowhere in it, and it finds a decoy of its own in each hunt, or the hunt counts for nothing. In
the lease that planted them it finds most secrets, which shows that it would elsewhere.
"""

import contextlib
import ctypes
import os
import secrets
import string
from pathlib import Path

import numpy as np
import pytest

from coppermesh.exec import xp
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.device import probe_cpu
from coppermesh.exec.kernels import RawModule
from coppermesh.exec.sandbox import landlock, seccomp
from coppermesh.exec.sandbox.syscall_numbers import NUMBERS
from coppermesh.exec.supervisor import InputBuffer, Supervisor, Worker, WorkerLimits, open_supervisor
from coppermesh.exec.tracing import trace

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(find_toolchain() is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(
        not (landlock.abi() and seccomp.supported()), reason="no Landlock or seccomp filters here"
    ),
]

MEBIBYTE = 1 << 20
LIMITS = WorkerLimits(memory_bytes=64 * MEBIBYTE, output_bytes=8 * MEBIBYTE)
PLACES = (
    "HEAP", "MAPPING", "FILE", "ENVIRONMENT", "VARIABLE", "SHARED", "STACK", "PRINTED", "DIRECTORY", "LITERAL",
    "INPUT_IN_PLACE", "INPUT_IN_A_FILE", "OUTPUT",
)  # fmt: skip
STAYS = {"HEAP", "MAPPING", "ENVIRONMENT", "LITERAL"}
"""Where a secret must be found again by the lease that planted it, or the hunter hunts badly."""
SYSTEM_CALLS = ("mmap", "memfd_create", "write", "openat", "mincore", "pwrite64", "pread64", "read")
FACTOR = 0x9E3779B97F4A7C15
TEXT = string.ascii_letters + string.digits


class Secrets:
    """Sixteen letters for each place, of which the first eight are the same, and for the decoy."""

    def __init__(self) -> None:
        self.tag = "".join(secrets.choice(TEXT) for _ in range(8))
        self.texts = {
            place: (self.tag + "".join(secrets.choice(TEXT) for _ in range(8))).encode()
            for place in (*PLACES, "DECOY")
        }

    def plain(self) -> np.ndarray:
        return np.frombuffer(b"".join(self.texts[place] for place in PLACES), np.uint8)

    def products(self) -> np.ndarray:
        words = np.frombuffer(b"".join(self.texts.values()), np.uint64)
        return words * np.uint64(FACTOR)

    def hidden_decoy(self) -> np.ndarray:
        mask = np.uint64(secrets.randbits(64))
        return np.array([*np.frombuffer(self.texts["DECOY"], np.uint64) ^ mask, mask], np.uint64)


def source(literal: bytes) -> str:
    library = ctypes.CDLL(None)
    base = ctypes.cast(library.malloc, ctypes.c_void_p).value or 0

    def place_of(name: str) -> int:
        return (ctypes.cast(library[name], ctypes.c_void_p).value or 0) - base

    environ = ctypes.addressof(ctypes.c_void_p.in_dll(library, "environ")) - base
    lines = [
        f"#define CALL ((long (*)(long, ...))((char*)&malloc + ({place_of('syscall')})))",
        f"#define SETENV ((int (*)(const char*, const char*, int))((char*)&malloc + ({place_of('setenv')})))",
        f"#define ENVIRON (*(char***)((char*)&malloc + ({environ})))",
        f'#define LITERAL_TEXT "{literal.decode()}"',
        f"#define FACTOR {FACTOR}ull",
        f"#define PLACES {len(PLACES)}",
        *(f"#define {place} {number}" for number, place in enumerate(PLACES)),
        *(f"#define SYS_{name} {NUMBERS[name]}l" for name in SYSTEM_CALLS),
    ]
    return "\n".join(lines) + "\n" + Path(__file__).with_name("hunt.cu").read_text()


async def run(worker: Worker, *arrays) -> list[np.ndarray]:
    recorded = trace(*arrays)
    inputs = [InputBuffer(array.nbytes, data=array.tobytes()) for array in recorded.inputs]
    outcome = await worker.run(recorded.program, inputs, 60.0)
    assert outcome.status == "ok", f"{outcome.code}: {outcome.sentence}\n{outcome.detail}"
    specs = recorded.checked.output_specs
    results = [
        np.frombuffer(bytes(output.view), spec.numpy_dtype)
        for output, spec in zip(outcome.outputs, specs, strict=True)
    ]
    outcome.close()
    return results


async def plant(worker: Worker, hidden: Secrets) -> set[str]:
    """Plant every secret; the places where that worked."""
    planted = xp.zeros(len(PLACES), dtype=np.uint64)
    module = RawModule(code=source(hidden.texts["LITERAL"]))
    module.get_function("plant")((1,), (1,), (planted, xp.asarray(hidden.plain())))
    small = np.frombuffer(hidden.texts["INPUT_IN_PLACE"] * 4, np.uint8)
    large = np.frombuffer(hidden.texts["INPUT_IN_A_FILE"] * 40_000, np.uint8)
    output = np.frombuffer(hidden.texts["OUTPUT"] * 40_000, np.uint8)
    made, copy, *_ = await run(
        worker,
        planted,
        (xp.asarray(output) ^ np.uint8(1)) ^ np.uint8(1),
        xp.asarray(small) + 1,
        xp.asarray(large) + 1,
    )
    assert bytes(copy) == bytes(output)
    places = {place for place, done in zip(PLACES, made, strict=True) if done}
    return places | {"INPUT_IN_PLACE", "INPUT_IN_A_FILE", "OUTPUT"}


async def hunt(worker: Worker, hidden: Secrets) -> tuple[set[str], int]:
    """Where secrets were found, and how many pages were searched."""
    # The literal is another one: the hunter's own library must not hold what it hunts for.
    module = RawModule(code=source(b"another-literal!"))
    found = xp.zeros(len(PLACES) + 4, dtype=np.uint64)
    module.get_function("hunt")(
        (1,), (1,), (found, xp.asarray(hidden.products()), xp.asarray(hidden.hidden_decoy()))
    )
    (counts,) = await run(worker, found)
    *hits, decoy, pages, files, opened = (int(count) for count in counts)
    assert decoy >= 1, "the hunter did not find its own decoy"
    assert files >= 1, "the hunter read no file"
    assert opened == 0, "a worker opened a file by its name"
    return {place for place, count in zip(PLACES, hits, strict=True) if count}, pages


def readable_pages(pid: int) -> int | None:
    """Of a process, by the kernel's own list; None where this user may not see it."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except PermissionError:
        return None
    pages = 0
    for line in lines:
        where, rights, *_ = line.split()
        first, last = (int(word, 16) for word in where.split("-"))
        if rights[0] == "r" and "[v" not in line:
            pages += (last - first) // 4096
    return pages


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def holds(pid: int, text: bytes) -> bool:
    """Whether a process's memory has these bytes."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            first, last = (int(word, 16) for word in line.split()[0].split("-"))
            if line.split()[1][0] != "r" or "[v" in line:
                continue
            memory.seek(first)
            try:
                if text in memory.read(last - first):
                    return True
            except OSError:
                continue  # beyond the end of its file
    return False


async def test_what_one_lease_leaves_the_next_cannot_find(tmp_path):
    hidden = Secrets()
    scratch = tmp_path / "scratch"
    async with open_supervisor(probe_cpu(), scratch=scratch) as supervisor:
        async with supervisor.worker(LIMITS) as beside, supervisor.worker(LIMITS) as first:
            planted = await plant(first, hidden)
            assert planted == set(PLACES) - {"DIRECTORY", "FILE"}
            found, pages = await hunt(first, hidden)
            assert found >= STAYS, f"the hunter found only {found} in the lease that planted"
            assert first.pid is not None
            there = readable_pages(first.pid)
            assert there is None or pages > 0.9 * there, f"{pages} pages of {there} searched"
            assert (await hunt(beside, hidden))[0] == set(), "a lease beside it"
        async with supervisor.worker(LIMITS) as second:
            assert (await hunt(second, hidden))[0] == set(), "the lease after it"
        left = [
            path for path in scratch.rglob("*") if path.is_file() and hidden.tag.encode() in path.read_bytes()
        ]
        assert left == []
        if os.geteuid() == 0:
            assert supervisor.zygote_pid is not None
            for pid in (supervisor.zygote_pid, *children_of(supervisor.zygote_pid)):
                assert not holds(pid, hidden.tag.encode()), "the zygote has seen a secret"
            assert holds(os.getpid(), hidden.tag.encode()), "whoever planted it has it"


async def test_what_a_killed_lease_leaves_the_next_cannot_find(tmp_path):
    hidden = Secrets()
    async with open_supervisor(probe_cpu(), scratch=tmp_path / "scratch") as supervisor:
        async with supervisor.worker(LIMITS) as first:
            await plant(first, hidden)
            process = first._process
            assert process is not None
            process.child.kill()
            await process.child.gone()
        async with supervisor.worker(LIMITS) as second:
            assert (await hunt(second, hidden))[0] == set()


async def test_no_two_leases_share_a_built_kernel(tmp_path, monkeypatch):
    built: list[bytes | int] = []
    build = Supervisor.build

    async def counted(self, limits, request, source, **options):
        built.append(request.source)
        return await build(self, limits, request, source, **options)

    monkeypatch.setattr(Supervisor, "build", counted)
    module = RawModule(code='extern "C" __global__ void k(float* x) { x[0] += 1; }')
    async with open_supervisor(probe_cpu(), scratch=tmp_path / "scratch") as supervisor:
        pids = []
        for lease in range(2):
            async with supervisor.worker(LIMITS) as worker:
                for _ in range(2):
                    x = xp.zeros(1, dtype=np.float32)
                    module.get_function("k")((1,), (1,), (x,))
                    assert (await run(worker, x))[0][0] == 1
                pids.append(worker.pid)
            assert len(built) == lease + 1, "each lease builds it, once"
    assert len(set(pids)) == 2


def sent_files(worker: Worker) -> set[tuple[int, int]]:
    """The memory files that the worker's last inputs came in."""
    assert worker._process is not None
    return set(worker._process.sent)


def input_files_here() -> int:
    """How many the agent's side still has open or mapped."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum("memfd:coppermesh-input" in text for text in (*links, Path("/proc/self/maps").read_text()))


async def negated(worker: Worker, value: float) -> set[tuple[int, int]]:
    x = np.full(1 << 18, value, np.float32)
    (answer,) = await run(worker, -xp.asarray(x))
    assert (answer == -value).all()
    return sent_files(worker)


async def test_input_memory_is_used_again_within_a_lease_and_never_beyond(tmp_path):
    before = input_files_here()
    async with open_supervisor(probe_cpu(), scratch=tmp_path / "scratch") as supervisor:
        async with supervisor.worker(LIMITS) as first:
            mine = await negated(first, 1)
            assert len(mine) == 1
            assert await negated(first, 2) == mine, "the same pages, for the same lease"
            async with supervisor.worker(LIMITS) as beside:
                theirs = await negated(beside, 3)
                assert not theirs & mine
                assert await negated(first, 4) == mine
                assert await negated(beside, 5) == theirs
            assert first._process is not None
            first._process.child.kill()
            await first._process.child.gone()
            assert await negated(first, 6) == mine, "a lease's next worker is the same requester's"
        assert input_files_here() == before, "gone with the lease"
        async with supervisor.worker(LIMITS) as second:
            assert not await negated(second, 7) & (mine | theirs)
    assert input_files_here() == before
