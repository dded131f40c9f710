"""What goes on on a device besides our own work: other programs, temperature, power, load.

An owner's programs come first, so the agent looks before it bids and while it serves. Everything is optional: a field
that a card, driver or machine does not have is None, which means unknown and never zero.

A program is ours where the agent, or a zygote of any agent of this user, is among its ancestors: several homes may
share one card. It is somebody else's where `/proc` shows that it is not, or where the kernel says that another user has
it. One that this process table does not hold at all may be ours seen from outside a container: its owner is unknown.

Reading goes through a driver, which can hang. `read` blocks: call it in a thread, with a deadline (`agent.owner` does).
"""

import os
import pwd
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from coppermesh.exec.meter import POWERCAP, RaplMeter
from coppermesh.exec.sandbox.capabilities import SANDBOX_ID

ZYGOTE_MODULE = b"coppermesh.exec.zygote"
MAX_PROCESSES = 64
MAX_ANCESTORS = 64
CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
PROC, HWMON = Path("/proc"), Path("/sys/class/hwmon")


@dataclass(frozen=True, slots=True)
class DeviceProcess:
    """A program that holds a part of a card."""

    pid: int
    name: str
    """Of the program; empty where it cannot be seen."""
    user: str
    owner: str
    """`ours`, `other`, or `unknown`."""
    graphics: bool
    """It draws; whether it also computes is not told apart."""
    memory_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """One look at a device. None: unknown."""

    processes: tuple[DeviceProcess, ...] | None = None
    utilisation: float | None = None
    """Share of the time in which the card ran something, our own work included; 0 to 1."""
    temperature_c: int | None = None
    power_w: float | None = None
    load: float | None = None
    """Share of all cores that programs other than ours used since the last look; 0 to 1."""
    free_bytes: int | None = None
    """Memory that nothing uses: of the card, or of the machine for a CPU."""


UNKNOWN = Conditions()


class ConditionsReader(Protocol):
    """Looks at one device."""

    def read(self) -> Conditions:
        """How it is now. Blocks, and may hang for as long as a driver does."""
        ...

    def close(self) -> None:
        """Release what the reader holds. Reading afterwards gives what is unknown."""
        ...


def open_conditions(kind: str, uuid: str | None) -> ConditionsReader:
    """The reader of a device of `kind`. Blocks. Where NVML is missing, what it would say is unknown."""
    if kind != "cuda":
        return CpuConditions()
    return NvmlConditions(uuid)


class NvmlConditions:
    """A GPU, through NVML. Holds NVML open until `close`."""

    def __init__(self, uuid: str | None) -> None:
        self._nvml: Any = None
        self._handle: Any = None
        if uuid is None:
            return
        from coppermesh.exec import nvml  # here, so that a machine without NVIDIA's library pays nothing

        binding = nvml.binding()
        with suppress(binding.NVMLError):
            binding.nvmlInit()
            self._nvml = binding
            self._handle = binding.nvmlDeviceGetHandleByUUID(uuid)

    def read(self) -> Conditions:
        """Each field by itself: one that fails does not take the others with it."""
        if self._handle is None:
            return UNKNOWN
        nvml = self._nvml
        milliwatts = self._ask("nvmlDeviceGetPowerUsage")
        rates = self._ask("nvmlDeviceGetUtilizationRates")
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        return Conditions(
            processes=self._processes(),
            utilisation=None if rates is None else rates.gpu / 100,
            temperature_c=self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            power_w=None if milliwatts is None else milliwatts / 1000,
            free_bytes=None if memory is None else int(memory.free),
        )

    def _ask(self, function: str, *arguments: Any) -> Any:
        nvml = self._nvml
        # A mismatch is what the binding says of a function that an older driver does not have.
        missing = (nvml.NVMLError, getattr(nvml, "NVMLLibraryMismatchError", AttributeError), AttributeError)
        try:
            return getattr(nvml, function)(self._handle, *arguments)
        except missing:
            return None

    def _processes(self) -> tuple[DeviceProcess, ...] | None:
        computing = self._listed("Compute")
        drawing = self._listed("Graphics")
        if computing is None and drawing is None:
            return None
        # One that is on both lists draws, with the memory of both.
        memory = {entry.pid: (False, entry.usedGpuMemory) for entry in computing or ()}
        for entry in drawing or ():
            known = memory.get(entry.pid, (False, None))[1]
            memory[entry.pid] = (True, max(known or 0, entry.usedGpuMemory or 0))
        listed = sorted(memory.items())[:MAX_PROCESSES]
        return tuple(describe(pid, graphics, size) for pid, (graphics, size) in listed)

    def _listed(self, kind: str) -> Any:
        """The programs of one kind, by the newest call that the driver has."""
        for edition in ("", "_v2"):
            found = self._ask(f"nvmlDeviceGet{kind}RunningProcesses{edition}")
            if found is not None:
                return found
        return None

    def close(self) -> None:
        """Give NVML back."""
        nvml, self._nvml, self._handle = self._nvml, None, None
        if nvml is not None:
            with suppress(nvml.NVMLError):
                nvml.nvmlShutdown()


class CpuConditions:
    """This machine's processor: load of other programs, and the hottest of its own sensors."""

    def __init__(self, proc: Path = PROC, hwmon: Path = HWMON, powercap: Path = POWERCAP) -> None:
        self._proc, self._hwmon = proc, hwmon
        self._last: tuple[int, int] | None = None
        self._energy = RaplMeter.find(powercap)
        self._last_energy: tuple[int, int] | None = None

    def read(self) -> Conditions:
        """Load since the last look, unknown at the first."""
        now = self._ticks()
        before, self._last = self._last, now
        load = None
        if now is not None and before is not None and now[0] > before[0]:
            passed = now[0] - before[0]
            load = min(1.0, max(0.0, (passed - (now[1] - before[1])) / passed))
        return Conditions(
            temperature_c=self._temperature(), load=load, power_w=self._power(), free_bytes=self._free()
        )

    def _free(self) -> int | None:
        """What the kernel says that programs can still have."""
        for line in _text(self._proc / "meminfo").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return None

    def _power(self) -> float | None:
        """Watts of the processor packages since the last look, where their counters may be read."""
        used_mj = None if self._energy is None else self._energy.read_mj()
        now = None if used_mj is None else (used_mj, time.monotonic_ns())
        before, self._last_energy = self._last_energy, now
        if now is None or before is None or now[1] <= before[1]:
            return None
        return max(0, now[0] - before[0]) * 1e6 / (now[1] - before[1])

    def _ticks(self) -> tuple[int, int] | None:
        """(all ticks, those that were idle or ours), since the machine was started."""
        try:
            fields = [int(word) for word in (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:9]]
            return sum(fields), fields[3] + fields[4] + self._own_ticks()
        except (OSError, ValueError, IndexError):
            return None

    def _own_ticks(self) -> int:
        """Processor time of this process and of what descends from it, ended children included."""
        parents: dict[int, list[str]] = {}
        for entry in self._proc.iterdir():
            if entry.name.isdigit():
                fields = _stat(int(entry.name), self._proc)
                if fields is not None:
                    parents[int(entry.name)] = fields
        ours, total = {os.getpid()}, 0
        grown = True
        while grown:
            found = {pid for pid, fields in parents.items() if int(fields[1]) in ours} - ours
            grown = bool(found)
            ours |= found
        for pid in ours:
            if pid in parents:
                total += sum(int(word) for word in parents[pid][11:15])
        return total

    def _temperature(self) -> int | None:
        readings = []
        with suppress(OSError):
            for sensor in self._hwmon.iterdir():
                if _text(sensor / "name") in CPU_SENSORS:
                    readings += [_text(path) for path in sensor.glob("temp*_input")]
        degrees = [int(text) // 1000 for text in readings if text.lstrip("-").isdigit()]
        return max(degrees, default=None)

    def close(self) -> None:
        """Nothing is kept open."""


def describe(pid: int, graphics: bool, memory_bytes: int | None, proc: Path = PROC) -> DeviceProcess:
    """What the process table says about a program on the card."""
    owner = whose(pid, proc)
    return DeviceProcess(
        pid, _text(proc / str(pid) / "comm"), _user(pid, proc), owner, graphics, memory_bytes
    )


def whose(pid: int, proc: Path = PROC) -> str:
    """`ours`, `other` or `unknown`; see the module."""
    if _stat(pid, proc) is None:
        try:
            os.kill(pid, 0)
        except PermissionError:
            return "other"  # /proc hides other users' processes on some machines
        except (ProcessLookupError, OverflowError):
            return "unknown"
        return "unknown"
    at = pid
    for _ in range(MAX_ANCESTORS):
        if at == os.getpid() or _is_zygote(at, proc):
            return "ours"
        fields = _stat(at, proc)
        if fields is None or int(fields[1]) <= 0:
            break
        at = int(fields[1])
    return "other"


def _is_zygote(pid: int, proc: Path) -> bool:
    """A zygote of this user, of whichever agent."""
    mine = {os.geteuid(), SANDBOX_ID} if os.geteuid() == 0 else {os.geteuid()}
    try:
        words = (proc / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return ZYGOTE_MODULE in words and _uid(pid, proc) in mine


def _stat(pid: int, proc: Path) -> list[str] | None:
    """Fields of `/proc/PID/stat` behind the program's name: state, parent, ..."""
    text = _text(proc / str(pid) / "stat")
    fields = text.rpartition(")")[2].split()
    return fields if len(fields) > 15 else None


def _user(pid: int, proc: Path) -> str:
    uid = _uid(pid, proc)
    if uid is None:
        return ""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _uid(pid: int, proc: Path) -> int | None:
    """The effective user. Its directory's owner would be root for a process that may not be dumped."""
    for line in _text(proc / str(pid) / "status").splitlines():
        name, _, values = line.partition(":")
        if name == "Uid":
            return int(values.split()[1])
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
