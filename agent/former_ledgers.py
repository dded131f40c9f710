"""Ledgers of keys that a home had on a mesh before: kept readable beside the one of its present key.

Who leaves a private mesh, or is revoked, and joins again does so under a new key, since the old one stays revoked. A
ledger belongs to one key for good, so the old one moves to `meshes/<id>/as-<peer id>/`. It is still listed, audited and
exported (`ledger_scan`); nothing is written to it any more.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from coppermesh.agent.home import Home
from coppermesh.agent.ledger import LedgerError
from coppermesh.agent.ledger_backup import open_any_version
from coppermesh.agent.ledger_files import open_database, refuse_network_filesystem
from coppermesh.agent.ledger_scan import FORMER
from coppermesh.p2p.ids import MeshId, PeerId, format_peer


def make_way(home: Home, mesh: MeshId, me: PeerId) -> Path | None:
    """Have a ledger of an earlier key give its place to that of `me`; returns where it is now, None if there was none.

    Raises LedgerError where `me` could not keep a ledger there; nothing was moved then. Hold the home's lock, or serve
    no such mesh.
    """
    path = home.ledger_path(mesh)
    refuse_network_filesystem(path)
    if not path.exists():
        return None
    with closing(open_any_version(path)) as database:
        owner = database.execute("SELECT value FROM meta WHERE key='me'").fetchone()
    if owner is None or owner[0] == me:
        open_database(path, mesh, me).close()  # says what is wrong with it, if anything
        return None
    return _move(path, path.parent / f"{FORMER}{format_peer(PeerId(owner[0]))}")


def _move(path: Path, directory: Path) -> Path:
    target = directory / path.name
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        while target.exists():  # a backup of the same key was put back meanwhile
            target = target.with_name(f"{target.name}+")
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            (busy, *_) = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise LedgerError(f"{path}: another program reads this ledger: end it, then join again")
        path.rename(target)
        # All that these held is in the file by now; left behind, they would be taken for the next ledger's.
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    except OSError as error:
        raise LedgerError(f"{path}: cannot be moved to {target}: {error.strerror}") from error
    except sqlite3.Error as error:
        raise LedgerError(f"{path}: cannot be set aside: {error}") from error
    return target
