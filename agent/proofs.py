"""Files that prove something, checked from their bytes alone: evidence against a peer, a receipt's place (pure)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from coppermesh.agent.receipts import (
    InvalidReceipt,
    check_countersignature,
    is_broken_chain,
    is_equivocation,
    verify_receipt_file,
)
from coppermesh.agent.statements import check_net, is_double_statement, receipt_leaf
from coppermesh.agent.traces import check_trace, contradiction
from coppermesh.p2p.envelope import Opened, open_record
from coppermesh.p2p.errors import MeshError, RemoteProtocolError
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.merkle import root_from_path
from coppermesh.p2p.proof_files import decode_evidence, decode_place
from coppermesh.p2p.receipt_file import encode_receipt_file
from coppermesh.p2p.records import Countersignature, Receipt, Record, SignedRecord, Task, Trace
from coppermesh.p2p.settlement_records import Statement

R = TypeVar("R", bound=Record)
Records = Sequence[SignedRecord]


class InvalidProof(MeshError):
    """The file proves nothing, or not what it says; the text says why."""


@dataclass(frozen=True, slots=True)
class Proven:
    """What a file proves."""

    kind: str
    peer: PeerId
    """Against whom, or for a place whose receipt it is."""
    sentence: str


def verify_evidence(data: bytes) -> Proven:
    """Check a file of evidence: all signatures, and that the records contradict each other as its kind says.

    Raises InvalidProof, also for kinds that no file can prove by itself (a dispute is one side's word).
    """
    try:
        file = decode_evidence(data)
        return prove(file.kind, PeerId(file.peer), file.records)
    except RemoteProtocolError as error:
        raise InvalidProof(f"not a valid proof: {error}") from error


def prove(kind: str, peer: PeerId, records: Records) -> Proven:
    """The same for records at hand. Raises InvalidProof, RemoteProtocolError."""
    check = _CHECKS.get(kind)
    if check is None:
        raise InvalidProof(f"{kind} cannot be proven by a file alone: it rests on what one side saw")
    sentence = check(peer, records)
    if not sentence:
        raise InvalidProof(f"the records do not show {kind} by ..{peer.hex()[-8:]}")
    return Proven(kind, peer, sentence)


def verify_place(data: bytes) -> tuple[Proven, Opened[Receipt], Opened[Statement], int]:
    """Check a receipt's place under a statement: all four signatures, the way to the root, and the arithmetic.

    Returns what is proven, receipt, statement, and the amount that the receipt adds. Raises InvalidProof.
    """
    try:
        file = decode_place(data)
        verified = verify_receipt_file(encode_receipt_file(file.receipt, file.countersignature))
        assert verified.countersignature is not None
        statement = both_signed(file.proposed, file.agreed)
        check_net(statement.record)
    except (InvalidReceipt, MeshError) as error:
        raise InvalidProof(f"not a valid proof: {error}") from error
    receipt, record = verified.receipt, statement.record
    sides = {receipt.record.provider, receipt.record.requester}
    here = (receipt.record.mesh, receipt.record.unit)
    if sides != {record.proposer, record.other} or here != (record.mesh, record.unit):
        raise InvalidProof("the receipt is between other peers, of another mesh or unit than the statement")
    leaf = receipt_leaf(receipt.id, verified.countersignature.id)
    if root_from_path(leaf, file.index, record.receipts, file.path) != record.root:
        raise InvalidProof("the receipt is not under the statement's root")
    amount = receipt.record.amount if verified.accepted else 0
    sentence = (
        f"receipt {file.index + 1} of {record.receipts} under statement {record.number} in {record.unit}"
    )
    return Proven("place", PeerId(receipt.record.provider), sentence), receipt, statement, amount


def both_signed(proposed: SignedRecord, agreed: SignedRecord) -> Opened[Statement]:
    """A statement with the signatures of both its sides. Raises RemoteProtocolError where one is missing or wrong."""
    statement = open_record(Statement, proposed)
    second = open_record(Statement, agreed)
    record = statement.record
    if (statement.signer, second.signer) != (record.proposer, record.other) or second.id != statement.id:
        raise RemoteProtocolError("Statement: not signed by both its sides")
    return statement


def _two(kind: type[R], peer: PeerId, records: Records) -> tuple[Opened[R], Opened[R]]:
    if len(records) != 2:
        raise InvalidProof(f"want two records, got {len(records)}")
    return open_record(kind, records[0], signer=peer), open_record(kind, records[1], signer=peer)


def _equivocation(peer: PeerId, records: Records) -> str:
    one, other = _two(Receipt, peer, records)
    place = f"place {one.record.sequence} of lane {one.record.lane.hex()[:8]}"
    return f"signed two receipts for {place}" if is_equivocation(one, other) else ""


def _broken_chain(peer: PeerId, records: Records) -> str:
    before, after = _two(Receipt, peer, records)
    place = f"receipt {after.record.sequence} of lane {after.record.lane.hex()[:8]}"
    return (
        f"signed {place}, which does not follow from the one before" if is_broken_chain(before, after) else ""
    )


def _double_task(peer: PeerId, records: Records) -> str:
    one, other = _two(Task, peer, records)
    same = (one.record.lease, one.record.number) == (other.record.lease, other.record.number)
    text = f"signed two tasks number {one.record.number} under one lease"
    return text if same and one.id != other.id else ""


def _double_countersignature(peer: PeerId, records: Records) -> str:
    one, other = _two(Countersignature, peer, records)
    same = one.record.receipt == other.record.receipt and one.id != other.id
    return f"answered receipt {one.record.receipt.hex()[:12]} in two ways" if same else ""


def _double_statement(peer: PeerId, records: Records) -> str:
    one, other = _two(Statement, peer, records)
    text = f"signed two statements number {one.record.number} of the other side's"
    return text if is_double_statement(one, other) else ""


def _wrong_sum(peer: PeerId, records: Records) -> str:
    """A receipt and its countersignature, then the neighbours' countersignatures and the next receipt."""
    if len(records) < 2:
        raise InvalidProof("want a receipt and its countersignature")
    receipt = open_record(Receipt, records[0])
    answer = open_record(Countersignature, records[1], signer=peer)
    if answer.record.receipt != receipt.id or receipt.record.requester != peer:
        return ""
    text = f"countersigned receipt {receipt.id.hex()[:12]} with a sum that does not add up"
    if _contradicts(answer.record, receipt, 0 if receipt.record.sequence == 0 else None):
        return text
    neighbours, following = _neighbours(peer, records[2:])
    for found in neighbours:
        if found.lane != answer.record.lane or found.mesh != answer.record.mesh:
            continue
        if found.sequence == answer.record.sequence - 1 and _contradicts(
            answer.record, receipt, found.accepted_cumulative
        ):
            return text
        next_up = following.get(found.receipt)
        after = found.sequence == answer.record.sequence + 1 and next_up is not None
        if after and _contradicts(found, next_up, answer.record.accepted_cumulative):
            return text
    return ""


def _neighbours(
    peer: PeerId, records: Records
) -> tuple[list[Countersignature], dict[bytes, Opened[Receipt]]]:
    answers: list[Countersignature] = []
    receipts: dict[bytes, Opened[Receipt]] = {}
    for signed in records:
        if signed.signer == peer:
            answers.append(open_record(Countersignature, signed, signer=peer).record)
        else:
            receipt = open_record(Receipt, signed)
            receipts[receipt.id] = receipt
    return answers, receipts


def _contradicts(answer: Countersignature, receipt: Opened[Receipt] | None, before: int | None) -> bool:
    if receipt is None:
        return False
    try:
        check_countersignature(answer, receipt, before)
    except RemoteProtocolError:
        return True
    return False


def _trace_contradiction(peer: PeerId, records: Records) -> str:
    if len(records) != 2:
        raise InvalidProof(f"want a receipt and a trace, got {len(records)} records")
    receipt = open_record(Receipt, records[0], signer=peer)
    trace = open_record(Trace, records[1], signer=peer)
    check_trace(trace.record, receipt)
    if not trace.record.first_run:
        raise InvalidProof("the trace is of a later run: whether bits may vary is not in the file")
    return contradiction(trace.record, receipt.record)


_CHECKS: dict[str, Callable[[PeerId, Records], str]] = {
    "equivocation": _equivocation,
    "broken-chain": _broken_chain,
    "double-task": _double_task,
    "double-countersignature": _double_countersignature,
    "double-statement": _double_statement,
    "wrong-sum": _wrong_sum,
    "trace-contradiction": _trace_contradiction,
}
