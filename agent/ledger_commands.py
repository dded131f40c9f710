"""`coppermesh ledger`: facts for `--json` and lines for people, read from the files without an agent."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coppermesh.agent.clock import now_us
from coppermesh.agent.config import load_config
from coppermesh.agent.home import Home
from coppermesh.agent.ledger import LedgerError
from coppermesh.agent.ledger_audit import AuditReport, audit_ledger
from coppermesh.agent.ledger_backup import back_up, open_any_version
from coppermesh.agent.ledger_backup import restore as put_back
from coppermesh.agent.ledger_files import OldLedger, open_database
from coppermesh.agent.ledger_reader import LedgerReader
from coppermesh.agent.ledger_scan import LedgerPlace, find_ledgers, scan_ledger
from coppermesh.agent.local_link import MESH
from coppermesh.agent.mesh_state import id_of
from coppermesh.agent.screens import counted, number, table
from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.ids import MeshId, PeerId, format_peer
from coppermesh.p2p.signing import PeerKey

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
                "stated": line.stated,
                "paid": line.paid,
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
            *(number(row[name]) for name in ("owed_to_me", "owed_by_me", "net", "pending", "disputed")),
            number(row["stated"]),
            number(row["paid"]),
            row["unit"],
        )
        for row in rows
    ]
    headings = ("PEER", "MESH", "OWES ME", "I OWE", "NET", "UNANSWERED", "DISPUTED", "STATED", "PAID", "UNIT")
    return table(headings, cells, right=(2, 3, 4, 5, 6, 7, 8))


def audit(home: Home, mesh: str | None = None) -> dict[str, Any]:
    """Check the home's ledgers; `ok` is true where every one of them holds. Raises NoLedger, LedgerError."""
    started = time.perf_counter()
    ledgers = [_audit_one(place) for place in find_ledgers(home, mesh)]
    bad = [facts for facts in ledgers if facts["fault"] is not None]
    return {
        "ok": not bad,
        "fault": bad[0]["fault"] if bad else None,
        "ledgers": ledgers,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _audit_one(place: LedgerPlace) -> dict[str, Any]:
    """A file that cannot even be read is a fault, too; one of an older version is not, and raises OldLedger."""
    try:
        return _audit_facts(place, audit_ledger(place.path))
    except OldLedger:
        raise
    except LedgerError as error:
        fault = {"table": "file", "id": "", "sentence": str(error), "mesh": place.name}
        return {"mesh": place.name, "peer": None, "path": str(place.path), "checked": {}, "fault": fault}


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


def one_ledger(home: Home, mesh: str | None) -> LedgerPlace:
    """The ledger of the mesh that was named, else of the configured one. Raises NoLedger."""
    return find_ledgers(home, mesh or os.environ.get(MESH) or load_config(home).mesh)[0]


def backup(home: Home, target: Path, mesh: str | None, *, force: bool) -> dict[str, Any]:
    """Copy one mesh's ledger to a file and check the copy. Raises BackupFailed, LedgerError."""
    place = one_ledger(home, mesh)
    made = back_up(place.path, target, force=force)
    sentence = f"{counted(made.receipts, 'receipt')} of mesh {place.name} checked and kept in {made.path}; "
    sentence += "the key that they were signed with is not in it: keep a copy of it apart"
    facts = {"mesh": place.name, "file": str(made.path), "receipts": made.receipts, "bytes": made.bytes}
    return {**facts, "sentence": sentence}


def restore(home: Home, source: Path, mesh: str | None) -> dict[str, Any]:
    """Put a backup in the place of one mesh's ledger. Raises BackupFailed, HomeLocked while an agent runs."""
    name = mesh or os.environ.get(MESH) or load_config(home).mesh
    of_mesh = id_of(home, name)
    with home.lock():
        key = PeerKey.load(home.key_path(of_mesh))
        path = home.ledger_path(of_mesh)
        done = put_back(source, path, of_mesh, key.peer, now_us())
    kept = "" if done.replaced is None else f"; what was there is {done.replaced}"
    sentence = f"{counted(done.receipts, 'receipt')} back in the ledger of mesh {name}; "
    sentence += f"{counted(done.sealed, 'lane')} sealed, later work is done on new ones{kept}"
    replaced = None if done.replaced is None else str(done.replaced)
    facts = {"mesh": name, "receipts": done.receipts, "sealed": done.sealed, "replaced": replaced}
    return {**facts, "sentence": sentence}


def migrate(home: Home, mesh: str | None) -> dict[str, Any]:
    """Bring ledgers of an older version up to date. Raises LedgerUnusable, HomeLocked while an agent runs."""
    with home.lock():
        places = find_ledgers(home, mesh)
        for place in places:
            database = open_any_version(place.path)
            owner = dict(database.execute("SELECT key, value FROM meta").fetchall())
            database.close()
            if not {"mesh", "me"} <= set(owner):
                raise MeshError(f"{place.path} is no ledger")
            open_database(place.path, MeshId(owner["mesh"]), PeerId(owner["me"])).close()
    said = counted(len(places), "ledger")
    return {"ledgers": len(places), "sentence": f"{said} up to date"}
