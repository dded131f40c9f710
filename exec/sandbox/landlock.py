"""Landlock: a process gives up the file system, the network and other processes, without root.

Theory. A ruleset names the rights it handles; afterwards each of them is denied except beneath the paths it was
granted for. It binds the calling thread and what that thread starts, for good, so it must come before the second
thread. Opening is what is checked: a descriptor that is open already keeps its rights. Files without a path, as
sealed memory files, are never refused, so a worker that may read nothing can still load a library from one through
`/proc/self/fd/N`.

Kernels differ by ABI version, each adding rights: 1 the files, 2 linking and renaming across directories, 3
truncating, 4 TCP, 5 ioctl on devices, 6 abstract sockets and signals. An older kernel gets the rights it knows; one
without Landlock gives ABI 0. What is never covered: `stat` and other metadata, file descriptors handed over, UDP, and
`chmod`, `chown`, `utime`; seccomp and namespaces are for those.

Numbers are from `include/uapi/linux/landlock.h`; the three system calls have one number on every architecture.
"""

import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from coppermesh.exec import linux
from coppermesh.exec.sandbox import kernel_calls

EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
REMOVE_DIR = 1 << 4
REMOVE_FILE = 1 << 5
MAKE_DIR = 1 << 7
MAKE_REG = 1 << 8
MAKE_SYM = 1 << 12
REFER = 1 << 13
TRUNCATE = 1 << 14
IOCTL_DEV = 1 << 15

READ = READ_FILE | READ_DIR
RUN = READ_FILE | EXECUTE
CHANGE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER | TRUNCATE
"""Everything that a compiler does in its scratch directory; no device, socket or pipe is ever made."""
DEVICE = READ_FILE | WRITE_FILE | IOCTL_DEV

LATER: Mapping[int, tuple[str, str]] = {
    3: ("truncating files", "6.2"),
    4: ("TCP", "6.7"),
    5: ("ioctl on device files", "6.10"),
    6: ("signals to processes outside and abstract sockets", "6.12"),
}
"""What each ABI version began to deny, and the Linux that brought it."""

_OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_ALL_FILE_RIGHTS = (1 << 16) - 1
_TCP = 0b11
_SCOPES = 0b11
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_PATH_BENEATH = 1


@dataclass(frozen=True)
class Rule:
    """What is allowed beneath a path, or on the file that it names. A path that does not exist grants nothing."""

    path: str
    rights: int


@dataclass(frozen=True)
class Handled:
    """What a ruleset can deny on a kernel."""

    files: int
    network: int
    scopes: int


@cache
def abi() -> int:
    """The kernel's Landlock version; 0 where it has none, or it is switched off."""
    try:
        return kernel_calls.call(_CREATE_RULESET, None, 0, _ASK_VERSION)
    except OSError:
        return 0


def handled(version: int) -> Handled:
    """What a kernel of that ABI version is asked to deny: all that it knows, of what this module knows."""
    if version < 1:
        return Handled(0, 0, 0)
    files = _FILE_RIGHTS.get(version, _ALL_FILE_RIGHTS)
    return Handled(files, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)


def not_denied(version: int) -> str:
    """What a kernel of that ABI version does not deny and a newer one does, for people; empty where it is nothing."""
    missing = [f"{what} (since Linux {linux})" for at, (what, linux) in LATER.items() if 1 <= version < at]
    return ", ".join(missing)


def restrict(rules: Iterable[Rule] = ()) -> int:
    """Deny everything but `rules` to this thread and its children, for good. Gives the ABI that did it, 0 for none.

    Sets no_new_privs. Raises OSError where the kernel has Landlock and refuses.
    """
    version = abi()
    if version == 0:
        return 0
    wanted = handled(version)
    attributes = struct.pack("=QQQ", wanted.files, wanted.network, wanted.scopes)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = kernel_calls.call(_CREATE_RULESET, attributes[:size], size, 0)
    try:
        for rule in rules:
            _add(ruleset, rule, wanted.files)
        linux.forbid_new_privileges()
        kernel_calls.call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def _add(ruleset: int, rule: Rule, known: int) -> None:
    try:
        descriptor = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rights = rule.rights & known
        if not _is_directory(descriptor):
            rights &= _OF_A_FILE
        if rights:
            kernel_calls.call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def _is_directory(descriptor: int) -> bool:
    return os.fstat(descriptor).st_mode & 0o170000 == 0o040000
