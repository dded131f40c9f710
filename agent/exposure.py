"""What a requester may leave unpaid here, and what follows when it does: wait, then leave (pure).

Theory of operation. A task is billed when it ends and paid when its receipt is countersigned, so at any moment a
provider has at stake what was billed and not answered, and what runs. `Exposure` counts both for one requester in one
unit, over all its leases. A task may start while the stake, with the most that this task can cost, stays within the
credit. The credit of a stranger is one accounting interval at the lease's rate:

    rate * (T + G)        T: `INTERVAL_US`, or a task's wall limit where that is longer; G: `GRACE_US`

for each of its leases, so one task of each always fits when nothing is unpaid, and never more is lost to a requester
that takes results and does not answer. It grows with what was settled (`reputation.exposure_limit`). A task that does
not fit waits for an answer; after `GRACE_US` without one the lease is left. What is accepted is no longer at stake.

What is disputed was worked for and is not paid, so it stays at stake: else a requester that disputes everything would
have all its work for nothing, one interval after the other. Accepted receipts make up for it, amount for amount, and it
fades evenly within `FORGIVEN_US` of the last dispute: an honest requester, which disputes what it had from somebody
else by then, is not shut out for the whole of it, and one that disputes everything gets no more than one interval's
work for nothing in each such span.

After a restart the unanswered receipts are counted again from the ledger. One that is never answered stays counted.
"""

from dataclasses import dataclass, field

from coppermesh.agent.pricing import amount_for

SECOND = 1_000_000
INTERVAL_US = 10 * SECOND
GRACE_US = 10 * SECOND
FORGIVEN_US = 600 * SECOND
"""A requester that disputes everything gets one interval's work for nothing in so long, and no more."""
SLOWEST_BYTES_PER_SECOND = 1_000_000
"""A requester whose link is slower than that is left while it fetches; the stake stays what it is meanwhile."""


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


@dataclass(frozen=True, slots=True)
class Owed:
    """A receipt without an answer."""

    amount: int
    due_us: int
    """When an answer is overdue: its outputs have to be fetched first."""


@dataclass(slots=True)
class Exposure:
    """One requester's stake in one unit, money in 10^-6 of it."""

    unpaid: dict[bytes, Owed] = field(default_factory=dict)
    """By receipt."""
    running: dict[bytes, int] = field(default_factory=dict)
    """Most that each running task can cost, by its id."""
    waiting_since_us: int | None = None
    """Since when a task does not fit and nothing was answered."""
    disputed: int = 0
    """What was disputed of late, not made up for and not faded."""
    disputed_us: int = 0
    """Since when it fades."""
    fading: int = 0
    """So much of it fades in `FORGIVEN_US`."""

    @property
    def stake(self) -> int:
        """What would be lost if the requester never answered again."""
        unpaid = sum(owed.amount for owed in self.unpaid.values())
        return unpaid + sum(self.running.values()) + self.disputed

    @property
    def empty(self) -> bool:
        """Nothing is at stake: it may be forgotten."""
        return not self.unpaid and not self.running and not self.disputed

    def ask(self, task: bytes, cost: int, credit: int, now_us: int) -> Verdict:
        """May `task`, which costs at most `cost`, start with this credit?"""
        self.forgive(now_us)
        if self.stake + cost <= credit:
            self.running[task] = cost
            self.waiting_since_us = None
            return Go()
        if credit <= 0:
            return Leave("its own signatures prove that this requester cheated: it gets no credit here")
        if not self.unpaid and not self.running and self.disputed:
            return Leave(self.overdue_sentence)
        if not self.unpaid:
            # Other tasks of the same requester run: that is no fault of its, and they end by themselves.
            self.waiting_since_us = None
            return Wait(now_us + GRACE_US)
        if self.waiting_since_us is None or now_us < self.waiting_since_us:
            self.waiting_since_us = now_us
        due_us = max(self.waiting_since_us + GRACE_US, min(owed.due_us for owed in self.unpaid.values()))
        return Leave(self.overdue_sentence) if now_us >= due_us else Wait(due_us)

    @property
    def waiting_sentence(self) -> str:
        """What a requester is told whose lease pauses."""
        count = len(self.unpaid)
        receipts = "1 receipt waits" if count == 1 else f"{count} receipts wait"
        return f"{receipts} for your countersignature: no further task starts before"

    @property
    def overdue_sentence(self) -> str:
        """What a requester is told that has not answered, or has disputed too much."""
        if not self.unpaid and self.disputed:
            return "as much work as you may leave unpaid was disputed by you: order again in some minutes"
        count = len(self.unpaid)
        receipts = "1 receipt waits" if count == 1 else f"{count} receipts wait"
        span = f"longer than fetching and {GRACE_US // SECOND} s"
        return f"{receipts} for your countersignature, {span}: answer first"

    def used_up(self, cost: int, credit: int, now_us: int) -> bool:
        """No further task fits, and an answer is overdue or disputes leave no room: a new lease would only wait."""
        self.forgive(now_us)
        late = self.disputed + cost > credit or any(owed.due_us <= now_us for owed in self.unpaid.values())
        return credit <= 0 or (late and self.stake + cost > credit)

    def billed(self, task: bytes, receipt: bytes, amount: int, output_bytes: int, now_us: int) -> None:
        """The task has ended with this receipt, and outputs of so many bytes to fetch before it can be answered."""
        self.running.pop(task, None)
        if amount:
            # Outputs come one after another over one link: each has the time of those before it as well.
            last = next(reversed(self.unpaid.values()), None)  # none is due later than the last
            begun_us = now_us if last is None else max(now_us, last.due_us - GRACE_US)
            fetched_us = begun_us + output_bytes * SECOND // SLOWEST_BYTES_PER_SECOND
            self.unpaid[receipt] = Owed(amount, fetched_us + GRACE_US)

    def released(self, task: bytes) -> None:
        """The task ended without a receipt."""
        self.running.pop(task, None)

    def answered(self, receipt: bytes, *, accepted: bool = True, now_us: int = 0) -> None:
        """The receipt was countersigned, one way or the other."""
        owed = self.unpaid.pop(receipt, None)
        if owed is None:
            return
        self.waiting_since_us = None
        if accepted:
            self.disputed = max(0, self.disputed - owed.amount)
        else:
            self.forgive(now_us)
            self.disputed += owed.amount
            self.disputed_us, self.fading = now_us, self.disputed

    def forgive(self, now_us: int) -> None:
        """Let disputes fade up to now. A clock set back begins the time anew."""
        self.disputed_us = min(self.disputed_us, now_us)
        faded = self.fading * (now_us - self.disputed_us) // FORGIVEN_US
        if faded:  # else the time that has passed counts the next time
            self.disputed = max(0, self.disputed - faded)
            self.disputed_us += faded * FORGIVEN_US // self.fading
