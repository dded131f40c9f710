"""The requester's side of a result: verify the outputs and the receipt, commit the answer, countersign.

Theory of operation. A provider sends its signed receipt as a request and our countersignature is the reply; until it
has it, it sends the same receipt again, after reconnecting and after restarts. So each path here is idempotent:

1. A receipt that was countersigned before gets the same countersignature again, from the ledger.
2. A receipt of a task that is outstanding in memory is judged against the lease, the task, the lane and the outputs,
   and committed with its countersignature in one transaction *before* the reply leaves.
3. A receipt of a task that memory no longer knows (this agent was restarted, or moved the task elsewhere) is judged
   from what the ledger has: the lease, the task, whether it was superseded, and where the lane stands.

Several results in one message are settled together as far as nothing speaks against it: those of one lane that follow
on each other, of tasks that are outstanding here. Each other one goes its way alone, as if it had come by itself.

Outputs are fetched and verified before the lane's turn is taken, so that a slow transfer holds up nobody else. They are
pinned from before they come until whoever waits for the attempt's outcome has them.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import trio

from coppermesh.agent.attempts import Outstanding, TaskOutcome
from coppermesh.agent.held_leases import HeldLease, Lane
from coppermesh.agent.ledger import EvidenceFound, LedgerConflict, ReceiptSettled
from coppermesh.agent.ledger_reader import ReceiptContext
from coppermesh.agent.ledger_store import LedgerStore
from coppermesh.agent.negotiation import Move, Role
from coppermesh.agent.receipts import (
    REFUSALS,
    LaneHead,
    build_countersignature,
    check_receipt,
    wrong_clock,
)
from coppermesh.agent.screens import money
from coppermesh.agent.story import StoryLine
from coppermesh.agent.traces import NODE_DIGESTS
from coppermesh.exec.program import ArraySpec
from coppermesh.p2p.blob_store import BlobStore, Scope, StoreFull
from coppermesh.p2p.blobs import roots_digest
from coppermesh.p2p.channel import clean_sentence
from coppermesh.p2p.envelope import Opened, open_record, sign_record
from coppermesh.p2p.errors import MeshError, Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import Digest, MeshId, PeerId
from coppermesh.p2p.messages import (
    BlobInfo,
    ResultAnswer,
    ResultReply,
    ResultRequest,
    ResultsReply,
    ResultsRequest,
)
from coppermesh.p2p.records import Countersignature, Lease, Receipt, SignedRecord, Task
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transfer import fetch_blob
from coppermesh.p2p.transport import Transport

_log = logging.getLogger(__name__)

ROW_TURN_SECONDS = 1.0
"""How long several receipts in one message wait for the one before them: it may come only behind them."""
MAX_ORPHAN_BYTES = 1 << 30
"""Outputs of a task that this run of the agent does not know are fetched up to this size."""
NEUTRAL = frozenset({"ok", "superseded", "cancelled", "no-result"})
"""Verdicts that prove nothing against the provider."""


@dataclass(slots=True)
class _Case:
    """One result in front of us, with what it is judged by."""

    peer: PeerId
    request: ResultRequest
    receipt: Opened[Receipt]
    lease: Lease
    task: Opened[Task]
    lane: Lane
    attempt: Outstanding | None
    """None: known from the ledger only."""
    given_up: str | None
    answered: bool
    specs: Sequence[ArraySpec] | None
    """What the program must return; None: not known any more, and only hashes are checked."""
    digests_due: bool = False
    """The order asked for digests of nodes."""
    handed_over: bool = False
    """The attempt's outcome carries the outputs; whoever takes it unpins them."""


@dataclass(frozen=True, slots=True)
class _Judged:
    """A result that was judged in its place on the lane, and our answer, not committed yet."""

    case: _Case
    verdict: str
    answer: Countersignature
    signed: SignedRecord


class ResultIntake:
    """Handles `result` and `results` requests."""

    def __init__(
        self,
        key: PeerKey,
        mesh: MeshId,
        transport: Transport,
        ledger: LedgerStore,
        store: BlobStore,
        *,
        find_lease: Callable[[bytes], HeldLease | None],
        output_specs: Callable[[Outstanding], Sequence[ArraySpec] | None],
        rivals: Callable[[Outstanding], Sequence[Outstanding]],
        now_us: Callable[[], int],
    ) -> None:
        """`rivals` are other attempts at the same task that may have a result too: only one of them is paid."""
        self._key = key
        self._mesh = mesh
        self._transport = transport
        self._ledger = ledger
        self._store = store
        self._find_lease = find_lease
        self._output_specs = output_specs
        self._rivals = rivals
        self._now_us = now_us
        self._scope: Scope = (mesh, key.peer)
        self._lanes: WeakValueDictionary[bytes, Lane] = WeakValueDictionary()
        """Lanes with a result in hand: all results of a lane share one, also when its lease goes meanwhile."""

    async def handle(self, peer: PeerId, request: ResultRequest) -> ResultReply:
        """Answer one result. Raises Refused or RemoteProtocolError; nothing is then countersigned."""
        receipt = open_record(Receipt, request.receipt, signer=peer)
        case = self._case_in_memory(peer, request, receipt)
        if case is None:
            found = await self._ledger.context(receipt)
            if found.countersignature is not None:
                return ResultReply(found.countersignature)
            case = await self._case_from_ledger(peer, request, receipt, found)
        roots = [Digest(blob.root) for blob in request.outputs]
        for root in roots:
            self._store.pin(root)
        try:
            arrived, problem = await self._collect_outputs(case)
            async with case.lane.turn(receipt.record.sequence):
                return await self._settle(case, arrived, problem)
        finally:
            if not case.handed_over:
                for root in roots:
                    self._store.unpin(root)

    async def handle_all(self, peer: PeerId, request: ResultsRequest) -> ResultsReply:
        """Answer several, in their order. Raises RemoteProtocolError; nothing more is then countersigned."""
        answers: list[ResultAnswer] = []
        row: list[_Case] = []
        for each in request.results:
            case = self._case_in_memory(peer, each, open_record(Receipt, each.receipt, signer=peer))
            quick = case is not None and _is_at_hand(case)
            if row and (case is None or not quick or case.lane is not row[0].lane):
                # Whatever comes behind it on its lane waits for it: so it is done first.
                answers += await self._answer_row(peer, row)
                row = []
            if case is None or not quick:
                answers.append(await self._answer_alone(peer, each))
            else:
                row.append(case)
        return ResultsReply(answers + await self._answer_row(peer, row))

    async def _answer_row(self, peer: PeerId, row: Sequence[_Case]) -> list[ResultAnswer]:
        """Results of one lane: as many together as go, the others one by one, until one has to wait for another."""
        if not row:
            return []
        try:
            answers = [ResultAnswer(one.signed, "ok", "") for one in await self._settle_together(row)]
        except Refused as gap:  # what they wait for may come only behind them: their provider asks again soon
            return [ResultAnswer(None, gap.code, clean_sentence(gap.sentence))] * len(row)
        for case in row[len(answers) :]:
            if answers and answers[-1].code == "gap":
                answers.append(answers[-1])
            else:
                answers.append(await self._answer_alone(peer, case.request))
        return answers

    async def _answer_alone(self, peer: PeerId, request: ResultRequest) -> ResultAnswer:
        try:
            reply = await self.handle(peer, request)
        except Refused as refusal:
            return ResultAnswer(None, refusal.code, clean_sentence(refusal.sentence))
        return ResultAnswer(reply.countersignature, "ok", "")

    async def _settle_together(self, cases: Sequence[_Case]) -> list[_Judged]:
        """As many of a lane as go together, from the first on; none where anything goes wrong.

        Raises Refused `gap` where an earlier one of the lane is missing.
        """
        for case in cases:
            for blob in case.request.outputs:
                self._store.pin(Digest(blob.root))
        try:
            wanted = [case for case in cases if _has_outputs(case)]
            blobs = [(Digest(blob.root), blob.data) for case in wanted for blob in case.request.inline]
            await self._store.put_many(self._scope, blobs)
            async with cases[0].lane.turn(cases[0].receipt.record.sequence, seconds=ROW_TURN_SECONDS):
                return await self._settle_prefix(cases)
        except (MeshError, OSError) as error:
            if isinstance(error, Refused) and error.code == "gap":
                raise
            _log.info("%d results are settled one by one: %s", len(cases), error)
            return []
        finally:
            for case in cases:
                if not case.handed_over:
                    for blob in case.request.outputs:
                        self._store.unpin(Digest(blob.root))

    async def _settle_prefix(self, cases: Sequence[_Case]) -> list[_Judged]:
        """With the lane's turn: judge one by one, commit all, advance. Raises MeshError; then nothing is settled."""
        lane = cases[0].lane
        head, judged = lane.head, list[_Judged]()
        try:
            for case in cases:
                if case.receipt.record.sequence != head.sequence_next:
                    break
                verdict = self._verdict(
                    case, head, case.receipt.record.outputs if _has_outputs(case) else None
                )
                if verdict in REFUSALS:
                    break
                answer = build_countersignature(case.receipt, verdict, head, self._now_us())
                judged.append(_Judged(case, verdict, answer, sign_record(self._key, answer)))
                assert case.attempt is not None
                case.attempt.begin_settling(accepting=verdict == "ok")
                head = head.after(case.receipt, answer.accepted_cumulative)
            if judged:
                with trio.CancelScope(shield=True):
                    entries = [
                        entry
                        for one in judged
                        for entry in self._entries(one.case, one.signed, one.verdict, "")
                    ]
                    await self._ledger.commit(*entries)
                lane.head = head
                for one in judged:
                    self._conclude(one.case, one.answer, "")
        finally:
            for one in judged:
                if one.case.attempt is not None:
                    one.case.attempt.end_settling()
        return judged

    def _case_in_memory(self, peer: PeerId, request: ResultRequest, receipt: Opened[Receipt]) -> _Case | None:
        held = self._find_lease(receipt.record.lease)
        if held is None or held.provider != peer:
            return None
        attempt = held.outstanding.get(receipt.record.task)
        if attempt is None:
            return None
        return _Case(
            peer,
            request,
            receipt,
            held.record,
            attempt.task,
            self._lanes.setdefault(held.record.lane, held.lane),
            attempt,
            attempt.given_up,
            False,
            self._output_specs(attempt),
            NODE_DIGESTS in held.granted.requirement.features,
        )

    async def _case_from_ledger(
        self, peer: PeerId, request: ResultRequest, receipt: Opened[Receipt], found: ReceiptContext
    ) -> _Case:
        lease, task = found.lease, found.task
        if lease is None or task is None or lease.record.provider != peer:
            # No breach: this home may have lost its ledger, or been set back to an older one.
            raise Refused("unknown-task", "no such lease or task of yours is in this ledger")
        if found.sealed:
            # Not judged: what this ledger does not remember having signed would look like the provider's fault.
            raise Refused("restored", "this ledger was restored from a backup: compare it with yours")
        lane = self._lane_of(lease, found.head)
        return _Case(
            peer,
            request,
            receipt,
            lease.record,
            task,
            lane,
            None,
            found.given_up,
            found.already_answered,
            None,
            NODE_DIGESTS in found.features,
        )

    def _lane_of(self, lease: Opened[Lease], head: LaneHead) -> Lane:
        """The lane of a lease: the held one's, else one that all share who ask about it meanwhile."""
        held = self._find_lease(lease.id)
        lane = Lane(head) if held is None else held.lane
        return self._lanes.setdefault(lease.record.lane, lane)

    async def _collect_outputs(self, case: _Case) -> tuple[bytes | None, str]:
        """Get and verify the outputs into the store: (their digest, ""), or (None, what is wrong with them)."""
        record, outputs = case.receipt.record, case.request.outputs
        if record.status != "ok" or case.given_up is not None or case.answered:
            return None, ""
        if roots_digest([blob.root for blob in outputs]) != record.outputs:
            return None, "the outputs named are not those of the receipt"
        if problem := _misfit(outputs, case.specs):
            return None, problem
        try:
            await self._take_outputs(case)
        except RemoteProtocolError as error:
            return None, str(error)
        except Refused as refusal:
            if refusal.code == "busy":
                raise
            return None, f"an output cannot be had: {refusal.sentence}"
        except Unreachable as error:
            raise Refused("not-settled", "the outputs did not arrive: send the result again") from error
        except (StoreFull, OSError) as error:
            await self._cannot_take(case, f"the outputs cannot be kept here: {error}")
            raise Refused("not-settled", "the requester cannot keep the outputs now") from error
        return roots_digest([blob.root for blob in outputs]), ""

    async def _take_outputs(self, case: _Case) -> None:
        """Those that rode in the message, and a stream for each of the others."""
        inline = {blob.root: blob.data for blob in case.request.inline}
        named = {blob.root: blob for blob in case.request.outputs}
        here = [(Digest(root), data) for root, data in inline.items() if root in named]
        for root, data in here:
            if len(data) != named[root].size:
                raise RemoteProtocolError(
                    f"an output of {len(data)} bytes was declared as {named[root].size}"
                )
        await self._store.put_many(self._scope, here)
        for name, blob in named.items():
            if name not in inline:
                await fetch_blob(
                    self._transport,
                    self._mesh,
                    case.peer,
                    Digest(name),
                    blob.size,
                    self._store,
                    self._scope,
                    lease=case.task.record.lease,
                )

    async def _settle(self, case: _Case, arrived: bytes | None, problem: str) -> ResultReply:
        """With the lane's turn: judge, sign, commit, advance. The verdict and the head change in one go."""
        answered = await self._answered_meanwhile(case)
        if answered is not None:
            return ResultReply(answered)
        attempt, receipt, head = case.attempt, case.receipt, case.lane.head
        verdict = self._verdict(case, head, arrived)
        if verdict in REFUSALS:
            await self._keep_proof(case, verdict)
            raise RemoteProtocolError(f"the receipt has no place on its lane: {verdict}")
        countersignature = build_countersignature(receipt, verdict, head, self._now_us())
        signed = sign_record(self._key, countersignature)
        if attempt is not None:
            attempt.begin_settling(accepting=verdict == "ok")
        try:
            # This handler is cancelled when the peer's channel ends; what is committed must still be concluded.
            with trio.CancelScope(shield=True):
                await self._ledger.commit(*self._entries(case, signed, verdict, problem))
            case.lane.head = head.after(receipt, countersignature.accepted_cumulative)
            self._conclude(case, countersignature, problem)
        except LedgerConflict as error:
            raise Refused("not-settled", f"the receipt contradicts this ledger: {error}") from error
        except MeshError as error:
            failure = error
        else:
            return ResultReply(signed)
        finally:
            if attempt is not None:
                attempt.end_settling()
        await self._cannot_take(case, f"the receipt cannot be recorded here: {failure}")
        raise Refused("not-settled", "the requester cannot record the receipt now") from failure

    def _verdict(self, case: _Case, head: LaneHead, arrived: bytes | None) -> str:
        """What `check_receipt` says of it here on its lane. Raises RemoteProtocolError: not its turn to send it."""
        attempt, receipt = case.attempt, case.receipt
        if attempt is not None:
            attempt.run.step(Move.RESULT, Role.PROVIDER, self._now_us(), f"receipt {receipt.id.hex()[:12]}")
        if attempt is not None and (clock := wrong_clock(receipt.record, self._now_us())):
            # It was sent in this run of ours, so it is new: named, and paid all the same, for the work is done.
            self._tell(case, "note", f"clock: {clock}")
        given_up = case.given_up if attempt is None else attempt.given_up
        if given_up is None and attempt is not None and any(one.is_taken for one in self._rivals(attempt)):
            given_up = "superseded"
        return check_receipt(
            receipt,
            case.lease,
            case.task,
            head,
            outputs_digest=arrived,
            observed_us=self._observed_us(case),
            given_up=given_up,
            already_answered=case.answered or (attempt is not None and attempt.settled),
            digests_due=case.digests_due,
        )

    async def _cannot_take(self, case: _Case, sentence: str) -> None:
        """This side is at fault: the job ends with what is wrong here, and no provider is blamed."""
        if case.attempt is not None:
            await case.attempt.give_up("cancelled", TaskOutcome("job", "requester", sentence))

    async def _keep_proof(self, case: _Case, verdict: str) -> None:
        """An honest provider never sends this: keep what proves it. Two receipts for one place prove the most."""
        found = await self._ledger.context(case.receipt)
        kind = "equivocation" if found.rival is not None else verdict
        records = (case.receipt.signed,) if found.rival is None else (found.rival.signed, case.receipt.signed)
        text = f"receipt for place {case.receipt.record.sequence} of its lane"
        self._tell(case, "evidence", f"{kind}: {text}")
        await self._ledger.commit(EvidenceFound(kind, case.peer, records, self._now_us(), text))

    async def _answered_meanwhile(self, case: _Case) -> SignedRecord | None:
        """The countersignature, where the same receipt was settled while this copy of it waited."""
        if case.receipt.record.sequence < case.lane.head.sequence_next:
            return await self._ledger.countersignature_of(case.receipt.id)
        return None

    def _observed_us(self, case: _Case) -> int:
        started = case.attempt.sent_us if case.attempt is not None else case.task.record.issued_us
        return max(0, self._now_us() - started)

    def _entries(
        self, case: _Case, signed: SignedRecord, verdict: str, problem: str
    ) -> list[ReceiptSettled | EvidenceFound]:
        entries: list[ReceiptSettled | EvidenceFound] = [ReceiptSettled(case.receipt.signed, signed)]
        if verdict not in NEUTRAL:
            records = (case.task.signed, case.receipt.signed, signed)
            entries.append(EvidenceFound(verdict, case.peer, records, self._now_us(), problem))
        return entries

    def _conclude(self, case: _Case, answer: Countersignature, problem: str) -> None:
        """Tell the story and resolve the attempt, now that the answer is durable."""
        record = case.receipt.record
        price = money(record.amount, record.unit)
        short = f"receipt {case.receipt.id.hex()[:12]}"
        if answer.verdict == "accepted":
            self._tell(
                case, "accepted", f"{short}: {record.status}, {record.billed_us / 1000:.1f} ms, {price}"
            )
        else:
            self._tell(case, "disputed", f"{short}: {answer.code} {problem}".rstrip())
        attempt = case.attempt
        if attempt is None:
            return
        attempt.run.step(Move.COUNTERSIGN, Role.REQUESTER, self._now_us(), short)
        attempt.settled = True
        outcome = _outcome(case, answer, problem)
        case.handed_over = attempt.resolve(outcome) and bool(outcome.outputs)

    def _tell(self, case: _Case, kind: str, text: str) -> None:
        task = case.task.record
        cause = f"task {task.number} of lease {task.lease.hex()[:8]}"
        self._ledger.note(StoryLine(task.job, self._now_us(), cause, kind, case.peer, task.index, text))


def _has_outputs(case: _Case) -> bool:
    """Outputs are due and, where `_is_at_hand`, were in the message."""
    return case.receipt.record.status == "ok" and case.given_up is None and not case.answered


def _is_at_hand(case: _Case) -> bool:
    """All that it is judged by came with the message, and looks as it should."""
    outputs = case.request.outputs
    if case.attempt is None:
        return False
    if not _has_outputs(case):
        return True  # nothing is taken of it
    inline = {blob.root: len(blob.data) for blob in case.request.inline}
    if inline != {blob.root: blob.size for blob in outputs} or _misfit(outputs, case.specs):
        return False
    return roots_digest([blob.root for blob in outputs]) == case.receipt.record.outputs


def _misfit(outputs: Sequence[BlobInfo], specs: Sequence[ArraySpec] | None) -> str:
    """Why the outputs cannot be the program's, by count and length; empty when they can."""
    if specs is None:
        total = sum(blob.size for blob in outputs)
        return f"{total} bytes of outputs for a job that is over" if total > MAX_ORPHAN_BYTES else ""
    if len(outputs) != len(specs):
        return f"{len(outputs)} outputs, the program gives {len(specs)}"
    for position, (blob, spec) in enumerate(zip(outputs, specs, strict=True)):
        if blob.size != spec.nbytes:
            return f"output {position} has {blob.size} bytes, the program gives {spec.nbytes}"
    return ""


def _outcome(case: _Case, answer: Countersignature, problem: str) -> TaskOutcome:
    record, request = case.receipt.record, case.request
    amount = record.amount if answer.verdict == "accepted" else 0
    if answer.verdict != "accepted":
        return TaskOutcome("provider", answer.code, problem or f"its receipt was disputed: {answer.code}")
    if record.status == "ok":
        return TaskOutcome(
            None,
            "ok",
            "",
            amount=amount,
            billed_us=record.billed_us,
            receipt_id=case.receipt.id,
            outputs=tuple(request.outputs),
            determinism=record.determinism,
        )
    fault = "job" if record.status == "job-failed" else "provider"
    return TaskOutcome(
        fault, record.code, request.sentence, request.detail, amount, record.billed_us, case.receipt.id
    )
