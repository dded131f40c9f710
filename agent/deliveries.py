"""Results on their way from a receipt to the client: compared where a task ran several times, small ones in events."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import trio

from coppermesh.agent.attempts import TaskOutcome
from coppermesh.agent.copies import Copy, can_rerun, judge, within_tolerance
from coppermesh.agent.held_leases import HeldLease
from coppermesh.agent.jobs import JobState, JobTable, ProgramFacts
from coppermesh.agent.local_messages import Blob, TaskSpec
from coppermesh.agent.screens import money
from coppermesh.p2p.blob_store import BlobStore, Scope
from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.ids import Digest, PeerId, format_peer
from coppermesh.p2p.messages import BlobInfo

_log = logging.getLogger(__name__)


class Deliveries:
    """Hands results over. Outputs come pinned; what stays in the store stays so as long as the job is kept."""

    def __init__(
        self,
        store: BlobStore,
        scope: Scope,
        jobs: JobTable,
        *,
        tell: Callable[[JobState, str, str, str, int | None], None],
        fail: Callable[[JobState, int, str], None],
    ) -> None:
        """`tell` adds a line to a job's story; `fail` ends a job whose task (by number) has no result to be taken."""
        self._store = store
        self._scope = scope
        self._jobs = jobs
        self._tell = tell
        self._fail = fail

    async def deliver(self, held: HeldLease, job: JobState, index: int, outcome: TaskOutcome) -> None:
        """Put the outputs, which come pinned, where the client finds them, and tell it."""
        receipt = _receipt_facts(held, outcome)
        if job.copies == 1:
            await self._hand_over(job, index, outcome.outputs, receipt)
            return
        job.pinned.extend(blob.root for blob in outcome.outputs)
        copy = Copy(held.provider, outcome.determinism, outcome.outputs, receipt)
        await self._add_copy(job, index, copy)

    async def count_failed(self, job: JobState, index: int, provider: PeerId, code: str) -> None:
        """A copy whose provider says that it failed by its own doing counts as one with another result."""
        facts = {"status": "job-failed", "code": code, "provider": format_peer(provider)}
        await self._add_copy(job, index, Copy(provider, "", (), facts, failed=code))

    async def _add_copy(self, job: JobState, index: int, copy: Copy) -> None:
        task = job.task_of(index)
        copies = job.compared.add(task, copy)
        if copies is None or job.ended_us is not None:
            return
        elementwise = can_rerun(job.facts(task).flops, job.facts(task).peak_bytes)
        found = await judge(copies, partial(self._tolerable, job.spec(task), job.facts(task), elementwise))
        if found.disagreement:
            self._tell(job, "disagree", f"{len(copies)} copies", found.disagreement, index)
        if found.taken is None:
            challenge = f"`coppermesh challenge {job.job.hex()[:8]} {task}` finds who is wrong"
            sentence = f"task {task} has different results: {found.disagreement}; none is taken. {challenge}"
            self._fail(job, task, sentence)
            return
        facts = {
            **found.taken.receipt,
            "copies": [copy.receipt for copy in copies],
            "agreement": "bitwise" if found.bitwise else "elementwise" if elementwise else "tolerance",
            "disagreement": found.disagreement,
        }
        for blob in found.taken.outputs:  # `_hand_over` keeps or releases a pin of its own
            self._store.pin(Digest(blob.root))
        await self._hand_over(job, task, found.taken.outputs, facts)

    async def _tolerable(
        self, spec: TaskSpec, facts: ProgramFacts, elementwise: bool, a: Copy, b: Copy
    ) -> bool:
        """Compare two results across determinism classes. What cannot be read here agrees with nothing."""
        try:
            code = await self._store.read(self._scope, Digest(spec.program))
            sides = [await self._read_all(copy.outputs) for copy in (a, b)]
            inputs = (facts.inputs, await self._read_all(spec.inputs)) if elementwise else None
        except (MeshError, OSError) as error:
            _log.error("results cannot be compared: %s", error)
            return False
        first, second = sides
        try:
            return await trio.to_thread.run_sync(within_tolerance, code, facts.outputs, first, second, inputs)
        except Exception as error:  # noqa: BLE001 - whatever a provider's bytes bring about, the agent goes on
            _log.error("results cannot be compared", exc_info=error)
            return False

    async def _read_all(self, blobs: Sequence[BlobInfo]) -> list[bytes]:
        return [await self._store.read(self._scope, Digest(blob.root)) for blob in blobs]

    async def _hand_over(
        self, job: JobState, task: int, outputs: Sequence[BlobInfo], receipt: Mapping[str, object]
    ) -> None:
        inline = await self._read_small(job, outputs)
        if inline or job.ended_us is not None:
            for blob in outputs:
                self._store.unpin(Digest(blob.root))
        else:
            job.pinned.extend(blob.root for blob in outputs)
        if job.ended_us is not None:
            return
        job.done += 1
        facts = {"done": job.done, "tasks": len(job.tasks), "receipt": receipt}
        job.tell("task", facts, index=task, outputs=outputs, inline=inline)

    async def _read_small(self, job: JobState, outputs: Sequence[BlobInfo]) -> list[Blob]:
        """Outputs that may ride in the job's event; none where they stay in the store."""
        if not self._jobs.take_inline(job, sum(blob.size for blob in outputs)):
            return []
        try:
            return [
                Blob(blob.root, await self._store.read(self._scope, Digest(blob.root))) for blob in outputs
            ]
        except (MeshError, OSError) as error:
            _log.error("outputs of job %s cannot be read: %s", job.job.hex()[:8], error)
            return []


def _receipt_facts(held: HeldLease, outcome: TaskOutcome) -> dict[str, object]:
    """What a script sees of a receipt: `job.receipt`."""
    lease = held.record
    assert outcome.receipt_id is not None
    return {
        "id": outcome.receipt_id.hex(),
        "status": "ok",
        "provider": held.provider_text,
        "device": held.granted.device_name,
        "device_kind": lease.device_kind,
        "billed_us": outcome.billed_us,
        "amount": outcome.amount,
        "unit": lease.unit,
        "price": money(outcome.amount, lease.unit),
        "lease": held.id.hex(),
        "verified": True,
    }
