"""Statements with other peers: proposing, signing, by connection or by file, and the settling that follows.

The rules are in `statements` and `settling_rules`; this shell asks, signs, commits, and answers. Every signature is
committed before it leaves, so that whatever is lost on the way, asking again gives the same bytes.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from coppermesh.agent.ledger import LedgerConflict
from coppermesh.agent.ledger_compare import LaneAnswers
from coppermesh.agent.ledger_settling import SettlingTables, copy_of
from coppermesh.agent.ledger_store import LedgerStore
from coppermesh.agent.proofs import both_signed
from coppermesh.agent.settlement import LedgerSettlement
from coppermesh.agent.settling import StatementDrafted, StatementSigned
from coppermesh.agent.settling_rules import other_side
from coppermesh.agent.statements import (
    ANSWER_LIFE_US,
    CLOCK_SKEW_US,
    STATEMENT_LIFE_US,
    CoveredSpan,
    LastSigned,
    check_order,
    check_parties,
    check_spans,
    check_sums,
    check_times,
    draw_up,
    gives_way,
    net_for,
    open_spans,
    pack_spans,
    unpack_spans,
)
from coppermesh.p2p.control import ControlHub
from coppermesh.p2p.envelope import Opened, open_record, sign_record
from coppermesh.p2p.errors import Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import Digest, MeshId, PeerId, short_peer
from coppermesh.p2p.ledger_messages import (
    LastStatement,
    LastStatementReply,
    PaymentRequest,
    StatementReply,
    StatementRequest,
    VoucherRequest,
)
from coppermesh.p2p.messages import Nothing
from coppermesh.p2p.records import SignedRecord
from coppermesh.p2p.settlement_records import SignedStatement, Statement, Voucher
from coppermesh.p2p.signing import PeerKey

ANSWER_SECONDS = 60.0
"""How long the other side has to check a statement: it hashes every receipt under it."""

_log = logging.getLogger(__name__)


class StatementDesk:
    """Proposes and signs statements of one agent on one mesh."""

    def __init__(
        self,
        key: PeerKey,
        mesh: MeshId,
        hub: Callable[[], ControlHub],
        ledger: LedgerStore,
        lanes: LaneAnswers,
        settlement: LedgerSettlement,
        *,
        now_us: Callable[[], int],
    ) -> None:
        self._key = key
        self._mesh = mesh
        self._hub = hub
        self._ledger = ledger
        self._lanes = lanes
        self._settlement = settlement
        self._now_us = now_us
        self._turns: dict[tuple[PeerId, str], trio.Lock] = {}
        self._refused: set[Digest] = set()
        """Proposals of ours that the other side has said no to: they will not come back signed."""

    # Proposing

    async def propose(self, peer: PeerId, unit: str) -> SignedStatement:
        """A statement with a connected peer, signed by both. Raises Refused with why, Unreachable, LedgerError."""
        await self._catch_up(peer, unit)
        theirs = {lane.lane: lane.countersigned for lane in await self._lanes.lanes_of(peer)}
        draft = await self._draft(peer, unit, theirs, ANSWER_LIFE_US)
        opened = open_record(Statement, draft.proposed)
        try:
            reply = await self._hub().request(
                peer, "statement", StatementRequest(draft), StatementReply, deadline_s=ANSWER_SECONDS
            )
        except Refused:
            self._refused.add(opened.id)
            raise
        signed = await self._take_signed(peer, reply.statement, opened.id)
        await self._take_promise(peer, unit, reply.voucher)
        return signed

    async def draft_for_file(self, peer: PeerId, unit: str) -> SignedStatement:
        """A proposal for a peer that is not connected, over all that is countersigned here."""
        return await self._draft(peer, unit, None, STATEMENT_LIFE_US)

    async def _draft(
        self, peer: PeerId, unit: str, theirs: dict[bytes, int] | None, life_us: int
    ) -> SignedStatement:
        now_us = self._now_us()

        def read(tables: SettlingTables) -> tuple[LastSigned, list[CoveredSpan]]:
            spans = open_spans(tables.lanes_with(peer, unit), theirs)
            return tables.last_statement(peer, unit), [tables.covered_span(span) for span in spans]

        last, covered = await self._ledger.look(read)
        record = draw_up(self._mesh, self._key.peer, peer, unit, last, covered, now_us, life_us)
        spans = pack_spans(part.span for part in covered)
        draft = SignedStatement(sign_record(self._key, record), None, spans)
        await self._commit(StatementDrafted(draft))
        return draft

    async def _catch_up(self, peer: PeerId, unit: str) -> None:
        """Take what the other side has signed, and sign what it proposed, before proposing anew."""
        reply = await self._hub().request(peer, "statement-last", LastStatement(unit), LastStatementReply)
        mine, may_sign = await self._ledger.look(
            lambda tables: (tables.last_statement(peer, unit), tables.may_sign_second(peer, unit))
        )
        if reply.signed is not None:
            signed = open_record(Statement, reply.signed.proposed)
            if signed.record.number > mine.number:
                await self._take_signed(peer, reply.signed, signed.id)
        if reply.proposed is not None and may_sign and gives_way(self._key.peer, peer):
            agreed = await self._agree(peer, reply.proposed)
            await self._hub().request(
                peer, "statement", StatementRequest(agreed), StatementReply, deadline_s=ANSWER_SECONDS
            )
            await self._promise(peer, agreed)

    async def _take_signed(self, peer: PeerId, signed: SignedStatement, wanted: Digest) -> SignedStatement:
        """A statement of ours came back with its second signature, or one that we have forgotten."""
        if signed.agreed is None:
            raise RemoteProtocolError("Statement: the answer has no second signature")
        statement = both_signed(signed.proposed, signed.agreed)
        if statement.id != wanted or {statement.record.proposer, statement.record.other} != {
            peer,
            self._key.peer,
        }:
            raise RemoteProtocolError("Statement: the answer is another statement than was proposed")
        check_parties(statement.record, self._mesh, statement.signer, PeerId(statement.record.other))
        await self._ledger.look(lambda tables: _check_lanes(statement, signed, tables, peer))
        await self._commit(StatementSigned(signed))
        await self._promise(peer, signed)
        return signed

    # Answering

    async def on_statement(self, peer: PeerId, request: StatementRequest) -> StatementReply:
        """Sign what a peer proposes, or take back what it has signed."""
        signed = request.statement
        if signed.agreed is not None:
            proposed = open_record(Statement, signed.proposed, signer=self._key.peer)
            return StatementReply(await self._take_signed(peer, signed, proposed.id), None)
        complete = await self._agree(peer, signed)
        return StatementReply(complete, await self._own_promise(peer, complete))

    async def on_last(self, peer: PeerId, request: LastStatement) -> LastStatementReply:
        """The newest statement with that peer, and a proposal of ours that waits."""
        now_us, unit = self._now_us(), request.unit

        def read(tables: SettlingTables) -> LastStatementReply:
            last = tables.last_statement(peer, unit)
            signed = tables.statement(last.id) if last.number >= 0 else None
            return LastStatementReply(signed, self._waiting(tables, peer, unit, now_us))

        return await self._ledger.look(read)

    def _waiting(
        self, tables: SettlingTables, peer: PeerId, unit: str, now_us: int
    ) -> SignedStatement | None:
        """Our proposal that may still come back signed, by whichever of the two clocks."""
        draft = tables.live_draft(peer, unit, now_us - 2 * CLOCK_SKEW_US)
        if draft is None or open_record(Statement, draft.proposed).id in self._refused:
            return None
        return draft

    async def _agree(self, peer: PeerId, signed: SignedStatement) -> SignedStatement:
        """Check a peer's proposal against the own ledger, commit, and sign. Raises Refused with what is wrong."""
        proposed = open_record(Statement, signed.proposed, signer=peer)
        record = proposed.record
        check_parties(record, self._mesh, peer, self._key.peer)
        async with self._turn(peer, record.unit):
            known = await self._ledger.look(lambda tables: tables.statement(proposed.id))
            if known is not None:
                return known
            await self._check(peer, proposed, signed)
            complete = copy_of(signed, sign_record(self._key, record))
            await self._commit(StatementSigned(complete))
        return complete

    @asynccontextmanager
    async def _turn(self, peer: PeerId, unit: str) -> AsyncIterator[None]:
        """One at a time for each peer and unit. Forgotten after the last: a peer names whatever units it likes."""
        place = (peer, unit)
        lock = self._turns.setdefault(place, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._turns.pop(place, None)

    async def _check(self, peer: PeerId, proposed: Opened[Statement], signed: SignedStatement) -> None:
        record, now_us = proposed.record, self._now_us()
        check_times(record, now_us)
        spans = unpack_spans(signed.lanes)
        self._lanes.spend(peer, sum(span.end - span.start for span in spans))

        def read(tables: SettlingTables) -> list[CoveredSpan]:
            check_order(record, tables.last_statement(peer, record.unit))
            if not tables.may_sign_second(peer, record.unit):
                raise Refused(
                    "restored",
                    "this ledger was put back from a backup: it has to propose the next statement itself",
                )
            waiting = self._waiting(tables, peer, record.unit, now_us)
            if waiting is not None and not gives_way(self._key.peer, peer):
                raise Refused("crossed", "a proposal of our own for this number is on its way: sign that one")
            lanes = {state.lane: state for state in tables.lanes_with(peer, record.unit)}
            check_spans(spans, lanes)
            return [tables.covered_span(span) for span in spans]

        check_sums(record, await self._ledger.look(read))

    # Files

    async def sign_file(self, signed: SignedStatement) -> SignedStatement:
        """Sign a proposal that came as a file, or take one of ours that came back. Raises Refused."""
        me = self._key.peer
        proposed = open_record(Statement, signed.proposed)
        peer = other_side(proposed.record, me)
        if signed.agreed is not None:
            return await self._take_signed(peer, signed, proposed.id)
        if proposed.signer == me:
            raise Refused("not-signed", "this is our own proposal: the other side has not signed it yet")
        return await self._agree(peer, signed)

    # Settling

    async def _own_promise(self, peer: PeerId, signed: SignedStatement) -> SignedRecord | None:
        """The voucher that goes with a statement by which this side owes; None where it does not."""
        record = open_record(Statement, signed.proposed).record
        if net_for(record, self._key.peer) >= 0:
            return None
        return await self._settlement.voucher(await self._settlement.open(peer, record.unit))

    async def _promise(self, peer: PeerId, signed: SignedStatement) -> None:
        """Send it. Where it is lost, the next one promises all of it."""
        voucher = await self._own_promise(peer, signed)
        if voucher is None:
            return
        try:
            await self._hub().request(peer, "voucher", VoucherRequest(voucher), Nothing)
        except (Refused, Unreachable, RemoteProtocolError) as error:
            _log.info("voucher for %s not delivered: %s", short_peer(peer), error)

    async def _take_promise(self, peer: PeerId, unit: str, voucher: SignedRecord | None) -> None:
        if voucher is None:
            return
        try:
            await self._settlement.accept(await self._settlement.open(peer, unit), voucher)
        except Refused as refusal:
            _log.warning("voucher of %s refused: %s", short_peer(peer), refusal)

    async def on_voucher(self, peer: PeerId, request: VoucherRequest) -> Nothing:
        """A payer's promise."""
        record = open_record(Voucher, request.voucher, signer=peer).record
        channel = await self._settlement.open(peer, record.unit)
        await self._settlement.accept(channel, request.voucher)
        return Nothing()

    async def on_payment(self, peer: PeerId, request: PaymentRequest) -> Nothing:
        """The payee says that it was paid."""
        await self._settlement.accept_payment(peer, request.payment)
        return Nothing()

    async def settle(self, statement: Digest, reference: str) -> tuple[SignedRecord, str]:
        """Say that a statement was paid, and tell the payer: (the payment, why it was not delivered or nothing)."""
        payment = await self._settlement.settle(statement, reference)
        found = await self._ledger.look(lambda tables: tables.statement(statement))
        assert found is not None, "it was settled"
        peer = other_side(open_record(Statement, found.proposed).record, self._key.peer)
        try:
            await self._hub().request(peer, "payment", PaymentRequest(payment), Nothing)
        except (Refused, Unreachable, RemoteProtocolError) as error:
            return payment, str(error)
        return payment, ""

    async def _commit(self, entry: StatementDrafted | StatementSigned) -> None:
        try:
            await self._ledger.commit(entry)
        except LedgerConflict as conflict:
            raise Refused(conflict.code, str(conflict)) from conflict


def _check_lanes(
    statement: Opened[Statement], signed: SignedStatement, tables: SettlingTables, peer: PeerId
) -> None:
    """Are the lanes those of the statement? They travel beside it and nobody signs them; its root stands for them.

    Raises Refused: `bad-spans`, or what `check_sums` raises.
    """
    draft = tables.draft(statement.id)
    if draft is not None:
        if draft.lanes != signed.lanes:
            raise Refused("bad-spans", "it came back with other lanes than it was proposed with")
        return
    spans = unpack_spans(signed.lanes)
    if any(tables.peer_of(span.lane) not in (None, peer) for span in spans):
        raise Refused("bad-spans", "it names a lane that is not between us")
    if sum(span.end - span.start for span in spans) != statement.record.receipts:
        raise Refused("bad-spans", "its lanes name another number of receipts than it covers")
    states = {state.lane: state for state in tables.lanes_with(peer, statement.record.unit)}
    if all(span.lane in states and span.end <= states[span.lane].countersigned for span in spans):
        check_sums(statement.record, [tables.covered_span(span) for span in spans])
