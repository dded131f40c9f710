"""Which of the sandbox's layers this agent may announce: those witnessed on this machine and put on by its zygotes.

Witnessing forks some twenty short-lived children in a process of its own (`exec.sandbox.witness`), a quarter of a
second. The result stays true until something it depends on changes: the kernel that runs, the user, bubblewrap, this
software. It is kept in the home under a digest of those, and `coppermesh doctor sandbox` always looks afresh.

Whether GPUs clear their memory between tenants takes most of that memory for some seconds to find out, so only
`coppermesh doctor sandbox` and the GPU lane try it; an agent announces what was seen there, for the same cards and
driver.
"""

import contextlib
import json
import os
import platform
import select
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from blake3 import blake3

from coppermesh.exec.device import ARRAY_PROGRAMS, DeviceInfo
from coppermesh.exec.sandbox import scrub
from coppermesh.exec.sandbox.layers import NAMES, SCRUB
from coppermesh.exec.sandbox.namespaces import find_bubblewrap
from coppermesh.exec.sandbox.witness import WITNESS_SECONDS, Witnessed
from coppermesh.exec.supervisor import CUDA_PLACES

KEPT = "sandbox.json"
KEPT_SCRUB = "scrub.json"
SCRUB_SECONDS = 60.0
"""Most that each half of the trial may take."""
SCRUB_COMMAND = [sys.executable, "-I", "-m", "coppermesh.exec.sandbox.scrub"]
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


def announced(
    seen: Iterable[Witnessed], put_on: Iterable[Iterable[str]], *, scrubbed: bool = False
) -> tuple[str, ...]:
    """The layers that held and that every zygote puts on, in their order: what an announcement may carry.

    `scrubbed`: every GPU on offer was seen to clear its memory (`scrub_was_seen`).
    """
    held = {entry.layer for entry in seen if entry.held}
    sets = [frozenset(layers) for layers in put_on]
    names = [name for name in NAMES if name in held and all(name in layers for layers in sets)]
    return tuple(name for name in NAMES if sets and (scrubbed if name == SCRUB else name in names))


def witness_scrub(directory: Path, devices: Sequence[DeviceInfo]) -> list[Witnessed]:
    """Try each GPU of `devices` now, and keep in `directory` what was seen. Blocks for some seconds a card."""
    tried = [(device, _try_scrub(device)) for device in _gpus(devices)]
    seen = [
        Witnessed(SCRUB, not why, f"find on {device.device} what a killed process had written", why)
        for device, why in tried
    ]
    if seen:
        _write(directory / KEPT_SCRUB, _circumstances(_gpus(devices)), seen)
    return seen


def scrub_was_seen(directory: Path, devices: Sequence[DeviceInfo]) -> bool:
    """Whether each of these GPUs, by this driver and since this machine started, was seen to clear its memory.

    False where there is no GPU: nothing is claimed of what is not there.
    """
    gpus = _gpus(devices)
    kept = _read(directory / KEPT_SCRUB, _circumstances(gpus)) if gpus else None
    return kept is not None and len(kept) == len(gpus) and all(entry.held for entry in kept)


def _gpus(devices: Sequence[DeviceInfo]) -> list[DeviceInfo]:
    return [device for device in devices if device.kind == "cuda" and ARRAY_PROGRAMS in device.features]


def _try_scrub(device: DeviceInfo) -> str:
    """Why it was not seen on this card; empty where it was. Two processes, the first ended as workers are."""
    try:
        with _half_of_scrub("fill", device) as first:
            filled = scrub.Filled(**_line_of(first))
            first.kill()
            first.wait(SCRUB_SECONDS)
        with _half_of_scrub("scan", device) as second:
            return scrub.judge(filled, scrub.Scanned(**_line_of(second)))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError) as error:
        return f"it could not be tried: {type(error).__name__}: {error}"[:200]


@contextlib.contextmanager
def _half_of_scrub(half: str, device: DeviceInfo) -> Iterator["subprocess.Popen[bytes]"]:
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LC_ALL": "C",
        "CUDA_VISIBLE_DEVICES": device.uuid or device.device.removeprefix("gpu"),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUPY_CACHE_IN_MEMORY": "1",
        "CUDA_CACHE_DISABLE": "1",
    }
    environment |= {name: os.environ[name] for name in CUDA_PLACES if name in os.environ}
    with subprocess.Popen(  # noqa: S603 - ourselves
        [*SCRUB_COMMAND, half],
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _line_of(process: "subprocess.Popen[bytes]") -> dict[str, int]:
    """The one line that it says. Raises ValueError where it says none in time."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], SCRUB_SECONDS)[0]:
        raise ValueError(f"no answer within {SCRUB_SECONDS:g} s")
    line = process.stdout.readline(1000)
    if not line:
        raise ValueError("the process that tries it ended")
    found: dict[str, int] = json.loads(line)
    return found


def _circumstances(gpus: Sequence[DeviceInfo] = ()) -> str:
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
        *((device.uuid, device.name, device.driver) for device in gpus),
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
