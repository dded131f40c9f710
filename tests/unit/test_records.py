import re
from typing import Any

import msgspec
import pytest

from coppermesh.p2p.lease_records import Extension
from coppermesh.p2p.membership_records import Certificate, Joining, Revocation, Rotation, Usage
from coppermesh.p2p.records import MAX_BODY_BYTES, Code, Count, Key, Label, Record, Sentence, Version
from coppermesh.p2p.settlement_records import Payment, Payout, Score, Statement, Voucher

KINDS = Record.__subclasses__()
IN_PRIVATE_MESHES = {kind.__name__ for kind in (Certificate, Revocation, Joining, Rotation, Usage)}
IN_SETTLEMENT = {kind.__name__ for kind in (Payment, Payout, Score, Statement, Voucher)}


def accepts(annotation: Any, value: object) -> bool:
    try:
        msgspec.convert(value, annotation, strict=True, builtin_types=(bytes,))
    except msgspec.ValidationError:
        return False
    return True


def test_every_kind_is_here() -> None:
    assert {kind.__name__ for kind in KINDS} == {
        *("Announcement", "Order", "Bid", "Decline", "Lease", "Task", "Receipt", "Trace", "Countersignature"),
        *IN_PRIVATE_MESHES,
        *IN_SETTLEMENT,
        Extension.__name__,
    }


def test_domains_are_distinct_and_versioned() -> None:
    domains = [kind.DOMAIN for kind in KINDS]
    assert len(set(domains)) == len(domains)
    assert all(re.fullmatch(r"coppermesh/[a-z]+/1", domain) for domain in domains)


@pytest.mark.parametrize("kind", KINDS)
def test_kind_names_its_limit_and_authors(kind: type[Record]) -> None:
    fields = {info.name: info for info in msgspec.structs.fields(kind)}
    assert 0 < kind.MAX_BYTES <= MAX_BODY_BYTES
    assert kind.AUTHORS
    # A payout's second author is there only where the account has a key that can sign.
    assert all(fields[name].type in (Key, Key | None) for name in kind.AUTHORS)
    assert fields[kind.AUTHORS[0]].type == Key


@pytest.mark.parametrize("kind", KINDS)
def test_kind_starts_with_version_and_mesh_and_has_no_optional_field(kind: type[Record]) -> None:
    fields = msgspec.structs.fields(kind)
    assert [info.name for info in fields[:2]] == ["version", "mesh"]
    assert all(info.required for info in fields)


@pytest.mark.parametrize("kind", KINDS)
def test_kind_is_frozen_and_takes_no_extra_field(kind: type[Record]) -> None:
    config = kind.__struct_config__
    assert config.frozen
    assert config.array_like
    assert config.forbid_unknown_fields


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (Code, ["ok", "job-failed", "a" * 40], ["", "OK", "a b", "a\n", "a_b", "\u00e9", "a" * 41, b"ok", 1]),
        (Label, ["", "gpu0", "NVIDIA H200 (~)", "x" * 128], ["x" * 129, "\t", "a\n", "\x7f", "\u00fc", None]),
        (Sentence, ["", "no. try later", "x" * 400], ["x" * 401, "two\nlines", "\x1b[0m"]),
        (Count, [0, (1 << 62) - 1], [-1, 1 << 62, 1 << 64, 1.0, True, "1", None]),
        (Key, [bytes(32)], [bytes(31), bytes(33), "A" * 43 + "=", None, [0] * 32]),
        (Version, [1], [0, 2, True, 1.0]),
    ],
)
def test_field_types_take_exactly_what_they_say(annotation: Any, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not accepts(annotation, value)] == []
    assert [value for value in bad if accepts(annotation, value)] == []
