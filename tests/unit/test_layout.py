"""What people read fits their screen, and nothing of it is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.agent import layout, screens

HEADS = ("PEER", "ADDRESS", "MS")
ROWS = [("abc", "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWQwerty and more words", "1.5"), ("d", "-", "100.25")]


def test_a_table_that_fits_is_left_alone() -> None:
    assert layout.lay_out(HEADS, [("a", "b", "1")], right=(2,), width=80) == [
        "PEER  ADDRESS  MS",
        "a     b         1",
    ]


def test_the_widest_column_of_text_wraps_and_numbers_never_do() -> None:
    lines = layout.lay_out(HEADS, ROWS, right=(2,), width=40)
    assert max(map(len, lines)) <= 40
    assert lines[0].endswith("    MS")
    assert lines[1].endswith("  1.5")
    address = "".join(line[6:32].strip() for line in lines[1:-1]).replace(" ", "")
    assert address == ROWS[0][1].replace(" ", "")
    assert lines[-1].endswith("100.25")


def test_what_cannot_be_side_by_side_is_told_row_by_row() -> None:
    heads = [f"HEADING {number}" for number in range(9)]
    lines = layout.lay_out(heads, [["1234567"] * 9, ["x"] * 9], right=range(9), width=60)
    assert lines[0] == "HEADING 0  1234567"
    assert lines[9:11] == ["", "HEADING 0  x"]


def test_a_long_line_goes_on_below_its_own_text() -> None:
    line = "12:00:01  accepted  " + "word " * 30
    folded = layout.fold([line.strip(), "short"], width=60)
    assert folded[-1] == "short"
    assert all(part.startswith(" " * 20 + "word") for part in folded[1:-1])
    assert max(map(len, folded)) <= 60


@given(
    st.lists(st.lists(st.text("ab /\u00e9", max_size=90), min_size=3, max_size=3), max_size=4),
    st.integers(layout.LEAST, 120),
)
def test_every_character_of_every_cell_is_shown_within_the_width(rows: list[list[str]], width: int) -> None:
    lines = layout.lay_out(HEADS, rows, right=(), width=width)
    assert all(len(line) <= width for line in lines)
    shown = sorted("".join(lines).replace(" ", ""))
    assert shown == sorted("".join([*HEADS, *(cell for row in rows for cell in row)]).replace(" ", ""))


@pytest.mark.parametrize("unit", ["usd", "credits-of-a-very-long-name"])
def test_amounts_have_a_column_for_their_unit(unit: str) -> None:
    assert screens.number(-1_500_000) == "-1.500000"
    assert screens.money(1_500_000, unit) == f"1.500000 {unit}"
