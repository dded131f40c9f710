"""The few Linux calls that worker processes need and Python does not offer: prctl, seals, memory files, limits.

Everything is resolved when the module is imported, so that a freshly forked child allocates and looks up nothing.
"""

import ctypes
import fcntl
import os
import resource
import signal
from collections.abc import Mapping

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


class _SignalAction(ctypes.Structure):
    """`struct sigaction` of the C library on 64-bit machines."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_sigaction = _libc.sigaction
_sigaction.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
_SIG_IGN = 1
_SA_NOCLDSTOP = 1

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_CHILD_SUBREAPER = 36

_MFD_NOEXEC_SEAL = 0x0008  # Linux 6.3: never executable as a program (mapping it as a library still works)
SEAL_SEAL = fcntl.F_SEAL_SEAL
SEAL_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
SEAL_CONTENT = SEAL_SIZE | fcntl.F_SEAL_WRITE
"""Nobody can change size or content any more; the kernel grants it only while nobody maps the file writable."""

SEAL_OTHER_WRITERS = SEAL_SIZE | 0x0010
"""F_SEAL_FUTURE_WRITE, Linux 5.1: writable mappings that exist stay so, and there will be no other, nor a write()."""

_COPY_CHUNK = 1 << 30


def prctl(option: int, argument: int) -> None:
    """Linux' prctl with one argument. Raises OSError."""
    if _prctl(option, argument, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


def prctl2(option: int, first: int, second: int) -> None:
    """Linux' prctl with two arguments. Raises OSError."""
    if _prctl(option, first, second, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {first}): {os.strerror(code)}")


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when the thread that forked it ends. `parent` is that process.

    Exits at once where the parent is gone already: the signal is for deaths after the call.
    """
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def ignore_broken_leases() -> None:
    """Whoever opens a file in the instant in which we hold a lease on it has the kernel send us SIGIO, which ends a
    process that has not said otherwise. From any thread; a handler that is set already stays.
    """
    action = _SignalAction()
    if _sigaction(signal.SIGIO, None, ctypes.byref(action)) == 0 and not action.handler:
        action.handler = _SIG_IGN
        _sigaction(signal.SIGIO, ctypes.byref(action), None)


def children_stop_unheard() -> None:
    """SIGCHLD, whose handler is set already, tells of children that end, and not of those that stop and go on."""
    action = _SignalAction()
    if _sigaction(signal.SIGCHLD, None, ctypes.byref(action)) == 0:
        action.flags |= _SA_NOCLDSTOP
        _sigaction(signal.SIGCHLD, ctypes.byref(action), None)


def forbid_new_privileges() -> None:
    """No set-uid program gives this process, or any child, a privilege it does not have."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def adopt_orphans() -> None:
    """Descendants whose parent dies become this process's children, so that it can reap them."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def offer_to_oom_killer() -> None:
    """When the machine runs out of memory, this process goes first."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass  # no /proc, or it may not be written: the kernel's own choice stands


def set_limits(limits: Mapping[int, int]) -> None:
    """Set resource limits, soft and hard, never above what is allowed already.

    Processor time has its hard limit a second later: at the soft one SIGXCPU says what happened, at the hard one
    SIGKILL ends who ignored it.
    """
    for which, value in limits.items():
        _, most = resource.getrlimit(which)
        soft, hard = value, value + 1 if which == resource.RLIMIT_CPU else value
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(which, (soft, hard))


def allow_open_files(wanted: int) -> None:
    """Raise this process's own limit on descriptors to `wanted`, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def private_memory_bytes() -> int:
    """Bytes of private writable memory of this process: what RLIMIT_DATA counts."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")


def available_memory_bytes() -> int:
    """What this machine can still give without swapping, by the kernel's own estimate; no limit where it has none."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 1 << 62


def memory_file(name: str, size: int = 0) -> int:
    """A new anonymous file in memory that can be sealed; the descriptor is not inherited. `name` is for people."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        descriptor = os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError:  # EINVAL: a kernel before 6.3
        descriptor = os.memfd_create(name, flags)
    if size:
        try:
            os.ftruncate(descriptor, size)
        except OSError:
            os.close(descriptor)
            raise
    return descriptor


def sealed_file(name: str, data: bytes | bytearray | memoryview) -> int:
    """An anonymous file that holds `data` for good. Raises OSError where memory or a limit is exceeded."""
    descriptor = memory_file(name)
    try:
        fill_and_seal(descriptor, data)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def fill_and_seal(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write `data` into an empty memory file and let nobody change it again. Raises OSError as `sealed_file` does."""
    write_all(descriptor, data)
    seal(descriptor, SEAL_CONTENT | SEAL_SEAL)


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write every byte. Writing beats copying into a mapping: fresh pages of a mapping fault one by one."""
    with memoryview(data) as view, view.cast("B") as octets:
        done = 0
        while done < len(octets):
            done += os.write(descriptor, octets[done : done + _COPY_CHUNK])


def seal(descriptor: int, seals: int) -> None:
    """Add seals to a memory file. EBUSY: somebody still maps it writable."""
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)


def seals_of(descriptor: int) -> int:
    """The seals of a memory file. Raises OSError for any other kind of file."""
    return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
