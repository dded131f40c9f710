"""What the ledger takes about settling, and why it refuses: see `ledger_rules` for how entries are judged (pure).

What holds, however messages are repeated, reordered or lost, and wherever either side crashes: a statement number has
one statement; a receipt is under one at most; a statement is paid once; vouchers and payout accounts only go forward.
"""

from coppermesh.agent.ledger import EvidenceFound, LedgerConflict
from coppermesh.agent.payouts import check_payout
from coppermesh.agent.settling import (
    PaymentKept,
    PayoutKept,
    ScoreKept,
    SettlingBook,
    SettlingEntry,
    StatementDrafted,
    StatementSigned,
    VoucherKept,
)
from coppermesh.agent.statements import (
    Span,
    check_net,
    check_order,
    check_spans,
    is_double_statement,
    net_for,
    unpack_spans,
)
from coppermesh.p2p.envelope import Opened, open_verified
from coppermesh.p2p.errors import MeshError, Refused
from coppermesh.p2p.ids import Digest, PeerId
from coppermesh.p2p.settlement_records import Payment, Payout, Score, SignedStatement, Statement, Voucher


def judge_settling(entry: SettlingEntry, book: SettlingBook, me: PeerId) -> SettlingEntry | None:
    """The entry where it is to be written, None where the book has it already. Raises LedgerConflict."""
    try:
        match entry:
            case StatementDrafted():
                return _judge_draft(entry, book, me)
            case StatementSigned():
                return _judge_statement(entry, book, me)
            case VoucherKept():
                return _judge_voucher(entry, book, me)
            case PaymentKept():
                return _judge_payment(entry, book, me)
            case PayoutKept():
                return _judge_payout(entry, book)
            case ScoreKept():
                open_verified(Score, entry.score)
                return entry
    except Refused as refusal:
        raise LedgerConflict(refusal.code, refusal.sentence) from refusal


def other_side(record: Statement, me: PeerId) -> PeerId:
    """The peer on the other side of a statement. Raises LedgerConflict where `me` is on neither."""
    if me not in (record.proposer, record.other):
        raise LedgerConflict("not-ours", "the statement is between other peers")
    return PeerId(record.other if record.proposer == me else record.proposer)


def _judge_draft(entry: StatementDrafted, book: SettlingBook, me: PeerId) -> StatementDrafted | None:
    draft = open_verified(Statement, entry.statement.proposed)
    if draft.signer != me or entry.statement.agreed is not None:
        raise LedgerConflict("not-ours", "a draft is what this peer signed first")
    if book.is_draft(draft.id):
        return None
    _check_against_book(draft.record, unpack_spans(entry.statement.lanes), book, me)
    return entry


def _judge_statement(entry: StatementSigned, book: SettlingBook, me: PeerId) -> StatementSigned | None:
    signed = entry.statement
    proposed = open_verified(Statement, signed.proposed)
    if signed.agreed is None:
        raise LedgerConflict("not-signed", "the other side has not signed it")
    agreed = open_verified(Statement, signed.agreed)
    record = proposed.record
    both = proposed.signer == record.proposer and agreed.signer == record.other
    if agreed.id != proposed.id or not both:
        raise LedgerConflict(
            "wrong-signature", "the two signatures are not of its two sides over one statement"
        )
    if book.statement(proposed.id) is not None:
        return None
    peer = other_side(record, me)
    rival = book.statement_numbered(peer, record.unit, record.number)
    if rival is not None:
        raise LedgerConflict(
            "stale", f"statement {record.number} was signed already", _double(rival, agreed, me)
        )
    if record.proposer == me and not book.is_draft(proposed.id) and not book.was_restored:
        raise LedgerConflict("not-ours", "this peer did not propose that statement")
    spans = unpack_spans(signed.lanes)
    if book.was_restored and not _all_here(spans, book):
        check_order(record, book.last_statement(peer, record.unit))
        check_net(record)
    else:
        _check_against_book(record, spans, book, me)
    return entry


def _double(rival: SignedStatement, agreed: Opened[Statement], me: PeerId) -> EvidenceFound | None:
    """The proof that the other side signed two statements of one number as the second one."""
    assert rival.agreed is not None
    known = open_verified(Statement, rival.agreed)
    if agreed.signer == me or not is_double_statement(known, agreed):
        return None
    return EvidenceFound("double-statement", agreed.signer, (known.signed, agreed.signed))


def _check_against_book(record: Statement, spans: list[Span], book: SettlingBook, me: PeerId) -> None:
    """Order, spans and sums. The root was checked by whoever made the entry, and receipts never change."""
    check_order(record, book.last_statement(other_side(record, me), record.unit))
    check_net(record)
    found = {span.lane: book.lane_state(span.lane) for span in spans}
    check_spans(spans, {lane: state for lane, state in found.items() if state is not None})
    earned = {PeerId(record.proposer): 0, PeerId(record.other): 0}
    for span in spans:
        state = found[span.lane]
        assert state is not None
        earned[state.provider] = earned.get(state.provider, 0) + book.earned_in(
            span.lane, span.start, span.end
        )
    sums = (earned.pop(PeerId(record.proposer)), earned.pop(PeerId(record.other)))
    if earned:
        raise LedgerConflict("unknown-lane", "a lane under it is between other peers")
    if sums != (record.earned_proposer, record.earned_other):
        raise LedgerConflict("wrong-sum", "what it says was earned is not what this ledger has")


def _all_here(spans: list[Span], book: SettlingBook) -> bool:
    """Has this ledger every receipt under the spans? One that was restored may not."""
    states = [(span, book.lane_state(span.lane)) for span in spans]
    return all(state is not None and span.end <= state.countersigned for span, state in states)


def _judge_voucher(entry: VoucherKept, book: SettlingBook, me: PeerId) -> VoucherKept | None:
    voucher = open_verified(Voucher, entry.voucher)
    record = voucher.record
    payer, payee = PeerId(record.payer), PeerId(record.payee)
    if me not in (payer, payee) or payer == payee:
        raise LedgerConflict("not-ours", "the voucher is between other peers")
    known = book.newest_voucher(payer, payee, record.unit)
    if known is not None:
        before = open_verified(Voucher, known)
        if before.id == voucher.id:
            return None
        if record.number <= before.record.number:
            raise LedgerConflict("stale", f"a voucher up to statement {before.record.number} is here already")
    peer = payee if payer == me else payer
    statement = book.statement_numbered(peer, record.unit, record.number)
    if statement is None or open_verified(Statement, statement.proposed).id != record.statement:
        raise LedgerConflict("unknown-statement", "the voucher is for a statement that is not signed here")
    owed = book.owed_by_statements(payer, payee, record.unit, record.number)
    if record.cumulative != owed:
        raise LedgerConflict(
            "wrong-sum", f"the voucher promises {record.cumulative}, statements up to it say {owed}"
        )
    return entry


def _judge_payment(entry: PaymentKept, book: SettlingBook, me: PeerId) -> PaymentKept | None:
    payment = open_verified(Payment, entry.payment)
    record = payment.record
    known = book.payment_of(Digest(record.statement))
    if known is not None:
        if open_verified(Payment, known).id == payment.id:
            return None
        raise LedgerConflict("already-paid", "the statement was paid already: a payment is counted once")
    signed = book.statement(Digest(record.statement))
    if signed is None:
        raise LedgerConflict("unknown-statement", "the payment is for a statement that is not signed here")
    statement = open_verified(Statement, signed.proposed).record
    peer = other_side(statement, me)
    net = net_for(statement, me)
    payee, payer = (me, peer) if net > 0 else (peer, me)
    if (record.payee, record.payer, record.unit) != (payee, payer, statement.unit) or not net:
        raise LedgerConflict("not-ours", "the payment names other sides or another unit than its statement")
    if record.amount != abs(net):
        raise LedgerConflict(
            "wrong-sum", f"the payment is over {record.amount}, its statement's net is {abs(net)}"
        )
    return entry


def _judge_payout(entry: PayoutKept, book: SettlingBook) -> PayoutKept | None:
    try:
        payout = check_payout(entry.payout)
    except MeshError as error:
        raise LedgerConflict("wrong-signature", str(error)) from error
    known = book.newest_payout(PeerId(payout.peer))
    if known is None:
        return entry
    before = open_verified(Payout, known.by_peer)
    if before.signed.body == entry.payout.by_peer.body:
        return None
    if payout.sequence <= before.record.sequence:
        raise LedgerConflict(
            "stale", f"a payout account with sequence {before.record.sequence} is here already"
        )
    return entry
