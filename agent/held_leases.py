"""Leases a requester holds, the tasks outstanding under each, and the place of each lane.

Results of one lane are settled in order, one at a time: a receipt names the one before it. `Lane.turn` lets the
handlers of pipelined results wait for each other without holding up other lanes.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from coppermesh.agent.attempts import Outstanding
from coppermesh.agent.lease_signing import GrantedLease
from coppermesh.agent.receipts import LaneHead
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import Digest, PeerId, format_peer
from coppermesh.p2p.lease_records import Extension
from coppermesh.p2p.records import Lease

TURN_SECONDS = 10.0
"""How long a receipt waits for the one before it on its lane."""


class Lane:
    """One lane's head, and whose turn it is."""

    def __init__(self, head: LaneHead) -> None:
        self.head = head
        self._busy = False
        self._moved = trio.Event()

    @asynccontextmanager
    async def turn(self, sequence: int, *, seconds: float = TURN_SECONDS) -> AsyncIterator[None]:
        """Hold the lane once `sequence` is next (or already past). Raises Refused `gap` when it does not become so."""
        with trio.move_on_after(seconds) as waiting:
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
    until_us: int = 0
    """When it ends, extensions included."""
    extensions: int = 0
    paused: bool = False
    """The provider said that it starts nothing for now."""
    pauses: int = 0
    """How often it said so."""

    def __post_init__(self) -> None:
        self.until_us = self.granted.lease.record.expires_us

    def extended(self, extension: Extension) -> None:
        """Both sides signed it."""
        self.until_us, self.extensions = extension.expires_us, extension.number

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
