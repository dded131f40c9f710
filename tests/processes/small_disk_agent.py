"""The command line with the agent's home on a small disk of its own: a tmpfs in a mount namespace that ends with it.

    python small_disk_agent.py MEBIBYTES agent --home DIR ...

From outside, the disk is DIR below the process's `root` in /proc.
"""

import os
import sys

_MOUNT = 'mount -t tmpfs -o "size=$1m,mode=0700" tmpfs "$2" && shift 2 && exec "$@"'


def command(mebibytes: str, home: str, *rest: str) -> list[str]:
    """What runs `rest` with a disk of so many MiB mounted on `home`."""
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh", mebibytes, home, *rest]


if __name__ == "__main__":
    home = sys.argv[sys.argv.index("--home") + 1]
    line = command(sys.argv[1], home, sys.executable, "-m", "coppermesh.agent.cli", *sys.argv[2:])
    os.execvp(line[0], line)  # noqa: S606 - in our place, so that the agent has the pid that the test knows
