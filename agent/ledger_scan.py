"""Reading a whole ledger, row by row, without an agent: for exports, audits and balances over several meshes.

A reader does not need the home's lock: SQLite's write-ahead log gives it the ledger as of one moment while an agent
goes on writing, and neither waits for the other. It opens the file read-only.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coppermesh.agent.config import load_config
from coppermesh.agent.home import Home
from coppermesh.agent.ledger import LedgerError, Role
from coppermesh.agent.ledger_book import explain_failure, reopen
from coppermesh.agent.ledger_files import open_for_reading, refuse_network_filesystem
from coppermesh.agent.mesh_state import id_of, private_meshes
from coppermesh.p2p.envelope import Opened
from coppermesh.p2p.ids import MeshId, PeerId, mesh_id
from coppermesh.p2p.records import Countersignature, Receipt, SignedRecord

FORMER = "as-"
"""What directories of ledgers of earlier keys begin with (`former_ledgers`)."""


class NoLedger(LedgerError):
    """The home has no ledger of that mesh yet."""


@dataclass(frozen=True, slots=True)
class LedgerPlace:
    """One mesh's ledger in a home."""

    mesh: MeshId
    name: str
    """The mesh's name where the settings tell it, else its id in hexadecimal digits."""
    path: Path


@dataclass(frozen=True, slots=True)
class ScannedReceipt:
    """A receipt with both signatures, as it lies in the ledger."""

    role: Role
    job: bytes
    index: int
    receipt: Opened[Receipt]
    countersignature: Opened[Countersignature] | None

    @property
    def peer(self) -> PeerId:
        """The other side."""
        record = self.receipt.record
        return PeerId(record.provider if self.role == "requester" else record.requester)

    @property
    def accepted(self) -> bool:
        """True where the requester accepted it."""
        return self.countersignature is not None and self.countersignature.record.verdict == "accepted"


def find_ledgers(home: Home, mesh: str | None = None) -> list[LedgerPlace]:
    """Every ledger in a home, or those of one mesh by name, that of the present key first. Raises NoLedger.

    Those of earlier keys (`former_ledgers`) are called by the mesh and the end of that key: `lab as ..dEXy12Zw`.
    """
    home.check()
    names = {mesh_id(load_config(home).mesh).hex(): load_config(home).mesh}
    names |= {state.mesh.hex(): state.name for state in private_meshes(home)}
    wanted = None if mesh is None else id_of(home, mesh)
    meshes = home.path / "meshes"
    found = [
        LedgerPlace(MeshId(bytes.fromhex(of.name)), names.get(of.name, of.name) + former, path)
        for of in sorted(meshes.glob("*"))
        if len(of.name) == 32 and set(of.name) <= set("0123456789abcdef")
        for path, former in _ledgers_of(of)
    ]
    if wanted is not None:
        found = [place for place in found if place.mesh == wanted]
    if not found:
        of_mesh = "" if mesh is None else f" of mesh {mesh}"
        raise NoLedger(
            f"home {home.path} has no ledger{of_mesh} yet: nothing was submitted or served from it"
        )
    return found


def _ledgers_of(directory: Path) -> list[tuple[Path, str]]:
    """One mesh's ledgers, and what its name is followed by: nothing, or which earlier key it was."""
    former = [
        (path, f" as ..{path.parent.name[-8:]}")
        for path in sorted(directory.glob(f"{FORMER}*/ledger.sqlite*"))
    ]
    present = directory / "ledger.sqlite"
    kept = [(path, name) for path, name in former if not path.name.endswith(("-wal", "-shm"))]
    return [*([(present, "")] if present.exists() else []), *kept]


@contextmanager
def scan_ledger(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection that sees the ledger at one moment. Raises LedgerError where it cannot be read."""
    refuse_network_filesystem(path)
    database = open_for_reading(path)
    try:
        database.execute("BEGIN")
        yield database
    except sqlite3.Error as error:
        raise explain_failure(error) from error
    finally:
        database.close()


def owner_of(database: sqlite3.Connection) -> PeerId:
    """Whose ledger this is."""
    (me,) = database.execute("SELECT value FROM meta WHERE key='me'").fetchone()
    return PeerId(me)


def scan_receipts(database: sqlite3.Connection, since_us: int = 0) -> Iterator[ScannedReceipt]:
    """Every receipt whose run ended at `since_us` or later, in the order in which they were written."""
    rows = database.execute(
        "SELECT role, job, task_index, receipt.signed, countersignature.signed FROM receipt "
        "JOIN task ON task.id = receipt.task JOIN lease ON lease.id = receipt.lease "
        "LEFT JOIN countersignature ON countersignature.receipt = receipt.id ORDER BY receipt.n"
    )
    for role, job, index, signed, answer in rows:
        receipt = reopen(Receipt, signed)
        if receipt.record.ended_us < since_us:
            continue
        countersignature = reopen(Countersignature, answer) if answer is not None else None
        yield ScannedReceipt(role, job, index, receipt, countersignature)


def signed_parts(scanned: ScannedReceipt) -> tuple[SignedRecord, SignedRecord | None]:
    """Receipt and countersignature as they were signed."""
    answer = scanned.countersignature
    return scanned.receipt.signed, answer.signed if answer is not None else None
