"""Limits by cgroup v2, where this agent was given a subtree of its own to manage (systemd's `Delegate=`).

The one mechanism that counts all of a process's memory: private, shared, and files in memory that nobody maps. Each
worker gets a group with `memory.max`, no swap, and `pids.max`; when the kernel ends one for its memory, `memory.events`
says so. Nothing here needs root: the subtree must be writable for this user, and have the controllers `memory` and
`pids`. Where it is not so, `find` says why, and the other limits have to do.

A group that has processes of its own cannot hand controllers on, so this process moves into a child group, `agent`,
first. That is done only where this group holds nobody but this process and its children: else they are somebody else's.
"""

import os
from dataclasses import dataclass
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
CONTROLLERS = ("memory", "pids")


class NoCgroups(Exception):
    """There is nothing here to manage. The text says why, and what would change it."""


@dataclass(frozen=True)
class WorkerGroup:
    """The group of one worker."""

    path: Path

    def add(self, pid: int) -> None:
        """Put a process in. What it had before stays charged to where it was. Raises OSError."""
        (self.path / "cgroup.procs").write_text(f"{pid}\n")

    def memory_kills(self) -> int:
        """How often the kernel ended something in it for want of memory."""
        return _event(self.path / "memory.events", "oom_kill")

    def peak_bytes(self) -> int | None:
        """The most memory it ever held (Linux 5.19), or None."""
        try:
            return int((self.path / "memory.peak").read_text())
        except (OSError, ValueError):
            return None

    def remove(self) -> bool:
        """Remove it; False while something is still in it."""
        try:
            self.path.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


class Cgroups:
    """The subtree that this process manages."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made = 0

    @classmethod
    def find(cls, mount: Path = MOUNT, membership: Path = Path("/proc/self/cgroup")) -> "Cgroups":
        """Take over the subtree that this process is in. Raises NoCgroups where it may not, or there is none."""
        if not (mount / "cgroup.controllers").exists():
            raise NoCgroups("no cgroup v2 at /sys/fs/cgroup (a mixed or older set-up): nothing to delegate")
        root = mount / _own_group(membership).lstrip("/")
        try:
            present = (root / "cgroup.controllers").read_text().split()
        except OSError as error:
            raise NoCgroups(f"this process's cgroup cannot be read: {error.strerror}") from error
        missing = [name for name in CONTROLLERS if name not in present]
        if missing:
            raise NoCgroups(
                f"no cgroup controller {' and '.join(missing)} here: start the agent as a service with Delegate=yes"
            )
        if not all(
            os.access(root / name, os.W_OK) for name in ("", "cgroup.procs", "cgroup.subtree_control")
        ):
            raise NoCgroups(
                "this process's cgroup is not delegated: start the agent as a service with Delegate=yes"
            )
        try:
            _make_room(root)
            (root / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in CONTROLLERS))
        except OSError as error:
            raise NoCgroups(f"this process's cgroup cannot be divided: {error.strerror}") from error
        return cls(root)

    def make(self, memory_bytes: int, threads: int) -> WorkerGroup:
        """A group for one worker. Raises OSError."""
        self._made += 1
        path = self.root / f"worker-{os.getpid()}-{self._made}"
        path.mkdir(mode=0o755)
        try:
            (path / "memory.max").write_text(f"{memory_bytes}\n")
            (path / "pids.max").write_text(f"{threads}\n")
            swap = path / "memory.swap.max"
            if swap.exists():  # not where the kernel counts no swap
                swap.write_text("0\n")
        except OSError:
            path.rmdir()
            raise
        return WorkerGroup(path)


def _own_group(membership: Path) -> str:
    try:
        lines = membership.read_text().splitlines()
    except OSError as error:
        raise NoCgroups(f"/proc/self/cgroup cannot be read: {error.strerror}") from error
    for line in lines:
        if line.startswith("0::"):
            return line[3:]
    raise NoCgroups("this process is in no cgroup of version 2")


def _make_room(root: Path) -> None:
    """Leave the group, so that it may hand controllers on. Raises NoCgroups where others are in it."""
    inside = [int(line) for line in (root / "cgroup.procs").read_text().split()]
    strangers = [pid for pid in inside if pid != os.getpid()]
    if strangers:
        raise NoCgroups(
            f"process {strangers[0]} shares this process's cgroup: start the agent as a service of its own"
        )
    leaf = root / "agent"
    leaf.mkdir(exist_ok=True)
    (leaf / "cgroup.procs").write_text(f"{os.getpid()}\n")


def _event(path: Path, name: str) -> int:
    try:
        pairs = [line.split() for line in path.read_text().splitlines()]
        return sum(int(value) for key, value in pairs if key == name)
    except (OSError, ValueError):
        return 0
