"""Traces: what a provider signs about every node of a task, and what that proves (pure).

A Trace names a receipt, the class of the run that recorded it, and the end of a chain of digests
(`exec.trace_digests`); the digests travel beside it. Whoever holds both computes the end from the receipt, so the
signature covers each digest. Within one determinism class a difference is somebody's fault: a provider whose Trace
says another root or other outputs than its own receipt has signed the proof itself; where two providers part, their
Traces show the node, and computing that one node shows who erred. Between classes bits may differ, and from a node on
that varies from run to run by itself (`trace_digests.first_unsteady`: a kernel, say) in one class, too.
"""

from typing import Final

from coppermesh.exec.trace_digests import DIGEST_BYTES, NOT_RECORDED, TraceDigests
from coppermesh.p2p.blobs import digest_of, roots_digest
from coppermesh.p2p.envelope import Opened, open_record
from coppermesh.p2p.errors import RemoteProtocolError
from coppermesh.p2p.messages import ChallengeReply
from coppermesh.p2p.records import Receipt, Trace

NODE_DIGESTS: Final = "node-digests"
"""Feature of a provider that records digests; an order that names it asks for them with every task."""
CHALLENGE_FOR_US: Final = 24 * 3600 * 1_000_000
"""For so long after its run a receipt can be challenged. Blobs may be gone sooner; the requester then sends them."""


def build_trace(
    receipt: Opened[Receipt],
    digests: TraceDigests,
    outputs: list[bytes],
    determinism: str,
    *,
    first_run: bool,
    now_us: int,
) -> Trace:
    """The provider's Trace of a run that gave the blobs `outputs`. Long chains take some tenths of a second."""
    record = receipt.record
    return Trace(
        version=1,
        mesh=record.mesh,
        provider=record.provider,
        requester=record.requester,
        receipt=receipt.id,
        task_id=record.task_id,
        program=record.program,
        determinism=determinism,
        nodes=len(digests.nodes),
        root=digests.root(record.program, record.inputs),
        chain=digest_of(digests.to_bytes()),
        outputs=roots_digest(outputs),
        first_run=first_run,
        issued_us=now_us,
    )


def open_recorded(reply: ChallengeReply, receipt: Opened[Receipt]) -> Opened[Trace]:
    """The Trace in the answer to a challenge, checked to be about `receipt`; the chain too where it came along.

    Raises RemoteProtocolError: not signed by the receipt's provider, about something else, or a chain that does not
    lead to its root.
    """
    if reply.trace is None:
        raise RemoteProtocolError("Trace: recorded, but there is none in the answer")
    trace = open_record(Trace, reply.trace, signer=receipt.signer)
    check_trace(trace.record, receipt)
    if reply.chain is not None:
        check_chain(trace.record, receipt.record, reply.chain)
    return trace


def check_trace(trace: Trace, receipt: Opened[Receipt]) -> None:
    """Is it about this receipt? Raises RemoteProtocolError where not."""
    record = receipt.record
    if trace.receipt != receipt.id:
        raise RemoteProtocolError("Trace: it is for another receipt")
    for field in ("mesh", "requester", "task_id", "program"):
        if getattr(trace, field) != getattr(record, field):
            raise RemoteProtocolError(f"Trace: names another {field} than its receipt")


def check_chain(trace: Trace, receipt: Receipt, data: bytes) -> TraceDigests:
    """The digests, which must be as many as `trace` says and lead from the receipt's program and inputs to its root.

    Raises RemoteProtocolError. Takes about a microsecond a node.
    """
    if len(data) != DIGEST_BYTES * trace.nodes:
        raise RemoteProtocolError(f"Trace: a chain of {len(data)} bytes for {trace.nodes} nodes")
    if digest_of(data) != trace.chain:
        raise RemoteProtocolError("Trace: the digests are not the blob that it names")
    digests = TraceDigests.from_bytes(data)
    if digests.root(receipt.program, receipt.inputs) != trace.root:
        raise RemoteProtocolError("Trace: the chain does not lead to its root")
    return digests


def contradiction(trace: Trace, receipt: Receipt) -> str:
    """How a provider's Trace differs from its receipt, as a sentence; empty where it does not. `is_proof` weighs it."""
    if trace.first_run and receipt.trace == NOT_RECORDED:
        return "its trace says that the first run recorded it, its receipt that nothing was recorded"
    if trace.first_run and trace.determinism != receipt.determinism:
        return "its trace says that it is of the first run, and names another class than its receipt"
    if receipt.trace not in (NOT_RECORDED, trace.root):
        return "its receipt has another root over the nodes' digests than its trace"
    if trace.outputs != receipt.outputs:
        return "its receipt has other outputs than the run that its trace tells of"
    return ""


def is_proof(trace: Trace, receipt: Receipt, *, steady: bool) -> bool:
    """Is a difference between the two somebody's fault? `steady`: no node's bits may vary from run to run.

    What a Trace says of the very run that the receipt bills must fit in any case.
    """
    return trace.first_run or (steady and same_class(trace.determinism, receipt.determinism))


def same_class(one: str, other: str) -> bool:
    """Do these labels promise equal bits? A device that could not name its class is in none."""
    return bool(one) and one == other
