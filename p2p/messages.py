"""What travels on the control stream: requests and their replies, by method name.

A control frame carries (kind, request id, method, body); the body is the canonical encoding of one of these.
Records inside are `SignedRecord`s: this layer checks shapes and sizes, `envelope` checks signatures.

| method         | who asks  | request          | reply             |
|----------------|-----------|------------------|-------------------|
| `hello`        | both      | Hello            | Hello             |
| `announcement` | both      | AnnouncementRequest | AnnouncementReply |
| `order`        | requester | OrderRequest     | OrderReply        |
| `lease`        | requester | LeaseRequest     | LeaseReply        |
| `extend`       | requester | ExtendRequest    | ExtendReply       |
| `pause`        | provider  | PauseRequest     | Nothing           |
| `task`         | requester | TaskRequest      | TaskReply         |
| `tasks`        | requester | TasksRequest     | TasksReply        |
| `result`       | provider  | ResultRequest    | ResultReply       |
| `results`      | provider  | ResultsRequest   | ResultsReply      |
| `challenge`    | requester | ChallengeRequest | ChallengeReply    |
| `abandon`      | requester | OrderAbandoned   | Nothing           |
| `cancel`       | both      | CancelRequest    | Nothing           |
| `dialback`     | both      | DialBackRequest  | DialBackReply     |
| `ping`         | both      | Nothing          | Nothing           |

Blobs larger than `INLINE_BYTES` in all travel on their own streams (`transfer`).
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from coppermesh.p2p.records import (
    AddressText,
    Code,
    Count,
    Hash,
    Key,
    Label,
    Mesh,
    Nonce,
    Sentence,
    SignedRecord,
)

INLINE_BYTES = 192 * 1024
"""Blobs of up to this many bytes in all ride inside a task or result message."""
MAX_FRAME_BYTES = 1024 * 1024
MAX_DETAIL_BYTES = 16 * 1024
MAX_BATCH = 32
"""Tasks, or results, in one message."""
MAX_OTHERS = 64
MAX_KNOWN_BYTES = 16384
"""Announcements of other peers that one answer hands on."""


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of every control message."""


class Nothing(Message, frozen=True):
    """An empty request or reply."""


class Hello(Message, frozen=True):
    """First request on a control stream, in both directions: who, which mesh, which software."""

    mesh: Mesh
    peer: Key
    software: Label
    time_us: Count
    """The sender's clock, so that a wrong one can be named."""


class AnnouncementRequest(Message, frozen=True):
    """Asks for the peer's announcement, and for up to `want` of others that are not known yet."""

    known: Annotated[bytes, Meta(max_length=MAX_KNOWN_BYTES)]
    """The first 8 bytes of the id of each announcement that need not be sent, one after another."""
    want: Annotated[int, Meta(ge=0, le=MAX_OTHERS)]


class AnnouncementReply(Message, frozen=True):
    """The peer's newest announcement, or nil where it announces nothing, and the newest of others that it knows."""

    announcement: SignedRecord | None
    others: Annotated[list[SignedRecord], Meta(max_length=MAX_OTHERS)]


class OrderRequest(Message, frozen=True):
    """Order."""

    order: SignedRecord


class OrderReply(Message, frozen=True):
    """Exactly one of the two: Bid or Decline."""

    bid: SignedRecord | None
    decline: SignedRecord | None


class LeaseRequest(Message, frozen=True):
    """The lease signed by the requester, with the order and bid bodies that it hashes."""

    lease: SignedRecord


class LeaseReply(Message, frozen=True):
    """The same lease body signed by the provider, or a decline (lost the race, budget, expired)."""

    lease: SignedRecord | None
    decline: SignedRecord | None


class ExtendRequest(Message, frozen=True):
    """A later end of a lease, signed by the requester."""

    extension: SignedRecord


class ExtendReply(Message, frozen=True):
    """The same extension body signed by the provider, or a decline: then the lease ends when it would have."""

    extension: SignedRecord | None
    decline: SignedRecord | None


class PauseRequest(Message, frozen=True):
    """The provider starts no further task under the lease for now, or (`paused` false) goes on.

    What was sent stays where it is, and the lease ends when it would have.
    """

    lease: Hash
    paused: bool
    code: Code
    sentence: Sentence


class InlineBlob(Message, frozen=True):
    """A small blob in the message itself; `root` must be its BLAKE3 root."""

    root: Hash
    data: Annotated[bytes, Meta(max_length=INLINE_BYTES)]


class BlobInfo(Message, frozen=True):
    """A blob by name and length in bytes."""

    root: Hash
    size: Count


class TaskRequest(Message, frozen=True):
    """The signed task, the size of each blob it names (program first, then inputs), the small ones inline."""

    task: SignedRecord
    blobs: Annotated[list[BlobInfo], Meta(max_length=129)]
    inline: Annotated[list[InlineBlob], Meta(max_length=129)]


class TaskReply(Message, frozen=True):
    """`accepted`; `need`: send the blobs named, then the same request again; or `refused`."""

    state: Annotated[str, Meta(pattern=r"^(accepted|need|refused)\Z")]
    need: Annotated[list[Hash], Meta(max_length=129)]
    code: Code
    sentence: Sentence


class TasksRequest(Message, frozen=True):
    """Several tasks for one provider, in the order in which those of one lease are to run."""

    tasks: Annotated[list[TaskRequest], Meta(max_length=MAX_BATCH)]


class TasksReply(Message, frozen=True):
    """What became of each, in the same order."""

    replies: Annotated[list[TaskReply], Meta(max_length=MAX_BATCH)]


class ResultRequest(Message, frozen=True):
    """The signed receipt, the outputs by name and size, the small ones inline, and what a person reads."""

    receipt: SignedRecord
    outputs: Annotated[list[BlobInfo], Meta(max_length=64)]
    inline: Annotated[list[InlineBlob], Meta(max_length=64)]
    sentence: Sentence
    detail: Annotated[str, Meta(max_length=MAX_DETAIL_BYTES)]
    """Compiler log or traceback for the submitter; empty when ok. Unsigned, untrusted, printed escaped."""


class ResultReply(Message, frozen=True):
    """The countersignature of the receipt."""

    countersignature: SignedRecord


class ResultsRequest(Message, frozen=True):
    """Several results, those of one lane in its order, with all their outputs inline."""

    results: Annotated[list[ResultRequest], Meta(max_length=MAX_BATCH)]


class ResultAnswer(Message, frozen=True):
    """The countersignature of one of them, or nil and why it has none now."""

    countersignature: SignedRecord | None
    code: Code
    sentence: Sentence


class ResultsReply(Message, frozen=True):
    """An answer for each, in the same order."""

    answers: Annotated[list[ResultAnswer], Meta(max_length=MAX_BATCH)]


class ChallengeRequest(Message, frozen=True):
    """Asks for the digests of nodes of a task that has its receipt. The same request may come again: poll with it."""

    receipt: Hash
    """Id of the provider's own receipt."""
    blobs: Annotated[list[BlobInfo], Meta(max_length=129)]
    """Those of the task's blobs that the requester still has, program and inputs."""
    inline: Annotated[list[InlineBlob], Meta(max_length=129)]


class ChallengeReply(Message, frozen=True):
    """`recorded`: here they are; `need`: send these blobs, ask again; `running`, `busy`: ask again."""

    state: Annotated[str, Meta(pattern=r"^(recorded|need|running|busy)\Z")]
    need: Annotated[list[Hash], Meta(max_length=129)]
    retry_us: Count
    """With `busy`: how long to wait before asking again."""
    trace: SignedRecord | None
    chain: Annotated[bytes, Meta(max_length=INLINE_BYTES)] | None
    """The digests, where they are few; else they are got as the blob that the Trace names."""
    sentence: Sentence


class CancelRequest(Message, frozen=True):
    """Ends one task (`task` given) or the whole lease. Either side, any time; the reason is for `explain`."""

    lease: Hash
    task: Count | None
    code: Code
    sentence: Sentence
    decline: SignedRecord | None
    """A provider that leaves a requester signs why: a Decline of the lease's order, or nil."""


class DialBackRequest(Message, frozen=True):
    """Asks whether one can be reached at this port of the host that one's connection comes from."""

    port: Annotated[int, Meta(ge=1, le=65535)]


class DialBackReply(Message, frozen=True):
    """What became of one TCP connection and Noise handshake from a fresh port."""

    state: Annotated[str, Meta(pattern=r"^(reached|closed|silent|other|unreachable)\Z")]
    seen_at: AddressText
    """Where the asker's connection comes from, as it is seen here: host and port, without peer id."""


class OrderAbandoned(Message, frozen=True):
    """The requester awarded elsewhere: the reservation made by a bid can go."""

    order: Hash
    job: Nonce
