"""Where a ledger may live and whose it is."""

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from coppermesh.agent.ledger_files import (
    LedgerUnusable,
    network_filesystem,
    open_database,
    open_for_reading,
)
from coppermesh.agent.ledger_store import read_ledger
from coppermesh.p2p.ids import PeerId, mesh_id

MESH = mesh_id("rehearsal")
ME = PeerId(bytes(32))

MOUNTS = r"""
22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
30 22 0:27 / /home rw,relatime shared:2 master:1 - nfs4 server:/home rw,vers=4.2
31 30 259:3 / /home/me/local rw - xfs /dev/sdb1 rw
32 22 0:40 / /mnt/my\040share rw - cifs //server/share rw
33 22 0:41 / /mnt/c rw - 9p C:\134 rw
34 22 0:42 / /home/me/remote rw - fuse.sshfs me@host: rw
35 22 0:43 / /mnt/ntfs rw - fuseblk /dev/sdc1 rw
36 22 0:44 / /over rw - nfs server:/x rw
37 22 0:45 / /over rw - tmpfs tmpfs rw
short line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/ledger.db", None),
        ("/home/you/ledger.db", "nfs4"),
        ("/home", "nfs4"),
        ("/homework/ledger.db", None),
        ("/home/me/local/ledger.db", None),
        ("/home/me/localized/ledger.db", "nfs4"),
        ("/mnt/my share/ledger.db", "cifs"),
        ("/mnt/c/Users/ledger.db", "9p"),
        ("/home/me/remote/ledger.db", "fuse.sshfs"),
        ("/mnt/ntfs/ledger.db", None),
        ("/over/ledger.db", None),
    ],
)
def test_the_nearest_mount_decides(path: str, kind: str | None) -> None:
    assert network_filesystem(MOUNTS, path) == kind


def test_a_ledger_on_a_network_filesystem_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coppermesh.agent.ledger_files.network_filesystem", lambda mounts, path: "nfs4")
    with pytest.raises(LedgerUnusable, match="network filesystem \\(nfs4\\)"):
        open_database(tmp_path / "ledger.db", MESH, ME)
    assert list(tmp_path.iterdir()) == []


def test_the_file_and_its_log_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        database = open_database(tmp_path / "ledger.db", MESH, ME)
    finally:
        os.umask(before)
    database.execute("INSERT INTO story VALUES(NULL, x'00', 0, '', '', NULL, NULL, '')")
    modes = {found.name: stat.S_IMODE(found.stat().st_mode) for found in tmp_path.iterdir()}
    assert modes == {"ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}
    database.close()


def test_a_readable_ledger_is_closed_to_others_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    open_database(path, MESH, ME).close()
    path.chmod(0o644)
    open_database(path, MESH, ME).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_commits_are_synchronous_and_logged(tmp_path: Path) -> None:
    database = open_database(tmp_path / "ledger.db", MESH, ME)
    assert database.execute("PRAGMA synchronous").fetchone() == (2,)
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database.execute("PRAGMA foreign_keys").fetchone() == (1,)
    database.close()


def test_a_ledger_belongs_to_one_mesh_and_key(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    open_database(path, MESH, ME).close()
    with pytest.raises(LedgerUnusable, match="another mesh"):
        open_database(path, mesh_id("elsewhere"), ME)
    with pytest.raises(LedgerUnusable, match="belongs to the key"):
        open_database(path, MESH, PeerId(bytes([1]) * 32))
    open_database(path, MESH, ME).close()


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(LedgerUnusable):
        open_database(tmp_path / "link.db", MESH, ME)
    assert not (tmp_path / "elsewhere.db").exists()


def test_a_folder_or_a_missing_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "ledger.db"):
        with pytest.raises(LedgerUnusable):
            open_database(path, MESH, ME)


@pytest.mark.parametrize(
    "content", [b"not a database at all, by far" * 100, b"SQLite format 3\0" + bytes(4080)]
)
def test_damage_is_named_and_nothing_is_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(content)
    with pytest.raises(LedgerUnusable):
        open_database(path, MESH, ME)
    assert path.read_bytes() == content


def test_another_format_or_another_programs_file_is_refused(tmp_path: Path) -> None:
    newer, foreign = tmp_path / "newer.db", tmp_path / "foreign.db"
    database = open_database(newer, MESH, ME)
    database.execute("PRAGMA user_version=99")
    database.close()
    other = sqlite3.connect(foreign)
    other.execute("CREATE TABLE theirs(x)")
    other.close()
    for path in (newer, foreign):
        with pytest.raises(LedgerUnusable, match="ledger format"):
            open_database(path, MESH, ME)


def test_reading_needs_a_ledger_and_cannot_write(tmp_path: Path) -> None:
    path = tmp_path / "led?ger#.db"
    with pytest.raises(LedgerUnusable, match="no ledger here"), read_ledger(path):
        pass
    open_database(path, MESH, ME).close()
    with read_ledger(path) as reader:
        assert reader.me == ME
        assert reader.receipts() == []
    reading = open_for_reading(path)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reading.execute("DELETE FROM story")
    reading.close()
