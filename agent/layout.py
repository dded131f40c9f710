"""Lines that fit a screen: tables whose wide columns wrap, long lines that go on below where they began. Pure.

The command line sets the width once (`fit_to`); where the output is no terminal it is `USUAL`, and lines that are no
table are left whole for whoever searches them. Scripts read `--json`.
"""

import textwrap
from collections.abc import Sequence

USUAL = 100
"""Columns where nothing is known of the screen."""
LEAST = 40
"""Narrower screens are treated as if they had so many columns."""
NARROW = 6
"""Characters that a column of text keeps at least, its heading besides."""
GAP = 2

_width = USUAL
_folding = True


def fit_to(columns: int, *, folding: bool = True) -> None:
    """From now on tables are laid out for so many columns, and long lines too where `folding`."""
    global _width, _folding
    _width, _folding = max(LEAST, columns), folding


def lay_out(
    headings: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int], width: int | None = None
) -> list[str]:
    """A table of one-line cells; columns numbered in `right` are aligned right and never wrapped.

    Where the screen is too narrow for all columns, each row is told below the last, a line for each cell.
    """
    width = _width if width is None else width
    cells = [list(headings), *map(list, rows)]
    natural = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    widths = _shrunk(natural, [len(name) for name in headings], right, width)
    if widths is None:
        return _stacked(headings, rows, width)
    return [line for row in cells for line in _row(row, widths, right)]


def fold(lines: Sequence[str], width: int | None = None) -> list[str]:
    """The lines, long ones wrapped: what follows a label goes on below its own beginning."""
    if width is None and not _folding:
        return list(lines)
    return [part for line in lines for part in _folded(line, width or _width)]


def _shrunk(
    widths: Sequence[int], headings: Sequence[int], right: Sequence[int], limit: int
) -> list[int] | None:
    """Column widths within the limit, the widest text cut down first; None where that cannot be."""
    found = list(widths)
    least = [
        width if column in right else min(width, max(headings[column], NARROW))
        for column, width in enumerate(found)
    ]
    while (over := sum(found) + GAP * (len(found) - 1) - limit) > 0:
        loose = [column for column, width in enumerate(found) if width > least[column]]
        if not loose:
            return None
        widest = max(loose, key=lambda column: found[column])
        next_widest = max((found[column] for column in loose if found[column] < found[widest]), default=0)
        found[widest] = max(least[widest], next_widest - 1, found[widest] - over)
    return found


def _row(cells: Sequence[str], widths: Sequence[int], right: Sequence[int]) -> list[str]:
    parts = [_wrapped(cell, width) for cell, width in zip(cells, widths, strict=True)]
    lines = []
    for at in range(max(len(part) for part in parts)):
        padded = [
            (part[at] if at < len(part) else "").rjust(width)
            if column in right
            else (part[at] if at < len(part) else "").ljust(width)
            for column, (part, width) in enumerate(zip(parts, widths, strict=True))
        ]
        lines.append((" " * GAP).join(padded).rstrip())
    return lines


def _wrapped(cell: str, width: int) -> list[str]:
    if len(cell) <= width:
        return [cell]
    return textwrap.wrap(cell, width, break_on_hyphens=False) or [""]


def _stacked(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Each row as lines of `HEADING  cell`."""
    label = max(len(name) for name in headings)
    lines: list[str] = []
    for row in rows:
        if lines:
            lines.append("")
        lines += [f"{name.ljust(label)}  {cell}".rstrip() for name, cell in zip(headings, row, strict=True)]
    return fold(lines, width)


def _folded(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    indent = _indent(line, width)
    return textwrap.wrap(
        line, width, subsequent_indent=" " * indent, break_on_hyphens=False, drop_whitespace=True
    ) or [line]


def _indent(line: str, width: int) -> int:
    """Where the text of the last of its labels begins: after the last gap of two spaces in the first half."""
    bare = len(line) - len(line.lstrip())
    best = bare + GAP
    at = bare
    while (at := line.find("  ", at)) != -1:
        while at < len(line) and line[at] == " ":
            at += 1
        if at > width // 2:
            break
        best = at
    return best
