"""Energy meters: what a device has used so far, where the machine lets us read it.

A meter is sampled before and after a task by whoever runs it; the difference is what the device used meanwhile,
everything else that ran on the device included. `kind` goes into announcements and receipts, so that nobody takes
a package-wide counter for a per-task measurement:

- `nvml`  the GPU's own counter (millijoules since the driver was loaded; Volta and later)
- `nvml-power`  a GPU without that counter: its power is sampled and integrated (`power_meter`)
- `rapl`  the processor package's counter through Linux' powercap files, where this user may read them
- `none`  no meter; every reading is None
- `simulated`  a stand-in for NVML that tests build; the library itself says so, and no figure of it is a measurement
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from coppermesh.exec.power_meter import SampledMeter

POWERCAP = Path("/sys/class/powercap")


class Meter(Protocol):
    """A counter of used energy."""

    @property
    def kind(self) -> str:
        """`nvml`, `nvml-power`, `rapl`, `none`, or `simulated` where NVML is a stand-in."""
        ...

    @property
    def may_hang(self) -> bool:
        """Whether a reading goes through a driver, which can hang: read it in a thread, with a deadline."""
        ...

    def read_mj(self) -> int | None:
        """The counter now, in millijoules since some fixed point; None where it cannot be read."""
        ...

    def close(self) -> None:
        """Release what the meter holds. Reading afterwards gives None."""
        ...


class NoMeter:
    """The meter of a device that has none."""

    kind = "none"
    may_hang = False

    def read_mj(self) -> int | None:
        """Nothing to read."""
        return None

    def close(self) -> None:
        """Nothing to release."""


class RaplMeter:
    """The processor packages' energy counters, summed.

    Each counter is in microjoules and wraps at `max_energy_range_uj`; reads must come more often than it wraps
    (minutes at full load), which is counted here by remembering the last value of each.
    """

    kind = "rapl"
    may_hang = False

    def __init__(self, packages: Sequence[Path]) -> None:
        self._packages = list(packages)
        self._last = dict.fromkeys(self._packages, 0)
        self._wrapped_uj = dict.fromkeys(self._packages, 0)

    @classmethod
    def find(cls, root: Path = POWERCAP) -> "RaplMeter | None":
        """The readable packages under `root`, or None. Needs root on most machines since 2020."""
        packages = [
            path
            for path in sorted(root.glob("intel-rapl:*"))
            if path.name.count(":") == 1 and _read_int(path / "energy_uj") is not None
        ]
        return cls(packages) if packages else None

    def read_mj(self) -> int | None:
        """Millijoules over all packages since the counters' own start."""
        total = 0
        for package in self._packages:
            now = _read_int(package / "energy_uj")
            if now is None:
                return None
            if now < self._last[package]:
                self._wrapped_uj[package] += _read_int(package / "max_energy_range_uj") or 0
            self._last[package] = now
            total += self._wrapped_uj[package] + now
        return total // 1000

    def close(self) -> None:
        """Nothing is kept open."""
        self._packages = []


class NvmlMeter:
    """One GPU's energy counter by NVML. Holds NVML open until `close`.

    The counter is 64 bits of millijoules and cannot wrap in practice, but begins anew when the driver is loaded again:
    a reading below the one before gives None once, so that no difference is taken across the gap.
    """

    kind: str
    may_hang = True

    def __init__(self, uuid: str) -> None:
        """Open the GPU with this uuid. Raises `OSError` where NVML or its counter is missing."""
        from coppermesh.exec import nvml  # here, so that a machine without NVIDIA's library pays nothing

        self._nvml = nvml.binding()
        self._open = False
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise OSError(f"no NVML on this machine: {error}") from error
        try:
            self.kind = "simulated" if nvml.is_simulated() else "nvml"
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
            self._last = int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except self._nvml.NVMLError as error:
            self._nvml.nvmlShutdown()
            raise OSError(f"GPU {uuid} has no energy counter: {error}") from error
        self._open = True

    def read_mj(self) -> int | None:
        """Millijoules since the driver was loaded. May hang for as long as the driver does."""
        if not self._open:
            return None
        try:
            now = int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except self._nvml.NVMLError:
            return None
        before, self._last = self._last, now
        return now if now >= before else None

    def close(self) -> None:
        """Give NVML back."""
        if self._open:
            self._open = False
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()


def open_meter(kind: str, uuid: str | None = None) -> Meter:
    """The meter that a device's `meter` field names; `NoMeter` where it can no longer be read."""
    if kind in ("nvml", "simulated") and uuid is not None:
        try:
            return NvmlMeter(uuid)
        except OSError:
            return NoMeter()
    if kind == "nvml-power" and uuid is not None:
        try:
            return open_power_meter(uuid)
        except OSError:
            return NoMeter()
    if kind == "rapl":
        return RaplMeter.find() or NoMeter()
    return NoMeter()


def open_power_meter(uuid: str) -> SampledMeter:
    """One GPU's power by NVML, integrated. Raises OSError where NVML or its power reading is missing."""
    from coppermesh.exec import nvml

    binding = nvml.binding()
    try:
        binding.nvmlInit()
    except binding.NVMLError as error:
        raise OSError(f"no NVML on this machine: {error}") from error
    try:
        handle = binding.nvmlDeviceGetHandleByUUID(uuid)
        binding.nvmlDeviceGetPowerUsage(handle)
    except binding.NVMLError as error:
        binding.nvmlShutdown()
        raise OSError(f"GPU {uuid} does not tell its power: {error}") from error

    def read_mw() -> int | None:
        try:
            return int(binding.nvmlDeviceGetPowerUsage(handle))
        except binding.NVMLError:
            return None

    def close() -> None:
        with suppress(binding.NVMLError):
            binding.nvmlShutdown()

    return SampledMeter("simulated" if nvml.is_simulated() else "nvml-power", read_mw, close)


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
