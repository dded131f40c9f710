"""Private directories of workers and builders, and their removal whatever a job left in them."""

import contextlib
import os
import shutil
import stat
from pathlib import Path

from coppermesh.exec.cuda_gate import SHIM
from coppermesh.exec.sandbox.capabilities import SANDBOX_ID, can_drop_root

SHARED = "compiler"
"""Sub-directory of what all builders read; everything else in scratch is somebody's and temporary."""
HEADERS = "shim"
"""In it, the headers of CUDA source. The package's own may lie behind a directory that only root can enter."""
ZIG = "zig"
"""In it, what zig builds of itself (`Toolchain.environment` names it so)."""


def make_directory(parent: Path, name: str) -> Path:
    """A new, empty directory that only this user may enter."""
    directory = parent / name
    directory.mkdir(mode=0o700)
    give_to_sandbox(directory)
    return directory


def prepare_shared(scratch: Path) -> None:
    """Make what builders share anew: the headers, which no builder may write whatever its layers."""
    shared = scratch / SHARED
    remove_tree(shared)
    shared.mkdir(mode=0o700)
    headers = shared / HEADERS
    shutil.copytree(SHIM, headers, copy_function=shutil.copyfile)
    for directory, _, names in os.walk(headers):
        os.chmod(directory, 0o755)  # noqa: S103 - the headers are public
        for name in names:
            os.chmod(os.path.join(directory, name), 0o644)
    give_to_sandbox(shared)


def drop_zigs_sources(scratch: Path) -> None:
    """Of what zig keeps of itself, remove what it needs only to build that again, 43 of 44 MB: builds copy it."""
    with contextlib.suppress(OSError):
        remove_tree(scratch / SHARED / ZIG / "z")


def size_of(directory: Path, most: int, most_files: int) -> int:
    """Bytes on disk in a directory; `most` + 1 for anything more, or for too many files. Follows no link."""
    total, files = 0, 0
    waiting = [str(directory)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    files += 1
                    total += 512 * entry.stat(follow_symlinks=False).st_blocks
                    if total > most or files > most_files:
                        return most + 1
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except FileNotFoundError:
            continue  # removed meanwhile
        except OSError:
            return most + 1  # nested deeper than a path reaches, or closed to whoever looks
    return total


def give_to_sandbox(directory: Path) -> None:
    """Where this is root whose workers become another user, the directory is that user's."""
    if can_drop_root():
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
