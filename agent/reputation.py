"""What a peer's history is worth: a score for ranking, a class for how much may be left unpaid, and the reasons (pure).

Theory of operation
-------------------
Reputation is subjective: it is computed by each agent for itself, and the order of what counts is fixed.

1. *Proofs.* A peer whose own signatures contradict each other (`PROOFS`) has the score 0 and gets no credit, for ever.
2. *Own history.* What this agent settled with the peer: tasks done, failed, disputed, receipts left unanswered. As a
   beta estimate with a prior of `PRIOR` good and `PRIOR` bad tasks (Josang and Ismail, "The beta reputation system",
   2002), so that a new key starts in the middle and one good task changes little.
3. *Others' signed scores*, each weighted by what its author settled with this agent, at most `RATER_CAP`: a clique that
   trades with itself weighs nothing here. They fill in where the own history is short, as at most `HEARSAY` tasks.

The exposure class comes from the own ledger alone, so that neither a new key nor friends' praise buy credit: class 0
is one accounting interval, each class doubles it (`exposure_limit`). A tenth of the settled volume is the goal; what
was countersigned and not yet settled counts a tenth of that and alone never leads above class 3; each receipt left
unanswered past its date takes a class away, as does each tenth of all receipts that it disputed. So a new key starts
at the smallest exposure, whatever the old one did.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from coppermesh.p2p.ids import PeerId, short_peer

FULL_SCORE = 1000
PRIOR = 2
"""Imagined good tasks, and as many bad ones, that everybody starts with."""
HEARSAY = 10
"""Most that all others' scores together weigh, in tasks of one's own."""
RATER_CAP = 10_000_000
"""Most of what a rater settled with me that counts, money: nobody outweighs all others for ever."""
RATER_UNIT = 100_000
"""A rater who settled so much with me, money, weighs as much as one task of my own."""
MAX_OPINION_AGE_US = 30 * 86_400_000_000
SMALLEST = 0
NO_CREDIT = -1
"""The exposure class of a peer that was proven to cheat: nothing may be left unpaid."""
HIGHEST = 7
HIGHEST_UNSETTLED = 3
"""The highest class that countersignatures alone lead to, without a settlement."""
DEFAULT_INTERVAL = 10_000
"""What one accounting interval costs where the caller does not say, money."""
PROOFS = frozenset(
    {
        "equivocation",
        "broken-chain",
        "double-task",
        "double-countersignature",
        "double-statement",
        "wrong-sum",
    }
)
"""Kinds of evidence that are proofs by the peer's own signatures; others only count as disputes."""
_DISPUTE_WEIGHT = 4
"""A task that was billed or done wrong counts as so many failed ones: failing is luck, lying is not."""


@dataclass(frozen=True, slots=True)
class Dealings:
    """What one's own ledger says about a peer, in one unit. Money in 10^-6 of it, times in microseconds."""

    tasks_ok: int = 0
    """Receipts of theirs that were accepted here, and of ours that they accepted."""
    tasks_failed: int = 0
    """Their runs that failed through their fault, and tasks that were taken from them."""
    disputes: int = 0
    """Receipts of theirs that were disputed here for what they claim."""
    overdue: int = 0
    """Receipts of ours that they have left unanswered past their date."""
    refused: int = 0
    """Receipts of ours that they disputed: work that was done and is not paid."""
    countersigned: int = 0
    """Accepted either way and not settled yet, money."""
    settled: int = 0
    """Accepted either way and settled by a statement that both signed, money."""
    proofs: tuple[str, ...] = ()
    """Kinds of the evidence that is kept against them."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """Another peer's signed score, with what gives it weight here."""

    rater: PeerId
    score: int
    """0 to `FULL_SCORE`."""
    rater_settled: int
    """What the rater settled or countersigned with this agent, money: its weight."""
    issued_us: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a reputation is computed from."""

    dealings: Dealings = Dealings()
    opinions: Sequence[Opinion] = ()
    now_us: int = 0
    interval: int = DEFAULT_INTERVAL
    """What one accounting interval (T + G) costs at the rate in question, money."""


@dataclass(frozen=True, slots=True)
class Reputation:
    """What a peer's history is worth here."""

    score: int
    """0 (proven cheat) to 1000; 500 for a stranger."""
    exposure_class: int
    """`NO_CREDIT`, or 0 to `HIGHEST`: see `exposure_limit`."""
    reasons: tuple[str, ...]
    """One sentence each, the weightiest first."""


def score(peer: PeerId, facts: Facts) -> Reputation:
    """The reputation of `peer`. What it says of itself is not among the facts, nor does it rate itself."""
    dealings = facts.dealings
    proofs = sorted(set(dealings.proofs) & PROOFS)
    if proofs:
        said = tuple(f"its own signatures prove it: {kind}" for kind in proofs)
        return Reputation(0, NO_CREDIT, said)
    good = dealings.tasks_ok
    lies = dealings.disputes + dealings.overdue + dealings.refused
    bad = dealings.tasks_failed + _DISPUTE_WEIGHT * lies
    opinions = _counted(peer, facts)
    weight, praise = _hearsay(opinions, own=good + bad)
    value = (good + praise + PRIOR) / (good + bad + weight + 2 * PRIOR)
    reasons = _own_reasons(dealings) + _hearsay_reasons(opinions, weight)
    step = exposure_class(dealings, facts.interval)
    reasons += (_exposure_reason(dealings, step),)
    return Reputation(round(FULL_SCORE * value), step, reasons)


def exposure_class(dealings: Dealings, interval: int) -> int:
    """How often the smallest exposure may be doubled for this history; `interval`: what the smallest one costs."""
    if set(dealings.proofs) & PROOFS:
        return NO_CREDIT
    settled = _doublings(dealings.settled // 10, interval)
    with_promises = _doublings((dealings.settled + dealings.countersigned // 10) // 10, interval)
    step = max(settled, min(with_promises, HIGHEST_UNSETTLED))
    unpaid = dealings.overdue + 10 * dealings.refused // max(10, dealings.tasks_ok)
    return max(SMALLEST, step - unpaid)


def exposure_limit(step: int, interval: int) -> int:
    """How much money may be unpaid at a class; `interval` is one accounting interval's cost, rate * (T + G)."""
    return 0 if step < SMALLEST else interval << min(step, HIGHEST)


def _doublings(volume: int, interval: int) -> int:
    return min(HIGHEST, max(SMALLEST, (volume // max(1, interval)).bit_length() - 1))


def _counted(peer: PeerId, facts: Facts) -> list[Opinion]:
    """Opinions that count: fresh, of somebody else, and of one who settled something with me."""
    return [
        opinion
        for opinion in facts.opinions
        if opinion.rater != peer
        and opinion.rater_settled > 0
        and facts.now_us - opinion.issued_us <= MAX_OPINION_AGE_US
    ]


def _hearsay(opinions: Sequence[Opinion], own: int) -> tuple[float, float]:
    """(weight in tasks, how many of these are good). It fades as the own history grows."""
    weights = [min(opinion.rater_settled, RATER_CAP) for opinion in opinions]
    total = sum(weights)
    if not total:
        return 0.0, 0.0
    mean = sum(
        weight * min(max(opinion.score, 0), FULL_SCORE)
        for weight, opinion in zip(weights, opinions, strict=True)
    )
    tasks = min(float(HEARSAY), total / RATER_UNIT) * HEARSAY / (HEARSAY + own)
    return tasks, tasks * mean / total / FULL_SCORE


def _own_reasons(dealings: Dealings) -> tuple[str, ...]:
    said = []
    if dealings.overdue:
        said.append(f"left {dealings.overdue} of our receipts unanswered past the date")
    if dealings.disputes:
        said.append(f"{dealings.disputes} of its receipts {_were(dealings.disputes)} disputed here")
    if dealings.refused:
        said.append(f"{dealings.refused} of our receipts {_were(dealings.refused)} disputed by it")
    if dealings.tasks_failed:
        said.append(f"{_tasks(dealings.tasks_failed)} failed or {_were(dealings.tasks_failed)} taken from it")
    if dealings.tasks_ok:
        said.append(f"{_tasks(dealings.tasks_ok)} between us {_were(dealings.tasks_ok)} accepted")
    other = sorted(set(dealings.proofs) - PROOFS)
    if other:
        said.append(f"evidence is kept against it: {', '.join(other)}")
    return tuple(said) or ("a stranger: nothing was settled with it here",)


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _hearsay_reasons(opinions: Sequence[Opinion], weight: float) -> tuple[str, ...]:
    if not opinions:
        return ()
    heaviest = max(opinions, key=lambda opinion: opinion.rater_settled)
    count = len(opinions)
    rated = "1 peer we settled with rates it" if count == 1 else f"{count} peers we settled with rate it"
    said = f"{rated}, counting as {weight:.1f} tasks of our own"
    top = f"the weightiest, ..{short_peer(heaviest.rater)}, gives {heaviest.score} of {FULL_SCORE}"
    return (f"{said}; {top}",)


def _exposure_reason(dealings: Dealings, step: int) -> str:
    if step == SMALLEST:
        why = "after unanswered receipts" if dealings.overdue else "until more is settled with it"
        return f"the smallest exposure, one accounting interval, {why}"
    return f"exposure class {step}: {2**step} accounting intervals, from what was settled with it"
