"""What answers to a challenge say, as plain values for the client, and how two of them compare (pure)."""

from dataclasses import dataclass
from typing import Any

from coppermesh.agent.traces import contradiction, is_proof, same_class
from coppermesh.exec.trace_digests import DIGEST_BYTES, TraceDigests, first_difference
from coppermesh.p2p.envelope import Opened
from coppermesh.p2p.ids import PeerId, format_peer
from coppermesh.p2p.messages import BlobInfo
from coppermesh.p2p.records import Receipt, Trace

ROUND_SECONDS = 540.0
"""Longest that one round with the agent may wait for providers, who may be sent blobs meanwhile."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A provider's answer: its signed Trace, checked against its receipt."""

    receipt: Opened[Receipt]
    trace: Opened[Trace]
    steady_nodes: int
    """So many nodes, from the first, give equal bits in every run of one class; 0 where that is not known."""

    @property
    def provider(self) -> PeerId:
        """Who signed both."""
        return self.receipt.signer

    @property
    def steady(self) -> bool:
        """No node's bits may vary."""
        return self.steady_nodes == self.trace.record.nodes

    @property
    def contradiction(self) -> str:
        """How the Trace differs from its receipt, and why that proves nothing where it does not; empty where equal."""
        trace, receipt = self.trace.record, self.receipt.record
        problem = contradiction(trace, receipt)
        if not problem or self.proven:
            return problem
        same = same_class(trace.determinism, receipt.determinism)
        node = None if self.steady else self.steady_nodes
        return problem + excuse(same=same, node=node, steady_nodes=self.steady_nodes)

    @property
    def proven(self) -> bool:
        """Its two signatures cannot both be true."""
        trace, receipt = self.trace.record, self.receipt.record
        return bool(contradiction(trace, receipt)) and is_proof(trace, receipt, steady=self.steady)


@dataclass(frozen=True, slots=True)
class Postponed:
    """No answer yet."""

    provider: PeerId
    state: str
    """`running` or `busy`."""
    retry_us: int
    sentence: str

    def facts(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "state": self.state,
            "provider": format_peer(self.provider),
            "retry_s": self.retry_us / 1e6,
            "sentence": self.sentence,
        }


def excuse(*, same: bool, node: int | None, steady_nodes: int) -> str:
    """Why runs that part at `node` may both be honest, to follow a sentence; empty where one of them is not.

    `same`: they name one class.
    """
    if not same:
        return ", in different classes: bits may differ"
    if node is None or node < steady_nodes:
        return ""
    if not steady_nodes:
        return (
            "; it proves nothing: the program is gone here or begins with a node that varies from run to run"
        )
    return f"; it proves nothing: from node {steady_nodes} on (a kernel, or floats added in any order) bits may vary"


def compare_traces(
    one: Recorded, mine: TraceDigests, other: Recorded, theirs: TraceDigests
) -> dict[str, Any]:
    """Where two providers part, as plain values: `node` is None where all digests agree, or the chains cannot meet."""
    same = same_class(one.trace.record.determinism, other.trace.record.determinism)
    facts: dict[str, Any] = {
        "providers": [format_peer(one.provider), format_peer(other.provider)],
        "classes": [one.trace.record.determinism, other.trace.record.determinism],
        "same_class": same,
        "node": None,
        "fault": False,
    }
    try:
        node = first_difference(mine, theirs)
    except ValueError:
        # One program on both receipts has one number of nodes: no class excuses that.
        sentence = "one of them signs a wrong number of nodes; the program is gone here, so not known which"
        return {**facts, "fault": True, "sentence": sentence}
    if node is None:
        return {**facts, "sentence": "every node agrees"}
    words = excuse(same=same, node=node, steady_nodes=min(one.steady_nodes, other.steady_nodes))
    return {**facts, "node": node, "fault": not words, "sentence": f"they part at node {node}{words}"}


def blob_facts(blob: BlobInfo | None) -> dict[str, Any] | None:
    """A blob that is here; None where it is not."""
    return None if blob is None else {"root": blob.root.hex(), "size": blob.size}


def trace_facts(recorded: Recorded) -> dict[str, Any]:
    """What one provider signed."""
    trace, receipt = recorded.trace.record, recorded.receipt.record
    return {
        "provider": format_peer(recorded.provider),
        "receipt": recorded.receipt.id.hex(),
        "trace": recorded.trace.id.hex(),
        "determinism": trace.determinism,
        "receipt_determinism": receipt.determinism,
        "device_kind": receipt.device_kind,
        "first_run": trace.first_run,
        "nodes": trace.nodes,
        "steady_nodes": recorded.steady_nodes,
        "root": trace.root.hex(),
        "receipt_root": receipt.trace.hex(),
        "outputs": trace.outputs.hex(),
        "receipt_outputs": receipt.outputs.hex(),
        "chain": {"root": trace.chain.hex(), "size": DIGEST_BYTES * trace.nodes},
        "contradiction": recorded.contradiction,
        "proven": recorded.proven,
    }
