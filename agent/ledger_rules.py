"""What the ledger takes and why it refuses: the rules between its entries (pure).

Theory of operation
-------------------
A ledger is a book of signed records that only grows. Each *entry* is one step of a protocol; `judge` looks up in the
book what the step depends on and answers with what to write, with None where the same step is in the book already
(steps are repeated after lost replies and restarts), or raises `LedgerConflict`. It reads the book through `Book`,
so that the same rules run over SQLite and over a test's dictionaries.

What the rules guarantee, however messages are repeated, reordered or lost, and wherever either side crashes:

1. One record per place: a lane belongs to one lease, a task number to one task, a place on a lane to one receipt, a
   receipt to one countersignature. Since a step is committed before its signature leaves, a restarted peer finds what
   it signed and can only sign the same again.
2. Lanes have no gaps: a receipt enters only at the head, chained to the one before by id and by sum.
3. A task is paid at most once, by its first receipt, and never after the requester gave up on it.
4. On lanes of before a restore nothing new is signed: a backup does not know what was signed after it was taken.
5. What is owed on a lane is the accepted sum in its newest countersignature; see `receipts` for the two sums.

A conflict that the other side caused, and that two of its signatures prove, carries that proof as `evidence`; the
store keeps it although the entry itself is not written. Signatures are checked before entries are made (by whoever
opened the record) and again by an audit, not here.
"""

from collections.abc import Sequence

from coppermesh.agent.lease_extension import check_length
from coppermesh.agent.ledger import (
    MAX_CODE,
    Book,
    Change,
    CountersignatureReceived,
    Entry,
    EvidenceFound,
    LeaseAgreed,
    LeaseEnded,
    LeaseExtended,
    LeaseOffered,
    LedgerConflict,
    NewAgreement,
    NewCountersignature,
    NewExtension,
    NewLease,
    NewReceipt,
    NewTask,
    ReceiptIssued,
    ReceiptSettled,
    Role,
    StoredLease,
    StoredReceipt,
    TaskIssued,
    TaskSuperseded,
    TaskTaken,
)
from coppermesh.agent.receipts import REFUSALS, LaneHead, check_countersignature
from coppermesh.agent.settling_rules import judge_settling
from coppermesh.agent.story import StoryLine
from coppermesh.p2p.envelope import Opened, open_verified
from coppermesh.p2p.errors import Refused, RemoteProtocolError
from coppermesh.p2p.ids import Digest, PeerId
from coppermesh.p2p.lease_records import Extension
from coppermesh.p2p.records import Countersignature, Lease, Receipt, SignedRecord, Task


def judge(entry: Entry, book: Book) -> Change | None:
    """What to write for an entry; None where the book has it already. Raises LedgerConflict."""
    match entry:
        case LeaseOffered():
            return _judge_offer(entry, book)
        case LeaseAgreed():
            return _judge_agreement(entry, book)
        case TaskIssued():
            return _judge_task(entry.task, "requester", book)
        case TaskTaken():
            return _judge_task(entry.task, "provider", book)
        case TaskSuperseded():
            return _judge_superseding(entry, book)
        case ReceiptIssued():
            return _judge_issued(entry, book)
        case ReceiptSettled():
            return _judge_settled(entry, book)
        case CountersignatureReceived():
            return _judge_countersignature(entry, book)
        case LeaseEnded():
            _known_lease(entry.lease_id, book)
            return None if book.lease_end(entry.lease_id) is not None else entry
        case LeaseExtended():
            return _judge_extension(entry, book)
        case EvidenceFound() | StoryLine():
            return entry
        case _:
            return judge_settling(entry, book.settling, book.me)


def _judge_offer(entry: LeaseOffered, book: Book) -> NewLease | None:
    lease = open_verified(Lease, entry.lease)
    _mine(lease.record.requester, book, "the lease's requester")
    return _judge_new_lease(lease, StoredLease("requester", lease, entry.order, entry.bid), None, book)


def _judge_agreement(entry: LeaseAgreed, book: Book) -> NewLease | NewAgreement | None:
    agreed = open_verified(Lease, entry.provider_signature)
    if agreed.id != entry.lease_id or agreed.signer != agreed.record.provider:
        raise LedgerConflict("wrong-signature", "the provider's signature is not over this lease")
    if entry.lease is not None and entry.order is not None and entry.bid is not None:
        _mine(agreed.record.provider, book, "the lease's provider")
        lease = open_verified(Lease, entry.lease)
        if lease.id != agreed.id or lease.signer != lease.record.requester:
            raise LedgerConflict("wrong-signature", "the requester's signature is not over this lease")
        stored = StoredLease("provider", lease, entry.order, entry.bid)
        return _judge_new_lease(lease, stored, entry.provider_signature, book)
    _known_lease(entry.lease_id, book)
    if book.agreement(entry.lease_id) is not None:
        return None
    return NewAgreement(entry.lease_id, entry.provider_signature)


def _judge_new_lease(
    lease: Opened[Lease], stored: StoredLease, agreed: SignedRecord | None, book: Book
) -> NewLease | None:
    holder = book.lease_on(lease.record.lane)
    if holder == lease.id:
        return None
    if holder is not None:
        raise LedgerConflict("lane-taken", "the lane belongs to another lease: choose a fresh random one")
    return NewLease(stored, agreed)


def _judge_extension(entry: LeaseExtended, book: Book) -> NewExtension | None:
    offered = open_verified(Extension, entry.requester_signature)
    agreed = open_verified(Extension, entry.provider_signature)
    record = offered.record
    signers = (offered.signer, agreed.signer)
    if offered.id != agreed.id or signers != (record.requester, record.provider):
        raise LedgerConflict("wrong-signature", "an extension needs both sides' signatures on the same bytes")
    lease = _known_lease(Digest(record.lease), book)
    before = book.extensions(lease.opened.id)
    if any(known.id == offered.id for known in before):
        return None
    ended = book.lease_end(lease.opened.id)
    if ended is not None:
        raise LedgerConflict("lease-ended", f"the lease has ended ({ended}): nothing prolongs it")
    if book.agreement(lease.opened.id) is None:
        raise LedgerConflict("not-agreed", "the provider has not signed the lease")
    check_next_extension(lease.opened.record, [known.record for known in before], record)
    return NewExtension(offered, entry.provider_signature)


def check_next_extension(lease: Lease, before: Sequence[Extension], extension: Extension) -> None:
    """Does it follow on those before? Raises LedgerConflict."""
    until_us = before[-1].expires_us if before else lease.expires_us
    parties = (extension.mesh, extension.requester, extension.provider)
    if parties != (lease.mesh, lease.requester, lease.provider):
        raise LedgerConflict("wrong-lease", "the extension names other peers than its lease")
    if extension.number != len(before) + 1 or extension.expires_us <= until_us:
        raise LedgerConflict(
            "extension-order", f"extension {extension.number} of a lease that has {len(before)}"
        )
    try:
        check_length(lease, extension)
    except Refused as refusal:
        raise LedgerConflict(refusal.code, refusal.sentence) from refusal


def _judge_task(signed: SignedRecord, role: Role, book: Book) -> NewTask | None:
    task = open_verified(Task, signed)
    known = book.task_numbered(Digest(task.record.lease), task.record.number)
    if known is not None and known.id == task.id:
        return None
    lease = _known_lease(Digest(task.record.lease), book, role)
    if known is not None:
        raise LedgerConflict(
            "number-spent",
            f"task number {task.record.number} was used for another task",
            _proof("double-task", lease.opened.record.requester, known.signed, signed)
            if role == "provider"
            else None,
        )
    if book.agreement(lease.opened.id) is None:
        raise LedgerConflict("not-agreed", "the provider has not signed the lease")
    ended = book.lease_end(lease.opened.id)
    if ended is not None:
        raise LedgerConflict("lease-ended", f"the lease has ended ({ended}): take another")
    return NewTask(task)


def _judge_superseding(entry: TaskSuperseded, book: Book) -> TaskSuperseded | None:
    task = _known_task(entry.task_id, book)
    _known_lease(Digest(task.record.lease), book, "requester")
    if not 0 < len(entry.code) <= MAX_CODE or entry.code == "ok" or entry.code in REFUSALS:
        raise LedgerConflict("wrong-code", f"{entry.code!r} cannot be a dispute's code")
    if book.given_up(entry.task_id) is not None:
        return None
    if _paid_receipt(entry.task_id, book) is not None:
        raise LedgerConflict("already-paid", "the task's receipt was accepted: its result is in the ledger")
    return entry


def _judge_issued(entry: ReceiptIssued, book: Book) -> NewReceipt | None:
    receipt = open_verified(Receipt, entry.receipt)
    record = receipt.record
    if book.receipt(receipt.id) is not None:
        return None
    _receipt_lease(record, book, "provider")
    _check_not_sealed(record, book)
    if book.receipts_of(Digest(record.task_id)):
        raise LedgerConflict("already-issued", "the task has a receipt already: send that one")
    if book.receipt_at(record.lane, record.sequence) is not None:
        raise LedgerConflict(
            "place-taken", "another receipt has this place on the lane: build on the lane's head"
        )
    _check_chain(record, book.head(record.lane))
    return NewReceipt(StoredReceipt(receipt, entry.outputs, entry.sentence, entry.detail), None)


def _judge_settled(entry: ReceiptSettled, book: Book) -> NewReceipt | None:
    receipt = open_verified(Receipt, entry.receipt)
    record = receipt.record
    answer = open_verified(Countersignature, entry.countersignature)
    head = book.head(record.lane)
    # At the head nothing can be there yet: neither this receipt nor another one for its place.
    taken = record.sequence < head.sequence_next
    if taken and book.receipt(receipt.id) is not None:
        _check_same_answer(answer, book)
        return None
    _receipt_lease(record, book, "requester")
    _check_not_sealed(record, book)
    rival = book.receipt_at(record.lane, record.sequence) if taken else None
    if rival is not None:
        proof = _proof("equivocation", record.provider, rival.opened.signed, entry.receipt)
        raise LedgerConflict(
            "equivocation", "the provider signed two receipts for one place on its lane", proof
        )
    _check_chain(record, head)
    _check_answer(answer, receipt, head.accepted)
    if answer.record.verdict == "accepted":
        _check_payable(Digest(record.task_id), book)
    return NewReceipt(StoredReceipt(receipt), answer)


def _judge_countersignature(entry: CountersignatureReceived, book: Book) -> NewCountersignature | None:
    answer = open_verified(Countersignature, entry.countersignature)
    record = answer.record
    receipt = book.receipt(Digest(record.receipt))
    if receipt is None:
        raise LedgerConflict("unknown-receipt", "the countersigned receipt is not in this ledger")
    issued = receipt.opened.record
    _mine(issued.provider, book, "the receipt's provider")
    known = book.countersignature(receipt.opened.id)
    if known is not None and known.id == answer.id:
        return None
    if known is not None:
        proof = _proof("double-countersignature", issued.requester, known.signed, answer.signed)
        raise LedgerConflict(
            "double-countersignature", "the requester answered one receipt in two ways", proof
        )
    _check_sums(answer, receipt.opened, book)
    return NewCountersignature(answer)


def _check_sums(answer: Opened[Countersignature], receipt: Opened[Receipt], book: Book) -> None:
    """Countersignatures arrive in any order: check against whichever neighbours are here."""
    record = receipt.record
    before = 0 if record.sequence == 0 else None
    earlier = _answer_at(record.lane, record.sequence - 1, book)
    later = _answer_at(record.lane, record.sequence + 1, book)
    try:
        check_countersignature(
            answer.record, receipt, earlier.record.accepted_cumulative if earlier is not None else before
        )
        if later is not None:
            following = book.receipt(Digest(later.record.receipt))
            if following is not None:
                check_countersignature(later.record, following.opened, answer.record.accepted_cumulative)
    except RemoteProtocolError as error:
        following = book.receipt(Digest(later.record.receipt)) if later is not None else None
        neighbours = tuple(found.signed for found in (earlier, later) if found is not None)
        neighbours += (following.opened.signed,) if following is not None else ()
        proof = _proof("wrong-sum", record.requester, receipt.signed, answer.signed, *neighbours)
        raise LedgerConflict("wrong-sum", str(error), proof) from error


def _answer_at(lane: bytes, sequence: int, book: Book) -> Opened[Countersignature] | None:
    receipt = book.receipt_at(lane, sequence) if sequence >= 0 else None
    return book.countersignature(receipt.opened.id) if receipt is not None else None


def _check_same_answer(answer: Opened[Countersignature], book: Book) -> None:
    known = book.countersignature(Digest(answer.record.receipt))
    if known is None or known.id != answer.id:
        raise LedgerConflict(
            "already-countersigned", "the receipt has a countersignature: send that one again"
        )


def _check_not_sealed(record: Receipt, book: Book) -> None:
    """A restored ledger does not know all that it signed on older lanes: signing there could contradict it."""
    if book.sealed(record.lane):
        raise LedgerConflict(
            "restored", "the lane is from before this ledger was restored: nothing is signed on it any more"
        )


def _check_chain(record: Receipt, head: LaneHead) -> None:
    if record.sequence != head.sequence_next:
        raise LedgerConflict(
            "gap", f"the lane is at {head.sequence_next}, the receipt is number {record.sequence}"
        )
    if record.previous != head.previous or record.cumulative != head.cumulative + record.amount:
        raise LedgerConflict("broken-chain", "the receipt does not follow from the one before it on the lane")


def _check_answer(answer: Opened[Countersignature], receipt: Opened[Receipt], accepted_before: int) -> None:
    try:
        check_countersignature(answer.record, receipt, accepted_before)
    except RemoteProtocolError as error:
        raise LedgerConflict("wrong-countersignature", str(error)) from error


def _check_payable(task_id: Digest, book: Book) -> None:
    code = book.given_up(task_id)
    if code is not None:
        raise LedgerConflict(
            "superseded", f"the task was given up ({code}): dispute the receipt with that code"
        )
    if book.receipts_of(task_id):
        raise LedgerConflict(
            "already-answered", "another receipt of this task was answered: dispute this one"
        )


def _paid_receipt(task_id: Digest, book: Book) -> Digest | None:
    for receipt_id in book.receipts_of(task_id):
        answer = book.countersignature(receipt_id)
        if answer is not None and answer.record.verdict == "accepted":
            return receipt_id
    return None


def _receipt_lease(record: Receipt, book: Book, role: Role) -> StoredLease:
    """The receipt's lease, with the receipt checked to be on its lane and for one of its tasks."""
    lease = _known_lease(Digest(record.lease), book, role)
    agreed = lease.opened.record
    task = _known_task(Digest(record.task_id), book)
    expected = (agreed.provider, agreed.requester, agreed.lane, lease.opened.id)
    if (record.provider, record.requester, record.lane, task.record.lease) != expected:
        raise LedgerConflict("wrong-lease", "the receipt does not belong to the lease that it names")
    return lease


def _known_lease(lease_id: Digest, book: Book, role: Role | None = None) -> StoredLease:
    lease = book.lease(lease_id)
    if lease is None:
        raise LedgerConflict("unknown-lease", "the lease is not in this ledger")
    if role is not None and lease.role != role:
        raise LedgerConflict("wrong-role", f"this peer is not the {role} of that lease")
    return lease


def _known_task(task_id: Digest, book: Book) -> Opened[Task]:
    task = book.task(task_id)
    if task is None:
        raise LedgerConflict("unknown-task", "the task is not in this ledger")
    return task


def _mine(key: bytes, book: Book, what: str) -> None:
    if key != book.me:
        raise LedgerConflict("wrong-role", f"{what} is another peer")


def _proof(kind: str, peer: bytes, *records: SignedRecord) -> EvidenceFound:
    return EvidenceFound(kind, PeerId(peer), records)
