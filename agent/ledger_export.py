"""Receipts for other programs: JSON lines, CSV, Parquet, and cost rows named as FOCUS names them.

The first three hold every field of a receipt and of its countersignature, and both records as they were signed
(`receipt_signed`, `countersignature_signed`, hexadecimal), so that whoever gets the file can check it without us:
`coppermesh receipts verify FILE` does, for JSON lines. Rows are written as they are read; memory does not grow.

FOCUS is the FinOps Open Cost and Usage Specification 1.0 (focus.finops.org): one row for each charge that this side
accepted, costs as exact decimals, our own columns with the prefix `x_` that it asks for.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import msgspec

from coppermesh.agent.ledger import LedgerError
from coppermesh.agent.ledger_scan import LedgerPlace, ScannedReceipt, scan_ledger, scan_receipts
from coppermesh.agent.ledger_views import record_facts
from coppermesh.p2p.envelope import to_bytes
from coppermesh.p2p.ids import PeerId, format_peer
from coppermesh.p2p.records import Receipt

FORMATS = ("jsonl", "csv", "parquet", "focus")
ROW_GROUP = 10_000
"""Rows of one Parquet row group: what is held in memory at once."""
_ANSWER_FIELDS = ("verdict", "code", "accepted_cumulative", "issued_us")
_HEAD = ("id", "mesh_name", "role", "job", "index")
COLUMNS: tuple[str, ...] = (
    *_HEAD,
    *(field.name for field in msgspec.structs.fields(Receipt)),
    *(f"countersignature_{name}" for name in _ANSWER_FIELDS),
    "receipt_signed",
    "countersignature_signed",
)
"""Of a row in JSON lines, CSV and Parquet, in order."""
FOCUS_COLUMNS: tuple[str, ...] = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "InvoiceIssuerName",
    "ListCost",
    "ListUnitPrice",
    "PricingCategory",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "RegionId",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "SkuId",
    "SubAccountId",
    "x_EnergyMillijoules",
    "x_Mesh",
    "x_ReceiptId",
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet would take for the beginning of a formula."""
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
"""A link that somebody has put there is not followed; what both sides signed is the owner's business alone."""
_US_PER_HOUR = 3_600_000_000

Row = Mapping[str, Any]


class ExportFailed(LedgerError):
    """The export could not be written; the text says what to do."""


def rows_of(places: Iterable[LedgerPlace], since_us: int = 0) -> Iterator[tuple[LedgerPlace, ScannedReceipt]]:
    """Every receipt of these ledgers whose run ended at `since_us` or later."""
    for place in places:
        with scan_ledger(place.path) as database:
            for scanned in scan_receipts(database, since_us):
                yield place, scanned


def full_row(place: LedgerPlace, scanned: ScannedReceipt) -> dict[str, Any]:
    """One receipt with all its fields, by `COLUMNS`."""
    record, answer = scanned.receipt, scanned.countersignature
    facts: dict[str, Any] = {
        "id": record.id.hex(),
        "mesh_name": place.name,
        "role": scanned.role,
        "job": scanned.job.hex(),
        "index": scanned.index,
        **record_facts(record.record),
    }
    given = record_facts(answer.record) if answer is not None else {}
    facts |= {f"countersignature_{name}": given.get(name) for name in _ANSWER_FIELDS}
    facts["receipt_signed"] = to_bytes(record.signed).hex()
    facts["countersignature_signed"] = None if answer is None else to_bytes(answer.signed).hex()
    return facts


def focus_row(place: LedgerPlace, scanned: ScannedReceipt) -> dict[str, Any]:
    """A charge as FOCUS 1.0 names it. Costs are decimals of the unit, exact to its 10^-6."""
    record = scanned.receipt.record
    cost = decimal(record.amount)
    start, end = moment(record.started_us), moment(record.ended_us)
    month_start, month_end = month_of(record.ended_us)
    provider, requester = format_peer(PeerId(record.provider)), format_peer(PeerId(record.requester))
    hours = f"{record.billed_us / _US_PER_HOUR:.12f}"
    return {
        "BilledCost": cost,
        "BillingAccountId": requester,
        "BillingAccountName": requester[-8:],
        "BillingCurrency": record.unit.upper(),
        "BillingPeriodEnd": month_end,
        "BillingPeriodStart": month_start,
        "ChargeCategory": "Usage",
        "ChargeClass": "",
        "ChargeDescription": f"task {scanned.index} of job {scanned.job.hex()[:8]} on {record.device_name}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": end,
        "ChargePeriodStart": start,
        "ConsumedQuantity": decimal(record.billed_us),
        "ConsumedUnit": "Seconds",
        "ContractedCost": cost,
        "ContractedUnitPrice": decimal(record.rate),
        "EffectiveCost": cost,
        "InvoiceIssuerName": provider,
        "ListCost": cost,
        "ListUnitPrice": decimal(record.rate),
        "PricingCategory": "Dynamic",
        "PricingQuantity": hours,
        "PricingUnit": "Hours",
        "ProviderName": provider,
        "PublisherName": "coppermesh",
        "RegionId": "",
        "ResourceId": record.device_uuid or f"{provider}/{record.device}",
        "ResourceName": record.device_name,
        "ResourceType": "GPU" if record.device_kind == "cuda" else "CPU",
        "ServiceCategory": "Compute",
        "ServiceName": "coppermesh",
        "SkuId": record.determinism or record.device_kind,
        "SubAccountId": scanned.job.hex(),
        "x_EnergyMillijoules": "" if record.energy_mj is None else str(record.energy_mj),
        "x_Mesh": place.name,
        "x_ReceiptId": scanned.receipt.id.hex(),
    }


def charges(
    rows: Iterable[tuple[LedgerPlace, ScannedReceipt]],
) -> Iterator[tuple[LedgerPlace, ScannedReceipt]]:
    """Those that cost this side something: accepted, with this side as the requester."""
    return ((place, row) for place, row in rows if row.role == "requester" and row.accepted)


def write_export(kind: str, places: Iterable[LedgerPlace], output: IO[bytes], since_us: int = 0) -> int:
    """Write these ledgers' receipts as one of `FORMATS`; returns how many rows. Raises ExportFailed, LedgerError."""
    rows = rows_of(places, since_us)
    if kind == "jsonl":
        return _write_lines(map(_pair(full_row), rows), output)
    if kind == "csv":
        return _write_csv(map(_pair(full_row), rows), output, COLUMNS)
    if kind == "focus":
        return _write_csv(map(_pair(focus_row), charges(rows)), output, FOCUS_COLUMNS)
    return _write_parquet(map(_pair(full_row), rows), output)


def _pair(
    make: Callable[[LedgerPlace, ScannedReceipt], dict[str, Any]],
) -> Callable[[tuple[LedgerPlace, ScannedReceipt]], dict[str, Any]]:
    return lambda pair: make(*pair)


def _write_lines(rows: Iterable[Row], output: IO[bytes]) -> int:
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007 - how many there were
        output.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
    return count


def _write_csv(rows: Iterable[Row], output: IO[bytes], columns: Iterable[str]) -> int:
    text = io.TextIOWrapper(output, encoding="utf-8", newline="", write_through=True)
    count = 0
    try:
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        for count, row in enumerate(rows, 1):  # noqa: B007 - how many there were
            writer.writerow({name: _cell(value) for name, value in row.items()})
    finally:
        text.flush()
        text.detach()
    return count


def _cell(value: Any) -> Any:
    """A stranger's text must not become a formula where the file is opened as a sheet: it gets an apostrophe."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return value


def _write_parquet(rows: Iterable[Row], output: IO[bytes]) -> int:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ExportFailed(
            "Parquet needs pyarrow: pip install 'coppermesh[parquet]', or choose --format jsonl or csv"
        ) from error
    schema = pa.schema([(name, _arrow_type(pa, name)) for name in COLUMNS])
    count = 0
    with pq.ParquetWriter(output, schema, compression="zstd") as writer:
        group: list[Row] = []
        for row in rows:
            group.append(row)
            if len(group) == ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema))
                count, group = count + len(group), []
        writer.write_table(pa.Table.from_pylist(group, schema))
        return count + len(group)


def _arrow_type(arrow: Any, name: str) -> Any:
    return arrow.int64() if name in _INTEGERS else arrow.string()


_INTEGERS = frozenset(
    ["index", "countersignature_accepted_cumulative", "countersignature_issued_us"]
    + [field.name for field in msgspec.structs.fields(Receipt) if "[int," in str(field.type)]
)


def decimal(amount: int) -> str:
    """10^-6 parts as an exact decimal: `0.000123`."""
    return f"{amount // 1_000_000}.{amount % 1_000_000:06d}"


def moment(at_us: int) -> str:
    """A time as FOCUS writes it: `2026-01-31T12:00:00Z`; empty where a stranger's number is no date."""
    try:
        return datetime.fromtimestamp(at_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return ""


def month_of(at_us: int) -> tuple[str, str]:
    """First moment of the month of `at_us` and of the next one, UTC."""
    try:
        at = datetime.fromtimestamp(at_us // 1_000_000, UTC)
    except (ValueError, OverflowError, OSError):
        return "", ""
    year, month = (at.year + 1, 1) if at.month == 12 else (at.year, at.month + 1)
    return f"{at.year:04d}-{at.month:02d}-01T00:00:00Z", f"{year:04d}-{month:02d}-01T00:00:00Z"


def export_to(path: Path, write: Callable[[IO[bytes]], int], *, force: bool) -> int:
    """Run `write` into a new file beside `path` and put it in place once it is whole. Raises ExportFailed."""
    if path.exists() and not force:
        raise ExportFailed(f"{path} exists: name another file, or add --force")
    part = path.with_name(f".{path.name}.part")
    try:
        with os.fdopen(os.open(part, _NEW_FILE, 0o600), "wb") as output:
            count = write(output)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise ExportFailed(f"{path} cannot be written: {error.strerror}") from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return count
