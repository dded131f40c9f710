"""The ledger's SQLite file: its tables, how it is opened, and where it refuses to live.

Durability is SQLite's: a write-ahead log with `synchronous=FULL`, so a commit is on the disk when it returns. That
promise needs a local disk with working locks and shared memory, which network filesystems do not give; they are
refused rather than trusted with money.

What the tables are, and how an older file is brought up to date, is in `ledger_schema`.
"""

import os
import sqlite3
import stat
from pathlib import Path

from coppermesh.agent.ledger import LedgerError
from coppermesh.agent.ledger_schema import SCHEMA_VERSION, create, upgrade
from coppermesh.p2p.ids import MeshId, PeerId, short_peer

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


class LedgerUnusable(LedgerError):
    """The ledger's file cannot be used as it is; the text says what to change. Nothing was written."""


class OldLedger(LedgerUnusable):
    """The file is of an older version of this program; opening it for writing brings it up to date."""


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
    if 0 < version < SCHEMA_VERSION:
        raise OldLedger(
            f"{path}: ledger format {version} is older than this program's {SCHEMA_VERSION}: "
            "start the agent once, or run `coppermesh ledger migrate`"
        )
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
        "temp_store=MEMORY",  # what a savepoint may have to undo: else a file is made for it in many commits
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
            create(database, mesh, me)
        elif 0 < version < SCHEMA_VERSION:
            upgrade(database, version)
        check_version(database, path)
        _check_owner(database, path, mesh, me)
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _check_owner(database: sqlite3.Connection, path: Path, mesh: MeshId, me: PeerId) -> None:
    owner = dict(database.execute("SELECT key, value FROM meta").fetchall())
    if owner.get("mesh") != mesh:
        raise LedgerUnusable(f"{path}: this ledger is of another mesh")
    if owner.get("me") != me:
        whose = short_peer(PeerId(owner.get("me", bytes(32))))
        raise LedgerUnusable(f"{path}: this ledger belongs to the key ..{whose}, not to ..{short_peer(me)}")
