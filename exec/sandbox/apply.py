"""Putting a profile on this process, for good, before it sees a byte of a job.

The order matters. The user is changed while there is still the right to; the death signal comes after, since changing
the user clears it. Limits and the out-of-memory score are written before the files of /proc are out of reach. Landlock
and seccomp need no_new_privs, and seccomp comes last, because it refuses the calls that the others are made of. All of
it happens on one thread: Landlock binds only the thread that asks.

A layer that this kernel does not have is left out, and not listed in the answer. A layer that it has and that fails is
an error: the process must end.
"""

import contextlib
import ctypes
import os
from pathlib import Path

from coppermesh.exec import linux
from coppermesh.exec.sandbox import capabilities, landlock, limits, seccomp
from coppermesh.exec.sandbox.compilers import compiler_files
from coppermesh.exec.sandbox.filters import COMPILER, CPU_WORKER, GPU_WORKER
from coppermesh.exec.sandbox.layers import Profile

_PR_SET_DUMPABLE = 4


def enter_worker(profile: Profile) -> tuple[str, ...]:
    """Confine this single-threaded process. Gives the layers that are on now. Raises OSError where one fails."""
    entered: list[str] = []
    parent = os.getppid()
    if capabilities.drop_root():
        linux.die_with_parent(parent)
    if os.getuid() == capabilities.SANDBOX_ID:
        entered.append("uid")
    linux.prctl(_PR_SET_DUMPABLE, 1)  # else its own out-of-memory score is root's file
    limits.apply(profile.limits)
    entered.append("limits")
    capabilities.hide_from_siblings()
    capabilities.drop_capabilities()
    entered.append("privileges")
    if landlock.restrict(profile.files):
        entered.append("landlock")
    if SECCOMP:
        seccomp.install(profile.filter)
        entered.append("seccomp")
    return tuple(entered)


SECCOMP = seccomp.supported()
"""Asked once, in the zygote."""


def prepare(compiler: tuple[str, ...], family: str) -> None:
    """Do in the zygote what every child would do again: ask the compiler for its parts, load what kernels link to."""
    for name in _LINKED:
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)
    if compiler:
        compiler_files(compiler, family)
    for filter_ in (CPU_WORKER, GPU_WORKER, COMPILER):
        seccomp.assemble(filter_, 0)


_LINKED = ("libm.so.6", "libgcc_s.so.1", "libstdc++.so.6")
"""A worker can load a library from memory, but none that this needs from a file."""


def compiler_homes(compiler: tuple[str, ...]) -> list[str]:
    """Directories outside the system's own that a compiler lies in (zig's wheel, a private installation)."""
    if not compiler:
        return []
    return [str(Path(path).parent) for path in (compiler[0], os.path.realpath(compiler[0]))]


def leave_root() -> None:
    """For the zygote: no user of its own and no capability, once nothing needs them. Its death signal stays set."""
    parent = os.getppid()
    if capabilities.drop_root():
        linux.die_with_parent(parent)
    capabilities.drop_capabilities()


def available() -> tuple[str, ...]:
    """Which of the layers that `enter_worker` puts on this kernel has, by asking it and not by trying."""
    found = ["uid"] if capabilities.can_drop_root() or os.getuid() == capabilities.SANDBOX_ID else []
    found += ["limits", "privileges"]
    if landlock.abi():
        found.append("landlock")
    return (*found, "seccomp") if SECCOMP else tuple(found)
