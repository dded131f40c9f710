"""Landlock as this kernel has it, and asked for as an older one would be: less is denied, and nothing breaks."""

import subprocess
import sys

import pytest

from coppermesh.exec.sandbox import landlock
from coppermesh.exec.sandbox.landlock import CHANGE, DEVICE, READ, RUN, TRUNCATE, handled, not_denied

needs_landlock = pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")

PROGRAM = """
import os, socket, sys
from coppermesh.exec.sandbox import landlock
from coppermesh.exec.sandbox.landlock import CHANGE, READ, Rule
version, directory = int(sys.argv[1]), sys.argv[2]
landlock.abi = lambda: version
listener = socket.create_server(("127.0.0.1", 0))
rules = [Rule(directory + "/read", READ), Rule(directory + "/write", CHANGE), Rule("/missing", READ)]
assert landlock.restrict(rules) == version

def tried(act):
    try:
        act()
        return "1"
    except PermissionError:
        return "0"

print("".join([
    tried(lambda: open(directory + "/read/file").read()),
    tried(lambda: open(directory + "/read/file", "r+")),
    tried(lambda: open(directory + "/secret").read()),
    tried(lambda: os.listdir(directory)),
    tried(lambda: open(directory + "/write/new", "w").write("x")),
    tried(lambda: os.rename(directory + "/write/new", directory + "/write/newer")),
    tried(lambda: os.truncate(directory + "/secret", 0)),
    tried(lambda: socket.socket().connect(listener.getsockname())),
    tried(lambda: os.kill(os.getppid(), 0)),
]))
"""


def test_an_unknown_newer_version_asks_for_what_is_known():
    assert handled(0) == landlock.Handled(0, 0, 0)
    assert handled(99) == handled(8)
    for version in range(1, 9):
        older, newer = handled(version), handled(version + 1)
        assert older.files & ~newer.files == 0, "rights are only added"
    assert handled(1).files & (CHANGE | READ | RUN | DEVICE) != CHANGE
    assert not handled(2).files & TRUNCATE
    assert handled(3).files & TRUNCATE


def test_what_an_older_version_does_not_deny_is_told():
    assert not_denied(6) == not_denied(99) == not_denied(0) == ""
    assert not_denied(5) == "signals to processes outside and abstract sockets (since Linux 6.12)"
    assert not_denied(1).startswith("truncating files (since Linux 6.2), TCP (since Linux 6.7), ")
    for version in range(1, 8):
        older, newer = handled(version), handled(6)
        assert bool(not_denied(version)) == (older != newer and version < 6)


@needs_landlock
@pytest.mark.parametrize("version", range(1, max(2, landlock.abi() + 1)))
def test_each_version_denies_what_it_knows_and_leaves_what_was_granted(version, tmp_path):
    for name in ("read", "write"):
        (tmp_path / name).mkdir()
    (tmp_path / "read" / "file").write_text("x")
    (tmp_path / "secret").write_text("x")
    command = [sys.executable, "-I", "-c", PROGRAM, str(version), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    truncate, tcp, signal = ("0" if version >= least else "1" for least in (3, 4, 6))
    assert done.stdout.strip() == f"100011{truncate}{tcp}{signal}"


@needs_landlock
def test_without_landlock_nothing_is_denied_and_that_is_said():
    code = """
import os
from coppermesh.exec.sandbox import landlock
landlock.abi = lambda: 0
print(landlock.restrict(), len(os.listdir("/")) > 0)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.split() == ["0", "True"]
