"""The requester's side of a challenge: ask providers for a task's digests, check what they sign, see where they part.

Theory of operation. A task of a job has its receipt; the ledger may hold receipts of the same program on the same
inputs by other providers, too. Each of them is challenged, and the chains are compared here: the first digest that
differs is the first node where two runs part. A Trace that contradicts its own receipt is evidence and goes to the
ledger with the receipt. Where two providers of one class part, both Traces go there, since one of the two lies and a
third can find out which by computing one node.

Providers answer when they find the time (`running`, `busy`), so `challenge` makes one round, asking all at once, and
says what is missing; the client asks again. What was answered is remembered, with the chains in the store; but first
what it proves is committed, so that evidence is not lost with a ledger that failed at that moment.

Bits may vary from a kernel on even between honest runs. Whether the program has one is read off the program where the
store still has it; where it is gone no difference counts as proof.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import trio

from coppermesh.agent.challenge_exchange import CHALLENGE_SECONDS, ChallengeExchange
from coppermesh.agent.challenge_facts import (
    ROUND_SECONDS,
    Postponed,
    Recorded,
    blob_facts,
    compare_traces,
    trace_facts,
)
from coppermesh.agent.ledger import EvidenceFound
from coppermesh.agent.ledger_store import LedgerStore, NotInLedger, ReceiptRow
from coppermesh.agent.screens import counted
from coppermesh.agent.story import StoryLine
from coppermesh.agent.traces import CHALLENGE_FOR_US, open_recorded
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.program import decode_program
from coppermesh.exec.schema import CheckedProgram, check_program
from coppermesh.exec.trace_digests import TraceDigests, first_unsteady
from coppermesh.p2p.blob_store import BlobMissing, BlobStore, Scope
from coppermesh.p2p.control import ControlHub
from coppermesh.p2p.errors import MeshError, Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import Digest, MeshId, PeerId, format_peer, short_peer
from coppermesh.p2p.records import Task, Trace
from coppermesh.p2p.transport import Transport

K = TypeVar("K")
V = TypeVar("V")

MAX_COMPARED = 3
"""Providers of one task that are challenged, the job's own included."""
LOOKED_THROUGH = 1000
"""Newest receipts among which others of the same work are looked for."""
MAX_REMEMBERED = 256
MAX_RETRY_US = 600_000_000
"""A provider that wants to be asked later than that is asked then."""


@dataclass(frozen=True, slots=True)
class _Case:
    """The task that is challenged."""

    job: bytes
    index: int
    task: Task
    program: CheckedProgram | None
    """None: it is gone here."""

    def steady_nodes(self, device_kind: str) -> int:
        """How many nodes, from the first, give the same bits in every run of one class; 0 where not known."""
        if self.program is None:
            return 0
        unsteady = first_unsteady(self.program, device_kind)
        return len(self.program.nodes) if unsteady is None else unsteady


_Answer = Recorded | Postponed | MeshError


class Challenger:
    """Challenges receipts that this agent's jobs have."""

    def __init__(
        self,
        mesh: MeshId,
        transport: Transport,
        hub: ControlHub,
        ledger: LedgerStore,
        store: BlobStore,
        scope: Scope,
        *,
        now_us: Callable[[], int],
    ) -> None:
        self._exchange = ChallengeExchange(mesh, transport, hub, store, scope)
        self._ledger = ledger
        self._store = store
        self._scope = scope
        self._now_us = now_us
        self._recorded: OrderedDict[Digest, Recorded] = OrderedDict()
        self._told: OrderedDict[tuple[Digest, ...], None] = OrderedDict()
        """Receipts asked about and pairs of Traces compared: what the story has."""
        self._turns: dict[bytes, trio.Lock] = {}

    async def challenge(self, prefix: str, index: int, wait_s: float = CHALLENGE_SECONDS) -> dict[str, Any]:
        """One round of at most `wait_s` seconds for task `index` of the job whose id begins with `prefix`.

        Gives the facts as plain values. `state` is `recorded`, or `running` or `busy` with `retry_s`: call again. The
        facts are there as soon as the job's own provider has answered, even if others have not. Raises NotInLedger,
        and what the job's own provider raises: Refused, Unreachable, RemoteProtocolError. Others' refusals are listed.
        """
        job = await self._ledger.find_job(prefix)
        async with self._turn_of(job):
            rows = await self._find(job, index)
            task = await self._task(rows[0])
            case = _Case(job, index, task, await self._program(task))
            answers = await self._ask_all(case, rows, min(wait_s, ROUND_SECONDS))
            own = answers[0]
            if isinstance(own, MeshError):
                self._tell(job, index, rows[0].peer, "challenge", f"no digests: {own}")
                raise _explain(rows[0].peer, own) from own
            if isinstance(own, Postponed):
                return own.facts()
            facts = await self._conclude(case, rows, answers)
            waiting = [one for one in answers if isinstance(one, Postponed)]
            return {**facts, **(waiting[0].facts() if waiting else {"state": "recorded"})}

    def note_local(self, job: bytes, index: int, text: str) -> None:
        """A client ran the task on this machine and compared: for the story."""
        self._tell(job, index, None, "challenge", text)

    @asynccontextmanager
    async def _turn_of(self, job: bytes) -> AsyncIterator[None]:
        """One round for a job at a time; those of other jobs do not wait for it."""
        lock = self._turns.setdefault(job, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and self._turns.get(job) is lock:
                del self._turns[job]

    async def _find(self, job: bytes, index: int) -> list[ReceiptRow]:
        """Receipts of the same work by different providers, the task's own first."""
        own = [row for row in await self._ledger.receipts(job=job, index=index) if _ran(row)]
        if not own:
            known = {row.index for row in await self._ledger.receipts(job=job, limit=LOOKED_THROUGH)}
            if known and index > max(known):
                count = counted(max(known) + 1, "task")
                raise NotInLedger(
                    f"job {job.hex()[:8]} has {count}, numbered from 0: there is no task {index} "
                    f"(coppermesh challenge {job.hex()[:8]} {max(known)} asks about the last)"
                )
            raise NotInLedger(
                f"task {index} of job {job.hex()[:8]} has no receipt of a run that went well: nothing to challenge "
                f"(coppermesh explain {job.hex()[:8]} tells how it went)"
            )
        own.sort(key=lambda row: row.verdict != "accepted")  # the receipt that counts comes first
        first = own[0].receipt
        of_job = await self._ledger.receipts(job=job, limit=LOOKED_THROUGH)
        others = [*own[1:], *of_job, *await self._ledger.receipts(limit=LOOKED_THROUGH)]
        rows = {own[0].peer: own[0]}
        for row in others:
            same = (row.receipt.program, row.receipt.inputs) == (first.program, first.inputs)
            if same and _ran(row) and len(rows) < MAX_COMPARED:
                rows.setdefault(row.peer, row)
        return list(rows.values())

    async def _task(self, row: ReceiptRow) -> Task:
        task = await self._ledger.task(Digest(row.receipt.task_id))
        if task is None:
            raise NotInLedger("the ledger has the receipt and not its task")
        return task.record

    async def _program(self, task: Task) -> CheckedProgram | None:
        """The program, where the store still has it and it is one."""
        try:
            data = await self._store.read(self._scope, Digest(task.program))
            return await trio.to_thread.run_sync(lambda: check_program(decode_program(data)))
        except (BlobMissing, ProgramInvalid):
            return None

    async def _ask_all(self, case: _Case, rows: Sequence[ReceiptRow], wait_s: float) -> list[_Answer]:
        """Every provider's answer, in the order of `rows`: who has not answered within `wait_s` is `running`."""
        answers: list[_Answer] = [Postponed(row.peer, "running", 0, "") for row in rows]

        async def ask(place: int, row: ReceiptRow) -> None:
            try:
                with trio.move_on_after(wait_s):
                    answers[place] = await self._ask_once(case, row)
            except MeshError as error:
                answers[place] = error

        async with trio.open_nursery() as nursery:
            for place, row in enumerate(rows):
                nursery.start_soon(ask, place, row)
        for place, answer in enumerate(answers):
            if isinstance(answer, Recorded) and self._recorded.get(rows[place].id) is not answer:
                await self._judge(case, answer)
                _remember(self._recorded, rows[place].id, answer)
        return answers

    # One provider

    async def _ask_once(self, case: _Case, row: ReceiptRow) -> Recorded | Postponed:
        known = self._recorded.get(row.id)
        if known is not None and await self._store.ensure(self._scope, Digest(known.trace.record.chain)):
            return known
        stored = await self._ledger.receipt(row.id)
        if stored is None:
            raise NotInLedger(f"receipt {row.id.hex()[:12]} is gone from the ledger")
        if (row.id,) not in self._told:
            _remember(self._told, (row.id,), None)
            text = f"asked for the digests of receipt {row.id.hex()[:12]}"
            self._tell(case.job, case.index, row.peer, "challenge", text)
        reply = await self._exchange.request(row, await self._exchange.at_hand(case.task))
        if reply.state != "recorded":
            return Postponed(row.peer, reply.state, min(reply.retry_us, MAX_RETRY_US), reply.sentence)
        try:
            trace = open_recorded(reply, stored.opened)
            _check_nodes(trace.record, case.program)
            await self._exchange.take_chain(trace, stored.opened, reply.chain)
        except RemoteProtocolError as error:
            self._tell(case.job, case.index, row.peer, "evidence", str(error))
            raise
        return Recorded(stored.opened, trace, case.steady_nodes(row.receipt.device_kind))

    async def _judge(self, case: _Case, recorded: Recorded) -> None:
        """Keep what proves a lie, and tell what came. Raises LedgerError."""
        trace, problem = recorded.trace.record, recorded.contradiction
        if recorded.proven:
            records = (recorded.receipt.signed, recorded.trace.signed)
            found = EvidenceFound("trace-contradiction", recorded.provider, records, self._now_us(), problem)
            await self._ledger.commit(found)
        when = "recorded with the first run" if trace.first_run else "recorded by running it again"
        text = f"{trace.nodes} digests, root {trace.root.hex()[:12]}, {when}, class {trace.determinism}"
        self._tell(case.job, case.index, recorded.provider, "trace", text)
        if problem:
            kind = "evidence" if recorded.proven else "challenge"
            self._tell(case.job, case.index, recorded.provider, kind, problem)

    # All of them

    async def _conclude(
        self, case: _Case, rows: Sequence[ReceiptRow], answers: Sequence[_Answer]
    ) -> dict[str, Any]:
        recorded = [one for one in answers if isinstance(one, Recorded)]
        first, comparisons = recorded[0], []
        mine = await self._digests(first)
        for other in recorded[1:]:
            theirs = await self._digests(other)
            facts = await trio.to_thread.run_sync(compare_traces, first, mine, other, theirs)
            comparisons.append(facts)
            await self._tell_comparison(case, first, other, facts)
        blobs = {blob.root: blob for blob in await self._exchange.at_hand(case.task)}
        return {
            "job": case.job.hex(),
            "task": case.index,
            "program": blob_facts(blobs.get(case.task.program)),
            "inputs": [blob_facts(blobs.get(root)) for root in case.task.inputs],
            "traces": [trace_facts(one) for one in recorded],
            "comparisons": comparisons,
            "refusals": [
                {"provider": format_peer(row.peer), "sentence": str(answer)}
                for row, answer in zip(rows, answers, strict=True)
                if isinstance(answer, MeshError)
            ],
        }

    async def _digests(self, recorded: Recorded) -> TraceDigests:
        record = recorded.trace.record
        data = await self._store.read(self._scope, Digest(record.chain))
        return TraceDigests.from_bytes(data)

    async def _tell_comparison(
        self, case: _Case, one: Recorded, other: Recorded, facts: dict[str, Any]
    ) -> None:
        pair = (one.trace.id, other.trace.id)
        if pair in self._told:
            return
        # Where not even the lengths fit, a liar has made the pair: that is no proof against the other.
        if facts["fault"] and facts["node"] is not None:
            records = (one.receipt.signed, one.trace.signed, other.receipt.signed, other.trace.signed)
            for peer in (one.provider, other.provider):
                words = f"one of two providers is wrong, not known which: {facts['sentence']}"
                await self._ledger.commit(EvidenceFound("traces-part", peer, records, self._now_us(), words))
        _remember(self._told, pair, None)
        text = f"compared with {short_peer(other.provider)}: {facts['sentence']}"
        self._tell(case.job, case.index, one.provider, "challenge", text)

    def _tell(self, job: bytes, index: int, peer: PeerId | None, kind: str, text: str) -> None:
        self._ledger.note(StoryLine(job, self._now_us(), "challenge", kind, peer, index, text))


def _ran(row: ReceiptRow) -> bool:
    return row.role == "requester" and row.receipt.status == "ok"


def _explain(peer: PeerId, error: MeshError) -> MeshError:
    """The same kind of error, for the person who challenged."""
    who = f"provider {short_peer(peer)}"
    if isinstance(error, Refused):
        return Refused(error.code, f"{who} refuses: {error.sentence}"[:400])
    if isinstance(error, Unreachable):
        hours = CHALLENGE_FOR_US // 3_600_000_000
        text = "ask again when it is back; receipts can be challenged for"
        return Unreachable(f"{who} cannot be reached ({error}): {text} {hours} h after their run")
    if isinstance(error, RemoteProtocolError):
        return RemoteProtocolError(f"{who} gave an answer that does not hold: {error}")
    return error


def _check_nodes(trace: Trace, program: CheckedProgram | None) -> None:
    """Raises RemoteProtocolError where the program, as far as it is known, has another number of nodes."""
    if program is not None and trace.nodes != len(program.nodes):
        raise RemoteProtocolError(f"Trace: {trace.nodes} nodes where the program has {len(program.nodes)}")


def _remember(known: OrderedDict[K, V], key: K, value: V) -> None:
    """Add an entry; of more than `MAX_REMEMBERED` the oldest goes."""
    known[key] = value
    while len(known) > MAX_REMEMBERED:
        known.popitem(last=False)
