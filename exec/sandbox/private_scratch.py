"""A scratch directory of a builder's own: in memory, bounded in all, unseen by others, gone with its processes.

Theory. A limit on file sizes bounds each file and not their number, and a disk has no quota that an ordinary user could
set. A memory file system has one: `size` and `nr_inodes` bound everything in it, files without a name included. It can
be mounted in a mount namespace of the builder's own, which takes a user namespace where it is not root. Nothing has to
be removed afterwards: the namespace ends with its last process. The capabilities that come with the user namespace are
dropped with all others (`capabilities`).

Where none can be made the directory lies on the disk, and the agent watches how it grows (`supervisor`).
"""

import os

from coppermesh.exec import linux
from coppermesh.exec.sandbox import kernel_calls, namespaces

MAX_FILES = 4096
"""A build makes some ten files, zig's about a hundred."""

_TRIAL_BYTES = 1 << 20
_NEW_MOUNT = 0x00020000
_NO_SUID, _NO_DEVICES = 2, 4
_RECURSIVE, _PRIVATE = 0x4000, 1 << 18


def possible(directory: int) -> bool:
    """Whether `enter` works in a child of this process. Tried in one: half of it done leaves a process without a user.

    `directory` is a descriptor of where builders' directories will be, which this user may write.
    """
    name = f"trial-{os.getpid()}"
    try:
        os.mkdir(name, 0o700, dir_fd=directory)
    except OSError:
        return False
    child = os.fork()
    if child == 0:
        try:
            os.fchdir(directory)
            os.chdir(name)
            _mount(_TRIAL_BYTES)
        except BaseException:  # noqa: BLE001 - a forked child must not return into its parent's code
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    os.rmdir(name, dir_fd=directory)
    return status == 0


def enter(size: int) -> None:
    """Put an empty file system of at most `size` bytes upon the working directory, for this process and its children.

    Clears the death signal. Raises OSError; the process must then end.
    """
    parent = os.getppid()
    _mount(size)
    linux.die_with_parent(parent)


def _mount(size: int) -> None:
    namespaces.become_own_user(_NEW_MOUNT)
    name = os.path.basename(os.getcwd())
    kernel_calls.mount("none", "/", None, _RECURSIVE | _PRIVATE)
    options = f"size={size},nr_inodes={MAX_FILES},mode=700"
    kernel_calls.mount("coppermesh", ".", "tmpfs", _NO_SUID | _NO_DEVICES, options)
    os.chdir(f"../{name}")  # what was mounted, and not what it hides
