"""Serving one lease: its queue of tasks, its worker, its lane of receipts.

Tasks run one after another in the lease's own worker process. A receipt is committed before it is sent, and is sent by
the outbox, which keeps at it until it is countersigned: the next task does not wait for that. A task that fails gets a
receipt that says so, and the lease goes on; whatever else goes wrong ends this lease (`end_code`, `end_sentence`) and
nothing besides.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

import trio

from coppermesh.agent.costs import MODEL, modelled_mw
from coppermesh.agent.leases import SpentNumbers, check_pay, check_task
from coppermesh.agent.ledger import LeaseEnded, ReceiptIssued, TaskTaken
from coppermesh.agent.ledger_store import LedgerStore
from coppermesh.agent.negotiation import Move, Role, TaskRun, TaskState
from coppermesh.agent.receipts import LaneHead, RunFacts, build_receipt
from coppermesh.agent.result_outbox import PendingResult, ResultOutbox
from coppermesh.agent.sharing import Obstacle
from coppermesh.exec.device import DeviceInfo
from coppermesh.exec.errors import ExecError
from coppermesh.exec.supervisor import InputBuffer, RunOutcome, Supervisor, Worker, WorkerLimits
from coppermesh.exec.trace_digests import TraceDigests
from coppermesh.p2p.blob_store import BlobMissing, BlobStore, Scope, StoreFull
from coppermesh.p2p.blobs import roots_digest
from coppermesh.p2p.channel import clean_sentence
from coppermesh.p2p.encoding import decode
from coppermesh.p2p.envelope import Opened, open_record, seal_record
from coppermesh.p2p.errors import MeshError, Refused, RemoteProtocolError
from coppermesh.p2p.ids import Digest, MeshId, PeerId
from coppermesh.p2p.lease_records import Extension
from coppermesh.p2p.messages import ExtendReply, TaskReply, TaskRequest
from coppermesh.p2p.records import ZERO_HASH, Lease, Receipt, Task
from coppermesh.p2p.signing import PeerKey

SMALL_INPUT_BYTES = 16 * 1024
"""Inputs up to this size are handed to the worker by value, larger ones as open files."""
BLOBS_US = 60_000_000
"""How long the blobs of a task may take before its lease counts as idle to those who wait."""
ISSUE_SECONDS = 60.0
"""Longest that hashing and storing outputs and committing a receipt may take."""
NODES_IN_LOOP = 2000
KeepDigests = Callable[[Opened[Receipt], RunOutcome, Sequence[bytes]], Awaitable[None]]
"""Takes a receipt that was just issued, its run with the digests, and the roots of its outputs."""

ACCEPTED = TaskReply("accepted", [], "ok", "")

_log = logging.getLogger(__name__)


class _Accepted:
    """A task in the queue."""

    def __init__(self, task: Opened[Task], run: TaskRun, request: TaskRequest) -> None:
        self.task = task
        self.run = run
        self.sizes = {blob.root: blob.size for blob in request.blobs}
        self.scope = trio.CancelScope()
        self.cancelled = False


class LeaseServer:
    """One lease being served. `run` ends when the lease does."""

    def __init__(
        self,
        lease: Opened[Lease],
        device: DeviceInfo,
        supervisor: Supervisor,
        key: PeerKey,
        mesh: MeshId,
        ledger: LedgerStore,
        store: BlobStore,
        outbox: ResultOutbox,
        *,
        kernels: bool,
        keep_digests: KeepDigests | None,
        issued: Callable[[Receipt], None] | None = None,
        now_us: Callable[[], int],
    ) -> None:
        """`keep_digests`, where given, says that the order asked for digests of nodes, and takes them.

        `issued` is told of each receipt.
        """
        self.lease = lease
        self.requester = PeerId(lease.record.requester)
        self._device = device
        self._supervisor = supervisor
        self._key = key
        self._ledger = ledger
        self._store = store
        self._outbox = outbox
        self._credit = outbox.credit
        self._kernels = kernels
        self._keep_digests = keep_digests
        self._issued = issued
        self.tell_paused: Callable[[str], None] = lambda _: None
        """Told of a pause with its sentence, and of its end with none."""
        self.paused = False
        """No further task starts for now: receipts wait for the requester's countersignature."""
        self.until_us = lease.record.expires_us
        """When it ends, extensions included."""
        self.extensions = 0
        self.last_extension: ExtendReply | None = None
        self.last_extension_id: Digest | None = None
        self.extending = trio.Lock()
        """Held while an extension is being committed: the same one sent twice is one."""
        self._life = trio.CancelScope()
        self._running_since_us: int | None = None
        self._now_us = now_us
        self._scope: Scope = (mesh, self.requester)
        self._spent = SpentNumbers()
        self._head = LaneHead()
        self._tasks: dict[int, _Accepted] = {}
        self._queue_in, self._queue_out = trio.open_memory_channel[_Accepted](math.inf)
        self._ending = trio.CancelScope()
        self._over = False
        self._draining: Obstacle | None = None
        self.end_code = "expired"
        self.end_sentence = "the lease's time is over"
        self.told = False
        self._idle_since_us = now_us()
        self._blobs_due_us = 0
        """Until when a task that was answered with `need` counts as on its way."""
        """The requester knows that the lease is over, or cannot be reached."""

    @staticmethod
    def lease_named_in(task_body: bytes) -> Digest:
        """Which lease a task claims to belong to; nothing about it is proven yet. Raises RemoteProtocolError."""
        return Digest(decode(Task, task_body, max_bytes=Task.MAX_BYTES).lease)

    @property
    def tasks_accepted(self) -> int:
        """Tasks that run or wait."""
        return len(self._tasks)

    @property
    def is_ending(self) -> bool:
        """It was stopped; its worker may take a while to be gone."""
        return self._ending.cancel_called

    def idle_us(self, now_us: int) -> int:
        """For how long the lease has had no task; 0 while it has one, or was promised the blobs of one."""
        if self._tasks or now_us < self._blobs_due_us:
            return 0
        return max(0, now_us - self._idle_since_us)

    def running_us(self, now_us: int) -> int:
        """For how long the task that runs now has run; 0 where none does."""
        return 0 if self._running_since_us is None else max(0, now_us - self._running_since_us)

    def stop(self, code: str, sentence: str, *, told: bool = False) -> None:
        """End the lease now: the running task is killed, queued ones are forgotten. `told`: the requester knows."""
        self.told = self.told or told
        if not self._ending.cancel_called:
            _log.info("lease %s ends: %s: %s", self.lease.id.hex()[:8], code, sentence)
            self.end_code, self.end_sentence = code, sentence
            self._ending.cancel()

    @property
    def is_over(self) -> bool:
        """It has ended, or is about to: nothing prolongs it."""
        return self._over or self._ending.cancel_called or self._life.cancel_called

    def extend(self, extension: Opened[Extension], reply: ExtendReply) -> None:
        """Both sides signed a later end."""
        self.until_us, self.extensions = extension.record.expires_us, extension.record.number
        self.last_extension_id, self.last_extension = extension.id, reply
        self._set_end()

    def _set_end(self) -> None:
        self._life.deadline = trio.current_time() + max(0.0, (self.until_us - self._now_us()) / 1e6)

    def drain(self, reason: Obstacle | None) -> None:
        """The owner wants the device back: take no more tasks and end when none is left. None: go on."""
        self._draining = reason
        if reason is not None and not self._tasks:
            self.stop(reason.code, reason.sentence)

    def cancel_task(self, number: int, sentence: str) -> None:
        """Kill or forget one task; it gets no receipt and costs nothing."""
        accepted = self._tasks.get(number)
        if accepted is None or accepted.run.state in (TaskState.DELIVERED, TaskState.SETTLED):
            return
        accepted.run.step(Move.CANCEL, Role.REQUESTER, self._now_us(), sentence)
        accepted.cancelled = True
        accepted.scope.cancel()

    async def offer(self, request: TaskRequest) -> TaskReply:
        """Accept a task, or name the blobs that it still needs. Raises Refused, RemoteProtocolError."""
        looked = await self._look_at(request)
        if isinstance(looked, TaskReply):
            return looked
        return await self._take(looked)

    async def offer_all(self, requests: Sequence[TaskRequest]) -> list[TaskReply]:
        """The same for several, written down in one commit; one that is refused is no other's. As `offer` raises."""
        replies: dict[int, TaskReply] = {}
        taken: dict[int, _Accepted] = {}
        try:
            for index, request in enumerate(requests):
                try:
                    looked = await self._look_at(request)
                except Refused as refusal:
                    replies[index] = _refusal(refusal)
                    continue
                if isinstance(looked, TaskReply):
                    replies[index] = looked
                else:
                    taken[index] = looked
        except BaseException:
            for accepted in taken.values():
                self._forget(accepted)
            raise
        together = await self._record_together(list(taken.values()))
        for index, accepted in taken.items():
            try:
                replies[index] = self._enqueue(accepted) if together else await self._take(accepted)
            except Refused as refusal:
                replies[index] = _refusal(refusal)
        return [replies[index] for index in range(len(requests))]

    async def _look_at(self, request: TaskRequest) -> "_Accepted | TaskReply":
        """Check a task and keep its place; a reply where that is all. Raises Refused, RemoteProtocolError."""
        task = open_record(Task, request.task, signer=self.requester)
        now_us = self._now_us()
        if self._has(task):
            return ACCEPTED
        if self._draining is not None:
            raise Refused(self._draining.code, self._draining.sentence)
        check_task(self.lease.record, task.record, self._spent, now_us, self.until_us)
        check_pay(self.lease.record, task.record, self._head.cumulative)
        self._check_declared(task.record, request)
        try:
            missing = await self._store_inline(request)
        except StoreFull as error:
            raise Refused("store-full", str(error)) from error
        if missing:
            self._blobs_due_us = now_us + BLOBS_US
            return TaskReply("need", missing, "need-blobs", f"{len(missing)} blobs are not here")
        if self._has(task):  # the same offer twice, both waiting for their blobs
            return ACCEPTED
        if len(self._tasks) > self.lease.record.depth:  # one runs, so many wait
            raise Refused("too-many-tasks", f"more than {self.lease.record.depth} tasks at once")
        run = TaskRun(Role.PROVIDER, self._now_us())
        run.step(Move.OFFER, Role.REQUESTER, self._now_us(), "task")
        accepted = _Accepted(task, run, request)
        self._spent.spend(task.record.number, task.id)
        self._tasks[task.record.number] = accepted
        self._pin(accepted)
        return accepted

    def _has(self, task: Opened[Task]) -> bool:
        known = self._tasks.get(task.record.number)
        return known is not None and known.task.id == task.id

    async def _take(self, accepted: _Accepted) -> TaskReply:
        """Write it down and queue it. Raises Refused."""
        try:
            await self._record([accepted])
        except MeshError as error:
            self._forget(accepted)
            raise Refused("provider-ledger", f"the provider cannot record the task: {error}") from error
        return self._enqueue(accepted)

    async def _record_together(self, accepted: Sequence[_Accepted]) -> bool:
        """False: nothing was written, and each is to be tried by itself."""
        if len(accepted) < 2:
            return False
        try:
            await self._record(accepted)
        except MeshError as error:
            _log.info("%d tasks are recorded one by one: %s", len(accepted), error)
            return False
        return True

    async def _record(self, accepted: Sequence[_Accepted]) -> None:
        with trio.CancelScope(shield=True):
            await self._ledger.commit(*(TaskTaken(each.task.signed) for each in accepted))

    def _enqueue(self, accepted: _Accepted) -> TaskReply:
        """It is in the ledger: queue it. Raises Refused where the lease has ended meanwhile."""
        if self._over:
            self._forget(accepted)
            raise Refused("lease-ended", f"the lease has ended ({self.end_code}): order again")
        self._queue_in.send_nowait(accepted)
        accepted.run.step(Move.ACCEPT, Role.PROVIDER, self._now_us(), "accepted")
        return ACCEPTED

    def _pin(self, accepted: _Accepted) -> None:
        """Its blobs stay until it has run."""
        for root in accepted.sizes:
            self._store.pin(Digest(root))

    def _forget(self, accepted: _Accepted) -> None:
        if self._tasks.pop(accepted.task.record.number, None) is not None:
            self._idle_since_us = self._now_us()
            for root in accepted.sizes:
                self._store.unpin(Digest(root))

    def _check_declared(self, task: Task, request: TaskRequest) -> None:
        declared = {blob.root: blob.size for blob in request.blobs}
        if set(declared) != {task.program, *task.inputs}:
            raise RemoteProtocolError("the blobs declared are not those of the task")
        total = sum(declared.values())
        if total > self.lease.record.memory_bytes:
            limit = self.lease.record.memory_bytes
            raise Refused("memory", f"{total} bytes of inputs, the lease allows {limit} bytes of memory")

    async def _store_inline(self, request: TaskRequest) -> list[bytes]:
        """Keep the blobs that came along; returns the roots that are still missing."""
        declared = {blob.root: blob.size for blob in request.blobs}
        for blob in request.inline:
            if declared.get(blob.root) != len(blob.data):
                raise RemoteProtocolError("an inline blob is not one of the task's, or has another size")
        await self._store.put_many(self._scope, [(Digest(blob.root), blob.data) for blob in request.inline])
        missing = [root for root in declared if not await self._store.ensure(self._scope, Digest(root))]
        for root, size in declared.items():
            if root not in missing and self._store.size_of(self._scope, Digest(root)) != size:
                raise RemoteProtocolError(f"blob {root.hex()[:16]} has another size than the {size} declared")
        return missing

    async def run(self) -> None:
        """Serve until the lease expires or is stopped; its worker is gone afterwards. Raises only Cancelled."""
        self._set_end()
        try:
            with self._life, self._ending:
                self._store.rings.lease_began(self.lease.id, self._scope)
                await self._serve()
        except trio.Cancelled:
            self.stop("stopping", "the provider is stopping")
            raise
        except ExecError as error:
            self.stop(error.code, error.sentence)
        except Exception as error:  # noqa: BLE001 - a disk error or a bug in one lease must not end the agent
            _log.error("lease %s failed", self.lease.id.hex()[:8], exc_info=error)
            self.stop("internal", "the provider failed; its log says why")
        finally:
            await self._close()

    async def _serve(self) -> None:
        if self.lease.record.fresh:
            async for accepted in self._queue_out:
                async with self._supervisor.worker(self._limits(), kernels=self._kernels) as worker:
                    await self._run_task(worker, accepted)
        else:
            async with self._supervisor.worker(self._limits(), kernels=self._kernels) as worker:
                async for accepted in self._queue_out:
                    await self._run_task(worker, accepted)

    async def _close(self) -> None:
        self._over = True
        self._store.rings.lease_ended(self.lease.id)
        for accepted in list(self._tasks.values()):
            self._forget(accepted)
        with trio.CancelScope(shield=True):
            try:
                await self._ledger.commit(LeaseEnded(self.lease.id, self.end_code))
            except MeshError as error:
                _log.warning("lease %s: its end could not be recorded: %s", self.lease.id.hex()[:8], error)

    def _limits(self) -> WorkerLimits:
        lease = self.lease.record
        return WorkerLimits.under_lease(lease.device_kind, lease.memory_bytes, lease.wall_limit_us / 1e6)

    async def _run_task(self, worker: Worker, accepted: _Accepted) -> None:
        try:
            with accepted.scope:
                if not accepted.cancelled and await self._may_start(accepted):
                    await self._run_and_bill(worker, accepted)
        finally:
            self._credit.released(self.lease, accepted.task.id)
        if accepted.cancelled and accepted.run.state is TaskState.CANCELLING:
            accepted.run.step(Move.STOPPED, Role.PROVIDER, self._now_us(), "cancelled")
        self._forget(accepted)

    async def _may_start(self, accepted: _Accepted) -> bool:
        """Wait until the requester's credit covers it. False: it does not answer, or cannot pay, and is left."""
        try:
            # Again: what was queued before it has been billed since it was taken.
            check_pay(self.lease.record, accepted.task.record, self._head.cumulative)
            await self._credit.admit(self.lease, accepted.task.id, self._pause)
        except Refused as refusal:
            self.stop(refusal.code, refusal.sentence)
            return False
        if self.paused:
            self.paused = False
            self.tell_paused("")
        return True

    def _pause(self, sentence: str) -> None:
        self.paused = True
        self.tell_paused(sentence)

    async def _run_and_bill(self, worker: Worker, accepted: _Accepted) -> None:
        self._running_since_us = self._now_us()
        try:
            outcome = await self._execute(worker, accepted)
        finally:
            self._running_since_us = None
        # From here on the work is done and gets its receipt, whatever is cancelled meanwhile.
        with trio.CancelScope(shield=True), trio.move_on_after(ISSUE_SECONDS) as issuing:
            try:
                facts, outputs = await self._keep_outputs(accepted.task.record, outcome)
                await self._issue(accepted, facts, outputs, outcome)
            except MeshError as error:
                # Without a durable receipt nothing may be claimed, and the lane cannot go on.
                _log.error("lease %s: a receipt could not be recorded: %s", self.lease.id.hex()[:8], error)
                self.stop("provider-ledger", "the provider cannot record receipts")
            finally:
                outcome.close()
        if issuing.cancelled_caught:
            self.stop(
                "provider-store", f"the provider's disk did not take the outputs in {ISSUE_SECONDS:.0f} s"
            )

    async def _execute(self, worker: Worker, accepted: _Accepted) -> RunOutcome:
        """Run the task in the worker. Blobs lost since they were checked are this provider's fault."""
        task = accepted.task.record
        started_us = self._now_us()
        try:
            program = await self._store.read(self._scope, Digest(task.program))
            async with AsyncExitStack() as stack:
                inputs = [
                    await self._input(stack, Digest(root), accepted.sizes[root]) for root in task.inputs
                ]
                wall_limit_s = self.lease.record.wall_limit_us / 1e6
                return await worker.run(program, inputs, wall_limit_s, digests=self._keep_digests is not None)
        except BlobMissing as error:
            return _own_failure("blob-lost", str(error), started_us)

    async def _input(self, stack: AsyncExitStack, root: Digest, size: int) -> InputBuffer:
        if size <= SMALL_INPUT_BYTES:
            return InputBuffer(size, data=await self._store.read(self._scope, root))
        opened = stack.enter_context(await self._store.open(self._scope, root))
        return InputBuffer(opened.size, fd=opened.fd)

    async def _keep_outputs(
        self, task: Task, outcome: RunOutcome
    ) -> tuple[RunFacts, list[tuple[bytes, int]]]:
        """Hash and store the outputs, so that they can be fetched, again after a restart too."""
        outputs: list[tuple[bytes, int]] = []
        status, code = outcome.status, outcome.code
        try:
            for output in outcome.outputs:
                root = await self._store.add(self._scope, output.view)
                outputs.append((root, output.size))
        except StoreFull as error:
            _log.error("lease %s: outputs could not be kept: %s", self.lease.id.hex()[:8], error)
            status, code, outputs = "provider-failed", "store-full", []
        device_us = device_time(self._device.kind, outcome.wall_us, outcome.device_us)
        energy_mj, meter = energy_of(self._device, outcome)
        facts = RunFacts(
            status=status,
            code=code,
            outputs=[root for root, _ in outputs],
            started_us=outcome.started_us,
            ended_us=outcome.started_us + outcome.wall_us,
            billed_us=outcome.wall_us if device_us is None else device_us,
            device_name=self._device.name,
            meter=meter,
            device_us=device_us,
            energy_mj=energy_mj,
            device_uuid=self._device.uuid,
            determinism=outcome.determinism,
            trace=await _root_of(outcome.digests, task) if status == "ok" else ZERO_HASH,
        )
        return facts, outputs

    async def _issue(
        self, accepted: _Accepted, facts: RunFacts, outputs: list[tuple[bytes, int]], outcome: RunOutcome
    ) -> None:
        """Sign, commit, and only then send."""
        receipt = build_receipt(self.lease.record, accepted.task, self._head, facts, self._now_us())
        opened = seal_record(self._key, receipt)
        sentence = outcome.sentence if facts.code == outcome.code else "the provider's disk or quota is full"
        await self._ledger.commit(ReceiptIssued(opened.signed, tuple(outputs), sentence, outcome.detail))
        self._credit.billed(accepted.task.id, opened, sum(size for _, size in outputs))
        self._head = self._head.after(opened)
        if self._issued is not None:
            self._issued(receipt)
        accepted.run.step(Move.RESULT, Role.PROVIDER, self._now_us(), f"receipt {opened.id.hex()[:12]}")
        more = len(self._tasks) > 1  # this one is still among them
        self._outbox.send(
            PendingResult(
                self.requester, opened, tuple(outputs), sentence, outcome.detail, accepted.run, more
            )
        )
        if self._keep_digests is not None and facts.status == "ok":
            await self._keep_digests(opened, outcome, [root for root, _ in outputs])


def _refusal(refusal: Refused) -> TaskReply:
    return TaskReply("refused", [], refusal.code, clean_sentence(refusal.sentence))


def device_time(kind: str, wall_us: int, told_us: int | None) -> int | None:
    """What a worker tells of its device's time, as far as it counts; None: the wall clock is what is billed.

    A processor has no device time: native code in its worker could tell any, and run for nothing.
    """
    return None if kind != "cuda" or told_us is None else min(told_us, wall_us)


def energy_of(device: DeviceInfo, outcome: RunOutcome) -> tuple[int | None, str]:
    """Millijoules of a run and the meter that says so: `model` where none measures, which is an assumption."""
    if outcome.energy_mj is not None or not outcome.wall_us:
        return outcome.energy_mj, outcome.meter
    return modelled_mw(device.kind, device.cores) * outcome.wall_us // 1_000_000, MODEL


async def _root_of(digests: TraceDigests | None, task: Task) -> bytes:
    """What the receipt's `trace` holds; a long chain is computed in a thread."""
    if digests is None:
        return ZERO_HASH
    names = (task.program, roots_digest(task.inputs))
    if len(digests.nodes) <= NODES_IN_LOOP:
        return digests.root(*names)
    return await trio.to_thread.run_sync(digests.root, *names)


def _own_failure(code: str, sentence: str, started_us: int) -> RunOutcome:
    return RunOutcome(
        status="provider-failed",
        code=code,
        sentence=sentence,
        detail="",
        outputs=[],
        started_us=started_us,
        wall_us=0,
        device_us=None,
        energy_mj=None,
        meter="none",
        peak_bytes=0,
        determinism="",
    )
