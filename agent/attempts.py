"""One attempt at a task, from its signing until its outcome, and how it ended."""

from dataclasses import dataclass, field

import trio

from coppermesh.agent.negotiation import TaskRun
from coppermesh.p2p.envelope import Opened
from coppermesh.p2p.ids import Digest
from coppermesh.p2p.messages import BlobInfo
from coppermesh.p2p.records import Task


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
    determinism: str = ""


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
    accepting: bool = False
    """That receipt is accepted: no other attempt at the task is paid."""
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

    @property
    def is_taken(self) -> bool:
        """Its result was accepted, or is being committed as accepted."""
        return self.accepting and (self.settling or self.settled)

    def begin_settling(self, *, accepting: bool) -> None:
        """A receipt was judged: nothing may give this attempt up until `end_settling`."""
        self.settling = True
        self.accepting = accepting
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
