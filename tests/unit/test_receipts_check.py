"""Building, judging and countersigning receipts."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.agent.receipts import (
    HOUR_US,
    REFUSALS,
    LaneHead,
    RunFacts,
    amount_due,
    build_countersignature,
    check_countersignature,
    check_receipt,
    is_broken_chain,
    is_equivocation,
    wrong_clock,
)
from coppermesh.agent.rehearsal import OUTPUT, START_US, make_deal, run_facts
from coppermesh.p2p.blobs import roots_digest
from coppermesh.p2p.envelope import Opened, open_verified, sign_record
from coppermesh.p2p.errors import RemoteProtocolError
from coppermesh.p2p.ids import Digest, mesh_id
from coppermesh.p2p.records import Countersignature, Receipt

DEAL = make_deal(1, budget=10)
LEASE = DEAL.lease.record
TASK = DEAL.task(0, max_amount=5)
HEAD = LaneHead(4, Digest(bytes([4]) * 32), cumulative=3, accepted=2)
GOOD = DEAL.receipt(TASK, HEAD)
ARRIVED = roots_digest([OUTPUT])


def changed(**changes: Any) -> Opened[Receipt]:
    record = msgspec.structs.replace(GOOD.record, **changes)
    return open_verified(Receipt, sign_record(DEAL.provider, record))


def verdict(receipt: Opened[Receipt], **given: Any) -> str:
    facts = {"outputs_digest": ARRIVED, "observed_us": 3000, **given}
    return check_receipt(receipt, LEASE, TASK, HEAD, **facts)


def test_a_good_receipt_is_accepted_and_its_price_is_the_ceiling() -> None:
    assert GOOD.record.billed_us == 2500
    assert (GOOD.record.amount, GOOD.record.cumulative) == (3, 6)
    assert verdict(GOOD) == "ok"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"sequence": 5}, "gap"),
        ({"sequence": 3}, "stale"),
        ({"previous": bytes(32)}, "broken-chain"),
        ({"cumulative": 7}, "broken-chain"),
        ({"program": bytes(32)}, "wrong-program"),
        ({"inputs": bytes(32)}, "wrong-inputs"),
        ({"device": "gpu0"}, "wrong-device"),
        ({"code": "crashed"}, "wrong-status"),
        ({"rate": LEASE.rate + 1}, "wrong-rate"),
        ({"unit": "eur"}, "wrong-rate"),
        ({"billed_us": 9000}, "overbilled"),
        ({"ended_us": START_US - 100_000}, "overbilled"),
        ({"amount": 6, "cumulative": 9}, "over-max"),
        ({"amount": 2, "cumulative": 5}, "wrong-amount"),
        ({"amount": 4, "cumulative": 7}, "wrong-amount"),
        ({"outputs": bytes(32)}, "outputs-mismatch"),
        ({"status": "provider-failed", "code": "lost"}, "wrong-amount"),
    ],
)
def test_each_lie_has_its_verdict(changes: dict[str, Any], code: str) -> None:
    assert verdict(changed(**changes)) == code


@pytest.mark.parametrize(
    "changes",
    [
        {"mesh": mesh_id("elsewhere")},
        {"requester": bytes(32)},
        {"lane": bytes(16)},
        {"lease": bytes(32)},
        {"task_id": bytes(32)},
        {"task": 1},
    ],
)
def test_a_receipt_of_another_task_is_a_protocol_error(changes: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        verdict(changed(**changes))


def test_a_given_up_or_paid_task_is_disputed_with_its_code() -> None:
    assert verdict(GOOD, given_up="superseded") == "superseded"
    assert verdict(GOOD, already_answered=True) == "already-answered"
    assert verdict(changed(sequence=9), given_up="superseded") == "gap", (
        "place comes first: nothing is signed"
    )


def test_outputs_that_did_not_arrive_are_a_mismatch() -> None:
    assert verdict(GOOD, outputs_digest=None) == "outputs-mismatch"


def test_more_time_than_was_seen_is_overbilled() -> None:
    long = DEAL.receipt(TASK, HEAD, run_facts(20_000))
    assert verdict(long, observed_us=20_000) == "ok"
    assert verdict(long, observed_us=10_000) == "overbilled"


@pytest.mark.parametrize(("status", "amount"), [("job-failed", 3), ("provider-failed", 0)])
def test_a_failed_job_is_billed_and_a_failed_provider_is_not(status: str, amount: int) -> None:
    receipt = DEAL.receipt(TASK, HEAD, run_facts(2500, status=status))
    assert receipt.record.amount == amount
    assert verdict(receipt, outputs_digest=None) == "ok"


def test_a_task_that_was_killed_at_the_wall_is_billed_up_to_it() -> None:
    receipt = DEAL.receipt(TASK, HEAD, run_facts(LEASE.wall_limit_us + 400_000, status="job-failed"))
    assert receipt.record.billed_us == LEASE.wall_limit_us
    assert verdict(receipt, observed_us=LEASE.wall_limit_us + 500_000) == "ok"


def test_the_budget_caps_the_last_receipts_of_a_lane_on_both_sides() -> None:
    for cumulative, amount in ((6, 4), (9, 1), (10, 0)):
        head = replace(HEAD, cumulative=cumulative)
        receipt = DEAL.receipt(TASK, head, run_facts(4100))
        assert receipt.record.amount == amount
        answer = check_receipt(receipt, LEASE, TASK, head, outputs_digest=ARRIVED, observed_us=9000)
        assert answer == "ok"


@given(
    rate=st.integers(0, (1 << 62) - 1),
    billed=st.integers(0, 1 << 50),
    maximum=st.integers(0, 1 << 61),
    before=st.integers(0, 1 << 61),
    budget=st.integers(0, 1 << 61),
)
def test_an_amount_never_exceeds_its_caps_and_is_at_least_one(
    rate: int, billed: int, maximum: int, before: int, budget: int
) -> None:
    lease = msgspec.structs.replace(LEASE, rate=rate, budget=budget)
    amount = amount_due(lease, maximum, before, "ok", billed)
    assert 0 <= amount <= maximum
    assert before + amount <= max(before, budget)
    if amount < min(maximum, max(0, budget - before)):
        assert (amount - 1) * HOUR_US < rate * billed <= amount * HOUR_US
    assert amount_due(lease, maximum, before, "provider-failed", billed) == 0


def test_countersignatures_carry_what_is_owed() -> None:
    accepted = build_countersignature(GOOD, "ok", HEAD, START_US)
    disputed = build_countersignature(GOOD, "overbilled", HEAD, START_US)
    assert (accepted.verdict, accepted.code, accepted.accepted_cumulative) == ("accepted", "ok", 5)
    assert (disputed.verdict, disputed.code, disputed.accepted_cumulative) == ("disputed", "overbilled", 2)
    for answer in (accepted, disputed):
        check_countersignature(answer, GOOD)
        check_countersignature(answer, GOOD, HEAD.accepted)
        with pytest.raises(RemoteProtocolError, match="does not follow"):
            check_countersignature(answer, GOOD, HEAD.accepted + 1)


@pytest.mark.parametrize("code", sorted(REFUSALS))
def test_a_refusal_is_never_countersigned(code: str) -> None:
    with pytest.raises(ValueError, match="no place on the lane"):
        build_countersignature(GOOD, code, HEAD, START_US)


@pytest.mark.parametrize(
    "changes",
    [
        {"receipt": bytes(32)},
        {"mesh": mesh_id("elsewhere")},
        {"requester": bytes(32)},
        {"lane": bytes(16)},
        {"sequence": 5},
        {"code": "overbilled"},
        {"verdict": "disputed"},
        {"accepted_cumulative": 2},
        {"accepted_cumulative": 7},
    ],
)
def test_a_countersignature_that_does_not_fit_is_a_protocol_error(changes: dict[str, Any]) -> None:
    answer = msgspec.structs.replace(build_countersignature(GOOD, "ok", HEAD, START_US), **changes)
    assert isinstance(answer, Countersignature)
    with pytest.raises(RemoteProtocolError):
        check_countersignature(answer, GOOD)


def test_two_receipts_for_one_place_prove_an_equivocation() -> None:
    rival = changed(outputs=bytes(32))
    assert is_equivocation(GOOD, rival)
    assert not is_equivocation(GOOD, GOOD)
    assert not is_equivocation(GOOD, changed(sequence=5))
    assert not is_equivocation(GOOD, changed(lane=bytes(16)))


def test_neighbours_that_do_not_chain_prove_a_broken_chain() -> None:
    head = HEAD.after(GOOD)
    following = DEAL.receipt(DEAL.task(1, max_amount=5), head)
    assert not is_broken_chain(GOOD, following)
    assert is_broken_chain(changed(outputs=bytes(32)), following)
    assert not is_broken_chain(GOOD, changed(sequence=7))
    record = msgspec.structs.replace(following.record, cumulative=following.record.cumulative + 1)
    assert is_broken_chain(GOOD, open_verified(Receipt, sign_record(DEAL.provider, record)))


def test_run_facts_without_gpu_fields_leave_them_nil() -> None:
    facts: RunFacts = run_facts()
    assert (facts.device_us, facts.energy_mj, facts.device_uuid) == (None, None, None)
    assert GOOD.record.device_us is None


DAY_US = 86_400_000_000


@pytest.mark.parametrize(
    ("now_us", "says"),
    [
        (GOOD.record.ended_us, ""),
        (GOOD.record.ended_us + DAY_US // 500, ""),
        (GOOD.record.ended_us - DAY_US, "1.0 days in the future"),
        (GOOD.record.countersign_by_us + DAY_US, "1.0 days ago"),
        (GOOD.record.ended_us - 130_000_000, "130 s in the future"),
    ],
)
def test_a_clock_that_is_a_day_off_is_named(now_us: int, says: str) -> None:
    found = wrong_clock(GOOD.record, now_us)
    assert says in found
    assert bool(found) == bool(says)
