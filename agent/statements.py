"""Statements: netting what two peers accepted from each other into one number that both sign (pure).

Theory of operation
-------------------
Receipts between two peers lie on lanes, each side's work on its own. A statement covers a *span* of each lane,
beginning where the one before ended, and only places that are countersigned; so each receipt is covered once, and which
ones are is plain from the spans. Its leaves are the covered receipts, lanes in the order of their ids, each leaf the
ids of the receipt and of its countersignature: whoever has these two records and a path of some twenty hashes can prove
that they are under the statement. What each side earned is the sum of the accepted amounts; the difference is the net.

Statements between two peers in one unit are numbered and chained, whoever proposes. For one number

* a proposer may sign several proposals (one was refused, or expired), and takes the first that comes back signed;
* a side signs at most one proposal of the other, ever. So two statements of one number that carry the same *second*
  signature prove that its signer lied (`is_double_statement`).

Where both propose at once, the side with the larger id gives way: it signs the other's although its own is out; the
side with the smaller one answers `crossed` as long as its own may still come back signed.

A ledger that was put back from a backup has forgotten what it signed as the second side. It signs nothing as such until
one of its own proposals came back signed (`SettlingTables.may_sign_second`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from coppermesh.p2p.envelope import Opened
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import Digest, MeshId, PeerId
from coppermesh.p2p.merkle import leaf_hash, merkle_root
from coppermesh.p2p.records import ZERO_HASH
from coppermesh.p2p.settlement_records import MAX_SPANS, SPAN_BYTES, Statement

STATEMENT_LIFE_US = 7 * 86_400_000_000
"""How long the other side has to sign at most: a file may travel for days."""
ANSWER_LIFE_US = 600_000_000
"""How long it has where it is asked on a connection."""
MOST_PLACES = 1 << 62
"""No lane is so long; numbers beyond that do not fit into a ledger."""
CLOCK_SKEW_US = 120_000_000
"""How far ahead another clock may be before it is called wrong."""
DAY_US = 86_400_000_000
NO_STATEMENT = Digest(ZERO_HASH)


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Places on a lane: from `start`, up to but without `end`."""

    lane: bytes
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class CoveredSpan:
    """A span with what the ledger has there."""

    span: Span
    provider: PeerId
    """Whose work the lane is."""
    earned: int
    """What was accepted in the span, money."""
    leaves: Sequence[bytes]
    """Leaf hashes in order: one for each place."""


@dataclass(frozen=True, slots=True)
class LaneState:
    """A lane between the two, as the own ledger has it."""

    lane: bytes
    provider: PeerId
    covered: int
    """How many of its receipts are under a statement."""
    countersigned: int
    """How many from the first on have a countersignature."""


@dataclass(frozen=True, slots=True)
class LastSigned:
    """The newest statement between the two that both signed."""

    number: int = -1
    id: Digest = NO_STATEMENT


def receipt_leaf(receipt: Digest, countersignature: Digest) -> bytes:
    """The leaf of a receipt that was answered."""
    return leaf_hash(receipt + countersignature)


def pack_spans(spans: Iterable[Span]) -> bytes:
    """Spans as they travel, ordered by lane."""
    return b"".join(
        span.lane + span.start.to_bytes(8, "big") + span.end.to_bytes(8, "big") for span in sorted(spans)
    )


def unpack_spans(data: bytes) -> list[Span]:
    """The inverse of `pack_spans`. Raises Refused (`bad-spans`): not whole, empty, out of order, or too many."""
    if len(data) % SPAN_BYTES or len(data) > SPAN_BYTES * MAX_SPANS:
        raise Refused("bad-spans", "the list of lanes is cut or too long")
    spans = [
        Span(
            data[at : at + 16],
            int.from_bytes(data[at + 16 : at + 24], "big"),
            int.from_bytes(data[at + 24 : at + 32], "big"),
        )
        for at in range(0, len(data), SPAN_BYTES)
    ]
    lanes = [span.lane for span in spans]
    if lanes != sorted(set(lanes)) or any(not span.start < span.end <= MOST_PLACES for span in spans):
        raise Refused("bad-spans", "lanes are empty, named twice or out of order")
    return spans


def open_spans(lanes: Iterable[LaneState], theirs: dict[bytes, int] | None = None) -> list[Span]:
    """What a new statement would cover: all that is countersigned, here and (`theirs`: by lane) there, and not covered.

    At most `MAX_SPANS` lanes; others are left for the next one.
    """
    spans = []
    for state in lanes:
        end = state.countersigned
        if theirs is not None:
            end = min(end, theirs.get(state.lane, 0))
        if end > state.covered:
            spans.append(Span(state.lane, state.covered, end))
    return sorted(spans)[:MAX_SPANS]


def draw_up(
    mesh: MeshId,
    proposer: PeerId,
    other: PeerId,
    unit: str,
    last: LastSigned,
    covered: Sequence[CoveredSpan],
    now_us: int,
    life_us: int = STATEMENT_LIFE_US,
) -> Statement:
    """The statement over these spans, for its proposer to sign. Raises Refused (`nothing`) where they are empty."""
    if not covered:
        raise Refused("nothing", "there is nothing to state: no countersigned receipt that is not under one")
    earned = {proposer: 0, other: 0}
    for part in covered:
        earned[part.provider] += part.earned
    difference = earned[proposer] - earned[other]
    return Statement(
        version=1,
        mesh=mesh,
        proposer=proposer,
        other=other,
        unit=unit,
        number=last.number + 1,
        previous=last.id,
        receipts=sum(len(part.leaves) for part in covered),
        root=statement_root(covered),
        earned_proposer=earned[proposer],
        earned_other=earned[other],
        net=abs(difference),
        payee="none" if not difference else "proposer" if difference > 0 else "other",
        issued_us=now_us,
        expires_us=now_us + life_us,
    )


def statement_root(covered: Iterable[CoveredSpan]) -> bytes:
    """The root over all leaves, lanes in the order of their ids."""
    ordered = sorted(covered, key=lambda part: part.span.lane)
    return merkle_root([leaf for part in ordered for leaf in part.leaves])


def check_times(statement: Statement, now_us: int) -> None:
    """Raises Refused: `clock` where one of the two clocks is wrong, `expired` where it is too late to sign."""
    ahead = statement.issued_us - now_us
    if ahead > CLOCK_SKEW_US:
        raise Refused(
            "clock", f"the statement is from {_span(ahead)} in the future: one of the clocks is wrong"
        )
    if now_us >= statement.expires_us:
        late = now_us - statement.expires_us
        raise Refused(
            "expired", f"the statement could be signed until {_span(late)} ago by this clock: draw up another"
        )
    if statement.expires_us - statement.issued_us > STATEMENT_LIFE_US:
        raise Refused(
            "expired", "the statement may be signed for longer than seven days: nobody agrees to that"
        )


def check_order(statement: Statement, last: LastSigned) -> None:
    """Is it the next between the two? Raises Refused: `stale`, `statement-gap`, `other-history`."""
    if statement.number <= last.number:
        raise Refused(
            "stale", f"statement {statement.number} was signed already: the next one is {last.number + 1}"
        )
    if statement.number > last.number + 1:
        raise Refused(
            "statement-gap",
            f"the next statement here is {last.number + 1}, this is {statement.number}: send the missing one",
        )
    if statement.previous != last.id:
        raise Refused("other-history", "it does not follow from the statement before it that is signed here")


def check_spans(spans: Sequence[Span], lanes: dict[bytes, LaneState]) -> None:
    """May these places be covered now? Raises Refused: `unknown-lane`, `doubled`, `not-countersigned`."""
    for span in spans:
        state = lanes.get(span.lane)
        name = span.lane.hex()[:8]
        if state is None:
            raise Refused(
                "unknown-lane", f"lane {name} is not one between us in this unit, as this ledger has it"
            )
        if span.start < state.covered:
            raise Refused("doubled", f"receipt {span.start} of lane {name} is under a statement already")
        if span.start > state.covered:
            raise Refused("left-out", f"receipts from {state.covered} on of lane {name} would be left out")
        if span.end > state.countersigned:
            raise Refused(
                "not-countersigned",
                f"receipt {state.countersigned} of lane {name} is not here, or not countersigned: deliver it first",
            )


def check_sums(statement: Statement, covered: Sequence[CoveredSpan]) -> None:
    """Root and numbers against the own ledger. Raises Refused: `wrong-root`, `wrong-sum`."""
    earned = {PeerId(statement.proposer): 0, PeerId(statement.other): 0}
    for part in covered:
        earned[part.provider] += part.earned
    theirs = (statement.earned_proposer, statement.earned_other)
    ours = (earned[PeerId(statement.proposer)], earned[PeerId(statement.other)])
    if theirs != ours:
        raise Refused(
            "wrong-sum",
            f"it says {theirs[0]} and {theirs[1]} were earned, this ledger says {ours[0]} and {ours[1]}",
        )
    check_net(statement)
    count = sum(len(part.leaves) for part in covered)
    if statement.receipts != count:
        raise Refused(
            "wrong-sum", f"it says that it covers {statement.receipts} receipts, its lanes name {count}"
        )
    if statement.root != statement_root(covered):
        raise Refused(
            "wrong-root", "a receipt under it is another one in this ledger: compare the two ledgers"
        )


def check_net(statement: Statement) -> None:
    """Does the net follow from what each earned? Raises Refused (`wrong-sum`)."""
    difference = statement.earned_proposer - statement.earned_other
    payee = "none" if not difference else "proposer" if difference > 0 else "other"
    if (statement.net, statement.payee) != (abs(difference), payee):
        raise Refused(
            "wrong-sum",
            f"its net is {statement.net} to {statement.payee}, its sums give {abs(difference)} to {payee}",
        )


def check_parties(statement: Statement, mesh: MeshId, proposer: PeerId, other: PeerId) -> None:
    """Raises Refused (`not-ours`) where it is between others, or on another mesh."""
    if (statement.mesh, statement.proposer, statement.other) != (mesh, proposer, other) or proposer == other:
        raise Refused("not-ours", "the statement is between other peers, or of another mesh")


def gives_way(me: PeerId, peer: PeerId) -> bool:
    """Where both proposed at once: does this side sign the other's?"""
    return me > peer


def net_for(statement: Statement, me: PeerId) -> int:
    """The net as `me` sees it: above zero, the other side owes it."""
    if statement.payee == "none":
        return 0
    payee = statement.proposer if statement.payee == "proposer" else statement.other
    return statement.net if payee == me else -statement.net


def is_double_statement(one: Opened[Statement], other: Opened[Statement]) -> bool:
    """True where one peer signed two statements of the same number as the second side: it must not have."""
    first, second = one.record, other.record
    places = [
        (record.mesh, frozenset((record.proposer, record.other)), record.unit, record.number)
        for record in (first, second)
    ]
    signed_second = one.signer == first.other and other.signer == second.other
    return places[0] == places[1] and signed_second and one.signer == other.signer and one.id != other.id


def _span(span_us: int) -> str:
    """`1.0 day`s, hours or seconds, for a person."""
    if span_us >= DAY_US:
        return f"{span_us / DAY_US:.1f} days"
    return f"{span_us / 3.6e9:.1f} h" if span_us >= 3_600_000_000 else f"{span_us / 1e6:.0f} s"
