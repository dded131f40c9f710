"""What makes a bid, a lease and a task valid: the checks that each side makes before it signs or acts (pure).

A lease joins one order and one bid by the hashes of their exact signed bytes, so neither side can later show another
order or bid for it. The requester builds and signs it, the provider checks the same rules from its own copies of order
and bid and signs the same body. Every task is then checked against the lease alone.

Two kinds of no. `RemoteProtocolError`: the record contradicts what was signed before, which an honest peer never
sends; end the conversation. `Refused`: the record is well formed but too late, too early or already used, which
happens to honest peers; its code and sentence go back to the sender.
"""

from collections.abc import Iterable

from coppermesh.agent.pricing import amount_for
from coppermesh.p2p.encoding import encode
from coppermesh.p2p.envelope import Opened, record_id
from coppermesh.p2p.errors import Refused, RemoteProtocolError
from coppermesh.p2p.ids import Digest
from coppermesh.p2p.records import Bid, Lease, Order, Task

CLOCK_SKEW_US = 120_000_000
"""How far in the future a record's time of issue may lie before the other clock is called wrong."""
SPENT_WINDOW = 1024
"""How many task numbers at the upper end are remembered one by one; every lower one counts as spent."""


LEASE_LIFE_US = 600_000_000
"""How long a lease lasts at most, unless one task may take longer."""
SPARE_LIFE_US = 60_000_000
"""So much longer than its task may take a lease lasts at least."""


def lease_life_us(wall_limit_us: int) -> int:
    """How long a lease is asked for: two of its tasks and some time, then others have their turn; enough for one."""
    return max(min(LEASE_LIFE_US, 2 * wall_limit_us + SPARE_LIFE_US), wall_limit_us + SPARE_LIFE_US)


class SpentNumbers:
    """Replay guard of one lease: which task numbers were used, and for which task.

    Memory is bounded by twice `SPENT_WINDOW` ids. A number below the window is spent for good; a number that would push
    the window past one that is still unused is allowed (the requester skipped it), and the skipped one is gone.
    """

    def __init__(self, spent: Iterable[tuple[int, Digest]] = ()) -> None:
        self._ids: dict[int, Digest] = {}
        self._floor = 0
        for number, task_id in sorted(spent):
            self.spend(number, task_id)

    def __contains__(self, number: int) -> bool:
        return number < self._floor or number in self._ids

    @property
    def remembered(self) -> int:
        """How many numbers are kept one by one."""
        return len(self._ids)

    def is_repeat(self, number: int, task_id: Digest) -> bool:
        """True where this number was spent by exactly this task: the same request again, safe to answer again."""
        return self._ids.get(number) == task_id

    def spend(self, number: int, task_id: Digest) -> None:
        """Marks a number as used. Raises Refused (`spent`) where it was used before."""
        if number in self:
            raise Refused("spent", f"task number {number} was already used under this lease")
        self._ids[number] = task_id
        self._floor = max(self._floor, number + 1 - SPENT_WINDOW)
        if len(self._ids) > 2 * SPENT_WINDOW:
            self._ids = {kept: spender for kept, spender in self._ids.items() if kept >= self._floor}


def check_bid(order: Opened[Order], bid: Opened[Bid], now_us: int) -> None:
    """Does this bid answer this order, and is it still open?

    Raises RemoteProtocolError where it contradicts the order, Refused (`expired`, `clock`) where its time is wrong.
    """
    asked, offered = order.record, bid.record
    _require(offered.mesh == asked.mesh, "the bid is for another mesh")
    _require(offered.order == order.id, "the bid answers another order")
    _require(offered.provider != asked.requester, "the bid comes from the requester itself")
    _require(
        asked.device_kind in ("any", offered.device_kind), f"a {offered.device_kind} device was not asked for"
    )
    _require(offered.memory_bytes >= asked.memory_bytes, "the bid offers less memory than was asked for")
    _require(offered.unit == asked.unit, f"the bid is in {offered.unit}, the order in {asked.unit}")
    _require(offered.rate <= asked.max_rate, "the bid is dearer than the order allows")
    _check_times("order", asked.issued_us, asked.expires_us, now_us)
    _check_times("bid", offered.issued_us, offered.expires_us, now_us)


def build_lease(
    order: Opened[Order],
    bid: Opened[Bid],
    lane: bytes,
    nonce: bytes,
    now_us: int,
    *,
    budget: int | None = None,
    fresh: bool = False,
) -> Lease:
    """The lease that accepts `bid`, for the requester to sign. `lane` and `nonce` are 16 fresh random bytes each.

    `budget` (money, default the order's) caps what may be billed on the lane in all.
    Raises what `check_bid` raises.
    """
    check_bid(order, bid, now_us)
    asked, offered = order.record, bid.record
    return Lease(
        version=1,
        mesh=asked.mesh,
        requester=asked.requester,
        provider=offered.provider,
        order=order.id,
        bid=bid.id,
        lane=lane,
        nonce=nonce,
        device=offered.device,
        device_kind=offered.device_kind,
        rate=offered.rate,
        unit=offered.unit,
        budget=asked.budget if budget is None else min(budget, asked.budget),
        memory_bytes=offered.memory_bytes,
        wall_limit_us=asked.wall_limit_us,
        depth=offered.depth,
        fresh=fresh,
        issued_us=now_us,
        expires_us=now_us + asked.lease_us,
    )


def check_lease(lease: Lease, order: Opened[Order], bid: Opened[Bid], now_us: int) -> None:
    """Is this lease exactly what the order and the bid promise? Both sides check it, the provider before it signs.

    Raises RemoteProtocolError where it departs from them, Refused (`expired`, `clock`) where its time is wrong.
    """
    check_bid(order, bid, now_us)
    asked, offered = order.record, bid.record
    _require(lease.mesh == asked.mesh, "the lease is for another mesh")
    _require(lease.requester == asked.requester, "the lease names another requester than the order")
    _require(lease.provider == offered.provider, "the lease names another provider than the bid")
    _require(lease.order == order.id, "the lease hashes another order")
    _require(lease.bid == bid.id, "the lease hashes another bid")
    _require(lease.device == offered.device, "the lease names another device than the bid")
    _require(lease.device_kind == offered.device_kind, "the lease names another kind of device than the bid")
    _require(
        (lease.rate, lease.unit) == (offered.rate, offered.unit), "the lease has another rate than the bid"
    )
    _require(lease.budget <= asked.budget, "the lease's budget is above the order's")
    _require(lease.memory_bytes <= offered.memory_bytes, "the lease claims more memory than the bid offers")
    _require(lease.wall_limit_us <= asked.wall_limit_us, "the lease's wall limit is above the order's")
    _require(lease.depth <= offered.depth, "the lease claims a deeper pipeline than the bid offers")
    _require(lease.issued_us <= lease.expires_us, "the lease ends before it begins")
    _require(
        lease.expires_us - lease.issued_us <= asked.lease_us, "the lease lasts longer than the order allows"
    )
    _check_times("lease", lease.issued_us, lease.expires_us, now_us)


def lease_id(lease: Lease) -> Digest:
    """The id that tasks and receipts carry. Records have one encoding, so it is that of the signed body."""
    return record_id(encode(lease))


def check_task(
    lease: Lease, task: Task, spent: SpentNumbers, now_us: int, until_us: int | None = None
) -> None:
    """May this task run under this lease now? Does not spend its number: do that once the task is committed.

    `until_us`: when the lease ends, where it was extended.

    Raises RemoteProtocolError where it belongs to another lease, mesh or requester, and Refused where it is too late
    (`lease-expired`, `expired`), from a wrong clock (`clock`) or its number was used (`spent`).
    """
    _require(task.mesh == lease.mesh, "the task is for another mesh")
    _require(task.lease == lease_id(lease), "the task names another lease")
    _require(task.requester == lease.requester, "the task comes from another requester than the lease")
    _require(task.max_amount <= lease.budget, "the task's maximum is above the lease's budget")
    end_us = lease.expires_us if until_us is None else until_us
    if now_us >= end_us:
        raise Refused("lease-expired", f"the lease expired {_seconds(now_us - end_us)} ago: order again")
    _check_times("task", task.issued_us, task.expires_us, now_us)
    if task.number in spent:
        raise Refused("spent", f"task number {task.number} was already used under this lease")


def check_pay(lease: Lease, task: Task, billed: int) -> None:
    """Is the task paid however long it takes? `billed`: the sum of what was billed under the lease so far, money.

    What a task costs is capped by its own maximum and by the lease's budget: where these end first, the provider would
    work for nothing. Raises Refused (`budget`).
    """
    most = amount_for(lease.rate, lease.wall_limit_us)
    if task.max_amount < most:
        raise Refused("budget", f"the task pays at most {task.max_amount}, its time can cost {most}")
    if lease.budget - billed < most:
        left = max(0, lease.budget - billed)
        raise Refused("budget", f"the lease's budget has {left} left, one more task can cost {most}")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RemoteProtocolError(otherwise)


def _check_times(what: str, issued_us: int, expires_us: int, now_us: int) -> None:
    if issued_us > now_us + CLOCK_SKEW_US:
        ahead = _seconds(issued_us - now_us)
        raise Refused(
            "clock", f"the {what} was issued {ahead} in the future by this clock: one of the clocks is wrong"
        )
    if now_us >= expires_us:
        raise Refused("expired", f"the {what} expired {_seconds(now_us - expires_us)} ago")


def _seconds(span_us: int) -> str:
    return f"{span_us / 1e6:.1f} s"
