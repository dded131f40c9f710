"""The provider's side of a result: deliver each receipt until it is countersigned.

A receipt is in the ledger before it comes here. It is sent at once; where the requester cannot be reached it is sent
again whenever a connection to it comes up, also after this agent was restarted (`peer_up` reads the ledger). Retries
over a living connection back off; a requester that refuses a receipt gets it again only on its next connection.

Outputs of a receipt are pinned in the store until it is countersigned or due: a requester that never answers must not
fill the disk. Each requester has a line of its own, so that one that answers slowly holds up nobody else. Small results
that are ready at the same time share a message and the commit of their answers (`batches`).
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from coppermesh.agent.batches import Batches
from coppermesh.agent.credit_desk import CreditDesk
from coppermesh.agent.ledger import CountersignatureReceived
from coppermesh.agent.ledger_reader import UnsettledReceipt
from coppermesh.agent.ledger_store import LedgerStore
from coppermesh.agent.negotiation import Move, Role, TaskRun
from coppermesh.agent.receipts import check_countersignature
from coppermesh.p2p.blob_store import BlobMissing, BlobStore
from coppermesh.p2p.control import ControlHub
from coppermesh.p2p.envelope import Opened, open_record
from coppermesh.p2p.errors import MeshError, Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import Digest, MeshId, PeerId, short_peer
from coppermesh.p2p.messages import (
    INLINE_BYTES,
    BlobInfo,
    InlineBlob,
    ResultAnswer,
    ResultReply,
    ResultRequest,
    ResultsReply,
    ResultsRequest,
)
from coppermesh.p2p.places import take_place
from coppermesh.p2p.records import Countersignature, Receipt, SignedRecord

ANSWER_SECONDS = 120.0
"""How long a requester has to fetch outputs, commit and countersign."""
RETRY_SECONDS = (1.0, 3.0, 10.0, 30.0, 100.0)
SLOW_RETRY_SECONDS = 300.0
"""Between later tries at a requester that says it cannot settle now: its disk may be full for hours."""
TEMPORARY_CODES = frozenset({"not-settled", "gap", "busy"})
MAX_IN_FLIGHT = 32
"""Results of one requester being delivered at once; later ones wait for their turn."""
PAGE = 1000
"""Open receipts that are read at once, and of one requester that are under way."""
MAX_OPEN = 256
"""A requester with so many receipts to countersign gets no more work done."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PendingResult:
    """A receipt that waits for its countersignature."""

    requester: PeerId
    receipt: Opened[Receipt]
    outputs: tuple[tuple[bytes, int], ...]
    sentence: str
    detail: str
    run: TaskRun | None
    """The task's machine, while the run of the agent that made it lives."""
    more: bool = False
    """Other tasks wait in the same worker: the next result is not far."""


Answer = Opened[Countersignature]


@dataclass(frozen=True, slots=True)
class _Sending:
    """A result on its way, with the message that carries it."""

    pending: PendingResult
    request: ResultRequest


@dataclass(slots=True)
class _Line:
    """The deliveries to one requester."""

    places: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(MAX_IN_FLIGHT))
    present: int = 0


def _pending(requester: PeerId, found: UnsettledReceipt) -> PendingResult:
    return PendingResult(requester, found.receipt, tuple(found.outputs), found.sentence, found.detail, None)


class ResultOutbox:
    """Delivers results in tasks of its own; `run` must be running."""

    def __init__(
        self,
        hub: Callable[[], ControlHub],
        mesh: MeshId,
        ledger: LedgerStore,
        store: BlobStore,
        *,
        credit: CreditDesk,
        now_us: Callable[[], int],
    ) -> None:
        self.credit = credit
        self._hub = hub
        self._mesh = mesh
        self._ledger = ledger
        self._store = store
        self._now_us = now_us
        self._nursery: trio.Nursery | None = None
        self._lines: dict[PeerId, _Line] = {}
        self._under_way: set[Digest] = set()
        self._open_with: Counter[PeerId] = Counter()
        """How many of those are for each requester."""
        self._delivered = trio.Event()
        """Set, and replaced by a new one, whenever a delivery is over, however it ended."""
        self._rounds: dict[PeerId, object] = {}
        """Who is being sent all that is open since its last connection."""
        self._pinned: dict[Digest, tuple[Receipt, list[Digest]]] = {}
        """Receipts to be countersigned and their outputs."""
        self._batches: Batches[tuple[PeerId, bytes], _Sending, Answer] = Batches(self._send_results)
        self._answered = trio.Event()
        """Set, and replaced by a new one, whenever a receipt was answered."""

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver until cancelled. Raises LedgerError where what is open cannot be read at the start."""
        await self._take_up()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._batches.run)
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def _take_up(self) -> None:
        """Count and pin what an earlier run left open: all of it, so that many small receipts hide no large one."""
        after = 0
        while page := await self._ledger.unsettled(limit=PAGE, after=after):
            for unsettled in page:
                self._pin(unsettled.receipt, unsettled.outputs)
                size = sum(size for _, size in unsettled.outputs)
                self.credit.count_again([(unsettled.receipt, size)])
            after = page[-1].place

    @property
    def under_way(self) -> int:
        """Receipts being delivered now."""
        return len(self._under_way)

    def send(self, pending: PendingResult) -> None:
        """Deliver a receipt that was just committed."""
        assert self._nursery is not None
        self._pin(pending.receipt, pending.outputs)
        if pending.receipt.id not in self._under_way:
            self._under_way.add(pending.receipt.id)
            self._open_with[pending.requester] += 1
            self._nursery.start_soon(self._deliver, pending)

    async def answers_for(self, lease: bytes) -> None:
        """Wait until every receipt of the lease is countersigned. Give it a deadline."""
        while any(receipt.lease == lease for receipt, _ in self._pinned.values()):
            await self._answered.wait()

    def require_settled(self, requester: PeerId) -> None:
        """Raises Refused where `requester` takes results and does not countersign them."""
        count = sum(receipt.requester == requester for receipt, _ in self._pinned.values())
        if count >= MAX_OPEN:
            raise Refused("unsettled", f"{count} receipts wait for your countersignature: answer them first")

    def requesters(self) -> set[PeerId]:
        """Who has receipts to countersign that are not overdue."""
        return {PeerId(receipt.requester) for receipt, _ in self._pinned.values()}

    def tidy(self) -> None:
        """Let go of outputs whose receipts are overdue. Call now and then."""
        now_us = self._now_us()
        for receipt_id, (receipt, _) in list(self._pinned.items()):
            if receipt.countersign_by_us < now_us:
                self._unpin(receipt_id)

    def _pin(self, receipt: Opened[Receipt], outputs: Sequence[tuple[bytes, int]]) -> None:
        if receipt.id not in self._pinned and receipt.record.countersign_by_us >= self._now_us():
            roots = [Digest(root) for root, _ in outputs]
            self._pinned[receipt.id] = (receipt.record, roots)
            for root in roots:
                self._store.pin(root)

    def _unpin(self, receipt: Digest) -> None:
        _, roots = self._pinned.pop(receipt, (None, []))
        for root in roots:
            self._store.unpin(root)

    async def peer_up(self, requester: PeerId) -> None:
        """A connection to `requester` came up: send it what it has not countersigned, a page after the other."""
        this = self._rounds[requester] = object()
        after = 0
        try:
            # A later connection begins a round of its own, from the oldest on.
            while self._rounds.get(requester) is this and requester in self._hub().peers():
                page = await self._ledger.unsettled(requester, limit=PAGE, after=after)
                if not page:
                    return
                after = page[-1].place
                for unsettled in page:
                    self.send(_pending(requester, unsettled))
                    # Receipts of one lane are judged in their order: let each get in line before the next.
                    await trio.lowlevel.checkpoint()
                while self._open_with[requester] >= PAGE and self._rounds.get(requester) is this:
                    await self._delivered.wait()
        except MeshError as error:
            _log.error("receipts for %s could not be read: %s", short_peer(requester), error)
        finally:
            if self._rounds.get(requester) is this:
                del self._rounds[requester]

    async def _deliver(self, pending: PendingResult) -> None:
        try:
            pauses = iter(RETRY_SECONDS)
            while True:
                try:
                    async with self._turn(pending.requester):
                        await self._deliver_once(pending)
                except Unreachable as error:
                    if pending.requester not in self._hub().peers():
                        return  # `peer_up` sends it again
                    problem: MeshError = error
                except Refused as refusal:
                    problem = refusal
                else:
                    return
                _log.info("receipt %s not countersigned yet: %s", pending.receipt.id.hex()[:12], problem)
                temporary = isinstance(problem, Refused) and problem.code in TEMPORARY_CODES
                pause = next(pauses, SLOW_RETRY_SECONDS if temporary else None)
                if pause is None:
                    return  # on its next connection again
                await trio.sleep(pause)
        except RemoteProtocolError as error:
            _log.warning("%s answered a receipt wrongly: %s", short_peer(pending.requester), error)
        except (MeshError, OSError) as error:
            _log.error("receipt %s: %s", pending.receipt.id.hex()[:12], error)
        finally:
            self._under_way.discard(pending.receipt.id)
            self._open_with[pending.requester] -= 1
            if not self._open_with[pending.requester]:
                del self._open_with[pending.requester]
            self._delivered.set()
            self._delivered = trio.Event()

    @asynccontextmanager
    async def _turn(self, requester: PeerId) -> AsyncIterator[None]:
        line = self._lines.setdefault(requester, _Line())
        line.present += 1
        try:
            await take_place(line.places)
            try:
                yield
            finally:
                line.places.release()
        finally:
            line.present -= 1
            if not line.present:
                del self._lines[requester]

    async def _deliver_once(self, pending: PendingResult) -> None:
        inline = await self._inline(pending)
        request = ResultRequest(
            pending.receipt.signed,
            [BlobInfo(root, size) for root, size in pending.outputs],
            inline,
            pending.sentence,
            pending.detail,
        )
        sending = _Sending(pending, request)
        if {blob.root for blob in inline} == {root for root, _ in pending.outputs}:
            record = pending.receipt.record
            lane = (pending.requester, record.lane)  # one lane never waits for another
            await self._batches.submit(
                lane, sending, _size_of(request), order=record.sequence, more=pending.more
            )
        else:  # by itself: nothing waits until its outputs have been fetched
            reply = await self._hub().request(
                pending.requester, "result", request, ResultReply, deadline_s=ANSWER_SECONDS
            )
            answer = _opened_answer(pending, reply.countersignature)
            await self._ledger.commit(CountersignatureReceived(answer.signed))
            self._conclude(pending, answer)

    async def _send_results(
        self, lane: tuple[PeerId, bytes], sendings: Sequence[_Sending]
    ) -> Sequence[Answer | MeshError]:
        """Send what is ready of one lane, write its answers down. A failure of one is not the others'."""
        replies = await self._ask(lane[0], [sending.request for sending in sendings])
        outcomes: list[Answer | MeshError] = []
        for sending, reply in zip(sendings, replies, strict=True):
            try:
                if reply.countersignature is None:
                    raise Refused(reply.code, reply.sentence)
                outcomes.append(_opened_answer(sending.pending, reply.countersignature))
            except MeshError as error:
                outcomes.append(error)
        answers = [outcome for outcome in outcomes if isinstance(outcome, Opened)]
        failures = await self._write_down(answers)
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, Opened):
                failure = failures.get(outcome.id)
                if failure is None:
                    self._conclude(sendings[index].pending, outcome)
                else:
                    outcomes[index] = failure
        return outcomes

    async def _ask(self, requester: PeerId, requests: list[ResultRequest]) -> list[ResultAnswer]:
        hub = self._hub()
        if len(requests) == 1:
            reply = await hub.request(
                requester, "result", requests[0], ResultReply, deadline_s=ANSWER_SECONDS
            )
            return [ResultAnswer(reply.countersignature, "ok", "")]
        many = await hub.request(
            requester, "results", ResultsRequest(requests), ResultsReply, deadline_s=ANSWER_SECONDS
        )
        if len(many.answers) != len(requests):
            raise RemoteProtocolError(f"answered {len(many.answers)} of {len(requests)} results")
        return many.answers

    async def _write_down(self, answers: Sequence[Answer]) -> dict[Digest, MeshError]:
        """Commit countersignatures: together, else one by one. Gives what failed, by their ids."""
        if not answers:
            return {}
        try:
            await self._ledger.commit(*(CountersignatureReceived(answer.signed) for answer in answers))
        except MeshError as error:
            if len(answers) == 1:
                return {answers[0].id: error}
        else:
            return {}
        failures: dict[Digest, MeshError] = {}
        for answer in answers:
            try:
                await self._ledger.commit(CountersignatureReceived(answer.signed))
            except MeshError as error:
                failures[answer.id] = error
        return failures

    def _conclude(self, pending: PendingResult, answer: Answer) -> None:
        """The countersignature is in the ledger."""
        self.credit.answered(pending.receipt.id, accepted=answer.record.verdict == "accepted")
        self._unpin(pending.receipt.id)
        self._answered.set()
        self._answered = trio.Event()
        if pending.run is not None:
            pending.run.step(Move.COUNTERSIGN, Role.REQUESTER, self._now_us(), answer.record.verdict)
        if answer.record.verdict != "accepted":
            receipt = pending.receipt.id.hex()[:12]
            _log.info("receipt %s was disputed: %s", receipt, answer.record.code)

    async def _inline(self, pending: PendingResult) -> list[InlineBlob]:
        """Outputs that fit into the message; the requester fetches the others."""
        scope = (self._mesh, pending.requester)
        chosen: dict[bytes, InlineBlob] = {}
        room = INLINE_BYTES
        for root, size in pending.outputs:
            if size <= room and root not in chosen:
                try:
                    data = await self._store.read(scope, Digest(root))
                except BlobMissing:
                    continue  # evicted since: the requester will not find it and dispute
                chosen[root] = InlineBlob(root, data)
                room -= size
        return list(chosen.values())


def _opened_answer(pending: PendingResult, signed: SignedRecord) -> Answer:
    """The countersignature of this very receipt. Raises RemoteProtocolError."""
    answer = open_record(Countersignature, signed, signer=pending.requester)
    check_countersignature(answer.record, pending.receipt)
    return answer


def _size_of(request: ResultRequest) -> int:
    """About what it has on the wire, in bytes."""
    outputs = sum(len(blob.data) + 80 for blob in request.inline)
    return len(request.receipt.body) + 256 + outputs + 4 * len(request.detail) + len(request.sentence)
