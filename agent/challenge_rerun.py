"""Running the task of a challenged receipt again, and signing what its nodes gave.

What is run, and for how long, is decided by the receipt and its lease alone; whether it is run is `challenge_server`'s.
"""

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

import trio

from coppermesh.agent.ledger import StoredLease
from coppermesh.agent.traces import build_trace
from coppermesh.exec.runs import InputBuffer, RunOutcome, WorkerLimits
from coppermesh.exec.supervisor import Supervisor
from coppermesh.exec.trace_digests import TraceDigests
from coppermesh.p2p.blob_store import BlobStore, Scope
from coppermesh.p2p.blobs import digest_of
from coppermesh.p2p.envelope import Opened, open_verified, sign_record
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import Digest, MeshId, PeerId
from coppermesh.p2p.records import Order, Receipt, Task, Trace
from coppermesh.p2p.signing import PeerKey

RUN_FACTOR = 4
"""A run that records may take so many times what the first one took, and `RUN_SPARE_US`: hashing costs time too."""
RUN_SPARE_US = 10_000_000
MAX_RUN_US = 600_000_000
SMALL_INPUT_BYTES = 16 * 1024
"""Inputs up to this size are handed to the worker by value, larger ones as open files."""


class ChallengedDevice(Protocol):
    """What is needed of a device on offer."""

    @property
    def supervisor(self) -> Supervisor:
        """What runs its workers."""
        ...


@dataclass(frozen=True, slots=True)
class Case:
    """A receipt that may be challenged, and what it takes to run its task again."""

    peer: PeerId
    receipt: Opened[Receipt]
    task: Task
    lease: StoredLease

    @property
    def roots(self) -> dict[bytes, None]:
        """Every blob of the task, once."""
        return dict.fromkeys([self.task.program, *self.task.inputs])


class Recorder:
    """Runs tasks again and signs Traces."""

    def __init__(
        self,
        key: PeerKey,
        mesh: MeshId,
        store: BlobStore,
        devices: Mapping[str, ChallengedDevice],
        now_us: Callable[[], int],
    ) -> None:
        self._key = key
        self._mesh = mesh
        self._store = store
        self._devices = devices
        self._now_us = now_us

    async def record(self, case: Case) -> Opened[Trace]:
        """Run the task again and sign what it left. Raises Refused, MeshError, ExecError, OSError."""
        outcome = await self._execute(case)
        try:
            if outcome.status != "ok" or outcome.digests is None:
                sentence = f"the task failed when it was run again: {outcome.code}: {outcome.sentence}"
                raise Refused("rerun-failed", sentence[:400])
            outputs: list[bytes] = [
                await trio.to_thread.run_sync(digest_of, output.view) for output in outcome.outputs
            ]
        finally:
            outcome.close()
        return await self.sign(case.receipt, outcome.digests, outputs, outcome.determinism, first_run=False)

    async def _execute(self, case: Case) -> RunOutcome:
        lease, receipt = case.lease.opened.record, case.receipt.record
        kernels = "cuda-source" in open_verified(Order, case.lease.order).record.features
        limits = WorkerLimits.under_lease(lease.device_kind, lease.memory_bytes, lease.wall_limit_us / 1e6)
        took_us = max(0, receipt.ended_us - receipt.started_us)
        wall_us = min(lease.wall_limit_us, RUN_FACTOR * took_us + RUN_SPARE_US, MAX_RUN_US)
        scope = (self._mesh, case.peer)
        program = await self._store.read(scope, Digest(case.task.program))
        async with AsyncExitStack() as stack:
            inputs = [await self._input(stack, scope, Digest(root)) for root in case.task.inputs]
            supervisor = self._devices[receipt.device].supervisor
            worker = await stack.enter_async_context(supervisor.worker(limits, kernels=kernels))
            return await worker.run(program, inputs, wall_us / 1e6, digests=True)

    async def _input(self, stack: AsyncExitStack, scope: Scope, root: Digest) -> InputBuffer:
        if self._store.size_of(scope, root) <= SMALL_INPUT_BYTES:
            data = await self._store.read(scope, root)
            return InputBuffer(len(data), data=data)
        opened = stack.enter_context(await self._store.open(scope, root))
        return InputBuffer(opened.size, fd=opened.fd)

    async def sign(
        self,
        receipt: Opened[Receipt],
        digests: TraceDigests,
        outputs: list[bytes],
        determinism: str,
        *,
        first_run: bool,
    ) -> Opened[Trace]:
        """Put the chain where the requester can get it, and sign. Raises StoreFull, OSError."""

        def build() -> Trace:
            return build_trace(
                receipt, digests, outputs, determinism, first_run=first_run, now_us=self._now_us()
            )

        trace = await trio.to_thread.run_sync(build)
        scope = (self._mesh, PeerId(receipt.record.requester))
        await self._store.put(scope, Digest(trace.chain), digests.to_bytes())
        return open_verified(Trace, sign_record(self._key, trace))
