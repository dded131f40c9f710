"""Private directories of workers and builders, and their removal whatever a job left in them."""

import os
import shutil
import stat
from pathlib import Path

from coppermesh.exec.sandbox.capabilities import SANDBOX_ID


def make_directory(parent: Path, name: str) -> Path:
    """A new, empty directory that only this user may enter."""
    directory = parent / name
    directory.mkdir(mode=0o700)
    give_to_sandbox(directory)
    return directory


def give_to_sandbox(directory: Path) -> None:
    """Where this is root, whose workers become another user, the directory is that user's."""
    if os.geteuid() == 0:
        os.chown(directory, SANDBOX_ID, SANDBOX_ID, follow_symlinks=False)


def remove_tree(directory: Path) -> None:
    """Remove a directory and everything in it, without following a link and without recursion.

    A job may nest directories deeper than any path or stack reaches, so a directory's sub-directories are moved up
    beside it before it is removed: no path here is ever deeper than two levels. Raises OSError where a file cannot be
    removed (a full or read-only disk); nothing that is left is entered.
    """
    try:
        shutil.rmtree(directory)  # the usual case: a few files, or none
    except FileNotFoundError:
        return
    except (OSError, RecursionError):
        _remove_flattened(directory)


def _remove_flattened(top: Path) -> None:
    number = 0
    os.chmod(top, 0o700)
    while names := os.listdir(top):
        for name in names:
            path = top / name
            if not stat.S_ISDIR(path.lstat().st_mode):
                path.unlink()
                continue
            os.chmod(path, 0o700)
            for inner in list(os.scandir(path)):
                if inner.is_dir(follow_symlinks=False):
                    number += 1
                    os.rename(inner.path, top / f".moved-{os.getpid()}-{number}")
                else:
                    os.unlink(inner.path)
            path.rmdir()
    top.rmdir()
