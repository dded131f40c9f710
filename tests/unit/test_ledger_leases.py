"""What makes bids, leases and tasks valid, one departure at a time."""

from typing import Any

import msgspec
import pytest

from coppermesh.agent.leases import (
    CLOCK_SKEW_US,
    SPENT_WINDOW,
    SpentNumbers,
    build_lease,
    check_bid,
    check_lease,
    check_pay,
    check_task,
    lease_id,
)
from coppermesh.agent.pricing import amount_for
from coppermesh.agent.rehearsal import START_US, make_deal
from coppermesh.p2p.envelope import Opened, open_verified, sign_record
from coppermesh.p2p.errors import Refused, RemoteProtocolError
from coppermesh.p2p.ids import Digest, mesh_id
from coppermesh.p2p.records import Bid

DEAL = make_deal(1)
OTHER = make_deal(2)
LEASE = DEAL.lease.record


def changed_bid(**changes: Any) -> Opened[Bid]:
    bid = msgspec.structs.replace(DEAL.bid.record, **changes)
    return open_verified(Bid, sign_record(DEAL.provider, bid))


def test_a_good_bid_lease_and_task_pass() -> None:
    check_bid(DEAL.order, DEAL.bid, START_US)
    check_lease(LEASE, DEAL.order, DEAL.bid, START_US)
    check_task(LEASE, DEAL.task(0).record, SpentNumbers(), START_US)
    assert lease_id(LEASE) == DEAL.lease.id


@pytest.mark.parametrize(
    "changes",
    [
        {"mesh": mesh_id("elsewhere")},
        {"order": OTHER.order.id},
        {"memory_bytes": 1},
        {"unit": "eur"},
        {"rate": DEAL.order.record.max_rate + 1},
    ],
)
def test_a_bid_that_contradicts_its_order_is_a_protocol_error(changes: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        check_bid(DEAL.order, changed_bid(**changes), START_US)


def test_a_bid_by_the_requester_itself_is_a_protocol_error() -> None:
    bid = msgspec.structs.replace(DEAL.bid.record, provider=DEAL.requester.peer)
    with pytest.raises(RemoteProtocolError, match="requester itself"):
        check_bid(DEAL.order, open_verified(Bid, sign_record(DEAL.requester, bid)), START_US)


def test_another_kind_of_device_than_asked_for_is_a_protocol_error() -> None:
    asked = msgspec.structs.replace(DEAL.order.record, device_kind="cuda")
    order = open_verified(type(asked), sign_record(DEAL.requester, asked))
    with pytest.raises(RemoteProtocolError, match="cpu device"):
        check_bid(order, changed_bid(order=order.id), START_US)


@pytest.mark.parametrize(
    ("now_us", "code"),
    [
        (DEAL.bid.record.expires_us, "expired"),
        (DEAL.bid.record.issued_us - CLOCK_SKEW_US - 2000, "clock"),
    ],
)
def test_times_are_refused_with_a_code(now_us: int, code: str) -> None:
    with pytest.raises(Refused) as caught:
        check_bid(DEAL.order, DEAL.bid, now_us)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "changes",
    [
        {"mesh": mesh_id("elsewhere")},
        {"requester": OTHER.provider.peer},
        {"provider": OTHER.requester.peer},
        {"order": OTHER.order.id},
        {"bid": OTHER.bid.id},
        {"device": "gpu0"},
        {"device_kind": "cuda"},
        {"rate": LEASE.rate - 1},
        {"unit": "eur"},
        {"budget": DEAL.order.record.budget + 1},
        {"memory_bytes": DEAL.bid.record.memory_bytes + 1},
        {"wall_limit_us": DEAL.order.record.wall_limit_us + 1},
        {"depth": DEAL.bid.record.depth + 1},
        {"expires_us": LEASE.expires_us + 1},
        {"expires_us": LEASE.issued_us - 1},
    ],
)
def test_a_lease_that_departs_from_order_and_bid_is_a_protocol_error(changes: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        check_lease(msgspec.structs.replace(LEASE, **changes), DEAL.order, DEAL.bid, START_US)


def test_a_smaller_budget_may_be_asked_for_but_not_a_larger_one() -> None:
    lane = bytes(16)
    assert build_lease(DEAL.order, DEAL.bid, lane, lane, START_US, budget=5).budget == 5
    assert build_lease(DEAL.order, DEAL.bid, lane, lane, START_US, budget=1 << 60).budget == 10**9


@pytest.mark.parametrize(
    "changes",
    [
        {"mesh": mesh_id("elsewhere")},
        {"lease": OTHER.lease.id},
        {"requester": DEAL.provider.peer},
        {"max_amount": LEASE.budget + 1},
    ],
)
def test_a_task_of_another_lease_is_a_protocol_error(changes: dict[str, Any]) -> None:
    task = msgspec.structs.replace(DEAL.task(0).record, **changes)
    with pytest.raises(RemoteProtocolError):
        check_task(LEASE, task, SpentNumbers(), START_US)


@pytest.mark.parametrize(
    ("changes", "now_us", "code"),
    [
        ({}, LEASE.expires_us, "lease-expired"),
        ({"expires_us": START_US + 5}, START_US + 5, "expired"),
        ({"issued_us": START_US + 2 * CLOCK_SKEW_US}, START_US, "clock"),
        ({"number": 3}, START_US, "spent"),
    ],
)
def test_a_task_at_the_wrong_time_is_refused(changes: dict[str, Any], now_us: int, code: str) -> None:
    spent = SpentNumbers([(3, Digest(bytes(32)))])
    task = msgspec.structs.replace(DEAL.task(0).record, **changes)
    with pytest.raises(Refused) as caught:
        check_task(LEASE, task, spent, now_us)
    assert caught.value.code == code


def test_a_number_is_spent_once_and_a_repeat_is_known() -> None:
    spent = SpentNumbers()
    one, other = Digest(bytes([1]) * 32), Digest(bytes([2]) * 32)
    spent.spend(0, one)
    assert 0 in spent
    assert spent.is_repeat(0, one)
    assert not spent.is_repeat(0, other)
    with pytest.raises(Refused):
        spent.spend(0, one)


def test_numbers_below_the_window_are_spent_and_memory_stays_bounded() -> None:
    spent = SpentNumbers()
    for number in range(0, 10 * SPENT_WINDOW, 2):
        spent.spend(number, Digest(number.to_bytes(32, "big")))
    assert 1 in spent
    assert 10 * SPENT_WINDOW - 1 not in spent
    assert 10 * SPENT_WINDOW - 3 not in spent
    assert spent.remembered <= 2 * SPENT_WINDOW + 1


def test_a_leap_in_numbers_spends_what_it_leaps_over() -> None:
    spent = SpentNumbers()
    spent.spend(1 << 61, Digest(bytes(32)))
    assert 7 in spent
    assert (1 << 61) - 1 not in spent


def test_a_task_pays_for_all_the_time_that_it_may_take() -> None:
    """Its own maximum and the lease's budget cap what is billed: beyond them the provider would work for nothing."""
    lease, most = LEASE, amount_for(LEASE.rate, LEASE.wall_limit_us)
    check_pay(lease, DEAL.task(0, max_amount=most).record, lease.budget - most)
    for max_amount, billed in (
        (0, 0),
        (most - 1, 0),
        (most, lease.budget - most + 1),
        (most, lease.budget + 1),
    ):
        with pytest.raises(Refused) as refusal:
            check_pay(lease, DEAL.task(0, max_amount=max_amount).record, billed)
        assert refusal.value.code == "budget"
