"""What the ledger holds: its entries, what they become when written, and what the rules may ask of it (pure).

An *entry* is one step of a protocol, made of signed records. `ledger_rules` decides whether it may be written.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from coppermesh.agent.receipts import LaneHead
from coppermesh.agent.settling import SettlingBook, SettlingEntry
from coppermesh.agent.story import StoryLine
from coppermesh.p2p.envelope import Opened
from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.ids import Digest, PeerId
from coppermesh.p2p.lease_records import Extension
from coppermesh.p2p.records import Countersignature, Lease, Receipt, SignedRecord, Task

Role = Literal["requester", "provider"]
"""Which side of a lease this peer is on."""
MAX_EVIDENCE_PER_PEER = 100
MAX_CODE = 40


class LedgerError(MeshError):
    """Base of what a ledger raises."""


class LedgerConflict(LedgerError):
    """The entry contradicts what the ledger holds; nothing of this commit was written.

    Read again what the ledger has and decide anew. `code` is stable; `evidence` is set where the other side's own
    signatures prove that it broke the rules (it is kept in the ledger already).
    """

    def __init__(self, code: str, sentence: str, evidence: "EvidenceFound | None" = None) -> None:
        super().__init__(sentence)
        self.code = code
        self.evidence = evidence


@dataclass(frozen=True, slots=True)
class LeaseOffered:
    """Requester: the lease it signed, before it is sent."""

    lease: SignedRecord
    order: SignedRecord
    bid: SignedRecord


@dataclass(frozen=True, slots=True)
class LeaseAgreed:
    """Both signed. Requester: the provider's signature arrived. Provider: the same, with the three it answers."""

    lease_id: Digest
    provider_signature: SignedRecord
    lease: SignedRecord | None = None
    """As signed by the requester (provider's side only, like the two below)."""
    order: SignedRecord | None = None
    bid: SignedRecord | None = None


@dataclass(frozen=True, slots=True)
class TaskIssued:
    """Requester: a task it signed, before it is sent."""

    task: SignedRecord


@dataclass(frozen=True, slots=True)
class TaskTaken:
    """Provider: a task it accepts, before it says so. Its number is spent from here on."""

    task: SignedRecord


@dataclass(frozen=True, slots=True)
class TaskSuperseded:
    """Requester: gave up on a task and will pay nothing for it. Commit before it is issued elsewhere."""

    task_id: Digest
    code: str


@dataclass(frozen=True, slots=True)
class ReceiptIssued:
    """Provider: the receipt it signed, with what it takes to send the result again, before it is sent."""

    receipt: SignedRecord
    outputs: tuple[tuple[bytes, int], ...] = ()
    """Root and size in bytes of every output blob."""
    sentence: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ReceiptSettled:
    """Requester: a receipt and its countersignature, before the reply leaves."""

    receipt: SignedRecord
    countersignature: SignedRecord


@dataclass(frozen=True, slots=True)
class CountersignatureReceived:
    """Provider: the requester's answer to one of its receipts."""

    countersignature: SignedRecord


@dataclass(frozen=True, slots=True)
class LeaseEnded:
    """Either side: no more tasks under this lease. Receipts of its tasks may still follow."""

    lease_id: Digest
    code: str


@dataclass(frozen=True, slots=True)
class LeaseExtended:
    """Either side: a later end of a lease, signed by both. The provider commits it before its signature leaves."""

    requester_signature: SignedRecord
    provider_signature: SignedRecord


@dataclass(frozen=True, slots=True)
class EvidenceFound:
    """Signed records that together show what a peer did."""

    kind: str
    """`equivocation`, `broken-chain`, `double-task`, `double-countersignature`, `wrong-sum`, or a dispute's code."""
    peer: PeerId
    records: tuple[SignedRecord, ...]
    at_us: int = 0
    text: str = ""


Entry = (
    LeaseOffered
    | LeaseAgreed
    | TaskIssued
    | TaskTaken
    | TaskSuperseded
    | ReceiptIssued
    | ReceiptSettled
    | CountersignatureReceived
    | LeaseEnded
    | LeaseExtended
    | EvidenceFound
    | StoryLine
    | SettlingEntry
)


@dataclass(frozen=True, slots=True)
class StoredLease:
    """A lease in the book."""

    role: Role
    opened: Opened[Lease]
    """As signed by the requester."""
    order: SignedRecord
    bid: SignedRecord


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    """A receipt in the book; the last three are empty on the requester's side."""

    opened: Opened[Receipt]
    outputs: tuple[tuple[bytes, int], ...] = ()
    sentence: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class NewLease:
    """To write: a lease, agreed already on the provider's side."""

    lease: StoredLease
    agreed: SignedRecord | None


@dataclass(frozen=True, slots=True)
class NewAgreement:
    """To write: the provider's signature of a lease."""

    lease_id: Digest
    signed: SignedRecord


@dataclass(frozen=True, slots=True)
class NewExtension:
    """To write: a lease's later end."""

    extension: Opened[Extension]
    agreed: SignedRecord


@dataclass(frozen=True, slots=True)
class NewTask:
    """To write: a task."""

    task: Opened[Task]


@dataclass(frozen=True, slots=True)
class NewReceipt:
    """To write: a receipt and, on the requester's side, its countersignature."""

    receipt: StoredReceipt
    countersignature: Opened[Countersignature] | None


@dataclass(frozen=True, slots=True)
class NewCountersignature:
    """To write: the countersignature of one's own receipt."""

    countersignature: Opened[Countersignature]


Change = (
    NewLease
    | NewAgreement
    | NewExtension
    | NewTask
    | TaskSuperseded
    | NewReceipt
    | NewCountersignature
    | LeaseEnded
    | EvidenceFound
    | StoryLine
    | SettlingEntry
)
"""What `judge` asks the book to write."""


class Book(Protocol):
    """What the rules read. Every method answers from what is written, including earlier entries of the same commit."""

    @property
    def me(self) -> PeerId:
        """Whose ledger this is."""
        ...

    def lease(self, lease_id: Digest) -> StoredLease | None:
        """The lease with this id."""
        ...

    def lease_on(self, lane: bytes) -> Digest | None:
        """Which lease a lane belongs to."""
        ...

    def agreement(self, lease_id: Digest) -> SignedRecord | None:
        """The provider's signature of a lease."""
        ...

    def extensions(self, lease_id: Digest) -> list[Opened[Extension]]:
        """The extensions of a lease, in order, as the requester signed them."""
        ...

    def lease_end(self, lease_id: Digest) -> str | None:
        """The code under which a lease ended."""
        ...

    def task(self, task_id: Digest) -> Opened[Task] | None:
        """The task with this id."""
        ...

    def task_numbered(self, lease_id: Digest, number: int) -> Opened[Task] | None:
        """The task with this number under a lease."""
        ...

    def given_up(self, task_id: Digest) -> str | None:
        """The code under which a task was superseded."""
        ...

    def receipt(self, receipt_id: Digest) -> StoredReceipt | None:
        """The receipt with this id."""
        ...

    def receipt_at(self, lane: bytes, sequence: int) -> StoredReceipt | None:
        """The receipt at this place on a lane."""
        ...

    def receipts_of(self, task_id: Digest) -> list[Digest]:
        """The ids of a task's receipts."""
        ...

    def head(self, lane: bytes) -> LaneHead:
        """Where a lane stands."""
        ...

    def countersignature(self, receipt_id: Digest) -> Opened[Countersignature] | None:
        """The countersignature of a receipt."""
        ...

    @property
    def settling(self) -> SettlingBook:
        """Statements and what belongs to them."""
        ...

    def sealed(self, lane: bytes) -> bool:
        """Is this a lane of before a restore, on which this peer signs nothing any more?"""
        ...


@dataclass(frozen=True, slots=True)
class Balance:
    """What stands between this peer and another on one mesh in one unit, money. Units never add."""

    peer: PeerId
    unit: str
    owed_to_me: int
    """Accepted by them for work done here."""
    owed_by_me: int
    """Accepted here for work done by them."""
    pending: int
    """Billed by me and not answered yet."""
    disputed: int
    """Billed by me and disputed by them."""
    stated: int = 0
    """Of `net`, what is in statements that both signed and is not paid yet; above zero: they owe it."""
    paid: int = 0
    """What they paid me less what I paid them, as the payee confirmed it."""

    @property
    def net(self) -> int:
        """What is open, stated or not. Above zero: they owe me."""
        return self.owed_to_me - self.owed_by_me - self.paid
