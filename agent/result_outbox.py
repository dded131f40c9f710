"""The provider's side of a result: deliver each receipt until it is countersigned.

A receipt is in the ledger before it comes here. It is sent at once; where the requester cannot be reached it is sent
again whenever a connection to it comes up, also after this agent was restarted (`peer_up` reads the ledger). Retries
over a living connection back off; a requester that refuses a receipt gets it again only on its next connection.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import trio

from coppermesh.agent.ledger import CountersignatureReceived
from coppermesh.agent.ledger_store import LedgerStore
from coppermesh.agent.negotiation import Move, Role, TaskRun
from coppermesh.agent.receipts import check_countersignature
from coppermesh.p2p.blob_store import BlobMissing, BlobStore
from coppermesh.p2p.control import ControlHub
from coppermesh.p2p.envelope import Opened, open_record
from coppermesh.p2p.errors import MeshError, Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import Digest, MeshId, PeerId, short_peer
from coppermesh.p2p.messages import INLINE_BYTES, BlobInfo, InlineBlob, ResultReply, ResultRequest
from coppermesh.p2p.records import Countersignature, Receipt

ANSWER_SECONDS = 120.0
"""How long a requester has to fetch outputs, commit and countersign."""
RETRY_SECONDS = (1.0, 3.0, 10.0)
MAX_IN_FLIGHT = 256
"""Results being delivered at once; later ones wait for their turn."""

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


class ResultOutbox:
    """Delivers results in tasks of its own; `run` must be running."""

    def __init__(
        self,
        hub: Callable[[], ControlHub],
        mesh: MeshId,
        ledger: LedgerStore,
        store: BlobStore,
        *,
        now_us: Callable[[], int],
    ) -> None:
        self._hub = hub
        self._mesh = mesh
        self._ledger = ledger
        self._store = store
        self._now_us = now_us
        self._nursery: trio.Nursery | None = None
        self._limit = trio.CapacityLimiter(MAX_IN_FLIGHT)
        self._under_way: set[Digest] = set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    @property
    def under_way(self) -> int:
        """Receipts being delivered now."""
        return len(self._under_way)

    def send(self, pending: PendingResult) -> None:
        """Deliver a receipt that was just committed."""
        assert self._nursery is not None
        if pending.receipt.id not in self._under_way:
            self._under_way.add(pending.receipt.id)
            self._nursery.start_soon(self._deliver, pending)

    async def peer_up(self, requester: PeerId) -> None:
        """A connection to `requester` came up: send it what it has not countersigned."""
        for unsettled in await self._ledger.unsettled(requester):
            self.send(
                PendingResult(
                    requester,
                    unsettled.receipt,
                    tuple(unsettled.outputs),
                    unsettled.sentence,
                    unsettled.detail,
                    None,
                )
            )

    async def _deliver(self, pending: PendingResult) -> None:
        try:
            async with self._limit:
                for pause in (*RETRY_SECONDS, None):
                    try:
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
                    if pause is not None:
                        await trio.sleep(pause)
        except RemoteProtocolError as error:
            _log.warning("%s answered a receipt wrongly: %s", short_peer(pending.requester), error)
        except MeshError as error:
            _log.error("receipt %s: %s", pending.receipt.id.hex()[:12], error)
        finally:
            self._under_way.discard(pending.receipt.id)

    async def _deliver_once(self, pending: PendingResult) -> None:
        request = ResultRequest(
            pending.receipt.signed,
            [BlobInfo(root, size) for root, size in pending.outputs],
            await self._inline(pending),
            pending.sentence,
            pending.detail,
        )
        reply = await self._hub().request(
            pending.requester, "result", request, ResultReply, deadline_s=ANSWER_SECONDS
        )
        answer = open_record(Countersignature, reply.countersignature, signer=pending.requester)
        check_countersignature(answer.record, pending.receipt)
        await self._ledger.commit(CountersignatureReceived(answer.signed))
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
