"""The requester side of an agent: jobs come in from local clients, tasks go out under leases, results come back.

Theory of operation. The pure `Dispatcher` decides; this shell feeds it events and carries out its instructions, in
order where order matters: a `Supersede` is durable in the ledger before the retry that follows it is started. What
takes long (negotiating, a task's whole life, releasing) runs in tasks of the node's nursery and reports back as events.
Everything a job goes through is noted in its story, with the id of what caused it.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import trio

from coppermesh.agent.attempts import Outstanding, TaskOutcome
from coppermesh.agent.deliveries import Deliveries
from coppermesh.agent.dispatch import Dispatcher
from coppermesh.agent.dispatch_events import (
    CancelTask,
    CopyCounted,
    CopyFailed,
    Event,
    ExtendLease,
    ExtensionRefused,
    Fault,
    Instruction,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobSubmitted,
    LeaseExtended,
    LeaseLost,
    LeasePaused,
    LeaseUp,
    NegotiationEnded,
    ProvidersChanged,
    ReleaseLease,
    StartTask,
    Supersede,
    TaskDone,
    TaskFailed,
    TaskRefused,
    Tick,
    WantLeases,
    too_few_providers,
)
from coppermesh.agent.dispatch_state import AGENT_LIMITS
from coppermesh.agent.held_leases import HeldLease
from coppermesh.agent.histogram import histogram
from coppermesh.agent.job_intake import JobIntake
from coppermesh.agent.jobs import JobState, JobTable
from coppermesh.agent.lease_broker import LeaseBroker, Negotiated
from coppermesh.agent.lease_extending import LeaseExtender
from coppermesh.agent.lease_signing import GrantedLease
from coppermesh.agent.ledger import MAX_CODE, LeaseEnded, TaskSuperseded
from coppermesh.agent.ledger_store import LedgerStore
from coppermesh.agent.local_messages import WAIT_SECONDS, SubmitAnswer, SubmitCall, WaitAnswer, WaitCall
from coppermesh.agent.negotiation import Move, Role
from coppermesh.agent.quotes import OwnLease, quote_facts
from coppermesh.agent.screens import counted
from coppermesh.agent.speeds import OwnSpeeds
from coppermesh.agent.story import StoryLine
from coppermesh.agent.task_driver import TaskDriver
from coppermesh.exec.program import ArraySpec
from coppermesh.p2p.blob_store import BlobStore, Scope
from coppermesh.p2p.control import ControlHub
from coppermesh.p2p.errors import MeshError, Refused
from coppermesh.p2p.ids import PeerId, short_peer
from coppermesh.p2p.leased_time import LeasedTime
from coppermesh.p2p.messages import CancelRequest, Nothing, PauseRequest

CANCEL_SECONDS = 5.0
SILENT_US = 3_000_000
"""A job that nobody is known for waits so long before its client is told."""
MAX_TOLD_PAUSES = 100
"""Pauses of one lease that a job's story tells of."""
MAX_REFUSALS_SHOWN = 16
"""Providers named in the failure of a job that none took, each with its last reason."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Forget:
    """The shell's own instruction: a lost lease and its attempts are not needed any more."""

    lease: bytes


class Requester:
    """The jobs of this home. `run` must be running for anything to happen."""

    def __init__(
        self,
        hub: ControlHub,
        ledger: LedgerStore,
        store: BlobStore,
        scope: Scope,
        intake: JobIntake,
        broker: LeaseBroker,
        driver: TaskDriver,
        extender: LeaseExtender,
        *,
        speeds: OwnSpeeds,
        heard: Callable[[], str],
        now_us: Callable[[], int],
    ) -> None:
        """`heard` describes in a sentence who was heard, for the error of a job that found no provider."""
        self._hub = hub
        self._ledger = ledger
        self._store = store
        self._scope = scope
        self._intake = intake
        self._broker = broker
        self._driver = driver
        self._extender = extender
        self._speeds = speeds
        self._heard = heard
        self._now_us = now_us
        self._dispatcher = Dispatcher(now_us(), AGENT_LIMITS, self._near)
        self._instructions_in, self._instructions_out = trio.open_memory_channel[Instruction | _Forget](
            math.inf
        )
        self._woken = trio.Event()
        self._nursery: trio.Nursery | None = None
        self.jobs = JobTable()
        self._deliveries = Deliveries(store, scope, self.jobs, tell=self._tell, fail=self._differ)
        self.leases: dict[bytes, HeldLease] = {}
        self.leased: LeasedTime | None = None
        """In a private mesh: for how long leases are held."""

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry out instructions until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self._driver.run_batches)
            nursery.start_soon(self._tick)
            task_status.started()
            try:
                async for instruction in self._instructions_out:
                    await self._carry_out(instruction)
                    await self._carry_out_waiting()
            finally:
                self._leave_jobs()

    async def _carry_out_waiting(self) -> None:
        """What came with it, in the same turn of the loop: tasks that begin together are sent together."""
        for _ in range(self._instructions_out.statistics().current_buffer_used):
            await self._carry_out(self._instructions_out.receive_nowait())

    # What clients call

    async def submit(self, call: SubmitCall) -> SubmitAnswer:
        """Take a job. Raises Refused with what is wrong with it, before anything is asked of anybody."""
        job = await self._intake.take(call, self.jobs)
        self._tell(job, "submitted", "", counted(len(job.tasks), "task"))
        count = len(job.tasks) * job.copies
        self._feed(
            JobSubmitted(job.job, count, job.requirement, job.deadline_us, job.budget, copies=job.copies)
        )
        return SubmitAnswer(job.job)

    async def quote(self, call: SubmitCall) -> dict[str, Any]:
        """Who would take the job and for how much: nothing is leased. Raises Refused as `submit` does."""
        job = await self._intake.take(call, JobTable())
        job.dry = True
        try:
            want = WantLeases(
                job.requirement, 0, frozenset(), frozenset(), deadline_us=job.deadline_us, cause="dry run"
            )
            result = await self._broker.negotiate(want, [job], lambda lease: None)
        finally:
            self._intake.release_inputs(job)
        return quote_facts(job, result, self._speeds, self._own_leases())

    def _own_leases(self) -> list[OwnLease]:
        """What this agent holds already, which providers are busy with."""
        return [
            OwnLease(
                held.provider,
                sum(attempt.outcome is None for attempt in held.outstanding.values()),
                max(0, held.until_us - self._now_us()) // 1_000_000,
            )
            for held in self.leases.values()
            if not held.lost
        ]

    async def wait(self, call: WaitCall) -> WaitAnswer:
        """Events of a job, as soon as there are any."""
        seconds = min(call.wait_ms / 1000, WAIT_SECONDS)
        return WaitAnswer(await self.jobs.get(call.job).wait_after(call.after, seconds))

    def cancel(self, job_id: bytes) -> bool:
        """Take a job back; False for one that has ended, which is left as it is. Raises Refused: `unknown-job`."""
        job = self.jobs.get(job_id)
        if job.ended_us is not None:
            return False
        self._feed(JobCancelled(job_id))
        self._end_job(job, "cancelled", "cancelled by the submitter", "")
        return True

    # What the node reports

    def providers_changed(self) -> None:
        """An announcement that is new or different was heard, or a connection came up."""
        if self.jobs.running():
            self._feed(ProvidersChanged())

    async def peer_lost(self, peer: PeerId, reason: str) -> None:
        """The control channel to a provider is gone: its leases with us are over."""
        self._driver.known.forget(peer)
        for held in [held for held in self.leases.values() if held.provider == peer]:
            await self._lose_lease(held, "unreachable", f"connection lost: {reason}")

    def lease_cancelled(self, peer: PeerId, request: CancelRequest) -> None:
        """The provider ends a lease, or one task of it. Carried out here: its handler dies with the connection."""
        held = self.leases.get(request.lease)
        if held is None or held.provider != peer or self._nursery is None:
            return
        if request.task is None:
            # Its own word is no excuse: a code like `expired` would let it come back and fail again at once.
            code = f"ended-{request.code}"[:MAX_CODE]
            self._nursery.start_soon(self._lose_lease, held, code, request.sentence)
        elif (attempt := held.outstanding.get(request.task)) is not None:
            outcome = TaskOutcome("provider", request.code, request.sentence)
            self._nursery.start_soon(attempt.give_up, "cancelled", outcome)

    def lease_paused(self, peer: PeerId, request: PauseRequest) -> None:
        """The provider pauses a lease, or goes on with it."""
        held = self.leases.get(request.lease)
        if held is None or held.provider != peer or held.paused == request.paused:
            return
        held.paused = request.paused
        held.pauses += request.paused
        if held.pauses > MAX_TOLD_PAUSES:  # what it says is written down for good
            self._feed(LeasePaused(request.lease, request.paused))
            return
        kind, word = ("paused", "pauses") if request.paused else ("resumed", "goes on with")
        text = f"the provider {word} the lease: {request.code}: {request.sentence}"
        self._tell_all(held, kind, text)
        self._feed(LeasePaused(request.lease, request.paused))

    def tidy(self) -> None:
        """Forget jobs that ended long ago, and let go of their outputs. Call now and then."""
        for job in self.jobs.forget_old(self._now_us()):
            self._intake.release_outputs(job)

    def find_lease(self, lease: bytes) -> HeldLease | None:
        """The lease, while it is held."""
        return self.leases.get(lease)

    def output_specs(self, attempt: Outstanding) -> Sequence[ArraySpec] | None:
        """What the attempt's program returns, while its job is known."""
        job = self.jobs.find(attempt.job)
        return None if job is None else job.facts(attempt.index).outputs

    def rivals(self, attempt: Outstanding) -> Sequence[Outstanding]:
        """Other attempts at the same task of which one may be paid already."""
        job = self.jobs.find(attempt.job)
        known = [] if job is None else job.contested.get(attempt.index, [])
        return [other for other in known if other is not attempt]

    # Instructions

    def _feed(self, event: Event) -> None:
        for instruction in self._dispatcher.handle(event, self._now_us()):
            self._instructions_in.send_nowait(instruction)
        self._woken.set()

    async def _tick(self) -> None:
        while True:
            self._woken = trio.Event()
            wakeup_us = self._dispatcher.next_wakeup_us
            seconds = math.inf if wakeup_us is None else max(0.0, (wakeup_us - self._now_us()) / 1e6)
            with trio.move_on_after(seconds) as waiting:
                await self._woken.wait()
            if waiting.cancelled_caught:
                self._feed(Tick())

    async def _carry_out(self, instruction: "Instruction | _Forget") -> None:
        assert self._nursery is not None
        match instruction:
            case StartTask():
                self._start_task(instruction, self._nursery)
            case CancelTask():
                self._nursery.start_soon(self._cancel_task, instruction)
            case Supersede():
                await self._supersede(instruction)
            case WantLeases():
                self._nursery.start_soon(self._negotiate, instruction)
            case ReleaseLease():
                self._nursery.start_soon(self._release, instruction)
            case _Forget():
                self._drop_lease(instruction.lease)
            case ExtendLease():
                self._nursery.start_soon(self._extend, instruction)
            case CopyFailed():
                self._nursery.start_soon(self._count_failed_copy, instruction)
            case JobFinished() | JobFailed():
                self._carry_out_end(instruction)
            case _:
                assert_never(instruction)

    def _carry_out_end(self, instruction: JobFinished | JobFailed) -> None:
        job = self.jobs.find(instruction.job)
        if isinstance(instruction, JobFinished):
            self._end_job(job, "", "", instruction.cause)
            return
        self._note_failed_task(instruction)
        sentence = instruction.sentence
        if instruction.code == "no-provider":
            sentence = f"{sentence}; {self._heard_for(instruction.job)}"
        elif instruction.code == "deadline":
            sentence += self._refused_for(instruction.job)
        self._end_job(job, instruction.code, sentence, instruction.cause)

    async def _negotiate(self, want: WantLeases) -> None:
        lease_requirement = want.requirement.for_lease()
        jobs = [job for job in self.jobs.running() if job.requirement.for_lease() == lease_requirement]
        budget_s = max(0.0, (want.deadline_us - self._now_us()) / 1e6)
        granted = 0
        result = Negotiated(heard=0, declined=0, hopeless=False, left=None)

        def take(lease: GrantedLease) -> None:
            nonlocal granted
            granted += 1
            self._take_lease(lease, want)

        try:
            with trio.move_on_after(budget_s):
                result = await self._broker.negotiate(want, jobs, take)
        except Exception as error:  # noqa: BLE001 - whatever a bid brings about, the agent and its other jobs go on
            _log.error("a negotiation failed", exc_info=error)
        self._tell_why_they_wait(jobs, result)
        hopeless = result.hopeless and not granted
        self._feed(
            NegotiationEnded(
                want.requirement,
                granted,
                result.heard,
                result.declined,
                hopeless=hopeless,
                left=result.left,
            )
        )

    def _tell_why_they_wait(self, jobs: Sequence[JobState], result: Negotiated) -> None:
        """What no provider's refusal says: too few are there, or none at all."""
        able = len(result.left or ())
        for job in [job for job in jobs if job.ended_us is None]:
            if result.left is None:
                continue
            if not result.refusals and not able:
                if self._now_us() - job.submitted_us >= SILENT_US:
                    job.waits_for(f"no provider is known yet: {self._heard()}")
            elif able < job.copies and job.copies > 1:
                job.waits_for(too_few_providers(job.copies, able))

    def _take_lease(self, granted: GrantedLease, want: WantLeases) -> None:
        lease = granted.lease.record
        self.leases[granted.lease.id] = HeldLease(granted)
        if self.leased is not None:
            self.leased.begun(granted.lease.id, granted.provider, lease.device_kind, self._now_us())
        self._store.rings.lease_began(granted.lease.id, (self._scope[0], granted.provider))
        self._feed(
            LeaseUp(
                granted.lease.id,
                granted.provider,
                want.requirement,
                lease.depth,
                lease.expires_us,
                lease.budget,
                lease.rate,
            )
        )

    def _drop_lease(self, lease: bytes) -> HeldLease | None:
        """Forget a lease, and the memory that transfers under it used."""
        self._store.rings.lease_ended(lease)
        if self.leased is not None:
            self.leased.ended(lease, self._now_us())
        return self.leases.pop(lease, None)

    def _start_task(self, start: StartTask, nursery: trio.Nursery) -> None:
        """Begun in the instructions' order, so that a `CancelTask` or `Supersede` that follows finds the attempt."""
        held, job = self.leases.get(start.lease), self.jobs.find(start.job)
        if held is None or job is None or held.lost:
            self._feed(TaskRefused(start.job, start.index, start.lease, "lease-ended"))
            return
        if start.attempt > 1:
            self._tell(job, "retry", start.cause, f"attempt {start.attempt}", start.index, held.provider)
        attempt = self._driver.begin(held, job, start.index)
        if start.again:
            known = job.contested.setdefault(start.index, [])
            found = self._attempts_at(start.job, start.index)
            known += [one for one in found if all(one is not other for other in known)]
        nursery.start_soon(self._run_task, start, held, job, attempt)

    def _near(self, job_id: bytes, index: int, peer: PeerId) -> bool:
        """Nothing large has to be sent for the task."""
        job = self.jobs.find(job_id)
        return job is None or not self._driver.known.missing_bytes(peer, job.spec(index).inputs)

    def _attempts_at(self, job: bytes, index: int) -> list[Outstanding]:
        return [
            attempt
            for held in self.leases.values()
            for attempt in held.outstanding.values()
            if (attempt.job, attempt.index) == (job, index)
        ]

    async def _run_task(self, start: StartTask, held: HeldLease, job: JobState, attempt: Outstanding) -> None:
        try:
            outcome = await self._driver.run(held, job, attempt)
        except Exception as error:  # noqa: BLE001 - whatever one task runs into, the agent and its other jobs go on
            _log.error("task %d of job %s failed", start.index, start.job.hex()[:8], exc_info=error)
            await attempt.give_up(
                "cancelled", TaskOutcome("job", "internal", "the agent failed; see its log")
            )
            assert attempt.outcome is not None
            outcome = attempt.outcome
        if attempt.settled:
            # One that was given up is kept until its lease goes: its receipt may still come.
            held.outstanding.pop(attempt.task.record.number, None)
        await self._report(start, held, job, outcome)

    async def _report(self, start: StartTask, held: HeldLease, job: JobState, outcome: TaskOutcome) -> None:
        if outcome.fault is None:
            program = job.spec(start.index).program
            self._speeds.note(held.provider, program, job.facts(start.index).flops, outcome.billed_us)
            await self._deliveries.deliver(held, job, start.index, outcome)
            self._feed(TaskDone(start.job, start.index, start.lease, outcome.amount))
            return
        text = f"{outcome.code}: {outcome.sentence}"
        self._tell(job, "failed", f"lease {held.id.hex()[:8]}", text, start.index, held.provider)
        if outcome.fault == "refused":
            self._feed(TaskRefused(start.job, start.index, start.lease, outcome.code, outcome.sentence))
            return
        if outcome.fault == "job":
            job.keep_detail(start.index, outcome.detail)
        fault: Fault = "provider"
        if outcome.fault == "job":
            fault = "requester" if outcome.receipt_id is None else "job"
        self._feed(
            TaskFailed(
                start.job,
                start.index,
                start.lease,
                fault,
                outcome.code,
                outcome.sentence,
                amount=outcome.amount,
            )
        )

    async def _count_failed_copy(self, instruction: CopyFailed) -> None:
        job = self.jobs.find(instruction.job)
        if job is not None:
            await self._deliveries.count_failed(
                job, instruction.index, instruction.provider, instruction.code
            )
            self._feed(CopyCounted(instruction.job, instruction.index))

    def _note_failed_task(self, failed: JobFailed) -> None:
        job = self.jobs.find(failed.job)
        if job is not None and failed.index is not None:
            job.failed_task = job.task_of(failed.index)
            job.detail = job.details.get(failed.index, "")

    def _differ(self, job: JobState, task: int, sentence: str) -> None:
        """Copies of a task differ and none can be taken: the job is over."""
        self._feed(JobCancelled(job.job, "its copies differ"))
        job.failed_task = task
        self._end_job(job, "disagreement", sentence, f"task {task}")

    async def _supersede(self, instruction: Supersede) -> None:
        held = self.leases.get(instruction.lease)
        attempt = None if held is None else held.find_any(instruction.job, instruction.index)
        while attempt is not None and attempt.settling:
            await attempt.committed.wait()
        if held is None or attempt is None or attempt.settled or not attempt.issued:
            return  # never sent, or it has its one receipt: nothing of it can be claimed any more
        attempt.given_up = attempt.given_up or "superseded"
        try:
            await self._ledger.commit(TaskSuperseded(attempt.task.id, attempt.given_up))
        except MeshError as error:
            _log.error("superseding task %s: %s", attempt.task.id.hex()[:12], error)
        if self._nursery is not None and attempt.outcome is not None and attempt.outcome.fault == "provider":
            # It may still be at it, for a receipt that will be disputed.
            self._nursery.start_soon(self._tell_cancelled, held, attempt, "the task went elsewhere")

    async def _cancel_task(self, instruction: CancelTask) -> None:
        held = self.leases.get(instruction.lease)
        attempt = None if held is None else held.find_any(instruction.job, instruction.index)
        if held is None or attempt is None:
            return
        while attempt.settling:
            await attempt.committed.wait()
        if attempt.outcome is not None:
            return
        superseded, attempt.given_up = attempt.given_up, attempt.given_up or "cancelled"
        if attempt.run.state.value in ("offered", "needed", "accepted"):
            attempt.run.step(Move.CANCEL, Role.REQUESTER, self._now_us(), instruction.cause)
        try:
            if attempt.issued and superseded is None:
                await self._ledger.commit(TaskSuperseded(attempt.task.id, "cancelled"))
        except MeshError as error:
            _log.error("cancelling task %s: %s", attempt.task.id.hex()[:12], error)
        if attempt.issued:
            await self._tell_cancelled(held, attempt, instruction.cause)
        attempt.resolve(TaskOutcome("provider", "cancelled", instruction.cause))

    async def _tell_cancelled(self, held: HeldLease, attempt: Outstanding, sentence: str) -> None:
        request = CancelRequest(held.id, attempt.task.record.number, "cancelled", sentence, None)
        try:
            await self._hub.request(held.provider, "cancel", request, Nothing, deadline_s=CANCEL_SECONDS)
        except MeshError as error:
            _log.debug("cancelling a task at %s: %s", short_peer(held.provider), error)

    async def _extend(self, instruction: ExtendLease) -> None:
        held = self.leases.get(instruction.lease)
        if held is None or held.lost:
            return
        before_us = held.until_us
        try:
            until_us = await self._extender.extend(held)
        except MeshError as error:
            code = error.code if isinstance(error, Refused) else "unreachable"
            self._tell_all(held, "unextended", f"it ends when it would have: {error}")
            self._feed(ExtensionRefused(held.id, code, str(error)))
            return
        self._tell_all(held, "extended", f"by {(until_us - before_us) / 1e6:.0f} s, signed by both")
        self._feed(LeaseExtended(held.id, until_us))

    def _tell_all(self, held: HeldLease, kind: str, text: str) -> None:
        """A line in the story of every job that has tasks under the lease."""
        for job in {attempt.job for attempt in held.outstanding.values()}:
            known = self.jobs.find(job)
            if known is not None:
                self._tell(known, kind, f"lease {held.id.hex()[:8]}", text, None, held.provider)

    async def _release(self, instruction: ReleaseLease) -> None:
        held = self._drop_lease(instruction.lease)
        if held is None:
            return
        held.lost = True
        request = CancelRequest(held.id, None, instruction.code, instruction.cause[:200], None)
        try:
            await self._ledger.commit(LeaseEnded(held.id, instruction.code))
            await self._hub.request(held.provider, "cancel", request, Nothing, deadline_s=CANCEL_SECONDS)
        except MeshError as error:
            _log.debug("releasing a lease of %s: %s", short_peer(held.provider), error)

    async def _lose_lease(self, held: HeldLease, code: str, sentence: str) -> None:
        """The lease is over through the other side. Receipts being committed are let through first."""
        if held.lost:
            return
        held.lost = True
        await held.settle_down()
        for attempt in held.outstanding.values():
            if attempt.outcome is None:
                attempt.given_up = attempt.given_up or "superseded"
        self._tell_all(held, "lease-ended", f"{code}: {sentence}")
        self._feed(LeaseLost(held.id, code, sentence))
        # Behind the instructions that this has led to, which still look its attempts up.
        self._instructions_in.send_nowait(_Forget(held.id))
        for attempt in held.outstanding.values():
            attempt.resolve(TaskOutcome("provider", code, sentence))
        try:
            await self._ledger.commit(LeaseEnded(held.id, code))
        except MeshError as error:
            _log.error("ending lease %s: %s", held.id.hex()[:12], error)

    # Jobs

    def _end_job(self, job: JobState | None, code: str, sentence: str, cause: str) -> None:
        if job is None or job.ended_us is not None:
            return
        job.ended_us = self._now_us()
        if code:
            self._tell(job, "gave-up", cause, f"{code}: {sentence}")
            facts = {
                "code": code,
                "sentence": sentence,
                "detail": job.detail,
                "refusals": dict(Counter(job.refusal_codes.values())),
            }
            job.tell("failed", facts, index=job.failed_task)
        else:
            self._tell(job, "done", cause, f"{len(job.tasks)} of {counted(len(job.tasks), 'task')}")
            job.tell("finished", {"tasks": len(job.tasks)})
        self._intake.release_inputs(job)

    def _leave_jobs(self) -> None:
        """The agent stops: what each job waited for stays in its story."""
        for job in self.jobs.running():
            why = histogram(job.refusal_codes, job.requirement) if job.refusals else job.waiting_told
            sentence = f"the agent was stopped with {job.done} of {counted(len(job.tasks), 'task')} done"
            self._end_job(job, "stopping", f"{sentence}; {why}" if why else sentence, "the agent stops")

    def _refused_for(self, job_id: bytes) -> str:
        """Why others than who worked for it did not, where some refused."""
        job = self.jobs.find(job_id)
        if job is None or not job.refusals:
            return ""
        return f"; of the others, {histogram(job.refusal_codes, job.requirement)}"

    def _heard_for(self, job_id: bytes) -> str:
        job = self.jobs.find(job_id)
        if job is None or not job.refusals:
            return self._heard()
        refusals = list(job.refusals.items())
        lines = [f"\n  {histogram(job.refusal_codes, job.requirement)}"]
        lines += [f"\n  {short_peer(peer)}: {reason}" for peer, reason in refusals[:MAX_REFUSALS_SHOWN]]
        if len(refusals) > MAX_REFUSALS_SHOWN:
            lines.append(f"\n  and {len(refusals) - MAX_REFUSALS_SHOWN} more")
        return f"{self._heard()}{''.join(lines)}"

    def _tell(
        self,
        job: JobState,
        kind: str,
        cause: str,
        text: str,
        task: int | None = None,
        peer: PeerId | None = None,
    ) -> None:
        self._ledger.note(StoryLine(job.job, self._now_us(), cause, kind, peer, task, text))
        # What its attempts still come to is no news to whoever was told that the job has ended.
        if job.ended_us is None and kind in ("retry", "lease-ended", "failed", "disagree"):
            number = None if task is None else job.task_of(task)
            said = text if peer is None else f"{short_peer(peer)}: {text}"
            job.tell("progress", {"text": said, "cause": cause}, index=number)
