"""`coppermesh receipts`, `jobs`, `explain`: through the home's agent where one runs, else from its files, locked."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from coppermesh.agent import ledger_views, screens
from coppermesh.agent.config import load_config
from coppermesh.agent.export_check import verify_lines
from coppermesh.agent.home import Home
from coppermesh.agent.ledger_reader import LedgerReader, NotInLedger, read_ledger
from coppermesh.agent.local_link import MESH, LocalLink, socket_alive
from coppermesh.agent.mesh_state import elsewhere, id_of
from coppermesh.agent.proof_commands import verify_proof_file
from coppermesh.agent.receipts import InvalidReceipt, verify_receipt_file
from coppermesh.p2p.errors import MeshError, Refused, RemoteProtocolError
from coppermesh.p2p.receipt_file import MAX_RECEIPT_FILE_BYTES, decode_receipt_file

T = TypeVar("T")


def list_newest(home: Home, limit: int) -> list[dict[str, Any]]:
    """The newest receipts, newest first."""
    return ask(
        home,
        "receipts",
        {"limit": limit},
        lambda reader: ledger_views.list_rows(reader.receipts(limit=limit)),
    )


def jobs(home: Home, limit: int) -> list[dict[str, Any]]:
    """The newest jobs that were submitted from this home, newest first."""
    return ask(
        home, "jobs", {"limit": limit}, lambda reader: ledger_views.job_rows(reader.submitted(limit=limit))
    )


def save(home: Home, prefix: str, output: Path, *, force: bool) -> None:
    """Write a receipt to a new file, or in place of an old one with `force`. Raises MeshError where it cannot be."""
    if output.exists() and not force:
        raise MeshError(f"{output} exists: name another file, or add --force")
    data = receipt_file(home, prefix)
    try:
        with output.open("wb" if force else "xb") as file:
            file.write(data)
    except OSError as error:
        raise MeshError(f"{output} cannot be written: {error.strerror}") from error


def show(home: Home, prefix: str) -> dict[str, Any]:
    """Every field of the receipt whose id begins so."""
    return ask(
        home,
        "receipt",
        {"receipt": prefix},
        lambda reader: ledger_views.full_receipt(reader.find_receipt(prefix)),
    )


def receipt_file(home: Home, prefix: str) -> bytes:
    """The receipt as a file that `verify_file` reads."""
    facts = ask(
        home,
        "receipt-file",
        {"receipt": prefix},
        lambda reader: {"file": reader.receipt_file(reader.find_receipt(prefix).id).hex()},
    )
    return bytes.fromhex(facts["file"])


def explain(home: Home, job: str) -> dict[str, Any]:
    """The story of a job."""
    return ask(home, "explain", {"job": job}, lambda reader: ledger_views.story(reader.story(job)))


def verify_file(path: Path) -> dict[str, Any]:
    """Check a receipt file, or an export as JSON lines. No network, no database, no agent, no home."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RECEIPT_FILE_BYTES + 1)
        if data.startswith(b"{"):
            return verify_lines(path)
    except OSError as error:
        return {"ok": False, "unread": True, "sentence": _unread(path, error)}
    proof = verify_proof_file(path)
    if proof is not None:
        return proof
    try:
        decode_receipt_file(data)
    except RemoteProtocolError:
        return {"ok": False, "sentence": f"{path} is not a receipt of this version, or was changed"}
    try:
        verified = verify_receipt_file(data)
    except InvalidReceipt as error:
        return {"ok": False, "sentence": str(error)}
    answer = verified.countersignature
    state = "not countersigned" if answer is None else f"countersigned: {answer.record.verdict}"
    return {
        "ok": True,
        "sentence": f"signed by its provider, {state}; checked: {', '.join(verified.checks)}",
        "complete": verified.complete,
        "accepted": verified.accepted,
        "checks": list(verified.checks),
        "receipt": {"id": verified.receipt.id.hex(), **ledger_views.record_facts(verified.receipt.record)},
        "countersignature": None if answer is None else ledger_views.record_facts(answer.record),
    }


def _unread(path: Path, error: OSError) -> str:
    """Nothing was checked, so nothing is said of a receipt."""
    text = f"{path} cannot be read: {error.strerror}"
    if isinstance(error, FileNotFoundError):
        text += "; wanted is a file that `coppermesh receipts save` or `receipts export` wrote"
        if set(path.name.lower()) <= set("0123456789abcdef"):
            text += f" (coppermesh receipts save {path.name} FILE)"
    return text


def ask(home: Home, method: str, arguments: dict[str, Any], offline: Callable[[LedgerReader], T]) -> T:
    """Ask the running agent; where none runs, read the ledger of the home's mesh while holding the lock."""
    home.check()
    try:
        return _ask(home, method, arguments, offline)
    except (Refused, NotInLedger) as error:
        hint = elsewhere(home, mesh_of(home))
        if not hint or error.code not in (NotInLedger.code, "unknown-job"):
            raise
        raise NotInLedger(f"{error}; {hint}") from error


def nothing(home: Home, what: str) -> str:
    """What is said where a list is empty."""
    hint = elsewhere(home, mesh_of(home))
    return f"{screens.NOTHING[what]}; {hint}" if hint else screens.NOTHING[what]


def mesh_of(home: Home) -> str:
    """The name of the mesh that is meant: what --mesh says, else the home's own."""
    return os.environ.get(MESH) or load_config(home).mesh


def _ask(home: Home, method: str, arguments: dict[str, Any], offline: Callable[[LedgerReader], T]) -> T:
    if socket_alive(home.socket_path):
        with LocalLink(home.socket_path) as link:
            answer: T = json.loads(link.call_json(method, json.dumps(arguments)))
            return answer
    with home.lock():
        path = home.ledger_path(id_of(home, mesh_of(home)))
        if not path.exists():
            raise NotInLedger(f"home {home.path} has no ledger yet: nothing was submitted or served from it")
        with read_ledger(path) as reader:
            return offline(reader)
