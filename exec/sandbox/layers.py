"""The layers between a job and this machine, by name, in the order in which they are put on; and the profiles.

These names are what announcements carry and orders ask for. A name is announced only where `witness` saw a hostile act
fail under that layer alone and succeed without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from coppermesh.exec.sandbox.filters import COMPILER, CPU_WORKER, GPU_WORKER
from coppermesh.exec.sandbox.landlock import CHANGE, DEVICE, READ, READ_FILE, RUN, WRITE_FILE, Rule
from coppermesh.exec.sandbox.seccomp import Filter


@dataclass(frozen=True)
class Layer:
    """One kind of confinement."""

    name: str
    stops: str
    """What it keeps a job from, for people."""


LAYERS = (
    Layer("mountns", "seeing any file or its size and times, beside system libraries"),
    Layer("netns", "the network, this machine's own services included"),
    Layer("pidns", "seeing or signalling other processes"),
    Layer("ipcns", "shared memory and queues of other processes"),
    Layer("uid", "acting as root, where the agent runs as root"),
    Layer("limits", "using more memory, processor time or file space than granted"),
    Layer("privileges", "using or gaining capabilities, set-uid programs included"),
    Layer("landlock", "opening files (newer kernels: TCP, and signals to processes outside)"),
    Layer("seccomp", "system calls that computing does not need"),
    Layer("vram-scrub", "finding in a GPU's memory what an earlier job left there"),
)
"""Outermost first: the zygote's namespaces, then what each worker does to itself."""

NAMES = tuple(layer.name for layer in LAYERS)

SCRUB = "vram-scrub"
"""Not put on by us: what the driver was seen to do on every GPU that is lent (`scrub`)."""

FLOOR = frozenset({"landlock", "seccomp"})
"""Without both, a stranger's native code is not accepted at all."""


@dataclass(frozen=True)
class Profile:
    """All that `apply.enter_worker` puts on."""

    name: str
    filter: Filter
    files: tuple[Rule, ...]
    limits: Mapping[int, int]


def cpu_worker(limits: Mapping[int, int]) -> Profile:
    """A worker that computes on processor cores. It opens no file at all."""
    return Profile("cpu-worker", CPU_WORKER, (), limits)


def gpu_worker(limits: Mapping[int, int], libraries: tuple[str, ...], devices: tuple[str, ...]) -> Profile:
    """A worker that drives a GPU: reads libraries, what the driver asks of the machine, and its device files."""
    files = [Rule(path, READ) for path in (*libraries, *_DRIVER_READS)]
    files += [Rule(path, DEVICE) for path in devices]
    # libcuda names its threads; the rule is made by the process itself, so it is about no other one.
    files += [Rule("/proc/self", READ), Rule("/proc/self/task", READ | WRITE_FILE)]
    files += [Rule(path, READ_FILE | WRITE_FILE) for path in ("/dev/null", "/dev/zero")]
    return Profile("gpu-worker", GPU_WORKER, tuple(files), limits)


def compiler(
    limits: Mapping[int, int], *, programs: tuple[str, ...], reads: tuple[str, ...], scratch: tuple[str, ...]
) -> Profile:
    """A builder and its compiler: runs `programs`, reads `reads`, writes `scratch`."""
    files = [Rule(path, RUN) for path in programs]
    files += [Rule(path, READ) for path in reads]
    files += [Rule(path, CHANGE) for path in scratch]
    files += [Rule("/dev/null", READ_FILE | WRITE_FILE), Rule("/dev/urandom", READ_FILE)]
    return Profile("compiler", COMPILER, tuple(files), limits)


_DRIVER_READS = (
    "/etc/ld.so.cache",
    "/proc/devices",
    "/proc/modules",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/filesystems",
    "/proc/version",
    "/proc/driver/nvidia",
    "/proc/sys/vm/mmap_min_addr",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/sys/devices/system/memory",
    "/sys/bus/pci/devices",
    "/dev/urandom",
)
"""What CUDA's libraries read while they start, from published profiles of them; not seen on a card yet."""
