"""How much device memory each process uses, by NVML: the watch on what CuPy's pool limit cannot bound.

The pool's limit holds for an honest worker. Native code that got hold of the process can ask the driver directly, so
the agent reads each worker's share from outside. In some containers NVML does not tell processes by the numbers known
inside (it lists none, or others): then the watch is blind.
"""

from contextlib import suppress
from typing import Any, Final

import trio

from coppermesh.exec.budget import format_bytes
from coppermesh.exec.device import CONTEXT_BYTES, DeviceInfo
from coppermesh.exec.metering import OPEN_SECONDS

POOL_SLACK_BYTES: Final = 128 * 1024 * 1024
"""`cupy_runtime` gives its pool as much over the lease's memory."""
LIBRARY_BYTES: Final = 512 * 1024 * 1024
"""Workspaces that cuBLAS and cuFFT take for themselves."""


def device_excess(used: int, memory_limit: int) -> str:
    """Why a worker that uses so much of the device must end, as a sentence's part; an empty text where it need not."""
    extra = CONTEXT_BYTES + POOL_SLACK_BYTES + LIBRARY_BYTES
    if used <= memory_limit + extra:
        return ""
    return (
        f"the program holds {format_bytes(used)} of device memory, the limit is {format_bytes(memory_limit)} (and "
        f"{format_bytes(extra)} for CUDA's context and libraries)"
    )


async def open_device_watch(device: DeviceInfo) -> "DeviceWatch | None":
    """The watch on a GPU's memory; None on a processor, or where NVML does not answer in time."""
    if device.kind != "cuda" or device.uuid is None:
        return None
    with trio.move_on_after(OPEN_SECONDS), suppress(OSError):
        return await trio.to_thread.run_sync(DeviceWatch, device.uuid, abandon_on_cancel=True)
    return None


class DeviceWatch:
    """Reads one GPU. Every call may hang as long as the driver does: call it in a thread, with a deadline."""

    def __init__(self, uuid: str) -> None:
        """Open the GPU with this uuid. Raises OSError where NVML or the GPU is missing."""
        from coppermesh.exec import nvml  # here, so that a machine without NVIDIA's library pays nothing

        self._nvml: Any = nvml.binding()
        self._open = False
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise OSError(f"no NVML on this machine: {error}") from error
        try:
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        except self._nvml.NVMLError as error:
            self._nvml.nvmlShutdown()
            raise OSError(f"NVML does not know GPU {uuid}: {error}") from error
        self._open = True

    def used(self) -> dict[int, int] | None:
        """Bytes of device memory by process id; None where NVML does not say."""
        found = self._listed() if self._open else None
        if found is None:
            return None
        # NVML says that it does not know (WSL, old drivers) by an amount that the binding turns into None.
        return {int(each.pid): int(each.usedGpuMemory) for each in found if each.usedGpuMemory is not None}

    def _listed(self) -> Any:
        """The programs that compute there, by the newest call that the driver has."""
        # A mismatch is what the binding says of a function that an older driver does not have; it is no NVMLError.
        missing = (
            self._nvml.NVMLError,
            getattr(self._nvml, "NVMLLibraryMismatchError", AttributeError),
            AttributeError,
        )
        for edition in ("", "_v2"):
            with suppress(*missing):
                return getattr(self._nvml, f"nvmlDeviceGetComputeRunningProcesses{edition}")(self._handle)
        return None

    def close(self) -> None:
        """Give NVML back."""
        if self._open:
            self._open = False
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
