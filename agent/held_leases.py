"""Leases a requester holds, the tasks outstanding under each, and the place of each lane.

Results of one lane are settled in order, one at a time: a receipt names the one before it. `Lane.turn` lets the
handlers of pipelined results wait for each other without holding up other lanes.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from coppermesh.agent.lease_broker import GrantedLease
from coppermesh.agent.negotiation import TaskRun
from coppermesh.agent.receipts import LaneHead
from coppermesh.p2p.envelope import Opened
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import Digest, PeerId, format_peer
from coppermesh.p2p.messages import BlobInfo
from coppermesh.p2p.records import Lease, Task

TURN_SECONDS = 10.0
"""How long a receipt waits for the one before it on its lane."""


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """How an attempt ended. `fault` is None when it is done."""

    fault: str | None
    code: str
    sentence: str
    detail: str = ""
    amount: int = 0
    billed_us: int = 0
    receipt_id: Digest | None = None
    outputs: tuple[BlobInfo, ...] = ()


@dataclass(slots=True)
class Outstanding:
    """One task under a lease, from its signing until its outcome."""

    job: bytes
    index: int
    task: Opened[Task]
    run: TaskRun
    sent_us: int
    given_up: str | None = None
    """Code under which it was superseded or cancelled: a receipt that still comes is disputed with it."""
    settling: bool = False
    """A receipt was judged and is being committed: too late to give up."""
    committed: trio.Event = field(default_factory=trio.Event)
    """Set when `settling` is over."""
    settled: bool = False
    """A receipt of it stands in the ledger with our countersignature."""
    issued: bool = False
    """It is in the ledger, or on its way there: from then on it may leave."""
    offering: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Around sending it: cancelled with its end, so that a provider that takes blobs slowly holds up nothing."""
    outcome: TaskOutcome | None = None
    ended: trio.Event = field(default_factory=trio.Event)

    @property
    def is_over(self) -> bool:
        """It has its outcome, or is about to: nothing more is sent for it."""
        return self.outcome is not None or self.given_up is not None

    def begin_settling(self) -> None:
        """A receipt was judged: nothing may give this attempt up until `end_settling`."""
        self.settling = True
        self.committed = trio.Event()

    def end_settling(self) -> None:
        """The commit succeeded or failed."""
        self.settling = False
        self.committed.set()

    async def give_up(self, code: str, outcome: TaskOutcome) -> None:
        """End it with `outcome`, and dispute with `code` what still comes, unless a receipt is being committed.

        Nothing may be given up that is paid at the same moment: the task would be tried, and paid, again.
        """
        while self.settling:
            await self.committed.wait()
        if self.outcome is None:
            self.given_up = self.given_up or code
            self.resolve(outcome)

    def resolve(self, outcome: TaskOutcome) -> bool:
        """The first outcome stands. True if this is it."""
        if self.outcome is not None:
            return False
        self.outcome = outcome
        self.offering.cancel()
        self.ended.set()
        return True


class Lane:
    """One lane's head, and whose turn it is."""

    def __init__(self, head: LaneHead) -> None:
        self.head = head
        self._busy = False
        self._moved = trio.Event()

    @asynccontextmanager
    async def turn(self, sequence: int) -> AsyncIterator[None]:
        """Hold the lane once `sequence` is next (or already past). Raises Refused `gap` when it does not become so."""
        with trio.move_on_after(TURN_SECONDS) as waiting:
            while self._busy or sequence > self.head.sequence_next:
                await self._moved.wait()
        if waiting.cancelled_caught:
            raise Refused(
                "gap",
                f"receipt {sequence} came, number {self.head.sequence_next} of its lane is still missing",
            )
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
            self._wake()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = trio.Event()


@dataclass(slots=True)
class HeldLease:
    """A lease this agent may send tasks under."""

    granted: GrantedLease
    lane: Lane = field(default_factory=lambda: Lane(LaneHead()))
    next_number: int = 0
    outstanding: dict[int, Outstanding] = field(default_factory=dict)
    lost: bool = False

    @property
    def id(self) -> Digest:
        """The lease's id."""
        return self.granted.lease.id

    @property
    def provider(self) -> PeerId:
        """The other side."""
        return self.granted.provider

    @property
    def record(self) -> Lease:
        """What both signed."""
        return self.granted.lease.record

    def take_number(self) -> int:
        """The next unused task number."""
        number = self.next_number
        self.next_number += 1
        return number

    @property
    def provider_text(self) -> str:
        """The provider's peer id as text."""
        return format_peer(self.provider)

    def find_any(self, job: bytes, index: int) -> Outstanding | None:
        """The newest attempt at that task, given up or not, or None."""
        found = [
            attempt for attempt in self.outstanding.values() if (attempt.job, attempt.index) == (job, index)
        ]
        return found[-1] if found else None

    def find(self, job: bytes, index: int) -> Outstanding | None:
        """The live attempt at that task, or None."""
        for outstanding in self.outstanding.values():
            if (outstanding.job, outstanding.index) == (job, index) and outstanding.given_up is None:
                return outstanding
        return None

    async def settle_down(self) -> None:
        """Wait until no receipt of this lease is in the middle of being committed.

        Returns without a checkpoint after the last look, so that the caller can give up the rest in the same step.
        """
        while settling := [attempt for attempt in self.outstanding.values() if attempt.settling]:
            await settling[0].committed.wait()
