"""What this machine can compute on, told honestly.

A CPU is described by its own model name and never fills a field that belongs to GPUs. A GPU's fields come from NVML,
each of them optional (`NotSupported` is normal on consumer cards); they are read in a throw-away child process, so
that a driver that hangs or crashes costs a deadline and not the agent. No driver: no GPUs, and no complaint.

`features` says which programs the device takes: `array-programs`; `cuda-source` where kernels can be built, and with it
the codes of what its runtime can do beyond plain kernels (`cuda_features`).
A GPU whose runtime is not installed has none, and should not be announced.
"""

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from coppermesh.exec.cuda_features import CPU, CUDA, runtime_features
from coppermesh.exec.meter import RaplMeter

PROBE_SECONDS = 20.0
MAX_GPUS = 15
"""Most GPUs reported; with the CPU that is as many devices as an announcement holds."""
MAX_NAME = 128

ARRAY_PROGRAMS = "array-programs"
CUDA_SOURCE = "cuda-source"


@dataclass(frozen=True)
class DeviceInfo:
    """One device. What it does not have is None, never a made-up value."""

    device: str
    """Stable name on this machine: `cpu`, `gpu0`, ..."""
    kind: str
    """`cpu` or `cuda`."""
    name: str
    """The model name that the device gives itself, printable ASCII."""
    memory_bytes: int
    """Memory a task may use: free device memory on a GPU, half of this machine's memory on a CPU."""
    total_bytes: int | None
    """Device memory in all (GPU only)."""
    compute_capability: str | None
    """`9.0` (GPU only)."""
    uuid: str | None
    """NVML's identifier (GPU only)."""
    driver: str | None
    """Driver version (GPU only)."""
    meter: str
    """Energy meter: `nvml`, `rapl` or `none`."""
    features: tuple[str, ...]
    cores: int | None
    """Cores this process may use (CPU only)."""


def probe_devices(compiler: str | None = None) -> list[DeviceInfo]:
    """The CPU, then the GPUs in NVML's order. Blocks for up to `PROBE_SECONDS`: call it in a thread.

    `compiler` is the configured C++ compiler, if any; it decides whether the CPU offers `cuda-source`.
    """
    return [probe_cpu(compiler), *probe_gpus()]


def probe_cpu(compiler: str | None = None) -> DeviceInfo:
    """This machine's processor."""
    from coppermesh.exec.cuda_toolchain import find_toolchain

    features = [ARRAY_PROGRAMS]
    if find_toolchain(compiler) is not None:
        features += [CUDA_SOURCE, *sorted(runtime_features(CPU))]
    return DeviceInfo(
        device="cpu",
        kind="cpu",
        name=cpu_name(),
        memory_bytes=machine_memory_bytes() // 2,
        total_bytes=None,
        compute_capability=None,
        uuid=None,
        driver=None,
        meter="rapl" if RaplMeter.find() else "none",
        features=tuple(features),
        cores=usable_cores(),
    )


def probe_gpus() -> list[DeviceInfo]:
    """The GPUs that NVML lists; empty where there is no driver or it does not answer in time."""
    command = [sys.executable, "-I", "-m", "coppermesh.exec.device"]
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    try:
        answer = subprocess.run(  # noqa: S603 - this very module
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PROBE_SECONDS,
            check=True,
        )
        return [
            DeviceInfo(**{**gpu, "features": tuple(gpu["features"])}) for gpu in json.loads(answer.stdout)
        ]
    except (OSError, subprocess.SubprocessError, ValueError, TypeError, KeyError):
        return []


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own model name, or its architecture where it gives none."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, separator, value = line.partition(":")
        if separator and key.strip() == "model name" and value.strip():
            return printable(value.strip())
    return f"{platform.machine()} processor"


def usable_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0))


def machine_memory_bytes() -> int:
    """Memory of this machine, or of the control group this process is confined to, whichever is less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(path).read_text()))
        except (OSError, ValueError):  # absent, or `max`
            continue
    return total


def printable(text: str, limit: int = MAX_NAME) -> str:
    """`text` as printable ASCII, at most `limit` characters."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:limit]


# --- below runs in the throw-away child


def _read_gpus() -> list[dict[str, Any]]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    driver = _optional(pynvml.nvmlSystemGetDriverVersion)
    count = min(_optional(pynvml.nvmlDeviceGetCount) or 0, MAX_GPUS)
    gpus = [_read_gpu(index, driver) for index in range(count)]
    return [asdict(gpu) for gpu in gpus if gpu is not None]


def _read_gpu(index: int, driver: str | None) -> DeviceInfo | None:
    import pynvml

    handle = _optional(pynvml.nvmlDeviceGetHandleByIndex, index)
    memory = _optional(pynvml.nvmlDeviceGetMemoryInfo, handle) if handle is not None else None
    if memory is None:  # nothing can be planned on a device that does not say how much memory it has
        return None
    capability = _optional(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    energy = _optional(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    uuid = _optional(pynvml.nvmlDeviceGetUUID, handle)
    return DeviceInfo(
        device=f"gpu{index}",
        kind="cuda",
        name=printable(_optional(pynvml.nvmlDeviceGetName, handle) or "NVIDIA GPU"),
        memory_bytes=int(memory.free),
        total_bytes=int(memory.total),
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
        uuid=printable(uuid) if uuid else None,
        driver=printable(driver) if driver else None,
        meter="nvml" if energy is not None and uuid else "none",
        features=_gpu_features(),
        cores=None,
    )


def _gpu_features() -> tuple[str, ...]:
    if find_spec("cupy") is None:
        return ()
    return (ARRAY_PROGRAMS, CUDA_SOURCE, *sorted(runtime_features(CUDA)))


def _optional(call: Any, *arguments: Any) -> Any:
    """The call's answer, or None where this card, driver or binding does not have it."""
    import pynvml

    try:
        answer = call(*arguments)
    except (pynvml.NVMLError, AttributeError):
        return None
    return answer.decode(errors="replace") if isinstance(answer, bytes) else answer


if __name__ == "__main__":
    json.dump(_read_gpus(), sys.stdout)
