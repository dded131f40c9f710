# these look at what real processes write; nothing here blocks
"""Builds in real builder processes: how much one may write, what stays of it, and what the next one can reach."""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np
import pytest
import trio

import coppermesh as cm
from coppermesh.exec import building, pipe, scratch
from coppermesh.exec import supervisor as supervising
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.device import probe_cpu
from coppermesh.exec.recorder import trace
from coppermesh.exec.sandbox import private_scratch
from coppermesh.exec.sandbox.private_scratch import MAX_FILES
from coppermesh.exec.sockets import close_all
from coppermesh.exec.supervisor import InputBuffer, WorkerLimits, open_supervisor

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(find_toolchain() is None, reason="needs a C++ compiler"),
]

MEBIBYTE = 1 << 20
SMALL = WorkerLimits(memory_bytes=0, output_bytes=0, scratch_bytes=4 * MEBIBYTE)
DOUBLE = b'extern "C" __global__ void k(float* x) { x[threadIdx.x] *= 2.0f; }'
LARGE = (
    b'extern "C" __global__ void k(float* x) { static const unsigned char t[3 << 20] = {1, 2, 3};'
    b" x[0] = t[(int)x[1]]; }"
)
"""An object file and a library of 3 MiB: each fits, both do not."""


async def build(supervisor, limits=SMALL, source=DOUBLE):
    built, library = await supervisor.build(limits, pipe.Build(source, "k", ()), [])
    close_all(library)
    return built


async def test_a_build_that_fills_its_directory_is_ended_and_the_next_one_works(tmp_path):
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        if not private_scratch.possible(here):
            pytest.skip("this machine gives builders no file system of their own")
    finally:
        os.close(here)
    async with open_supervisor(probe_cpu(), scratch=tmp_path / "scratch") as supervisor:
        assert (await build(supervisor)).code == "ok"
        built = await build(supervisor, source=LARGE)
        assert built.code == "kernel-build-limit", built
        assert "scratch directory" in built.sentence
        assert (await build(supervisor, WorkerLimits(0, 0), LARGE)).code == "ok"
        assert (await build(supervisor)).code == "ok"
        assert sorted(path.name for path in (tmp_path / "scratch").iterdir()) == ["compiler", "zygote.log"]


@pytest.mark.parametrize("act", ["one large file", "many files", "deep directories"])
async def test_what_a_compiler_may_leave_on_a_disk_is_measured_and_removed(tmp_path, act):
    directory = tmp_path / "builder-1"
    directory.mkdir()
    if act == "one large file":
        (directory / "a").write_bytes(bytes(5 * MEBIBYTE))
    elif act == "many files":
        for number in range(MAX_FILES + 1):
            (directory / str(number)).touch()
    else:
        here = os.open(directory, os.O_RDONLY)
        for _ in range(3000):
            os.mkdir("x" * 200, dir_fd=here)
            below = os.open("x" * 200, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
    assert scratch.size_of(directory, SMALL.scratch_bytes, MAX_FILES) > SMALL.scratch_bytes
    scratch.remove_tree(directory)
    assert scratch.size_of(tmp_path, SMALL.scratch_bytes, MAX_FILES) == 0


async def test_a_link_is_not_followed_when_a_directory_is_measured(tmp_path):
    large = tmp_path / "large"
    large.mkdir()
    (large / "a").write_bytes(bytes(8 * MEBIBYTE))
    directory = tmp_path / "builder-1"
    directory.mkdir()
    (directory / "file").symlink_to(large / "a")
    (directory / "directory").symlink_to(large)
    assert scratch.size_of(directory, 4 * MEBIBYTE, MAX_FILES) <= 2 * 4096


async def test_a_build_on_the_disk_that_writes_too_much_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "size_of", lambda directory, most, files: most + 1)
    monkeypatch.setattr(building, "LOOK_SECONDS", 0.0)
    async with open_supervisor(probe_cpu(), scratch=tmp_path / "scratch") as supervisor:
        built = await build(supervisor)
        assert (built.code, "4 MiB" in built.sentence) == ("kernel-build-limit", True), built.sentence


async def test_builds_run_beside_each_other(tmp_path):
    """Under the same names in directories of their own. What one could see of another: `tests/sandbox`."""
    async with open_supervisor(probe_cpu(), scratch=tmp_path / "scratch") as supervisor:
        codes = []

        async def one(number: int) -> None:
            source = DOUBLE.replace(b"2.0f", b"%d.0f" % number)
            codes.append((await build(supervisor, source=source)).code)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(one, number)
        assert codes == ["ok"] * 6


HIJACKED = r"""
// A compiler that is somebody else's: it leaves its process group and its parent, and goes on.
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int count, char** words) {
    if (count < 6) return printf("12.2.0\\n") < 0;
    for (int i = 0; i < 3; i++) {
        if (fork()) continue;
        setpgid(0, 0);
        setsid();
        if (fork()) _exit(0);
        setpgid(0, 0);
        setsid();
        if (MEBIBYTES) memset(mmap(0, MEBIBYTES << 20, 3, 0x22, -1, 0), 1, MEBIBYTES << 20);
        for (;;) pause();
    }
    while (wait(0) > 0) {}
    if (!ENDS) pause();
}
"""


def hijacked(directory: Path, *, mebibytes: int, ends: bool) -> str:
    """The path of a compiler that does not compile, and starts three processes that try to outlive it."""
    honest = find_toolchain()
    assert honest is not None
    # Where the sandbox looks for a compiler's own files.
    folder = Path(tempfile.mkdtemp(dir=directory))
    (folder / "bin").mkdir()
    text = HIJACKED.replace("MEBIBYTES", f"{mebibytes}l").replace("ENDS", str(int(ends)))
    (folder / "a.cpp").write_text(text)
    program = folder / "bin" / "g++"
    subprocess.run([*honest.command, str(folder / "a.cpp"), "-o", str(program)], check=True)
    for path in (folder, folder / "bin", program):
        path.chmod(0o755)
    return str(program)


def running(program: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cmdline").read_bytes().startswith(program.encode()):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


async def nothing_runs(program: str) -> None:
    with trio.fail_after(20):
        while running(program):  # noqa: ASYNC110 - nobody tells of another process's end
            await trio.sleep(0.02)


async def test_what_a_hijacked_compiler_leaves_running_is_killed(public_directory):
    program = hijacked(public_directory, mebibytes=0, ends=True)
    async with open_supervisor(
        probe_cpu(), scratch=public_directory / "scratch", compiler=program
    ) as supervisor:
        built = await build(supervisor)
        assert built.code == "kernel-build-limit", built
        await nothing_runs(program)


async def test_processes_of_a_build_are_counted_together(public_directory, monkeypatch):
    """Each holds less than the bound, which is lowered here; they have left their parents and groups."""
    monkeypatch.setattr(building, "TREE_BYTES", 200 * MEBIBYTE)
    program = hijacked(public_directory, mebibytes=80, ends=False)
    async with open_supervisor(
        probe_cpu(), scratch=public_directory / "scratch", compiler=program
    ) as supervisor:
        built = await build(supervisor)
        assert built.code == "kernel-build-limit", built
        assert "processes held" in built.sentence
        assert "2 GiB of memory" in built.sentence
        await nothing_runs(program)


@pytest.fixture
def public_directory():
    """One that the sandbox's user may enter too."""
    with tempfile.TemporaryDirectory(prefix="coppermesh-builds-") as name:
        os.chmod(name, 0o755)  # noqa: S103 - it holds nothing of anybody's
        yield Path(name)


HOME_OF_ROOT = """
import sys, trio
from pathlib import Path
import msgspec
from coppermesh.exec import pipe, supervisor as supervising
from coppermesh.exec.device import probe_cpu
from coppermesh.exec.recorder import trace
from coppermesh.exec.supervisor import InputBuffer, WorkerLimits, open_supervisor

if sys.argv[2] == "none":
    supervising._choose_namespaces = lambda start: (msgspec.structs.replace(start, namespaces="none"), [])

async def main():
    async with open_supervisor(probe_cpu(), scratch=Path(sys.argv[1])) as supervisor:
        request = pipe.Build(b'extern "C" __global__ void k(float* x) { x[0] = 1; }', "k", ())
        built, library = await supervisor.build(WorkerLimits(0, 0), request, [])
        print(built.code, built.sentence, built.detail, len(library))

trio.run(main)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has directories that its workers' user cannot enter")
@pytest.mark.parametrize("namespaces", ["own", "none"])
def test_what_only_root_can_enter_does_not_keep_kernels_from_being_built(tmp_path, namespaces):
    """The package, with the headers, and the scratch directory lie behind a directory of mode 0700."""
    package = Path(supervising.__file__).parents[1]
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    shutil.copytree(package / "exec", closed / "site" / "coppermesh" / "exec")
    (closed / "site" / "coppermesh" / "__init__.py").touch()
    environment = closed / "venv"
    venv.create(environment, symlinks=True, with_pip=False)
    (packages,) = environment.glob("lib/python*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "here.pth").write_text("\n".join([str(closed / "site"), *others]))
    started = subprocess.run(
        [str(environment / "bin" / "python"), "-c", HOME_OF_ROOT, str(closed / "scratch"), namespaces],
        capture_output=True,
        text=True,
        check=False,
    )
    assert started.stdout.split() == ["ok", "1"], started.stdout + started.stderr


async def test_a_leases_next_worker_has_what_the_last_one_had_compiled(tmp_path, monkeypatch):
    limits = WorkerLimits(memory_bytes=256 * MEBIBYTE, output_bytes=MEBIBYTE)

    def program(body):
        x = cm.xp.asarray(np.ones(4, np.float32))
        cm.RawKernel(f'extern "C" __global__ void k(float* x) {{ {body} }}', "k")((1,), (4,), (x,))
        return trace(x).program

    async with open_supervisor(probe_cpu(), scratch=tmp_path / "scratch") as supervisor:
        honest, built = supervisor.build, []

        async def counted(*arguments, **named):
            built.append(arguments[1].source)
            return await honest(*arguments, **named)

        monkeypatch.setattr(supervisor, "build", counted)

        async def run(worker, body):
            outcome = await worker.run(
                program(body), [InputBuffer(16, data=np.ones(4, np.float32).tobytes())], 60.0
            )
            if outcome.status == "ok":
                assert np.frombuffer(bytes(outcome.outputs[0].view), np.float32).tolist() == [3, 3, 3, 3]
                outcome.close()
            return outcome.status, worker.pid

        async with supervisor.worker(limits) as worker:
            first = await run(worker, "x[threadIdx.x] *= 3;")
            assert (await run(worker, "*(volatile float*)nullptr = 1;"))[0] == "job-failed"
            second = await run(worker, "x[threadIdx.x] *= 3;")
        assert first[0] == second[0] == "ok"
        assert first[1] != second[1]
        assert len(built) == 2
        async with supervisor.worker(limits) as worker:  # another lease
            assert (await run(worker, "x[threadIdx.x] *= 3;"))[0] == "ok"
        assert len(built) == 3
