"""Which of the sandbox's layers this agent may announce: those witnessed on this machine and put on by its zygotes.

Witnessing forks some twenty short-lived children in a process of its own (`exec.sandbox.witness`), a quarter of a
second. The result stays true until something it depends on changes: the kernel that runs, the user, bubblewrap, this
software. It is kept in the home under a digest of those, and `coppermesh doctor sandbox` always looks afresh.
"""

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from blake3 import blake3

from coppermesh.exec.sandbox.layers import NAMES
from coppermesh.exec.sandbox.namespaces import find_bubblewrap
from coppermesh.exec.sandbox.witness import WITNESS_SECONDS, Witnessed

KEPT = "sandbox.json"
MAX_KEPT_BYTES = 64 * 1024


def witness() -> list[Witnessed]:
    """Try every layer now. Empty where the helper fails. Blocks for some 0.3 s, at most `WITNESS_SECONDS`."""
    command = [sys.executable, "-I", "-m", "coppermesh.exec.sandbox.witness"]
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"}
    try:
        done = subprocess.run(  # noqa: S603 - ourselves
            command,
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=WITNESS_SECONDS,
            check=True,
        )
        return [Witnessed(**entry) for entry in json.loads(done.stdout)]
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return []


def witness_once(directory: Path) -> list[Witnessed]:
    """What was witnessed since this machine started, from `directory` where it is kept, else anew. Blocks."""
    key = _circumstances()
    kept = _read(directory / KEPT, key)
    if kept is not None:
        return kept
    seen = witness()
    if seen:
        _write(directory / KEPT, key, seen)
    return seen


def announced(seen: Iterable[Witnessed], put_on: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """The layers that held and that every zygote puts on, in their order: what an announcement may carry."""
    held = {entry.layer for entry in seen if entry.held}
    sets = [frozenset(layers) for layers in put_on]
    return tuple(name for name in NAMES if sets and name in held and all(name in layers for layers in sets))


def _circumstances() -> str:
    """A digest of what the layers depend on."""
    try:
        software = version("coppermesh")
    except PackageNotFoundError:
        software = "unknown"
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    facts = [
        boot,
        platform.release(),
        platform.machine(),
        os.geteuid(),
        find_bubblewrap(),
        software,
        sys.executable,
    ]
    return blake3(json.dumps(facts).encode()).hexdigest()


def _read(path: Path, key: str) -> list[Witnessed] | None:
    try:
        with open(path, "rb") as file:
            kept = json.loads(file.read(MAX_KEPT_BYTES))
        if kept["key"] != key:
            return None
        return [Witnessed(**entry) for entry in kept["layers"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write(path: Path, key: str, seen: list[Witnessed]) -> None:
    """Best effort: without it the next start looks again."""
    text = json.dumps({"key": key, "layers": [asdict(entry) for entry in seen]})
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        descriptor = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        temporary.replace(path)
