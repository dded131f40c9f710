"""Who a worker is: another user where the agent is root, and without any privilege, now and later.

Theory. Root's power on Linux is a set of capabilities, and each process has five sets of them. Effective and permitted
are what it can use, inheritable and ambient what a program that it starts would get, and the bounding set what any
program could ever give it. All five are emptied. `no_new_privs` makes set-uid programs run without their privilege,
and is needed by Landlock and seccomp.

A process that was root is moved to a user and group that nobody else has. Without user namespaces this is all there
is between its files and root's; the numbers come from a range that Linux distributions leave unused (systemd's
documentation lists 65520 to 65533 so), and fit into a container that maps only 65,536 ids.

Changing the user makes a process "not dumpable": its /proc entries belong to root, so no other process of the same
user can read its memory, environment or descriptors. A worker is left so whoever the agent is.
"""

import os
import struct
from pathlib import Path

from coppermesh.exec import linux
from coppermesh.exec.sandbox import kernel_calls

SANDBOX_ID = 65533
"""User and group id of workers where the agent runs as root."""

_LAST_CAPABILITY = 63
_SETS_IDENTITY = 1 << 6 | 1 << 7  # SETGID, SETUID
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522


def can_drop_root(identity: int = SANDBOX_ID) -> bool:
    """Whether this process is root and may become the user and group `identity`.

    Root of a container often may not: without SETUID and SETGID, or where its user namespace knows no such user.
    Outside it is an ordinary user then, and the layer `uid` is not there to announce.
    """
    if os.geteuid() != 0 and os.getuid() != 0:
        return False
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    if effective & _SETS_IDENTITY != _SETS_IDENTITY:
        return False
    if Path("/proc/self/setgroups").read_text().strip() == "deny":
        return False
    return all(_is_mapped(identity, Path(f"/proc/self/{kind}_map").read_text()) for kind in ("uid", "gid"))


def _is_mapped(identity: int, table: str) -> bool:
    """Whether a user namespace's table (lines of first id inside, first id outside, count) has `identity`."""
    rows = (line.split() for line in table.splitlines())
    return any(int(first) <= identity < int(first) + int(count) for first, _, count in rows)


def drop_root(identity: int = SANDBOX_ID) -> bool:
    """Become the user and group `identity`, in no other group, where this process is root and may; True when it did.

    Clears the death signal: set it again afterwards.
    """
    if not can_drop_root(identity):
        return False
    _empty_bounding_set()  # only who may set capabilities can, and changing the user loses that
    os.setgroups([])
    os.setresgid(identity, identity, identity)
    os.setresuid(identity, identity, identity)
    return True


def drop_capabilities() -> None:
    """Empty all five capability sets, and forbid new privileges. Raises OSError where one stays."""
    _empty_bounding_set()
    linux.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    kernel_calls.capset(struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24))
    linux.forbid_new_privileges()


def _empty_bounding_set() -> None:
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            linux.prctl(_PR_CAPBSET_DROP, capability)
        except OSError:
            return  # not root, or past the last one that this kernel has: no_new_privs does the rest


def hide_from_siblings() -> None:
    """Other processes of this user can no longer trace this one or read its memory, and it leaves no core file."""
    linux.prctl(_PR_SET_DUMPABLE, 0)
