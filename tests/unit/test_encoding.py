import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.p2p.encoding import MAX_ITEMS, decode, encode
from coppermesh.p2p.errors import LocalProtocolError, RemoteProtocolError
from coppermesh.p2p.records import Count, Hash, Label


class Sample(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    number: Count
    root: Hash | None
    label: Label
    flag: bool
    numbers: list[Count]
    free: str


samples = st.builds(
    Sample,
    number=st.integers(0, (1 << 62) - 1),
    root=st.none() | st.binary(min_size=32, max_size=32),
    label=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=128),
    flag=st.booleans(),
    numbers=st.lists(st.integers(0, (1 << 62) - 1), max_size=20),
    free=st.text(st.characters(exclude_categories=["Cs"])),
)


@given(samples)
def test_round_trip(sample: Sample) -> None:
    assert decode(Sample, encode(sample), max_bytes=1 << 20) == sample


GOOD = Sample(number=5, root=None, label="x", flag=True, numbers=[1], free="")


def test_bytes_are_the_documented_ones() -> None:
    assert encode(GOOD) == bytes.fromhex("96 05 c0 a178 c3 9101 a0")


@pytest.mark.parametrize(
    "change",
    [
        {"number": -1},
        {"number": 1 << 62},
        {"number": 1 << 64},
        {"number": 1.0},
        {"number": True},
        {"number": None},
        {"root": bytes(31)},
        {"root": bytearray(32)},
        {"root": "A" * 43 + "="},
        {"label": "line\n"},
        {"label": b"x"},
        {"flag": 1},
        {"numbers": (1, "2")},
        {"numbers": [[1]]},
        {"free": "\ud800"},
        {"free": object()},
        {"free": msgspec.UNSET},
    ],
    ids=str,
)
def test_a_bad_object_is_our_own_error(change: dict[str, object]) -> None:
    with pytest.raises(LocalProtocolError, match="cannot encode Sample"):
        encode(msgspec.structs.replace(GOOD, **change))


def test_an_object_that_contains_itself_is_our_own_error() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(LocalProtocolError):
        encode(msgspec.structs.replace(GOOD, numbers=loop))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x91" * (1 << 20),
        b"\x91" * 1000 + b"\xc0",
        b"\xdc\x04\x00" * (1 << 18),
        b"\xdd\x00\x00\x04\x00" * (1 << 17),
        b"\x81" * (1 << 20),
        b"\xc0" * (1 << 20),
        b"\xdf" + b"\xff" * 100,
    ],
    ids=["empty", "nested", "nested-1000", "wide", "wide32", "maps", "nils", "map32"],
)
def test_bombs_end_quickly_as_the_peers_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(Sample, data, max_bytes=1 << 21)


def test_an_array_has_at_most_so_many_items() -> None:
    full = msgspec.structs.replace(GOOD, numbers=[1] * MAX_ITEMS)
    assert decode(Sample, encode(full), max_bytes=1 << 20) == full
    over = msgspec.structs.replace(GOOD, numbers=[1] * (MAX_ITEMS + 1))
    with pytest.raises(RemoteProtocolError, match="max_array_len"):
        decode(Sample, encode(over), max_bytes=1 << 20)


def test_the_limit_is_checked_before_the_parser_sees_anything() -> None:
    data = encode(GOOD)
    assert decode(Sample, data, max_bytes=len(data)) == GOOD
    with pytest.raises(RemoteProtocolError, match="at most"):
        decode(Sample, data, max_bytes=len(data) - 1)


class WithDefault(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    first: Count
    second: Label = ""


def test_a_default_makes_no_field_optional_on_the_wire() -> None:
    assert encode(WithDefault(1)) == bytes.fromhex("92 01 a0")
    with pytest.raises(RemoteProtocolError, match="canonical"):
        decode(WithDefault, bytes.fromhex("91 01"), max_bytes=10)
