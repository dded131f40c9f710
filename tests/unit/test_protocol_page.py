"""p2p/PROTOCOL.md says of every structure exactly what the code checks."""

import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any, cast, get_args, get_origin

import msgspec
import pytest

from coppermesh.agent import settlement, settling_rules, statements
from coppermesh.agent.ledger_desk import LedgerDesk
from coppermesh.agent.negotiation import LeaseState, TaskState
from coppermesh.agent.policy import DECLINE_CODES
from coppermesh.p2p import ledger_messages, membership_messages, messages
from coppermesh.p2p.announcements import MAX_ANNOUNCEMENT_BYTES, Verdict
from coppermesh.p2p.blob_streams import BlobAnswer, BlobHeader
from coppermesh.p2p.certificates import MEMBERSHIP_CODES, ROLES, Right
from coppermesh.p2p.channel import Frame, Refusal
from coppermesh.p2p.invitation import Invitation
from coppermesh.p2p.membership_records import Quota, RevocationNotice, UsageNotice
from coppermesh.p2p.messages import MAX_FRAME_BYTES, Message, Nothing
from coppermesh.p2p.proof_files import (
    MAX_EVIDENCE_BYTES,
    MAX_PLACE_BYTES,
    MAX_STATEMENT_BYTES,
    EvidenceFile,
    PlaceFile,
    StatementFile,
)
from coppermesh.p2p.receipt_file import MAX_RECEIPT_FILE_BYTES, ReceiptFile
from coppermesh.p2p.records import (
    AddressText,
    Code,
    Count,
    DeviceOffer,
    Key,
    Label,
    Nonce,
    Record,
    Sentence,
    Shard,
    Signature,
    SignedRecord,
    Version,
)
from coppermesh.p2p.settlement_records import SignedPayout, SignedStatement

PAGE = (Path(__file__).parents[2] / "p2p" / "PROTOCOL.md").read_text()

LEDGERS = PAGE.partition("## Ledgers")[2].partition("## Money")[0]

WORDS = {
    Version: "1",
    Key: "32 bytes",
    Nonce: "16 bytes",
    Signature: "64 bytes",
    Count: "count",
    Code: "code",
    AddressText: "address",
    Label: "label",
    Sentence: "sentence",
    Shard: "shard",
    bool: "boolean",
    type(None): "nil",
}

Rows = list[tuple[str, str]]


def in_words(annotation: Any) -> str:
    """A field's type as the page writes it."""
    for known, word in WORDS.items():
        if annotation == known:
            return word
    origin = get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(in_words(part) for part in get_args(annotation))
    if origin is Annotated:
        base, limits = get_args(annotation)
        return limited_in_words(base, limits)
    return str(annotation.__name__)


def limited_in_words(base: Any, limits: msgspec.Meta) -> str:
    if get_origin(base) is list:
        return f"array, at most {limits.max_length} of {in_words(get_args(base)[0])}"
    if base is bytes:
        return f"bytes, at most {limits.max_length}"
    if base is int:
        most = limits.le if limits.le is not None else int(limits.lt or 0) - 1
        return f"integer {limits.ge} to {most}"
    choices = re.fullmatch(r"\^\(?([a-z|-]+)\)?\\Z", limits.pattern or "")
    if choices:
        return " / ".join(f"`{choice}`" for choice in choices[1].split("|"))
    if limits.pattern:
        return f"code or empty, at most {limits.max_length}"
    return f"text, at most {limits.max_length} characters"


def tables_on_the_page() -> list[Rows]:
    tables = re.findall(r"^\| field .*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [[row_of(line) for line in table.splitlines()] for table in tables]


def row_of(line: str) -> tuple[str, str]:
    name, kind, meaning = (cell.strip() for cell in line.strip("|").split(" | "))
    assert meaning, line
    return name.strip("`"), kind


STRUCTURES: list[type[msgspec.Struct]] = [
    *Record.__subclasses__(),
    *(
        kind
        for kind in Message.__subclasses__()
        if kind.__module__ in (Message.__module__, membership_messages.__name__, ledger_messages.__name__)
        and kind is not Nothing
    ),
    *(SignedStatement, SignedPayout, EvidenceFile, PlaceFile, StatementFile),
    *(Quota, RevocationNotice, UsageNotice, Invitation),
    *(SignedRecord, DeviceOffer, Frame, Refusal, ReceiptFile, BlobHeader, BlobAnswer),
]


@pytest.mark.parametrize("kind", STRUCTURES, ids=lambda kind: kind.__name__)
def test_the_fields_of_every_structure_are_on_the_page(kind: type[msgspec.Struct]) -> None:
    hints = typing.get_type_hints(kind, include_extras=True)
    rows = [(info.name, in_words(hints[info.name])) for info in msgspec.structs.fields(kind)]
    assert rows in tables_on_the_page()


def test_the_page_has_no_table_too_many() -> None:
    assert len(tables_on_the_page()) == len(STRUCTURES)


@pytest.mark.parametrize("kind", Record.__subclasses__(), ids=lambda kind: kind.__name__)
def test_domain_limit_and_authors_are_on_the_page(kind: type[Record]) -> None:
    section = PAGE.partition(f"### {kind.__name__}\n")[2].partition("\n### ")[0]
    authors = " and ".join(f"`{field}`" for field in kind.AUTHORS)
    assert f"Domain `{kind.DOMAIN}`, at most {kind.MAX_BYTES} bytes, author" in section
    assert authors in section.partition("|")[0]


def test_methods_are_those_of_the_messages_module() -> None:
    documented = re.findall(
        r"^\| `([a-z]+)` +\| (\w+) +\| (\w+) +\| (\w+)",
        f"{messages.__doc__}\n{membership_messages.__doc__}",
        re.MULTILINE,
    )
    assert len(documented) == 20
    found = re.findall(
        r"^\| `([a-z]+)` +\| (\w+) +\| (\w+) +\| (\w+) +\|$", PAGE.replace(LEDGERS, ""), re.MULTILINE
    )
    assert found == documented


def test_methods_about_ledgers_are_on_the_page_and_answered() -> None:
    pattern = (
        r"^\| `([a-z]+-[a-z]+|statement|voucher|payment|payout|scores)` +\| (\w+) +\| (\w+) +\| (\w+) +\|$"
    )
    documented = re.findall(pattern, ledger_messages.__doc__ or "", re.MULTILINE)
    assert len(documented) == 9
    assert re.findall(pattern, LEDGERS, re.MULTILINE) == documented
    desk = LedgerDesk(*[cast("Any", None)] * 4, unit="usd", now_us=lambda: 0)
    assert {name: kind.__name__ for name, (kind, _) in desk.handlers().items()} == {
        name: request for name, _, request, _ in documented
    }


def test_codes_of_statements_are_on_the_page() -> None:
    source = "".join(
        (Path(module.__file__ or "")).read_text() for module in (statements, settling_rules, settlement)
    )
    raised = set(re.findall(r'(?:Refused|LedgerConflict)\(\s*"([a-z-]+)"', source))
    assert len(raised) > 15
    codes = PAGE.partition("**Refusals about ledgers**")[2].partition("\n\n")[0]
    # Of what never leaves an agent: its own records, and a backend that takes deposits.
    local = {"wrong-signature", "unsettled", "no-deposit"}
    assert raised - local <= set(re.findall(r"`([a-z-]+)`", codes))


def test_codes_states_and_verdicts_are_all_there() -> None:
    declines = dict(
        re.findall(r"^\| `([a-z-]+)` +\| ([^|]+) \|$", PAGE.partition("**Declines**")[2], re.MULTILINE)
    )
    assert set(declines) == set(DECLINE_CODES)
    verdicts = re.findall(r"^\| `([a-z-]+)` +\| (yes|   )   \|", PAGE, re.MULTILINE)
    assert dict(verdicts) == {
        verdict.value: "yes" if verdict.is_misbehaviour else "   " for verdict in Verdict
    }
    states = PAGE.partition("## Conversations")[2].partition("## Money")[0]
    assert [state for state in (*LeaseState, *TaskState) if f"`{state.value}`" not in states] == []


@pytest.mark.parametrize(
    "number",
    [
        *(MAX_FRAME_BYTES, MAX_ANNOUNCEMENT_BYTES, MAX_RECEIPT_FILE_BYTES),
        *(MAX_EVIDENCE_BYTES, MAX_PLACE_BYTES, MAX_STATEMENT_BYTES),
    ],
)
def test_limits_are_on_the_page(number: int) -> None:
    assert f"at most {number} bytes" in PAGE.replace("\n", " ")


def test_roles_and_refusals_of_private_meshes_are_on_the_page() -> None:
    section = PAGE.partition("## Private meshes")[2].partition("## Conversations")[0]
    codes = dict(
        re.findall(r"^\| `([a-z-]+)` +\| ([^|]+) \|$", section.partition("**Refusals")[2], re.MULTILINE)
    )
    assert codes == MEMBERSHIP_CODES
    table = re.findall(r"^\| `([a-z-]+)` *\|((?: +(?:yes)? *\|){4})$", section, re.MULTILINE)
    given = {role: [cell.strip() for cell in cells.split("|")[:4]] for role, cells in table}
    assert given == {
        role: ["yes" if right in rights else "" for right in Right] for role, rights in ROLES.items()
    }
