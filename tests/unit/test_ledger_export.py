"""`receipts export`: what is written can be read by others, checked by itself, and cannot act in a spreadsheet."""

import csv
import errno
import json
import shutil
from decimal import Decimal
from pathlib import Path

import pytest

from coppermesh.agent import ledger_export
from coppermesh.agent.cli import main
from coppermesh.agent.home import Home
from coppermesh.agent.ledger_export import (
    COLUMNS,
    FOCUS_COLUMNS,
    ExportFailed,
    decimal,
    month_of,
)
from coppermesh.agent.rehearsal import START_US
from coppermesh.p2p.ids import mesh_id

SAVED = Path(__file__).parent / "data" / "ledger_v1.sqlite"


@pytest.fixture
def home(tmp_home: Path) -> Home:
    found = Home(tmp_home)
    found.config_path.write_text('mesh = "rehearsal"\n')
    shutil.copy(SAVED, found.ledger_path(mesh_id("rehearsal")))
    assert main(["ledger", "migrate"]) == 0
    return found


@pytest.fixture(autouse=True)
def quiet(request, capsys):
    """What the fixture `home` says is not the test's."""
    if "home" in request.fixturenames:
        request.getfixturevalue("home")
        capsys.readouterr()


def export(kind: str, path: Path, *options: str) -> None:
    assert main(["receipts", "export", "--format", kind, "-o", str(path), *options]) == 0


def test_json_lines_hold_everything_and_verify(home, tmp_path, capsys):
    path = tmp_path / "receipts.jsonl"
    export("jsonl", path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 8
    assert all(set(row) == set(COLUMNS) for row in rows)
    assert sum(row["countersignature_verdict"] == "disputed" for row in rows) == 1
    assert main(["receipts", "verify", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["receipts"], facts["accepted"], facts["disputed"], facts["open"]) == (8, 6, 1, 1)
    assert main(["receipts", "verify", str(path)]) == 0
    assert capsys.readouterr().out.startswith("valid: 8 receipts")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("amount", 9, "amount is 9"),
        ("device_name", "H200", "device_name is 'H200'"),
        ("countersignature_verdict", "disputed", "countersignature_verdict"),
        ("id", "00" * 32, "id is"),
        ("receipt_signed", "00", "SignedRecord"),
        ("receipt_signed", "zz", "non-hexadecimal"),
        ("countersignature_signed", "93c400c400c400", "SignedRecord"),
        ("receipt_signed", None, ""),
    ],
)
def test_a_changed_line_is_found_and_named(home, tmp_path, capsys, field, value, says):
    path = tmp_path / "receipts.jsonl"
    export("jsonl", path)
    lines = path.read_text().splitlines()
    row = json.loads(lines[1])
    row[field] = value
    lines[1] = json.dumps(row)
    path.write_text("\n".join(lines))
    assert main(["receipts", "verify", str(path)]) == 1
    said = capsys.readouterr().out
    assert "line 2" in said
    assert says in said


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        '{"receipt_signed": []}',
        "{" * 60_000,
        '{"receipt_signed": "' + "0" * 70_000,
        '{"a": ' + "[" * 9000,
    ],
)
def test_lines_that_are_no_export_are_refused(tmp_path, capsys, text):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    assert main(["receipts", "verify", str(path)]) == 1
    assert "line 1" in capsys.readouterr().out


def test_a_receipt_that_is_there_twice_is_refused(home, tmp_path, capsys):
    path = tmp_path / "receipts.jsonl"
    export("jsonl", path)
    path.write_text(path.read_text() * 2)
    assert main(["receipts", "verify", str(path)]) == 1
    assert "twice" in capsys.readouterr().out


def test_csv_has_the_same_columns_and_rows(home, tmp_path):
    path = tmp_path / "receipts.csv"
    export("csv", path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert tuple(rows[0]) == COLUMNS
    assert sum(int(row["amount"]) for row in rows if row["countersignature_verdict"] == "accepted") == 18


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1", "-1", "@x", "\tx"])
def test_a_strangers_text_is_no_formula(text):
    assert ledger_export._cell(text) == "'" + text
    assert ledger_export._cell(-5) == -5
    assert ledger_export._cell("cpu") == "cpu"


def test_parquet_is_typed_and_in_groups(home, tmp_path, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(ledger_export, "ROW_GROUP", 3)
    path = tmp_path / "receipts.parquet"
    export("parquet", path)
    table = pq.read_table(path)
    assert tuple(table.column_names) == COLUMNS
    assert table.num_rows == 8
    assert table.schema.field("amount").type == "int64"
    assert table.schema.field("device_uuid").type == "string"
    assert sum(table.column("amount").to_pylist()) == 24
    assert pq.ParquetFile(path).num_row_groups >= 3


def test_without_pyarrow_parquet_says_what_to_install(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    path = tmp_path / "receipts.parquet"
    assert main(["receipts", "export", "--format", "parquet", "-o", str(path)]) == 1
    assert "coppermesh[parquet]" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.p*")), "nothing half is left"


def test_focus_rows_are_what_was_paid_and_exact(home, tmp_path):
    path = tmp_path / "focus.csv"
    export("focus", path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4, "what was disputed, or earned, is no cost"
    assert tuple(rows[0]) == FOCUS_COLUMNS
    assert sum(Decimal(row["BilledCost"]) for row in rows) == Decimal("0.000012")
    row = rows[0]
    assert (row["BillingCurrency"], row["ServiceCategory"], row["ChargeCategory"]) == (
        "USD",
        "Compute",
        "Usage",
    )
    assert row["ChargePeriodStart"] == "2026-09-21T14:13:20Z"
    assert row["BillingPeriodStart"] == "2026-09-01T00:00:00Z"
    assert row["BillingPeriodEnd"] == "2026-10-01T00:00:00Z"
    mandatory = {
        *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd"),
        *("BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd"),
        *("ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost"),
        *(
            "PricingQuantity",
            "PricingUnit",
            "ProviderName",
            "PublisherName",
            "ServiceCategory",
            "ServiceName",
        ),
    }
    assert mandatory <= set(row)


def test_since_leaves_older_runs_out(home, tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    export("jsonl", path, "--since", "2026-09-21")
    assert len(path.read_text().splitlines()) == 8
    export("jsonl", path, "--since", "2026-09-22", "--force")
    assert path.read_text() == ""
    assert main(["receipts", "export", "-o", str(path)]) == 1
    assert "exists" in capsys.readouterr().err
    assert main(["receipts", "export", "--since", "2026-09-22"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("option", [["--since", "yesterday"], ["--format", "xml"], ["--since", "1y"]])
def test_wrong_options_are_wrong_usage(home, option, capsys):
    with pytest.raises(SystemExit) as end:
        main(["receipts", "export", *option])
    assert end.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_parquet_on_a_terminal_is_wrong_usage(home, capsys):
    assert main(["receipts", "export", "--format", "parquet"]) == 2
    assert "-o FILE" in capsys.readouterr().err


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path):
    def full(output):
        output.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "receipts.csv"
    path.write_text("old")
    with pytest.raises(ExportFailed, match="No space left"):
        ledger_export.export_to(path, full, force=True)
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("receipts.csv", "old")]


def test_a_link_in_the_way_is_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".receipts.csv.part").symlink_to(victim)
    with pytest.raises(ExportFailed):
        ledger_export.export_to(tmp_path / "receipts.csv", lambda output: output.write(b"rows"), force=True)
    assert victim.read_text() == "mine"
    ledger_export.export_to(tmp_path / "receipts.csv", lambda output: output.write(b"rows"), force=True)
    assert (tmp_path / "receipts.csv").stat().st_mode & 0o777 == 0o600


def test_numbers_and_months():
    assert decimal(1_000_001) == "1.000001"
    assert month_of(START_US)[0] == "2026-09-01T00:00:00Z"
    assert month_of((1 << 62) - 1) == ("", "")
