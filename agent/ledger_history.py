"""What the ledger says about dealings with a peer: the facts that a reputation is computed from (see `reputation`).

Blocking, over SQLite.
"""

import sqlite3
from collections.abc import Iterable

from coppermesh.agent.ledger_book import reopen, unpack_records
from coppermesh.agent.proofs import InvalidProof, prove
from coppermesh.agent.reputation import PROOFS, Dealings, Facts, Opinion
from coppermesh.p2p.encoding import decode
from coppermesh.p2p.envelope import from_bytes, open_verified
from coppermesh.p2p.errors import RemoteProtocolError
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.proof_files import MAX_STATEMENT_BYTES
from coppermesh.p2p.records import Receipt
from coppermesh.p2p.settlement_records import Score, Statement
from coppermesh.p2p.settlement_records import SignedStatement as _Signed

NEUTRAL = ("superseded", "cancelled", "no-result", "late", "already-answered")
"""Disputes and supersedings for these reasons accuse nobody of lying."""
MAX_LOOKED_INTO = 1000
"""Receipts over nothing whose records are opened to see whether the run failed: the newest."""

_COUNTS = """
SELECT role, verdict, answer.code, receipt.amount > 0, count(*) FROM lease
JOIN receipt ON receipt.lane = lease.lane JOIN countersignature AS answer ON answer.receipt = receipt.id
WHERE peer = ? AND lease.unit = ? GROUP BY 1, 2, 3, 4
"""
_FREE = """
SELECT receipt.signed FROM lease JOIN receipt ON receipt.lane = lease.lane
JOIN countersignature AS answer ON answer.receipt = receipt.id
WHERE peer = ? AND lease.unit = ? AND verdict = 'accepted' AND receipt.amount = 0 ORDER BY receipt.n DESC LIMIT ?
"""
_TAKEN_AWAY = """
SELECT superseded.code, count(*) FROM lease JOIN task ON task.lease = lease.id
JOIN superseded ON superseded.task = task.id
WHERE peer = ? AND lease.unit = ? AND role = 'requester' GROUP BY 1
"""
_WAITING = """
SELECT receipt.signed FROM lease JOIN receipt ON receipt.lane = lease.lane
JOIN unsettled ON unsettled.receipt = receipt.id WHERE peer = ? AND lease.unit = ? LIMIT 1000
"""
_ACCEPTED = """
SELECT coalesce((SELECT accepted_cumulative FROM countersignature AS answer WHERE answer.lane = lease.lane
                 ORDER BY sequence DESC LIMIT 1), 0) FROM lease WHERE peer = ? AND unit = ?
"""


def dealings_with(database: sqlite3.Connection, peer: PeerId, unit: str, now_us: int) -> Dealings:
    """What was done and settled with a peer in one unit."""
    good = failed = disputes = refused = 0
    for role, verdict, code, paid, count in database.execute(_COUNTS, (peer, unit)):
        if verdict == "accepted":
            good += count if paid else 0
        elif code in NEUTRAL:
            failed += count if role == "requester" else 0
        elif role == "requester":
            disputes += count
        if verdict == "disputed" and role == "provider":
            refused += count
    for row in database.execute(_FREE, (peer, unit, MAX_LOOKED_INTO)):
        spoiled = reopen(Receipt, row[0]).record.status == "provider-failed"
        good, failed = good + (not spoiled), failed + spoiled
    for code, count in database.execute(_TAKEN_AWAY, (peer, unit)):
        failed += count if code != "cancelled" else 0
    waiting = (reopen(Receipt, row[0]).record for row in database.execute(_WAITING, (peer, unit)))
    accepted = sum(row[0] for row in database.execute(_ACCEPTED, (peer, unit)))
    stated, settled = _settled(database, peer, unit)
    return Dealings(
        tasks_ok=good,
        tasks_failed=failed,
        disputes=disputes,
        overdue=sum(record.countersign_by_us < now_us for record in waiting),
        refused=refused,
        countersigned=max(0, accepted - stated) + (stated - settled),
        settled=settled,
        proofs=_proofs(database, peer),
    )


def _proofs(database: sqlite3.Connection, peer: PeerId) -> tuple[str, ...]:
    """Kinds of what is kept against a peer; those that its own signatures do not prove get another name."""
    rows = database.execute("SELECT kind, records FROM evidence WHERE peer = ?", (peer,)).fetchall()
    kinds = set()
    for kind, records in rows:
        name = kind
        if kind in PROOFS:
            try:
                prove(kind, peer, unpack_records(records))
            except (InvalidProof, RemoteProtocolError):
                name = f"{kind}, not proven"
        kinds.add(name)
    return tuple(sorted(kinds))


def _settled(database: sqlite3.Connection, peer: PeerId, unit: str) -> tuple[int, int]:
    """(What is under statements, what of it is settled): paid, or set off against the other side's work."""
    stated = settled = 0
    rows = database.execute(
        "SELECT signed, (SELECT 1 FROM payment WHERE payment.statement = statement.id) FROM statement "
        "WHERE peer = ? AND unit = ?",
        (peer, unit),
    )
    for signed, paid in rows:
        proposed = decode(_Signed, signed, max_bytes=MAX_STATEMENT_BYTES).proposed
        record = open_verified(Statement, proposed).record
        both = record.earned_proposer + record.earned_other
        stated += both
        settled += both if paid else both - record.net
    return stated, settled


def facts_about(database: sqlite3.Connection, peer: PeerId, unit: str, now_us: int, interval: int) -> Facts:
    """Own dealings with a peer and what others say of it, weighted by dealings with these."""
    opinions = []
    for (signed,) in database.execute("SELECT signed FROM score WHERE subject = ?", (peer,)):
        record = open_verified(Score, from_bytes(signed)).record
        if record.expires_us > now_us:
            rater = PeerId(record.rater)
            opinions.append(
                Opinion(rater, record.score, weight_of(database, rater, unit, now_us), record.issued_us)
            )
    return Facts(dealings_with(database, peer, unit, now_us), opinions, now_us, interval)


def weight_of(database: sqlite3.Connection, rater: PeerId, unit: str, now_us: int) -> int:
    """What a rater settled or countersigned with us, money; nothing where it was proven to lie."""
    dealings = dealings_with(database, rater, unit, now_us)
    return 0 if dealings.proofs else dealings.settled + dealings.countersigned


def peers_dealt_with(database: sqlite3.Connection) -> Iterable[tuple[PeerId, str]]:
    """Every peer and unit in which there is a lease."""
    rows = database.execute("SELECT DISTINCT peer, unit FROM lease ORDER BY peer, unit").fetchall()
    return [(PeerId(peer), unit) for peer, unit in rows]
