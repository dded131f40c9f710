"""Proofs as files: listing and writing what the ledger keeps, a receipt's place under a statement, checking both."""

from pathlib import Path
from typing import Any

from coppermesh.agent.home import Home
from coppermesh.agent.ledger import EvidenceFound
from coppermesh.agent.ledger_commands import one_ledger
from coppermesh.agent.ledger_reader import LedgerReader, NotInLedger, read_ledger
from coppermesh.agent.ledger_settling import SettlingTables
from coppermesh.agent.ledger_views import record_facts
from coppermesh.agent.proofs import InvalidProof, prove, verify_evidence, verify_place
from coppermesh.agent.screens import moment, table
from coppermesh.agent.settling_rules import other_side
from coppermesh.agent.statements import net_for, receipt_leaf, unpack_spans
from coppermesh.p2p.envelope import open_record, open_verified
from coppermesh.p2p.errors import MeshError, RemoteProtocolError
from coppermesh.p2p.ids import PeerId, format_peer
from coppermesh.p2p.merkle import inclusion_path
from coppermesh.p2p.proof_files import (
    MAX_EVIDENCE_BYTES,
    MAX_STATEMENT_BYTES,
    decode_evidence,
    decode_place,
    decode_statement_file,
    encode_evidence,
    encode_place,
)
from coppermesh.p2p.settlement_records import SignedStatement, Statement

_MOST = max(MAX_EVIDENCE_BYTES, MAX_STATEMENT_BYTES)


def list_proofs(home: Home, mesh: str | None) -> list[dict[str, Any]]:
    """What is kept against others, oldest first; `proven`: the records show it by themselves."""
    place = one_ledger(home, mesh)
    with read_ledger(place.path) as reader:
        kept = reader.evidence()
    return [
        {
            "number": number,
            "mesh": place.name,
            "kind": found.kind,
            "peer": format_peer(found.peer),
            "at_us": found.at_us,
            "text": found.text,
            "proven": _is_proven(found),
        }
        for number, found in enumerate(kept, 1)
    ]


def proof_lines(rows: list[dict[str, Any]]) -> list[str]:
    """`coppermesh receipts proof`."""
    cells = [
        (
            row["number"],
            row["kind"],
            row["peer"][-8:],
            moment(row["at_us"]) if row["at_us"] else "-",
            "by itself" if row["proven"] else "no: one side's word",
            row["text"],
        )
        for row in rows
    ]
    return table(("NO", "KIND", "AGAINST", "AT", "PROVES", "TEXT"), cells, right=(0,)) if rows else []


def proof_file(home: Home, number: int, mesh: str | None) -> bytes:
    """One of them as a file that anybody can check. Raises NotInLedger."""
    with read_ledger(one_ledger(home, mesh).path) as reader:
        kept = reader.evidence()
    if not 0 < number <= len(kept):
        raise NotInLedger(f"there is no proof number {number}: `coppermesh receipts proof` lists {len(kept)}")
    found = kept[number - 1]
    return encode_evidence(found.kind, found.peer, list(found.records))


def place_file(home: Home, prefix: str, mesh: str | None) -> bytes:
    """A receipt's place under the statement that settles it, as a file. Raises NotInLedger."""
    with read_ledger(one_ledger(home, mesh).path) as reader:
        row = reader.find_receipt(prefix)
        return reader.look(lambda tables: _place(tables, row.receipt.lane, row.receipt.sequence))


def _place(tables: SettlingTables, lane: bytes, sequence: int) -> bytes:
    signed = tables.statement_over(lane, sequence)
    receipt, answer = tables.entry(lane, sequence)
    if signed is None or receipt is None or answer is None:
        raise NotInLedger("that receipt is under no statement yet: `coppermesh statement propose` makes one")
    leaves: list[bytes] = []
    index = -1
    for span in unpack_spans(signed.lanes):
        if span.lane == lane:
            index = len(leaves) + sequence - span.start
        leaves += [receipt_leaf(*ids) for ids in tables.answered(span)]
    return encode_place(receipt, answer, signed, index, inclusion_path(leaves, index))


def read_statement(reader: LedgerReader, prefix: str) -> SignedStatement:
    """The one statement whose id begins so. Raises NotInLedger."""
    named = [
        signed
        for signed in reader.look(lambda tables: tables.statements())
        if open_verified(Statement, signed.proposed).id.hex().startswith(prefix.lower())
    ]
    if len(named) != 1:
        how_many = "no statement" if not named else "several statements"
        raise NotInLedger(f"{how_many} here begin with {prefix}")
    return named[0]


def _is_proven(found: EvidenceFound) -> bool:
    try:
        prove(found.kind, found.peer, found.records)
    except (InvalidProof, RemoteProtocolError):
        return False
    return True


def verify_proof_file(path: Path) -> dict[str, Any] | None:
    """Check evidence, a place or a statement; None where the file is none of these. Raises OSError."""
    with path.open("rb") as file:
        data = file.read(_MOST + 1)
    for magic, decode, verify in (
        (b"coppermesh-evidence", decode_evidence, _verify_evidence),
        (b"coppermesh-place", decode_place, _verify_place),
        (b"coppermesh-statement", decode_statement_file, _verify_statement),
    ):
        if magic not in data[:64]:
            continue
        try:
            decode(data)
            return {"ok": True, **verify(data)}
        except MeshError as error:
            return {"ok": False, "sentence": str(error)}
    return None


def _verify_evidence(data: bytes) -> dict[str, Any]:
    proven = verify_evidence(data)
    peer = format_peer(proven.peer)
    return {"kind": proven.kind, "peer": peer, "sentence": f"a proof against {peer}: it {proven.sentence}"}


def _verify_place(data: bytes) -> dict[str, Any]:
    proven, receipt, statement, amount = verify_place(data)
    return {
        "kind": "place",
        "sentence": f"{proven.sentence}, signed by both sides; it adds {amount} of 10^-6 {receipt.record.unit}",
        "amount": amount,
        "statement": {"id": statement.id.hex(), **record_facts(statement.record)},
        "receipt": {"id": receipt.id.hex(), **record_facts(receipt.record)},
    }


def _verify_statement(data: bytes) -> dict[str, Any]:
    signed = decode_statement_file(data)
    opened = open_record(Statement, signed.proposed)
    record = opened.record
    if signed.agreed is not None:
        second = open_record(Statement, signed.agreed, signer=PeerId(record.other))
        if second.id != opened.id:
            raise RemoteProtocolError("Statement: the two sides signed different ones")
    net = net_for(record, PeerId(record.proposer))
    payer = other_side(record, PeerId(record.proposer)) if net > 0 else PeerId(record.proposer)
    state = "signed by both sides" if signed.agreed is not None else "signed by its proposer alone"
    owes = f"{format_peer(payer)} owes {record.net} of 10^-6 {record.unit}" if net else "nothing is owed"
    sentence = f"statement {record.number} over {record.receipts} receipts, {state}: {owes}"
    return {"kind": "statement", "sentence": sentence, "id": opened.id.hex(), **record_facts(record)}
