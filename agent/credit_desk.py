"""What requesters may leave unpaid at this provider: the shell around `exposure` and `reputation`.

Each lease asks before a task starts (`admit`), and waits while an answer is due; a requester that does not answer in
time is left. What every requester's history is worth is read from the ledger when it orders, so that a task never
waits for the disk. Receipts of an earlier run that were never answered are counted from the start.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import trio

from coppermesh.agent.exposure import Exposure, Go, Leave, interval_cost
from coppermesh.agent.pricing import amount_for
from coppermesh.agent.reputation import (
    Dealings,
    Facts,
    Reputation,
    exposure_class,
    exposure_limit,
    score,
)
from coppermesh.p2p.envelope import Opened
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import Digest, PeerId
from coppermesh.p2p.records import Lease, Receipt

MAX_REMEMBERED = 4096
"""Histories of requesters that are kept in memory; the oldest goes first and is read again when it orders."""
PAUSE_US = 1_000_000
"""A task that waits for longer pauses its lease: its requester is told."""
FRESH_US = 10_000_000
"""For so long a history is not read again."""
History = Callable[[PeerId, str], Awaitable[Dealings]]
"""What the ledger says of dealings with a peer in one unit."""


@dataclass(slots=True)
class _Account:
    """One requester in one unit."""

    exposure: Exposure = field(default_factory=Exposure)
    answered: trio.Event = field(default_factory=trio.Event)
    """Replaced by a new one whenever it is set: something at stake was answered or has ended."""
    leases: dict[bytes, int] = field(default_factory=dict)
    """What one accounting interval costs, by lease."""

    def wake(self) -> None:
        self.answered.set()
        self.answered = trio.Event()


class CreditDesk:
    """Counts what is unpaid, and says how much may be."""

    def __init__(self, history: History, now_us: Callable[[], int]) -> None:
        self._history = history
        self._now_us = now_us
        self._accounts: dict[tuple[PeerId, str], _Account] = {}
        self._known: dict[tuple[PeerId, str], Dealings] = {}
        self._read_us: dict[tuple[PeerId, str], int] = {}
        self._whose: dict[Digest, tuple[PeerId, str]] = {}
        """Unpaid receipts."""

    def count_again(self, receipts: Iterable[tuple[Opened[Receipt], int]]) -> None:
        """Receipts of an earlier run that were not answered, each with the bytes of its outputs."""
        for receipt, output_bytes in receipts:
            self._bill(receipt, b"", output_bytes)

    async def look_up(self, requester: PeerId, unit: str) -> None:
        """Read what the ledger says about `requester`, unless it was read a moment ago. Raises LedgerError."""
        read_us = self._read_us.get((requester, unit))
        if read_us is not None and 0 <= self._now_us() - read_us < FRESH_US:
            return
        dealings = await self._history(requester, unit)
        self._known.pop((requester, unit), None)
        self._known[requester, unit] = dealings
        self._read_us[requester, unit] = self._now_us()
        while len(self._known) > MAX_REMEMBERED:
            # Not of those under lease: strangers who order much must not turn a cheat into a stranger.
            oldest = next(
                key for key in self._known if key not in self._accounts or not self._accounts[key].leases
            )
            del self._known[oldest], self._read_us[oldest]

    def reputation(self, requester: PeerId, unit: str, interval: int) -> Reputation:
        """What its history is worth, as of the last `look_up`."""
        dealings = self._known.get((requester, unit), Dealings())
        return score(requester, Facts(dealings, now_us=self._now_us(), interval=interval))

    def why_not(self, requester: PeerId, unit: str, rate: int, wall_limit_us: int) -> str:
        """Why a further lease would only wait; empty where its tasks could start."""
        account = self._accounts.get((requester, unit))
        interval = interval_cost(rate, wall_limit_us)
        credit = self._credit(requester, unit, {b"": interval, **(account.leases if account else {})})
        if credit <= 0:
            return "its own signatures prove that this requester cheated: it gets no credit here"
        if account is None:
            return ""
        cost = amount_for(rate, wall_limit_us)
        return (
            account.exposure.overdue_sentence
            if account.exposure.used_up(cost, credit, self._now_us())
            else ""
        )

    def why_late(self, requester: PeerId, unit: str) -> str:
        """Why its leases are not prolonged: an answer is overdue. Empty where none is."""
        account = self._accounts.get((requester, unit))
        if account is None or not any(
            owed.due_us <= self._now_us() for owed in account.exposure.unpaid.values()
        ):
            return ""
        return account.exposure.overdue_sentence

    def open_lease(self, lease: Opened[Lease]) -> None:
        """A lease begins: its requester's credit is that of all its leases together."""
        record = lease.record
        for key, each in list(self._accounts.items()):
            each.exposure.forgive(self._now_us())
            self._forget_if_empty(key, each)
        account = self._account(PeerId(record.requester), record.unit)
        account.leases[lease.id] = interval_cost(record.rate, record.wall_limit_us)

    def close_lease(self, lease: Opened[Lease]) -> None:
        """A lease has ended, its tasks with it."""
        key = (PeerId(lease.record.requester), lease.record.unit)
        account = self._accounts.get(key)
        if account is not None:
            account.leases.pop(lease.id, None)
            self._forget_if_empty(key, account)

    async def admit(
        self, lease: Opened[Lease], task: Digest, paused: Callable[[str], None] = lambda _: None
    ) -> None:
        """Wait until the task may start. Raises Refused (`unpaid`) where the requester is to be left.

        `paused` is told of a wait that takes longer than `PAUSE_US`, with a sentence for the requester.
        """
        record = lease.record
        requester, unit = PeerId(record.requester), record.unit
        cost = amount_for(record.rate, record.wall_limit_us)
        account = self._account(requester, unit)
        pause_us = self._now_us() + PAUSE_US
        while True:
            credit = self._credit(requester, unit, account.leases)
            verdict = account.exposure.ask(task, cost, credit, self._now_us())
            if isinstance(verdict, Go):
                return
            if isinstance(verdict, Leave):
                raise Refused("unpaid", verdict.sentence)
            now_us = self._now_us()
            if account.exposure.unpaid and now_us >= pause_us:
                paused(account.exposure.waiting_sentence)
                pause_us = verdict.until_us + PAUSE_US
            with trio.move_on_after(max(0.0, (min(verdict.until_us, pause_us) - now_us) / 1e6)):
                await account.answered.wait()

    def billed(self, task: Digest, receipt: Opened[Receipt], output_bytes: int) -> None:
        """The task has its receipt."""
        self._bill(receipt, task, output_bytes)

    def released(self, lease: Opened[Lease], task: Digest) -> None:
        """The task has ended, with a receipt or without."""
        account = self._accounts.get((PeerId(lease.record.requester), lease.record.unit))
        if account is not None:
            account.exposure.released(task)
            account.wake()

    def answered(self, receipt: Digest, *, accepted: bool) -> None:
        """It was countersigned; not `accepted`: with a dispute."""
        key = self._whose.pop(receipt, None)
        account = None if key is None else self._accounts.get(key)
        if key is not None and account is not None:
            account.exposure.answered(receipt, accepted=accepted, now_us=self._now_us())
            account.wake()
            self._forget_if_empty(key, account)

    def unpaid(self, requester: PeerId, unit: str) -> int:
        """What waits for its countersignature, money."""
        account = self._accounts.get((requester, unit))
        return 0 if account is None else sum(owed.amount for owed in account.exposure.unpaid.values())

    def _bill(self, receipt: Opened[Receipt], task: bytes, output_bytes: int) -> None:
        record = receipt.record
        key = (PeerId(record.requester), record.unit)
        account = self._account(*key)
        account.exposure.billed(task, receipt.id, record.amount, output_bytes, self._now_us())
        if record.amount:
            self._whose[receipt.id] = key

    def _credit(self, requester: PeerId, unit: str, leases: dict[bytes, int]) -> int:
        """The sum of what each lease's interval costs, doubled once for each class of the requester's history."""
        most = max(leases.values(), default=0)
        step = exposure_class(self._known.get((requester, unit), Dealings()), most)
        return exposure_limit(step, sum(leases.values()))

    def _account(self, requester: PeerId, unit: str) -> _Account:
        return self._accounts.setdefault((requester, unit), _Account())

    def _forget_if_empty(self, key: tuple[PeerId, str], account: _Account) -> None:
        if account.exposure.empty and not account.leases:
            del self._accounts[key]
