"""The requester's side of one task under a lease: sign, commit, offer, send what is needed, wait for the result.

The task record is in the ledger before its signature leaves, so that a result that comes after a crash can still be
judged. Blobs that the provider was sent before are named, not sent again; small ones ride in the offer. First offers
that are ready at the same time share one commit and one message (`batches`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import trio

from coppermesh.agent.attempts import Outstanding, TaskOutcome
from coppermesh.agent.batches import Batches
from coppermesh.agent.held_leases import HeldLease
from coppermesh.agent.jobs import JobState
from coppermesh.agent.ledger import TaskIssued
from coppermesh.agent.ledger_store import LedgerStore
from coppermesh.agent.negotiation import Move, Role, TaskRun
from coppermesh.agent.pricing import amount_for
from coppermesh.agent.story import StoryLine
from coppermesh.p2p.blob_store import BlobStore, Scope
from coppermesh.p2p.control import ControlHub
from coppermesh.p2p.envelope import seal_record
from coppermesh.p2p.errors import MeshError, Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import Digest, MeshId, PeerId
from coppermesh.p2p.messages import (
    INLINE_BYTES,
    BlobInfo,
    InlineBlob,
    TaskReply,
    TaskRequest,
    TasksReply,
    TasksRequest,
)
from coppermesh.p2p.records import Task
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transfer import send_blob
from coppermesh.p2p.transport import Transport

OFFER_SECONDS = 15.0
"""How long a provider has to answer a task, small blobs being stored included."""
MAX_OFFERS = 4
"""A provider that still needs blobs after this many offers is at fault."""
GRACE_SECONDS = 20.0
"""Added to the wall limits of the tasks ahead when waiting for a result: transfer, compiling, a busy machine."""
SLOW_BYTES_PER_SECOND = 1 << 20
"""A provider whose line is slower than this may lose the task while its outputs are on their way."""
MAX_KNOWN = 65_536
"""Blobs remembered per provider as sent."""


class KnownBlobs:
    """What each provider was already sent in this run. A hint: the provider's `need` is the truth."""

    def __init__(self) -> None:
        self._by_peer: dict[PeerId, dict[bytes, None]] = {}

    def has(self, peer: PeerId, root: bytes) -> bool:
        """Was it sent there?"""
        return root in self._by_peer.get(peer, {})

    def add(self, peer: PeerId, roots: list[bytes]) -> None:
        """Remember; the oldest are forgotten beyond `MAX_KNOWN`."""
        known = self._by_peer.setdefault(peer, {})
        for root in roots:
            known[root] = None
        while len(known) > MAX_KNOWN:
            del known[next(iter(known))]

    def missing_bytes(self, peer: PeerId, blobs: Iterable[BlobInfo]) -> int:
        """What of the larger ones among `blobs`, each counted once, was not sent there; small ones ride along."""
        sizes = {blob.root: blob.size for blob in blobs if blob.size > INLINE_BYTES}
        return sum(size for root, size in sizes.items() if not self.has(peer, root))

    def forget(self, peer: PeerId) -> None:
        """The peer left: it may have restarted with an empty store."""
        self._by_peer.pop(peer, None)


@dataclass(frozen=True, slots=True)
class _Offer:
    """An attempt that is to be written down and offered for the first time."""

    attempt: Outstanding
    request: TaskRequest


_WITHDRAWN = TaskReply("refused", [], "cancelled", "")
"""Stands for an offer that was given up before it left."""


class TaskDriver:
    """Runs attempts; each ends in exactly one `TaskOutcome`. `run_batches` must be running."""

    def __init__(
        self,
        key: PeerKey,
        mesh: MeshId,
        transport: Transport,
        hub: ControlHub,
        ledger: LedgerStore,
        store: BlobStore,
        *,
        now_us: Callable[[], int],
    ) -> None:
        self._key = key
        self._mesh = mesh
        self._transport = transport
        self._hub = hub
        self._ledger = ledger
        self._store = store
        self._now_us = now_us
        self._scope: Scope = (mesh, key.peer)
        self.known = KnownBlobs()
        self._offers: Batches[tuple[PeerId, bytes], _Offer, TaskReply] = Batches(self._send_offers)
        self.run_batches = self._offers.run

    def begin(self, held: HeldLease, job: JobState, index: int) -> Outstanding:
        """Make an attempt at task `index` of `job` under `held`. Nothing leaves before `run`."""
        attempt = self._sign(held, job, index)
        held.outstanding[attempt.task.record.number] = attempt
        return attempt

    async def run(self, held: HeldLease, job: JobState, attempt: Outstanding) -> TaskOutcome:
        """The attempt from its first commit until its outcome. Never raises MeshError."""
        number = attempt.task.record.number
        self._tell(held, attempt, "task", f"sent as number {number} of lease {held.id.hex()[:8]}")
        try:
            with attempt.offering:
                if not attempt.is_over:
                    await self._offer(held, attempt, _blobs(job, attempt.index))
            await self._await_result(held, job, attempt)
        except Refused as refusal:
            await attempt.give_up("superseded", TaskOutcome("refused", refusal.code, refusal.sentence))
        except RemoteProtocolError as error:
            self._tell(held, attempt, "evidence", str(error))
            await attempt.give_up("superseded", TaskOutcome("provider", "protocol", str(error)))
        except Unreachable as error:
            await attempt.give_up("superseded", TaskOutcome("provider", "unreachable", str(error)))
        except (MeshError, OSError) as error:  # our own ledger or store: no other provider would mend it
            await attempt.give_up("cancelled", TaskOutcome("job", "requester", str(error)))
        await attempt.ended.wait()
        assert attempt.outcome is not None
        return attempt.outcome

    def _sign(self, held: HeldLease, job: JobState, index: int) -> Outstanding:
        now_us = self._now_us()
        spec = job.spec(index)
        wall_us = held.record.wall_limit_us
        task = Task(
            version=1,
            mesh=self._mesh,
            lease=held.id,
            number=held.take_number(),
            requester=self._key.peer,
            job=job.job,
            index=index,
            program=spec.program,
            inputs=[blob.root for blob in spec.inputs],
            max_amount=min(amount_for(held.record.rate, wall_us), held.record.budget),
            issued_us=now_us,
            expires_us=min(held.until_us, now_us + 10 * wall_us + int(GRACE_SECONDS * 1e6)),
        )
        opened = seal_record(self._key, task)
        return Outstanding(job.job, index, opened, TaskRun(Role.REQUESTER, now_us), now_us)

    async def _offer(self, held: HeldLease, attempt: Outstanding, blobs: list[BlobInfo]) -> None:
        """Offer until accepted. Raises Refused, Unreachable, RemoteProtocolError."""
        peer = held.provider
        request = TaskRequest(attempt.task.signed, blobs, await self._inline(peer, blobs))
        under = (peer, attempt.task.record.lease)  # one lease never waits for another
        reply = await self._offers.submit(
            under, _Offer(attempt, request), _size_of(request), order=attempt.task.record.number
        )
        for _ in range(MAX_OFFERS - 1):
            if self._is_taken(attempt, reply):
                return
            self.known.forget(peer)
            inline = await self._supply(held, attempt, blobs, set(reply.need))
            if attempt.is_over:
                return
            attempt.run.step(Move.OFFER, Role.REQUESTER, self._now_us(), "offer")
            request = TaskRequest(attempt.task.signed, blobs, inline)
            reply = await self._hub.request(peer, "task", request, TaskReply, deadline_s=OFFER_SECONDS)
            self._note_known(peer, [request], [reply])
        if not self._is_taken(attempt, reply):
            raise RemoteProtocolError("still needs blobs that it was sent")

    def _is_taken(self, attempt: Outstanding, reply: TaskReply) -> bool:
        """Nothing more is to be sent: it was accepted, or is over. False: blobs are needed. Raises Refused."""
        if attempt.is_over:
            return True
        if reply.state == "accepted":
            attempt.run.step(Move.ACCEPT, Role.PROVIDER, self._now_us(), "offer")
            return True
        if reply.state == "refused":
            attempt.run.step(Move.REFUSE, Role.PROVIDER, self._now_us(), "offer")
            raise Refused(reply.code, reply.sentence)
        attempt.run.step(Move.NEED, Role.PROVIDER, self._now_us(), "offer")
        return False

    async def _send_offers(
        self, under: tuple[PeerId, bytes], offers: Sequence[_Offer]
    ) -> Sequence[TaskReply | MeshError]:
        """Write down and send what is ready under one lease. A failure of one is not the others'."""
        outcomes: list[TaskReply | MeshError] = [_WITHDRAWN] * len(offers)
        written = [index for index, offer in enumerate(offers) if not offer.attempt.is_over]
        for index, failure in (await self._write_down([offers[index].attempt for index in written])).items():
            outcomes[written[index]] = failure
        left = [
            index for index in written if outcomes[index] is _WITHDRAWN and not offers[index].attempt.is_over
        ]
        if not left:
            return outcomes
        for index in left:
            offers[index].attempt.run.step(Move.OFFER, Role.REQUESTER, self._now_us(), "offer")
        requests = [offers[index].request for index in left]
        for index, reply in zip(left, await self._ask(under[0], requests), strict=True):
            outcomes[index] = reply
        return outcomes

    async def _write_down(self, attempts: Sequence[Outstanding]) -> dict[int, MeshError]:
        """In the ledger before anything leaves. Gives what kept one from it, by its place."""
        for attempt in attempts:
            attempt.issued = True
        try:
            if attempts:
                await self._ledger.commit(*(TaskIssued(attempt.task.signed) for attempt in attempts))
        except MeshError as error:
            if len(attempts) == 1:
                return {0: error}
        else:
            return {}
        failures = {}
        for index, attempt in enumerate(attempts):
            try:
                await self._ledger.commit(TaskIssued(attempt.task.signed))
            except MeshError as error:
                failures[index] = error
        return failures

    async def _ask(self, peer: PeerId, requests: list[TaskRequest]) -> list[TaskReply]:
        """The provider's answer to each. Raises Unreachable, Refused, RemoteProtocolError."""
        if len(requests) == 1:
            replies = [
                await self._hub.request(peer, "task", requests[0], TaskReply, deadline_s=OFFER_SECONDS)
            ]
        else:
            answer = await self._hub.request(
                peer, "tasks", TasksRequest(requests), TasksReply, deadline_s=OFFER_SECONDS
            )
            replies = answer.replies
            if len(replies) != len(requests):
                raise RemoteProtocolError(f"answered {len(replies)} of {len(requests)} tasks")
        self._note_known(peer, requests, replies)
        return replies

    def _note_known(
        self, peer: PeerId, requests: Sequence[TaskRequest], replies: Sequence[TaskReply]
    ) -> None:
        for request, reply in zip(requests, replies, strict=True):
            if reply.state == "accepted":
                self.known.add(peer, [blob.root for blob in request.blobs])

    async def _inline(self, peer: PeerId, blobs: list[BlobInfo]) -> list[InlineBlob]:
        """The small blobs that this provider was not sent yet, as many as fit."""
        chosen: dict[bytes, InlineBlob] = {}
        room = INLINE_BYTES
        for blob in blobs:
            if blob.size <= room and blob.root not in chosen and not self.known.has(peer, blob.root):
                data = await self._store.read(self._scope, Digest(blob.root))
                chosen[blob.root] = InlineBlob(blob.root, data)
                room -= blob.size
        return list(chosen.values())

    async def _supply(
        self, held: HeldLease, attempt: Outstanding, blobs: list[BlobInfo], needed: set[bytes]
    ) -> list[InlineBlob]:
        """Send the large ones of `needed` on streams; return the small ones to ride in the next offer."""
        wanted = {blob.root: blob for blob in blobs if blob.root in needed}
        if len(wanted) != len(needed):
            raise RemoteProtocolError("needs blobs that the task does not name")
        small = await self._inline(held.provider, list(wanted.values()))
        inline_roots = {blob.root for blob in small}
        large = [blob for root, blob in wanted.items() if root not in inline_roots]
        if large:
            total = sum(blob.size for blob in large)
            self._tell(held, attempt, "need", f"{len(large)} blobs, {total} bytes")
        for blob in large:
            with await self._store.open(self._scope, Digest(blob.root)) as source:
                await send_blob(
                    self._transport,
                    self._mesh,
                    held.provider,
                    Digest(blob.root),
                    source.leaves,
                    source.fd,
                    size=source.size,
                    rings=self._store.rings,
                    lease=held.id,
                )
        return small

    async def _await_result(self, held: HeldLease, job: JobState, attempt: Outstanding) -> None:
        """Wait for the outcome that the result's handler sets; a provider that never delivers is at fault."""
        ahead = [other for other in held.outstanding.values() if other.outcome is None]
        seconds = len(ahead) * held.record.wall_limit_us / 1e6 + GRACE_SECONDS
        seconds += job.output_bytes(attempt.index) / SLOW_BYTES_PER_SECOND
        with trio.move_on_after(seconds):
            await attempt.ended.wait()
            return
        text = f"no result within {seconds:.0f} s"
        await attempt.give_up("no-result", TaskOutcome("provider", "no-result", text))

    def _tell(self, held: HeldLease, attempt: Outstanding, kind: str, text: str) -> None:
        cause = f"lease {held.id.hex()[:8]}"
        line = StoryLine(attempt.job, self._now_us(), cause, kind, held.provider, attempt.index, text)
        self._ledger.note(line)


def _blobs(job: JobState, index: int) -> list[BlobInfo]:
    """Every blob that the task names, each once: the program first, then the inputs."""
    spec = job.spec(index)
    named = {spec.program: BlobInfo(spec.program, job.programs[spec.program].size)}
    for blob in spec.inputs:
        named.setdefault(blob.root, blob)
    return list(named.values())


def _size_of(request: TaskRequest) -> int:
    """About what it has on the wire, in bytes."""
    return (
        len(request.task.body) + 128 + 36 * len(request.blobs) + sum(len(b.data) + 40 for b in request.inline)
    )
