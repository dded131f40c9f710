"""Facts about receipts and jobs as plain dictionaries: what `--json` prints and `screens` shows. Pure."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from coppermesh.agent.ledger_reader import ReceiptRow, SubmittedJob
from coppermesh.agent.story import StoryLine, refusal_codes, tell
from coppermesh.p2p.ids import PeerId, format_peer
from coppermesh.p2p.records import Record

_PEER_FIELDS = frozenset({"provider", "requester"})


def list_rows(rows: Sequence[ReceiptRow]) -> list[dict[str, Any]]:
    """One short dictionary a receipt, for lists."""
    return [
        {
            "id": row.id.hex(),
            "role": row.role,
            "job": row.job.hex(),
            "index": row.index,
            "other": format_peer(row.peer),
            "device_kind": row.receipt.device_kind,
            "device_name": row.receipt.device_name,
            "status": row.receipt.status,
            "code": row.receipt.code,
            "billed_us": row.receipt.billed_us,
            "amount": row.receipt.amount,
            "unit": row.receipt.unit,
            "verdict": None if row.countersignature is None else row.countersignature.verdict,
            "dispute_code": None if row.countersignature is None else row.countersignature.code,
        }
        for row in rows
    ]


def job_rows(rows: Sequence[SubmittedJob]) -> list[dict[str, Any]]:
    """One dictionary a job that was submitted here; `state` is `done`, `failed` with its `code`, or `unknown`."""
    return [_job_row(row) for row in rows]


def _job_row(row: SubmittedJob) -> dict[str, Any]:
    kind, _, text = row.end.partition(" ")
    state = {"done": "done", "gave-up": "failed"}.get(kind, "unknown")
    return {
        "job": row.job.hex(),
        "submitted_us": row.submitted_us,
        "tasks": row.tasks,
        "done": row.tasks if state == "done" else row.done,
        "state": state,
        "code": text.partition(":")[0] if state == "failed" else "",
        "cost": row.cost,
        "unit": row.unit,
    }


def full_receipt(row: ReceiptRow) -> dict[str, Any]:
    """Every field of a receipt, and its countersignature's under `countersignature_`."""
    facts: dict[str, Any] = {"id": row.id.hex(), "role": row.role, "job": row.job.hex(), "index": row.index}
    facts |= record_facts(row.receipt)
    if row.countersignature is not None:
        answer = record_facts(row.countersignature)
        facts |= {
            f"countersignature_{name}": answer[name] for name in ("verdict", "code", "accepted_cumulative")
        }
    else:
        facts["countersignature_verdict"] = None
    return facts


def record_facts(record: Record) -> dict[str, Any]:
    """A signed record's fields by name: peers as text, other bytes as hexadecimal digits."""
    facts = {}
    for field in msgspec.structs.fields(type(record)):
        value = getattr(record, field.name)
        if isinstance(value, bytes):
            value = format_peer(PeerId(value)) if field.name in _PEER_FIELDS else value.hex()
        facts[field.name] = value
    return facts


def story(lines: Sequence[StoryLine]) -> dict[str, Any]:
    """A job's story: `text` for people, `lines` for programs."""
    return {
        "job": lines[0].job.hex() if lines else None,
        "text": tell(lines),
        "refusals": dict(Counter(refusal_codes(lines).values())),
        "lines": [
            {
                "at_us": line.at_us,
                "cause": line.cause,
                "kind": line.kind,
                "peer": None if line.peer is None else format_peer(line.peer),
                "task": line.task,
                "text": line.text,
            }
            for line in lines
        ],
    }
