"""Putting a profile on this process, for good, before it sees a byte of a job.

The order matters. The user is changed while there is still the right to; the death signal comes after, since changing
the user clears it. Limits and the out-of-memory score are written before the files of /proc are out of reach. Landlock
and seccomp need no_new_privs, and seccomp comes last, because it refuses the calls that the others are made of. All of
it happens on one thread: Landlock binds only the thread that asks.

A layer that this kernel does not have is left out, and not listed in the answer. A layer that it has and that fails is
an error: the process must end.
"""

import os

from coppermesh.exec import linux
from coppermesh.exec.sandbox import capabilities, landlock, limits, seccomp
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


def available() -> tuple[str, ...]:
    """Which of the layers that `enter_worker` puts on this kernel has, by asking it and not by trying."""
    found = ["uid"] if os.geteuid() == 0 or os.getuid() == capabilities.SANDBOX_ID else []
    found += ["limits", "privileges"]
    if landlock.abi():
        found.append("landlock")
    return (*found, "seccomp") if SECCOMP else tuple(found)
