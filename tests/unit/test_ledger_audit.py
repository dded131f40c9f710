"""`ledger audit`: a good ledger passes, and each way of tampering with its file is found and named."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from coppermesh.agent.cli import main
from coppermesh.agent.home import Home
from coppermesh.agent.ledger_audit import audit_ledger
from coppermesh.agent.ledger_files import LedgerUnusable, open_database
from coppermesh.agent.rehearsal import make_deal, rehearsal_key
from coppermesh.p2p.envelope import from_bytes, to_bytes
from coppermesh.p2p.ids import format_peer, mesh_id
from coppermesh.p2p.records import SignedRecord

SAVED = Path(__file__).parent / "data" / "ledger_v1.sqlite"
MESH = mesh_id("rehearsal")


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Bought from peer 1 (five receipts, one disputed, one task given up), sold to peer 3 (one not answered)."""
    path = Path(shutil.copy(SAVED, tmp_path / "ledger.sqlite"))
    open_database(path, MESH, rehearsal_key(2).peer).close()  # brings it up to date
    return path


def change(path: Path, *statements: str) -> None:
    """What somebody with the file and no keys can do to it."""
    database = sqlite3.connect(path, isolation_level=None)
    for (trigger,) in database.execute("SELECT name FROM sqlite_schema WHERE type='trigger'").fetchall():
        database.execute(f"DROP TRIGGER {trigger}")
    for statement in statements:
        database.execute(statement)
    database.close()


def rewrite(path: Path, table: str, column: str, edit: Callable[[SignedRecord], SignedRecord]) -> None:
    """Edit the first signed record of a table."""
    database = sqlite3.connect(path, isolation_level=None)
    (data,) = database.execute(f"SELECT {column} FROM {table} LIMIT 1").fetchone()  # noqa: S608
    database.execute(f"DROP TRIGGER {table}_UPDATE")
    database.execute(
        f"UPDATE {table} SET {column}=? WHERE {column}=?",  # noqa: S608 - names are this file's
        (to_bytes(edit(from_bytes(data))), data),
    )
    database.close()


def forged(signed: SignedRecord) -> SignedRecord:
    return SignedRecord(signed.body, signed.signer, signed.signature[:-1] + bytes([signed.signature[-1] ^ 1]))


def test_a_good_ledger_passes_and_is_counted(ledger: Path) -> None:
    report = audit_ledger(ledger)
    assert report.fault is None
    assert report.me == rehearsal_key(2).peer
    assert report.counts["receipt"] == 8
    assert report.counts["countersignature"] == 7
    bought, sold = make_deal(1).provider.peer, rehearsal_key(3).peer
    assert report.balances == {(bought, "usd"): (0, 12), (sold, "usd"): (6, 0)}


@pytest.mark.parametrize(
    ("table", "column", "named"),
    [
        ("lease", "signed", "lease"),
        ("lease", "order_signed", "lease"),
        ("lease", "bid_signed", "lease"),
        ("agreement", "signed", "agreement"),
        ("task", "signed", "task"),
        ("receipt", "signed", "receipt"),
        ("countersignature", "signed", "countersignature"),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_forged_signature_is_found(ledger: Path, table: str, column: str, named: str, threads: int) -> None:
    rewrite(ledger, table, column, forged)
    fault = audit_ledger(ledger, threads).fault
    assert fault is not None
    assert fault.table == named
    assert "signature" in fault.sentence
    assert len(fault.id) == 64


@pytest.mark.parametrize(
    ("statement", "table", "says"),
    [
        ("UPDATE receipt SET amount=amount+1, cumulative=cumulative+1 WHERE n=1", "receipt", "columns"),
        ("UPDATE receipt SET sequence=40 WHERE n=5", "receipt", "columns"),
        (
            "UPDATE countersignature SET accepted_cumulative=accepted_cumulative+5",
            "countersignature",
            "columns",
        ),
        ("UPDATE countersignature SET verdict='accepted' WHERE code!='ok'", "countersignature", "columns"),
        ("UPDATE lease SET role='provider' WHERE role='requester'", "lease", "other peers"),
        ("UPDATE lease SET peer=zeroblob(32)", "lease", "other peers"),
        ("UPDATE lease SET unit='eur'", "lease", "columns"),
        ("UPDATE lease SET bid_signed=x'90'", "lease", "SignedRecord"),
        ("UPDATE task SET job=zeroblob(16) WHERE n=1", "task", "columns"),
        ("UPDATE superseded SET task=(SELECT id FROM task WHERE n=1)", "superseded", "paid all the same"),
        ("DELETE FROM unsettled", "unsettled", "neither"),
        ("DELETE FROM transfer WHERE n=1", "transfer", "as it was accepted"),
        ("UPDATE transfer SET amount=amount+1 WHERE n=1", "transfer", "as it was accepted"),
        ("UPDATE transfer SET debit='paid' WHERE n=1", "transfer", "as it was accepted"),
        (
            "INSERT INTO transfer VALUES(NULL, x'05', 'earned', x'06', 'usd', 'due', 'income', 7)",
            "transfer",
            "without an accepted receipt",
        ),
    ],
)
def test_changed_rows_are_found(ledger: Path, statement: str, table: str, says: str) -> None:
    change(ledger, statement)
    fault = audit_ledger(ledger).fault
    assert fault is not None
    assert fault.table == table
    assert says in fault.sentence


def test_a_missing_receipt_breaks_the_chain(ledger: Path) -> None:
    change(
        ledger,
        "DELETE FROM countersignature WHERE receipt=(SELECT id FROM receipt WHERE n=2)",
        "DELETE FROM receipt WHERE n=2",
    )
    fault = audit_ledger(ledger).fault
    assert fault is not None
    assert fault.sentence == "number 1 of its lane is missing"


def test_a_deleted_countersignature_of_ours_is_found(ledger: Path) -> None:
    change(ledger, "DELETE FROM countersignature WHERE receipt=(SELECT id FROM receipt WHERE n=1)")
    fault = audit_ledger(ledger).fault
    assert fault is not None
    assert fault.sentence == "taken without a countersignature"


def test_a_file_that_is_no_ledger_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database, but long enough to be looked at as one" * 40)
    with pytest.raises(LedgerUnusable):
        audit_ledger(path)


@pytest.fixture
def home(tmp_home: Path, ledger: Path) -> Home:
    """A home with that ledger, whose mesh is configured."""
    found = Home(tmp_home)
    found.config_path.write_text('mesh = "rehearsal"\n')
    shutil.copy(ledger, found.ledger_path(MESH))
    return found


def test_the_command_says_ok_on_one_line(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "audit", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    facts = json.loads(line)
    assert facts["ok"] is True
    assert facts["ledgers"][0]["mesh"] == "rehearsal"
    assert main(["ledger", "audit"]) == 0
    assert "every signature, chain and sum holds" in capsys.readouterr().out


def test_the_command_names_the_fault_and_fails(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(home.ledger_path(MESH), "receipt", "signed", forged)
    assert main(["ledger", "audit", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"] is False
    assert facts["fault"]["table"] == "receipt"
    assert main(["ledger", "audit"]) == 1
    assert "FAULT in receipt" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["not a ledger at all" * 400, "zeros"])
def test_a_damaged_file_is_a_fault_like_any_other(
    home: Home, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    path = home.ledger_path(MESH)
    data = bytearray(path.read_bytes())
    if damage == "zeros":
        data[12_288:40_960] = bytes(28_672)  # some pages in the middle
        path.write_bytes(bytes(data))
    else:
        path.write_text(damage)
    assert main(["ledger", "audit", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"] is False
    assert facts["fault"]["table"] == "file"
    assert facts["fault"]["sentence"]


def test_balances_are_by_peer_mesh_and_unit(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    other = Home(home.path).ledger_path(mesh_id("another"))
    shutil.copy(home.ledger_path(MESH), other)  # the same peers on another mesh: a line of their own
    assert main(["ledger", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 4
    assert {row["mesh"] for row in rows} == {"rehearsal", mesh_id("another").hex()}
    sold = format_peer(rehearsal_key(3).peer)
    line = next(row for row in rows if row["peer"] == sold and row["mesh"] == "rehearsal")
    assert (line["owed_to_me"], line["owed_by_me"], line["net"], line["pending"]) == (6, 0, 6, 3)
    assert main(["ledger", "--mesh", "rehearsal"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3
    assert any("-0.000012" in line and line.endswith("usd") for line in said)


def test_a_home_without_a_ledger_says_so(tmp_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["ledger"], ["ledger", "audit"], ["receipts", "export"]):
        assert main(verb) == 1
        assert "no ledger" in capsys.readouterr().err
