"""Receipts: building, checking, countersigning and verifying one offline (pure).

Theory of operation
-------------------
Each lease has one lane: a numbered chain of receipts, each naming the one before by its id. A lane carries two running
sums, and the rule that keeps both ledgers equal to the unit is to never mix them:

* `cumulative`, inside the receipt, is the provider's claim: the sum of every amount billed on the lane, disputed or
  not. It depends on receipts alone, so a provider can issue the next one before the last is countersigned.
* `accepted_cumulative`, inside the countersignature, is what is owed: the sum of the amounts that the requester
  accepted. It depends on the countersignatures alone. A dispute leaves it where it was, and the lane goes on.

What a task may cost is the same function on both sides: the ceiling of rate times billed time, at most the task's
maximum, at most what the lease's budget has left over `cumulative` before it, and nothing where the provider failed.
Anything else in `amount`, higher or lower, is disputed.

A verdict is a code. `ok` is accepted; a code in `REFUSALS` says that the receipt has no place on the lane yet or ever
(nothing is countersigned, nothing is stored on the lane); every other code is a dispute, countersigned as such.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from coppermesh.p2p.blobs import roots_digest
from coppermesh.p2p.envelope import Opened
from coppermesh.p2p.errors import MeshError, RemoteProtocolError
from coppermesh.p2p.ids import Digest
from coppermesh.p2p.receipt_file import check_receipt_file
from coppermesh.p2p.records import ZERO_HASH, Countersignature, Lease, Receipt, Task

NO_RECEIPT = Digest(ZERO_HASH)
"""Stands where the first receipt of a lane has none before it."""
HOUR_US = 3_600_000_000
COUNTERSIGN_WITHIN_US = 600_000_000
"""When a receipt falls due. A later countersignature still counts; until it comes the provider may stop serving."""
CLOCK_SKEW_US = 120_000_000
"""How far another clock may be off before it is called wrong."""
OBSERVED_SLACK_US = 5_000
"""Two clocks tick differently: billed time may exceed the wall time seen by this much."""

REFUSALS = frozenset({"gap", "stale", "broken-chain"})


class InvalidReceipt(MeshError):
    """A receipt file does not hold: the text says which part, and nothing in the file may be relied on."""


@dataclass(frozen=True, slots=True)
class LaneHead:
    """Where a lane stands after its newest receipt."""

    sequence_next: int = 0
    previous: Digest = NO_RECEIPT
    cumulative: int = 0
    """Billed on the lane so far, money."""
    accepted: int = 0
    """Owed on the lane so far, money: what countersignatures accepted."""

    def after(self, receipt: Opened[Receipt], accepted: int | None = None) -> "LaneHead":
        """The head once this receipt stands on the lane (`accepted` as countersigned, else unchanged)."""
        return LaneHead(
            sequence_next=receipt.record.sequence + 1,
            previous=receipt.id,
            cumulative=receipt.record.cumulative,
            accepted=self.accepted if accepted is None else accepted,
        )


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the provider's worker and meter say about one run. Times in microseconds, energy in millijoules.

    Take the span from a monotonic clock and set `ended_us` to `started_us` plus it: a wall clock that is set back
    during the run would otherwise make an honest receipt look overbilled.
    """

    status: str
    """`ok`, `job-failed` or `provider-failed`."""
    code: str
    outputs: Sequence[bytes]
    """Roots of the output blobs in order; empty where the run gave none."""
    started_us: int
    ended_us: int
    billed_us: int
    device_name: str
    meter: str = "none"
    device_us: int | None = None
    energy_mj: int | None = None
    device_uuid: str | None = None
    determinism: str = ""
    trace: bytes = ZERO_HASH
    attestation: bytes = ZERO_HASH


def price(rate: int, billed_us: int) -> int:
    """The ceiling of `rate` (money per device-hour) times `billed_us`: what the time costs before any cap."""
    return -(-rate * billed_us // HOUR_US)


def amount_due(lease: Lease, max_amount: int, cumulative_before: int, status: str, billed_us: int) -> int:
    """What a task costs, in money (formula in the module's text); both sides compute it with this function."""
    if status == "provider-failed":
        return 0
    left = max(0, lease.budget - cumulative_before)
    return min(price(lease.rate, billed_us), max_amount, left)


def build_receipt(lease: Lease, task: Opened[Task], head: LaneHead, run: RunFacts, now_us: int) -> Receipt:
    """The provider's receipt for one run at the head of the lane; commit it before its signature leaves."""
    billed_us = min(run.billed_us, lease.wall_limit_us)
    amount = amount_due(lease, task.record.max_amount, head.cumulative, run.status, billed_us)
    return Receipt(
        version=1,
        mesh=lease.mesh,
        provider=lease.provider,
        requester=lease.requester,
        lease=task.record.lease,
        lane=lease.lane,
        sequence=head.sequence_next,
        previous=head.previous,
        task=task.record.number,
        task_id=task.id,
        program=task.record.program,
        inputs=roots_digest(task.record.inputs),
        outputs=roots_digest(run.outputs),
        trace=run.trace,
        status=run.status,
        code=run.code,
        determinism=run.determinism,
        device=lease.device,
        device_kind=lease.device_kind,
        device_name=run.device_name,
        device_uuid=run.device_uuid,
        attestation=run.attestation,
        started_us=run.started_us,
        ended_us=run.ended_us,
        billed_us=billed_us,
        device_us=run.device_us,
        energy_mj=run.energy_mj,
        meter=run.meter,
        unit=lease.unit,
        rate=lease.rate,
        amount=amount,
        cumulative=head.cumulative + amount,
        countersign_by_us=now_us + COUNTERSIGN_WITHIN_US,
    )


def check_receipt(
    receipt: Opened[Receipt],
    lease: Lease,
    task: Opened[Task],
    head: LaneHead,
    *,
    outputs_digest: bytes | None,
    observed_us: int,
    given_up: str | None = None,
    already_answered: bool = False,
    digests_due: bool = False,
) -> str:
    """The requester's verdict on a receipt: `ok`, a code in `REFUSALS`, or the code of a dispute.

    `head` is the lane before this receipt. `outputs_digest` is `roots_digest` of the outputs that arrived and were
    verified (None: they did not). `observed_us` is the wall time this side saw between sending the task and the
    result. `given_up` is the code under which the task was superseded here, `already_answered` says that another
    receipt of the same task was countersigned, `digests_due` that the order asked for digests of nodes.
    Raises RemoteProtocolError where the receipt does not belong to this lease and task at all.
    """
    record = receipt.record
    _check_belongs(record, lease, task)
    place = _check_place(record, head)
    if place != "ok":
        return place
    if given_up is not None:
        return given_up
    if already_answered:
        return "already-answered"
    for verdict in (
        _check_work(record, lease, task.record),
        _check_bill(record, lease, task.record, head, observed_us),
        _check_outputs(record, outputs_digest),
        "no-trace" if digests_due and record.status == "ok" and record.trace == ZERO_HASH else "ok",
    ):
        if verdict != "ok":
            return verdict
    return "ok"


def build_countersignature(
    receipt: Opened[Receipt], verdict: str, head: LaneHead, now_us: int
) -> Countersignature:
    """The requester's answer; `head` is the lane before this receipt. Commit both before the signature leaves.

    Raises ValueError for a verdict in `REFUSALS`: those are never countersigned.
    """
    if verdict in REFUSALS:
        raise ValueError(
            f"a receipt refused as {verdict!r} has no place on the lane and is not countersigned"
        )
    record = receipt.record
    accepted = verdict == "ok"
    return Countersignature(
        version=1,
        mesh=record.mesh,
        requester=record.requester,
        receipt=receipt.id,
        lane=record.lane,
        sequence=record.sequence,
        verdict="accepted" if accepted else "disputed",
        code=verdict,
        accepted_cumulative=head.accepted + (record.amount if accepted else 0),
        issued_us=now_us,
    )


def check_countersignature(
    countersignature: Countersignature, receipt: Opened[Receipt], accepted_before: int | None = None
) -> None:
    """Does this answer this receipt, and does its sum add up? Raises RemoteProtocolError where not.

    `accepted_before` is the accepted sum of the receipt before it, where that is known; without it only the bounds
    are checked, and the ledger checks the rest against the neighbours when they arrive.
    """
    record = receipt.record
    _require(countersignature.receipt == receipt.id, "the countersignature is for another receipt")
    _require(countersignature.mesh == record.mesh, "the countersignature is for another mesh")
    _require(
        countersignature.requester == record.requester, "the countersignature comes from another requester"
    )
    _require(
        (countersignature.lane, countersignature.sequence) == (record.lane, record.sequence),
        "the countersignature names another place on the lane",
    )
    accepted = countersignature.verdict == "accepted"
    _require(
        accepted == (countersignature.code == "ok"), "the countersignature's verdict contradicts its code"
    )
    due = record.amount if accepted else 0
    total = countersignature.accepted_cumulative
    _require(due <= total <= record.cumulative - record.amount + due, "the accepted sum is out of bounds")
    if accepted_before is not None:
        _require(total == accepted_before + due, "the accepted sum does not follow from the one before")


def wrong_clock(receipt: Receipt, now_us: int) -> str:
    """Which way a result's clock is off by more than `CLOCK_SKEW_US`, as a sentence; empty where it may be right.

    A result is delivered when it is there, but again after a lost connection: an old one is no sign, one that ended in
    the future is, and so is one that may not be countersigned any more though it has just been made.
    """
    ahead = receipt.ended_us - now_us
    if ahead > CLOCK_SKEW_US:
        return f"the run ended {_span(ahead)} in the future by this clock: one of the clocks is wrong"
    late = now_us - receipt.countersign_by_us
    if late > CLOCK_SKEW_US:
        return f"the run was to be countersigned {_span(late)} ago by this clock: one of the clocks is wrong"
    return ""


def _span(span_us: int) -> str:
    return f"{span_us / 8.64e10:.1f} days" if span_us >= 86_400_000_000 else f"{span_us / 1e6:.0f} s"


def is_equivocation(one: Opened[Receipt], other: Opened[Receipt]) -> bool:
    """True where two signed receipts claim the same place on a lane: together they prove that the provider lied."""
    first, second = one.record, other.record
    same_place = (first.mesh, first.provider, first.lane, first.sequence) == (
        second.mesh,
        second.provider,
        second.lane,
        second.sequence,
    )
    return same_place and one.id != other.id


def is_broken_chain(before: Opened[Receipt], after: Opened[Receipt]) -> bool:
    """True where two signed receipts with neighbouring numbers do not chain: a proof against the provider too."""
    first, second = before.record, after.record
    same_lane = (first.mesh, first.provider, first.lane) == (second.mesh, second.provider, second.lane)
    if not same_lane or second.sequence != first.sequence + 1:
        return False
    return second.previous != before.id or second.cumulative != first.cumulative + second.amount


@dataclass(frozen=True, slots=True)
class VerifiedReceipt:
    """A receipt file that holds."""

    receipt: Opened[Receipt]
    countersignature: Opened[Countersignature] | None
    checks: tuple[str, ...]
    """What was checked, one sentence each, for a person."""

    @property
    def complete(self) -> bool:
        """True where both sides signed: the provider the work, the requester the answer."""
        return self.countersignature is not None

    @property
    def accepted(self) -> bool:
        """True where the requester accepted what was billed."""
        return self.countersignature is not None and self.countersignature.record.verdict == "accepted"


def verify_receipt_file(data: bytes) -> VerifiedReceipt:
    """Checks a receipt file offline: both signatures, that they are about each other, and the arithmetic.

    Raises InvalidReceipt with the first thing that does not hold. It cannot know whether the work was done right,
    nor whether the signers are who a reader hopes: show their keys.
    """
    try:
        parts = check_receipt_file(data)
        _check_arithmetic(parts.receipt.record)
        if parts.countersignature is not None:
            check_countersignature(parts.countersignature.record, parts.receipt)
    except RemoteProtocolError as error:
        raise InvalidReceipt(f"not a valid receipt: {error}") from error
    checks = ["the provider signed this receipt", "amount and sums follow from rate and billed time"]
    if parts.countersignature is not None:
        checks.append("the requester countersigned this receipt and its sum is within bounds")
    return VerifiedReceipt(parts.receipt, parts.countersignature, tuple(checks))


def _check_arithmetic(record: Receipt) -> None:
    _require(record.ended_us >= record.started_us, "the run ends before it begins")
    most = 0 if record.status == "provider-failed" else price(record.rate, record.billed_us)
    _require(record.amount <= most, f"the amount is {record.amount}, but rate and billed time give {most}")
    _require(record.cumulative >= record.amount, "the lane's sum is below this receipt's amount")
    _require((record.status == "ok") == (record.code == "ok"), "status and code contradict each other")
    first = record.sequence == 0
    _require(first == (record.previous == ZERO_HASH), "only the first receipt of a lane has none before it")
    _require(not first or record.cumulative == record.amount, "the first receipt's sum is not its amount")


def _check_belongs(record: Receipt, lease: Lease, task: Opened[Task]) -> None:
    _require(record.mesh == lease.mesh, "the receipt is for another mesh")
    _require(record.provider == lease.provider, "the receipt comes from another provider than the lease")
    _require(record.requester == lease.requester, "the receipt names another requester than the lease")
    _require(record.lane == lease.lane, "the receipt is on another lane than the lease")
    _require(record.lease == task.record.lease, "the receipt names another lease than the task")
    _require(record.task_id == task.id, "the receipt is for another task")
    _require(record.task == task.record.number, "the receipt has another task number than the task")


def _check_place(record: Receipt, head: LaneHead) -> str:
    if record.sequence > head.sequence_next:
        return "gap"
    if record.sequence < head.sequence_next:
        return "stale"
    if record.previous != head.previous or record.cumulative != head.cumulative + record.amount:
        return "broken-chain"
    return "ok"


def _check_work(record: Receipt, lease: Lease, task: Task) -> str:
    if record.program != task.program:
        return "wrong-program"
    if record.inputs != roots_digest(task.inputs):
        return "wrong-inputs"
    if (record.device, record.device_kind) != (lease.device, lease.device_kind):
        return "wrong-device"
    if (record.status == "ok") != (record.code == "ok"):
        return "wrong-status"
    return "ok"


def _check_bill(record: Receipt, lease: Lease, task: Task, head: LaneHead, observed_us: int) -> str:
    if (record.rate, record.unit) != (lease.rate, lease.unit):
        return "wrong-rate"
    if record.status == "provider-failed":
        return "ok" if record.amount == 0 else "wrong-amount"
    if record.billed_us > min(observed_us + OBSERVED_SLACK_US, lease.wall_limit_us):
        return "overbilled"
    if record.ended_us - record.started_us + OBSERVED_SLACK_US < record.billed_us:
        return "overbilled"
    if record.amount > min(task.max_amount, max(0, lease.budget - head.cumulative)):
        return "over-max"
    if record.amount != amount_due(lease, task.max_amount, head.cumulative, record.status, record.billed_us):
        return "wrong-amount"
    return "ok"


def _check_outputs(record: Receipt, outputs_digest: bytes | None) -> str:
    expected = outputs_digest if record.status == "ok" else ZERO_HASH
    return "ok" if record.outputs == expected else "outputs-mismatch"


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RemoteProtocolError(otherwise)
