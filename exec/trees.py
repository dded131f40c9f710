"""Arrays in tuples, lists and dicts: flat for a program, and put together again (pure).

A tree is an array, None, or a tuple, list or dict of trees; a dict's leaves come in the order of its sorted keys.
"""

from collections.abc import Sequence
from typing import Any

from coppermesh.exec.graph import Handle

Tree = Any


def leaves_of(tree: Tree) -> list[Any]:
    """The tree's arrays, whatever kind they are."""
    if tree is None:
        return []
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in leaves_of(tree[key])]
    if isinstance(tree, tuple | list) and not isinstance(tree, Handle):
        return [leaf for item in tree for leaf in leaves_of(item)]
    return [tree]


def structure_of(tree: Tree) -> Any:
    """What two trees of one form have in common, to be compared."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: structure_of(tree[key]) for key in sorted(tree)}
    if isinstance(tree, tuple | list) and not isinstance(tree, Handle):
        return [type(tree).__name__, *map(structure_of, tree)]
    return "array"


def rebuilt(tree: Tree, leaves: Sequence[Any]) -> Tree:
    """The tree with these arrays as its leaves."""
    rest = list(leaves)

    def build(part: Tree) -> Tree:
        if part is None:
            return None
        if isinstance(part, dict):
            built = {key: build(part[key]) for key in sorted(part)}
            return {key: built[key] for key in part}
        if isinstance(part, tuple | list) and not isinstance(part, Handle):
            items = [build(item) for item in part]
            return type(part)(*items) if hasattr(part, "_fields") else type(part)(items)
        return rest.pop(0)

    return build(tree)
