"""A ledger of the first version, as that program wrote it, becomes one of today's: whole or not at all."""

import shutil
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from coppermesh.agent import ledger_schema
from coppermesh.agent.cli import main
from coppermesh.agent.home import Home
from coppermesh.agent.ledger import CountersignatureReceived, TaskIssued, TaskTaken
from coppermesh.agent.ledger_audit import audit_ledger
from coppermesh.agent.ledger_book import LedgerBook
from coppermesh.agent.ledger_files import LedgerUnusable, OldLedger, open_database
from coppermesh.agent.ledger_schema import SCHEMA_VERSION
from coppermesh.agent.ledger_store import read_ledger
from coppermesh.agent.receipts import LaneHead
from coppermesh.agent.rehearsal import issue, make_deal, rehearsal_key, settle
from coppermesh.p2p.ids import mesh_id

SAVED = Path(__file__).parent / "data" / "ledger_v1.sqlite"
MESH, ME = mesh_id("rehearsal"), rehearsal_key(2).peer


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copy(SAVED, tmp_path / "ledger.sqlite"))


def tables_of(path: Path) -> list[tuple[str, str]]:
    with sqlite3.connect(path) as database:
        found = database.execute(
            "SELECT name, sql FROM sqlite_schema WHERE sql NOT NULL ORDER BY name"
        ).fetchall()
    database.close()
    return found


def test_an_old_file_becomes_what_a_new_one_is(old: Path, tmp_path: Path) -> None:
    open_database(old, MESH, ME).close()
    open_database(tmp_path / "new.sqlite", MESH, ME).close()
    assert tables_of(old) == tables_of(tmp_path / "new.sqlite")
    assert audit_ledger(old).fault is None


def test_the_old_file_has_the_tables_of_version_1(old: Path) -> None:
    with sqlite3.connect(old) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1,)
    database.close()
    expected = {statement.strip() for statement in ledger_schema._TABLES_1.strip().split(";\n")}
    expected |= {
        ledger_schema._TRIGGER.format(table=table, verb=verb).strip().rstrip(";")
        for table in ledger_schema._APPEND_ONLY_1
        for verb in ("UPDATE", "DELETE")
    }
    assert {sql for _, sql in tables_of(old)} == {text.rstrip(";") for text in expected}


def test_its_books_are_filled_from_what_was_accepted(old: Path) -> None:
    database = open_database(old, MESH, ME)
    sums: Counter[tuple[bytes, str, str]] = Counter()
    for peer, unit, account, amount in database.execute("SELECT peer, unit, account, amount FROM posting"):
        sums[(peer, unit, account)] += amount
    bought, sold = rehearsal_key(1).peer, rehearsal_key(3).peer
    assert sums == {
        (bought, "usd", "expense"): 12,
        (bought, "usd", "due"): -12,
        (sold, "usd", "due"): 6,
        (sold, "usd", "income"): -6,
    }
    assert (
        database.execute(
            "SELECT source, sum(amount) FROM posting GROUP BY n HAVING sum(amount) <> 0"
        ).fetchall()
        == []
    )
    database.close()
    with read_ledger(old) as reader:
        assert {(line.owed_to_me, line.owed_by_me, line.net) for line in reader.balances()} == {
            (0, 12, -12),
            (6, 0, 6),
        }
        assert reader.mesh == MESH


def test_work_goes_on_where_the_old_program_left_it(old: Path) -> None:
    book = LedgerBook(open_database(old, MESH, ME), ME)
    bought, sold = make_deal(1), make_deal(2, provider=2, requester=3)
    head = book.head(bought.lease.record.lane)
    task = bought.task(6)
    receipt = bought.receipt(task, head)
    assert book.commit_group([(TaskIssued(task.signed), settle(receipt, bought.answer(receipt, head)))]) == [
        None
    ]
    waiting = book.receipt_at(sold.lease.record.lane, 2)
    assert waiting is not None
    answer = sold.answer(waiting.opened, LaneHead(2, waiting.opened.id, 6, 6))
    assert book.commit_group([(CountersignatureReceived(answer.signed),)]) == [None]
    fresh = make_deal(7, provider=2, requester=3)
    task = fresh.task(0)
    entries = (fresh.granted(), TaskTaken(task.signed), issue(fresh.receipt(task, LaneHead())))
    assert book.commit_group([entries]) == [None]
    book.close()
    assert audit_ledger(old).fault is None


def test_a_step_that_fails_changes_nothing(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tables_of(old)
    steps = ledger_schema._STEPS
    monkeypatch.setattr(ledger_schema, "_STEPS", (*steps, ("CREATE TABLE half(x);\nNOT SQL", ())))
    with pytest.raises(LedgerUnusable):
        open_database(old, MESH, ME)
    monkeypatch.undo()
    assert tables_of(old) == before
    open_database(old, MESH, ME).close()
    assert audit_ledger(old).fault is None


@pytest.mark.parametrize(
    "statement", ["UPDATE transfer SET amount=1", "DELETE FROM transfer", "DELETE FROM sealed"]
)
def test_the_books_only_grow(old: Path, statement: str) -> None:
    database = open_database(old, MESH, ME)
    database.execute("INSERT INTO sealed SELECT lane, 1 FROM lease")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        database.execute(statement)
    database.close()


@pytest.mark.parametrize(
    "row",
    [
        "'earned', x'00', 'usd', 'due', 'due', 5",
        "'earned', x'00', 'usd', 'due', 'income', 0",
        "'earned', x'00', 'usd', 'due', 'income', -5",
        "'gift', x'00', 'usd', 'due', 'income', 5",
        "'earned', x'00', 'usd', 'due', 'income', 1.5",
    ],
)
def test_a_transfer_that_would_unbalance_the_books_is_refused(old: Path, row: str) -> None:
    database = open_database(old, MESH, ME)
    with pytest.raises(sqlite3.IntegrityError):
        database.execute(f"INSERT INTO transfer VALUES(NULL, x'01', {row})")
    database.close()


def test_reading_verbs_say_how_to_migrate_and_the_verb_does(
    old: Path, tmp_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home(tmp_home)
    home.config_path.write_text('mesh = "rehearsal"\n')
    shutil.copy(old, home.ledger_path(MESH))
    with pytest.raises(OldLedger), read_ledger(home.ledger_path(MESH)):
        pass
    assert main(["ledger"]) == 1
    assert "coppermesh ledger migrate" in capsys.readouterr().err
    assert main(["ledger", "migrate"]) == 0
    assert main(["ledger", "audit"]) == 0
    assert "every signature, chain and sum holds" in capsys.readouterr().out
    with sqlite3.connect(home.ledger_path(MESH)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    database.close()
