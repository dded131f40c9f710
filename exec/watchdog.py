"""Looks at every worker process while it lives, and ends one that holds more than its lease allows.

Twenty times a second, between runs too: threads of native code may outlive the run that started them. Device memory is
read twice a second in a thread, since a driver may hang; after one reading that took too long it is not asked again.
What was found is kept with the process, so that whoever waits for its answer can say why there is none.

A worker speaks only when it is asked. What it says otherwise lies unread, and descriptors in it count against a limit
that all processes of this user share: with a thousand of them nobody could hand over a file. So it is ended for that
too. Two looks in a row must find it, in a process that has not ended: the socket of one that has is readable as well.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import trio

from coppermesh.exec import pipe
from coppermesh.exec.blackbox import BlackBox
from coppermesh.exec.channel import Channel
from coppermesh.exec.cuda_build import scrub
from coppermesh.exec.device_watch import DeviceWatch, device_excess
from coppermesh.exec.endings import Answer, explain_nonsense
from coppermesh.exec.keeper import Child
from coppermesh.exec.lent_files import FileId, LentFiles
from coppermesh.exec.memory_watch import Allowance, HeldMemory, read_memory

LOOK_SECONDS = 0.05
"""A core fills some 100 MiB of fresh memory in that time."""
DEVICE_SECONDS = 0.5
READING_SECONDS = 2.0
"""Most that NVML may take; it takes about a millisecond."""


class Watched(Protocol):
    """What the watchdog needs of a worker process."""

    child: Child
    channel: Channel
    box: BlackBox
    allowance: Allowance | None
    sent: frozenset[FileId]
    lent: LentFiles
    verdict: Answer | None
    spoiled: bool


class Watchdog:
    """Watches all workers of one supervisor."""

    def __init__(
        self,
        device: DeviceWatch | None = None,
        read: Callable[[int, frozenset[FileId]], HeldMemory | None] = read_memory,
    ) -> None:
        self._device = device
        self._read = read
        self._watched: dict[int, Watched] = {}
        self._speaking: set[int] = set()
        """Process ids of those that spoke unasked at the last look."""
        self._some = trio.Event()

    @property
    def watches_device(self) -> bool:
        """Whether device memory is being read."""
        return self._device is not None

    def add(self, process: Watched) -> None:
        """Watch it from now on."""
        self._watched[process.child.pid] = process
        self._some.set()

    def remove(self, process: Watched) -> None:
        """It is being ended by somebody else."""
        self._watched.pop(process.child.pid, None)
        if not self._watched:
            self._some = trio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._device is not None:
                nursery.start_soon(self._run_device)
            while True:
                await self._some.wait()
                self.look()
                await trio.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Look at each once. Some 0.05 ms for a process."""
        self._look_for_speakers()
        for process in list(self._watched.values()):
            if process.allowance is None:
                continue
            held = self._read(process.child.pid, process.sent | process.lent.ids())
            if held is None:
                continue
            held = replace(held, files=(held.files or 0) + process.lent.held_bytes())
            if reason := process.allowance.excess(held):
                _end(process, "memory-limit", reason)
            elif reason := process.allowance.excess_threads(held):
                _end(process, "process-limit", reason)

    def _look_for_speakers(self) -> None:
        before = self._speaking
        self._speaking = {pid for pid, process in self._watched.items() if process.channel.unasked}
        for pid in self._speaking & before:
            process = self._watched[pid]
            if process.verdict is None and not process.child.is_over:
                process.verdict = explain_nonsense(pipe.PipeError("it spoke unasked"))
                process.spoiled = True
                process.child.kill()

    async def _run_device(self) -> None:
        while self._device is not None:
            await self._some.wait()
            await self.look_at_device()
            await trio.sleep(DEVICE_SECONDS)

    async def look_at_device(self) -> None:
        """Read the device memory of all of them once."""
        if self._device is None:
            return
        used: dict[int, int] | None = None
        with trio.move_on_after(READING_SECONDS) as scope:
            used = await trio.to_thread.run_sync(self._device.used, abandon_on_cancel=True)
        if scope.cancelled_caught:
            self._device = None  # a thread is stuck in it, one is enough
            return
        for pid, process in list(self._watched.items()):
            if process.allowance is None or used is None or pid not in used:
                continue
            if reason := device_excess(used[pid], process.allowance.memory):
                _end(process, "memory-limit", reason)


def _end(process: Watched, code: str, reason: str) -> None:
    if process.verdict is not None or process.child.ended.is_set():
        return
    stage, printed = scrub(process.box.stage()), scrub(process.box.output())
    where = f", in {stage}" if stage else ""
    process.verdict = Answer("job-failed", code, f"{reason}; it was ended{where}", printed)
    process.spoiled = True
    process.child.kill()
