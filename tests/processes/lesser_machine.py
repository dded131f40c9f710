"""The command line on a machine whose kernel or processor has less of a sandbox, and all Python that it starts.

    python lesser_machine.py LESS agent --home ...       as `coppermesh agent --home ...`
    python lesser_machine.py LESS --python -I -m MODULE ...

LESS is `not-x86-64`, `no-landlock` or `landlock-1` (the oldest edition). The agent's children are started by a script
beside its home, which stands in for the interpreter; bubblewrap would not see that script, so it counts as missing.
"""

import os
import platform
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

from coppermesh.exec.sandbox import landlock, namespaces

AS_PYTHON = "--python"


def lessen(less: str) -> None:
    """Before anything else is imported that asks."""
    namespaces.find_bubblewrap = lambda: None
    lock: Any = landlock
    if less == "not-x86-64":
        platform.machine = lambda: "aarch64"
    elif less == "no-landlock":
        lock.abi = lambda: 0
    elif less == "landlock-1":
        lock.abi = lambda: 1
    else:
        raise SystemExit(f"lesser_machine: unknown {less!r}")


def stand_in(less: str, directory: Path) -> str:
    """A script that is started as Python is."""
    script = directory / f"python-{less}"
    words = [sys.executable, "-I", str(Path(__file__).resolve()), less, AS_PYTHON]
    script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    script.chmod(0o755)
    return str(script)


def run_module(words: list[str]) -> None:
    """What `python -I -m MODULE ...` does."""
    at = words.index("-m")
    sys.argv = words[at + 1 :]
    runpy.run_module(words[at + 1], run_name="__main__", alter_sys=True)


def main(less: str, *words: str) -> int:
    lessen(less)
    if words[0] == AS_PYTHON:
        run_module(list(words[1:]))
        return 0
    home = Path(words[words.index("--home") + 1])
    os.makedirs(home, exist_ok=True)
    sys.executable = stand_in(less, home.parent)
    from coppermesh.agent.cli import main as command_line

    return command_line(list(words))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
