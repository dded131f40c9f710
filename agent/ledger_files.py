"""The ledger's SQLite file: its tables, how it is opened, and where it refuses to live.

Durability is SQLite's: a write-ahead log with `synchronous=FULL`, so a commit is on the disk when it returns. That
promise needs a local disk with working locks and shared memory, which network filesystems do not give; they are
refused rather than trusted with money.

Money tables only grow: triggers refuse UPDATE and DELETE. `unsettled` (what a provider needs to send a result again)
and `story` (lines for people) are the only tables from which rows go.
"""

import os
import sqlite3
import stat
from pathlib import Path

from coppermesh.agent.ledger import LedgerError
from coppermesh.p2p.ids import MeshId, PeerId, short_peer

SCHEMA_VERSION = 1
FILE_MODE = 0o600
BUSY_MS = 5_000
"""How long one connection waits for another's lock, in milliseconds."""
LOG_KEEP_BYTES = 64 << 20

_NETWORK_FILESYSTEMS = frozenset(
    [
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "davfs",
        "fuse",
        "gfs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "prl_fs",
        "smb2",
        "smb3",
        "smbfs",
        "vboxsf",
        "virtiofs",
        "vmhgfs",
    ]
)
"""Types in /proc/self/mountinfo; `fuse` and `fuse.*` too, since SQLite's shared memory fails on many of them."""

_APPEND_ONLY = [
    "lease",
    "agreement",
    "lease_end",
    "task",
    "superseded",
    "receipt",
    "countersignature",
    "evidence",
]

_TABLES = """
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


class LedgerUnusable(LedgerError):
    """The ledger's file cannot be used as it is; the text says what to change. Nothing was written."""


def open_database(path: Path, mesh: MeshId, me: PeerId) -> sqlite3.Connection:
    """The ledger at `path` for writing, made where it is missing. Use it from one thread at a time.

    Raises LedgerUnusable: on a network filesystem, another's file, a newer version, another mesh or peer, or damage.
    """
    refuse_network_filesystem(path)
    _claim_file(path)
    try:
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    except sqlite3.Error as error:
        raise LedgerUnusable(f"{path}: {error}") from error
    try:
        _prepare(database, path, mesh, me)
    except sqlite3.Error as error:
        database.close()
        raise LedgerUnusable(f"{path}: cannot be used as a ledger: {error}") from error
    except BaseException:
        database.close()
        raise
    return database


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A read-only connection to an existing ledger. Raises LedgerUnusable where there is none that can be read."""
    if not path.is_file():
        raise LedgerUnusable(f"{path}: there is no ledger here yet")
    address = f"{path.resolve().as_uri()}?mode=ro"
    try:
        database = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise LedgerUnusable(f"{path}: {error}") from error
    try:
        database.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        check_version(database, path)
    except sqlite3.Error as error:
        database.close()
        raise LedgerUnusable(f"{path}: cannot be read as a ledger: {error}") from error
    except BaseException:
        database.close()
        raise
    return database


def check_version(database: sqlite3.Connection, path: Path) -> None:
    """Raises LedgerUnusable where the file's schema is not this program's."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        raise LedgerUnusable(
            f"{path}: ledger format {version}, this program reads {SCHEMA_VERSION}: use the version that wrote it"
        )


def network_filesystem(mountinfo: str, path: str) -> str | None:
    """The type of the network filesystem that the absolute, resolved `path` lies on; None where it is a local one.

    `mountinfo` is the text of /proc/self/mountinfo (proc(5)): the fifth field is the mount point, the type follows
    the lone hyphen. Later lines mount over earlier ones.
    """
    longest, found = -1, ""
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if "-" not in fields[6:] or len(fields) < 5:
            continue
        point = _unescape(fields[4])
        kind = fields[fields.index("-", 6) + 1]
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:
            longest, found = len(point), kind
    networked = found in _NETWORK_FILESYSTEMS or found.startswith("fuse.")
    return found if networked else None


def refuse_network_filesystem(path: Path) -> None:
    """Raises LedgerUnusable where `path` lies on a network filesystem. Knows only Linux; elsewhere it lets pass."""
    try:
        mountinfo = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return
    kind = network_filesystem(mountinfo, str(path.resolve()))
    if kind is not None:
        raise LedgerUnusable(
            f"{path} is on a network filesystem ({kind}), where a commit may be lost or torn: "
            "set COPPERMESH_HOME to a directory on a local disk"
        )


def _unescape(field: str) -> str:
    """proc(5) writes space, tab, newline and backslash as three octal digits."""
    for octal, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(octal, character)
    return field


def _claim_file(path: Path) -> None:
    """Makes the file before SQLite does, so that it and the log beside it are never readable by others."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        raise LedgerUnusable(f"{path}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise LedgerUnusable(f"{path}: not a file of this user")
        if stat.S_IMODE(status.st_mode) != FILE_MODE:
            os.fchmod(descriptor, FILE_MODE)
    finally:
        os.close(descriptor)


def _prepare(database: sqlite3.Connection, path: Path, mesh: MeshId, me: PeerId) -> None:
    (mode,) = database.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":
        raise LedgerUnusable(f"{path}: no write-ahead log is possible here (SQLite says {mode!r})")
    for pragma in (
        "synchronous=FULL",
        "foreign_keys=ON",
        "trusted_schema=OFF",
        f"busy_timeout={BUSY_MS}",
        f"journal_size_limit={LOG_KEEP_BYTES}",
    ):
        database.execute(f"PRAGMA {pragma}")
    database.execute("BEGIN IMMEDIATE")
    try:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if version == 0 and tables == 0:
            _create(database, mesh, me)
        check_version(database, path)
        _check_owner(database, path, mesh, me)
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _create(database: sqlite3.Connection, mesh: MeshId, me: PeerId) -> None:
    triggers = (
        _TRIGGER.format(table=table, verb=verb) for table in _APPEND_ONLY for verb in ("UPDATE", "DELETE")
    )
    # One by one: executescript would commit first, and a crash in between would leave half a schema.
    for statement in _TABLES.strip().split(";\n"):
        database.execute(statement)
    for trigger in triggers:
        database.execute(trigger)
    database.executemany("INSERT INTO meta VALUES(?, ?)", (("mesh", mesh), ("me", me)))
    database.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _check_owner(database: sqlite3.Connection, path: Path, mesh: MeshId, me: PeerId) -> None:
    owner = dict(database.execute("SELECT key, value FROM meta").fetchall())
    if owner.get("mesh") != mesh:
        raise LedgerUnusable(f"{path}: this ledger is of another mesh")
    if owner.get("me") != me:
        whose = short_peer(PeerId(owner.get("me", bytes(32))))
        raise LedgerUnusable(f"{path}: this ledger belongs to the key ..{whose}, not to ..{short_peer(me)}")
