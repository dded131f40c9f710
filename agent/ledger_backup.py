"""Backing a ledger up, and putting a backup in its place so that its owner stays honest.

Theory of operation
-------------------
A backup is a copy as of one moment, made by SQLite itself while an agent may go on writing. It is checked from the
ground up before it counts as one, and again before it is put back.

A restored ledger has forgotten what was signed after the backup was taken. Were it to go on where the backup ends, an
honest peer would sign a second receipt for a place on a lane, or a second answer to a receipt, and its partners would
hold proofs against it. So a restore *seals* every lane that it brings back: nothing is signed on it any more, its
leases are ended, and all later work is done under new leases, which have lanes of their own (16 random bytes). What the
other side has from after the backup stays with it; `ledger compare` shows the difference.

The file that was there is kept beside, as `ledger.sqlite.replaced-...`. The new one is written, synced and renamed over
the old name, so that a crash leaves either the old ledger or the new one.
"""

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from coppermesh.agent.ledger import LedgerError
from coppermesh.agent.ledger_audit import audit_ledger
from coppermesh.agent.ledger_book import explain_failure
from coppermesh.agent.ledger_files import FILE_MODE, open_database, open_for_reading
from coppermesh.p2p.ids import MeshId, PeerId

PAGES_AT_ONCE = 1024
"""Copied between two looks at what else wants the file: 4 MiB."""


class BackupFailed(LedgerError):
    """A backup could not be made or put back; nothing was changed. The text says why."""


@dataclass(frozen=True, slots=True)
class Backup:
    """A copy that was checked."""

    path: Path
    receipts: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Restored:
    """A backup that is the ledger now."""

    receipts: int
    sealed: int
    """Lanes that nothing is signed on any more."""
    replaced: Path | None
    """Where the ledger is that was there before."""


def back_up(ledger: Path, target: Path, *, force: bool = False) -> Backup:
    """Copy the ledger as of now to `target` (0600) and check the copy. An agent may be running.

    Raises BackupFailed where it cannot be written or does not hold, LedgerError where the ledger cannot be read.
    """
    if target.exists() and not force:
        raise BackupFailed(f"{target} exists: name another file, or add --force")
    part = target.with_name(f".{target.name}.part")
    try:
        with closing(open_for_reading(ledger)) as source:
            _copy(source, part)
        receipts = _checked(part)
        _put_in_place(part, target)
        return Backup(target, receipts, target.stat().st_size)
    except OSError as error:
        raise BackupFailed(f"{target} cannot be written: {error.strerror}") from error
    finally:
        _remove(part)


def restore(backup: Path, ledger: Path, mesh: MeshId, me: PeerId, now_us: int) -> Restored:
    """Put `backup` in the place of `ledger`, with all its lanes sealed. Hold the home's lock: no agent may run.

    Raises BackupFailed where it is of another mesh or key, or does not hold; the ledger is as it was then.
    """
    part = ledger.with_name(f"{ledger.name}.restoring")
    _remove(part)
    try:
        with closing(open_any_version(backup)) as source:
            _require_owner(source, backup, mesh, me)
            _copy(source, part)
        sealed = _seal(part, mesh, me, now_us)
        receipts = _checked(part)
        replaced = _set_aside(ledger, now_us)
        _put_in_place(part, ledger)
        return Restored(receipts, sealed, replaced)
    except OSError as error:
        raise BackupFailed(f"{ledger} cannot be written: {error.strerror}") from error
    except sqlite3.Error as error:
        raise BackupFailed(f"{backup} cannot be put back: {explain_failure(error)}") from error
    finally:
        _remove(part)


def open_any_version(path: Path) -> sqlite3.Connection:
    """A read-only connection to a file that may be of an older version. Raises BackupFailed."""
    if not path.is_file():
        raise BackupFailed(f"{path}: there is no such file")
    try:
        database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        database.execute("SELECT value FROM meta WHERE key='me'").fetchone()
    except sqlite3.Error as error:
        raise BackupFailed(f"{path} is no ledger: {error}") from error
    return database


def _copy(source: sqlite3.Connection, target: Path) -> None:
    descriptor = os.open(
        target, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE
    )
    os.close(descriptor)
    with closing(sqlite3.connect(target, isolation_level=None)) as copy:
        try:
            source.backup(copy, pages=PAGES_AT_ONCE)
        except sqlite3.Error as error:
            raise BackupFailed(f"{target}: {explain_failure(error)}") from error
        # One file, without a log beside it.
        copy.execute("PRAGMA journal_mode=DELETE")


def _checked(path: Path) -> int:
    """How many receipts a copy has. Raises BackupFailed where it does not hold."""
    report = audit_ledger(path)
    if report.fault is not None:
        fault = report.fault
        raise BackupFailed(f"the copy does not hold: {fault.table} {fault.id[:16]}: {fault.sentence}")
    return report.counts.get("receipt", 0)


def _require_owner(source: sqlite3.Connection, path: Path, mesh: MeshId, me: PeerId) -> None:
    owner = dict(source.execute("SELECT key, value FROM meta").fetchall())
    if owner.get("mesh") != mesh:
        raise BackupFailed(f"{path} is the ledger of another mesh: name that one with --mesh")
    if owner.get("me") != me:
        raise BackupFailed(
            f"{path} belongs to another key than this home's: put the key of its mesh back first"
        )


def _seal(path: Path, mesh: MeshId, me: PeerId, now_us: int) -> int:
    """Bring the copy up to date, end its leases and seal its lanes; returns how many lanes are sealed."""
    with closing(open_database(path, mesh, me)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.execute(
            "INSERT INTO lease_end SELECT id, 'restored' FROM lease WHERE id NOT IN (SELECT lease FROM lease_end)"
        )
        database.execute("INSERT OR IGNORE INTO sealed SELECT lane, ? FROM lease", (now_us,))
        database.execute("INSERT OR REPLACE INTO meta VALUES('restored_us', ?)", (now_us.to_bytes(8, "big"),))
        (sealed,) = database.execute("SELECT count(*) FROM sealed").fetchone()
        database.execute("COMMIT")
        database.execute("PRAGMA journal_mode=DELETE")
    return int(sealed)


def _set_aside(ledger: Path, now_us: int) -> Path | None:
    """Give the ledger that is there a second name, with all that its log holds in it."""
    if not ledger.exists():
        return None
    stamp = datetime.fromtimestamp(now_us / 1e6, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    kept = ledger.with_name(f"{ledger.name}.replaced-{stamp}")
    while kept.exists():  # a clock that stands still
        kept = kept.with_name(f"{kept.name}+")
    # What is in the log must be in the ledger before the log goes: whenever the machine stops, the ledger is whole.
    written_back = _write_back(ledger)
    os.link(ledger, kept)
    for suffix in ("-wal", "-shm"):
        beside = ledger.with_name(ledger.name + suffix)
        if not beside.exists():
            continue
        if not written_back:
            copy = kept.with_name(kept.name + suffix)
            shutil.copyfile(beside, copy)
            copy.chmod(FILE_MODE)
            _sync(copy)
        beside.unlink()
    return kept


def _write_back(ledger: Path) -> bool:
    """Move all of the log into the ledger. False for one that is too damaged: it cannot be opened in any case.

    Raises BackupFailed while somebody reads it, sqlite3.Error where the disk fails.
    """
    try:
        with closing(sqlite3.connect(ledger, isolation_level=None)) as database:
            (busy, *_) = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.DatabaseError as error:
        if not (getattr(error, "sqlite_errorname", "") or "").startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            raise
        return False
    if busy:
        raise BackupFailed(f"{ledger} is being read: end `coppermesh ledger` and exports, then try again")
    return True


def _put_in_place(part: Path, target: Path) -> None:
    """Rename once the bytes are on the disk, and the name after them."""
    _sync(part)
    part.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(part: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        part.with_name(part.name + suffix).unlink(missing_ok=True)
