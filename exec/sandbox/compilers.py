"""What a C++ compiler consists of: the programs it starts and the directories it reads, asked of the compiler itself.

The compile profile lets a builder run these programs and no other, and read these directories and no other; so an
`#include` of a file of this machine finds nothing, whatever the source looked like to the gate before it.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from coppermesh.exec.cuda_toolchain import SYSTEM_PATH

_PARTS = ("cc1plus", "collect2", "as", "ld", "lto-wrapper")
_LIBRARIES = ("lib", "lib32", "lib64", "libexec")
_LOADERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld-musl-x86_64.so.1")
_ASK_SECONDS = 10


@dataclass(frozen=True)
class CompilerFiles:
    """Absolute paths."""

    programs: tuple[str, ...]
    """Files that may be executed."""
    reads: tuple[str, ...]
    """Directories, and files, that may be read."""


@cache
def compiler_files(command: tuple[str, ...], family: str) -> CompilerFiles:
    """Programs and directories of a compiler. Runs it a few times (some 10 ms in all): call it once, in the zygote."""
    driver = os.path.realpath(command[0])
    home = Path(driver).parent
    reads = [str(base / name) for base in {home.parent, Path("/usr"), Path("/")} for name in _LIBRARIES]
    reads += ["/etc/ld.so.cache", "/proc/cpuinfo", "/proc/meminfo"]
    programs = [command[0], driver, *_LOADERS]
    if family == "zig":
        # By that program's loader zig learns which C library this system has; else it builds and links musl.
        reads += [driver, str(home / "lib"), "/usr/bin/env"]
    else:
        programs += [path for part in _PARTS if (path := _part_of(command[0], part))]
    return CompilerFiles(tuple(dict.fromkeys(programs)), tuple(dict.fromkeys(reads)))


def _part_of(compiler: str, part: str) -> str | None:
    """The full path of one of the compiler's programs; None where it has none of that name."""
    try:
        answer = subprocess.run(  # noqa: S603 - the compiler this machine's owner has
            [compiler, f"-print-prog-name={part}"],
            env={"PATH": SYSTEM_PATH, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASK_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    named = answer.stdout.decode(errors="replace").strip()
    found = named if os.path.isabs(named) else shutil.which(named, path=SYSTEM_PATH)
    return found if found and os.path.exists(found) else None
