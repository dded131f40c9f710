"""What one agent receives as the mesh grows, simulated: `python tests/bench/bench_mesh_size.py [--peers N ...]`.

Announcement bytes a peer and minute must stay bounded: above 256 agents the topic splits. Figures depend on the seed
and on nothing of the machine; only the time that a run took does.
"""

import argparse
import gc
import random
import sys
import time

from coppermesh.agent.simulation_mesh import Scenario
from coppermesh.agent.simulation_report import simulate

SIZES = (100, 300, 1000, 3000)
COLUMNS = "{:>6} {:>9} {:>11} {:>10} {:>10} {:>7} {:>8} {:>9} {:>8} {:>7}"


def tell(*cells: object) -> None:
    sys.stdout.write(COLUMNS.format(*map(str, cells)) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=int, nargs="+", default=SIZES)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--churn", type=float, default=0.0, help="share of the peers that leaves each minute")
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    gc.disable()
    tell(
        "peers",
        "messages",
        "gossip kB",
        "control kB",
        "direct kB",
        "leaves",
        "largest",
        "converged",
        "stale %",
        "took s",
    )
    for peers in options.peers:
        scenario = Scenario(peers=peers, seed=options.seed, minutes=options.minutes, churn=options.churn)
        began = time.monotonic()
        facts = simulate(scenario, random.Random(scenario.seed))
        per, shards = facts["per_peer_and_minute"], facts["shards"]
        tell(
            peers,
            round(per["gossip_messages"]),
            round(per["gossip_bytes"] / 1000),
            round(per["control_bytes"] / 1000),
            round(per["direct_bytes"] / 1000),
            shards["leaves"],
            shards["largest"],
            str(facts["convergence_s"]),
            f"{100 * facts['stale_share']:.2f}",
            round(time.monotonic() - began),
        )
        gc.collect()


if __name__ == "__main__":
    main()
