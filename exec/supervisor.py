"""Runs programs in worker processes: what the agent sees of execution.

    async with open_supervisor(device, scratch=directory) as supervisor:
        async with supervisor.worker(limits) as worker:
            outcome = await worker.run(program, inputs, wall_limit_s=60)

A supervisor keeps one zygote (`keeper`), forks workers (`worker_handle`) and builders from it, and owns the directory
they work in. Everything that it started has ended when its block ends.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec
import trio

from coppermesh.exec import linux, pipe
from coppermesh.exec.blackbox import BlackBox, make_black_box
from coppermesh.exec.budget import WORKER_CORES
from coppermesh.exec.building import Builder, ask_in_bounds
from coppermesh.exec.cgroups import Cgroups
from coppermesh.exec.channel import Channel, channel_pair
from coppermesh.exec.cuda_toolchain import SYSTEM_PATH, find_toolchain
from coppermesh.exec.device import DeviceInfo, usable_cores
from coppermesh.exec.device_watch import open_device_watch
from coppermesh.exec.fitness import Fitness, probe_device
from coppermesh.exec.keeper import Child, Keeper, WorkerUnavailable
from coppermesh.exec.memory_watch import Allowance, read_memory, read_tree
from coppermesh.exec.meter import Meter
from coppermesh.exec.metering import close_meter, open_meter_in_time
from coppermesh.exec.runs import InputBuffer, OutputBuffer, RunOutcome, WorkerLimits
from coppermesh.exec.sandbox.apply import compiler_homes
from coppermesh.exec.sandbox.namespaces import (
    bubblewrap_command,
    bubblewrap_works,
    find_bubblewrap,
    view_of_python,
)
from coppermesh.exec.scratch import (
    SHARED,
    drop_zigs_sources,
    give_to_sandbox,
    make_directory,
    prepare_shared,
    remove_tree,
)
from coppermesh.exec.sockets import close_all
from coppermesh.exec.watchdog import Watchdog
from coppermesh.exec.worker_handle import Process, Worker

__all__ = [
    "InputBuffer",
    "OutputBuffer",
    "RunOutcome",
    "Supervisor",
    "Worker",
    "WorkerLimits",
    "WorkerUnavailable",
    "open_supervisor",
]

AGENT_OPEN_FILES = 8192
"""A descriptor is kept of each file that a worker holds; 1,024 is the usual limit where nobody raised it."""
CUDA_PLACES = ("LD_LIBRARY_PATH", "CUDA_PATH", "CUDA_HOME")
"""Of the agent's own environment, what workers on a GPU get as well."""


class Supervisor:
    """Owner of one zygote and of what is forked from it."""

    def __init__(
        self,
        keeper: Keeper,
        scratch: Path,
        meter: Meter,
        watchdog: Watchdog | None = None,
        cgroups: Cgroups | None = None,
    ) -> None:
        """Without a watchdog nothing is watched; without `cgroups` workers get none of their own."""
        self._keeper = keeper
        self._scratch = scratch
        self._made = 0
        self._watchdog = watchdog
        self._cgroups = cgroups
        self.fitness = Fitness(lambda: probe_device(self, self.make_process_even_if_unfit))
        """A killed worker that is not gone in time makes the device unfit until a probe has passed."""
        self.meter = meter

    @property
    def layers(self) -> tuple[str, ...]:
        """The sandbox's layers around every worker, by the names of `sandbox.layers`; not yet witnessed."""
        return self._keeper.layers

    @property
    def unfit(self) -> str:
        """Why the device takes no work (a worker could not be killed); an empty text while it does."""
        return self.fitness.health.reason

    @property
    def zygote_pid(self) -> int | None:
        """The running zygote's process id, for people and tests."""
        return self._keeper.zygote_pid

    @asynccontextmanager
    async def worker(self, limits: WorkerLimits, kernels: bool = True) -> AsyncIterator[Worker]:
        """A worker process for the block, gone with everything it held when the block ends.

        `kernels=False` refuses programs that contain kernels (`unsupported-feature`). Raises WorkerUnavailable.
        """
        worker = Worker(self, limits, kernels)
        try:
            await worker.start()
            yield worker
        finally:
            await worker.close()

    async def make_process(self, limits: WorkerLimits, kernels: bool) -> Process:
        """A new worker process. Raises WorkerUnavailable."""
        if not self.fitness.health.fit:
            raise WorkerUnavailable(self.fitness.health.reason)
        return await self.make_process_even_if_unfit(limits, kernels)

    async def make_process_even_if_unfit(self, limits: WorkerLimits, kernels: bool) -> Process:
        """The same, for probes of a device that takes no work. Raises WorkerUnavailable."""
        box = self._make_box()
        try:
            child, channel, directory = await self._fork("worker", limits, kernels, box)
        except BaseException:
            os.close(box)
            raise
        view = BlackBox(box)
        os.close(box)  # the mapping stays
        process = Process(child, channel, view, directory)
        self._watch(process, limits)
        return process

    def _watch(self, process: Process, limits: WorkerLimits) -> None:
        """Before it has seen a byte of a job, so that what it holds now is an idle worker's."""
        held = read_memory(process.child.pid)
        process.allowance = Allowance.of(held.total if held else 0, limits, gpu=self._keeper.kind == "cuda")
        if self._cgroups is not None:
            with suppress(OSError):  # the other limits have to do
                process.group = self._cgroups.make(process.allowance.total, limits.threads)
                process.group.add(process.child.pid)
        if self._watchdog is not None:
            self._watchdog.add(process)

    async def end_process(self, process: Process) -> None:
        """Kill it and remove what it left. Not cancelled from outside; a second call does nothing."""
        with trio.CancelScope(shield=True):
            if self._watchdog is not None:
                self._watchdog.remove(process)
            process.child.kill()
            process.channel.close()
            if not await process.child.gone():
                self.fitness.not_gone(process.child)
            if process.group is not None:
                process.group.remove()
            process.box.close()
            process.lent.close()
            await self._remove(process.directory)

    async def build(
        self, limits: WorkerLimits, request: pipe.Build, source: list[int], *, prepares: bool = False
    ) -> tuple[pipe.Built, list[int]]:
        """Have a builder compile a kernel: its answer, and the library's descriptor where there is one.

        `prepares`: the source is our own, and what the compiler keeps of itself is for all builders.
        """
        box = self._make_box()
        try:
            child, channel, directory = await self._fork(
                "builder", limits, kernels=True, box=box, prepares=prepares
            )
        except WorkerUnavailable as error:
            return pipe.Built("worker-unavailable", error.sentence, ""), []
        finally:
            os.close(box)
        try:
            held = partial(read_tree, child.pid, self._keeper.forker_pid)
            return await ask_in_bounds(Builder(child, channel, directory, held), limits, request, source)
        finally:
            with trio.CancelScope(shield=True):
                channel.close()
                child.kill()
                await child.gone()
                await self._remove(directory)

    async def warm_compiler(self) -> None:
        """Build an empty kernel. Zig builds parts of itself at its first use, which takes 3 to 10 s, and starts anew
        when that is cut short; no job's wall limit should meet it. What it built stays in scratch.
        """
        limits = WorkerLimits(memory_bytes=0, output_bytes=0)
        request = pipe.Build(b'extern "C" __global__ void warm() {}', "warm", ())
        _, library = await self.build(limits, request, [], prepares=True)
        close_all(library)
        await trio.to_thread.run_sync(drop_zigs_sources, self._scratch)

    async def _fork(
        self, role: str, limits: WorkerLimits, kernels: bool, box: int, *, prepares: bool = False
    ) -> tuple[Child, Channel, Path]:
        self._made += 1
        directory = make_directory(self._scratch, f"{role}-{self._made}")
        channel, theirs = channel_pair()
        order = pipe.Fork(
            serial=0,
            role=role,
            directory=str(directory),
            memory_bytes=limits.memory_bytes,
            output_bytes=limits.output_bytes,
            scratch_bytes=limits.scratch_bytes,
            processes=limits.processes,
            cpu_seconds=limits.cpu_seconds,
            kernels=kernels,
            blob_bytes=limits.memory_bytes if limits.blob_bytes is None else limits.blob_bytes,
            operations=limits.operations,
            prepares=prepares,
        )
        try:
            child = await self._keeper.fork(order, [theirs, box])
        except BaseException:
            channel.close()
            with trio.CancelScope(shield=True):
                await self._remove(directory)
            raise
        finally:
            os.close(theirs)
        return child, channel, directory

    def _make_box(self) -> int:
        try:
            return make_black_box()
        except OSError as error:
            raise WorkerUnavailable(f"no worker process: {error.strerror}") from error

    async def _remove(self, directory: Path) -> None:
        # In the usual case the directory is empty, and asking costs less than a thread.
        try:
            os.rmdir(directory)
        except OSError:
            await trio.to_thread.run_sync(_remove_quietly, directory)


def _remove_quietly(directory: Path) -> None:
    try:
        remove_tree(directory)
    except OSError:
        return  # swept at the next start


@asynccontextmanager
async def open_supervisor(
    device: DeviceInfo, *, scratch: Path, compiler: str | None = None, cgroups: Cgroups | None = None
) -> AsyncIterator[Supervisor]:
    """Start a zygote for `device` and keep it alive for the block.

    `scratch` is a directory of this supervisor's own, made when missing and emptied of what a crash left; `compiler`
    is the configured C++ compiler; `cgroups` a subtree in which each worker gets a group. Raises WorkerUnavailable
    where no zygote gets ready or the device is none.
    """
    if device.simulated:
        raise WorkerUnavailable(f"{device.name} is no device: NVML is a stand-in on this machine")
    await trio.to_thread.run_sync(_prepare_scratch, scratch)
    start = await trio.to_thread.run_sync(_make_start, device, scratch, compiler)
    start, prefix = await trio.to_thread.run_sync(_choose_namespaces, start)
    keeper = Keeper(start, scratch, _environment(device), prefix)
    linux.allow_open_files(AGENT_OPEN_FILES)
    linux.ignore_broken_leases()
    meter = await open_meter_in_time(device.meter, device.uuid)
    try:
        watchdog = Watchdog(await open_device_watch(device))
        supervisor = Supervisor(keeper, scratch, meter, watchdog, cgroups)
        async with _keep(keeper, watchdog.run, supervisor.fitness.run):
            if start.family == "zig":
                await supervisor.warm_compiler()
            yield supervisor
    finally:
        await close_meter(meter)


@asynccontextmanager
async def _keep(keeper: Keeper, *others: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """A nursery around them that does not show: what leaves the block leaves as it is."""
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(keeper.run)
            for other in others:
                nursery.start_soon(other)
            yield
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


def _prepare_scratch(scratch: Path) -> None:
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in scratch.iterdir():
        if path.name.startswith(("worker-", "builder-")):
            _remove_quietly(path)
    prepare_shared(scratch)
    give_to_sandbox(scratch)


def _make_start(device: DeviceInfo, scratch: Path, compiler: str | None) -> pipe.Start:
    toolchain = find_toolchain(compiler) if device.kind == "cpu" else None
    return pipe.Start(
        kind=device.kind,
        threads=max(1, min(WORKER_CORES, device.cores or usable_cores())),
        compiler=toolchain.command if toolchain else (),
        family=toolchain.family if toolchain else "",
        version=toolchain.version() if toolchain else "",
        cache=str(scratch / SHARED),
        scratch=str(scratch),
        namespaces="own",
    )


def _choose_namespaces(start: pipe.Start) -> tuple[pipe.Start, list[str]]:
    """Bubblewrap where it is installed and works: then its command, else the zygote sees to them itself."""
    program = find_bubblewrap()
    if program is None:
        return start, []
    extra = compiler_homes(start.compiler)
    view = view_of_python([start.scratch], extra, gpu=start.kind == "cuda")
    command = bubblewrap_command(program, view)
    if not bubblewrap_works(command):
        return start, []
    return msgspec.structs.replace(start, namespaces="bubblewrap"), command


def _environment(device: DeviceInfo) -> dict[str, str]:
    """All the environment that workers have: no name of a person, home, or session."""
    environment = {
        "PATH": SYSTEM_PATH,
        "LANG": "C.UTF-8",
        "HOME": "/nonexistent",
        "PYTHONDONTWRITEBYTECODE": "1",
        # One thread, for a process with several cannot be forked; a worker raises it for itself.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    if device.kind == "cuda":
        environment |= {
            "CUDA_VISIBLE_DEVICES": device.uuid or device.device.removeprefix("gpu"),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # NVML's order, where there is no uuid to go by
            "CUPY_CACHE_IN_MEMORY": "1",
            "CUDA_CACHE_DISABLE": "1",
        }
        # Where the driver's and the toolkit's libraries lie; containers say it in these.
        environment |= {name: os.environ[name] for name in CUDA_PLACES if name in os.environ}
    return environment
