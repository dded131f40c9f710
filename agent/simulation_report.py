"""Running a simulation and telling what came of it (pure).

`simulate` returns plain facts, the same for the same scenario on every machine: nothing in them depends on how long
anything took, or on the order of a set.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from coppermesh.agent.simulation import uncollected
from coppermesh.agent.simulation_mesh import (
    GONE_SECONDS,
    GRACE_SECONDS,
    MESH,
    MeshSimulation,
    Scenario,
)
from coppermesh.agent.simulation_orders import OrderSimulation
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.shards import topic_of

if TYPE_CHECKING:
    from random import Random

CONVERGED = 0.001
"""Stale entries of all, below which the mesh knows itself."""
FAST_LOOKS = 180
SLOW_SECONDS = 10.0


class Views:
    """Looks at everybody's book and compares it with what is so."""

    def __init__(self, mesh: MeshSimulation) -> None:
        self._mesh = mesh
        self.expected = self.missing = self.outdated = self.gone = self.looks = 0
        self.converged_s: float | None = None

    def look(self) -> float:
        """The share of stale entries now; adds to the totals."""
        mesh, now = self._mesh, self._mesh.heap.now
        announcers: dict[str, list[tuple[PeerId, int]]] = {}
        for peer in mesh.peers:
            if peer.up and not peer.liar and peer.said is not None and now - peer.said_since > GRACE_SECONDS:
                settled = now - peer.content_since > GRACE_SECONDS
                told = peer.peer, peer.content_sequence if settled else 0
                announcers.setdefault(topic_of(MESH, peer.shards.leaf), []).append(told)
        away = [peer.peer for peer in mesh.peers if not peer.up and now - peer.since > GONE_SECONDS]
        expected = missing = outdated = gone = 0
        for viewer in mesh.peers:
            if viewer.up and not viewer.liar and now - viewer.since > GRACE_SECONDS:
                get, me = viewer.book.get, viewer.peer
                for topic in mesh.network.topics_of(viewer.index):
                    for author, sequence in announcers.get(topic, ()):
                        held = get(author)
                        expected += 1
                        if held is None:
                            missing += author != me
                        elif held.record.sequence < sequence:
                            outdated += author != me
                gone += sum(viewer.book.holds(peer, mesh.heap.now_us) for peer in away)
        self.expected += expected
        self.missing += missing
        self.outdated += outdated
        self.gone += gone
        self.looks += 1
        share = (missing + outdated + gone) / max(1, expected + gone)
        if self.converged_s is None and expected and share <= CONVERGED:
            self.converged_s = max(0.0, now - mesh.scenario.start_seconds)
        return share

    @property
    def stale_share(self) -> float:
        """Over all looks since the mesh converged."""
        return (self.missing + self.outdated + self.gone) / max(1, self.expected + self.gone)

    def forget(self) -> None:
        """Count from here on."""
        self.expected = self.missing = self.outdated = self.gone = self.looks = 0


def simulate(
    scenario: Scenario, rng: "Random", progress: Callable[[float], None] | None = None
) -> dict[str, Any]:
    """Run a scenario to its end. `progress` is called with the virtual seconds now and then."""
    mesh = MeshSimulation(scenario, rng)
    orders = OrderSimulation(mesh, rng)
    views = Views(mesh)
    mesh.begin()
    end_s = 60.0 * scenario.minutes
    with uncollected():
        mesh.run_for(min(scenario.start_seconds, end_s))
        while mesh.heap.now < end_s:
            fast = views.converged_s is None and views.looks < FAST_LOOKS
            mesh.run_for(min(1.0 if fast else SLOW_SECONDS, end_s - mesh.heap.now))
            before = views.converged_s
            views.look()
            if before is None and views.converged_s is not None:
                views.forget()
            if progress is not None:
                progress(mesh.heap.now)
    return _facts(scenario, mesh, orders, views)


def _facts(scenario: Scenario, mesh: MeshSimulation, orders: OrderSimulation, views: Views) -> dict[str, Any]:
    honest = [peer for peer in mesh.peers if not peer.liar]
    traffic = mesh.network.traffic
    minutes, count = scenario.minutes, len(honest)
    leaves: dict[str, int] = {}
    for peer in mesh.peers:
        if peer.up and peer.announces:
            leaves[peer.shards.leaf] = leaves.get(peer.shards.leaf, 0) + 1
    placed = orders.counts

    def per_minute(received: list[int]) -> float:
        return round(sum(received[peer.index] for peer in honest) / count / minutes, 1)

    return {
        "scenario": asdict(scenario),
        "convergence_s": views.converged_s,
        "stale_share": round(views.stale_share, 6),
        "stale": {
            "missing": views.missing,
            "outdated": views.outdated,
            "gone": views.gone,
            "of": views.expected,
        },
        "per_peer_and_minute": {
            "gossip_messages": per_minute(traffic.copies),
            "gossip_bytes": per_minute(traffic.gossip_bytes),
            "control_messages": per_minute(traffic.control),
            "control_bytes": per_minute(traffic.control_bytes),
            "direct_messages": per_minute(traffic.direct),
            "direct_bytes": per_minute(traffic.direct_bytes),
        },
        "announcements_published": mesh.published,
        "lies_published": mesh.forged,
        "cut_off": {"liars": mesh.liars_cut, "honest": mesh.honest_cut},
        "shards": {
            "leaves": len(leaves),
            "largest": max(leaves.values(), default=0),
            "moves": mesh.splits,
        },
        "orders": {
            "placed": placed.placed,
            "possible": placed.possible,
            "matched": placed.matched,
            "matched_of_possible": round(placed.matched_possible / max(1, placed.possible), 4),
            "declines": dict(sorted(placed.declines.items())),
        },
        "events": mesh.heap.events,
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """The facts for a person."""
    per, orders, shards = facts["per_peer_and_minute"], facts["orders"], facts["shards"]
    found = facts["convergence_s"]
    stale = facts["stale"]
    rows = {
        "converged after": "not at all" if found is None else f"{found:.0f} s from the last start",
        "stale entries": f"{100 * facts['stale_share']:.3f} % of views (missing {stale['missing']}, "
        f"outdated {stale['outdated']}, gone {stale['gone']})",
        "gossip": f"{per['gossip_messages']:.0f} messages, {per['gossip_bytes'] / 1000:.0f} kB a peer and minute",
        "gossip control": f"{per['control_messages']:.0f} messages, {per['control_bytes'] / 1000:.0f} kB",
        "direct": f"{per['direct_messages']:.0f} messages, {per['direct_bytes'] / 1000:.0f} kB",
        "shards": f"{shards['leaves']} leaves, the largest of {shards['largest']}; {shards['moves']} moves",
        "cut off": f"liars {facts['cut_off']['liars']} times, honest peers {facts['cut_off']['honest']} times",
        "orders": f"{orders['placed']} placed, {orders['possible']} possible, {orders['matched']} matched"
        f" ({100 * orders['matched_of_possible']:.1f} % of the possible)",
    }
    return [f"{name:<20} {text}" for name, text in rows.items()]
