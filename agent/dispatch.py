"""Signatures only for the moment; the scheduler follows."""

from dataclasses import dataclass

from coppermesh.agent.dispatch_events import (
    CancelTask,
    Event,
    Instruction,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobSubmitted,
    LeaseLost,
    LeaseUp,
    NegotiationEnded,
    ProvidersChanged,
    ReleaseLease,
    StartTask,
    Supersede,
    TaskDone,
    TaskFailed,
    TaskRefused,
    Tick,
    WantLeases,
)

__all__ = [
    "CancelTask",
    "DispatchCounts",
    "Dispatcher",
    "Event",
    "Instruction",
    "JobCancelled",
    "JobFailed",
    "JobFinished",
    "JobSubmitted",
    "LeaseLost",
    "LeaseUp",
    "NegotiationEnded",
    "ProvidersChanged",
    "ReleaseLease",
    "StartTask",
    "Supersede",
    "TaskDone",
    "TaskFailed",
    "TaskRefused",
    "Tick",
    "WantLeases",
]


@dataclass(frozen=True, slots=True)
class DispatchCounts:
    """A snapshot for status pages."""

    jobs: int
    tasks_waiting: int
    tasks_outstanding: int
    leases: int
    events_ignored: int


class Dispatcher:
    """The requester agent's scheduler over all its jobs and leases: events in, instructions out."""

    def __init__(self, now_us: int) -> None:
        self._now_us = now_us

    def handle(self, event: Event, now_us: int) -> list[Instruction]:
        """Take one event and say what to do, in this order. Events about things unknown or over are ignored."""
        raise NotImplementedError

    @property
    def next_wakeup_us(self) -> int | None:
        """When to send a `Tick` if nothing else happens before."""
        raise NotImplementedError

    def counts(self) -> DispatchCounts:
        """What is going on now."""
        raise NotImplementedError
