"""The command line with leases that last some seconds, so that a job of half a minute has them extended.

    python short_lease_agent.py [WHEN STEP NUMBER] agent --home ...

WHEN, STEP and NUMBER as in `crashing_agent.py`.
"""

import importlib
import sys

from coppermesh.agent import cli, leases, requester
from coppermesh.agent.dispatch_state import SECOND, DispatchLimits

CHANGED = [
    (leases, "SPARE_LIFE_US", 4 * SECOND),
    (requester, "AGENT_LIMITS", DispatchLimits(unproven_tasks=2, extend_ahead_us=2 * SECOND)),
]

if __name__ == "__main__":
    for module, name, value in CHANGED:
        assert hasattr(module, name)
        setattr(module, name, value)
    arguments = sys.argv[1:]
    if arguments[0] in ("before", "after"):
        crashing = importlib.import_module("crashing_agent")
        when, step, number, *arguments = arguments
        crashing.die_at_commit(crashing.Fault(when, int(number)), step)
    sys.exit(cli.main(arguments))
