"""What a history is worth: own first, then others by what they settled with us; a new key buys nothing."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.agent.reputation import (
    FULL_SCORE,
    HEARSAY,
    HIGHEST,
    HIGHEST_UNSETTLED,
    MAX_OPINION_AGE_US,
    NO_CREDIT,
    PROOFS,
    SMALLEST,
    Dealings,
    Facts,
    Opinion,
    exposure_limit,
    score,
)
from coppermesh.p2p.ids import PeerId

PEER, RATER, OTHER = (PeerId(bytes([number]) * 32) for number in (1, 2, 3))
NOW_US = 10 * MAX_OPINION_AGE_US
amounts = st.integers(0, 10**12)
counts = st.integers(0, 10**5)
dealings = st.builds(
    Dealings,
    tasks_ok=counts,
    tasks_failed=counts,
    disputes=counts,
    overdue=st.integers(0, 20),
    refused=counts,
    countersigned=amounts,
    settled=amounts,
)


def praise(rater: PeerId = RATER, value: int = FULL_SCORE, settled: int = 10**7, age_us: int = 0) -> Opinion:
    return Opinion(rater, value, settled, NOW_US - age_us)


def test_a_stranger_is_in_the_middle_with_the_smallest_exposure() -> None:
    found = score(PEER, Facts())
    assert (found.score, found.exposure_class) == (500, SMALLEST)
    assert "stranger" in found.reasons[0]
    assert exposure_limit(found.exposure_class, 700) == 700


def test_good_tasks_raise_and_bad_ones_lower_the_score() -> None:
    good = score(PEER, Facts(Dealings(tasks_ok=100))).score
    mixed = score(PEER, Facts(Dealings(tasks_ok=100, tasks_failed=20))).score
    liar = score(PEER, Facts(Dealings(tasks_ok=100, disputes=20))).score
    assert good > mixed > liar
    assert good > 950


@pytest.mark.parametrize("kind", sorted(PROOFS))
def test_a_proof_ends_all_credit_whatever_was_settled(kind: str) -> None:
    found = score(PEER, Facts(Dealings(tasks_ok=10**6, settled=10**12, proofs=(kind,)), [praise()]))
    assert (found.score, found.exposure_class) == (0, NO_CREDIT)
    assert exposure_limit(found.exposure_class, 700) == 0
    assert kind in found.reasons[0]


def test_evidence_that_is_no_proof_is_named_and_does_not_end_credit() -> None:
    found = score(PEER, Facts(Dealings(tasks_ok=3, proofs=("traces-part",))))
    assert found.score > 500
    assert any("traces-part" in reason for reason in found.reasons)


def test_exposure_doubles_with_what_was_settled() -> None:
    interval = 1000
    classes = [
        score(PEER, Facts(Dealings(settled=settled), interval=interval)).exposure_class
        for settled in (0, 19_999, 20_000, 40_000, 10**12)
    ]
    assert classes == [0, 0, 1, 2, HIGHEST]
    assert exposure_limit(1, interval) == 2 * interval


def test_promises_alone_lead_only_so_far_and_unanswered_receipts_back() -> None:
    facts = Facts(Dealings(countersigned=10**12), interval=1000)
    assert score(PEER, facts).exposure_class == HIGHEST_UNSETTLED
    late = replace(facts, dealings=Dealings(countersigned=10**12, overdue=2))
    assert score(PEER, late).exposure_class == HIGHEST_UNSETTLED - 2
    assert "unanswered" in score(PEER, late).reasons[0]


def test_who_disputes_what_it_was_given_loses_credit() -> None:
    interval = 1000
    good = Dealings(tasks_ok=100, settled=10**12)
    assert score(PEER, Facts(good, interval=interval)).exposure_class == HIGHEST
    one = score(PEER, Facts(replace(good, refused=9), interval=interval))
    assert one.exposure_class == HIGHEST, "one in ten may be a mistake"
    many = score(PEER, Facts(replace(good, refused=50), interval=interval))
    assert many.exposure_class == HIGHEST - 5
    assert "disputed by it" in many.reasons[0]


def test_others_count_by_what_they_settled_with_me() -> None:
    facts = Facts(opinions=[praise(), praise(OTHER, 0, settled=0)], now_us=NOW_US)
    assert score(PEER, facts).score > 700, "who settled nothing with me weighs nothing"
    even = Facts(opinions=[praise(), praise(OTHER, 0)], now_us=NOW_US)
    assert score(PEER, even).score == 500


@pytest.mark.parametrize("opinion", [praise(PEER), praise(settled=0), praise(age_us=MAX_OPINION_AGE_US + 1)])
def test_its_own_word_a_clique_and_old_praise_weigh_nothing(opinion: Opinion) -> None:
    assert score(PEER, Facts(opinions=[opinion], now_us=NOW_US)).score == 500


def test_own_history_outweighs_hearsay() -> None:
    bad = Facts(Dealings(tasks_failed=40), [praise() for _ in range(50)], NOW_US)
    assert score(PEER, bad).score < 150


@given(own=dealings, others=st.lists(st.builds(praise, st.just(RATER), st.integers(-5, 2000), amounts)))
def test_praise_never_buys_exposure(own: Dealings, others: list[Opinion]) -> None:
    alone = score(PEER, Facts(own, now_us=NOW_US))
    praised = score(PEER, Facts(own, others, NOW_US))
    assert praised.exposure_class == alone.exposure_class
    assert 0 <= praised.score <= FULL_SCORE
    assert all(praised.reasons)


@given(own=dealings)
def test_a_new_key_never_has_more_credit_than_the_old_one(own: Dealings) -> None:
    """Whitewashing buys nothing: only a proof brings anybody below where a stranger starts."""
    assert score(PEER, Facts()).exposure_class <= score(PEER, Facts(own)).exposure_class


@given(own=dealings, more=st.integers(1, 10**6))
def test_more_good_work_never_hurts(own: Dealings, more: int) -> None:
    before = score(PEER, Facts(own))
    after = score(PEER, Facts(replace(own, tasks_ok=own.tasks_ok + more, settled=own.settled + more)))
    assert after.score >= before.score
    assert after.exposure_class >= before.exposure_class


def test_hearsay_is_bounded() -> None:
    crowd = [praise(PeerId(bytes([number]) * 32), 0) for number in range(5, 200)]
    known = Facts(Dealings(tasks_ok=200), crowd, NOW_US)
    assert score(PEER, known).score > 900
    assert HEARSAY < 200
