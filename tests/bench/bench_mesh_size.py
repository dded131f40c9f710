"""What one agent receives as the mesh grows, simulated: `python tests/bench/bench_mesh_size.py [--peers N ...]`.

Announcement bytes a peer and minute must stay bounded: above 256 agents the topic splits. All start within a minute;
what is told is of the minutes after the mesh has settled. Figures depend on the seed and on nothing of the machine;
only the time that a run took does.
"""

import argparse
import gc
import random
import sys
import time

from coppermesh.agent.simulation_mesh import MeshSimulation, Scenario
from coppermesh.agent.simulation_orders import OrderSimulation

SIZES = (100, 300, 1000, 3000)
START_SECONDS = 60.0
COLUMNS = "{:>6} {:>10} {:>11} {:>11} {:>10} {:>7} {:>8} {:>7}"


def tell(*cells: object) -> None:
    sys.stdout.write(COLUMNS.format(*map(str, cells)) + "\n")
    sys.stdout.flush()


def totals(mesh: MeshSimulation) -> list[int]:
    """What all have received: gossip messages, and bytes of gossip, of its control and of direct streams."""
    traffic = mesh.network.traffic
    return [
        sum(getattr(traffic, name)) for name in ("copies", "gossip_bytes", "control_bytes", "direct_bytes")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=int, nargs="+", default=SIZES)
    parser.add_argument("--settle", type=float, default=180.0, help="virtual seconds before what is counted")
    parser.add_argument("--watch", type=float, default=120.0, help="virtual seconds that are counted")
    parser.add_argument("--churn", type=float, default=0.0, help="share of the peers that leaves each minute")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--limit", type=int, default=256, help="announcers from which on a topic splits")
    options = parser.parse_args()
    gc.disable()
    tell("peers", "messages", "gossip kB", "control kB", "direct kB", "leaves", "largest", "took s")
    for peers in options.peers:
        scenario = Scenario(
            peers=peers,
            seed=options.seed,
            churn=options.churn,
            start_seconds=START_SECONDS,
            limit=options.limit,
        )
        rng = random.Random(scenario.seed)
        began = time.process_time()
        mesh = MeshSimulation(scenario, rng)
        OrderSimulation(mesh, rng)
        mesh.begin()
        mesh.run_for(options.settle)
        before = totals(mesh)
        mesh.run_for(options.watch)
        minutes = peers * options.watch / 60
        messages, *sizes = ((now - then) / minutes for now, then in zip(totals(mesh), before, strict=True))
        leaves: dict[str, int] = {}
        for peer in mesh.peers:
            if peer.up and peer.announces:
                leaves[peer.shards.leaf] = leaves.get(peer.shards.leaf, 0) + 1
        took = round(time.process_time() - began)
        kilobytes = [round(size / 1000) for size in sizes]
        tell(peers, round(messages), *kilobytes, len(leaves), max(leaves.values()), took)
        del mesh
        gc.collect()


if __name__ == "__main__":
    main()
