"""The requester's side of a challenge: ask providers for a task's digests, check what they sign, see where they part.

Theory of operation. A task of a job has its receipt; the ledger may hold receipts of the same program on the same
inputs by other providers, too. Each of them is challenged, and the chains are compared here: the first digest that
differs is the first node where two runs part. A Trace that contradicts its own receipt is evidence and goes to the
ledger with the receipt. Where two providers of one class part, both Traces go there, since one of the two lies and a
third can find out which by computing one node.

Providers answer when they find the time (`running`, `busy`), so `challenge` makes one round and says what is missing;
the client asks again. What was answered is remembered, with the chains in the store.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from coppermesh.agent.ledger import EvidenceFound
from coppermesh.agent.ledger_store import LedgerStore, NotInLedger, ReceiptRow
from coppermesh.agent.story import StoryLine
from coppermesh.agent.traces import check_chain, contradiction, open_recorded
from coppermesh.exec.trace_digests import DIGEST_BYTES, TraceDigests, first_difference
from coppermesh.p2p.blob_store import BlobMissing, BlobStore, Scope
from coppermesh.p2p.control import ControlHub
from coppermesh.p2p.envelope import Opened
from coppermesh.p2p.errors import MeshError, Refused, RemoteProtocolError
from coppermesh.p2p.ids import Digest, MeshId, PeerId, format_peer, short_peer
from coppermesh.p2p.messages import INLINE_BYTES, BlobInfo, ChallengeReply, ChallengeRequest, InlineBlob
from coppermesh.p2p.records import Receipt, Task, Trace
from coppermesh.p2p.transfer import fetch_blob, send_blob
from coppermesh.p2p.transport import Transport

CHALLENGE_SECONDS = 30.0
"""How long a provider has to answer one request; it says `running` after 20 s."""
MAX_ROUNDS = 3
"""A provider that still needs blobs after so many requests is at fault."""
MAX_COMPARED = 3
"""Providers of one task that are challenged, the job's own included."""
LOOKED_THROUGH = 1000
"""Newest receipts among which others of the same work are looked for."""
MAX_REMEMBERED = 256

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A provider's answer: its signed Trace, checked against its receipt."""

    receipt: Opened[Receipt]
    trace: Opened[Trace]

    @property
    def provider(self) -> PeerId:
        """Who signed both."""
        return self.receipt.signer


@dataclass(frozen=True, slots=True)
class Postponed:
    """No answer yet."""

    provider: PeerId
    state: str
    """`running` or `busy`."""
    retry_us: int
    sentence: str


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
        self._mesh = mesh
        self._transport = transport
        self._hub = hub
        self._ledger = ledger
        self._store = store
        self._scope = scope
        self._now_us = now_us
        self._recorded: OrderedDict[Digest, Recorded] = OrderedDict()
        self._told: OrderedDict[tuple[Digest, ...], None] = OrderedDict()
        """Comparisons that are in the story."""
        self._turn = trio.Lock()

    async def challenge(self, prefix: str, index: int) -> dict[str, Any]:
        """One round for task `index` of the job whose id begins with `prefix`: the facts, as plain values.

        `state` is `recorded`, or `running` or `busy` with `retry_s`: call again. Raises NotInLedger, and what the
        job's own provider raises: Refused, Unreachable, RemoteProtocolError. Others that refuse are listed.
        """
        async with self._turn:
            job, rows = await self._find(prefix, index)
            task = await self._task(rows[0])
            recorded: list[Recorded] = []
            refusals: list[dict[str, str]] = []
            for row in rows:
                try:
                    answer = await self._ask_once(job, index, row, task)
                except MeshError as error:
                    if row is rows[0]:
                        self._tell(job, index, row.peer, "challenge", f"no digests: {error}")
                        raise
                    refusals.append({"provider": format_peer(row.peer), "sentence": str(error)})
                    continue
                if isinstance(answer, Postponed):
                    return _postponed(answer)
                recorded.append(answer)
            return await self._conclude(job, index, task, recorded, refusals)

    def note_local(self, job: bytes, index: int, text: str) -> None:
        """A client ran the task on this machine and compared: for the story."""
        self._tell(job, index, None, "challenge", text)

    async def _find(self, prefix: str, index: int) -> tuple[bytes, list[ReceiptRow]]:
        """The job, and receipts of the same work by different providers, the job's own first."""
        job = (await self._ledger.story(prefix))[0].job
        of_job = [
            row for row in await self._ledger.receipts(job=job, limit=LOOKED_THROUGH * 100) if _ran(row)
        ]
        own = [row for row in of_job if row.index == index]
        if not own:
            raise NotInLedger(
                f"task {index} of job {job.hex()[:8]} has no receipt of a run: nothing to challenge"
            )
        own.sort(key=lambda row: row.verdict != "accepted")  # the receipt that counts comes first
        first = own[0].receipt
        others = [*own[1:], *of_job, *await self._ledger.receipts(limit=LOOKED_THROUGH)]
        rows = {own[0].peer: own[0]}
        for row in others:
            same = (row.receipt.program, row.receipt.inputs) == (first.program, first.inputs)
            if same and _ran(row) and len(rows) < MAX_COMPARED:
                rows.setdefault(row.peer, row)
        return job, list(rows.values())

    async def _task(self, row: ReceiptRow) -> Task:
        task = await self._ledger.task(Digest(row.receipt.task_id))
        if task is None:
            raise NotInLedger("the ledger has the receipt and not its task")
        return task.record

    # One provider

    async def _ask_once(self, job: bytes, index: int, row: ReceiptRow, task: Task) -> Recorded | Postponed:
        known = self._recorded.get(row.id)
        if known is not None and await self._store.ensure(self._scope, Digest(known.trace.record.chain)):
            return known
        stored = await self._ledger.receipt(row.id)
        if stored is None:
            raise NotInLedger(f"receipt {row.id.hex()[:12]} is gone from the ledger")
        if known is None:
            self._tell(
                job, index, row.peer, "challenge", f"asked for the digests of receipt {row.id.hex()[:12]}"
            )
        reply = await self._request(row, await self._at_hand(task))
        if reply.state != "recorded":
            return Postponed(row.peer, reply.state, reply.retry_us, reply.sentence)
        try:
            trace = open_recorded(reply, stored.opened)
            await self._take_chain(trace, reply.chain)
        except RemoteProtocolError as error:
            self._tell(job, index, row.peer, "evidence", str(error))
            raise
        recorded = Recorded(stored.opened, trace)
        self._recorded[row.id] = recorded
        while len(self._recorded) > MAX_REMEMBERED:
            self._recorded.popitem(last=False)
        await self._judge(job, index, recorded)
        return recorded

    async def _at_hand(self, task: Task) -> list[BlobInfo]:
        """Those of the task's blobs that are still here."""
        blobs = []
        for name in dict.fromkeys([task.program, *task.inputs]):
            root = Digest(name)
            if await self._store.ensure(self._scope, root):
                blobs.append(BlobInfo(root, self._store.size_of(self._scope, root)))
        return blobs

    async def _request(self, row: ReceiptRow, blobs: list[BlobInfo]) -> ChallengeReply:
        """Ask, and send what it needs. Raises Refused, Unreachable, RemoteProtocolError."""
        inline: list[InlineBlob] = []
        for _ in range(MAX_ROUNDS):
            request = ChallengeRequest(row.id, blobs, inline)
            reply = await self._hub.request(
                row.peer, "challenge", request, ChallengeReply, deadline_s=CHALLENGE_SECONDS
            )
            if reply.state != "need":
                return reply
            inline = await self._supply(row.peer, blobs, set(reply.need))
        raise RemoteProtocolError("still needs blobs that it was sent")

    async def _supply(self, peer: PeerId, blobs: Sequence[BlobInfo], needed: set[bytes]) -> list[InlineBlob]:
        """Send the large ones of `needed`; give the small ones, to ride in the next request."""
        wanted = [blob for blob in blobs if blob.root in needed]
        if len(wanted) != len(needed):
            raise RemoteProtocolError("needs blobs that were not offered")
        inline, room = [], INLINE_BYTES
        try:
            for blob in wanted:
                root = Digest(blob.root)
                if blob.size <= room:
                    inline.append(InlineBlob(root, await self._store.read(self._scope, root)))
                    room -= blob.size
                    continue
                with await self._store.open(self._scope, root) as source:
                    await send_blob(
                        self._transport, self._mesh, peer, root, source.leaves, source.fd, size=source.size
                    )
        except BlobMissing as error:
            raise Refused("blobs-gone", f"a blob of the task was evicted here meanwhile: {error}") from error
        return inline

    async def _take_chain(self, trace: Opened[Trace], inline: bytes | None) -> None:
        """The digests into the store, checked. Raises RemoteProtocolError, Refused, Unreachable, StoreFull."""
        record = trace.record
        root = Digest(record.chain)
        if inline is not None:
            await self._store.put(self._scope, root, inline)  # `open_recorded` has checked them
            return
        size = DIGEST_BYTES * record.nodes
        await fetch_blob(self._transport, self._mesh, trace.signer, root, size, self._store, self._scope)
        data = await self._store.read(self._scope, root)
        await trio.to_thread.run_sync(check_chain, record, data)

    async def _judge(self, job: bytes, index: int, recorded: Recorded) -> None:
        """Tell what came, and keep what proves a lie."""
        trace, receipt = recorded.trace.record, recorded.receipt
        when = "recorded with the first run" if trace.first_run else "recorded by running it again"
        text = f"{trace.nodes} digests, root {trace.root.hex()[:12]}, {when}, class {trace.determinism}"
        self._tell(job, index, recorded.provider, "trace", text)
        problem = contradiction(trace, receipt.record)
        if problem:
            records = (receipt.signed, recorded.trace.signed)
            self._tell(job, index, recorded.provider, "evidence", problem)
            found = EvidenceFound("trace-contradiction", recorded.provider, records, self._now_us(), problem)
            await self._ledger.commit(found)

    # All of them

    async def _conclude(
        self,
        job: bytes,
        index: int,
        task: Task,
        recorded: Sequence[Recorded],
        refusals: Sequence[dict[str, str]],
    ) -> dict[str, Any]:
        first = recorded[0]
        mine = await self._digests(first)
        comparisons = []
        for other in recorded[1:]:
            theirs = await self._digests(other)
            facts = await trio.to_thread.run_sync(compare_traces, first, mine, other, theirs)
            comparisons.append(facts)
            await self._tell_comparison(job, index, first, other, facts)
        blobs = {blob.root: blob for blob in await self._at_hand(task)}
        return {
            "state": "recorded",
            "job": job.hex(),
            "task": index,
            "program": _blob_facts(blobs.get(task.program)),
            "inputs": [_blob_facts(blobs.get(root)) for root in task.inputs],
            "traces": [_trace_facts(one) for one in recorded],
            "comparisons": comparisons,
            "refusals": list(refusals),
        }

    async def _digests(self, recorded: Recorded) -> TraceDigests:
        record = recorded.trace.record
        data = await self._store.read(self._scope, Digest(record.chain))
        return TraceDigests.from_bytes(record.start, data)

    async def _tell_comparison(
        self, job: bytes, index: int, one: Recorded, other: Recorded, facts: dict[str, Any]
    ) -> None:
        pair = (one.trace.id, other.trace.id)
        if pair in self._told:
            return
        self._told[pair] = None
        while len(self._told) > MAX_REMEMBERED:
            self._told.popitem(last=False)
        text = f"compared with {short_peer(other.provider)}: {facts['sentence']}"
        self._tell(job, index, one.provider, "challenge", text)
        if facts["fault"]:
            records = (one.receipt.signed, one.trace.signed, other.receipt.signed, other.trace.signed)
            for peer in (one.provider, other.provider):
                words = f"one of two providers is wrong, not known which: {facts['sentence']}"
                await self._ledger.commit(EvidenceFound("traces-part", peer, records, self._now_us(), words))

    def _tell(self, job: bytes, index: int, peer: PeerId | None, kind: str, text: str) -> None:
        self._ledger.note(StoryLine(job, self._now_us(), "challenge", kind, peer, index, text))


def compare_traces(
    one: Recorded, mine: TraceDigests, other: Recorded, theirs: TraceDigests
) -> dict[str, Any]:
    """Where two providers part, as plain values: `node` is None where all digests agree, or the chains cannot meet."""
    same_class = one.trace.record.determinism == other.trace.record.determinism
    facts: dict[str, Any] = {
        "providers": [format_peer(one.provider), format_peer(other.provider)],
        "classes": [one.trace.record.determinism, other.trace.record.determinism],
        "same_class": same_class,
        "node": None,
        "fault": False,
    }
    try:
        node = first_difference(mine, theirs)
    except ValueError:
        # Their receipts name one program and one list of inputs: no class excuses another beginning.
        return {**facts, "fault": True, "sentence": "their chains begin differently: one ran something else"}
    if node is None:
        return {**facts, "sentence": "every node agrees"}
    sentence = f"they part at node {node}" + ("" if same_class else ", in different classes: bits may differ")
    return {**facts, "node": node, "fault": same_class, "sentence": sentence}


def _ran(row: ReceiptRow) -> bool:
    return row.role == "requester" and row.receipt.status == "ok"


def _postponed(answer: Postponed) -> dict[str, Any]:
    return {
        "state": answer.state,
        "provider": format_peer(answer.provider),
        "retry_s": answer.retry_us / 1e6,
        "sentence": answer.sentence,
    }


def _blob_facts(blob: BlobInfo | None) -> dict[str, Any] | None:
    return None if blob is None else {"root": blob.root.hex(), "size": blob.size}


def _trace_facts(recorded: Recorded) -> dict[str, Any]:
    trace, receipt = recorded.trace.record, recorded.receipt.record
    return {
        "provider": format_peer(recorded.provider),
        "receipt": recorded.receipt.id.hex(),
        "trace": recorded.trace.id.hex(),
        "determinism": trace.determinism,
        "receipt_determinism": receipt.determinism,
        "first_run": trace.first_run,
        "nodes": trace.nodes,
        "start": trace.start.hex(),
        "root": trace.root.hex(),
        "receipt_root": receipt.trace.hex(),
        "outputs": trace.outputs.hex(),
        "receipt_outputs": receipt.outputs.hex(),
        "chain": {"root": trace.chain.hex(), "size": DIGEST_BYTES * trace.nodes},
        "contradiction": contradiction(trace, receipt),
    }
