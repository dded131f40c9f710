"""What the dispatcher is told (events) and what it asks for (instructions).

Both are frozen and are never subclassed further. `job` and `lease` are the ids that the shell chose or signed; `index`
is the task's place in its job. Each instruction has a `cause`: one sentence for the job's story.
"""

from dataclasses import dataclass
from typing import Literal

from coppermesh.agent.matching import Requirement
from coppermesh.agent.pricing import MAX_MONEY
from coppermesh.p2p.ids import PeerId

Fault = Literal["job", "provider", "requester"]
"""`requester`: this agent itself cannot go on."""


def too_few_providers(copies: int, heard: int) -> str:
    """Why tasks that run at `copies` different providers wait."""
    return f"redundancy {copies} needs {copies} providers, {heard} heard"


@dataclass(frozen=True, slots=True)
class JobSubmitted:
    """A job of `tasks` independent tasks, all with the same requirement. It fails at `deadline_us` if not finished."""

    job: bytes
    tasks: int
    requirement: Requirement
    deadline_us: int
    budget: int = MAX_MONEY
    """Most that all its tasks may cost together, under whatever leases they run."""
    copies: int = 1
    """`tasks` are so many copies of each of the job's own: no two of one run at the same provider."""


@dataclass(frozen=True, slots=True)
class JobCancelled:
    """The submitter takes the job back. Nothing is reported about it any more."""

    job: bytes
    cause: str = "cancelled by the submitter"


@dataclass(frozen=True, slots=True)
class LeaseUp:
    """Both sides signed a lease that was asked for with `WantLeases`."""

    lease: bytes
    provider: PeerId
    requirement: Requirement
    depth: int
    """Tasks that may be outstanding at once."""
    expires_us: int
    budget: int
    """Most that all tasks under the lease may cost together."""
    rate: int
    """What the lease costs per device-hour: with the wall limit it bounds what one task can cost."""


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """A lease is over before it was released: the provider died, left, cancelled it or broke the protocol."""

    lease: bytes
    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class NegotiationEnded:
    """A `WantLeases` has run its course; each lease granted was reported by `LeaseUp` before."""

    requirement: Requirement
    granted: int
    heard: int
    """Providers whose announcements were heard at all."""
    declined: int
    """Providers that were asked and declined or did not answer."""
    hopeless: bool = False
    """Providers were heard, and each refuses for a reason that time does not change."""
    left: frozenset[PeerId] | None = None
    """Those heard that do not refuse for good, and may take it later; None: not known."""


@dataclass(frozen=True, slots=True)
class ProvidersChanged:
    """An announcement that is new or different was heard: asking again may be worth it now."""


@dataclass(frozen=True, slots=True)
class TaskRefused:
    """The provider did not take the task. Only for reasons that another provider may not have."""

    job: bytes
    index: int
    lease: bytes
    code: str
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class TaskDone:
    """The task's outputs were verified and its receipt is committed. `amount` is what it cost."""

    job: bytes
    index: int
    lease: bytes
    amount: int


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """The task ended without a result: by the job's own fault, as its provider says, by the provider's, or by ours.

    Also reported for a task that was cancelled, once the provider answered or the shell gave up on it: until then it
    takes a place of the lease's depth.
    """

    job: bytes
    index: int
    lease: bytes
    fault: Fault
    code: str
    sentence: str
    amount: int = 0
    """What it cost nevertheless: work that failed by the job's fault is billed."""


@dataclass(frozen=True, slots=True)
class LeaseExtended:
    """Both sides signed a later end of the lease."""

    lease: bytes
    expires_us: int


@dataclass(frozen=True, slots=True)
class ExtensionRefused:
    """The lease ends when it would have; the dispatcher does not ask again."""

    lease: bytes
    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class LeasePaused:
    """The provider starts no further task under the lease, or goes on."""

    lease: bytes
    paused: bool


@dataclass(frozen=True, slots=True)
class CopyCounted:
    """A `CopyFailed` was compared with the other copies of its task."""

    job: bytes
    index: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: `next_wakeup_us` was reached."""


Event = (
    JobSubmitted
    | JobCancelled
    | LeaseUp
    | LeaseLost
    | NegotiationEnded
    | ProvidersChanged
    | TaskRefused
    | TaskDone
    | TaskFailed
    | CopyCounted
    | LeaseExtended
    | ExtensionRefused
    | LeasePaused
    | Tick
)


@dataclass(frozen=True, slots=True)
class StartTask:
    """Sign and send task `index` of `job` under `lease`."""

    job: bytes
    index: int
    lease: bytes
    attempt: int
    """1 for the first try."""
    cause: str
    again: bool = False
    """It is not the only attempt at the task that may still have a result: only one of them is paid."""


@dataclass(frozen=True, slots=True)
class CancelTask:
    """Its job is over, or its result not needed: tell the provider.

    Report `TaskFailed` (any fault) when it answered or did not in time.
    """

    job: bytes
    index: int
    lease: bytes
    cause: str


@dataclass(frozen=True, slots=True)
class Supersede:
    """Commit to the ledger that a result of this attempt will be disputed as `superseded`.

    Always comes before the `StartTask` that tries the task again, and must be durable before that task is signed:
    else a crash in between could make the requester owe for both.
    """

    job: bytes
    index: int
    lease: bytes
    cause: str


@dataclass(frozen=True, slots=True)
class WantLeases:
    """Ask providers for up to `count` leases, and end with `NegotiationEnded` by `deadline_us` whatever came of it."""

    requirement: Requirement
    count: int
    exclude: frozenset[PeerId]
    """Not to be asked."""
    held: frozenset[PeerId]
    """Hold such a lease already: take others first (`matching.choose_bids`)."""
    deadline_us: int
    cause: str
    fruitless: int = 0
    """Negotiations for the same in a row that came to nothing: ask more widely."""


@dataclass(frozen=True, slots=True)
class ExtendLease:
    """Ask the provider for a later end, and report `LeaseExtended` or `ExtensionRefused`."""

    lease: bytes
    cause: str


@dataclass(frozen=True, slots=True)
class ReleaseLease:
    """End a lease. The dispatcher has forgotten it; no event about it is needed."""

    lease: bytes
    code: str
    """`idle`, `surplus`, `expiring`, `expired` or `budget`."""
    cause: str


@dataclass(frozen=True, slots=True)
class JobFinished:
    """Every task of the job is done."""

    job: bytes
    cause: str


@dataclass(frozen=True, slots=True)
class JobFailed:
    """The job is over without its result."""

    job: bytes
    code: str
    sentence: str
    cause: str
    index: int | None = None
    """The task whose own doing it is, where it is one's."""


@dataclass(frozen=True, slots=True)
class CopyFailed:
    """One copy of a task failed by the job's own doing, as its provider alone says, and nobody else can be asked.

    It counts as one copy with another result. Report `CopyCounted` when it was compared with the others.
    """

    job: bytes
    index: int
    provider: PeerId
    code: str
    cause: str


Instruction = (
    StartTask
    | CancelTask
    | Supersede
    | WantLeases
    | ExtendLease
    | ReleaseLease
    | JobFinished
    | JobFailed
    | CopyFailed
)
