"""Starting this home's agent for a script that found none: requester-only, in a session of its own.

It outlives the script, so that receipts are countersigned, and ends by itself after `IDLE_EXIT_SECONDS` without use.
"""

import os
import subprocess
import sys
import time
from typing import BinaryIO

from coppermesh.agent.config import ConfigError
from coppermesh.agent.home import Home, HomeError
from coppermesh.agent.local_link import AgentUnavailable, socket_alive
from coppermesh.p2p.errors import MeshError

START_SECONDS = 20.0
IDLE_EXIT_SECONDS = 600
_POLL_SECONDS = 0.02
_LAST_WORDS_BYTES = 64 * 1024
MAX_LOG_BYTES = 8 * 1024 * 1024
_LOCKED_EXIT = 4
_CONFIG_EXIT = 5
"""Exit codes of an agent; `coppermesh --help` lists them."""
_started: list[subprocess.Popen[bytes]] = []
"""Agents this process started; kept so that they can outlive it without a warning about an abandoned child."""


def _open_log(home: Home) -> BinaryIO:
    """The background agent's log, to append to; a long one is set aside first, over the one set aside before."""
    try:
        if home.log_path.exists() and home.log_path.stat().st_size > MAX_LOG_BYTES:
            home.log_path.replace(home.log_path.with_suffix(".log.1"))
        return home.log_path.open("ab")
    except OSError as error:
        raise HomeError(
            f"home {home.path}: {home.log_path.name} cannot be written: {error.strerror}"
        ) from error


def start_agent(home: Home) -> None:
    """Start a requester-only agent of its own session, so that it outlives this script; wait until it listens."""
    home.prepare()
    holder = home.lock_holder()
    if holder is not None and holder.seed:
        raise holder
    command = [sys.executable, "-m", "coppermesh.agent.cli", "agent", "--home", str(home.path)]
    command += ["--requester-only", "--idle-exit", str(IDLE_EXIT_SECONDS)]
    with _open_log(home) as log:
        begin = log.tell()
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            env=dict(os.environ),
        )
    _started.append(process)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if socket_alive(home.socket_path):
            return
        code = process.poll()
        # The home is in use: another script has started its agent at the same moment, and that one is on its way.
        if code is not None and code != _LOCKED_EXIT:
            raise _why_ended(home, begin, code)
        time.sleep(_POLL_SECONDS)
    if process.poll() == _LOCKED_EXIT:
        if (holder := home.lock_holder()) is not None:
            raise holder
        raise _why_ended(home, begin, _LOCKED_EXIT)
    raise AgentUnavailable(
        f"the agent did not listen within {START_SECONDS:.0f} s; its log is {home.log_path}"
    )


def _why_ended(home: Home, begin: int, code: int) -> MeshError:
    """What an agent said last before it ended, as the error that it ended with."""
    with home.log_path.open("rb") as log:
        log.seek(max(begin, log.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
        lines = log.read(_LAST_WORDS_BYTES).decode(errors="replace").splitlines()
    own = [line.removeprefix("coppermesh: ") for line in lines if line.startswith("coppermesh: ")]
    if not own:
        return AgentUnavailable(f"the agent ended with exit code {code}; its log is {home.log_path}")
    return ConfigError(own[-1]) if code == _CONFIG_EXIT else AgentUnavailable(own[-1])
