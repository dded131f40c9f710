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
    """Every ledger in a home, or that of one mesh by name. Raises NoLedger where there is none."""
    home.check()
    names = {mesh_id(load_config(home).mesh).hex(): load_config(home).mesh}
    names |= {state.mesh.hex(): state.name for state in private_meshes(home)}
    wanted = None if mesh is None else id_of(home, mesh)
    names |= {state.mesh.hex(): state.name for state in private_meshes(home)}
    meshes = home.path / "meshes"
    found = [
        LedgerPlace(
            MeshId(bytes.fromhex(path.parent.name)), names.get(path.parent.name, path.parent.name), path
        )
        for path in sorted(meshes.glob("*/ledger.sqlite"))
        if len(path.parent.name) == 32 and set(path.parent.name) <= set("0123456789abcdef")
    ]
    if wanted is not None:
        found = [place for place in found if place.mesh == wanted]
    if not found:
        of_mesh = "" if mesh is None else f" of mesh {mesh}"
        raise NoLedger(
            f"home {home.path} has no ledger{of_mesh} yet: nothing was submitted or served from it"
        )
    return found


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
