"""Cooperative groups that no single word shows and not every runtime has: waiting for the grid, tiles of several warps.

Read are the words of a source without its line ends; answers are positions among them. Pure.
"""

from collections.abc import Iterator, Mapping, Sequence

_WARP = 32
_SIZED_TILES = frozenset({"tiled_partition", "thread_block_tile"})
_GRID_WAITS = frozenset({"sync", "barrier_arrive", "barrier_wait"})
_MAX_QUALIFIERS = 12
"""Tokens of `cooperative_groups::` and its like before a name."""


def grid_waits(words: Sequence[str]) -> Iterator[int]:
    """Where threads wait for the whole grid: `grid.sync()` and its like, `grid` being declared a group.

    What this does not see (a group handed to a template) ends the launch when it runs, on every device.
    """
    if not {"this_grid", "grid_group"}.intersection(words):
        return
    names = _names_of_grids(words)
    for position, word in enumerate(words):
        if word in _GRID_WAITS and words[position + 1 : position + 2] == ["("]:
            of_name = words[position - 1] == "." and words[position - 2] in names
            of_call = words[max(0, position - 4) : position] == ["this_grid", "(", ")", "."]
            argument = [inner for inner in words[position + 2 : position + 8] if inner not in (":", "(")]
            handed_over = words[position - 1] != "." and (
                argument[:1] != [] and (argument[0] in names or "this_grid" in argument)
            )
            if of_name or of_call or handed_over:
                yield position


def _names_of_grids(words: Sequence[str]) -> set[str]:
    """Variables that are a grid's group: `grid_group g`, `auto g = cg::this_grid()`."""
    names = set()
    for position, word in enumerate(words):
        if word == "grid_group":
            after = [other for other in words[position + 1 : position + 5] if other not in ("&", "const")]
            names.update(after[:1])
        elif word == "this_grid":
            before = position - 1
            furthest = max(1, position - _MAX_QUALIFIERS)  # or a chain of its own name would cost its square
            while before > furthest and (words[before] == ":" or words[before + 1] == ":"):
                before -= 1
            if words[before] == "=" or words[before] in ("{", "("):
                names.add(words[before - 1])
    return names


def large_tiles(words: Sequence[str], sizes: Mapping[str, str]) -> Iterator[tuple[int, int]]:
    """Positions and sizes of `tiled_partition<64>`, also by a name that is plainly a number: a macro, a constant.

    `sizes` are numbers by name from elsewhere. What this does not see (a template's parameter) does not compile for a
    CPU, and the compiler's message says why.
    """
    if _SIZED_TILES.isdisjoint(words):
        return
    numbers = dict(sizes)
    for first, name, third, fourth in zip(words, words[1:], words[2:], [*words[3:], ""], strict=False):
        if first == "define":
            numbers[name] = third
        elif third == "=" and first in ("int", "unsigned", "size_t"):
            numbers[name] = fourth
    for position, word in enumerate(words[:-2]):
        if word in _SIZED_TILES and words[position + 1] == "<":
            text = numbers.get(words[position + 2], words[position + 2]).rstrip("uUlL")
            if text.isdecimal() and len(text) < 8 and int(text) > _WARP:
                yield position, int(text)
