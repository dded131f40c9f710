"""Checks an export in JSON lines: each line's signatures, and that its fields say what was signed. No database."""

import json
from pathlib import Path
from typing import IO, Any

from coppermesh.agent.ledger_views import record_facts
from coppermesh.agent.receipts import InvalidReceipt, verify_receipt_file
from coppermesh.p2p.envelope import from_bytes
from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.receipt_file import encode_receipt_file

MAX_LINE_BYTES = 64 * 1024
_ANSWER = "countersignature_"


def verify_lines(path: Path) -> dict[str, Any]:
    """`ok`, a sentence, and how many there were. The first line that does not hold is named by its number."""
    with path.open("rb") as file:
        return _verify(file)


def _verify(file: IO[bytes]) -> dict[str, Any]:
    counts = {"receipts": 0, "accepted": 0, "disputed": 0, "open": 0}
    seen: set[str] = set()
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        try:
            receipt, verdict = _verify_line(line)
            if receipt in seen:
                raise InvalidReceipt("the receipt is in this file twice")
        except (MeshError, ValueError, KeyError, TypeError, RecursionError) as error:
            return {"ok": False, "sentence": f"line {number}: {_told(error)}", "line": number}
        seen.add(receipt)
        counts["receipts"] += 1
        counts[verdict] += 1
    said = ", ".join(f"{count} {what}" for what, count in counts.items())
    return {
        "ok": True,
        "sentence": f"{said}; every signature and sum holds, and every field is as signed",
        **counts,
    }


def _verify_line(line: bytes) -> tuple[str, str]:
    if len(line) > MAX_LINE_BYTES:
        raise InvalidReceipt(f"longer than {MAX_LINE_BYTES} bytes")
    row = json.loads(line)
    receipt = from_bytes(bytes.fromhex(row["receipt_signed"]))
    answer = row["countersignature_signed"]
    signed = None if answer is None else from_bytes(bytes.fromhex(answer))
    verified = verify_receipt_file(encode_receipt_file(receipt, signed))
    facts = {"id": verified.receipt.id.hex(), **record_facts(verified.receipt.record)}
    if verified.countersignature is not None:
        given = record_facts(verified.countersignature.record)
        facts |= {name: given[name.removeprefix(_ANSWER)] for name in row if name in _named(given)}
    for name, value in facts.items():
        if row.get(name) != value:
            raise InvalidReceipt(f"{name} is {row.get(name)!r}, signed was {value!r}")
    state = verified.countersignature
    return facts["id"], "open" if state is None else state.record.verdict


def _named(given: dict[str, Any]) -> set[str]:
    return {_ANSWER + name for name in given}


def _told(error: Exception) -> str:
    return f"no field {error}" if isinstance(error, KeyError) else str(error)
