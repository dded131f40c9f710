"""Things for one peer that leave together where several are there at once.

Theory of operation. Under one key (a provider, a lane) one batch is on its way at a time; what comes meanwhile leaves
together when it is back, in the order that callers give. What is alone leaves at once unless another message of its key
is unanswered. Where the caller knows that `more` follows soon, its thing waits for company: `LINGER_SECONDS`, or until
`ENOUGH` are there or one comes that nothing follows. So the more there is to do, the more shares one message, a commit
and some turns of the event loop on both sides; a batch has at most `MAX_BATCH` things and `BATCH_BYTES`.

Who is cancelled while its thing waits takes it back. Once it has left, only the waiting ends.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

from coppermesh.p2p.errors import MeshError, Refused, Unreachable
from coppermesh.p2p.messages import MAX_BATCH

BATCH_BYTES = 256 * 1024
"""A batch that has so much takes no more: it stays well below the size of a control frame."""
ALONE_BYTES = 32 * 1024
"""What is larger leaves at once and by itself: company would save it nothing, and it would hold others up."""
LINGER_SECONDS = 0.004
ENOUGH = 6
"""So many do not wait for more."""

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
R = TypeVar("R")


@dataclass(eq=False, slots=True)
class _Waiting(Generic[T, R]):
    """One thing, and what became of it."""

    thing: T
    size: int
    order: int
    more: bool
    done: trio.Event = field(default_factory=trio.Event)
    outcome: "R | Exception | None" = None


@dataclass(eq=False, slots=True)
class _Line(Generic[T, R]):
    """What waits under one key."""

    waiting: deque[_Waiting[T, R]] = field(default_factory=deque)
    enough: trio.Event = field(default_factory=trio.Event)
    """What waits need not wait for company any more."""

    def add(self, new: _Waiting[T, R]) -> None:
        """Put it where it belongs, which is nearly always the end."""
        place = len(self.waiting)
        while place and self.waiting[place - 1].order > new.order:
            place -= 1
        self.waiting.insert(place, new)

    def is_enough(self) -> bool:
        """Nothing is gained by waiting for more."""
        return len(self.waiting) >= ENOUGH or not self.waiting or not self.waiting[-1].more


class Batches(Generic[K, T, R]):
    """Collects and sends. `send` takes what leaves together and gives an outcome for each, in order.

    An outcome that is a MeshError is raised at its caller; what `send` raises, at all of the batch. `run` must be
    running for anything to leave.
    """

    def __init__(self, send: Callable[[K, Sequence[T]], Awaitable[Sequence[R | MeshError]]]) -> None:
        self._send = send
        self._lines: dict[K, _Line[T, R]] = {}
        self._nursery: trio.Nursery | None = None
        self.sent = 0
        """Batches that left."""
        self.things = 0
        """What was in them."""

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def submit(self, key: K, thing: T, size: int, *, order: int = 0, more: bool = False) -> R:
        """Send `thing`, of about `size` bytes, and wait for what becomes of it. Raises what `send` gives for it.

        `key`: what those have in common that may travel together. `order`: behind which of those that wait it goes.
        `more`: another one with this key is expected within some milliseconds.
        """
        assert self._nursery is not None
        waiting: _Waiting[T, R] = _Waiting(thing, size, order, more)
        if size > ALONE_BYTES:
            self._nursery.start_soon(self._send_batch, key, [waiting])
            await waiting.done.wait()
        else:
            await self._in_line(key, waiting)
        outcome = waiting.outcome
        if outcome is None:
            raise Unreachable("the agent is stopping")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _in_line(self, key: K, waiting: _Waiting[T, R]) -> None:
        """Wait in the line of its key until it has left and come back; take it back when cancelled before."""
        assert self._nursery is not None
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
            self._nursery.start_soon(self._serve, key, line)
        line.add(waiting)
        if line.is_enough():
            line.enough.set()
        try:
            await waiting.done.wait()
        except trio.Cancelled:
            if waiting in line.waiting:
                line.waiting.remove(waiting)
            raise

    async def _serve(self, key: K, line: _Line[T, R]) -> None:
        """Send batch after batch, as long as anything waits."""
        try:
            while line.waiting:
                if not line.is_enough():
                    line.enough = trio.Event()
                    with trio.move_on_after(LINGER_SECONDS):
                        await line.enough.wait()
                if line.waiting:  # who was cancelled took its thing back
                    await self._send_batch(key, _take(line.waiting))
        finally:
            del self._lines[key]
            for waiting in line.waiting:
                waiting.done.set()

    async def _send_batch(self, key: K, batch: Sequence[_Waiting[T, R]]) -> None:
        self.sent += 1
        self.things += len(batch)
        try:
            outcomes = await self._send(key, [waiting.thing for waiting in batch])
            for waiting, outcome in zip(batch, outcomes, strict=True):
                waiting.outcome = outcome
        except Exception as error:  # noqa: BLE001 - each caller deals with it as if it had been alone
            for waiting in batch:
                waiting.outcome = _copy(error)
        finally:
            for waiting in batch:
                waiting.done.set()


def _take(waiting: deque[_Waiting[T, R]]) -> list[_Waiting[T, R]]:
    """What leaves next: the oldest, as many as fit, one at least."""
    batch = [waiting.popleft()]
    size = batch[0].size
    while waiting and len(batch) < MAX_BATCH and size + waiting[0].size <= BATCH_BYTES:
        batch.append(waiting.popleft())
        size += batch[-1].size
    return batch


def _copy(error: Exception) -> Exception:
    """One for each caller: raising one object in several tasks would mix their tracebacks."""
    if not isinstance(error, MeshError):
        return error
    copy = Refused(error.code, error.sentence) if isinstance(error, Refused) else type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy
