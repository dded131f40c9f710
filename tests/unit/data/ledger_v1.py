"""Writes `ledger_v1.sqlite`, a ledger as the first version of the program left it: python tests/unit/data/ledger_v1.py

The file in the repository was first written by that program. When a record of the wire gains a field, its bytes can no
longer be read and the file is written again: by today's code, less everything that later versions of the schema added.
The tables are then, to the letter, those of version 1 (`test_ledger_schema.py` compares them).
"""

import sqlite3
import sys
from pathlib import Path

from coppermesh.agent.ledger import (
    CountersignatureReceived,
    Entry,
    EvidenceFound,
    LeaseEnded,
    TaskIssued,
    TaskSuperseded,
    TaskTaken,
)
from coppermesh.agent.ledger_book import LedgerBook
from coppermesh.agent.ledger_files import open_database
from coppermesh.agent.ledger_schema import _TABLES_1
from coppermesh.agent.receipts import LaneHead
from coppermesh.agent.rehearsal import START_US, issue, make_deal, rehearsal_key, run_facts, settle
from coppermesh.agent.story import StoryLine
from coppermesh.p2p.ids import mesh_id

PATH = Path(__file__).with_name("ledger_v1.sqlite")
ME = rehearsal_key(2).peer


def main(path: Path) -> None:
    path.unlink(missing_ok=True)
    book = LedgerBook(open_database(path, mesh_id("rehearsal"), ME), ME)
    buy(book)
    sell(book)
    go_back(book._database)
    book.close()


def commit(book: LedgerBook, *entries: Entry) -> None:
    for outcome in book.commit_group([entries]):
        if outcome is not None:
            raise outcome


def buy(book: LedgerBook) -> None:
    """From peer 1: five receipts, the third disputed; one task given up; a proof against it."""
    deal = make_deal(1)
    commit(book, deal.offered(), deal.answered())
    head = LaneHead()
    first = None
    for number in range(5):
        task = deal.task(number)
        receipt = deal.receipt(task, head, run_facts(2500 + number))
        first = first or receipt
        answer = deal.answer(receipt, head, "overbilled" if number == 2 else "ok")
        commit(book, TaskIssued(task.signed))
        commit(book, settle(receipt, answer))
        head = head.after(receipt, answer.record.accepted_cumulative)
    task = deal.task(5)
    commit(book, TaskIssued(task.signed))
    commit(book, TaskSuperseded(task.id, "superseded"))
    twin = deal.receipt(deal.task(0), LaneHead(), run_facts(9999))
    assert first is not None
    records = (first.signed, twin.signed)
    text = "signed two receipts for one place on its lane"
    commit(book, EvidenceFound("equivocation", deal.provider.peer, records, START_US, text))
    commit(
        book, StoryLine((1).to_bytes(16, "big"), START_US, "order 1", "note", deal.provider.peer, 0, "a line")
    )


def sell(book: LedgerBook) -> None:
    """To peer 3: three receipts, the last not countersigned."""
    deal = make_deal(2, provider=2, requester=3)
    commit(book, deal.granted())
    head = LaneHead()
    for number in range(3):
        task = deal.task(number, job=2)
        receipt = deal.receipt(task, head)
        commit(book, TaskTaken(task.signed))
        commit(book, issue(receipt))
        answer = deal.answer(receipt, head)
        if number < 2:
            commit(book, CountersignatureReceived(answer.signed))
        head = head.after(receipt, answer.record.accepted_cumulative)
    commit(book, LeaseEnded(deal.lease.id, "expired"))


def go_back(database: sqlite3.Connection) -> None:
    """Take away what later versions added."""
    of_first = {
        line.split()[2].partition("(")[0] for line in _TABLES_1.splitlines() if line.startswith("CREATE")
    }
    database.execute("PRAGMA foreign_keys=OFF")
    added = database.execute("SELECT type, name, tbl_name FROM sqlite_schema WHERE sql NOT NULL").fetchall()
    for kind in ("trigger", "view", "index", "table"):
        for of_kind, name, table in added:
            if of_kind == kind and name not in of_first and (kind != "trigger" or table not in of_first):
                database.execute(f"DROP {kind} {name}")
    database.execute("PRAGMA user_version=1")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.execute("VACUUM")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PATH)
