"""`coppermesh ledger`: facts for `--json` and lines for people, read from the files without an agent."""

import time
from collections.abc import Mapping
from typing import Any

from coppermesh.agent.home import Home
from coppermesh.agent.ledger_audit import AuditReport, audit_ledger
from coppermesh.agent.ledger_reader import LedgerReader
from coppermesh.agent.ledger_scan import LedgerPlace, find_ledgers, scan_ledger
from coppermesh.agent.screens import counted, money, table
from coppermesh.p2p.ids import format_peer

Facts = Mapping[str, Any]


def balances(home: Home, mesh: str | None = None) -> list[dict[str, Any]]:
    """What stands with each peer, by mesh and unit; nothing is added across them. Raises NoLedger."""
    rows = []
    for place in find_ledgers(home, mesh):
        with scan_ledger(place.path) as database:
            database.execute("COMMIT")  # the reader begins a transaction of its own
            found = LedgerReader(database).balances()
        rows += [
            {
                "mesh": place.name,
                "peer": format_peer(line.peer),
                "unit": line.unit,
                "owed_to_me": line.owed_to_me,
                "owed_by_me": line.owed_by_me,
                "net": line.net,
                "pending": line.pending,
                "disputed": line.disputed,
            }
            for line in found
        ]
    return rows


def balance_lines(rows: list[dict[str, Any]]) -> list[str]:
    """`coppermesh ledger`. One line a peer, mesh and unit."""
    if not rows:
        return []
    cells = [
        (
            row["peer"][-8:],
            row["mesh"],
            money(row["owed_to_me"], row["unit"]),
            money(row["owed_by_me"], row["unit"]),
            signed_money(row["net"], row["unit"]),
            money(row["pending"], row["unit"]),
            money(row["disputed"], row["unit"]),
        )
        for row in rows
    ]
    headings = ("PEER", "MESH", "OWES ME", "I OWE", "NET", "NOT ANSWERED", "DISPUTED")
    return table(headings, cells, right=(2, 3, 4, 5, 6))


def signed_money(amount: int, unit: str) -> str:
    """An amount that may be below zero: `-0.000123 usd`."""
    return ("-" if amount < 0 else "") + money(abs(amount), unit)


def audit(home: Home, mesh: str | None = None) -> dict[str, Any]:
    """Check the home's ledgers; `ok` is true where every one of them holds. Raises NoLedger, LedgerError."""
    started = time.perf_counter()
    ledgers = [_audit_facts(place, audit_ledger(place.path)) for place in find_ledgers(home, mesh)]
    bad = [facts for facts in ledgers if facts["fault"] is not None]
    return {
        "ok": not bad,
        "fault": bad[0]["fault"] if bad else None,
        "ledgers": ledgers,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _audit_facts(place: LedgerPlace, report: AuditReport) -> dict[str, Any]:
    fault = report.fault
    return {
        "mesh": place.name,
        "peer": format_peer(report.me),
        "path": str(place.path),
        "checked": report.counts,
        "fault": None
        if fault is None
        else {"table": fault.table, "id": fault.id, "sentence": fault.sentence, "mesh": place.name},
    }


def audit_lines(facts: Facts) -> list[str]:
    """`coppermesh ledger audit`."""
    lines = []
    for ledger in facts["ledgers"]:
        counts = ", ".join(
            counted(count, name.replace("_", " ")) for name, count in ledger["checked"].items()
        )
        lines.append(f"mesh {ledger['mesh']}: checked {counts or 'an empty ledger'}")
        if ledger["fault"] is not None:
            fault = ledger["fault"]
            lines.append(f"  FAULT in {fault['table']} {fault['id'][:16]}: {fault['sentence']}")
    if facts["ok"]:
        lines.append(f"every signature, chain and sum holds ({facts['seconds']:.1f} s)")
    else:
        lines.append(
            "NOT RIGHT: the first fault is named; keep a copy of the file before anything is changed"
        )
    return lines
