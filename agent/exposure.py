"""What a requester may leave unpaid here, and what follows when it does: wait, then leave (pure).

Theory of operation. A task is billed when it ends and paid when its receipt is countersigned, so at any moment a
provider has at stake what was billed and not answered, and what runs. `Exposure` counts both for one requester in one
unit, over all its leases. A task may start while the stake, with the most that this task can cost, stays within the
credit. The credit of a stranger is one accounting interval at the lease's rate:

    rate * (T + G)        T: `INTERVAL_US`, or a task's wall limit where that is longer; G: `GRACE_US`

for each of its leases, so one task of each always fits when nothing is unpaid, and never more is lost to a requester
that takes results and does not answer. It grows with what was settled (`reputation.exposure_limit`). A task that does
not fit waits for an answer; after `GRACE_US` without one the lease is left. What is answered, accepted or disputed,
is no longer at stake: a dispute is the ledger's business, and lowers the credit through the reputation.

After a restart the unanswered receipts are counted again from the ledger. One that is never answered stays counted.
"""

from dataclasses import dataclass, field

from coppermesh.agent.pricing import amount_for

SECOND = 1_000_000
INTERVAL_US = 10 * SECOND
GRACE_US = 10 * SECOND


def interval_cost(rate: int, wall_limit_us: int) -> int:
    """What one accounting interval with its grace costs at `rate`, money: the credit of a stranger."""
    return amount_for(rate, max(INTERVAL_US, wall_limit_us) + GRACE_US)


@dataclass(frozen=True, slots=True)
class Go:
    """The task may start; its cost is reserved until `billed` or `released`."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Not yet: ask again when something was answered, at the latest at this time."""

    until_us: int


@dataclass(frozen=True, slots=True)
class Leave:
    """The requester has not paid in time: end its leases for this reason."""

    sentence: str


Verdict = Go | Wait | Leave


@dataclass(slots=True)
class Exposure:
    """One requester's stake in one unit, money in 10^-6 of it."""

    unpaid: dict[bytes, int] = field(default_factory=dict)
    """Amount by receipt that was not answered."""
    running: dict[bytes, int] = field(default_factory=dict)
    """Most that each running task can cost, by its id."""
    waiting_since_us: int | None = None
    """Since when a task does not fit and nothing was answered."""

    @property
    def stake(self) -> int:
        """What would be lost if the requester never answered again."""
        return sum(self.unpaid.values()) + sum(self.running.values())

    def ask(self, task: bytes, cost: int, credit: int, now_us: int) -> Verdict:
        """May `task`, which costs at most `cost`, start with this credit?"""
        if self.stake + cost <= credit:
            self.running[task] = cost
            self.waiting_since_us = None
            return Go()
        if credit <= 0:
            return Leave("its own signatures prove that this requester cheated: it gets no credit here")
        if not self.unpaid:
            # Other tasks of the same requester run: that is no fault of its, and they end by themselves.
            self.waiting_since_us = None
            return Wait(now_us + GRACE_US)
        if self.waiting_since_us is None or now_us < self.waiting_since_us:
            self.waiting_since_us = now_us
        if now_us - self.waiting_since_us < GRACE_US:
            return Wait(self.waiting_since_us + GRACE_US)
        count = len(self.unpaid)
        receipts = "1 receipt waits" if count == 1 else f"{count} receipts wait"
        return Leave(
            f"{receipts} for your countersignature, the oldest for over {GRACE_US // SECOND} s: answer first"
        )

    def billed(self, task: bytes, receipt: bytes, amount: int) -> None:
        """The task has ended with this receipt."""
        self.running.pop(task, None)
        if amount:
            self.unpaid[receipt] = amount

    def released(self, task: bytes) -> None:
        """The task ended without a receipt."""
        self.running.pop(task, None)

    def answered(self, receipt: bytes) -> None:
        """The receipt was countersigned, one way or the other."""
        if self.unpaid.pop(receipt, None) is not None:
            self.waiting_since_us = None

    @property
    def empty(self) -> bool:
        """Nothing is at stake: it may be forgotten."""
        return not self.unpaid and not self.running
