"""The ledger's tables, and how a file of an earlier version becomes one of this.

A new file is made by the same steps that bring an old one up to date, so that both end up the same: the tables of
version 1, then every step after it. A step is a list of statements and runs within the transaction that opens the
ledger: it is done whole or not at all, wherever the machine stops. Steps are never changed once released, only added.

Money tables only grow: triggers refuse UPDATE and DELETE. `unsettled` (what a provider needs to send a result again),
`story` (lines for people) and `score` (what others think) are the only tables in which rows go or change.

Double entry. A row of `transfer` takes `amount` from one account and gives it to another, of one peer and unit, so that
no row can leave the books unbalanced; the view `posting` shows it as two lines that add up to zero. Accounts are
`income` (work done for the peer), `expense` (work it did for us), `due` (accepted and not in a statement: above zero
they owe us), `stated` (in a statement that both signed, not paid yet) and `paid` (what changed hands).
"""

import sqlite3

from coppermesh.p2p.ids import MeshId, PeerId

_APPEND_ONLY_1 = (
    "lease",
    "agreement",
    "lease_end",
    "task",
    "superseded",
    "receipt",
    "countersignature",
    "evidence",
)

_TABLES_1 = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE lease(
  id BLOB PRIMARY KEY, role TEXT NOT NULL CHECK (role IN ('requester', 'provider')), peer BLOB NOT NULL,
  lane BLOB NOT NULL UNIQUE, unit TEXT NOT NULL, signed BLOB NOT NULL, order_signed BLOB NOT NULL,
  bid_signed BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE agreement(
  lease BLOB PRIMARY KEY REFERENCES lease(id), signed BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE lease_end(
  lease BLOB PRIMARY KEY REFERENCES lease(id), code TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE task(
  n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, lease BLOB NOT NULL REFERENCES lease(id),
  number INTEGER NOT NULL CHECK (number >= 0), job BLOB NOT NULL, task_index INTEGER NOT NULL,
  signed BLOB NOT NULL, UNIQUE (lease, number)) STRICT;
CREATE INDEX task_job ON task(job);
CREATE TABLE superseded(
  task BLOB PRIMARY KEY REFERENCES task(id), code TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE receipt(
  n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, lease BLOB NOT NULL REFERENCES lease(id),
  provider BLOB NOT NULL, lane BLOB NOT NULL REFERENCES lease(lane),
  sequence INTEGER NOT NULL CHECK (sequence >= 0), task BLOB NOT NULL REFERENCES task(id),
  amount INTEGER NOT NULL CHECK (amount >= 0), cumulative INTEGER NOT NULL CHECK (cumulative >= amount),
  signed BLOB NOT NULL, UNIQUE (lane, sequence), UNIQUE (provider, lane, sequence)) STRICT;
CREATE INDEX receipt_task ON receipt(task);
CREATE TABLE countersignature(
  receipt BLOB PRIMARY KEY REFERENCES receipt(id), lane BLOB NOT NULL, sequence INTEGER NOT NULL,
  verdict TEXT NOT NULL CHECK (verdict IN ('accepted', 'disputed')), code TEXT NOT NULL,
  accepted_cumulative INTEGER NOT NULL CHECK (accepted_cumulative >= 0), signed BLOB NOT NULL,
  UNIQUE (lane, sequence)) STRICT, WITHOUT ROWID;
CREATE TABLE unsettled(
  receipt BLOB PRIMARY KEY REFERENCES receipt(id), outputs BLOB NOT NULL, sentence TEXT NOT NULL,
  detail TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE evidence(
  n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, kind TEXT NOT NULL, peer BLOB NOT NULL, at_us INTEGER NOT NULL,
  text TEXT NOT NULL, records BLOB NOT NULL) STRICT;
CREATE INDEX evidence_peer ON evidence(peer);
CREATE TABLE story(
  n INTEGER PRIMARY KEY, job BLOB NOT NULL, at_us INTEGER NOT NULL, cause TEXT NOT NULL, kind TEXT NOT NULL,
  peer BLOB, task INTEGER, text TEXT NOT NULL) STRICT;
CREATE INDEX story_job ON story(job);
"""

_TRIGGER = """
CREATE TRIGGER {table}_{verb} BEFORE {verb} ON {table}
BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END;
"""

_STEP_2 = """
CREATE TABLE transfer(
  n INTEGER PRIMARY KEY, source BLOB NOT NULL, kind TEXT NOT NULL CHECK (kind IN ('earned', 'spent', 'stated', 'paid')),
  peer BLOB NOT NULL, unit TEXT NOT NULL, debit TEXT NOT NULL, credit TEXT NOT NULL CHECK (credit <> debit),
  amount INTEGER NOT NULL CHECK (amount > 0), UNIQUE (source, kind)) STRICT;
CREATE INDEX transfer_settling ON transfer(peer, unit) WHERE kind IN ('stated', 'paid');
CREATE VIEW posting AS
  SELECT n, source, kind, peer, unit, debit AS account, amount FROM transfer
  UNION ALL SELECT n, source, kind, peer, unit, credit, -amount FROM transfer;
CREATE TABLE sealed(
  lane BLOB PRIMARY KEY REFERENCES lease(lane), at_us INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO transfer
  SELECT NULL, receipt.id, CASE role WHEN 'provider' THEN 'earned' ELSE 'spent' END, peer, unit,
    CASE role WHEN 'provider' THEN 'due' ELSE 'expense' END, CASE role WHEN 'provider' THEN 'income' ELSE 'due' END,
    amount
  FROM receipt JOIN countersignature ON countersignature.receipt = receipt.id JOIN lease ON lease.id = receipt.lease
  WHERE verdict = 'accepted' AND amount > 0 ORDER BY receipt.n;
"""
"""Double entry; lanes that a restored ledger leaves alone."""
_STEP_3 = """
CREATE TABLE draft(
  id BLOB PRIMARY KEY, peer BLOB NOT NULL, unit TEXT NOT NULL, number INTEGER NOT NULL, expires_us INTEGER NOT NULL,
  signed BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX draft_number ON draft(peer, unit, number);
CREATE TABLE statement(
  id BLOB PRIMARY KEY, peer BLOB NOT NULL, unit TEXT NOT NULL, number INTEGER NOT NULL CHECK (number >= 0),
  net INTEGER NOT NULL, receipts INTEGER NOT NULL, signed BLOB NOT NULL,
  UNIQUE (peer, unit, number)) STRICT, WITHOUT ROWID;
CREATE TABLE covered(
  lane BLOB NOT NULL, start INTEGER NOT NULL CHECK (start >= 0), finish INTEGER NOT NULL CHECK (finish > start),
  statement BLOB NOT NULL REFERENCES statement(id), PRIMARY KEY (lane, start)) STRICT, WITHOUT ROWID;
CREATE INDEX covered_statement ON covered(statement);
CREATE TABLE voucher(
  payer BLOB NOT NULL, payee BLOB NOT NULL, unit TEXT NOT NULL, number INTEGER NOT NULL,
  cumulative INTEGER NOT NULL, signed BLOB NOT NULL, PRIMARY KEY (payer, payee, unit, number)) STRICT, WITHOUT ROWID;
CREATE TABLE payment(
  statement BLOB PRIMARY KEY REFERENCES statement(id), signed BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE payout(
  peer BLOB NOT NULL, sequence INTEGER NOT NULL, signed BLOB NOT NULL,
  PRIMARY KEY (peer, sequence)) STRICT, WITHOUT ROWID;
CREATE TABLE score(
  rater BLOB NOT NULL, subject BLOB NOT NULL, issued_us INTEGER NOT NULL, signed BLOB NOT NULL,
  PRIMARY KEY (rater, subject)) STRICT, WITHOUT ROWID;
"""
"""Statements, what they cover, and how they are settled. `score` holds the newest opinions and may change."""
_STEP_4 = """
CREATE TABLE extension(
  lease BLOB NOT NULL REFERENCES lease(id), number INTEGER NOT NULL CHECK (number >= 1),
  expires_us INTEGER NOT NULL, signed BLOB NOT NULL, agreement BLOB NOT NULL,
  PRIMARY KEY (lease, number)) STRICT, WITHOUT ROWID;
"""
"""Later ends of leases, signed by the requester (`signed`) and the provider (`agreement`)."""
_STEPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (_STEP_2, ("transfer", "sealed")),
    (_STEP_3, ("draft", "statement", "covered", "voucher", "payment", "payout")),
    (_STEP_4, ("extension",)),
)
"""From version 1 on: what leads to the next version, and which new tables only grow."""
SCHEMA_VERSION = 1 + len(_STEPS)


def create(database: sqlite3.Connection, mesh: MeshId, me: PeerId) -> None:
    """Make the tables of an empty file, within the caller's transaction."""
    _run(database, _TABLES_1)
    _protect(database, _APPEND_ONLY_1)
    database.executemany("INSERT INTO meta VALUES(?, ?)", (("mesh", mesh), ("me", me)))
    upgrade(database, 1)


def upgrade(database: sqlite3.Connection, version: int) -> None:
    """Bring a file of `version` up to date, within the caller's transaction."""
    for statements, append_only in _STEPS[version - 1 :]:
        _run(database, statements)
        _protect(database, append_only)
    database.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _run(database: sqlite3.Connection, statements: str) -> None:
    # One by one: executescript would commit first, and a crash in between would leave half a schema.
    for statement in statements.strip().split(";\n"):
        database.execute(statement)


def _protect(database: sqlite3.Connection, tables: tuple[str, ...]) -> None:
    for table in tables:
        for verb in ("UPDATE", "DELETE"):
            database.execute(_TRIGGER.format(table=table, verb=verb))
