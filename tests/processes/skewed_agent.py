"""The command line on a machine whose clock is wrong: python skewed_agent.py SECONDS agent --home ..."""

import sys
import time

AHEAD_NS = int(sys.argv[1]) * 1_000_000_000
_read = time.time_ns
time.time_ns = lambda: _read() + AHEAD_NS  # what `agent.clock` reads

from coppermesh.agent import cli  # noqa: E402 - behind the clock

if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[2:]))
