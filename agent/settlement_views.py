"""Facts about statements, comparisons, payout accounts and reputations, and the lines for people."""

from collections.abc import Mapping
from typing import Any

from coppermesh.agent.ledger_compare import Comparison, Entry
from coppermesh.agent.payouts import check_payout, why_not
from coppermesh.agent.reputation import Reputation, exposure_limit
from coppermesh.agent.screens import counted, moment, money, number, table
from coppermesh.agent.settlement import State
from coppermesh.agent.settling_rules import other_side
from coppermesh.agent.statements import net_for
from coppermesh.p2p.envelope import open_record
from coppermesh.p2p.ids import PeerId, format_peer
from coppermesh.p2p.settlement_records import SignedPayout, SignedStatement, Statement

Facts = Mapping[str, Any]

_DIFFERENCES = {
    "only-here": "this side has a receipt there, the other side has none",
    "only-there": "the other side has a receipt there, this side has none",
    "other-receipt": "the two sides have different receipts for it: their signer lied; kept as a proof",
    "not-answered-here": "the other side has a countersignature, this side has none",
    "not-answered-there": "this side has a countersignature, the other side has none",
    "other-answer": "the two sides have different countersignatures: kept as a proof",
}


def statement_facts(signed: SignedStatement, me: PeerId, state: State | None = None) -> dict[str, Any]:
    """A statement as `me` sees it; `net` above zero: the other side owes it."""
    opened = open_record(Statement, signed.proposed)
    record = opened.record
    mine = record.proposer == me
    return {
        "id": opened.id.hex(),
        "with": format_peer(other_side(record, me)),
        "unit": record.unit,
        "number": record.number,
        "proposed_by_me": mine,
        "signed_by_both": signed.agreed is not None,
        "receipts": record.receipts,
        "root": record.root.hex(),
        "earned_by_me": record.earned_proposer if mine else record.earned_other,
        "earned_by_them": record.earned_other if mine else record.earned_proposer,
        "net": net_for(record, me),
        "issued_us": record.issued_us,
        "expires_us": record.expires_us,
        "state": state,
    }


def statement_lines(rows: list[dict[str, Any]]) -> list[str]:
    """`coppermesh statement show`."""
    if not rows:
        return []
    cells = [
        (
            row["id"][:12],
            row["with"][-8:],
            row["number"],
            row["receipts"],
            number(row["earned_by_me"]),
            number(row["earned_by_them"]),
            number(row["net"]),
            row["unit"],
            row["state"] or ("signed" if row["signed_by_both"] else "not signed yet"),
        )
        for row in rows
    ]
    headings = ("STATEMENT", "WITH", "NO", "RECEIPTS", "I EARNED", "THEY EARNED", "NET", "UNIT", "STATE")
    return table(headings, cells, right=(2, 3, 4, 5, 6))


def told_statement(row: Facts) -> str:
    """One sentence about a statement."""
    net, who = row["net"], row["with"][-8:]
    amount = money(abs(net), row["unit"])
    owes = (
        "nothing is owed"
        if not net
        else f"..{who} owes {amount}"
        if net > 0
        else f"owed to ..{who}: {amount}"
    )
    signed = "signed by both" if row["signed_by_both"] else "signed by us, not yet by them"
    receipts = counted(row["receipts"], "receipt")
    return f"statement {row['number']} with ..{who} over {receipts}: {owes}; {signed} ({row['id'][:12]})"


def comparison_facts(peer: PeerId, found: Comparison) -> dict[str, Any]:
    """What comparing came to; `same` is true where nothing differs."""
    first = found.first
    return {
        "peer": format_peer(peer),
        "same": not found.differing,
        "lanes": found.lanes,
        "receipts": found.receipts,
        "differing_lanes": found.differing,
        "first": None
        if first is None
        else {
            "lane": first.lane.hex(),
            "sequence": first.sequence,
            "what": first.what,
            "sentence": _DIFFERENCES[first.what],
            "here": _entry(first.here),
            "there": _entry(first.there),
        },
    }


def _entry(entry: Entry) -> dict[str, Any] | None:
    if entry.receipt is None:
        return None
    answer = entry.countersignature
    return {
        "receipt": entry.receipt.id.hex(),
        "amount": entry.receipt.record.amount,
        "unit": entry.receipt.record.unit,
        "verdict": None if answer is None else answer.record.verdict,
        "countersignature": None if answer is None else answer.id.hex(),
    }


def comparison_lines(facts: Facts) -> list[str]:
    """`coppermesh ledger compare`."""
    seen = f"{counted(facts['lanes'], 'lane')}, {counted(facts['receipts'], 'receipt')} here"
    if facts["same"]:
        return [f"the two ledgers are the same ({seen})"]
    first = facts["first"]
    lines = [
        f"{counted(facts['differing_lanes'], 'lane')} of {facts['lanes']} differ ({seen})",
        f"first: place {first['sequence']} of lane {first['lane'][:8]}: {first['sentence']}",
    ]
    for name in ("here", "there"):
        entry = first[name]
        said = "nothing"
        if entry is not None:
            verdict = entry["verdict"] or "not countersigned"
            said = f"receipt {entry['receipt'][:12]} over {money(entry['amount'], entry['unit'])}, {verdict}"
        lines.append(f"  {name.ljust(5)}  {said}")
    return lines


def payout_facts(signed: SignedPayout, now_us: int) -> dict[str, Any]:
    """A payout account; `usable` is false where nothing should be paid there, and `why_not` says why."""
    record = check_payout(signed)
    reason = why_not(record, now_us)
    return {
        "peer": format_peer(PeerId(record.peer)),
        "scheme": record.scheme,
        "address": record.address,
        "key": None if record.key is None else record.key.hex(),
        "proven": signed.by_key is not None,
        "sequence": record.sequence,
        "issued_us": record.issued_us,
        "expires_us": record.expires_us,
        "usable": not reason,
        "why_not": reason,
    }


def payout_lines(facts: Facts) -> list[str]:
    """`coppermesh payout show`."""
    if not facts["usable"]:
        return [f"{facts['peer']}: {facts['why_not']}"]
    proof = "its key has signed that too" if facts["proven"] else "the peer's word alone"
    until = moment(facts["expires_us"])
    return [f"{facts['peer']} is paid at {facts['scheme']} {facts['address']} until {until} UTC ({proof})"]


def reputation_facts(peer: PeerId, found: Reputation, interval: int, unit: str) -> dict[str, Any]:
    """A reputation with its reasons."""
    return {
        "peer": format_peer(peer),
        "unit": unit,
        "score": found.score,
        "exposure_class": found.exposure_class,
        "exposure": exposure_limit(found.exposure_class, interval),
        "reasons": list(found.reasons),
    }


def reputation_lines(rows: list[dict[str, Any]]) -> list[str]:
    """`coppermesh reputation`."""
    lines = []
    for row in rows:
        exposure = money(row["exposure"], row["unit"])
        lines.append(f"{row['peer']}  {row['score']} of 1000, may leave {exposure} unpaid")
        lines += [f"    {reason}" for reason in row["reasons"]]
    return lines
