"""What travels between a home's agent and its clients over the local socket.

A frame is a u32 big-endian length and the canonical encoding of a `Call` or an `Answer`. Reading commands carry JSON
text, because people and scripts read it; submitting carries structures, because arrays ride along. Blobs larger than
`LOCAL_INLINE_BYTES` use a connection of their own: after `put` or `get` is answered, exactly `size` raw bytes follow
in that direction and the connection ends.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from coppermesh.p2p.messages import BlobInfo
from coppermesh.p2p.records import Count, Hash, Nonce

MAX_LOCAL_FRAME_BYTES = 16 * 1024 * 1024
LOCAL_INLINE_BYTES = 1024 * 1024
"""Blobs of up to this many bytes ride inside a submit or an event."""
MAX_TASKS = 100_000
WAIT_SECONDS = 20.0
"""Longest a `wait` call stays unanswered."""


class LocalMessage(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of everything on the local socket."""


class Call(LocalMessage, frozen=True):
    """One request. A connection carries one call at a time."""

    method: Annotated[str, Meta(max_length=40)]
    mesh: Annotated[str, Meta(max_length=64)]
    """Its name, or the first digits of its id; empty: the agent's default mesh."""
    body: bytes


class Answer(LocalMessage, frozen=True):
    """`ok` with the method's body, or not ok with a code and a sentence in `code` and `sentence`."""

    ok: bool
    code: str
    sentence: str
    body: bytes


class JsonBody(LocalMessage, frozen=True):
    """Arguments or answer of a reading command."""

    text: str


class Blob(LocalMessage, frozen=True):
    """A small blob by value."""

    root: Hash
    data: bytes


class BlobCall(LocalMessage, frozen=True):
    """Body of `put` and `get`: the raw bytes follow the answer."""

    blob: BlobInfo


class TaskSpec(LocalMessage, frozen=True):
    """One task of a job: a program and its inputs, all blobs already put or inline in the same submit."""

    program: Hash
    inputs: Annotated[list[BlobInfo], Meta(max_length=128)]


class SubmitCall(LocalMessage, frozen=True):
    """A job: its tasks, the blobs that are small, and options as JSON (see `client.JobOptions`)."""

    tasks: Annotated[list[TaskSpec], Meta(min_length=1, max_length=MAX_TASKS)]
    blobs: list[Blob]
    options: str


class SubmitAnswer(LocalMessage, frozen=True):
    """The id under which `wait`, `cancel` and `explain` know the job."""

    job: Nonce


class WaitCall(LocalMessage, frozen=True):
    """Events of `job` after number `after`; answered as soon as there is one, or empty after `wait_ms`.

    At most `WAIT_SECONDS`, whatever is asked for.
    """

    job: Nonce
    after: Count
    wait_ms: Count = int(1000 * WAIT_SECONDS)


class JobEvent(LocalMessage, frozen=True):
    """Something that happened to a job. `kind` is `progress`, `task`, `finished` or `failed`; `text` is JSON."""

    number: Count
    kind: str
    index: Count | None
    text: str
    outputs: list[BlobInfo]
    inline: list[Blob]


class WaitAnswer(LocalMessage, frozen=True):
    """Events in order; more may follow unless one of them is `finished` or `failed`."""

    events: list[JobEvent]
