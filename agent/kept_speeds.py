"""The speeds that were measured here, kept in a file of the home: a restart does not make every provider a stranger.

What is lost in a crash is the last half minute. A file that is damaged is no reason not to start: it is measured anew.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

import trio

from coppermesh.agent.speeds import MAX_KEPT, OwnSpeeds

KEEP_SECONDS = 30.0
MAX_BYTES = 512 * MAX_KEPT
"""More than as many entries take."""

_log = logging.getLogger(__name__)


def load_speeds(path: Path) -> OwnSpeeds:
    """What was measured in earlier runs; nothing where there is no file, or none that can be read."""
    speeds = OwnSpeeds()
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("it is too long")
        rows: Any = json.loads(path.read_bytes())
        speeds.restore(rows)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("the measured speeds in %s cannot be read and are measured anew: %s", path, error)
    return speeds


async def keep_speeds(speeds: OwnSpeeds, path: Path) -> None:
    """Write what is new now and then, and when cancelled."""
    try:
        while True:
            await trio.sleep(KEEP_SECONDS)
            if speeds.changed:
                await trio.to_thread.run_sync(_write, speeds.rows(), path)
    finally:
        if speeds.changed:
            _write(speeds.rows(), path)


def _write(rows: list[list[object]], path: Path) -> None:
    """In one step: the file is the old or the new one. A disk that is full costs only that."""
    beside = path.with_name(f"{path.name}.new")
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump(rows, file)
        beside.replace(path)
    except OSError as error:
        _log.warning("the measured speeds cannot be kept in %s: %s", path, error.strerror)
