"""The provider's side of a challenge: run a task of an old receipt again, record digests, sign what they lead to.

Theory of operation. A re-run is work that nobody pays, so it is bounded on every side: only for a receipt of this
provider that its requester has countersigned, for a day (`CHALLENGE_FOR_US`); one at a time, a few per requester and
ten minutes, each no longer than some multiple of what the first run took; only while a slot of its device has nothing
to do, and it is given up when a task takes the last one. All of that is `busy` with a time to come back, and never a
refusal: an honest requester loses patience, not the answer. The request is repeated by whoever waits, so an answer
survives a lost connection and a handler never holds longer than `ANSWER_SECONDS`.

Blobs of the task may have been evicted since. What is missing is asked for (`need`) and taken without a lease, but
only those very blobs, at the sizes that the requester stated, within the lease's memory.

A run that recorded at once (an order with `node-digests`) is answered from what it left, so that a program whose bits
vary from run to run can still be held against its receipt.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from coppermesh.agent.challenge_rerun import Case, ChallengedDevice, Recorder
from coppermesh.agent.ledger_store import LedgerStore
from coppermesh.agent.traces import CHALLENGE_FOR_US
from coppermesh.exec.errors import ExecError
from coppermesh.exec.runs import RunOutcome
from coppermesh.p2p.blob_store import BlobMissing, BlobStore, StoreFull
from coppermesh.p2p.envelope import Opened
from coppermesh.p2p.errors import MeshError, Refused, RemoteProtocolError
from coppermesh.p2p.ids import Digest, MeshId, PeerId, short_peer
from coppermesh.p2p.messages import INLINE_BYTES, ChallengeReply, ChallengeRequest
from coppermesh.p2p.records import Receipt, SignedRecord, Trace
from coppermesh.p2p.signing import PeerKey

ANSWER_SECONDS = 20.0
"""How long a request waits for the end of a run before it is told `running`."""
MAX_RUNS = 4
"""Runs for one requester within `WINDOW_US`."""
WINDOW_US = 600_000_000
RETRY_US = 5_000_000
"""When to come back where a slot is what is missing."""
SOON_US = 500_000
"""When to come back where a countersignature is on its way."""
BLOBS_US = 120_000_000
"""For so long blobs that were asked for are taken."""
MAX_ENDED = 256
"""Answers that are remembered; the oldest are run again when asked for."""
MAX_PEERS = 1024

_log = logging.getLogger(__name__)


_Answer = Opened[Trace] | Refused
"""A signed Trace, whose chain is a blob in the requester's scope; or why the run failed."""


@dataclass(slots=True)
class _Run:
    """A run under way."""

    case: Case
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    outcome: _Answer | None = None
    """None after its end: it was given up, `reason` says why."""
    reason: str = "the provider is stopping"
    made_way: bool = False
    """It was given up for work that is paid."""


@dataclass(slots=True)
class _Expected:
    """Blobs that were asked for."""

    sizes: dict[bytes, int]
    until_us: int


class ChallengeServer:
    """Answers challenges to this provider's receipts. `start` before the first."""

    def __init__(
        self,
        key: PeerKey,
        mesh: MeshId,
        ledger: LedgerStore,
        store: BlobStore,
        devices: Mapping[str, ChallengedDevice],
        *,
        free: Callable[[str], int],
        now_us: Callable[[], int],
    ) -> None:
        """`free`: how many slots of a device have no task and are promised to nobody; 0 while paused."""
        self._mesh = mesh
        self._ledger = ledger
        self._store = store
        self._devices = devices
        self._recorder = Recorder(key, mesh, store, devices, now_us)
        self._free = free
        self._now_us = now_us
        self._nursery: trio.Nursery | None = None
        self._running: dict[Digest, _Run] = {}
        self._ended: OrderedDict[Digest, tuple[PeerId, _Answer]] = OrderedDict()
        self._started: OrderedDict[PeerId, list[int]] = OrderedDict()
        self._expected: dict[PeerId, _Expected] = {}

    def start(self, nursery: trio.Nursery) -> None:
        """Where runs live from now on."""
        self._nursery = nursery

    def awaits(self, peer: PeerId, root: Digest, size: int) -> bool:
        """May `peer` send this blob without a lease? It was asked for."""
        expected = self._expected.get(peer)
        if expected is None or expected.until_us < self._now_us():
            return False
        return expected.sizes.get(root) == size

    def make_way(self) -> None:
        """A task was taken: give up runs on devices without a free slot."""
        for run in self._running.values():
            if not self._free(run.case.receipt.record.device):
                run.made_way, run.reason = True, "work that is paid came first"
                run.scope.cancel()

    def peer_lost(self, peer: PeerId) -> None:
        """Its blobs are not waited for any more. A run goes on: it is counted, and its answer is there for later."""
        self._expected.pop(peer, None)

    def tidy(self) -> None:
        """Let go of what has expired. Call now and then."""
        now_us = self._now_us()
        for peer, expected in list(self._expected.items()):
            if expected.until_us < now_us:
                del self._expected[peer]
        for peer, times in list(self._started.items()):
            if times[-1] <= now_us - WINDOW_US:
                del self._started[peer]

    async def keep(self, receipt: Opened[Receipt], outcome: RunOutcome, outputs: Sequence[bytes]) -> None:
        """The run of `receipt` recorded at once: what it left answers a challenge. Never raises MeshError."""
        if outcome.digests is None:
            return
        peer = PeerId(receipt.record.requester)
        try:
            trace = await self._recorder.sign(
                receipt, outcome.digests, list(outputs), receipt.record.determinism, first_run=True
            )
        except (MeshError, OSError) as error:
            _log.info("digests of receipt %s were not kept: %s", receipt.id.hex()[:12], error)
        else:
            self._remember(peer, receipt.id, trace)

    async def on_challenge(self, peer: PeerId, request: ChallengeRequest) -> ChallengeReply:
        """Answer, ask for blobs, or put off. Raises Refused, RemoteProtocolError."""
        receipt_id = Digest(request.receipt)
        run = self._running.get(receipt_id)
        if run is None:
            reply = await self._recorded(peer, receipt_id)
            if reply is not None:
                return reply
            case = await self._case(peer, receipt_id)
            if (busy := await self._busy(case)) is not None:
                return busy
            missing = await self._missing(case, request)
            if missing:
                return _reply("need", need=missing)
            run = self._running.get(receipt_id)
            if run is None and (busy := self._why_not(case)) is not None:
                return busy
            run = run or self._begin(case)
        if run.case.peer != peer:
            raise _unknown()
        with trio.move_on_after(ANSWER_SECONDS):
            await run.ended.wait()
            reply = await self._recorded(peer, receipt_id)
            return reply or _busy(run.reason, RETRY_US)
        return _reply("running")

    async def _recorded(self, peer: PeerId, receipt_id: Digest) -> ChallengeReply | None:
        """The answer where there is one. Raises Refused where the run failed, once."""
        owner, answer = self._ended.get(receipt_id, (peer, None))
        if owner != peer:
            raise _unknown()
        if answer is None:
            return None
        if isinstance(answer, Refused):
            del self._ended[receipt_id]
            raise answer
        trace, scope = answer.record, (self._mesh, peer)
        chain: bytes | None = None
        try:
            if 32 * trace.nodes <= INLINE_BYTES:
                chain = await self._store.read(scope, Digest(trace.chain))
            elif not await self._store.ensure(scope, Digest(trace.chain)):
                raise BlobMissing("the chain was evicted")
        except BlobMissing:
            self._ended.pop(receipt_id, None)
            return None
        return _reply("recorded", trace=answer.signed, chain=chain)

    async def _case(self, peer: PeerId, receipt_id: Digest) -> Case:
        """What is challenged. Raises Refused with why it cannot be."""
        stored = await self._ledger.receipt(receipt_id)
        if stored is None or stored.opened.record.requester != peer:
            raise _unknown()
        receipt = stored.opened.record
        lease = await self._ledger.lease(Digest(receipt.lease))
        task = await self._ledger.task(Digest(receipt.task_id))
        if lease is None or task is None or lease.role != "provider":
            raise _unknown()
        if receipt.status != "ok":
            raise Refused("not-ok", f"that run failed ({receipt.code}): there are no digests of it")
        if receipt.ended_us < self._now_us() - CHALLENGE_FOR_US:
            hours = CHALLENGE_FOR_US // 3_600_000_000
            raise Refused("too-old", f"receipts can be challenged for {hours} hours after their run")
        if receipt.device not in self._devices:
            raise Refused("no-device", f"{receipt.device} is not on offer here any more")
        return Case(peer, stored.opened, task.record, lease)

    async def _busy(self, case: Case) -> ChallengeReply | None:
        """Why not now."""
        if await self._ledger.countersignature_of(case.receipt.id) is None:
            return _busy("the receipt is not countersigned yet: answer it first", SOON_US)
        return self._why_not(case)

    def _why_not(self, case: Case) -> ChallengeReply | None:
        """Why a run cannot begin at this moment."""
        now_us = self._now_us()
        if self._running:
            return _busy("another challenge is being answered", RETRY_US)
        if self._free(case.receipt.record.device) < 1:
            return _busy("every slot is taken or paused: work that is paid goes first", RETRY_US)
        times = [at_us for at_us in self._started.get(case.peer, []) if at_us > now_us - WINDOW_US]
        if len(times) >= MAX_RUNS:
            sentence = f"{MAX_RUNS} challenges of yours were run within {WINDOW_US // 60_000_000} min"
            return _busy(sentence, times[-MAX_RUNS] + WINDOW_US - now_us)
        return None

    async def _missing(self, case: Case, request: ChallengeRequest) -> list[bytes]:
        """Keep what came along; the roots that are still missing, which are waited for from now on.

        Raises Refused: `blobs-gone` where the requester has not said that it has them, `memory`, `store-full`.
        """
        declared = {blob.root: blob.size for blob in request.blobs if blob.root in case.roots}
        for blob in request.inline:
            if declared.get(blob.root) != len(blob.data):
                raise RemoteProtocolError("an inline blob is not one of the task's, or has another size")
        scope, limit = (self._mesh, case.peer), case.lease.opened.record.memory_bytes
        if sum(declared.values()) > limit:
            raise Refused("memory", f"the blobs of that task are more than its lease's {limit} bytes")
        try:
            await self._store.put_many(scope, [(Digest(blob.root), blob.data) for blob in request.inline])
        except StoreFull as error:
            raise Refused("store-full", str(error)) from error
        missing = [root for root in case.roots if not await self._store.ensure(scope, Digest(root))]
        gone = [root.hex()[:12] for root in missing if root not in declared]
        if gone:
            names = ", ".join(gone[:4]) + (", ..." if len(gone) > 4 else "")
            sentence = (
                f"{len(gone)} blobs of the task are gone on both sides ({names}): nobody can run it again"
            )
            raise Refused("blobs-gone", f"{sentence}; a job with trace=True is recorded while it runs")
        if missing and (case.peer in self._expected or len(self._expected) < MAX_PEERS):
            sizes = {root: declared[root] for root in missing}
            self._expected[case.peer] = _Expected(sizes, self._now_us() + BLOBS_US)
        return missing

    def _begin(self, case: Case) -> _Run:
        assert self._nursery is not None
        now_us = self._now_us()
        times = [at_us for at_us in self._started.pop(case.peer, []) if at_us > now_us - WINDOW_US]
        self._started[case.peer] = [*times, now_us]
        while len(self._started) > MAX_PEERS:
            self._started.popitem(last=False)
        run = self._running[case.receipt.id] = _Run(case)
        for root in case.roots:
            self._store.pin(Digest(root))
        _log.info("%s challenges receipt %s", short_peer(case.peer), case.receipt.id.hex()[:12])
        self._nursery.start_soon(self._run, run)
        return run

    async def _run(self, run: _Run) -> None:
        receipt_id = run.case.receipt.id
        try:
            with run.scope:
                run.outcome = await self._recorder.record(run.case)
        except BlobMissing:
            run.reason = "a blob of the task was evicted before it could be read"
        except Refused as refusal:
            run.outcome = refusal
        except (MeshError, ExecError, OSError) as error:
            run.outcome = Refused("rerun-failed", f"the task could not be run again: {error}"[:400])
        except Exception as error:  # noqa: BLE001 - a bug in answering one challenge must not end the agent
            _log.error("challenge of receipt %s failed", receipt_id.hex()[:12], exc_info=error)
            run.outcome = Refused("internal", "the provider failed to answer; its log says why")
        finally:
            del self._running[receipt_id]
            for root in run.case.roots:
                self._store.unpin(Digest(root))
            if run.outcome is not None:
                self._remember(run.case.peer, receipt_id, run.outcome)
            elif run.made_way:
                self._give_back(run.case.peer)
            run.ended.set()

    def _give_back(self, peer: PeerId) -> None:
        """A run that made way does not count."""
        times = self._started.pop(peer, [])[:-1]
        if times:
            self._started[peer] = times

    def _remember(self, peer: PeerId, receipt_id: Digest, answer: _Answer) -> None:
        self._ended.pop(receipt_id, None)
        self._ended[receipt_id] = (peer, answer)
        while len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)


def _unknown() -> Refused:
    return Refused("unknown-receipt", "there is no such receipt of ours for you here")


def _busy(sentence: str, retry_us: int) -> ChallengeReply:
    return ChallengeReply("busy", [], max(0, retry_us), None, None, sentence)


def _reply(
    state: str,
    *,
    need: Sequence[bytes] = (),
    trace: SignedRecord | None = None,
    chain: bytes | None = None,
) -> ChallengeReply:
    return ChallengeReply(state, list(need), 0, trace, chain, "")
