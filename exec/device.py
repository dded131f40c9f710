"""What this machine can compute on, told honestly.

A CPU is described by its own model name and never fills a field that belongs to GPUs. A GPU's fields come from NVML,
each of them optional (`NotSupported` is normal on consumer cards); they are read in a throw-away child process, so
that a driver that hangs or crashes costs a deadline and not the agent; the GPUs read before it hung are kept. No
driver: no GPUs, and no complaint. A GPU that is partitioned (MIG) is as many devices as it has instances.

What a stand-in for NVML reports (`nvml`) is marked wherever it can be seen: its name and driver say so, its meter is
`simulated`, and its only feature is `simulated`, so that no program ever fits it.

`features` says which programs the device takes: `array-programs`; `cuda-source` where kernels can be built, and with it
the codes of what its runtime can do beyond plain kernels (`cuda_features`). A machine that is not x86-64 has the former
alone, whoever asks: the sandbox has no system call filter there.
A GPU whose runtime is not installed has none, and should not be announced.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from coppermesh.exec import nvml
from coppermesh.exec.cuda_features import CPU, CUDA, runtime_features
from coppermesh.exec.meter import RaplMeter

PROBE_SECONDS = 20.0
MAX_GPUS = 15
"""Most GPUs reported; with the CPU that is as many devices as an announcement holds."""
MAX_NAME = 128
CONTEXT_BYTES = 768 * 1024 * 1024
"""Device memory that is not for arrays: the CUDA context, cuBLAS' workspace, the pool's slack. An estimate: the GPU
lane writes what it was (`tests/gpu/RESULTS.md`)."""
SIMULATED = "simulated"
"""The one feature of a device whose NVML is a stand-in."""

ARRAY_PROGRAMS = "array-programs"
HALF_ARRAYS = "float16-arrays"
CUDA_SOURCE = "cuda-source"
KERNEL_MACHINES = ("x86_64", "AMD64")
"""Architectures that native code is taken on (`sandbox.seccomp`)."""


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
    """Memory a task may use: a GPU's free memory less `CONTEXT_BYTES`, half of this machine's memory on a CPU."""
    total_bytes: int | None
    """Device memory in all (GPU only)."""
    compute_capability: str | None
    """`9.0` (GPU only)."""
    uuid: str | None
    """NVML's identifier (GPU only)."""
    driver: str | None
    """Driver version (GPU only)."""
    meter: str
    """Energy meter: `nvml`, `nvml-power`, `rapl`, `none`, or `simulated`."""
    features: tuple[str, ...]
    cores: int | None
    """Cores this process may use (CPU only)."""
    simulated: bool = False
    """A stand-in for NVML reported this GPU: there is none."""


def probe_devices(compiler: str | None = None) -> list[DeviceInfo]:
    """The CPU, then the GPUs in NVML's order. Blocks for up to `PROBE_SECONDS`: call it in a thread.

    `compiler` is the configured C++ compiler, if any; it decides whether the CPU offers `cuda-source`.
    """
    return [probe_cpu(compiler), *probe_gpus()]


def probe_cpu(compiler: str | None = None) -> DeviceInfo:
    """This machine's processor."""
    from coppermesh.exec.cuda_toolchain import find_toolchain

    features = [ARRAY_PROGRAMS, HALF_ARRAYS]
    if takes_kernels() and find_toolchain(compiler) is not None:
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


def takes_kernels() -> bool:
    """Whether native code is taken on a machine like this one at all."""
    return platform.machine() in KERNEL_MACHINES


def probe_gpus() -> list[DeviceInfo]:
    """The GPUs that NVML lists; empty where there is no driver, and those it told of before a deadline or a crash."""
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
            check=False,
        ).stdout
    except subprocess.TimeoutExpired as expired:
        answer = expired.stdout or b""
    except OSError:
        return []
    gpus = [_read_line(line) for line in answer.splitlines()[:MAX_GPUS]]
    return [gpu for gpu in gpus if gpu is not None]


def _read_line(line: bytes) -> DeviceInfo | None:
    """One device as the child wrote it; None for anything else (a line cut off, what a library printed)."""
    try:
        fields = json.loads(line)
        return DeviceInfo(**{**fields, "features": tuple(fields["features"])})
    except (ValueError, TypeError, KeyError):
        return None


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


def _read_gpus() -> Iterator[dict[str, Any]]:
    pynvml = nvml.binding()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return
    driver = _optional(pynvml.nvmlSystemGetDriverVersion)
    found = 0
    for index in range(min(_optional(pynvml.nvmlDeviceGetCount) or 0, MAX_GPUS)):
        handle = _optional(pynvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            continue
        for device, part in _parts(f"gpu{index}", handle):
            gpu = _read_gpu(device, part, handle, driver)
            if gpu is not None and found < MAX_GPUS:
                found += 1
                yield asdict(gpu)


def _parts(device: str, handle: Any) -> Iterator[tuple[str, Any]]:
    """The GPU itself, or its instances where it is partitioned: CUDA then runs on those alone."""
    pynvml = nvml.binding()
    mode = _optional(_function("nvmlDeviceGetMigMode"), handle)
    if not mode or mode[0] != 1:
        yield device, handle
        return
    count = _optional(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
    for number in range(min(count, MAX_GPUS)):
        part = _optional(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        if part is not None:
            yield f"{device}-{number}", part


def _read_gpu(device: str, handle: Any, whole: Any, driver: str | None) -> DeviceInfo | None:
    """The fields of a GPU or of an instance; `whole` is the GPU that the instance is a part of."""
    pynvml = nvml.binding()
    memory = _optional(pynvml.nvmlDeviceGetMemoryInfo, handle)
    if memory is None:  # nothing can be planned on a device that does not say how much memory it has
        return None
    capability = _optional(pynvml.nvmlDeviceGetCudaComputeCapability, whole)
    energy = _optional(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    uuid = _optional(pynvml.nvmlDeviceGetUUID, handle)
    name = _optional(pynvml.nvmlDeviceGetName, handle) or "NVIDIA GPU"
    simulated = nvml.is_simulated()
    power = _optional(pynvml.nvmlDeviceGetPowerUsage, handle) if energy is None else None
    meter = "none"
    if uuid and (energy is not None or power is not None):
        meter = "nvml" if energy is not None else "nvml-power"
    return DeviceInfo(
        device=device,
        kind="cuda",
        name=printable(f"{name} (simulated)" if simulated else name),
        memory_bytes=max(0, int(memory.free) - CONTEXT_BYTES),
        total_bytes=int(memory.total),
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
        uuid=printable(uuid) if uuid else None,
        driver=printable(driver) if driver else None,
        meter="simulated" if simulated and meter != "none" else meter,
        features=(SIMULATED,) if simulated else _gpu_features(),
        cores=None,
        simulated=simulated,
    )


def _gpu_features() -> tuple[str, ...]:
    if find_spec("cupy") is None:
        return ()
    if not takes_kernels():
        return (ARRAY_PROGRAMS, HALF_ARRAYS)
    return (ARRAY_PROGRAMS, HALF_ARRAYS, CUDA_SOURCE, *sorted(runtime_features(CUDA)))


def _function(name: str) -> Any:
    """A function of the binding, or one that raises where the binding is too old to have it."""
    return getattr(nvml.binding(), name, _absent)


def _absent(*_: Any) -> Any:
    raise AttributeError("this binding does not have it")


def _optional(call: Any, *arguments: Any) -> Any:
    """The call's answer, or None where this card, driver or binding does not have it."""
    try:
        answer = call(*arguments)
    except (nvml.binding().NVMLError, AttributeError, ValueError):  # the last: a name that is no text
        return None
    return answer.decode(errors="replace") if isinstance(answer, bytes) else answer


if __name__ == "__main__":
    for _fields in _read_gpus():
        print(json.dumps(_fields), flush=True)  # noqa: T201 - line by line: a later GPU may hang
