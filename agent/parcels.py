"""What a `submit` call carries: each task's program and inputs, and every blob once.

Small blobs ride in the call, larger ones go ahead of it, one at a time and straight from the array's memory. What was
sent before is not sent again, and an array or program that many tasks share is hashed once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from coppermesh.agent.local_messages import LOCAL_INLINE_BYTES, MAX_TASKS, Blob, TaskSpec
from coppermesh.exec.graph import SourceLine
from coppermesh.exec.program import ArraySpec
from coppermesh.exec.recorder import Recording
from coppermesh.p2p.blobs import digest_of
from coppermesh.p2p.messages import BlobInfo

CALL_BYTES = 8 * 1024 * 1024
"""Most that tasks and blobs of one call take together: each blob that goes ahead is a connection of its own."""
TASK_BYTES, INPUT_BYTES = 48, 48
"""What naming a task and each of its inputs takes at most."""


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array that the agent's store holds already: an output of an earlier task."""

    blob: BlobInfo
    data: bytes | None
    """Its bytes where they are at hand, in case that the store has let them go."""


@dataclass(frozen=True, slots=True)
class PreparedTask:
    """One task as it is submitted."""

    program: bytes
    inputs: tuple[np.ndarray | StoredArray, ...]
    outputs: tuple[ArraySpec, ...]
    sources: tuple[SourceLine, ...]
    """For each node the user's line that recorded it."""

    @classmethod
    def of(cls, recording: Recording) -> "PreparedTask":
        """The task that runs `recording` on the arrays it was recorded with."""
        outputs = tuple(recording.checked.output_specs)
        return cls(recording.program, tuple(recording.inputs), outputs, recording.sources)


class Parcel:
    """Collects the tasks of one call. `sent` are the roots that the agent was given before, and is added to."""

    def __init__(self, sent: set[bytes], put: Callable[[BlobInfo, memoryview], None]) -> None:
        self._sent = sent
        self._put = put
        self._inline: dict[bytes, Blob] = {}
        self._room = LOCAL_INLINE_BYTES
        """Bytes of blobs that may still ride along."""
        self._hashed: dict[int, BlobInfo] = {}
        self.tasks: list[TaskSpec] = []

    @property
    def blobs(self) -> list[Blob]:
        """What rides in the call."""
        return list(self._inline.values())

    def add(self, tasks: Sequence[PreparedTask]) -> None:
        """Add tasks, sending ahead what is large. The tasks' arrays must stay as they are until this returns."""
        named = sum(TASK_BYTES + INPUT_BYTES * len(task.inputs) for task in tasks)
        self._room = max(self._room, CALL_BYTES - named)
        for task in tasks:
            program = self._blob_of(task.program)
            self.tasks.append(TaskSpec(program.root, [self._blob_of(item) for item in task.inputs]))
        self._hashed.clear()

    def _blob_of(self, item: bytes | np.ndarray | StoredArray) -> BlobInfo:
        if isinstance(item, StoredArray):
            if item.data is not None:
                self._carry(item.blob, memoryview(item.data))
            return item.blob
        known = self._hashed.get(id(item))
        if known is not None:
            return known
        view = memoryview(item) if isinstance(item, bytes) else raw_bytes(item)
        blob = BlobInfo(digest_of(view), view.nbytes)
        self._carry(blob, view)
        self._hashed[id(item)] = blob
        return blob

    def _carry(self, blob: BlobInfo, view: memoryview) -> None:
        if blob.root in self._inline or blob.root in self._sent:
            return
        if blob.size <= min(self._room, LOCAL_INLINE_BYTES) and len(self._inline) < MAX_TASKS:
            self._inline[blob.root] = Blob(blob.root, bytes(view))
            self._room -= blob.size
        else:
            self._put(blob, view)
            self._sent.add(blob.root)


def raw_bytes(array: np.ndarray) -> memoryview:
    """The array's bytes in C order, without a copy where it is already so."""
    contiguous = np.ascontiguousarray(array)
    if not contiguous.nbytes:
        return memoryview(b"")
    return contiguous.reshape(-1).view(np.uint8).data
